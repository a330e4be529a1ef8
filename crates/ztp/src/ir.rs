//! The one representation that verdicts and every compiler start from.
//!
//! A policy means a set of connections: (who opens it, to whom, protocol, destination port). Endpoints can be
//! told apart in two ways, by address and by Kubernetes labels, so a policy has two projections, and each
//! target uses one of them:
//!
//! * by **address** ([`Peers::addresses`], [`Subject::addresses`]): verdicts on flows, nftables;
//! * by **workload** ([`Peers::workloads`], [`Subject::workloads`]): Kubernetes.
//!
//! Within a projection the meaning is exact. Where something has no counterpart in a projection, an allow rule
//! shrinks and a deny rule grows, so that the projection is never wider than the policy.
//!
//! A rule may have a [`Condition`] beyond who, whom, protocol and port: the HTTP request, the trust that whoever opens
//! the connection must have, and the time. A policy then means a set of events: connections with the request on them,
//! the evidence of trust, and the moment. What cannot see a part of that keeps to the same rule: there, an allow rule
//! with the condition allows nothing, and a deny rule with it denies everything else that it says. Verdicts on flows are
//! the exception, as they raise alarms rather than hold anything back: there a connection counts as denied only when
//! no request on it could be allowed.
//!
//! # Meaning
//! A connection has two sides: it leaves its source (egress) and reaches its destination (ingress). A policy
//! *governs* a side when its subject has the endpoint on that side and it has rules (even none) for that
//! direction. For each side, tiers decide in ascending order: if a deny rule of any governing policy of the
//! tier matches, the side is denied; otherwise, if an allow rule matches, it is allowed; otherwise the next
//! tier decides. After the last tier, a governed side is denied by default; a side that nothing governs says
//! nothing. The connection is denied when either side is, allowed when a side is allowed and none denied, and
//! ungoverned otherwise. Replies belong to the connection. An endpoint may always talk to itself.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    decode::{read_network, read_time},
    document::{
        Action, Group, GrpcMatch, HttpMatch, LabelOperator, LabelSelector, Mode, Need, Peer, Port, TrustLevel,
        ZeroTrustPolicy,
    },
    sets::{AddressSet, LabelValues, RequestBox, RequestSet, Selector, ServiceSet, TextPattern, TextSet},
};

/// The name of the "rule" that denies what no rule allows.
pub const DEFAULT_DENY: &str = "default-deny";

/// The label that every namespace carries with its own name (Kubernetes 1.21 and later).
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Under this key a pod's service account stands among its labels. No pod carries it as a label; what does not know
/// service accounts has to leave it out.
pub const SERVICE_ACCOUNT_LABEL: &str = "garrison.dev/service-account";

/// Which side of the subject a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Connections that the subject opens.
    Egress,
    /// Connections that reach the subject.
    Ingress,
}

impl Direction {
    /// Both, in the order in which a packet meets them.
    pub const BOTH: [Self; 2] = [Self::Egress, Self::Ingress];

    /// `egress` or `ingress`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// One policy, lowered.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The policy's name.
    pub name: String,
    /// Its version; 0 for a document that is not stored.
    pub version: u64,
    /// Whether it is enforced.
    pub mode: Mode,
    /// Which policies decide first: the lowest.
    pub tier: u16,
    /// Who is governed.
    pub subject: Subject,
    /// Rules for what reaches the subject; `None` when the policy says nothing about it.
    pub ingress: Option<Vec<Rule>>,
    /// Rules for what the subject opens; `None` when the policy says nothing about it.
    pub egress: Option<Vec<Rule>>,
}

/// Who is governed, in both projections.
#[derive(Clone, Debug)]
pub struct Subject {
    /// By address.
    pub addresses: AddressSet,
    /// By workload: a namespace and its pods.
    pub workloads: Option<(String, Selector)>,
    /// By workload, of a `ClusterZeroTrustPolicy`: namespaces and their pods.
    pub cluster: Option<(Selector, Selector)>,
    /// By identity, host or tag.
    pub others: Vec<PeerSet>,
}

