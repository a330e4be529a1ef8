//! The budget on made findings and scores.

use garrison_models::{rng::SplitMix64, spot::SpotSettings};
use proptest::prelude::*;

use super::*;
use crate::domain::{
    finding::Loud,
    shard::tests::settings,
    window::{Host, tests::flow_ref},
};

struct Desk {
    settings: Settings,
    budgets: Budgets,
    folds: BoundedMap<Fingerprint, Fold>,
    now: Nanos,
}

const START: Nanos = 1_750_000_000 * SECOND;

impl Desk {
    fn new(behaviour: f64) -> Self {
        let mut settings = settings();
        settings.budget.alerts_a_day = [20.0, behaviour];
        let mut desk = Self {
            budgets: Budgets::new(&settings),
            folds: BoundedMap::new(100_000),
            settings,
            now: START,
        };
        desk.pass(0.0);
        desk
    }

    fn pass(&mut self, days: f64) {
        self.now += (days * DAY) as Nanos * SECOND;
        self.budgets.begin(self.now, true, &self.settings.budget);
    }

    fn admit(&mut self, finding: &Finding, rare: Option<Rare>) -> Outcome {
        let tenant = "acme".parse().unwrap();
        self.budgets
            .admit(&mut self.folds, finding, rare, &tenant, &self.settings, self.now)
    }

    fn count(&self, group: Group) -> Count {
        self.budgets.group(group).ledger.total()
    }
}

fn finding(detector: Detector, subject: u64, now: Nanos) -> Finding {
    Finding {
        detector,
        title: "t".to_owned(),
        severity: detector.severity(),
        confidence: 0.5,
        source: Host(0x0A00_0009),
        targets: Vec::new(),
        subject: subject.to_string(),
        techniques: Vec::new(),
        features: Vec::new(),
        flows: vec![flow_ref(1)],
        trigger: now,
        score: 1.0,
        threshold: 1.0,
        loud: None,
        class: None,
    }
}

fn told(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Told { .. })
}

#[test]
fn every_detector_is_in_one_group() {
    let all: usize = Group::ALL.iter().map(|group| group.detectors().count()).sum();
    assert_eq!(all, Detector::ALL.len());
    assert_eq!(Group::of(Detector::ModelAutoencoder), Group::Model);
    assert_eq!(Group::of(Detector::IntelMatch), Group::Intelligence);
    assert_eq!(Group::of_id("behaviour"), Some(Group::Behaviour));
    assert_eq!(Group::of_id("all"), None);
}

#[test]
fn a_quiet_network_is_told_everything_and_repeats_are_no_new_alerts() {
    let mut desk = Desk::new(50.0);
    for n in 0..10 {
        desk.pass(0.04);
        let found = finding(Detector::ClientRare, n, desk.now);
        assert!(told(&desk.admit(&found, None)), "the {n}th");
        for _ in 0..30 {
            desk.admit(&found, None);
        }
    }
    let count = desk.count(Group::Behaviour);
    assert_eq!((count.issued, count.held, count.exempt), (10, 0, 0));
    assert!((count.promised - 20.0).abs() < 0.1, "{}", count.promised);
    assert_eq!(desk.budgets.group(Group::Behaviour).budget.state().issued, 10);
}

#[test]
fn far_more_findings_than_promised_are_held_to_the_promise_and_the_gravest_are_told() {
    let mut desk = Desk::new(50.0);
    let mut rng = SplitMix64::new(2);
    let (mut medium, mut low) = ((0, 0), (0, 0));
    let days = 6;
    for n in 0..days * 400 {
        desk.pass(1.0 / 400.0);
        let grave = rng.below(20) == 0;
        let mut found = finding(Detector::CredentialsClearText, n, desk.now);
        found.confidence = 0.3 + 0.5 * rng.unit();
        if grave {
            found.severity = Severity::Medium;
        }
        let of = if grave { &mut medium } else { &mut low };
        of.0 += 1;
        match desk.admit(&found, None) {
            Outcome::Told { .. } => of.1 += 1,
            Outcome::Held(held) => {
                assert_ne!(held.reason, Reason::BelowFloor);
                assert!(held.rarity > held.bound, "{held:?}");
                assert_eq!(held.alert.count, 1);
            }
            Outcome::Folded => panic!("the first of its kind"),
        }
    }
    let count = desk.count(Group::Behaviour);
    assert_eq!(count.issued + count.held, days * 400);
    let realised = count.issued as f64 / count.promised;
    assert!((0.8..=1.2).contains(&realised), "{realised}");
    let share = |(all, told): (u32, u32)| f64::from(told) / f64::from(all);
    assert!(share(medium) > 0.95 && share(low) < 0.15, "{medium:?} {low:?}");
}

