//! Kubernetes NetworkPolicy (`networking.k8s.io/v1`).
//!
//! NetworkPolicies only allow, and their union counts, so deny rules are compiled by taking what they deny out
//! of every allow rule of the same or a later tier that could let it through. Selectors are cut apart exactly;
//! where an address range would have to be cut by labels (or the other way), that part is not allowed, and a
//! gap says so.

use std::borrow::Borrow;

use super::{
    Compiled, CompiledFile,
    manifest::{
        EgressRule, IngressRule, IpBlock, LabelSelector, Metadata, NetworkPolicy, NetworkPolicyPeer, Port, Requirement,
        Spec,
    },
    project::{Says, project},
    scope,
};
use crate::{
    document::{Action, Mode},
    ir::{Direction, NAMESPACE_NAME_LABEL, PeerSet, Policy, Rule},
    sets::{LabelValues, PORT_PROTOCOLS, Selector, ServiceSet},
};

/// Pieces that one policy, or one rule in it, may be cut into by deny rules.
const PIECES: usize = 256;

/// What a rule still allows, after deny rules took their part.
#[derive(Clone)]
pub(super) struct Term<'p> {
    pub(super) rule: &'p Rule,
    pub(super) peer: PeerSet,
    pub(super) services: ServiceSet,
}

/// A part of a policy's subject and what it may do.
#[derive(Clone)]
pub(super) struct Piece<'p> {
    /// Pods and their namespaces, as [`scope::subject`] has them.
    pub(super) subject: Selector,
    /// Egress, ingress.
    pub(super) terms: [Vec<Term<'p>>; 2],
}

/// Compiles the enforced policies to NetworkPolicy manifests, one file a policy.
///
/// `sha256` gives the hash of a policy's document for its provenance annotation, by name.
pub fn kubernetes<P: Borrow<Policy>>(policies: &[P], sha256: impl Fn(&str) -> Option<String>) -> Compiled {
    let mut out = Compiled::default();
    let says = Says {
        target: "NetworkPolicy",
        ..Says::default()
    };
    let policies = project(policies, &says, &mut out);
    let policies: Vec<&Policy> = policies.iter().collect();
    let policies = policies.as_slice();
    let near = super::by_namespace(policies);
    for (policy, namespace, _) in super::by_workload(policies, "Kubernetes", &mut out) {
        let near = near.get(namespace).map(Vec::as_slice).unwrap_or_default();
        let pieces = cut(policy, near, |_, _| true, &mut out);
        let manifests: Vec<String> = write(policy, namespace, pieces, sha256(&policy.name), &mut out)
            .iter()
            .filter_map(|manifest| serde_saphyr::to_string(manifest).ok())
            .collect();
        out.files.push(CompiledFile {
            path: format!("networkpolicy/{namespace}/{}.yaml", policy.name),
            content: format!("{}{}", super::provenance(policy), manifests.join("---\n")),
        });
    }
    out.files.sort_by(|a, b| a.path.cmp(&b.path));
    out
}

pub(super) fn index(direction: Direction) -> usize {
    match direction {
        Direction::Egress => 0,
        Direction::Ingress => 1,
    }
}

