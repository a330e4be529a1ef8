//! Writing verdict counts, and forgetting old alerts.

use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{App, Tenant, lock};
use crate::{error::Error, store};

/// How often old alerts are looked for.
const FORGET_INTERVAL: Duration = Duration::from_secs(600);
/// Alerts forgotten in one transaction.
const FORGET_AT_ONCE: i64 = 5_000;
/// How long the last write at the end may take.
const LAST_WRITE: Duration = Duration::from_secs(3);

impl App {
    /// Writes what was counted, regularly and once more at the end.
    pub async fn keep_counts(&self, stop: CancellationToken) {
        let mut forgotten = Instant::now();
        while !stop.is_cancelled() {
            stop.run_until_cancelled(tokio::time::sleep(self.settings.count_interval))
                .await;
            if stop.is_cancelled() {
                break;
            }
            self.write_all_counts().await;
            if forgotten.elapsed() >= FORGET_INTERVAL {
                self.forget_alerts().await;
                forgotten = Instant::now();
            }
        }
        // Batches under way at the stop may still add to the counts.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let _ = tokio::time::timeout(LAST_WRITE, self.write_all_counts()).await;
    }

    async fn write_all_counts(&self) {
        for tenant in self.tenants() {
            if let Err(error) = self.write_counts(&tenant).await {
                // The counts stay in memory; the follower reports that the database is away.
                tracing::debug!(tenant = %tenant.id, error = &error as &dyn std::error::Error, "counts not written");
            }
        }
    }

    pub(super) async fn write_counts(&self, tenant: &Tenant) -> Result<(), Error> {
        let operation = "writing verdict counts";
        let _turn = tenant.counting.lock().await;
        let tally = std::mem::take(&mut *lock(&tenant.tally));
        if tally.is_empty() {
            return Ok(());
        }
        let written = async {
            let mut tx = self.db.begin(&tenant.id).await?;
            store::add_counts(&mut tx, &tally).await?;
            tx.commit().await
        };
        let result = written.await.map_err(Error::database(operation));
        if result.is_err() {
            lock(&tenant.tally).merge(tally);
        }
        result
    }

    async fn forget_alerts(&self) {
        let Some(before) = chrono::TimeDelta::from_std(self.settings.keep)
            .ok()
            .and_then(|k| Utc::now().checked_sub_signed(k))
        else {
            return;
        };
        for tenant in self.tenants() {
            let forgotten = async {
                let mut tx = self.db.begin(&tenant.id).await?;
                let count = store::forget_alerts(&mut tx, before, FORGET_AT_ONCE).await?;
                tx.commit().await?;
                Ok::<u64, garrison_db::DbError>(count)
            };
            match forgotten.await {
                Ok(0) => {}
                Ok(count) => tracing::info!(tenant = %tenant.id, count, "old alerts forgotten"),
                Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "old alerts not forgotten"),
            }
        }
    }
}
