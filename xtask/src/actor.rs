//! The people and machines of the lab: a web server, an office machine with a login page, and an attacker.
//! Each runs as its own process inside its host's network namespace and speaks real protocols.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use axum::{
    Form, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use garrison_testkit::Postgres;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

/// What a host of the lab does.
#[derive(Debug, clap::Subcommand)]
pub enum Actor {
    /// Serves pages over HTTP and TLS, each made with a query to the database.
    Web {
        #[arg(long)]
        address: Ipv4Addr,
        #[arg(long)]
        pki: PathBuf,
        #[arg(long)]
        database: SocketAddrV4,
    },
    /// A PostgreSQL server that anybody on the network may reach, if the network lets them.
    Database {
        #[arg(long)]
        address: Ipv4Addr,
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        pki: PathBuf,
    },
    /// An office machine whose administration page asks for a login.
    Office {
        #[arg(long)]
        address: Ipv4Addr,
        /// What the page does once an intruder is in: connect to this address.
        #[arg(long)]
        reach: SocketAddrV4,
    },
    /// Browses the web server a number of times.
    Browse {
        #[arg(long)]
        server: Ipv4Addr,
        #[arg(long)]
        ca: PathBuf,
        #[arg(long, default_value_t = 50)]
        pages: u32,
        #[arg(long, default_value_t = 40)]
        pause_ms: u64,
        /// How long a page may take
        #[arg(long, default_value_t = 1_500)]
        patience_ms: u64,
    },
    /// Tries to connect to many ports of a host.
    Scan {
        #[arg(long)]
        target: Ipv4Addr,
        #[arg(long, default_value_t = 60)]
        ports: u16,
        #[arg(long, default_value_t = 10)]
        pause_ms: u64,
    },
    /// Guesses passwords on a login page until it is told to stop or nothing answers any more.
    BruteForce {
        #[arg(long)]
        target: SocketAddrV4,
        /// The address to come from, where the host has several
        #[arg(long)]
        source: Option<Ipv4Addr>,
        #[arg(long, default_value_t = 60)]
        attempts: u32,
        #[arg(long, default_value_t = 150)]
        pause_ms: u64,
    },
    /// Says whether a TCP port can be reached.
    Probe {
        #[arg(long)]
        target: SocketAddrV4,
        #[arg(long, default_value_t = 1000)]
        timeout_ms: u64,
    },
}

/// What an attacker or a browser did, as one line of JSON on stdout.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Deeds {
    /// Connections, pages or guesses that were answered.
    pub answered: u32,
    /// Those that were not.
    pub unanswered: u32,
    /// Nanoseconds since the epoch when the last answer came.
    pub last_answer_ns: u64,
    /// A guess was right.
    pub succeeded: bool,
}

/// The one right login of the office machine.
const LOGIN: (&str, &str) = ("operator", "sunshine-42");

impl Actor {
    /// Plays the part until it is done, or for a server until it is killed.
    pub async fn play(self) -> Result<()> {
        match self {
            Self::Web { address, pki, database } => web(address, pki, database).await,
            Self::Database { address, dir, pki } => database(address, dir, pki).await,
            Self::Office { address, reach } => office(address, reach).await,
            Self::Browse {
                server,
                ca,
                pages,
                pause_ms,
                patience_ms,
            } => {
                let patience = Duration::from_millis(patience_ms);
                blocking(move || browse(server, &ca, pages, pause_ms, patience)).await
            }
            Self::Scan {
                target,
                ports,
                pause_ms,
            } => blocking(move || scan(target, ports, pause_ms)).await,
            Self::BruteForce {
                target,
                source,
                attempts,
                pause_ms,
            } => blocking(move || brute_force(target, source, attempts, pause_ms)).await,
            Self::Probe { target, timeout_ms } => {
                blocking(move || {
                    let reached = TcpStream::connect_timeout(&target.into(), Duration::from_millis(timeout_ms)).is_ok();
                    let mut deeds = Deeds::default();
                    deeds.note(reached);
                    Ok(deeds)
                })
                .await
            }
        }
    }
}

impl Deeds {
    fn note(&mut self, answered: bool) {
        if answered {
            self.answered += 1;
            self.last_answer_ns = now_ns();
        } else {
            self.unanswered += 1;
        }
    }
}

