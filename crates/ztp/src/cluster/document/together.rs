//! Two sets of documents as one that means both: a connection passes a side where each lets it pass.
//!
//! Tiers of the first are decided as they are, but where one of its rules allows, the second decides about what the rule
//! is about: its rules follow in tiers of their own, each cut down to what both are about, and then what is left of the
//! first's rule is denied where the second governs, and allowed elsewhere. What the first governs and does not allow is
//! denied then, and the second decides about the pods that the first does not govern. Only what both are about has to be
//! said, never what one of them is not about, for which the language often has no words.

use std::collections::BTreeMap;

use super::{
    FIRST, LAST, Names,
    apart::{One, Pods, Set, covers, parts, saying, shared, tiers},
    who::{self, Who},
};
use crate::{
    document::{Action, CLUSTER_KIND, EgressRule, IngressRule, ZeroTrustPolicy},
    sets::ServiceSet,
};

/// The most rules that two sets become.
const RULES: usize = 50_000;

/// Documents that mean both.
///
/// # Errors
/// When they take more tiers than there are, or more than [`RULES`] rules.
pub(super) fn both(
    first: &[ZeroTrustPolicy],
    second: &[ZeroTrustPolicy],
    left_out: &mut Vec<String>,
) -> Result<Vec<ZeroTrustPolicy>, String> {
    if first.is_empty() || second.is_empty() {
        return Ok([first, second].concat());
    }
    let first: Vec<Set<'_>> = first.iter().map(Set::of).collect();
    let second: Vec<Set<'_>> = second.iter().map(Set::of).collect();
    let mut writer = Writer {
        left_out,
        entries: Vec::new(),
        known: BTreeMap::new(),
        rules: 0,
    };
    for direction in [INGRESS, EGRESS] {
        writer.direction(direction, &first, &second)?;
        writer.prune(direction);
    }
    Ok(writer.written())
}

const INGRESS: usize = 0;
const EGRESS: usize = 1;

/// A document that is being written.
struct Entry {
    tier: u16,
    pods: Pods,
    name: String,
    origin: String,
    rules: [Option<Vec<One>>; 2],
}

struct Writer<'o> {
    left_out: &'o mut Vec<String>,
    entries: Vec<Entry>,
    /// Where the entry of a tier, some pods and an origin is.
    known: BTreeMap<(u16, Pods, String), usize>,
    rules: usize,
}

