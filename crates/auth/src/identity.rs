use std::{fmt, str::FromStr};

use x509_parser::{extensions::GeneralName, prelude::FromDer};

/// A SPIFFE id of the fleet: `spiffe://<trust domain>/svc/<name>` or `…/enforcer/<node>`.
///
/// Source: the SPIFFE-ID and X509-SVID standards. A certificate carries exactly one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    trust_domain: String,
    role: Role,
}

/// What a SPIFFE id's path names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// A service of the fleet.
    Service(String),
    /// A node agent, by the node's name.
    Enforcer(String),
}

/// A certificate or text holds no SPIFFE id of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not of the form the fleet uses.
    #[error(
        "{0:?} is not a SPIFFE id of the form spiffe://<trust domain>/svc/<name> or spiffe://<trust domain>/enforcer/<node>"
    )]
    Form(String),
    /// The certificate cannot be read.
    #[error("the certificate cannot be parsed: {0}")]
    Certificate(String),
    /// X509-SVID demands exactly one URI among the subject alternative names.
    #[error("the certificate has {0} URI subject alternative names; exactly one SPIFFE id is needed")]
    UriCount(usize),
    /// The id is of another trust domain.
    #[error("{id} is not of the trust domain {expected}")]
    TrustDomain {
        /// The id found.
        id: SpiffeId,
        /// The trust domain wanted.
        expected: String,
    },
}

/// Longest SPIFFE id the standard allows, in bytes.
const MAX_LENGTH: usize = 2048;

impl SpiffeId {
    /// The id of a service.
    ///
    /// # Errors
    /// [`IdentityError::Form`] when the trust domain or name holds characters SPIFFE does not allow.
    pub fn service(trust_domain: &str, name: &str) -> Result<Self, IdentityError> {
        format!("spiffe://{trust_domain}/svc/{name}").parse()
    }

    /// The id of a node agent.
    ///
    /// # Errors
    /// [`IdentityError::Form`] when the trust domain or node holds characters SPIFFE does not allow.
    pub fn enforcer(trust_domain: &str, node: &str) -> Result<Self, IdentityError> {
        format!("spiffe://{trust_domain}/enforcer/{node}").parse()
    }

    /// Reads the id from a certificate's URI subject alternative name, of which there must be exactly one.
    ///
    /// # Errors
    /// [`IdentityError`] when the certificate cannot be read, has none or several URIs, or the URI is no id of
    /// the fleet.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der)
            .map_err(|e| IdentityError::Certificate(e.to_string()))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|e| IdentityError::Certificate(e.to_string()))?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        match uris.as_slice() {
            [uri] => uri.parse(),
            several => Err(IdentityError::UriCount(several.len())),
        }
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// What the path names.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// Refuses an id of another trust domain.
    ///
    /// # Errors
    /// [`IdentityError::TrustDomain`].
    pub fn within(self, trust_domain: &str) -> Result<Self, IdentityError> {
        if self.trust_domain == trust_domain {
            Ok(self)
        } else {
            Err(IdentityError::TrustDomain {
                id: self,
                expected: trust_domain.to_owned(),
            })
        }
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || IdentityError::Form(text.chars().take(200).collect());
        if text.len() > MAX_LENGTH {
            return Err(bad());
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(bad)?;
        let mut parts = rest.split('/');
        let (trust_domain, kind, name) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(trust_domain), Some(kind), Some(name), None) => (trust_domain, kind, name),
            _ => return Err(bad()),
        };
        let domain_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        let path_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let domain_valid = (1..=255).contains(&trust_domain.len()) && trust_domain.bytes().all(domain_byte);
        let name_valid = (1..=255).contains(&name.len()) && name.bytes().all(path_byte) && name != "." && name != "..";
        if !domain_valid || !name_valid {
            return Err(bad());
        }
        let role = match kind {
            "svc" => Role::Service(name.to_owned()),
            "enforcer" => Role::Enforcer(name.to_owned()),
            _ => return Err(bad()),
        };
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            role,
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = match &self.role {
            Role::Service(name) => ("svc", name),
            Role::Enforcer(node) => ("enforcer", node),
        };
        write!(f, "spiffe://{}/{kind}/{name}", self.trust_domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_ids_back() {
        for id in [
            "spiffe://garrison.local/svc/flow-ingest",
            "spiffe://a/enforcer/Router_1.lab",
        ] {
            assert_eq!(id.parse::<SpiffeId>().map(|id| id.to_string()), Ok(id.to_owned()));
        }
    }

    #[test]
    fn refuses_every_other_form() {
        for bad in [
            "",
            "https://garrison.local/svc/iam",
            "spiffe://garrison.local",
            "spiffe://garrison.local/svc",
            "spiffe://garrison.local/svc/",
            "spiffe://garrison.local/svc/iam/extra",
            "spiffe://garrison.local/user/iam",
            "spiffe://Garrison.local/svc/iam",
            "spiffe://garrison.local:443/svc/iam",
            "spiffe://user@garrison.local/svc/iam",
            "spiffe:///svc/iam",
            "spiffe://garrison.local/svc/..",
            "spiffe://garrison.local/svc/i%61m",
            "spiffe://garrison.local/svc/iam?x=1",
            "SPIFFE://garrison.local/svc/iam",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn holds_to_the_trust_domain() {
        let id: SpiffeId = "spiffe://other/svc/iam".parse().unwrap();
        assert!(id.clone().within("other").is_ok());
        assert!(matches!(
            id.within("garrison.local"),
            Err(IdentityError::TrustDomain { .. })
        ));
    }

    #[test]
    fn garbage_is_no_certificate() {
        assert!(matches!(
            SpiffeId::from_certificate(b"\x30\x03abc"),
            Err(IdentityError::Certificate(_))
        ));
    }

    proptest::proptest! {
        #[test]
        fn never_panics_on_any_text(text in ".{0,200}") {
            let _ = text.parse::<SpiffeId>();
        }
    }
}
