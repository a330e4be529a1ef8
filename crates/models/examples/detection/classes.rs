//! Naming the class: decisions by cost, attack types that training lacks told apart.

use std::collections::HashMap;

use anyhow::Result;
use garrison_models::{
    Matrix,
    baseline::Linear,
    classifier::{Classifier, Labelled, cheapest, decide, with_unknown},
    ensemble::Ensemble,
    metrics::{ClassConfusion, Confusion, detection_at, pr_auc, roc_auc},
    table::Encoder,
    trees::{self, Trees},
};

use crate::{
    data::{Data, count},
    detect::{self, Detector, Rows, Shapes, sample},
    report::Outcome,
    spec::{Spec, plain},
};

// How likely an attack of no known kind is taken to be beforehand: set once and not tuned, but after earlier runs had shown
// that unknown attacks were missed.
const UNKNOWN: f64 = 0.2;

/// The classes of a dataset, benign first.
pub struct Classes {
    /// Their names.
    pub names: Vec<String>,
    of: HashMap<String, usize>,
}

impl Classes {
    /// As the spec says, or one for each label of the training rows.
    pub fn new(spec: &Spec, data: &Data, train: &[usize]) -> Self {
        let mut names = vec!["benign".to_owned()];
        let mut of = HashMap::new();
        for class in &spec.class {
            class.labels.iter().for_each(|l| _ = of.insert(plain(l), names.len()));
            names.push(class.name.clone());
        }
        if spec.class.is_empty() {
            for (label, _) in count(train.iter().map(|i| data.labels[*i].clone())) {
                if !spec.is_normal(&label) {
                    of.insert(label.clone(), names.len());
                    names.push(label);
                }
            }
        }
        Self { names, of }
    }

    /// The class of a label; none when no class has it.
    pub fn of(&self, spec: &Spec, label: &str) -> Option<usize> {
        if spec.is_normal(label) {
            return Some(0);
        }
        self.of.get(label).copied()
    }
}

/// Rows that are the same are trained on once, with a weight.
pub fn distinct(matrix: &Matrix, labels: &[usize]) -> (Vec<usize>, Vec<f64>) {
    let mut first: HashMap<(Vec<u32>, usize), usize> = HashMap::new();
    let (mut rows, mut weights) = (Vec::new(), Vec::<f64>::new());
    for (i, label) in labels.iter().enumerate() {
        let key: Vec<u32> = matrix.row(i).map(f32::to_bits).collect();
        match first.get(&(key.clone(), *label)) {
            Some(at) => weights[*at] += 1.0,
            None => {
                first.insert((key, *label), rows.len());
                rows.push(i);
                weights.push(1.0);
            }
        }
    }
    (rows, weights)
}

