//! What an importer says: predicates, rules, and the order in which they decide.

use std::{fmt, net::IpAddr};

use crate::{
    ir::Direction,
    sets::{AddressSet, Labels, Selector, ServiceSet},
};

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It passes this plane.
    Accept,
    /// It is denied.
    Deny,
    /// The next stage decides.
    Pass,
}

/// A predicate on endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// Everyone.
    Any,
    /// Everyone outside the cluster.
    Outside,
    /// By address. A pod or node matches by the addresses that the manifests tell.
    Addresses(Vec<ipnet::IpNet>),
    /// Pods by the labels of their namespace and their own.
    Pods {
        /// The namespaces.
        namespaces: Selector,
        /// The pods in them.
        pods: Selector,
        /// Whether pods on their node's network belong to it too.
        hosts: bool,
    },
    /// Nodes by their labels.
    Nodes(Selector),
    /// Names in DNS: `example.com`, or `*.example.com` for everything below.
    Domains(Vec<String>),
    /// All of these.
    All(Vec<Peer>),
    /// Any of these.
    Some(Vec<Peer>),
    /// Everyone else.
    Not(Box<Peer>),
}

impl Peer {
    /// Every pod, those on their node's network included.
    pub fn pods() -> Self {
        Self::Pods {
            namespaces: Selector::full(),
            pods: Selector::full(),
            hosts: true,
        }
    }

    /// Whether an endpoint is one of them.
    pub fn matches(&self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Any => true,
            Self::Outside => matches!(endpoint.identity, Identity::External | Identity::Domain { .. }),
            Self::Addresses(nets) => match &endpoint.identity {
                // A name's addresses are not known: only all of a family surely has them.
                Identity::Domain { .. } => nets.iter().any(|net| net.prefix_len() == 0),
                Identity::External => endpoint
                    .addresses
                    .first()
                    .is_some_and(|a| nets.iter().any(|net| net.contains(a))),
                _ => endpoint
                    .addresses
                    .iter()
                    .any(|a| nets.iter().any(|net| net.contains(a))),
            },
            Self::Pods {
                namespaces,
                pods,
                hosts,
            } => match &endpoint.identity {
                Identity::Workload { host_network, .. } => {
                    (*hosts || !host_network)
                        && namespaces.matches(&endpoint.namespace_labels)
                        && pods.matches(&endpoint.labels)
                }
                Identity::IngressController => {
                    namespaces.matches(&endpoint.namespace_labels) && pods.matches(&endpoint.labels)
                }
                _ => false,
            },
            Self::Nodes(selector) => {
                matches!(endpoint.identity, Identity::Node { .. }) && selector.matches(&endpoint.labels)
            }
            Self::Domains(patterns) => match &endpoint.identity {
                Identity::Domain { name } => patterns.iter().any(|pattern| domain_within(name, pattern)),
                _ => false,
            },
            Self::All(peers) => peers.iter().all(|peer| peer.matches(endpoint)),
            Self::Some(peers) => peers.iter().any(|peer| peer.matches(endpoint)),
            Self::Not(peer) => !peer.matches(endpoint),
        }
    }

    /// Calls `visit` with every predicate that this one is made of, itself included.
    pub(super) fn visit<'p>(&'p self, visit: &mut impl FnMut(&'p Peer)) {
        visit(self);
        match self {
            Self::All(peers) | Self::Some(peers) => peers.iter().for_each(|peer| peer.visit(visit)),
            Self::Not(peer) => peer.visit(visit),
            _ => {}
        }
    }
}

/// Whether everything that `name` means is meant by `pattern`: `*.a.b` is everything below `a.b`.
pub(crate) fn domain_within(name: &str, pattern: &str) -> bool {
    name == pattern
        || pattern
            .strip_prefix('*')
            .is_some_and(|suffix| name.len() > suffix.len() && name.ends_with(suffix))
}

/// Protocols and ports, by number and by the names that destinations give them.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Ports {
    /// By number.
    pub numbers: ServiceSet,
    /// By name, of one protocol or of any.
    pub named: Vec<(Option<u8>, String)>,
}

impl Ports {
    /// Every protocol and port.
    pub fn all() -> Self {
        Self {
            numbers: ServiceSet::full(),
            named: Vec::new(),
        }
    }

