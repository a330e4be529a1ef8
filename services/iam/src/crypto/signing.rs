use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use garrison_auth::{
    JwkSet, PublicKey,
    token::{Claims, sign},
};
use ring::{
    digest,
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};

use super::{Unsealable, Vault};

const PURPOSE: &str = "token signing key";

/// A token signing key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningKeyRow {
    /// JWK thumbprint (RFC 7638) of the public key.
    pub key_id: String,
    /// Ed25519 public key, 32 bytes.
    pub public_key: Vec<u8>,
    /// PKCS #8, sealed.
    pub private_key: Vec<u8>,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// Set when a younger key took over.
    pub verifies_until: Option<DateTime<Utc>>,
}

/// A key that signs tokens.
pub struct SigningKey {
    id: String,
    pair: Ed25519KeyPair,
}

/// The keys in use: one signs, all verify. Shared by every request and replaced as a whole.
#[derive(Debug, Clone, Default)]
pub struct SigningKeys {
    state: Arc<RwLock<State>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    signing: Option<Arc<SigningKey>>,
    published: JwkSet,
}

impl SigningKey {
    /// Makes a new key and its row.
    pub fn generate(vault: &Vault, now: DateTime<Utc>) -> SigningKeyRow {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .expect("the operating system's random generator works");
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a key just made can be read");
        let public_key = pair.public_key().as_ref().to_vec();
        let key_id = thumbprint(&public_key);
        SigningKeyRow {
            private_key: vault.seal(PURPOSE, &key_id, document.as_ref()),
            key_id,
            public_key,
            created: now,
            verifies_until: None,
        }
    }

    fn open(row: &SigningKeyRow, vault: &Vault) -> Result<Self, Unsealable> {
        let document = vault.open(PURPOSE, &row.key_id, &row.private_key)?;
        let pair = Ed25519KeyPair::from_pkcs8(&document).map_err(|_| Unsealable)?;
        Ok(Self {
            id: row.key_id.clone(),
            pair,
        })
    }

    /// Signs claims to an access token.
    pub fn sign(&self, claims: &Claims) -> String {
        sign(&self.pair, &self.id, claims)
    }

    /// The `kid` of its tokens.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.id)
    }
}

impl SigningKeys {
    /// Takes over the stored keys. The youngest that no other has replaced signs.
    ///
    /// # Errors
    /// [`Unsealable`] when the key file does not open the signing key; they stay as they were.
    pub fn replace(&self, rows: &[SigningKeyRow], vault: &Vault) -> Result<(), Unsealable> {
        let current = rows
            .iter()
            .filter(|row| row.verifies_until.is_none())
            .max_by_key(|row| row.created);
        let known = self
            .signing()
            .filter(|key| current.is_some_and(|row| row.key_id == key.id));
        let signing = match (known, current) {
            (Some(key), _) => Some(key),
            (None, Some(row)) => Some(Arc::new(SigningKey::open(row, vault)?)),
            (None, None) => None,
        };
        let keys = rows
            .iter()
            .filter_map(|row| {
                Some(PublicKey {
                    id: row.key_id.clone(),
                    bytes: row.public_key.as_slice().try_into().ok()?,
                })
            })
            .collect();
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = State {
            signing,
            published: JwkSet { keys },
        };
        Ok(())
    }

    /// The key that signs; `None` until the first load.
    pub fn signing(&self) -> Option<Arc<SigningKey>> {
        self.read(|state| state.signing.clone())
    }

    /// Every key that verifies.
    pub fn published(&self) -> JwkSet {
        self.read(|state| state.published.clone())
    }

    fn read<T>(&self, take: impl FnOnce(&State) -> T) -> T {
        take(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// RFC 7638 with the required members of RFC 8037: `crv`, `kty`, `x`, in this order and without spaces.
fn thumbprint(public_key: &[u8]) -> String {
    let jwk = format!(
        r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#,
        URL_SAFE_NO_PAD.encode(public_key)
    );
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, jwk.as_bytes()))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn thumbprint_agrees_with_rfc_8037() {
        // Appendix A.3.
        let x = URL_SAFE_NO_PAD
            .decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
            .unwrap();
        assert_eq!(thumbprint(&x), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn the_youngest_signs_and_all_verify() {
        let vault = Vault::with_key([1; 32]);
        let now = DateTime::UNIX_EPOCH;
        let mut old = SigningKey::generate(&vault, now);
        let ring = SigningKeys::default();
        assert!(ring.signing().is_none());
        ring.replace(std::slice::from_ref(&old), &vault).unwrap();
        assert_eq!(ring.signing().unwrap().id(), old.key_id);
        let new = SigningKey::generate(&vault, now + TimeDelta::days(1));
        old.verifies_until = Some(now + TimeDelta::days(2));
        ring.replace(&[old.clone(), new.clone()], &vault).unwrap();
        assert_eq!(ring.signing().unwrap().id(), new.key_id);
        let published: Vec<_> = ring.published().keys.into_iter().map(|key| key.id).collect();
        assert_eq!(published, [old.key_id, new.key_id]);
    }

    #[test]
    fn a_key_of_another_key_file_changes_nothing() {
        let (mine, foreign) = (Vault::with_key([1; 32]), Vault::with_key([2; 32]));
        let ring = SigningKeys::default();
        let row = SigningKey::generate(&mine, DateTime::UNIX_EPOCH);
        ring.replace(std::slice::from_ref(&row), &mine).unwrap();
        let other = SigningKey::generate(&foreign, DateTime::UNIX_EPOCH + TimeDelta::days(1));
        assert_eq!(ring.replace(&[other], &mine), Err(Unsealable));
        assert_eq!(ring.signing().unwrap().id(), row.key_id);
    }
}
