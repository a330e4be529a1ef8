//! A test in a user and network namespace of its own: root there, nobody outside.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

use garrison_testkit::lab::Node;

const INSIDE: &str = "GARRISON_TEST_LAB";

/// Runs a test in a lab: this binary again, in fresh namespaces, with only this test. `name` is the test's full
/// name, such as `kernel::drops`.
pub(crate) fn in_lab(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        return test();
    }
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare of util-linux is needed for tests with real packets");
    assert!(
        status.success(),
        "{name} failed in its lab; if the message above is about permissions, allow unprivileged user namespaces"
    );
}

/// Runs a program here, in the router.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A host that answers on a TCP port by sending back what it gets.
pub(crate) fn echo(node: &Node, port: u16) -> SocketAddr {
    let address = SocketAddr::from((node.address(), port));
    let listener = node.run(|| TcpListener::bind(address).unwrap()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// A connection that was made, for seeing whether it goes on.
pub(crate) struct Line(TcpStream);

/// How long an answer may take where there is to be one, and how long silence is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_millis(400);

impl Line {
    /// Whether a byte comes back, however slow the machine is.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.answers_within(PATIENCE)
    }

    /// Whether no byte comes back.
    pub(crate) fn is_cut(&mut self) -> bool {
        !self.answers_within(SILENCE)
    }

    fn answers_within(&mut self, limit: Duration) -> bool {
        let mut byte = [0];
        self.0.set_read_timeout(Some(limit)).unwrap();
        self.0.write_all(b"x").is_ok() && self.0.read_exact(&mut byte).is_ok()
    }
}

fn connect_within(limit: Duration, from: &Node, to: SocketAddr) -> Option<Line> {
    from.run(|| {
        let stream = TcpStream::connect_timeout(&to, limit).ok()?;
        stream.set_nodelay(true).unwrap();
        Some(Line(stream))
    })
    .unwrap()
}

/// Connects from a host, `None` when nothing answers.
pub(crate) fn connect(from: &Node, to: SocketAddr) -> Option<Line> {
    connect_within(PATIENCE, from, to)
}

/// Whether a host reaches an address, however slow the machine is: for what is to be reached.
pub(crate) fn reaches(from: &Node, to: SocketAddr) -> bool {
    connect(from, to).is_some_and(|mut line| line.is_alive())
}

/// Whether a host gets no answer from an address: for what is not to be reached.
pub(crate) fn is_cut_off(from: &Node, to: SocketAddr) -> bool {
    connect_within(SILENCE, from, to).is_none_or(|mut line| line.is_cut())
}

/// The hosts of a small network around this router.
pub(crate) struct Hosts {
    pub(crate) attacker: Node,
    pub(crate) client: Node,
    pub(crate) server: Node,
}

impl Hosts {
    pub(crate) fn new() -> Self {
        let host = |name, net| Node::attach(name, Ipv4Addr::new(10, 77, net, 2)).unwrap();
        Self {
            attacker: host("attacker", 1),
            client: host("client", 2),
            server: host("server", 3),
        }
    }
}
