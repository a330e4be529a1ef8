//! Deletes alerts, events, incidents and responses that are older than they are kept. Sealed evidence stays.

use std::time::Duration;

use chrono::Utc;
use garrison_db::Db;
use garrison_proto::TenantId;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::{error::Error, metrics::Metrics, store::events};

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(600);
/// Rows of each kind in one transaction.
const AT_A_TIME: i64 = 2_000;
const OPERATION: &str = "applying retention to events";

/// Applies `events.retention_days`.
pub struct Retention {
    /// The tables.
    pub db: Db,
    /// Days.
    pub days: u32,
    /// Counts.
    pub metrics: Metrics,
}

impl Retention {
    /// Runs until told to stop. What fails is tried again.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.cancelled() => return,
            }
            if let Err(error) = self.apply(&shutdown).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "retention was not applied; trying again"
                );
            }
        }
    }

    async fn apply(&self, shutdown: &CancellationToken) -> Result<(), Error> {
        let before = Utc::now() - chrono::Duration::days(self.days.into());
        let tenants: Vec<TenantId> = self.db.known_tenants().await.map_err(Error::database(OPERATION))?;
        for tenant in tenants {
            let mut sum = 0;
            while !shutdown.is_cancelled() {
                let mut tx = self.db.begin(&tenant).await.map_err(Error::database(OPERATION))?;
                let deleted = events::expire(&mut tx, before, AT_A_TIME).await?;
                tx.commit().await.map_err(Error::database(OPERATION))?;
                sum += deleted;
                if deleted == 0 {
                    break;
                }
            }
            if sum > 0 {
                self.metrics.expired(sum);
                tracing::info!(%tenant, deleted = sum, "alerts and events deleted by retention");
            }
        }
        Ok(())
    }
}
