use std::{net::IpAddr, sync::PoisonError};

use chrono::{DateTime, Utc};
use garrison_auth::{Revoked, token::Claims};
use garrison_db::Tx;
use garrison_proto::{TenantId, event::v1::login_event::Outcome, resource_name};
use uuid::Uuid;

use super::{
    Iam, Result, Tokens, address_text,
    record::{Attempt, Entry, user_actor},
};
use crate::{
    crypto::{OpaqueKind, OpaqueToken},
    domain::{LoginName, SecretText, Session, User, Verdict},
    error::Error,
    store::{self, Account, AttemptStanding},
};

/// What follows a right password.
#[derive(Debug)]
pub enum LoginStep {
    /// Nothing: the person is in.
    Done(Tokens),
    /// A code, proven with this challenge.
    Factor {
        /// For [`Iam::verify_factor`].
        challenge: SecretText,
    },
}

impl Iam {
    /// First step of a login.
    ///
    /// This is the one place where a tenant comes from a request field: it selects where to look and grants nothing.
    /// Names that do not exist behave like those that do: the same work, the same answer, the same lock.
    ///
    /// # Errors
    /// [`Error::Credentials`], [`Error::Locked`], [`Error::RateLimited`], [`Error::Busy`] and database errors.
    pub async fn login(
        &self,
        tenant: &str,
        login: &str,
        password: SecretText,
        address: Option<IpAddr>,
    ) -> Result<LoginStep> {
        let id = tenant.strip_prefix("tenants/").unwrap_or(tenant);
        let tenant: TenantId = id.parse().map_err(|problem| Error::field("tenant", problem))?;
        let known = self.tenant_is_enabled(&tenant).await?;
        let name = login.parse::<LoginName>().ok();
        let text = name.as_ref().map(LoginName::as_str).unwrap_or_default();
        self.limit(&tenant, known.is_some(), text, address).await?;
        let Some(enabled) = known else {
            self.hasher.verify(password, None).await?;
            self.metrics.login(Outcome::UnknownUser);
            return Err(Error::Credentials);
        };
        let attempt = |outcome, user| Attempt {
            outcome,
            user,
            login: text,
            address: address_text(address),
            second_factor: false,
        };
        let Some(name) = name.as_ref() else {
            self.hasher.verify(password, None).await?;
            return self.refuse(&tenant, attempt(Outcome::UnknownUser, None)).await;
        };

        let mac = self.login_mac(&tenant, text);
        let account = self.begin_login(&tenant, name, &mac, address).await?;
        let user = account.as_ref().map(|account| account.user.id);
        let stored = account.as_ref().map(|account| account.password_hash.clone());
        let right = match self.hasher.verify(password.clone(), stored).await {
            Ok(right) => right,
            Err(error) => {
                // Nothing was judged, so nothing counts.
                self.forgive(&tenant, &mac).await?;
                return Err(error.into());
            }
        };
        let Some(account) = account.filter(|_| right) else {
            let outcome = if user.is_some() {
                Outcome::WrongPassword
            } else {
                Outcome::UnknownUser
            };
            return self.refuse(&tenant, attempt(outcome, user)).await;
        };
        if account.user.disabled || !enabled {
            return self.refuse(&tenant, attempt(Outcome::Disabled, user)).await;
        }
        let new_hash = if self.hasher.is_outdated(&account.password_hash) {
            // With too many waiting, the old hash does for now.
            self.hasher.hash(password).await.ok()
        } else {
            None
        };
        self.finish_password(&tenant, account, &mac, new_hash, address).await
    }

    /// `Some(true)` for an enabled tenant, `Some(false)` for a disabled one.
    async fn tenant_is_enabled(&self, tenant: &TenantId) -> Result<Option<bool>> {
        let operation = "looking a tenant up";
        let mut tx = self.begin(&TenantId::system(), operation).await?;
        let found = store::find_tenant(&mut tx, tenant.as_str()).await?;
        self.commit(tx, operation, Vec::new()).await?;
        Ok(found.map(|tenant| !tenant.disabled))
    }

