//! Who can reach whom in large clusters: sparse rows, and a policy at a time.
//!
//! Endpoints with the same labels, named ports and place among the addresses are one class, whatever policies there are.
//! A class has one row a direction: what it may speak with the classes that some rule tells apart from the rest, and
//! what with the rest. A row depends on the policies that govern its class alone, so a changed policy costs as much as
//! the classes that it governs. [`super::Reach`] computes the same pair by pair; it is the simpler one, and this is held
//! against it in tests.

mod borders;
mod services;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use borders::Borders;
use services::{Row, Service, Services};

use super::{
    classes::{in_order, outside},
    program::{Action, Endpoint, Identity, Network, Peer, Policy, Program, Rest},
};
use crate::{
    ir::{Direction, NAMESPACE_NAME_LABEL},
    sets::{Labels, Selector, ServiceSet},
};

/// What endpoints of one class have in common: kind, node's network, labels of the namespace, own labels, named ports,
/// places among the addresses, and name.
type Alike<'e> = (
    u8,
    bool,
    &'e Labels,
    &'e Labels,
    &'e [super::NamedPort],
    Vec<usize>,
    &'e str,
);

/// Classes by what selectors ask for.
#[derive(Debug, Default)]
struct Index {
    /// Namespaces with the same labels: their labels and their classes of pods.
    namespaces: Vec<(Labels, Vec<u32>)>,
    by_name: HashMap<String, Vec<u32>>,
    by_label: HashMap<(String, String), Vec<u32>>,
}

/// Most predicates whose classes are remembered.
const PREDICATES: usize = 1 << 20;

/// Who can reach whom on the cluster's own network.
#[derive(Debug)]
pub struct Matrix {
    network: Network,
    endpoints: Vec<Endpoint>,
    class_of: Vec<u32>,
    /// An endpoint of each class, and how many it has.
    classes: Vec<(usize, u64)>,
    /// The borders at which addresses are told apart.
    nets: Vec<ipnet::IpNet>,
    index: Index,
    services: Services,
    /// Egress, ingress.
    rows: [Vec<Row>; 2],
    /// For each class, the policies that govern it: plane, stage, policy.
    governing: Vec<Vec<(u32, u32, u32)>>,
    /// For each class, the classes whose egress rows tell it apart, in ascending order.
    told_apart: Vec<Vec<u32>>,
    /// The classes of predicates that were asked for.
    of_peers: HashMap<Peer, Option<Arc<[u32]>>>,
}

/// A changed policy speaks of addresses where none were told apart before: everything has to be computed anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// There is no such policy.
    #[error("there is no policy at this place")]
    NoSuchPolicy,
    /// New borders among addresses.
    #[error("the policy tells addresses apart that none did before, so everything has to be computed anew")]
    NewAddresses,
}

fn slot(direction: Direction) -> usize {
    match direction {
        Direction::Egress => 0,
        Direction::Ingress => 1,
    }
}

impl Matrix {
    /// Computes everything for the cluster's own network.
    pub fn of(program: &Program) -> Self {
        let nets = program.nets();
        let mut endpoints = program.endpoints.clone();
        endpoints.extend(outside(&nets));
        let network = program.networks.first().cloned().unwrap_or_default();
        let named = program
            .policies()
            .flat_map(|p| Direction::BOTH.into_iter().flat_map(|d| p.rules(d).unwrap_or_default()))
            .any(|rule| !rule.ports.named.is_empty());
        let mut matrix = Self {
            network,
            class_of: Vec::with_capacity(endpoints.len()),
            classes: Vec::new(),
            endpoints,
            nets,
            index: Index::default(),
            services: Services::default(),
            rows: Default::default(),
            governing: Vec::new(),
            told_apart: Vec::new(),
            of_peers: HashMap::new(),
        };
        matrix.classify(named);
        matrix.build_index();
        matrix.govern();
        let count = matrix.classes.len();
        matrix.told_apart = vec![Vec::new(); count];
        for direction in Direction::BOTH {
            matrix.rows[slot(direction)] = (0..count).map(|_| Row::default()).collect();
            for class in 0..count as u32 {
                matrix.compute(class, direction);
            }
        }
        matrix
    }

