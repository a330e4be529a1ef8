//! The lab: five hosts around a router, on which the fleet runs.

use std::{
    net::Ipv4Addr,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result};
use garrison_testkit::{
    Process,
    lab::{self, Node},
};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{self, SignalKind};

use crate::{bench, demo, fleet, runtime};

/// This program, also when building the fleet has put a newer one in its place.
const OURSELVES: &str = "/proc/self/exe";

/// The office machine that the attacker breaks into.
pub const OFFICE: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 10);
/// The web server.
pub const WWW: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 10);
/// The database, which policy lets only the web server reach.
pub const DATABASE: Ipv4Addr = Ipv4Addr::new(10, 77, 3, 10);
/// The attacker, in a documentation network (RFC 5737) that stands for the Internet.
pub const ATTACKER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);

/// A task that runs inside the namespaces.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    /// The demo.
    Demo(demo::Options),
    /// The fleet for development.
    Up(fleet::UpOptions),
    /// The containment benchmark.
    Contain(bench::ContainOptions),
    /// The memory benchmark.
    Memory,
}

/// Runs a task in a child of ours that has entered namespaces of its own, and waits for it. When we are told to stop, the
/// child cleans up, and we wait for that too.
pub fn run(task: &Task) -> Result<()> {
    let mut command = Command::new(OURSELVES);
    command.arg("inside").arg(serde_json::to_string(task)?);
    let runtime = runtime()?;
    let status = runtime.block_on(async {
        // Listened for before there is a child, or it could be left behind.
        let mut stops = Stops::listen()?;
        let mut child = command.spawn().context("starting the lab failed")?;
        let pid = Pid::from_child(&child);
        let told = tokio::spawn(async move {
            loop {
                stops.wait().await;
                // A terminal tells the child itself; whoever tells only us leaves that to us. Twice is as good as once.
                let _ = kill_process(pid, Signal::TERM);
            }
        });
        let status = tokio::task::spawn_blocking(move || child.wait()).await;
        told.abort();
        anyhow::Ok(status??)
    })?;
    std::process::exit(status.code().unwrap_or(130));
}

/// What asks a program to stop: Ctrl-C, SIGTERM, and the end of its terminal.
struct Stops([unix::Signal; 3]);

