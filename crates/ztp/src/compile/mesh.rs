//! What the service meshes have in common: they decide about TCP at its destination, and allow by identity.

use super::{
    Compiled,
    kubernetes::{Term, deny_terms},
    project::without_account,
};
use crate::{
    document::{Action, Mode, Need},
    ir::{Direction, NAMESPACE_NAME_LABEL, Policy, SERVICE_ACCOUNT_LABEL},
    sets::{IntervalSet, Selector},
};

/// Why a direction or protocol is missing. What closes it is a target for packets beside the mesh.
pub(super) fn told(policy: &Policy, target: &str, out: &mut Compiled) {
    if policy.rules(Direction::Egress).is_some() {
        out.gap(
            &policy.name,
            format!("{target} decides at the destination: what the subject opens is held back by no other target here"),
        );
    }
    if policy.rules(Direction::Ingress).is_some() {
        out.gap(
            &policy.name,
            format!("{target} decides about TCP only: other protocols pass by it"),
        );
    }
}

/// Pods as a mesh knows them: by namespace and service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// Everyone with an identity.
    Any,
    /// Everyone of these namespaces.
    Namespaces(Vec<String>),
    /// These service accounts, as namespace and name.
    Accounts(Vec<(String, String)>),
}

/// The identity of pods; `None` where labels tell them apart.
pub(super) fn identity(namespaces: &Selector, pods: &Selector) -> Option<Identity> {
    if !without_account(pods).is_full() {
        return None;
    }
    let names: Option<Vec<String>> = if namespaces.is_full() {
        None
    } else {
        let values = namespaces.labels().get(NAMESPACE_NAME_LABEL)?;
        if namespaces.labels().len() > 1 || values.absent || values.inverted {
            return None;
        }
        Some(values.values.iter().cloned().collect())
    };
    match (names, pods.labels().get(SERVICE_ACCOUNT_LABEL)) {
        (None, None) => Some(Identity::Any),
        (Some(names), None) => Some(Identity::Namespaces(names)),
        (Some(names), Some(accounts)) if !accounts.inverted && !accounts.absent => {
            let pairs = names
                .iter()
                .flat_map(|ns| accounts.values.iter().map(move |name| (ns.clone(), name.clone())));
            Some(Identity::Accounts(pairs.collect()))
        }
        _ => None,
    }
}

/// The ports one by one, when there are at most so many.
pub(super) fn single_ports(set: &IntervalSet<u16>, most: usize) -> Option<Vec<u16>> {
    let count: usize = set.ranges().iter().map(|(a, b)| usize::from(*b - *a) + 1).sum();
    (count <= most).then(|| set.ranges().iter().flat_map(|(a, b)| *a..=*b).collect())
}

/// What the policy's rules still allow to whom it governs, after every deny rule that `folded` names took its part.
///
/// A deny rule of a policy for a part of these pods takes its part for all of them: the mesh cannot cut its subject.
pub(super) fn allowed<'p>(
    policy: &'p Policy,
    others: &[&'p Policy],
    folded: impl Fn(&Policy) -> bool,
    out: &mut Compiled,
) -> Vec<Term<'p>> {
    let Some((namespace, pods)) = &policy.subject.workloads else {
        return Vec::new();
    };
    let meets = |other: &Policy| {
        other.mode == Mode::Enforce
            && other
                .subject
                .workloads
                .as_ref()
                .is_some_and(|(same, theirs)| same == namespace && !theirs.intersect(pods).is_empty())
    };
    let mut terms: Vec<Term<'p>> = policy
        .rules(Direction::Ingress)
        .unwrap_or_default()
        .iter()
        .filter(|rule| rule.action == Action::Allow)
        .flat_map(|rule| {
            rule.peers.workloads.iter().map(move |peer| Term {
                rule,
                peer: peer.clone(),
                services: rule.services.clone(),
            })
        })
        .collect();
    for other in others
        .iter()
        .copied()
        .filter(|other| other.tier <= policy.tier && meets(other))
    {
        let part = other
            .subject
            .workloads
            .as_ref()
            .is_some_and(|(_, theirs)| !pods.subtract(theirs).is_empty());
        let rules = other.rules(Direction::Ingress).unwrap_or_default().iter();
        for deny in rules.filter(|rule| rule.action == Action::Deny && folded(other)) {
            if part {
                out.gap(
                    &policy.name,
                    format!(
                        "rule {}/{} denies something to a part of the subject: it is allowed to none of it",
                        other.name, deny.name
                    ),
                );
            }
            terms = deny_terms(policy, terms, other, deny, out);
        }
    }
    terms
}

/// Whether a rule can be met by identity alone or needs one.
pub(super) fn needs_identity(needs: &std::collections::BTreeSet<Need>) -> bool {
    needs.contains(&Need::Identity) || needs.contains(&Need::Mtls)
}
