//! Finding what is not benign: each model's scores, and thresholds that only training rows decide.

use anyhow::Result;
use garrison_models::{
    Matrix,
    autoencoder::{Autoencoder, Training},
    baseline::{Boxplot, IsolationForest, Linear},
    classifier::{self, Classifier, Labelled},
    ensemble::{self, Ensemble},
    metrics::{quantile, roc_auc},
    rng::SplitMix64,
    table::{Column, Encoder, Table},
};

use crate::{
    data::Data,
    report::{Outcome, outcome},
    spec::{Spec, Task},
};

// Rows of one label that a threshold is set by, at most.
const MOST_OF_A_LABEL: usize = 2_000;
/// Share of the benign training rows that thresholds are set by.
pub const HELD_BACK: f64 = 0.2;

/// Scores of some rows.
pub type Score = Box<dyn Fn(&Data, &[usize]) -> Result<Vec<f64>>>;

/// What a detector says of some rows, and where its thresholds lie.
pub struct Detector {
    /// Its name, for the two thresholds.
    pub names: [&'static str; 2],
    score: Score,
    // From benign rows alone; from labelled rows, when there are any.
    thresholds: [Option<f64>; 2],
    // How well training rows are parted, every label counting the same: the figure that models may be chosen by.
    training_auc: f64,
}

impl Detector {
    /// Puts a threshold in place of the one from labelled rows: of a probability, say.
    pub fn with_threshold(mut self, threshold: f64) -> Self {
        self.thresholds[1] = Some(threshold);
        self
    }
}

/// The rows to learn from, in their parts.
pub struct Rows {
    /// Benign.
    pub benign: Vec<usize>,
    /// Not benign.
    pub others: Vec<usize>,
}

impl Rows {
    /// Parts rows by what their labels say; a sample by the seed when there are too many.
    pub fn new(spec: &Spec, data: &Data, rows: &[usize], seed: u64) -> Self {
        let rows = sample(rows, spec.most_rows, seed);
        let (benign, others) = rows.into_iter().partition(|i| spec.is_normal(&data.labels[*i]));
        Self { benign, others }
    }
}

/// A sample without repeats.
pub fn sample(rows: &[usize], most: usize, seed: u64) -> Vec<usize> {
    let mut rows = rows.to_vec();
    if rows.len() > most {
        let mut rng = SplitMix64::new(seed);
        for i in 0..most {
            let j = i + rng.below((rows.len() - i) as u64) as usize;
            rows.swap(i, j);
        }
        rows.truncate(most);
        rows.sort_unstable();
    }
    rows
}

impl Detector {
    /// Sets the thresholds: by `calibration`, the scores of benign rows that were not learnt from, and by training rows of
    /// `others`.
    pub fn new(
        names: [&'static str; 2],
        spec: &Spec,
        data: &Data,
        calibration: &[f64],
        others: &[usize],
        score: Score,
    ) -> Result<Self> {
        let benign = quantile(calibration, 1.0 - spec.expected_false_positives);
        let others = few_of_each(data, others);
        let scores = score(data, &others)?;
        let labels: Vec<&str> = others.iter().map(|i| data.labels[*i].as_str()).collect();
        let mut by_label: std::collections::BTreeMap<&str, Vec<f64>> = Default::default();
        scores
            .iter()
            .zip(&labels)
            .for_each(|(s, l)| by_label.entry(l).or_default().push(*s));
        let auc = |own: &Vec<f64>| {
            let all: Vec<f64> = calibration.iter().chain(own).copied().collect();
            let positive: Vec<bool> = (0..all.len()).map(|i| i >= calibration.len()).collect();
            roc_auc(&all, &positive)
        };
        let training_auc = by_label.values().map(auc).sum::<f64>() / by_label.len() as f64;
        Ok(Self {
            names,
            score,
            training_auc,
            thresholds: [
                benign.is_finite().then_some(benign),
                best_by_label(calibration, &scores, &labels),
            ],
        })
    }

    /// Scores rows and judges them at both thresholds.
    pub fn judge(&self, spec: &Spec, data: &Data, rows: &[usize]) -> Result<Vec<Outcome>> {
        let scores = (self.score)(data, rows)?;
        let positive: Vec<bool> = rows.iter().map(|i| !spec.is_normal(&data.labels[*i])).collect();
        let mut at: Vec<(&'static str, Option<f64>)> = self.names.into_iter().zip(self.thresholds).collect();
        // Who is to learn from benign rows alone must not choose a threshold by attacks either.
        if spec.task != Task::OneClass {
            at.reverse();
        }
        Ok(at
            .into_iter()
            .filter_map(|(name, threshold)| {
                let mut outcome = outcome(name, &scores, &positive, threshold?);
                if spec.task == Task::OneClass && self.training_auc.is_finite() {
                    outcome.figures.push(("training_auc", self.training_auc));
                }
                Some(outcome)
            })
            .collect())
    }
}

fn few_of_each(data: &Data, rows: &[usize]) -> Vec<usize> {
    let mut seen = std::collections::HashMap::new();
    let few = rows.iter().filter(|i| {
        let count: &mut usize = seen.entry(data.labels[**i].as_str()).or_default();
        *count += 1;
        *count <= MOST_OF_A_LABEL
    });
    few.copied().collect()
}

// The threshold that parts benign rows best from the others, where every label counts the same, as it is not known which
// will come. Where several do about as well, the middle of them.
fn best_by_label(benign: &[f64], scores: &[f64], labels: &[&str]) -> Option<f64> {
    if scores.is_empty() || benign.is_empty() {
        return None;
    }
    let mut by_label: std::collections::BTreeMap<&str, Vec<f64>> = Default::default();
    scores
        .iter()
        .zip(labels)
        .for_each(|(s, l)| by_label.entry(l).or_default().push(*s));
    let gain = |share: f64| {
        let threshold = quantile(benign, 1.0 - share);
        let found = by_label
            .values()
            .map(|own| own.iter().filter(|s| **s > threshold).count() as f64 / own.len() as f64);
        found.sum::<f64>() / by_label.len() as f64 - share
    };
    let shares: Vec<(f64, f64)> = (0..=60)
        .map(|k| (0.005 * f64::from(k), gain(0.005 * f64::from(k))))
        .collect();
    let most = shares.iter().map(|s| s.1).fold(f64::NEG_INFINITY, f64::max);
    let good: Vec<f64> = shares.iter().filter(|s| s.1 >= most - 0.01).map(|s| s.0).collect();
    let middle = 0.5 * (good.first()? + good.last()?);
    Some(quantile(benign, 1.0 - middle))
}

/// The network ensemble on benign rows.
pub fn ensemble(spec: &Spec, data: &Data, rows: &Rows, shape: &ensemble::Shape, seed: u64) -> Result<Detector> {
    let encoder = Encoder::fit(&data.table, &rows.benign);
    let matrix = encoder.encode(&data.table, &rows.benign);
    let (model, held) = Ensemble::train(&matrix, &encoder.blocks(), shape, seed)?;
    let score = move |data: &Data, rows: &[usize]| Ok(model.score(&encoder.encode(&data.table, rows))?.values);
    let names = ["ensemble, threshold from benign rows", "ensemble"];
    Detector::new(names, spec, data, &held, &rows.others, Box::new(score))
}

/// The autoencoder that the service runs on every flow.
pub fn autoencoder(spec: &Spec, data: &Data, rows: &Rows, seed: u64) -> Result<Detector> {
    let encoder = Encoder::fit(&data.table, &rows.benign);
    let training = Training {
        features: encoder.names(),
        seed,
        version: 1,
        least_rows: 10,
        window: (0, 0),
        learnt_flows: rows.benign.len() as u64,
    };
    let (model, _, held) = Autoencoder::train(&encoder.encode(&data.table, &rows.benign), &training)?;
    let score = move |data: &Data, rows: &[usize]| Ok(model.score(&encoder.encode(&data.table, rows))?.values);
    let names = ["autoencoder, threshold from benign rows", "autoencoder"];
    Detector::new(names, spec, data, &held, &rows.others, Box::new(score))
}

/// What every model has to be better than. The linear one learns from labels where `labelled`.
pub fn baselines(spec: &Spec, data: &Data, rows: &Rows, labelled: bool, seed: u64) -> Result<Vec<Detector>> {
    let mut rng = SplitMix64::new(seed ^ 0xBA5E);
    let (fit, held): (Vec<usize>, Vec<usize>) = rows.benign.iter().partition(|_| rng.unit() >= HELD_BACK);
    let encoder = Encoder::fit(&data.table, &fit);
    let matrix = encoder.encode(&data.table, &fit);
    // Each is calibrated with the benign rows that it did not learn from.
    let detector = |names, score: Score| {
        let calibration = score(data, &held)?;
        Detector::new(names, spec, data, &calibration, &rows.others, score)
    };

    let column = rate_column(spec, &data.table);
    let values = |table: &Table, rows: &[usize]| -> Vec<f32> {
        match table.column(&column) {
            Some(Column::Numeric(values)) => rows.iter().map(|i| values[*i]).collect(),
            _ => vec![0.0; rows.len()],
        }
    };
    let boxplot = Boxplot::fit(values(&data.table, &fit).into_iter());
    let score = move |data: &Data, rows: &[usize]| -> Result<Vec<f64>> {
        let value = |i: &usize| match data.table.column(&column) {
            Some(Column::Numeric(values)) => boxplot.score(values[*i]),
            _ => 0.0,
        };
        Ok(rows.iter().map(value).collect())
    };
    let names = ["boxplot, threshold from benign rows", "boxplot"];
    let boxplot = detector(names, Box::new(score))?;

    let forest = IsolationForest::fit(&matrix, seed);
    let own = encoder.clone();
    let score = move |data: &Data, rows: &[usize]| Ok(forest.score(&own.encode(&data.table, rows)));
    let names = ["isolation forest, threshold from benign rows", "isolation forest"];
    let forest = detector(names, Box::new(score))?;

    let (linear, own) = if labelled && !rows.others.is_empty() {
        let all: Vec<usize> = fit.iter().chain(&rows.others).copied().collect();
        let encoder = Encoder::fit(&data.table, &all);
        let labels: Vec<usize> = (0..all.len()).map(|i| usize::from(i >= fit.len())).collect();
        (
            Linear::logistic(&encoder.encode(&data.table, &all), &labels, 2, seed),
            encoder,
        )
    } else {
        (Linear::components(&matrix, seed), encoder)
    };
    let score = move |data: &Data, rows: &[usize]| Ok(linear.score(&own.encode(&data.table, rows)));
    let names = ["linear, threshold from benign rows", "linear"];
    let linear = detector(names, Box::new(score))?;
    Ok(vec![boxplot, forest, linear])
}

fn rate_column(spec: &Spec, table: &Table) -> String {
    let numeric = table.columns().find(|(_, column)| matches!(column, Column::Numeric(_)));
    let first = numeric.map_or(String::new(), |(name, _)| name.to_owned());
    spec.rate.clone().unwrap_or(first)
}

/// Two looks at a row: how unusual it is, from benign rows alone, and how much it is like what was labelled. Each look is
/// told as how rare it is among benign rows that were held back, and the evidence is added (Fisher 1932).
pub fn fused(spec: &Spec, data: &Data, rows: &Rows, shapes: &Shapes, seed: u64) -> Result<Detector> {
    let mut rng = SplitMix64::new(seed ^ 0xF05E);
    let (fit, held): (Vec<usize>, Vec<usize>) = rows.benign.iter().partition(|_| rng.unit() >= HELD_BACK);
    let unusual_encoder = Encoder::fit(&data.table, &fit);
    let (unusual, _) = Ensemble::train(
        &unusual_encoder.encode(&data.table, &fit),
        &unusual_encoder.blocks(),
        &shapes.ensemble,
        seed,
    )?;
    let all: Vec<usize> = fit.iter().chain(&rows.others).copied().collect();
    let labels: Vec<usize> = (0..all.len()).map(|i| usize::from(i >= fit.len())).collect();
    let encoder = Encoder::fit(&data.table, &all);
    let matrix = encoder.encode(&data.table, &all);
    let classes = ["benign".to_owned(), "malicious".to_owned()];
    let labelled = Labelled {
        rows: &matrix,
        labels: &labels,
        weights: &[],
    };
    let known = Classifier::train(&labelled, &classes, &shapes.classifier, seed)?;
    let looks = move |data: &Data, rows: &[usize]| -> Result<(Vec<f64>, Vec<f64>)> {
        let unusual = unusual.score(&unusual_encoder.encode(&data.table, rows))?.values;
        let matrix: Matrix = encoder.encode(&data.table, rows);
        let p = known.probabilities(&matrix)?;
        Ok((
            unusual,
            p.iter().map(|p| (p[1].max(1e-9) / p[0].max(1e-9)).ln()).collect(),
        ))
    };
    let (first, second) = looks(data, &held)?;
    let (first, second) = (Rarity::new(first), Rarity::new(second));
    let score = move |data: &Data, rows: &[usize]| -> Result<Vec<f64>> {
        let (a, b) = looks(data, rows)?;
        Ok(a.iter().zip(&b).map(|(a, b)| first.of(*a) + second.of(*b)).collect())
    };
    let calibration = score(data, &held)?;
    let names = [
        "ensemble + classifier, threshold from benign rows",
        "ensemble + classifier",
    ];
    Detector::new(names, spec, data, &calibration, &rows.others, Box::new(score))
}

/// The classifier alone.
pub fn known(spec: &Spec, data: &Data, rows: &Rows, shape: &classifier::Shape, seed: u64) -> Result<Detector> {
    let mut rng = SplitMix64::new(seed ^ 0xF05E);
    let (fit, held): (Vec<usize>, Vec<usize>) = rows.benign.iter().partition(|_| rng.unit() >= HELD_BACK);
    let all: Vec<usize> = fit.iter().chain(&rows.others).copied().collect();
    let labels: Vec<usize> = (0..all.len()).map(|i| usize::from(i >= fit.len())).collect();
    let encoder = Encoder::fit(&data.table, &all);
    let matrix = encoder.encode(&data.table, &all);
    let classes = ["benign".to_owned(), "malicious".to_owned()];
    let labelled = Labelled {
        rows: &matrix,
        labels: &labels,
        weights: &[],
    };
    let known = Classifier::train(&labelled, &classes, shape, seed)?;
    let score = move |data: &Data, rows: &[usize]| -> Result<Vec<f64>> {
        let p = known.probabilities(&encoder.encode(&data.table, rows))?;
        Ok(p.iter().map(|p| (p[1].max(1e-9) / p[0].max(1e-9)).ln()).collect())
    };
    let calibration = score(data, &held)?;
    let names = ["classifier, threshold from benign rows", "classifier"];
    Detector::new(names, spec, data, &calibration, &rows.others, Box::new(score))
}

/// Sizes of both networks.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    /// Of the ensemble.
    pub ensemble: ensemble::Shape,
    /// Of the classifier.
    pub classifier: classifier::Shape,
}

// -ln of the share of benign values at least as high; beyond the highest it goes on by distance, in spreads.
struct Rarity {
    sorted: Vec<f64>,
    spread: f64,
}

impl Rarity {
    fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let spread = (quantile(&values, 0.95) - quantile(&values, 0.5)).max(1e-6);
        Self { sorted: values, spread }
    }

    fn of(&self, value: f64) -> f64 {
        let n = self.sorted.len() as f64;
        let above = n - self.sorted.partition_point(|v| *v < value) as f64;
        let beyond = self
            .sorted
            .last()
            .map_or(0.0, |most| (value - most).max(0.0) / self.spread);
        -((above + 0.5) / (n + 1.0)).ln() + beyond.ln_1p()
    }
}