/// Trains on `train`, judges each test, prints what cannot go into a line, and returns the outcomes by test.
pub fn run(
    spec: &Spec,
    data: &Data,
    train: &[usize],
    tests: &[(String, Vec<usize>)],
    shapes: &Shapes,
    seed: u64,
    details: bool,
) -> Result<Vec<Vec<Outcome>>> {
    let classes = Classes::new(spec, data, train);
    let train = sample(train, spec.most_rows.max(1_000_000), seed);
    let train: Vec<usize> = train
        .into_iter()
        .filter(|i| classes.of(spec, &data.labels[*i]).is_some())
        .collect();
    let labels: Vec<usize> = train
        .iter()
        .filter_map(|i| classes.of(spec, &data.labels[*i]))
        .collect();
    let encoder = Encoder::fit(&data.table, &train);
    let matrix = encoder.encode(&data.table, &train);
    let (rows, weights) = distinct(&matrix, &labels);
    let matrix = matrix.select(&rows);
    let labels: Vec<usize> = rows.iter().map(|i| labels[*i]).collect();
    // Floods repeat one row without end; what they weigh grows with the root.
    let weights: Vec<f64> = weights.iter().map(|w| w.sqrt()).collect();
    let labelled = Labelled {
        rows: &matrix,
        labels: &labels,
        weights: &weights,
    };
    let network = Classifier::train(&labelled, &classes.names, &shapes.classifier, seed)?;
    // How unusual rows are beside benign ones, learnt from those alone.
    let benign: Vec<usize> = (0..labels.len()).filter(|i| labels[*i] == 0).collect();
    let (unusual, mut held) = Ensemble::train(&matrix.select(&benign), &encoder.blocks(), &shapes.ensemble, seed)?;
    held.sort_by(f64::total_cmp);
    let trees = Trees::grow(
        &matrix,
        &labels,
        &weights,
        classes.names.len(),
        &trees::Shape::default(),
        seed,
    )?;
    let linear = Linear::logistic(&matrix, &labels, classes.names.len(), seed);
    // These two cannot name a class; they say what is an attack.
    let blind: Vec<Detector> = detect::baselines(spec, data, &Rows::new(spec, data, &train, seed), false, seed)?
        .into_iter()
        .take(2)
        .collect();
    if details {
        let m = network.manifest();
        println!(
            "\n{} different rows of {}; temperature {:.2}, loss {:.4} and calibration error {:.4} on the rows held back",
            rows.len(),
            train.len(),
            m.temperature,
            m.held_loss,
            m.held_calibration_error
        );
    }
    let known: std::collections::HashSet<&str> = train.iter().map(|i| data.labels[*i].as_str()).collect();
    let mut all = Vec::new();
    for (test, rows) in tests {
        let truth: Vec<usize> = rows
            .iter()
            .map(|i| classes.of(spec, &data.labels[*i]).unwrap_or(usize::MAX))
            .collect();
        let matrix = encoder.encode(&data.table, rows);
        let by_network = network.probabilities(&matrix)?;
        let by_trees = trees.probabilities(&matrix)?;
        let half = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| 0.5 * (a + b)).collect();
        let probabilities: Vec<Vec<f64>> = by_network.iter().zip(&by_trees).map(half).collect();
        let scores = unusual.score(&matrix)?.values;
        let wary: Vec<Vec<f64>> = probabilities
            .iter()
            .zip(&scores)
            .map(|(p, score)| {
                let above = held.len() - held.partition_point(|h| h < score);
                with_unknown(p, (above as f64 + 1.0) / (held.len() as f64 + 1.0), UNKNOWN)
            })
            .collect();
        let likeliest = |p: &[Vec<f64>]| {
            p.iter()
                .map(|p| decide(p, 0.0).class.unwrap_or(0))
                .collect::<Vec<usize>>()
        };
        // By what a mistake costs, where that is said.
        let decided = |all: &[Vec<f64>]| match spec.costs.is_empty() {
            true => likeliest(all),
            false => all.iter().map(|p| cheapest(p, &spec.costs)).collect(),
        };
        let seen: Vec<bool> = rows.iter().map(|i| known.contains(data.labels[*i].as_str())).collect();
        let judging = Judging {
            spec,
            classes: &classes,
            truth: &truth,
            seen: &seen,
        };
        let against = |p: &[Vec<f64>]| p.iter().map(|p| 1.0 - p[0]).collect::<Vec<f64>>();
        let decisions = decided(&wary);
        let (ours, confusion) = judging.judge("committee + ensemble", &decisions, Some(&against(&wary)));
        let mut outcomes = vec![ours];
        for (model, p) in [
            ("committee", &probabilities),
            ("network", &by_network),
            ("trees", &by_trees),
        ] {
            outcomes.push(judging.judge(model, &decided(p), Some(&against(p))).0);
        }
        outcomes.push(
            judging
                .judge(
                    "committee, likeliest",
                    &likeliest(&probabilities),
                    Some(&against(&probabilities)),
                )
                .0,
        );
        for detector in &blind {
            // The one whose threshold comes from labelled rows, where there is one.
            outcomes.extend(
                detector
                    .judge(spec, data, rows)?
                    .into_iter()
                    .take(1)
                    .map(Outcome::of_attacks),
            );
        }
        let line = linear.score(&matrix);
        outcomes.push(judging.judge("linear", &linear.classify(&matrix), Some(&line)).0);
        outcomes.push(judging.judge("all benign", &vec![0; truth.len()], None).0);
        if details {
            print_confusion(test, &classes, &confusion);
            print_unseen(spec, data, rows, &known, &decisions, &classes);
            print_abstention(&probabilities, &truth);
        }
        all.push(outcomes);
    }
    Ok(all)
}

// What decisions are held against.
struct Judging<'a> {
    spec: &'a Spec,
    classes: &'a Classes,
    truth: &'a [usize],
    // Training had rows of the label.
    seen: &'a [bool],
}

