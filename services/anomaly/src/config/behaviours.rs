//! What can be set of the behaviours that watch over hours and days.

use garrison_service::ConfigError;
use schemars::JsonSchema;
use serde::Deserialize;

use super::DetectorsConfig;
use crate::domain::{
    settings::{
        BeaconSettings, DistributedSettings, FloodSettings, GeneratedSettings, LateralSettings, LongSettings,
        SlowSettings, Threshold, TunnelSettings, VolumeSettings,
    },
    shard::seconds,
    window::Span,
};

/// Regular contacts with outside destinations.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BeaconConfig {
    /// Whether it is watched for.
    pub enabled: bool,
    /// Latest contacts that a judgement rests on, 6 to 24.
    pub contacts: usize,
    /// Evidence that makes an alert, 5 to 50: the logarithm of how much better the contacts fit a beacon than independent
    /// events.
    pub evidence: f64,
    /// Shortest period, seconds.
    pub least_period_seconds: u32,
    /// Longest period, seconds.
    pub longest_period_seconds: u32,
    /// A destination that so many hosts of the tenant turn to is not told, 2 to 50.
    pub popular_hosts: u32,
}

/// Data in names.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TunnelConfig {
    /// Whether it is watched for.
    pub enabled: bool,
    /// Logarithm of the odds that makes an alert, 0 to 20. Judged at every tenth question of a window.
    pub evidence: f64,
    /// Length of a window, seconds.
    pub window_seconds: u32,
    /// A parent domain that so many hosts of the tenant ask below is not told, 2 to 50.
    pub popular_hosts: u32,
}

/// Names that a generator made.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GeneratedConfig {
    /// Whether it is watched for.
    pub enabled: bool,
    /// Sum of the logarithms of the names' odds that makes an alert, 3 to 100.
    pub evidence: f64,
    /// Fewest names that make an alert, 2 to 1000.
    pub names: u32,
    /// A domain that so many hosts of the tenant ask for does not count, 2 to 50.
    pub popular_hosts: u32,
}

/// Volume to the outside.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeConfig {
    /// Whether it is watched for.
    pub enabled: bool,
    /// Less than so many mebibytes an hour is never told.
    pub least_mebibytes: u64,
    /// So many times what is usual for the host and for its neighbours makes an alert, 1 to 1000.
    pub factor: f64,
    /// Hours with traffic before a host's own history counts, 1 to 1000.
    pub history_hours: u32,
}

/// Floods.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FloodConfig {
    /// Whether it is watched for.
    pub enabled: bool,
    /// Fewest connections a second to one service that make an alert, kept up for ten seconds.
    pub flows_per_second: u32,
    /// And so many times what the service usually has, 1 to 1000.
    pub factor: f64,
}

/// Slow scans.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SlowScanConfig {
    /// Whether it is watched for.
    pub enabled: bool,
    /// How many different internal services tried in vain make an alert, 5 to 1000.
    pub services: u32,
    /// Share of the attempts inside that must fail, 0 to 1.
    pub failed_share: f64,
    /// Within how many hours of flow time.
    pub window_hours: u32,
}

/// Scans that many sources share.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DistributedScanConfig {
    /// Whether it is watched for.
    pub enabled: bool,
    /// How many different ports of one internal host tried in vain make an alert, 10 to 1000.
    pub ports: u32,
    /// By at least so many sources, 2 to 1000.
    pub sources: u32,
    /// Within how many seconds of flow time.
    pub window_seconds: u32,
}

/// Logins at hosts that are new to a host.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LateralConfig {
    /// Whether it is watched for.
    pub enabled: bool,
    /// How many internal hosts that are new to the source make an alert, 2 to 100.
    pub hosts: usize,
    /// Within how many seconds of flow time.
    pub window_seconds: u32,
    /// Ports of protocols that log somebody in.
    pub ports: Vec<u16>,
}

