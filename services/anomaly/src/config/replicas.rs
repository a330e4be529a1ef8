//! Several replicas.

use std::time::Duration;

use garrison_service::ConfigError;
use schemars::JsonSchema;
use serde::Deserialize;

/// Longest name, octets.
const LONGEST_NAME: usize = 253;

/// How replicas share the tenants. One alone needs nothing of it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicasConfig {
    /// What this replica is called. A process that starts takes the place of one of the same name at once, so no two that run
    /// at a time should share one. Empty: what the variable `HOSTNAME` says, which in a container is the pod's name, and
    /// `anomaly` where it says nothing.
    pub name: String,
    /// Seconds without a sign of life after which the others take over what a replica held, 2 to 300. It gives one five times
    /// as often.
    pub lease_seconds: u32,
}

impl Default for ReplicasConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            lease_seconds: 10,
        }
    }
}

impl ReplicasConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if !(2..=300).contains(&self.lease_seconds) {
            let reason = format!("{} is not 2 to 300", self.lease_seconds);
            return Err(ConfigError::invalid("replicas.lease_seconds", reason));
        }
        if self.name.len() > LONGEST_NAME || self.name.chars().any(char::is_control) {
            let reason = format!("it is longer than {LONGEST_NAME} octets or has control characters");
            return Err(ConfigError::invalid("replicas.name", reason));
        }
        Ok(())
    }

    /// What the replica is called.
    pub fn name(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        let host = std::env::var("HOSTNAME").ok().filter(|host| !host.is_empty());
        host.unwrap_or_else(|| crate::INFO.name.to_owned())
    }

    /// How long a sign of life lasts.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_seconds.into())
    }
}