async fn blocking(deed: impl FnOnce() -> Result<Deeds> + Send + 'static) -> Result<()> {
    let deeds = tokio::task::spawn_blocking(deed).await??;
    println!("{}", serde_json::to_string(&deeds)?);
    Ok(())
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

async fn web(address: Ipv4Addr, pki: PathBuf, database: SocketAddrV4) -> Result<()> {
    let page = move || async move {
        // A short visit to the database for each page, as an application makes; what it says does not matter.
        let reached = tokio::net::TcpStream::connect(database).await;
        match reached {
            Ok(mut stream) => {
                use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                // PostgreSQL's SSLRequest is answered with one octet.
                let mut answer = [0; 1];
                let asked = stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await;
                let answered = stream.read_exact(&mut answer).await;
                if asked.is_ok() && answered.is_ok() {
                    (StatusCode::OK, "in stock\n".repeat(200))
                } else {
                    (StatusCode::BAD_GATEWAY, "the database hung up\n".to_owned())
                }
            }
            Err(_) => (StatusCode::BAD_GATEWAY, "the database is away\n".to_owned()),
        }
    };
    let router = Router::new().route("/", get(page)).route("/item/{number}", get(page));
    let tls = TlsListener {
        inner: TcpListener::bind((address, 443)).await?,
        acceptor: tokio_rustls::TlsAcceptor::from(Arc::new(server_config(&pki)?)),
    };
    let plain = TcpListener::bind((address, 80)).await?;
    let plain_router = router.clone();
    tokio::try_join!(async { axum::serve(plain, plain_router).await }, async {
        axum::serve(tls, router).await
    })?;
    Ok(())
}

fn server_config(pki: &std::path::Path) -> Result<rustls::ServerConfig> {
    let files = garrison_testkit::Pki::open_or_create(pki, "lab.test")?.identity("host/www")?;
    let chain = CertificateDer::pem_file_iter(&files.cert_file)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&files.key_file)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

struct TlsListener {
    inner: TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            // A client that breaks off its handshake is its own affair.
            if let Ok((stream, peer)) = self.inner.accept().await
                && let Ok(stream) = self.acceptor.accept(stream).await
            {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}

async fn database(address: Ipv4Addr, dir: PathBuf, pki: PathBuf) -> Result<()> {
    let pki = garrison_testkit::Pki::open_or_create(&pki, "lab.test")?;
    let server = Postgres::start_on(&dir, &pki, address, 5432)?;
    println!("listening on {}", server.port());
    std::future::pending::<()>().await;
    Ok(())
}

#[derive(Deserialize)]
struct Login {
    user: String,
    password: String,
}

async fn office(address: Ipv4Addr, reach: SocketAddrV4) -> Result<()> {
    let login = move |State(reach): State<SocketAddrV4>, Form(login): Form<Login>| async move {
        if (login.user.as_str(), login.password.as_str()) != LOGIN {
            return (StatusCode::UNAUTHORIZED, "wrong user or password\n");
        }
        // What the intruder plants: a little later this machine itself goes for the database.
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            for _ in 0..5 {
                let _ = tokio::time::timeout(Duration::from_secs(1), tokio::net::TcpStream::connect(reach)).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        (StatusCode::OK, "welcome\n")
    };
    let router = Router::new()
        .route("/", get(|| async { "printer administration\n" }))
        .route("/login", post(login))
        .with_state(reach);
    axum::serve(TcpListener::bind((address, 8080)).await?, router).await?;
    Ok(())
}

fn browse(server: Ipv4Addr, ca: &std::path::Path, pages: u32, pause_ms: u64, patience: Duration) -> Result<Deeds> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let config = Arc::new(config);
    let mut deeds = Deeds::default();
    for page in 0..pages {
        let request = format!(
            "GET /item/{page} HTTP/1.1\r\nHost: www\r\nUser-Agent: lab-browser/1.0\r\nConnection: close\r\n\r\n"
        );
        let outcome = if page % 2 == 0 {
            exchange((server, 80).into(), patience, &request)
        } else {
            exchange_tls((server, 443).into(), patience, &request, &config)
        };
        deeds.note(outcome.is_ok_and(|text| text.starts_with("HTTP/1.1 200")));
        std::thread::sleep(Duration::from_millis(pause_ms));
    }
    Ok(deeds)
}

fn exchange(address: SocketAddr, patience: Duration, request: &str) -> Result<String> {
    exchange_on(connect(None, address, patience)?, request)
}

fn exchange_on(mut stream: TcpStream, request: &str) -> Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn exchange_tls(
    address: SocketAddr,
    patience: Duration,
    request: &str,
    config: &Arc<rustls::ClientConfig>,
) -> Result<String> {
    let mut socket = connect(None, address, patience)?;
    let mut session = rustls::ClientConnection::new(config.clone(), ServerName::try_from("www")?)?;
    let mut stream = rustls::Stream::new(&mut session, &mut socket);
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    // A server may close without a goodbye once it has sent everything.
    let _ = stream.read_to_end(&mut answer);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn connect(source: Option<Ipv4Addr>, address: SocketAddr, patience: Duration) -> Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    socket.connect_timeout(&address.into(), patience)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn scan(target: Ipv4Addr, ports: u16, pause_ms: u64) -> Result<Deeds> {
    ensure!(ports <= 1000, "at most 1000 ports");
    let mut deeds = Deeds::default();
    for port in 0..ports {
        let address = SocketAddr::new(IpAddr::V4(target), 20 + port);
        // A refusal is an answer too; silence is none.
        let answered = match TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        };
        deeds.note(answered);
        std::thread::sleep(Duration::from_millis(pause_ms));
    }
    Ok(deeds)
}

fn brute_force(target: SocketAddrV4, source: Option<Ipv4Addr>, attempts: u32, pause_ms: u64) -> Result<Deeds> {
    let mut deeds = Deeds::default();
    let mut silence = 0;
    for attempt in 0..attempts {
        // The fifth guess is right; a thorough attacker goes on with the next account.
        let password = if attempt == 4 {
            LOGIN.1.to_owned()
        } else {
            format!("guess-{attempt}")
        };
        let body = format!("user={}&password={password}", LOGIN.0);
        let request = format!(
            "POST /login HTTP/1.1\r\nHost: {target}\r\nUser-Agent: lab-guesser/1.0\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let started = Instant::now();
        // Nobody is cut off before the right guess, so its answer comes, if need be late.
        let patience = Duration::from_millis(if attempt <= 4 { 30_000 } else { 1_500 });
        let outcome = connect(source, target.into(), patience).and_then(|stream| exchange_on(stream, &request));
        deeds.succeeded |= outcome.as_ref().is_ok_and(|text| text.starts_with("HTTP/1.1 200"));
        deeds.note(outcome.is_ok());
        silence = if outcome.is_ok() { 0 } else { silence + 1 };
        if silence >= 3 {
            break;
        }
        std::thread::sleep(Duration::from_millis(pause_ms).saturating_sub(started.elapsed()));
    }
    Ok(deeds)
}

/// Reads what an actor said of its deeds.
pub fn deeds(output: &std::process::Output) -> Result<Deeds> {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.trim())
        .with_context(|| format!("an actor failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
