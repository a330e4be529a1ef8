//! After a start: what was taken since the last checkpoint is read back from the stream and judged again, before the
//! consumer goes on. Alerts have ids that come from their content, so those that were published are not published
//! twice.

use std::time::Duration;

use garrison_bus::{Disposition, topology::FLOWS_ANOMALY};
use garrison_proto::TenantId;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::error::Error;

/// Pause before recovery is tried again.
const PAUSE: Duration = Duration::from_millis(250);

impl Engine {
    /// Recovers every tenant, waiting for the database and the broker as long as it takes. False when shutdown came
    /// first.
    pub async fn recover(&self, shutdown: &CancellationToken) -> bool {
        loop {
            let attempt = async {
                let delivered = self.bus.delivered(&FLOWS_ANOMALY).await?;
                for id in self.db.known_tenants().await? {
                    match self.recover_one(&id, delivered).await {
                        // One tenant's damaged state is no reason to leave the others unwatched.
                        Err(error) if !error.is_passing() => {
                            tracing::error!(%error, tenant = %id, "a tenant cannot be recovered");
                        }
                        other => other?,
                    }
                }
                Ok::<_, Error>(())
            };
            tokio::select! {
                () = shutdown.cancelled() => return false,
                done = attempt => match done {
                    Ok(()) => return true,
                    Err(error) => tracing::warn!(%error, "state cannot be recovered yet"),
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn recover_one(&self, id: &TenantId, delivered: u64) -> Result<(), Error> {
        let cell = self.cell(id)?;
        let (saved, applied) = {
            let mut held = self.hold(id, &cell).await?;
            let saved = held.saved;
            let Some(tenant) = held.tenant.as_mut() else {
                return Ok(());
            };
            if tenant.applied > delivered {
                tracing::warn!(tenant = %id, applied = tenant.applied, delivered, "the stream was made anew");
                tenant.applied = delivered;
            }
            (saved, tenant.applied)
        };
        // Of a tenant that was never saved no message was ever taken.
        if !saved || applied >= delivered {
            return Ok(());
        }
        let oldest = self.bus.stored(&FLOWS_ANOMALY, "flows.v1.*.*", applied + 1).await?;
        let oldest = oldest.map_or(delivered + 1, |stored| stored.sequence);
        let lost = oldest.min(delivered + 1) - (applied + 1);
        if lost > 0 {
            tracing::error!(
                code = "GAR-ANOM-0008",
                tenant = %id,
                lost,
                "messages of up to so many batches left the stream before they were read back"
            );
        }
        let subject = format!("flows.v1.{id}.*");
        let (mut next, mut replayed) = (oldest, 0);
        while next <= delivered {
            let Some(stored) = self.bus.stored(&FLOWS_ANOMALY, &subject, next).await? else {
                break;
            };
            if stored.sequence > delivered {
                break;
            }
            // What cannot be read went to the dead-letter queue, or goes there when it is delivered again.
            if let Ok(delivery) = stored.delivery {
                loop {
                    match self.take(&delivery).await {
                        Disposition::Ack => {
                            replayed += 1;
                            break;
                        }
                        Disposition::Reject { .. } => break,
                        Disposition::Hold { after, reason } | Disposition::Retry { after, reason } => {
                            tracing::warn!(reason, tenant = %id, "a message that is read back has to wait");
                            tokio::time::sleep(after).await;
                        }
                    }
                }
            }
            next = stored.sequence + 1;
        }
        self.metrics.replayed(replayed, lost);
        tracing::info!(tenant = %id, from = applied + 1, to = delivered, batches = replayed, "recovered a tenant");
        Ok(())
    }
}
