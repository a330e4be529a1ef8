//! Garrison's own policies, in their workload projection.

use super::Collected;
use crate::{
    decode::Findings,
    document::{Action as Wanted, Mode},
    ir::{self, Direction, NAMESPACE_NAME_LABEL, PeerSet},
    node,
    reach::{Action, Order, Peer, Plane, Policy, Ports, Rest, Rule, Stage},
    sets::{LabelValues, Selector},
};

pub(super) fn read(source: node::Source<'_>, all: &mut Collected, f: &mut Findings<'_>) {
    let checked = crate::check_with(source.text, f.limits);
    let errors = checked.diagnostics.iter().filter(|d| d.level == crate::Level::Error);
    f.diagnostics.extend(errors.cloned().map(|mut diagnostic| {
        diagnostic.position.line += source.lines_before;
        diagnostic
    }));
    all.zero_trust
        .extend(checked.documents.iter().map(|document| document.lower(0)));
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