/// One rule, lowered.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The rule's name.
    pub name: String,
    /// The rule's place in the document, for example `spec.ingress[0]`.
    pub field: String,
    /// Allow or deny.
    pub action: Action,
    /// The other side.
    pub peers: Peers,
    /// Protocols and ports.
    pub services: ServiceSet,
    /// What must hold besides.
    pub condition: Condition,
}

/// What must hold besides who, whom, protocol and port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Condition {
    /// The HTTP requests; whatever is spoken when missing.
    pub requests: Option<RequestSet>,
    /// What whoever opens the connection must have shown.
    pub needs: BTreeSet<Need>,
    /// The rule counts from then on, nanoseconds since the epoch.
    pub from: Option<i64>,
    /// The rule counts until then, nanoseconds since the epoch.
    pub until: Option<i64>,
}

impl Condition {
    /// Whether nothing more must hold.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the rule counts at all times.
    pub fn is_timeless(&self) -> bool {
        self.from.is_none() && self.until.is_none()
    }

    /// Whether the rule counts at a time, nanoseconds since the epoch.
    pub fn counts_at(&self, time: i64) -> bool {
        self.from.is_none_or(|from| from <= time) && self.until.is_none_or(|until| time < until)
    }
}

/// The other side of a rule's connections, in both projections.
#[derive(Clone, Debug)]
pub struct Peers {
    /// By address. Of a deny rule with a peer that has no addresses: every address.
    pub addresses: AddressSet,
    /// Indexes of the peers that have no addresses.
    pub without_addresses: Vec<usize>,
    /// By workload; the union of these.
    pub workloads: Vec<PeerSet>,
}

/// A set of endpoints in the workload projection.
///
/// `Addresses` matches a pod by its address too, as Kubernetes' `ipBlock` does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerSet {
    /// Everyone.
    Any,
    /// By address.
    Addresses(AddressSet),
    /// Pods by the labels of their namespace and their own.
    Pods {
        /// The namespaces.
        namespaces: Selector,
        /// The pods in them.
        pods: Selector,
    },
    /// By the SPIFFE id that a certificate proves.
    Principals(TextSet),
    /// By name in DNS: `example.com`, or `*.example.com` for everything below it. Nobody opens a connection so.
    Domains(BTreeSet<String>),
    /// Hosts by their name in the inventory.
    Hosts(BTreeSet<String>),
    /// Cloud instances that carry all of these tags.
    Tags(BTreeMap<String, String>),
    /// People who belong to any one of these groups of iam.
    People(BTreeSet<String>),
}

impl Policy {
    /// The rules of a direction; `None` when the policy says nothing about it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Egress => self.egress.as_deref(),
            Direction::Ingress => self.ingress.as_deref(),
        }
    }

    /// `name@version`, or the bare name of a document that is not stored.
    pub fn reference(&self) -> String {
        reference(&self.name, self.version)
    }
}

/// `name@version`, or the bare name of a document that is not stored.
pub(crate) fn reference(name: &str, version: u64) -> String {
    if version == 0 {
        name.to_owned()
    } else {
        format!("{name}@{version}")
    }
}

/// The policies as they are at a time (nanoseconds since the epoch), without bounds in time, and when they next change.
pub fn at(policies: &[Policy], time: i64) -> (Vec<Policy>, Option<i64>) {
    let mut next: Option<i64> = None;
    let policies = policies
        .iter()
        .map(|policy| {
            let mut policy = policy.clone();
            for rules in [&mut policy.ingress, &mut policy.egress].into_iter().flatten() {
                for rule in rules.iter() {
                    let ahead = [rule.condition.from, rule.condition.until];
                    for change in ahead.into_iter().flatten().filter(|t| *t > time) {
                        next = Some(next.map_or(change, |n| n.min(change)));
                    }
                }
                rules.retain(|rule| rule.condition.counts_at(time));
                for rule in rules {
                    rule.condition.from = None;
                    rule.condition.until = None;
                }
            }
            policy
        })
        .collect();
    (policies, next)
}

