//! What a change of policies, or of workloads, opens and closes.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::{
    classes::Reach,
    connections::{Side, services, shown, sides},
    program::{Endpoint, Identity, Program},
};
use crate::sets::ServiceSet;

/// What one pair of ends gained and lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The network; empty for the cluster's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// Who opens it.
    pub source: Side,
    /// To whom.
    pub destination: Side,
    /// What is possible now and was not.
    #[serde(serialize_with = "services")]
    pub gained: ServiceSet,
    /// What was possible and is not now.
    #[serde(serialize_with = "services")]
    pub lost: ServiceSet,
}

/// Who is the same endpoint before and after.
fn key(endpoint: &Endpoint) -> (Identity, Vec<std::net::IpAddr>) {
    let addresses = match endpoint.identity {
        Identity::External => endpoint.addresses.clone(),
        _ => Vec::new(),
    };
    let mut identity = endpoint.identity.clone();
    if let Identity::Workload { host_network, .. } = &mut identity {
        *host_network = false;
    }
    (identity, addresses)
}

/// Every connection gained and lost from `before` to `after`, exactly.
pub fn diff(before: &Program, after: &Program, within: bool) -> Vec<Change> {
    // The same ranges of addresses outside on both sides.
    let cuts: Vec<ipnet::IpNet> = before.nets().into_iter().chain(after.nets()).collect();
    let (old, new) = (Reach::with_cuts(before, &cuts), Reach::with_cuts(after, &cuts));
    let mut names: Vec<&str> = old.networks().chain(new.networks()).collect();
    names.sort_unstable();
    names.dedup();

    // Everyone, with the index before and after.
    let mut everyone: BTreeMap<_, (Option<usize>, Option<usize>)> = BTreeMap::new();
    for (i, endpoint) in old.endpoints().iter().enumerate() {
        everyone.entry(key(endpoint)).or_default().0 = Some(i);
    }
    for (i, endpoint) in new.endpoints().iter().enumerate() {
        everyone.entry(key(endpoint)).or_default().1 = Some(i);
    }
    let pairs: Vec<(Option<usize>, Option<usize>)> = everyone.values().copied().collect();
    let endpoints: Vec<Endpoint> = pairs
        .iter()
        .filter_map(|(a, b)| {
            b.map(|b| &new.endpoints()[b])
                .or_else(|| a.map(|a| &old.endpoints()[a]))
                .cloned()
        })
        .collect();

    let mut changes = Vec::new();
    for name in names {
        let before = old.networks().position(|n| n == name);
        let after = new.networks().position(|n| n == name);
        let class = |reach: &Reach<'_>, network: Option<usize>, i: Option<usize>| {
            network.and_then(|n| i.and_then(|i| reach.networks[n].class_of[i]))
        };
        // Those who are in the same class before and in the same class after change alike.
        let mut known = HashMap::new();
        let joint: Vec<usize> = pairs
            .iter()
            .zip(&endpoints)
            .map(|((a, b), endpoint)| {
                let kind = std::mem::discriminant(&endpoint.identity);
                let next = known.len();
                *known
                    .entry((class(&old, before, *a), class(&new, after, *b), kind))
                    .or_insert(next)
            })
            .collect();
        let classes: HashMap<usize, (Option<usize>, Option<usize>)> =
            known.iter().map(|((a, b, _), group)| (*group, (*a, *b))).collect();
        let sides = sides(&endpoints, |i| Some(joint[i]));
        let allowed =
            |reach: &Reach<'_>, network: Option<usize>, a: Option<usize>, b: Option<usize>| match (network, a, b) {
                (Some(n), Some(a), Some(b)) => reach.networks[n].allowed(a, b).clone(),
                _ => ServiceSet::empty(),
            };
        for (a, sources) in &sides {
            for (b, destinations) in &sides {
                let (was, is) = (
                    allowed(&old, before, classes[a].0, classes[b].0),
                    allowed(&new, after, classes[a].1, classes[b].1),
                );
                if was == is {
                    continue;
                }
                for source in sources {
                    for destination in destinations {
                        if shown(source, destination, within) {
                            changes.push(Change {
                                network: name.to_owned(),
                                source: source.clone(),
                                destination: destination.clone(),
                                gained: is.subtract(&was),
                                lost: was.subtract(&is),
                            });
                        }
                    }
                }
            }
        }
    }
    changes.sort_by(|a, b| (&a.network, &a.source, &a.destination).cmp(&(&b.network, &b.source, &b.destination)));
    changes
}
