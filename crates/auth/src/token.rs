//! Access tokens: JWTs (RFC 7519) as compact JWS (RFC 7515), signed with Ed25519 (RFC 8037) and nothing else.
//!
//! There is one algorithm and it is not chosen by the token: the header must say `EdDSA` and name a key of iam,
//! and a header with anything further is refused. See `docs/decisions/0003-tokens.md`.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use garrison_proto::TenantId;
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::jwks::MAX_KEY_ID;

/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 4096;
/// How far clocks may differ, in seconds.
pub const LEEWAY: i64 = 5;
/// Longest life of a token, in seconds.
pub const MAX_LIFETIME: i64 = 3600;
/// Most roles and authentication methods a token may carry, each.
const MAX_LIST: usize = 32;

/// What iam says about a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// Who issued it, see [`Rules`].
    pub iss: String,
    /// For whom, see [`Rules`].
    pub aud: String,
    /// `users/{id}`.
    pub sub: String,
    /// The name the person logs in with (OpenID Connect Core, section 5.1).
    pub preferred_username: String,
    /// The tenant.
    pub tenant: TenantId,
    /// The session.
    pub sid: Uuid,
    /// Role names.
    pub roles: Vec<String>,
    /// How the person was authenticated (RFC 8176): `pwd`, and `otp` or `mfa` with a second factor.
    pub amr: Vec<String>,
    /// Issued at, seconds since the epoch.
    pub iat: i64,
    /// Not before, seconds since the epoch.
    pub nbf: i64,
    /// Expires, seconds since the epoch.
    pub exp: i64,
    /// The token's own id.
    pub jti: Uuid,
}

impl Claims {
    /// The user's id from `sub`.
    pub fn user(&self) -> Option<Uuid> {
        self.sub.strip_prefix("users/").and_then(|id| Uuid::parse_str(id).ok())
    }

    /// Whether the session was opened with a second factor.
    pub fn second_factor(&self) -> bool {
        self.amr.iter().any(|method| method == "otp" || method == "mfa")
    }
}

/// Whose tokens are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The `iss` that tokens must carry.
    pub issuer: String,
    /// The `aud` that tokens must carry.
    pub audience: String,
}

impl Rules {
    /// The rules of an installation: issued by iam's SPIFFE id, for the trust domain.
    pub fn for_trust_domain(trust_domain: &str) -> Self {
        Self {
            issuer: format!("spiffe://{trust_domain}/svc/iam"),
            audience: trust_domain.to_owned(),
        }
    }
}

/// A token was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token of this form.
    #[error("{0}")]
    Form(&'static str),
    /// The key it names is not known.
    #[error("unknown key {0:?}")]
    UnknownKey(String),
    /// The signature is not of that key.
    #[error("the signature does not fit")]
    Signature,
    /// A claim is not what it must be.
    #[error("claim {0} is not accepted")]
    Claim(&'static str),
    /// Its time is over.
    #[error("it expired {seconds} s ago")]
    Expired {
        /// How long ago.
        seconds: i64,
    },
    /// Its time has not come.
    #[error("it is valid only in {seconds} s; the clocks of issuer and verifier differ")]
    NotYet {
        /// How far ahead.
        seconds: i64,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    typ: Option<String>,
    kid: String,
}

/// Signs claims.
pub fn sign(key: &Ed25519KeyPair, key_id: &str, claims: &Claims) -> String {
    let header = Header {
        alg: "EdDSA".to_owned(),
        typ: Some("JWT".to_owned()),
        kid: key_id.to_owned(),
    };
    let mut token = encode(&header);
    token.push('.');
    token.push_str(&encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(token.as_bytes()));
    token.push('.');
    token.push_str(&signature);
    token
}

/// Verifies a token at a time, finding its key with `key`.
///
/// # Errors
/// [`TokenError`]. Nothing of a refused token is returned.
pub fn verify(
    token: &str,
    rules: &Rules,
    now: DateTime<Utc>,
    key: impl FnOnce(&str) -> Option<[u8; 32]>,
) -> Result<Claims, TokenError> {
    if token.len() > MAX_TOKEN {
        return Err(TokenError::Form("it is too long"));
    }
    let mut parts = token.split('.');
    let (header, body, signature) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(header), Some(body), Some(signature), None) => (header, body, signature),
        _ => return Err(TokenError::Form("it is not a compact JWS")),
    };
    let parsed: Header = decode(header).ok_or(TokenError::Form("its header is not alg, typ and kid"))?;
    if parsed.alg != "EdDSA" {
        return Err(TokenError::Form("its alg is not EdDSA"));
    }
    if parsed.typ.as_deref().is_some_and(|typ| typ != "JWT") {
        return Err(TokenError::Form("its typ is not JWT"));
    }
    if parsed.kid.is_empty() || parsed.kid.len() > MAX_KEY_ID {
        return Err(TokenError::Form("its kid is empty or too long"));
    }
    let signature = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| TokenError::Form("its signature is not base64url"))?;
    let Some(public) = key(&parsed.kid) else {
        return Err(TokenError::UnknownKey(parsed.kid));
    };
    let signed = &token[..header.len() + 1 + body.len()];
    UnparsedPublicKey::new(&ED25519, public)
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| TokenError::Signature)?;
    let claims: Claims = decode(body).ok_or(TokenError::Form("its claims are not those of this installation"))?;
    check(&claims, rules, now.timestamp())?;
    Ok(claims)
}