/// Lowers a checked document.
pub fn lower(document: &ZeroTrustPolicy, version: u64) -> Policy {
    let spec = &document.spec;
    let pods_of = |workloads: &crate::document::Workloads| {
        let pods = workloads.pod_selector.as_ref().map_or_else(Selector::full, selector);
        with_accounts(pods, &workloads.service_accounts)
    };
    let workloads = spec.subject.workloads.as_ref();
    let cluster = document.kind == crate::document::CLUSTER_KIND;
    let mut others = identities(
        &spec.subject.spiffe_ids,
        &[],
        &spec.subject.hosts,
        &spec.subject.tags,
        &[],
    );
    let mut governed = AddressSet::empty();
    match &spec.subject.group {
        Some(name) => {
            for group in members(&spec.groups, name) {
                governed = governed.union(&addresses(&group.cidrs));
                others.extend(group_identities(group));
            }
        }
        None => governed = addresses(&spec.subject.cidrs),
    }
    let subject = Subject {
        addresses: governed,
        workloads: workloads
            .filter(|_| !cluster)
            .map(|workloads| (workloads.namespace.clone(), pods_of(workloads))),
        cluster: workloads.filter(|_| cluster).map(|workloads| {
            let namespaces = workloads.namespace_selector.as_ref();
            (namespaces.map_or_else(Selector::full, selector), pods_of(workloads))
        }),
        others,
    };
    let needs = |level: Option<TrustLevel>| -> BTreeSet<Need> {
        let Some(level) = level else { return BTreeSet::new() };
        match spec.trust_levels.get(&level) {
            Some(own) => own.needs.iter().copied().collect(),
            None => level.needs().iter().copied().collect(),
        }
    };
    let ingress = |(i, r): (usize, &crate::document::IngressRule)| {
        let mut condition = condition(&r.http, &r.grpc, r.valid_from.as_deref(), r.valid_until.as_deref());
        if r.action == Action::Allow {
            condition.needs = needs(r.requires.max(spec.requires));
        }
        Rule {
            name: r.name.clone(),
            field: format!("spec.ingress[{i}]"),
            action: r.action,
            peers: peers(document, &r.from, r.action),
            services: services(&r.ports, condition.requests.is_some()),
            condition,
        }
    };
    let egress = |(i, r): (usize, &crate::document::EgressRule)| {
        let mut condition = condition(&r.http, &r.grpc, r.valid_from.as_deref(), r.valid_until.as_deref());
        if r.action == Action::Allow {
            condition.needs = needs(r.requires);
        }
        Rule {
            name: r.name.clone(),
            field: format!("spec.egress[{i}]"),
            action: r.action,
            peers: peers(document, &r.to, r.action),
            services: services(&r.ports, condition.requests.is_some()),
            condition,
        }
    };
    Policy {
        name: document.metadata.name.clone(),
        version,
        mode: spec.mode,
        tier: spec.tier,
        subject,
        ingress: spec
            .ingress
            .as_ref()
            .map(|rules| rules.iter().enumerate().map(ingress).collect()),
        egress: spec
            .egress
            .as_ref()
            .map(|rules| rules.iter().enumerate().map(egress).collect()),
    }
}

/// The group, or of a group of groups all that it comes down to. A checked document has no circles.
fn members<'d>(groups: &'d BTreeMap<String, Group>, name: &str) -> Vec<&'d Group> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    let mut next: Vec<&'d str> = groups
        .get_key_value(name)
        .map(|(name, _)| name.as_str())
        .into_iter()
        .collect();
    while let Some(name) = next.pop() {
        if !seen.insert(name) {
            continue;
        }
        let Some(group) = groups.get(name) else { continue };
        if group.groups.is_empty() {
            found.push(group);
        } else {
            next.extend(group.groups.iter().rev().map(String::as_str));
        }
    }
    found
}

