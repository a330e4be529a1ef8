//! A feed brought something new: flows that were judged before are asked about it.
//!
//! They are read back from the stream, so that looking back costs nothing while nothing is new, holds no memory, and knows
//! of each flow what was known of it. Reading goes on beside judging; the tenant is locked only for what is found.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use garrison_bus::topology::FLOWS_ANOMALY;
use garrison_intel::Index;
use garrison_proto::TenantId;

use super::super::judge::read;
use crate::{app::Engine, error::Error};

impl Engine {
    /// Asks the flows of every tenant since a time about new indicators.
    pub(in crate::app) async fn look_back(&self, new: Arc<Index>, since: DateTime<Utc>) {
        // What is judged from now on is asked of the new index anyway.
        let mut judged = Vec::new();
        for (id, cell) in self.cells() {
            match self.hold(&id, &cell).await {
                Ok(held) => judged.push((id, held.tenant.as_ref().map_or(0, |t| t.applied))),
                Err(error) => {
                    tracing::warn!(%error, tenant = %id, "new indicators could not be looked for in earlier flows");
                }
            }
        }
        for (id, until) in judged {
            match self.look_back_one(&id, &new, since, until).await {
                Ok(seen) => tracing::info!(
                    tenant = %id,
                    indicators = new.len(),
                    batches = seen.batches,
                    flows = seen.rows,
                    found = seen.found,
                    "looked for new indicators in earlier flows"
                ),
                Err(error) => {
                    tracing::warn!(%error, tenant = %id, "new indicators could not be looked for in earlier flows");
                }
            }
        }
    }

    async fn look_back_one(
        &self,
        id: &TenantId,
        new: &Arc<Index>,
        since: DateTime<Utc>,
        until: u64,
    ) -> Result<Seen, Error> {
        let elsewhere = || Error::Elsewhere { tenant: id.clone() };
        let cell = self.find(id).ok_or_else(elsewhere)?;
        let view = self.intel().view_of(id, Arc::clone(new), true);
        let subject = format!("flows.v1.{id}.*");
        let mut next = self.first_since(&subject, until, since).await?;
        let (mut seen, mut told) = (Seen::default(), HashMap::new());
        while next <= until {
            let Some(stored) = self.bus.stored(&FLOWS_ANOMALY, &subject, next).await? else {
                break;
            };
            if stored.sequence > until {
                break;
            }
            next = stored.sequence + 1;
            // What cannot be read went to the dead-letter queue.
            let Ok(delivery) = stored.delivery else { continue };
            let Ok((shard, batch)) = read(&delivery) else { continue };
            seen.batches += 1;
            seen.rows += batch.len() as u64;
            let published = delivery.time.timestamp_nanos_opt().unwrap_or(i64::MAX);
            let found = view.look_back(&batch, self.settings(), published, &mut told);
            if found.is_empty() {
                continue;
            }
            seen.found += found.len() as u64;
            let mut held = self.hold(id, &cell).await?;
            self.commit_alerts(id, &mut held, false).await?;
            let now = (self.clock)();
            let slot = &mut *held;
            slot.before_change(shard);
            if let Some(tenant) = slot.tenant.as_mut() {
                slot.pending = tenant.look_back(shard, &found, now);
                slot.changed = true;
            }
            self.commit_alerts(id, &mut held, false).await?;
        }
        self.metrics.looked_back(seen.rows, seen.found);
        Ok(seen)
    }

    // The first position whose message was published after a time; positions grow with time.
    async fn first_since(&self, subject: &str, until: u64, since: DateTime<Utc>) -> Result<u64, Error> {
        let (mut low, mut high) = (1, until + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.bus.stored(&FLOWS_ANOMALY, subject, middle).await? {
                Some(stored) if stored.sequence <= until => {
                    let early = stored.delivery.as_ref().map_or(true, |d| d.time < since);
                    if early {
                        low = stored.sequence + 1;
                    } else {
                        high = middle;
                    }
                }
                _ => high = middle,
            }
        }
        Ok(low)
    }
}

/// What looking back saw.
#[derive(Default)]
struct Seen {
    batches: u64,
    rows: u64,
    found: u64,
}
