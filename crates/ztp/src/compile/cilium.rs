//! CiliumNetworkPolicy, and CiliumClusterwideNetworkPolicy for subjects whose namespaces are told by label (`cilium.io/v2`).
//!
//! Cilium has deny rules, but no tiers: a deny rule is stronger than every allow rule. So a deny rule is written as
//! such where no earlier tier may allow what it denies; elsewhere it is cut out of the allow rules, as for
//! NetworkPolicy. Rules by address do not match pods, whatever address they have.

use std::borrow::Borrow;

use serde::Serialize;

use super::{
    Compiled, CompiledFile,
    kubernetes::{Term, cut, index, labels},
    manifest::{LabelSelector, Metadata},
    project::{Says, project},
    scope::{self, Place, by_scope, stands_first},
};
use crate::{
    document::Action,
    ir::{Direction, NAMESPACE_NAME_LABEL, PeerSet, Policy, Rule, SERVICE_ACCOUNT_LABEL},
    sets::{LabelValues, PORT_PROTOCOLS, Selector, ServiceSet},
};

/// The label that Cilium gives a pod with its namespace's name.
const NAMESPACE: &str = "k8s:io.kubernetes.pod.namespace";
/// Before the keys of a namespace's labels, on its pods.
const NAMESPACE_LABELS: &str = "k8s:io.cilium.k8s.namespace.labels.";
/// The label that Cilium gives a pod with its service account's name.
const ACCOUNT: &str = "k8s:io.cilium.k8s.policy.serviceaccount";
/// The most ports of one `toPorts` entry.
const PORTS: usize = 40;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CiliumNetworkPolicy {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    description: String,
    endpoint_selector: LabelSelector,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress: Option<Vec<IngressRule>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ingress_deny: Vec<IngressRule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<Vec<EgressRule>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    egress_deny: Vec<EgressRule>,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct IngressRule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    from_endpoints: Vec<LabelSelector>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    from_entities: Vec<&'static str>,
    #[serde(rename = "fromCIDR", skip_serializing_if = "Vec::is_empty")]
    from_cidr: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    to_ports: Vec<PortRule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    icmps: Vec<Icmp>,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct EgressRule {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    to_endpoints: Vec<LabelSelector>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    to_entities: Vec<&'static str>,
    #[serde(rename = "toCIDR", skip_serializing_if = "Vec::is_empty")]
    to_cidr: Vec<String>,
    #[serde(rename = "toFQDNs", skip_serializing_if = "Vec::is_empty")]
    to_fqdns: Vec<Fqdn>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    to_ports: Vec<PortRule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    icmps: Vec<Icmp>,
}

#[derive(Clone, Serialize)]
struct PortRule {
    ports: Vec<Port>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<Layer7>,
}

#[derive(Clone, Serialize)]
struct Layer7 {
    http: Vec<super::cilium_http::Http>,
}

#[derive(Clone, Serialize)]
struct Icmp {
    fields: Vec<IcmpField>,
}

#[derive(Clone, Serialize)]
struct IcmpField {
    family: &'static str,
    #[serde(rename = "type")]
    kind: u16,
}

#[derive(Clone, Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Fqdn {
    #[serde(skip_serializing_if = "Option::is_none")]
    match_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    match_pattern: Option<String>,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    port: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_port: Option<u16>,
    protocol: &'static str,
}

/// A rule before it is put into a direction.
#[derive(Clone, Default)]
struct Written {
    endpoints: Vec<LabelSelector>,
    entities: Vec<&'static str>,
    cidr: Vec<String>,
    fqdns: Vec<Fqdn>,
    ports: Vec<PortRule>,
    icmps: Vec<Icmp>,
}

impl From<Written> for IngressRule {
    fn from(rule: Written) -> Self {
        Self {
            from_endpoints: rule.endpoints,
            from_entities: rule.entities,
            from_cidr: rule.cidr,
            to_ports: rule.ports,
            icmps: rule.icmps,
        }
    }
}

