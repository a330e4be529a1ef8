//! From forbidden flows to alerts.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use chrono::{DateTime, Utc};
use garrison_proto::{
    TenantId,
    alert::v1::{Alert, Entity, EntityKind, FlowReference, Severity, Technique},
    to_timestamp,
};
use garrison_ztp::{
    Entry,
    ir::Direction,
    sets::{PORT_PROTOCOLS, protocol_name},
};
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// The name of the detector.
pub const DETECTOR: &str = "policy.violation";
/// Flows that an alert quotes; others are counted.
const QUOTED: usize = 16;
/// Sources within a window that get alerts of their own; a flood from forged sources is one alert more.
const SOURCES: usize = 1_000;
/// Windows that are followed at a time; records come a little out of order.
const WINDOWS: usize = 4;

/// The namespace of alert ids: a replayed flow makes the same alert.
const NAMESPACE: Uuid = Uuid::from_u128(0x6b1f_6a5e_2d0c_5b0a_9c7e_53a4_0d6f_1e21);

/// A flow that an enforced policy forbids.
#[derive(Clone, Debug)]
pub struct Violation<'e> {
    /// Who opened it.
    pub src: IpAddr,
    /// To whom.
    pub dst: IpAddr,
    /// The IP protocol.
    pub protocol: u8,
    /// The destination port; meaningless for protocols without ports.
    pub port: u16,
    /// What forbids it.
    pub entry: &'e Entry,
    /// When the packet was captured that showed it, in nanoseconds since the epoch.
    pub trigger: i64,
    /// When the flow was last seen, in nanoseconds since the epoch.
    pub last_seen: i64,
    /// The flow.
    pub flow: FlowReference,
}

/// How much of a violation an alert is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Scope {
    /// One service of one host.
    Service(IpAddr, u8, u16),
    /// More services of one host than get alerts of their own.
    Host(IpAddr),
    /// More hosts than get alerts of their own.
    Everything,
    /// More sources than get alerts of their own.
    Flood,
}

/// Follows how far each source spreads within a window, so that a scan of forbidden ports is a few alerts and
/// not thousands.
#[derive(Debug)]
pub struct Folder {
    window: i64,
    spread: usize,
    windows: BTreeMap<i64, HashMap<IpAddr, Spread>>,
}

/// Services that one source reached for, by host.
type Spread = HashMap<IpAddr, HashSet<(u8, u16)>>;

impl Folder {
    /// Folds within windows of `window`; `spread` ports a host and hosts a source get alerts of their own.
    pub fn new(window: Duration, spread: usize) -> Self {
        Self {
            window: i64::try_from(window.as_nanos()).unwrap_or(i64::MAX).max(1),
            spread: spread.max(1),
            windows: BTreeMap::new(),
        }
    }

    fn scope(&mut self, v: &Violation<'_>) -> (i64, Scope) {
        let start = v.trigger.div_euclid(self.window);
        if self.windows.len() >= WINDOWS && !self.windows.contains_key(&start) {
            self.windows.pop_first();
        }
        let sources = self.windows.entry(start).or_default();
        if sources.len() >= SOURCES && !sources.contains_key(&v.src) {
            return (start, Scope::Flood);
        }
        let hosts = sources.entry(v.src).or_default();
        if hosts.len() >= self.spread && !hosts.contains_key(&v.dst) {
            return (start, Scope::Everything);
        }
        let services = hosts.entry(v.dst).or_default();
        let service = (v.protocol, service_port(v));
        if services.len() >= self.spread && !services.contains(&service) {
            return (start, Scope::Host(v.dst));
        }
        services.insert(service);
        (start, Scope::Service(v.dst, service.0, service.1))
    }
}

/// The alerts of one batch of flows.
#[derive(Debug, Default)]
pub struct Findings {
    alerts: BTreeMap<Uuid, Alert>,
}

