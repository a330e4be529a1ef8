use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use tokio_util::sync::CancellationToken;

use crate::identity::{IdentityError, SpiffeId};

/// Where an identity lies on disk, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, followed by its intermediates.
    pub cert_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
    /// The authorities whose certificates are believed.
    pub ca_file: PathBuf,
}

/// An identity could not be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or holds no PEM of the kind needed.
    #[error("reading {what} from {}: {source}", path.display())]
    Read {
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate carries no SPIFFE id of this trust domain.
    #[error("the certificate in {}: {source}", path.display())]
    Identity {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong with it.
        source: IdentityError,
    },
    /// Certificate, key and authority do not make a working configuration.
    #[error("making a TLS configuration from {}: {source}", path.display())]
    Configuration {
        /// The certificate's file.
        path: PathBuf,
        /// What rustls says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A SPIFFE identity with its TLS configurations, read again from disk when the files change.
#[derive(Debug)]
pub struct TlsIdentity {
    files: TlsFiles,
    trust_domain: String,
    current: RwLock<Loaded>,
}

#[derive(Debug, Clone)]
struct Loaded {
    id: SpiffeId,
    certificates: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    roots: Arc<RootCertStore>,
    server: Arc<ServerConfig>,
    stamp: Vec<Option<(SystemTime, u64)>>,
}

impl TlsIdentity {
    /// Loads an identity and checks that its certificate is of the trust domain.
    ///
    /// # Errors
    /// [`TlsError`] naming the file.
    pub fn load(files: TlsFiles, trust_domain: &str) -> Result<Arc<Self>, TlsError> {
        let loaded = Loaded::read(&files, trust_domain)?;
        Ok(Arc::new(Self {
            files,
            trust_domain: trust_domain.to_owned(),
            current: RwLock::new(loaded),
        }))
    }

    /// The identity's own SPIFFE id.
    pub fn id(&self) -> SpiffeId {
        self.loaded().id
    }

    /// The trust domain that peers must be of.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// TLS 1.3 for a gRPC server. Client certificates are optional, and verified when there is one.
    /// Ask again for every connection: the answer changes when the files do.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.loaded().server
    }

    /// TLS 1.3 for a connection to exactly the service `expected`, presenting this identity.
    ///
    /// # Errors
    /// [`TlsError::Configuration`] when certificate and key do not fit each other.
    pub fn client_config(&self, expected: &SpiffeId) -> Result<ClientConfig, TlsError> {
        let loaded = self.loaded();
        client_builder(loaded.roots, expected.clone())
            .with_client_auth_cert(loaded.certificates, loaded.key.clone_key())
            .map(with_h2)
            .map_err(|e| configuration(&self.files.cert_file, e))
    }

    /// TLS 1.3 for a connection to a server outside the fleet, known by its host name.
    pub(crate) fn named_client_config(&self) -> Result<ClientConfig, TlsError> {
        let loaded = self.loaded();
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| configuration(&self.files.cert_file, e))?
            .with_root_certificates(loaded.roots)
            .with_client_auth_cert(loaded.certificates, loaded.key.clone_key())
            .map(with_h2)
            .map_err(|e| configuration(&self.files.cert_file, e))
    }

    /// Reads the files again when their size or modification time has changed. Keeps what it had when the new
    /// ones are not usable.
    ///
    /// # Errors
    /// [`TlsError`] when changed files could not be used.
    pub fn reload(&self) -> Result<bool, TlsError> {
        if stamp(&self.files) == self.loaded().stamp {
            return Ok(false);
        }
        let loaded = Loaded::read(&self.files, &self.trust_domain)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(true)
    }

    /// Calls [`TlsIdentity::reload`] at an interval until shut down, logging once what it finds.
    pub async fn watch(self: Arc<Self>, every: Duration, shutdown: CancellationToken) {
        let mut failing = false;
        while shutdown.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            match self.reload() {
                Ok(true) => {
                    failing = false;
                    tracing::info!(id = %self.id(), "certificate files changed and were read again");
                }
                Ok(false) => {}
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "changed certificate files are not usable; the old ones stay in use");
                }
                Err(_) => {}
            }
        }
    }

    fn loaded(&self) -> Loaded {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Loaded {
    fn read(files: &TlsFiles, trust_domain: &str) -> Result<Self, TlsError> {
        // Taken before reading, so that a change during it is seen the next time.
        let stamp = stamp(files);
        let certificates = certificates("a certificate", &files.cert_file)?;
        let identity = |source| TlsError::Identity {
            path: files.cert_file.clone(),
            source,
        };
        let leaf = certificates
            .first()
            .ok_or_else(|| identity(IdentityError::UriCount(0)))?;
        let id = SpiffeId::from_certificate(leaf)
            .and_then(|id| id.within(trust_domain))
            .map_err(identity)?;
        let key = PrivateKeyDer::from_pem_file(&files.key_file).map_err(|source| TlsError::Read {
            what: "a private key",
            path: files.key_file.clone(),
            source,
        })?;
        let roots = read_roots(&files.ca_file)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|e| configuration(&files.ca_file, e))?;
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| configuration(&files.cert_file, e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates.clone(), key.clone_key())
            .map_err(|e| configuration(&files.cert_file, e))?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would outlive the certificate it was opened with.
        server.send_tls13_tickets = 0;
        Ok(Self {
            id,
            certificates,
            key: Arc::new(key),
            roots,
            server: Arc::new(server),
            stamp,
        })
    }
}