impl From<Written> for EgressRule {
    fn from(rule: Written) -> Self {
        Self {
            to_endpoints: rule.endpoints,
            to_entities: rule.entities,
            to_cidr: rule.cidr,
            to_fqdns: rule.fqdns,
            to_ports: rule.ports,
            icmps: rule.icmps,
        }
    }
}

/// Compiles the enforced policies to CiliumNetworkPolicies, one file a policy.
///
/// `sha256` gives the hash of a policy's document for its provenance annotation, by name.
pub fn cilium<P: Borrow<Policy>>(policies: &[P], sha256: impl Fn(&str) -> Option<String>) -> Compiled {
    let mut out = Compiled::default();
    let says = Says {
        target: "Cilium",
        icmp_types: true,
        accounts: true,
        clusterwide: true,
        domains: true,
        requests: true,
        ..Says::default()
    };
    let policies = project(policies, &says, &mut out);
    let policies: Vec<&Policy> = policies.iter().collect();
    // A policy of one namespace meets those of the same, and those of many.
    let mut near = super::by_namespace(&policies);
    let of_many = policies.iter().filter(|p| p.subject.workloads.is_none());
    let of_many: Vec<&Policy> = of_many.copied().filter(|p| p.subject.cluster.is_some()).collect();
    for near in near.values_mut() {
        near.extend(&of_many);
    }
    for (policy, place, _) in by_scope(&policies, "Cilium", &mut out) {
        let near = match place {
            Place::Namespace(namespace) => near.get(namespace).map(Vec::as_slice).unwrap_or_default(),
            Place::Namespaces(_) => policies.as_slice(),
        };
        // A policy of many namespaces is held against everyone who may be in one of them.
        let folded = |denier: &Policy, direction| {
            let near = match denier.subject.workloads {
                Some(_) => near,
                None => policies.as_slice(),
            };
            !stands_first(denier, direction, near)
        };
        let pieces = cut(policy, near, folded, &mut out);
        let selectors: Vec<(Selector, [Vec<Term<'_>>; 2])> = pieces
            .into_iter()
            .flat_map(|piece| {
                let pods = governed(&piece.subject, place);
                let pods = if pods.is_empty() { Vec::new() } else { pods.writable() };
                pods.into_iter().map(move |pods| (pods, piece.terms.clone()))
            })
            .collect();
        let several = selectors.len() > 1;
        let mut documents = Vec::new();
        for (i, (pods, terms)) in (1..).zip(selectors) {
            let mut annotations = super::annotations(policy, sha256(&policy.name));
            let mut side = |direction: Direction| {
                let rules = policy.rules(direction)?;
                let mut allow = Vec::new();
                for term in &terms[index(direction)] {
                    let (rule, peer) = (term.rule, &term.peer);
                    allow.extend(write(policy, rule, peer, &term.services, &mut out));
                }
                let mut deny = Vec::new();
                for rule in rules.iter().filter(|rule| rule.action == Action::Deny) {
                    if folded(policy, direction) {
                        continue;
                    }
                    for peer in &rule.peers.workloads {
                        deny.extend(write(policy, rule, peer, &rule.services, &mut out));
                    }
                }
                for (n, rule) in rules.iter().enumerate() {
                    annotations.insert(
                        format!("garrison.dev/{}.{n}", direction.as_str()),
                        format!("{} ({})", rule.name, rule.field),
                    );
                }
                // A rule that selects nothing makes everything denied that no other rule allows.
                if allow.is_empty() {
                    allow.push(Written::default());
                }
                Some((allow, deny))
            };
            let (egress, ingress) = (side(Direction::Egress), side(Direction::Ingress));
            let (egress, egress_deny) = egress.unzip();
            let (ingress, ingress_deny) = ingress.unzip();
            let manifest = CiliumNetworkPolicy {
                api_version: "cilium.io/v2",
                kind: match place {
                    Place::Namespace(_) => "CiliumNetworkPolicy",
                    Place::Namespaces(_) => "CiliumClusterwideNetworkPolicy",
                },
                metadata: Metadata {
                    name: if several {
                        format!("garrison-{}-{i}", policy.name)
                    } else {
                        format!("garrison-{}", policy.name)
                    },
                    namespace: match place {
                        Place::Namespace(namespace) => Some(namespace.to_owned()),
                        Place::Namespaces(_) => None,
                    },
                    labels: super::owned(policy),
                    annotations,
                },
                spec: Spec {
                    description: format!("ZeroTrustPolicy {}", policy.reference()),
                    endpoint_selector: labels(&pods),
                    ingress: ingress.map(|rules| rules.into_iter().map(Into::into).collect()),
                    ingress_deny: ingress_deny.into_iter().flatten().map(Into::into).collect(),
                    egress: egress.map(|rules| rules.into_iter().map(Into::into).collect()),
                    egress_deny: egress_deny.into_iter().flatten().map(Into::into).collect(),
                },
            };
            documents.extend(serde_saphyr::to_string(&manifest));
        }
        out.files.push(CompiledFile {
            path: match place {
                Place::Namespace(namespace) => format!("ciliumnetworkpolicy/{namespace}/{}.yaml", policy.name),
                Place::Namespaces(_) => format!("ciliumclusterwidenetworkpolicy/{}.yaml", policy.name),
            },
            content: format!("{}{}", super::provenance(policy), documents.join("---\n")),
        });
    }
    out.files.sort_by(|a, b| a.path.cmp(&b.path));
    out
}

fn write(policy: &Policy, rule: &Rule, peer: &PeerSet, services: &ServiceSet, out: &mut Compiled) -> Vec<Written> {
    let name = format!("{}/{}", policy.name, rule.name);
    let denies = rule.action == Action::Deny;
    let mut written = Vec::new();
    match peer {
        PeerSet::Any => written.push(Written {
            entities: vec!["all"],
            ..Written::default()
        }),
        PeerSet::Addresses(set) if set.is_empty() => {}
        PeerSet::Addresses(set) => {
            written.push(Written {
                cidr: set.to_nets().iter().map(ToString::to_string).collect(),
                ..Written::default()
            });
            if denies {
                out.gap(
                    &name,
                    "Cilium does not match pods by address: every pod is denied, as it may have one of them",
                );
                written.push(Written {
                    endpoints: vec![labels(&peers(&Selector::full(), &Selector::full()))],
                    ..Written::default()
                });
            } else {
                out.gap(
                    &name,
                    "Cilium does not match pods by address: pods that have one of them are not allowed",
                );
            }
        }
        PeerSet::Principals(_) | PeerSet::Hosts(_) | PeerSet::Tags(_) | PeerSet::People(_) => {}
        PeerSet::Domains(names) => {
            let fqdns = names.iter().map(|name| match name.starts_with('*') {
                true => Fqdn {
                    match_pattern: Some(name.clone()),
                    ..Fqdn::default()
                },
                false => Fqdn {
                    match_name: Some(name.clone()),
                    ..Fqdn::default()
                },
            });
            written.push(Written {
                fqdns: fqdns.collect(),
                ..Written::default()
            });
            if names.iter().any(|name| name.starts_with('*')) {
                out.gap(
                    &name,
                    "Cilium's star stands for one label of a name: names further below are not allowed",
                );
            }
        }
        PeerSet::Pods { namespaces, pods } => {
            let pods = peers(namespaces, pods);
            if !pods.is_empty() {
                written.push(Written {
                    endpoints: pods.writable().iter().map(labels).collect(),
                    ..Written::default()
                });
            }
        }
    }
    if written.is_empty() || services.is_full() {
        return written;
    }
    if services.portless().next().is_some() {
        if denies {
            out.gap(
                &name,
                "Cilium denies ICMP by single types only: every protocol is denied",
            );
            return written;
        }
        out.gap(
            &name,
            "Cilium allows ICMP by single types only, and no other protocols without ports: they are not allowed",
        );
    }
    let mut icmps = Vec::new();
    for (number, family) in [(1, "IPv4"), (58, "IPv6")] {
        let Some(types) = services.icmp_types(number) else {
            continue;
        };
        let fields: Vec<IcmpField> = types
            .ranges()
            .iter()
            .flat_map(|(from, to)| *from..=(*to).min(255))
            .map(|kind| IcmpField { family, kind })
            .collect();
        if fields.len() <= PORTS {
            icmps.push(Icmp { fields });
        } else if denies {
            out.gap(&name, "Cilium takes 40 types of ICMP: every protocol is denied");
            return written;
        } else {
            out.gap(&name, "Cilium takes 40 types of ICMP: they are not allowed");
        }
    }
    let layer7 = rule.condition.requests.as_ref().map(|requests| Layer7 {
        http: super::cilium_http::http(requests),
    });
    let mut ports = Vec::new();
    for (number, protocol) in PORT_PROTOCOLS.into_iter().zip(["TCP", "UDP", "SCTP"]) {
        let Some(set) = services.ports(number) else { continue };
        if layer7.is_some() {
            match super::mesh::single_ports(set, PORTS) {
                Some(single) => ports.extend(single.into_iter().filter(|p| *p > 0).map(|port| Port {
                    port: port.to_string(),
                    end_port: None,
                    protocol,
                })),
                None => out.gap(
                    &name,
                    "Cilium sees requests on single ports only, and these are too many: they are not allowed",
                ),
            }
            continue;
        }
        if set.is_full() {
            // Port 0 stands for all.
            ports.push(Port {
                port: "0".to_owned(),
                end_port: None,
                protocol,
            });
            continue;
        }
        for (from, to) in set.ranges() {
            if *from == 0 {
                out.gap(&name, "Cilium cannot name port 0: it is not allowed");
            }
            let from = (*from).max(1);
            if from <= *to {
                ports.push(Port {
                    port: from.to_string(),
                    end_port: (from < *to).then_some(*to),
                    protocol,
                });
            }
        }
    }
    let rules: Vec<PortRule> = ports
        .chunks(PORTS)
        .map(|ports| PortRule {
            ports: ports.to_vec(),
            rules: layer7.clone(),
        })
        .collect();
    // Types of ICMP stand in rules of their own.
    let mut all = Vec::new();
    for peers in written {
        if !rules.is_empty() {
            all.push(Written {
                ports: rules.clone(),
                ..peers.clone()
            });
        }
        if !icmps.is_empty() {
            all.push(Written {
                icmps: icmps.clone(),
                ..peers
            });
        }
    }
    all
}

/// The labels of pods as Cilium knows them.
fn own(pods: &Selector) -> Selector {
    pods.labels().iter().fold(Selector::full(), |all, (key, values)| {
        if key == SERVICE_ACCOUNT_LABEL {
            return all.and(ACCOUNT, values.clone());
        }
        all.and(format!("k8s:{key}"), values.clone())
    })
}

/// Whom a part of a policy governs, by the labels that Cilium gives pods.
fn governed(subject: &Selector, place: Place<'_>) -> Selector {
    let (namespaces, pods) = scope::parts(subject);
    let all = peers(&namespaces, &pods);
    match place {
        Place::Namespaces(_) => all,
        // The policy's own namespace is not said.
        Place::Namespace(_) => {
            let others = all.labels().iter().filter(|(key, _)| *key != NAMESPACE);
            others.fold(Selector::full(), |all, (key, values)| {
                all.and(key.clone(), values.clone())
            })
        }
    }
}

/// Pods of namespaces by the labels that Cilium gives them.
fn peers(namespaces: &Selector, pods: &Selector) -> Selector {
    // Without a word on the namespace, Cilium would take the policy's own.
    let all = own(pods).and(NAMESPACE, LabelValues::exists());
    namespaces.labels().iter().fold(all, |all, (key, values)| {
        if key == NAMESPACE_NAME_LABEL {
            all.and(NAMESPACE, values.clone())
        } else {
            all.and(format!("{NAMESPACE_LABELS}{key}"), values.clone())
        }
    })
}
