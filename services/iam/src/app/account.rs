use garrison_auth::Caller;
use garrison_db::Tx;
use garrison_proto::{audit::v1::Decision, resource_name};

use super::{Iam, Person, Result, factor::seconds, person, record::Entry};
use crate::{
    crypto::{Enrolment, TotpSecret, canonical_recovery_code, matched_step, recovery_codes},
    domain::{SecretText, Standing, User},
    error::Error,
    store::{self, Account, AttemptStanding},
};

/// The caller as iam knows it.
#[derive(Debug)]
pub struct CallerView {
    /// The person.
    pub user: User,
    /// Of the token.
    pub session: uuid::Uuid,
    /// The session was opened with a second factor.
    pub second_factor: bool,
}

impl Iam {
    /// Who is calling.
    ///
    /// # Errors
    /// [`Error::NotPermitted`] for callers that are not people, [`Error::SessionOver`] and database errors.
    pub async fn caller_view(&self, caller: &Caller) -> Result<CallerView> {
        let operation = "reading the caller";
        let mut tx = self.begin(&caller.tenant, operation).await?;
        let (person, account) = self.live_caller(&mut tx, caller).await?;
        self.commit(tx, operation, Vec::new()).await?;
        Ok(CallerView {
            user: account.user,
            session: person.session,
            second_factor: caller.second_factor,
        })
    }

    /// Starts the enrolment of an authenticator app.
    ///
    /// # Errors
    /// [`Error::Enrolment`] when one is enrolled and the caller did not log in with it.
    pub async fn enroll_totp(&self, caller: &Caller) -> Result<Enrolment> {
        let operation = "starting an enrolment";
        let mut tx = self.begin(&caller.tenant, operation).await?;
        let (person, account) = self.live_caller(&mut tx, caller).await?;
        if account.totp_secret.is_some() && !caller.second_factor {
            return Err(Error::Enrolment(
                "an authenticator is enrolled already; log in with a code from it to replace it",
            ));
        }
        let secret = TotpSecret::generate();
        let label = format!("{}/{}", caller.tenant, account.user.login);
        let enrolment = secret
            .enrolment(&self.settings.issuer, &label)
            .ok_or_else(|| Error::Stored {
                operation,
                detail: "the issuer or login does not fit in an otpauth URI".to_owned(),
            })?;
        let sealed = self.seal_totp(&tx, person.id, &secret);
        store::set_totp_pending(&mut tx, person.id, &sealed).await?;
        self.commit(tx, operation, Vec::new()).await?;
        Ok(enrolment)
    }

    /// Finishes the enrolment with a first code and gives the recovery codes, which are shown only now. Sessions without
    /// the factor end, all but the caller's.
    ///
    /// # Errors
    /// [`Error::Enrolment`] when none was started, [`Error::Factor`] for a wrong code.
    pub async fn confirm_totp(&self, caller: &Caller, code: &SecretText) -> Result<Vec<SecretText>> {
        let operation = "finishing an enrolment";
        let now = self.now();
        let mut tx = self.begin(&caller.tenant, operation).await?;
        let (person, account) = self.live_caller(&mut tx, caller).await?;
        let sealed = account
            .totp_pending
            .ok_or(Error::Enrolment("no enrolment has been started"))?;
        let secret = self.open_totp(&tx, person.id, &sealed)?;
        let step = matched_step(&secret, code.expose(), seconds(now), 0).ok_or(Error::Factor)?;
        store::store_totp(&mut tx, person.id, Some(&sealed), step).await?;
        let codes = recovery_codes();
        let tenant = caller.tenant.as_str().as_bytes();
        let macs: Vec<Vec<u8>> = codes
            .iter()
            .map(|code| {
                let code = canonical_recovery_code(code.expose());
                self.vault
                    .mac(
                        "recovery code",
                        &[tenant, person.id.as_bytes(), code.expose().as_bytes()],
                    )
                    .to_vec()
            })
            .collect();
        store::replace_recovery_codes(&mut tx, person.id, &macs).await?;
        let reason = "an authenticator was enrolled";
        let ended = store::end_sessions_of_user(&mut tx, Some(person.id), Some(person.session), reason, now).await?;
        let revoked = self
            .announce_ends(&mut tx, &ended, &caller.actor(), reason, now)
            .await?;
        self.audit(
            &mut tx,
            Entry::done(caller.actor(), "user.totp_enrolled", resource_name("users", person.id)),
        )
        .await?;
        self.commit(tx, operation, revoked).await?;
        Ok(codes)
    }

