//! Ed25519 keys in the forms that `openssl` reads and writes.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};

/// What precedes the 32 key bytes in an Ed25519 SubjectPublicKeyInfo (RFC 8410 §4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// A PEM file larger than this is no key.
const MAX_PEM: usize = 16 << 10;

/// A key could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text holds no PEM block of the wanted kind.
    #[error("no \"-----BEGIN {0}-----\" block was found")]
    NoPem(&'static str),
    /// The PEM block does not hold an Ed25519 key.
    #[error("the {0} block does not hold an Ed25519 key")]
    NotEd25519(&'static str),
    /// The system's random source failed.
    #[error("the system gave no random bytes for a new key")]
    Random,
}

impl KeyError {
    /// The stable code under `docs/errors/`.
    pub fn code(&self) -> &'static str {
        "GAR-PROOF-0001"
    }
}

/// A private Ed25519 key.
pub struct SigningKey(Ed25519KeyPair);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.public().key_id())
    }
}

impl SigningKey {
    /// Reads a PKCS#8 PEM file, as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// [`KeyError`] when the text is no such file.
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, KeyError> {
        let der = pem_block(pem, "PRIVATE KEY")?;
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
            .map(Self)
            .map_err(|_| KeyError::NotEd25519("PRIVATE KEY"))
    }

    /// Makes a new key and returns it as a PKCS#8 PEM file.
    ///
    /// # Errors
    /// [`KeyError::Random`] when the system has no random bytes.
    pub fn generate_pkcs8_pem() -> Result<String, KeyError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Random)?;
        Ok(pem_text("PRIVATE KEY", document.as_ref()))
    }

    /// The key that verifies.
    pub fn public(&self) -> PublicKey {
        let mut key = [0; 32];
        key.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(key)
    }

    /// Signs (RFC 8032, pure Ed25519).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.0.sign(message).as_ref());
        signature
    }
}

/// A public Ed25519 key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo PEM file, as `openssl pkey -pubout` writes it.
    ///
    /// # Errors
    /// [`KeyError`] when the text is no such file.
    pub fn from_spki_pem(pem: &str) -> Result<Self, KeyError> {
        let der = pem_block(pem, "PUBLIC KEY")?;
        der.strip_prefix(&SPKI_PREFIX)
            .and_then(|key| key.try_into().ok())
            .map(Self)
            .ok_or(KeyError::NotEd25519("PUBLIC KEY"))
    }

    /// The key as SubjectPublicKeyInfo in DER (RFC 8410).
    pub fn spki_der(&self) -> Vec<u8> {
        [&SPKI_PREFIX[..], &self.0].concat()
    }

    /// The key as a SubjectPublicKeyInfo PEM file.
    pub fn spki_pem(&self) -> String {
        pem_text("PUBLIC KEY", &self.spki_der())
    }

    /// SHA-256 of the DER form, hexadecimal: what
    /// `openssl pkey -pubin -in key.pem -outform DER | sha256sum` prints.
    pub fn key_id(&self) -> String {
        hex::encode(crate::sha256(&self.spki_der()))
    }

    /// Whether the signature is this key's over the message.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

fn pem_text(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let encoded = STANDARD.encode(der);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

fn pem_block(pem: &str, label: &'static str) -> Result<Vec<u8>, KeyError> {
    if pem.len() > MAX_PEM {
        return Err(KeyError::NoPem(label));
    }
    let body = pem
        .split_once(&format!("-----BEGIN {label}-----"))
        .and_then(|(_, rest)| rest.split_once(&format!("-----END {label}-----")))
        .map(|(body, _)| body.split_ascii_whitespace().collect::<String>())
        .ok_or(KeyError::NoPem(label))?;
    STANDARD.decode(body).map_err(|_| KeyError::NotEd25519(label))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_survives_its_files() {
        let pem = SigningKey::generate_pkcs8_pem().unwrap();
        let key = SigningKey::from_pkcs8_pem(&pem).unwrap();
        let public = PublicKey::from_spki_pem(&key.public().spki_pem()).unwrap();
        assert_eq!(public, key.public());
        let signature = key.sign(b"message");
        assert!(public.verify(b"message", &signature));
        assert!(!public.verify(b"massage", &signature));
    }

    #[test]
    fn reads_what_openssl_writes() {
        // `openssl genpkey -algorithm ed25519`, and its `openssl pkey -pubout`.
        let private = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        let key = SigningKey::from_pkcs8_pem(private).unwrap();
        assert_eq!(key.public().spki_pem(), public);
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(
            SigningKey::from_pkcs8_pem("").unwrap_err(),
            KeyError::NoPem("PRIVATE KEY")
        );
        let wrong = pem_text("PUBLIC KEY", &[1, 2, 3]);
        assert_eq!(
            PublicKey::from_spki_pem(&wrong).unwrap_err(),
            KeyError::NotEd25519("PUBLIC KEY")
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,300}") {
            let _ = PublicKey::from_spki_pem(&text);
            let _ = SigningKey::from_pkcs8_pem(&format!("-----BEGIN PRIVATE KEY-----{text}-----END PRIVATE KEY-----"));
        }
    }
}
