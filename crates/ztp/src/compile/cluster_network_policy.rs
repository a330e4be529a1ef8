//! ClusterNetworkPolicy (`policy.networking.k8s.io/v1alpha2`), with NetworkPolicies for what comes from outside.
//!
//! Tiers and deny rules are said directly: for each tier, denying policies come before allowing ones by priority, and
//! last of all everything is denied. All of it is in the Admin tier, so what is accepted needs no NetworkPolicy.
//!
//! Ingress rules of ClusterNetworkPolicy match pods only, and leave traffic from outside the cluster alone. That is
//! decided by companion NetworkPolicies, which let every pod in (the Admin tier has decided about pods before) and,
//! of the addresses outside, those that the policies allow.

use std::{borrow::Borrow, collections::BTreeMap};

use serde::Serialize;

use super::{
    Compiled, CompiledFile,
    kubernetes::{kubernetes, labels},
    manifest::{LabelSelector, Metadata},
    project::{Says, project},
};
use crate::{
    document::Action,
    ir::{Direction, NAMESPACE_NAME_LABEL, PeerSet, Peers, Policy, Rule},
    sets::{AddressSet, LabelValues, PORT_PROTOCOLS, Selector, ServiceSet},
};

/// The most rules of a direction, peers of a rule, protocols of a rule and networks of a peer.
const MOST: usize = 25;
/// The last priority.
const LAST: usize = 1_000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ClusterNetworkPolicy {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    tier: &'static str,
    priority: usize,
    subject: Peer,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ingress: Vec<IngressRule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    egress: Vec<EgressRule>,
}

#[derive(Serialize)]
struct IngressRule {
    name: String,
    action: &'static str,
    from: Vec<Peer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    protocols: Vec<BTreeMap<&'static str, Protocol>>,
}

#[derive(Serialize)]
struct EgressRule {
    name: String,
    action: &'static str,
    to: Vec<Peer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    protocols: Vec<BTreeMap<&'static str, Protocol>>,
}

#[derive(Clone, Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Peer {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespaces: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<Pods>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    networks: Vec<String>,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pods {
    namespace_selector: LabelSelector,
    pod_selector: LabelSelector,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Protocol {
    destination_port: DestinationPort,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "lowercase")]
enum DestinationPort {
    Number(u16),
    Range { start: u16, end: u16 },
}

/// A rule as it is written, before it is put into a direction.
#[derive(Clone)]
struct Written {
    name: String,
    peers: Vec<Peer>,
    protocols: Vec<BTreeMap<&'static str, Protocol>>,
}

/// What one policy says at one place in the order.
struct Part<'p> {
    policy: &'p Policy,
    subject: Selector,
    namespace: &'p str,
    what: &'static str,
    action: &'static str,
    rules: [Vec<Written>; 2],
}

/// Compiles the enforced policies to ClusterNetworkPolicies and the NetworkPolicies that go with them.
///
/// `sha256` gives the hash of a policy's document for its provenance annotation, by name.
pub fn cluster_network_policy<P: Borrow<Policy>>(policies: &[P], sha256: impl Fn(&str) -> Option<String>) -> Compiled {
    let mut out = Compiled::default();
    let says = Says {
        target: "ClusterNetworkPolicy",
        ..Says::default()
    };
    let policies = project(policies, &says, &mut out);
    let mut governing: Vec<(&Policy, &str, &Selector)> = super::by_workload(&policies, "Kubernetes", &mut out);
    governing.sort_by_key(|(policy, ..)| policy.tier);
    let mut tiers: Vec<u16> = governing.iter().map(|(policy, ..)| policy.tier).collect();
    tiers.dedup();

    let mut levels: Vec<Vec<Part<'_>>> = Vec::new();
    for tier in tiers {
        for (action, what) in [(Action::Deny, "deny"), (Action::Allow, "allow")] {
            let here = governing.iter().filter(|(policy, ..)| policy.tier == tier);
            levels.push(
                here.flat_map(|(policy, namespace, pods)| parts(policy, namespace, pods, what, Some(action), &mut out))
                    .collect(),
            );
        }
    }
    levels.push(
        governing
            .iter()
            .flat_map(|(policy, namespace, pods)| parts(policy, namespace, pods, "default", None, &mut out))
            .collect(),
    );
    let parts: usize = levels.iter().map(Vec::len).sum();
    // Where there are priorities enough, each part has its own; the parts of one level agree, so they may share one.
    let shared = parts > LAST + 1;
    if shared && levels.len() > LAST + 1 {
        out.gap(
            "*",
            format!(
                "{} tiers need more than {LAST} priorities: nothing is emitted",
                levels.len() / 2
            ),
        );
        return out;
    }

    let mut documents: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut priority = 0;
    for level in levels {
        for (i, part) in (1..).zip(level) {
            let policy = part.policy;
            let manifest = write(part, priority, i, sha256(&policy.name));
            documents
                .entry(&policy.name)
                .or_default()
                .extend(serde_saphyr::to_string(&manifest));
            priority += usize::from(!shared);
        }
        priority += usize::from(shared);
    }
    for (policy, ..) in &governing {
        let Some(documents) = documents.remove(policy.name.as_str()) else {
            continue;
        };
        out.files.push(CompiledFile {
            path: format!("clusternetworkpolicy/{}.yaml", policy.name),
            content: format!("{}{}", super::provenance(policy), documents.join("---\n")),
        });
    }
    let outside = kubernetes(&outside(&governing), |name| {
        sha256(
            name.strip_suffix("-outside")
                .or(name.strip_suffix("-pods"))
                .unwrap_or(name),
        )
    });
    out.files.extend(outside.files);
    for gap in outside.gaps {
        let (policy, rest) = gap.rule.split_once('/').unwrap_or((&gap.rule, ""));
        let policy = policy.strip_suffix("-outside").unwrap_or(policy);
        let rule = if rest.is_empty() {
            policy.to_owned()
        } else {
            format!("{policy}/{rest}")
        };
        out.gap(rule, format!("from outside the cluster: {}", gap.reason));
    }
    out.files.sort_by(|a, b| a.path.cmp(&b.path));
    out
}

