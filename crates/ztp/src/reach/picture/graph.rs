//! What is drawn: boxes of ends, and as few lines as say the same.

use std::collections::{BTreeMap, BTreeSet};

use super::{MOST_ENDS, MOST_LINES, TooLarge};
use crate::{
    reach::{Connection, Side},
    sets::ServiceSet,
};

/// One network: a picture of its own.
pub(super) struct Section<'c> {
    /// Empty for the cluster's own.
    pub(super) network: &'c str,
    /// Who opens connections.
    pub(super) sources: Vec<Group<'c>>,
    /// What they reach.
    pub(super) destinations: Vec<Group<'c>>,
    /// Where lines end, box by box: first what is about the whole box, then about its members in their order.
    pub(super) targets: Vec<Target>,
    /// The lines.
    pub(super) lines: Vec<Line>,
}

/// A box.
pub(super) struct Group<'c> {
    /// What its members have in common.
    pub(super) title: &'c str,
    /// Its members, in order.
    pub(super) members: Vec<&'c Side>,
}

/// Protocols and ports of a destination, or of each in a box.
pub(super) struct Target {
    /// The box.
    pub(super) group: usize,
    /// The member; `None` for each of them.
    pub(super) member: Option<usize>,
    /// Protocols and ports.
    pub(super) services: ServiceSet,
}

/// One line.
pub(super) struct Line {
    /// The box that it comes from.
    pub(super) group: usize,
    /// The member; `None` for each of them.
    pub(super) member: Option<usize>,
    /// Where it ends, in [`Section::targets`].
    pub(super) target: usize,
}

/// An end by its box and its place in it.
type Place = (usize, usize);

/// Where lines end: the box, the member of it or each, and protocols and ports in words, which put them in order.
type End = (usize, Option<usize>, String);

/// Boxes in their order: namespaces by name, then what is in none.
fn group_of(side: &Side) -> (u8, &str) {
    match side {
        Side::Workload { namespace, .. } => (0, namespace),
        Side::Node(_) => (1, "nodes"),
        Side::Domain(_) => (2, "names in DNS"),
        Side::IngressController => (3, "ingress"),
        Side::External(..) => (4, "outside the cluster"),
    }
}

fn groups<'c>(sides: impl Iterator<Item = &'c Side>) -> Vec<Group<'c>> {
    let mut all: BTreeMap<(u8, &str), BTreeSet<&Side>> = BTreeMap::new();
    for side in sides {
        all.entry(group_of(side)).or_default().insert(side);
    }
    all.into_iter()
        .map(|((_, title), members)| Group {
            title,
            members: members.into_iter().collect(),
        })
        .collect()
}

fn places<'c>(groups: &[Group<'c>]) -> BTreeMap<&'c Side, Place> {
    let each = groups.iter().enumerate().flat_map(|(g, group)| {
        let members = group.members.iter().enumerate();
        members.map(move |(m, side)| (*side, (g, m)))
    });
    each.collect()
}

/// The connections network by network.
pub(super) fn sections(connections: &[Connection]) -> Result<Vec<Section<'_>>, TooLarge> {
    let mut networks: BTreeMap<&str, Vec<&Connection>> = BTreeMap::new();
    for connection in connections {
        networks.entry(&connection.network).or_default().push(connection);
    }
    let mut sections = Vec::new();
    let (mut ends, mut lines) = ([0, 0], 0);
    for (network, connections) in networks {
        let sources = groups(connections.iter().map(|c| &c.source));
        let destinations = groups(connections.iter().map(|c| &c.destination));
        // Before lines are merged, which takes every pair.
        for (side, (count, groups)) in ends.iter_mut().zip([&sources, &destinations]).enumerate() {
            *count += groups.iter().map(|group| group.members.len()).sum::<usize>();
            let what = ["ends that open connections", "ends that are reached"][side];
            within(what, *count, MOST_ENDS)?;
        }
        let section = section(network, sources, destinations, &connections);
        lines += section.lines.len();
        sections.push(section);
    }
    within("lines", lines, MOST_LINES)?;
    Ok(sections)
}

fn within(what: &'static str, count: usize, most: usize) -> Result<(), TooLarge> {
    if count > most {
        return Err(TooLarge { what, count, most });
    }
    Ok(())
}

