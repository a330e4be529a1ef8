//! Whom policies govern, as one selector of pods and their namespaces, so that those of one namespace and those of many
//! can be held against each other.

use std::borrow::Borrow;

use super::{Compiled, unenforced};
use crate::{
    document::{Action, Mode},
    ir::{Direction, NAMESPACE_NAME_LABEL, Policy},
    sets::{LabelValues, Selector},
};

/// Before the keys of a namespace's labels. No key of a label has a colon.
const NAMESPACE: &str = "namespace:";

/// Where governed pods are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'p> {
    /// In one namespace.
    Namespace(&'p str),
    /// In namespaces that have these labels, now or later.
    Namespaces(&'p Selector),
}

/// The policies that are enforced on workloads, with where they are and the pods. Why the others are not is told as gaps.
pub(super) fn by_scope<'p, P: Borrow<Policy>>(
    policies: &'p [P],
    target: &str,
    out: &mut Compiled,
) -> Vec<(&'p Policy, Place<'p>, &'p Selector)> {
    let mut governing = Vec::new();
    for policy in policies.iter().map(Borrow::borrow) {
        if policy.mode != Mode::Enforce {
            out.gap(&policy.name, unenforced(policy.mode));
            continue;
        }
        let (place, pods, nobody) = match (&policy.subject.workloads, &policy.subject.cluster) {
            (Some((namespace, pods)), _) => (Place::Namespace(namespace), pods, false),
            (None, Some((namespaces, pods))) => (Place::Namespaces(namespaces), pods, namespaces.is_empty()),
            (None, None) => {
                out.gap(
                    &policy.name,
                    format!("the subject has no workloads: {target} selects by labels, and only addresses are given"),
                );
                continue;
            }
        };
        if nobody || pods.is_empty() {
            out.gap(
                &policy.name,
                "the subject's labels contradict each other: no pod has them",
            );
            continue;
        }
        governing.push((policy, place, pods));
    }
    governing
}

/// Whom a policy governs by label: the labels of pods, and those of their namespaces under keys of their own.
pub(super) fn subject(policy: &Policy) -> Option<Selector> {
    if let Some((namespace, pods)) = &policy.subject.workloads {
        let name = LabelValues::within([namespace.clone()]);
        return Some(pods.clone().and(format!("{NAMESPACE}{NAMESPACE_NAME_LABEL}"), name));
    }
    let (namespaces, pods) = policy.subject.cluster.as_ref()?;
    let labels = namespaces.labels().iter();
    Some(labels.fold(pods.clone(), |all, (key, values)| {
        all.and(format!("{NAMESPACE}{key}"), values.clone())
    }))
}

/// The namespaces and the pods of such a selector.
pub(super) fn parts(subject: &Selector) -> (Selector, Selector) {
    let mut parts = (Selector::full(), Selector::full());
    for (key, values) in subject.labels() {
        match key.strip_prefix(NAMESPACE) {
            Some(key) => parts.0 = parts.0.and(key, values.clone()),
            None => parts.1 = parts.1.and(key.clone(), values.clone()),
        }
    }
    parts
}

/// Whether no earlier tier may allow something to whom the policy governs, so that its deny rules are the strongest.
pub(super) fn stands_first<P: Borrow<Policy>>(denier: &Policy, direction: Direction, policies: &[P]) -> bool {
    let Some(governed) = subject(denier) else {
        return true;
    };
    !policies.iter().map(Borrow::borrow).any(|other| {
        other.mode == Mode::Enforce
            && other.tier < denier.tier
            && other
                .rules(direction)
                .unwrap_or_default()
                .iter()
                .any(|rule| rule.action == Action::Allow)
            && subject(other).is_some_and(|theirs| !theirs.intersect(&governed).is_empty())
    })
}
