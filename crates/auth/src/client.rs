//! Channels to services of the fleet.

use std::{path::Path, sync::Arc, time::Duration};

use garrison_proto::TenantId;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tonic::{
    metadata::AsciiMetadataValue,
    service::Interceptor,
    transport::{Channel, Endpoint},
};

use crate::{
    identity::SpiffeId,
    layer::TENANT_METADATA,
    tls::{TlsError, TlsIdentity, anonymous_client_config},
};

/// How long a connection attempt may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an idle connection is probed, so that a dead peer is noticed before a call needs it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// An endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Not of the form `https://host:port`.
    #[error("{endpoint:?} is not an endpoint of the form https://host:port: {reason}")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The TLS configuration cannot be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A lazy channel to the service `expected` with this service's own identity. Certificates are taken afresh for
/// every connection. Connecting happens at the first call and again whenever the connection is lost.
///
/// Calls have no deadline of their own: set one per request, or with [`deadline`].
///
/// # Errors
/// [`ChannelError`] for an endpoint that is not `https://host:port`.
pub fn channel(identity: &Arc<TlsIdentity>, endpoint: &str, expected: &SpiffeId) -> Result<Channel, ChannelError> {
    let identity = Arc::clone(identity);
    let expected = expected.clone();
    connect(endpoint, move || identity.client_config(&expected).map(Arc::new))
}

/// A lazy channel without a client certificate, for tools of people who come with a token.
///
/// # Errors
/// [`ChannelError`] for an endpoint that is not `https://host:port` or an unreadable authority.
pub fn anonymous_channel(ca_file: &Path, endpoint: &str, expected: &SpiffeId) -> Result<Channel, ChannelError> {
    let config = Arc::new(anonymous_client_config(ca_file, expected)?);
    connect(endpoint, move || Ok(Arc::clone(&config)))
}

/// A lazy channel to a server outside the fleet, such as a telemetry collector: its certificate must carry the
/// endpoint's host name and lead to one of our authorities. This identity's certificate is presented.
///
/// # Errors
/// [`ChannelError`] for an endpoint that is not `https://host:port`.
pub fn named_channel(identity: &Arc<TlsIdentity>, endpoint: &str) -> Result<Channel, ChannelError> {
    let identity = Arc::clone(identity);
    connect(endpoint, move || identity.named_client_config().map(Arc::new))
}

fn connect<F>(endpoint: &str, config: F) -> Result<Channel, ChannelError>
where
    F: Fn() -> Result<Arc<ClientConfig>, TlsError> + Clone + Send + Sync + 'static,
{
    let bad = |reason: &str| ChannelError::Endpoint {
        endpoint: endpoint.to_owned(),
        reason: reason.to_owned(),
    };
    let uri: Uri = endpoint
        .parse()
        .map_err(|e: http::uri::InvalidUri| bad(&e.to_string()))?;
    if uri.scheme_str() != Some("https") {
        return Err(bad("only https is spoken; there is no plaintext mode"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(bad("it has a path"));
    }
    let host = uri.host().ok_or_else(|| bad("it names no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let name = ServerName::try_from(host.clone()).map_err(|e| bad(&e.to_string()))?;
    let authority = uri.authority().map(|a| a.as_str()).unwrap_or_default();

    let connector = tower::service_fn(move |_: Uri| {
        let (host, name, config) = (host.clone(), name.clone(), config.clone());
        async move {
            let tls = tokio_rustls::TlsConnector::from(config().map_err(std::io::Error::other)?);
            let connecting = async {
                let tcp = TcpStream::connect((host.as_str(), port)).await?;
                tcp.set_nodelay(true)?;
                tls.connect(name, tcp).await
            };
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await??;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    // The connector speaks TLS itself; the plain scheme keeps tonic from asking for a second layer.
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|e| bad(&e.to_string()))?
        .origin(uri.clone())
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// An interceptor that asks for a tenant, for calls of one service to another.
pub fn for_tenant(tenant: &TenantId) -> ForTenant {
    let value = tenant.as_str().parse().expect("a tenant id is ASCII");
    ForTenant { value }
}

/// Puts the `garrison-tenant` metadata on every call. See [`for_tenant`].
#[derive(Debug, Clone)]
pub struct ForTenant {
    value: AsciiMetadataValue,
}

impl Interceptor for ForTenant {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert(TENANT_METADATA, self.value.clone());
        Ok(request)
    }
}

/// A request that gives up after `limit`, and tells the server so.
pub fn deadline<T>(message: T, limit: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(limit);
    request
}
