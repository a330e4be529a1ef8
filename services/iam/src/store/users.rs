use chrono::{DateTime, Utc};
use garrison_db::Tx;
use uuid::Uuid;

use super::{Result, is_duplicate, tenant_of};
use crate::{
    domain::{LoginName, Role, User, roles_from_names},
    error::Error,
};

/// A person's account with what is needed to check a login. Has no `Debug`: the hash is not for logs.
pub struct Account {
    /// What others may see. `locked_until` is not filled in.
    pub user: User,
    /// PHC string.
    pub password_hash: String,
    /// The confirmed authenticator's secret, sealed.
    pub totp_secret: Option<Vec<u8>>,
    /// The secret that waits for its first code, sealed.
    pub totp_pending: Option<Vec<u8>>,
    /// The last time step that was used.
    pub totp_last_step: u64,
}

/// A person to be added.
pub struct NewUser<'a> {
    /// UUIDv7.
    pub id: Uuid,
    /// Unique in the tenant.
    pub login: &'a LoginName,
    /// How the person is shown.
    pub display_name: &'a str,
    /// Sorted.
    pub roles: &'a [Role],
    /// PHC string.
    pub password_hash: &'a str,
    /// The time.
    pub created: DateTime<Utc>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    login: String,
    display_name: String,
    roles: Vec<String>,
    disabled: bool,
    password_hash: String,
    created_at: DateTime<Utc>,
    last_login_at: Option<DateTime<Utc>>,
    totp_secret: Option<Vec<u8>>,
    totp_pending_secret: Option<Vec<u8>>,
    totp_last_step: i64,
}

impl Row {
    fn read(self) -> Result<Account> {
        let wrong = |detail: String| Error::Stored {
            operation: "reading a user",
            detail,
        };
        Ok(Account {
            user: User {
                id: self.id,
                login: self
                    .login
                    .parse()
                    .map_err(|_| wrong(format!("the login of {}", self.id)))?,
                display_name: self.display_name,
                roles: roles_from_names(&self.roles).map_err(|error| wrong(error.to_string()))?,
                disabled: self.disabled,
                totp_enrolled: self.totp_secret.is_some(),
                created: self.created_at,
                last_login: self.last_login_at,
                locked_until: None,
            },
            password_hash: self.password_hash,
            totp_secret: self.totp_secret,
            totp_pending: self.totp_pending_secret,
            totp_last_step: u64::try_from(self.totp_last_step).unwrap_or(0),
        })
    }
}

macro_rules! select_users {
    ($rest:literal) => {
        concat!(
            "SELECT id, login, display_name, roles, disabled, password_hash, created_at, last_login_at, \
             totp_secret, totp_pending_secret, totp_last_step FROM users ",
            $rest
        )
    };
}

/// The account with this login.
pub async fn find_account_by_login(tx: &mut Tx<'_>, login: &LoginName) -> Result<Option<Account>> {
    sqlx::query_as::<_, Row>(select_users!("WHERE login = $1"))
        .bind(login.as_str())
        .fetch_optional(&mut **tx)
        .await
        .map_err(Error::query("reading a user by login"))?
        .map(Row::read)
        .transpose()
}

/// The account with this id, locked until the end of the transaction.
pub async fn find_account(tx: &mut Tx<'_>, id: Uuid) -> Result<Option<Account>> {
    sqlx::query_as::<_, Row>(select_users!("WHERE id = $1 FOR UPDATE"))
        .bind(id)
        .fetch_optional(&mut **tx)
        .await
        .map_err(Error::query("reading a user"))?
        .map(Row::read)
        .transpose()
}

/// Accounts after an id, in the order they were made.
pub async fn list_accounts(tx: &mut Tx<'_>, after: Uuid, limit: i64) -> Result<Vec<Account>> {
    sqlx::query_as::<_, Row>(select_users!("WHERE id > $1 ORDER BY id LIMIT $2"))
        .bind(after)
        .bind(limit)
        .fetch_all(&mut **tx)
        .await
        .map_err(Error::query("listing users"))?
        .into_iter()
        .map(Row::read)
        .collect()
}

