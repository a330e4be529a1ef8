use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

/// How to reach the broker. There is no plaintext mode.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BusConfig {
    /// Broker addresses, for example `tls://nats-1:4222`. The client tries them in turn.
    pub urls: Vec<String>,
    /// PEM file with the certificate authorities that may have signed the broker's certificate.
    pub ca_file: PathBuf,
    /// PEM file with this process's certificate chain. Its SPIFFE id decides what it may do on the bus.
    pub cert_file: PathBuf,
    /// PEM file with the certificate's private key.
    pub key_file: PathBuf,
    /// Messages that may wait for the broker's acknowledgement at a time; further publishers wait.
    #[serde(default = "default_max_in_flight")]
    pub max_in_flight: usize,
    /// Milliseconds to wait for the broker's acknowledgement, connecting included.
    #[serde(default = "default_ack_timeout_ms")]
    pub ack_timeout_ms: u64,
}

fn default_max_in_flight() -> usize {
    256
}

fn default_ack_timeout_ms() -> u64 {
    5_000
}

impl BusConfig {
    /// A configuration with the default limits.
    pub fn new(
        urls: Vec<String>,
        ca_file: impl Into<PathBuf>,
        cert_file: impl Into<PathBuf>,
        key_file: impl Into<PathBuf>,
    ) -> Self {
        Self {
            urls,
            ca_file: ca_file.into(),
            cert_file: cert_file.into(),
            key_file: key_file.into(),
            max_in_flight: default_max_in_flight(),
            ack_timeout_ms: default_ack_timeout_ms(),
        }
    }
}
