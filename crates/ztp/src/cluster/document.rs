//! Policies of others as ZeroTrustPolicy documents.
//!
//! What decides between pods is stages of policies, whoever wrote them; a document has tiers. Stages become tiers in
//! their order, and where rules decide in order, every change between allowing and denying begins another tier. What the
//! language cannot say is left out of what is allowed and told; a deny rule then denies everything that it might mean.

use std::collections::{BTreeMap, BTreeSet};

use super::Cluster;
use crate::{
    document::{
        Action as Wanted, CLUSTER_KIND, EgressRule, IngressRule, KIND, LabelOperator, LabelRequirement, LabelSelector,
        Peer as Written, Port, Subject, Workloads, ZeroTrustPolicy,
    },
    ir::{Direction, NAMESPACE_NAME_LABEL, SERVICE_ACCOUNT_LABEL},
    reach::{Action, Order, Peer, Plane, Policy, Rest, Rule},
    security_group::{named, ports},
    sets::{AddressSet, Selector},
};

/// The first tier that is used: those below are the cluster's.
const FIRST: u16 = 100;
/// The last tier.
const LAST: u16 = 1_000;
/// The most selectors that one predicate becomes.
const SELECTORS: usize = 64;

/// Documents, and what they do not say.
#[derive(Clone, Debug, Default)]
pub struct Imported {
    /// The documents. All of them observe.
    pub documents: Vec<ZeroTrustPolicy>,
    /// What was left out, with its place and why.
    pub left_out: Vec<String>,
}

/// The policies for packets that files have (NetworkPolicy, ClusterNetworkPolicy, Cilium, Calico) as documents.
///
/// # Errors
/// When their order takes more tiers than there are.
pub fn documents(cluster: &Cluster) -> Result<Imported, String> {
    let mut out = Imported::default();
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
        Writer::default().plane(plane, &mut out)?;
    }
    Ok(out)
}

#[derive(Default)]
struct Writer {
    names: BTreeSet<String>,
}

/// A rule as it is written, in its tier.
type Placed<'p> = (u16, &'p Rule);

impl Writer {
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
                    self.policy(policy, at, "", found, out);
                }
                let directions = Direction::BOTH.map(|d| policy.rules(d).is_some());
                if opens && stage.rest == Rest::Deny {
                    self.rest(policy, end, Wanted::Deny, directions, out);
                } else if stage.rest == Rest::Next {
                    self.rest(policy, LAST, Wanted::Allow, directions, out);
                }
            }
            tier = end + 1;
        }
        Ok(())
    }

    /// What becomes of what a stage did not decide.
    fn rest(&mut self, policy: &Policy, tier: u16, action: Wanted, directions: [bool; 2], out: &mut Imported) {
        let mut unsaid = Imported::default();
        let [egress, ingress] = directions;
        let anyone = || {
            vec![Written {
                any: true,
                ..Written::default()
            }]
        };
        for document in self.subjects(policy, tier, "rest", &mut unsaid) {
            let mut document = document;
            document.spec.ingress =
                ingress.then(|| vec![IngressRule::new("in-rest".to_owned(), action, anyone(), Vec::new())]);
            document.spec.egress =
                egress.then(|| vec![EgressRule::new("out-rest".to_owned(), action, anyone(), Vec::new())]);
            out.documents.push(document);
        }
    }

    fn policy(&mut self, policy: &Policy, tier: u16, what: &str, rules: [Option<Vec<&Rule>>; 2], out: &mut Imported) {
        let [egress, ingress] = rules;
        if egress.is_none() && ingress.is_none() {
            return;
        }
        let own = match &policy.subject {
            Peer::Pods { namespaces, .. } => name_of(namespaces),
            _ => None,
        };
        let mut write = |rules: &[&Rule], direction: Direction| -> Vec<(String, Wanted, Vec<Written>, Vec<Port>)> {
            let word = if direction == Direction::Ingress { "in" } else { "out" };
            rules
                .iter()
                .enumerate()
                .filter_map(|(i, rule)| {
                    let (action, peers, ports) = said(policy, rule, direction, own.as_deref(), out)?;
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
        for mut document in self.subjects(policy, tier, what, out) {
            (document.spec.ingress, document.spec.egress) = (Clone::clone(&ingress), Clone::clone(&egress));
            out.documents.push(document);
        }
    }

    /// A document without rules for each way to say whom a policy selects.
    fn subjects(&mut self, policy: &Policy, tier: u16, what: &str, out: &mut Imported) -> Vec<ZeroTrustPolicy> {
        let who = match alternatives(&policy.subject) {
            Ok(who) => who,
            Err(why) => {
                out.left_out.push(format!(
                    "{}: whom it selects cannot be said ({why}); the policy is left out",
                    place(policy, "spec")
                ));
                return Vec::new();
            }
        };
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
            let one = name_of(&namespaces);
            for (namespaces, (pods, accounts)) in both(&namespaces, &pods) {
                let cluster = one.is_none();
                let subject = Subject {
                    workloads: Some(Workloads {
                        namespace: one.clone().unwrap_or_default(),
                        namespace_selector: cluster.then(|| labels(&namespaces)),
                        pod_selector: (!pods.is_full()).then(|| labels(&pods)),
                        service_accounts: accounts,
                    }),
                    ..Subject::default()
                };
                all.push(ZeroTrustPolicy::observing(
                    if cluster { CLUSTER_KIND } else { KIND },
                    self.name(policy, what),
                    tier,
                    format!("imported from {policy} ({}:{})", policy.file, policy.line),
                    subject,
                ));
            }
        }
        all
    }

    /// A name that no other document has.
    fn name(&mut self, policy: &Policy, what: &str) -> String {
        let parts = [policy.namespace.as_str(), policy.name.as_str(), what];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let base = named(&parts.join("-"));
        let mut name = base.clone();
        for number in 2.. {
            if self.names.insert(name.clone()) {
                break;
            }
            let number = format!("-{number}");
            let cut: String = base.chars().take(63 - number.len()).collect();
            name = format!("{}{number}", cut.trim_end_matches('-'));
        }
        name
    }
}

fn place(policy: &Policy, field: &str) -> String {
    format!("{}:{}: {policy}: {field}", policy.file, policy.line)
}

/// What a rule says; `None` when nothing of it is left.
fn said(
    policy: &Policy,
    rule: &Rule,
    direction: Direction,
    own: Option<&str>,
    out: &mut Imported,
) -> Option<(Wanted, Vec<Written>, Vec<Port>)> {
    let denies = rule.action == Action::Deny;
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
                            peers.extend(cidrs(&nets));
                        }
                        who => peers.extend(written(&who, own)),
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
        peers = vec![Written {
            any: true,
            ..Written::default()
        }];
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

/// A predicate as the language has it.
#[derive(Clone, Debug)]
enum Who {
    Any,
    Pods(Selector, Selector),
    Addresses(AddressSet),
    /// Addresses that no pod has.
    Outside(AddressSet),
    Domains(Vec<String>),
}

/// A predicate as alternatives, any one of which holds and can be written.
fn alternatives(peer: &Peer) -> Result<Vec<Who>, &'static str> {
    let all = choices(peer)?;
    for who in &all {
        let Who::Pods(namespaces, pods) = who else { continue };
        if namespaces.writable().len() * pods.writable().len() > SELECTORS {
            return Err("it takes too many selectors");
        }
        let accounts = pods.labels().get(SERVICE_ACCOUNT_LABEL);
        if accounts.is_some_and(|values| values.inverted || values.absent) {
            return Err("every service account but some");
        }
    }
    Ok(all)
}

