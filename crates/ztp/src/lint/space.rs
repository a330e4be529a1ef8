//! Sets of events as boxes: a subject, a peer, services, and what must hold besides. Boxes are taken from each other
//! exactly within one way of telling endpoints; where two ways cannot be compared, nothing is taken away.

use crate::{
    document::{Action, Need},
    ir::{Direction, PeerSet, Policy, Rule},
    reach::domain_within,
    sets::{AddressSet, RequestSet, Selector, ServiceSet, representatives},
};

/// How endpoints are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Address,
    Label,
}

/// Most combinations of requests, trust and times that are told apart.
const ATOMS: usize = 1 << 14;

/// Which combinations of requests, trust and times are in a set, a bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Atoms(Vec<u64>);

impl Atoms {
    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
    fn and(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a & b).collect())
    }
    fn minus(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a & !b).collect())
    }
}

/// The combinations that rules tell apart.
pub(super) struct Combinations {
    requests: Vec<Option<crate::sets::HttpRequest>>,
    needs: Vec<Need>,
    times: Vec<i64>,
}

impl Combinations {
    /// Of these rules; `None` when there are too many.
    pub(super) fn of<'r>(rules: impl Iterator<Item = &'r Rule> + Clone) -> Option<Self> {
        let sets: Vec<&RequestSet> = rules.clone().filter_map(|r| r.condition.requests.as_ref()).collect();
        let boxes: usize = sets.iter().map(|s| s.boxes.len()).sum();
        // Requests that stand for all multiply: they are not even made where there would be too many.
        if boxes > 64 {
            return None;
        }
        let mut needs: Vec<Need> = rules.clone().flat_map(|r| r.condition.needs.iter().copied()).collect();
        needs.sort_unstable();
        needs.dedup();
        let mut times: Vec<i64> = rules
            .flat_map(|r| [r.condition.from, r.condition.until])
            .flatten()
            .collect();
        times.push(i64::MIN);
        times.sort_unstable();
        times.dedup();
        let mut requests = vec![None];
        if !sets.is_empty() {
            requests.extend(representatives(sets).into_iter().map(Some));
        }
        let all = Self { requests, needs, times };
        (all.count() <= ATOMS).then_some(all)
    }

    fn count(&self) -> usize {
        self.requests.len() * (1 << self.needs.len()) * self.times.len()
    }

    /// Those that a rule's condition takes.
    fn taken(&self, rule: &Rule) -> Atoms {
        let mut bits = vec![0u64; self.count().div_ceil(64)];
        let condition = &rule.condition;
        let mut at = 0;
        for request in &self.requests {
            let spoken = match (&condition.requests, request) {
                (None, _) => true,
                (Some(set), Some(request)) => set.matches(request),
                (Some(_), None) => false,
            };
            for shown in 0..1usize << self.needs.len() {
                let trusted = self
                    .needs
                    .iter()
                    .enumerate()
                    .all(|(i, need)| shown & (1 << i) != 0 || !condition.needs.contains(need));
                for time in &self.times {
                    if spoken && trusted && condition.counts_at(*time) {
                        bits[at / 64] |= 1 << (at % 64);
                    }
                    at += 1;
                }
            }
        }
        Atoms(bits)
    }
}

/// A set of events.
#[derive(Clone, Debug)]
pub(super) struct Region {
    pub(super) subject: PeerSet,
    pub(super) peer: PeerSet,
    pub(super) services: ServiceSet,
    atoms: Atoms,
}

/// Whom a policy governs.
pub(super) fn subjects(policy: &Policy, by: By) -> Vec<PeerSet> {
    let subject = &policy.subject;
    match by {
        By::Address if subject.addresses.is_empty() => Vec::new(),
        By::Address => vec![PeerSet::Addresses(subject.addresses.clone())],
        By::Label => {
            let only = |namespace: &str| {
                Selector::full().and(
                    crate::ir::NAMESPACE_NAME_LABEL,
                    crate::sets::LabelValues::within([namespace.to_owned()]),
                )
            };
            let own = subject.workloads.as_ref().map(|(namespace, pods)| PeerSet::Pods {
                namespaces: only(namespace),
                pods: pods.clone(),
            });
            let cluster = subject.cluster.as_ref().map(|(namespaces, pods)| PeerSet::Pods {
                namespaces: namespaces.clone(),
                pods: pods.clone(),
            });
            own.into_iter()
                .chain(cluster)
                .chain(subject.others.iter().cloned())
                .collect()
        }
    }
}

