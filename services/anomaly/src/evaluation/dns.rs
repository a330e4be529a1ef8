//! Tunnels with parent domains that training never saw, and generated domains with a family left out; and the training
//! of the models that come with the service.

use std::{collections::BTreeMap, path::Path};

use garrison_models::{
    metrics::{Confusion, roc_auc},
    rng::SplitMix64,
};

use super::{
    EvaluationError, Goal, Report,
    zeek::{Log, lines},
};
use crate::domain::{
    behaviour::dns::{
        generated::Asked,
        names::{NameModel, Split},
        tunnel::{FEATURES, LEAST_QUESTIONS, Zone},
    },
    settings::Settings,
    wide::name_hash,
    window::SECOND,
};

/// The families of generated domains.
pub const FAMILIES: [&str; 4] = ["conficker", "cryptolocker", "pushdo", "tinba"];
const SEED: u64 = 1;
const A_FAMILY: usize = 3_000;
const MADE: usize = 15_000;
const NAMES_A_HOST: usize = 16;

/// The public lists, by their registered labels.
#[derive(Debug)]
pub struct Names {
    /// By family.
    pub generated: BTreeMap<&'static str, Vec<String>>,
    /// In use, in random order.
    pub in_use: Vec<String>,
}

impl Names {
    /// Reads `dns/` of the corpora.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn read(corpora: &Path) -> Result<Self, EvaluationError> {
        let mut rng = SplitMix64::new(SEED);
        let mut list = |names: &[&str]| -> Result<Vec<String>, EvaluationError> {
            let mut labels = Vec::new();
            for name in names {
                for line in lines(&corpora.join(format!("dns/{name}.txt.gz")))? {
                    if let Some(split) = Split::of(line.trim()) {
                        labels.push(split.label.to_ascii_lowercase());
                    }
                }
            }
            labels.sort();
            labels.dedup();
            rng.shuffle(&mut labels);
            Ok(labels)
        };
        Ok(Self {
            in_use: list(&["benign-top", "benign-random"])?,
            generated: FAMILIES
                .iter()
                .map(|family| Ok((*family, list(&[&format!("dga-{family}")])?)))
                .collect::<Result<_, EvaluationError>>()?,
        })
    }

    /// Trains on a part of the names in use, on generators of our own, and on all families but one.
    pub fn train(&self, in_use: &[String], without: Option<&str>) -> NameModel {
        let made = made_up(MADE, SEED);
        let mut generated: Vec<&str> = made.iter().map(String::as_str).collect();
        for (family, labels) in &self.generated {
            if Some(*family) != without {
                generated.extend(labels.iter().take(A_FAMILY).map(String::as_str));
            }
        }
        let in_use: Vec<&str> = in_use.iter().map(String::as_str).collect();
        NameModel::train(&generated, &in_use, SEED)
    }
}

/// Labels of generators as they are commonly built: letters drawn evenly, letters and digits, hexadecimal digits, and
/// syllables of a consonant and a vowel.
pub fn made_up(n: usize, seed: u64) -> Vec<String> {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    const HEX: &[u8] = b"0123456789abcdef";
    const VOWELS: &[u8] = b"aeiou";
    const CONSONANTS: &[u8] = b"bcdfghjklmnpqrstvwxyz";
    let mut rng = SplitMix64::new(seed ^ 0xA5A5);
    let mut one = || {
        let mut label: Vec<u8> = Vec::new();
        let kind = rng.unit();
        let mut draw = |rng: &mut SplitMix64, from: &[u8], length: u64| {
            for _ in 0..length {
                label.push(from[rng.below(from.len() as u64) as usize]);
            }
        };
        if kind < 0.40 {
            let length = 5 + rng.below(16);
            draw(&mut rng, &LETTERS[..26], length);
        } else if kind < 0.50 {
            let length = 7 + rng.below(22);
            draw(&mut rng, LETTERS, length);
        } else if kind < 0.55 {
            let length = 8 + rng.below(25);
            draw(&mut rng, HEX, length);
        } else {
            let length = 5 + rng.below(9) as usize;
            for _ in 0..length {
                let turned = rng.unit() < 0.4;
                draw(&mut rng, if turned { VOWELS } else { CONSONANTS }, 1);
                draw(&mut rng, if turned { CONSONANTS } else { VOWELS }, 1);
                if rng.unit() < 0.25 {
                    draw(&mut rng, CONSONANTS, 1);
                }
            }
            label.truncate(length);
        }
        String::from_utf8(label).unwrap_or_default()
    };
    (0..n).map(|_| one()).collect()
}