/// Adds a person.
pub async fn insert_user(tx: &mut Tx<'_>, user: &NewUser<'_>) -> Result<()> {
    let roles: Vec<&str> = user.roles.iter().map(|role| role.name()).collect();
    sqlx::query(
        "INSERT INTO users (tenant_id, id, login, display_name, roles, password_hash, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(tenant_of(tx))
    .bind(user.id)
    .bind(user.login.as_str())
    .bind(user.display_name)
    .bind(roles)
    .bind(user.password_hash)
    .bind(user.created)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(|error| {
        if is_duplicate(&error) {
            Error::Exists(format!("a user with the login {}", user.login))
        } else {
            Error::query("creating a user")(error)
        }
    })
}

/// Lets one administrator at a time change who administers the tenant.
pub async fn lock_tenant(tx: &mut Tx<'_>) -> Result<()> {
    let tenant = tenant_of(tx);
    sqlx::query("SELECT 1 FROM tenants WHERE tenant_id = $1 FOR UPDATE")
        .bind(tenant)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("locking a tenant"))
}

/// How many people can administer the tenant now.
pub async fn count_active_admins(tx: &mut Tx<'_>) -> Result<i64> {
    sqlx::query_scalar("SELECT count(*) FROM users WHERE NOT disabled AND 'admin' = ANY (roles)")
        .fetch_one(&mut **tx)
        .await
        .map_err(Error::query("counting administrators"))
}

/// Replaces a person's roles.
pub async fn set_roles(tx: &mut Tx<'_>, id: Uuid, roles: &[Role]) -> Result<()> {
    let roles: Vec<&str> = roles.iter().map(|role| role.name()).collect();
    sqlx::query("UPDATE users SET roles = $2 WHERE id = $1")
        .bind(id)
        .bind(roles)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("changing a user's roles"))
}

/// Shuts or opens an account.
pub async fn set_disabled(tx: &mut Tx<'_>, id: Uuid, disabled: bool) -> Result<()> {
    sqlx::query("UPDATE users SET disabled = $2 WHERE id = $1")
        .bind(id)
        .bind(disabled)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("disabling a user"))
}

/// Stores a new password hash.
pub async fn set_password(tx: &mut Tx<'_>, id: Uuid, password_hash: &str) -> Result<()> {
    sqlx::query("UPDATE users SET password_hash = $2 WHERE id = $1")
        .bind(id)
        .bind(password_hash)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("storing a password"))
}

/// Notes a complete login.
pub async fn record_login(tx: &mut Tx<'_>, id: Uuid, now: DateTime<Utc>) -> Result<()> {
    sqlx::query("UPDATE users SET last_login_at = $2 WHERE id = $1")
        .bind(id)
        .bind(now)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("recording a login"))
}

/// Stores a secret that waits for its first code.
pub async fn set_totp_pending(tx: &mut Tx<'_>, id: Uuid, sealed: &[u8]) -> Result<()> {
    sqlx::query("UPDATE users SET totp_pending_secret = $2 WHERE id = $1")
        .bind(id)
        .bind(sealed)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("storing an authenticator"))
}

/// Stores a confirmed secret, or removes the authenticator with `None`; nothing is pending after either.
pub async fn store_totp(tx: &mut Tx<'_>, id: Uuid, sealed: Option<&[u8]>, last_step: u64) -> Result<()> {
    sqlx::query("UPDATE users SET totp_secret = $2, totp_pending_secret = NULL, totp_last_step = $3 WHERE id = $1")
        .bind(id)
        .bind(sealed)
        .bind(i64::try_from(last_step).unwrap_or(i64::MAX))
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("storing an authenticator"))
}

/// Notes the time step of a code that was taken.
pub async fn set_totp_step(tx: &mut Tx<'_>, id: Uuid, step: u64) -> Result<()> {
    sqlx::query("UPDATE users SET totp_last_step = $2 WHERE id = $1")
        .bind(id)
        .bind(i64::try_from(step).unwrap_or(i64::MAX))
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("recording a used code"))
}
