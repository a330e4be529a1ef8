//! Rules of several policies that cover, repeat or contradict each other, by exact sets.

use std::{borrow::Borrow, collections::BTreeMap, rc::Rc};

use serde::Serialize;

use super::space::{Atoms, By, Combinations, Region, Said, Shape, decides_before, describe, rules, without};
use crate::{
    diagnostic::Code,
    document::{Action, Mode},
    ir::{Direction, Policy},
};

/// Steps that a search may take, about a second.
const WORK: usize = 20_000_000;
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

/// The rules that one is held against, and what each of them says among them.
struct Ground {
    /// Which, ascending.
    rules: Vec<usize>,
    atoms: Vec<Rc<Atoms>>,
}

impl Ground {
    /// Of the rules near one that are enforced at least as strictly as `rank`; `None` where their conditions are too many.
    fn of(shapes: &[Shape<'_>], near: &[usize], least: u8) -> Option<Self> {
        let rules: Vec<usize> = near
            .iter()
            .copied()
            .filter(|j| rank(shapes[*j].policy.mode) >= least)
            .collect();
        let combinations = Combinations::of(rules.iter().map(|j| shapes[*j].rule))?;
        let atoms = rules
            .iter()
            .map(|j| Rc::new(combinations.taken(shapes[*j].rule)))
            .collect();
        Some(Self { rules, atoms })
    }

    fn said<'s>(&'s self, shapes: &'s [Shape<'s>], at: usize) -> Said<'s> {
        Said {
            shape: &shapes[self.rules[at]],
            atoms: &self.atoms[at],
        }
    }
}

/// Finds rules that never decide, that add nothing, or that contradict a rule of another policy.
///
/// A policy is compared with those that are enforced at least as strictly: what only observes takes nothing away.
pub fn overlaps<P: Borrow<Policy>>(policies: &[P]) -> Overlaps {
    let policies: Vec<&Policy> = policies.iter().map(Borrow::borrow).collect();
    let mut all = Overlaps::default();
    let mut work = WORK;
    for direction in Direction::BOTH {
        let shapes: Vec<Shape<'_>> = policies
            .iter()
            .flat_map(|policy| {
                let rules = policy.rules(direction).unwrap_or_default();
                rules.iter().map(|rule| Shape::of(policy, rule))
            })
            .collect();
        // Rules can only meet where their subjects may: by the namespace's name, or by anything else.
        let mut by_place: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
        for (i, shape) in shapes.iter().enumerate() {
            by_place.entry(bucket(shape.policy)).or_default().push(i);
        }
        let mut redundant = vec![false; shapes.len()];
        // Rules of one policy are held against the same ones.
        let mut ground: Option<(&Policy, Option<Ground>)> = None;
        for (i, shape) in shapes.iter().enumerate() {
            if ground
                .as_ref()
                .is_none_or(|(policy, _)| !std::ptr::eq(*policy, shape.policy))
            {
                let own = bucket(shape.policy);
                let mut near: Vec<usize> = match own {
                    Some(_) => [own, None]
                        .iter()
                        .filter_map(|key| by_place.get(key))
                        .flatten()
                        .copied()
                        .collect(),
                    None => (0..shapes.len()).collect(),
                };
                near.sort_unstable();
                let few = near.len() <= NEIGHBOURS;
                let of = few
                    .then(|| Ground::of(&shapes, &near, rank(shape.policy.mode)))
                    .flatten();
                ground = Some((shape.policy, of));
            }
            let ground = ground.as_ref().and_then(|(_, ground)| ground.as_ref());
            match ground.and_then(|ground| look(&shapes, ground, i, &mut redundant, &mut work)) {
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
    shapes: &[Shape<'_>],
    ground: &Ground,
    i: usize,
    redundant: &mut [bool],
    work: &mut usize,
) -> Option<Vec<Overlap>> {
    let this = ground.said(shapes, ground.rules.binary_search(&i).ok()?);
    let rule = |at: &usize| &shapes[ground.rules[*at]];
    let name = |shape: &Shape<'_>| format!("{}/{}", shape.policy.name, shape.rule.name);
    let (policy, own_rule) = (this.shape.policy, this.shape.rule);
    let others = || (0..ground.rules.len()).filter(|at| ground.rules[*at] != i);
    let stronger: Vec<usize> = others()
        .filter(|at| decides_before((rule(at).policy, rule(at).rule), (policy, own_rule)))
        .collect();
    let equal: Vec<usize> = others()
        .filter(|at| rule(at).policy.tier == policy.tier && rule(at).rule.action == own_rule.action)
        .filter(|at| !redundant[ground.rules[*at]])
        .collect();

    let ways: Vec<By> = this.shape.ways().collect();
    let (mut shadowed, mut repeated) = (!ways.is_empty(), !ways.is_empty());
    let (mut shadowing, mut repeating) = (Vec::new(), Vec::new());
    let mut contradicting: Option<(usize, Region)> = None;
    for by in ways {
        let own = this.regions(by);
        let of = |at: usize| ground.said(shapes, at).regions(by);
        *work = work.checked_sub(ground.rules.len())?;
        let mut met = Vec::new();
        for at in &stronger {
            if this.meets(&ground.said(shapes, *at), by, work)? {
                let contradicts = rule(at).rule.action != own_rule.action && !std::ptr::eq(rule(at).policy, policy);
                if contradicting.is_none() && contradicts {
                    let theirs = of(*at);
                    let common = own.iter().find_map(|a| theirs.iter().find_map(|b| a.common(b)));
                    contradicting = common.map(|common| (*at, common));
                }
                met.push(*at);
            }
        }
        // In deciding order, so that a rule is named only for what no earlier one decides.
        met.sort_by_key(|at| (rule(at).policy.tier, rule(at).rule.action == Action::Allow));
        let mut left = own.clone();
        for at in met {
            let theirs = of(at);
            if left.iter().any(|a| theirs.iter().any(|b| a.meets(b))) {
                left = without(left, &theirs, work)?;
                shadowing.push(at);
            }
        }
        // A rule that is empty in one way of telling says nothing there, and is no less alive in the other.
        shadowed &= left.is_empty() && !own.is_empty();
        let mut same = Vec::new();
        for at in &equal {
            if this.meets(&ground.said(shapes, *at), by, work)? {
                same.push(*at);
            }
        }
        let others: Vec<Region> = same.iter().flat_map(|at| of(*at)).collect();
        let left = without(left, &others, work)?;
        repeated &= left.is_empty() && !own.is_empty();
        repeating.extend(same);
    }
    let names = |list: &[usize]| {
        let mut names: Vec<String> = list.iter().map(|at| name(rule(at))).collect();
        names.sort();
        names.dedup();
        names
    };
    let overlap = |code, others: Vec<String>, message, remedy| Overlap {
        code,
        policy: policy.name.clone(),
        rule: own_rule.name.clone(),
        field: own_rule.field.clone(),
        others,
        message,
        remedy,
    };
    let verb = match own_rule.action {
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
        let tiers = shadowing.iter().any(|at| rule(at).policy.tier < policy.tier);
        found.push(if tiers {
            overlap(
                Code::Shadowed,
                others.clone(),
                format!(
                    "rule {} never {verb} anything: rules of earlier tiers decide all of it ({})",
                    own_rule.name,
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
                    own_rule.name,
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
            format!("rule {} adds nothing to {}", own_rule.name, shown(&others)),
            "Remove it, or narrow the others",
        ));
        redundant[i] = true;
    } else if let Some((at, common)) = contradicting {
        let other = rule(&at);
        let (first, second) = match own_rule.action {
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
                own_rule.name,
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
