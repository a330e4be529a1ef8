use std::{
    fmt,
    path::{Path, PathBuf},
};

use ring::{
    aead::{self, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{self, HKDF_SHA256},
    hmac,
};
use zeroize::Zeroizing;

use super::random;

/// Seals secrets at rest with AES-256-GCM and makes MACs, both under keys derived from a key file (HKDF-SHA256).
///
/// A sealed value is `1 ‖ key id (4) ‖ nonce (12) ‖ ciphertext and tag`, bound to its purpose and owner, so that a value
/// copied to another row does not open. The first key seals; every key opens.
pub struct Vault {
    keys: Vec<VaultKey>,
}

struct VaultKey {
    id: [u8; 4],
    sealing: LessSafeKey,
    mac: hmac::Key,
}

/// A sealed value cannot be opened: the key file is another one, or the value was changed or moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no key of the key file opens the stored secret")]
pub struct Unsealable;

/// A key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("GAR-IAM-0015: the key file {path:?} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It holds something else.
    #[error(
        "GAR-IAM-0015: the key file {path:?} does not hold 32 bytes as 64 hexadecimal digits; make one with `openssl rand -hex 32`"
    )]
    Content {
        /// The file.
        path: PathBuf,
    },
}

const VERSION: u8 = 1;
const HEADER: usize = 1 + 4 + NONCE_LEN;

impl Vault {
    /// Reads the key file and the older ones that may still open values.
    ///
    /// # Errors
    /// [`KeyFileError`] when one cannot be read or does not hold 64 hexadecimal digits.
    pub fn load(current: &Path, older: &[PathBuf]) -> Result<Self, KeyFileError> {
        let keys = std::iter::once(current)
            .chain(older.iter().map(PathBuf::as_path))
            .map(|path| {
                let text = std::fs::read_to_string(path)
                    .map(Zeroizing::new)
                    .map_err(|source| KeyFileError::Read {
                        path: path.to_owned(),
                        source,
                    })?;
                let mut key = Zeroizing::new([0; 32]);
                hex::decode_to_slice(text.trim(), key.as_mut_slice())
                    .map_err(|_| KeyFileError::Content { path: path.to_owned() })?;
                Ok(VaultKey::derive(&key))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { keys })
    }

    /// A vault with one key, for tests.
    #[cfg(test)]
    pub fn with_key(key: [u8; 32]) -> Self {
        Self {
            keys: vec![VaultKey::derive(&key)],
        }
    }

    /// Seals a value for one purpose and owner.
    pub fn seal(&self, purpose: &str, owner: &str, secret: &[u8]) -> Vec<u8> {
        let key = &self.keys[0];
        let nonce = random::<NONCE_LEN>();
        let mut sealed = Zeroizing::new(secret.to_vec());
        key.sealing
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                binding(purpose, owner),
                &mut *sealed,
            )
            .expect("AES-256-GCM seals values below 64 GiB");
        let mut out = Vec::with_capacity(HEADER + sealed.len());
        out.push(VERSION);
        out.extend(key.id);
        out.extend(nonce);
        out.extend_from_slice(&sealed);
        out
    }

