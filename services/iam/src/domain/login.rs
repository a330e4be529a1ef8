use std::{fmt, str::FromStr};

/// The name a person logs in with: 1 to 64 of `a-z`, `0-9`, `.`, `-`, `_`, `+` and `@`, starting with a letter or digit.
///
/// Capital letters are folded, so `Ada` and `ada` are one account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoginName(String);

/// The text is no login name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a login is 1 to 64 letters, digits and . - _ + @, and starts with a letter or digit")]
pub struct InvalidLogin;

impl LoginName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LoginName {
    type Err = InvalidLogin;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b".-_+@".contains(&b);
        let valid =
            (1..=64).contains(&text.len()) && text.bytes().all(inner) && text.as_bytes()[0].is_ascii_alphanumeric();
        if valid {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(InvalidLogin)
        }
    }
}

impl fmt::Display for LoginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::LoginName;

    #[test]
    fn folds_case_and_refuses_the_rest() {
        assert_eq!(
            "Ada.L@example.org".parse::<LoginName>().unwrap().as_str(),
            "ada.l@example.org"
        );
        for bad in ["", " ada", "ada ", ".ada", "ädä", "a\nb", "a/b", &"a".repeat(65)] {
            assert!(bad.parse::<LoginName>().is_err(), "{bad:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_folding_is_stable(text in ".{0,80}") {
            if let Ok(login) = text.parse::<LoginName>() {
                prop_assert_eq!(login.as_str().parse::<LoginName>().unwrap(), login);
            }
        }
    }
}
