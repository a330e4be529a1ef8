//! The least that recorded flows need: policies to start from, with what is known about their risk.
//!
//! Only what was seen as a destination gets a policy: who was silent is left alone, as silence is no proof of anything.
//! Every policy observes first. Hosts of one network that serve the same are one policy; peers that fill a network become
//! it; many strangers become everyone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::Serialize;

use crate::{
    document::{Action, IngressRule, KIND, Peer, Port, Protocol, Subject, ZeroTrustPolicy},
    sets::AddressSet,
    what_if::{CONNECTIONS, Confidence, Level, Record, Seen},
};

/// Peers of a network of 256 addresses (IPv6: a /64) that make it the whole network.
const FILLED: usize = 8;
/// Strangers that become everyone.
const STRANGERS: usize = 16;
/// Ports above [`EPHEMERAL`] that become the whole range.
const HIGH_PORTS: usize = 8;
/// Where systems take ports for a while from.
const EPHEMERAL: u16 = 32_768;
const DAY: i64 = 24 * 3_600 * 1_000_000_000;

/// What counts as one's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The addresses that get policies; others are strangers.
    pub internal: AddressSet,
    /// Before the names of policies.
    pub prefix: String,
}

impl Default for Options {
    /// Private addresses (RFC 1918, RFC 4193), and the prefix `learnt`.
    fn default() -> Self {
        let nets = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];
        Self {
            internal: AddressSet::from_nets(nets.iter().filter_map(|net| net.parse().ok())),
            prefix: "learnt".to_owned(),
        }
    }
}

/// How much could go wrong if a policy were enforced as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Risk {
    /// In one word.
    pub level: RiskLevel,
    /// Why, one sentence each.
    pub reasons: Vec<String>,
}

/// A risk in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RiskLevel {
    /// A whole week was seen, and nothing in it was rare.
    Low,
    /// Something was rare, or half of a week was seen.
    Medium,
    /// Too little was seen to say.
    High,
}

/// A policy, and what is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suggestion {
    /// The policy.
    pub policy: ZeroTrustPolicy,
    /// What could go wrong.
    pub risk: Risk,
    /// Flows that it was learnt from.
    pub flows: u64,
}

/// What the flows suggest.
#[derive(Clone, Debug, PartialEq)]
pub struct Recommendation {
    /// One policy for each kind of server, by name.
    pub suggestions: Vec<Suggestion>,
    /// Hosts that were seen as destinations and get no policy, with the reason.
    pub left_out: Vec<(IpAddr, String)>,
    /// How much the flows can tell.
    pub confidence: Confidence,
}

#[derive(Clone, Debug)]
struct Stat {
    flows: u64,
    days: BTreeSet<i64>,
}

/// Who opened connections, and how often.
type Sources<'s> = BTreeMap<IpAddr, &'s Stat>;

/// Gathers records.
#[derive(Debug)]
pub struct Learner {
    options: Options,
    seen: Seen,
    connections: HashMap<(IpAddr, u8, u16, IpAddr), Stat>,
    flows: u64,
}