/// Applies every deny rule that decides before the policy's allow rules, if `folded` says that the target cannot say
/// the denying policy's rules of that direction itself.
pub(super) fn cut<'p>(
    policy: &'p Policy,
    policies: &[&'p Policy],
    folded: impl Fn(&Policy, Direction) -> bool,
    out: &mut Compiled,
) -> Vec<Piece<'p>> {
    let Some(subject) = scope::subject(policy) else {
        return Vec::new();
    };
    let allowed = |direction| {
        let rules = policy.rules(direction).unwrap_or_default().iter();
        rules
            .filter(|rule| rule.action == Action::Allow)
            .flat_map(|rule| {
                rule.peers.workloads.iter().map(move |peer| Term {
                    rule,
                    peer: peer.clone(),
                    services: rule.services.clone(),
                })
            })
            .collect()
    };
    let mut pieces = vec![Piece {
        subject: subject.clone(),
        terms: [allowed(Direction::Egress), allowed(Direction::Ingress)],
    }];
    for other in policies {
        if other.mode != Mode::Enforce || other.tier > policy.tier {
            continue;
        }
        let denies = |direction| -> Vec<&'p Rule> {
            let rules = other.rules(direction).unwrap_or_default().iter();
            rules
                .filter(|rule| rule.action == Action::Deny && folded(other, direction))
                .collect()
        };
        let denies = [denies(Direction::Egress), denies(Direction::Ingress)];
        if denies.iter().all(Vec::is_empty) {
            continue;
        }
        let Some(theirs) = scope::subject(other) else {
            continue;
        };
        let mut next = Vec::new();
        for piece in pieces {
            let both = piece.subject.intersect(&theirs);
            if both.is_empty() {
                next.push(piece);
                continue;
            }
            next.extend(piece.subject.subtract(&theirs).into_iter().map(|subject| Piece {
                subject,
                terms: piece.terms.clone(),
            }));
            let mut inside = Piece { subject: both, ..piece };
            for (terms, denies) in inside.terms.iter_mut().zip(&denies) {
                for deny in denies {
                    *terms = deny_terms(policy, std::mem::take(terms), other, deny, out);
                }
            }
            next.push(inside);
        }
        pieces = next;
        if pieces.len() > PIECES {
            out.gap(
                &policy.name,
                format!("deny rules cut the subject into more than {PIECES} parts: nothing is allowed to it"),
            );
            return vec![Piece {
                subject,
                terms: [Vec::new(), Vec::new()],
            }];
        }
    }
    pieces
}

pub(super) fn deny_terms<'p>(
    policy: &Policy,
    mut terms: Vec<Term<'p>>,
    denier: &Policy,
    deny: &Rule,
    out: &mut Compiled,
) -> Vec<Term<'p>> {
    for peer in &deny.peers.workloads {
        let mut next = Vec::new();
        for term in terms {
            let common = term.services.intersect(&deny.services);
            if common.is_empty() {
                next.push(term);
                continue;
            }
            let rest = term.services.subtract(&deny.services);
            let (parts, lost) = subtract(&term.peer, peer);
            if let Some(lost) = lost {
                out.gap(
                    format!("{}/{}", policy.name, term.rule.name),
                    format!(
                        "{lost}, for {common}: rule {}/{} denies a part of it that NetworkPolicy cannot tell apart",
                        denier.name, deny.name
                    ),
                );
            }
            // Untouched by the deny rule: the term can stay whole.
            if parts.len() == 1 && parts[0] == term.peer {
                next.push(term);
                continue;
            }
            if deny.condition.requests.is_some() {
                out.gap(
                    format!("{}/{}", policy.name, term.rule.name),
                    format!(
                        "rule {}/{} denies some requests of {common}: none of them is allowed",
                        denier.name, deny.name
                    ),
                );
            }
            next.extend(parts.into_iter().map(|peer| Term {
                peer,
                services: common.clone(),
                ..term.clone()
            }));
            if !rest.is_empty() {
                next.push(Term { services: rest, ..term });
            }
        }
        terms = next;
        if terms.len() > PIECES * 8 {
            out.gap(
                &policy.name,
                "deny rules cut its rules into too many parts: nothing is allowed in this direction",
            );
            return Vec::new();
        }
    }
    terms
}

