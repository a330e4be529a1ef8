//! The model on made data.

use super::*;

const WIDTH: usize = 33;

// Rows on a plane: every feature is a mixture of two hidden numbers.
fn plane(n: usize, seed: u64) -> Matrix {
    let mut rng = SplitMix64::new(seed);
    let rows: Vec<Vec<f32>> = (0..n)
        .map(|_| {
            let (a, b) = (rng.normal(), rng.normal());
            (0..WIDTH)
                .map(|j| (a * (j as f64).cos() + b * (j as f64).sin() + 5.0) as f32)
                .collect()
        })
        .collect();
    Matrix::from_rows(WIDTH, rows.iter().map(Vec::as_slice))
}

fn names() -> Vec<String> {
    (0..WIDTH).map(|j| format!("f{j}")).collect()
}

fn load(stored: &StoredModel) -> Result<Autoencoder, ModelError> {
    Autoencoder::load(stored, names().iter().map(String::as_str))
}

fn training(seed: u64) -> Training {
    Training {
        features: names(),
        seed,
        version: 3,
        least_rows: 100,
        window: (1, 2),
        learnt_flows: 1_500,
    }
}

#[test]
fn learns_what_is_normal_and_names_the_feature_that_is_not() {
    let (model, stored, calibration) = Autoencoder::train(&plane(1_500, 1), &training(1)).unwrap();
    assert!(
        stored.manifest.validation_loss < 0.1,
        "{:?}",
        stored.manifest.validation_loss
    );
    assert_eq!(calibration.len(), 1_500);
    let fresh = plane(200, 2);
    let normal = model.score(&fresh).unwrap();
    let mut rows: Vec<Vec<f32>> = (0..200).map(|i| fresh.row(i).collect()).collect();
    rows[7][4] += 12.0;
    let scores = model
        .score(&Matrix::from_rows(WIDTH, rows.iter().map(Vec::as_slice)))
        .unwrap();
    let highest = normal.values.iter().copied().fold(0.0, f64::max);
    assert!(scores.values[7] > 3.0 * highest, "{} vs {highest}", scores.values[7]);
    let shares = scores.shares(7);
    assert_eq!(shares[0].0, 4);
    assert!((shares.iter().map(|s| s.1).sum::<f64>() - 1.0).abs() < 1e-6);
    assert_eq!(model.median(0), stored.manifest.scaler.medians[0]);
}

#[test]
fn a_seed_gives_the_same_weights_and_stored_ones_the_same_scores() {
    let sample = plane(400, 3);
    let (model, stored, _) = Autoencoder::train(&sample, &training(9)).unwrap();
    let (_, again, _) = Autoencoder::train(&sample, &training(9)).unwrap();
    let (_, other, _) = Autoencoder::train(&sample, &training(10)).unwrap();
    assert_eq!(stored, again);
    assert_ne!(stored.manifest.weights_sha256, other.manifest.weights_sha256);
    let manifest = serde_json::to_string(&stored.manifest).unwrap();
    let loaded = load(&StoredModel {
        manifest: serde_json::from_str(&manifest).unwrap(),
        weights: stored.weights.clone(),
    })
    .unwrap();
    assert_eq!(
        loaded.score(&sample).unwrap().values,
        model.score(&sample).unwrap().values
    );
}

#[test]
fn a_stored_model_that_does_not_fit_is_refused() {
    let (_, stored, _) = Autoencoder::train(&plane(200, 3), &training(9)).unwrap();
    let refused = |change: &dyn Fn(&mut StoredModel)| {
        let mut broken = stored.clone();
        change(&mut broken);
        load(&broken).unwrap_err().to_string()
    };
    assert!(refused(&|m| m.weights[100] ^= 1).contains("SHA-256"));
    assert!(refused(&|m| m.manifest.format = 9).contains("version 9"));
    assert!(refused(&|m| m.manifest.features[0] = "x".into()).contains("learn again"));
    assert!(refused(&|m| m.manifest.scaler.medians.clear()).contains("shape"));
    assert!(
        refused(&|m| {
            m.weights = vec![0; 40];
            m.manifest.weights_sha256 = weights::hash(&m.weights);
        })
        .contains("safetensors")
    );
}

#[test]
fn too_little_is_refused_and_constant_rows_are_learnt() {
    let error = Autoencoder::train(&plane(99, 1), &training(1)).unwrap_err();
    assert!(matches!(
        error,
        ModelError::TooLittle {
            learnt: 99,
            needed: 100
        }
    ));
    let rows = vec![vec![1.0; WIDTH]; 150];
    let sample = Matrix::from_rows(WIDTH, rows.iter().map(Vec::as_slice));
    let (model, ..) = Autoencoder::train(&sample, &training(1)).unwrap();
    assert!(model.score(&sample).unwrap().values.iter().all(|s| s.is_finite()));
    assert!(model.score(&sample.select(&[])).unwrap().values.is_empty());
}
