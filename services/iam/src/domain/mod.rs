//! Types, rules and limits of identity; no clock, no database, no network.

mod limiter;
mod lockout;
mod login;
mod password;
mod role;
mod secret;
mod session;

pub use limiter::{AttemptLimiter, LimiterSettings, Verdict};
pub use lockout::Lockout;
pub use login::{InvalidLogin, LoginName};
pub use password::{PasswordPolicy, PasswordProblem};
pub use role::{Role, UnknownRole, roles_from_names};
pub use secret::SecretText;
pub use session::{Session, SessionLimits, Standing};

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// A person's account in one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// UUIDv7.
    pub id: Uuid,
    /// Unique within the tenant.
    pub login: LoginName,
    /// How the person is shown.
    pub display_name: String,
    /// What the person may do.
    pub roles: Vec<Role>,
    /// Shut by an administrator.
    pub disabled: bool,
    /// An authenticator app has been confirmed.
    pub totp_enrolled: bool,
    /// When the account was made.
    pub created: DateTime<Utc>,
    /// When the person last logged in with every factor.
    pub last_login: Option<DateTime<Utc>>,
    /// Set while too many failed attempts keep the account shut.
    pub locked_until: Option<DateTime<Utc>>,
}

impl User {
    /// Whether the account can administer its tenant now.
    pub fn is_active_admin(&self) -> bool {
        !self.disabled && self.roles.contains(&Role::Admin)
    }
}

/// A customer or a division whose data nobody else sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Never changes.
    pub id: garrison_proto::TenantId,
    /// How the tenant is shown.
    pub display_name: String,
    /// Nobody of it can log in.
    pub disabled: bool,
    /// When it was made.
    pub created: DateTime<Utc>,
}
