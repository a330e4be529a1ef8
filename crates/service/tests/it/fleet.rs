//! A stack, iam's side and the service under test.

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf, time::Instant};

use garrison_auth::SpiffeId;
use garrison_proto::alert::v1::detection_service_client::DetectionServiceClient;
use garrison_testkit::{Stack, TRUST_DOMAIN, free_port};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Request, transport::Channel};

use crate::{
    child::{DRAIN, MIGRATIONS, PATIENCE, Running},
    iam::Iam,
};

const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

pub(crate) struct Fleet {
    pub(crate) stack: Stack,
    pub(crate) iam: Iam,
    pub(crate) iam_address: SocketAddr,
    folder: tempfile::TempDir,
    database: garrison_db::DbConfig,
}

pub(crate) fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()))
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        let stack = Stack::start().await;
        let database = stack.database("anomaly", &MIGRATIONS).await;
        Self {
            stack,
            iam: Iam::new(),
            iam_address: local(),
            folder: tempfile::tempdir().unwrap(),
            database,
        }
    }

    pub(crate) async fn serve_iam(&self) {
        self.iam.serve(self.iam_address, self.stack.identity("svc/iam")).await;
    }

    /// A configuration file; `more` is appended.
    pub(crate) fn configure(&self, admin: SocketAddr, grpc: SocketAddr, more: &str) -> PathBuf {
        let files = self.stack.identity("svc/anomaly");
        let (cert, key, ca) = (
            files.cert_file.display(),
            files.key_file.display(),
            files.ca_file.display(),
        );
        let database = &self.database;
        let mut text = String::new();
        write!(
            text,
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
listen = "{grpc}"
[core.admin]
listen = "{admin}"
[core.auth]
iam_endpoint = "https://{}"
[core.lifecycle]
drain_timeout_ms = {}
"#,
            self.stack.nats().url(),
            database.host,
            database.port,
            database.database,
            database.user,
            database.password_file.display(),
            database.ca_file.display(),
            self.iam_address,
            DRAIN.as_millis(),
        )
        .unwrap();
        let path = self.folder.path().join(format!("{}.toml", grpc.port()));
        std::fs::write(&path, format!("{more}\n{text}")).unwrap();
        path
    }

    /// Starts the service; `more` goes to the top of its configuration.
    pub(crate) fn service(&self, more: &str) -> Running {
        self.service_with(more, "")
    }

    /// Starts the service with lines at the top and sections at the end of its configuration.
    pub(crate) fn service_with(&self, top: &str, sections: &str) -> Running {
        let (admin, grpc) = (local(), local());
        let config = self.configure(admin, grpc, top);
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, format!("{text}{sections}")).unwrap();
        Running::start(&config, admin, grpc)
    }

    pub(crate) fn client(&self, service: &Running) -> DetectionServiceClient<Channel> {
        DetectionServiceClient::new(self.channel(service))
    }

    pub(crate) fn channel(&self, service: &Running) -> Channel {
        let expected = SpiffeId::service(TRUST_DOMAIN, "anomaly").unwrap();
        let endpoint = format!("https://{}", service.grpc);
        garrison_service::client::anonymous_channel(&self.stack.pki().ca_file(), &endpoint, &expected).unwrap()
    }
}

pub(crate) fn bearer<T>(message: T, token: &str) -> Request<T> {
    let mut request = garrison_service::client::deadline(message, PATIENCE);
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// A page of the admin port: status and body.
pub(crate) async fn page(admin: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(admin).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// What `/readyz` says is lacking; `None` while the port is shut.
pub(crate) async fn lacking(service: &Running) -> Option<Vec<String>> {
    let (status, body) = page(service.admin, "/readyz").await?;
    let report: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status == 200, report["ready"] == true, "{body}");
    let checks = report["checks"].as_array().unwrap();
    let open = checks.iter().filter(|check| check["ready"] == false);
    Some(open.map(|check| check["name"].as_str().unwrap().to_owned()).collect())
}

/// Waits until exactly these are lacking.
pub(crate) async fn until_lacking(service: &Running, expected: &[&str]) {
    let began = Instant::now();
    loop {
        let found = lacking(service).await;
        if found.as_ref().is_some_and(|found| found == expected) {
            return;
        }
        let log = service.log();
        assert!(
            began.elapsed() < PATIENCE * 2,
            "lacking {found:?}, expected {expected:?}\n{log}"
        );
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, service: &Running, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "never: {what}\n{}", service.log());
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until the service has begun to stop, and says so.
pub(crate) async fn until_draining(service: &Running) {
    until("it is draining", service, async || {
        let readiness = page(service.admin, "/readyz").await;
        readiness.is_some_and(|(status, body)| status == 503 && body.contains("\"draining\":true"))
    })
    .await;
}
