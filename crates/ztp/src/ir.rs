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
//! # Meaning
//! A connection has two sides: it leaves its source (egress) and reaches its destination (ingress). A policy
//! *governs* a side when its subject has the endpoint on that side and it has rules (even none) for that
//! direction. For each side, tiers decide in ascending order: if a deny rule of any governing policy of the
//! tier matches, the side is denied; otherwise, if an allow rule matches, it is allowed; otherwise the next
//! tier decides. After the last tier, a governed side is denied by default; a side that nothing governs says
//! nothing. The connection is denied when either side is, allowed when a side is allowed and none denied, and
//! ungoverned otherwise. Replies belong to the connection. An endpoint may always talk to itself.

use crate::{
    decode::read_network,
    document::{Action, LabelOperator, LabelSelector, Mode, Peer, Port, ZeroTrustPolicy},
    sets::{AddressSet, LabelValues, Selector, ServiceSet},
};

/// The name of the "rule" that denies what no rule allows.
pub const DEFAULT_DENY: &str = "default-deny";

/// The label that every namespace carries with its own name (Kubernetes 1.21 and later).
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

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

/// Lowers a checked document.
pub fn lower(document: &ZeroTrustPolicy, version: u64) -> Policy {
    let spec = &document.spec;
    let subject = Subject {
        addresses: match &spec.subject.group {
            Some(group) => spec.groups.get(group).map(|g| addresses(&g.cidrs)).unwrap_or_default(),
            None => addresses(&spec.subject.cidrs),
        },
        workloads: spec.subject.workloads.as_ref().map(|workloads| {
            (
                workloads.namespace.clone(),
                workloads.pod_selector.as_ref().map_or_else(Selector::full, selector),
            )
        }),
    };
    let lower = |direction: Direction, i: usize, name: &str, action, from: &[Peer], ports: &[Port]| Rule {
        name: name.to_owned(),
        field: format!("spec.{}[{i}]", direction.as_str()),
        action,
        peers: peers(document, from, action),
        services: services(ports),
    };
    Policy {
        name: document.metadata.name.clone(),
        version,
        mode: spec.mode,
        tier: spec.tier,
        subject,
        ingress: spec.ingress.as_ref().map(|rules| {
            (0..)
                .zip(rules)
                .map(|(i, r)| lower(Direction::Ingress, i, &r.name, r.action, &r.from, &r.ports))
                .collect()
        }),
        egress: spec.egress.as_ref().map(|rules| {
            (0..)
                .zip(rules)
                .map(|(i, r)| lower(Direction::Egress, i, &r.name, r.action, &r.to, &r.ports))
                .collect()
        }),
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

fn services(ports: &[Port]) -> ServiceSet {
    if ports.is_empty() {
        return ServiceSet::full();
    }
    let mut set = ServiceSet::empty();
    for port in ports {
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
        document.spec.subject.workloads.as_ref().map(|workloads| {
            Selector::full().and(NAMESPACE_NAME_LABEL, LabelValues::within([workloads.namespace.clone()]))
        })
    };
    let pods = |pods: Option<&LabelSelector>, namespaces: Option<&LabelSelector>| {
        Some(PeerSet::Pods {
            namespaces: match namespaces {
                Some(labels) => selector(labels),
                None => own_namespace()?,
            },
            pods: pods.map_or_else(Selector::full, selector),
        })
    };
    let mut lowered = Peers {
        addresses: AddressSet::empty(),
        without_addresses: Vec::new(),
        workloads: Vec::new(),
    };
    for (i, peer) in peers.iter().enumerate() {
        let (by_address, by_workload) = if peer.any {
            (Some(AddressSet::full()), Some(PeerSet::Any))
        } else if let Some(cidr) = &peer.cidr {
            let set = addresses(std::slice::from_ref(cidr)).subtract(&addresses(&peer.except));
            (Some(set.clone()), Some(PeerSet::Addresses(set)))
        } else if let Some(group) = peer.group.as_ref().and_then(|name| document.spec.groups.get(name)) {
            let set = (!group.cidrs.is_empty()).then(|| addresses(&group.cidrs));
            let by_workload = if group.pod_selector.is_some() || group.namespace_selector.is_some() {
                pods(group.pod_selector.as_ref(), group.namespace_selector.as_ref())
            } else {
                Some(PeerSet::Addresses(set.clone().unwrap_or_default()))
            };
            (set, by_workload)
        } else {
            (None, pods(peer.pod_selector.as_ref(), peer.namespace_selector.as_ref()))
        };
        match by_address {
            Some(set) => lowered.addresses = lowered.addresses.union(&set),
            None => lowered.without_addresses.push(i),
        }
        lowered.workloads.extend(by_workload);
    }
    if action == Action::Deny && !lowered.without_addresses.is_empty() {
        lowered.addresses = AddressSet::full();
    }
    lowered
}
