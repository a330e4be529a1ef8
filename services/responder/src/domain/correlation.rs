//! Which alerts belong to one incident.
//!
//! Every alert leaves *facts*: its source acted, at a stage, in a minute; each of its targets suffered, at a
//! stage, in a minute. Two facts about one host link their alerts when
//!
//! * both say that it acted, and they lie within the window; or
//! * one says that it suffered and a later one, within the window, that it acted, and together they are a
//!   plausible compromise: what it suffered explains what it did (see [`Stage::access`], [`Stage::conduct`]).
//!
//! That two sources touched one host links nothing, so a popular server does not glue strangers together. An
//! alert with many targets leaves no facts about them: a sweep of the network says nothing about which of its
//! hosts fell. An incident is a connected component of alerts under this relation, which is symmetric and
//! looks at pairs only: the order in which alerts arrive does not matter.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{alert::AlertFacts, stage::Stage};

/// Below this sum of access and conduct, suffering and acting are unrelated: being scanned (0.3) explains
/// lateral movement (0.9) but not scanning (0.6).
const PLAUSIBLE: f64 = 1.2 - 1e-9;

/// How far apart, and how many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CorrelationPolicy {
    /// Alerts further apart than this many minutes are not linked.
    pub window_minutes: i64,
    /// An alert with more targets than this leaves no facts about its targets.
    pub max_fanout: usize,
    /// At most so many incidents are merged by one alert, the best linked first.
    pub max_merge: usize,
}

impl Default for CorrelationPolicy {
    fn default() -> Self {
        Self {
            window_minutes: 30,
            max_fanout: 16,
            max_merge: 32,
        }
    }
}

/// What a host did in an alert; the number is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i16)]
pub enum Role {
    /// It acted.
    Source = 0,
    /// It suffered.
    Target = 1,
}

/// One host in one alert.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fact {
    /// The host, as in [`super::alert::Party::host`].
    pub host: String,
    /// Whether it acted or suffered.
    pub role: Role,
    /// What it did or suffered.
    pub stage: Stage,
    /// The minute since the epoch.
    pub minute: i64,
}

/// The facts of an alert, its source's first.
pub fn facts(alert: &AlertFacts, policy: &CorrelationPolicy) -> Vec<Fact> {
    let minute = alert.last_seen.timestamp().div_euclid(60);
    let stages = alert.stages();
    let strongest = |weight: fn(Stage) -> f64| {
        stages
            .iter()
            .copied()
            .max_by(|a, b| weight(*a).total_cmp(&weight(*b)).then(a.cmp(b)))
            .unwrap_or(Stage::Unknown)
    };
    let mut facts = vec![Fact {
        host: alert.source.host.clone(),
        role: Role::Source,
        stage: strongest(Stage::conduct),
        minute,
    }];
    let suffered = strongest(Stage::access);
    let mut hosts = alert.hosts();
    hosts.remove(0);
    if hosts.len() <= policy.max_fanout {
        facts.extend(hosts.into_iter().map(|host| Fact {
            host,
            role: Role::Target,
            stage: suffered,
            minute,
        }));
    }
    facts
}

/// How strongly two facts link their alerts, 0 when not at all.
pub fn link(a: &Fact, b: &Fact, policy: &CorrelationPolicy) -> f64 {
    if a.host != b.host {
        return 0.0;
    }
    match (a.role, b.role) {
        (Role::Source, Role::Source) => {
            if (a.minute - b.minute).abs() <= policy.window_minutes {
                2.0
            } else {
                0.0
            }
        }
        (Role::Target, Role::Source) => compromise(a, b, policy),
        (Role::Source, Role::Target) => compromise(b, a, policy),
        (Role::Target, Role::Target) => 0.0,
    }
}

fn compromise(suffered: &Fact, acted: &Fact, policy: &CorrelationPolicy) -> f64 {
    // Two alerts of one minute may be stamped on either side of its border.
    let delay = acted.minute - suffered.minute;
    if !(-1..=policy.window_minutes).contains(&delay) {
        return 0.0;
    }
    let weight = suffered.stage.access() + acted.stage.conduct();
    if weight >= PLAUSIBLE { weight } else { 0.0 }
}

