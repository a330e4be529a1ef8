//! The servers, the meter and the service, each as its own process, and what they say of themselves.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use garrison_bus::{Bus, topology::FLOWS_ANOMALY};
use garrison_db::DbConfig;
use garrison_flow::FlowBatch;
use garrison_testkit::{Process, Signal, Stack, TRUST_DOMAIN, free_port};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub type Fault = Box<dyn std::error::Error + Send + Sync>;

/// The servers with the fleet's own topology, permissions and certificates.
pub struct World {
    pub stack: Stack,
    database: DbConfig,
    dir: tempfile::TempDir,
}

/// A process with a port for metrics.
pub struct Running {
    process: Process,
    port: u16,
    log: PathBuf,
}

impl World {
    pub async fn start() -> Result<Self, Fault> {
        let stack = Stack::start().await;
        let database = stack.database("anomaly", &anomaly::MIGRATOR).await;
        Ok(Self {
            stack,
            database,
            dir: tempfile::tempdir()?,
        })
    }

    pub async fn bus(&self, identity: &str) -> Result<Bus, Fault> {
        Ok(Bus::connect(&self.stack.bus_config(identity), "bench").await?)
    }

    // What every service is told.
    fn core(&self, identity: &str, port: u16, grpc: u16) -> String {
        let files = self.stack.identity(identity);
        let (cert, key, ca) = (
            files.cert_file.display(),
            files.key_file.display(),
            files.ca_file.display(),
        );
        format!(
            "[core.identity]\ntrust_domain = '{TRUST_DOMAIN}'\ncert_file = '{cert}'\nkey_file = '{key}'\nca_file = '{ca}'\n\
             [core.bus]\nurls = ['{}']\ncert_file = '{cert}'\nkey_file = '{key}'\nca_file = '{ca}'\n\
             [core.admin]\nlisten = '127.0.0.1:{port}'\n[core.grpc]\nlisten = '127.0.0.1:{grpc}'\n",
            self.stack.nats().url(),
        )
    }

    async fn launch(&self, program: &Path, identity: &str, sections: &str) -> Result<Running, Fault> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let port = free_port()?;
        let config = self.dir.path().join(format!("{name}.toml"));
        fs::write(&config, self.core(identity, port, free_port()?) + sections)?;
        let mut command = Command::new(program);
        command.arg("run").arg("--config").arg(&config);
        let log = self.dir.path().join(format!("{name}.log"));
        let running = Running {
            process: Process::start(&name, command, &log)?,
            port,
            log,
        };
        running
            .until("ready", async || {
                running.page("/readyz").await.starts_with("HTTP/1.1 200")
            })
            .await?;
        Ok(running)
    }

    /// Starts the service. New tenants are learnt for some seconds.
    pub async fn anomaly(&self, program: &Path, more: &str) -> Result<Running, Fault> {
        let database = &self.database;
        let sections = format!(
            "[core.database]\nhost = '{}'\nport = {}\ndatabase = '{}'\nuser = '{}'\npassword_file = '{}'\nca_file = '{}'\n\
             {more}",
            database.host,
            database.port,
            database.database,
            database.user,
            database.password_file.display(),
            database.ca_file.display(),
        );
        self.launch(program, "svc/anomaly", &sections).await
    }

    /// Has the meter read a capture, and returns the batches that it published.
    pub async fn metered(&self, program: &Path, capture: &Path) -> Result<Vec<FlowBatch>, Fault> {
        let sections = format!(
            "[[sensors]]\nid = 'bench'\ntenant = 'template'\nfile = '{}'\n",
            std::path::absolute(capture)?.display()
        );
        let mut meter = self.launch(program, "svc/flow-ingest", &sections).await?;
        let bus = self.bus("svc/anomaly").await?;
        let last = async || -> Result<u64, Fault> {
            // Nothing is stored behind the last one.
            let (mut low, mut high) = (0_u64, 1_u64 << 32);
            while low < high {
                let middle = (low + high).div_ceil(2);
                match bus.stored(&FLOWS_ANOMALY, "flows.v1.*.*", middle).await? {
                    Some(_) => low = middle,
                    None => high = middle - 1,
                }
            }
            Ok(low)
        };
        // A capture is at its end when nothing more comes.
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let now = last().await?;
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if now > 0 && since.elapsed() > Duration::from_secs(3) {
                break;
            }
            if since.elapsed() > Duration::from_secs(120) {
                return Err(format!("the meter published nothing: {}", meter.said()).into());
            }
        }
        meter.end();
        let mut batches = Vec::new();
        for sequence in 1..=seen {
            let stored = bus.stored(&FLOWS_ANOMALY, "flows.v1.*.*", sequence).await?;
            let delivery = stored.ok_or("a message is gone")?.delivery?;
            batches.push(garrison_flow::decode(&delivery.payload)?.0);
        }
        Ok(batches)
    }
}

impl Running {
    /// A page of the admin port; empty while there is none.
    pub async fn page(&self, path: &str) -> String {
        let Ok(mut tcp) = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await else {
            return String::new();
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let mut answer = String::new();
        if tcp.write_all(request.as_bytes()).await.is_ok() {
            let _ = tcp.read_to_string(&mut answer).await;
        }
        answer
    }

    pub async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) -> Result<(), Fault> {
        let limit = Instant::now() + Duration::from_secs(120);
        while !holds().await {
            if Instant::now() > limit {
                return Err(format!("never {what}: {}", self.said()).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The end of its log.
    pub fn said(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let from = log.len().saturating_sub(3_000);
        log.get(from..).unwrap_or(&log).to_owned()
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn end(&mut self) {
        self.process.end(Signal::TERM, Duration::from_secs(30));
    }
}

/// Sum of the samples of a metric whose labels contain a text.
pub fn sum(page: &str, name: &str, label: &str) -> f64 {
    page.lines()
        .filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(label))
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Seconds on a core, user and kernel, of a process and of those it has started.
pub fn on_core(pid: u32) -> f64 {
    let own = stat(pid).map_or(0.0, |(_, _, seconds)| seconds);
    let mut sum = own;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|t| t.parse::<u32>().ok()) else {
            continue;
        };
        if stat(child).is_some_and(|(_, parent, _)| parent == pid) && child != pid {
            sum += on_core(child);
        }
    }
    sum
}

/// Seconds on a core of a process alone.
pub fn alone(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks = fields.skip(11).take(2).filter_map(|t| t.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

/// Processes below this one with that name.
pub fn named(name: &str) -> Option<u32> {
    let mut below = vec![std::process::id()];
    while let Some(parent) = below.pop() {
        for entry in fs::read_dir("/proc").ok()?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|t| t.parse::<u32>().ok()) else {
                continue;
            };
            if let Some((comm, its_parent, _)) = stat(pid)
                && its_parent == parent
            {
                if comm == name {
                    return Some(pid);
                }
                below.push(pid);
            }
        }
    }
    None
}

// Name, parent, seconds on a core: proc_pid_stat(5).
fn stat(pid: u32) -> Option<(String, u32, f64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, rest) = text.rsplit_once(')')?;
    let comm = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<f64>().ok();
    let (user, kernel, ended_user, ended_kernel) = (number(11)?, number(12)?, number(13)?, number(14)?);
    Some((
        comm,
        number(1)? as u32,
        (user + kernel + ended_user + ended_kernel) / 100.0,
    ))
}

/// Resident memory of a process, octets.
pub fn resident(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap_or_default();
    let kib: f64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|t| t.parse().ok())
        .unwrap_or(0.0);
    kib * 1024.0
}
