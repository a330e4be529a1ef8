//! What the replicas share out, as one of them sees it.

use garrison_proto::TenantId;
use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Gauge},
};

/// Instruments of a replica.
#[derive(Debug, Clone)]
pub struct ReplicaMetrics {
    owned: Gauge<u64>,
    shards: Gauge<u64>,
    replicas: Gauge<u64>,
    epoch: Gauge<u64>,
    changes: Counter<u64>,
    passed_on: Counter<u64>,
}

/// A change of who judges a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// This replica took it: nobody held it, or it was handed to it.
    Taken,
    /// This replica handed it over in order.
    HandedOver,
    /// Another has it, and this replica was not asked: it had been silent for too long.
    Lost,
}

impl Default for ReplicaMetrics {
    fn default() -> Self {
        let meter = global::meter("garrison.anomaly");
        let gauge = |name: &'static str, what: &'static str| meter.u64_gauge(name).with_description(what).build();
        let counter = |name: &'static str, what: &'static str| meter.u64_counter(name).with_description(what).build();
        Self {
            owned: gauge("garrison_anomaly_owned_tenants", "Tenants that this replica judges"),
            shards: gauge(
                "garrison_anomaly_owned_shards",
                "Shards with state of tenants that this replica judges",
            ),
            replicas: gauge(
                "garrison_anomaly_replicas",
                "Replicas that are there, this one included",
            ),
            epoch: gauge(
                "garrison_anomaly_lease_epoch",
                "Which lease of the tenant this replica holds, 0 for none; of several the highest holds",
            ),
            changes: counter(
                "garrison_anomaly_hand_overs",
                "Tenants that came to this replica or left it, by what happened",
            ),
            passed_on: counter(
                "garrison_anomaly_passed_on_batches",
                "Batches given to this replica whose tenant another one judges, which was told",
            ),
        }
    }
}

impl ReplicaMetrics {
    /// Shows how tenants are shared.
    pub fn shares(&self, owned: usize, shards: usize, replicas: usize) {
        self.owned.record(owned as u64, &[]);
        self.shards.record(shards as u64, &[]);
        self.replicas.record(replicas as u64, &[]);
    }

    /// Counts a change, and shows the lease that is held from now on; 0 for none.
    pub fn changed(&self, id: &TenantId, change: Change, epoch: i64) {
        let what = match change {
            Change::Taken => "taken",
            Change::HandedOver => "handed_over",
            Change::Lost => "lost",
        };
        self.changes.add(1, &[KeyValue::new("change", what)]);
        self.epoch.record(
            u64::try_from(epoch).unwrap_or(0),
            &[KeyValue::new("tenant", id.to_string())],
        );
    }

    /// Counts a batch whose tenant another one judges.
    pub fn passed_on(&self) {
        self.passed_on.add(1, &[]);
    }
}
