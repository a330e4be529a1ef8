use std::sync::{Arc, atomic::AtomicUsize};

use chrono::TimeDelta;
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};

use super::*;
use crate::jwks::PublicKey;

struct Source {
    keys: Mutex<JwkSet>,
    revoked: Mutex<Vec<Revoked>>,
    away: std::sync::atomic::AtomicBool,
    key_calls: AtomicUsize,
}

impl KeySource for Arc<Source> {
    async fn key_set(&self) -> Result<JwkSet, KeySourceError> {
        self.key_calls.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            return Err(KeySourceError::Revocation("away".into()));
        }
        Ok(self.keys.lock().unwrap().clone())
    }

    async fn revocations(&self) -> Result<Vec<Revoked>, KeySourceError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(KeySourceError::Revocation("away".into()));
        }
        Ok(self.revoked.lock().unwrap().clone())
    }
}

fn key() -> Ed25519KeyPair {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap()
}

fn set(keys: &[(&str, &Ed25519KeyPair)]) -> JwkSet {
    let keys = keys
        .iter()
        .map(|(id, key)| PublicKey {
            id: (*id).to_owned(),
            bytes: key.public_key().as_ref().try_into().unwrap(),
        })
        .collect();
    JwkSet { keys }
}

fn claims() -> Claims {
    let now = Utc::now().timestamp();
    Claims {
        iss: "spiffe://test/svc/iam".into(),
        aud: "test".into(),
        sub: format!("users/{}", Uuid::now_v7()),
        preferred_username: "eva".into(),
        tenant: "acme".parse().unwrap(),
        sid: Uuid::now_v7(),
        roles: vec![],
        amr: vec!["pwd".into()],
        iat: now,
        nbf: now,
        exp: now + 300,
        jti: Uuid::now_v7(),
    }
}

fn rules() -> Rules {
    Rules::for_trust_domain("test")
}

fn source(keys: JwkSet) -> Arc<Source> {
    Arc::new(Source {
        keys: Mutex::new(keys),
        revoked: Mutex::default(),
        away: Default::default(),
        key_calls: AtomicUsize::new(0),
    })
}

async fn until(mut met: impl FnMut() -> bool) {
    for _ in 0..6_000 {
        if met() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the condition was not met within a minute");
}

#[tokio::test]
async fn accepts_nothing_before_it_knows_keys_and_revocations() {
    let ring = KeyRing::new();
    let key = key();
    let text = token::sign(&key, "a", &claims());
    assert_eq!(ring.verify(&text, &rules(), Utc::now()).await, Err(Refused::Unready));
    ring.set_keys(&set(&[("a", &key)]));
    assert_eq!(ring.verify(&text, &rules(), Utc::now()).await, Err(Refused::Unready));
    ring.add_revocations([], Utc::now());
    assert!(ring.verify(&text, &rules(), Utc::now()).await.is_ok());
}

#[tokio::test]
async fn a_revoked_session_is_refused_at_once_and_stays_so_over_an_older_list() {
    let ring = KeyRing::new();
    let (key, claims) = (key(), claims());
    ring.set_keys(&set(&[("a", &key)]));
    ring.add_revocations([], Utc::now());
    let text = token::sign(&key, "a", &claims);
    assert!(ring.verify(&text, &rules(), Utc::now()).await.is_ok());
    ring.revoke(Revoked {
        session: claims.sid,
        until: Utc::now() + TimeDelta::minutes(5),
    });
    assert_eq!(ring.verify(&text, &rules(), Utc::now()).await, Err(Refused::Revoked));
    ring.add_revocations([], Utc::now());
    assert_eq!(ring.verify(&text, &rules(), Utc::now()).await, Err(Refused::Revoked));
    ring.add_revocations([], Utc::now() + TimeDelta::minutes(6));
    assert!(
        !ring.is_revoked(claims.sid),
        "a revocation outlived every token of its session"
    );
}

#[tokio::test]
async fn an_unknown_key_is_asked_for_once_however_many_ask() {
    let (old, new) = (key(), key());
    let source = source(set(&[("old", &old)]));
    let ring = Arc::new(KeyRing::new());
    let stop = CancellationToken::new();
    let every = RefreshIntervals {
        keys: Duration::from_secs(600),
        revocations: Duration::from_millis(20),
    };
    let follower = tokio::spawn({
        let (ring, source, stop) = (Arc::clone(&ring), Arc::clone(&source), stop.clone());
        async move { ring.keep_fresh(source, every, stop).await }
    });
    until(|| ring.is_ready()).await;
    *source.keys.lock().unwrap() = set(&[("old", &old), ("new", &new)]);
    let text = token::sign(&new, "new", &claims());
    let many =
        futures::future::join_all((0..20).map(|_| async { ring.verify(&text, &rules(), Utc::now()).await })).await;
    assert!(many.iter().all(Result::is_ok), "{many:?}");
    assert_eq!(source.key_calls.load(Ordering::SeqCst), 2);

    let forged = token::sign(&new, "never", &claims());
    for _ in 0..20 {
        assert_eq!(
            ring.verify(&forged, &rules(), Utc::now()).await,
            Err(Refused::Token(TokenError::UnknownKey("never".into())))
        );
    }
    assert_eq!(
        source.key_calls.load(Ordering::SeqCst),
        2,
        "forged key ids made us ask iam again and again"
    );
    stop.cancel();
    follower.await.unwrap();
}

#[tokio::test]
async fn keeps_what_it_has_while_iam_is_away_and_catches_up() {
    let (first, second) = (key(), key());
    let source = source(set(&[("a", &first)]));
    source.away.store(true, Ordering::SeqCst);
    let ring = Arc::new(KeyRing::new());
    let stop = CancellationToken::new();
    let every = RefreshIntervals {
        keys: Duration::from_millis(20),
        revocations: Duration::from_millis(20),
    };
    let follower = tokio::spawn({
        let (ring, source, stop) = (Arc::clone(&ring), Arc::clone(&source), stop.clone());
        async move { ring.keep_fresh(source, every, stop).await }
    });
    until(|| source.key_calls.load(Ordering::SeqCst) > 2).await;
    assert!(!ring.is_ready());
    source.away.store(false, Ordering::SeqCst);
    until(|| ring.is_ready()).await;
    source.away.store(true, Ordering::SeqCst);
    let text = token::sign(&first, "a", &claims());
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(ring.verify(&text, &rules(), Utc::now()).await.is_ok());
    *source.keys.lock().unwrap() = set(&[("b", &second)]);
    source.away.store(false, Ordering::SeqCst);
    until(|| read(&ring.keys).as_ref().unwrap().contains_key("b")).await;
    stop.cancel();
    follower.await.unwrap();
}
