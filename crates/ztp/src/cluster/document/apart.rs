//! Documents taken apart, so that two can be held against each other, and their rules in words again.

use std::collections::BTreeMap;

use super::who::{self, Who};
use crate::{
    document::{Action, HttpMatch, Peer, Port, TrustLevel, ZeroTrustPolicy},
    ir::{self, NAMESPACE_NAME_LABEL, SERVICE_ACCOUNT_LABEL},
    security_group::ports,
    sets::{AddressSet, LabelValues, Selector, ServiceSet},
};

/// The most peers of one rule.
const PEERS: usize = 500;

/// Pods: their namespaces, and they in them.
pub(super) type Pods = (Selector, Selector);

pub(super) fn shared(a: &Pods, b: &Pods) -> Option<Pods> {
    (a.0.overlaps(&b.0) && a.1.overlaps(&b.1)).then(|| (a.0.intersect(&b.0), a.1.intersect(&b.1)))
}

pub(super) fn covers(all: &Pods, some: &Pods) -> bool {
    some.0.subtract(&all.0).is_empty() && some.1.subtract(&all.1).is_empty()
}

/// A document, taken apart.
pub(super) struct Set<'d> {
    pub(super) document: &'d ZeroTrustPolicy,
    pub(super) pods: Pods,
    /// Of ingress and egress; `None` where it says nothing about that.
    pub(super) rules: [Option<Vec<One>>; 2],
}

/// A rule, taken apart.
#[derive(Clone)]
pub(super) struct One {
    pub(super) action: Action,
    pub(super) peers: Vec<Who>,
    pub(super) services: ServiceSet,
    pub(super) http: Vec<HttpMatch>,
    pub(super) requires: Option<TrustLevel>,
}

impl One {
    /// Whether it decides about all of its ports, whoever comes and whatever is said.
    pub(super) fn decides(&self) -> bool {
        self.peers.contains(&Who::Any) && self.http.is_empty() && self.requires.is_none()
    }

    pub(super) fn with(&self, action: Action, services: &ServiceSet) -> Self {
        Self {
            action,
            services: services.clone(),
            requires: self.requires.filter(|_| action == Action::Allow),
            ..self.clone()
        }
    }
}

impl<'d> Set<'d> {
    pub(super) fn of(document: &'d ZeroTrustPolicy) -> Self {
        let lowered = ir::lower(document, 0);
        let pods = match (lowered.subject.workloads, lowered.subject.cluster) {
            (Some((namespace, pods)), _) => (
                Selector::full().and(NAMESPACE_NAME_LABEL, LabelValues::within([namespace])),
                pods,
            ),
            (None, Some(pods)) => pods,
            (None, None) => Default::default(),
        };
        let one = |action, peers: &[Peer], rule: &ir::Rule, http: &[HttpMatch], requires| One {
            action,
            peers: peers.iter().map(|peer| read(peer, &pods.0)).collect(),
            services: rule.services.clone(),
            http: http.to_vec(),
            requires,
        };
        let spec = &document.spec;
        let ingress = spec.ingress.as_ref().zip(lowered.ingress).map(|(rules, lowered)| {
            let rules = rules.iter().zip(&lowered);
            rules
                .map(|(r, lowered)| one(r.action, &r.from, lowered, &r.http, r.requires))
                .collect()
        });
        let egress = spec.egress.as_ref().zip(lowered.egress).map(|(rules, lowered)| {
            let rules = rules.iter().zip(&lowered);
            rules
                .map(|(r, lowered)| one(r.action, &r.to, lowered, &r.http, r.requires))
                .collect()
        });
        Self {
            document,
            rules: [ingress, egress],
            pods,
        }
    }

    pub(super) fn rules(&self, direction: usize, action: Action) -> impl Iterator<Item = &One> {
        let rules = self.rules[direction].iter().flatten();
        rules.filter(move |rule| rule.action == action)
    }

    /// Where it comes from.
    pub(super) fn origin(&self) -> &str {
        let reason = self.document.spec.reason.as_deref().unwrap_or_default();
        reason.strip_prefix("imported from ").unwrap_or(reason)
    }
}

/// A peer as importers write it. `own` are the subject's namespaces.
fn read(peer: &Peer, own: &Selector) -> Who {
    let nets = |texts: &[String]| {
        AddressSet::from_nets(texts.iter().filter_map(|text| crate::decode::read_network(text).ok()))
    };
    if peer.any {
        Who::Any
    } else if let Some(cidr) = &peer.cidr {
        Who::Addresses(nets(std::slice::from_ref(cidr)).subtract(&nets(&peer.except)))
    } else if !peer.spiffe_ids.is_empty() {
        Who::Identities(peer.spiffe_ids.clone())
    } else if !peer.fqdns.is_empty() {
        Who::Domains(peer.fqdns.clone())
    } else {
        let namespaces = peer.namespace_selector.as_ref();
        let mut pods = peer.pod_selector.as_ref().map_or_else(Selector::full, ir::selector);
        if !peer.service_accounts.is_empty() {
            let accounts = LabelValues::within(peer.service_accounts.iter().cloned());
            pods = pods.and(SERVICE_ACCOUNT_LABEL, accounts);
        }
        Who::Pods(namespaces.map_or_else(|| own.clone(), ir::selector), pods)
    }
}

/// Those that say something about a direction.
pub(super) fn saying<'s, 'd>(sets: &'s [Set<'d>], direction: usize) -> Vec<&'s Set<'d>> {
    sets.iter().filter(|set| set.rules[direction].is_some()).collect()
}

/// Documents of one tier together, the lowest tier first.
pub(super) fn tiers<'s, 'd>(sets: &[&'s Set<'d>]) -> Vec<Vec<&'s Set<'d>>> {
    let mut tiers: BTreeMap<u16, Vec<&'s Set<'d>>> = BTreeMap::new();
    for set in sets {
        tiers.entry(set.document.spec.tier).or_default().push(set);
    }
    tiers.into_values().collect()
}

/// Rules with their peers and ports in words of the language.
pub(super) fn parts<'r>(
    rules: &'r [One],
    own: Option<&str>,
    left_out: &mut Vec<String>,
    origin: &str,
) -> Vec<(&'r One, Vec<Peer>, Vec<Port>)> {
    let mut all = Vec::new();
    for rule in rules {
        let (mut list, lost) = ports(&rule.services);
        if lost {
            left_out.push(format!("{origin}: a protocol has no name in the language"));
            if rule.action == Action::Deny {
                list.clear();
            }
        }
        if list.is_empty() && !rule.services.is_full() && rule.action == Action::Allow {
            continue;
        }
        let peers: Vec<Peer> = rule.peers.iter().flat_map(|who| who::written(who, own)).collect();
        all.extend(peers.chunks(PEERS).map(|peers| (rule, peers.to_vec(), list.clone())));
    }
    all
}
