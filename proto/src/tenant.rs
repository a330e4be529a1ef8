use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Identifies a tenant in subjects, tables, tokens and paths.
///
/// One to 63 lower-case letters, digits and inner hyphens: safe as a NATS subject token, a folder name and
/// a DNS label. A tenant's id never changes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Arc<str>);

/// The text is no tenant id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a tenant id: use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end")]
pub struct InvalidTenant(String);

impl TenantId {
    /// The tenant that administers the installation itself.
    pub const SYSTEM: &'static str = "system";

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tenant that administers the installation itself.
    pub fn system() -> Self {
        Self(Arc::from(Self::SYSTEM))
    }
}

impl FromStr for TenantId {
    type Err = InvalidTenant;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let valid =
            (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-');
        if valid {
            Ok(Self(Arc::from(text)))
        } else {
            Err(InvalidTenant(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for TenantId {
    type Error = InvalidTenant;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TenantId> for String {
    fn from(tenant: TenantId) -> Self {
        tenant.0.to_string()
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_is_safe_as_a_subject_token_and_nothing_else() {
        for good in ["a", "acme", "acme-eu-1", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<TenantId>().map(|t| t.to_string()), Ok(good.to_owned()));
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a*",
            ">",
            "a b",
            "ä",
            "../x",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad:?} was taken");
        }
    }
}
