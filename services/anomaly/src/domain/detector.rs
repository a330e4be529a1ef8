//! The detectors: what each is called, what it means, and which MITRE ATT&CK techniques it shows.

use arrow_array::Array as _;
use garrison_flow::Columns;
use garrison_proto::alert::v1::{Severity, Technique};

use super::facts::text;

/// One detector. Ids are part of the contract: subjects, playbooks and reports use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Detector {
    /// One source tries many ports of one host.
    ScanVertical,
    /// One source tries one port on many hosts.
    ScanHorizontal,
    /// One source fails many logins at one HTTP service.
    BruteforceHttp,
    /// One source opens many short sessions with a login service.
    BruteforceConnection,
    /// An internal host reaches an internal service that it never used while learning.
    ContactNewInternal,
    /// The autoencoder finds a flow unusual.
    ModelAutoencoder,
    /// A host turns to an outside destination at regular intervals.
    BeaconPeriodic,
    /// A host carries data in the names it asks for.
    DnsTunnel,
    /// A host asks for domains that a generator made.
    DnsGenerated,
    /// A flow has a value that threat intelligence lists.
    IntelMatch,
}

const NETWORK_SERVICE_DISCOVERY: (&str, &str, &str) = ("T1046", "Network Service Discovery", "Discovery");
const REMOTE_SYSTEM_DISCOVERY: (&str, &str, &str) = ("T1018", "Remote System Discovery", "Discovery");
const PASSWORD_GUESSING: (&str, &str, &str) = ("T1110.001", "Brute Force: Password Guessing", "Credential Access");
const REMOTE_SERVICES: (&str, &str, &str) = ("T1021", "Remote Services", "Lateral Movement");
const EXFILTRATION: (&str, &str, &str) = ("T1048", "Exfiltration Over Alternative Protocol", "Exfiltration");
const DATA_IN_PROTOCOL: (&str, &str, &str) = ("T1572", "Protocol Tunneling", "Command and Control");
const GENERATED_DOMAINS: (&str, &str, &str) = (
    "T1568.002",
    "Dynamic Resolution: Domain Generation Algorithms",
    "Command and Control",
);
const APPLICATION_LAYER: (&str, &str, &str) = ("T1071", "Application Layer Protocol", "Command and Control");
const WEB_PROTOCOLS: (&str, &str, &str) = (
    "T1071.001",
    "Application Layer Protocol: Web Protocols",
    "Command and Control",
);
const PROXY: (&str, &str, &str) = ("T1090", "Proxy", "Command and Control");
const NOT_APPLICATION_LAYER: (&str, &str, &str) = ("T1095", "Non-Application Layer Protocol", "Command and Control");
const DNS_TUNNEL: (&str, &str, &str) = ("T1071.004", "Application Layer Protocol: DNS", "Command and Control");

impl Detector {
    /// Every detector.
    pub const ALL: [Self; 10] = [
        Self::ScanVertical,
        Self::ScanHorizontal,
        Self::BruteforceHttp,
        Self::BruteforceConnection,
        Self::ContactNewInternal,
        Self::ModelAutoencoder,
        Self::BeaconPeriodic,
        Self::DnsTunnel,
        Self::DnsGenerated,
        Self::IntelMatch,
    ];

