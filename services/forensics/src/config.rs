//! What can be configured, checked before anything is opened.

use std::path::PathBuf;

use garrison_service::{ConfigError, Core, ServiceConfig};
use schemars::JsonSchema;
use serde::Deserialize;

/// Configuration of the forensics service.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What every service has.
    pub core: Core,
    /// The flow lake.
    pub lake: LakeConfig,
    /// Alerts, events, incidents and responses.
    #[serde(default)]
    pub events: EventsConfig,
    /// Searches.
    #[serde(default)]
    pub search: SearchConfig,
    /// Evidence bundles.
    pub evidence: EvidenceConfig,
}

/// The flow lake.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LakeConfig {
    /// Folder for flows and bundles. One process owns it. Flows are under
    /// `<tenant>/<yyyy-mm-dd>/<hh>/<id>.parquet`, by the time of storing.
    pub data_dir: PathBuf,
    /// Rows after which a write-ahead segment is written as Parquet.
    #[serde(default = "default_roll_rows")]
    pub roll_rows: u64,
    /// Bytes after which a write-ahead segment is written as Parquet.
    #[serde(default = "default_roll_bytes")]
    pub roll_bytes: u64,
    /// Milliseconds after which a write-ahead segment is written as Parquet. Searches see flows before that.
    #[serde(default = "default_roll_interval")]
    pub roll_interval_ms: u64,
    /// Free bytes below which no more flows are taken: room for turning segments into Parquet. The broker keeps what
    /// is not taken.
    #[serde(default = "default_reserve")]
    pub reserve_bytes: u64,
    /// Hours that flows are kept.
    #[serde(default = "default_retention_hours")]
    pub retention_hours: u32,
    /// Bytes of Parquet that are kept for each tenant; the oldest go first.
    #[serde(default = "default_retention_bytes")]
    pub retention_bytes: u64,
}

/// Alerts, events, incidents and responses.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EventsConfig {
    /// Days that they are kept after they last changed; a year's audit and a month to do it in. The version of a policy
    /// that was in force stays. What is in a sealed bundle stays in it.
    pub retention_days: u32,
}

/// Searches.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SearchConfig {
    /// Flows in one answer at most, also when the client asks for no limit.
    pub max_flows: usize,
    /// Flows that one search may remember while it looks for their last records; about 100 bytes each. A search that
    /// meets more says that its answer is cut short.
    pub max_candidates: usize,
    /// Searches at a time; others wait.
    pub concurrency: usize,
}

/// Evidence bundles.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvidenceConfig {
    /// PEM file with the Ed25519 private key (PKCS#8) that signs bundles. Make one with
    /// `openssl genpkey -algorithm ed25519 -out evidence-key.pem`, and give examiners its public half by another way
    /// than the bundles.
    pub key_file: PathBuf,
    /// Endpoints of flow-ingest, `https://host:port`, which have the packets. Without any, bundles have none and say so.
    #[serde(default)]
    pub flow_ingest_endpoints: Vec<String>,
    /// Milliseconds that one flow-ingest may take to give its packets; then the bundle is sealed without them.
    #[serde(default = "default_packet_timeout")]
    pub packet_timeout_ms: u64,
    /// Bytes of packets in a bundle at most, from each flow-ingest.
    #[serde(default = "default_max_packet_bytes")]
    pub max_packet_bytes: u64,
    /// Flows in a bundle at most.
    #[serde(default = "default_max_flows")]
    pub max_flows: usize,
    /// Milliseconds before the first and after the last alert for which flows of the incident's hosts are gathered.
    #[serde(default = "default_margin")]
    pub margin_ms: u64,
    /// Milliseconds after which another process takes over a bundle whose worker has died.
    #[serde(default = "default_lease")]
    pub lease_ms: u64,
    /// How often a bundle is tried before it fails.
    #[serde(default = "default_attempts")]
    pub max_attempts: u32,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self { retention_days: 400 }
    }
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            max_flows: 10_000,
            max_candidates: 1_000_000,
            concurrency: 4,
        }
    }
}

fn default_roll_rows() -> u64 {
    250_000
}

fn default_roll_bytes() -> u64 {
    64 << 20
}

fn default_roll_interval() -> u64 {
    300_000
}

fn default_reserve() -> u64 {
    256 << 20
}

fn default_retention_hours() -> u32 {
    30 * 24
}

fn default_retention_bytes() -> u64 {
    100 << 30
}

fn default_packet_timeout() -> u64 {
    30_000
}

fn default_max_packet_bytes() -> u64 {
    256 << 20
}

fn default_max_flows() -> usize {
    100_000
}

fn default_margin() -> u64 {
    60_000
}

fn default_lease() -> u64 {
    30_000
}

fn default_attempts() -> u32 {
    20
}

impl ServiceConfig for Config {
    fn core(&self) -> &Core {
        &self.core
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let range = |key: &str, value: u64, from: u64, to: u64| {
            if (from..=to).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::invalid(
                    key,
                    format!("{value} is not between {from} and {to}"),
                ))
            }
        };
        if !self.lake.data_dir.is_absolute() {
            return Err(ConfigError::invalid("lake.data_dir", "must be an absolute path"));
        }
        range("lake.roll_rows", self.lake.roll_rows, 1, 10_000_000)?;
        range("lake.roll_bytes", self.lake.roll_bytes, 1 << 10, 1 << 30)?;
        range("lake.roll_interval_ms", self.lake.roll_interval_ms, 100, 3_600_000)?;
        range("lake.retention_hours", self.lake.retention_hours.into(), 1, 876_000)?;
        range("events.retention_days", self.events.retention_days.into(), 1, 36_500)?;
        range("search.max_flows", self.search.max_flows as u64, 1, 1_000_000)?;
        range(
            "search.max_candidates",
            self.search.max_candidates as u64,
            1_000,
            100_000_000,
        )?;
        range("search.concurrency", self.search.concurrency as u64, 1, 64)?;
        range(
            "evidence.packet_timeout_ms",
            self.evidence.packet_timeout_ms,
            100,
            600_000,
        )?;
        range("evidence.max_packet_bytes", self.evidence.max_packet_bytes, 1, 4 << 30)?;
        range("evidence.max_flows", self.evidence.max_flows as u64, 1, 1_000_000)?;
        range("evidence.margin_ms", self.evidence.margin_ms, 0, 86_400_000)?;
        range("evidence.lease_ms", self.evidence.lease_ms, 1_000, 600_000)?;
        range("evidence.max_attempts", self.evidence.max_attempts.into(), 1, 1_000)
    }
}
