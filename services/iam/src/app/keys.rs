use chrono::{DateTime, TimeDelta, Utc};
use garrison_auth::{Caller, JwkSet, Revoked};
use garrison_bus::{Message, subject};
use garrison_db::Tx;
use garrison_proto::{TenantId, audit::v1::Actor, event::v1::KeySetChanged};

use super::{
    Iam, Result,
    record::{Entry, SOURCE, itself},
    tenants::of_the_installation,
};
use crate::{
    crypto::{SigningKey, SigningKeyRow},
    error::Error,
    store::{self, RevocationRow},
};

/// Keys that verify at a time; verifiers read at most 32.
const MAX_KEYS: usize = 16;
/// How long another iam process may go on signing with the key that was replaced, plus the verifiers' leeway.
const OVERLAP: TimeDelta = TimeDelta::seconds(60);

impl Iam {
    /// Starts signing with a new key and answers its id; the old one verifies until its last token has expired.
    ///
    /// # Errors
    /// [`Error::NotPermitted`] outside the tenant `system`, [`Error::TooManyKeys`] and database errors.
    pub async fn rotate_key(&self, caller: &Caller) -> Result<String> {
        let operation = "rotating the signing key";
        of_the_installation(caller)?;
        let mut tx = self.begin(&TenantId::system(), operation).await?;
        store::lock_keys(&mut tx).await?;
        let row = self.replace_key(&mut tx, caller.actor()).await?;
        self.commit(tx, operation, Vec::new()).await?;
        self.load_keys().await?;
        Ok(row.key_id)
    }

    /// Makes the first signing key, or replaces one that is too old.
    pub(super) async fn rotate_when_due(&self) -> Result<()> {
        let operation = "checking the age of the signing key";
        let now = self.now();
        let mut tx = self.begin(&TenantId::system(), operation).await?;
        if !self.is_key_due(&store::list_keys(&mut tx, now).await?, now) {
            return self.commit(tx, operation, Vec::new()).await;
        }
        store::lock_keys(&mut tx).await?;
        // Another process may have been faster.
        if self.is_key_due(&store::list_keys(&mut tx, now).await?, now) {
            let row = self.replace_key(&mut tx, itself()).await?;
            tracing::info!(key_id = row.key_id, "signing with a new key");
        }
        self.commit(tx, operation, Vec::new()).await
    }

    fn is_key_due(&self, rows: &[SigningKeyRow], now: DateTime<Utc>) -> bool {
        let current = rows.iter().filter(|row| row.verifies_until.is_none());
        current
            .map(|row| row.created)
            .max()
            .is_none_or(|created| now - created >= self.settings.rotate_after)
    }

    async fn replace_key(&self, tx: &mut Tx<'_>, actor: Actor) -> Result<SigningKeyRow> {
        let now = self.now();
        let count = store::list_keys(tx, now).await?.len();
        if count >= MAX_KEYS {
            return Err(Error::TooManyKeys(count));
        }
        store::retire_keys(tx, now + self.settings.sessions.access + OVERLAP).await?;
        let row = SigningKey::generate(&self.vault, now);
        store::insert_key(tx, &row).await?;
        let event = KeySetChanged {
            key_id: row.key_id.clone(),
        };
        let subject = subject::events(tx.tenant(), "keys");
        tx.publish(&Message::proto(subject, SOURCE, &event))
            .await
            .map_err(Error::database("publishing a key change"))?;
        let resource = format!("keys/{}", row.key_id);
        self.audit(tx, Entry::done(actor, "key.rotated", resource)).await?;
        Ok(row)
    }

    /// Takes the stored keys over, for signing and for this process's own authorisation.
    pub(super) async fn load_keys(&self) -> Result<()> {
        let operation = "loading the signing keys";
        let mut tx = self.begin(&TenantId::system(), operation).await?;
        let rows = store::list_keys(&mut tx, self.now()).await?;
        self.commit(tx, operation, Vec::new()).await?;
        self.signing.replace(&rows, &self.vault)?;
        self.ring.set_keys(&self.signing.published());
        Ok(())
    }

    /// Takes the stored revocations over for this process's own authorisation.
    pub(super) async fn load_revocations(&self) -> Result<()> {
        let rows = self.all_revocations(&TenantId::system()).await?;
        let listed = rows
            .into_iter()
            .map(|(_, session, _, until)| Revoked { session, until });
        self.ring.add_revocations(listed, Utc::now());
        Ok(())
    }

    /// The public keys that verify tokens.
    ///
    /// # Errors
    /// [`Error::NoSigningKey`] until they have been read from the database once.
    pub fn key_set(&self) -> Result<JwkSet> {
        let set = self.signing.published();
        if set.keys.is_empty() {
            return Err(Error::NoSigningKey);
        }
        Ok(set)
    }

    /// Sessions whose tokens may still live: of every tenant for services, of the own tenant for people.
    ///
    /// # Errors
    /// Database errors.
    pub async fn list_revocations(&self, caller: &Caller) -> Result<Vec<RevocationRow>> {
        let tenant = if caller.user().is_some() {
            caller.tenant.clone()
        } else {
            TenantId::system()
        };
        let mut rows = self.all_revocations(&tenant).await?;
        if caller.user().is_some() {
            // People of the tenant `system` see their own tenant's too, and no other.
            rows.retain(|(of, ..)| *of == caller.tenant);
        }
        Ok(rows)
    }

    async fn all_revocations(&self, tenant: &TenantId) -> Result<Vec<RevocationRow>> {
        let operation = "listing revocations";
        let mut tx = self.begin(tenant, operation).await?;
        let rows = store::list_revocations(&mut tx, self.now()).await?;
        self.commit(tx, operation, Vec::new()).await?;
        Ok(rows)
    }
}
