//! The service as a process, and ways to speak to it and to look at what it keeps.

use std::{path::PathBuf, process::Command, sync::Arc, time::Duration};

use chrono::Utc;
use compliance::{
    app::checkpoints::Checkpoints,
    grpc::{log::LogService, report::Reports},
};
use futures::StreamExt as _;
use garrison_auth::{Caller, Principal};
use garrison_bus::{Bus, Message, subject};
use garrison_db::{Db, DbConfig};
use garrison_proof::SigningKey;
use garrison_proto::{
    TenantId,
    audit::v1::{Actor, AuditRecord, Decision},
    compliance::v1::{GetCheckpointRequest, transparency_log_service_server::TransparencyLogService as _},
    to_timestamp,
};
use garrison_testkit::{Process, Stack, TRUST_DOMAIN, free_port};
use tonic::Request;
use uuid::Uuid;

pub(crate) struct World {
    pub(crate) stack: Stack,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) database: DbConfig,
    pub(crate) db: Db,
    pub(crate) bus: Bus,
    pub(crate) log: LogService,
    pub(crate) reports: Reports,
    pub(crate) admin: u16,
    pub(crate) grpc: u16,
    pub(crate) process: Option<Process>,
}

pub(crate) fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

pub(crate) fn record(tenant: &TenantId, action: &str, resource: &str) -> AuditRecord {
    AuditRecord {
        record_id: Uuid::now_v7().to_string(),
        time: Some(to_timestamp(Utc::now())),
        tenant: tenant.to_string(),
        service: "responder".into(),
        actor: Some(Actor {
            name: "users/0190a0de-0000-7000-8000-000000000001".into(),
            ..Actor::default()
        }),
        action: action.into(),
        resource: resource.into(),
        decision: Decision::Allow.into(),
        ..AuditRecord::default()
    }
}

/// As the auth layer leaves a request of an auditor.
pub(crate) fn by<T>(tenant: &TenantId, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Caller {
        tenant: tenant.clone(),
        principal: Principal::User {
            id: Uuid::from_u128(7),
            login: "ada".into(),
        },
        ..Caller::anonymous(None)
    });
    request
}

impl World {
    /// A stack and a database of its own; the service does not run yet.
    pub(crate) async fn new() -> Self {
        let stack = Stack::start().await;
        let dir = tempfile::tempdir().unwrap();
        let database = stack.database("compliance", &compliance::MIGRATOR).await;
        let pem = SigningKey::generate_pkcs8_pem().unwrap();
        std::fs::write(dir.path().join("log.pem"), &pem).unwrap();
        let db = Db::connect(&database, "compliance").unwrap();
        let key = SigningKey::from_pkcs8_pem(&pem).unwrap();
        let checkpoints = Arc::new(Checkpoints::new(db.clone(), key, TRUST_DOMAIN));
        let bus = Bus::connect(&stack.bus_config("svc/responder"), "responder")
            .await
            .unwrap();
        Self {
            log: LogService {
                db: db.clone(),
                checkpoints: Arc::clone(&checkpoints),
            },
            reports: Reports {
                db: db.clone(),
                checkpoints,
                evidence_per_observation: 5,
            },
            stack,
            dir,
            database,
            db,
            bus,
            admin: free_port().unwrap(),
            grpc: free_port().unwrap(),
            process: None,
        }
    }

    pub(crate) async fn running() -> Self {
        let mut world = Self::new().await;
        world.start();
        world.until_ready().await;
        world
    }

    pub(crate) fn config(&self) -> PathBuf {
        let files = self.stack.identity("svc/compliance");
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
[log]
key_file = "{}"
checkpoint_interval_ms = 200
"#,
            self.stack.nats().url(),
            database.host,
            database.port,
            database.database,
            database.user,
            database.password_file.display(),
            database.ca_file.display(),
            self.grpc,
            self.admin,
            self.dir.path().join("log.pem").display(),
        );
        let path = self.dir.path().join("compliance.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_compliance"));
        command.arg("run").arg("--config").arg(self.config());
        let log = self.dir.path().join("compliance.log");
        self.process = Some(Process::start("compliance", command, &log).unwrap());
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("compliance.log")).unwrap_or_default()
    }

    pub(crate) async fn is_ready(&self) -> bool {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let Ok(mut tcp) = tokio::net::TcpStream::connect(("127.0.0.1", self.admin)).await else {
            return false;
        };
        let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        if tcp.write_all(request.as_bytes()).await.is_err() {
            return false;
        }
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap_or_default();
        answer.starts_with("HTTP/1.1 200")
    }

    pub(crate) async fn until_ready(&self) {
        let limit = tokio::time::Instant::now() + Duration::from_secs(120);
        while !self.is_ready().await {
            assert!(tokio::time::Instant::now() < limit, "not ready:\n{}", self.output());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn publish(&self, record: &AuditRecord) {
        let tenant: TenantId = record.tenant.parse().unwrap();
        let message = Message::proto(subject::audit(&tenant, "responder"), "responder", record);
        self.bus.publisher().publish(&message).await.unwrap();
    }

    pub(crate) async fn publish_many(&self, tenant: &TenantId, count: usize) -> Vec<AuditRecord> {
        let mut records = Vec::new();
        for i in 0..count {
            let record = record(tenant, "response.applied", &format!("responses/{i}"));
            self.publish(&record).await;
            records.push(record);
        }
        records
    }

    /// Waits until a log has so many entries, and no fewer than that.
    pub(crate) async fn until_size(&self, tenant: &TenantId, size: u64) {
        let limit = tokio::time::Instant::now() + Duration::from_secs(180);
        loop {
            let found = self
                .log
                .get_checkpoint(by(tenant, GetCheckpointRequest {}))
                .await
                .map(|answer| answer.into_inner().tree_size);
            if found.as_ref().is_ok_and(|found| *found >= size) {
                assert_eq!(found.unwrap(), size);
                return;
            }
            assert!(
                tokio::time::Instant::now() < limit,
                "{found:?} of {size} entries:\n{}",
                self.output()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The reasons of so many dead letters.
    pub(crate) async fn dead_letters(&self, count: usize) -> Vec<String> {
        let admin = Bus::connect(&self.stack.bus_config("svc/bus-admin"), "bus-admin")
            .await
            .unwrap();
        let stream = admin.jetstream().get_stream("DLQ").await.unwrap();
        let consumer = stream
            .create_consumer(async_nats::jetstream::consumer::pull::Config::default())
            .await
            .unwrap();
        let messages = consumer.messages().await.unwrap();
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
