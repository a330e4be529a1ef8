//! The use cases in this process, with a clock that tests turn.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use chrono::{DateTime, TimeDelta, Utc};
use garrison_auth::{Caller, Principal, token};
use garrison_db::Db;
use garrison_proto::{
    TenantId,
    event::v1::{LoginEvent, SessionRevoked, login_event::Outcome},
};
use garrison_testkit::Stack;
use iam::{
    app::{FactorProof, Iam, LoginStep, PreparedTenant, PreparedUser, Settings, Tokens},
    crypto::{HasherSettings, PasswordHasher, SigningKeys, TotpSecret, Vault},
    domain::{AttemptLimiter, LimiterSettings, Lockout, PasswordPolicy, SecretText, SessionLimits, roles_from_names},
    error::Error,
    metrics::Metrics,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The first password of everybody.
pub const PASSWORD: &str = "nine tall ships";
/// Where logins come from.
pub const ADDRESS: &str = "192.0.2.10";

pub struct World {
    pub iam: Arc<Iam>,
    pub db: Db,
    pub now: Arc<Mutex<DateTime<Utc>>>,
    pub totp: TotpSecret,
    /// To make another instance on the same database.
    pub key_file: PathBuf,
    _dir: tempfile::TempDir,
}

/// What tests vary.
#[derive(Clone, Copy)]
pub struct Options {
    pub per_minute: u32,
    pub iterations: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            per_minute: 1000,
            iterations: 1,
        }
    }
}

pub fn settings() -> Settings {
    Settings {
        sessions: SessionLimits {
            access: TimeDelta::minutes(5),
            idle: TimeDelta::minutes(30),
            absolute: TimeDelta::hours(12),
            challenge: TimeDelta::minutes(5),
            per_user: 3,
        },
        lockout: Lockout {
            threshold: 5,
            base: TimeDelta::seconds(30),
            max: TimeDelta::minutes(15),
            forget_after: TimeDelta::hours(24),
        },
        passwords: PasswordPolicy { min_length: 12 },
        rotate_after: TimeDelta::days(30),
        issuer: "Garrison".into(),
        rules: token::Rules::for_trust_domain("test"),
    }
}

/// People of a tenant: `admin` and `eva` with an authenticator, `ada`, `bob` and `root` without.
fn people(totp: &TotpSecret) -> Vec<PreparedUser> {
    [
        ("admin", "admin", true),
        ("root", "admin", false),
        ("eva", "analyst", true),
        ("ada", "analyst", false),
        ("bob", "viewer", false),
    ]
    .into_iter()
    .map(|(login, role, second)| PreparedUser {
        login: login.parse().unwrap(),
        display_name: String::new(),
        roles: roles_from_names(&[role]).unwrap(),
        password: PASSWORD.to_owned().into(),
        totp: second.then(|| totp.clone()),
    })
    .collect()
}

