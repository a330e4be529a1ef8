//! The answer as a list and as a graph.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
};

use serde::{Serialize, ser::SerializeMap as _};

use super::{classes::Reach, program::Identity};
use crate::sets::{AddressSet, PORT_PROTOCOLS, ServiceSet};

/// One end of a connection, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// Pods that are alike: a workload, or single pods of one.
    Workload {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
        /// The kind, for example `Deployment`.
        kind: String,
    },
    /// A node.
    Node(String),
    /// A name in DNS.
    Domain(String),
    /// Whatever carries out `Ingress` resources.
    IngressController,
    /// Addresses outside, IPv4 and IPv6, as closed ranges.
    External(Vec<(u32, u32)>, Vec<(u128, u128)>),
}

impl Side {
    fn external(set: &AddressSet) -> Self {
        Self::External(set.v4.ranges().to_vec(), set.v6.ranges().to_vec())
    }

    /// The addresses of [`Side::External`].
    pub fn addresses(&self) -> Option<AddressSet> {
        match self {
            Self::External(v4, v6) => Some(AddressSet {
                v4: crate::sets::IntervalSet::from_ranges(v4.iter().copied()),
                v6: crate::sets::IntervalSet::from_ranges(v6.iter().copied()),
            }),
            _ => None,
        }
    }
}

impl fmt::Display for Side {
    /// `shop/web[Deployment]`, `node worker-1`, `example.com`, `{ingress-controller}`, or networks.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload { namespace, name, kind } => write!(f, "{namespace}/{name}[{kind}]"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::Domain(name) => f.write_str(name),
            Self::IngressController => f.write_str("{ingress-controller}"),
            Self::External(..) => {
                let set = self.addresses().unwrap_or_default();
                if set.is_full() {
                    return f.write_str("every address outside");
                }
                // Whichever is shorter: the networks, or those that are missing.
                let nets = set.to_nets();
                let rest = AddressSet::full().subtract(&set).to_nets();
                let (text, shown) = if rest.len() < nets.len() {
                    ("every address outside but ", rest)
                } else {
                    ("", nets)
                };
                f.write_str(text)?;
                for (i, net) in shown.iter().enumerate() {
                    write!(f, "{}{net}", if i == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
        }
    }
}

impl Serialize for Side {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Self::Workload { namespace, name, kind } => {
                map.serialize_entry("namespace", namespace)?;
                map.serialize_entry("name", name)?;
                map.serialize_entry("kind", kind)?;
            }
            Self::Node(name) => map.serialize_entry("node", name)?,
            Self::Domain(name) => map.serialize_entry("domain", name)?,
            Self::IngressController => map.serialize_entry("ingressController", &true)?,
            Self::External(..) => {
                let nets = self.addresses().unwrap_or_default().to_nets();
                let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
                map.serialize_entry("cidrs", &nets)?;
            }
        }
        map.end()
    }
}

/// What one end may open to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Connection {
    /// The network; empty for the cluster's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// Who opens it.
    pub source: Side,
    /// To whom.
    pub destination: Side,
    /// Protocols and ports, never empty.
    #[serde(serialize_with = "services")]
    pub services: ServiceSet,
}

pub(super) fn services<S: serde::Serializer>(set: &ServiceSet, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Ported {
        protocol: String,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        ports: Vec<[u16; 2]>,
    }
    let mut list = Vec::new();
    for protocol in PORT_PROTOCOLS {
        let ports = set.ports(protocol).map(|p| p.ranges()).unwrap_or_default();
        if !ports.is_empty() {
            list.push(Ported {
                protocol: crate::sets::protocol_name(protocol),
                ports: ports.iter().map(|(a, b)| [*a, *b]).collect(),
            });
        }
    }
    if set.has_all_portless() {
        list.push(Ported {
            protocol: "others".to_owned(),
            ports: Vec::new(),
        });
    } else {
        list.extend(set.portless().map(|protocol| Ported {
            protocol: crate::sets::protocol_name(protocol),
            ports: Vec::new(),
        }));
    }
    list.serialize(serializer)
}

/// Endpoints with the names under which they are shown.
pub(super) fn sides(
    endpoints: &[super::Endpoint],
    group: impl Fn(usize) -> Option<usize>,
) -> BTreeMap<usize, BTreeSet<Side>> {
    let mut groups_of: BTreeMap<(&str, &str, &str), BTreeSet<usize>> = BTreeMap::new();
    for (i, endpoint) in endpoints.iter().enumerate() {
        if let (
            Identity::Workload {
                namespace, name, kind, ..
            },
            Some(group),
        ) = (&endpoint.identity, group(i))
        {
            groups_of.entry((namespace, name, kind)).or_default().insert(group);
        }
    }
    let mut sides: BTreeMap<usize, BTreeSet<Side>> = BTreeMap::new();
    let mut outside: BTreeMap<usize, AddressSet> = BTreeMap::new();
    for (i, endpoint) in endpoints.iter().enumerate() {
        let Some(group) = group(i) else { continue };
        let side = match &endpoint.identity {
            Identity::Workload {
                namespace,
                name,
                kind,
                pod,
                ..
            } => {
                let alike = groups_of
                    .get(&(namespace.as_str(), name.as_str(), kind.as_str()))
                    .is_some_and(|groups| groups.len() == 1);
                Side::Workload {
                    namespace: namespace.clone(),
                    name: if alike { name.clone() } else { pod.clone() },
                    kind: if alike { kind.clone() } else { "Pod".to_owned() },
                }
            }
            Identity::Node { name } => Side::Node(name.clone()),
            Identity::Domain { name } => Side::Domain(name.clone()),
            Identity::IngressController => Side::IngressController,
            Identity::External => {
                let set = outside.entry(group).or_default();
                *set = set.union(&endpoint.range);
                continue;
            }
        };
        sides.entry(group).or_default().insert(side);
    }
    for (group, set) in outside {
        sides.entry(group).or_default().insert(Side::external(&set));
    }
    sides
}