impl Stops {
    fn listen() -> Result<Self> {
        let listen = |kind| unix::signal(kind).context("listening for signals failed");
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// The child's part of [`run`].
pub fn inside(task: &str) -> Result<()> {
    let task: Task = serde_json::from_str(task)?;
    if task.wants_namespaces() {
        lab::enter()?;
    }
    // Whoever kills the one that started us cannot stop us otherwise. Entering namespaces would have undone it.
    set_parent_process_death_signal(Some(Signal::TERM))?;
    runtime()?.block_on(async {
        let mut stops = Stops::listen()?;
        let work = async {
            match task {
                Task::Demo(options) => demo::inside(options).await,
                Task::Up(options) => fleet::up_inside(options).await,
                Task::Contain(options) => bench::contain_inside(options).await,
                Task::Memory => bench::memory_inside().await,
            }
        };
        // Dropping the work drops the fleet, which ends every process of it.
        tokio::select! {
            outcome = work => outcome,
            () = stops.wait() => {
                eprintln!("\ninterrupted: cleaning up");
                Err(anyhow::anyhow!("interrupted"))
            }
        }
    })
}

impl Task {
    // A live interface is only visible where it is.
    fn wants_namespaces(&self) -> bool {
        match self {
            Self::Demo(options) => options.interface.is_none(),
            Self::Up(options) => options.interface.is_none(),
            Self::Contain(_) | Self::Memory => true,
        }
    }
}

/// The hosts, with their servers running.
#[derive(Debug)]
pub struct Lab {
    // Servers first, so that they end before their network does.
    _servers: Vec<Process>,
    /// The office machine.
    pub office: Node,
    /// The web server.
    pub www: Node,
    /// The database.
    pub database: Node,
    /// The attacker.
    pub attacker: Node,
    pki: std::path::PathBuf,
}

impl Lab {
    /// Builds the network and starts what runs on it. Files go to `dir`.
    pub fn build(dir: &Path) -> Result<Self> {
        let office = Node::attach("office", OFFICE)?;
        let www = Node::attach("www", WWW)?;
        let database = Node::attach("database", DATABASE)?;
        let attacker = Node::attach("attacker", ATTACKER)?;
        // An IPv4 network: the kernel's own router solicitations would be traffic that nobody of the lab made.
        for node in [&office, &www, &database, &attacker] {
            node.run(|| no_ipv6("all"))?;
            no_ipv6(node.router_interface());
        }
        std::fs::create_dir_all(dir)?;
        let pki = dir.join("pki");
        garrison_testkit::Pki::open_or_create(&pki, "lab.test")?.identity("host/www")?;

        let database_address = format!("{DATABASE}:5432");
        let mut servers = vec![
            serve(
                &database,
                dir,
                &["database", "--address", &DATABASE.to_string()],
                &[("--dir", &dir.join("database")), ("--pki", &pki)],
            )?,
            serve(
                &www,
                dir,
                &["web", "--address", &WWW.to_string(), "--database", &database_address],
                &[("--pki", &pki)],
            )?,
            serve(
                &office,
                dir,
                &["office", "--address", &OFFICE.to_string(), "--reach", &database_address],
                &[],
            )?,
        ];
        for (server, node, port) in [(0, &database, 5432), (1, &www, 443), (2, &office, 8080)] {
            let address = std::net::SocketAddr::from((node.address(), port));
            let reachable =
                || std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(200)).is_ok();
            servers[server].wait_until(std::time::Duration::from_secs(120), reachable)?;
        }
        Ok(Self {
            _servers: servers,
            office,
            www,
            database,
            attacker,
            pki,
        })
    }

    /// The router's interfaces, which the sensor watches.
    pub fn interfaces(&self) -> Vec<String> {
        [&self.office, &self.www, &self.database, &self.attacker]
            .map(|node| node.router_interface().to_owned())
            .to_vec()
    }

    /// The office machine looks at pages of the web server that are to come, however slow the machine is.
    pub fn browse(&self, pages: u32) -> Result<Output> {
        self.browse_for(30_000, pages)
    }

    /// The same for pages that are not to come.
    pub fn browse_in_vain(&self, pages: u32) -> Result<Output> {
        self.browse_for(1_500, pages)
    }

    fn browse_for(&self, patience_ms: u64, pages: u32) -> Result<Output> {
        let ca = self.pki.join("ca.pem");
        let mut command = act(
            &self.office,
            &["browse", "--server", &WWW.to_string(), "--pages", &pages.to_string()],
        )?;
        command.arg("--patience-ms").arg(patience_ms.to_string());
        command.arg("--ca").arg(ca);
        Ok(command.output()?)
    }

    /// The attacker, or another host, acts until it is done.
    pub fn act(&self, node: &Node, arguments: &[&str]) -> Result<Output> {
        Ok(act(node, arguments)?.output()?)
    }
}

// A kernel without IPv6 has no such setting, and needs none.
fn no_ipv6(interface: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1");
}

fn act(node: &Node, arguments: &[&str]) -> Result<Command> {
    let mut command = node.command(OURSELVES);
    command.arg("actor").args(arguments).stdin(Stdio::null());
    Ok(command)
}

fn serve(node: &Node, dir: &Path, arguments: &[&str], paths: &[(&str, &Path)]) -> Result<Process> {
    let mut command = act(node, arguments)?;
    for (option, path) in paths {
        command.arg(option).arg(path);
    }
    Ok(Process::start(
        node.name(),
        command,
        &dir.join(format!("{}.log", node.name())),
    )?)
}