#[test]
fn what_a_playbook_answers_and_what_is_grave_is_told_whatever_was_told_before_and_costs_nothing() {
    let mut desk = Desk::new(1.0);
    for n in 0..100 {
        desk.admit(&finding(Detector::DeviceNew, n, desk.now), None);
    }
    let before = desk.count(Group::Behaviour);
    assert!(before.held > 80, "{before:?}");
    for n in 0..200 {
        assert!(told(
            &desk.admit(&finding(Detector::ScanVertical, 1_000 + n, desk.now), None)
        ));
        assert!(told(
            &desk.admit(&finding(Detector::DnsTunnel, 2_000 + n, desk.now), None)
        ));
    }
    let after = desk.count(Group::Behaviour);
    assert_eq!((after.issued, after.held), (before.issued, before.held));
    assert_eq!(after.exempt, before.exempt + 400);
}

#[test]
fn what_was_held_back_is_told_once_it_is_grave_or_a_person_raises_it() {
    let mut desk = Desk::new(1.0);
    for n in 0..50 {
        desk.admit(&finding(Detector::DeviceNew, n, desk.now), None);
    }
    let mut found = finding(Detector::ClientRare, 500, desk.now);
    found.loud = Some(Loud {
        score: 4.0,
        within: 60 * SECOND,
    });
    let Outcome::Held(first) = desk.admit(&found, None) else {
        panic!("there is no budget left");
    };
    let outcomes: Vec<Outcome> = (0..3).map(|_| desk.admit(&found, None)).collect();
    // The second is a step of the count, and held again with it; the third is only counted; the fourth makes it loud.
    assert!(matches!(&outcomes[0], Outcome::Held(held) if held.alert.count == 2));
    assert_eq!(outcomes[1], Outcome::Folded);
    let Outcome::Told {
        alert,
        first: new,
        held_before,
    } = &outcomes[2]
    else {
        panic!("{:?}", outcomes[2]);
    };
    assert!(*new && *held_before);
    assert_eq!((alert.count, alert.severity()), (4, Severity::High));
    assert_eq!(alert.alert_id, first.alert.alert_id);
    // From now on it is an alert like any other.
    assert!(matches!(desk.admit(&found, None), Outcome::Told { first: false, .. }));
    // A repeat of what is held back counts once.
    assert_eq!(desk.count(Group::Behaviour).exempt, 1);

    let other = finding(Detector::ClientRare, 501, desk.now);
    assert!(matches!(desk.admit(&other, None), Outcome::Held(_)));
    desk.folds.get_mut(&fingerprint_of(&desk, &other)).unwrap().held = false;
    assert!(matches!(desk.admit(&other, None), Outcome::Told { first: false, .. }));
}

fn fingerprint_of(desk: &Desk, finding: &Finding) -> Fingerprint {
    let mut folds = BoundedMap::new(2);
    finding::advance(&mut folds, finding, &"acme".parse().unwrap(), &desk.settings).fingerprint
}

#[test]
fn what_is_held_back_beyond_what_is_kept_is_counted() {
    let mut desk = Desk::new(0.1);
    desk.settings.budget.kept = 30;
    desk.pass(0.0);
    let mut kept = 0;
    for n in 0..500 {
        kept += u64::from(matches!(
            desk.admit(&finding(Detector::DeviceNew, n, desk.now), None),
            Outcome::Held(_)
        ));
    }
    let count = desk.count(Group::Behaviour);
    assert_eq!((kept, count.kept()), (30, 30));
    assert_eq!(count.issued + count.held, 500);
    // A day later there is room again.
    for _ in 0..30 {
        desk.pass(1.0 / 24.0);
    }
    let more = (600..700).filter(|n| {
        let found = finding(Detector::DeviceNew, *n, desk.now);
        matches!(desk.admit(&found, None), Outcome::Held(_))
    });
    assert_eq!(more.count(), 30);
}

#[test]
fn a_promise_that_was_set_holds_until_the_configured_one_is_asked_for_again() {
    let mut desk = Desk::new(50.0);
    let configured = desk.settings.budget.clone();
    assert_eq!(desk.budgets.promise(Group::Behaviour, Some(3.0), &configured), 50.0);
    let stored = desk.budgets.group(Group::Behaviour).clone();
    // After a restart with another configuration what was set holds, and what was not is as configured.
    desk.settings.budget.alerts_a_day = [7.0, 70.0];
    let mut again = Budgets::new(&desk.settings);
    again.restore(Group::Behaviour, stored);
    again.restore(Group::Model, desk.budgets.group(Group::Model).clone());
    let promised = |budgets: &Budgets, group| budgets.group(group).budget.alerts_a_day();
    assert_eq!(
        (promised(&again, Group::Model), promised(&again, Group::Behaviour)),
        (7.0, 3.0)
    );
    assert_eq!(again.promise(Group::Behaviour, None, &desk.settings.budget), 3.0);
    assert_eq!(promised(&again, Group::Behaviour), 70.0);
    assert_eq!(again.group(Group::Behaviour).set, None);
}

