use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PKCS_ED25519};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::{BootstrapError, file};

/// Secrets of a development fleet, each in a file of mode 0600 that is made on first use and kept.
#[derive(Clone, Debug)]
pub struct Secrets {
    dir: PathBuf,
}

impl Secrets {
    /// Keeps secrets in `dir`.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open_or_create(dir: &Path) -> Result<Self, BootstrapError> {
        file::make_folder(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The file of a random password: 48 hexadecimal digits.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn password(&self, name: &str) -> Result<PathBuf, BootstrapError> {
        self.keep(&format!("{name}.password"), || hex::encode(random::<24>()))
    }

    /// The file of a random 256-bit key: 64 hexadecimal digits.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn symmetric_key(&self, name: &str) -> Result<PathBuf, BootstrapError> {
        self.keep(&format!("{name}.key"), || hex::encode(random::<32>()))
    }

    /// The file of an Ed25519 signing key: PKCS#8, PEM.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn signing_key(&self, name: &str) -> Result<PathBuf, BootstrapError> {
        let generate = || {
            let key = KeyPair::generate_for(&PKCS_ED25519).expect("the system has randomness");
            key.serialize_pem()
        };
        self.keep(&format!("{name}.pem"), generate)
    }

    /// The file of a TOTP secret: 160 bits, Base32 (RFC 6238).
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn totp(&self, name: &str) -> Result<PathBuf, BootstrapError> {
        self.keep(&format!("{name}.totp"), || base32(&random::<20>()))
    }

    fn keep(&self, name: &str, make: impl FnOnce() -> String) -> Result<PathBuf, BootstrapError> {
        let path = self.dir.join(name);
        if !path.exists() {
            file::write_secret(&path, &make())?;
        }
        Ok(path)
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system has randomness");
    bytes
}

fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut text = String::new();
    let mut held = 0_u32;
    let mut bits = 0;
    for byte in bytes {
        held = held << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(ALPHABET[(held >> bits & 31) as usize]));
        }
    }
    if bits > 0 {
        text.push(char::from(ALPHABET[(held << (5 - bits) & 31) as usize]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base32_is_that_of_rfc_4648() {
        for (bytes, text) in [("f", "MY"), ("fo", "MZXQ"), ("foo", "MZXW6"), ("fooba", "MZXW6YTB")] {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn a_secret_is_kept_and_readable_by_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = std::env::temp_dir().join(format!("garrison-secrets-{}", std::process::id()));
        let secrets = Secrets::open_or_create(&dir).unwrap();
        let path = secrets.password("x").unwrap();
        let first = std::fs::read_to_string(&path).unwrap();
        assert_eq!(first.len(), 48);
        assert_eq!(std::fs::read_to_string(secrets.password("x").unwrap()).unwrap(), first);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