/// Windows of questions, each below one parent.
#[derive(Debug, Default)]
pub struct Windows {
    /// Of tunnels, by parent.
    pub tunnels: BTreeMap<String, Vec<Zone>>,
    /// Of names in use, with the parent.
    pub in_use: Vec<(String, Zone)>,
    /// Single questions of tunnels, by parent.
    pub single: BTreeMap<String, Vec<Zone>>,
}

impl Windows {
    /// Reads a list of questions with their class, and the questions of real logs where they are.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn read(corpora: &Path, list: &str) -> Result<Self, EvaluationError> {
        let mut windows = Self::default();
        let mut rng = SplitMix64::new(SEED);
        let mut open: BTreeMap<(bool, String), (Zone, u32)> = BTreeMap::new();
        for line in lines(&corpora.join(format!("dns/{list}.csv.gz")))? {
            let Some((class, name)) = line.split_once(',') else {
                continue;
            };
            let Some(split) = Split::of(name) else {
                continue;
            };
            let (tunnel, parent) = (class == "1", split.parent.to_ascii_lowercase());
            let length = LEAST_QUESTIONS + rng.below(50) as u32;
            let (zone, length) = open
                .entry((tunnel, parent.clone()))
                .or_insert_with(|| (Zone::default(), length));
            zone.note(split.sub);
            if tunnel {
                let mut single = Zone::default();
                single.note(split.sub);
                windows.single.entry(parent.clone()).or_default().push(single);
            }
            if zone.questions >= *length
                && let Some((zone, _)) = open.remove(&(tunnel, parent.clone()))
            {
                windows.add(tunnel, parent, zone);
            }
        }
        for ((tunnel, parent), (zone, _)) in open {
            if !tunnel || zone.questions >= LEAST_QUESTIONS {
                windows.add(tunnel, parent, zone);
            }
        }
        windows.add_logs(corpora)?;
        windows.add_content_networks(&mut rng);
        Ok(windows)
    }

    fn add(&mut self, tunnel: bool, parent: String, zone: Zone) {
        if tunnel {
            self.tunnels.entry(parent).or_default().push(zone);
        } else {
            self.in_use.push((parent, zone));
        }
    }

    // Real questions with all that content networks, trackers and look-ups put before a parent.
    fn add_logs(&mut self, corpora: &Path) -> Result<(), EvaluationError> {
        let folder = corpora.join("beacon/proxy_rolling");
        let mut open: BTreeMap<(String, String, i64), Zone> = BTreeMap::new();
        for hour in ["15-00-00-16-00-00", "16-00-00-17-00-00"] {
            let path = folder.join(format!("dns.{hour}.log.gz"));
            if !path.is_file() {
                continue;
            }
            let log = Log::read(&path)?;
            for row in log.rows() {
                let (Some(name), Some(source), Some(time)) = (row.get("query"), row.get("id.orig_h"), row.nanos("ts"))
                else {
                    continue;
                };
                if let Some(split) = Split::of(name).filter(|split| !split.sub.is_empty()) {
                    let key = (
                        source.to_owned(),
                        split.parent.to_ascii_lowercase(),
                        time / (600 * SECOND),
                    );
                    open.entry(key).or_default().note(split.sub);
                }
            }
        }
        self.in_use
            .extend(open.into_iter().map(|((_, parent, _), zone)| (parent, zone)));
        Ok(())
    }

    // Hosts of content networks as they are commonly named: a few labels, one of them a short hash.
    fn add_content_networks(&mut self, rng: &mut SplitMix64) {
        let labels = made_up(20_000, rng.next_u64());
        let mut labels = labels.iter().cycle();
        for n in 0..400 {
            let mut zone = Zone::default();
            let hosts = 1 + rng.below(40);
            for _ in 0..hosts + rng.below(60) {
                let hash = labels.next().map_or("", String::as_str);
                let hash = &hash[..hash.len().min(12)];
                let region = ["", ".eu", ".us-east-1", ".cdn.edge"][rng.below(4) as usize];
                zone.note(&format!("{hash}{region}"));
            }
            self.in_use.push((format!("network-{n}.example"), zone));
        }
    }

    // Those whose parent's hash is even, or odd.
    fn half(&self, odd: bool) -> Vec<&Zone> {
        let chosen = |(parent, _): &&(String, Zone)| (name_hash(parent) & 1 == 1) == odd;
        self.in_use.iter().filter(chosen).map(|(_, zone)| zone).collect()
    }
}

