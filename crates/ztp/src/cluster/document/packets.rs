//! NetworkPolicy, ClusterNetworkPolicy, Cilium and Calico as documents.
//!
//! What decides between pods is stages of policies, whoever wrote them; a document has tiers. Stages become tiers in
//! their order, and where rules decide in order, every change between allowing and denying begins another tier.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    FIRST, Imported, LAST, Names,
    who::{self, Who, alternatives, name_of},
};
use crate::{
    cluster::Cluster,
    document::{Action as Wanted, EgressRule, IngressRule, Peer as Written, Port, ZeroTrustPolicy},
    ir::Direction,
    reach::{Action, Order, Peer, Plane, Policy, Rest, Rule},
    security_group::ports,
    sets::Selector,
};

/// The policies for packets that files have as documents.
///
/// # Errors
/// When their order takes more tiers than there are.
pub(super) fn documents(cluster: &Cluster, out: &mut Imported) -> Result<Vec<ZeroTrustPolicy>, String> {
    let mut writer = Writer {
        cluster,
        names: Names::default(),
        documents: Vec::new(),
    };
    for network in cluster
        .program
        .networks
        .iter()
        .filter(|network| !network.name.is_empty())
    {
        let count: usize = network
            .planes
            .iter()
            .flat_map(|p| &p.stages)
            .map(|s| s.policies.len())
            .sum();
        if count > 0 {
            out.left_out.push(format!(
                "{count} policies of network {}: documents are about the cluster's own",
                network.name
            ));
        }
    }
    let planes = cluster
        .program
        .networks
        .iter()
        .filter(|network| network.name.is_empty());
    if let Some(plane) = planes
        .flat_map(|network| &network.planes)
        .find(|plane| plane.name == "Kubernetes")
    {
        writer.plane(plane, out)?;
    }
    Ok(writer.documents)
}

struct Writer<'c> {
    cluster: &'c Cluster,
    names: Names,
    documents: Vec<ZeroTrustPolicy>,
}

/// A rule as it is written, in its tier.
type Placed<'p> = (u16, &'p Rule);