/// Connections that do not end.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LongConfig {
    /// Whether it is watched for.
    pub enabled: bool,
    /// After how many minutes.
    pub after_minutes: u32,
    /// A destination that so many hosts of the tenant turn to is not told, 2 to 50.
    pub popular_hosts: u32,
}

/// A behaviour without numbers.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SwitchConfig {
    /// Whether it is watched for.
    pub enabled: bool,
}

impl Default for BeaconConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            contacts: 12,
            evidence: 12.0,
            least_period_seconds: 5,
            longest_period_seconds: 21_600,
            popular_hosts: 5,
        }
    }
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            evidence: 2.0,
            window_seconds: 600,
            popular_hosts: 5,
        }
    }
}

impl Default for GeneratedConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            evidence: 12.0,
            names: 5,
            popular_hosts: 5,
        }
    }
}

impl Default for VolumeConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            least_mebibytes: 100,
            factor: 3.0,
            history_hours: 12,
        }
    }
}

impl Default for FloodConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            flows_per_second: 500,
            factor: 10.0,
        }
    }
}

impl Default for SlowScanConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            services: 40,
            failed_share: 0.5,
            window_hours: 24,
        }
    }
}

impl Default for DistributedScanConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            ports: 100,
            sources: 8,
            window_seconds: 600,
        }
    }
}

impl Default for LateralConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            hosts: 3,
            window_seconds: 3_600,
            ports: vec![22, 23, 88, 135, 139, 389, 445, 636, 3389, 5900, 5985, 5986],
        }
    }
}

impl Default for LongConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            after_minutes: 240,
            popular_hosts: 5,
        }
    }
}

impl Default for SwitchConfig {
    fn default() -> Self {
        Self { enabled: true }
    }
}

fn within(key: &str, value: f64, least: f64, most: f64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(ConfigError::invalid(
            format!("detectors.{key}"),
            format!("{value} is not {least} to {most}"),
        ))
    }
}

impl DetectorsConfig {
    pub(super) fn validate_behaviours(&self) -> Result<(), ConfigError> {
        let day = 86_400.0;
        let beacon = &self.beacon_periodic;
        let least_period = f64::from(beacon.least_period_seconds);
        for (key, value, least, most) in [
            ("beacon_periodic.contacts", beacon.contacts as f64, 6.0, 24.0),
            ("beacon_periodic.evidence", beacon.evidence, 5.0, 50.0),
            ("beacon_periodic.least_period_seconds", least_period, 2.0, 3_600.0),
            (
                "beacon_periodic.longest_period_seconds",
                beacon.longest_period_seconds.into(),
                least_period,
                7.0 * day,
            ),
            ("beacon_periodic.popular_hosts", beacon.popular_hosts.into(), 2.0, 50.0),
            ("dns_tunnel.evidence", self.dns_tunnel.evidence, 0.0, 20.0),
            (
                "dns_tunnel.window_seconds",
                self.dns_tunnel.window_seconds.into(),
                10.0,
                day,
            ),
            (
                "dns_tunnel.popular_hosts",
                self.dns_tunnel.popular_hosts.into(),
                2.0,
                50.0,
            ),
            ("dns_generated.evidence", self.dns_generated.evidence, 3.0, 100.0),
            ("dns_generated.names", self.dns_generated.names.into(), 2.0, 1_000.0),
            (
                "dns_generated.popular_hosts",
                self.dns_generated.popular_hosts.into(),
                2.0,
                50.0,
            ),
            (
                "exfiltration_volume.factor",
                self.exfiltration_volume.factor,
                1.0,
                1_000.0,
            ),
            (
                "exfiltration_volume.least_mebibytes",
                self.exfiltration_volume.least_mebibytes as f64,
                1.0,
                1e9,
            ),
            (
                "exfiltration_volume.history_hours",
                self.exfiltration_volume.history_hours.into(),
                1.0,
                1_000.0,
            ),
            (
                "flood_victim.flows_per_second",
                self.flood_victim.flows_per_second.into(),
                1.0,
                1e8,
            ),
            ("flood_victim.factor", self.flood_victim.factor, 1.0, 1_000.0),
            ("scan_slow.services", self.scan_slow.services.into(), 5.0, 1_000.0),
            ("scan_slow.failed_share", self.scan_slow.failed_share, 0.0, 1.0),
            ("scan_slow.window_hours", self.scan_slow.window_hours.into(), 1.0, 720.0),
            (
                "scan_distributed.ports",
                self.scan_distributed.ports.into(),
                10.0,
                1_000.0,
            ),
            (
                "scan_distributed.sources",
                self.scan_distributed.sources.into(),
                2.0,
                1_000.0,
            ),
            (
                "scan_distributed.window_seconds",
                self.scan_distributed.window_seconds.into(),
                1.0,
                day,
            ),
            (
                "lateral_credential.hosts",
                self.lateral_credential.hosts as f64,
                2.0,
                100.0,
            ),
            (
                "lateral_credential.window_seconds",
                self.lateral_credential.window_seconds.into(),
                1.0,
                day,
            ),
            (
                "connection_long.after_minutes",
                self.connection_long.after_minutes.into(),
                1.0,
                43_200.0,
            ),
            (
                "connection_long.popular_hosts",
                self.connection_long.popular_hosts.into(),
                2.0,
                50.0,
            ),
        ] {
            within(key, value, least, most)?;
        }
        Ok(())
    }

