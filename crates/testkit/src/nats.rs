use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use garrison_bus::topology::EnforcerNode;
use rustix::process::Signal;

use crate::{Pki, Process, ProcessError, free_port, process::prepare};

/// Finds nats-server: `GARRISON_NATS_SERVER`, the checkout's `.garrison/tools`, or PATH.
///
/// # Errors
/// [`ProcessError::Missing`] with the command that fetches it.
pub fn find_nats_server() -> Result<PathBuf, ProcessError> {
    if let Some(given) = std::env::var_os("GARRISON_NATS_SERVER") {
        return Ok(given.into());
    }
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.garrison/tools/nats-server");
    if checkout.exists() {
        return checkout.canonicalize().map_err(|source| prepare(&checkout, source));
    }
    std::env::var_os("PATH")
        .and_then(|paths| {
            std::env::split_paths(&paths)
                .map(|dir| dir.join("nats-server"))
                .find(|path| path.exists())
        })
        .ok_or(ProcessError::Missing {
            program: "nats-server",
            remedy: "run `cargo xtask setup`, or put nats-server 2.12 or newer on PATH",
        })
}

/// How a private broker is set up.
#[derive(Clone, Debug, Default)]
pub struct NatsOptions {
    /// The enforcers that may connect, and whom they serve.
    pub enforcers: Vec<EnforcerNode>,
}

/// A private nats-server on a loopback port: JetStream in files, synced before it acknowledges, mutual TLS,
/// and for every identity exactly the permissions that the topology gives it.
#[derive(Debug)]
pub struct Nats {
    dir: PathBuf,
    program: PathBuf,
    port: u16,
    process: Mutex<Option<Process>>,
}

impl Nats {
    /// Starts a server whose streams are in `dir`.
    ///
    /// # Errors
    /// When nats-server is missing, or does not start; the error holds the end of its log.
    pub fn start(dir: &Path, pki: &Pki, options: &NatsOptions) -> Result<Self, ProcessError> {
        let program = find_nats_server()?;
        fs::create_dir_all(dir).map_err(|source| prepare(dir, source))?;
        let dir = dir.canonicalize().map_err(|source| prepare(dir, source))?;
        let files = pki.identity("svc/nats")?;
        let port = free_port().map_err(|source| prepare(&dir, source))?;
        let config = garrison_bootstrap::broker_config(
            &format!("127.0.0.1:{port}"),
            &dir.join("jetstream"),
            &files,
            pki.trust_domain(),
            &options.enforcers,
        );
        let path = dir.join("nats.conf");
        fs::write(&path, config).map_err(|source| prepare(&path, source))?;
        let server = Self {
            dir,
            program,
            port,
            process: Mutex::new(None),
        };
        server.resume()?;
        Ok(server)
    }

    /// Starts the server again after [`stop`](Self::stop) or [`kill`](Self::kill), on the same port.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn resume(&self) -> Result<(), ProcessError> {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.dir.join("nats.conf"));
        let mut process = Process::start("nats-server", command, &self.dir.join("nats.log"))?;
        let port = self.port;
        process.wait_until(Duration::from_secs(120), || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        })?;
        *self.process.lock().expect("no holder panics") = Some(process);
        Ok(())
    }

    /// Stops the server as an operator would.
    pub fn stop(&self) {
        if let Some(mut process) = self.process.lock().expect("no holder panics").take() {
            process.end(Signal::TERM, Duration::from_secs(60));
        }
    }

    /// Stops the server as a crash would, with SIGKILL.
    pub fn kill(&self) {
        if let Some(mut process) = self.process.lock().expect("no holder panics").take() {
            process.kill();
        }
    }

    /// Where clients connect: `tls://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("tls://127.0.0.1:{}", self.port)
    }

    /// The loopback port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of this server.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.stop();
    }
}
