//! What can be configured, checked before anything is opened.

use std::{collections::BTreeMap, time::Duration};

use garrison_proto::TenantId;
use garrison_service::{ConfigError, Core, ServiceConfig};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::app::{ReviewRule, Settings};

/// Configuration of the policy service.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What every service has.
    pub core: Core,
    /// Verdicts on flows.
    #[serde(default)]
    pub flows: FlowsConfig,
    /// Alerts for flows that enforced policies forbid.
    #[serde(default)]
    pub alerts: AlertsConfig,
    /// Approval of policies before they are enforced.
    #[serde(default)]
    pub review: ReviewConfig,
}

/// Approval of policies before they are enforced.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReviewConfig {
    /// Whether a version in mode `enforce` takes force only after somebody else than its author approved it. Without,
    /// one stolen session or one slip changes who may talk to whom.
    pub required: bool,
    /// By tenant, where it is not `required`'s value, such as `acme = false` for a tenant with a single author.
    pub tenants: BTreeMap<String, bool>,
}

impl Default for ReviewConfig {
    fn default() -> Self {
        Self {
            required: true,
            tenants: BTreeMap::new(),
        }
    }
}

/// Verdicts on flows.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FlowsConfig {
    /// Flow batches in work at a time.
    pub concurrency: usize,
    /// Flows of a tenant that are remembered as judged, at least; the oldest are forgotten first. A flow that is
    /// forgotten and still reported counts again. About 40 bytes each.
    pub remembered: usize,
    /// Milliseconds between looks for policy changes that another replica made. A change made through this
    /// process takes effect at once.
    pub refresh_interval_ms: u64,
    /// Milliseconds for which verdict counts are gathered before they are written.
    pub count_interval_ms: u64,
}

/// Alerts for flows that enforced policies forbid.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AlertsConfig {
    /// Seconds for which forbidden flows with the same source, destination and port are one alert.
    pub fold_seconds: u32,
    /// Ports of one destination, and after that destinations of one source, that get an alert of their own within
    /// `fold_seconds`; what goes beyond is one alert more.
    pub spread: u32,
    /// Days after which a raised alert is forgotten here. The responder keeps its own.
    pub keep_days: u32,
    /// What counts as inside, for the technique that an alert names.
    #[schemars(with = "Vec<String>")]
    pub internal_networks: Vec<IpNet>,
}

impl Default for FlowsConfig {
    fn default() -> Self {
        Self {
            concurrency: 8,
            remembered: 500_000,
            refresh_interval_ms: 500,
            count_interval_ms: 1_000,
        }
    }
}

impl Default for AlertsConfig {
    fn default() -> Self {
        let networks = [
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",
            "169.254.0.0/16",
            "127.0.0.0/8",
            "fc00::/7",
            "fe80::/10",
            "::1/128",
        ];
        Self {
            fold_seconds: 60,
            spread: 16,
            keep_days: 30,
            internal_networks: networks.iter().filter_map(|net| net.parse().ok()).collect(),
        }
    }
}

impl ServiceConfig for Config {
    fn core(&self) -> &Core {
        &self.core
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let within = |key: &str, value: u64, from: u64, to: u64| {
            if (from..=to).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::invalid(
                    key,
                    format!("{value} is not within {from} to {to}"),
                ))
            }
        };
        for tenant in self.review.tenants.keys() {
            if tenant.parse::<TenantId>().is_err() {
                let key = format!("review.tenants.{tenant}");
                return Err(ConfigError::invalid(&key, "the name of no tenant can be so"));
            }
        }
        within("flows.concurrency", self.flows.concurrency as u64, 1, 256)?;
        within("flows.remembered", self.flows.remembered as u64, 1_000, 100_000_000)?;
        within("flows.refresh_interval_ms", self.flows.refresh_interval_ms, 50, 60_000)?;
        within("flows.count_interval_ms", self.flows.count_interval_ms, 50, 600_000)?;
        within("alerts.fold_seconds", self.alerts.fold_seconds.into(), 1, 86_400)?;
        within("alerts.spread", self.alerts.spread.into(), 1, 10_000)?;
        within("alerts.keep_days", self.alerts.keep_days.into(), 1, 3_650)
    }
}

impl Config {
    /// What the use cases need of it.
    pub fn settings(&self) -> Settings {
        Settings {
            remembered: self.flows.remembered,
            refresh_interval: Duration::from_millis(self.flows.refresh_interval_ms),
            count_interval: Duration::from_millis(self.flows.count_interval_ms),
            fold: Duration::from_secs(self.alerts.fold_seconds.into()),
            spread: self.alerts.spread as usize,
            keep: Duration::from_secs(u64::from(self.alerts.keep_days) * 86_400),
            internal: self.alerts.internal_networks.clone(),
            review: ReviewRule {
                required: self.review.required,
                tenants: self.review.tenants.clone(),
            },
        }
    }
}
