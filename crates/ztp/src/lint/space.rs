//! Sets of events as boxes: a subject, a peer, services, and what must hold besides. Boxes are taken from each other
//! exactly within one way of telling endpoints; where two ways cannot be compared, nothing is taken away.

use std::rc::Rc;

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

impl By {
    const ALL: [Self; 2] = [Self::Address, Self::Label];
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
    fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(a, b)| a & b != 0)
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
    pub(super) fn taken(&self, rule: &Rule) -> Atoms {
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

/// A set of events. Parts are shared: a piece of a region mostly has all but one of them in common with it.
#[derive(Clone, Debug)]
pub(super) struct Region {
    pub(super) subject: Rc<PeerSet>,
    pub(super) peer: Rc<PeerSet>,
    pub(super) services: Rc<ServiceSet>,
    atoms: Rc<Atoms>,
}

/// Whom a policy governs.
fn subjects(policy: &Policy, by: By) -> Vec<PeerSet> {
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

/// A rule and whom it is about, in both ways of telling.
pub(super) struct Shape<'p> {
    pub(super) policy: &'p Policy,
    pub(super) rule: &'p Rule,
    subjects: [Vec<Rc<PeerSet>>; 2],
    peers: [Vec<Rc<PeerSet>>; 2],
    services: Rc<ServiceSet>,
}

impl<'p> Shape<'p> {
    pub(super) fn of(policy: &'p Policy, rule: &'p Rule) -> Self {
        let shared = |sets: Vec<PeerSet>| sets.into_iter().filter(|set| !is_empty(set)).map(Rc::new).collect();
        Self {
            policy,
            rule,
            subjects: By::ALL.map(|by| shared(subjects(policy, by))),
            peers: [
                shared(vec![PeerSet::Addresses(rule.peers.addresses.clone())]),
                shared(rule.peers.workloads.clone()),
            ],
            services: Rc::new(rule.services.clone()),
        }
    }

    /// The ways in which the policy tells its subject.
    pub(super) fn ways(&self) -> impl Iterator<Item = By> {
        let policy = self.policy;
        By::ALL.into_iter().filter(move |by| !subjects(policy, *by).is_empty())
    }
}

/// What a rule says among others: its shape, and which of their combinations it takes.
#[derive(Clone, Copy)]
pub(super) struct Said<'s> {
    pub(super) shape: &'s Shape<'s>,
    pub(super) atoms: &'s Rc<Atoms>,
}

impl Said<'_> {
    /// Whether an event may be said by both, without making it; `None` when that would take more than `work` steps.
    pub(super) fn meets(&self, other: &Self, by: By, work: &mut usize) -> Option<bool> {
        if !self.atoms.overlaps(other.atoms) || !self.shape.services.overlaps(&other.shape.services) {
            return Some(false);
        }
        let mut any = |own: &[Rc<PeerSet>], theirs: &[Rc<PeerSet>]| {
            *work = work.checked_sub(own.len().saturating_mul(theirs.len()))?;
            Some(own.iter().any(|a| theirs.iter().any(|b| touches(a, b))))
        };
        let by = by as usize;
        Some(
            any(&self.shape.subjects[by], &other.shape.subjects[by])?
                && any(&self.shape.peers[by], &other.shape.peers[by])?,
        )
    }

    /// As disjoint or overlapping regions.
    pub(super) fn regions(&self, by: By) -> Vec<Region> {
        if self.atoms.is_empty() || self.shape.services.is_empty() {
            return Vec::new();
        }
        let by = by as usize;
        let (subjects, peers) = (&self.shape.subjects[by], &self.shape.peers[by]);
        subjects
            .iter()
            .flat_map(|subject| {
                peers.iter().map(|peer| Region {
                    subject: Rc::clone(subject),
                    peer: Rc::clone(peer),
                    services: Rc::clone(&self.shape.services),
                    atoms: Rc::clone(self.atoms),
                })
            })
            .collect()
    }
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

/// Whether something of `a` surely is in `b`.
fn touches(a: &PeerSet, b: &PeerSet) -> bool {
    match (a, b) {
        // Rules by address match everyone who has one, so everyone is every address.
        (_, PeerSet::Any) | (PeerSet::Any, PeerSet::Addresses(_)) => true,
        (PeerSet::Addresses(a), PeerSet::Addresses(b)) => a.overlaps(b),
        (
            PeerSet::Pods { namespaces, pods },
            PeerSet::Pods {
                namespaces: b_namespaces,
                pods: b_pods,
            },
        ) => namespaces.overlaps(b_namespaces) && pods.overlaps(b_pods),
        (PeerSet::Principals(a), PeerSet::Principals(b)) => a.is_subset(b),
        (PeerSet::Domains(names), PeerSet::Domains(patterns)) => names
            .iter()
            .any(|name| patterns.iter().any(|pattern| domain_within(name, pattern))),
        (PeerSet::Hosts(a), PeerSet::Hosts(b)) | (PeerSet::People(a), PeerSet::People(b)) => !a.is_disjoint(b),
        (PeerSet::Tags(inner), PeerSet::Tags(outer)) => outer.iter().all(|(k, v)| inner.get(k) == Some(v)),
        _ => false,
    }
}

