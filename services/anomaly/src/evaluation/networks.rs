//! What a tenant's model may be made of, compared on the benign connections of the labelled logs: what it finds of their
//! attacks and of the reference attacks at a threshold from benign rows alone, and what a row costs.

use std::time::Instant;

use garrison_models::{
    Matrix,
    autoencoder::Training,
    ensemble::Shape,
    error::ModelError,
    metrics::{quantile, roc_auc},
};

use super::{Report, threats::Scenario};
use crate::domain::{
    anchor::{self, Anchor},
    features,
    network::{Kind, Network},
};

/// Share of benign rows above the threshold.
const RATE: f64 = 0.01;
const ROWS: usize = 4_000;

fn kinds() -> Vec<(String, Kind)> {
    let ensemble = |members: usize, hidden: &[usize]| {
        let shape = Shape {
            hidden: hidden.to_vec(),
            members,
            masked: 0.5,
            steps: 2_000,
        };
        (format!("ensemble of {members}, {hidden:?}"), Kind::Ensemble(shape))
    };
    vec![
        ("autoencoder".to_owned(), Kind::Autoencoder),
        ensemble(1, &[32]),
        ensemble(2, &[32]),
        ensemble(4, &[32]),
        ensemble(4, &[128, 32, 128]),
    ]
}

/// Trains each on half of the benign rows of a network, and judges it on the rest of that network.
///
/// # Errors
/// When training fails.
pub fn compare(scenarios: &[Scenario]) -> Result<Report, ModelError> {
    let mut report = Report::new("Networks of a tenant's model, on the service's features");
    for (name, kind) in kinds() {
        for scenario in scenarios {
            let benign: Vec<usize> = scenario.of_class(|class| class == 0);
            let attacks = scenario.rows().select(&scenario.of_class(|class| class != 0));
            let half = |parity: usize| {
                let rows: Vec<usize> = benign.iter().copied().filter(|i| i % 2 == parity).collect();
                scenario.rows().select(&rows)
            };
            let (learnt, fresh) = (half(0), half(1));
            let training = Training {
                features: features::names().map(str::to_owned).collect(),
                seed: 1,
                version: 1,
                least_rows: 1,
                window: (0, 0),
                learnt_flows: learnt.rows() as u64,
            };
            let (model, _, calibration) = Network::train(&kind, &learnt, &training)?;
            let threshold = quantile(&calibration, 1.0 - RATE);
            let (normal, odd) = (model.score(&fresh)?, model.score(&attacks)?);
            let above =
                |scores: &[f64]| scores.iter().filter(|s| **s > threshold).count() as f64 / scores.len().max(1) as f64;
            let all: Vec<f64> = normal.values().iter().chain(odd.values()).copied().collect();
            let truth: Vec<bool> = (0..all.len()).map(|i| i >= normal.values().len()).collect();
            let mut figure =
                |what: &str, value: f64| report.figure(format!("{name}, {}: {what}", scenario.name()), value);
            figure("ROC-AUC of its attacks", roc_auc(&all, &truth));
            figure("attacks above the threshold", above(odd.values()));
            figure("benign rows above the threshold", above(normal.values()));
            let anchor = Anchor::of(1, &model, threshold, &learnt)?;
            let mean = anchor.found.iter().sum::<f64>() / anchor.found.len() as f64;
            figure("reference attacks above the threshold", mean);
            for (attack, found) in anchor::names().zip(&anchor.found) {
                figure(&format!("  {attack}"), *found);
            }
            if scenario.name() == "010" {
                figure("nanoseconds a row", nanoseconds(&model, &fresh)?);
            }
        }
    }
    Ok(report)
}

// Of one core, in batches of the size that sensors send.
fn nanoseconds(model: &Network, rows: &Matrix) -> Result<f64, ModelError> {
    let places: Vec<usize> = (0..ROWS).map(|k| k % rows.rows()).collect();
    let batch = rows.select(&places);
    model.score(&batch)?;
    let started = Instant::now();
    let times = 20;
    for _ in 0..times {
        model.score(&batch)?;
    }
    Ok(started.elapsed().as_nanos() as f64 / f64::from(times) / ROWS as f64)
}
