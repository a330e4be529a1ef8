//! The binary itself, on free ports, spoken to over TLS.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use garrison_auth::{SpiffeId, TlsFiles, TlsIdentity, client};
use garrison_db::DbConfig;
use garrison_proto::iam::v1::{
    FactorKind, LoginRequest, LoginResponse, TokenSet, VerifyFactorRequest,
    authentication_service_client::AuthenticationServiceClient, key_service_client::KeyServiceClient,
    session_service_client::SessionServiceClient, tenant_service_client::TenantServiceClient,
    user_service_client::UserServiceClient,
};
use garrison_testkit::{Process, Stack, TRUST_DOMAIN, free_port};
use iam::crypto::TotpSecret;
use tonic::{Request, Status, service::Interceptor, transport::Channel};
use tonic_types::StatusExt as _;

pub const PASSWORD: &str = "nine tall ships";

/// A running iam with the tenants `system`, `acme` and `other`; in each `admin` and `eva` with one authenticator each
/// and `ada` without.
pub struct Program {
    pub process: Process,
    pub dir: tempfile::TempDir,
    pub endpoint: String,
    pub admin: u16,
    pub totp: String,
    stack: &'static Stack,
}

impl Program {
    pub async fn start() -> Self {
        Self::start_on(Stack::shared().await).await
    }

    pub async fn start_on(stack: &'static Stack) -> Self {
        let database = stack.database("iam", &iam::MIGRATOR).await;
        let program = Self::launch(stack, &database);
        program.ready().await;
        program
    }

    /// Starts and does not wait.
    pub fn launch(stack: &'static Stack, database: &DbConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (grpc, admin) = (free_port().unwrap(), free_port().unwrap());
        let totp = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP".to_owned();
        let config = write_config(stack, database, dir.path(), grpc, admin, &totp);
        let mut command = Command::new(env!("CARGO_BIN_EXE_iam"));
        command.arg("run").arg("--config").arg(config);
        let process = Process::start("iam", command, &dir.path().join("iam.log")).unwrap();
        Self {
            process,
            dir,
            endpoint: format!("https://127.0.0.1:{grpc}"),
            admin,
            totp,
            stack,
        }
    }

    pub async fn ready(&self) {
        let limit = tokio::time::Instant::now() + Duration::from_secs(120);
        while !self.is_ready().await {
            assert!(tokio::time::Instant::now() < limit, "iam is not ready:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn is_ready(&self) -> bool {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let Ok(mut tcp) = tokio::net::TcpStream::connect(("127.0.0.1", self.admin)).await else {
            return false;
        };
        let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap_or_default();
        answer.starts_with("HTTP/1.1 200")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("iam.log")).unwrap_or_default()
    }

    /// What people use: no client certificate.
    pub fn channel(&self) -> Channel {
        let ca = self.stack.pki().ca_file();
        client::anonymous_channel(&ca, &self.endpoint, &iam_id()).unwrap()
    }

    /// What a service of the fleet uses.
    pub fn channel_of(&self, service: &str) -> Channel {
        let files = self.stack.identity(&format!("svc/{service}"));
        let files = TlsFiles {
            cert_file: files.cert_file,
            key_file: files.key_file,
            ca_file: files.ca_file,
        };
        let identity = TlsIdentity::load(files, TRUST_DOMAIN).unwrap();
        client::channel(&identity, &self.endpoint, &iam_id()).unwrap()
    }

    pub fn anonymous(&self) -> AuthenticationServiceClient<Channel> {
        AuthenticationServiceClient::new(self.channel())
    }

    pub fn as_person(&self, tokens: &TokenSet) -> Clients {
        let bearer = Bearer(format!("Bearer {}", tokens.access_token).parse().unwrap());
        let channel = self.channel();
        Clients {
            authentication: AuthenticationServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            users: UserServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            sessions: SessionServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            tenants: TenantServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            keys: KeyServiceClient::with_interceptor(channel, bearer),
        }
    }

    pub async fn password(&self, tenant: &str, login: &str, password: &str) -> Result<LoginResponse, Status> {
        let request = LoginRequest {
            tenant: tenant.into(),
            login: login.into(),
            password: password.into(),
        };
        Ok(self.anonymous().login(request).await?.into_inner())
    }

