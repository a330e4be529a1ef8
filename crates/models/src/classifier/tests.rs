//! Classifiers on made rows.

use super::*;

// Three clouds that overlap a little; the third is rare.
fn clouds(n: usize, seed: u64) -> (Matrix, Vec<usize>) {
    let mut rng = SplitMix64::new(seed);
    let labels: Vec<usize> = (0..n)
        .map(|_| match rng.below(20) {
            0 => 2,
            k if k < 8 => 1,
            _ => 0,
        })
        .collect();
    let rows: Vec<[f32; 2]> = labels
        .iter()
        .map(|l| {
            let centre = [[0.0, 0.0], [2.5, 0.0], [0.0, 3.0]][*l];
            [centre[0] + rng.normal() as f32, centre[1] + rng.normal() as f32]
        })
        .collect();
    (Matrix::from_rows(2, rows.iter().map(<[f32; 2]>::as_slice)), labels)
}

fn classes() -> Vec<String> {
    ["benign", "scan", "tunnel"].map(str::to_owned).to_vec()
}

fn train(steps: usize, seed: u64) -> Classifier {
    let (rows, labels) = clouds(3_000, 1);
    let data = Labelled {
        rows: &rows,
        labels: &labels,
        weights: &[],
    };
    let shape = Shape {
        hidden: vec![24],
        members: 2,
        steps,
        balance: 0.3,
        dropped: 0.0,
        decay: 1e-3,
    };
    Classifier::train(&data, &classes(), &shape, seed).unwrap()
}

#[test]
fn probabilities_are_as_often_right_as_they_say() {
    let classifier = train(500, 1);
    let (rows, labels) = clouds(4_000, 2);
    let probabilities = classifier.probabilities(&rows).unwrap();
    let (mut said, mut right) = (0.0, 0.0);
    for (p, label) in probabilities.iter().zip(&labels) {
        let decision = decide(p, 0.0);
        said += decision.probability;
        right += f64::from(u8::from(decision.class == Some(*label)));
    }
    let n = labels.len() as f64;
    assert!((said / n - right / n).abs() < 0.03, "said {said}, right {right}");
    // Two clouds 2.5 apart are told apart with 0.89 at best.
    assert!(right / n > 0.85, "{}", right / n);
    assert!(classifier.manifest().held_calibration_error < 0.06);
    let rare = probabilities.iter().map(|p| p[2]).sum::<f64>() / n;
    assert!((rare - 0.05).abs() < 0.02, "{rare}");
}

#[test]
fn where_it_does_not_know_it_abstains_and_costs_decide() {
    let even = [0.4, 0.35, 0.25];
    assert_eq!(decide(&even, 0.5).class, None);
    assert_eq!(decide(&even, 0.3).class, Some(0));
    // Overlooking a tunnel is dear.
    let costs = vec![vec![0.0, 1.0, 1.0], vec![1.0, 0.0, 1.0], vec![10.0, 10.0, 0.0]];
    assert_eq!(cheapest(&even, &costs), 2);
    assert_eq!(cheapest(&[0.95, 0.04, 0.01], &costs), 0);
}

#[test]
fn what_is_rare_among_benign_rows_may_be_an_attack_that_nobody_labelled() {
    let sure = [0.98, 0.01, 0.01];
    assert_eq!(with_unknown(&sure, 0.9, 0.2), sure);
    let p = with_unknown(&sure, 0.001, 0.2);
    assert!(p[0] < 0.5 && p[1] == p[2], "{p:?}");
    assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    assert!(with_unknown(&sure, 0.05, 0.2)[0] > p[0]);
    assert_eq!(with_unknown(&[1.0], 0.001, 0.2), [1.0]);
}

#[test]
fn a_seed_gives_the_same_weights_and_stored_ones_the_same_answers() {
    let classifier = train(30, 4);
    assert_eq!(classifier.manifest(), train(30, 4).manifest());
    assert_ne!(
        classifier.manifest().weights_sha256,
        train(30, 5).manifest().weights_sha256
    );
    let loaded = Classifier::load(classifier.manifest(), &classifier.weights().unwrap()).unwrap();
    let (rows, _) = clouds(50, 9);
    assert_eq!(
        loaded.probabilities(&rows).unwrap(),
        classifier.probabilities(&rows).unwrap()
    );
    assert!(classifier.probabilities(&Matrix::zeros(3, 1)).is_err());
}

#[test]
fn labels_that_do_not_fit_are_refused() {
    let (rows, mut labels) = clouds(100, 1);
    labels[7] = 3;
    let data = Labelled {
        rows: &rows,
        labels: &labels,
        weights: &[],
    };
    let error = Classifier::train(&data, &classes(), &Shape::default(), 1).unwrap_err();
    assert!(matches!(error, ModelError::Unusable(_)), "{error}");
}
