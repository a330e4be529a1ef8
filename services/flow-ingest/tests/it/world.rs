//! The service as its own process, with a broker, a configuration and clients.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use garrison_auth::{SpiffeId, TlsFiles, TlsIdentity, client};
use garrison_bus::{Bus, topology};
use garrison_flow::{BatchMeta, FlowBatch, decode};
use garrison_proto::{
    TenantId,
    flow::v1::{ListSensorsRequest, Sensor, flow_service_client::FlowServiceClient},
};
use garrison_testkit::{Process, Stack, TRUST_DOMAIN, free_port};
use rustix::process::Signal;
use tonic::{service::interceptor::InterceptedService, transport::Channel};

pub type Client = FlowServiceClient<InterceptedService<Channel, client::ForTenant>>;

pub struct World<'a> {
    pub stack: &'a Stack,
    pub dir: tempfile::TempDir,
    process: Process,
    grpc: u16,
    admin: u16,
}

/// A pipe with a name, which the service takes for a file: it reads when and what a test writes.
pub fn pipe(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    path
}

pub fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

impl<'a> World<'a> {
    /// Starts the service. `sections` is the configuration behind `[core]`; `{dir}` in it is the world's folder.
    pub fn start(stack: &'a Stack, dir: tempfile::TempDir, sections: &str) -> Self {
        let identity = stack.identity("svc/flow-ingest");
        let (grpc, admin) = (free_port().unwrap(), free_port().unwrap());
        let config = format!(
            "[core.identity]\ntrust_domain = '{TRUST_DOMAIN}'\ncert_file = '{cert}'\nkey_file = '{key}'\nca_file = '{ca}'\n\
             [core.bus]\nurls = ['{url}']\ncert_file = '{cert}'\nkey_file = '{key}'\nca_file = '{ca}'\nack_timeout_ms = 1000\n\
             [core.grpc]\nlisten = '127.0.0.1:{grpc}'\n[core.admin]\nlisten = '127.0.0.1:{admin}'\n\
             [core.telemetry]\nlog = 'info'\n[core.lifecycle]\ndrain_timeout_ms = 5000\n{sections}",
            cert = identity.cert_file.display(),
            key = identity.key_file.display(),
            ca = identity.ca_file.display(),
            url = stack.nats().url(),
            sections = sections.replace("{dir}", &dir.path().display().to_string()),
        );
        let path = write(dir.path(), "flow-ingest.toml", config.as_bytes());
        let mut world = Self {
            stack,
            process: Self::spawn(&path, dir.path()),
            dir,
            grpc,
            admin,
        };
        world.await_grpc();
        world
    }

    fn spawn(config: &Path, dir: &Path) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow-ingest"));
        command.arg("run").arg("--config").arg(config);
        Process::start("flow-ingest", command, &dir.join("flow-ingest.log")).unwrap()
    }

    fn await_grpc(&mut self) {
        let port = self.grpc;
        self.process
            .wait_until(Duration::from_secs(120), || {
                TcpStream::connect(("127.0.0.1", port)).is_ok()
            })
            .unwrap();
    }

    pub fn kill_and_restart(&mut self) {
        self.process.kill();
        self.process = Self::spawn(&self.dir.path().join("flow-ingest.toml"), self.dir.path());
        self.await_grpc();
    }

    pub fn end(&mut self) {
        assert!(
            self.process.end(Signal::TERM, Duration::from_secs(60)),
            "did not end by itself: {}",
            self.log()
        );
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("flow-ingest.log")).unwrap_or_default()
    }

    /// A client that acts as forensics for a tenant.
    pub fn client(&self, tenant: &str) -> Client {
        let files = self.stack.identity("svc/forensics");
        let files = TlsFiles {
            cert_file: files.cert_file,
            key_file: files.key_file,
            ca_file: files.ca_file,
        };
        let identity = TlsIdentity::load(files, TRUST_DOMAIN).unwrap();
        let expected = SpiffeId::service(TRUST_DOMAIN, "flow-ingest").unwrap();
        let endpoint = format!("https://127.0.0.1:{}", self.grpc);
        let channel = client::channel(&identity, &endpoint, &expected).unwrap();
        FlowServiceClient::with_interceptor(channel, client::for_tenant(&tenant.parse().unwrap()))
    }

    pub async fn sensors(&self, tenant: &str) -> Vec<Sensor> {
        let request = ListSensorsRequest {};
        self.client(tenant)
            .list_sensors(request)
            .await
            .unwrap()
            .into_inner()
            .sensors
    }

    /// Waits until the tenant's only sensor fulfils a condition.
    pub async fn sensor_when(&self, tenant: &str, what: &str, holds: impl Fn(&Sensor) -> bool) -> Sensor {
        let deadline = Instant::now() + Duration::from_secs(180);
        loop {
            let sensor = self.sensors(tenant).await.remove(0);
            if holds(&sensor) {
                return sensor;
            }
            assert!(Instant::now() < deadline, "not {what}: {sensor:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn finished(&self, tenant: &str) -> Sensor {
        self.sensor_when(tenant, "finished", |sensor| sensor.finished).await
    }

    /// The answer of `/readyz`.
    pub fn readiness(&self) -> String {
        use std::io::{Read as _, Write as _};
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).unwrap();
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

/// Every flow batch of a tenant that the broker has stored.
pub async fn stored(stack: &Stack, tenant: &str) -> Vec<(FlowBatch, BatchMeta)> {
    let bus = Arc::new(Bus::connect(&stack.bus_config("svc/anomaly"), "anomaly").await.unwrap());
    bus.connected().await;
    let subject = format!("flows.v1.{tenant}.*");
    let mut sequence = 1;
    let mut batches = Vec::new();
    while let Some(found) = bus.stored(&topology::FLOWS_ANOMALY, &subject, sequence).await.unwrap() {
        sequence = found.sequence + 1;
        let delivery = found.delivery.unwrap();
        assert_eq!(delivery.tenant, tenant.parse::<TenantId>().unwrap());
        let (batch, meta) = decode(&delivery.payload).unwrap();
        assert_eq!(meta.tenant, delivery.tenant);
        let shard: u16 = delivery.subject.rsplit('.').next().unwrap().parse().unwrap();
        assert!(
            batch
                .rows()
                .all(|row| garrison_bus::subject::shard_of(row.src_ip) == shard)
        );
        assert!(meta.ledger.balances(), "{:?}", meta.ledger);
        batches.push((batch, meta));
    }
    batches
}

/// Every record, each as text without its id, sorted.
pub fn records<'b>(batches: impl IntoIterator<Item = &'b FlowBatch>) -> Vec<String> {
    let mut all: Vec<String> = batches
        .into_iter()
        .flat_map(FlowBatch::rows)
        .map(|mut row| {
            row.flow_id = [0; 16];
            format!("{row:?}")
        })
        .collect();
    all.sort();
    all
}
