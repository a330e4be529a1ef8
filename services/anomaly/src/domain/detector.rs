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
    /// A host sends far more to the outside than usual.
    ExfiltrationVolume,
    /// A service has far more connections than usual.
    FloodVictim,
    /// One source tries many services over a day.
    ScanSlow,
    /// Many sources share a scan.
    ScanDistributed,
    /// One source logs in at several hosts that are new to it.
    LateralCredential,
    /// A connection to the outside does not end.
    ConnectionLong,
    /// A client program was never seen.
    ClientRare,
    /// A login is readable.
    CredentialsClearText,
    /// An internal service's certificate is not valid.
    CertificateInvalid,
    /// A device was never seen.
    DeviceNew,
}

const NETWORK_SERVICE_DISCOVERY: (&str, &str, &str) = ("T1046", "Network Service Discovery", "Discovery");
const REMOTE_SYSTEM_DISCOVERY: (&str, &str, &str) = ("T1018", "Remote System Discovery", "Discovery");
const PASSWORD_GUESSING: (&str, &str, &str) = ("T1110.001", "Brute Force: Password Guessing", "Credential Access");
const REMOTE_SERVICES: (&str, &str, &str) = ("T1021", "Remote Services", "Lateral Movement");
const EXFILTRATION: (&str, &str, &str) = ("T1048", "Exfiltration Over Alternative Protocol", "Exfiltration");
const EXFILTRATION_OVER_C2: (&str, &str, &str) = ("T1041", "Exfiltration Over C2 Channel", "Exfiltration");
const NETWORK_DENIAL: (&str, &str, &str) = ("T1498", "Network Denial of Service", "Impact");
const ENDPOINT_DENIAL: (&str, &str, &str) = ("T1499", "Endpoint Denial of Service", "Impact");
const SNIFFING: (&str, &str, &str) = ("T1040", "Network Sniffing", "Credential Access");
const IN_THE_MIDDLE: (&str, &str, &str) = ("T1557", "Adversary-in-the-Middle", "Credential Access");
const HARDWARE: (&str, &str, &str) = ("T1200", "Hardware Additions", "Initial Access");
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
    pub const ALL: [Self; 20] = [
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
        Self::ExfiltrationVolume,
        Self::FloodVictim,
        Self::ScanSlow,
        Self::ScanDistributed,
        Self::LateralCredential,
        Self::ConnectionLong,
        Self::ClientRare,
        Self::CredentialsClearText,
        Self::CertificateInvalid,
        Self::DeviceNew,
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
            Self::ExfiltrationVolume => "exfiltration.volume",
            Self::FloodVictim => "flood.victim",
            Self::ScanSlow => "scan.slow",
            Self::ScanDistributed => "scan.distributed",
            Self::LateralCredential => "lateral.credential",
            Self::ConnectionLong => "connection.long",
            Self::ClientRare => "client.rare",
            Self::CredentialsClearText => "credentials.clear_text",
            Self::CertificateInvalid => "certificate.invalid",
            Self::DeviceNew => "device.new",
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
            Self::ExfiltrationVolume => {
                "A host sends many times more to the outside within an hour than it and its neighbours usually do."
            }
            Self::FloodVictim => "A service has many times more new connections than usual, from whomever they come.",
            Self::ScanSlow => "One source tries many internal services over a day, and they refuse or do not answer.",
            Self::ScanDistributed => {
                "Many sources try different ports of one internal host, each too few to be a scanner alone."
            }
            Self::LateralCredential => {
                "A host turns, within an hour, to several internal hosts that are new to it, by protocols that log in."
            }
            Self::ConnectionLong => {
                "A connection to an outside destination that hardly anybody else uses lasts for hours."
            }
            Self::ClientRare => {
                "A host uses a TLS client (JA4) or user agent that no host of the tenant was seen with."
            }
            Self::CredentialsClearText => "Somebody logs in by FTP, Telnet, POP3, IMAP or HTTP without TLS.",
            Self::CertificateInvalid => {
                "An internal service shows a certificate that is expired, not valid yet or signed by itself."
            }
            Self::DeviceNew => "An internal device, by its link address or address, that was never seen.",
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
            Self::BruteforceHttp
            | Self::BruteforceConnection
            | Self::DnsTunnel
            | Self::DnsGenerated
            | Self::ExfiltrationVolume
            | Self::FloodVictim
            | Self::LateralCredential => Severity::High,
            Self::ScanSlow | Self::ScanDistributed => Severity::Medium,
            Self::ModelAutoencoder
            | Self::ConnectionLong
            | Self::ClientRare
            | Self::CredentialsClearText
            | Self::CertificateInvalid
            | Self::DeviceNew => Severity::Low,
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
            Self::ExfiltrationVolume => &[EXFILTRATION, EXFILTRATION_OVER_C2],
            Self::FloodVictim => &[NETWORK_DENIAL, ENDPOINT_DENIAL],
            Self::ScanSlow | Self::ScanDistributed => &[NETWORK_SERVICE_DISCOVERY],
            Self::LateralCredential => &[REMOTE_SERVICES],
            Self::ConnectionLong | Self::ClientRare => &[APPLICATION_LAYER],
            Self::CredentialsClearText => &[SNIFFING],
            Self::CertificateInvalid => &[IN_THE_MIDDLE],
            Self::DeviceNew => &[HARDWARE],
        };
        list.iter().copied().map(technique).collect()
    }
}

/// What logins by these ports show.
pub fn remote_service(ports: impl Iterator<Item = u16>) -> Vec<Technique> {
    let mut list: Vec<(&str, &str, &str)> = Vec::new();
    for port in ports {
        let one = match port {
            3389 => (
                "T1021.001",
                "Remote Services: Remote Desktop Protocol",
                "Lateral Movement",
            ),
            139 | 445 => (
                "T1021.002",
                "Remote Services: SMB/Windows Admin Shares",
                "Lateral Movement",
            ),
            135 => (
                "T1021.003",
                "Remote Services: Distributed Component Object Model",
                "Lateral Movement",
            ),
            22 => ("T1021.004", "Remote Services: SSH", "Lateral Movement"),
            5900 => ("T1021.005", "Remote Services: VNC", "Lateral Movement"),
            5985 | 5986 => (
                "T1021.006",
                "Remote Services: Windows Remote Management",
                "Lateral Movement",
            ),
            _ => REMOTE_SERVICES,
        };
        if !list.contains(&one) {
            list.push(one);
        }
    }
    list.into_iter().map(technique).collect()
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

/// The technique that a class of the threat classifier stands for.
pub fn class_technique(class: &str) -> Option<Technique> {
    let stands_for = match class {
        "scan" => NETWORK_SERVICE_DISCOVERY,
        "command-and-control" => APPLICATION_LAYER,
        _ => return None,
    };
    Some(technique(stands_for))
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
