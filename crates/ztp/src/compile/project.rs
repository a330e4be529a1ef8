//! What a target cannot see is taken out of the policies before they are compiled, so that nothing becomes wider: an
//! allow rule that depends on it goes, a deny rule denies everything else that it says. Each is told as a gap.

use std::{borrow::Borrow, collections::BTreeSet};

use super::Compiled;
use crate::{
    document::{Action, Mode, Need},
    ir::{Direction, NAMESPACE_NAME_LABEL, PeerSet, Policy, Rule, SERVICE_ACCOUNT_LABEL, Subject},
    sets::{LabelValues, Selector},
};

/// What a target can say beyond addresses or labels, protocols and ports.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Says {
    /// How it is called in gaps.
    pub(super) target: &'static str,
    /// Whether it selects by address rather than by label.
    pub(super) by_address: bool,
    /// Types of ICMP.
    pub(super) icmp_types: bool,
    /// Service accounts of pods.
    pub(super) accounts: bool,
    /// SPIFFE ids.
    pub(super) principals: bool,
    /// Names in DNS.
    pub(super) domains: bool,
    /// Groups of iam.
    pub(super) people: bool,
    /// HTTP requests in allow rules.
    pub(super) requests: bool,
    /// HTTP requests in deny rules.
    pub(super) requests_denied: bool,
    /// What it can ask of whoever opens a connection.
    pub(super) needs: &'static [Need],
    /// Whether one policy can select namespaces by their labels.
    pub(super) clusterwide: bool,
    /// Whether policies in mode `stage` are compiled too.
    pub(super) staged: bool,
}

/// The policies as the target can see them.
pub(super) fn project<P: Borrow<Policy>>(policies: &[P], says: &Says, out: &mut Compiled) -> Vec<Policy> {
    let mut seen = Vec::with_capacity(policies.len());
    for policy in policies.iter().map(Borrow::borrow) {
        let taken = policy.mode == Mode::Enforce || says.staged;
        if !taken {
            // Its mode is what is told of it.
            seen.push(policy.clone());
            continue;
        }
        let mut policy = policy.clone();
        let name = policy.name.clone();
        for direction in Direction::BOTH {
            let rules = match direction {
                Direction::Egress => &mut policy.egress,
                Direction::Ingress => &mut policy.ingress,
            };
            if let Some(rules) = rules {
                let all = std::mem::take(rules);
                rules.extend(
                    all.into_iter()
                        .filter_map(|rule| narrow(rule, &name, direction, says, out)),
                );
            }
        }
        if says.by_address {
            seen.push(policy);
        } else {
            seen.extend(subjects(policy, says, out));
        }
    }
    seen
}

