//! The configuration file.

use std::path::PathBuf;

use chrono::TimeDelta;
use garrison_auth::token::{MAX_LIFETIME, Rules};
use garrison_proto::TenantId;
use garrison_service::{ConfigError, Core, ServiceConfig, read_secret};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    app::{PreparedTenant, PreparedUser, Settings},
    crypto::{HasherSettings, TotpSecret},
    domain::{LimiterSettings, Lockout, LoginName, PasswordPolicy, Role, SecretText, SessionLimits, roles_from_names},
};

/// The configuration of iam.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What every service has.
    pub core: Core,
    /// How secrets are sealed in the database.
    pub secrets: SecretsConfig,
    /// How passwords are hashed and judged.
    #[serde(default)]
    pub passwords: PasswordsConfig,
    /// How long sessions and tokens live.
    #[serde(default)]
    pub sessions: SessionsConfig,
    /// When logins are slowed down.
    #[serde(default)]
    pub lockout: LockoutConfig,
    /// Token signing keys.
    #[serde(default)]
    pub keys: KeysConfig,
    /// Authenticator apps.
    #[serde(default)]
    pub totp: TotpConfig,
    /// Tenants that are created at start with their first people. One that exists is left as it is.
    #[serde(default)]
    pub bootstrap: Vec<BootstrapTenant>,
}

/// How secrets are sealed in the database.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretsConfig {
    /// File with 64 hexadecimal digits: the key under which authenticator secrets and signing keys are sealed.
    /// Make one with `openssl rand -hex 32`. Without it the database alone is of no use to a thief, nor to you.
    pub key_file: PathBuf,
    /// Older key files, which still open what they sealed.
    #[serde(default)]
    pub previous_key_files: Vec<PathBuf>,
}

/// How passwords are hashed and judged.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PasswordsConfig {
    /// Memory of one Argon2id hash in KiB; at least 19456, the least that OWASP recommends.
    pub memory_kib: u32,
    /// Passes over it; at least 2.
    pub iterations: u32,
    /// Lanes.
    pub parallelism: u32,
    /// Hashes at a time. Times `memory_kib` this bounds the memory that logins can take.
    pub concurrent_hashes: usize,
    /// Logins that may wait for a hash; one more is told to come back.
    pub queue: usize,
    /// Fewest characters of a new password; at least 8, the least that NIST SP 800-63B allows.
    pub min_length: usize,
}

/// How long sessions and tokens live.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SessionsConfig {
    /// Seconds that an access token lives, 30 to 3600.
    pub access_token_seconds: u32,
    /// Minutes after which an unused session ends; longer than an access token lives.
    pub idle_minutes: u32,
    /// Hours after which any session ends.
    pub absolute_hours: u32,
    /// Sessions of one person at a time; a further login ends the oldest.
    pub per_user: u32,
    /// Seconds to enter a code after the password.
    pub challenge_seconds: u32,
}

/// When logins are slowed down.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LockoutConfig {
    /// The failure in a row that locks a login.
    pub threshold: u32,
    /// Seconds that the first lock lasts; each further one lasts twice as long.
    pub base_seconds: u32,
    /// Seconds that no lock exceeds.
    pub max_seconds: u32,
    /// Hours after which failures are forgotten.
    pub forget_hours: u32,
    /// Login attempts that one client address may make on one tenant in a minute. An IPv6 client counts by its /64.
    pub attempts_per_minute: u32,
}

/// Token signing keys.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeysConfig {
    /// Days after which a new key takes over signing.
    pub rotate_after_days: u32,
}

/// Authenticator apps.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TotpConfig {
    /// The name that apps show; without a colon.
    pub issuer: String,
}

/// A tenant that is created at start.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BootstrapTenant {
    /// Lower-case letters, digits and hyphens. `system` administers the installation.
    pub id: String,
    /// How it is shown; the id when left out.
    #[serde(default)]
    pub display_name: Option<String>,
    /// Its first people; at least one with the role `admin`.
    pub users: Vec<BootstrapUser>,
}

/// A person of a tenant that is created at start.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BootstrapUser {
    /// The name to log in with.
    pub login: String,
    /// How the person is shown; the login when left out.
    #[serde(default)]
    pub display_name: Option<String>,
    /// Any of viewer, analyst, responder, policy-author, auditor and admin.
    pub roles: Vec<String>,
    /// File with the first password.
    pub password_file: PathBuf,
    /// File with the Base32 secret of an authenticator that is enrolled from the start.
    #[serde(default)]
    pub totp_secret_file: Option<PathBuf>,
}