/// What remains of the policies for sources outside the cluster, and a policy that lets pods in.
fn outside(governing: &[(&Policy, &str, &Selector)]) -> Vec<Policy> {
    let mut all = Vec::new();
    for (policy, ..) in governing.iter().filter(|(policy, ..)| policy.ingress.is_some()) {
        let mut derived = (*policy).clone();
        derived.name = format!("{}-outside", policy.name);
        derived.egress = None;
        // Tier 0 is for the pods.
        derived.tier = policy.tier.saturating_add(1);
        for rule in derived.ingress.iter_mut().flatten() {
            let addresses = rule
                .peers
                .workloads
                .iter()
                .fold(AddressSet::empty(), |all, peer| match peer {
                    PeerSet::Any => AddressSet::full(),
                    PeerSet::Addresses(set) => all.union(set),
                    _ => all,
                });
            rule.peers.workloads = vec![PeerSet::Addresses(addresses)];
        }
        let mut pods = derived.clone();
        pods.name = format!("{}-pods", policy.name);
        pods.tier = 0;
        pods.ingress = Some(vec![Rule {
            name: "decided-by-cluster-network-policies".to_owned(),
            field: "spec.ingress".to_owned(),
            action: Action::Allow,
            peers: Peers {
                addresses: AddressSet::empty(),
                without_addresses: Vec::new(),
                workloads: vec![PeerSet::Pods {
                    namespaces: Selector::full(),
                    pods: Selector::full(),
                }],
            },
            services: ServiceSet::full(),
            condition: Default::default(),
        }]);
        all.extend([derived, pods]);
    }
    all
}

/// The rules of one action, or for none the end: everything is denied. In parts where there are more than fit.
fn parts<'p>(
    policy: &'p Policy,
    namespace: &'p str,
    pods: &Selector,
    what: &'static str,
    action: Option<Action>,
    out: &mut Compiled,
) -> Vec<Part<'p>> {
    let mut rules = [Vec::new(), Vec::new()];
    for (written, direction) in rules.iter_mut().zip(Direction::BOTH) {
        let Some(of) = policy.rules(direction) else { continue };
        match action {
            Some(action) => {
                for rule in of.iter().filter(|rule| rule.action == action) {
                    written.extend(write_rule(policy, rule, direction, out));
                }
            }
            None => written.push(Written {
                name: crate::ir::DEFAULT_DENY.to_owned(),
                peers: everyone(direction),
                protocols: Vec::new(),
            }),
        }
    }
    let count = rules.iter().map(|r| r.len().div_ceil(MOST)).max().unwrap_or_default();
    let mut parts = Vec::new();
    for subject in pods.writable() {
        for i in 0..count {
            let slice = |rules: &Vec<Written>| rules.chunks(MOST).nth(i).map(<[Written]>::to_vec).unwrap_or_default();
            parts.push(Part {
                policy,
                subject: subject.clone(),
                namespace,
                what,
                action: if action == Some(Action::Allow) {
                    "Accept"
                } else {
                    "Deny"
                },
                rules: [slice(&rules[0]), slice(&rules[1])],
            });
        }
    }
    parts
}

fn everyone(direction: Direction) -> Vec<Peer> {
    let mut peers = vec![Peer {
        namespaces: Some(LabelSelector::default()),
        ..Peer::default()
    }];
    if direction == Direction::Egress {
        peers.push(Peer {
            networks: vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()],
            ..Peer::default()
        });
    }
    peers
}

