//! What anomaly measures. Labels hold detectors and reasons, never addresses. The model's and the entities' gauges are
//! by tenant: an operator asks for them by tenant, and tenants are bounded.

mod budget;
mod models;
mod replicas;

use std::time::Duration;

pub use budget::BudgetMetrics;
pub use models::ModelMetrics;
pub use replicas::{Change, ReplicaMetrics};

use garrison_proto::TenantId;
use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Gauge, Histogram},
};

use crate::domain::{
    detector::Detector,
    tenant::{Judged, Tenant},
};

/// Instruments of the service.
#[derive(Debug, Clone)]
pub struct Metrics {
    batches: Counter<u64>,
    records: Counter<u64>,
    scored: Counter<u64>,
    learnt: Counter<u64>,
    left_out: Counter<u64>,
    findings: Counter<u64>,
    alerts: Counter<u64>,
    rejected: Counter<u64>,
    model_errors: Counter<u64>,
    replayed: Counter<u64>,
    lost: Counter<u64>,
    latency: Histogram<f64>,
    judging: Histogram<f64>,
    commit: Histogram<f64>,
    checkpoint: Histogram<f64>,
    checkpoint_bytes: Counter<u64>,
    entities: Gauge<u64>,
    evicted: Gauge<u64>,
    model_version: Gauge<u64>,
    model_phase: Gauge<u64>,
    threshold: Gauge<f64>,
    realised_rate: Gauge<f64>,
    looked_back: Counter<u64>,
    looked_back_found: Counter<u64>,
    budget: BudgetMetrics,
    models: ModelMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let meter = global::meter("garrison.anomaly");
        let counter = |name: &'static str, what: &'static str| meter.u64_counter(name).with_description(what).build();
        let seconds = |name: &'static str, what: &'static str| {
            meter
                .f64_histogram(name)
                .with_description(what)
                .with_boundaries(vec![
                    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
                ])
                .build()
        };
        let gauge = |name: &'static str, what: &'static str| meter.u64_gauge(name).with_description(what).build();
        let number = |name: &'static str, what: &'static str| meter.f64_gauge(name).with_description(what).build();
        Self {
            batches: counter("garrison_anomaly_batches", "Flow batches judged"),
            records: counter("garrison_anomaly_records", "Flow records judged"),
            scored: counter("garrison_anomaly_scored_records", "Flow records scored by the model"),
            learnt: counter(
                "garrison_anomaly_learnt_records",
                "Flow records offered to the learnt sample",
            ),
            left_out: counter("garrison_anomaly_left_out_records", "Flow records left out, by reason"),
            findings: counter(
                "garrison_anomaly_findings",
                "Findings by detector, folded ones included",
            ),
            alerts: counter("garrison_anomaly_alerts", "Alerts published by detector"),
            rejected: counter(
                "garrison_anomaly_rejected_batches",
                "Batches sent to the dead-letter queue",
            ),
            model_errors: counter("garrison_anomaly_model_errors", "Batches the model could not score"),
            replayed: counter(
                "garrison_anomaly_replayed_batches",
                "Batches read back that were there when the tenant was taken",
            ),
            lost: counter(
                "garrison_anomaly_lost_batches",
                "Batches gone from the stream before they were read back",
            ),
            latency: seconds(
                "garrison_anomaly_batch_latency_seconds",
                "From publication of a batch to its judgement",
            ),
            judging: seconds("garrison_anomaly_judging_seconds", "Decoding and judging a batch"),
            commit: seconds(
                "garrison_anomaly_alert_commit_seconds",
                "Committing alerts to the outbox",
            ),
            checkpoint: seconds("garrison_anomaly_checkpoint_seconds", "Saving a tenant's changed state"),
            checkpoint_bytes: counter("garrison_anomaly_checkpoint_bytes", "Octets of state saved"),
            entities: gauge("garrison_anomaly_entities", "Entities with state"),
            evicted: gauge(
                "garrison_anomaly_evicted_entities",
                "Entities that made room since they were loaded",
            ),
            model_version: gauge("garrison_anomaly_model_version", "Version of the model at work"),
            model_phase: gauge(
                "garrison_anomaly_model_phase",
                "1 idle, 2 learning, 3 training, 4 scoring",
            ),
            threshold: number(
                "garrison_anomaly_model_threshold",
                "Score above which a flow is an alert",
            ),
            looked_back: counter(
                "garrison_anomaly_looked_back_records",
                "Flow records that were asked about new indicators",
            ),
            looked_back_found: counter(
                "garrison_anomaly_looked_back_findings",
                "Findings in flows that were asked about new indicators",
            ),
            realised_rate: number(
                "garrison_anomaly_model_realised_rate",
                "Share of scores in the far tail, which model.alarm_rate sets",
            ),
            budget: BudgetMetrics::default(),
            models: ModelMetrics::default(),
        }
    }
}

