//! Ensembles on made rows.

use super::*;

// The first feature is three flags, the others follow from it and one hidden number.
fn rows(n: usize, seed: u64) -> Matrix {
    let mut rng = SplitMix64::new(seed);
    let rows: Vec<[f32; 6]> = (0..n)
        .map(|_| {
            let kind = rng.below(3) as usize;
            let a = rng.normal() as f32;
            let mut row = [0.0, 0.0, 0.0, kind as f32 - 1.0, a, a + 0.05 * rng.normal() as f32];
            row[kind] = 1.0;
            row
        })
        .collect();
    Matrix::from_rows(6, rows.iter().map(<[f32; 6]>::as_slice))
}

const BLOCKS: [usize; 4] = [3, 1, 1, 1];

fn shape() -> Shape {
    Shape {
        hidden: vec![24, 12, 24],
        members: 2,
        masked: 0.5,
        steps: 400,
    }
}

#[test]
fn a_value_that_the_others_contradict_is_told_and_named() {
    let (ensemble, held) = Ensemble::train(&rows(1_000, 1), &BLOCKS, &shape(), 5).unwrap();
    let high = crate::metrics::quantile(&held, 0.99);
    // Each value is usual; together they are not.
    let odd = Matrix::from_rows(6, [[1.0, 0.0, 0.0, -1.0, 1.0, -1.0_f32].as_slice()].into_iter());
    let scores = ensemble.score(&odd).unwrap();
    assert!(scores.values[0] > high, "{} vs {high}", scores.values[0]);
    let first: Vec<usize> = scores.shares(0).iter().take(2).map(|s| s.0).collect();
    assert!(first.contains(&2) && first.contains(&3), "{:?}", scores.shares(0));
    let fresh = ensemble.score(&rows(500, 2)).unwrap();
    let above = fresh.values.iter().filter(|s| **s > high).count();
    assert!(above < 25, "{above}");
}

#[test]
fn a_seed_gives_the_same_weights_and_stored_ones_the_same_scores() {
    let sample = rows(300, 3);
    let mut small = shape();
    small.steps = 40;
    let (ensemble, held) = Ensemble::train(&sample, &BLOCKS, &small, 5).unwrap();
    let (again, same) = Ensemble::train(&sample, &BLOCKS, &small, 5).unwrap();
    let (other, _) = Ensemble::train(&sample, &BLOCKS, &small, 6).unwrap();
    assert_eq!((ensemble.manifest(), &held), (again.manifest(), &same));
    assert_ne!(ensemble.manifest().weights_sha256, other.manifest().weights_sha256);
    let weights = ensemble.weights().unwrap();
    let loaded = Ensemble::load(ensemble.manifest(), &weights).unwrap();
    assert_eq!(
        loaded.score(&sample).unwrap().values,
        ensemble.score(&sample).unwrap().values
    );
    let mut broken = weights;
    broken[200] ^= 1;
    assert!(
        Ensemble::load(ensemble.manifest(), &broken)
            .unwrap_err()
            .to_string()
            .contains("SHA-256")
    );
}

#[test]
fn what_is_normal_now_is_learnt_without_forgetting_what_was() {
    let before = rows(800, 1);
    let (ensemble, _) = Ensemble::train(&before, &BLOCKS, &shape(), 5).unwrap();
    // The second of the twins has moved.
    let mut after = rows(800, 2);
    for v in after.feature_mut(5) {
        *v += 1.5;
    }
    let both: Vec<Vec<f32>> = (0..800)
        .flat_map(|i| [before.row(i).collect::<Vec<_>>(), after.row(i).collect()])
        .collect();
    let both = Matrix::from_rows(6, both.iter().map(Vec::as_slice));
    let (updated, _) = ensemble.updated(&both, 400, 0.5, 9).unwrap();
    let mean_of = |model: &Ensemble, rows: &Matrix| mean(&model.score(rows).unwrap().values);
    assert!(mean_of(&updated, &after) < 0.8 * mean_of(&ensemble, &after));
    let loaded = Ensemble::load(updated.manifest(), &updated.weights().unwrap()).unwrap();
    assert_eq!(mean_of(&loaded, &after), mean_of(&updated, &after));
}

#[test]
fn rows_of_another_width_and_too_few_are_refused() {
    let error = Ensemble::train(&rows(200, 1), &[3, 1], &shape(), 1).unwrap_err();
    assert!(matches!(error, ModelError::Unusable(_)), "{error}");
    let error = Ensemble::train(&rows(8, 1), &BLOCKS, &shape(), 1).unwrap_err();
    assert!(matches!(error, ModelError::TooLittle { .. }), "{error}");
}
