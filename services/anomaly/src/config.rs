//! The configuration file.

mod intel;

pub use intel::{FeedConfig, FeedFormat, IntelConfig};

pub mod behaviours;
pub mod budget;
pub mod model;
pub mod replicas;
pub mod risk;

use garrison_bus::subject::SHARDS;
use garrison_service::{ConfigError, Core, ServiceConfig};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::behaviours::{
    BeaconConfig, DistributedScanConfig, FloodConfig, GeneratedConfig, LateralConfig, LongConfig, SlowScanConfig,
    SwitchConfig, TunnelConfig, VolumeConfig,
};
use crate::config::budget::BudgetConfig;
use crate::config::model::{CandidateConfig, NetworkConfig};
use crate::config::replicas::ReplicasConfig;
use crate::config::risk::RiskConfig;
use crate::domain::{
    detector::Detector,
    settings::{Bounds, Network, Settings, ShortSession, Threshold, WideBounds},
    shard::seconds,
    spot::SpotSettings,
    window::{SECOND, Span},
};

/// Configuration of anomaly.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What every service has.
    pub core: Core,
    /// When and how long normal traffic is learnt.
    #[serde(default)]
    pub learning: LearningConfig,
    /// The autoencoder and its threshold.
    #[serde(default)]
    pub model: ModelConfig,
    /// How many alerts people are promised.
    #[serde(default)]
    pub budget: BudgetConfig,
    /// The behaviours.
    #[serde(default)]
    pub detectors: DetectorsConfig,
    /// Threat intelligence.
    #[serde(default)]
    pub intel: IntelConfig,
    /// The risk of hosts, services and users.
    #[serde(default)]
    pub risk: RiskConfig,
    /// What alerts hold.
    #[serde(default)]
    pub alerts: AlertsConfig,
    /// Saving state.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// Bounds on memory.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Several replicas.
    #[serde(default)]
    pub replicas: ReplicasConfig,
}

/// When and how long normal traffic is learnt.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LearningConfig {
    /// A tenant that was never seen before is learnt for so many seconds, counted from its first flow, and a
    /// model is trained by itself. 0: learning starts and ends by command only (`garrison model learn`).
    pub auto_seconds: u64,
    /// Fewest scorable flow records a model is trained on. A learnt period goes on until there are so many.
    pub min_flows: u64,
    /// Records kept for training: a uniform sample of the learnt period.
    pub sample_flows: usize,
    /// Seed of sampling and training. The same records and seed give the same model on the same machine.
    pub seed: u64,
}

/// The autoencoder and its threshold.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Whether flows are scored.
    pub enabled: bool,
    /// Share of scored records that is taken for the far tail, above 0 and at most 0.01: how many of them may teach the
    /// threshold, and what is let through until it is known how many come a day. How many alerts there are is decided
    /// by `budget.model.alerts_per_day`.
    pub alarm_rate: f64,
    /// Scores below this never raise an alert. A score is `ln(1 + e)`, where `e` is the mean squared error in
    /// squared spreads of the learnt period.
    pub least_score: f64,
    /// Highest scores kept to fit the tail.
    pub tail_scores: usize,
    /// Number of recent normal scores whose mean the threshold follows. 0: no drift is followed.
    pub drift_flows: usize,
    /// What new models are made of.
    pub network: NetworkConfig,
    /// How a newly learnt model takes the place of the one that is live.
    pub candidate: CandidateConfig,
}

