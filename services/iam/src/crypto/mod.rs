//! Everything that touches a secret: sealing, hashing, one-time codes, opaque tokens and token signing.

mod hasher;
mod opaque;
mod signing;
mod totp;
mod vault;

pub use hasher::{HashError, HasherSettings, PasswordHasher};
pub use opaque::{OpaqueKind, OpaqueToken};
pub use signing::{SigningKey, SigningKeyRow, SigningKeys};
pub use totp::{Enrolment, TotpSecret, matched_step};
pub use vault::{KeyFileError, Unsealable, Vault};

use ring::rand::{SecureRandom, SystemRandom};

/// Bytes from the operating system's generator.
///
/// # Panics
/// When the operating system gives no randomness; nothing of this service may go on then.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the operating system's random generator works");
    bytes
}

/// Ten recovery codes of 50 bits each, written `xxxxx-xxxxx` in letters and digits that cannot be mixed up.
pub fn recovery_codes() -> Vec<crate::domain::SecretText> {
    // Crockford's Base32 alphabet.
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    (0..10)
        .map(|_| {
            let mut code = String::with_capacity(11);
            for (position, byte) in random::<10>().into_iter().enumerate() {
                if position == 5 {
                    code.push('-');
                }
                code.push(char::from(ALPHABET[usize::from(byte % 32)]));
            }
            code.into()
        })
        .collect()
}

/// What is compared of a recovery code: people type capitals, leave the hyphen out and mix up `o` and `0`.
pub fn canonical_recovery_code(typed: &str) -> crate::domain::SecretText {
    typed
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| match c.to_ascii_lowercase() {
            'o' => '0',
            'i' | 'l' => '1',
            c => c,
        })
        .take(32)
        .collect::<String>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_codes_differ_and_survive_sloppy_typing() {
        let codes = recovery_codes();
        assert_eq!(codes.len(), 10);
        let mut texts: Vec<_> = codes.iter().map(|code| code.expose().to_owned()).collect();
        for text in &texts {
            assert_eq!(text.len(), 11);
            let typed = text.to_uppercase().replace('-', " ").replace('0', "O");
            assert_eq!(
                canonical_recovery_code(&typed).expose(),
                canonical_recovery_code(text).expose()
            );
        }
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), 10);
    }
}