fn spot(rng: &mut SplitMix64, floor: f64) -> Spot {
    let sample: Vec<f64> = (0..6_000).map(|_| rng.normal().exp()).collect();
    let settings = SpotSettings {
        rate: 1e-3,
        level: 0.98,
        peaks: 500,
        drift_depth: 0,
        floor,
    };
    Spot::calibrate(settings, &sample).unwrap()
}

#[test]
fn scores_become_as_many_alerts_as_are_promised_although_most_are_repeats() {
    let mut desk = Desk::new(50.0);
    let mut rng = SplitMix64::new(7);
    let mut spot = spot(&mut rng, 0.0);
    let (days, a_day) = (8, 20_000);
    for n in 0..days * a_day {
        desk.pass(1.0 / f64::from(a_day));
        let score = rng.normal().exp();
        let (_, rare) = desk.budgets.score(&mut spot, score, 0.0);
        if let Some(rare) = rare {
            assert!(rare.rarity > rare.bound || score >= rare.threshold);
            // Thirty pairs of hosts: what is unusual comes again within the hour.
            let mut found = finding(Detector::ModelAutoencoder, u64::from(n as u32 % 30), desk.now);
            found.score = score;
            desk.admit(&found, Some(rare));
        }
    }
    let count = desk.count(Group::Model);
    let realised = count.issued as f64 / count.promised;
    assert!((0.8..=1.2).contains(&realised), "{realised}: {count:?}");
}

#[test]
fn a_score_below_the_floor_is_held_with_that_reason_and_never_told() {
    let mut desk = Desk::new(50.0);
    let mut rng = SplitMix64::new(7);
    let mut spot = spot(&mut rng, 1e6);
    let mut reasons = Vec::new();
    for n in 0..40_000 {
        desk.pass(1.0 / 20_000.0);
        let (_, rare) = desk.budgets.score(&mut spot, rng.normal().exp(), 1e6);
        if let Some(rare) = rare {
            match desk.admit(&finding(Detector::ModelAutoencoder, n, desk.now), Some(rare)) {
                Outcome::Held(held) => reasons.push(held.reason),
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(!reasons.is_empty() && reasons.iter().all(|r| *r == Reason::BelowFloor));
    assert_eq!(desk.count(Group::Model).issued, 0);
}

#[test]
fn nothing_is_promised_for_the_model_while_none_scores() {
    let mut desk = Desk::new(50.0);
    for _ in 0..48 {
        desk.now += 3_600 * SECOND;
        desk.budgets.begin(desk.now, false, &desk.settings.budget);
    }
    assert_eq!(desk.count(Group::Model).promised, 0.0);
    assert!(desk.count(Group::Behaviour).promised > 90.0);
    // What was learnt says how many scores come.
    desk.budgets.expect(48_000, 48 * 3_600 * SECOND);
    let share = desk.budgets.group(Group::Model).budget.share();
    assert!((share - 20.0 / 24_000.0).abs() < 1e-9, "{share}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn nothing_is_lost_and_a_replay_decides_alike(
        steps in prop::collection::vec((0_u64..40, 0_u8..4, 0_i64..20_000, 0.0_f64..1.0), 1..300),
        promise in 0.1_f64..50.0,
    ) {
        let run = || {
            let mut desk = Desk::new(promise);
            let mut outcomes = Vec::new();
            for (subject, kind, seconds, confidence) in &steps {
                desk.now += seconds * SECOND;
                desk.budgets.begin(desk.now, true, &desk.settings.budget);
                let detector = [
                    Detector::DeviceNew,
                    Detector::ClientRare,
                    Detector::ContactNewInternal,
                    Detector::ScanSlow,
                ][usize::from(*kind)];
                let mut found = finding(detector, *subject, desk.now);
                found.confidence = *confidence;
                outcomes.push(desk.admit(&found, None));
            }
            (outcomes, desk)
        };
        let (outcomes, desk) = run();
        let (again, other) = run();
        prop_assert_eq!(&outcomes, &again);
        prop_assert_eq!(&desk.budgets, &other.budgets);
        // Whatever was found first of its kind was told or held back, and each is counted once.
        let firsts = outcomes.iter().filter(|o| match o {
            Outcome::Told { first, held_before, .. } => *first && !*held_before,
            Outcome::Held(held) => held.alert.count == 1,
            Outcome::Folded => false,
        }).count() as u64;
        let count = desk.count(Group::Behaviour);
        let later = outcomes.iter().filter(|o| matches!(o, Outcome::Told { held_before: true, .. })).count() as u64;
        prop_assert_eq!(count.issued + count.exempt + count.held, firsts + later);
        for outcome in &outcomes {
            if let Outcome::Told { alert, .. } = outcome {
                prop_assert!(alert.count >= 1);
            }
        }
    }
}