/// What a rule says, as disjoint or overlapping regions.
pub(super) fn regions(policy: &Policy, rule: &Rule, by: By, combinations: &Combinations) -> Vec<Region> {
    let atoms = combinations.taken(rule);
    if atoms.is_empty() || rule.services.is_empty() {
        return Vec::new();
    }
    let peers: Vec<PeerSet> = match by {
        By::Address if rule.peers.addresses.is_empty() => Vec::new(),
        By::Address => vec![PeerSet::Addresses(rule.peers.addresses.clone())],
        By::Label => rule.peers.workloads.iter().filter(|p| !is_empty(p)).cloned().collect(),
    };
    subjects(policy, by)
        .iter()
        .filter(|subject| !is_empty(subject))
        .flat_map(|subject| {
            peers.iter().map(|peer| Region {
                subject: subject.clone(),
                peer: peer.clone(),
                services: rule.services.clone(),
                atoms: atoms.clone(),
            })
        })
        .collect()
}

fn is_empty(set: &PeerSet) -> bool {
    match set {
        PeerSet::Any => false,
        PeerSet::Addresses(set) => set.is_empty(),
        PeerSet::Pods { namespaces, pods } => namespaces.is_empty() || pods.is_empty(),
        PeerSet::Principals(set) => set.is_empty(),
        PeerSet::Domains(set) | PeerSet::Hosts(set) | PeerSet::People(set) => set.is_empty(),
        PeerSet::Tags(tags) => tags.is_empty(),
    }
}

/// What of `a` is in `b`, and what is not; `None` where nothing of it surely is.
fn split(a: &PeerSet, b: &PeerSet) -> Option<(PeerSet, Vec<PeerSet>)> {
    let inside = |rest: Vec<PeerSet>| Some((a.clone(), rest));
    match (a, b) {
        (_, PeerSet::Any) => inside(Vec::new()),
        // Rules by address match everyone who has one, so everyone is every address.
        (PeerSet::Any, PeerSet::Addresses(b)) => {
            let rest = AddressSet::full().subtract(b);
            Some((PeerSet::Addresses(b.clone()), keep(PeerSet::Addresses(rest))))
        }
        (PeerSet::Addresses(a), PeerSet::Addresses(b)) => {
            let both = a.intersect(b);
            (!both.is_empty()).then(|| (PeerSet::Addresses(both), keep(PeerSet::Addresses(a.subtract(b)))))
        }
        (
            PeerSet::Pods { namespaces, pods },
            PeerSet::Pods {
                namespaces: b_namespaces,
                pods: b_pods,
            },
        ) => {
            let (both, both_pods) = (namespaces.intersect(b_namespaces), pods.intersect(b_pods));
            if both.is_empty() || both_pods.is_empty() {
                return None;
            }
            let mut rest: Vec<PeerSet> = namespaces
                .subtract(b_namespaces)
                .into_iter()
                .map(|namespaces| PeerSet::Pods {
                    namespaces,
                    pods: pods.clone(),
                })
                .collect();
            rest.extend(pods.subtract(b_pods).into_iter().map(|pods| PeerSet::Pods {
                namespaces: both.clone(),
                pods,
            }));
            let common = PeerSet::Pods {
                namespaces: both,
                pods: both_pods,
            };
            Some((common, rest))
        }
        (PeerSet::Principals(a_ids), PeerSet::Principals(b_ids)) => {
            a_ids.is_subset(b_ids).then_some(()).and(inside(Vec::new()))
        }
        (PeerSet::Domains(names), PeerSet::Domains(patterns)) => {
            let (within, rest) = names
                .iter()
                .cloned()
                .partition(|name| patterns.iter().any(|pattern| domain_within(name, pattern)));
            let within: std::collections::BTreeSet<String> = within;
            (!within.is_empty()).then(|| (PeerSet::Domains(within), keep(PeerSet::Domains(rest))))
        }
        (PeerSet::Hosts(a), PeerSet::Hosts(b)) => {
            let both = a & b;
            (!both.is_empty()).then(|| (PeerSet::Hosts(both), keep(PeerSet::Hosts(a - b))))
        }
        // Whoever is in several groups may be left over, though covered: that claims too little, never too much.
        (PeerSet::People(a), PeerSet::People(b)) => {
            let both = a & b;
            (!both.is_empty()).then(|| (PeerSet::People(both), keep(PeerSet::People(a - b))))
        }
        (PeerSet::Tags(inner), PeerSet::Tags(outer)) => {
            let within = outer.iter().all(|(k, v)| inner.get(k) == Some(v));
            within.then_some(()).and(inside(Vec::new()))
        }
        _ => None,
    }
}

fn keep(set: PeerSet) -> Vec<PeerSet> {
    if is_empty(&set) { Vec::new() } else { vec![set] }
}