fn with_accounts(pods: Selector, accounts: &[String]) -> Selector {
    if accounts.is_empty() {
        return pods;
    }
    pods.and(SERVICE_ACCOUNT_LABEL, LabelValues::within(accounts.iter().cloned()))
}

fn identities(
    spiffe_ids: &[String],
    fqdns: &[String],
    hosts: &[String],
    tags: &BTreeMap<String, String>,
    people: &[String],
) -> Vec<PeerSet> {
    let mut sets = Vec::new();
    if !spiffe_ids.is_empty() {
        let patterns = spiffe_ids.iter().filter_map(|text| TextPattern::read(text));
        sets.push(PeerSet::Principals(TextSet::of(patterns)));
    }
    if !fqdns.is_empty() {
        sets.push(PeerSet::Domains(fqdns.iter().cloned().collect()));
    }
    if !hosts.is_empty() {
        sets.push(PeerSet::Hosts(hosts.iter().cloned().collect()));
    }
    if !tags.is_empty() {
        sets.push(PeerSet::Tags(tags.clone()));
    }
    if !people.is_empty() {
        sets.push(PeerSet::People(people.iter().cloned().collect()));
    }
    sets
}

fn group_identities(group: &Group) -> Vec<PeerSet> {
    identities(
        &group.spiffe_ids,
        &group.fqdns,
        &group.hosts,
        &group.tags,
        &group.iam_groups,
    )
}

fn condition(http: &[HttpMatch], grpc: &[GrpcMatch], from: Option<&str>, until: Option<&str>) -> Condition {
    let texts = |list: &[String]| {
        if list.is_empty() {
            TextSet::full()
        } else {
            TextSet::of(list.iter().filter_map(|text| TextPattern::read(text)))
        }
    };
    let requests = http.iter().map(|m| RequestBox {
        methods: (!m.methods.is_empty()).then(|| m.methods.iter().cloned().collect()),
        hosts: texts(&m.hosts),
        paths: texts(&m.paths),
    });
    let calls = grpc.iter().map(|m| RequestBox {
        methods: Some(BTreeSet::from(["POST".to_owned()])),
        hosts: TextSet::full(),
        paths: if m.methods.is_empty() {
            TextSet::of([TextPattern::Prefix(format!("/{}/", m.service))])
        } else {
            TextSet::of(
                m.methods
                    .iter()
                    .map(|name| TextPattern::Exact(format!("/{}/{name}", m.service))),
            )
        },
    });
    let boxes: Vec<RequestBox> = requests.chain(calls).collect();
    Condition {
        requests: (!boxes.is_empty()).then_some(RequestSet { boxes }),
        needs: BTreeSet::new(),
        from: from.and_then(read_time),
        until: until.and_then(read_time),
    }
}

fn addresses(texts: &[String]) -> AddressSet {
    AddressSet::from_nets(texts.iter().filter_map(|text| read_network(text).ok()))
}

/// Lowers a label selector.
pub fn selector(labels: &LabelSelector) -> Selector {
    let equal = labels
        .match_labels
        .iter()
        .map(|(key, value)| (key, LabelValues::within([value.clone()])));
    let further = labels.match_expressions.iter().map(|requirement| {
        let values = requirement.values.iter().cloned();
        let set = match requirement.operator {
            LabelOperator::In => LabelValues::within(values),
            LabelOperator::NotIn => LabelValues::not_within(values),
            LabelOperator::Exists => LabelValues::exists(),
            LabelOperator::DoesNotExist => LabelValues::missing(),
        };
        (&requirement.key, set)
    });
    equal
        .chain(further)
        .fold(Selector::full(), |all, (key, values)| all.and(key.clone(), values))
}

