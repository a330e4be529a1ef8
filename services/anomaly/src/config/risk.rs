//! How risk falls, and how long what adds to it is kept.

use garrison_service::ConfigError;
use schemars::JsonSchema;
use serde::Deserialize;

const DAY: u32 = 86_400;

/// The risk of hosts, services and users.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RiskConfig {
    /// Seconds after which half of what something added is gone, 60 to 30 days.
    pub half_life_seconds: u32,
    /// Days for which what adds to a risk, and how users log in, is kept, 1 to 365.
    pub keep_days: u32,
    /// Seconds after a login from a host for which what is found on the host counts for the user too, 60 to 30 days.
    pub presence_seconds: u32,
}

impl Default for RiskConfig {
    fn default() -> Self {
        Self {
            half_life_seconds: DAY,
            keep_days: 30,
            presence_seconds: DAY / 2,
        }
    }
}

impl RiskConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        for (key, value, least, most) in [
            ("risk.half_life_seconds", self.half_life_seconds, 60, 30 * DAY),
            ("risk.keep_days", self.keep_days, 1, 365),
            ("risk.presence_seconds", self.presence_seconds, 60, 30 * DAY),
        ] {
            if !(least..=most).contains(&value) {
                return Err(ConfigError::invalid(key, format!("{value} is not {least} to {most}")));
            }
        }
        Ok(())
    }
}
