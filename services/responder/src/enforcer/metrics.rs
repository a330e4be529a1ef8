//! What the enforcer counts.

use std::time::Duration;

use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Gauge, Histogram},
};

use super::ledger::Said;

/// The instruments of the enforcer.
#[derive(Debug)]
pub struct Metrics {
    orders: Counter<u64>,
    kernel: Histogram<f64>,
    tampering: Counter<u64>,
    reconciliations: Counter<u64>,
    failures: Counter<u64>,
    lost: Counter<u64>,
    in_force: Gauge<u64>,
}

impl Metrics {
    /// Registers the instruments with the global meter.
    pub fn new() -> Self {
        let meter = global::meter("garrison.enforcer");
        Self {
            orders: meter
                .u64_counter("garrison_enforcer_orders")
                .with_description("Orders by what became of them")
                .build(),
            kernel: meter
                .f64_histogram("garrison_enforcer_kernel_seconds")
                .with_description("From an order to the kernel's confirmed state")
                .with_unit("s")
                .with_boundaries(vec![
                    0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0,
                ])
                .build(),
            tampering: meter
                .u64_counter("garrison_enforcer_tampering")
                .with_description("Times that somebody else changed the table and it was restored")
                .build(),
            reconciliations: meter
                .u64_counter("garrison_enforcer_reconciliations")
                .with_description("Reconciliations with the responder")
                .build(),
            failures: meter
                .u64_counter("garrison_enforcer_failures")
                .with_description("Failed looks at the ruleset and writes of the state file")
                .build(),
            lost: meter
                .u64_counter("garrison_enforcer_news_lost")
                .with_description("Reports and audit records dropped because the broker was away for too long")
                .build(),
            in_force: meter
                .u64_gauge("garrison_enforcer_in_force")
                .with_description("Responses in force on this node")
                .build(),
        }
    }

    pub(super) fn order(&self, said: Said, took: Duration) {
        let outcome = match said {
            Said::Applied => "applied",
            Said::Removed => "removed",
            Said::Expired => "expired",
            Said::Failed => "failed",
        };
        self.orders.add(1, &[KeyValue::new("outcome", outcome)]);
        self.kernel.record(took.as_secs_f64(), &[]);
    }

    pub(super) fn tampered(&self) {
        self.tampering.add(1, &[]);
    }

    pub(super) fn reconciled(&self) {
        self.reconciliations.add(1, &[]);
    }

    pub(super) fn failed(&self, what: &'static str) {
        self.failures.add(1, &[KeyValue::new("what", what)]);
    }

    pub(super) fn lost(&self, count: usize) {
        if count > 0 {
            self.lost.add(count as u64, &[]);
        }
    }

    pub(super) fn in_force(&self, count: usize) {
        self.in_force.record(count as u64, &[]);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
