//! One GET over TLS: all that a TAXII client needs.

use std::{path::Path, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    header::{ACCEPT, AUTHORIZATION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

/// Longest wait for a connection, and for an answer.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

/// A server to ask.
pub(super) struct Server {
    host: String,
    port: u16,
    /// The path of the API root.
    pub(super) root: String,
    tls: TlsConnector,
    authorization: Option<String>,
}

/// What it answered.
pub(super) struct Answer {
    pub(super) body: Bytes,
    /// When the last object was added, as it says in a header.
    pub(super) added_last: Option<String>,
}

impl Server {
    /// From `https://host[:port]/root/` and the authorities that may have signed its certificate.
    pub(super) fn new(url: &str, ca_file: Option<&Path>, authorization: Option<String>) -> Result<Self, String> {
        let rest = url
            .strip_prefix("https://")
            .ok_or("the url does not begin with https://")?;
        let (authority, root) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
                (host, port)
            }
            _ => (authority, 443),
        };
        let mut roots = RootCertStore::empty();
        match ca_file {
            Some(path) => {
                let wrong = |e: &dyn std::fmt::Display| format!("ca_file {}: {e}", path.display());
                for certificate in CertificateDer::pem_file_iter(path).map_err(|e| wrong(&e))? {
                    let certificate = certificate.map_err(|e| wrong(&e))?;
                    roots.add(certificate).map_err(|e| wrong(&e))?;
                }
            }
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            root: root.to_owned(),
            tls: TlsConnector::from(Arc::new(config)),
            authorization,
        })
    }

    /// Asks for a path. Redirections are not followed: credentials go where the operator said.
    pub(super) async fn get(&self, path: &str, accept: &str, most: usize) -> Result<Answer, String> {
        let asked = format!("https://{}:{}{path}", self.host, self.port);
        tokio::time::timeout(PATIENCE.1, self.ask(path, accept, most))
            .await
            .unwrap_or_else(|_| Err("no answer within a minute".to_owned()))
            .map_err(|what| format!("GET {asked}: {what}"))
    }

    async fn ask(&self, path: &str, accept: &str, most: usize) -> Result<Answer, String> {
        let connect = TcpStream::connect((self.host.as_str(), self.port));
        let tcp = tokio::time::timeout(PATIENCE.0, connect)
            .await
            .map_err(|_| "no connection within ten seconds".to_owned())?
            .map_err(|e| e.to_string())?;
        let name = ServerName::try_from(self.host.clone()).map_err(|e| e.to_string())?;
        let stream = self.tls.connect(name, tcp).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        let driver = tokio::spawn(connection);
        let mut request = Request::get(path)
            .header(HOST, &self.host)
            .header(ACCEPT, accept)
            .header(USER_AGENT, concat!("garrison/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
        let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = answer.status();
        let header = |name: &str| {
            answer
                .headers()
                .get(name)
                .and_then(|v| v.to_str().ok())
                .map(str::to_owned)
        };
        let added_last = header(garrison_intel::feed::taxii::ADDED_LAST);
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(format!("{status}; check the feed's credentials"));
            }
            StatusCode::NOT_FOUND => return Err(format!("{status}; check the feed's url and collection")),
            StatusCode::NOT_ACCEPTABLE => return Err(format!("{status}; it may not speak TAXII 2.1")),
            _ => return Err(status.to_string()),
        }
        let body = Limited::new(answer.into_body(), most)
            .collect()
            .await
            .map_err(|e| format!("{e} (at most {most} bytes are read)"))?
            .to_bytes();
        driver.abort();
        Ok(Answer { body, added_last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let server = Server::new("https://taxii.example/api1/", None, None).unwrap();
        assert_eq!(
            (server.host.as_str(), server.port, server.root.as_str()),
            ("taxii.example", 443, "/api1/")
        );
        let server = Server::new("https://[::1]:8443", None, None).unwrap();
        assert_eq!(
            (server.host.as_str(), server.port, server.root.as_str()),
            ("::1", 8443, "")
        );
        for (url, why) in [("http://x/", "https://"), ("https://x:y/", "no port")] {
            assert!(Server::new(url, None, None).err().unwrap().contains(why));
        }
        let missing = Server::new("https://x/", Some(Path::new("/nonexistent")), None)
            .err()
            .unwrap();
        assert!(missing.contains("ca_file /nonexistent"));
    }
}