impl World {
    pub async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let config = Stack::shared().await.database("iam", &iam::MIGRATOR).await;
        let db = Db::connect(&config, "iam").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("iam.key");
        std::fs::write(&key_file, "5a".repeat(32)).unwrap();
        // Whole seconds, and not at the border of a TOTP step.
        let start = Utc::now().timestamp() / 30 * 30 + 3;
        let now = Arc::new(Mutex::new(DateTime::from_timestamp(start, 0).unwrap()));
        let iam = instance(&db, &key_file, &now, options);
        let totp = TotpSecret::generate();
        let tenants: Vec<PreparedTenant> = ["system", "acme", "other"]
            .into_iter()
            .map(|id| PreparedTenant {
                id: id.parse().unwrap(),
                display_name: id.to_uppercase(),
                users: people(&totp),
            })
            .collect();
        iam.prepare(&tenants, &CancellationToken::new()).await.unwrap();
        Self {
            iam,
            db,
            now,
            totp,
            key_file,
            _dir: dir,
        }
    }

    /// A second iam on the same database and clock, as after a restart or beside the first.
    pub fn another(&self, options: Options) -> Arc<Iam> {
        instance(&self.db, &self.key_file, &self.now, options)
    }

    pub fn turn(&self, by: TimeDelta) {
        *self.now.lock().unwrap() += by;
    }

    pub fn time(&self) -> DateTime<Utc> {
        *self.now.lock().unwrap()
    }

    /// The code of the authenticator now, offset by steps.
    pub fn code(&self, steps: i64) -> String {
        self.totp.code_at((self.time().timestamp() + steps * 30) as u64)
    }

    pub async fn password(&self, tenant: &str, login: &str, password: &str) -> Result<LoginStep, Error> {
        let address = ADDRESS.parse::<IpAddr>().ok();
        self.iam.login(tenant, login, SecretText::new(password), address).await
    }

    pub async fn challenge(&self, tenant: &str, login: &str) -> String {
        match self.password(tenant, login, PASSWORD).await.unwrap() {
            LoginStep::Factor { challenge } => challenge.expose().to_owned(),
            LoginStep::Done(_) => panic!("no factor was asked for"),
        }
    }

    pub async fn prove(&self, challenge: &str, code: &str) -> Result<Tokens, Error> {
        let proof = FactorProof::Totp(SecretText::new(code));
        self.iam.verify_factor(challenge, proof, ADDRESS.parse().ok()).await
    }

    /// Logs in; with an authenticator uses the next step, after turning the clock past the last.
    pub async fn login(&self, tenant: &str, login: &str) -> Tokens {
        match self.password(tenant, login, PASSWORD).await.unwrap() {
            LoginStep::Done(tokens) => tokens,
            LoginStep::Factor { challenge } => {
                let tokens = self.prove(challenge.expose(), &self.code(0)).await.unwrap();
                self.turn(TimeDelta::seconds(30));
                tokens
            }
        }
    }

    pub async fn caller(&self, tenant: &str, login: &str) -> Caller {
        self.verified(&self.login(tenant, login).await)
    }

    /// What the authorisation layer makes of an access token.
    pub fn verified(&self, tokens: &Tokens) -> Caller {
        let keys = self.iam.signing.published();
        let find = |id: &str| keys.keys.iter().find(|key| key.id == id).map(|key| key.bytes);
        let claims = token::verify(
            tokens.access.expose(),
            &self.iam.settings.rules,
            // Signed a moment ago by the test's clock.
            tokens.access_expires - TimeDelta::seconds(20),
            find,
        )
        .unwrap();
        Caller {
            tenant: claims.tenant.clone(),
            principal: Principal::User {
                id: claims.user().unwrap(),
                login: claims.preferred_username.clone(),
            },
            session: Some(claims.sid),
            second_factor: claims.second_factor(),
            roles: claims.roles,
            address: ADDRESS.parse().ok(),
        }
    }

    pub async fn refresh(&self, tokens: &Tokens) -> Result<Tokens, Error> {
        self.iam.refresh(tokens.refresh.expose(), ADDRESS.parse().ok()).await
    }

    pub async fn user_id(&self, tenant: &str, login: &str) -> Uuid {
        let mut tx = self.db.begin(&tenant.parse::<TenantId>().unwrap()).await.unwrap();
        let account = iam::store::find_account_by_login(&mut tx, &login.parse().unwrap())
            .await
            .unwrap();
        account.unwrap().user.id
    }

    /// What was published of a kind in a tenant, in order. Nothing relays here, so the outbox keeps it all.
    pub async fn published<M: prost::Message + Default + prost::Name>(&self, tenant: &str) -> Vec<M> {
        let mut tx = self.db.begin(&tenant.parse::<TenantId>().unwrap()).await.unwrap();
        let rows: Vec<Vec<u8>> = sqlx::query_scalar("SELECT payload FROM outbox WHERE kind = $1 ORDER BY id")
            .bind(M::full_name())
            .fetch_all(&mut *tx)
            .await
            .unwrap();
        rows.iter().map(|row| M::decode(row.as_slice()).unwrap()).collect()
    }

    pub async fn outcomes(&self, tenant: &str) -> Vec<Outcome> {
        let events: Vec<LoginEvent> = self.published(tenant).await;
        events.iter().map(LoginEvent::outcome).collect()
    }

    pub async fn revocations(&self, tenant: &str) -> Vec<SessionRevoked> {
        self.published(tenant).await
    }
}

fn instance(db: &Db, key_file: &std::path::Path, now: &Arc<Mutex<DateTime<Utc>>>, options: Options) -> Arc<Iam> {
    let now = Arc::clone(now);
    Arc::new(Iam {
        db: db.clone(),
        clock: Arc::new(move || *now.lock().unwrap()),
        vault: Vault::load(key_file, &[]).unwrap(),
        hasher: PasswordHasher::new(HasherSettings {
            memory_kib: 64,
            iterations: options.iterations,
            parallelism: 1,
            concurrent: 2,
            queue: 64,
        })
        .unwrap(),
        signing: SigningKeys::default(),
        ring: Arc::new(garrison_auth::KeyRing::new()),
        limiter: Mutex::new(AttemptLimiter::new(LimiterSettings {
            per_minute: options.per_minute,
            max_addresses: 100,
        })),
        settings: settings(),
        metrics: Metrics::default(),
    })
}