    /// Changes the caller's own password and ends the person's other sessions.
    ///
    /// # Errors
    /// [`Error::Credentials`] when the old one is wrong (which counts towards the lock), [`Error::Password`] when the
    /// new one is not accepted.
    pub async fn change_password(&self, caller: &Caller, old: SecretText, new: SecretText) -> Result<()> {
        let operation = "changing a password";
        let mut tx = self.begin(&caller.tenant, operation).await?;
        let (person, account) = self.live_caller(&mut tx, caller).await?;
        let login = &account.user.login;
        self.check_password("new_password", &new, login)?;
        if old.expose() == new.expose() {
            return Err(Error::field("new_password", "it is the old password"));
        }
        let mac = self.login_mac(&caller.tenant, login.as_str());
        let now = self.now();
        let (standing, before) = store::begin_attempt(&mut tx, &mac, &self.settings.lockout, now).await?;
        if let Some(before) = before {
            self.record_refused(&mut tx, &before, login.as_str()).await?;
        }
        self.commit(tx, operation, Vec::new()).await?;
        if let AttemptStanding::Locked { until, .. } = standing {
            return Err(Error::Locked {
                retry_after: until - now,
            });
        }
        let verified = account.password_hash;
        let judged = self.hasher.verify(old, Some(verified.clone())).await;
        let hash = match judged {
            Ok(false) => {
                let mut tx = self.begin(&caller.tenant, operation).await?;
                let refused = Entry {
                    decision: Decision::Deny,
                    reason: "wrong password",
                    ..Entry::done(
                        caller.actor(),
                        "user.password_changed",
                        resource_name("users", person.id),
                    )
                };
                self.audit(&mut tx, refused).await?;
                self.commit(tx, operation, Vec::new()).await?;
                return Err(Error::Credentials);
            }
            Ok(true) => self.hasher.hash(new).await,
            Err(error) => Err(error),
        };
        let hash = match hash {
            Ok(hash) => hash,
            Err(error) => {
                // Nobody guessed wrong, so nothing counts.
                self.forgive(&caller.tenant, &mac).await?;
                return Err(error.into());
            }
        };

        let now = self.now();
        let mut tx = self.begin(&caller.tenant, operation).await?;
        let (_, account) = self.live_caller(&mut tx, caller).await?;
        if account.password_hash != verified {
            return Err(Error::Credentials);
        }
        store::forgive_attempt(&mut tx, &mac, &self.settings.lockout).await?;
        store::set_password(&mut tx, person.id, &hash).await?;
        let reason = "the password was changed";
        let ended = store::end_sessions_of_user(&mut tx, Some(person.id), Some(person.session), reason, now).await?;
        let revoked = self
            .announce_ends(&mut tx, &ended, &caller.actor(), reason, now)
            .await?;
        self.audit(
            &mut tx,
            Entry::done(
                caller.actor(),
                "user.password_changed",
                resource_name("users", person.id),
            ),
        )
        .await?;
        self.commit(tx, operation, revoked).await
    }

    /// The caller's account, locked, if the session still stands in the database: a token alone does not say so.
    async fn live_caller(&self, tx: &mut Tx<'_>, caller: &Caller) -> Result<(Person, Account)> {
        let over = |reason| Error::SessionOver { reason };
        let person = person(caller)?;
        let account = store::find_account(tx, person.id)
            .await?
            .filter(|account| !account.user.disabled)
            .ok_or(over("the account does not exist or is disabled"))?;
        let session = store::find_session(tx, person.session)
            .await?
            .filter(|stored| stored.session.user == person.id)
            .ok_or(over("it ended long ago"))?
            .session;
        match session.standing(&self.settings.sessions, self.now()) {
            // A token lives on for its few minutes when the session idles; that is the token's own limit.
            Standing::Live | Standing::Idle => Ok((person, account)),
            Standing::Ended => Err(over("it was ended")),
            Standing::Expired => Err(over("it reached its time limit")),
        }
    }
}
