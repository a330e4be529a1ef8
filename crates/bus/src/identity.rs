//! Who this process is on the bus, from its own certificate.

use std::path::Path;

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{BusConfig, BusError};

/// The token that names a SPIFFE path in inbox subjects: `svc/anomaly` becomes `svc-anomaly`.
pub(crate) fn inbox_token(spiffe_path: &str) -> String {
    spiffe_path.replace('/', "-")
}

/// Checks the three files and reads the SPIFFE path (`svc/anomaly`) from the certificate.
///
/// The client reads them again on every connect, so a rotated certificate is picked up; checking them here
/// turns a mistake into an error at start instead of an endless reconnect.
pub(crate) fn load(config: &BusConfig) -> Result<String, BusError> {
    let authorities = certificates("authority file (ca_file)", &config.ca_file)?;
    if authorities.is_empty() {
        return Err(unusable(
            "authority file (ca_file)",
            &config.ca_file,
            "it holds no certificate",
        ));
    }
    let chain = certificates("certificate (cert_file)", &config.cert_file)?;
    let Some(leaf) = chain.first() else {
        return Err(unusable(
            "certificate (cert_file)",
            &config.cert_file,
            "it holds no certificate",
        ));
    };
    PrivateKeyDer::from_pem_file(&config.key_file)
        .map_err(|error| unusable("private key (key_file)", &config.key_file, error))?;
    spiffe_path(leaf).map_err(|reason| unusable("certificate (cert_file)", &config.cert_file, reason))
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, BusError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(what, path, error))
}

fn unusable(what: &'static str, path: &Path, reason: impl ToString) -> BusError {
    BusError::Identity {
        what,
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

fn spiffe_path(leaf: &CertificateDer<'_>) -> Result<String, String> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| error.to_string())?
        .ok_or("it has no subject alternative name")?;
    let mut ids = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
        _ => None,
    });
    // SPIFFE X.509-SVID, section 2: exactly one URI.
    let id = ids.next().ok_or("it carries no SPIFFE id")?;
    if ids.next().is_some() {
        return Err("it carries more than one SPIFFE id".to_owned());
    }
    let path = id.split_once('/').map_or("", |(_, path)| path);
    let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_');
    if path.is_empty() || !path.bytes().all(safe) {
        return Err(format!(
            "the path of its SPIFFE id {id:?} is empty or has unsafe characters"
        ));
    }
    Ok(path.to_owned())
}