/// The behaviours.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DetectorsConfig {
    /// `scan.vertical`: one source, one destination, many different ports that refuse or do not answer.
    pub scan_vertical: ScanConfig,
    /// `scan.horizontal`: one source, one port, many different destinations that refuse or do not answer.
    pub scan_horizontal: ScanConfig,
    /// `bruteforce.http`: failed logins (status 401 or 403) of one source at one service.
    pub bruteforce_http: GuessConfig,
    /// `bruteforce.connection`: short sessions of one source with one login service.
    pub bruteforce_connection: SessionsConfig,
    /// `contact.new_internal`: an internal host reaches an internal service that it never reached while normal
    /// was learnt.
    pub contact_new_internal: ContactConfig,
    /// `beacon.periodic`: a host turns to an outside destination at regular intervals.
    pub beacon_periodic: BeaconConfig,
    /// `dns.tunnel`: names below one parent domain carry data.
    pub dns_tunnel: TunnelConfig,
    /// `dns.generated`: one domain after the other that a generator made.
    pub dns_generated: GeneratedConfig,
    /// `exfiltration.volume`: a host sends more to the outside within an hour than it and its neighbours ever do.
    pub exfiltration_volume: VolumeConfig,
    /// `flood.victim`: more connections to one service than it can be meant to have.
    pub flood_victim: FloodConfig,
    /// `scan.slow`: many internal services tried in vain over a day.
    pub scan_slow: SlowScanConfig,
    /// `scan.distributed`: many ports of one host tried in vain by many sources.
    pub scan_distributed: DistributedScanConfig,
    /// `lateral.credential`: logins at several internal hosts that are new to a host.
    pub lateral_credential: LateralConfig,
    /// `connection.long`: a connection to the outside that has lasted for hours.
    pub connection_long: LongConfig,
    /// `client.rare`: a TLS client or user agent that no host was seen with.
    pub client_rare: SwitchConfig,
    /// `credentials.clear_text`: a login without encryption.
    pub credentials_clear_text: SwitchConfig,
    /// `certificate.invalid`: an internal service with a certificate that is expired, not valid yet or self-signed.
    pub certificate_invalid: SwitchConfig,
    /// `device.new`: an internal device that was never seen.
    pub device_new: SwitchConfig,
}

/// A scan.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScanConfig {
    /// Whether it is watched for.
    pub enabled: bool,
    /// How many different ports or hosts tried in vain make an alert, 3 to 256.
    pub distinct: usize,
    /// Within how many seconds of flow time.
    pub window_seconds: u32,
    /// Milliseconds after which an attempt without an answer counts as in vain. Refusals count at once.
    pub grace_ms: u32,
    /// So many times `distinct` unanswered attempts make an alert before the grace is over.
    pub burst: usize,
    /// So many times `distinct` in vain within the window are severity high instead of medium, which the default
    /// playbooks block. 0: never.
    pub loud: usize,
}

/// Password guessing that shows in HTTP.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GuessConfig {
    /// Whether it is watched for.
    pub enabled: bool,
    /// How many failed logins make an alert, 2 to 1000.
    pub failures: usize,
    /// Within how many seconds of flow time.
    pub window_seconds: u32,
}

/// Password guessing that shows in sessions.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SessionsConfig {
    /// Whether it is watched for.
    pub enabled: bool,
    /// How many short sessions make an alert, 2 to 1000.
    pub sessions: usize,
    /// Within how many seconds of flow time.
    pub window_seconds: u32,
    /// TCP ports of login services.
    pub ports: Vec<u16>,
    /// Longest session that counts, seconds.
    pub longest_seconds: u32,
    /// Most payload octets that the service sends in a session that counts.
    pub most_bytes: u64,
}

/// New contacts.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ContactConfig {
    /// Whether it is watched for.
    pub enabled: bool,
    /// Networks whose hosts are internal.
    #[schemars(with = "Vec<String>")]
    pub internal_networks: Vec<IpNet>,
}

/// What alerts hold.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AlertsConfig {
    /// Repeats within so many seconds of the first are folded into one alert, published again when its count
    /// reaches 2, 5, 10, 20, 50, ….
    pub fold_seconds: u32,
    /// Most flows an alert refers to.
    pub flows: usize,
    /// Most targets an alert lists.
    pub targets: usize,
    /// Days for which published alerts are kept in the database. Subscribers keep their own.
    pub retention_days: u32,
    /// How many seconds a sensor's clock may be ahead of the time at which its batch was published. Records from
    /// further ahead count as seen then.
    pub clock_tolerance_seconds: u32,
}

/// Saving state.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Milliseconds between two checkpoints of what changed. After a crash, what came since is read back from
    /// the stream, so this bounds the time to recover and not what is lost.
    pub interval_ms: u64,
}