impl Default for PasswordsConfig {
    fn default() -> Self {
        Self {
            memory_kib: 19 * 1024,
            iterations: 2,
            parallelism: 1,
            concurrent_hashes: 2,
            queue: 64,
            min_length: 12,
        }
    }
}

impl Default for SessionsConfig {
    fn default() -> Self {
        Self {
            access_token_seconds: 300,
            idle_minutes: 30,
            absolute_hours: 12,
            per_user: 10,
            challenge_seconds: 300,
        }
    }
}

impl Default for LockoutConfig {
    fn default() -> Self {
        Self {
            threshold: 5,
            base_seconds: 30,
            max_seconds: 900,
            forget_hours: 24,
            attempts_per_minute: 60,
        }
    }
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self { rotate_after_days: 30 }
    }
}

impl Default for TotpConfig {
    fn default() -> Self {
        Self {
            issuer: "Garrison".to_owned(),
        }
    }
}

impl ServiceConfig for Config {
    fn core(&self) -> &Core {
        &self.core
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let sessions = &self.sessions;
        within(
            "passwords.memory_kib",
            self.passwords.memory_kib,
            19 * 1024,
            4 * 1024 * 1024,
        )?;
        within("passwords.iterations", self.passwords.iterations, 2, 100)?;
        within("passwords.parallelism", self.passwords.parallelism, 1, 16)?;
        within("passwords.concurrent_hashes", self.passwords.concurrent_hashes, 1, 256)?;
        within("passwords.queue", self.passwords.queue, 0, 10_000)?;
        within("passwords.min_length", self.passwords.min_length, 8, 64)?;
        let max_access = u32::try_from(MAX_LIFETIME).unwrap_or(u32::MAX);
        within(
            "sessions.access_token_seconds",
            sessions.access_token_seconds,
            30,
            max_access,
        )?;
        let least_idle = sessions.access_token_seconds / 60 + 1;
        within("sessions.idle_minutes", sessions.idle_minutes, least_idle, 60 * 24 * 30)?;
        within("sessions.absolute_hours", sessions.absolute_hours, 1, 24 * 30)?;
        within("sessions.per_user", sessions.per_user, 1, 100)?;
        within("sessions.challenge_seconds", sessions.challenge_seconds, 30, 3600)?;
        within("lockout.threshold", self.lockout.threshold, 2, 100)?;
        within("lockout.base_seconds", self.lockout.base_seconds, 1, 3600)?;
        within(
            "lockout.max_seconds",
            self.lockout.max_seconds,
            self.lockout.base_seconds,
            86_400,
        )?;
        within("lockout.forget_hours", self.lockout.forget_hours, 1, 24 * 30)?;
        within(
            "lockout.attempts_per_minute",
            self.lockout.attempts_per_minute,
            1,
            10_000,
        )?;
        within("keys.rotate_after_days", self.keys.rotate_after_days, 1, 366)?;
        if self.totp.issuer.is_empty() || self.totp.issuer.contains(':') {
            return Err(ConfigError::invalid("totp.issuer", "give a name without a colon"));
        }
        for (index, tenant) in self.bootstrap.iter().enumerate() {
            tenant.check(&format!("bootstrap[{index}]"))?;
        }
        Ok(())
    }
}

impl Config {
    /// The rules of the use cases.
    pub fn settings(&self) -> Settings {
        let (sessions, lockout) = (&self.sessions, &self.lockout);
        Settings {
            sessions: SessionLimits {
                access: TimeDelta::seconds(sessions.access_token_seconds.into()),
                idle: TimeDelta::minutes(sessions.idle_minutes.into()),
                absolute: TimeDelta::hours(sessions.absolute_hours.into()),
                challenge: TimeDelta::seconds(sessions.challenge_seconds.into()),
                per_user: usize::try_from(sessions.per_user).unwrap_or(usize::MAX),
            },
            lockout: Lockout {
                threshold: lockout.threshold,
                base: TimeDelta::seconds(lockout.base_seconds.into()),
                max: TimeDelta::seconds(lockout.max_seconds.into()),
                forget_after: TimeDelta::hours(lockout.forget_hours.into()),
            },
            passwords: PasswordPolicy {
                min_length: self.passwords.min_length,
            },
            rotate_after: TimeDelta::days(self.keys.rotate_after_days.into()),
            issuer: self.totp.issuer.clone(),
            rules: Rules::for_trust_domain(&self.core.identity.trust_domain),
        }
    }

