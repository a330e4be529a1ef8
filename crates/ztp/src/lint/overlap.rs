//! Rules of several policies that cover, repeat or contradict each other, by exact sets.

use std::{borrow::Borrow, collections::BTreeMap};

use serde::Serialize;

use super::space::{By, Combinations, Region, decides_before, describe, regions, rules, subjects, without};
use crate::{
    diagnostic::Code,
    document::{Action, Mode},
    ir::{Direction, Policy, Rule},
};

/// Steps that a search may take, about a second.
const WORK: usize = 2_000_000;
/// Rules that one rule is compared with.
const NEIGHBOURS: usize = 2_000;

/// Something to look at in a set of policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overlap {
    /// What it is.
    pub code: Code,
    /// The policy.
    pub policy: String,
    /// The rule.
    pub rule: String,
    /// The rule's place in its document.
    pub field: String,
    /// The rules that it is about, as `policy/rule`.
    pub others: Vec<String>,
    /// What is the matter.
    pub message: String,
    /// What to do about it.
    pub remedy: &'static str,
}

/// What was found, and whether everything was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Overlaps {
    /// The findings, in the order of the policies.
    pub found: Vec<Overlap>,
    /// Rules that were not compared with all others, because that would take too long.
    pub unsearched: usize,
}

struct Candidate<'p> {
    policy: &'p Policy,
    rule: &'p Rule,
    /// Where the policy is in the list, for the order of equals.
    place: usize,
}

/// Finds rules that never decide, that add nothing, or that contradict a rule of another policy.
///
/// A policy is compared with those that are enforced at least as strictly: what only observes takes nothing away.
pub fn overlaps<P: Borrow<Policy>>(policies: &[P]) -> Overlaps {
    let policies: Vec<&Policy> = policies.iter().map(Borrow::borrow).collect();
    let mut all = Overlaps::default();
    let mut work = WORK;
    for direction in Direction::BOTH {
        let mut candidates: Vec<Candidate<'_>> = Vec::new();
        for (place, policy) in policies.iter().copied().enumerate() {
            for rule in policy.rules(direction).unwrap_or_default() {
                candidates.push(Candidate { policy, rule, place });
            }
        }
        // Rules can only meet where their subjects may: by the namespace's name, or by anything else.
        let mut by_place: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
        for (i, candidate) in candidates.iter().enumerate() {
            by_place.entry(bucket(candidate.policy)).or_default().push(i);
        }
        let mut redundant = vec![false; candidates.len()];
        for i in 0..candidates.len() {
            let own = bucket(candidates[i].policy);
            let near: Vec<usize> = match own {
                Some(_) => [own, None]
                    .iter()
                    .filter_map(|key| by_place.get(key))
                    .flatten()
                    .copied()
                    .collect(),
                None => (0..candidates.len()).collect(),
            };
            if near.len() > NEIGHBOURS {
                all.unsearched += 1;
                continue;
            }
            match look(&candidates, i, &near, &mut redundant, &mut work) {
                Some(found) => all.found.extend(found),
                None => all.unsearched += 1,
            }
        }
    }
    all.found
        .sort_by(|a, b| (&a.policy, &a.field, a.code).cmp(&(&b.policy, &b.field, b.code)));
    all
}

/// The namespace of a policy that governs by it alone.
fn bucket(policy: &Policy) -> Option<&str> {
    let subject = &policy.subject;
    match &subject.workloads {
        Some((namespace, _)) if subject.addresses.is_empty() && subject.others.is_empty() => Some(namespace),
        _ => None,
    }
}

fn rank(mode: Mode) -> u8 {
    match mode {
        Mode::Observe => 0,
        Mode::Stage => 1,
        Mode::Enforce => 2,
    }
}

