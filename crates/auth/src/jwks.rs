use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

/// Longest key set that is read, in bytes.
const MAX_JSON: usize = 64 * 1024;
/// Most keys that are taken from one set.
const MAX_KEYS: usize = 32;
/// Longest key id, in bytes.
pub(crate) const MAX_KEY_ID: usize = 128;

/// An Ed25519 public key with its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// The `kid` by which tokens name it.
    pub id: String,
    /// The key, RFC 8032.
    pub bytes: [u8; 32],
}

/// Token verification keys, as a JSON Web Key Set (RFC 7517) of Ed25519 keys (RFC 8037).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JwkSet {
    /// The keys; ids are unique.
    pub keys: Vec<PublicKey>,
}

/// A key set cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    /// Larger than anything iam publishes.
    #[error("the key set is larger than {MAX_JSON} bytes or has more than {MAX_KEYS} keys")]
    TooLarge,
    /// Not JSON of the form RFC 7517 gives.
    #[error("the key set is not a JWKS: {0}")]
    Form(#[from] serde_json::Error),
    /// A key that is not an Ed25519 signing key with an id.
    #[error("key {id:?} of the key set: {reason}")]
    Key {
        /// Its id, as far as it has one.
        id: String,
        /// What is wrong.
        reason: &'static str,
    },
}

#[derive(Serialize, Deserialize)]
struct Document {
    keys: Vec<Jwk>,
}

#[derive(Serialize, Deserialize)]
struct Jwk {
    kty: String,
    crv: String,
    #[serde(rename = "use", default, skip_serializing_if = "Option::is_none")]
    usage: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alg: Option<String>,
    kid: String,
    x: String,
}

impl JwkSet {
    /// Reads a key set. Every key must be an Ed25519 signing key: a set with anything else is not iam's.
    ///
    /// # Errors
    /// [`JwksError`].
    pub fn from_json(json: &str) -> Result<Self, JwksError> {
        if json.len() > MAX_JSON {
            return Err(JwksError::TooLarge);
        }
        let document: Document = serde_json::from_str(json)?;
        if document.keys.len() > MAX_KEYS {
            return Err(JwksError::TooLarge);
        }
        let mut keys: Vec<PublicKey> = Vec::with_capacity(document.keys.len());
        for jwk in document.keys {
            let key = jwk.read()?;
            if keys.iter().any(|other| other.id == key.id) {
                return Err(JwksError::Key {
                    id: key.id,
                    reason: "the id occurs twice",
                });
            }
            keys.push(key);
        }
        Ok(Self { keys })
    }

    /// The set as JSON.
    pub fn to_json(&self) -> String {
        let keys = self
            .keys
            .iter()
            .map(|key| Jwk {
                kty: "OKP".to_owned(),
                crv: "Ed25519".to_owned(),
                usage: Some("sig".to_owned()),
                alg: Some("EdDSA".to_owned()),
                kid: key.id.clone(),
                x: URL_SAFE_NO_PAD.encode(key.bytes),
            })
            .collect();
        serde_json::to_string(&Document { keys }).expect("strings serialise")
    }
}

impl Jwk {
    fn read(self) -> Result<PublicKey, JwksError> {
        let bad = |reason| JwksError::Key {
            id: self.kid.chars().take(MAX_KEY_ID).collect(),
            reason,
        };
        if self.kid.is_empty() || self.kid.len() > MAX_KEY_ID {
            return Err(bad("the id is empty or too long"));
        }
        if self.kty != "OKP" || self.crv != "Ed25519" {
            return Err(bad("only kty OKP with crv Ed25519 is known"));
        }
        if self.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return Err(bad("its use is not sig"));
        }
        if self.alg.as_deref().is_some_and(|alg| alg != "EdDSA") {
            return Err(bad("its alg is not EdDSA"));
        }
        let decoded = URL_SAFE_NO_PAD.decode(&self.x).map_err(|_| bad("x is not base64url"))?;
        let bytes = decoded.try_into().map_err(|_| bad("x is not 32 bytes"))?;
        Ok(PublicKey { id: self.kid, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_writes() {
        let set = JwkSet {
            keys: vec![
                PublicKey {
                    id: "a".into(),
                    bytes: [7; 32],
                },
                PublicKey {
                    id: "b".into(),
                    bytes: [9; 32],
                },
            ],
        };
        assert_eq!(JwkSet::from_json(&set.to_json()).unwrap(), set);
    }

    #[test]
    fn reads_the_example_key_of_rfc_8037() {
        let json =
            r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
        let set = JwkSet::from_json(json).unwrap();
        assert_eq!(set.keys[0].bytes[..4], [0xd7, 0x5a, 0x98, 0x01]);
    }

    #[test]
    fn refuses_other_keys() {
        let x = URL_SAFE_NO_PAD.encode([1u8; 32]);
        for bad in [
            "{}".to_owned(),
            "[]".to_owned(),
            format!(r#"{{"keys":[{{"kty":"RSA","crv":"Ed25519","kid":"k","x":"{x}"}}]}}"#),
            format!(r#"{{"keys":[{{"kty":"OKP","crv":"X25519","kid":"k","x":"{x}"}}]}}"#),
            format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"","x":"{x}"}}]}}"#),
            format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k","use":"enc","x":"{x}"}}]}}"#),
            format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k","alg":"HS256","x":"{x}"}}]}}"#),
            r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":"AAAA"}]}"#.to_owned(),
            format!(
                r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k","x":"{x}"}},{{"kty":"OKP","crv":"Ed25519","kid":"k","x":"{x}"}}]}}"#
            ),
            " ".repeat(MAX_JSON + 1),
        ] {
            assert!(
                JwkSet::from_json(&bad).is_err(),
                "taken: {}",
                &bad[..bad.len().min(100)]
            );
        }
    }
}
