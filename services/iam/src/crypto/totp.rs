use std::fmt;

use totp_rs::{Builder, Totp};
use zeroize::Zeroizing;

use super::random;
use crate::domain::SecretText;

/// The secret shared with an authenticator app: 20 bytes, SHA-1, six digits, steps of 30 seconds, because that is what
/// every app does (RFC 6238).
#[derive(Clone)]
pub struct TotpSecret(Zeroizing<Vec<u8>>);

/// What a person needs to set up an authenticator app.
#[derive(Debug)]
pub struct Enrolment {
    /// `otpauth://` URI.
    pub uri: SecretText,
    /// The secret in Base32.
    pub base32: SecretText,
}

impl TotpSecret {
    /// A new random secret.
    pub fn generate() -> Self {
        Self(Zeroizing::new(random::<20>().to_vec()))
    }

    /// A secret from its stored bytes.
    pub fn from_bytes(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// Reads Base32, with or without spaces and padding. `None` when it is something else or below 16 bytes (RFC 4226, 4).
    pub fn from_base32(text: &str) -> Option<Self> {
        let text = Zeroizing::new(
            text.chars()
                .filter(|c| !c.is_whitespace() && *c != '=')
                .map(|c| c.to_ascii_uppercase())
                .collect::<String>(),
        );
        let secret = totp_rs::Secret::try_from_base32(text.as_str()).ok()?;
        let bytes = Zeroizing::new(secret.as_bytes().to_vec());
        (16..=64).contains(&bytes.len()).then_some(Self(bytes))
    }

    /// The bytes, to be sealed.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// What to show to the person. `None` when issuer or account contain a colon.
    pub fn enrolment(&self, issuer: &str, account: &str) -> Option<Enrolment> {
        let totp = self
            .builder()
            .with_issuer(Some(issuer))
            .with_account_name(account)
            .build()
            .ok()?;
        Some(Enrolment {
            uri: totp.to_url().ok()?.into(),
            base32: totp.secret().to_base32().into(),
        })
    }

    fn builder(&self) -> Builder {
        Builder::new().with_secret(self.0.to_vec())
    }

    fn totp(&self) -> Totp {
        self.builder().build_noncompliant()
    }

    /// The code of a time, seconds since the epoch.
    pub fn code_at(&self, seconds: u64) -> String {
        self.totp().generate(seconds).to_string()
    }
}

impl fmt::Debug for TotpSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TotpSecret([redacted])")
    }
}

/// Checks a code at a time, one step of 30 seconds early or late, and gives the step it belongs to.
///
/// A step at or before `last_step` is refused: a code works once (RFC 6238, 5.2).
pub fn matched_step(secret: &TotpSecret, code: &str, seconds: u64, last_step: u64) -> Option<u64> {
    let digits: String = code.chars().filter(|c| !c.is_whitespace()).take(7).collect();
    secret.totp().check(&digits, seconds).filter(|step| *step > last_step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> TotpSecret {
        TotpSecret(Zeroizing::new(b"12345678901234567890".to_vec()))
    }

    #[test]
    fn agrees_with_the_test_vectors_of_rfc_6238() {
        // Appendix B gives eight digits; six-digit codes are their last six.
        for (time, code) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(secret().code_at(time), code);
            assert_eq!(matched_step(&secret(), code, time, 0), Some(time / 30));
        }
    }

    #[test]
    fn takes_one_step_either_way_and_no_step_twice() {
        let (now, step) = (1_111_111_111, 1_111_111_111 / 30);
        let at = |offset: i64| secret().code_at((now as i64 + offset * 30) as u64);
        let check = |code: String, last| matched_step(&secret(), &code, now, last);
        assert_eq!(check(at(-1), 0), Some(step - 1));
        assert_eq!(check(at(1), 0), Some(step + 1));
        assert_eq!(check(at(-2), 0), None);
        assert_eq!(check(at(2), 0), None);
        assert_eq!(check(at(0), step), None);
        assert_eq!(check(at(-1), step), None);
        assert_eq!(check(at(1), step), Some(step + 1));
        for bad in ["", "12345", "1234567", "abcdef", "+12345", "١٢٣٤٥٦"] {
            assert_eq!(check(bad.to_owned(), 0), None);
        }
    }

    #[test]
    fn enrolment_names_issuer_and_account() {
        let shown = secret().enrolment("Garrison", "acme/ada@example.org").unwrap();
        let uri = shown.uri.expose();
        assert!(uri.starts_with("otpauth://totp/Garrison:"), "{uri}");
        assert!(uri.contains("secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"), "{uri}");
        let again = TotpSecret::from_base32(&format!(" {}== ", shown.base32.expose().to_lowercase())).unwrap();
        assert_eq!(again.bytes(), secret().bytes());
        assert!(TotpSecret::from_base32("GEZDG").is_none());
        assert!(TotpSecret::from_base32("not base32!").is_none());
        assert!(!format!("{shown:?}{again:?}").contains("GEZD"));
    }
}
