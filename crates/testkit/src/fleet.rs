//! The whole fleet as separate processes, with its own database, broker and certificates in one folder.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use garrison_bootstrap::{
    DATABASE_SERVICES, Enforcer, Place, Plan, SERVICES, Sensor, TRUST_DOMAIN, Tenant, Written, owner, role,
};
use rustix::process::Signal;

use crate::{Nats, NatsOptions, Pki, Postgres, Process, ProcessError, free_port, process::prepare};

const DATABASE: &str = "garrison";
const READY_LIMIT: Duration = Duration::from_secs(180);
const DRAIN_LIMIT: Duration = Duration::from_secs(45);

/// How a fleet is started.
#[derive(Clone, Debug, Default)]
pub struct FleetOptions {
    /// Folder with the programs.
    pub binaries: PathBuf,
    /// Folder for everything the fleet keeps.
    pub dir: PathBuf,
    /// Tenants from the start.
    pub tenants: Vec<Tenant>,
    /// Sensors.
    pub sensors: Vec<Sensor>,
    /// The node agent, if any.
    pub enforcer: Option<Enforcer>,
    /// Where traces go.
    pub otlp_endpoint: Option<String>,
    /// What is logged.
    pub log: String,
    /// Seconds of learning after a first start, or none to learn when told.
    pub learn_seconds: Option<u32>,
    /// Further text for single services' configuration, by service.
    pub extra: BTreeMap<String, String>,
}

/// A running fleet. Everything ends when it is dropped.
#[derive(Debug)]
pub struct Fleet {
    // Services end before what they stand on.
    processes: BTreeMap<String, Process>,
    binaries: PathBuf,
    dir: PathBuf,
    plan: Plan,
    written: Written,
    nats: Nats,
    postgres: Postgres,
}

/// A fleet could not be started.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// A process could not be started or was not ready.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A step of the preparation failed.
    #[error("{step} failed: {detail}")]
    Step {
        /// Which.
        step: String,
        /// Why.
        detail: String,
    },
}

impl Fleet {
    /// Starts database and broker, prepares both, starts every service and waits until all are ready.
    ///
    /// # Errors
    /// [`FleetError`] names the step, with the end of the log of what failed.
    pub async fn start(options: FleetOptions) -> Result<Self, FleetError> {
        let mut fleet = Self::prepare(options).await?;
        for program in fleet.programs() {
            fleet.start_service(&program)?;
        }
        fleet.wait_ready(READY_LIMIT)?;
        Ok(fleet)
    }

    /// The same without starting a service.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn prepare(options: FleetOptions) -> Result<Self, FleetError> {
        let dir = options.dir;
        fs::create_dir_all(dir.join("logs")).map_err(|source| prepare(&dir, source))?;
        let dir = dir.canonicalize().map_err(|source| prepare(&dir, source))?;
        let pki = Pki::open_or_create(&dir.join("pki"), TRUST_DOMAIN).map_err(ProcessError::from)?;
        let enforcers = options
            .enforcer
            .iter()
            .map(Enforcer::on_the_bus)
            .collect::<Result<_, _>>();
        let enforcers = enforcers.map_err(ProcessError::from)?;
        let nats = Nats::start(&dir.join("nats"), &pki, &NatsOptions { enforcers })?;
        let postgres = Postgres::start(&dir.join("postgres"), &pki)?;