    pub(super) fn beacon(&self) -> BeaconSettings {
        let beacon = &self.beacon_periodic;
        BeaconSettings {
            contacts: beacon.contacts,
            evidence: beacon.evidence,
            least_period: seconds(beacon.least_period_seconds.into()),
            longest_period: seconds(beacon.longest_period_seconds.into()),
            popular: f64::from(beacon.popular_hosts),
        }
    }

    pub(super) fn tunnel(&self) -> TunnelSettings {
        TunnelSettings {
            evidence: self.dns_tunnel.evidence,
            window: seconds(self.dns_tunnel.window_seconds.into()),
            popular: f64::from(self.dns_tunnel.popular_hosts),
        }
    }

    pub(super) fn generated(&self) -> GeneratedSettings {
        GeneratedSettings {
            evidence: self.dns_generated.evidence,
            names: self.dns_generated.names,
            popular: f64::from(self.dns_generated.popular_hosts),
        }
    }

    pub(super) fn volume(&self) -> VolumeSettings {
        VolumeSettings {
            least: self.exfiltration_volume.least_mebibytes.saturating_mul(1 << 20),
            factor: self.exfiltration_volume.factor,
            hours: self.exfiltration_volume.history_hours,
        }
    }

    pub(super) fn flood(&self) -> FloodSettings {
        FloodSettings {
            flows_a_second: self.flood_victim.flows_per_second,
            factor: self.flood_victim.factor,
        }
    }

    pub(super) fn slow(&self) -> SlowSettings {
        SlowSettings {
            services: f64::from(self.scan_slow.services),
            failed_share: self.scan_slow.failed_share,
            window: seconds(i64::from(self.scan_slow.window_hours) * 3_600),
        }
    }

    pub(super) fn distributed(&self) -> DistributedSettings {
        DistributedSettings {
            ports: f64::from(self.scan_distributed.ports),
            sources: f64::from(self.scan_distributed.sources),
            window: seconds(self.scan_distributed.window_seconds.into()),
        }
    }

    pub(super) fn lateral(&self) -> LateralSettings {
        let lateral = &self.lateral_credential;
        LateralSettings {
            hosts: Threshold {
                count: lateral.hosts,
                span: Span {
                    length: seconds(lateral.window_seconds.into()),
                    grace: 0,
                    bound: 2 * lateral.hosts,
                },
                burst: lateral.hosts,
                loud: 0,
            },
            ports: lateral.ports.clone(),
        }
    }

    pub(super) fn long(&self) -> LongSettings {
        LongSettings {
            after: seconds(i64::from(self.connection_long.after_minutes) * 60),
            popular: f64::from(self.connection_long.popular_hosts),
        }
    }
}