fn check(claims: &Claims, rules: &Rules, now: i64) -> Result<(), TokenError> {
    if claims.iss != rules.issuer {
        return Err(TokenError::Claim("iss"));
    }
    if claims.aud != rules.audience {
        return Err(TokenError::Claim("aud"));
    }
    if claims.user().is_none() {
        return Err(TokenError::Claim("sub"));
    }
    if claims.roles.len() > MAX_LIST {
        return Err(TokenError::Claim("roles"));
    }
    if claims.amr.len() > MAX_LIST || !claims.amr.iter().any(|method| method == "pwd") {
        return Err(TokenError::Claim("amr"));
    }
    let lifetime = claims.exp.checked_sub(claims.iat);
    if !lifetime.is_some_and(|seconds| (1..=MAX_LIFETIME).contains(&seconds)) {
        return Err(TokenError::Claim("exp"));
    }
    let begins = claims.nbf.max(claims.iat);
    if begins > now.saturating_add(LEEWAY) {
        return Err(TokenError::NotYet {
            seconds: begins.saturating_sub(now),
        });
    }
    if claims.exp.saturating_add(LEEWAY) <= now {
        return Err(TokenError::Expired {
            seconds: now.saturating_sub(claims.exp),
        });
    }
    Ok(())
}

fn encode(value: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(value).expect("strings and numbers serialise"))
}

/// When a token that [`verify`] has accepted is accepted no longer: its `exp` and the leeway. Nothing is verified here.
pub(crate) fn accepted_until(token: &str) -> Option<DateTime<Utc>> {
    #[derive(Deserialize)]
    struct Body {
        exp: i64,
    }
    let body: Body = decode(token.split('.').nth(1)?)?;
    DateTime::from_timestamp(body.exp.checked_add(LEEWAY)?, 0)
}