impl Writer<'_> {
    fn plane(&mut self, plane: &Plane, out: &mut Imported) -> Result<(), String> {
        let stages: Vec<_> = plane.stages.iter().filter(|stage| !stage.policies.is_empty()).collect();
        let opens = stages.iter().any(|stage| stage.rest == Rest::Next);
        let mut tier = FIRST;
        for stage in stages {
            // Whose rules are in which tier.
            let mut placed: Vec<(usize, Direction, Vec<Placed<'_>>)> = Vec::new();
            let mut last: BTreeMap<Direction, (u16, Action)> = BTreeMap::new();
            for (i, policy) in stage.policies.iter().enumerate() {
                for direction in Direction::BOTH {
                    let Some(rules) = policy.rules(direction) else { continue };
                    let mut own = Vec::new();
                    for rule in rules {
                        if rule.action == Action::Pass {
                            out.left_out.push(format!(
                                "{}: it passes connections to the next tier, which documents cannot say: rules behind it decide about them too",
                                place(policy, &rule.field)
                            ));
                            continue;
                        }
                        let at = match stage.order {
                            Order::DenyFirst => tier,
                            Order::InOrder => {
                                let entry = last.entry(direction).or_insert((tier, rule.action));
                                if entry.1 != rule.action {
                                    *entry = (entry.0.saturating_add(1), rule.action);
                                }
                                entry.0
                            }
                        };
                        own.push((at, rule));
                    }
                    placed.push((i, direction, own));
                }
            }
            let mut end = last.values().map(|(at, _)| *at).max().unwrap_or(tier).saturating_add(1);
            if stage.order == Order::DenyFirst {
                end = tier + 1;
            }
            if end >= LAST {
                return Err(format!(
                    "the rules of {} change between allowing and denying more often than there are tiers",
                    stage.name
                ));
            }
            for (i, policy) in stage.policies.iter().enumerate() {
                let mut tiers: BTreeSet<u16> = placed
                    .iter()
                    .filter(|(of, ..)| *of == i)
                    .flat_map(|(.., rules)| rules.iter().map(|(at, _)| *at))
                    .collect();
                // A policy without rules isolates what it selects.
                if tiers.is_empty() || stage.rest == Rest::Deny {
                    tiers.insert(tier);
                }
                for at in tiers {
                    let rules = |direction: Direction| {
                        let (.., rules) = placed.iter().find(|(of, d, _)| *of == i && *d == direction)?;
                        let here: Vec<&Rule> = rules.iter().filter(|(t, _)| *t == at).map(|(_, rule)| *rule).collect();
                        (!here.is_empty() || (stage.rest == Rest::Deny && at == tier)).then_some(here)
                    };
                    let found = Direction::BOTH.map(rules);
                    self.policy(policy, at, "", found, out)?;
                }
                let directions = Direction::BOTH.map(|d| policy.rules(d).is_some());
                if opens && stage.rest == Rest::Deny {
                    self.rest(policy, end, Wanted::Deny, directions)?;
                } else if stage.rest == Rest::Next {
                    self.rest(policy, LAST, Wanted::Allow, directions)?;
                }
            }
            tier = end + 1;
        }
        Ok(())
    }

    /// What becomes of what a stage did not decide.
    fn rest(&mut self, policy: &Policy, tier: u16, action: Wanted, directions: [bool; 2]) -> Result<(), String> {
        let mut unsaid = Imported::default();
        let [egress, ingress] = directions;
        let anyone = || who::written(&Who::Any, None);
        for mut document in self.subjects(policy, tier, "rest", &mut unsaid)? {
            document.spec.ingress =
                ingress.then(|| vec![IngressRule::new("in-rest".to_owned(), action, anyone(), Vec::new())]);
            document.spec.egress =
                egress.then(|| vec![EgressRule::new("out-rest".to_owned(), action, anyone(), Vec::new())]);
            self.documents.push(document);
        }
        Ok(())
    }

    fn policy(
        &mut self,
        policy: &Policy,
        tier: u16,
        what: &str,
        rules: [Option<Vec<&Rule>>; 2],
        out: &mut Imported,
    ) -> Result<(), String> {
        let [egress, ingress] = rules;
        if egress.is_none() && ingress.is_none() {
            return Ok(());
        }
        let own = match &policy.subject {
            Peer::Pods { namespaces, .. } => name_of(namespaces),
            _ => None,
        };
        let cluster = self.cluster;
        let mut write = |rules: &[&Rule], direction: Direction| -> Vec<(String, Wanted, Vec<Written>, Vec<Port>)> {
            let word = if direction == Direction::Ingress { "in" } else { "out" };
            rules
                .iter()
                .enumerate()
                .filter_map(|(i, rule)| {
                    let (action, peers, ports) = said(cluster, policy, rule, direction, own.as_deref(), out)?;
                    Some((format!("{word}-{i}"), action, peers, ports))
                })
                .collect()
        };
        let ingress = ingress.map(|rules| {
            let rules = write(&rules, Direction::Ingress).into_iter();
            rules
                .map(|(name, action, peers, ports)| IngressRule::new(name, action, peers, ports))
                .collect()
        });
        let egress = egress.map(|rules| {
            let rules = write(&rules, Direction::Egress).into_iter();
            rules
                .map(|(name, action, peers, ports)| EgressRule::new(name, action, peers, ports))
                .collect()
        });
        for mut document in self.subjects(policy, tier, what, out)? {
            (document.spec.ingress, document.spec.egress) = (Clone::clone(&ingress), Clone::clone(&egress));
            self.documents.push(document);
        }
        Ok(())
    }

    /// A document without rules for each way to say whom a policy selects.
    ///
    /// # Errors
    /// When that cannot be said: without the policy, its pods would be open.
    fn subjects(
        &mut self,
        policy: &Policy,
        tier: u16,
        what: &str,
        out: &mut Imported,
    ) -> Result<Vec<ZeroTrustPolicy>, String> {
        let who = alternatives(&policy.subject).map_err(|why| {
            format!(
                "{}: whom it selects cannot be said ({why}); select them otherwise, or leave the policy out of the files and \
                 write its document by hand",
                place(policy, "spec")
            )
        })?;
        let mut all = Vec::new();
        for who in who {
            let (namespaces, pods) = match who {
                Who::Pods(namespaces, pods) => (namespaces, pods),
                Who::Any => (Selector::full(), Selector::full()),
                _ => {
                    out.left_out.push(format!(
                        "{}: it selects something else than pods; that part is left out",
                        place(policy, "spec")
                    ));
                    continue;
                }
            };
            for (kind, subject) in who::subjects(&namespaces, &pods) {
                let parts = [policy.namespace.as_str(), policy.name.as_str(), what];
                all.push(ZeroTrustPolicy::observing(
                    kind,
                    self.names.take(&parts),
                    tier,
                    format!("imported from {policy} ({}:{})", policy.file, policy.line),
                    subject,
                ));
            }
        }
        Ok(all)
    }
}