/// Bounds on memory. All but `tenants` and `contacts_per_source` are for one tenant and spread over its shards.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Tenants that a replica holds at a time. Flows of more go to the dead-letter queue.
    pub tenants: usize,
    /// Flows remembered between their records.
    pub flows: usize,
    /// Sources with an activity window.
    pub sources: usize,
    /// Windows of each behaviour.
    pub windows: usize,
    /// Sources whose contacts are remembered.
    pub contact_sources: usize,
    /// Contacts remembered for a source. A source with more is not judged for new contacts.
    pub contacts_per_source: usize,
    /// Alerts into which repeats are folded.
    pub folds: usize,
    /// Channels: pairs of a source and an outside destination, whose latest contacts are remembered.
    pub channels: usize,
    /// Windows of sources and the parent domains that they ask below.
    pub zones: usize,
    /// Destinations and domains of which is known how many hosts turn to them.
    pub destinations: usize,
    /// Names of which is known that they were asked of a proxy.
    pub names: usize,
    /// Services whose connections are counted, and hosts whose refusals are.
    pub victims: usize,
    /// Devices, client programs and daily remarks that are remembered, each.
    pub devices: usize,
}

impl Default for LearningConfig {
    fn default() -> Self {
        Self {
            auto_seconds: 0,
            min_flows: 200,
            sample_flows: 20_000,
            seed: 1,
        }
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            alarm_rate: 1e-4,
            least_score: 0.3,
            tail_scores: 500,
            drift_flows: 1_000,
            network: NetworkConfig::default(),
            candidate: CandidateConfig::default(),
        }
    }
}

impl Default for DetectorsConfig {
    fn default() -> Self {
        Self {
            scan_vertical: ScanConfig::default(),
            scan_horizontal: ScanConfig {
                burst: 4,
                ..ScanConfig::default()
            },
            bruteforce_http: GuessConfig::default(),
            bruteforce_connection: SessionsConfig::default(),
            contact_new_internal: ContactConfig::default(),
            beacon_periodic: BeaconConfig::default(),
            dns_tunnel: TunnelConfig::default(),
            dns_generated: GeneratedConfig::default(),
            exfiltration_volume: VolumeConfig::default(),
            flood_victim: FloodConfig::default(),
            scan_slow: SlowScanConfig::default(),
            scan_distributed: DistributedScanConfig::default(),
            lateral_credential: LateralConfig::default(),
            connection_long: LongConfig::default(),
            client_rare: SwitchConfig::default(),
            credentials_clear_text: SwitchConfig::default(),
            certificate_invalid: SwitchConfig::default(),
            device_new: SwitchConfig::default(),
        }
    }
}

impl Default for ScanConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            distinct: 15,
            window_seconds: 60,
            grace_ms: 250,
            burst: 2,
            loud: 5,
        }
    }
}

impl Default for GuessConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            failures: 10,
            window_seconds: 60,
        }
    }
}

impl Default for SessionsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            sessions: 10,
            window_seconds: 60,
            ports: vec![21, 22, 23, 3389, 5900],
            longest_seconds: 10,
            most_bytes: 8_000,
        }
    }
}

impl Default for ContactConfig {
    fn default() -> Self {
        let private = [
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",
            "fc00::/7",
            "fe80::/10",
        ];
        Self {
            enabled: true,
            internal_networks: private.iter().filter_map(|net| net.parse().ok()).collect(),
        }
    }
}

impl Default for AlertsConfig {
    fn default() -> Self {
        Self {
            fold_seconds: 3_600,
            flows: 32,
            targets: 32,
            retention_days: 30,
            clock_tolerance_seconds: 60,
        }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { interval_ms: 2_000 }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            tenants: 256,
            flows: 262_144,
            sources: 65_536,
            windows: 32_768,
            contact_sources: 16_384,
            contacts_per_source: 512,
            folds: 16_384,
            channels: 131_072,
            zones: 32_768,
            destinations: 131_072,
            names: 16_384,
            victims: 65_536,
            devices: 65_536,
        }
    }
}