impl Learner {
    /// Nothing seen yet.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            seen: Seen::default(),
            connections: HashMap::new(),
            flows: 0,
        }
    }

    /// Takes a record; of ICMP, `port` is the type. False when there are more than [`CONNECTIONS`] connections.
    pub fn record(&mut self, record: &Record) -> bool {
        self.seen.note(record.first_seen);
        self.seen.note(record.last_seen);
        let (src, dst) = (record.src.to_canonical(), record.dst.to_canonical());
        if src == dst || !self.options.internal.contains(dst) {
            return true;
        }
        let full = self.connections.len() >= CONNECTIONS;
        let key = (dst, record.protocol, record.port, src);
        if full && !self.connections.contains_key(&key) {
            return false;
        }
        let stat = self.connections.entry(key).or_insert_with(|| Stat {
            flows: 0,
            days: BTreeSet::new(),
        });
        stat.flows += 1;
        self.flows += 1;
        // Two days are enough to tell that it was not one.
        if stat.days.len() < 2 {
            stat.days.insert(record.first_seen.div_euclid(DAY));
        }
        true
    }

    /// What the flows suggest.
    pub fn recommend(&self) -> Recommendation {
        let confidence = self.seen.confidence();
        let mut left_out = Vec::new();
        // What each host serves: protocol and port, to whom.
        let mut served: BTreeMap<IpAddr, BTreeMap<(u8, u16), Sources<'_>>> = BTreeMap::new();
        for ((dst, protocol, port, src), stat) in &self.connections {
            let port = if matches!(protocol, 1 | 6 | 17 | 58 | 132) {
                *port
            } else {
                0
            };
            served
                .entry(*dst)
                .or_default()
                .entry((*protocol, port))
                .or_default()
                .insert(*src, stat);
        }
        // Hosts of one network that serve the same ports are one kind.
        type Kind = (String, BTreeSet<(u8, u16, u16)>);
        let mut kinds: BTreeMap<Kind, Vec<IpAddr>> = BTreeMap::new();
        for (host, services) in &served {
            let unsayable = services.keys().find(|(p, _)| !matches!(p, 1 | 6 | 17 | 58 | 132));
            if let Some((protocol, _)) = unsayable {
                left_out.push((
                    *host,
                    format!("it takes IP protocol {protocol}, which rules cannot name: a policy would cut that off"),
                ));
                continue;
            }
            let ports = generalised(services.keys().copied());
            kinds
                .entry((network(*host).to_string(), ports))
                .or_default()
                .push(*host);
        }
        let mut suggestions = Vec::new();
        for (number, ((net, ports), hosts)) in (1..).zip(kinds) {
            let mut flows = 0;
            let mut rare = Vec::new();
            let mut rules = Vec::new();
            let mut opened = false;
            for (protocol, from, to) in ports {
                let mut peers: BTreeSet<IpAddr> = BTreeSet::new();
                for host in &hosts {
                    let all = &served[host];
                    for ((_, port), sources) in all.range((protocol, from)..=(protocol, to)) {
                        for (source, stat) in sources {
                            peers.insert(*source);
                            flows += stat.flows;
                            if stat.days.len() == 1 && confidence.days >= 2.0 {
                                rare.push(format!("{source} → {host} {}", shown(protocol, *port, *port)));
                            }
                        }
                    }
                }
                let (from_peers, everyone) = self.summarise(&peers);
                opened |= everyone;
                rules.push(IngressRule::new(
                    format!("{}-{}", word(protocol), from).trim_end_matches('-').to_owned(),
                    Action::Allow,
                    from_peers,
                    vec![port(protocol, from, to)],
                ));
            }
            let risk = risk(&confidence, &rare, opened, flows);
            let reason = format!(
                "learnt from {flows} flows to {} hosts of {net} in {:.1} days; risk {}",
                hosts.len(),
                confidence.days,
                match risk.level {
                    RiskLevel::Low => "low",
                    RiskLevel::Medium => "medium",
                    RiskLevel::High => "high",
                }
            );
            let subject = Subject {
                cidrs: hosts.iter().map(ToString::to_string).collect(),
                ..Subject::default()
            };
            let name = format!("{}-{number}", self.options.prefix);
            let mut policy = ZeroTrustPolicy::observing(KIND, name, crate::document::DEFAULT_TIER, reason, subject);
            policy.spec.ingress = Some(rules);
            suggestions.push(Suggestion { policy, risk, flows });
        }
        Recommendation {
            suggestions,
            left_out,
            confidence,
        }
    }

    /// The peers as few networks, and whether that is everyone.
    fn summarise(&self, peers: &BTreeSet<IpAddr>) -> (Vec<Peer>, bool) {
        let (own, strangers): (Vec<IpAddr>, Vec<IpAddr>) =
            peers.iter().partition(|peer| self.options.internal.contains(**peer));
        if strangers.len() >= STRANGERS {
            let any = Peer {
                any: true,
                ..Peer::default()
            };
            return (vec![any], true);
        }
        let mut by_net: BTreeMap<IpNet, Vec<IpAddr>> = BTreeMap::new();
        for peer in own {
            by_net.entry(network(peer)).or_default().push(peer);
        }
        let mut nets: Vec<IpNet> = strangers.into_iter().map(IpNet::from).collect();
        for (net, members) in by_net {
            if members.len() >= FILLED {
                nets.push(net);
            } else {
                nets.extend(members.into_iter().map(IpNet::from));
            }
        }
        let peers = AddressSet::from_nets(nets).to_nets().into_iter().map(|net| Peer {
            cidr: Some(net.to_string()),
            ..Peer::default()
        });
        (peers.collect(), false)
    }
}

/// The network that an address is a neighbour in.
fn network(address: IpAddr) -> IpNet {
    let length = if address.is_ipv4() { 24 } else { 64 };
    IpNet::new(address, length).map_or(IpNet::from(address), |net| net.trunc())
}

/// Ports as ranges: many high ones are the range that systems take ports from.
fn generalised(services: impl Iterator<Item = (u8, u16)>) -> BTreeSet<(u8, u16, u16)> {
    let mut by_protocol: BTreeMap<u8, BTreeSet<u16>> = BTreeMap::new();
    for (protocol, port) in services {
        by_protocol.entry(protocol).or_default().insert(port);
    }
    let mut all = BTreeSet::new();
    for (protocol, ports) in by_protocol {
        let ported = matches!(protocol, 6 | 17 | 132);
        let high = ports.range(EPHEMERAL..).count() >= HIGH_PORTS && ported;
        for port in ports {
            if port == 0 && ported {
                // Port 0 cannot be named, and nothing listens there.
                continue;
            }
            if high && port >= EPHEMERAL {
                all.insert((protocol, EPHEMERAL, u16::MAX));
            } else {
                all.insert((protocol, port, port));
            }
        }
    }
    all
}

fn word(protocol: u8) -> &'static str {
    match protocol {
        6 => "tcp",
        17 => "udp",
        132 => "sctp",
        1 => "icmp",
        _ => "icmpv6",
    }
}