fn place(policy: &Policy, field: &str) -> String {
    format!("{}:{}: {policy}: {field}", policy.file, policy.line)
}

/// What a rule says; `None` when nothing of it is left.
fn said(
    cluster: &Cluster,
    policy: &Policy,
    rule: &Rule,
    direction: Direction,
    own: Option<&str>,
    out: &mut Imported,
) -> Option<(Wanted, Vec<Written>, Vec<Port>)> {
    let denies = rule.action == Action::Deny;
    if cluster.of_requests(policy, &rule.field) && !denies {
        out.left_out.push(format!(
            "{}: it lets some requests through, which are not imported; it is not allowed",
            place(policy, &rule.field)
        ));
        return None;
    }
    let mut peers = Vec::new();
    let mut everyone = false;
    for peer in &rule.peers {
        match alternatives(peer) {
            Ok(who) => {
                for who in who {
                    match who {
                        Who::Domains(_) if direction == Direction::Ingress => {}
                        Who::Outside(nets) => {
                            tell_outside(policy, rule, out);
                            peers.extend(who::cidrs(&nets));
                        }
                        who => peers.extend(who::written(&who, own)),
                    }
                }
            }
            Err(why) => {
                everyone |= denies;
                let effect = if denies {
                    "everyone is denied"
                } else {
                    "it is not allowed"
                };
                out.left_out
                    .push(format!("{}: {why}; {effect}", place(policy, &rule.field)));
            }
        }
    }
    if everyone {
        peers = who::written(&Who::Any, None);
    }
    if peers.is_empty() {
        return None;
    }
    let (mut list, lost) = ports(&rule.ports.numbers);
    let full = rule.ports.numbers.is_full();
    let mut tell = |why: &str, grown: &str| {
        let effect = if denies { grown } else { "that is not allowed" };
        out.left_out
            .push(format!("{}: {why}; {effect}", place(policy, &rule.field)));
    };
    if !rule.ports.named.is_empty() && !full {
        let names: Vec<&str> = rule.ports.named.iter().map(|(_, name)| name.as_str()).collect();
        tell(
            &format!("ports by name ({}) are the pods' to say", names.join(", ")),
            "every port is denied",
        );
    }
    if lost {
        tell("a protocol has no name in the language", "every protocol is denied");
    }
    if denies && (lost || !rule.ports.named.is_empty()) {
        list.clear();
    } else if list.is_empty() && !full {
        return None;
    }
    let action = if denies { Wanted::Deny } else { Wanted::Allow };
    Some((action, peers, list))
}

fn tell_outside(policy: &Policy, rule: &Rule, out: &mut Imported) {
    let text = format!(
        "{}: its addresses are of the world outside; in a document, pods that have one of them belong to it too",
        place(policy, &rule.field)
    );
    if out.left_out.last() != Some(&text) {
        out.left_out.push(text);
    }
}
