//! The responder's configuration.

use std::{collections::BTreeMap, path::PathBuf};

use chrono::Duration;
use garrison_proto::TenantId;
use garrison_service::{ConfigError, Core, ServiceConfig};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    app::{Settings, TenantSettings},
    domain::{
        correlation::CorrelationPolicy,
        guard::Limits,
        playbook::{self, Playbook},
        response::Timing,
    },
};

/// The playbooks that tenants start with when no other file is configured.
pub const DEFAULT_PLAYBOOKS: &str = include_str!("../playbooks/default.yaml");

/// The configuration file of the responder.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What every service has.
    pub core: Core,
    /// How alerts become incidents.
    #[serde(default)]
    pub correlation: CorrelationConfig,
    /// How long responses may take.
    #[serde(default)]
    pub responses: ResponsesConfig,
    /// How much of a network a tenant's actions may take out.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// The networks that playbooks call internal. By default the private ones (RFC 1918, RFC 4193), the shared address space
    /// that overlays and carriers use behind their translators (RFC 6598), and IPv6 link-local: the same as anomaly's.
    #[serde(default = "private_networks")]
    pub internal_networks: Vec<String>,
    /// Enforcer nodes.
    #[serde(default)]
    pub enforcement: EnforcementConfig,
    /// What new tenants start with.
    #[serde(default)]
    pub playbooks: PlaybooksConfig,
    /// What single tenants have for themselves.
    #[serde(default)]
    #[schemars(extend("x-key" = "tenant id"))]
    pub tenants: BTreeMap<String, TenantConfig>,
}

/// `[correlation]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CorrelationConfig {
    /// Alerts further apart than this many minutes are not linked. 1 to 1440.
    pub window_minutes: u32,
    /// An alert with more targets than this says nothing about who fell. 1 to 1024.
    pub max_fanout: usize,
    /// At most so many incidents are merged by one alert. 1 to 1000.
    pub max_merge: usize,
}

impl Default for CorrelationConfig {
    fn default() -> Self {
        let policy = CorrelationPolicy::default();
        Self {
            window_minutes: 30,
            max_fanout: policy.max_fanout,
            max_merge: policy.max_merge,
        }
    }
}

/// `[responses]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResponsesConfig {
    /// An enforcer has this long to confirm an order before it is sent again, in milliseconds. 100 to 60000.
    pub confirm_timeout_ms: u32,
    /// How often an order to apply is sent before the response has failed. 1 to 20.
    pub attempts: u8,
    /// A person has this long to approve, in seconds. 10 to 604800.
    pub approval_timeout_s: u32,
    /// How long after its time ran out an action is reverted by order when no removal was reported, in
    /// milliseconds. 500 to 600000.
    pub expiry_grace_ms: u32,
}

impl Default for ResponsesConfig {
    fn default() -> Self {
        Self {
            confirm_timeout_ms: 2000,
            attempts: 3,
            approval_timeout_s: 3600,
            expiry_grace_ms: 5000,
        }
    }
}

/// `[limits]` and `[tenants.<id>.limits]`
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Addresses under any action at once; an IPv6 /64 counts as one. From 1 on.
    pub max_addresses: u32,
    /// The shortest IPv4 prefix that may be a target. 8 to 32.
    pub widest_ipv4_prefix: u8,
    /// The shortest IPv6 prefix that may be a target. 16 to 128.
    pub widest_ipv6_prefix: u8,
    /// Actions sent within one hour. From 1 on.
    pub max_per_hour: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_addresses: 1024,
            widest_ipv4_prefix: 24,
            widest_ipv6_prefix: 64,
            max_per_hour: 500,
        }
    }
}

/// `[enforcement]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EnforcementConfig {
    /// A node that was silent for this long takes no part in new responses, in seconds. 2 to 600.
    pub stale_after_s: u32,
    /// Which enforcer node, by the name in its certificate, may serve which tenants; `"*"` for all. A node that is not
    /// here serves nobody.
    #[schemars(extend("x-key" = "node"))]
    pub nodes: BTreeMap<String, Vec<String>>,
}

impl Default for EnforcementConfig {
    fn default() -> Self {
        Self {
            stale_after_s: 8,
            nodes: BTreeMap::new(),
        }
    }
}

/// `[playbooks]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlaybooksConfig {
    /// A file of YAML documents that a new tenant starts with, instead of the ones that come with the
    /// program.
    pub default_file: Option<PathBuf>,
}

/// `[tenants.<id>]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantConfig {
    /// Instead of `[limits]`.
    pub limits: Option<LimitsConfig>,
    /// Instead of `internal_networks`.
    pub internal_networks: Option<Vec<String>>,
}

fn private_networks() -> Vec<String> {
    [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "fc00::/7",
        "fe80::/10",
    ]
    .map(str::to_owned)
    .to_vec()
}

impl ServiceConfig for Config {
    fn core(&self) -> &Core {
        &self.core
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if self.core.grpc.is_none() {
            return Err(ConfigError::invalid("core.grpc", "the section is missing"));
        }
        self.settings().map(drop)
    }
}

fn within<T: PartialOrd + std::fmt::Display + Copy>(key: &str, value: T, least: T, most: T) -> Result<T, ConfigError> {
    if value < least || value > most {
        return Err(ConfigError::invalid(
            key,
            format!("{value} is not within {least} to {most}"),
        ));
    }
    Ok(value)
}

fn networks(key: &str, given: &[String]) -> Result<Vec<IpNet>, ConfigError> {
    given
        .iter()
        .map(|text| {
            text.parse::<IpNet>()
                .map(|net| net.trunc())
                .map_err(|_| ConfigError::invalid(key, format!("{text:?} is not a CIDR block")))
        })
        .collect()
}

