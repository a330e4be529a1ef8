//! Real packets through real nftables: a router between two hosts with several addresses each, all in network
//! namespaces. A connection passes exactly when the documents allow it.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use garrison_ztp::{Policy, compile, document::Mode, ir::lower};
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::TestRunner,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, UdpSocket},
    time::timeout,
};

use crate::{
    generate::{LEFT, RIGHT, documents},
    nftables::require_nft,
    reference::{By, by_address, decide, denied},
};

/// Says which part of the test this process plays.
const ROLE: &str = "GARRISON_ZTP_ROLE";
const TEST: &str = "packets::exactly_the_allowed_connections_pass";
const TCP: [u16; 3] = [80, 82, 443];
const UDP: [u16; 2] = [80, 443];
const RULESETS: usize = 24;
/// How long an answer may take before the packet counts as dropped.
const PATIENCE: Duration = Duration::from_millis(400);

#[test]
fn exactly_the_allowed_connections_pass() {
    match std::env::var(ROLE).as_deref() {
        Err(_) => {
            require_nft();
            let status = Command::new("unshare")
                .args(["-Urn"])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", TEST, "--nocapture"])
                .env(ROLE, "router")
                .status()
                .unwrap();
            assert!(status.success(), "see above");
        }
        Ok("router") => router(),
        Ok("host") => runtime().block_on(host()),
        Ok(other) => panic!("{other}"),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn sh(line: &str) {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A host of the lab: a process in its own network namespace that is told connections to try.
struct Host {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Host {
    fn start(name: &str, addresses: &[&str], gateway: [&str; 2]) -> Self {
        let mut child = Command::new("unshare")
            .arg("-n")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env(ROLE, "host")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let (stdin, stdout) = (
            child.stdin.take().unwrap(),
            BufReader::new(child.stdout.take().unwrap()),
        );
        let mut host = Self { child, stdin, stdout };
        host.expect("up"); // it is in its namespace
        sh(&format!(
            "ip link add {name} type veth peer name eth0 netns {pid}; ip link set {name} up"
        ));
        let [v4, v6] = gateway;
        sh(&format!(
            "ip addr add {v4}/24 dev {name}; ip addr add {v6}/64 dev {name} nodad"
        ));
        let inside = |line: &str| sh(&format!("nsenter -t {pid} -n {line}"));
        inside("ip link set lo up");
        inside("ip link set eth0 up");
        for address in addresses {
            let v6 = address.contains(':');
            inside(&format!(
                "ip addr add {address}/{} dev eth0 {}",
                if v6 { 64 } else { 24 },
                if v6 { "nodad" } else { "" }
            ));
        }
        inside(&format!("ip route add default via {v4}"));
        inside(&format!("ip -6 route add default via {v6}"));
        host
    }

    fn expect(&mut self, word: &str) {
        let line = self.line();
        assert_eq!(line, word);
    }

    /// The next line that the host says; the test harness's own lines are skipped.
    fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "the host went away");
            if let Some((_, said)) = line.split_once("host> ") {
                return said.trim().to_owned();
            }
        }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
        self.stdin.flush().unwrap();
    }

    /// The connections that got an answer.
    fn passing(&mut self, connections: &[Attempt]) -> BTreeSet<Attempt> {
        let texts: Vec<String> = connections
            .iter()
            .map(|a| format!("{} {} {} {}", a.0, a.1, a.2, a.3))
            .collect();
        self.say(&format!("try {}", texts.join(",")));
        let answer = self.line();
        let indexes = answer.strip_prefix("passed").unwrap().split_whitespace();
        indexes.map(|i| connections[i.parse::<usize>().unwrap()]).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Source, destination, protocol, port.
type Attempt = (IpAddr, IpAddr, u8, u16);

fn attempts(from: &[&str], to: &[&str]) -> Vec<Attempt> {
    let parse = |t: &&str| t.parse::<IpAddr>().unwrap();
    let mut all = Vec::new();
    for src in from.iter().map(parse) {
        for dst in to.iter().map(parse).filter(|d| d.is_ipv4() == src.is_ipv4()) {
            all.extend(TCP.map(|port| (src, dst, 6, port)));
            all.extend(UDP.map(|port| (src, dst, 17, port)));
        }
    }
    all
}

fn load(policies: &[Policy]) -> String {
    let text = compile::nftables(policies).files.remove(0).content;
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    nft.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "{text}");
    text
}

fn router() {
    sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; ip link set lo up");
    let mut left = Host::start("left", &LEFT, ["10.77.1.1", "fd77:1::1"]);
    let mut right = Host::start("right", &RIGHT, ["10.77.2.1", "fd77:2::1"]);
    for host in [&mut left, &mut right] {
        host.say("listen");
        host.expect("listening");
    }
    // Without a policy everything passes, or nothing below means anything.
    let (there, back) = (attempts(&LEFT, &RIGHT), attempts(&RIGHT, &LEFT));
    // The first packets may come before the links and neighbours are up.
    for _ in 0..20 {
        if left.passing(&there).len() + right.passing(&back).len() == there.len() + back.len() {
            break;
        }
    }
    assert_eq!(left.passing(&there), there.iter().copied().collect());
    assert_eq!(right.passing(&back), back.iter().copied().collect());

    let mut runner = TestRunner::deterministic();
    let strategy = documents(false, 3).prop_filter("something to enforce", |d| !d.is_empty());
    let (mut passed, mut dropped) = (0, 0);
    for _ in 0..RULESETS {
        let documents = strategy.new_tree(&mut runner).unwrap().current();
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 1)).collect();
        let text = load(&lowered);
        let enforced: Vec<_> = documents.iter().filter(|d| d.spec.mode == Mode::Enforce).collect();
        for (host, attempts) in [(&mut left, &there), (&mut right, &back)] {
            let expected: BTreeSet<Attempt> = attempts
                .iter()
                .copied()
                .filter(|(src, dst, protocol, port)| {
                    !denied(&decide(
                        &enforced,
                        &by_address(*src),
                        &by_address(*dst),
                        *protocol,
                        *port,
                        By::Address,
                    ))
                })
                .collect();
            let got = host.passing(attempts);
            assert_eq!(got, expected, "{text}");
            passed += got.len();
            dropped += attempts.len() - got.len();
        }
    }
    assert!(
        passed > 500 && dropped > 500,
        "{passed} passed and {dropped} were dropped: too one-sided to mean much"
    );
    eprintln!("{RULESETS} rulesets: {passed} connections passed, {dropped} were dropped, as computed");

    // A policy takes effect on a connection that is already open.
    load(&[]);
    left.say(&format!("open {} {} 443", LEFT[0], RIGHT[0]));
    left.expect("echoed");
    load(&[denying(RIGHT[0])]);
    left.say("again");
    left.expect("silent");
    load(&[]);
    left.say("again");
    left.expect("echoed");
}

