//! What the operator decides, compiled from the configuration.

use super::{
    budget::BudgetSettings,
    detector::Detector,
    finding::Loud,
    network::Kind,
    registry::CandidateSettings,
    spot::SpotSettings,
    window::{Host, Nanos, Span},
};

/// Thresholds, spans and bounds. One for all tenants.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Which detectors run, by [`Detector::index`].
    pub enabled: [bool; Detector::ALL.len()],
    /// Many ports of one host.
    pub vertical: Threshold,
    /// One port on many hosts.
    pub horizontal: Threshold,
    /// Failed HTTP logins.
    pub logins: Threshold,
    /// Short sessions.
    pub sessions: Threshold,
    /// Which sessions count.
    pub short_session: ShortSession,
    /// Networks whose hosts are internal.
    pub internal: Vec<Network>,
    /// What new models are made of.
    pub network: Kind,
    /// Candidates, and what they are learnt from.
    pub candidate: CandidateSettings,
    /// The model's threshold.
    pub spot: SpotSettings,
    /// How many alerts are promised.
    pub budget: BudgetSettings,
    /// How long repeats are folded into one alert.
    pub fold: Nanos,
    /// Flows an alert refers to at most.
    pub flows_an_alert: usize,
    /// Targets an alert lists at most.
    pub targets_an_alert: usize,
    /// Rows kept while learning.
    pub sample_rows: usize,
    /// Seed of sample and training.
    pub seed: u64,
    /// How far a sensor's clock may be ahead of a batch's publication.
    pub clock_tolerance: Nanos,
    /// Regular contacts.
    pub beacon: BeaconSettings,
    /// Data in names.
    pub tunnel: TunnelSettings,
    /// Names that a generator made.
    pub generated: GeneratedSettings,
    /// Volume to the outside.
    pub volume: VolumeSettings,
    /// Floods.
    pub flood: FloodSettings,
    /// Slow scans.
    pub slow: SlowSettings,
    /// Scans that many sources share.
    pub distributed: DistributedSettings,
    /// Logins at hosts that are new to a host.
    pub lateral: LateralSettings,
    /// Connections that do not end.
    pub long: LongSettings,
    /// Bounds on memory, a tenant and shard.
    pub bounds: Bounds,
    /// Bounds on memory, a tenant.
    pub wide: WideBounds,
}

/// When regular contacts are a beacon.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BeaconSettings {
    /// Contacts that a judgement rests on.
    pub contacts: usize,
    /// Evidence that makes an alert, nats.
    pub evidence: f64,
    /// Shortest period.
    pub least_period: Nanos,
    /// Longest period.
    pub longest_period: Nanos,
    /// Hosts at which a destination is too popular to be told.
    pub popular: f64,
}

/// When names carry data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TunnelSettings {
    /// Logarithm of the odds that makes an alert.
    pub evidence: f64,
    /// Length of a window.
    pub window: Nanos,
    /// Hosts at which a parent domain is too popular to be told.
    pub popular: f64,
}

/// When names are taken for generated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GeneratedSettings {
    /// Sum of the names' odds that makes an alert, nats.
    pub evidence: f64,
    /// Fewest names.
    pub names: u32,
    /// Hosts at which a domain is too popular to count.
    pub popular: f64,
}

/// When a volume is exfiltration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VolumeSettings {
    /// Octets an hour below which nothing is told.
    pub least: u64,
    /// So many times what is usual.
    pub factor: f64,
    /// Hours before a host's own history counts.
    pub hours: u32,
}

/// When connections are a flood.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FloodSettings {
    /// Fewest connections a second.
    pub flows_a_second: u32,
    /// So many times what is usual.
    pub factor: f64,
}

/// When attempts in vain are a slow scan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowSettings {
    /// Different services.
    pub services: f64,
    /// Share of the attempts that fail.
    pub failed_share: f64,
    /// Within so long.
    pub window: Nanos,
}

/// When attempts in vain of many sources are one scan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistributedSettings {
    /// Different ports.
    pub ports: f64,
    /// Different sources.
    pub sources: f64,
    /// Within so long.
    pub window: Nanos,
}

