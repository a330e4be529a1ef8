//! The service, ways to speak to it, and what it is given.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use chrono::Utc;
use forensics::config::Config;
use futures::StreamExt as _;
use garrison_auth::{
    JwkSet, PublicKey, SpiffeId, TlsFiles, TlsIdentity,
    client::{self, ForTenant},
    token::{self, Claims, Rules},
};
use garrison_bus::{Bus, Message, subject};
use garrison_db::{Db, DbConfig};
use garrison_flow::{BatchMeta, FlowBatchBuilder, FlowRow, FlowState, LossLedger};
use garrison_proof::SigningKey;
use garrison_proto::{
    TenantId,
    flow::v1::{Flow, FlowFilter},
    forensics::v1::{
        SearchFlowsRequest, SearchStats, evidence_service_client::EvidenceServiceClient,
        flow_search_service_client::FlowSearchServiceClient,
    },
};
use garrison_service::Service;
use garrison_testkit::{Process, Stack, TRUST_DOMAIN, free_port};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use uuid::Uuid;

pub(crate) const SECOND: i64 = 1_000_000_000;

pub(crate) struct World {
    pub(crate) stack: Stack,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) data: PathBuf,
    pub(crate) database: DbConfig,
    pub(crate) db: Db,
    pub(crate) ingest: Bus,
    pub(crate) admin: u16,
    pub(crate) grpc: u16,
    pub(crate) process: Option<Process>,
    /// Added to the sections of these names.
    pub(crate) lake: String,
    pub(crate) evidence: String,
    tokens: Ed25519KeyPair,
}

pub(crate) fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

/// The service inside this process.
pub(crate) struct Embedded {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Embedded {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[derive(Clone)]
pub(crate) struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub(crate) type People = EvidenceServiceClient<InterceptedService<Channel, Bearer>>;

impl World {
    pub(crate) async fn new() -> Self {
        let stack = Stack::start().await;
        let dir = tempfile::tempdir().unwrap();
        let database = stack.database("forensics", &forensics::MIGRATOR).await;
        std::fs::write(
            dir.path().join("evidence.pem"),
            SigningKey::generate_pkcs8_pem().unwrap(),
        )
        .unwrap();
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self {
            db: Db::connect(&database, "forensics").unwrap(),
            ingest: Bus::connect(&stack.bus_config("svc/flow-ingest"), "flow-ingest")
                .await
                .unwrap(),
            data: dir.path().join("data"),
            stack,
            dir,
            database,
            admin: free_port().unwrap(),
            grpc: free_port().unwrap(),
            process: None,
            lake: "roll_interval_ms = 300\nreserve_bytes = 0".into(),
            evidence: "lease_ms = 1000\npacket_timeout_ms = 60000".into(),
            tokens: Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap(),
        }
    }

    pub(crate) async fn running() -> Self {
        let mut world = Self::new().await;
        world.start();
        world.until_ready().await;
        world
    }

    /// The `core` section of a service.
    pub(crate) fn core(&self, service: &str, grpc: u16, admin: u16) -> String {
        let files = self.stack.identity(&format!("svc/{service}"));
        let (cert, key, ca) = (
            files.cert_file.display(),
            files.key_file.display(),
            files.ca_file.display(),
        );
        let url = self.stack.nats().url();
        format!(
            r#"
[core.identity]
trust_domain = "{TRUST_DOMAIN}"
cert_file = "{cert}"
key_file = "{key}"
ca_file = "{ca}"
[core.bus]
urls = ["{url}"]
cert_file = "{cert}"
key_file = "{key}"
ca_file = "{ca}"
[core.grpc]
listen = "127.0.0.1:{grpc}"
[core.admin]
listen = "127.0.0.1:{admin}"
"#
        )
    }

    pub(crate) fn text(&self) -> String {
        let database = &self.database;
        format!(
            r#"{}
[core.database]
host = "{}"
port = {}
database = "{}"
user = "{}"
password_file = "{}"
ca_file = "{}"
[lake]
data_dir = "{}"
{}
[evidence]
key_file = "{}"
{}
"#,
            self.core("forensics", self.grpc, self.admin),
            database.host,
            database.port,
            database.database,
            database.user,
            database.password_file.display(),
            database.ca_file.display(),
            self.data.display(),
            self.lake,
            self.dir.path().join("evidence.pem").display(),
            self.evidence,
        )
    }