impl Writer<'_> {
    /// Adds rules of one direction; none only govern the pods.
    fn put(
        &mut self,
        tier: u16,
        pods: &Pods,
        from: &[&Set<'_>],
        direction: usize,
        rules: Vec<One>,
    ) -> Result<(), String> {
        if tier >= LAST {
            return Err(
                "the policies together decide in more steps than there are tiers; import one kind at a time".to_owned(),
            );
        }
        self.rules += rules.len();
        if self.rules > RULES {
            return Err(format!(
                "the policies together are more than {RULES} rules; import one namespace at a time"
            ));
        }
        let mut origins: Vec<&str> = from.iter().map(|set| set.origin()).collect();
        origins.dedup();
        let origin = origins.join(" and ");
        let names: Vec<&str> = from.iter().map(|set| set.document.metadata.name.as_str()).collect();
        let entries = &mut self.entries;
        let key = (tier, pods.clone(), origin.clone());
        let at = *self.known.entry(key).or_insert_with(|| {
            entries.push(Entry {
                tier,
                pods: pods.clone(),
                name: names.join("-"),
                origin,
                rules: [None, None],
            });
            entries.len() - 1
        });
        if let Some(entry) = self.entries.get_mut(at) {
            entry.rules[direction].get_or_insert_default().extend(rules);
        }
        Ok(())
    }

    fn direction(&mut self, direction: usize, first: &[Set<'_>], second: &[Set<'_>]) -> Result<(), String> {
        let (first, second) = (saying(first, direction), saying(second, direction));
        let mut tier = FIRST;
        if !second.is_empty() {
            let steps = tiers(&first);
            let allowing =
                |step: &Vec<&Set<'_>>| step.iter().any(|p| p.rules(direction, Action::Allow).next().is_some());
            let last = steps.iter().rposition(allowing);
            for (n, step) in steps.iter().enumerate() {
                tier = self.denied(direction, tier, step)?;
                tier = self.allowed(direction, tier, step, &second, last == Some(n))?;
            }
        } else {
            for step in tiers(&first) {
                for p in step {
                    let rules = p.rules[direction].clone().unwrap_or_default();
                    self.put(tier, &p.pods, &[p], direction, rules)?;
                }
                tier += 1;
            }
        }
        // About pods that the first governs, everything is decided.
        let alone: Vec<&Set<'_>> = second
            .into_iter()
            .filter(|q| !first.iter().any(|p| covers(&p.pods, &q.pods)))
            .collect();
        self.end(direction, tier, &first, &alone)?;
        tier += 1;
        for step in tiers(&alone) {
            for q in step {
                let rules = q.rules[direction].clone().unwrap_or_default();
                self.put(tier, &q.pods, &[q], direction, rules)?;
            }
            tier += 1;
        }
        Ok(())
    }

    /// What a tier of the first denies. Answers with the next tier.
    fn denied(&mut self, direction: usize, tier: u16, step: &[&Set<'_>]) -> Result<u16, String> {
        let mut next = tier;
        for p in step {
            let rules: Vec<One> = p.rules(direction, Action::Deny).cloned().collect();
            if !rules.is_empty() {
                self.put(tier, &p.pods, &[p], direction, rules)?;
                next = tier + 1;
            }
        }
        Ok(next)
    }

    /// What a tier of the first allows, as far as the second does. Answers with the next tier.
    fn allowed(
        &mut self,
        direction: usize,
        mut tier: u16,
        step: &[&Set<'_>],
        second: &[&Set<'_>],
        last: bool,
    ) -> Result<u16, String> {
        // What each rule is about, less what the second has decided.
        let mut open: Vec<(&Set<'_>, &One, ServiceSet)> = Vec::new();
        for p in step {
            open.extend(
                p.rules(direction, Action::Allow)
                    .map(|rule| (*p, rule, rule.services.clone())),
            );
        }
        for there in tiers(second) {
            let mut used = false;
            for (p, rule, services) in &mut open {
                let p: &Set<'_> = p;
                let mut decided = ServiceSet::empty();
                for q in &there {
                    let Some(pods) = shared(&p.pods, &q.pods) else { continue };
                    let all = covers(&q.pods, &p.pods);
                    let mut rules = Vec::new();
                    for other in q.rules[direction].iter().flatten() {
                        rules.extend(self.meet(&[p, q], rule, services, other));
                        if all && other.decides() {
                            decided = decided.union(&other.services);
                        }
                    }
                    if !rules.is_empty() {
                        self.put(tier, &pods, &[p, q], direction, rules)?;
                        used = true;
                    }
                }
                *services = services.subtract(&decided);
            }
            tier += u16::from(used);
        }
        open.retain(|(.., services)| !services.is_empty());
        // What is left is denied where the second governs, and behind that allowed.
        for action in [Action::Deny, Action::Allow] {
            let mut used = false;
            for (p, rule, services) in &open {
                let covered = second.iter().any(|q| covers(&q.pods, &p.pods));
                if covered && (last || action == Action::Allow) {
                    // Nothing later allows it, or nothing of it is left.
                    continue;
                }
                let rest = vec![rule.with(action, services)];
                if action == Action::Allow {
                    self.put(tier, &p.pods, &[p], direction, rest)?;
                    used = true;
                    continue;
                }
                let mut done: Vec<Pods> = Vec::new();
                for q in second {
                    let Some(pods) = shared(&p.pods, &q.pods) else { continue };
                    if done.iter().any(|known| covers(known, &pods)) {
                        continue;
                    }
                    if rule.requires.is_some() {
                        self.left_out.push(format!(
                            "{} and {}: what the second does not allow is denied without asking who shows an identity",
                            p.origin(),
                            q.origin()
                        ));
                    }
                    self.put(tier, &pods, &[p, q], direction, rest.clone())?;
                    done.push(pods);
                    used = true;
                }
            }
            tier += u16::from(used);
        }
        Ok(tier)
    }

    /// Denies what the first governs and did not allow, where documents behind it could.
    fn end(&mut self, direction: usize, tier: u16, first: &[&Set<'_>], alone: &[&Set<'_>]) -> Result<(), String> {
        let mut done: Vec<&Pods> = Vec::new();
        for p in first {
            if done.iter().any(|known| covers(known, &p.pods)) {
                continue;
            }
            let behind = alone.iter().any(|q| shared(&p.pods, &q.pods).is_some());
            let here = |entry: &Entry| entry.rules[direction].is_some() && covers(&entry.pods, &p.pods);
            if behind {
                let everything = One {
                    action: Action::Deny,
                    peers: vec![Who::Any],
                    services: ServiceSet::full(),
                    http: Vec::new(),
                    requires: None,
                };
                self.put(tier, &p.pods, &[p], direction, vec![everything])?;
            } else if !self.entries.iter().any(here) {
                // Nothing reaches it: a document without rules says so.
                self.put(tier, &p.pods, &[p], direction, Vec::new())?;
            }
            done.push(&p.pods);
        }
        Ok(())
    }

    /// What two rules are both about, with what the second does. What cannot be said is not allowed, or denied with more.
    fn meet(&mut self, sets: &[&Set<'_>; 2], rule: &One, services: &ServiceSet, other: &One) -> Option<One> {
        let services = services.intersect(&other.services);
        if services.is_empty() {
            return None;
        }
        let denies = other.action == Action::Deny;
        let [p, q] = sets;
        let mut tell = |why: &str| {
            let effect = if denies { "more is denied" } else { "it is not allowed" };
            self.left_out
                .push(format!("{} and {}: {why}; {effect}", p.origin(), q.origin()));
        };
        let http = if rule.http.is_empty() || rule.http == other.http {
            other.http.clone()
        } else {
            if !other.http.is_empty() {
                tell("both are about requests");
                if !denies {
                    return None;
                }
            }
            rule.http.clone()
        };
        if denies && rule.requires.is_some() {
            tell("the second denies without asking who shows an identity");
        }
        let mut peers = Vec::new();
        for a in &rule.peers {
            for b in &other.peers {
                match who::meet(a, b).and_then(|who| who.as_ref().map_or(Ok(()), who::writable).map(|()| who)) {
                    Ok(who) => peers.extend(who.filter(|who| !peers.contains(who))),
                    Err(why) => {
                        tell(why);
                        if denies && !peers.contains(a) {
                            peers.push(a.clone());
                        }
                    }
                }
            }
        }
        (!peers.is_empty()).then(|| One {
            action: other.action,
            peers,
            services,
            http,
            requires: rule.requires.max(other.requires).filter(|_| !denies),
        })
    }

    /// Takes out rules that never decide, as an earlier tier has decided about all of their pods and ports.
    fn prune(&mut self, direction: usize) {
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        order.sort_by_key(|i| self.entries[*i].tier);
        let mut decided: Vec<(u16, Pods, ServiceSet)> = Vec::new();
        for i in order {
            let entry = &mut self.entries[i];
            let before = decided
                .iter()
                .filter(|(tier, pods, _)| *tier < entry.tier && covers(pods, &entry.pods))
                .fold(ServiceSet::empty(), |all, (.., services)| all.union(services));
            let Some(rules) = entry.rules[direction].as_mut().filter(|rules| !rules.is_empty()) else {
                continue;
            };
            rules.retain(|rule| !rule.services.is_subset(&before));
            if rules.is_empty() {
                // What decided governs the pods.
                entry.rules[direction] = None;
                continue;
            }
            for rule in rules.iter().filter(|rule| rule.decides()) {
                decided.push((entry.tier, entry.pods.clone(), rule.services.clone()));
            }
        }
    }

    /// The documents.
    fn written(self) -> Vec<ZeroTrustPolicy> {
        let mut names = Names::default();
        let mut documents = Vec::new();
        let mut entries = self.entries;
        entries.retain(|entry| entry.rules.iter().any(Option::is_some));
        entries.sort_by_key(|entry| entry.tier);
        for entry in entries {
            for (kind, subject) in who::subjects(&entry.pods.0, &entry.pods.1) {
                let own = (kind != CLUSTER_KIND).then(|| who::name_of(&entry.pods.0)).flatten();
                let [ingress, egress] = entry.rules.each_ref().map(|rules| {
                    rules
                        .as_ref()
                        .map(|rules| parts(rules, own.as_deref(), self.left_out, &entry.origin))
                });
                let mut document = ZeroTrustPolicy::observing(
                    kind,
                    names.take(&[&entry.name]),
                    entry.tier,
                    format!("imported from {}", entry.origin),
                    subject,
                );
                document.spec.ingress = ingress.map(|rules| {
                    let rules = rules.into_iter().enumerate();
                    rules
                        .map(|(i, (rule, peers, ports))| IngressRule {
                            http: rule.http.clone(),
                            requires: rule.requires,
                            ..IngressRule::new(format!("in-{i}"), rule.action, peers, ports)
                        })
                        .collect()
                });
                document.spec.egress = egress.map(|rules| {
                    let rules = rules.into_iter().enumerate();
                    rules
                        .map(|(i, (rule, peers, ports))| EgressRule {
                            http: rule.http.clone(),
                            requires: rule.requires,
                            ..EgressRule::new(format!("out-{i}"), rule.action, peers, ports)
                        })
                        .collect()
                });
                documents.push(document);
            }
        }
        documents
    }
}
