//! The promise on made traffic.

use super::*;
use crate::{rng::SplitMix64, spot::SpotSettings};

const PROMISED: f64 = 40.0;
const A_DAY: f64 = 8_000.0;

fn settings() -> SpotSettings {
    SpotSettings {
        rate: PROMISED / A_DAY,
        level: 0.95,
        peaks: 400,
        drift_depth: 500,
        floor: f64::NEG_INFINITY,
    }
}

fn promise() -> Promise {
    Promise {
        alerts_a_day: PROMISED,
        scores_a_day: A_DAY,
        known_for: 3_600.0,
    }
}

fn start(rng: &mut SplitMix64) -> (AlarmBudget, Spot) {
    let sample: Vec<f64> = (0..6_000).map(|_| rng.normal().exp()).collect();
    (
        AlarmBudget::new(promise()),
        Spot::calibrate(settings(), &sample).unwrap(),
    )
}

// Days of traffic; what a score is and how many there are at a time is the caller's.
fn run(days: f64, volume: impl Fn(f64) -> f64, score: impl Fn(f64, &mut SplitMix64) -> f64, restart: bool) -> f64 {
    let mut rng = SplitMix64::new(11);
    let (mut budget, mut spot) = start(&mut rng);
    let mut time = 0.0;
    let mut restarted = !restart;
    while time < days * DAY {
        time += -(1.0 - rng.unit()).ln() * DAY / volume(time / DAY);
        let value = score(time / DAY, &mut rng);
        budget.observe(&mut spot, 0.0, time, value);
        if !restarted && time > 0.5 * days * DAY {
            restarted = true;
            let again = AlarmBudget::restore(PROMISED, budget.state());
            assert_eq!(again, budget);
            (budget, spot) = (again, Spot::restore(settings(), spot.state()));
        }
    }
    budget.state().issued as f64 / (PROMISED * days)
}

fn usual(_: f64, rng: &mut SplitMix64) -> f64 {
    rng.normal().exp()
}

fn kept(what: &str, realised: f64) {
    assert!((0.8..=1.2).contains(&realised), "{what}: {realised} of the promise");
}

#[test]
fn the_promise_is_kept_whatever_the_traffic_does() {
    kept("steady", run(8.0, |_| A_DAY, usual, false));
    kept("steady, restarted", run(8.0, |_| A_DAY, usual, true));
    let season = |day: f64| A_DAY * (1.0 + 0.8 * (std::f64::consts::TAU * day).sin());
    let seasonal = |day: f64, rng: &mut SplitMix64| (rng.normal() + 0.5 * (std::f64::consts::TAU * day).cos()).exp();
    kept("day and night", run(8.0, season, seasonal, true));
    kept(
        "slow drift",
        run(8.0, |_| A_DAY, |day, rng| rng.normal().exp() + 4.0 * day, true),
    );
    let heavier = |day: f64, rng: &mut SplitMix64| (rng.normal() * if day > 3.0 { 1.6 } else { 1.0 }).exp();
    kept("a tail that grows at once", run(8.0, |_| A_DAY, heavier, true));
    let thrice = |day: f64| if day > 3.0 { 3.0 * A_DAY } else { A_DAY };
    kept("three times the traffic", run(8.0, thrice, usual, true));
}

#[test]
fn a_threshold_alone_breaks_it_where_the_traffic_grows() {
    let mut rng = SplitMix64::new(11);
    let (_, mut spot) = start(&mut rng);
    let days = 4;
    let mut alerts = 0;
    for _ in 0..days * 3 * A_DAY as usize {
        alerts += usize::from(spot.observe(rng.normal().exp()).exceeds);
    }
    assert!(alerts as f64 > 2.0 * PROMISED * days as f64, "{alerts}");
}

#[test]
fn what_a_flood_would_have_told_beyond_the_promise_is_counted_as_held() {
    let mut rng = SplitMix64::new(3);
    let (mut budget, mut spot) = start(&mut rng);
    let (mut alerts, mut held) = (0, 0);
    for i in 0..A_DAY as usize {
        // One in ten is far out: twenty times as many as are promised.
        let score = if i % 10 == 0 {
            500.0 + rng.unit()
        } else {
            rng.normal().exp()
        };
        match budget.observe(&mut spot, 0.0, i as f64 * DAY / A_DAY, score).0 {
            Verdict::Alert => alerts += 1,
            Verdict::Held(Held::AheadOfPromise) => held += 1,
            Verdict::Held(Held::BelowFloor) | Verdict::Quiet => {}
        }
    }
    assert_eq!((budget.state().issued, budget.state().held), (alerts, held));
    assert!(alerts > 0 && held > 0);
}

#[test]
fn silence_and_clocks_that_go_back_promise_nothing() {
    let mut rng = SplitMix64::new(3);
    let (mut budget, mut spot) = start(&mut rng);
    budget.observe(&mut spot, 0.0, 1_000_000.0, 1.0);
    budget.observe(&mut spot, 0.0, 10.0, 1.0);
    assert_eq!(budget.state().promised, 0.0);
    budget.observe(&mut spot, 0.0, 1_000_000.0 + 30.0 * DAY, 1.0);
    assert!(budget.state().promised <= PROMISED / 24.0 + 1e-9);
    assert!(budget.bound() > 0.0 && budget.bound() <= 0.5);
}

#[test]
fn another_promise_and_another_guess_hold_from_then_on() {
    let mut budget = AlarmBudget::new(promise());
    let share = budget.share();
    assert!((share - PROMISED / A_DAY).abs() < 1e-12);
    budget.guess(10.0 * A_DAY);
    assert!((budget.share() - share / 10.0).abs() < 1e-12);
    for _ in 0..500 {
        budget.issue();
    }
    budget.promise(2.0);
    // Being far ahead of what is promised now silences it for days, not for years.
    assert_eq!((budget.alerts_a_day(), budget.state().ahead), (2.0, 8.0));
    for hour in 0..48 {
        budget.pass(f64::from(hour) * 3_600.0);
    }
    budget.guess(1.0);
    assert!(
        budget.share() < 1.0,
        "a guess counts for nothing once hours were counted"
    );
}

#[test]
fn where_fewer_scores_come_than_are_promised_each_is_an_alert() {
    let mut budget = AlarmBudget::new(Promise {
        alerts_a_day: 200.0,
        scores_a_day: 20.0,
        known_for: DAY,
    });
    for n in 0..40 {
        budget.pass(f64::from(n) * 60.0);
        budget.count(1);
        assert_eq!(budget.verdict(1.0, false, f64::INFINITY), Verdict::Alert, "the {n}th");
        budget.issue();
    }
}
