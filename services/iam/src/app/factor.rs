use std::net::IpAddr;

use chrono::{DateTime, Utc};
use garrison_db::Tx;
use garrison_proto::event::v1::login_event::Outcome;
use uuid::Uuid;

use super::{Iam, Result, TOTP_PURPOSE, Tokens, address_text, record::Attempt, sealed_owner};
use crate::{
    crypto::{OpaqueKind, OpaqueToken, TotpSecret, canonical_recovery_code, matched_step},
    domain::SecretText,
    error::Error,
    store::{self, Account, AttemptStanding},
};

/// How a factor is proven.
#[derive(Debug)]
pub enum FactorProof {
    /// A code from the authenticator app.
    Totp(SecretText),
    /// One of the recovery codes.
    RecoveryCode(SecretText),
}

/// Wrong codes that one challenge takes.
const MAX_ATTEMPTS: u32 = 5;

impl Iam {
    /// Second step of a login.
    ///
    /// # Errors
    /// [`Error::Challenge`] when the first step is too old or was not ours, [`Error::Factor`] for a wrong or used code,
    /// [`Error::Locked`] and database errors.
    pub async fn verify_factor(&self, challenge: &str, proof: FactorProof, address: Option<IpAddr>) -> Result<Tokens> {
        let operation = "verifying a factor";
        let token = OpaqueToken::decode(OpaqueKind::Challenge, challenge, &self.vault).ok_or(Error::Challenge)?;
        let tenant = token.tenant.clone();
        self.limit(&tenant, true, "", address).await?;
        let now = self.now();
        let mut tx = self.begin(&tenant, operation).await?;
        let tenant_enabled = store::hold_enabled(&mut tx).await?;
        let stored = store::find_challenge(&mut tx, token.id)
            .await?
            .filter(|stored| token.matches(&stored.secret_sha256) && now < stored.expires)
            .filter(|stored| stored.attempts < MAX_ATTEMPTS)
            .ok_or(Error::Challenge)?;
        let account = store::find_account(&mut tx, stored.user)
            .await?
            .ok_or(Error::Challenge)?;
        let user = &account.user;
        let attempt = |outcome| Attempt {
            outcome,
            user: Some(user.id),
            login: user.login.as_str(),
            address: address_text(address),
            second_factor: true,
        };
        let mac = self.login_mac(&tenant, user.login.as_str());
        let (standing, before) = store::begin_attempt(&mut tx, &mac, &self.settings.lockout, now).await?;
        if let Some(before) = before {
            self.record_refused(&mut tx, &before, user.login.as_str()).await?;
        }
        if let AttemptStanding::Locked { until, recorded } = standing {
            self.refuse_by_lock(&mut tx, &mac, attempt(Outcome::Locked), (until, recorded))
                .await?;
            self.commit(tx, operation, Vec::new()).await?;
            return Err(Error::Locked {
                retry_after: until - now,
            });
        }
        let refusal = if user.disabled || !tenant_enabled {
            Some((Outcome::Disabled, Error::Credentials))
        } else if !self.proves(&mut tx, &account, &proof, now).await? {
            store::count_challenge_attempt(&mut tx, token.id).await?;
            Some((Outcome::WrongFactor, Error::Factor))
        } else {
            None
        };
        if let Some((outcome, error)) = refusal {
            self.record_attempt(&mut tx, attempt(outcome)).await?;
            self.commit(tx, operation, Vec::new()).await?;
            return Err(error);
        }
        store::delete_challenge(&mut tx, token.id).await?;
        let (tokens, ended) = self.open_session(&mut tx, user, address, true, now).await?;
        self.commit(tx, operation, ended).await?;
        Ok(tokens)
    }

    /// Whether the proof is right; if so it is used up.
    async fn proves(
        &self,
        tx: &mut Tx<'_>,
        account: &Account,
        proof: &FactorProof,
        now: DateTime<Utc>,
    ) -> Result<bool> {
        let user = account.user.id;
        match proof {
            FactorProof::Totp(code) => {
                let Some(sealed) = &account.totp_secret else {
                    return Ok(false);
                };
                let secret = self.open_totp(tx, user, sealed)?;
                let Some(step) = matched_step(&secret, code.expose(), seconds(now), account.totp_last_step) else {
                    return Ok(false);
                };
                store::set_totp_step(tx, user, step).await?;
                Ok(true)
            }
            FactorProof::RecoveryCode(code) => {
                let macs = self.recovery_macs(tx, user, code);
                store::spend_recovery_code(tx, user, &macs).await
            }
        }
    }

    pub(super) fn recovery_macs(&self, tx: &Tx<'_>, user: Uuid, code: &SecretText) -> Vec<Vec<u8>> {
        let code = canonical_recovery_code(code.expose());
        let tenant = tx.tenant().as_str().as_bytes();
        self.vault
            .macs("recovery code", &[tenant, user.as_bytes(), code.expose().as_bytes()])
    }

    /// Seals an authenticator's secret for its owner.
    pub(super) fn seal_totp(&self, tx: &Tx<'_>, user: Uuid, secret: &TotpSecret) -> Vec<u8> {
        self.vault
            .seal(TOTP_PURPOSE, &sealed_owner(tx.tenant(), user), secret.bytes())
    }

    /// Opens what [`Iam::seal_totp`] sealed.
    pub(super) fn open_totp(&self, tx: &Tx<'_>, user: Uuid, sealed: &[u8]) -> Result<TotpSecret> {
        let owner = sealed_owner(tx.tenant(), user);
        let opened = self.vault.open(TOTP_PURPOSE, &owner, sealed)?;
        Ok(TotpSecret::from_bytes(opened))
    }
}

/// Seconds since the epoch; 0 before it.
pub(super) fn seconds(now: DateTime<Utc>) -> u64 {
    u64::try_from(now.timestamp()).unwrap_or(0)
}