/// A fact that is on record, and the open incident that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The fact.
    pub fact: Fact,
    /// The incident.
    pub incident: Uuid,
}

/// The incidents that an alert with these facts belongs to, the best linked first, at most
/// [`CorrelationPolicy::max_merge`].
pub fn linked(new: &[Fact], known: &[Known], policy: &CorrelationPolicy) -> Vec<Uuid> {
    let mut weights: BTreeMap<Uuid, f64> = BTreeMap::new();
    for known in known {
        for fact in new {
            let weight = link(fact, &known.fact, policy);
            if weight > 0.0 {
                let best = weights.entry(known.incident).or_insert(0.0);
                *best = best.max(weight);
            }
        }
    }
    let mut ranked: Vec<(Uuid, f64)> = weights.into_iter().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked.truncate(policy.max_merge);
    ranked.into_iter().map(|(incident, _)| incident).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use chrono::{DateTime, Utc};
    use garrison_proto::alert::v1::Technique;
    use proptest::prelude::*;

    use super::*;
    use crate::domain::alert::tests::sample;

    fn alert(source: &str, targets: &[&str], tactic: &str, minute: i64) -> AlertFacts {
        let mut alert = sample(source, targets);
        alert.techniques = vec![Technique {
            id: "T1".into(),
            name: String::new(),
            tactic: tactic.into(),
        }];
        AlertFacts::read(&alert, DateTime::from_timestamp(minute * 60, 0).unwrap()).unwrap()
    }

    /// Takes alerts in one at a time, as the service does. Returns the partition of alert ids.
    fn incremental(alerts: &[AlertFacts], policy: &CorrelationPolicy) -> BTreeSet<BTreeSet<Uuid>> {
        let mut known: Vec<Known> = Vec::new();
        let mut members: BTreeMap<Uuid, BTreeSet<Uuid>> = BTreeMap::new();
        for alert in alerts {
            let new = facts(alert, policy);
            let joined = linked(&new, &known, policy);
            let home = joined.first().copied().unwrap_or(alert.id);
            for other in joined.iter().skip(1) {
                let moved = members.remove(other).unwrap();
                members.get_mut(&home).unwrap().extend(moved);
                for k in known.iter_mut().filter(|k| k.incident == *other) {
                    k.incident = home;
                }
            }
            members.entry(home).or_default().insert(alert.id);
            known.extend(new.into_iter().map(|fact| Known { fact, incident: home }));
        }
        members.into_values().collect()
    }

    /// The definition: connected components over all pairs.
    fn components(alerts: &[AlertFacts], policy: &CorrelationPolicy) -> BTreeSet<BTreeSet<Uuid>> {
        let mut group: Vec<usize> = (0..alerts.len()).collect();
        for i in 0..alerts.len() {
            for j in 0..i {
                let (a, b) = (facts(&alerts[i], policy), facts(&alerts[j], policy));
                if a.iter().any(|a| b.iter().any(|b| link(a, b, policy) > 0.0)) {
                    let (from, to) = (group[i], group[j]);
                    group.iter_mut().filter(|g| **g == from).for_each(|g| *g = to);
                }
            }
        }
        let mut sets: BTreeMap<usize, BTreeSet<Uuid>> = BTreeMap::new();
        for (i, g) in group.into_iter().enumerate() {
            sets.entry(g).or_default().insert(alerts[i].id);
        }
        sets.into_values().collect()
    }

    #[test]
    fn follows_the_attacker_through_the_compromised_client_to_the_database() {
        let story = [
            alert("198.51.100.9", &["10.0.0.2", "10.0.0.3"], "Discovery", 0),
            alert("198.51.100.9", &["10.0.0.2"], "Credential Access", 2),
            alert("10.0.0.2", &["10.0.0.4"], "Lateral Movement", 5),
        ];
        assert_eq!(incremental(&story, &CorrelationPolicy::default()).len(), 1);
    }

    #[test]
    fn a_popular_server_does_not_glue_strangers_together() {
        let strangers = [
            alert("198.51.100.9", &["10.0.0.80"], "Credential Access", 0),
            alert("203.0.113.7", &["10.0.0.80"], "Credential Access", 1),
            alert("192.0.2.1", &["10.0.0.80"], "Discovery", 1),
        ];
        assert_eq!(incremental(&strangers, &CorrelationPolicy::default()).len(), 3);
    }

    #[test]
    fn being_scanned_explains_lateral_movement_but_not_scanning() {
        let policy = CorrelationPolicy::default();
        let scan = alert("198.51.100.9", &["10.0.0.2"], "Discovery", 0);
        let scanning = alert("10.0.0.2", &["10.0.0.4"], "Discovery", 5);
        let moving = alert("10.0.0.2", &["10.0.0.4"], "Lateral Movement", 5);
        assert_eq!(incremental(&[scan.clone(), scanning], &policy).len(), 2);
        assert_eq!(incremental(&[scan, moving], &policy).len(), 1);
    }

    #[test]
    fn acting_before_suffering_and_outside_the_window_links_nothing() {
        let policy = CorrelationPolicy::default();
        let guess = |minute| alert("198.51.100.9", &["10.0.0.2"], "Credential Access", minute);
        let moving = alert("10.0.0.2", &["10.0.0.4"], "Lateral Movement", 100);
        assert_eq!(incremental(&[guess(110), moving.clone()], &policy).len(), 2);
        assert_eq!(incremental(&[guess(69), moving.clone()], &policy).len(), 2);
        assert_eq!(incremental(&[guess(70), moving], &policy).len(), 1);
        assert_eq!(incremental(&[guess(0), guess(31)], &policy).len(), 2);
        assert_eq!(incremental(&[guess(0), guess(30)], &policy).len(), 1);
    }

    #[test]
    fn a_sweep_of_the_network_says_nothing_about_who_fell() {
        let targets: Vec<String> = (1..=20).map(|i| format!("10.0.0.{i}")).collect();
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        let sweep = alert("198.51.100.9", &targets, "Discovery", 0);
        let moving = alert("10.0.0.2", &["10.0.0.4"], "Lateral Movement", 5);
        assert_eq!(incremental(&[sweep, moving], &CorrelationPolicy::default()).len(), 2);
    }

    fn any_alert() -> impl Strategy<Value = AlertFacts> {
        let tactics = prop::sample::select(vec![
            "Discovery",
            "Credential Access",
            "Lateral Movement",
            "Exfiltration",
            "",
        ]);
        (0..6u8, prop::collection::vec(0..6u8, 0..4), tactics, 0..90i64).prop_map(
            |(source, targets, tactic, minute)| {
                let targets: Vec<String> = targets.iter().map(|t| format!("10.0.0.{t}")).collect();
                let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
                alert(&format!("10.0.0.{source}"), &targets, tactic, minute)
            },
        )
    }

    proptest! {
        #[test]
        fn incidents_are_the_connected_components_in_every_order(
            (alerts, shuffled) in prop::collection::vec(any_alert(), 0..24)
                .prop_flat_map(|alerts| (Just(alerts.clone()), Just(alerts).prop_shuffle()))
        ) {
            let policy = CorrelationPolicy::default();
            let expected = components(&alerts, &policy);
            prop_assert_eq!(&incremental(&alerts, &policy), &expected);
            prop_assert_eq!(&incremental(&shuffled, &policy), &expected);
            let all: BTreeSet<Uuid> = expected.iter().flatten().copied().collect();
            prop_assert_eq!(all.len(), alerts.len(), "an alert was lost or doubled");
        }
    }

    #[test]
    fn minutes_before_the_epoch_are_counted_downwards() {
        let early = alert("10.0.0.1", &[], "", -1);
        assert_eq!(facts(&early, &CorrelationPolicy::default())[0].minute, -1);
        let _: DateTime<Utc> = early.last_seen;
    }
}