impl Findings {
    /// Adds a violation: to the alert that it belongs to, or as a new one. Order does not matter.
    pub fn add(
        &mut self,
        tenant: &TenantId,
        v: Violation<'_>,
        folder: &mut Folder,
        internal: &[IpNet],
        now: DateTime<Utc>,
    ) {
        let (window, scope) = folder.scope(&v);
        let rule = v.entry.to_string();
        let who = match scope {
            Scope::Flood => String::new(),
            _ => v.src.to_string(),
        };
        let name = format!("{tenant}|{who}|{scope:?}|{rule}|{window}|{}", folder.window);
        let id = Uuid::new_v5(&NAMESPACE, name.as_bytes());
        let (first, last) = (v.trigger, v.last_seen.max(v.trigger));
        let alert = self.alerts.entry(id).or_insert_with(|| Alert {
            alert_id: id.to_string(),
            detector: DETECTOR.to_owned(),
            title: title(&v, scope),
            severity: Severity::High.into(),
            confidence: 1.0,
            entity: Some(entity(EntityKind::Host, v.src.to_string())),
            targets: match scope {
                Scope::Service(..) => vec![target(&v)],
                Scope::Host(host) => vec![entity(EntityKind::Host, host.to_string())],
                Scope::Everything | Scope::Flood => Vec::new(),
            },
            techniques: vec![technique(&v, scope, internal)],
            features: Vec::new(),
            flows: Vec::new(),
            first_seen: Some(timestamp(first)),
            last_seen: Some(timestamp(last)),
            trigger_time: Some(timestamp(first)),
            detected_time: Some(to_timestamp(now)),
            count: 0,
            policy: rule.clone(),
            fingerprint: {
                let text = format!("{tenant}|{who}|{scope:?}|{}|{}", v.entry.policy, v.entry.rule);
                hex::encode(&Sha256::digest(text)[..16])
            },
            score: 1.0,
            threshold: 1.0,
            indicators: Vec::new(),
            classification: None,
        });
        alert.count += 1;
        if before(&alert.first_seen, first) {
            alert.first_seen = Some(timestamp(first));
            alert.trigger_time = Some(timestamp(first));
        }
        if !before(&alert.last_seen, last) {
            alert.last_seen = Some(timestamp(last));
        }
        if alert.flows.len() < QUOTED {
            if matches!(scope, Scope::Everything | Scope::Flood)
                && !alert.targets.iter().any(|t| t.value == v.dst.to_string())
            {
                alert.targets.push(entity(EntityKind::Host, v.dst.to_string()));
            }
            alert.flows.push(v.flow);
        }
    }

    /// The alerts, in the order of their ids.
    pub fn into_alerts(self) -> impl Iterator<Item = (Uuid, Alert)> {
        self.alerts.into_iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.alerts.is_empty()
    }
}

/// Adds what was found later to an alert that was raised before. Flows that the alert quotes are known and do not
/// count again, so that a replay changes nothing. Answers how many were added.
pub fn update(raised: &mut Alert, later: &Alert) -> u64 {
    let known: HashSet<String> = raised.flows.iter().map(|flow| flow.flow_id.clone()).collect();
    let new: Vec<&FlowReference> = later
        .flows
        .iter()
        .filter(|flow| !known.contains(&flow.flow_id))
        .collect();
    let added = later.count.saturating_sub((later.flows.len() - new.len()) as u64);
    raised.count += added;
    if let (Some(known), Some(new)) = (&raised.last_seen, &later.last_seen)
        && (new.seconds, new.nanos) > (known.seconds, known.nanos)
    {
        raised.last_seen = later.last_seen;
    }
    for target in &later.targets {
        if !raised.targets.contains(target) && raised.targets.len() < QUOTED {
            raised.targets.push(target.clone());
        }
    }
    let room = QUOTED.saturating_sub(raised.flows.len());
    raised.flows.extend(new.into_iter().take(room).cloned());
    added
}

fn timestamp(nanoseconds: i64) -> garrison_proto::Timestamp {
    to_timestamp(DateTime::from_timestamp_nanos(nanoseconds))
}

/// Whether `time` (nanoseconds) is before what is known.
fn before(known: &Option<garrison_proto::Timestamp>, time: i64) -> bool {
    let time = timestamp(time);
    known
        .as_ref()
        .is_none_or(|known| (time.seconds, time.nanos) < (known.seconds, known.nanos))
}

fn entity(kind: EntityKind, value: String) -> Entity {
    Entity {
        kind: kind.into(),
        value,
    }
}