    pub(crate) fn config(&self) -> PathBuf {
        let path = self.dir.path().join("forensics.toml");
        std::fs::write(&path, self.text()).unwrap();
        path
    }

    pub(crate) fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forensics"));
        command.arg("run").arg("--config").arg(self.config());
        self.start_as(command);
    }

    pub(crate) fn start_as(&mut self, command: Command) {
        let log = self.dir.path().join("forensics.log");
        self.process = Some(Process::start("forensics", command, &log).unwrap());
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("forensics.log")).unwrap_or_default()
    }

    /// Runs the service in this process, with a key of the test's own in place of iam's.
    pub(crate) async fn embed(&self) -> Embedded {
        let config: Config = toml::from_str(&self.text()).unwrap();
        let service = Service::embedded(forensics::INFO, config.core.clone()).await.unwrap();
        let keys = service.key_ring();
        let bytes = self.tokens.public_key().as_ref().try_into().unwrap();
        keys.set_keys(&JwkSet {
            keys: vec![PublicKey {
                id: "test".into(),
                bytes,
            }],
        });
        keys.add_revocations([], Utc::now());
        let stop = service.shutdown();
        let task = tokio::spawn(async move { forensics::run(config, service).await.unwrap() });
        let embedded = Embedded { stop, task };
        self.until_ready().await;
        embedded
    }

    pub(crate) async fn page(&self) -> Option<String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut tcp = tokio::net::TcpStream::connect(("127.0.0.1", self.admin)).await.ok()?;
        let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        tcp.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    pub(crate) async fn is_ready(&self) -> bool {
        self.page()
            .await
            .is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    pub(crate) async fn until_ready(&self) {
        self.until("ready", async || self.is_ready().await).await;
    }

    pub(crate) async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let limit = tokio::time::Instant::now() + Duration::from_secs(180);
        while !holds().await {
            assert!(tokio::time::Instant::now() < limit, "not {what}:\n{}", self.output());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.grpc)
    }

    fn id() -> SpiffeId {
        SpiffeId::service(TRUST_DOMAIN, "forensics").unwrap()
    }

    /// A connection with the certificate of a service.
    pub(crate) fn channel_of(&self, service: &str) -> Channel {
        let files = self.stack.identity(&format!("svc/{service}"));
        let files = TlsFiles {
            cert_file: files.cert_file,
            key_file: files.key_file,
            ca_file: files.ca_file,
        };
        client::channel(
            &TlsIdentity::load(files, TRUST_DOMAIN).unwrap(),
            &self.endpoint(),
            &Self::id(),
        )
        .unwrap()
    }

    /// The policy service may search.
    pub(crate) fn searcher(&self, name: &str) -> FlowSearchServiceClient<InterceptedService<Channel, ForTenant>> {
        let channel = self.channel_of("policy");
        FlowSearchServiceClient::with_interceptor(channel, client::for_tenant(&tenant(name)))
    }

    /// The responder may ask for evidence.
    pub(crate) fn responder(&self, name: &str) -> EvidenceServiceClient<InterceptedService<Channel, ForTenant>> {
        let channel = self.channel_of("responder");
        EvidenceServiceClient::with_interceptor(channel, client::for_tenant(&tenant(name)))
    }

    /// Somebody with a token.
    pub(crate) fn person(&self, name: &str, roles: &[&str]) -> People {
        let (rules, now) = (Rules::for_trust_domain(TRUST_DOMAIN), Utc::now().timestamp());
        let claims = Claims {
            iss: rules.issuer,
            aud: rules.audience,
            sub: format!("users/{}", Uuid::now_v7()),
            preferred_username: "eva".into(),
            tenant: tenant(name),
            sid: Uuid::now_v7(),
            roles: roles.iter().map(ToString::to_string).collect(),
            amr: vec!["pwd".into(), "otp".into()],
            iat: now,
            nbf: now,
            exp: now + 600,
            jti: Uuid::now_v7(),
        };
        let bearer = format!("Bearer {}", token::sign(&self.tokens, "test", &claims));
        let channel = client::anonymous_channel(&self.stack.pki().ca_file(), &self.endpoint(), &Self::id()).unwrap();
        EvidenceServiceClient::with_interceptor(channel, Bearer(bearer.parse().unwrap()))
    }