fn shown(protocol: u8, from: u16, to: u16) -> String {
    if from == to {
        format!("{}/{from}", word(protocol))
    } else {
        format!("{}/{from}-{to}", word(protocol))
    }
}

fn port(protocol: u8, from: u16, to: u16) -> Port {
    let (protocol, icmp) = match protocol {
        6 => (Protocol::Tcp, None),
        17 => (Protocol::Udp, None),
        132 => (Protocol::Sctp, None),
        version => (Protocol::Icmp, Some(version)),
    };
    let kind = u8::try_from(from).unwrap_or(u8::MAX);
    Port {
        protocol,
        port: icmp.is_none().then_some(from),
        end_port: (icmp.is_none() && from != to).then_some(to),
        icmp_type: (icmp == Some(1)).then_some(kind),
        icmpv6_type: (icmp == Some(58)).then_some(kind),
    }
}

fn risk(confidence: &Confidence, rare: &[String], opened: bool, flows: u64) -> Risk {
    let mut reasons = Vec::new();
    let mut level = match confidence.level {
        Level::High => RiskLevel::Low,
        Level::Medium => RiskLevel::Medium,
        Level::Low => RiskLevel::High,
    };
    reasons.push(format!(
        "{} of the 168 hours of a week were seen, over {:.1} days: what runs at other times would be cut off",
        confidence.hours_of_week, confidence.days
    ));
    if !rare.is_empty() {
        level = level.max(RiskLevel::Medium);
        let some: Vec<&str> = rare.iter().take(3).map(String::as_str).collect();
        reasons.push(format!(
            "{} connections were seen on one day only, such as {}: others like them may not have been seen at all",
            rare.len(),
            some.join(", ")
        ));
    }
    if opened {
        reasons.push("so many strangers were seen that everyone is allowed: narrow it if they are known".to_owned());
    }
    if flows < 100 {
        level = level.max(RiskLevel::Medium);
        reasons.push(format!("only {flows} flows were seen"));
    }
    Risk { level, reasons }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Engine, Verdict, check, document::Mode, ir::lower};

    fn record(i: u64, src: [u8; 4], dst: [u8; 4], protocol: u8, port: u16, at: i64) -> Record {
        let mut flow = [0; 16];
        flow[..8].copy_from_slice(&i.to_le_bytes());
        Record {
            flow,
            src: src.into(),
            dst: dst.into(),
            protocol,
            port,
            first_seen: at,
            last_seen: at,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        #[test]
        fn what_was_seen_stays_possible_and_who_was_silent_is_left_alone(
            flows in prop::collection::vec((0u8..40, 0u8..6, prop::sample::select(vec![1u8, 6, 6, 17, 47]), prop::sample::select(vec![8u16, 80, 443, 40_000, 41_000, 65_535])), 1..120),
        ) {
            let mut learner = Learner::new(Options::default());
            let records: Vec<Record> = flows.iter().enumerate().map(|(i, (src, dst, protocol, port))| {
                let src = if *src < 20 { [10, 0, 1, *src] } else { [203, 0, 113, *src] };
                record(i as u64, src, [10, 0, 2, *dst], *protocol, *port, i as i64 * 3_600_000_000_000)
            }).collect();
            prop_assert!(records.iter().all(|r| learner.record(r)));
            let found = learner.recommend();
            let text: String = found.suggestions.iter().map(|s| format!("---\n{}", serde_saphyr::to_string(&s.policy).unwrap())).collect();
            if !found.suggestions.is_empty() {
                let checked = check(&text);
                prop_assert!(checked.is_valid(), "{:?}\n{}", checked.diagnostics, text);
            }
            let mut policies: Vec<_> = found.suggestions.iter().map(|s| lower(&s.policy, 1)).collect();
            prop_assert!(policies.iter().all(|p| p.mode == Mode::Observe));
            policies.iter_mut().for_each(|p| p.mode = Mode::Enforce);
            let engine = Engine::build(&policies).unwrap();
            let verdict = |r: &Record| engine.decide(r.src, r.dst, r.protocol, r.port).enforced.verdict();
            for r in &records {
                prop_assert!(verdict(r) != Verdict::Deny, "{:?} would be cut off by\n{}", r, text);
            }
            // A host that was never a destination is governed by nothing.
            let silent = record(0, [10, 0, 1, 1], [10, 0, 9, 9], 6, 80, 0);
            prop_assert_eq!(verdict(&silent), Verdict::Ungoverned);
        }
    }

    #[test]
    fn a_week_is_less_risky_than_an_hour() {
        let learn = |hours: i64| {
            let mut learner = Learner::new(Options::default());
            for hour in 0..hours {
                for i in 0..4u64 {
                    let at = hour * 3_600_000_000_000;
                    assert!(learner.record(&record(hour as u64 * 4 + i, [10, 0, 1, 1], [10, 0, 2, 2], 6, 443, at)));
                }
            }
            learner.recommend().suggestions.remove(0).risk.level
        };
        assert_eq!(learn(1), RiskLevel::High);
        assert_eq!(learn(24 * 8), RiskLevel::Low);
    }
}