impl ServiceConfig for Config {
    fn core(&self) -> &Core {
        &self.core
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let within = |key: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::invalid(key, format!("{value} is not {least} to {most}")))
            }
        };
        let d = &self.detectors;
        for (name, scan) in [
            ("scan_vertical", &d.scan_vertical),
            ("scan_horizontal", &d.scan_horizontal),
        ] {
            let key = |field: &str| format!("detectors.{name}.{field}");
            within(&key("distinct"), scan.distinct as u64, 3, 256)?;
            within(&key("window_seconds"), scan.window_seconds.into(), 1, 86_400)?;
            within(&key("grace_ms"), scan.grace_ms.into(), 0, 60_000)?;
            within(&key("burst"), scan.burst as u64, 1, 16)?;
        }
        let http = &d.bruteforce_http;
        within("detectors.bruteforce_http.failures", http.failures as u64, 2, 1_000)?;
        within(
            "detectors.bruteforce_http.window_seconds",
            http.window_seconds.into(),
            1,
            86_400,
        )?;
        let sessions = &d.bruteforce_connection;
        within(
            "detectors.bruteforce_connection.sessions",
            sessions.sessions as u64,
            2,
            1_000,
        )?;
        within(
            "detectors.bruteforce_connection.window_seconds",
            sessions.window_seconds.into(),
            1,
            86_400,
        )?;
        d.validate_behaviours()?;
        within(
            "learning.sample_flows",
            self.learning.sample_flows as u64,
            100,
            1_000_000,
        )?;
        within(
            "learning.min_flows",
            self.learning.min_flows,
            100,
            self.learning.sample_flows as u64,
        )?;
        within("learning.auto_seconds", self.learning.auto_seconds, 0, 90 * 86_400)?;
        within("model.tail_scores", self.model.tail_scores as u64, 50, 100_000)?;
        within("model.drift_flows", self.model.drift_flows as u64, 0, 100_000)?;
        self.model.network.validate()?;
        // The sample of a short learnt period bounds the recent one only where somebody set it so.
        let most_recent = self.learning.sample_flows.max(CandidateConfig::default().sample_flows);
        self.model.candidate.validate(most_recent)?;
        let rate = self.model.alarm_rate;
        if !(rate > 0.0 && rate <= 0.01) {
            let reason = format!("{rate} is not above 0 and at most 0.01");
            return Err(ConfigError::invalid("model.alarm_rate", reason));
        }
        if !self.model.least_score.is_finite() {
            return Err(ConfigError::invalid("model.least_score", "it is not a number"));
        }
        self.intel.validate()?;
        self.budget.validate()?;
        self.risk.validate()?;
        self.replicas.validate()?;
        within("alerts.fold_seconds", self.alerts.fold_seconds.into(), 1, 7 * 86_400)?;
        within("alerts.flows", self.alerts.flows as u64, 1, 256)?;
        within("alerts.targets", self.alerts.targets as u64, 1, 256)?;
        within("alerts.retention_days", self.alerts.retention_days.into(), 1, 3_650)?;
        within("checkpoint.interval_ms", self.checkpoint.interval_ms, 50, 60_000)?;
        let limits = &self.limits;
        within("limits.tenants", limits.tenants as u64, 1, 100_000)?;
        for (key, value) in [
            ("limits.flows", limits.flows),
            ("limits.sources", limits.sources),
            ("limits.windows", limits.windows),
            ("limits.contact_sources", limits.contact_sources),
            ("limits.folds", limits.folds),
            ("limits.channels", limits.channels),
            ("limits.zones", limits.zones),
            ("limits.destinations", limits.destinations),
            ("limits.names", limits.names),
            ("limits.victims", limits.victims),
            ("limits.devices", limits.devices),
        ] {
            within(key, value as u64, SHARDS.into(), 1 << 30)?;
        }
        within(
            "limits.contacts_per_source",
            limits.contacts_per_source as u64,
            1,
            65_536,
        )
    }
}

/// What the domain works with when nothing is configured.
pub fn default_settings() -> Settings {
    Sections {
        learning: &LearningConfig::default(),
        model: &ModelConfig::default(),
        budget: &BudgetConfig::default(),
        detectors: &DetectorsConfig::default(),
        alerts: &AlertsConfig::default(),
        limits: &LimitsConfig::default(),
        intel: &IntelConfig::default(),
    }
    .settings()
}

// The sections that settings are made of.
struct Sections<'a> {
    learning: &'a LearningConfig,
    model: &'a ModelConfig,
    budget: &'a BudgetConfig,
    detectors: &'a DetectorsConfig,
    alerts: &'a AlertsConfig,
    limits: &'a LimitsConfig,
    intel: &'a IntelConfig,
}

impl Config {
    /// What the domain works with.
    pub fn settings(&self) -> Settings {
        Sections {
            learning: &self.learning,
            model: &self.model,
            budget: &self.budget,
            detectors: &self.detectors,
            alerts: &self.alerts,
            limits: &self.limits,
            intel: &self.intel,
        }
        .settings()
    }
}