    /// Counts an attempt of the address. Unknown tenants share one count, or naming new ones would reset it.
    pub(super) async fn limit(
        &self,
        tenant: &TenantId,
        known: bool,
        login: &str,
        address: Option<IpAddr>,
    ) -> Result<()> {
        let Some(address) = address else {
            return Ok(());
        };
        let counted = if known { tenant.clone() } else { TenantId::system() };
        let verdict =
            self.limiter
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .attempt(&counted, address, self.now());
        let Verdict::Refused { retry_after, first } = verdict else {
            return Ok(());
        };
        if first && known {
            let mut tx = self.begin(tenant, "recording a flood of logins").await?;
            self.record_attempt(
                &mut tx,
                Attempt {
                    outcome: Outcome::RateLimited,
                    user: None,
                    login,
                    address: address.to_string(),
                    second_factor: false,
                },
            )
            .await?;
            self.commit(tx, "recording a flood of logins", Vec::new()).await?;
        } else {
            self.metrics.login(Outcome::RateLimited);
        }
        Err(Error::RateLimited { retry_after })
    }

    /// Counts the attempt on the name and reads the account.
    async fn begin_login(
        &self,
        tenant: &TenantId,
        name: &LoginName,
        mac: &[u8; 32],
        address: Option<IpAddr>,
    ) -> Result<Option<Account>> {
        let operation = "beginning a login";
        let now = self.now();
        let mut tx = self.begin(tenant, operation).await?;
        let (standing, before) = store::begin_attempt(&mut tx, mac, &self.settings.lockout, now).await?;
        if let Some(before) = before {
            self.record_refused(&mut tx, &before, name.as_str()).await?;
        }
        let account = store::find_account_by_login(&mut tx, name).await?;
        if let AttemptStanding::Locked { until, recorded } = standing {
            let attempt = Attempt {
                outcome: Outcome::Locked,
                user: account.map(|account| account.user.id),
                login: name.as_str(),
                address: address_text(address),
                second_factor: false,
            };
            self.refuse_by_lock(&mut tx, mac, attempt, (until, recorded)).await?;
            self.commit(tx, operation, Vec::new()).await?;
            return Err(Error::Locked {
                retry_after: until - now,
            });
        }
        self.commit(tx, operation, Vec::new()).await?;
        Ok(account)
    }

    /// Takes back an attempt that was counted and then not judged.
    pub(super) async fn forgive(&self, tenant: &TenantId, mac: &[u8; 32]) -> Result<()> {
        let operation = "taking back a login attempt";
        let mut tx = self.begin(tenant, operation).await?;
        store::forgive_attempt(&mut tx, mac, &self.settings.lockout).await?;
        self.commit(tx, operation, Vec::new()).await
    }

    async fn refuse(&self, tenant: &TenantId, attempt: Attempt<'_>) -> Result<LoginStep> {
        let operation = "recording a refused login";
        let mut tx = self.begin(tenant, operation).await?;
        self.record_attempt(&mut tx, attempt).await?;
        self.commit(tx, operation, Vec::new()).await?;
        Err(Error::Credentials)
    }

    async fn finish_password(
        &self,
        tenant: &TenantId,
        verified: Account,
        mac: &[u8; 32],
        new_hash: Option<String>,
        address: Option<IpAddr>,
    ) -> Result<LoginStep> {
        let operation = "finishing a login";
        let now = self.now();
        let mut tx = self.begin(tenant, operation).await?;
        // Read again under lock: the tenant or the account may have been changed while the password was hashed.
        if !store::hold_enabled(&mut tx).await? {
            return Err(Error::Credentials);
        }
        let account = store::find_account(&mut tx, verified.user.id)
            .await?
            .filter(|account| !account.user.disabled && account.password_hash == verified.password_hash)
            .ok_or(Error::Credentials)?;
        if let Some(hash) = &new_hash {
            store::set_password(&mut tx, account.user.id, hash).await?;
        }
        if account.totp_secret.is_some() {
            // The failures before stay: a right password must not buy further guesses at the code.
            store::forgive_attempt(&mut tx, mac, &self.settings.lockout).await?;
            let token = OpaqueToken::issue(tenant.clone(), Uuid::now_v7());
            let expires = now + self.settings.sessions.challenge;
            store::insert_challenge(&mut tx, &token, account.user.id, expires).await?;
            self.commit(tx, operation, Vec::new()).await?;
            return Ok(LoginStep::Factor {
                challenge: token.encode(OpaqueKind::Challenge, &self.vault),
            });
        }
        let (tokens, ended) = self.open_session(&mut tx, &account.user, address, false, now).await?;
        self.commit(tx, operation, ended).await?;
        Ok(LoginStep::Done(tokens))
    }