fn denying(subject: &str) -> Policy {
    let text = format!(
        "apiVersion: garrison.dev/v1alpha1\nkind: ZeroTrustPolicy\nmetadata: {{name: closed}}\nspec:\n  mode: enforce\n  subject: {{cidrs: [{subject}]}}\n  ingress: []\n"
    );
    garrison_ztp::check(&text).documents[0].lower(1)
}

/// The part of a host: answers on its ports, and tries what it is told.
async fn host() {
    println!("host> up");
    let mut open = None;
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "listen" => {
                listen().await;
                println!("host> listening");
            }
            "try" => {
                let tries = rest.split(',').map(|text| {
                    let parts: Vec<&str> = text.split(' ').collect();
                    let to = SocketAddr::new(parts[1].parse().unwrap(), parts[3].parse().unwrap());
                    attempt(parts[0].parse().unwrap(), to, parts[2] == "6")
                });
                let handles: Vec<_> = tries.map(tokio::spawn).collect();
                let mut passed = String::new();
                for (i, handle) in handles.into_iter().enumerate() {
                    if handle.await.unwrap() {
                        passed.push_str(&format!(" {i}"));
                    }
                }
                println!("host> passed{passed}");
            }
            "open" => {
                let parts: Vec<&str> = rest.split(' ').collect();
                let to = SocketAddr::new(parts[1].parse().unwrap(), parts[2].parse().unwrap());
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind(SocketAddr::new(parts[0].parse().unwrap(), 0)).unwrap();
                open = Some(socket.connect(to).await.unwrap());
                println!("host> {}", echo(open.as_mut().unwrap()).await);
            }
            "again" => println!("host> {}", echo(open.as_mut().unwrap()).await),
            other => panic!("{other}"),
        }
    }
}

async fn echo(stream: &mut tokio::net::TcpStream) -> &'static str {
    stream.write_all(b"x").await.unwrap();
    let mut byte = [0];
    // Longer than the first retransmissions, so that what was held back arrives when it may.
    match timeout(Duration::from_secs(3), stream.read_exact(&mut byte)).await {
        Ok(Ok(_)) => "echoed",
        _ => "silent",
    }
}

async fn listen() {
    for port in TCP {
        let listener = TcpListener::bind(SocketAddr::new("::".parse().unwrap(), port))
            .await
            .unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
    }
    // A UDP answer must come from the address that was asked, so each address has its socket.
    for address in LEFT.iter().chain(&RIGHT) {
        for port in UDP {
            let Ok(socket) = UdpSocket::bind(SocketAddr::new(address.parse().unwrap(), port)).await else {
                continue; // an address of the other host
            };
            tokio::spawn(async move {
                let mut buffer = [0; 16];
                while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
                    let _ = socket.send_to(&buffer[..n], from).await;
                }
            });
        }
    }
}

async fn attempt(src: IpAddr, to: SocketAddr, tcp: bool) -> bool {
    let from = SocketAddr::new(src, 0);
    if tcp {
        let socket = if src.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }
        .unwrap();
        socket.bind(from).unwrap();
        return matches!(timeout(PATIENCE, socket.connect(to)).await, Ok(Ok(_)));
    }
    let socket = UdpSocket::bind(from).await.unwrap();
    socket.connect(to).await.unwrap();
    let mut buffer = [0; 16];
    for _ in 0..2 {
        let _ = socket.send(b"x").await;
        if let Ok(Ok(_)) = timeout(PATIENCE / 2, socket.recv(&mut buffer)).await {
            return true;
        }
    }
    false
}