impl Metrics {
    /// Counts a judged batch.
    pub fn judged(&self, judged: &Judged, latency: Duration, judging: Duration) {
        self.batches.add(1, &[]);
        self.records.add(judged.rows, &[]);
        self.scored.add(judged.scored, &[]);
        self.learnt.add(judged.learnt, &[]);
        for (reason, n) in [
            ("repeated", judged.repeated),
            ("late", judged.late),
            ("unusable_state", judged.unusable),
            ("clock_ahead", judged.ahead_of_clock),
        ] {
            if n > 0 {
                self.left_out.add(n, &[KeyValue::new("reason", reason)]);
            }
        }
        for detector in Detector::ALL {
            let n = judged.findings[detector.index()];
            if n > 0 {
                self.findings.add(n, &[KeyValue::new("detector", detector.id())]);
            }
        }
        if judged.model_error.is_some() {
            self.model_errors.add(1, &[]);
        }
        self.latency.record(latency.as_secs_f64(), &[]);
        self.judging.record(judging.as_secs_f64(), &[]);
    }

    /// Counts committed alerts.
    pub fn alerted<'a>(&self, detectors: impl Iterator<Item = &'a str>, commit: Duration) {
        for id in detectors {
            // Only our own ids become labels.
            if let Some(detector) = Detector::ALL.iter().find(|d| d.id() == id) {
                self.alerts.add(1, &[KeyValue::new("detector", detector.id())]);
            }
        }
        self.commit.record(commit.as_secs_f64(), &[]);
    }

    /// Counts a batch that cannot be taken.
    pub fn rejected(&self) {
        self.rejected.add(1, &[]);
    }

    /// Counts batches that were read back, and those that were gone.
    pub fn replayed(&self, batches: u64, lost: u64) {
        self.replayed.add(batches, &[]);
        self.lost.add(lost, &[]);
    }

    /// Counts records that were asked about new indicators, and what was found.
    pub fn looked_back(&self, records: u64, findings: u64) {
        self.looked_back.add(records, &[]);
        self.looked_back_found.add(findings, &[]);
    }

    /// Counts a checkpoint.
    pub fn saved(&self, took: Duration, bytes: usize) {
        self.checkpoint.record(took.as_secs_f64(), &[]);
        self.checkpoint_bytes.add(bytes as u64, &[]);
    }

    /// Shows where a tenant stands.
    pub fn stand(&self, id: &TenantId, tenant: &Tenant) {
        let labels = [KeyValue::new("tenant", id.to_string())];
        let shards = || tenant.shards.iter().flatten();
        self.entities
            .record(shards().map(|s| s.entities() as u64).sum(), &labels);
        self.evicted.record(shards().map(|s| s.evicted()).sum(), &labels);
        self.model_version.record(tenant.models.roles.live, &labels);
        self.model_phase.record(tenant.phase.to_proto() as u64, &labels);
        self.budget.stand(id, tenant);
        self.models.stand(id, tenant);
        if let Some(live) = &tenant.live {
            self.threshold.record(tenant.budgets.threshold(&live.spot), &labels);
            self.realised_rate.record(live.spot.realised_rate(), &labels);
        }
    }
}

/// What threat intelligence measures. Labels hold the names that the operator gave to feeds.
#[derive(Debug, Clone)]
pub struct IntelMetrics {
    values: Gauge<u64>,
    bytes: Gauge<u64>,
    claims: Gauge<u64>,
    read: Gauge<u64>,
    failures: Counter<u64>,
}

impl Default for IntelMetrics {
    fn default() -> Self {
        let meter = global::meter("garrison.anomaly");
        let gauge = |name: &'static str, what: &'static str| meter.u64_gauge(name).with_description(what).build();
        Self {
            values: gauge("garrison_anomaly_indicators", "Values that threat intelligence knows"),
            bytes: gauge("garrison_anomaly_indicator_bytes", "Memory that they take"),
            claims: gauge("garrison_anomaly_feed_indicators", "Values that a feed claims"),
            read: gauge(
                "garrison_anomaly_feed_read_seconds",
                "When a feed was last read, seconds since the epoch",
            ),
            failures: meter
                .u64_counter("garrison_anomaly_feed_failures")
                .with_description("Times that a feed could not be read")
                .build(),
        }
    }
}

impl IntelMetrics {
    /// Shows the index.
    pub fn index(&self, values: usize, bytes: usize) {
        self.values.record(values as u64, &[]);
        self.bytes.record(bytes as u64, &[]);
    }

    /// Shows a feed.
    pub fn feed(&self, name: &str, claims: u64, read: Option<i64>) {
        let labels = [KeyValue::new("feed", name.to_owned())];
        self.claims.record(claims, &labels);
        if let Some(read) = read.and_then(|at| u64::try_from(at).ok()) {
            self.read.record(read, &labels);
        }
    }

    /// Counts a feed that could not be read.
    pub fn failed(&self, name: &str) {
        self.failures.add(1, &[KeyValue::new("feed", name.to_owned())]);
    }
}
