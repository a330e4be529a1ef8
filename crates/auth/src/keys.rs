use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use garrison_proto::iam::v1::{
    GetKeySetRequest, ListRevocationsRequest, authentication_service_client::AuthenticationServiceClient,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::{
    jwks::{JwkSet, JwksError},
    token::{self, Claims, Rules, TokenError},
};

/// A session whose tokens are no longer accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revoked {
    /// The session.
    pub session: Uuid,
    /// No token of the session lives longer than this; afterwards it may be forgotten.
    pub until: DateTime<Utc>,
}

/// iam's public keys and the revoked sessions, as one service knows them.
///
/// iam sets its own directly; every other service lets [`KeyRing::keep_fresh`] follow iam and hands in what the
/// bus says with [`KeyRing::revoke`] and [`KeyRing::keys_changed`].
#[derive(Debug, Default)]
pub struct KeyRing {
    keys: RwLock<Option<HashMap<String, [u8; 32]>>>,
    revoked: RwLock<HashMap<Uuid, DateTime<Utc>>>,
    /// Whether iam's list was obtained.
    listed: AtomicBool,
    wanted: Notify,
    /// Counts key sets that were taken over.
    generation: watch::Sender<u64>,
    asked: Mutex<Option<Asked>>,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    at: Instant,
    generation: u64,
}

/// How often a call that goes on looks whether its session was revoked.
const REVOCATION_POLL: Duration = Duration::from_millis(250);
/// How often a token with an unknown key may make us ask iam.
const UNKNOWN_KEY_INTERVAL: Duration = Duration::from_secs(5);
/// How long a request with an unknown key waits for iam's answer.
const UNKNOWN_KEY_WAIT: Duration = Duration::from_secs(2);
/// Most revocations that are held, so that nobody can fill the memory with them.
const MAX_REVOKED: usize = 1_000_000;

/// Why a token was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("keys or revocations were never obtained")]
    Unready,
    #[error("the session is revoked")]
    Revoked,
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl KeyRing {
    /// A ring that knows nothing and therefore accepts nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether both keys and revocations have been obtained at least once.
    pub fn is_ready(&self) -> bool {
        self.listed.load(Ordering::Acquire) && read(&self.keys).is_some()
    }

    /// Replaces the keys.
    pub fn set_keys(&self, set: &JwkSet) {
        let keys = set.keys.iter().map(|key| (key.id.clone(), key.bytes)).collect();
        *write(&self.keys) = Some(keys);
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Adds revocations from iam's list and marks them as obtained. What the bus said meanwhile stays: a list may
    /// have been taken before it.
    pub fn add_revocations(&self, listed: impl IntoIterator<Item = Revoked>, now: DateTime<Utc>) {
        {
            let mut revoked = write(&self.revoked);
            revoked.retain(|_, until| *until > now);
            for entry in listed {
                insert(&mut revoked, entry);
            }
        }
        self.listed.store(true, Ordering::Release);
    }

    /// Revokes one session at once.
    pub fn revoke(&self, entry: Revoked) {
        insert(&mut write(&self.revoked), entry);
    }

    /// Whether a session is revoked.
    pub fn is_revoked(&self, session: Uuid) -> bool {
        read(&self.revoked).contains_key(&session)
    }

    /// Waits until a session is revoked, for calls that outlast the check at their start. Never ends without one.
    pub async fn revoked(&self, session: Option<Uuid>) {
        let Some(session) = session else {
            return std::future::pending().await;
        };
        while !self.is_revoked(session) {
            tokio::time::sleep(REVOCATION_POLL).await;
        }
    }

    /// Says that iam has other keys now; [`KeyRing::keep_fresh`] fetches them at once.
    pub fn keys_changed(&self) {
        self.wanted.notify_one();
    }

    /// Verifies a token; asks iam again, at most every few seconds, when its key is unknown.
    pub(crate) async fn verify(&self, text: &str, rules: &Rules, now: DateTime<Utc>) -> Result<Claims, Refused> {
        match self.verify_now(text, rules, now) {
            Err(Refused::Token(TokenError::UnknownKey(id))) => {
                if self.ask_again().await {
                    self.verify_now(text, rules, now)
                } else {
                    Err(Refused::Token(TokenError::UnknownKey(id)))
                }
            }
            other => other,
        }
    }

    fn verify_now(&self, text: &str, rules: &Rules, now: DateTime<Utc>) -> Result<Claims, Refused> {
        if !self.is_ready() {
            return Err(Refused::Unready);
        }
        let claims = token::verify(text, rules, now, |id| {
            read(&self.keys).as_ref().and_then(|keys| keys.get(id).copied())
        })?;
        if self.is_revoked(claims.sid) {
            return Err(Refused::Revoked);
        }
        Ok(claims)
    }

    /// Whether new keys came. Requests that arrive while a question is under way share its answer.
    async fn ask_again(&self) -> bool {
        let mut generation = self.generation.subscribe();
        let current = *generation.borrow_and_update();
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            match *asked {
                Some(last) if last.at.elapsed() < UNKNOWN_KEY_INTERVAL => {
                    if last.generation != current || last.at.elapsed() > UNKNOWN_KEY_WAIT {
                        return false;
                    }
                }
                _ => {
                    *asked = Some(Asked {
                        at: Instant::now(),
                        generation: current,
                    });
                    self.wanted.notify_one();
                }
            }
        }
        tokio::time::timeout(UNKNOWN_KEY_WAIT, generation.changed())
            .await
            .is_ok_and(|changed| changed.is_ok())
    }

    /// Follows a source until shut down: fetches keys and revocations at start, again at intervals, and keys at
    /// once when asked for. Keeps what it has while the source is away, and says so once.
    pub async fn keep_fresh<S: KeySource>(&self, source: S, every: RefreshIntervals, shutdown: CancellationToken) {
        let mut keys_due = tokio::time::Instant::now();
        let mut failing = false;
        loop {
            let mut result = Ok(());
            if tokio::time::Instant::now() >= keys_due {
                result = match source.key_set().await {
                    Ok(set) => {
                        self.set_keys(&set);
                        keys_due = tokio::time::Instant::now() + every.keys;
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
            }
            if result.is_ok() {
                result = source
                    .revocations()
                    .await
                    .map(|listed| self.add_revocations(listed, Utc::now()));
            }
            match result {
                Ok(()) if failing => {
                    failing = false;
                    tracing::info!("iam answers again; token keys and revocations are fresh");
                }
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        ready = self.is_ready(),
                        "iam does not answer; token keys and revocations stay as they are"
                    );
                }
                _ => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.wanted.notified() => keys_due = tokio::time::Instant::now(),
                () = tokio::time::sleep(every.revocations) => {}
            }
        }
    }
}

