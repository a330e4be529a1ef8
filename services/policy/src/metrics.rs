//! What this service counts.

use std::time::Duration;

use garrison_ztp::Verdict;
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Histogram},
};

/// Instruments; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    flows: Counter<u64>,
    batch: Histogram<f64>,
    alerts: Counter<u64>,
    rules: Gauge<u64>,
    refreshes: Counter<u64>,
}

impl Metrics {
    /// Registers them.
    pub fn new() -> Self {
        let meter = opentelemetry::global::meter("garrison.policy");
        Self {
            flows: meter
                .u64_counter("garrison_policy_flows")
                .with_description("Flows that got a verdict, by verdict: allow, deny, ungoverned")
                .build(),
            batch: meter
                .f64_histogram("garrison_policy_batch_duration_seconds")
                .with_unit("s")
                .with_description("Time from taking a flow batch to having decided it, violations stored included")
                .with_boundaries(vec![
                    0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0,
                ])
                .build(),
            alerts: meter
                .u64_counter("garrison_policy_alerts")
                .with_description("Alerts for forbidden flows, by kind: raised, updated, folded")
                .build(),
            rules: meter
                .u64_gauge("garrison_policy_rules")
                .with_description("Rules that flows of a tenant are held against")
                .build(),
            refreshes: meter
                .u64_counter("garrison_policy_refreshes")
                .with_description("Looks for changed policies, by outcome: unchanged, changed, failed")
                .build(),
        }
    }

    pub(crate) fn judged(&self, verdict: Verdict, flows: u64) {
        if flows > 0 {
            let verdict = match verdict {
                Verdict::Allow => "allow",
                Verdict::Deny => "deny",
                Verdict::Ungoverned => "ungoverned",
            };
            self.flows.add(flows, &[KeyValue::new("verdict", verdict)]);
        }
    }

    pub(crate) fn batch(&self, took: Duration) {
        self.batch.record(took.as_secs_f64(), &[]);
    }

    pub(crate) fn alerts(&self, kind: &'static str, count: u64) {
        if count > 0 {
            self.alerts.add(count, &[KeyValue::new("kind", kind)]);
        }
    }

    pub(crate) fn rules(&self, tenant: &str, rules: usize) {
        self.rules
            .record(rules as u64, &[KeyValue::new("tenant", tenant.to_owned())]);
    }

    pub(crate) fn refreshed(&self, outcome: &'static str) {
        self.refreshes.add(1, &[KeyValue::new("outcome", outcome)]);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
