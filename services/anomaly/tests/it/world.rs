//! The service as a process on servers of its own, and ways to feed it and to look at what it publishes.

use std::{path::PathBuf, process::Command, time::Duration};

use garrison_bus::{
    Bus, Message, subject,
    topology::{self, FLOWS_ANOMALY},
};
use garrison_db::DbConfig;
use garrison_proto::{TenantId, alert::v1::Alert};
use garrison_testkit::{Process, Stack, TRUST_DOMAIN, free_port};
use prost::Message as _;
use tokio::time::Instant;

use crate::traffic::{Flow, batch};

pub(crate) struct World {
    pub(crate) stack: Stack,
    pub(crate) database: DbConfig,
    pub(crate) sensor: Bus,
    admin: Bus,
    admin_port: u16,
    grpc_port: u16,
    dir: tempfile::TempDir,
    process: Option<Process>,
}

/// A message as its stream holds it.
pub(crate) struct Kept {
    pub(crate) subject: String,
    pub(crate) headers: async_nats::HeaderMap,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

/// One process of several.
pub(crate) struct Replica {
    pub(crate) process: Process,
    admin_port: u16,
    log: PathBuf,
}

impl Replica {
    /// A sample of its `/metrics`.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> Option<f64> {
        sample(&page(self.admin_port, "/metrics").await, name, label)
    }

    /// How many lines of its log say something.
    pub(crate) fn said(&self, what: &str) -> usize {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter(|line| line.contains(what)).count()
    }
}

/// A page of an admin port; empty while there is none.
async fn page(port: u16, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let Ok(mut tcp) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else {
        return String::new();
    };
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    if tcp.write_all(request.as_bytes()).await.is_ok() {
        tcp.read_to_string(&mut answer).await.unwrap_or_default();
    }
    answer
}

fn sample(page: &str, name: &str, label: &str) -> Option<f64> {
    let line = page
        .lines()
        .find(|line| line.starts_with(name) && line.contains(label))?;
    line.rsplit(' ').next()?.parse().ok()
}

impl World {
    pub(crate) async fn new() -> Self {
        let stack = Stack::start().await;
        let database = stack.database("anomaly", &anomaly::MIGRATOR).await;
        let sensor = Bus::connect(&stack.bus_config("svc/flow-ingest"), "flow-ingest")
            .await
            .unwrap();
        let admin = Bus::connect(&stack.bus_config("svc/bus-admin"), "bus-admin")
            .await
            .unwrap();
        Self {
            stack,
            database,
            sensor,
            admin,
            admin_port: free_port().unwrap(),
            grpc_port: free_port().unwrap(),
            dir: tempfile::tempdir().unwrap(),
            process: None,
        }
    }

    /// Writes the configuration, starts the service and waits until it is ready.
    pub(crate) async fn start(&mut self, extra: &str) {
        self.launch(extra);
        self.until("ready", async || self.is_ready().await).await;
    }

    /// Writes the configuration and starts the service.
    pub(crate) fn launch(&mut self, extra: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anomaly"));
        let config = self.config("anomaly", (self.grpc_port, self.admin_port), extra);
        command.arg("run").arg("--config").arg(config);
        self.process = Some(Process::start("anomaly", command, &self.log("anomaly")).unwrap());
    }

