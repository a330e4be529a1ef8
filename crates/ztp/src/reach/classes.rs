//! Endpoints that no predicate tells apart become one class, and classes are compared pairwise.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

use super::program::{Action, Endpoint, Identity, Network, Order, Peer, Policy, Ports, Program, Rest, Rule};
use crate::{
    ir::Direction,
    sets::{AddressSet, Bound, IntervalSet, ServiceSet},
};

/// What every pair of endpoints may speak.
#[derive(Debug)]
pub struct Reach<'p> {
    pub(super) program: &'p Program,
    /// The program's endpoints, then ranges of addresses outside.
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) networks: Vec<NetworkReach<'p>>,
}

#[derive(Debug)]
pub(super) struct NetworkReach<'p> {
    pub(super) network: &'p Network,
    /// The class of each endpoint; `None` when it is not on this network.
    pub(super) class_of: Vec<Option<usize>>,
    /// For each class, one endpoint that stands for all.
    pub(super) representatives: Vec<usize>,
    /// Which predicates hold, a bit each, for each class.
    signatures: Vec<Box<[u64]>>,
    predicates: HashMap<&'p Peer, usize>,
    /// What a class may open to another: `[source * classes + destination]`.
    allowed: Vec<ServiceSet>,
}

impl<'p> Reach<'p> {
    /// Computes everything.
    pub fn of(program: &'p Program) -> Self {
        Self::with_cuts(program, &[])
    }

    /// Computes everything, and tells addresses outside apart at the borders of `cuts` too.
    pub fn with_cuts(program: &'p Program, cuts: &[IpNet]) -> Self {
        let mut nets = program.nets();
        nets.extend_from_slice(cuts);
        let mut endpoints = program.endpoints.clone();
        endpoints.extend(outside(&nets));
        let networks = program
            .networks
            .iter()
            .map(|network| NetworkReach::of(network, &endpoints))
            .collect();
        Self {
            program,
            endpoints,
            networks,
        }
    }

    /// The endpoints: those of the program, then ranges of addresses outside.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The names of the networks, the cluster's own (which has no name) first.
    pub fn networks(&self) -> impl Iterator<Item = &str> {
        self.networks.iter().map(|n| n.network.name.as_str())
    }

    /// What `source` may open to `destination`; nothing when one of them is not on the network.
    pub fn allowed(&self, network: usize, source: usize, destination: usize) -> ServiceSet {
        let on = &self.networks[network];
        match (on.class_of[source], on.class_of[destination]) {
            (Some(a), Some(b)) => on.allowed(a, b).clone(),
            _ => ServiceSet::empty(),
        }
    }

    /// How many classes of endpoints the first network has.
    pub fn classes(&self) -> usize {
        self.networks.first().map_or(0, |n| n.representatives.len())
    }
}

/// Ranges of addresses that no network begins or ends in.
pub(super) fn outside(nets: &[IpNet]) -> Vec<Endpoint> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for net in nets {
        match net {
            IpNet::V4(net) => v4.push((u32::from(net.network()), u32::from(net.broadcast()))),
            IpNet::V6(net) => v6.push((u128::from(net.network()), u128::from(net.broadcast()))),
        }
    }
    let endpoint = |first: IpAddr, range: AddressSet| Endpoint {
        identity: Identity::External,
        namespace_labels: Default::default(),
        labels: Default::default(),
        addresses: vec![first],
        ports: Vec::new(),
        networks: Vec::new(),
        range,
    };
    let mut all = Vec::new();
    for (start, end) in pieces(&v4) {
        let range = AddressSet {
            v4: IntervalSet::from_ranges([(start, end)]),
            v6: IntervalSet::empty(),
        };
        all.push(endpoint(IpAddr::V4(start.into()), range));
    }
    for (start, end) in pieces(&v6) {
        let range = AddressSet {
            v4: IntervalSet::empty(),
            v6: IntervalSet::from_ranges([(start, end)]),
        };
        all.push(endpoint(IpAddr::V6(start.into()), range));
    }
    all
}

fn pieces<T: Bound>(ranges: &[(T, T)]) -> Vec<(T, T)> {
    let mut starts = vec![T::MIN];
    for (start, end) in ranges {
        starts.push(*start);
        starts.extend(end.next());
    }
    starts.sort_unstable();
    starts.dedup();
    let ends = starts[1..].iter().filter_map(|s| s.previous()).chain([T::MAX]);
    starts.iter().copied().zip(ends).collect()
}

/// One side of one class on one plane: policies that govern it, in the order in which they decide.
pub(super) struct Governing<'p> {
    pub(super) stages: Vec<(&'p super::Stage, Vec<&'p Policy>)>,
}