/// `a` without `b`, as far as it can be written, and what was lost.
fn subtract(a: &PeerSet, b: &PeerSet) -> (Vec<PeerSet>, Option<&'static str>) {
    let within = |namespaces: &Selector, pods: &Selector, b_namespaces: &Selector, b_pods: &Selector| {
        let mut parts: Vec<PeerSet> = namespaces
            .subtract(b_namespaces)
            .into_iter()
            .map(|namespaces| PeerSet::Pods {
                namespaces,
                pods: pods.clone(),
            })
            .collect();
        let both = namespaces.intersect(b_namespaces);
        if !both.is_empty() {
            parts.extend(pods.subtract(b_pods).into_iter().map(|pods| PeerSet::Pods {
                namespaces: both.clone(),
                pods,
            }));
        }
        parts
    };
    match (a, b) {
        (_, PeerSet::Any) => (Vec::new(), None),
        (_, PeerSet::Addresses(b)) if b.is_empty() => (vec![a.clone()], None),
        (_, PeerSet::Pods { namespaces, pods }) if namespaces.is_empty() || pods.is_empty() => (vec![a.clone()], None),
        (PeerSet::Any, PeerSet::Addresses(b)) => {
            let rest = crate::sets::AddressSet::full().subtract(b);
            (vec![PeerSet::Addresses(rest)], None)
        }
        (PeerSet::Any, PeerSet::Pods { namespaces, pods }) => (
            within(&Selector::full(), &Selector::full(), namespaces, pods),
            Some("everything outside the cluster is not allowed"),
        ),
        (PeerSet::Addresses(a), PeerSet::Addresses(b)) => {
            let rest = a.subtract(b);
            let parts = if rest.is_empty() {
                Vec::new()
            } else {
                vec![PeerSet::Addresses(rest)]
            };
            (parts, None)
        }
        (
            PeerSet::Pods { namespaces, pods },
            PeerSet::Pods {
                namespaces: b_namespaces,
                pods: b_pods,
            },
        ) => (within(namespaces, pods, b_namespaces, b_pods), None),
        (PeerSet::Addresses(a), PeerSet::Pods { .. }) => {
            (Vec::new(), (!a.is_empty()).then_some("an address range is not allowed"))
        }
        (PeerSet::Pods { .. }, PeerSet::Addresses(_)) => (Vec::new(), Some("pods are not allowed")),
        // Nothing is known about who may be on both sides.
        _ => (Vec::new(), Some("what is told by identity or name is not allowed")),
    }
}

fn write(
    policy: &Policy,
    namespace: &str,
    pieces: Vec<Piece<'_>>,
    sha256: Option<String>,
    out: &mut Compiled,
) -> Vec<NetworkPolicy> {
    let selectors: Vec<(Selector, [Vec<Term<'_>>; 2])> = pieces
        .into_iter()
        .flat_map(|piece| {
            let (_, pods) = scope::parts(&piece.subject);
            let pods = pods.writable();
            pods.into_iter().map(move |pods| (pods, piece.terms.clone()))
        })
        .collect();
    let several = selectors.len() > 1;
    let mut manifests = Vec::new();
    for (i, (pods, terms)) in (1..).zip(selectors) {
        let mut annotations = super::annotations(policy, sha256.clone());
        let mut rules = |direction: Direction| {
            policy.rules(direction)?;
            let grouped = group(&terms[index(direction)], policy, namespace, out);
            for (n, (rule, ..)) in grouped.iter().enumerate() {
                annotations.insert(
                    format!("garrison.dev/{}.{n}", direction.as_str()),
                    format!("{} ({})", rule.name, rule.field),
                );
            }
            Some(grouped)
        };
        let egress = rules(Direction::Egress);
        let ingress = rules(Direction::Ingress);
        let mut policy_types = Vec::new();
        policy_types.extend(ingress.is_some().then_some("Ingress"));
        policy_types.extend(egress.is_some().then_some("Egress"));
        manifests.push(NetworkPolicy {
            api_version: "networking.k8s.io/v1",
            kind: "NetworkPolicy",
            metadata: Metadata {
                name: if several {
                    format!("garrison-{}-{i}", policy.name)
                } else {
                    format!("garrison-{}", policy.name)
                },
                namespace: Some(namespace.to_owned()),
                labels: super::owned(policy),
                annotations,
            },
            spec: Spec {
                pod_selector: labels(&pods),
                policy_types,
                ingress: ingress.map(|rules| {
                    let rules = rules.into_iter();
                    rules.map(|(_, from, ports)| IngressRule { from, ports }).collect()
                }),
                egress: egress.map(|rules| {
                    let rules = rules.into_iter();
                    rules.map(|(_, to, ports)| EgressRule { to, ports }).collect()
                }),
            },
        });
    }
    manifests
}

type Written<'p> = (&'p Rule, Vec<NetworkPolicyPeer>, Vec<Port>);

/// Terms of one rule with the same services become one NetworkPolicy rule.
fn group<'p>(terms: &[Term<'p>], policy: &Policy, namespace: &str, out: &mut Compiled) -> Vec<Written<'p>> {
    let mut groups: Vec<(&'p Rule, &ServiceSet, Vec<&PeerSet>)> = Vec::new();
    for term in terms {
        match groups
            .iter_mut()
            .find(|(rule, services, _)| std::ptr::eq(*rule, term.rule) && **services == term.services)
        {
            Some((.., peers)) => peers.push(&term.peer),
            None => groups.push((term.rule, &term.services, vec![&term.peer])),
        }
    }
    let mut written = Vec::new();
    for (rule, services, peers) in groups {
        let name = format!("{}/{}", policy.name, rule.name);
        // No `from` means everyone, so `any` must stand alone, and nobody must not be written at all.
        let any = peers.contains(&&PeerSet::Any);
        let from: Vec<NetworkPolicyPeer> = if any {
            Vec::new()
        } else {
            peers.iter().flat_map(|peer| write_peer(peer, namespace)).collect()
        };
        if !any && from.is_empty() {
            continue;
        }
        if let Some(ports) = write_ports(services, &name, out) {
            written.push((rule, from, ports));
        }
    }
    written
}

