//! What the controller counts.

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Histogram},
};

/// The controller's instruments.
#[derive(Clone, Debug)]
pub struct Metrics {
    reconciles: Counter<u64>,
    duration: Histogram<f64>,
    writes: Counter<u64>,
    restored: Counter<u64>,
    leader: Gauge<u64>,
    queue: Gauge<u64>,
    admissions: Counter<u64>,
    admission: Histogram<f64>,
    conversions: Counter<u64>,
    conversion: Histogram<f64>,
    certificate: Gauge<i64>,
    bundle: Gauge<i64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let meter = opentelemetry::global::meter("garrison.policy_controller");
        Self {
            reconciles: meter.u64_counter("garrison_policy_controller_reconciles").build(),
            duration: meter
                .f64_histogram("garrison_policy_controller_reconcile_duration_seconds")
                .with_boundaries(vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0])
                .build(),
            writes: meter.u64_counter("garrison_policy_controller_writes").build(),
            restored: meter.u64_counter("garrison_policy_controller_restored").build(),
            leader: meter.u64_gauge("garrison_policy_controller_leader").build(),
            queue: meter.u64_gauge("garrison_policy_controller_queued").build(),
            admissions: meter.u64_counter("garrison_policy_controller_admissions").build(),
            admission: meter
                .f64_histogram("garrison_policy_controller_admission_duration_seconds")
                .with_boundaries(vec![
                    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25,
                ])
                .build(),
            conversions: meter.u64_counter("garrison_policy_controller_converted").build(),
            conversion: meter
                .f64_histogram("garrison_policy_controller_conversion_duration_seconds")
                .with_boundaries(vec![0.000_1, 0.000_5, 0.002, 0.01, 0.05, 0.25, 1.0, 5.0])
                .build(),
            certificate: meter
                .i64_gauge("garrison_policy_controller_certificate_expires_timestamp_seconds")
                .build(),
            bundle: meter
                .i64_gauge("garrison_policy_controller_bundle_expires_timestamp_seconds")
                .build(),
        }
    }
}

impl Metrics {
    pub(crate) fn reconciled(&self, outcome: &'static str, seconds: f64, queued: usize) {
        self.reconciles.add(1, &[KeyValue::new("outcome", outcome)]);
        self.duration.record(seconds, &[]);
        self.queue.record(queued as u64, &[]);
    }

    pub(crate) fn wrote(&self, kind: &str, operation: &'static str, done: bool) {
        self.writes.add(
            1,
            &[
                KeyValue::new("kind", kind.to_owned()),
                KeyValue::new("operation", operation),
                KeyValue::new("outcome", if done { "done" } else { "failed" }),
            ],
        );
    }

    pub(crate) fn restored(&self, kind: &str) {
        self.restored.add(1, &[KeyValue::new("kind", kind.to_owned())]);
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leader.record(u64::from(leads), &[]);
    }

    pub(crate) fn admitted(&self, allowed: bool, seconds: f64) {
        self.admissions.add(1, &[KeyValue::new("allowed", allowed)]);
        self.admission.record(seconds, &[]);
    }

    pub(crate) fn converted(&self, done: bool, objects: usize, seconds: f64) {
        let outcome = KeyValue::new("outcome", if done { "done" } else { "refused" });
        self.conversions.add(objects as u64, &[outcome]);
        self.conversion.record(seconds, &[]);
    }

    /// When the webhook's certificate ends.
    pub(crate) fn certificate(&self, expires: i64) {
        self.certificate.record(expires, &[]);
    }

    /// When the last authority of a bundle ends; 0 while the bundle cannot be used.
    pub(crate) fn bundle(&self, trust_domain: &str, expires: i64) {
        self.bundle
            .record(expires, &[KeyValue::new("trust_domain", trust_domain.to_owned())]);
    }
}