/// What ports mean; without ports everything, or of requests all of TCP.
fn services(ports: &[Port], requests: bool) -> ServiceSet {
    let mut set = ServiceSet::empty();
    if ports.is_empty() {
        if !requests {
            return ServiceSet::full();
        }
        set.insert(6, 0, u16::MAX);
    }
    for port in ports {
        if port.icmp_type.is_some() || port.icmpv6_type.is_some() {
            for (protocol, kind) in [(1, port.icmp_type), (58, port.icmpv6_type)] {
                if let Some(kind) = kind {
                    set.insert_icmp(protocol, kind);
                }
            }
            continue;
        }
        let (from, to) = match port.port {
            Some(from) => (from, port.end_port.unwrap_or(from)),
            None => (0, u16::MAX),
        };
        for number in port.protocol.numbers() {
            set.insert(*number, from, to);
        }
    }
    set
}

fn peers(document: &ZeroTrustPolicy, peers: &[Peer], action: Action) -> Peers {
    let own_namespace = || {
        let workloads = document.spec.subject.workloads.as_ref()?;
        if workloads.namespace.is_empty() {
            // Of a policy for many namespaces: all of them.
            let namespaces = workloads.namespace_selector.as_ref();
            return Some(namespaces.map_or_else(Selector::full, selector));
        }
        let name = LabelValues::within([workloads.namespace.clone()]);
        Some(Selector::full().and(NAMESPACE_NAME_LABEL, name))
    };
    let pods = |pods: Option<&LabelSelector>, namespaces: Option<&LabelSelector>, accounts: &[String]| {
        Some(PeerSet::Pods {
            namespaces: match namespaces {
                Some(labels) => selector(labels),
                None => own_namespace()?,
            },
            pods: with_accounts(pods.map_or_else(Selector::full, selector), accounts),
        })
    };
    let mut lowered = Peers {
        addresses: AddressSet::empty(),
        without_addresses: Vec::new(),
        workloads: Vec::new(),
    };
    for (i, peer) in peers.iter().enumerate() {
        let mut by_address: Vec<Option<AddressSet>> = Vec::new();
        if peer.any {
            by_address.push(Some(AddressSet::full()));
            lowered.workloads.push(PeerSet::Any);
        } else if let Some(cidr) = &peer.cidr {
            let set = addresses(std::slice::from_ref(cidr)).subtract(&addresses(&peer.except));
            by_address.push(Some(set.clone()));
            lowered.workloads.push(PeerSet::Addresses(set));
        } else if let Some(name) = &peer.group {
            for group in members(&document.spec.groups, name) {
                let set = (!group.cidrs.is_empty()).then(|| addresses(&group.cidrs));
                let identity = group_identities(group);
                let selects = group.pod_selector.is_some()
                    || group.namespace_selector.is_some()
                    || !group.service_accounts.is_empty();
                if selects {
                    lowered.workloads.extend(pods(
                        group.pod_selector.as_ref(),
                        group.namespace_selector.as_ref(),
                        &group.service_accounts,
                    ));
                } else if !identity.is_empty() {
                    lowered.workloads.extend(identity);
                } else {
                    lowered
                        .workloads
                        .push(PeerSet::Addresses(set.clone().unwrap_or_default()));
                }
                by_address.push(set);
            }
        } else {
            let identity = identities(&peer.spiffe_ids, &peer.fqdns, &peer.hosts, &peer.tags, &peer.iam_groups);
            if identity.is_empty() {
                lowered.workloads.extend(pods(
                    peer.pod_selector.as_ref(),
                    peer.namespace_selector.as_ref(),
                    &peer.service_accounts,
                ));
            } else {
                lowered.workloads.extend(identity);
            }
            by_address.push(None);
        }
        for set in by_address {
            match set {
                Some(set) => lowered.addresses = lowered.addresses.union(&set),
                None if lowered.without_addresses.last() == Some(&i) => {}
                None => lowered.without_addresses.push(i),
            }
        }
    }
    if action == Action::Deny && !lowered.without_addresses.is_empty() {
        lowered.addresses = AddressSet::full();
    }
    lowered
}