fn insert(revoked: &mut HashMap<Uuid, DateTime<Utc>>, entry: Revoked) {
    if let Some(until) = revoked.get_mut(&entry.session) {
        *until = entry.until.max(*until);
    } else if revoked.len() < MAX_REVOKED {
        revoked.insert(entry.session, entry.until);
    } else {
        tracing::error!(session = %entry.session, "the revocation list is full; this one was not taken");
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// How often iam is asked without a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefreshIntervals {
    /// For keys.
    pub keys: Duration,
    /// For revocations. Under a second, so that a revocation reaches every service within one even while the
    /// broker is away.
    pub revocations: Duration,
}

impl Default for RefreshIntervals {
    fn default() -> Self {
        Self {
            keys: Duration::from_secs(300),
            revocations: Duration::from_millis(750),
        }
    }
}

/// Keys or revocations could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum KeySourceError {
    /// The call failed.
    #[error("asking iam for {what} failed: {} ({:?})", source.message(), source.code())]
    Call {
        /// What for.
        what: &'static str,
        /// What iam or the connection says.
        source: Box<tonic::Status>,
    },
    /// The answer is not a key set.
    #[error("reading iam's key set")]
    Keys(#[from] JwksError),
    /// The answer holds something that is no revocation.
    #[error("iam listed a revocation that cannot be read: session {0:?}")]
    Revocation(String),
}

/// Where keys and revocations come from.
pub trait KeySource: Send + Sync {
    /// The current keys.
    fn key_set(&self) -> impl Future<Output = Result<JwkSet, KeySourceError>> + Send;
    /// Every session revoked while tokens of it may still live.
    fn revocations(&self) -> impl Future<Output = Result<Vec<Revoked>, KeySourceError>> + Send;
}

/// iam itself, over gRPC.
#[derive(Debug, Clone)]
pub struct IamKeySource {
    client: AuthenticationServiceClient<Channel>,
}

impl IamKeySource {
    /// Uses a channel to iam that presents this service's certificate.
    pub fn new(channel: Channel) -> Self {
        Self {
            client: AuthenticationServiceClient::new(channel),
        }
    }
}

/// How long iam may take to answer.
const CALL_LIMIT: Duration = Duration::from_secs(3);

impl KeySource for IamKeySource {
    async fn key_set(&self) -> Result<JwkSet, KeySourceError> {
        let request = crate::client::deadline(GetKeySetRequest {}, CALL_LIMIT);
        let response = self
            .client
            .clone()
            .get_key_set(request)
            .await
            .map_err(|status| KeySourceError::Call {
                what: "its keys",
                source: Box::new(status),
            })?;
        Ok(JwkSet::from_json(&response.into_inner().jwks_json)?)
    }

    async fn revocations(&self) -> Result<Vec<Revoked>, KeySourceError> {
        let request = crate::client::deadline(ListRevocationsRequest {}, CALL_LIMIT);
        let response = self
            .client
            .clone()
            .list_revocations(request)
            .await
            .map_err(|status| KeySourceError::Call {
                what: "its revocations",
                source: Box::new(status),
            })?;
        response
            .into_inner()
            .revocations
            .iter()
            .map(|listed| {
                Revoked::from_parts(&listed.session, listed.until.as_ref())
                    .ok_or_else(|| KeySourceError::Revocation(listed.session.chars().take(100).collect()))
            })
            .collect()
    }
}

impl Revoked {
    /// From the fields of a message: `sessions/{id}` and the time after which it may be forgotten. `None` when
    /// either cannot be read.
    pub fn from_parts(session: &str, until: Option<&prost_types::Timestamp>) -> Option<Self> {
        Some(Self {
            session: garrison_proto::parse_name("sessions", session).ok()?,
            until: garrison_proto::from_timestamp(until?)?,
        })
    }
}

#[cfg(test)]
mod tests;
