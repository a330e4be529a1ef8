//! Comparison of two models, and who takes whose place.

use super::*;
use crate::domain::{rng::SplitMix64, spot::SpotSettings};

fn spot() -> Spot {
    let mut rng = SplitMix64::new(1);
    let sample: Vec<f64> = (0..500).map(|_| rng.unit()).collect();
    let settings = SpotSettings {
        rate: 1e-3,
        level: 0.98,
        peaks: 100,
        drift_depth: 0,
        floor: 0.0,
    };
    Spot::calibrate(settings, &sample).unwrap()
}

#[test]
fn a_comparison_counts_where_two_models_agree_and_where_not() {
    let (mut shadow, mut spot) = (Shadow::default(), spot());
    let live: Vec<f64> = (0..1_000).map(|n| f64::from(n) / 1_000.0).collect();
    let candidate: Vec<f64> = live.iter().map(|l| 2.0 * l).collect();
    let exceeded: Vec<bool> = live.iter().map(|l| *l > 0.9).collect();
    shadow.add(&live, &exceeded, &mut spot, &candidate);
    assert_eq!((shadow.batches, shadow.rows, shadow.live_above), (1, 1_000, 99));
    // The candidate's threshold is near 1, which half of its scores are above.
    assert!(
        (400..=520).contains(&shadow.candidate_above),
        "{}",
        shadow.candidate_above
    );
    assert_eq!(shadow.both_above, 99);
    assert!((shadow.correlation() - 1.0).abs() < 1e-6);
    let (l, c) = shadow.quantile(0.5);
    assert!(
        (l - 0.5).abs() <= 2.0 * SCORE_BIN && (c - 1.0).abs() <= 2.0 * SCORE_BIN,
        "{l} {c}"
    );
    assert_eq!(Shadow::default().correlation(), 0.0);
    // A score that is no number is counted and spoils nothing.
    shadow.add(&[f64::NAN], &[true], &mut spot, &[f64::INFINITY]);
    assert_eq!(shadow.rows, 1_001);
    assert!(shadow.correlation().is_finite());
}

#[test]
fn versions_that_were_live_are_remembered_in_order_and_each_once() {
    let mut roles = Roles::default();
    let profile = Profile::default();
    for version in [1, 2, 3, 1] {
        roles.go_live(version, &profile);
    }
    assert_eq!((roles.live, roles.previous.as_slice()), (1, [2, 3].as_slice()));
    assert_eq!(roles.in_use(), [1, 3]);
    for version in 4..40 {
        roles.go_live(version, &profile);
    }
    assert_eq!(roles.previous.len(), PREVIOUS);
    assert_eq!(roles.previous.last(), Some(&38));
}
