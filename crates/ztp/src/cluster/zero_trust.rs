//! Garrison's own policies, in their workload projection.

use super::{Collected, Resource};
use crate::{
    decode::{Findings, Spans, decode},
    document::{Action as Wanted, Mode},
    ir::{self, Direction, NAMESPACE_NAME_LABEL, PeerSet},
    node::{Node, Value},
    reach::{Action, Order, Peer, Plane, Policy, Ports, Rest, Rule, Stage},
    sets::{LabelValues, Selector},
};

/// What a cluster adds to an object, and what only it knows.
const CLUSTERS: [&str; 11] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "uid",
];

/// Reads a policy, from a file or as a cluster gives it back.
pub(super) fn read(resource: &Resource<'_>, all: &mut Collected, f: &mut Findings<'_>) {
    let mut tree = resource.node.clone();
    if let Value::Map(pairs) = &mut tree.value {
        pairs.retain(|(key, _)| !is(key, "status"));
        for (key, value) in pairs {
            let Value::Map(inner) = &mut value.value else { continue };
            if is(key, "metadata") {
                inner.retain(|(key, _)| !CLUSTERS.iter().any(|name| is(key, name)));
            }
        }
    }
    let mut found = Findings {
        limits: f.limits,
        diagnostics: Vec::new(),
        spans: Spans::new(),
    };
    let (tree, version) = crate::version::to_hub(tree, &mut found);
    let first = found.diagnostics.len();
    let policy = decode(&tree, &mut found);
    crate::version::as_written(version, first, &mut found);
    let errors = found.diagnostics.into_iter().filter(|d| d.level == crate::Level::Error);
    f.diagnostics.extend(errors);
    all.zero_trust.extend(policy.map(|policy| ir::lower(&policy, 0)));
}

fn is(key: &Node, name: &str) -> bool {
    matches!(&key.value, Value::Text(text) if text == name)
}

/// What enforced policies decide, as a plane of its own; `None` without policies.
pub(super) fn plane(policies: &[ir::Policy]) -> Option<Plane> {
    let enforced: Vec<&ir::Policy> = policies.iter().filter(|p| p.mode == Mode::Enforce).collect();
    let mut tiers: Vec<u16> = enforced.iter().map(|p| p.tier).collect();
    tiers.sort_unstable();
    tiers.dedup();
    if tiers.is_empty() {
        return None;
    }
    let mut stages: Vec<Stage> = tiers
        .into_iter()
        .map(|tier| Stage {
            name: format!("tier {tier}"),
            order: Order::DenyFirst,
            rest: Rest::Next,
            policies: enforced
                .iter()
                .filter(|p| p.tier == tier)
                .filter_map(|p| policy(p, true))
                .collect(),
        })
        .collect();
    // Whoever is governed is denied what no tier decided.
    stages.push(Stage {
        name: "default".to_owned(),
        order: Order::InOrder,
        rest: Rest::Deny,
        policies: enforced.iter().filter_map(|p| policy(p, false)).collect(),
    });
    Some(Plane {
        name: "ZeroTrustPolicy".to_owned(),
        stages,
    })
}

fn policy(policy: &ir::Policy, with_rules: bool) -> Option<Policy> {
    let (namespaces, pods) = match (&policy.subject.workloads, &policy.subject.cluster) {
        (Some((namespace, pods)), _) => (
            Selector::full().and(NAMESPACE_NAME_LABEL, LabelValues::within([namespace.clone()])),
            pods,
        ),
        (None, Some((namespaces, pods))) => (namespaces.clone(), pods),
        (None, None) => return None,
    };
    let rules = |direction: Direction| {
        let rules = policy.rules(direction)?.iter().filter(|_| with_rules);
        Some(
            rules
                // What manifests do not tell is taken for possible: a deny rule that depends on it is passed over.
                .filter(|rule| rule.action == Wanted::Allow || rule.condition.is_none())
                .map(|rule| Rule {
                    name: rule.name.clone(),
                    field: rule.field.clone(),
                    action: match rule.action {
                        Wanted::Allow => Action::Accept,
                        Wanted::Deny => Action::Deny,
                    },
                    peers: rule.peers.workloads.iter().map(peer).collect(),
                    ports: Ports {
                        numbers: rule.services.clone(),
                        named: Vec::new(),
                    },
                })
                .collect(),
        )
    };
    Some(Policy {
        kind: crate::document::KIND.to_owned(),
        namespace: String::new(),
        name: policy.reference(),
        file: String::new(),
        line: 0,
        subject: Peer::Pods {
            namespaces,
            pods: pods.clone(),
            hosts: true,
        },
        egress: rules(Direction::Egress),
        ingress: rules(Direction::Ingress),
    })
}

fn peer(peer: &PeerSet) -> Peer {
    match peer {
        PeerSet::Any => Peer::Any,
        PeerSet::Addresses(set) => Peer::Addresses(set.to_nets()),
        PeerSet::Pods { namespaces, pods } => Peer::Pods {
            namespaces: namespaces.clone(),
            pods: pods.clone(),
            hosts: true,
        },
        PeerSet::Domains(names) => Peer::Domains(names.iter().cloned().collect()),
        // Manifests do not tell who these are.
        PeerSet::Principals(_) | PeerSet::Hosts(_) | PeerSet::Tags(_) | PeerSet::People(_) => Peer::Some(Vec::new()),
    }
}
