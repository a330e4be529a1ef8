//! Batches for clients that watch. A slow client misses batches; nobody waits for it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use garrison_flow::FlowBatch;
use garrison_proto::TenantId;
use tokio::sync::broadcast;

/// Batches a client may be behind.
const BEHIND: usize = 64;

/// A batch on its way to clients.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Rows of the tenant's batches before this one, so that a client that missed some knows how many.
    pub before: u64,
    /// The batch.
    pub batch: Arc<FlowBatch>,
}

struct Tenant {
    sender: broadcast::Sender<Watched>,
    rows: AtomicU64,
}

/// The tenants whose flows can be watched.
pub struct Hub {
    tenants: HashMap<TenantId, Tenant>,
}

impl Hub {
    /// Makes a hub for these tenants.
    pub fn new(tenants: impl IntoIterator<Item = TenantId>) -> Self {
        let tenants = tenants
            .into_iter()
            .map(|tenant| {
                let channel = Tenant {
                    sender: broadcast::channel(BEHIND).0,
                    rows: AtomicU64::new(0),
                };
                (tenant, channel)
            })
            .collect();
        Self { tenants }
    }

    /// Shows a batch to those who watch.
    pub fn show(&self, tenant: &TenantId, batch: &FlowBatch) {
        let Some(channel) = self.tenants.get(tenant) else {
            return;
        };
        let rows = batch.len() as u64;
        let before = channel.rows.fetch_add(rows, Ordering::AcqRel);
        if channel.sender.receiver_count() > 0 {
            // Fails only when the last client has just gone.
            let _ = channel.sender.send(Watched {
                before,
                batch: Arc::new(batch.clone()),
            });
        }
    }

    /// Watches a tenant's batches from now on. `None` when it has no sensor here. Also gives the rows before now.
    pub fn watch(&self, tenant: &TenantId) -> Option<(broadcast::Receiver<Watched>, u64)> {
        let channel = self.tenants.get(tenant)?;
        let receiver = channel.sender.subscribe();
        Some((receiver, channel.rows.load(Ordering::Acquire)))
    }
}

#[cfg(test)]
mod tests {
    use garrison_flow::{FlowBatchBuilder, FlowRow};

    use super::*;

    fn batch(rows: usize) -> FlowBatch {
        let mut builder = FlowBatchBuilder::new(rows);
        (0..rows).for_each(|_| builder.push(&FlowRow::default()));
        builder.finish()
    }

    #[tokio::test]
    async fn a_slow_client_learns_how_many_records_it_missed() {
        let tenant: TenantId = "acme".parse().unwrap();
        let hub = Hub::new([tenant.clone()]);
        hub.show(&tenant, &batch(5));
        let (mut watching, mut seen) = hub.watch(&tenant).unwrap();
        assert_eq!(seen, 5, "what was before is not missed");
        for _ in 0..BEHIND + 10 {
            hub.show(&tenant, &batch(3));
        }
        let (mut skipped, mut got) = (0, 0);
        for _ in 0..=BEHIND {
            match watching.recv().await {
                Ok(watched) => {
                    skipped += watched.before - seen;
                    seen = watched.before + watched.batch.len() as u64;
                    got += watched.batch.len() as u64;
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!((skipped, got), (30, 3 * BEHIND as u64));
        assert!(hub.watch(&"other".parse().unwrap()).is_none());
    }
}
