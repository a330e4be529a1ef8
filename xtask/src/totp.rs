//! Codes of the demo's analyst, as an authenticator app would show them (RFC 6238).

use std::{
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use ring::hmac;

const STEP_SECONDS: u64 = 30;

/// The code that is valid now for the Base32 secret in a file.
pub fn code(secret_file: &Path) -> Result<String> {
    let secret = fs::read_to_string(secret_file).with_context(|| format!("reading {}", secret_file.display()))?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let secret = from_base32(secret.trim()).context("the secret is no Base32 text")?;
    Ok(code_at(&secret, seconds / STEP_SECONDS))
}

fn code_at(secret: &[u8], step: u64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let digest = tag.as_ref();
    let offset = usize::from(digest[19] & 0x0f);
    let bytes = [
        digest[offset] & 0x7f,
        digest[offset + 1],
        digest[offset + 2],
        digest[offset + 3],
    ];
    format!("{:06}", u32::from_be_bytes(bytes) % 1_000_000)
}

const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

fn from_base32(text: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        let value = ALPHABET
            .iter()
            .position(|known| *known == letter.to_ascii_uppercase())?;
        bits.extend((0..5).rev().map(|bit| (value >> bit & 1) as u8));
    }
    let byte = |group: &[u8]| group.iter().fold(0_u8, |value, bit| value << 1 | bit);
    Some(bits.chunks_exact(8).map(byte).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_rfc_6238() {
        // Appendix B, SHA-1, cut to six digits.
        let secret = b"12345678901234567890";
        for (seconds, code) in [(59, "287082"), (1_111_111_109, "081804"), (20_000_000_000, "353130")] {
            assert_eq!(code_at(secret, seconds / STEP_SECONDS), code);
        }
    }

    #[test]
    fn base32_is_that_of_rfc_4648() {
        assert_eq!(from_base32("JBSWY3DP"), Some(b"Hello".to_vec()));
        assert_eq!(from_base32("MZXW6YTB"), Some(b"fooba".to_vec()));
        assert_eq!(from_base32("1"), None);
    }
}