impl Judging<'_> {
    fn judge(&self, model: &'static str, decisions: &[usize], scores: Option<&[f64]>) -> (Outcome, ClassConfusion) {
        let mut confusion = ClassConfusion::new(self.classes.names.len());
        let mut binary = Confusion::default();
        let (mut unseen, mut unseen_found) = (0_u64, 0_u64);
        for ((truth, decision), seen) in self.truth.iter().zip(decisions).zip(self.seen) {
            if *truth < self.classes.names.len() {
                confusion.add(*truth, *decision);
            }
            *match (*decision != 0, *truth != 0) {
                (true, true) => &mut binary.true_positives,
                (true, false) => &mut binary.false_positives,
                (false, false) => &mut binary.true_negatives,
                (false, true) => &mut binary.false_negatives,
            } += 1;
            if *truth != 0 && !seen {
                unseen += 1;
                unseen_found += u64::from(*decision != 0);
            }
        }
        let mut figures = vec![("accuracy", confusion.accuracy()), ("macro_f1", confusion.macro_f1())];
        if !self.spec.costs.is_empty() {
            figures.push(("cost", confusion.cost(&self.spec.costs)));
        }
        if unseen > 0 {
            figures.push(("unseen_found", unseen_found as f64 / unseen as f64));
        }
        figures.extend([
            ("attack_accuracy", binary.accuracy()),
            ("attack_f1", binary.f1()),
            ("attacks_found", binary.recall()),
            ("false_positives", binary.false_positive_rate()),
        ]);
        if let Some(scores) = scores {
            let positive: Vec<bool> = self.truth.iter().map(|truth| *truth != 0).collect();
            figures.extend([
                ("roc_auc", roc_auc(scores, &positive)),
                ("pr_auc", pr_auc(scores, &positive)),
                ("found_at_0.1%", detection_at(scores, &positive, 0.001)),
                ("found_at_1%", detection_at(scores, &positive, 0.01)),
            ]);
        }
        let outcome = Outcome {
            model,
            figures,
            confusion: binary,
        };
        (outcome, confusion)
    }
}

fn print_confusion(test: &str, classes: &Classes, confusion: &ClassConfusion) {
    println!(
        "\n{test}, first seed; rows are the truth:\n\n| | {} | F1 |",
        classes.names.join(" | ")
    );
    println!("|---|{}", "---|".repeat(classes.names.len() + 1));
    for (truth, name) in classes.names.iter().enumerate() {
        let row: Vec<String> = confusion.counts[truth].iter().map(u64::to_string).collect();
        println!("| {name} | {} | {:.4} |", row.join(" | "), confusion.f1(truth));
    }
}

fn print_unseen(
    spec: &Spec,
    data: &Data,
    rows: &[usize],
    known: &std::collections::HashSet<&str>,
    decisions: &[usize],
    classes: &Classes,
) {
    let mut unseen: HashMap<&str, (usize, usize, usize)> = HashMap::new();
    for (i, decision) in rows.iter().zip(decisions) {
        let label = data.labels[*i].as_str();
        if !known.contains(label) && !spec.is_normal(label) {
            let entry = unseen.entry(label).or_default();
            entry.0 += 1;
            entry.1 += usize::from(*decision != 0);
            entry.2 += usize::from(classes.of(spec, label) == Some(*decision));
        }
    }
    if unseen.is_empty() {
        return;
    }
    let mut unseen: Vec<_> = unseen.into_iter().collect();
    unseen.sort_by(|a, b| b.1.0.cmp(&a.1.0).then_with(|| a.0.cmp(b.0)));
    println!("\nAttacks that training lacks:\n\n| label | class | rows | found | class right |\n|---|---|---|---|---|");
    let (mut rows, mut found, mut right) = (0, 0, 0);
    for (label, (n, f, r)) in &unseen {
        let class = classes.of(spec, label).map_or("none", |c| classes.names[c].as_str());
        let of = |k: usize| 100.0 * k as f64 / *n as f64;
        println!("| {label} | {class} | {n} | {:.1} % | {:.1} % |", of(*f), of(*r));
        (rows, found, right) = (rows + n, found + f, right + r);
    }
    let of = |k: usize| 100.0 * k as f64 / rows as f64;
    println!("| all | | {rows} | {:.1} % | {:.1} % |", of(found), of(right));
}

fn print_abstention(probabilities: &[Vec<f64>], truth: &[usize]) {
    println!("\n| abstains below | of all rows | right among the others |\n|---|---|---|");
    for least in [0.5, 0.7, 0.9, 0.99] {
        let (mut told, mut right) = (0_usize, 0_usize);
        for (p, truth) in probabilities.iter().zip(truth) {
            if let Some(class) = decide(p, least).class {
                told += 1;
                right += usize::from(class == *truth);
            }
        }
        let abstained = 1.0 - told as f64 / truth.len() as f64;
        println!(
            "| {least} | {:.2} % | {:.2} % |",
            100.0 * abstained,
            100.0 * right as f64 / told.max(1) as f64
        );
    }
}