    /// What they are at a destination.
    pub fn at(&self, destination: &Endpoint) -> ServiceSet {
        let mut set = self.numbers.clone();
        for (protocol, name) in &self.named {
            for port in &destination.ports {
                if port.name == *name && protocol.is_none_or(|p| p == port.protocol) {
                    set.insert(port.protocol, port.number, port.number);
                }
            }
        }
        set
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name; empty when the format has none.
    pub name: String,
    /// Its place in the document, for example `spec.ingress[0]`.
    pub field: String,
    /// What it does with what it matches.
    pub action: Action,
    /// The other side; any one of these.
    pub peers: Vec<Peer>,
    /// Protocols and ports of the destination.
    pub ports: Ports,
}

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its kind, for example `NetworkPolicy`.
    pub kind: String,
    /// Its namespace; empty when it has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The file that it is in.
    pub file: String,
    /// The line at which it starts.
    pub line: u32,
    /// Whom it governs.
    pub subject: Peer,
    /// Rules for what the subject opens; `None` when it says nothing about that.
    pub egress: Option<Vec<Rule>>,
    /// Rules for what reaches the subject; `None` when it says nothing about that.
    pub ingress: Option<Vec<Rule>>,
}

impl Policy {
    /// The rules of a direction; `None` when the policy says nothing about it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Egress => self.egress.as_deref(),
            Direction::Ingress => self.ingress.as_deref(),
        }
    }
}

impl fmt::Display for Policy {
    /// `NetworkPolicy shop/database`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// In which order the rules of a stage decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Policies in order, and their rules in order.
    InOrder,
    /// Deny rules first, of any policy.
    DenyFirst,
}

/// What becomes of what no rule of a stage matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// The next stage decides.
    Next,
    /// It is denied where a policy of the stage governs the endpoint.
    Deny,
}

/// Policies that decide together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// What it is called, for explanations.
    pub name: String,
    /// In which order its rules decide.
    pub order: Order,
    /// What becomes of the rest.
    pub rest: Rest,
    /// Its policies.
    pub policies: Vec<Policy>,
}

/// Stages that decide one after the other; a connection must pass every plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plane {
    /// What it is called, for explanations.
    pub name: String,
    /// Its stages.
    pub stages: Vec<Stage>,
}

/// One network: the cluster's own, or a secondary one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Empty for the cluster's own.
    pub name: String,
    /// What decides on it.
    pub planes: Vec<Plane>,
}

/// Endpoints and everything that decides between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// The networks, the cluster's own first.
    pub networks: Vec<Network>,
    /// Pods, nodes, names and the ingress controller. Addresses outside are added by [`super::Reach`].
    pub endpoints: Vec<Endpoint>,
    /// What the ingress controller is asked to open.
    pub exposed: Vec<Exposed>,
}

/// Pods that an `Ingress`, or the like, opens to whoever reaches the ingress controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// The resource that opens them, for example `Ingress shop/front`.
    pub by: String,
    /// The pods.
    pub pods: Peer,
    /// Their ports.
    pub ports: Ports,
}

impl Program {
    /// Every policy.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.networks
            .iter()
            .flat_map(|network| &network.planes)
            .flat_map(|plane| &plane.stages)
            .flat_map(|stage| &stage.policies)
    }

    /// Where predicates begin and end among addresses.
    pub(super) fn nets(&self) -> Vec<ipnet::IpNet> {
        let mut nets = Vec::new();
        let mut visit = |peer: &Peer| {
            if let Peer::Addresses(of) = peer {
                nets.extend_from_slice(of);
            }
        };
        for policy in self.policies() {
            policy.subject.visit(&mut visit);
            for direction in Direction::BOTH {
                for rule in policy.rules(direction).unwrap_or_default() {
                    rule.peers.iter().for_each(|peer| peer.visit(&mut visit));
                }
            }
        }
        nets.sort_unstable();
        nets.dedup();
        nets
    }
}

/// A port that a pod gives a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// The IP protocol.
    pub protocol: u8,
    /// The number.
    pub number: u16,
}

/// Who an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// The pods of a workload that are alike.
    Workload {
        /// The namespace.
        namespace: String,
        /// The workload's name.
        name: String,
        /// The workload's kind, for example `Deployment`.
        kind: String,
        /// Which of the workload's pods, where they are not alike.
        pod: String,
        /// Whether the pods are on their node's network.
        host_network: bool,
    },
    /// A node.
    Node {
        /// Its name.
        name: String,
    },
    /// A name in DNS, outside the cluster.
    Domain {
        /// The name, perhaps `*.` and a name.
        name: String,
    },
    /// Whatever carries out `Ingress` and `Route` resources: a pod of a namespace that is not known.
    IngressController,
    /// Addresses outside the cluster.
    External,
}

/// Someone who opens or takes connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Who it is.
    pub identity: Identity,
    /// Labels of its namespace.
    pub namespace_labels: Labels,
    /// Its own labels.
    pub labels: Labels,
    /// Its addresses, as far as they are known; of addresses outside, one of them, which stands for all.
    pub addresses: Vec<IpAddr>,
    /// Its named ports.
    pub ports: Vec<NamedPort>,
    /// The secondary networks that it is on, and its addresses there.
    pub networks: Vec<(String, Vec<IpAddr>)>,
    /// Of addresses outside, all of them.
    pub range: AddressSet,
}
