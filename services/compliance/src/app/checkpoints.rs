//! Signs what the logs hold.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use chrono::Utc;
use garrison_db::{Db, Tx};
use garrison_proof::{Checkpoint, CheckpointError, NoteError, SigningKey, VerifierKey};
use garrison_proto::TenantId;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::{
    error::Error,
    store::{self, Signed},
};

/// Signs checkpoints and remembers which logs have grown since.
pub struct Checkpoints {
    db: Db,
    key: SigningKey,
    trust_domain: String,
    grown: Mutex<BTreeSet<TenantId>>,
}

impl Checkpoints {
    /// Signs with this key, for logs of this trust domain.
    pub fn new(db: Db, key: SigningKey, trust_domain: &str) -> Self {
        Self {
            db,
            key,
            trust_domain: trust_domain.to_owned(),
            grown: Mutex::default(),
        }
    }

    /// Names a tenant's log.
    pub fn origin(&self, tenant: &TenantId) -> String {
        format!("garrison.dev/{}/{tenant}", self.trust_domain)
    }

    /// The key that verifies a tenant's checkpoints.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the trust domain cannot be part of a key's name.
    pub fn verifier_key(&self, tenant: &TenantId) -> Result<VerifierKey, Error> {
        VerifierKey::new(&self.origin(tenant), self.key.public()).map_err(note)
    }

    /// Remembers that a log has grown.
    pub fn grown(&self, tenant: &TenantId) {
        self.grown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(tenant.clone());
    }

    /// The latest checkpoint, which covers everything that was committed before the call.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn latest(&self, tenant: &TenantId) -> Result<Signed, Error> {
        let mut tx = self
            .db
            .begin(tenant)
            .await
            .map_err(Error::database("opening the log"))?;
        let signed = self.latest_in(&mut tx).await?;
        tx.commit().await.map_err(Error::database("keeping a checkpoint"))?;
        Ok(signed)
    }

    /// As [`latest`](Self::latest), within a transaction.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn latest_in(&self, tx: &mut Tx<'_>) -> Result<Signed, Error> {
        let size = store::size(tx).await?;
        if let Some(signed) = store::checkpoint(tx, None).await? {
            if signed.size == size {
                return Ok(signed);
            }
            if signed.size > size {
                let reason = format!("{} entries were signed, and {size} are there", signed.size);
                return Err(Error::Damaged {
                    tenant: tx.tenant().to_string(),
                    reason,
                });
            }
        }
        let signed = self.sign(tx, size).await?;
        store::insert_checkpoint(tx, &signed, Utc::now()).await?;
        Ok(signed)
    }

    /// The checkpoint of an earlier size; signed again where none was kept, which gives the same note.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn of_size(&self, tx: &mut Tx<'_>, size: u64) -> Result<Signed, Error> {
        match store::checkpoint(tx, Some(size)).await? {
            Some(signed) => Ok(signed),
            None => self.sign(tx, size).await,
        }
    }

    async fn sign(&self, tx: &mut Tx<'_>, size: u64) -> Result<Signed, Error> {
        let root = store::tree(tx, size).await?.root();
        let origin = self.origin(tx.tenant());
        let note = Checkpoint {
            origin,
            size,
            root,
            extensions: Vec::new(),
        }
        .sign(&self.key)?;
        Ok(Signed { note, size, root })
    }

    /// Signs every log that has grown, at this interval, until told to stop; then once more.
    pub async fn run(&self, interval: Duration, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listed = false;
        let mut failing = false;
        loop {
            let stopping = tokio::select! {
                _ = ticks.tick() => false,
                () = shutdown.cancelled() => true,
            };
            // A log may have grown just before the last stop.
            if !listed
                && !stopping
                && let Ok(tenants) = self.db.known_tenants().await
            {
                tenants.iter().for_each(|tenant| self.grown(tenant));
                listed = true;
            }
            let grown = std::mem::take(&mut *self.grown.lock().unwrap_or_else(PoisonError::into_inner));
            for tenant in grown {
                match self.latest(&tenant).await {
                    Ok(signed) => {
                        failing = false;
                        tracing::debug!(%tenant, size = signed.size, "checkpoint signed");
                    }
                    Err(error) => {
                        if !failing {
                            tracing::warn!(%tenant, error = &error as &dyn std::error::Error, "checkpoint not signed; trying again");
                        }
                        failing = true;
                        self.grown(&tenant);
                    }
                }
            }
            if stopping {
                return;
            }
        }
    }
}

fn note(error: NoteError) -> Error {
    CheckpointError::Note(error).into()
}
