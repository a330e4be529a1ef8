use garrison_auth::Caller;
use garrison_db::Tx;
use garrison_proto::{audit::v1::Actor, resource_name};
use uuid::Uuid;

use super::{Iam, Result, record::Entry};
use crate::{
    domain::{LoginName, Role, SecretText, User},
    error::Error,
    store::{self, NewUser},
};

/// Part of a list, and where the next part begins.
#[derive(Debug)]
pub struct Page<T> {
    /// The part.
    pub items: Vec<T>,
    /// Empty on the last one.
    pub next_page_token: String,
}

/// What an administrator changes about a person.
#[derive(Debug, Clone, Default)]
pub struct UserChange {
    /// Replaces the roles.
    pub roles: Option<Vec<Role>>,
    /// Shuts or opens the account.
    pub disabled: Option<bool>,
}

/// A list's page when the client asks for none, and the largest.
const DEFAULT_PAGE: i32 = 50;
const MAX_PAGE: i32 = 500;

/// The number of rows to read for a page: one more than asked, to see whether more follow.
pub(super) fn page_rows(page_size: i32) -> Result<(usize, i64)> {
    if page_size < 0 {
        return Err(Error::field("page_size", "it is negative; leave it out for 50"));
    }
    let size = if page_size == 0 {
        DEFAULT_PAGE
    } else {
        page_size.min(MAX_PAGE)
    };
    Ok((usize::try_from(size).unwrap_or(1), i64::from(size) + 1))
}

impl Iam {
    /// Adds a person to the caller's tenant.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Password`], [`Error::Field`] and database errors.
    pub async fn create_user(
        &self,
        caller: &Caller,
        login: &LoginName,
        display_name: &str,
        roles: &[Role],
        password: SecretText,
    ) -> Result<User> {
        let operation = "creating a user";
        check_display_name(display_name)?;
        self.check_password("password", &password, login)?;
        let hash = self.hasher.hash(password).await?;
        let mut tx = self.begin(&caller.tenant, operation).await?;
        let user = self
            .add_user(&mut tx, &caller.actor(), login, display_name, roles, &hash)
            .await?;
        self.commit(tx, operation, Vec::new()).await?;
        Ok(user)
    }

    pub(super) async fn add_user(
        &self,
        tx: &mut Tx<'_>,
        actor: &Actor,
        login: &LoginName,
        display_name: &str,
        roles: &[Role],
        password_hash: &str,
    ) -> Result<User> {
        let display_name = if display_name.is_empty() {
            login.as_str()
        } else {
            display_name
        };
        let (id, now) = (Uuid::now_v7(), self.now());
        store::insert_user(
            tx,
            &NewUser {
                id,
                login,
                display_name,
                roles,
                password_hash,
                created: now,
            },
        )
        .await?;
        self.audit(
            tx,
            Entry {
                details: vec![("login", login.to_string()), ("roles", role_list(roles))],
                ..Entry::done(actor.clone(), "user.created", resource_name("users", id))
            },
        )
        .await?;
        Ok(User {
            id,
            login: login.clone(),
            display_name: display_name.to_owned(),
            roles: roles.to_vec(),
            disabled: false,
            totp_enrolled: false,
            created: now,
            last_login: None,
            locked_until: None,
        })
    }

    /// One person of the caller's tenant.
    ///
    /// # Errors
    /// [`Error::NotFound`] and database errors.
    pub async fn get_user(&self, caller: &Caller, id: Uuid) -> Result<User> {
        let operation = "reading a user";
        let mut tx = self.begin(&caller.tenant, operation).await?;
        let account = store::find_account(&mut tx, id).await?.ok_or_else(|| not_found(id))?;
        let mut users = vec![account.user];
        self.fill_locks(&mut tx, &mut users).await?;
        self.commit(tx, operation, Vec::new()).await?;
        users.pop().ok_or_else(|| not_found(id))
    }

    /// The people of the caller's tenant, in the order they were added.
    ///
    /// # Errors
    /// [`Error::Field`] for a page token that is none, and database errors.
    pub async fn list_users(&self, caller: &Caller, page_size: i32, page_token: &str) -> Result<Page<User>> {
        let operation = "listing users";
        let (size, rows) = page_rows(page_size)?;
        let after = match page_token {
            "" => Uuid::nil(),
            token => Uuid::parse_str(token)
                .map_err(|_| Error::field("page_token", "it is not one that this method returned"))?,
        };
        let mut tx = self.begin(&caller.tenant, operation).await?;
        let mut users: Vec<User> = store::list_accounts(&mut tx, after, rows)
            .await?
            .into_iter()
            .map(|account| account.user)
            .collect();
        let more = users.len() > size;
        users.truncate(size);
        self.fill_locks(&mut tx, &mut users).await?;
        self.commit(tx, operation, Vec::new()).await?;
        let last = users.last().filter(|_| more).map(|user| user.id.to_string());
        Ok(Page {
            items: users,
            next_page_token: last.unwrap_or_default(),
        })
    }