fn limits(key: &str, given: &LimitsConfig) -> Result<Limits, ConfigError> {
    let key = |name: &str| format!("{key}.{name}");
    Ok(Limits {
        max_addresses: u64::from(within(&key("max_addresses"), given.max_addresses, 1, u32::MAX)?),
        widest_ipv4_prefix: within(&key("widest_ipv4_prefix"), given.widest_ipv4_prefix, 8, 32)?,
        widest_ipv6_prefix: within(&key("widest_ipv6_prefix"), given.widest_ipv6_prefix, 16, 128)?,
        max_per_hour: u64::from(within(&key("max_per_hour"), given.max_per_hour, 1, u32::MAX)?),
    })
}

impl Config {
    /// The settings of the use cases.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let own_limits = limits("limits", &self.limits)?;
        let internal = networks("internal_networks", &self.internal_networks)?;
        let mut tenants = BTreeMap::new();
        for (id, own) in &self.tenants {
            let key = format!("tenants.{id}");
            let tenant: TenantId = id
                .parse()
                .map_err(|e| ConfigError::invalid(key.clone(), format!("{e}")))?;
            tenants.insert(
                tenant,
                TenantSettings {
                    limits: match &own.limits {
                        Some(given) => limits(&format!("{key}.limits"), given)?,
                        None => own_limits,
                    },
                    internal: match &own.internal_networks {
                        Some(given) => networks(&format!("{key}.internal_networks"), given)?,
                        None => internal.clone(),
                    },
                },
            );
        }
        for (node, served) in &self.enforcement.nodes {
            for tenant in served.iter().filter(|t| *t != "*") {
                tenant
                    .parse::<TenantId>()
                    .map_err(|e| ConfigError::invalid(format!("enforcement.nodes.{node}"), format!("{e}")))?;
            }
        }
        let responses = &self.responses;
        Ok(Settings {
            correlation: CorrelationPolicy {
                window_minutes: i64::from(within(
                    "correlation.window_minutes",
                    self.correlation.window_minutes,
                    1,
                    1440,
                )?),
                max_fanout: within("correlation.max_fanout", self.correlation.max_fanout, 1, 1024)?,
                max_merge: within("correlation.max_merge", self.correlation.max_merge, 1, 1000)?,
            },
            timing: Timing {
                confirm: Duration::milliseconds(i64::from(within(
                    "responses.confirm_timeout_ms",
                    responses.confirm_timeout_ms,
                    100,
                    60_000,
                )?)),
                attempts: i32::from(within("responses.attempts", responses.attempts, 1, 20)?),
                approval: Duration::seconds(i64::from(within(
                    "responses.approval_timeout_s",
                    responses.approval_timeout_s,
                    10,
                    604_800,
                )?)),
                expiry_grace: Duration::milliseconds(i64::from(within(
                    "responses.expiry_grace_ms",
                    responses.expiry_grace_ms,
                    500,
                    600_000,
                )?)),
            },
            limits: own_limits,
            internal,
            tenants,
            nodes: self.enforcement.nodes.clone(),
            stale_after: Duration::seconds(i64::from(within(
                "enforcement.stale_after_s",
                self.enforcement.stale_after_s,
                2,
                600,
            )?)),
            default_playbooks: self.default_playbooks()?,
        })
    }

    fn default_playbooks(&self) -> Result<Vec<String>, ConfigError> {
        let key = "playbooks.default_file";
        let text = match &self.playbooks.default_file {
            None => DEFAULT_PLAYBOOKS.to_owned(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|e| ConfigError::invalid(key, format!("cannot read {}: {e}", path.display())))?,
        };
        let documents = playbook::split(&text);
        for (i, document) in documents.iter().enumerate() {
            if let Err(violations) = Playbook::parse(document) {
                let first = violations
                    .first()
                    .map_or_else(String::new, |v| format!("{}: {}", v.field, v.message));
                return Err(ConfigError::invalid(
                    key,
                    format!("document {} is invalid: {first}", i + 1),
                ));
            }
        }
        Ok(documents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, toml::de::Error> {
        toml::from_str(&format!(
            "{text}\n[core.identity]\ntrust_domain='t'\ncert_file='c'\nkey_file='k'\nca_file='a'\n[core.bus]\nurls=['tls://n:4222']\nca_file='a'\ncert_file='c'\nkey_file='k'\n[core.grpc]\nlisten='127.0.0.1:0'\n"
        ))
    }

    #[test]
    fn defaults_are_valid_and_load_the_default_playbooks() {
        let settings = config("").unwrap().settings().unwrap();
        assert_eq!(settings.default_playbooks.len(), 4);
        assert!(settings.nodes.is_empty(), "no node serves anybody by default");
    }

    #[test]
    fn a_wrong_value_is_named() {
        for (text, key) in [
            ("[correlation]\nwindow_minutes = 0", "correlation.window_minutes"),
            ("[responses]\nattempts = 0", "responses.attempts"),
            ("[limits]\nwidest_ipv4_prefix = 0", "limits.widest_ipv4_prefix"),
            ("[tenants.Acme]", "tenants.Acme"),
            (
                "[tenants.acme.limits]\nmax_per_hour = 0",
                "tenants.acme.limits.max_per_hour",
            ),
            (
                "[tenants.acme]\ninternal_networks = ['x']",
                "tenants.acme.internal_networks",
            ),
            ("[enforcement.nodes]\nrouter = ['A']", "enforcement.nodes.router"),
            (
                "[playbooks]\ndefault_file = '/nowhere/at/all'",
                "playbooks.default_file",
            ),
        ] {
            let error = config(text).unwrap().validate().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        assert!(
            config("[limits]\nmax_adresses = 1").is_err(),
            "an unknown key was taken"
        );
    }
}