/// `None` when nothing of it can be written.
fn write_ports(services: &ServiceSet, name: &str, out: &mut Compiled) -> Option<Vec<Port>> {
    if services.is_full() {
        return Some(Vec::new());
    }
    if services.portless().next().is_some() {
        out.gap(
            name,
            "NetworkPolicy names only TCP, UDP and SCTP: other protocols are not allowed",
        );
    }
    let mut ports = Vec::new();
    for (protocol, word) in PORT_PROTOCOLS.into_iter().zip(["TCP", "UDP", "SCTP"]) {
        let Some(set) = services.ports(protocol) else {
            continue;
        };
        if set.is_full() {
            ports.push(Port {
                protocol: word,
                port: None,
                end_port: None,
            });
            continue;
        }
        for (from, to) in set.ranges() {
            if *from == 0 {
                out.gap(name, "NetworkPolicy cannot name port 0: it is not allowed");
            }
            let from = (*from).max(1);
            if from <= *to {
                ports.push(Port {
                    protocol: word,
                    port: Some(from),
                    end_port: (from < *to).then_some(*to),
                });
            }
        }
    }
    (!ports.is_empty()).then_some(ports)
}

fn write_peer(peer: &PeerSet, namespace: &str) -> Vec<NetworkPolicyPeer> {
    match peer {
        // What else there is was taken out by the projection.
        PeerSet::Any
        | PeerSet::Principals(_)
        | PeerSet::Domains(_)
        | PeerSet::Hosts(_)
        | PeerSet::Tags(_)
        | PeerSet::People(_) => Vec::new(),
        PeerSet::Addresses(set) => set
            .to_nets()
            .into_iter()
            .map(|net| NetworkPolicyPeer {
                ip_block: Some(IpBlock { cidr: net.to_string() }),
                ..NetworkPolicyPeer::default()
            })
            .collect(),
        PeerSet::Pods { namespaces, pods } => {
            if namespaces.is_empty() || pods.is_empty() {
                return Vec::new();
            }
            let own = Selector::full().and(NAMESPACE_NAME_LABEL, LabelValues::within([namespace.to_owned()]));
            let pods = pods.writable();
            if *namespaces == own {
                let pods = pods.iter().map(|pods| NetworkPolicyPeer {
                    pod_selector: Some(labels(pods)),
                    ..NetworkPolicyPeer::default()
                });
                return pods.collect();
            }
            let namespaces = namespaces.writable();
            namespaces
                .iter()
                .flat_map(|namespaces| {
                    pods.iter().map(|pods| NetworkPolicyPeer {
                        ip_block: None,
                        namespace_selector: Some(labels(namespaces)),
                        pod_selector: (!pods.is_full()).then(|| labels(pods)),
                    })
                })
                .collect()
        }
    }
}

pub(super) fn labels(selector: &Selector) -> LabelSelector {
    let mut written = LabelSelector::default();
    for (key, values) in selector.labels() {
        let list: Vec<String> = values.values.iter().cloned().collect();
        let mut require = |operator, values| {
            written.match_expressions.push(Requirement {
                key: key.clone(),
                operator,
                values,
            });
        };
        match (values.absent, values.inverted, list.len()) {
            (false, false, 1) => {
                written.match_labels.extend(list.into_iter().map(|v| (key.clone(), v)));
            }
            (false, false, _) => require("In", list),
            (true, false, _) => require("DoesNotExist", Vec::new()),
            (true, true, _) => require("NotIn", list),
            (false, true, 0) => require("Exists", Vec::new()),
            (false, true, _) => {
                require("Exists", Vec::new());
                require("NotIn", list);
            }
        }
    }
    written
}
