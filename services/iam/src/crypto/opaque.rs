use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use garrison_proto::TenantId;
use ring::digest;
use uuid::Uuid;

use super::{Vault, random};
use crate::domain::SecretText;

/// What an opaque token is for. Its prefix lets secret scanners find a token that leaked into a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpaqueKind {
    /// Trades for new tokens.
    Refresh,
    /// Waits for a factor.
    Challenge,
}

/// `<prefix>_<tenant>_<base64url(id ‖ secret ‖ mac)>`.
///
/// The MAC makes the tenant in it something this service has said before, not a field that a client chose; the secret is
/// stored as its SHA-256 only.
pub struct OpaqueToken {
    /// Where the row is.
    pub tenant: TenantId,
    /// Which row.
    pub id: Uuid,
    secret: [u8; 32],
}

impl OpaqueKind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Refresh => "grt",
            Self::Challenge => "gch",
        }
    }
}

impl OpaqueToken {
    /// A token with a fresh secret.
    pub fn issue(tenant: TenantId, id: Uuid) -> Self {
        Self {
            tenant,
            id,
            secret: random(),
        }
    }

    /// What is stored of it.
    pub fn secret_sha256(&self) -> Vec<u8> {
        digest::digest(&digest::SHA256, &self.secret).as_ref().to_vec()
    }

    /// Whether its secret is the stored one. How long this takes says something about the hash only, and the hash of a
    /// random secret helps nobody to guess the secret.
    pub fn matches(&self, stored_sha256: &[u8]) -> bool {
        self.secret_sha256() == stored_sha256
    }

    /// The text that the client keeps.
    pub fn encode(&self, kind: OpaqueKind, vault: &Vault) -> SecretText {
        let mac = vault.mac(kind.prefix(), &self.parts());
        let mut body = Vec::with_capacity(80);
        body.extend_from_slice(self.id.as_bytes());
        body.extend_from_slice(&self.secret);
        body.extend_from_slice(&mac);
        format!("{}_{}_{}", kind.prefix(), self.tenant, URL_SAFE_NO_PAD.encode(body)).into()
    }

    /// Reads a token that this service issued. `None` for anything else.
    pub fn decode(kind: OpaqueKind, text: &str, vault: &Vault) -> Option<Self> {
        if text.len() > 256 {
            return None;
        }
        let (prefix, rest) = text.split_once('_')?;
        let (tenant, body) = rest.split_once('_')?;
        let body = URL_SAFE_NO_PAD.decode(body).ok()?;
        let body: [u8; 80] = body.try_into().ok()?;
        let token = Self {
            tenant: tenant.parse().ok()?,
            id: Uuid::from_slice(&body[..16]).ok()?,
            secret: body[16..48].try_into().ok()?,
        };
        (prefix == kind.prefix() && vault.verify_mac(prefix, &token.parts(), &body[48..])).then_some(token)
    }

    fn parts(&self) -> [&[u8]; 3] {
        [self.tenant.as_str().as_bytes(), self.id.as_bytes(), &self.secret]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_back_for_its_kind_only() {
        let vault = Vault::with_key([3; 32]);
        let token = OpaqueToken::issue("acme-eu".parse().unwrap(), Uuid::now_v7());
        let text = token.encode(OpaqueKind::Refresh, &vault);
        let read = OpaqueToken::decode(OpaqueKind::Refresh, text.expose(), &vault).unwrap();
        assert_eq!((read.tenant.as_str(), read.id), ("acme-eu", token.id));
        assert!(read.matches(&token.secret_sha256()));
        assert!(OpaqueToken::decode(OpaqueKind::Challenge, text.expose(), &vault).is_none());
        let renamed = text.expose().replacen("grt_", "gch_", 1);
        assert!(OpaqueToken::decode(OpaqueKind::Challenge, &renamed, &vault).is_none());
        let moved = text.expose().replacen("acme-eu", "acme-us", 1);
        assert!(OpaqueToken::decode(OpaqueKind::Refresh, &moved, &vault).is_none());
        let other = Vault::with_key([4; 32]);
        assert!(OpaqueToken::decode(OpaqueKind::Refresh, text.expose(), &other).is_none());
    }

    proptest! {
        #[test]
        fn never_takes_what_it_did_not_issue(text in "(grt|gch)?_?[a-z]{0,8}_?[A-Za-z0-9_-]{0,120}") {
            let vault = Vault::with_key([3; 32]);
            prop_assert!(OpaqueToken::decode(OpaqueKind::Refresh, &text, &vault).is_none());
        }
    }
}
