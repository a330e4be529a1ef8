//! What targets that decide by address and in order are told: one list of rules a direction.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
};

use super::{Compiled, unenforced};
use crate::{
    document::{Action, Mode},
    ir::{DEFAULT_DENY, Direction, PeerSet, Policy, Rule},
    sets::{AddressSet, Bound, IntervalSet, ServiceSet},
};

/// One rule in its place in the order: the first that matches decides.
#[derive(Clone, Debug)]
pub(super) struct Entry<'p> {
    pub(super) policy: &'p Policy,
    /// The rule's name, or `default-deny`.
    pub(super) rule: &'p str,
    pub(super) field: &'p str,
    pub(super) allows: bool,
    /// Governed addresses: the source of egress, the destination of ingress.
    pub(super) subject: &'p AddressSet,
    /// The other side.
    pub(super) peers: AddressSet,
    pub(super) services: ServiceSet,
    /// Governed instances by tag, in the place of `subject`.
    pub(super) tags: Option<&'p Tags>,
    /// Instances on the other side of an allowing rule by tag, beside `peers`.
    pub(super) peer_tags: Vec<&'p Tags>,
}

/// Tags of instances, all of which they carry.
pub(super) type Tags = BTreeMap<String, String>;

/// Whether a target can say who carries some tags; `None` where it knows no tags.
pub(super) type Sayable = Option<fn(&Tags) -> bool>;

/// The tags that tell a policy's subject, where it has no addresses.
pub(super) fn subject_tags(policy: &Policy, sayable: Sayable) -> Vec<&Tags> {
    if !policy.subject.addresses.is_empty() {
        return Vec::new();
    }
    tags(&policy.subject.others, sayable).unwrap_or_default()
}

/// The tags of endpoints; `None` when some are told in another way.
fn tags(sets: &[PeerSet], sayable: Sayable) -> Option<Vec<&Tags>> {
    let sayable = sayable?;
    sets.iter()
        .map(|set| match set {
            PeerSet::Tags(tags) if sayable(tags) => Some(tags),
            _ => None,
        })
        .collect()
}

/// The tags of an allowing rule's peers, beside those that are told by address.
fn peer_tags(rule: &Rule, sayable: Sayable) -> Vec<&Tags> {
    if rule.action == Action::Deny {
        return Vec::new();
    }
    let tagged = |set: &&PeerSet| matches!(set, PeerSet::Tags(tags) if sayable.is_some_and(|known| known(tags)));
    let sets = rule.peers.workloads.iter().filter(tagged);
    sets.filter_map(|set| match set {
        PeerSet::Tags(tags) => Some(tags),
        _ => None,
    })
    .collect()
}

/// Whether every peer of an allowing rule without addresses is told by tags that the target can say.
fn all_said(rule: &Rule, sayable: Sayable) -> bool {
    rule.action == Action::Allow
        && rule.peers.workloads.iter().all(|set| match set {
            PeerSet::Any | PeerSet::Addresses(_) => true,
            PeerSet::Tags(tags) => sayable.is_some_and(|known| known(tags)),
            _ => false,
        })
}

/// The policies that are enforced on addresses. Why the others are not, and where rules shrink, is told as gaps.
pub(super) fn by_address<'p, P: Borrow<Policy>>(
    policies: &'p [P],
    target: &str,
    sayable: Sayable,
    out: &mut Compiled,
) -> Vec<&'p Policy> {
    let mut enforced = Vec::new();
    for policy in policies.iter().map(Borrow::borrow) {
        if policy.mode != Mode::Enforce {
            out.gap(&policy.name, unenforced(policy.mode));
            continue;
        }
        if policy.subject.addresses.is_empty() && subject_tags(policy, sayable).is_empty() {
            out.gap(
                &policy.name,
                format!("the subject has no addresses: {target} decides by address, and only labels are given"),
            );
            continue;
        }
        for rule in Direction::BOTH
            .iter()
            .flat_map(|d| policy.rules(*d).unwrap_or_default())
        {
            if !rule.peers.without_addresses.is_empty() && !all_said(rule, sayable) {
                out.gap(
                    format!("{}/{}", policy.name, rule.name),
                    match rule.action {
                        Action::Allow => "peers without addresses are not allowed",
                        Action::Deny => "a peer has no addresses: the rule denies everyone",
                    },
                );
            }
        }
        enforced.push(policy);
    }
    enforced
}

