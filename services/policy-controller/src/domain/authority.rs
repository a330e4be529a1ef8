//! The authority that the controllers keep for their own webhook: what is made, and when it is due again.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::*;

/// How long an authority is in force, in hours: ten years.
const AUTHORITY_HOURS: i64 = 10 * 365 * 24;
/// Clocks differ.
const SKEW: i64 = 300;
const HOUR: i64 = 3_600;

/// The authority, and the certificate that is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Material {
    /// The authorities, PEM: the one that signs first, those before it while something of them may be in use.
    pub bundle: String,
    /// The key of the authority that signs, PEM.
    pub authority_key: String,
    /// The certificate that is shown, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
}

/// What is to be made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// The certificate.
    Certificate,
    /// The authority. The certificate follows when everybody knows the new one.
    Authority,
}

/// Everything anew. `hours` is how long the certificate is in force, `now` in seconds since the epoch.
///
/// # Errors
/// In words, when a name cannot be in a certificate.
pub fn create(names: &[String], hours: u32, now: i64) -> Result<Material, String> {
    let (bundle, authority_key) = authority(now)?;
    renew(
        &Material {
            bundle,
            authority_key,
            certificate: String::new(),
            key: String::new(),
        },
        names,
        hours,
        now,
    )
}

/// What is due at `now`. A certificate is when a third of its time is left, or when it has other names; an authority
/// when four times the certificate's time is left.
///
/// # Errors
/// In words, when the material cannot be read.
pub fn due(material: &Material, names: &[String], hours: u32, now: i64) -> Result<Due, String> {
    let life = i64::from(hours) * HOUR;
    let authorities = read(&material.bundle)?;
    let signing = authorities.first().ok_or("there is no authority")?;
    let shown = read(&material.certificate)?;
    let shown = shown.first().ok_or("there is no certificate")?;
    let mut wanted: Vec<String> = names.to_vec();
    wanted.sort();
    if shown.until - now <= life / 3 || shown.names != wanted {
        // Only what is signed by an authority that everybody knows already is shown.
        return Ok(Due::Certificate);
    }
    if signing.until - now <= life.saturating_mul(4).min(AUTHORITY_HOURS * HOUR / 2) {
        return Ok(Due::Authority);
    }
    Ok(Due::Nothing)
}