    fn classify(&mut self, named: bool) {
        let borders = Borders::of(&self.nets);
        let mut known: HashMap<Alike<'_>, u32> = HashMap::new();
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            let (kind, host, name) = match &endpoint.identity {
                Identity::Workload { host_network, .. } => (0, *host_network, ""),
                Identity::Node { .. } => (1, false, ""),
                Identity::Domain { name } => (2, false, name.as_str()),
                Identity::IngressController => (3, false, ""),
                Identity::External => (4, false, ""),
            };
            let mut places: Vec<usize> = endpoint.addresses.iter().map(|a| borders.place(*a)).collect();
            places.sort_unstable();
            places.dedup();
            let ports: &[super::NamedPort] = if named { &endpoint.ports } else { &[] };
            let next = self.classes.len() as u32;
            let key = (
                kind,
                host,
                &endpoint.namespace_labels,
                &endpoint.labels,
                ports,
                places,
                name,
            );
            let class = *known.entry(key).or_insert(next);
            if class == next {
                self.classes.push((i, 0));
            }
            self.classes[class as usize].1 += 1;
            self.class_of.push(class);
        }
    }

    fn build_index(&mut self) {
        let mut places: HashMap<&Labels, usize> = HashMap::new();
        let index = &mut self.index;
        for (class, (endpoint, _)) in (0u32..).zip(&self.classes) {
            let endpoint = &self.endpoints[*endpoint];
            if !matches!(
                endpoint.identity,
                Identity::Workload { .. } | Identity::IngressController
            ) {
                continue;
            }
            let place = *places.entry(&endpoint.namespace_labels).or_insert_with(|| {
                index.namespaces.push((endpoint.namespace_labels.clone(), Vec::new()));
                index.namespaces.len() - 1
            });
            index.namespaces[place].1.push(class);
            if let Some(name) = endpoint.namespace_labels.get(NAMESPACE_NAME_LABEL) {
                index.by_name.entry(name.clone()).or_default().push(class);
            }
            for (key, value) in &endpoint.labels {
                index
                    .by_label
                    .entry((key.clone(), value.clone()))
                    .or_default()
                    .push(class);
            }
        }
    }

    fn representative(&self, class: u32) -> &Endpoint {
        &self.endpoints[self.classes[class as usize].0]
    }

    /// [`Self::search`], remembered.
    fn of_peer(&mut self, peer: &Peer) -> Option<Arc<[u32]>> {
        if let Some(known) = self.of_peers.get(peer) {
            return known.clone();
        }
        let found: Option<Arc<[u32]>> = self.search(peer).map(Into::into);
        if self.of_peers.len() < PREDICATES {
            self.of_peers.insert(peer.clone(), found.clone());
        }
        found
    }

    /// The classes of a predicate, in ascending order; `None` for everyone.
    fn search(&self, peer: &Peer) -> Option<Vec<u32>> {
        let all = || 0..self.classes.len() as u32;
        match peer {
            Peer::Any => None,
            Peer::Pods { namespaces, pods, .. } => {
                let near = self.near(namespaces, pods);
                let matching = |class: &u32| peer.matches(self.representative(*class));
                let mut found: Vec<u32> = match near {
                    Some(near) => near.into_iter().filter(matching).collect(),
                    None => all().filter(matching).collect(),
                };
                found.sort_unstable();
                found.dedup();
                Some(found)
            }
            Peer::All(peers) => {
                // Whichever part has the fewest candidates; all of it is looked at again.
                let near = peers
                    .iter()
                    .filter_map(|peer| match peer {
                        Peer::Pods { namespaces, pods, .. } => self.near(namespaces, pods),
                        _ => None,
                    })
                    .min_by_key(Vec::len);
                let matching = |class: &u32| peer.matches(self.representative(*class));
                let mut found: Vec<u32> = match near {
                    Some(near) => near.into_iter().filter(matching).collect(),
                    None => all().filter(matching).collect(),
                };
                found.sort_unstable();
                found.dedup();
                Some(found)
            }
            Peer::Some(peers) => {
                let mut found = Vec::new();
                for peer in peers {
                    found.extend(self.search(peer)?);
                }
                found.sort_unstable();
                found.dedup();
                Some(found)
            }
            _ => Some(
                all()
                    .filter(|class| peer.matches(self.representative(*class)))
                    .collect(),
            ),
        }
    }

    /// Classes among which those of the selectors are; `None` for no narrower choice than all.
    fn near(&self, namespaces: &Selector, pods: &Selector) -> Option<Vec<u32>> {
        let listed = |values: &crate::sets::LabelValues| !values.absent && !values.inverted;
        let index = &self.index;
        if let Some(names) = namespaces.labels().get(NAMESPACE_NAME_LABEL).filter(|v| listed(v)) {
            let lists = names.values.iter().filter_map(|name| index.by_name.get(name));
            return Some(lists.flatten().copied().collect());
        }
        let by_label = pods
            .labels()
            .iter()
            .filter(|(_, values)| listed(values))
            .map(|(key, values)| {
                let lists = values
                    .values
                    .iter()
                    .filter_map(|value| index.by_label.get(&(key.clone(), value.clone())));
                lists.collect::<Vec<_>>()
            })
            .min_by_key(|lists| lists.iter().map(|list| list.len()).sum::<usize>());
        if let Some(lists) = by_label {
            return Some(lists.into_iter().flatten().copied().collect());
        }
        if namespaces.is_full() {
            return None;
        }
        let matching = index.namespaces.iter().filter(|(labels, _)| namespaces.matches(labels));
        Some(matching.flat_map(|(_, classes)| classes.iter().copied()).collect())
    }

    fn govern(&mut self) {
        let mut governing = vec![Vec::new(); self.classes.len()];
        let network = std::mem::take(&mut self.network);
        for (p, plane) in (0u32..).zip(&network.planes) {
            for (s, stage) in (0u32..).zip(&plane.stages) {
                for (i, policy) in (0u32..).zip(&stage.policies) {
                    match self.of_peer(&policy.subject) {
                        Some(classes) => classes
                            .iter()
                            .for_each(|class| governing[*class as usize].push((p, s, i))),
                        None => governing.iter_mut().for_each(|list| list.push((p, s, i))),
                    }
                }
            }
        }
        self.network = network;
        self.governing = governing;
    }

    /// Computes one row anew.
    fn compute(&mut self, class: u32, direction: Direction) {
        // Rows are made of the network's policies and change everything but them.
        let network = std::mem::take(&mut self.network);
        let row = self.row(&network, class, direction);
        self.network = network;
        let old = std::mem::replace(&mut self.rows[slot(direction)][class as usize], row);
        if direction == Direction::Egress {
            for (other, _) in &old.others {
                let list = &mut self.told_apart[*other as usize];
                if let Ok(at) = list.binary_search(&class) {
                    list.remove(at);
                }
            }
            for (other, _) in &self.rows[0][class as usize].others {
                let list = &mut self.told_apart[*other as usize];
                if let Err(at) = list.binary_search(&class) {
                    list.insert(at, class);
                }
            }
        }
    }

    fn row(&mut self, network: &Network, class: u32, direction: Direction) -> Row {
        let places = std::mem::take(&mut self.governing[class as usize]);
        let full = self.services.number(&ServiceSet::full());
        let mut row = Row {
            rest: full,
            others: Vec::new(),
        };
        for (p, plane) in (0u32..).zip(&network.planes) {
            let stages: Vec<(&super::Stage, Vec<&Policy>)> = (0u32..)
                .zip(&plane.stages)
                .map(|(s, stage)| {
                    let here = places.iter().filter(|(of, at, _)| (*of, *at) == (p, s));
                    let policies = here.map(|(_, _, i)| &stage.policies[*i as usize]);
                    (
                        stage,
                        policies.filter(|policy| policy.rules(direction).is_some()).collect(),
                    )
                })
                .collect();
            if stages.iter().all(|(_, policies)| policies.is_empty()) {
                continue;
            }
            let side = self.side(p, &stages, class, direction);
            row = if row.rest == full && row.others.is_empty() {
                side
            } else {
                self.both_rows(&row, &side)
            };
        }
        self.governing[class as usize] = places;
        row
    }

    /// What both rows let pass.
    fn both_rows(&mut self, a: &Row, b: &Row) -> Row {
        let rest = self.services.both(a.rest, b.rest);
        let mut classes: Vec<u32> = a.others.iter().chain(&b.others).map(|(class, _)| *class).collect();
        classes.sort_unstable();
        classes.dedup();
        let others = classes
            .into_iter()
            .map(|class| (class, self.services.both(a.at(class), b.at(class))))
            .filter(|(_, service)| *service != rest)
            .collect();
        Row { rest, others }
    }

    /// What one plane lets pass on one side of a class.
    fn side(&mut self, plane: u32, stages: &[(&super::Stage, Vec<&Policy>)], class: u32, direction: Direction) -> Row {
        let mut rules: Vec<Matched<'_>> = Vec::new();
        let mut any: Vec<u32> = Vec::new();
        let mut pairs: Vec<(u32, u32)> = Vec::new();
        // Which stages decide at all, for what is remembered.
        let mut mask = 0u64;
        for (s, (stage, policies)) in stages.iter().enumerate() {
            if !policies.is_empty() && s < 64 {
                mask |= 1 << s;
            }
            for (_, rule) in in_order(stage.order, policies, direction) {
                let number = rules.len() as u32;
                let action = match rule.action {
                    Action::Accept => 0u64,
                    Action::Deny => 1,
                    Action::Pass => 2,
                };
                let ports = u64::from(self.services.number(&rule.ports.numbers));
                rules.push(Matched {
                    stage: s,
                    action: rule.action,
                    ports: &rule.ports,
                    code: (s as u64) << 40 | action << 36 | ports,
                });
                let mut everyone = false;
                for peer in &rule.peers {
                    match self.of_peer(peer) {
                        None => everyone = true,
                        Some(classes) => pairs.extend(classes.iter().map(|other| (*other, number))),
                    }
                }
                if everyone {
                    any.push(number);
                }
            }
        }
        let named = rules.iter().any(|rule| !rule.ports.named.is_empty());
        let named_there = named && direction == Direction::Egress;
        let own = self.classes[class as usize].0;
        if named_there {
            // A name of a port means what each destination calls so.
            pairs.extend((0..self.classes.len() as u32).flat_map(|other| {
                let ports = !self.representative(other).ports.is_empty();
                let nothing = u32::MAX;
                ports.then_some((other, nothing))
            }));
        }
        pairs.sort_unstable();
        pairs.dedup();
        let memorable = !named && stages.len() <= 64;
        let key_start = [u64::from(plane), mask];
        let decide = |this: &mut Self, list: &[u32], destination: Option<usize>| -> Service {
            if memorable {
                let mut key = key_start.to_vec();
                key.extend(list.iter().map(|i| rules[*i as usize].code));
                if let Some(known) = this.services.decided.get(&key) {
                    return *known;
                }
                let set = decided(stages, &rules, list, None);
                let number = this.services.number(&set);
                this.services.decided.insert(key, number);
                return number;
            }
            let set = decided(stages, &rules, list, destination.map(|d| &this.endpoints[d]));
            this.services.number(&set)
        };
        let at_own = (direction == Direction::Ingress).then_some(own);
        let rest = decide(self, &any, at_own);
        let mut others: Vec<(u32, Service)> = Vec::new();
        // Few different lists of rules match in one row.
        let mut known: Vec<(Vec<u32>, Service)> = Vec::new();
        let mut list: Vec<u32> = Vec::new();
        let mut start = 0;
        while start < pairs.len() {
            let other = pairs[start].0;
            let mut end = start;
            list.clear();
            while end < pairs.len() && pairs[end].0 == other {
                if pairs[end].1 != u32::MAX {
                    list.push(pairs[end].1);
                }
                end += 1;
            }
            start = end;
            list.extend(&any);
            list.sort_unstable();
            list.dedup();
            let service = if named_there {
                let there = self.classes[other as usize].0;
                decide(self, &list, Some(there))
            } else {
                match known.iter().find(|(rules, _)| *rules == list) {
                    Some((_, service)) => *service,
                    None => {
                        let service = decide(self, &list, at_own);
                        known.push((list.clone(), service));
                        service
                    }
                }
            };
            if service != rest {
                others.push((other, service));
            }
        }
        Row { rest, others }
    }

    /// The endpoints: those of the program, then ranges of addresses outside.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// How many classes of endpoints there are.
    pub fn classes(&self) -> usize {
        self.classes.len()
    }

    /// What `source` may open to `destination`, by their places among the endpoints.
    pub fn allowed(&self, source: usize, destination: usize) -> ServiceSet {
        let (s, d) = (self.class_of[source], self.class_of[destination]);
        let egress = self.rows[0][s as usize].at(d);
        let ingress = self.rows[1][d as usize].at(s);
        self.services.all[egress as usize].intersect(&self.services.all[ingress as usize])
    }

    /// Ordered pairs of endpoints, the same one twice included, between which something may be spoken.
    pub fn connected(&mut self) -> u64 {
        let mut by_rest: BTreeMap<Service, u64> = BTreeMap::new();
        for (row, (_, weight)) in self.rows[0].iter().zip(&self.classes) {
            *by_rest.entry(row.rest).or_default() += weight;
        }
        let mut total = 0;
        let Self {
            rows,
            services,
            classes,
            told_apart,
            ..
        } = self;
        for (d, ingress) in (0u32..).zip(&rows[1]) {
            let weight = classes[d as usize].1;
            let mut sources: i64 = 0;
            for (rest, of) in &by_rest {
                if services.meet(*rest, ingress.rest) {
                    sources += *of as i64;
                }
            }
            // Sources that either side tells apart are counted as they are instead of as the rest.
            let apart = ingress.others.iter().map(|(s, _)| *s).chain(
                told_apart[d as usize]
                    .iter()
                    .copied()
                    .filter(|s| ingress.others.binary_search_by_key(s, |(c, _)| *c).is_err()),
            );
            for s in apart {
                let egress = &rows[0][s as usize];
                let of = classes[s as usize].1 as i64;
                if services.meet(egress.rest, ingress.rest) {
                    sources -= of;
                }
                if services.meet(egress.at(d), ingress.at(s)) {
                    sources += of;
                }
            }
            total += sources as u64 * weight;
        }
        total
    }

    /// Puts a policy in the place of another, and computes what that changes: plane, stage and policy by their places.
    /// Answers with how many classes the old or the new one governs.
    ///
    /// # Errors
    /// When there is no policy at this place, or the new one tells addresses apart that none did before. Then nothing is
    /// changed.
    pub fn replace(&mut self, plane: usize, stage: usize, policy: usize, new: Policy) -> Result<usize, ChangeError> {
        let mut known = true;
        let mut visit = |peer: &Peer| {
            if let Peer::Addresses(nets) = peer {
                known &= nets.iter().all(|net| self.nets.binary_search(net).is_ok());
            }
        };
        new.subject.visit(&mut visit);
        for direction in Direction::BOTH {
            for rule in new.rules(direction).unwrap_or_default() {
                rule.peers.iter().for_each(|peer| peer.visit(&mut visit));
            }
        }
        if !known {
            return Err(ChangeError::NewAddresses);
        }
        let place = self
            .network
            .planes
            .get_mut(plane)
            .and_then(|p| p.stages.get_mut(stage))
            .and_then(|s| s.policies.get_mut(policy))
            .ok_or(ChangeError::NoSuchPolicy)?;
        let old = std::mem::replace(place, new);
        let new = self.network.planes[plane].stages[stage].policies[policy]
            .subject
            .clone();
        let count = self.classes.len() as u32;
        let mut governed = |peer: &Peer| -> Vec<u32> {
            self.of_peer(peer)
                .map_or_else(|| (0..count).collect(), |classes| classes.to_vec())
        };
        let (before, after) = (governed(&old.subject), governed(&new));
        let key = (plane as u32, stage as u32, policy as u32);
        for class in &before {
            self.governing[*class as usize].retain(|k| *k != key);
        }
        for class in &after {
            let list = &mut self.governing[*class as usize];
            let at = list.binary_search(&key).unwrap_or_else(|at| at);
            list.insert(at, key);
        }
        let mut changed = before;
        changed.extend(after);
        changed.sort_unstable();
        changed.dedup();
        for class in &changed {
            for direction in Direction::BOTH {
                self.compute(*class, direction);
            }
        }
        Ok(changed.len())
    }
}

