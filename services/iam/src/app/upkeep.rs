use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use garrison_proto::TenantId;
use tokio_util::sync::CancellationToken;

use super::{Iam, PreparedTenant, Result};
use crate::{error::Error, store};

/// How often keys and revocations are read: what another iam process did is known here within this time even when the
/// broker is away.
const RELOAD: Duration = Duration::from_secs(1);
/// How often old rows are dropped and the signing key's age is looked at.
const TIDY: Duration = Duration::from_secs(60);
/// Locks that are recorded in one transaction; the rest waits for the next minute.
const LOCKS_AT_A_TIME: i64 = 500;
/// How long sessions stay listed in the database after their end.
const KEEP_SESSIONS: TimeDelta = TimeDelta::days(30);

impl Iam {
    /// Makes the service able to answer: creates configured tenants and the first key, loads what was stored. Tries again
    /// while the database is away.
    ///
    /// # Errors
    /// What will not pass by waiting, such as a key file that does not open the stored keys.
    pub async fn prepare(&self, tenants: &[PreparedTenant], shutdown: &CancellationToken) -> Result<()> {
        let mut waited = false;
        loop {
            match self.prepare_once(tenants).await {
                Err(error @ (Error::Unavailable { .. } | Error::Busy)) => {
                    if !waited {
                        waited = true;
                        tracing::warn!(
                            code = error.code(),
                            error = &error as &dyn std::error::Error,
                            "waiting for the database"
                        );
                    }
                }
                other => return other,
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(RELOAD) => {}
            }
        }
    }

    async fn prepare_once(&self, tenants: &[PreparedTenant]) -> Result<()> {
        for tenant in tenants {
            if self.bootstrap(tenant).await? {
                tracing::info!(tenant = %tenant.id, users = tenant.users.len(), "created a configured tenant");
            }
        }
        self.rotate_when_due().await?;
        self.load_keys().await?;
        self.load_revocations().await
    }

    /// Follows the database and tidies it until shut down. Outages are logged once each.
    pub async fn keep_up(self: Arc<Self>, shutdown: CancellationToken) {
        let mut failing = false;
        let mut tidy_at = tokio::time::Instant::now() + TIDY;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RELOAD) => {}
            }
            let mut result = self.follow().await;
            if result.is_ok() && tokio::time::Instant::now() >= tidy_at {
                tidy_at = tokio::time::Instant::now() + TIDY;
                result = self.tidy().await;
            }
            match result {
                Ok(()) if failing => {
                    failing = false;
                    tracing::info!("the database answers again");
                }
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(
                        code = error.code(),
                        error = &error as &dyn std::error::Error,
                        "keys and revocations could not be read; the known ones stay in use"
                    );
                }
                _ => {}
            }
        }
    }

    async fn follow(&self) -> Result<()> {
        self.load_keys().await?;
        self.load_revocations().await
    }

    /// Rotates the key when it is due and drops what nobody needs any more.
    ///
    /// # Errors
    /// Database errors.
    pub async fn tidy(&self) -> Result<()> {
        let operation = "tidying up";
        self.rotate_when_due().await?;
        let tenants = self.db.known_tenants().await.map_err(Error::database(operation))?;
        let now = self.now();
        for tenant in &tenants {
            let mut tx = self.begin(tenant, operation).await?;
            for lock in store::take_refused(&mut tx, now, LOCKS_AT_A_TIME).await? {
                // Only a hash of the name is kept.
                self.record_refused(&mut tx, &lock, "").await?;
            }
            store::forget_old_attempts(&mut tx, now - self.settings.lockout.forget_after).await?;
            store::delete_old_challenges(&mut tx, now).await?;
            store::forget_revocations(&mut tx, now).await?;
            store::delete_old_sessions(&mut tx, now - KEEP_SESSIONS).await?;
            self.commit(tx, operation, Vec::new()).await?;
        }
        let mut tx = self.begin(&TenantId::system(), operation).await?;
        store::delete_expired_keys(&mut tx, now).await?;
        self.commit(tx, operation, Vec::new()).await
    }
}