impl<'p> NetworkReach<'p> {
    fn of(network: &'p Network, endpoints: &[Endpoint]) -> Self {
        let mut predicates: HashMap<&'p Peer, usize> = HashMap::new();
        let mut named = false;
        for policy in network
            .planes
            .iter()
            .flat_map(|p| &p.stages)
            .flat_map(|stage| &stage.policies)
        {
            let mut know = |peer: &'p Peer| {
                let next = predicates.len();
                predicates.entry(peer).or_insert(next);
            };
            know(&policy.subject);
            for rule in Direction::BOTH
                .iter()
                .flat_map(|d| policy.rules(*d).unwrap_or_default())
            {
                rule.peers.iter().for_each(&mut know);
                named |= !rule.ports.named.is_empty();
            }
        }
        let words = predicates.len().div_ceil(64).max(1);
        let mut known = HashMap::new();
        let mut reach = Self {
            network,
            class_of: Vec::with_capacity(endpoints.len()),
            representatives: Vec::new(),
            signatures: Vec::new(),
            predicates,
            allowed: Vec::new(),
        };
        for (i, endpoint) in endpoints.iter().enumerate() {
            let Some(endpoint) = on(endpoint, &network.name) else {
                reach.class_of.push(None);
                continue;
            };
            let mut signature = vec![0u64; words].into_boxed_slice();
            for (peer, bit) in &reach.predicates {
                if peer.matches(&endpoint) {
                    signature[bit / 64] |= 1 << (bit % 64);
                }
            }
            // Named ports count only where a rule asks for one; outside is kept apart from pods for display.
            let ports = if named { endpoint.ports.clone() } else { Vec::new() };
            let kind = std::mem::discriminant(&endpoint.identity);
            let next = reach.representatives.len();
            let class = *known.entry((signature.clone(), ports, kind)).or_insert(next);
            if class == next {
                reach.representatives.push(i);
                reach.signatures.push(signature);
            }
            reach.class_of.push(Some(class));
        }
        reach.compute(endpoints);
        reach
    }

    pub(super) fn allowed(&self, source: usize, destination: usize) -> &ServiceSet {
        &self.allowed[source * self.representatives.len() + destination]
    }

    pub(super) fn matches(&self, class: usize, peer: &Peer) -> bool {
        self.predicates
            .get(peer)
            .is_some_and(|bit| self.signatures[class][bit / 64] & (1 << (bit % 64)) != 0)
    }

    pub(super) fn governing(&self, class: usize, direction: Direction) -> Vec<Governing<'p>> {
        let planes = self.network.planes.iter();
        planes
            .map(|plane| Governing {
                stages: plane
                    .stages
                    .iter()
                    .map(|stage| {
                        let policies = stage.policies.iter();
                        let here = policies
                            .filter(|p| p.rules(direction).is_some() && self.matches(class, &p.subject))
                            .collect();
                        (stage, here)
                    })
                    .collect(),
            })
            .collect()
    }

    fn compute(&mut self, endpoints: &[Endpoint]) {
        let count = self.representatives.len();
        let mut allowed = vec![ServiceSet::full(); count * count];
        for direction in Direction::BOTH {
            for class in 0..count {
                let planes = self.governing(class, direction);
                if planes.iter().all(|p| p.stages.iter().all(|(_, here)| here.is_empty())) {
                    continue;
                }
                for peer in 0..count {
                    let (source, destination) = match direction {
                        Direction::Egress => (class, peer),
                        Direction::Ingress => (peer, class),
                    };
                    let cell = &mut allowed[source * count + destination];
                    let target = &endpoints[self.representatives[destination]];
                    for plane in &planes {
                        if cell.is_empty() {
                            break;
                        }
                        let side = plane.decide(direction, target, |p| self.matches(peer, p));
                        *cell = cell.intersect(&side);
                    }
                }
            }
        }
        self.allowed = allowed;
    }
}

/// The endpoint as it is on a network; `None` when it is not on it.
pub(super) fn on<'e>(endpoint: &'e Endpoint, network: &str) -> Option<std::borrow::Cow<'e, Endpoint>> {
    if network.is_empty() {
        return Some(std::borrow::Cow::Borrowed(endpoint));
    }
    let (_, addresses) = endpoint.networks.iter().find(|(name, _)| name == network)?;
    Some(std::borrow::Cow::Owned(Endpoint {
        addresses: addresses.clone(),
        ..endpoint.clone()
    }))
}

/// The rules of a stage in deciding order.
pub(super) fn in_order<'p>(
    order: Order,
    policies: &[&'p Policy],
    direction: Direction,
) -> impl Iterator<Item = (&'p Policy, &'p Rule)> {
    type Wanted = fn(Action) -> bool;
    let all = |wanted: Wanted| {
        policies.iter().copied().flat_map(move |policy| {
            policy
                .rules(direction)
                .unwrap_or_default()
                .iter()
                .filter(move |rule| wanted(rule.action))
                .map(move |rule| (policy, rule))
        })
    };
    let (first, second): (Wanted, Wanted) = match order {
        Order::InOrder => (|_| true, |_| false),
        Order::DenyFirst => (|a| a == Action::Deny, |a| a != Action::Deny),
    };
    all(first).chain(all(second)).collect::<Vec<_>>().into_iter()
}

impl Governing<'_> {
    /// What the plane lets pass on this side.
    fn decide(&self, direction: Direction, destination: &Endpoint, matches: impl Fn(&Peer) -> bool) -> ServiceSet {
        let mut open = ServiceSet::full();
        let mut accepted = ServiceSet::empty();
        for (stage, policies) in &self.stages {
            if policies.is_empty() {
                continue;
            }
            let mut passed = ServiceSet::empty();
            for (_, rule) in in_order(stage.order, policies, direction) {
                if open.is_empty() {
                    break;
                }
                if !rule.peers.iter().any(&matches) {
                    continue;
                }
                let hit = open.intersect(&at(&rule.ports, destination));
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
}

fn at(ports: &Ports, destination: &Endpoint) -> ServiceSet {
    if ports.named.is_empty() {
        ports.numbers.clone()
    } else {
        ports.at(destination)
    }
}