/// The rule as the target can see it; `None` when nothing of it is left.
fn narrow(mut rule: Rule, policy: &str, direction: Direction, says: &Says, out: &mut Compiled) -> Option<Rule> {
    let target = says.target;
    let name = format!("{policy}/{}", rule.name);
    let allows = rule.action == Action::Allow;
    if !rule.condition.is_timeless() {
        let what = "counts for a time only, which is told to no enforcement point: compile it for a moment";
        if allows {
            out.gap(name, format!("the rule {what}; it is not allowed"));
            return None;
        }
        out.gap(&name, format!("the rule {what}; it is denied at all times"));
        (rule.condition.from, rule.condition.until) = (None, None);
    }
    let unknown: Vec<&str> = rule
        .condition
        .needs
        .iter()
        .filter(|need| !says.needs.contains(need))
        .map(|need| need.as_str())
        .collect();
    if !unknown.is_empty() {
        // Only allow rules need anything.
        out.gap(
            name,
            format!("{target} cannot ask for {}: it is not allowed", unknown.join(", ")),
        );
        return None;
    }
    let sees = if allows { says.requests } else { says.requests_denied };
    if rule.condition.requests.is_some() && !sees {
        if allows {
            out.gap(name, format!("{target} does not see requests: none is allowed"));
            return None;
        }
        out.gap(&name, format!("{target} cannot deny single requests: all are denied"));
        rule.condition.requests = None;
    }
    if rule.services.has_icmp_types() && !says.icmp_types {
        out.gap(
            &name,
            if allows {
                format!("{target} does not tell types of ICMP apart: ICMP is not allowed")
            } else {
                format!("{target} does not tell types of ICMP apart: all of it is denied")
            },
        );
        rule.services = rule.services.without_icmp_types(!allows);
        if rule.services.is_empty() {
            return None;
        }
    }
    if says.by_address {
        return Some(rule);
    }
    let mut peers = Vec::with_capacity(rule.peers.workloads.len());
    for peer in std::mem::take(&mut rule.peers.workloads) {
        let (what, grown) = match &peer {
            PeerSet::Pods { namespaces, pods } if pods.labels().contains_key(SERVICE_ACCOUNT_LABEL) => {
                let grown = PeerSet::Pods {
                    namespaces: namespaces.clone(),
                    pods: without_account(pods),
                };
                (says.accounts, grown)
            }
            PeerSet::Principals(_) => (says.principals, PeerSet::Any),
            // Nobody opens a connection by a name in DNS.
            PeerSet::Domains(_) if direction == Direction::Ingress => continue,
            PeerSet::Domains(_) => (says.domains && allows, PeerSet::Any),
            PeerSet::People(_) => (says.people, PeerSet::Any),
            PeerSet::Hosts(_) | PeerSet::Tags(_) => (false, PeerSet::Any),
            _ => (true, PeerSet::Any),
        };
        if what {
            peers.push(peer);
            continue;
        }
        let kind = match &peer {
            PeerSet::Principals(_) => "SPIFFE ids",
            PeerSet::Domains(_) => "names in DNS",
            PeerSet::People(_) => "people",
            PeerSet::Hosts(_) => "hosts by name",
            PeerSet::Tags(_) => "tags of instances",
            _ => "service accounts",
        };
        if allows {
            out.gap(&name, format!("{target} does not know {kind}: they are not allowed"));
        } else {
            out.gap(
                &name,
                match grown {
                    PeerSet::Any => format!("{target} does not know {kind}: everyone is denied"),
                    _ => format!("{target} does not know {kind}: pods of every account are denied"),
                },
            );
            peers.push(grown);
        }
    }
    rule.peers.workloads = peers;
    (!rule.peers.workloads.is_empty()).then_some(rule)
}

/// The selector without its word on service accounts.
pub(super) fn without_account(pods: &Selector) -> Selector {
    pods.labels()
        .iter()
        .filter(|(key, _)| *key != SERVICE_ACCOUNT_LABEL)
        .fold(Selector::full(), |all, (key, values)| {
            all.and(key.clone(), values.clone())
        })
}

/// The policy by namespace: of a cluster's policy one for each namespace that it names.
fn subjects(mut policy: Policy, says: &Says, out: &mut Compiled) -> Vec<Policy> {
    let accounts = |pods: &Selector| pods.labels().contains_key(SERVICE_ACCOUNT_LABEL) && !says.accounts;
    let of = policy.subject.workloads.as_ref().map(|(_, pods)| pods).or(policy
        .subject
        .cluster
        .as_ref()
        .map(|(_, pods)| pods));
    if of.is_some_and(accounts) {
        out.gap(
            &policy.name,
            format!(
                "the subject is told by service account, which {} cannot select by",
                says.target
            ),
        );
        return Vec::new();
    }
    let Some((namespaces, pods)) = policy.subject.cluster.take() else {
        return vec![policy];
    };
    let Some(names) = names(&namespaces) else {
        if says.clusterwide {
            policy.subject.cluster = Some((namespaces, pods));
            return vec![policy];
        }
        out.gap(
            &policy.name,
            "the subject's namespaces are not told by name, and which there are is not known here",
        );
        return Vec::new();
    };
    names
        .into_iter()
        .map(|namespace| Policy {
            subject: Subject {
                workloads: Some((namespace, pods.clone())),
                ..policy.subject.clone()
            },
            ..policy.clone()
        })
        .collect()
}

/// The namespaces of a selector that names them.
fn names(namespaces: &Selector) -> Option<BTreeSet<String>> {
    let values: &LabelValues = namespaces.labels().get(NAMESPACE_NAME_LABEL)?;
    (namespaces.labels().len() == 1 && !values.absent && !values.inverted).then(|| values.values.clone())
}
