//! Who can prove which identity: trust bundles, and what Istio says of its mesh.

use std::collections::BTreeSet;

use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;
use x509_parser::{extensions::GeneralName, prelude::*};

/// Bytes of a bundle, or of Istio's configuration.
pub const LARGEST: usize = 1 << 20;
/// Keys of a bundle.
const KEYS: usize = 1_000;
/// Aliases of a trust domain.
const ALIASES: usize = 64;

/// A trust bundle that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// How many authorities are in force.
    pub authorities: usize,
    /// Seconds since the epoch at which the last of them ends.
    pub expires: i64,
}

/// Reads the bundle of a trust domain at `now` (seconds since the epoch): a SPIFFE bundle (SPIFFE Trust Domain and Bundle,
/// section 4), or certificates in PEM. Authorities that are not in force, or that name another trust domain, do not count.
///
/// # Errors
/// In words, when it cannot be read, or no authority is left.
pub fn read_bundle(trust_domain: &str, bytes: &[u8], now: i64) -> Result<Bundle, String> {
    if bytes.len() > LARGEST {
        return Err(format!("it has {} bytes where at most {LARGEST} are read", bytes.len()));
    }
    let begins = bytes.iter().copied().find(|b| !b.is_ascii_whitespace());
    let certificates = if begins == Some(b'{') {
        keys(bytes)?
    } else {
        CertificateDer::pem_slice_iter(bytes)
            .take(KEYS + 1)
            .map(|certificate| certificate.map(|der| der.as_ref().to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("it is neither a SPIFFE bundle nor PEM: {error}"))?
    };
    if certificates.len() > KEYS {
        return Err(format!("it has more than {KEYS} authorities"));
    }
    if certificates.is_empty() {
        return Err("it has no X.509 authority".to_owned());
    }
    let mut bundle = Bundle {
        authorities: 0,
        expires: i64::MIN,
    };
    let mut why = String::new();
    for (i, der) in certificates.iter().enumerate() {
        match authority(trust_domain, der, now) {
            Ok(expires) => {
                bundle.authorities += 1;
                bundle.expires = bundle.expires.max(expires);
            }
            Err(reason) => why = format!("authority {i}: {reason}"),
        }
    }
    if bundle.authorities == 0 {
        return Err(why);
    }
    Ok(bundle)
}

fn keys(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let set: Value = serde_json::from_slice(bytes).map_err(|error| format!("it is not JSON: {error}"))?;
    let keys = set.get("keys").and_then(Value::as_array).ok_or("it has no `keys`")?;
    if keys.len() > KEYS {
        return Err(format!("it has more than {KEYS} keys"));
    }
    let mut all = Vec::new();
    for (i, key) in keys.iter().enumerate() {
        // Other uses, such as `jwt-svid`, are for others.
        if key.get("use").and_then(Value::as_str) != Some("x509-svid") {
            continue;
        }
        let chain = key
            .get("x5c")
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let [Value::String(text)] = chain else {
            return Err(format!("keys[{i}].x5c is not one certificate"));
        };
        let der = serde_json::from_value::<k8s_openapi::ByteString>(Value::String(text.clone()));
        all.push(der.map_err(|_| format!("keys[{i}].x5c[0] is not base64"))?.0);
    }
    Ok(all)
}

/// When an authority ends.
fn authority(trust_domain: &str, der: &[u8], now: i64) -> Result<i64, String> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|error| format!("it is no certificate: {error}"))?;
    if !rest.is_empty() {
        return Err("something follows the certificate".to_owned());
    }
    if !certificate.is_ca() {
        return Err("it is not the certificate of an authority".to_owned());
    }
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| error.to_string())?;
    let own = format!("spiffe://{trust_domain}");
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        if let GeneralName::URI(uri) = name
            && uri.starts_with("spiffe://")
            && uri.trim_end_matches('/') != own
        {
            return Err(format!("it is of {uri}"));
        }
    }
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    if now < from || now >= until {
        return Err("it is not in force".to_owned());
    }
    Ok(until)
}

/// What a mesh is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshName {
    /// The trust domain.
    pub trust_domain: String,
    /// Other names for it.
    pub aliases: BTreeSet<String>,
}

