//! The enforcer's configuration.

use std::path::PathBuf;

use garrison_proto::TenantId;
use garrison_service::{ConfigError, Core, ServiceConfig};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use super::ruleset::{Layout, TenantScope};

/// The configuration file of the enforcer.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What every service has. The certificate names the node: `spiffe://<trust domain>/enforcer/<node>`.
    pub core: Core,
    /// This node.
    pub enforcer: EnforcerConfig,
}

/// `[enforcer]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnforcerConfig {
    /// The responder's gRPC endpoint, `https://host:port`.
    pub responder_endpoint: String,
    /// The tenants whose orders this node takes. The responder must allow it under `enforcement.nodes`.
    pub tenants: Vec<TenantConfig>,
    /// What was ordered and done, so that a restart puts it back. Its folder must exist.
    #[serde(default = "state_file")]
    pub state_file: PathBuf,
    /// Networks that an isolated host still reaches and is reached from, and that no order may touch.
    #[serde(default)]
    pub management_networks: Vec<String>,
    /// Takes part without touching nftables: every order is reported as failed, "observe only".
    #[serde(default)]
    pub observe_only: bool,
    /// How often the responder hears of this node, in milliseconds. 200 to 60000; well below the responder's
    /// `enforcement.stale_after_s`.
    #[serde(default = "heartbeat")]
    pub heartbeat_interval_ms: u32,
    /// How often everything is compared with the responder even when the digests agree, in seconds. 5 to 3600.
    #[serde(default = "reconcile")]
    pub reconcile_interval_s: u32,
    /// The nftables program.
    #[serde(default = "nft")]
    pub nft_program: String,
}

/// `[[enforcer.tenants]]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantConfig {
    /// The tenant's id.
    pub id: String,
    /// Only packets that come in or go out on these interfaces are the tenant's. Empty: all packets.
    #[serde(default)]
    pub interfaces: Vec<String>,
}

fn state_file() -> PathBuf {
    PathBuf::from("/var/lib/garrison/enforcer.json")
}

fn heartbeat() -> u32 {
    2000
}

fn reconcile() -> u32 {
    60
}

fn nft() -> String {
    "nft".to_owned()
}

impl ServiceConfig for Config {
    fn core(&self) -> &Core {
        &self.core
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let enforcer = &self.enforcer;
        let range = |key: &str, value: u32, least: u32, most: u32| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::invalid(
                    key,
                    format!("{value} is not within {least} to {most}"),
                ))
            }
        };
        range(
            "enforcer.heartbeat_interval_ms",
            enforcer.heartbeat_interval_ms,
            200,
            60_000,
        )?;
        range("enforcer.reconcile_interval_s", enforcer.reconcile_interval_s, 5, 3600)?;
        let folder = enforcer.state_file.parent().filter(|f| !f.as_os_str().is_empty());
        if let Some(folder) = folder
            && !folder.is_dir()
            && !enforcer.observe_only
        {
            return Err(ConfigError::invalid(
                "enforcer.state_file",
                format!("the folder {} does not exist", folder.display()),
            ));
        }
        self.layout().map(drop)
    }
}

impl Config {
    /// The fixed part of the ruleset.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key.
    pub fn layout(&self) -> Result<Layout, ConfigError> {
        let mut tenants: Vec<TenantScope> = Vec::new();
        for (i, tenant) in self.enforcer.tenants.iter().enumerate() {
            let key = |name: &str| format!("enforcer.tenants[{i}].{name}");
            let id: TenantId = tenant
                .id
                .parse()
                .map_err(|e| ConfigError::invalid(key("id"), format!("{e}")))?;
            if tenants.iter().any(|t| t.id == id) {
                return Err(ConfigError::invalid(key("id"), format!("{id} is there twice")));
            }
            for name in &tenant.interfaces {
                // IFNAMSIZ is 16 with the final zero; the rest would end the quotes in a script.
                let safe = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'/' | b'*');
                if name.is_empty() || name.len() > 15 || !name.bytes().all(safe) {
                    return Err(ConfigError::invalid(
                        key("interfaces"),
                        format!("{name:?} is no interface name"),
                    ));
                }
            }
            tenants.push(TenantScope {
                id,
                interfaces: tenant.interfaces.clone(),
            });
        }
        if tenants.is_empty() {
            return Err(ConfigError::invalid("enforcer.tenants", "name at least one tenant"));
        }
        let management = self
            .enforcer
            .management_networks
            .iter()
            .map(|text| {
                text.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| {
                    ConfigError::invalid("enforcer.management_networks", format!("{text:?} is not a CIDR block"))
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Layout { tenants, management })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(enforcer: &str) -> Result<Config, toml::de::Error> {
        toml::from_str(&format!(
            "[core.identity]\ntrust_domain='t'\ncert_file='c'\nkey_file='k'\nca_file='a'\n[core.bus]\nurls=['tls://n:4222']\nca_file='a'\ncert_file='c'\nkey_file='k'\n[enforcer]\nresponder_endpoint='https://r:1'\nstate_file='state.json'\n{enforcer}\n"
        ))
    }

    #[test]
    fn a_wrong_value_is_named() {
        assert!(config("tenants=[{id='acme'}]").unwrap().validate().is_ok());
        for (text, key) in [
            ("tenants=[]", "enforcer.tenants"),
            ("tenants=[{id='A'}]", "enforcer.tenants[0].id"),
            ("tenants=[{id='a'},{id='a'}]", "enforcer.tenants[1].id"),
            (
                "tenants=[{id='a',interfaces=['x\"}']}]",
                "enforcer.tenants[0].interfaces",
            ),
            (
                "tenants=[{id='a'}]\nmanagement_networks=['x']",
                "enforcer.management_networks",
            ),
            (
                "tenants=[{id='a'}]\nheartbeat_interval_ms=1",
                "enforcer.heartbeat_interval_ms",
            ),
            (
                "tenants=[{id='a'}]\nreconcile_interval_s=1",
                "enforcer.reconcile_interval_s",
            ),
        ] {
            let error = config(text).unwrap().validate().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        let mut missing = config("tenants=[{id='a'}]").unwrap();
        missing.enforcer.state_file = "/nowhere/at/all/state.json".into();
        assert!(
            missing
                .validate()
                .unwrap_err()
                .to_string()
                .contains("enforcer.state_file")
        );
        assert!(config("tenants=[{id='a'}]\nobserve=true").is_err());
    }
}
