//! Connections of the webhook: TLS, bounded in number, with certificates that are read again when they change.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
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

use crate::{Metrics, config::WebhookConfig};

/// How long a client may take for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// The certificate that is shown; none before there is one.
#[derive(Debug, Default)]
pub(crate) struct Certificate(RwLock<Option<Arc<CertifiedKey>>>);

impl Certificate {
    /// Shows another from now on.
    pub(crate) fn show(&self, key: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A certificate and its key, both PEM.
///
/// # Errors
/// In words, when they cannot be used or do not belong together.
pub(crate) fn certified(certificate: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| format!("the certificate: {error}"))?;
    if chain.is_empty() {
        return Err("it holds no certificate".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("the key: {error}"))?;
    let key = ring::sign::any_supported_type(&key).map_err(|error| format!("the key: {error}"))?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|error| format!("the key: {error}"))?;
    Ok(Arc::new(certified))
}

/// The files of a certificate and its key.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Files {
    /// Those of the configuration, if it names some.
    pub(crate) fn of(config: &WebhookConfig) -> Option<Self> {
        let (certificate, key) = config.cert_file.clone().zip(config.key_file.clone())?;
        Some(Self { certificate, key })
    }

    /// Reads them.
    ///
    /// # Errors
    /// When they cannot be used.
    pub(crate) fn load(&self) -> Result<(Arc<CertifiedKey>, i64), ConfigError> {
        let unusable = |key: &str, path: &Path, error: &dyn std::fmt::Display| {
            ConfigError::invalid(key, format!("GAR-CTL-0004: {}: {error}", path.display()))
        };
        let certificate = std::fs::read(&self.certificate)
            .map_err(|error| unusable("webhook.cert_file", &self.certificate, &error))?;
        let key = std::fs::read(&self.key).map_err(|error| unusable("webhook.key_file", &self.key, &error))?;
        let expires = crate::domain::authority::expires(&String::from_utf8_lossy(&certificate))
            .map_err(|error| unusable("webhook.cert_file", &self.certificate, &error))?;
        let certified =
            certified(&certificate, &key).map_err(|error| unusable("webhook.key_file", &self.key, &error))?;
        Ok((certified, expires))
    }

    /// When either last changed.
    fn changed(&self) -> Option<(SystemTime, SystemTime)> {
        let time = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        Some((time(&self.certificate)?, time(&self.key)?))
    }

    /// Looks at them for ever, and shows what they have.
    pub(crate) async fn follow(self, every: Duration, certificate: Arc<Certificate>, metrics: Metrics) {
        let mut last = self.changed();
        loop {
            tokio::time::sleep(every).await;
            let now = self.changed();
            if now.is_none() || now == last {
                continue;
            }
            match self.load() {
                Ok((fresh, expires)) => {
                    certificate.show(fresh);
                    metrics.certificate(expires);
                    tracing::info!("the webhook shows a new certificate");
                    last = now;
                }
                // Half of a pair may be written; the one before still serves.
                Err(error) => tracing::warn!(%error, "the webhook's new certificate cannot be used yet"),
            }
        }
    }
}

/// Accepts connections whose handshake is done.
pub(crate) struct Listener {
    ready: mpsc::Receiver<Connection>,
    address: SocketAddr,
}

impl Listener {
    /// Opens the port. Handshakes fail while there is no certificate to show.
    pub(crate) async fn bind(config: &WebhookConfig, certificate: Arc<Certificate>) -> Result<Self, BoxError> {
        let mut tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(certificate);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind(config.listen).await.map_err(|error| {
            format!(
                "GAR-CTL-0004: listening on {} (key `webhook.listen`): {error}",
                config.listen
            )
        })?;
        let address = listener.local_addr()?;
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