/// Fits the tunnel model: logistic regression by gradient descent on standardised numbers, both classes weighing the
/// same.
pub fn train_tunnels(tunnels: &[&Zone], in_use: &[&Zone]) -> [f64; FEATURES + 1] {
    let rows: Vec<([f64; FEATURES], f64, f64)> = tunnels
        .iter()
        .map(|zone| (zone.features(), 1.0, 0.5 / tunnels.len().max(1) as f64))
        .chain(
            in_use
                .iter()
                .map(|zone| (zone.features(), 0.0, 0.5 / in_use.len().max(1) as f64)),
        )
        .collect();
    let (mut mean, mut spread) = ([0.0; FEATURES], [0.0; FEATURES]);
    for j in 0..FEATURES {
        mean[j] = rows.iter().map(|(x, _, w)| x[j] * w).sum();
        let variance: f64 = rows.iter().map(|(x, _, w)| (x[j] - mean[j]).powi(2) * w).sum();
        spread[j] = variance.sqrt().max(1e-6);
    }
    let mut weights = [0.0; FEATURES + 1];
    for _ in 0..1_500 {
        let mut gradient = [0.0; FEATURES + 1];
        for (x, y, w) in &rows {
            let sum = (0..FEATURES)
                .map(|j| (x[j] - mean[j]) / spread[j] * weights[j])
                .sum::<f64>()
                + weights[FEATURES];
            let error = (1.0 / (1.0 + (-sum).exp()) - y) * w;
            for j in 0..FEATURES {
                gradient[j] += error * (x[j] - mean[j]) / spread[j];
            }
            gradient[FEATURES] += error;
        }
        for j in 0..=FEATURES {
            let held = if j < FEATURES { 2e-3 * weights[j] } else { 0.0 };
            weights[j] -= 1.0 * (gradient[j] + held);
        }
    }
    let mut unscaled = weights;
    for j in 0..FEATURES {
        unscaled[j] = weights[j] / spread[j];
        unscaled[FEATURES] -= weights[j] * mean[j] / spread[j];
    }
    unscaled
}

/// The models of the service, trained on everything.
///
/// # Errors
/// When a file cannot be read.
pub fn train(corpora: &Path) -> Result<(NameModel, [f64; FEATURES + 1]), EvaluationError> {
    let names = Names::read(corpora)?;
    let windows = Windows::read(corpora, "tunnel-train")?;
    let tunnels: Vec<&Zone> = windows.tunnels.values().flatten().collect();
    let in_use: Vec<&Zone> = windows.in_use.iter().map(|(_, zone)| zone).collect();
    Ok((names.train(&names.in_use, None), train_tunnels(&tunnels, &in_use)))
}

/// The evaluation.
///
/// # Errors
/// When a file cannot be read.
pub fn run(corpora: &Path, settings: &Settings) -> Result<Report, EvaluationError> {
    let mut report = Report::new("names");
    if !corpora.join("dns/tunnel-train.csv.gz").is_file() {
        report
            .notes
            .push(format!("skipped: {} has no dns folder", corpora.display()));
        return Ok(report);
    }
    tunnels(corpora, settings, &mut report)?;
    generated(corpora, settings, &mut report)?;
    Ok(report)
}