    /// How passwords are hashed.
    pub fn hasher(&self) -> HasherSettings {
        HasherSettings {
            memory_kib: self.passwords.memory_kib,
            iterations: self.passwords.iterations,
            parallelism: self.passwords.parallelism,
            concurrent: self.passwords.concurrent_hashes,
            queue: self.passwords.queue,
        }
    }

    /// How attempts are limited.
    pub fn limiter(&self) -> LimiterSettings {
        LimiterSettings {
            per_minute: self.lockout.attempts_per_minute,
            // Some 15 MB at most.
            max_addresses: 100_000,
        }
    }

    /// Reads the files of the tenants to be created and checks what they hold.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn prepared_tenants(&self) -> Result<Vec<PreparedTenant>, ConfigError> {
        let policy = self.settings().passwords;
        self.bootstrap
            .iter()
            .enumerate()
            .map(|(index, tenant)| tenant.prepare(&format!("bootstrap[{index}]"), &policy))
            .collect()
    }
}

impl BootstrapTenant {
    fn check(&self, key: &str) -> Result<TenantId, ConfigError> {
        let id: TenantId = self
            .id
            .parse()
            .map_err(|error| ConfigError::invalid(format!("{key}.id"), format!("{error}")))?;
        let mut logins = Vec::new();
        let mut admin = false;
        for (index, user) in self.users.iter().enumerate() {
            let (login, roles) = user.check(&format!("{key}.users[{index}]"))?;
            if logins.contains(&login) {
                return Err(ConfigError::invalid(
                    format!("{key}.users[{index}].login"),
                    format!("{login} occurs twice in this tenant"),
                ));
            }
            logins.push(login);
            admin |= roles.contains(&Role::Admin);
        }
        if !admin {
            return Err(ConfigError::invalid(
                format!("{key}.users"),
                "give at least one user the role admin, or nobody can administer the tenant",
            ));
        }
        Ok(id)
    }

    fn prepare(&self, key: &str, policy: &PasswordPolicy) -> Result<PreparedTenant, ConfigError> {
        let id = self.check(key)?;
        let users = self
            .users
            .iter()
            .enumerate()
            .map(|(index, user)| user.prepare(&format!("{key}.users[{index}]"), policy))
            .collect::<Result<_, _>>()?;
        Ok(PreparedTenant {
            display_name: self.display_name.clone().unwrap_or_else(|| id.to_string()),
            id,
            users,
        })
    }
}

impl BootstrapUser {
    fn check(&self, key: &str) -> Result<(LoginName, Vec<Role>), ConfigError> {
        let login = self
            .login
            .parse()
            .map_err(|error| ConfigError::invalid(format!("{key}.login"), format!("{error}")))?;
        let roles = roles_from_names(&self.roles)
            .map_err(|error| ConfigError::invalid(format!("{key}.roles"), error.to_string()))?;
        Ok((login, roles))
    }

    fn prepare(&self, key: &str, policy: &PasswordPolicy) -> Result<PreparedUser, ConfigError> {
        let (login, roles) = self.check(key)?;
        let password_key = format!("{key}.password_file");
        let password = SecretText::from(read_secret(&password_key, &self.password_file)?);
        policy.check(&password, &login).map_err(|problem| {
            ConfigError::invalid(password_key, format!("the password is not accepted: {problem}"))
        })?;
        let totp = match &self.totp_secret_file {
            None => None,
            Some(path) => {
                let totp_key = format!("{key}.totp_secret_file");
                let text = SecretText::from(read_secret(&totp_key, path)?);
                let secret = TotpSecret::from_base32(text.expose()).ok_or_else(|| {
                    ConfigError::invalid(totp_key, "the file does not hold Base32 of at least 16 bytes")
                })?;
                Some(secret)
            }
        };
        Ok(PreparedUser {
            login,
            display_name: self.display_name.clone().unwrap_or_default(),
            roles,
            password,
            totp,
        })
    }
}

fn within<T>(key: &str, value: T, least: T, most: T) -> Result<(), ConfigError>
where
    T: PartialOrd + std::fmt::Display,
{
    if value < least || value > most {
        return Err(ConfigError::invalid(
            key,
            format!("{value} is not between {least} and {most}"),
        ));
    }
    Ok(())
}