/// 0 for protocols without ports: ICMP's port columns hold type and code.
fn service_port(v: &Violation<'_>) -> u16 {
    if PORT_PROTOCOLS.contains(&v.protocol) {
        v.port
    } else {
        0
    }
}

fn target(v: &Violation<'_>) -> Entity {
    if !PORT_PROTOCOLS.contains(&v.protocol) {
        return entity(EntityKind::Host, v.dst.to_string());
    }
    let socket = std::net::SocketAddr::new(v.dst, v.port);
    let protocol = protocol_name(v.protocol).to_lowercase();
    entity(EntityKind::Service, format!("{socket}/{protocol}"))
}

fn title(v: &Violation<'_>, scope: Scope) -> String {
    let what = match scope {
        Scope::Service(dst, protocol, port) if PORT_PROTOCOLS.contains(&protocol) => {
            format!("{}/{port} of {dst}", protocol_name(protocol))
        }
        Scope::Service(dst, protocol, _) => format!("{dst} by {}", protocol_name(protocol)),
        Scope::Host(dst) => format!("many services of {dst}"),
        Scope::Everything => "many hosts".to_owned(),
        Scope::Flood => {
            return format!(
                "more than {SOURCES} hosts opened what policy {} forbids",
                v.entry.policy
            );
        }
    };
    let policy = &v.entry.policy;
    match v.entry.direction {
        Direction::Ingress => format!("{} opened {what}, which policy {policy} forbids", v.src),
        Direction::Egress => format!("{} opened {what}, which policy {policy} does not let it", v.src),
    }
}