    /// Opens a session for an account that the transaction has locked; ends the oldest beyond the cap.
    pub(super) async fn open_session(
        &self,
        tx: &mut Tx<'_>,
        user: &User,
        address: Option<IpAddr>,
        second_factor: bool,
        now: DateTime<Utc>,
    ) -> Result<(Tokens, Vec<Revoked>)> {
        let tenant = tx.tenant().clone();
        let limits = &self.settings.sessions;
        let open = store::list_open_sessions(tx, user.id, now).await?;
        let surplus = (open.len() + 1).saturating_sub(limits.per_user);
        let mut ended = Vec::new();
        for session in &open[..surplus] {
            let reason = "the person has too many sessions; the oldest ends";
            ended.extend(store::end_session(tx, session.id, reason, now).await?);
        }
        let id = Uuid::now_v7();
        let actor = user_actor(user.id, Some(id), address_text(address));
        let revoked = self
            .announce_ends(tx, &ended, &actor, "too many sessions of one person", now)
            .await?;

        let expires = now + limits.absolute;
        let session = Session {
            id,
            user: user.id,
            created: now,
            last_used: now,
            expires,
            access_until: (now + limits.access).min(expires),
            client_address: address_text(address),
            second_factor,
            ended: None,
        };
        let refresh = OpaqueToken::issue(tenant.clone(), id);
        store::insert_session(tx, &session, &refresh.secret_sha256()).await?;
        store::record_login(tx, user.id, now).await?;
        for lock in store::forget_failures(tx, &self.login_macs(&tenant, user.login.as_str())).await? {
            self.record_refused(tx, &lock, user.login.as_str()).await?;
        }
        self.record_attempt(
            tx,
            Attempt {
                outcome: Outcome::Succeeded,
                user: Some(user.id),
                login: user.login.as_str(),
                address: address_text(address),
                second_factor,
            },
        )
        .await?;
        self.audit(tx, Entry::done(actor, "session.opened", resource_name("sessions", id)))
            .await?;
        let tokens = self.tokens(&tenant, user, &session, &refresh, now)?;
        Ok((tokens, revoked))
    }

    /// Signs an access token and encodes the refresh token of a session.
    pub(super) fn tokens(
        &self,
        tenant: &TenantId,
        user: &User,
        session: &Session,
        refresh: &OpaqueToken,
        now: DateTime<Utc>,
    ) -> Result<Tokens> {
        let key = self.signing.signing().ok_or(Error::NoSigningKey)?;
        let expires = session.access_expiry(&self.settings.sessions, now);
        let rules = &self.settings.rules;
        // RFC 8176: `pwd`, and with a code `otp`; a recovery code is a one-time password too.
        let methods: &[&str] = if session.second_factor {
            &["pwd", "otp"]
        } else {
            &["pwd"]
        };
        let claims = Claims {
            iss: rules.issuer.clone(),
            aud: rules.audience.clone(),
            sub: resource_name("users", user.id),
            preferred_username: user.login.to_string(),
            tenant: tenant.clone(),
            sid: session.id,
            roles: user.roles.iter().map(ToString::to_string).collect(),
            amr: methods.iter().map(ToString::to_string).collect(),
            iat: now.timestamp(),
            nbf: now.timestamp(),
            exp: expires.timestamp(),
            jti: Uuid::now_v7(),
        };
        Ok(Tokens {
            access: key.sign(&claims).into(),
            access_expires: expires,
            refresh: refresh.encode(OpaqueKind::Refresh, &self.vault),
            session_expires: session.expires,
        })
    }
}