/// With a new certificate. Authorities that are not in force any more are left out.
///
/// # Errors
/// In words, when the material cannot be read.
pub fn renew(material: &Material, names: &[String], hours: u32, now: i64) -> Result<Material, String> {
    let authorities = read(&material.bundle)?;
    let signing = authorities.first().ok_or("there is no authority")?;
    let authority_key =
        KeyPair::from_pem(&material.authority_key).map_err(|error| format!("the authority's key: {error}"))?;
    let params = authority_params(&signing.common_name, signing.from, signing.until)?;
    let issuer = Issuer::from_params(&params, &authority_key);
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = named("policy-controller");
    for name in names {
        leaf.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(
                name.as_str()
                    .try_into()
                    .map_err(|_| format!("{name:?} cannot be in a certificate"))?,
            ),
        });
    }
    within(
        &mut leaf,
        now - SKEW,
        (now + i64::from(hours) * HOUR).min(signing.until),
    )?;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    let certificate = leaf.signed_by(&key, &issuer).map_err(|error| error.to_string())?;
    let known = authorities.iter().filter(|authority| authority.until > now);
    Ok(Material {
        bundle: known.map(|authority| authority.pem.as_str()).collect(),
        authority_key: material.authority_key.clone(),
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

/// With a new authority before those that are known. The certificate stays as it is.
///
/// # Errors
/// In words, when none can be made.
pub fn replace(material: &Material, now: i64) -> Result<Material, String> {
    let (authority, authority_key) = authority(now)?;
    Ok(Material {
        bundle: format!("{authority}{}", material.bundle),
        authority_key,
        ..material.clone()
    })
}

/// When the certificate ends, seconds since the epoch.
///
/// # Errors
/// In words, when it cannot be read.
pub fn expires(certificate: &str) -> Result<i64, String> {
    read(certificate)?
        .first()
        .map(|certificate| certificate.until)
        .ok_or_else(|| "there is no certificate".to_owned())
}

fn authority(now: i64) -> Result<(String, String), String> {
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    // Authorities of different times have different names, so that no one mistakes one for another.
    let name = format!("Garrison policy controller {now}");
    let params = authority_params(&name, now - SKEW, now + AUTHORITY_HOURS * HOUR)?;
    let certificate = params.self_signed(&key).map_err(|error| error.to_string())?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn authority_params(name: &str, from: i64, until: i64) -> Result<CertificateParams, String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    within(&mut params, from, until)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn within(params: &mut CertificateParams, from: i64, until: i64) -> Result<(), String> {
    let time = |seconds| ASN1Time::from_timestamp(seconds).map_err(|error| error.to_string());
    params.not_before = time(from)?.to_datetime();
    params.not_after = time(until)?.to_datetime();
    Ok(())
}

/// A certificate, as far as it matters here.
struct Read {
    pem: String,
    common_name: String,
    from: i64,
    until: i64,
    names: Vec<String>,
}

fn read(pem: &str) -> Result<Vec<Read>, String> {
    let mut all = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let der = certificate.map_err(|error| error.to_string())?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
        let common_name = certificate.subject().iter_common_name().next();
        let alternative = certificate
            .subject_alternative_name()
            .map_err(|error| error.to_string())?;
        let mut names: Vec<String> = alternative
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                GeneralName::IPAddress(bytes) => match **bytes {
                    [a, b, c, d] => Some(IpAddr::from([a, b, c, d]).to_string()),
                    _ => Some(IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
                },
                _ => None,
            })
            .collect();
        names.sort();
        all.push(Read {
            pem: written(&der),
            common_name: common_name
                .and_then(|name| name.as_str().ok())
                .unwrap_or_default()
                .to_owned(),
            from: certificate.validity().not_before.timestamp(),
            until: certificate.validity().not_after.timestamp(),
            names,
        });
    }
    Ok(all)
}

/// PEM as RFC 7468 has it.
fn written(der: &[u8]) -> String {
    let encoded = serde_json::to_value(k8s_openapi::ByteString(der.to_vec())).unwrap_or_default();
    let text = encoded.as_str().unwrap_or_default();
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_900_000_000;

    fn names() -> Vec<String> {
        vec!["policy-controller.garrison.svc".to_owned(), "127.0.0.1".to_owned()]
    }

    /// Whether the shown certificate is of one of the authorities, as a client decides it.
    fn verifies(material: &Material, now: i64) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(material.bundle.as_bytes()) {
            roots.add(authority.unwrap()).unwrap();
        }
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
            .build()
            .unwrap();
        let shown = CertificateDer::from_pem_slice(material.certificate.as_bytes()).unwrap();
        let name = rustls_pki_types::ServerName::try_from("policy-controller.garrison.svc").unwrap();
        let now = rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.unsigned_abs()));
        use rustls::client::danger::ServerCertVerifier as _;
        verifier.verify_server_cert(&shown, &[], &name, &[], now).is_ok()
    }

    #[test]
    fn a_certificate_is_renewed_in_time_and_for_other_names() {
        let made = create(&names(), 24, NOW).unwrap();
        assert!(verifies(&made, NOW));
        assert!(!verifies(&made, NOW + 25 * HOUR));
        assert_eq!(due(&made, &names(), 24, NOW), Ok(Due::Nothing));
        assert_eq!(due(&made, &names(), 24, NOW + 16 * HOUR), Ok(Due::Certificate));
        assert_eq!(due(&made, &["other".to_owned()], 24, NOW), Ok(Due::Certificate));
        let later = renew(&made, &names(), 24, NOW + 16 * HOUR).unwrap();
        assert!(verifies(&later, NOW + 30 * HOUR));
        assert_eq!(later.bundle, made.bundle);
        assert_ne!(later.key, made.key);
    }

    #[test]
    fn an_authority_is_followed_by_another_that_everybody_knows_first() {
        let made = create(&names(), 24, NOW).unwrap();
        let end = NOW + AUTHORITY_HOURS * HOUR;
        let late = renew(&made, &names(), 24, end - 96 * HOUR).unwrap();
        assert_eq!(due(&late, &names(), 24, end - 96 * HOUR), Ok(Due::Authority));
        let both = replace(&late, end - 96 * HOUR).unwrap();
        assert_eq!(both.certificate, late.certificate);
        assert_eq!(read(&both.bundle).unwrap().len(), 2);
        assert!(verifies(&both, end - 95 * HOUR));
        // The next certificate is of the new one; the old one goes when it is over.
        let next = renew(&both, &names(), 24, end - 80 * HOUR).unwrap();
        assert!(verifies(&next, end - 79 * HOUR));
        assert_eq!(due(&next, &names(), 24, end - 80 * HOUR), Ok(Due::Nothing));
        let after = renew(&next, &names(), 24, end + HOUR).unwrap();
        assert_eq!(read(&after.bundle).unwrap().len(), 1);
        assert!(verifies(&after, end + 2 * HOUR));
    }

    #[test]
    fn odd_material_is_no_material() {
        let made = create(&names(), 24, NOW).unwrap();
        for (bundle, certificate) in [("", made.certificate.as_str()), (made.bundle.as_str(), ""), ("x", "x")] {
            let odd = Material {
                bundle: bundle.to_owned(),
                certificate: certificate.to_owned(),
                ..made.clone()
            };
            assert!(due(&odd, &names(), 24, NOW).is_err());
        }
        let keyless = Material {
            authority_key: "x".to_owned(),
            ..made
        };
        assert!(renew(&keyless, &names(), 24, NOW).is_err());
        assert!(create(&["ä".to_owned()], 24, NOW).is_err());
    }
}