/// The rules of a direction in deciding order, the denials at the end included. Without subjects, nothing matches.
pub(super) fn entries<'p>(policies: &[&'p Policy], direction: Direction, sayable: Sayable) -> Vec<Entry<'p>> {
    let mut ordered: Vec<(u16, u8, Entry<'p>)> = Vec::new();
    for policy in policies.iter().copied() {
        let Some(rules) = policy.rules(direction) else {
            continue;
        };
        let subject = &policy.subject.addresses;
        let mut told: Vec<Option<&Tags>> = subject_tags(policy, sayable).into_iter().map(Some).collect();
        if told.is_empty() {
            told.push(None);
        }
        for tags in told {
            for rule in rules {
                let allows = rule.action == Action::Allow;
                ordered.push((
                    policy.tier,
                    u8::from(allows),
                    Entry {
                        policy,
                        rule: &rule.name,
                        field: &rule.field,
                        allows,
                        subject,
                        peers: rule.peers.addresses.clone(),
                        services: rule.services.clone(),
                        tags,
                        peer_tags: peer_tags(rule, sayable),
                    },
                ));
            }
            ordered.push((
                u16::MAX,
                2,
                Entry {
                    policy,
                    rule: DEFAULT_DENY,
                    field: "spec",
                    allows: false,
                    subject,
                    peers: AddressSet::full(),
                    services: ServiceSet::full(),
                    tags,
                    peer_tags: Vec::new(),
                },
            ));
        }
    }
    // Stable, so that output does not change without need.
    ordered.sort_by_key(|(tier, kind, _)| (*tier, *kind));
    ordered
        .into_iter()
        .map(|(.., entry)| entry)
        .filter(|entry| (!entry.peers.is_empty() || !entry.peer_tags.is_empty()) && !entry.services.is_empty())
        .collect()
}

/// IPv4 and IPv6 apart, for targets that do not mix them in one rule.
pub(super) fn families(set: &AddressSet) -> [Vec<String>; 2] {
    let nets = set.to_nets();
    let texts = |v4: bool| {
        nets.iter()
            .filter(|net| matches!(net, ipnet::IpNet::V4(_)) == v4)
            .map(ToString::to_string)
            .collect()
    };
    [texts(true), texts(false)]
}

/// A name of at most `most` characters that starts with a letter and has only lower-case letters, digits and hyphens.
/// A long one is cut and told apart by its number.
pub(super) fn name(number: usize, policy: &str, rule: &str, most: usize) -> String {
    let full = format!("garrison-{number:05}-{policy}-{rule}");
    let mut cut: String = full.chars().take(most).collect();
    while cut.ends_with('-') {
        cut.pop();
    }
    cut
}

/// `80` or `80-82`.
pub(super) fn ports(set: &crate::sets::IntervalSet<u16>) -> Vec<String> {
    set.ranges()
        .iter()
        .map(|(from, to)| {
            if from == to {
                from.to_string()
            } else {
                format!("{from}-{to}")
            }
        })
        .collect()
}

/// Addresses by the policies that govern them together, as places in the list. Ascending borders are walked once, so the
/// cost grows with the borders and with how many policies meet at each.
pub(super) fn together(policies: &[&Policy]) -> BTreeMap<Vec<usize>, AddressSet> {
    let sets = || policies.iter().map(|p| &p.subject.addresses);
    let v4 = sweep(&sets().map(|set| &set.v4).collect::<Vec<_>>());
    let v6 = sweep(&sets().map(|set| &set.v6).collect::<Vec<_>>());
    let mut all: BTreeMap<Vec<usize>, AddressSet> = BTreeMap::new();
    for (members, ranges) in v4 {
        all.entry(members).or_default().v4 = IntervalSet::from_ranges(ranges);
    }
    for (members, ranges) in v6 {
        all.entry(members).or_default().v6 = IntervalSet::from_ranges(ranges);
    }
    all
}

fn sweep<T: Bound>(sets: &[&IntervalSet<T>]) -> BTreeMap<Vec<usize>, Vec<(T, T)>> {
    let mut events = Vec::new();
    for (i, set) in sets.iter().enumerate() {
        for (start, end) in set.ranges() {
            events.push((*start, i, true));
            events.extend(end.next().map(|after| (after, i, false)));
        }
    }
    events.sort_unstable();
    let mut active = BTreeSet::new();
    let mut found: BTreeMap<Vec<usize>, Vec<(T, T)>> = BTreeMap::new();
    let mut at = 0;
    while at < events.len() {
        let place = events[at].0;
        while at < events.len() && events[at].0 == place {
            let (_, i, begins) = events[at];
            if begins {
                active.insert(i);
            } else {
                active.remove(&i);
            }
            at += 1;
        }
        let last = events.get(at).map_or(Some(T::MAX), |(next, ..)| next.previous());
        if let (false, Some(last)) = (active.is_empty(), last) {
            found
                .entry(active.iter().copied().collect())
                .or_default()
                .push((place, last));
        }
    }
    found
}

/// A name for who carries some tags: `role-web`, cut where it is long and told apart by what it was.
pub(super) fn tag_name(tags: &Tags, most: usize) -> String {
    let full: Vec<String> = tags.iter().map(|(key, value)| format!("{key}-{value}")).collect();
    let full = full.join("-");
    let plain: String = full
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    // Other tags may come down to the same letters.
    let hash: String = super::short_hash(&format!("{tags:?}")).chars().take(8).collect();
    let cut: String = plain.chars().take(most.saturating_sub(hash.len() + 1)).collect();
    format!("{}-{hash}", cut.trim_matches('-'))
}