    /// Starts one replica more, of this name.
    pub(crate) fn replica(&self, name: &str, extra: &str) -> Replica {
        let ports = (free_port().unwrap(), free_port().unwrap());
        let extra = format!("[replicas]\nname = \"{name}\"\n{extra}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_anomaly"));
        command.arg("run").arg("--config").arg(self.config(name, ports, &extra));
        Replica {
            process: Process::start(name, command, &self.log(name)).unwrap(),
            admin_port: ports.1,
            log: self.log(name),
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    pub(crate) async fn is_ready(&self) -> bool {
        self.page("/readyz").await.starts_with("HTTP/1.1 200")
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    fn config(&self, name: &str, (grpc_port, admin_port): (u16, u16), extra: &str) -> PathBuf {
        let files = self.stack.identity("svc/anomaly");
        let (cert, key, ca) = (
            files.cert_file.display(),
            files.key_file.display(),
            files.ca_file.display(),
        );
        let database = &self.database;
        let text = format!(
            r#"
[core.identity]
trust_domain = "{TRUST_DOMAIN}"
cert_file = "{cert}"
key_file = "{key}"
ca_file = "{ca}"
[core.bus]
urls = ["{}"]
cert_file = "{cert}"
key_file = "{key}"
ca_file = "{ca}"
[core.database]
host = "{}"
port = {}
database = "{}"
user = "{}"
password_file = "{}"
ca_file = "{}"
[core.grpc]
listen = "127.0.0.1:{}"
[core.admin]
listen = "127.0.0.1:{}"
{extra}
"#,
            self.stack.nats().url(),
            database.host,
            database.port,
            database.database,
            database.user,
            database.password_file.display(),
            database.ca_file.display(),
            grpc_port,
            admin_port,
        );
        let path = self.dir.path().join(format!("{name}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A page of the admin port; empty while there is none.
    pub(crate) async fn page(&self, path: &str) -> String {
        page(self.admin_port, path).await
    }

    /// A sample of `/metrics`.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> Option<f64> {
        sample(&self.page("/metrics").await, name, label)
    }

    pub(crate) async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let limit = Instant::now() + Duration::from_secs(180);
        while !holds().await {
            assert!(Instant::now() < limit, "never: {what}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    fn logs(&self) -> String {
        let files = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|file| file.unwrap().path());
        let logs = files.filter(|path| path.extension().is_some_and(|end| end == "log"));
        let texts = logs.map(|path| {
            format!(
                "{}:\n{}",
                path.display(),
                std::fs::read_to_string(&path).unwrap_or_default()
            )
        });
        texts.collect()
    }

    /// Publishes flows in one message, all on one shard.
    pub(crate) async fn publish(&self, tenant: &TenantId, flows: &[Flow]) {
        let shard = subject::shard_of(flows[0].src);
        let payload = batch(tenant, flows);
        self.publish_raw(Message::flows(subject::flows(tenant, shard), "flow-ingest", payload))
            .await;
    }

    pub(crate) async fn publish_raw(&self, message: Message) {
        // As a sensor does: the same message until the broker has it.
        let limit = Instant::now() + Duration::from_secs(120);
        while let Err(error) = self.sensor.publisher().publish(&message).await {
            assert!(error.is_transient() && Instant::now() < limit, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the service has acknowledged every flow message.
    pub(crate) async fn settle(&self) {
        self.until("every flow message acknowledged", async || {
            let stream = self.admin.jetstream().get_stream("FLOWS").await.unwrap();
            let consumer = stream.consumer_info(FLOWS_ANOMALY.name.as_ref()).await.unwrap();
            consumer.num_pending == 0 && consumer.num_ack_pending == 0
        })
        .await;
    }

    /// Makes FLOWS anew, as after a broker's disk was replaced: positions begin at 1 again.
    pub(crate) async fn make_flows_anew(&self) {
        self.admin.jetstream().delete_stream("FLOWS").await.unwrap();
        topology::apply(&self.admin, &topology::ApplyOptions::default())
            .await
            .unwrap();
    }

    /// Everything a stream holds.
    pub(crate) async fn kept(&self, stream: &str) -> Vec<Kept> {
        let mut stream = self.admin.jetstream().get_stream(stream).await.unwrap();
        let last = stream.info().await.unwrap().state.last_sequence;
        let mut kept = Vec::new();
        for sequence in 1..=last {
            let message = stream.get_raw_message(sequence).await.unwrap();
            kept.push(Kept {
                subject: message.subject.to_string(),
                headers: message.headers.clone(),
                payload: message.payload.to_vec(),
            });
        }
        kept
    }

    /// The alerts published for a tenant.
    pub(crate) async fn alerts(&self, tenant: &TenantId) -> Vec<Alert> {
        let prefix = format!("alerts.v1.{tenant}.");
        let kept = self.kept("ALERTS").await;
        let of_tenant = kept.iter().filter(|m| m.subject.starts_with(&prefix));
        of_tenant
            .map(|m| Alert::decode(m.payload.as_slice()).unwrap())
            .collect()
    }
}