/// What is to be said of one rule; `None` when that takes too long.
fn look(
    candidates: &[Candidate<'_>],
    i: usize,
    near: &[usize],
    redundant: &mut [bool],
    work: &mut usize,
) -> Option<Vec<Overlap>> {
    let this = &candidates[i];
    let name = |c: &Candidate<'_>| format!("{}/{}", c.policy.name, c.rule.name);
    let counted: Vec<usize> = near
        .iter()
        .copied()
        .filter(|j| *j != i && rank(candidates[*j].policy.mode) >= rank(this.policy.mode))
        .collect();
    let involved = counted.iter().map(|j| candidates[*j].rule).chain([this.rule]);
    let combinations = Combinations::of(involved)?;
    let stronger: Vec<usize> = counted
        .iter()
        .copied()
        .filter(|j| decides_before((candidates[*j].policy, candidates[*j].rule), (this.policy, this.rule)))
        .collect();
    let equal: Vec<usize> = counted
        .iter()
        .copied()
        .filter(|j| {
            let other = &candidates[*j];
            other.policy.tier == this.policy.tier && other.rule.action == this.rule.action && !redundant[*j]
        })
        .collect();

    let ways: Vec<By> = [By::Address, By::Label]
        .into_iter()
        .filter(|by| !subjects(this.policy, *by).is_empty())
        .collect();
    let (mut shadowed, mut repeated) = (!ways.is_empty(), !ways.is_empty());
    let (mut shadowing, mut repeating) = (Vec::new(), Vec::new());
    let mut contradicting: Option<(usize, Region)> = None;
    for by in ways {
        let own = regions(this.policy, this.rule, by, &combinations);
        let of = |j: usize| regions(candidates[j].policy, candidates[j].rule, by, &combinations);
        let meets = |j: usize| {
            let theirs = of(j);
            own.iter().find_map(|a| theirs.iter().find_map(|b| a.common(b)))
        };
        *work = work.checked_sub(counted.len())?;
        let mut met = Vec::new();
        for j in &stronger {
            if let Some(common) = meets(*j) {
                let other = &candidates[*j];
                if contradicting.is_none() && other.rule.action != this.rule.action && other.place != this.place {
                    contradicting = Some((*j, common));
                }
                met.push(*j);
            }
        }
        // In deciding order, so that a rule is named only for what no earlier one decides.
        met.sort_by_key(|j| (candidates[*j].policy.tier, candidates[*j].rule.action == Action::Allow));
        let mut left = own.clone();
        for j in met {
            let theirs = of(j);
            if left.iter().any(|a| theirs.iter().any(|b| a.common(b).is_some())) {
                left = without(left, &theirs, work)?;
                shadowing.push(j);
            }
        }
        // A rule that is empty in one way of telling says nothing there, and is no less alive in the other.
        shadowed &= left.is_empty() && !own.is_empty();
        let same: Vec<usize> = equal.iter().copied().filter(|j| meets(*j).is_some()).collect();
        let others: Vec<Region> = same.iter().flat_map(|j| of(*j)).collect();
        let left = without(left, &others, work)?;
        repeated &= left.is_empty() && !own.is_empty();
        repeating.extend(same);
    }
    let names = |list: &[usize]| {
        let mut names: Vec<String> = list.iter().map(|j| name(&candidates[*j])).collect();
        names.sort();
        names.dedup();
        names
    };
    let overlap = |code, others: Vec<String>, message, remedy| Overlap {
        code,
        policy: this.policy.name.clone(),
        rule: this.rule.name.clone(),
        field: this.rule.field.clone(),
        others,
        message,
        remedy,
    };
    let verb = match this.rule.action {
        Action::Allow => "allows",
        Action::Deny => "denies",
    };
    let shown = |names: &[String]| {
        let more = names.len().saturating_sub(3);
        let mut text = names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        if more > 0 {
            text.push_str(&format!(" and {more} more"));
        }
        text
    };
    let mut found = Vec::new();
    if shadowed {
        let others = names(&shadowing);
        let tiers = shadowing.iter().any(|j| candidates[*j].policy.tier < this.policy.tier);
        found.push(if tiers {
            overlap(
                Code::Shadowed,
                others.clone(),
                format!(
                    "rule {} never {verb} anything: rules of earlier tiers decide all of it ({})",
                    this.rule.name,
                    shown(&others)
                ),
                "Remove it, or move its policy to an earlier tier",
            )
        } else {
            overlap(
                Code::Unreachable,
                others.clone(),
                format!(
                    "rule {} never {verb} anything: {} deny all of it",
                    this.rule.name,
                    shown(&others)
                ),
                "Narrow what denies it, or remove this one",
            )
        });
        redundant[i] = true;
    } else if repeated {
        let others = names(&repeating);
        found.push(overlap(
            Code::Redundant,
            others.clone(),
            format!("rule {} adds nothing to {}", this.rule.name, shown(&others)),
            "Remove it, or narrow the others",
        ));
        redundant[i] = true;
    } else if let Some((j, common)) = contradicting {
        let other = &candidates[j];
        let (first, second) = match this.rule.action {
            Action::Allow => (
                "is denied by",
                "What denies decides; say in both policies that this is meant, or narrow one of them",
            ),
            Action::Deny => (
                "is allowed by",
                "The earlier tier decides; narrow its rule, or move this policy to an earlier tier",
            ),
        };
        found.push(overlap(
            Code::Conflicting,
            vec![name(other)],
            format!(
                "a part of what rule {} {verb} {first} {}: {} with {} over {}",
                this.rule.name,
                name(other),
                describe(&common.subject),
                describe(&common.peer),
                common.services
            ),
            second,
        ));
    }
    Some(found)
}

/// Rules of one policy that never decide or add nothing, for the check of a document.
pub(super) fn within(policy: &Policy) -> Overlaps {
    if rules(policy).count() > super::PAIRWISE {
        return Overlaps::default();
    }
    overlaps(std::slice::from_ref(policy))
}