fn choices(peer: &Peer) -> Result<Vec<Who>, &'static str> {
    Ok(match peer {
        Peer::Any => vec![Who::Any],
        Peer::Pods { namespaces, pods, .. } => vec![Who::Pods(namespaces.clone(), pods.clone())],
        Peer::Addresses(nets) => vec![Who::Addresses(AddressSet::from_nets(nets.iter().copied()))],
        Peer::Outside => return Err("everyone outside the cluster cannot be told by address"),
        Peer::Nodes(_) => return Err("nodes have no name in the language"),
        Peer::Domains(names) => vec![Who::Domains(names.clone())],
        Peer::Some(peers) => {
            let mut all = Vec::new();
            for peer in peers {
                all.extend(choices(peer)?);
            }
            all
        }
        Peer::All(peers) => {
            let mut all = vec![Who::Any];
            let outside = peers.contains(&Peer::Outside);
            for peer in peers.iter().filter(|peer| **peer != Peer::Outside) {
                all = match peer {
                    Peer::Not(other) => without(all, &choices(other)?)?,
                    peer => together(&all, &choices(peer)?)?,
                };
            }
            if outside {
                let narrow = |who| match who {
                    Who::Addresses(set) => Ok(Who::Outside(set)),
                    Who::Any => Err("everyone outside the cluster cannot be told by address"),
                    _ => Err("pods are not outside the cluster"),
                };
                all = all.into_iter().map(narrow).collect::<Result<_, _>>()?;
            }
            all
        }
        Peer::Not(other) => without(vec![Who::Any], &choices(other)?)?,
    })
}

fn together(all: &[Who], more: &[Who]) -> Result<Vec<Who>, &'static str> {
    let mut out = Vec::new();
    for a in all {
        for b in more {
            out.push(match (a, b) {
                (Who::Any, other) | (other, Who::Any) => other.clone(),
                (Who::Pods(an, ap), Who::Pods(bn, bp)) => {
                    let (namespaces, pods) = (an.intersect(bn), ap.intersect(bp));
                    if namespaces.is_empty() || pods.is_empty() {
                        continue;
                    }
                    Who::Pods(namespaces, pods)
                }
                (Who::Addresses(a), Who::Addresses(b)) => Who::Addresses(a.intersect(b)),
                _ => return Err("pods by label and by address at once"),
            });
        }
    }
    Ok(out)
}