fn section<'c>(
    network: &'c str,
    sources: Vec<Group<'c>>,
    destinations: Vec<Group<'c>>,
    connections: &[&'c Connection],
) -> Section<'c> {
    let (from, to) = (places(&sources), places(&destinations));
    let mut edges: BTreeMap<(Place, Place), ServiceSet> = BTreeMap::new();
    for connection in connections {
        let places = (from.get(&connection.source), to.get(&connection.destination));
        if let (Some(from), Some(to)) = places {
            let services = edges.entry((*from, *to)).or_default();
            *services = services.union(&connection.services);
        }
    }
    // Where each line ends, in the order in which it is drawn, with who gets there.
    let mut ends: BTreeMap<End, (ServiceSet, BTreeSet<Place>)> = BTreeMap::new();
    let mut reach = |group, member, services: &ServiceSet, source| {
        let key = (group, member, services.to_string());
        let entry = ends.entry(key).or_insert_with(|| (services.clone(), BTreeSet::new()));
        entry.1.insert(source);
    };
    for (side, source) in &from {
        for (g, group) in destinations.iter().enumerate() {
            // A line to a whole box says nothing about an end and itself.
            let others: Vec<Place> = (0..group.members.len())
                .filter(|m| group.members[*m] != *side)
                .map(|m| (g, m))
                .collect();
            let (Some(first), true) = (others.first(), others.len() > 1) else {
                continue;
            };
            let Some(services) = edges.get(&(*source, *first)).cloned() else {
                continue;
            };
            if others.iter().all(|to| edges.get(&(*source, *to)) == Some(&services)) {
                reach(g, None, &services, *source);
                for to in &others {
                    edges.remove(&(*source, *to));
                }
            }
        }
    }
    for ((source, (group, member)), services) in &edges {
        reach(*group, Some(*member), services, *source);
    }
    let (mut targets, mut lines) = (Vec::new(), Vec::new());
    for ((group, member, _), (services, mut left)) in ends {
        let target = targets.len();
        let own = member.map(|m| destinations[group].members[m]);
        for (g, source) in sources.iter().enumerate() {
            let others: Vec<Place> = (0..source.members.len())
                .filter(|m| Some(source.members[*m]) != own)
                .map(|m| (g, m))
                .collect();
            if others.len() > 1 && others.iter().all(|place| left.contains(place)) {
                for place in &others {
                    left.remove(place);
                }
                lines.push(Line {
                    group: g,
                    member: None,
                    target,
                });
            }
        }
        lines.extend(left.into_iter().map(|(group, member)| Line {
            group,
            member: Some(member),
            target,
        }));
        targets.push(Target {
            group,
            member,
            services,
        });
    }
    Section {
        network,
        sources,
        destinations,
        targets,
        lines,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn side(number: u8) -> Side {
        Side::Workload {
            namespace: format!("ns{}", number / 4),
            name: format!("w{}", number % 4),
            kind: "Deployment".to_owned(),
        }
    }

    fn port(number: u16) -> ServiceSet {
        let mut set = ServiceSet::empty();
        set.insert(6, number, number);
        set
    }

    /// Every pair that the lines say, a line from or to a box for each pair but an end and itself.
    fn said(section: &Section<'_>) -> BTreeMap<(Side, Side), ServiceSet> {
        let mut all: BTreeMap<(Side, Side), ServiceSet> = BTreeMap::new();
        let of = |group: &Group<'_>, member: Option<usize>| -> Vec<Side> {
            match member {
                Some(member) => vec![group.members[member].clone()],
                None => group.members.iter().map(|side| (*side).clone()).collect(),
            }
        };
        for line in &section.lines {
            let target = &section.targets[line.target];
            let whole = line.member.is_none() || target.member.is_none();
            for source in of(&section.sources[line.group], line.member) {
                for destination in of(&section.destinations[target.group], target.member) {
                    if !(whole && source == destination) {
                        let told = all.insert((source.clone(), destination), target.services.clone());
                        assert!(told.is_none(), "two lines say the same");
                    }
                }
            }
        }
        all
    }

    proptest! {
        #[test]
        fn merged_lines_say_what_the_connections_do(
            pairs in prop::collection::btree_map((0u8..9, 0u8..9), 80u16..82, 0..60),
            dense in any::<bool>(),
        ) {
            let mut pairs = pairs;
            if dense {
                // Nearly everybody reaches everybody.
                for a in 0..9 {
                    for b in 0..9 {
                        if a != b && (a, b) != (3, 7) {
                            pairs.insert((a, b), 80);
                        }
                    }
                }
            }
            let connections: Vec<Connection> = pairs
                .iter()
                .map(|((a, b), number)| Connection {
                    network: String::new(),
                    source: side(*a),
                    destination: side(*b),
                    services: port(*number),
                })
                .collect();
            let sections = sections(&connections).unwrap();
            let expected: BTreeMap<(Side, Side), ServiceSet> = connections
                .iter()
                .map(|c| ((c.source.clone(), c.destination.clone()), c.services.clone()))
                .collect();
            let found = sections.first().map(said).unwrap_or_default();
            prop_assert_eq!(found, expected);
            if dense && pairs.values().all(|number| *number == 80) {
                let lines = sections[0].lines.len();
                prop_assert!(lines < pairs.len() / 2, "{} lines for {} connections", lines, pairs.len());
            }
        }
    }

    #[test]
    fn what_nobody_could_read_is_refused() {
        let connection = |a: usize, b: usize| Connection {
            network: String::new(),
            source: Side::Node(format!("{a}")),
            destination: Side::Domain(format!("{b}")),
            services: port(u16::try_from(a).unwrap()),
        };
        let many: Vec<Connection> = (0..=MOST_ENDS).map(|i| connection(i, 0)).collect();
        let error = sections(&many).err().unwrap();
        assert_eq!((error.count, error.most), (MOST_ENDS + 1, MOST_ENDS));
        let dense: Vec<Connection> = (0..50).flat_map(|a| (0..50).map(move |b| connection(a, b))).collect();
        // Each has a port of its own, and reaches each: fifty lines to the whole box.
        assert_eq!(sections(&dense).unwrap()[0].lines.len(), 50);
        let uneven: Vec<Connection> = dense
            .into_iter()
            .enumerate()
            .filter(|(i, _)| i % 11 != 0)
            .map(|(_, c)| c)
            .collect();
        assert_eq!(sections(&uneven).err().map(|error| error.what), Some("lines"));
    }
}