    pub(crate) async fn search(&self, name: &str, filter: FlowFilter) -> Result<(Vec<Flow>, SearchStats), Status> {
        let request = SearchFlowsRequest {
            filter: Some(filter),
            limit: 0,
        };
        let mut stream = self.searcher(name).search_flows(request).await?.into_inner();
        let (mut flows, mut stats) = (Vec::new(), None);
        while let Some(message) = stream.message().await? {
            flows.extend(message.flows);
            stats = message.stats.or(stats);
        }
        Ok((flows, stats.expect("the last message has statistics")))
    }

    pub(crate) async fn until_found(&self, name: &str, count: usize) -> Vec<Flow> {
        let mut flows = Vec::new();
        let found = async || {
            flows = self
                .search(name, FlowFilter::default())
                .await
                .map(|(flows, _)| flows)
                .unwrap_or_default();
            flows.len() >= count
        };
        self.until(&format!("{count} flows of {name} found"), found).await;
        assert_eq!(flows.len(), count);
        flows
    }

    /// Publishes a batch of flows `from..to`, each in one record.
    pub(crate) async fn publish(&self, name: &str, from: u32, to: u32) -> Message {
        let message = batch(name, from, to);
        self.ingest.publisher().publish(&message).await.unwrap();
        message
    }

    pub(crate) async fn bus(&self, identity: &str) -> Bus {
        Bus::connect(&self.stack.bus_config(identity), identity.rsplit('/').next().unwrap())
            .await
            .unwrap()
    }

    /// Files, rows and bytes of the catalogue.
    pub(crate) async fn catalogue(&self, name: &str) -> (i64, i64) {
        let mut tx = self.db.begin(&tenant(name)).await.unwrap();
        sqlx::query_as("SELECT count(*), coalesce(sum(rows), 0)::bigint FROM flow_file")
            .fetch_one(&mut *tx)
            .await
            .unwrap()
    }

    /// Messages of the stream that this service's consumer has not acknowledged.
    pub(crate) async fn unacknowledged(&self) -> u64 {
        let admin = self.bus("svc/bus-admin").await;
        let stream = admin.jetstream().get_stream("FLOWS").await.unwrap();
        let info = stream.consumer_info("forensics").await.unwrap();
        info.num_pending + info.num_ack_pending as u64
    }

    pub(crate) async fn dead_letters(&self, count: usize) -> Vec<String> {
        let admin = self.bus("svc/bus-admin").await;
        let stream = admin.jetstream().get_stream("DLQ").await.unwrap();
        let config = async_nats::jetstream::consumer::pull::Config::default();
        let messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
        let letters = messages.take(count).map(|letter| {
            let letter = letter.unwrap();
            letter
                .headers
                .as_ref()
                .unwrap()
                .get("dlq-reason")
                .unwrap()
                .as_str()
                .to_owned()
        });
        tokio::time::timeout(Duration::from_secs(120), letters.collect())
            .await
            .unwrap()
    }
}

pub(crate) fn flow_id(n: u32) -> Uuid {
    Uuid::from_u128(u128::from(n) + 1)
}

pub(crate) fn host(n: u32) -> String {
    format!("10.0.{}.{}", n / 250 % 250, n % 250 + 1)
}

/// One message with flows `from..to`: flow `n` at second `n` of 2023-11-14T22:13:20Z.
pub(crate) fn batch(name: &str, from: u32, to: u32) -> Message {
    let tenant = tenant(name);
    let mut builder = FlowBatchBuilder::new((to - from) as usize);
    for n in from..to {
        let src: IpAddr = host(n).parse().unwrap();
        builder.push(&FlowRow {
            flow_id: flow_id(n).into_bytes(),
            state: FlowState::Ended as u8,
            sensor: "edge",
            first_seen: (1_700_000_000 + i64::from(n)) * SECOND,
            last_seen: (1_700_000_001 + i64::from(n)) * SECOND,
            protocol: 6,
            src_ip: src,
            dst_ip: "192.0.2.80".parse().unwrap(),
            src_port: 40_000,
            dst_port: 443,
            community_id: &format!("1:{n}"),
            src_packets: Some(3),
            ..FlowRow::default()
        });
    }
    let meta = BatchMeta {
        tenant: tenant.clone(),
        sensor: "edge".into(),
        batch_seq: 0,
        ledger: LossLedger::default(),
    };
    let payload = garrison_flow::encode(&builder.finish(), &meta).unwrap();
    Message::flows(subject::flows(&tenant, 3), "flow-ingest", payload)
}

/// Every file below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path))
        } else {
            found.push(path)
        }
    }
    found
}
