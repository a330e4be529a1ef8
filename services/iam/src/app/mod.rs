//! What iam does, one use case a file. Each runs in one transaction that carries its events and audit records along.

mod account;
mod bootstrap;
mod factor;
mod keys;
mod login;
mod record;
mod refresh;
mod sessions;
mod tenants;
mod upkeep;
mod users;

pub use account::CallerView;
pub use bootstrap::{PreparedTenant, PreparedUser};
pub use factor::FactorProof;
pub use login::LoginStep;
pub use sessions::SessionSelection;
pub use users::{Page, UserChange};

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
};

use chrono::{DateTime, TimeDelta, Utc};
use garrison_auth::{Caller, Principal, Revoked, token::Rules};
use garrison_db::{Db, Tx};
use garrison_proto::TenantId;
use uuid::Uuid;

use crate::{
    crypto::{PasswordHasher, SigningKeys, Vault},
    domain::{AttemptLimiter, Lockout, PasswordPolicy, SecretText, SessionLimits},
    error::Error,
    metrics::Metrics,
};

/// Tells the time. Passed in, so that limits can be tested without waiting.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

type Result<T> = std::result::Result<T, Error>;

/// Rules that the configuration sets.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Life of sessions and tokens.
    pub sessions: SessionLimits,
    /// When logins are shut.
    pub lockout: Lockout,
    /// What passwords must be like.
    pub passwords: PasswordPolicy,
    /// A signing key older than this is replaced.
    pub rotate_after: TimeDelta,
    /// The name shown in authenticator apps.
    pub issuer: String,
    /// `iss` and `aud` of tokens.
    pub rules: Rules,
}

/// All that the use cases work with. One for the process, shared by every request.
pub struct Iam {
    /// The database.
    pub db: Db,
    /// The time.
    pub clock: Clock,
    /// Seals secrets.
    pub vault: Vault,
    /// Checks passwords.
    pub hasher: PasswordHasher,
    /// Signs tokens.
    pub signing: SigningKeys,
    /// What this process's own authorisation layer knows.
    pub ring: Arc<garrison_auth::KeyRing>,
    /// Slows guessing down.
    pub limiter: Mutex<AttemptLimiter>,
    /// The rules.
    pub settings: Settings,
    /// Counters.
    pub metrics: Metrics,
}

/// What a person's client keeps.
#[derive(Debug)]
pub struct Tokens {
    /// Signed JWT.
    pub access: SecretText,
    /// When it expires.
    pub access_expires: DateTime<Utc>,
    /// Works once.
    pub refresh: SecretText,
    /// When the session ends at the latest.
    pub session_expires: DateTime<Utc>,
}

/// A person who calls with a token.
#[derive(Debug, Clone, Copy)]
struct Person {
    id: Uuid,
    session: Uuid,
}

impl Iam {
    fn now(&self) -> DateTime<Utc> {
        // PostgreSQL keeps microseconds; what is compared later must be what was stored.
        let now = (self.clock)();
        DateTime::from_timestamp_micros(now.timestamp_micros()).unwrap_or(now)
    }

    async fn begin(&self, tenant: &TenantId, operation: &'static str) -> Result<Tx<'static>> {
        self.db.begin(tenant).await.map_err(Error::database(operation))
    }

    /// Commits, then has this process refuse the tokens of sessions that the transaction ended.
    async fn commit(&self, tx: Tx<'static>, operation: &'static str, ended: Vec<Revoked>) -> Result<()> {
        tx.commit().await.map_err(Error::database(operation))?;
        for revoked in ended {
            self.ring.revoke(revoked);
        }
        Ok(())
    }

    fn login_mac(&self, tenant: &TenantId, login: &str) -> [u8; 32] {
        self.vault.mac("login", &[tenant.as_str().as_bytes(), login.as_bytes()])
    }

    fn login_macs(&self, tenant: &TenantId, login: &str) -> Vec<Vec<u8>> {
        self.vault
            .macs("login", &[tenant.as_str().as_bytes(), login.as_bytes()])
    }
}

/// The person behind a token; anybody else is turned away.
fn person(caller: &Caller) -> Result<Person> {
    match (&caller.principal, caller.session) {
        (Principal::User { id, .. }, Some(session)) => Ok(Person { id: *id, session }),
        _ => Err(Error::NotPermitted("only a person who is logged in can do this")),
    }
}

fn sealed_owner(tenant: &TenantId, user: Uuid) -> String {
    format!("{tenant}/{user}")
}

fn address_text(address: Option<IpAddr>) -> String {
    address.map(|address| address.to_string()).unwrap_or_default()
}

/// What [`Vault::seal`] is told authenticator secrets are.
const TOTP_PURPOSE: &str = "totp secret";