fn without(all: Vec<Who>, not: &[Who]) -> Result<Vec<Who>, &'static str> {
    let mut left = all;
    for not in not {
        let mut next = Vec::new();
        for who in left {
            match (who, not) {
                (_, Who::Any) => {}
                (Who::Any, Who::Addresses(set)) => next.push(Who::Addresses(AddressSet::full().subtract(set))),
                (Who::Addresses(all), Who::Addresses(set)) => next.push(Who::Addresses(all.subtract(set))),
                (Who::Pods(namespaces, pods), Who::Pods(other, theirs)) => {
                    next.extend(
                        namespaces
                            .subtract(other)
                            .into_iter()
                            .map(|n| Who::Pods(n, pods.clone())),
                    );
                    let same = namespaces.intersect(other);
                    if !same.is_empty() {
                        next.extend(pods.subtract(theirs).into_iter().map(|p| Who::Pods(same.clone(), p)));
                    }
                }
                _ => return Err("everyone but certain pods cannot be said"),
            }
        }
        left = next;
    }
    Ok(left)
}

/// A peer in words of the language. `own` is the subject's namespace.
fn written(who: &Who, own: Option<&str>) -> Vec<Written> {
    match who {
        Who::Any => vec![Written {
            any: true,
            ..Written::default()
        }],
        Who::Addresses(set) | Who::Outside(set) => cidrs(set),
        Who::Domains(names) => vec![Written {
            fqdns: names.clone(),
            ..Written::default()
        }],
        Who::Pods(namespaces, pods) => {
            let here = own.is_some() && name_of(namespaces).as_deref() == own;
            both(namespaces, pods)
                .into_iter()
                .map(|(namespaces, (pods, accounts))| {
                    let said = !here || !accounts.is_empty();
                    Written {
                        pod_selector: (!pods.is_full() || !said).then(|| labels(&pods)),
                        namespace_selector: (!here).then(|| labels(&namespaces)),
                        service_accounts: accounts,
                        ..Written::default()
                    }
                })
                .collect()
        }
    }
}

fn cidrs(set: &AddressSet) -> Vec<Written> {
    let nets = set.to_nets().into_iter();
    nets.map(|net| Written {
        cidr: Some(net.to_string()),
        ..Written::default()
    })
    .collect()
}

/// The one namespace that a selector names.
fn name_of(namespaces: &Selector) -> Option<String> {
    let values = namespaces.labels().get(NAMESPACE_NAME_LABEL)?;
    let one = namespaces.labels().len() == 1 && !values.absent && !values.inverted && values.values.len() == 1;
    values.values.first().filter(|_| one).cloned()
}

/// Namespaces, and pods with their service accounts, as selectors that can be written.
fn both(namespaces: &Selector, pods: &Selector) -> Vec<(Selector, (Selector, Vec<String>))> {
    let accounts: Vec<String> = match pods.labels().get(SERVICE_ACCOUNT_LABEL) {
        Some(values) if !values.inverted && !values.absent => values.values.iter().cloned().collect(),
        _ => Vec::new(),
    };
    let plain = pods.labels().iter().filter(|(key, _)| *key != SERVICE_ACCOUNT_LABEL);
    let plain = plain.fold(Selector::full(), |all, (key, values)| {
        all.and(key.clone(), values.clone())
    });
    let pods = plain.writable();
    let all = namespaces.writable().into_iter().flat_map(|namespaces| {
        let accounts = &accounts;
        pods.iter()
            .map(move |pods| (namespaces.clone(), (pods.clone(), accounts.clone())))
            .collect::<Vec<_>>()
    });
    all.collect()
}

fn labels(selector: &Selector) -> LabelSelector {
    let mut written = LabelSelector::default();
    for (key, values) in selector.labels() {
        let list: Vec<String> = values.values.iter().cloned().collect();
        let mut require = |operator, values| {
            written.match_expressions.push(LabelRequirement {
                key: key.clone(),
                operator,
                values,
            });
        };
        match (values.absent, values.inverted, list.len()) {
            (false, false, 1) => written
                .match_labels
                .extend(list.into_iter().map(|value| (key.clone(), value))),
            (false, false, _) => require(LabelOperator::In, list),
            (true, false, _) => require(LabelOperator::DoesNotExist, Vec::new()),
            (true, true, _) => require(LabelOperator::NotIn, list),
            (false, true, 0) => require(LabelOperator::Exists, Vec::new()),
            (false, true, _) => {
                require(LabelOperator::Exists, Vec::new());
                require(LabelOperator::NotIn, list);
            }
        }
    }
    written
}