    /// Opens a sealed value.
    ///
    /// # Errors
    /// [`Unsealable`] when it was sealed under another key, for another purpose or owner, or was changed.
    pub fn open(&self, purpose: &str, owner: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unsealable> {
        let (header, body) = sealed.split_at_checked(HEADER).ok_or(Unsealable)?;
        if header[0] != VERSION {
            return Err(Unsealable);
        }
        let key = self.keys.iter().find(|key| key.id == header[1..5]).ok_or(Unsealable)?;
        let nonce = Nonce::try_assume_unique_for_key(&header[5..]).map_err(|_| Unsealable)?;
        let mut opened = Zeroizing::new(body.to_vec());
        let length = key
            .sealing
            .open_in_place(nonce, binding(purpose, owner), &mut opened)
            .map_err(|_| Unsealable)?
            .len();
        opened.truncate(length);
        Ok(opened)
    }

    /// A MAC (HMAC-SHA256) of the parts under the current key.
    pub fn mac(&self, purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
        tag(&self.keys[0].mac, purpose, parts)
    }

    /// The MACs of the parts under every key, the current one first: to find what was stored before a key change.
    pub fn macs(&self, purpose: &str, parts: &[&[u8]]) -> Vec<Vec<u8>> {
        self.keys
            .iter()
            .map(|key| tag(&key.mac, purpose, parts).to_vec())
            .collect()
    }

    /// Checks a MAC against every key, in constant time for each.
    pub fn verify_mac(&self, purpose: &str, parts: &[&[u8]], given: &[u8]) -> bool {
        let message = framed(purpose, parts);
        self.keys
            .iter()
            .any(|key| hmac::verify(&key.mac, &message, given).is_ok())
    }
}

impl VaultKey {
    fn derive(master: &[u8; 32]) -> Self {
        let derived = |label: &[u8]| {
            let mut out = Zeroizing::new([0; 32]);
            hkdf::Salt::new(HKDF_SHA256, b"garrison iam key file")
                .extract(master)
                .expand(&[label], HKDF_SHA256)
                .and_then(|okm| okm.fill(out.as_mut_slice()))
                .expect("HKDF gives 32 bytes");
            out
        };
        let mut id = [0; 4];
        id.copy_from_slice(&derived(b"id")[..4]);
        let sealing = UnboundKey::new(&AES_256_GCM, derived(b"seal").as_slice()).expect("AES-256 takes 32 bytes");
        Self {
            id,
            sealing: LessSafeKey::new(sealing),
            mac: hmac::Key::new(hmac::HMAC_SHA256, derived(b"mac").as_slice()),
        }
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({} keys)", self.keys.len())
    }
}

fn binding(purpose: &str, owner: &str) -> Aad<Vec<u8>> {
    aead::Aad::from(framed(purpose, &[owner.as_bytes()]))
}

fn tag(key: &hmac::Key, purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(hmac::sign(key, &framed(purpose, parts)).as_ref());
    out
}

/// Each part with its length before it, so that no two lists of parts give the same bytes.
fn framed(purpose: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in std::iter::once(&purpose.as_bytes()).chain(parts) {
        out.extend((part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn key_file(content: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file
    }

    proptest! {
        #[test]
        fn opens_only_what_it_sealed_for_the_same_purpose_and_owner(secret: Vec<u8>, flip: prop::sample::Index, bit in 0..8u8) {
            let vault = Vault::with_key([7; 32]);
            let sealed = vault.seal("totp", "acme/1", &secret);
            let opened = vault.open("totp", "acme/1", &sealed).unwrap();
            prop_assert_eq!(opened.as_slice(), secret.as_slice());
            prop_assert_eq!(vault.open("totp", "acme/2", &sealed), Err(Unsealable));
            prop_assert_eq!(vault.open("key", "acme/1", &sealed), Err(Unsealable));
            prop_assert_eq!(Vault::with_key([8; 32]).open("totp", "acme/1", &sealed), Err(Unsealable));
            let mut changed = sealed;
            let at = flip.index(changed.len());
            changed[at] ^= 1 << bit;
            prop_assert_eq!(vault.open("totp", "acme/1", &changed), Err(Unsealable));
            changed.truncate(at);
            prop_assert_eq!(vault.open("totp", "acme/1", &changed), Err(Unsealable));
        }
    }

    #[test]
    fn parts_cannot_be_shifted_into_each_other() {
        let vault = Vault::with_key([7; 32]);
        assert_ne!(vault.mac("a", &[b"bc", b"d"]), vault.mac("a", &[b"b", b"cd"]));
        assert_ne!(vault.mac("ab", &[b"c"]), vault.mac("a", &[b"bc"]));
    }

    #[test]
    fn an_older_key_file_still_opens_and_verifies() {
        let (old, new) = (key_file(&"11".repeat(32)), key_file(&format!("{}\n", "22".repeat(32))));
        let before = Vault::load(old.path(), &[]).unwrap();
        let (sealed, mac) = (before.seal("p", "o", b"secret"), before.mac("p", &[b"x"]));
        let after = Vault::load(new.path(), &[old.path().to_owned()]).unwrap();
        assert_eq!(after.open("p", "o", &sealed).unwrap().as_slice(), b"secret");
        assert!(after.verify_mac("p", &[b"x"], &mac));
        assert_ne!(after.mac("p", &[b"x"]), mac);
        assert!(!Vault::load(new.path(), &[]).unwrap().verify_mac("p", &[b"x"], &mac));
    }

    #[test]
    fn a_wrong_key_file_names_itself_and_not_its_content() {
        let short = key_file("abcdef0123456789");
        let shown = Vault::load(short.path(), &[]).unwrap_err().to_string();
        assert!(shown.starts_with("GAR-IAM-0015"), "{shown}");
        assert!(!shown.contains("abcdef"), "{shown}");
        assert!(matches!(
            Vault::load(Path::new("/nonexistent/key"), &[]),
            Err(KeyFileError::Read { .. })
        ));
    }
}
