//! What this service counts.

use opentelemetry::{KeyValue, metrics::Counter};

/// Counters.
#[derive(Clone)]
pub struct Metrics {
    records: Counter<u64>,
}

impl Metrics {
    /// Registers them.
    pub fn new() -> Self {
        let meter = opentelemetry::global::meter("garrison.compliance");
        Self {
            records: meter
                .u64_counter("garrison_compliance_records")
                .with_description(
                    "Audit records taken from the stream, by outcome: appended, repeated, rejected, retried",
                )
                .build(),
        }
    }

    /// One record had this outcome.
    pub fn record(&self, outcome: &'static str) {
        self.records.add(1, &[KeyValue::new("outcome", outcome)]);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