    /// Its id.
    pub fn id(self) -> &'static str {
        match self {
            Self::ScanVertical => "scan.vertical",
            Self::ScanHorizontal => "scan.horizontal",
            Self::BruteforceHttp => "bruteforce.http",
            Self::BruteforceConnection => "bruteforce.connection",
            Self::ContactNewInternal => "contact.new_internal",
            Self::ModelAutoencoder => "model.autoencoder",
            Self::BeaconPeriodic => "beacon.periodic",
            Self::DnsTunnel => "dns.tunnel",
            Self::DnsGenerated => "dns.generated",
            Self::IntelMatch => "intel.match",
        }
    }

    /// Its position in [`ALL`](Self::ALL).
    pub fn index(self) -> usize {
        self as usize
    }

    /// What it looks for, in a sentence.
    pub fn description(self) -> &'static str {
        match self {
            Self::ScanVertical => {
                "One source tries many different ports of one host, and they refuse or do not answer."
            }
            Self::ScanHorizontal => {
                "One source tries one port on many different hosts, and they refuse or do not answer."
            }
            Self::BruteforceHttp => "One source collects many failed logins (401 or 403) at one HTTP service.",
            Self::BruteforceConnection => {
                "One source opens many short sessions, one after the other, with a login service such as SSH or FTP."
            }
            Self::ContactNewInternal => {
                "An internal host reaches an internal service that it never reached while normal was learnt."
            }
            Self::ModelAutoencoder => "The autoencoder reproduces a flow worse than the adaptive threshold allows.",
            Self::BeaconPeriodic => {
                "A host turns to an outside destination that hardly anybody else uses, at regular intervals and with \
                 regular sizes, directly or through a proxy."
            }
            Self::DnsTunnel => "A host carries data in the DNS names below one parent domain that it asks for.",
            Self::DnsGenerated => {
                "A host asks for one domain after the other that looks made by a generator, mostly in vain."
            }
            Self::IntelMatch => {
                "A flow has an address, name, URL, fingerprint or certificate that a feed of threat intelligence lists."
            }
        }
    }

    /// How grave its alerts are, unless an alert says more.
    pub fn severity(self) -> Severity {
        match self {
            Self::ScanVertical
            | Self::ScanHorizontal
            | Self::ContactNewInternal
            | Self::BeaconPeriodic
            | Self::IntelMatch => Severity::Medium,
            Self::BruteforceHttp | Self::BruteforceConnection | Self::DnsTunnel | Self::DnsGenerated => Severity::High,
            Self::ModelAutoencoder => Severity::Low,
        }
    }

    /// The techniques its alerts show. The model's depend on the features that mattered.
    pub fn techniques(self) -> Vec<Technique> {
        let list: &[_] = match self {
            Self::ScanVertical => &[NETWORK_SERVICE_DISCOVERY],
            Self::ScanHorizontal => &[NETWORK_SERVICE_DISCOVERY, REMOTE_SYSTEM_DISCOVERY],
            Self::BruteforceHttp | Self::BruteforceConnection => &[PASSWORD_GUESSING],
            Self::ContactNewInternal => &[REMOTE_SERVICES],
            Self::ModelAutoencoder => &[],
            Self::BeaconPeriodic | Self::IntelMatch => &[APPLICATION_LAYER],
            Self::DnsTunnel => &[DNS_TUNNEL, DATA_IN_PROTOCOL],
            Self::DnsGenerated => &[GENERATED_DOMAINS],
        };
        list.iter().copied().map(technique).collect()
    }
}

/// What a beacon shows, by the protocol it speaks.
pub fn beacon_technique(columns: &Columns<'_>, i: usize, proxied: bool) -> Vec<Technique> {
    let protocol = match text(columns.service, i) {
        Some("http" | "tls" | "ssl" | "quic") => WEB_PROTOCOLS,
        Some("dns") => DNS_TUNNEL,
        Some(_) => APPLICATION_LAYER,
        None if columns.tls_sni.is_valid(i) || columns.http_host.is_valid(i) => WEB_PROTOCOLS,
        None => NOT_APPLICATION_LAYER,
    };
    let list = if proxied { vec![protocol, PROXY] } else { vec![protocol] };
    list.into_iter().map(technique).collect()
}

/// The technique that an unusual feature hints at, where there is one.
pub fn hinted_technique(feature: &str) -> Option<Technique> {
    let hint = match feature {
        "src_bytes" | "source_bytes" | "byte_balance" | "src_mean_payload" => EXFILTRATION,
        "source_ports" | "source_hosts" | "source_failed_share" => NETWORK_SERVICE_DISCOVERY,
        "http_auth_failures" => PASSWORD_GUESSING,
        "dns_query_length" => DNS_TUNNEL,
        _ => return None,
    };
    Some(technique(hint))
}

fn technique((id, name, tactic): (&str, &str, &str)) -> Technique {
    Technique {
        id: id.to_owned(),
        name: name.to_owned(),
        tactic: tactic.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_safe_in_a_subject_and_order_is_the_index() {
        let ids: std::collections::BTreeSet<_> = Detector::ALL.iter().map(|d| d.id()).collect();
        assert_eq!(ids.len(), Detector::ALL.len());
        for (i, d) in Detector::ALL.iter().enumerate() {
            assert_eq!(d.index(), i);
            let safe = |b: u8| b.is_ascii_lowercase() || b == b'.' || b == b'_';
            assert!(d.id().bytes().all(safe));
        }
    }

    #[test]
    fn hints_name_features_that_exist() {
        use crate::domain::features::FEATURES;
        let hinted = FEATURES.iter().filter(|f| hinted_technique(f.name).is_some());
        assert_eq!(hinted.count(), 9);
    }
}