impl Sections<'_> {
    fn settings(&self) -> Settings {
        let d = self.detectors;
        let scan = |scan: &ScanConfig| Threshold {
            count: scan.distinct,
            span: Span {
                length: seconds(scan.window_seconds.into()),
                grace: i64::from(scan.grace_ms) * SECOND / 1_000,
                bound: scan.distinct * scan.burst.max(2),
            },
            burst: scan.distinct * scan.burst,
            loud: scan.distinct * scan.loud,
        };
        let guesses = |count: usize, window: u32| Threshold {
            count,
            span: Span {
                length: seconds(window.into()),
                grace: 0,
                bound: count,
            },
            burst: count,
            loud: 0,
        };
        let mut enabled = [false; Detector::ALL.len()];
        for (detector, on) in [
            (Detector::ScanVertical, d.scan_vertical.enabled),
            (Detector::ScanHorizontal, d.scan_horizontal.enabled),
            (Detector::BruteforceHttp, d.bruteforce_http.enabled),
            (Detector::BruteforceConnection, d.bruteforce_connection.enabled),
            (Detector::ContactNewInternal, d.contact_new_internal.enabled),
            (Detector::ModelAutoencoder, self.model.enabled),
            (Detector::IntelMatch, self.intel.enabled),
            (Detector::BeaconPeriodic, d.beacon_periodic.enabled),
            (Detector::DnsTunnel, d.dns_tunnel.enabled),
            (Detector::DnsGenerated, d.dns_generated.enabled),
            (Detector::ExfiltrationVolume, d.exfiltration_volume.enabled),
            (Detector::FloodVictim, d.flood_victim.enabled),
            (Detector::ScanSlow, d.scan_slow.enabled),
            (Detector::ScanDistributed, d.scan_distributed.enabled),
            (Detector::LateralCredential, d.lateral_credential.enabled),
            (Detector::ConnectionLong, d.connection_long.enabled),
            (Detector::ClientRare, d.client_rare.enabled),
            (Detector::CredentialsClearText, d.credentials_clear_text.enabled),
            (Detector::CertificateInvalid, d.certificate_invalid.enabled),
            (Detector::DeviceNew, d.device_new.enabled),
        ] {
            enabled[detector.index()] = on;
        }
        let a_shard = |total: usize| (total / usize::from(SHARDS)).max(1);
        Settings {
            enabled,
            vertical: scan(&d.scan_vertical),
            horizontal: scan(&d.scan_horizontal),
            logins: guesses(d.bruteforce_http.failures, d.bruteforce_http.window_seconds),
            sessions: guesses(d.bruteforce_connection.sessions, d.bruteforce_connection.window_seconds),
            short_session: ShortSession {
                ports: d.bruteforce_connection.ports.clone(),
                longest: seconds(d.bruteforce_connection.longest_seconds.into()),
                most_bytes: d.bruteforce_connection.most_bytes,
            },
            internal: d
                .contact_new_internal
                .internal_networks
                .iter()
                .map(|net| Network::new(net.addr(), net.prefix_len()))
                .collect(),
            network: self.model.network.kind(),
            candidate: self.model.candidate.settings(),
            spot: SpotSettings {
                rate: self.model.alarm_rate,
                level: 0.98,
                peaks: self.model.tail_scores,
                drift_depth: self.model.drift_flows,
                floor: self.model.least_score,
            },
            budget: self.budget.settings(),
            fold: seconds(self.alerts.fold_seconds.into()),
            flows_an_alert: self.alerts.flows,
            targets_an_alert: self.alerts.targets,
            sample_rows: self.learning.sample_flows,
            seed: self.learning.seed,
            clock_tolerance: seconds(self.alerts.clock_tolerance_seconds.into()),
            beacon: d.beacon(),
            tunnel: d.tunnel(),
            generated: d.generated(),
            volume: d.volume(),
            flood: d.flood(),
            slow: d.slow(),
            distributed: d.distributed(),
            lateral: d.lateral(),
            long: d.long(),
            wide: WideBounds {
                destinations: self.limits.destinations,
                names: self.limits.names,
                victims: self.limits.victims,
                devices: self.limits.devices,
            },
            bounds: Bounds {
                flows: a_shard(self.limits.flows),
                sources: a_shard(self.limits.sources),
                windows: a_shard(self.limits.windows),
                contact_sources: a_shard(self.limits.contact_sources),
                contacts_a_source: self.limits.contacts_per_source,
                folds: a_shard(self.limits.folds),
                channels: a_shard(self.limits.channels),
                zones: a_shard(self.limits.zones),
            },
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