fn technique(v: &Violation<'_>, scope: Scope, internal: &[IpNet]) -> Technique {
    let inside = |address: IpAddr| internal.iter().any(|net| net.contains(&address));
    let (id, name, tactic) = match (inside(v.src), inside(v.dst), scope) {
        (_, _, Scope::Host(_) | Scope::Everything) => ("T1046", "Network Service Discovery", "Discovery"),
        (true, true, _) => ("T1021", "Remote Services", "Lateral Movement"),
        (true, false, _) => ("T1071", "Application Layer Protocol", "Command and Control"),
        (false, true, _) if matches!(v.port, 22 | 23 | 3389 | 5900 | 5985 | 5986) => {
            ("T1133", "External Remote Services", "Initial Access")
        }
        (false, _, _) => ("T1190", "Exploit Public-Facing Application", "Initial Access"),
    };
    Technique {
        id: id.to_owned(),
        name: name.to_owned(),
        tactic: tactic.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use garrison_ztp::document::Mode;

    use super::*;

    fn entry() -> Entry {
        Entry {
            policy: "database".to_owned(),
            version: 3,
            rule: "default-deny".to_owned(),
            direction: Direction::Ingress,
            allows: false,
            mode: Mode::Enforce,
        }
    }

    fn violation<'e>(entry: &'e Entry, src: &str, dst: &str, port: u16, at: i64) -> Violation<'e> {
        Violation {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            protocol: 6,
            port,
            entry,
            trigger: at,
            last_seen: at,
            flow: FlowReference {
                flow_id: format!("{src}-{dst}-{port}-{at}"),
                ..FlowReference::default()
            },
        }
    }

    fn found(violations: Vec<Violation<'_>>) -> Vec<Alert> {
        let mut folder = Folder::new(Duration::from_secs(60), 4);
        let mut findings = Findings::default();
        let internal = ["10.0.0.0/8".parse().unwrap()];
        let tenant = "acme".parse().unwrap();
        for v in violations {
            findings.add(&tenant, v, &mut folder, &internal, DateTime::UNIX_EPOCH);
        }
        findings.into_alerts().map(|(_, alert)| alert).collect()
    }

    const MINUTE: i64 = 60_000_000_000;

    #[test]
    fn repeats_fold_within_a_window_and_replays_make_the_same_alert() {
        let entry = entry();
        let flows = || {
            vec![
                violation(&entry, "10.0.0.3", "10.0.0.9", 5432, 2 * MINUTE + 5),
                violation(&entry, "10.0.0.3", "10.0.0.9", 5432, 2 * MINUTE + 1),
                violation(&entry, "10.0.0.3", "10.0.0.9", 5432, 3 * MINUTE),
                violation(&entry, "10.0.0.4", "10.0.0.9", 5432, 2 * MINUTE),
            ]
        };
        let alerts = found(flows());
        assert_eq!(alerts, found(flows()));
        assert_eq!(alerts.len(), 3);
        let folded = alerts.iter().find(|a| a.count == 2).unwrap();
        assert_eq!(
            folded.title,
            "10.0.0.3 opened TCP/5432 of 10.0.0.9, which policy database forbids"
        );
        assert_eq!(folded.policy, "database@3 default-deny");
        assert_eq!(folded.targets[0].value, "10.0.0.9:5432/tcp");
        assert_eq!(folded.techniques[0].id, "T1021");
        assert_eq!(folded.trigger_time, Some(timestamp(2 * MINUTE + 1)), "the first packet");
        assert_eq!(folded.last_seen, Some(timestamp(2 * MINUTE + 5)));
        assert_eq!(folded.flows.len(), 2);
        let later = alerts
            .iter()
            .find(|a| a.first_seen == Some(timestamp(3 * MINUTE)))
            .unwrap();
        assert_eq!(later.fingerprint, folded.fingerprint);
        assert_ne!(later.alert_id, folded.alert_id);
    }

    #[test]
    fn a_scan_of_forbidden_services_is_a_few_alerts() {
        let entry = entry();
        let ports = (1..=1_000)
            .map(|port| violation(&entry, "10.0.0.3", "10.0.0.9", port, 1))
            .collect();
        let alerts = found(ports);
        assert_eq!(alerts.len(), 5);
        let rest = alerts.iter().find(|a| a.count == 996).unwrap();
        assert_eq!(rest.targets[0].value, "10.0.0.9");
        assert_eq!(rest.techniques[0].id, "T1046");
        assert_eq!(rest.flows.len(), QUOTED);

        let hosts: Vec<String> = (1..=200).map(|n| format!("10.0.1.{n}")).collect();
        let sweep = hosts
            .iter()
            .map(|dst| violation(&entry, "10.0.0.3", dst, 22, 1))
            .collect();
        let alerts = found(sweep);
        assert_eq!(alerts.len(), 5);
        assert_eq!(alerts.iter().map(|a| a.count).sum::<u64>(), 200);
    }

    #[test]
    fn a_flood_from_forged_sources_stays_small() {
        let entry = entry();
        let sources: Vec<String> = (0..5_000).map(|n| format!("10.1.{}.{}", n / 250, n % 250)).collect();
        let flood = sources
            .iter()
            .map(|src| violation(&entry, src, "10.0.0.9", 22, 1))
            .collect();
        let alerts = found(flood);
        assert_eq!(alerts.len(), SOURCES + 1);
        assert_eq!(alerts.iter().map(|a| a.count).max(), Some(4_000));
    }

    #[test]
    fn the_technique_depends_on_where_both_sides_are() {
        let entry = entry();
        let id = |src, dst, port| {
            found(vec![violation(&entry, src, dst, port, 0)])[0].techniques[0]
                .id
                .clone()
        };
        assert_eq!(id("10.0.0.1", "10.0.0.2", 22), "T1021");
        assert_eq!(id("10.0.0.1", "192.0.2.1", 443), "T1071");
        assert_eq!(id("192.0.2.1", "10.0.0.1", 22), "T1133");
        assert_eq!(id("192.0.2.1", "10.0.0.1", 8080), "T1190");
    }

    #[test]
    fn an_update_adds_without_forgetting() {
        let entry = entry();
        let mut raised = found(vec![violation(&entry, "10.0.0.3", "10.0.0.9", 22, 1)]).remove(0);
        let later = found(vec![
            violation(&entry, "10.0.0.3", "10.0.0.9", 22, 1),
            violation(&entry, "10.0.0.3", "10.0.0.9", 22, 9),
        ])
        .remove(0);
        assert_eq!(update(&mut raised, &later), 1, "one of the two flows was known");
        assert_eq!((raised.count, raised.flows.len()), (2, 2));
        assert_eq!(update(&mut raised, &later), 0, "a replay adds nothing");
        assert_eq!(raised.last_seen, Some(timestamp(9)));
        assert_eq!(raised.trigger_time, Some(timestamp(1)));
    }
}