fn decode<T: serde::de::DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ring::{rand::SystemRandom, signature::KeyPair};

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn key() -> Ed25519KeyPair {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap()
    }

    fn public(key: &Ed25519KeyPair) -> [u8; 32] {
        key.public_key().as_ref().try_into().unwrap()
    }

    fn claims() -> Claims {
        let rules = Rules::for_trust_domain("test");
        Claims {
            iss: rules.issuer,
            aud: rules.audience,
            sub: format!("users/{}", Uuid::now_v7()),
            preferred_username: "eva".into(),
            tenant: "acme".parse().unwrap(),
            sid: Uuid::now_v7(),
            roles: vec!["analyst".into()],
            amr: vec!["pwd".into(), "otp".into()],
            iat: NOW - 10,
            nbf: NOW - 10,
            exp: NOW + 290,
            jti: Uuid::now_v7(),
        }
    }

    fn verify_at(token: &str, key: &Ed25519KeyPair, seconds: i64) -> Result<Claims, TokenError> {
        let public = public(key);
        let now = DateTime::from_timestamp(seconds, 0).unwrap();
        verify(token, &Rules::for_trust_domain("test"), now, |id| {
            (id == "k1").then_some(public)
        })
    }

    fn raw(key: &Ed25519KeyPair, header: &str, body: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(body));
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes())))
    }

    #[test]
    fn the_end_of_a_token_is_read_as_it_is_enforced() {
        let key = key();
        let signed = sign(&key, "k1", &claims());
        let until = accepted_until(&signed).unwrap().timestamp();
        assert!(verify_at(&signed, &key, until - 1).is_ok());
        let refused = verify_at(&signed, &key, until).unwrap_err();
        assert!(matches!(refused, TokenError::Expired { .. }));
        for garbage in ["", ".", "a.b.c", "a.e30.c"] {
            assert_eq!(accepted_until(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn takes_its_own() {
        let (key, claims) = (key(), claims());
        let token = sign(&key, "k1", &claims);
        assert_eq!(verify_at(&token, &key, NOW), Ok(claims.clone()));
        assert!(claims.second_factor());
    }

    #[test]
    fn refuses_every_header_but_its_own() {
        let key = key();
        let body = serde_json::to_string(&claims()).unwrap();
        for header in [
            r#"{"alg":"none","kid":"k1"}"#,
            r#"{"alg":"None","kid":"k1"}"#,
            r#"{"alg":"HS256","kid":"k1"}"#,
            r#"{"alg":"eddsa","kid":"k1"}"#,
            r#"{"alg":"EdDSA"}"#,
            r#"{"alg":"EdDSA","kid":""}"#,
            r#"{"alg":"EdDSA","kid":"k1","crit":["exp"]}"#,
            r#"{"alg":"EdDSA","kid":"k1","jwk":{}}"#,
            r#"{"alg":"EdDSA","kid":"k1","typ":"at+jwt"}"#,
            r#"{"alg":"EdDSA","alg":"none","kid":"k1"}"#,
            "not json",
        ] {
            let result = verify_at(&raw(&key, header, &body), &key, NOW);
            assert!(matches!(result, Err(TokenError::Form(_))), "{header}: {result:?}");
        }
        let good = raw(&key, r#"{"alg":"EdDSA","kid":"k1"}"#, &body);
        assert!(verify_at(&good, &key, NOW).is_ok());
        let unsigned = format!("{}.", good.rsplit_once('.').unwrap().0);
        assert_eq!(verify_at(&unsigned, &key, NOW), Err(TokenError::Signature));
    }

    #[test]
    fn refuses_foreign_signatures_and_keys() {
        let (mine, other) = (key(), key());
        assert_eq!(
            verify_at(&sign(&other, "k1", &claims()), &mine, NOW),
            Err(TokenError::Signature)
        );
        assert_eq!(
            verify_at(&sign(&mine, "k2", &claims()), &mine, NOW),
            Err(TokenError::UnknownKey("k2".into()))
        );
    }

    #[test]
    fn refuses_claims_that_do_not_fit() {
        let key = key();
        let refused = |change: &dyn Fn(&mut Claims), claim| {
            let mut claims = claims();
            change(&mut claims);
            assert_eq!(
                verify_at(&sign(&key, "k1", &claims), &key, NOW),
                Err(TokenError::Claim(claim)),
            );
        };
        refused(&|c| c.iss = "spiffe://test/svc/anomaly".into(), "iss");
        refused(&|c| c.aud = "elsewhere".into(), "aud");
        refused(&|c| c.sub = "services/iam".into(), "sub");
        refused(&|c| c.amr = vec!["otp".into()], "amr");
        refused(&|c| c.roles = vec!["viewer".into(); 33], "roles");
        refused(&|c| c.exp = c.iat + MAX_LIFETIME + 1, "exp");
        refused(&|c| c.exp = c.iat, "exp");
        refused(&|c| (c.iat, c.exp) = (i64::MIN, i64::MAX), "exp");
        let mut odd = serde_json::to_value(claims()).unwrap();
        odd["tenant"] = "Not A Tenant".into();
        let token = raw(&key, r#"{"alg":"EdDSA","kid":"k1"}"#, &odd.to_string());
        assert!(matches!(verify_at(&token, &key, NOW), Err(TokenError::Form(_))));
    }

    #[test]
    fn holds_to_the_times_with_a_little_leeway() {
        let (key, claims) = (key(), claims());
        let token = sign(&key, "k1", &claims);
        assert!(verify_at(&token, &key, claims.exp + LEEWAY - 1).is_ok());
        assert_eq!(
            verify_at(&token, &key, claims.exp + LEEWAY),
            Err(TokenError::Expired { seconds: LEEWAY })
        );
        assert!(verify_at(&token, &key, claims.nbf - LEEWAY).is_ok());
        assert_eq!(
            verify_at(&token, &key, claims.nbf - LEEWAY - 1),
            Err(TokenError::NotYet { seconds: LEEWAY + 1 })
        );
    }

    #[test]
    fn refuses_what_is_too_long() {
        let key = key();
        let token = format!("{}{}", sign(&key, "k1", &claims()), "A".repeat(MAX_TOKEN));
        assert_eq!(verify_at(&token, &key, NOW), Err(TokenError::Form("it is too long")));
    }

    proptest! {
        #[test]
        fn a_changed_character_is_always_refused(at in 0usize..600, with in "[A-Za-z0-9_.-]") {
            let key = key();
            let token = sign(&key, "k1", &claims());
            let at = at % token.len();
            prop_assume!(token.as_bytes()[at] != with.as_bytes()[0]);
            let mut changed = token.clone();
            changed.replace_range(at..=at, &with);
            // The last character of a 64-byte signature carries two bits; base64 refuses its other spellings.
            prop_assert!(verify_at(&changed, &key, NOW).is_err());
        }

        #[test]
        fn never_panics_on_any_text(text in "\\PC{0,300}") {
            let _ = verify_at(&text, &key(), NOW);
        }
    }
}
