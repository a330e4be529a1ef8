//! Single programs of the fleet under the tests' own hand: started with any configuration, with their exit status.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use garrison_testkit::{Fleet, FleetOptions, bootstrap::SERVICES};

use crate::place::binaries;

/// Every program with a configuration file.
pub fn programs() -> Vec<&'static str> {
    SERVICES.iter().copied().chain(["enforcer"]).collect()
}

/// A running program. It is killed when this value is dropped.
#[derive(Debug)]
pub struct Program {
    name: String,
    admin: SocketAddr,
    log: PathBuf,
    child: Child,
}

impl Program {
    /// Starts a program with the fleet's configuration for it. The fleet itself need not have started it.
    pub fn start(fleet: &Fleet, name: &str) -> Self {
        let config = &fleet.written().config[name];
        let log = fleet.log(name);
        let file = fs::File::options().create(true).append(true).open(&log).unwrap();
        // setpriv becomes the program: the process id is the program's.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(binaries().join(name))
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .expect("setpriv (package util-linux) starts");
        Self {
            name: name.to_owned(),
            admin: admin_of(config),
            log,
            child,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Status and body of a page of the admin port; `None` when nobody answers.
    pub fn page(&self, page: &str) -> Option<(u16, String)> {
        http_get(self.admin, page)
    }

    pub fn is_ready(&self) -> bool {
        self.page("/readyz").is_some_and(|(status, _)| status == 200)
    }

    /// The exit status when it has ended.
    pub fn ended(&mut self) -> Option<i32> {
        let status = self.child.try_wait().unwrap()?;
        Some(status.code().unwrap_or(-1))
    }

    /// Panics with the end of its log when it has ended.
    #[track_caller]
    pub fn assert_running(&mut self) {
        if let Some(code) = self.ended() {
            panic!("{} ended with status {code}:\n{}", self.name, self.last_words());
        }
    }

    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        signal(self.id(), "TERM");
    }

    /// Waits for the end and gives the exit status, or `None` when it still runs at the limit.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        let began = Instant::now();
        while began.elapsed() < limit {
            if let Some(code) = self.ended() {
                return Some(code);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until every program is ready.
#[track_caller]
pub fn wait_ready(programs: &mut [Program], limit: Duration) {
    let began = Instant::now();
    for program in programs {
        while !program.is_ready() {
            program.assert_running();
            assert!(
                began.elapsed() < limit,
                "{} was not ready within {limit:?}: {:?}\n{}",
                program.name,
                program.page("/readyz"),
                program.last_words()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &pid.to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()), "kill -s {name} {pid}");
}

fn admin_of(config: &Path) -> SocketAddr {
    let text = fs::read_to_string(config).unwrap();
    let section = text.split("[core.admin]").nth(1).unwrap();
    let listen = section.split("listen = \"").nth(1).unwrap().split('"').next().unwrap();
    listen.parse().unwrap()
}

/// The admin port speaks plain HTTP/1.1; one request needs no client.
pub fn http_get(address: SocketAddr, page: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(15))).ok()?;
    write!(
        stream,
        "GET {page} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Runs a program to its end, but not longer than a limit.
pub fn output(mut command: Command, limit: Duration) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > limit {
            let _ = child.kill();
            let output = child.wait_with_output().unwrap();
            panic!(
                "{command:?} still ran after {limit:?}:\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// A prepared fleet, none of whose services runs yet.
pub async fn prepare(options: FleetOptions) -> Fleet {
    match Fleet::prepare(options).await {
        Ok(fleet) => fleet,
        Err(error) => panic!("the fleet cannot be prepared: {error}"),
    }
}

pub const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
