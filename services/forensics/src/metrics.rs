//! What this service counts.

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Histogram},
};

/// Counters.
#[derive(Clone)]
pub struct Metrics {
    batches: Counter<u64>,
    rows: Counter<u64>,
    events: Counter<u64>,
    files: Counter<u64>,
    file_bytes: Counter<u64>,
    compactions_failed: Counter<u64>,
    free: Gauge<u64>,
    searches: Histogram<f64>,
    bundles: Counter<u64>,
    expired: Counter<u64>,
}

impl Metrics {
    /// Registers them.
    pub fn new() -> Self {
        let meter = opentelemetry::global::meter("garrison.forensics");
        let counter = |name, description| meter.u64_counter(name).with_description(description).build();
        Self {
            batches: counter(
                "garrison_forensics_batches",
                "Flow batches taken from the stream, by outcome: stored, repeated, rejected, held",
            ),
            rows: counter("garrison_forensics_rows", "Flow records made durable"),
            events: counter(
                "garrison_forensics_events",
                "Alerts and events taken, by outcome: stored, repeated, rejected, held",
            ),
            files: counter(
                "garrison_forensics_files",
                "Parquet files, by what became of them: written, deleted",
            ),
            file_bytes: counter("garrison_forensics_file_bytes", "Bytes of Parquet written"),
            compactions_failed: counter(
                "garrison_forensics_compactions_failed",
                "Attempts to write Parquet that failed and are tried again",
            ),
            free: meter
                .u64_gauge("garrison_forensics_free_bytes")
                .with_description("Bytes free where the flow lake is")
                .with_unit("By")
                .build(),
            searches: meter
                .f64_histogram("garrison_forensics_search_seconds")
                .with_description("Time of searches")
                .with_unit("s")
                .build(),
            expired: counter(
                "garrison_forensics_expired",
                "Alerts, events, incidents and responses deleted by retention",
            ),
            bundles: counter(
                "garrison_forensics_bundles",
                "Evidence bundles, by outcome: sealed, failed, retried, lost to another worker",
            ),
        }
    }

    /// A batch had this outcome.
    pub fn batch(&self, outcome: &'static str, rows: u64) {
        self.batches.add(1, &[KeyValue::new("outcome", outcome)]);
        if outcome == "stored" {
            self.rows.add(rows, &[]);
        }
    }

    /// An alert or event had this outcome.
    pub fn event(&self, outcome: &'static str) {
        self.events.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    pub(crate) fn compacted(&self, bytes: u64) {
        self.files.add(1, &[KeyValue::new("what", "written")]);
        self.file_bytes.add(bytes, &[]);
    }

    pub(crate) fn compaction_failed(&self) {
        self.compactions_failed.add(1, &[]);
    }

    pub(crate) fn retired(&self) {
        self.files.add(1, &[KeyValue::new("what", "deleted")]);
    }

    pub(crate) fn free(&self, bytes: u64) {
        self.free.record(bytes, &[]);
    }

    /// A search took so many seconds.
    pub fn search(&self, seconds: f64) {
        self.searches.record(seconds, &[]);
    }

    pub(crate) fn expired(&self, rows: u64) {
        self.expired.add(rows, &[]);
    }

    /// A bundle had this outcome.
    pub fn bundle(&self, outcome: &'static str) {
        self.bundles.add(1, &[KeyValue::new("outcome", outcome)]);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
