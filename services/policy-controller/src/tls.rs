//! Connections of the webhook: TLS, bounded in number, with certificates that are read again when they change.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use garrison_service::{BoxError, ConfigError};
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::config::WebhookConfig;

/// How long a client may take for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// The certificate that is shown, kept fresh from disk.
#[derive(Debug)]
struct Certificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn load(config: &WebhookConfig) -> Result<Arc<CertifiedKey>, ConfigError> {
    let unusable = |key: &str, path: &Path, error: &dyn std::fmt::Display| {
        ConfigError::invalid(key, format!("GAR-CTL-0004: {}: {error}", path.display()))
    };
    let chain = CertificateDer::pem_file_iter(&config.cert_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable("webhook.cert_file", &config.cert_file, &error))?;
    if chain.is_empty() {
        return Err(unusable(
            "webhook.cert_file",
            &config.cert_file,
            &"it holds no certificate",
        ));
    }
    let key = PrivateKeyDer::from_pem_file(&config.key_file)
        .map_err(|error| unusable("webhook.key_file", &config.key_file, &error))?;
    let key =
        ring::sign::any_supported_type(&key).map_err(|error| unusable("webhook.key_file", &config.key_file, &error))?;
    let certified = CertifiedKey::new(chain, key);
    certified
        .keys_match()
        .map_err(|error| unusable("webhook.key_file", &config.key_file, &error))?;
    Ok(Arc::new(certified))
}

/// When either file last changed.
fn changed(config: &WebhookConfig) -> Option<(SystemTime, SystemTime)> {
    let time = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    Some((time(&config.cert_file)?, time(&config.key_file)?))
}

/// Accepts connections whose handshake is done.
pub(crate) struct Listener {
    ready: mpsc::Receiver<Connection>,
    address: SocketAddr,
}

impl Listener {
    /// Opens the port.
    pub(crate) async fn bind(config: &WebhookConfig, stop: CancellationToken) -> Result<Self, BoxError> {
        let certificate = Arc::new(Certificate(RwLock::new(load(config)?)));
        let mut tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(certificate.clone());
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind(config.listen).await.map_err(|error| {
            format!(
                "GAR-CTL-0004: listening on {} (key `webhook.listen`): {error}",
                config.listen
            )
        })?;
        let address = listener.local_addr()?;
        tokio::spawn(stop.run_until_cancelled_owned(reload(config.clone(), certificate)));
        let (sender, ready) = mpsc::channel(64);
        tokio::spawn(accept(
            listener,
            TlsAcceptor::from(Arc::new(tls)),
            Arc::new(Semaphore::new(config.max_connections)),
            sender,
        ));
        Ok(Self { ready, address })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn reload(config: WebhookConfig, certificate: Arc<Certificate>) {
    let mut last = changed(&config);
    loop {
        tokio::time::sleep(Duration::from_millis(config.reload_interval_ms)).await;
        let now = changed(&config);
        if now.is_none() || now == last {
            continue;
        }
        match load(&config) {
            Ok(fresh) => {
                *certificate.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
                tracing::info!("the webhook shows a new certificate");
                last = now;
            }
            // Half of a pair may be written; the one before still serves.
            Err(error) => tracing::warn!(%error, "the webhook's new certificate cannot be used yet"),
        }
    }
}

// Ends when nobody takes connections any more.
async fn accept(listener: TcpListener, acceptor: TlsAcceptor, room: Arc<Semaphore>, ready: mpsc::Sender<Connection>) {
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection to the webhook was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            // Small answers must not wait for company.
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let connection = Connection {
                        stream,
                        address,
                        _permit: permit,
                    };
                    // Nobody takes it when the server is going.
                    let _ = ready.send(connection).await;
                }
                Ok(Err(error)) => tracing::debug!(%address, %error, "a handshake with the webhook failed"),
                Err(_) => tracing::debug!(%address, "a handshake with the webhook took too long"),
            }
        });
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        match self.ready.recv().await {
            Some(connection) => {
                let address = connection.address;
                (connection, address)
            }
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// A connection, which counts while it lives.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    address: SocketAddr,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
