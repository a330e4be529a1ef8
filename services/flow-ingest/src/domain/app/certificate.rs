//! The server's certificate as TLS up to 1.2 shows it (RFC 5280).

use sha2::{Digest as _, Sha256};
use x509_parser::{certificate::X509CertificateParser, nom::Parser as _};

use super::tls::hex;

/// What is told about a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// Distinguished name of its subject, cut at 256 characters.
    pub subject: Option<String>,
    /// Distinguished name of its issuer, cut at 256 characters.
    pub issuer: Option<String>,
    /// Beginning of its validity, nanoseconds since the epoch, UTC.
    pub not_before: Option<i64>,
    /// End of its validity, in the same terms.
    pub not_after: Option<i64>,
    /// SHA-256 of its octets, hexadecimal.
    pub sha256: String,
    /// Its issuer is its subject. The signature is not verified.
    pub self_signed: bool,
}

const LONGEST_NAME: usize = 256;

impl Certificate {
    /// Reads a certificate. `None` where the octets are no certificate.
    pub fn read(der: &[u8]) -> Option<Self> {
        // What extensions say is not told, so they are only passed over.
        let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
        let (_, certificate) = parser.parse(der).ok()?;
        let nanoseconds = |seconds: i64| seconds.checked_mul(1_000_000_000);
        Some(Self {
            subject: name(certificate.subject()),
            issuer: name(certificate.issuer()),
            not_before: nanoseconds(certificate.validity().not_before.timestamp()),
            not_after: nanoseconds(certificate.validity().not_after.timestamp()),
            sha256: hex(&Sha256::digest(der)),
            self_signed: certificate.subject().as_raw() == certificate.issuer().as_raw(),
        })
    }
}

fn name(name: &x509_parser::x509::X509Name<'_>) -> Option<String> {
    let text: String = name
        .to_string()
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(LONGEST_NAME)
        .collect();
    (!text.is_empty()).then_some(text)
}