    /// The code now, or some steps of 30 seconds away.
    pub fn code(&self, steps: i64) -> String {
        let now = chrono::Utc::now().timestamp() + steps * 30;
        TotpSecret::from_base32(&self.totp).unwrap().code_at(now as u64)
    }

    pub async fn prove(&self, challenge: &str, code: &str) -> Result<TokenSet, Status> {
        let request = VerifyFactorRequest {
            challenge: challenge.into(),
            kind: FactorKind::Totp.into(),
            code: code.into(),
        };
        Ok(self
            .anonymous()
            .verify_factor(request)
            .await?
            .into_inner()
            .tokens
            .unwrap())
    }

    /// Logs somebody in, once for each person with an authenticator.
    pub async fn login(&self, tenant: &str, login: &str) -> TokenSet {
        let answer = self.password(tenant, login, PASSWORD).await.unwrap();
        match answer.tokens {
            Some(tokens) => tokens,
            None => self.prove(&answer.challenge, &self.code(0)).await.unwrap(),
        }
    }
}

pub struct Clients {
    pub authentication: AuthenticationServiceClient<Authorized>,
    pub users: UserServiceClient<Authorized>,
    pub sessions: SessionServiceClient<Authorized>,
    pub tenants: TenantServiceClient<Authorized>,
    pub keys: KeyServiceClient<Authorized>,
}

type Authorized = tonic::service::interceptor::InterceptedService<Channel, Bearer>;

#[derive(Clone)]
pub struct Bearer(tonic::metadata::AsciiMetadataValue);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// The stable code of a refusal.
pub fn code_of<T: std::fmt::Debug>(result: Result<T, Status>) -> String {
    let status = result.unwrap_err();
    match status.get_details_error_info() {
        Some(info) => info.reason,
        None => format!("{status:?}"),
    }
}

fn iam_id() -> SpiffeId {
    SpiffeId::service(TRUST_DOMAIN, "iam").unwrap()
}

pub fn write_config(stack: &Stack, database: &DbConfig, dir: &Path, grpc: u16, admin: u16, totp: &str) -> PathBuf {
    let put = |name: &str, content: &str| {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let (password, totp) = (put("password", PASSWORD), put("totp", totp));
    let key = put("iam.key", &"3c".repeat(32));
    let (files, bus) = (stack.identity("svc/iam"), stack.bus_config("svc/iam"));
    let mut text = format!(
        "[core.identity]\ntrust_domain = {TRUST_DOMAIN:?}\ncert_file = {:?}\nkey_file = {:?}\nca_file = {:?}\n\
         [core.bus]\nurls = {:?}\ncert_file = {:?}\nkey_file = {:?}\nca_file = {:?}\n\
         [core.database]\nhost = {:?}\nport = {}\ndatabase = {:?}\nuser = {:?}\npassword_file = {:?}\nca_file = {:?}\n\
         acquire_timeout_ms = 4000\n\
         [core.grpc]\nlisten = \"127.0.0.1:{grpc}\"\n\
         [core.admin]\nlisten = \"127.0.0.1:{admin}\"\n\
         [core.telemetry]\nlog = \"debug\"\nlog_format = \"json\"\n\
         [secrets]\nkey_file = {key:?}\n",
        files.cert_file,
        files.key_file,
        files.ca_file,
        bus.urls,
        bus.cert_file,
        bus.key_file,
        bus.ca_file,
        database.host,
        database.port,
        database.database,
        database.user,
        database.password_file,
        database.ca_file,
    );
    for tenant in ["system", "acme", "other"] {
        write!(text, "[[bootstrap]]\nid = {tenant:?}\n").unwrap();
        for (login, role, second) in [
            ("admin", "admin", true),
            ("eva", "analyst", true),
            ("ada", "analyst", false),
        ] {
            write!(
                text,
                "[[bootstrap.users]]\nlogin = {login:?}\nroles = [{role:?}]\npassword_file = {password:?}\n"
            )
            .unwrap();
            if second {
                writeln!(text, "totp_secret_file = {totp:?}").unwrap();
            }
        }
    }
    put("iam.toml", &text)
}