fn write_rule(policy: &Policy, rule: &Rule, direction: Direction, out: &mut Compiled) -> Vec<Written> {
    let name = format!("{}/{}", policy.name, rule.name);
    let denies = rule.action == Action::Deny;
    let mut peers = Vec::new();
    for peer in &rule.peers.workloads {
        match peer {
            PeerSet::Any => peers.extend(everyone(direction)),
            // What is told by identity was taken out by the projection.
            PeerSet::Principals(_)
            | PeerSet::Domains(_)
            | PeerSet::Hosts(_)
            | PeerSet::Tags(_)
            | PeerSet::People(_) => {}
            PeerSet::Addresses(set) if direction == Direction::Egress => {
                let nets: Vec<String> = set.to_nets().iter().map(ToString::to_string).collect();
                peers.extend(nets.chunks(MOST).map(|nets| Peer {
                    networks: nets.to_vec(),
                    ..Peer::default()
                }));
            }
            PeerSet::Addresses(set) if set.is_empty() => {}
            PeerSet::Addresses(_) if denies => {
                out.gap(
                    &name,
                    "ingress rules of ClusterNetworkPolicy cannot name addresses: every pod is denied, as it may have one of them",
                );
                peers.extend(everyone(direction));
            }
            PeerSet::Addresses(_) => out.gap(
                &name,
                "ingress rules of ClusterNetworkPolicy cannot name addresses: pods that have one of them are not allowed",
            ),
            PeerSet::Pods { namespaces, pods } => {
                if namespaces.is_empty() || pods.is_empty() {
                    continue;
                }
                for namespaces in namespaces.writable() {
                    for pods in pods.writable() {
                        peers.push(Peer {
                            pods: Some(Pods {
                                namespace_selector: labels(&namespaces),
                                pod_selector: labels(&pods),
                            }),
                            ..Peer::default()
                        });
                    }
                }
            }
        }
    }
    let mut protocols = Vec::new();
    let mut all = rule.services.is_full();
    if !all && rule.services.portless().next().is_some() {
        let reason = if denies {
            all = true;
            "ClusterNetworkPolicy names only TCP, UDP and SCTP: every protocol is denied"
        } else {
            "ClusterNetworkPolicy names only TCP, UDP and SCTP: other protocols are not allowed"
        };
        out.gap(&name, reason);
    }
    if !all {
        for (number, word) in PORT_PROTOCOLS.into_iter().zip(["tcp", "udp", "sctp"]) {
            for (from, to) in rule.services.ports(number).map(|p| p.ranges()).unwrap_or_default() {
                // Nothing can listen on port 0, and the API does not take it.
                let from = (*from).max(1);
                if from > *to {
                    continue;
                }
                let destination_port = if from == *to {
                    DestinationPort::Number(from)
                } else {
                    DestinationPort::Range { start: from, end: *to }
                };
                protocols.push(BTreeMap::from([(word, Protocol { destination_port })]));
            }
        }
        if protocols.is_empty() {
            return Vec::new();
        }
    }
    let protocols: Vec<_> = if all {
        vec![Vec::new()]
    } else {
        protocols.chunks(MOST).map(<[_]>::to_vec).collect()
    };
    let mut written = Vec::new();
    for peers in peers.chunks(MOST) {
        for protocols in &protocols {
            written.push(Written {
                name: rule.name.clone(),
                peers: peers.to_vec(),
                protocols: protocols.clone(),
            });
        }
    }
    written
}

fn write(part: Part<'_>, priority: usize, number: usize, sha256: Option<String>) -> ClusterNetworkPolicy {
    let policy = part.policy;
    let [egress, ingress] = part.rules;
    ClusterNetworkPolicy {
        api_version: "policy.networking.k8s.io/v1alpha2",
        kind: "ClusterNetworkPolicy",
        metadata: Metadata {
            name: format!("garrison-{}-{}-{}-{number}", policy.name, policy.tier, part.what),
            namespace: None,
            labels: super::owned(policy),
            annotations: super::annotations(policy, sha256),
        },
        spec: Spec {
            tier: "Admin",
            priority,
            subject: Peer {
                pods: Some(Pods {
                    namespace_selector: labels(
                        &Selector::full().and(NAMESPACE_NAME_LABEL, LabelValues::within([part.namespace.to_owned()])),
                    ),
                    pod_selector: labels(&part.subject),
                }),
                ..Peer::default()
            },
            ingress: ingress
                .into_iter()
                .map(|rule| IngressRule {
                    name: rule.name,
                    action: part.action,
                    from: rule.peers,
                    protocols: rule.protocols,
                })
                .collect(),
            egress: egress
                .into_iter()
                .map(|rule| EgressRule {
                    name: rule.name,
                    action: part.action,
                    to: rule.peers,
                    protocols: rule.protocols,
                })
                .collect(),
        },
    }
}