/// When logins are lateral movement.
#[derive(Clone, Debug, PartialEq)]
pub struct LateralSettings {
    /// How many new hosts within which time.
    pub hosts: Threshold,
    /// Ports of protocols that log somebody in.
    pub ports: Vec<u16>,
}

/// When a connection is long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LongSettings {
    /// After so long.
    pub after: Nanos,
    /// Hosts at which a destination is too popular to be told.
    pub popular: f64,
}

/// How many within which time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// How many make an alert.
    pub count: usize,
    /// Within which span.
    pub span: Span,
    /// This many unanswered at once make an alert before the grace is over.
    pub burst: usize,
    /// This many within the span are grave; 0 for never.
    pub loud: usize,
}

impl Threshold {
    /// When findings of this threshold are grave.
    pub fn loud(&self) -> Option<Loud> {
        (self.loud > 0).then_some(Loud {
            score: self.loud as f64,
            within: self.span.length,
        })
    }
}

/// A session that may be one guess at a password.
#[derive(Clone, Debug, PartialEq)]
pub struct ShortSession {
    /// Ports of login services.
    pub ports: Vec<u16>,
    /// Longest it lasts.
    pub longest: Nanos,
    /// Most payload octets the service sends.
    pub most_bytes: u64,
}

/// A network, IPv4 mapped into IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The address.
    pub address: Host,
    /// The mask.
    pub mask: u128,
}

impl Network {
    /// From an address and the length of its prefix.
    pub fn new(address: std::net::IpAddr, prefix: u8) -> Self {
        let prefix = if address.is_ipv4() {
            u32::from(prefix) + 96
        } else {
            u32::from(prefix)
        };
        let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix)).unwrap_or(0);
        Self {
            address: Host(Host::from(address).0 & mask),
            mask,
        }
    }

    /// The host is in it.
    pub fn contains(&self, host: Host) -> bool {
        host.0 & self.mask == self.address.0
    }
}

/// Most entries of each map in one shard of one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Flows remembered, to tell repeats and to count what is new in a record.
    pub flows: usize,
    /// Sources with an activity window.
    pub sources: usize,
    /// Windows of each behaviour.
    pub windows: usize,
    /// Sources whose contacts are remembered.
    pub contact_sources: usize,
    /// Contacts remembered a source.
    pub contacts_a_source: usize,
    /// Alerts that repeats are folded into.
    pub folds: usize,
    /// Channels of sources and outside destinations.
    pub channels: usize,
    /// Windows of sources and parent domains.
    pub zones: usize,
}

/// Most entries of each map that the shards of a tenant share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WideBounds {
    /// Destinations whose hosts are counted.
    pub destinations: usize,
    /// Names that were asked of a proxy.
    pub names: usize,
    /// Services and hosts whose connections and refusals are counted.
    pub victims: usize,
    /// Devices, programs and daily remarks, each.
    pub devices: usize,
}

impl Settings {
    /// The detector runs.
    pub fn runs(&self, detector: Detector) -> bool {
        self.enabled[detector.index()]
    }

    /// The same, with nothing ever held back: what the detectors find by themselves.
    pub fn without_budget(&self) -> Self {
        let mut settings = self.clone();
        settings.budget.never_held = [true; Detector::ALL.len()];
        settings
    }

    /// The host belongs to an internal network.
    pub fn is_internal(&self, host: Host) -> bool {
        self.internal.iter().any(|n| n.contains(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_what_their_prefix_says() {
        let net = |a: &str, p| Network::new(a.parse().unwrap(), p);
        let host = |a: &str| Host::from(a.parse::<std::net::IpAddr>().unwrap());
        assert!(net("10.1.2.3", 8).contains(host("10.200.0.1")));
        assert!(!net("10.1.2.3", 8).contains(host("11.0.0.1")));
        assert!(net("0.0.0.0", 0).contains(host("1.2.3.4")));
        assert!(!net("0.0.0.0", 0).contains(host("2001:db8::1")));
        assert!(net("fc00::", 7).contains(host("fd12::1")));
        assert!(net("::", 0).contains(host("fd12::1")));
        assert!(net("192.168.1.1", 32).contains(host("192.168.1.1")));
        assert!(!net("192.168.1.1", 32).contains(host("192.168.1.2")));
    }
}
