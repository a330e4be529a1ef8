//! What can be configured, checked before anything is opened.

use std::path::PathBuf;

use garrison_service::{ConfigError, Core, ServiceConfig};
use schemars::JsonSchema;
use serde::Deserialize;

/// Configuration of the compliance service.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What every service has.
    pub core: Core,
    /// The transparency log.
    pub log: LogConfig,
    /// Reports.
    #[serde(default)]
    pub reports: ReportsConfig,
}

/// The transparency log.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// PEM file with the Ed25519 private key (PKCS#8) that signs checkpoints. Make one with
    /// `openssl genpkey -algorithm ed25519 -out log-key.pem`. Whoever has it can sign another history, so it is worth
    /// a hardware-backed file system; changing it changes the key that verifiers must trust.
    pub key_file: PathBuf,
    /// Milliseconds between signed checkpoints while a log grows.
    #[serde(default = "default_checkpoint_interval")]
    pub checkpoint_interval_ms: u64,
    /// Records that may be written in one transaction.
    #[serde(default = "default_batch")]
    pub batch: usize,
}

/// Reports.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReportsConfig {
    /// Log entries that an observation quotes in full, with their proofs. Others are counted.
    pub evidence_per_observation: usize,
}

impl Default for ReportsConfig {
    fn default() -> Self {
        Self {
            evidence_per_observation: 25,
        }
    }
}

fn default_checkpoint_interval() -> u64 {
    1_000
}

fn default_batch() -> usize {
    256
}

impl ServiceConfig for Config {
    fn core(&self) -> &Core {
        &self.core
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let check = |good: bool, key: &str, message: &str| {
            if good {
                Ok(())
            } else {
                Err(ConfigError::invalid(key, message))
            }
        };
        check(
            (100..=60_000).contains(&self.log.checkpoint_interval_ms),
            "log.checkpoint_interval_ms",
            "must be 100 to 60000",
        )?;
        check((1..=4_096).contains(&self.log.batch), "log.batch", "must be 1 to 4096")?;
        check(
            (1..=1_000).contains(&self.reports.evidence_per_observation),
            "reports.evidence_per_observation",
            "must be 1 to 1000",
        )
    }
}