        let mut places = BTreeMap::new();
        for program in SERVICES.iter().chain(&["enforcer"]) {
            let port = || free_port().map_err(|source| prepare(&dir, source));
            let place = Place {
                grpc: SocketAddr::from((Ipv4Addr::LOCALHOST, port()?)),
                admin: SocketAddr::from((Ipv4Addr::LOCALHOST, port()?)),
                host: "localhost".to_owned(),
            };
            places.insert((*program).to_owned(), place);
        }
        let plan = Plan {
            seen_as: dir.clone(),
            data: dir.join("data"),
            dir: dir.clone(),
            trust_domain: TRUST_DOMAIN.to_owned(),
            bus_url: nats.url(),
            database: ("localhost".to_owned(), postgres.port()),
            places,
            tenants: options.tenants,
            sensors: options.sensors,
            enforcer: options.enforcer,
            otlp_endpoint: options.otlp_endpoint,
            log: options.log,
            learn_seconds: options.learn_seconds,
            extra: options.extra,
        };
        let written = plan.write().map_err(ProcessError::from)?;
        let fleet = Self {
            processes: BTreeMap::new(),
            binaries: options.binaries,
            dir,
            plan,
            written,
            nats,
            postgres,
        };
        fleet.apply_topology()?;
        fleet.migrate().await?;
        Ok(fleet)
    }

    fn apply_topology(&self) -> Result<(), FleetError> {
        let mut arguments = vec!["bus".to_owned(), "apply".to_owned()];
        if let Some(enforcer) = &self.plan.enforcer {
            let served = format!("{}={}", enforcer.node, enforcer.tenants.join(","));
            arguments.extend(["--enforcer".to_owned(), served]);
        }
        let output = self.command_line("default").args(arguments).output();
        succeed("garrison bus apply", output)
    }

    async fn migrate(&self) -> Result<(), FleetError> {
        let step = |error: Box<dyn std::error::Error + Send + Sync>| FleetError::Step {
            step: "preparing the database".to_owned(),
            detail: error.to_string(),
        };
        let mut migrations = Vec::new();
        for service in DATABASE_SERVICES {
            let (owner, role) = (owner(service), role(service));
            let password = self.written.secrets.password(&role).map_err(ProcessError::from)?;
            self.postgres.adopt_role(&role, &password).await.map_err(step)?;
            let password = self.written.secrets.password(&owner).map_err(ProcessError::from)?;
            self.postgres.adopt_role(&owner, &password).await.map_err(step)?;
            migrations.push((service, owner, role, password));
        }
        for (_, owner, role, _) in &migrations {
            let everyone = [owner.as_str(), role.as_str()];
            self.postgres
                .create_database(DATABASE, "postgres", &everyone)
                .await
                .map_err(|e| step(e.into()))?;
            self.postgres
                .grant_create(DATABASE, owner)
                .await
                .map_err(|e| step(e.into()))?;
        }
        for (service, owner, _, password) in migrations {
            let mut command = self.program(service);
            command
                .args(["migrate", "--owner", &owner, "--owner-password-file"])
                .arg(password);
            succeed(&format!("{service} migrate"), command.output())?;
        }
        Ok(())
    }

    /// Every program of this fleet.
    pub fn programs(&self) -> Vec<String> {
        self.written.config.keys().cloned().collect()
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.binaries.join(name));
        if let Some(config) = self.written.config.get(name) {
            command.arg("--config").arg(config);
        }
        command
    }

    /// The command line with a profile: `default`, or `<tenant>-<login>` of a person.
    pub fn command_line(&self, profile: &str) -> Command {
        let mut command = Command::new(self.binaries.join("garrison"));
        command
            .env("GARRISON_CONFIG", &self.written.cli)
            .env("GARRISON_PROFILE", profile);
        command
    }

    /// Starts a program, or starts it again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_service(&mut self, name: &str) -> Result<(), FleetError> {
        let process = Process::start(name, self.program(name), &self.log(name))?;
        self.processes.insert(name.to_owned(), process);
        Ok(())
    }

    /// Ends a program with SIGTERM. Returns whether it ended by itself in time.
    pub fn stop_service(&mut self, name: &str) -> bool {
        match self.processes.remove(name) {
            Some(mut process) => process.end(Signal::TERM, DRAIN_LIMIT),
            None => true,
        }
    }

    /// Ends a program with SIGKILL.
    pub fn kill_service(&mut self, name: &str) {
        if let Some(mut process) = self.processes.remove(name) {
            process.kill();
        }
    }

    /// Waits until every started program says that it is ready.
    ///
    /// # Errors
    /// [`ProcessError::NotReady`] names the first that is not, with what it lacks.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<(), FleetError> {
        let deadline = Instant::now() + limit;
        for (name, process) in &mut self.processes {
            let admin = self.plan.places[name].admin;
            let left = deadline.saturating_duration_since(Instant::now());
            let waited = process.wait_until(left, || {
                http_get(admin, "/readyz").is_some_and(|(status, _)| status == 200)
            });
            if let Err(error) = waited {
                let lacking = http_get(admin, "/readyz").map(|(_, body)| body).unwrap_or_default();
                return Err(FleetError::Step {
                    step: format!("waiting for {name}"),
                    detail: format!("{error}\n{lacking}"),
                });
            }
        }
        Ok(())
    }

    /// Asks a program's admin port for a page: status and body.
    pub fn admin(&self, name: &str, page: &str) -> Option<(u16, String)> {
        http_get(self.plan.places.get(name)?.admin, page)
    }

    /// Where a service answers gRPC.
    pub fn grpc(&self, name: &str) -> Option<SocketAddr> {
        Some(self.plan.places.get(name)?.grpc)
    }

    /// The log of a program.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// The process id of a running program.
    pub fn process_id(&self, name: &str) -> Option<u32> {
        Some(self.processes.get(name)?.id())
    }

    /// The folder of everything the fleet keeps.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its database.
    pub fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// The name of the database that all services share, each in its own schema.
    pub fn database(&self) -> &'static str {
        DATABASE
    }

    /// Its broker.
    pub fn nats(&self) -> &Nats {
        &self.nats
    }

    /// What was prepared for it.
    pub fn written(&self) -> &Written {
        &self.written
    }

    /// Its certificate authority.
    pub fn pki(&self) -> Result<Pki, ProcessError> {
        Ok(Pki::open_or_create(&self.written.pki, TRUST_DOMAIN)?)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // All at once, so that the slowest drain is waited for and not the sum.
        for process in self.processes.values() {
            process.signal(Signal::TERM);
        }
        for process in self.processes.values_mut() {
            process.end(Signal::TERM, DRAIN_LIMIT);
        }
    }
}

fn succeed(step: &str, output: std::io::Result<Output>) -> Result<(), FleetError> {
    let failed = |detail: String| FleetError::Step {
        step: step.to_owned(),
        detail,
    };
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(format!(
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

// The admin port speaks plain HTTP/1.1; one request needs no client library.
fn http_get(address: SocketAddr, page: &str) -> Option<(u16, String)> {
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
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