/// Whether a pair is shown at all: pairs without a pod, and what only the ingress controller does, are not.
pub(super) fn shown(source: &Side, destination: &Side, within: bool) -> bool {
    let pod = |side: &Side| matches!(side, Side::Workload { .. });
    (pod(source) || pod(destination))
        && !matches!(source, Side::Domain(_) | Side::IngressController)
        && *destination != Side::IngressController
        && (within || source != destination)
}

impl Reach<'_> {
    /// Every connection that is possible between two ends, one of which is a pod, in order. Connections among the
    /// pods of one workload are left out unless asked for with `within`.
    pub fn connections(&self, within: bool) -> Vec<Connection> {
        let mut all = Vec::new();
        for on in &self.networks {
            let sides = sides(&self.endpoints, |i| on.class_of[i]);
            for (a, sources) in &sides {
                for (b, destinations) in &sides {
                    let services = on.allowed(*a, *b);
                    if services.is_empty() {
                        continue;
                    }
                    for source in sources {
                        for destination in destinations {
                            if shown(source, destination, within) {
                                all.push(Connection {
                                    network: on.network.name.clone(),
                                    source: source.clone(),
                                    destination: destination.clone(),
                                    services: services.clone(),
                                });
                            }
                        }
                    }
                }
            }
        }
        all.extend(self.exposed());
        all.sort_by(|a, b| (&a.network, &a.source, &a.destination).cmp(&(&b.network, &b.source, &b.destination)));
        all
    }

    /// What the ingress controller is asked to open, and may.
    fn exposed(&self) -> Vec<Connection> {
        let controller = self
            .endpoints
            .iter()
            .position(|e| e.identity == Identity::IngressController);
        let (Some(on), Some(controller)) = (self.networks.first(), controller) else {
            return Vec::new();
        };
        let sides = sides(&self.endpoints, |i| on.class_of[i]);
        let mut found: BTreeMap<Side, ServiceSet> = BTreeMap::new();
        for exposed in &self.program.exposed {
            for (i, endpoint) in self.endpoints.iter().enumerate() {
                if !exposed.pods.matches(endpoint) {
                    continue;
                }
                let services = self.allowed(0, controller, i).intersect(&exposed.ports.at(endpoint));
                let Some(named) = on.class_of[i].and_then(|class| sides.get(&class)) else {
                    continue;
                };
                let Identity::Workload {
                    namespace, name, pod, ..
                } = &endpoint.identity
                else {
                    continue;
                };
                for side in named {
                    if let Side::Workload {
                        namespace: of,
                        name: shown,
                        ..
                    } = side
                        && of == namespace
                        && (shown == name || shown == pod)
                        && !services.is_empty()
                    {
                        let all = found.entry(side.clone()).or_default();
                        *all = all.union(&services);
                    }
                }
            }
        }
        found
            .into_iter()
            .map(|(destination, services)| Connection {
                network: String::new(),
                source: Side::IngressController,
                destination,
                services,
            })
            .collect()
    }
}

/// The connections as a graph in Graphviz's language.
pub fn dot(connections: &[Connection]) -> String {
    let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut nodes: BTreeMap<&str, BTreeSet<&Side>> = BTreeMap::new();
    for connection in connections {
        for side in [&connection.source, &connection.destination] {
            let namespace = match side {
                Side::Workload { namespace, .. } => namespace.as_str(),
                _ => "",
            };
            nodes.entry(namespace).or_default().insert(side);
        }
    }
    let mut out = String::from("digraph connections {\n  rankdir=LR;\n  node [shape=box];\n");
    for (i, (namespace, sides)) in nodes.iter().enumerate() {
        let inner = if namespace.is_empty() {
            "  "
        } else {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "  subgraph cluster_{i} {{\n    label={};", quote(namespace));
            "    "
        };
        for side in sides {
            let label = match side {
                Side::Workload { name, kind, .. } => format!("{name}\n{kind}"),
                other => other.to_string(),
            };
            let shape = if namespace.is_empty() { ", shape=ellipse" } else { "" };
            let _ = writeln!(
                out,
                "{inner}{} [label={}{shape}];",
                quote(&side.to_string()),
                quote(&label).replace('\n', "\\n")
            );
        }
        if !namespace.is_empty() {
            out.push_str("  }\n");
        }
    }
    for connection in connections {
        let network = if connection.network.is_empty() {
            String::new()
        } else {
            format!(" on {}", connection.network)
        };
        let _ = writeln!(
            out,
            "  {} -> {} [label={}];",
            quote(&connection.source.to_string()),
            quote(&connection.destination.to_string()),
            quote(&format!("{}{network}", connection.services))
        );
    }
    out.push_str("}\n");
    out
}