impl Region {
    /// What is in both, as far as that is known.
    pub(super) fn common(&self, other: &Self) -> Option<Region> {
        let services = self.services.intersect(&other.services);
        let atoms = self.atoms.and(&other.atoms);
        if services.is_empty() || atoms.is_empty() {
            return None;
        }
        let (subject, _) = split(&self.subject, &other.subject)?;
        let (peer, _) = split(&self.peer, &other.peer)?;
        Some(Region {
            subject,
            peer,
            services,
            atoms,
        })
    }

    /// What is left without `other`.
    fn minus(self, other: &Self, rest: &mut Vec<Region>) {
        let services = self.services.intersect(&other.services);
        let atoms = self.atoms.and(&other.atoms);
        if services.is_empty() || atoms.is_empty() {
            rest.push(self);
            return;
        }
        let (Some((subject, subjects)), Some((peer, peers))) =
            (split(&self.subject, &other.subject), split(&self.peer, &other.peer))
        else {
            rest.push(self);
            return;
        };
        let with = |subject: PeerSet, peer: PeerSet, services: ServiceSet, atoms: Atoms| Region {
            subject,
            peer,
            services,
            atoms,
        };
        for outside in subjects {
            rest.push(with(
                outside,
                self.peer.clone(),
                self.services.clone(),
                self.atoms.clone(),
            ));
        }
        for outside in peers {
            rest.push(with(
                subject.clone(),
                outside,
                self.services.clone(),
                self.atoms.clone(),
            ));
        }
        let outside = self.services.subtract(&services);
        if !outside.is_empty() {
            rest.push(with(subject.clone(), peer.clone(), outside, self.atoms.clone()));
        }
        let outside = self.atoms.minus(&atoms);
        if !outside.is_empty() {
            rest.push(with(subject, peer, services, outside));
        }
    }
}

/// What is left of regions without others; `None` when that would take more than `work` steps.
pub(super) fn without(regions: Vec<Region>, others: &[Region], work: &mut usize) -> Option<Vec<Region>> {
    let mut left = regions;
    for other in others {
        *work = work.checked_sub(left.len())?;
        let mut next = Vec::with_capacity(left.len());
        for region in left {
            region.minus(other, &mut next);
        }
        left = next;
        if left.is_empty() {
            break;
        }
    }
    Some(left)
}

/// Whether `first` decides before `second` where both govern.
pub(super) fn decides_before(first: (&Policy, &Rule), second: (&Policy, &Rule)) -> bool {
    let order = |(policy, rule): (&Policy, &Rule)| (policy.tier, rule.action == Action::Allow);
    order(first) < order(second)
}

/// Who it is, in words.
pub(super) fn describe(set: &PeerSet) -> String {
    let list = |items: Vec<String>| {
        let more = items.len().saturating_sub(3);
        let mut text = items.into_iter().take(3).collect::<Vec<_>>().join(", ");
        if more > 0 {
            text.push_str(&format!(" and {more} more"));
        }
        text
    };
    match set {
        PeerSet::Any => "everyone".to_owned(),
        PeerSet::Addresses(set) if set.is_full() => "every address".to_owned(),
        PeerSet::Addresses(set) => list(set.to_nets().iter().map(ToString::to_string).collect()),
        PeerSet::Pods { namespaces, pods } => {
            let labels = |selector: &Selector, all: &str| {
                if selector.is_full() {
                    return all.to_owned();
                }
                let texts = selector.labels().iter().map(|(key, values)| {
                    let list: Vec<&str> = values.values.iter().map(String::as_str).collect();
                    match (values.absent, values.inverted, list.is_empty()) {
                        (true, false, true) => format!("without {key}"),
                        (_, true, true) => format!("with {key}"),
                        (_, true, false) => format!("{key} not {}", list.join(" or ")),
                        _ => format!("{key}={}", list.join(" or ")),
                    }
                });
                texts.collect::<Vec<_>>().join(", ")
            };
            format!(
                "pods ({}) of namespaces ({})",
                labels(pods, "all"),
                labels(namespaces, "all")
            )
        }
        PeerSet::Principals(set) => set.to_string(),
        PeerSet::Domains(names) | PeerSet::Hosts(names) => list(names.iter().cloned().collect()),
        PeerSet::Tags(tags) => format!(
            "instances with {}",
            list(tags.iter().map(|(k, v)| format!("{k}={v}")).collect())
        ),
        PeerSet::People(groups) => format!("people of {}", list(groups.iter().cloned().collect())),
    }
}

/// Both directions' rules of a policy with the policy.
pub(super) fn rules(policy: &Policy) -> impl Iterator<Item = (Direction, &Rule)> {
    Direction::BOTH
        .into_iter()
        .flat_map(move |d| policy.rules(d).unwrap_or_default().iter().map(move |rule| (d, rule)))
}