/// Reads Istio's `mesh` configuration, as its ConfigMap has it.
///
/// # Errors
/// In words, when it cannot be read.
pub fn read_mesh(text: &str) -> Result<MeshName, String> {
    if text.len() > LARGEST {
        return Err(format!("it has {} bytes where at most {LARGEST} are read", text.len()));
    }
    let mesh: Value = serde_saphyr::from_str(text).map_err(|error| format!("it is not YAML: {error}"))?;
    let mesh = mesh.as_object().ok_or("it is not a mapping")?;
    let domain = match mesh.get("trustDomain") {
        // As Istio has it without a word.
        None | Some(Value::Null) => "cluster.local",
        Some(Value::String(text)) if !text.is_empty() => text,
        Some(_) => return Err("trustDomain is not a text".to_owned()),
    };
    let aliases = match mesh.get("trustDomainAliases") {
        None | Some(Value::Null) => BTreeSet::new(),
        Some(Value::Array(list)) if list.len() <= ALIASES => list
            .iter()
            .map(|alias| {
                alias
                    .as_str()
                    .map(str::to_owned)
                    .ok_or("trustDomainAliases are not texts")
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(format!("trustDomainAliases is not a list of at most {ALIASES}")),
    };
    Ok(MeshName {
        trust_domain: domain.to_owned(),
        aliases,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::authority;

    fn jwk(pem: &str) -> String {
        pem.lines().filter(|line| !line.starts_with("-----")).collect()
    }

    #[test]
    fn bundles_are_read_in_both_forms() {
        let made = authority::create(&["a".to_owned()], 1, 2_000_000_000).unwrap();
        let now = 2_000_000_100;
        let pem = read_bundle("partner.example", made.bundle.as_bytes(), now).unwrap();
        assert_eq!(pem.authorities, 1);
        let set = format!(
            r#"{{"keys": [{{"use": "jwt-svid", "kty": "EC"}}, {{"use": "x509-svid", "kty": "EC", "x5c": ["{}"]}}], "spiffe_sequence": 3}}"#,
            jwk(&made.bundle)
        );
        assert_eq!(read_bundle("partner.example", set.as_bytes(), now), Ok(pem.clone()));
        assert!(pem.expires > now);
        let late = read_bundle("partner.example", set.as_bytes(), pem.expires).unwrap_err();
        assert!(late.contains("in force"), "{late}");
        // A certificate that signs nothing is no authority.
        let leaf = read_bundle("partner.example", made.certificate.as_bytes(), now).unwrap_err();
        assert!(leaf.contains("authority"), "{leaf}");
    }

    #[test]
    fn odd_bundles_are_refused() {
        for odd in [
            "",
            "{}",
            "{\"keys\": 3}",
            "{\"keys\": []}",
            "{\"keys\": [{\"use\": \"x509-svid\"}]}",
            "{\"keys\": [{\"use\": \"x509-svid\", \"x5c\": [\"!\"]}]}",
            "{\"keys\": [{\"use\": \"x509-svid\", \"x5c\": [\"AAAA\"]}]}",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "-----BEGIN CERTIFICATE-----\n",
        ] {
            assert!(read_bundle("a", odd.as_bytes(), 0).is_err(), "{odd}");
        }
        assert!(read_bundle("a", &vec![b' '; LARGEST + 1], 0).is_err());
    }

    #[test]
    fn istio_says_what_its_mesh_is_called() {
        let mesh =
            read_mesh("accessLogFile: /dev/stdout\ntrustDomain: prod.example\ntrustDomainAliases: [old.example]\n")
                .unwrap();
        assert_eq!(mesh.trust_domain, "prod.example");
        assert!(mesh.aliases.contains("old.example"));
        assert_eq!(
            read_mesh("enableTracing: true\n").unwrap().trust_domain,
            "cluster.local"
        );
        for odd in [
            "[]",
            "trustDomain: 3",
            "trustDomainAliases: x",
            "trustDomainAliases: [1]",
            "a: [",
        ] {
            assert!(read_mesh(odd).is_err(), "{odd}");
        }
    }
}