fn tunnels(corpora: &Path, settings: &Settings, report: &mut Report) -> Result<(), EvaluationError> {
    let trained_on = Windows::read(corpora, "tunnel-train")?;
    let tested_on = Windows::read(corpora, "tunnel-validate")?;
    let negatives = tested_on.half(true);
    for left_out in tested_on.tunnels.keys() {
        let others = trained_on.tunnels.iter().filter(|(parent, _)| *parent != left_out);
        let positives: Vec<&Zone> = others.flat_map(|(_, zones)| zones).collect();
        let weights = train_tunnels(&positives, &trained_on.half(false));
        let windows = [&trained_on, &tested_on].map(|w| w.tunnels.get(left_out).map_or(&[][..], Vec::as_slice));
        let unseen: Vec<&Zone> = windows.into_iter().flatten().collect();
        let (scores, truth) = scored(&unseen, &negatives, &weights);
        report.goal(
            format!("tunnels below {left_out}, not in training: ROC-AUC of windows"),
            roc_auc(&scores, &truth),
            Goal::AtLeast(0.99),
        );
        let confusion = Confusion::at(&scores, &truth, settings.tunnel.evidence);
        report.figure(
            format!("  recall at the threshold, {} windows", unseen.len()),
            confusion.recall(),
        );
        report.figure(
            format!("  share of {} windows of names in use that are told", negatives.len()),
            confusion.false_positive_rate(),
        );
        // A baseline that needs no model.
        let length = |zone: &&Zone| zone.features()[1];
        let naive: Vec<f64> = unseen.iter().chain(&negatives).map(length).collect();
        report.figure(
            "  baseline, mean length of the names alone: ROC-AUC",
            roc_auc(&naive, &truth),
        );
        let single: Vec<&Zone> = tested_on
            .single
            .get(left_out)
            .map_or(Vec::new(), |zones| zones.iter().collect());
        let (scores, truth) = scored(&single, &negatives, &weights);
        report.figure(
            "  single questions instead of windows: ROC-AUC",
            roc_auc(&scores, &truth),
        );
    }
    Ok(())
}

fn scored(tunnels: &[&Zone], in_use: &[&Zone], weights: &[f64; FEATURES + 1]) -> (Vec<f64>, Vec<bool>) {
    let all = tunnels
        .iter()
        .map(|z| (z, true))
        .chain(in_use.iter().map(|z| (z, false)));
    all.map(|(zone, tunnel)| (zone.score(weights), tunnel)).unzip()
}

fn generated(corpora: &Path, settings: &Settings, report: &mut Report) -> Result<(), EvaluationError> {
    let names = Names::read(corpora)?;
    let cut = names.in_use.len() * 7 / 10;
    let (learnt, unseen) = names.in_use.split_at(cut);
    for (family, labels) in &names.generated {
        let model = names.train(learnt, Some(family));
        let labels = &labels[..unseen.len().min(labels.len())];
        let all = || {
            labels
                .iter()
                .map(|l| (l, true))
                .chain(unseen.iter().map(|l| (l, false)))
        };
        let (scores, truth): (Vec<f64>, Vec<bool>) = all().map(|(l, made)| (model.score(l), made)).unzip();
        let a_name = Confusion::at(&scores, &truth, 0.0);
        // A host asks for so many names; none of them says whether it exists.
        let host = |labels: &[String]| {
            let mut asked = Asked::default();
            let mut most: f64 = 0.0;
            for (n, label) in labels.iter().enumerate() {
                most = most.max(asked.add(model.score(label), true, n as i64 * SECOND));
            }
            most
        };
        let hosts = labels.chunks_exact(NAMES_A_HOST).map(|c| (host(c), true));
        let hosts = hosts.chain(unseen.chunks_exact(NAMES_A_HOST).map(|c| (host(c), false)));
        let (sums, made): (Vec<f64>, Vec<bool>) = hosts.unzip();
        let a_host = Confusion::at(&sums, &made, settings.generated.evidence);
        report.goal(
            format!("{family} left out: F1 of hosts that ask for {NAMES_A_HOST} names"),
            a_host.f1(),
            Goal::AtLeast(0.95),
        );
        report.figure("  recall of hosts", a_host.recall());
        report.figure(
            "  share of hosts with names in use that are told",
            a_host.false_positive_rate(),
        );
        report.goal("  F1 of single names", a_name.f1(), Goal::AtLeast(0.95));
        report.figure("  ROC-AUC of single names", roc_auc(&scores, &truth));
        let entropy: Vec<f64> = all().map(|(label, _)| letters_entropy(label)).collect();
        report.figure(
            "  baseline, entropy of the letters alone: ROC-AUC of names",
            roc_auc(&entropy, &truth),
        );
    }
    Ok(())
}

fn letters_entropy(label: &str) -> f64 {
    let mut counts = [0_u32; 256];
    label.bytes().for_each(|b| counts[usize::from(b)] += 1);
    let n = label.len().max(1) as f64;
    counts
        .iter()
        .filter(|c| **c > 0)
        .map(|c| f64::from(*c) / n)
        .map(|p| -p * p.log2())
        .sum()
}