/// What of `a` is in `b`, and what is not; `None` where nothing of it surely is.
fn split(a: &Rc<PeerSet>, b: &PeerSet) -> Option<(Rc<PeerSet>, Vec<Rc<PeerSet>>)> {
    if !touches(a, b) {
        return None;
    }
    let parts = |both: PeerSet, rest: PeerSet| {
        let rest = (!is_empty(&rest)).then(|| Rc::new(rest));
        (Rc::new(both), rest.into_iter().collect())
    };
    Some(match (&**a, b) {
        (PeerSet::Any, PeerSet::Addresses(b)) => parts(
            PeerSet::Addresses(b.clone()),
            PeerSet::Addresses(AddressSet::full().subtract(b)),
        ),
        (PeerSet::Addresses(a), PeerSet::Addresses(b)) => {
            parts(PeerSet::Addresses(a.intersect(b)), PeerSet::Addresses(a.subtract(b)))
        }
        (
            PeerSet::Pods { namespaces, pods },
            PeerSet::Pods {
                namespaces: b_namespaces,
                pods: b_pods,
            },
        ) => {
            let (both, both_pods) = (namespaces.intersect(b_namespaces), pods.intersect(b_pods));
            let set = |namespaces, pods| Rc::new(PeerSet::Pods { namespaces, pods });
            let outside = namespaces.subtract(b_namespaces).into_iter();
            let mut rest: Vec<Rc<PeerSet>> = outside.map(|outside| set(outside, pods.clone())).collect();
            rest.extend(pods.subtract(b_pods).into_iter().map(|pods| set(both.clone(), pods)));
            (set(both, both_pods), rest)
        }
        (PeerSet::Domains(names), PeerSet::Domains(patterns)) => {
            let (within, rest) = names
                .iter()
                .cloned()
                .partition(|name| patterns.iter().any(|pattern| domain_within(name, pattern)));
            parts(PeerSet::Domains(within), PeerSet::Domains(rest))
        }
        (PeerSet::Hosts(a), PeerSet::Hosts(b)) => parts(PeerSet::Hosts(a & b), PeerSet::Hosts(a - b)),
        // Whoever is in several groups may be left over, though covered: that claims too little, never too much.
        (PeerSet::People(a), PeerSet::People(b)) => parts(PeerSet::People(a & b), PeerSet::People(a - b)),
        // What touches the others is wholly inside.
        _ => (Rc::clone(a), Vec::new()),
    })
}

impl Region {
    pub(super) fn meets(&self, other: &Self) -> bool {
        self.atoms.overlaps(&other.atoms)
            && self.services.overlaps(&other.services)
            && touches(&self.subject, &other.subject)
            && touches(&self.peer, &other.peer)
    }

    /// What is in both, as far as that is known.
    pub(super) fn common(&self, other: &Self) -> Option<Region> {
        if !self.meets(other) {
            return None;
        }
        let (subject, _) = split(&self.subject, &other.subject)?;
        let (peer, _) = split(&self.peer, &other.peer)?;
        Some(Region {
            subject,
            peer,
            services: Rc::new(self.services.intersect(&other.services)),
            atoms: Rc::new(self.atoms.and(&other.atoms)),
        })
    }

    /// What is left without `other`.
    fn minus(self, other: &Self, rest: &mut Vec<Region>) {
        if !self.meets(other) {
            rest.push(self);
            return;
        }
        let (Some((subject, subjects)), Some((peer, peers))) =
            (split(&self.subject, &other.subject), split(&self.peer, &other.peer))
        else {
            rest.push(self);
            return;
        };
        for outside in subjects {
            rest.push(Region {
                subject: outside,
                ..self.clone()
            });
        }
        for outside in peers {
            rest.push(Region {
                subject: Rc::clone(&subject),
                peer: outside,
                ..self.clone()
            });
        }
        let inside = Region { subject, peer, ..self };
        let outside = inside.services.subtract(&other.services);
        if !outside.is_empty() {
            rest.push(Region {
                services: Rc::new(outside),
                ..inside.clone()
            });
        }
        let outside = inside.atoms.minus(&other.atoms);
        if !outside.is_empty() {
            rest.push(Region {
                services: Rc::new(inside.services.intersect(&other.services)),
                atoms: Rc::new(outside),
                ..inside
            });
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