/// TLS 1.3 for a connection to exactly the service `expected`, presenting no certificate: for people's tools.
///
/// # Errors
/// [`TlsError::Read`] when the authorities cannot be read.
pub(crate) fn anonymous_client_config(ca_file: &Path, expected: &SpiffeId) -> Result<ClientConfig, TlsError> {
    let roots = read_roots(ca_file)?;
    Ok(with_h2(client_builder(roots, expected.clone()).with_no_client_auth()))
}

fn client_builder(
    roots: Arc<RootCertStore>,
    expected: SpiffeId,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let verifier = SpiffeVerifier {
        roots,
        expected,
        provider: provider(),
    };
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the ring provider has TLS 1.3 cipher suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
}

fn with_h2(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read_roots(ca_file: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("an authority's certificate", ca_file)? {
        roots.add(certificate).map_err(|e| configuration(ca_file, e))?;
    }
    Ok(Arc::new(roots))
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |source| TlsError::Read {
        what,
        path: path.to_owned(),
        source,
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(error)?
        .collect::<Result<_, _>>()
        .map_err(error)?;
    if found.is_empty() {
        return Err(error(rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn configuration(path: &Path, source: impl std::error::Error + Send + Sync + 'static) -> TlsError {
    TlsError::Configuration {
        path: path.to_owned(),
        source: Box::new(source),
    }
}

fn stamp(files: &TlsFiles) -> Vec<Option<(SystemTime, u64)>> {
    [&files.cert_file, &files.key_file, &files.ca_file]
        .into_iter()
        .map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
        .collect()
}

/// Accepts a server by its SPIFFE id instead of its DNS name: the chain must lead to our authority and the one
/// URI name must be the id we meant to reach. Source: SPIFFE X509-SVID, section 5.
#[derive(Debug)]
struct SpiffeVerifier {
    roots: Arc<RootCertStore>,
    expected: SpiffeId,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let refused = |reason: String| {
            rustls::Error::InvalidCertificate(rustls::CertificateError::Other(rustls::OtherError(Arc::new(
                WrongServer(reason),
            ))))
        };
        let found = SpiffeId::from_certificate(end_entity).map_err(|e| refused(e.to_string()))?;
        if found != self.expected {
            return Err(refused(format!("the server is {found}, not {}", self.expected)));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongServer(String);