    /// Changes a person's roles or shuts the account; ends the person's sessions when either narrows.
    ///
    /// # Errors
    /// [`Error::LockOut`] when the caller would shut itself out or nobody could administer the tenant any more.
    pub async fn update_user(&self, caller: &Caller, id: Uuid, change: UserChange) -> Result<User> {
        let operation = "changing a user";
        let now = self.now();
        let mut tx = self.begin(&caller.tenant, operation).await?;
        store::lock_tenant(&mut tx).await?;
        let mut user = store::find_account(&mut tx, id)
            .await?
            .ok_or_else(|| not_found(id))?
            .user;
        let was_admin = user.is_active_admin();
        let mut narrowed = false;
        let mut details = vec![("login", user.login.to_string())];
        if let Some(roles) = change.roles.filter(|roles| *roles != user.roles) {
            narrowed |= user.roles.iter().any(|role| !roles.contains(role));
            details.push(("roles_before", role_list(&user.roles)));
            details.push(("roles", role_list(&roles)));
            store::set_roles(&mut tx, id, &roles).await?;
            user.roles = roles;
        }
        if let Some(disabled) = change.disabled.filter(|disabled| *disabled != user.disabled) {
            if disabled && caller.user() == Some(id) {
                return Err(Error::LockOut(
                    "you cannot disable your own account; another administrator can",
                ));
            }
            narrowed |= disabled;
            details.push(("disabled", disabled.to_string()));
            store::set_disabled(&mut tx, id, disabled).await?;
            user.disabled = disabled;
        }
        if was_admin && !user.is_active_admin() && store::count_active_admins(&mut tx).await? == 0 {
            return Err(Error::LockOut(
                "this is the tenant's last administrator; make somebody else one first",
            ));
        }
        let mut revoked = Vec::new();
        if narrowed {
            let reason = "an administrator narrowed the account";
            let ended = store::end_sessions_of_user(&mut tx, Some(id), None, reason, now).await?;
            revoked = self
                .announce_ends(&mut tx, &ended, &caller.actor(), reason, now)
                .await?;
        }
        self.audit(
            &mut tx,
            Entry {
                details,
                ..Entry::done(caller.actor(), "user.updated", resource_name("users", id))
            },
        )
        .await?;
        let mut users = vec![user];
        self.fill_locks(&mut tx, &mut users).await?;
        self.commit(tx, operation, revoked).await?;
        users.pop().ok_or_else(|| not_found(id))
    }

    /// Sets a new password for a person, opens a locked account and ends all its sessions.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Password`] and database errors.
    pub async fn reset_password(
        &self,
        caller: &Caller,
        id: Uuid,
        password: SecretText,
        reset_totp: bool,
    ) -> Result<()> {
        let operation = "resetting a password";
        let mut tx = self.begin(&caller.tenant, operation).await?;
        let login = store::find_account(&mut tx, id)
            .await?
            .ok_or_else(|| not_found(id))?
            .user
            .login;
        self.commit(tx, operation, Vec::new()).await?;
        self.check_password("password", &password, &login)?;
        let hash = self.hasher.hash(password).await?;

        let now = self.now();
        let mut tx = self.begin(&caller.tenant, operation).await?;
        store::find_account(&mut tx, id).await?.ok_or_else(|| not_found(id))?;
        store::set_password(&mut tx, id, &hash).await?;
        if reset_totp {
            store::store_totp(&mut tx, id, None, 0).await?;
            store::replace_recovery_codes(&mut tx, id, &[]).await?;
        }
        for lock in store::forget_failures(&mut tx, &self.login_macs(&caller.tenant, login.as_str())).await? {
            self.record_refused(&mut tx, &lock, login.as_str()).await?;
        }
        let reason = "an administrator reset the password";
        let ended = store::end_sessions_of_user(&mut tx, Some(id), None, reason, now).await?;
        let revoked = self
            .announce_ends(&mut tx, &ended, &caller.actor(), reason, now)
            .await?;
        self.audit(
            &mut tx,
            Entry {
                details: vec![("login", login.to_string()), ("reset_totp", reset_totp.to_string())],
                ..Entry::done(caller.actor(), "user.password_reset", resource_name("users", id))
            },
        )
        .await?;
        self.commit(tx, operation, revoked).await
    }

    pub(super) fn check_password(&self, field: &'static str, password: &SecretText, login: &LoginName) -> Result<()> {
        self.settings
            .passwords
            .check(password, login)
            .map_err(|problem| Error::Password { field, problem })
    }

    async fn fill_locks(&self, tx: &mut Tx<'_>, users: &mut [User]) -> Result<()> {
        let tenant = tx.tenant().clone();
        let macs: Vec<Vec<u8>> = users
            .iter()
            .map(|user| self.login_mac(&tenant, user.login.as_str()).to_vec())
            .collect();
        let locks = store::locked_until(tx, &macs, self.now()).await?;
        for (user, mac) in users.iter_mut().zip(&macs) {
            user.locked_until = locks.iter().find(|(locked, _)| locked == mac).map(|(_, until)| *until);
        }
        Ok(())
    }
}

pub(super) fn check_display_name(name: &str) -> Result<()> {
    if name.chars().count() > 128 || name.chars().any(char::is_control) {
        return Err(Error::field(
            "display_name",
            "use at most 128 characters and no control characters",
        ));
    }
    Ok(())
}

fn not_found(id: Uuid) -> Error {
    Error::NotFound(resource_name("users", id))
}

fn role_list(roles: &[Role]) -> String {
    let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
    names.join(",")
}
