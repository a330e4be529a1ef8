//! Detection that is to be carried from one network to another: a view of each connection that means the same in any
//! network, beside the view of everything; how alike the networks are decides which is listened to.

use std::rc::Rc;

use anyhow::Result;
use garrison_models::{
    baseline::Linear,
    classifier::{Classifier, Labelled, Shape},
    rng::SplitMix64,
    table::{Encoder, Table},
};

use crate::{
    alike::Alike,
    data::Data,
    detect::{Detector, HELD_BACK, Rows, Score},
    spec::Spec,
};

// Passes over the training rows, with 256 of them a step. Few, and a small network: what is learnt has to hold elsewhere.
const PASSES: usize = 15;
const WHOLE_PASSES: usize = 60;

fn shape(rows: usize) -> Shape {
    Shape {
        hidden: vec![32],
        members: 5,
        steps: (PASSES * rows / 256).clamp(60, 1_000),
        balance: 0.5,
        dropped: 0.1,
        decay: 1e-2,
    }
}

struct Parts {
    held: Vec<usize>,
    all: Vec<usize>,
    labels: Vec<usize>,
}

impl Parts {
    fn new(rows: &Rows, seed: u64) -> Self {
        let mut rng = SplitMix64::new(seed ^ 0x0CA2_21ED);
        let (fit, held): (Vec<usize>, Vec<usize>) = rows.benign.iter().partition(|_| rng.unit() >= HELD_BACK);
        let labels = (0..fit.len() + rows.others.len())
            .map(|i| usize::from(i >= fit.len()))
            .collect();
        let all = fit.iter().chain(&rows.others).copied().collect();
        Self { held, all, labels }
    }

    fn classifier(&self, table: &Table, shape: &Shape, seed: u64) -> Result<(Encoder, Classifier)> {
        let encoder = Encoder::fit(table, &self.all);
        let matrix = encoder.encode(table, &self.all);
        let classes = ["benign".to_owned(), "malicious".to_owned()];
        let labelled = Labelled {
            rows: &matrix,
            labels: &self.labels,
            weights: &[],
        };
        let classifier = Classifier::train(&labelled, &classes, shape, seed)?;
        Ok((encoder, classifier))
    }
}

fn log_odds(classifier: &Classifier, encoder: &Encoder, table: &Table, rows: &[usize]) -> Result<Vec<f64>> {
    let p = classifier.probabilities(&encoder.encode(table, rows))?;
    Ok(p.iter().map(|p| (p[1].max(1e-9) / p[0].max(1e-9)).ln()).collect())
}

fn portable(data: &Data) -> &Table {
    data.portable.as_ref().unwrap_or(&data.table)
}

/// Both views; nothing where the data has no portable one.
pub fn both(spec: &Spec, data: &Data, rows: &Rows, full: &Shape, seed: u64) -> Result<Vec<Detector>> {
    if data.portable.is_none() {
        return Ok(Vec::new());
    }
    let parts = Parts::new(rows, seed);
    let (own_encoder, own) = parts.classifier(portable(data), &shape(parts.all.len()), seed)?;
    let own = Rc::new((own_encoder, own));
    let full = Shape {
        steps: (WHOLE_PASSES * parts.all.len() / 256).clamp(200, full.steps),
        ..full.clone()
    };
    let (encoder, whole) = parts.classifier(&data.table, &full, seed)?;
    let alike = Alike::new(&encoder.encode(&data.table, &parts.all), seed);
    let first = Rc::clone(&own);
    let score = move |data: &Data, rows: &[usize]| -> Result<Vec<f64>> {
        let share = alike.share(&encoder.encode(&data.table, rows));
        let own = log_odds(&first.1, &first.0, portable(data), rows)?;
        let whole = log_odds(&whole, &encoder, &data.table, rows)?;
        Ok(own
            .iter()
            .zip(whole)
            .map(|(own, whole)| (1.0 - share) * own + share * whole)
            .collect())
    };
    let score: Score = Box::new(score);
    let calibration = score(data, &parts.held)?;
    let names = ["both views, threshold from benign rows", "both views"];
    // Odds mean the same whichever view they come from, while a quantile of one view's says nothing of the other's.
    let both = Detector::new(names, spec, data, &calibration, &rows.others, score)?.with_threshold(0.0);

    let score = move |data: &Data, rows: &[usize]| log_odds(&own.1, &own.0, portable(data), rows);
    let score: Score = Box::new(score);
    let calibration = score(data, &parts.held)?;
    let names = ["portable view, threshold from benign rows", "portable view"];
    let view = Detector::new(names, spec, data, &calibration, &rows.others, score)?.with_threshold(0.0);

    // What the columns alone are worth: a line on the portable view.
    let encoder = Encoder::fit(portable(data), &parts.all);
    let line = Linear::logistic(&encoder.encode(portable(data), &parts.all), &parts.labels, 2, seed);
    let score = move |data: &Data, rows: &[usize]| Ok(line.score(&encoder.encode(portable(data), rows)));
    let score: Score = Box::new(score);
    let calibration = score(data, &parts.held)?;
    let names = [
        "line on the portable view, threshold from benign rows",
        "line on the portable view",
    ];
    let line = Detector::new(names, spec, data, &calibration, &rows.others, score)?;
    Ok(vec![both, view, line])
}