/// A rule that may match.
struct Matched<'r> {
    stage: usize,
    action: Action,
    ports: &'r super::Ports,
    /// Stage, action and ports in one number.
    code: u64,
}

/// What a plane comes to for a peer that these rules match, in their order. Names of ports are those of `destination`.
fn decided(
    stages: &[(&super::Stage, Vec<&Policy>)],
    rules: &[Matched<'_>],
    list: &[u32],
    destination: Option<&Endpoint>,
) -> ServiceSet {
    let (mut open, mut accepted) = (ServiceSet::full(), ServiceSet::empty());
    for (s, (stage, policies)) in stages.iter().enumerate() {
        if policies.is_empty() {
            continue;
        }
        let mut passed = ServiceSet::empty();
        for rule in list.iter().map(|i| &rules[*i as usize]).filter(|rule| rule.stage == s) {
            let here = match destination.filter(|_| !rule.ports.named.is_empty()) {
                Some(destination) => rule.ports.at(destination),
                None => rule.ports.numbers.clone(),
            };
            let hit = open.intersect(&here);
            open = open.subtract(&hit);
            match rule.action {
                Action::Accept => accepted = accepted.union(&hit),
                Action::Deny => {}
                Action::Pass => passed = passed.union(&hit),
            }
        }
        if stage.rest == Rest::Deny {
            open = ServiceSet::empty();
        }
        open = open.union(&passed);
    }
    accepted.union(&open)
}
