//! Names of a family that training never saw: each family, or each parent domain of what is not benign, is left out in
//! turn, and the benign names are parted by the seed, or by their parents.

use anyhow::{Result, ensure};
use garrison_models::{
    letters::{self, Letters, Name},
    rng::{SplitMix64, mix},
};

use crate::{
    data::Data,
    detect::{self, Detector, HELD_BACK, Rows, Score},
    report::{self, Outcome},
    spec::{Apart, Spec},
};

// Fewer rows than these say nothing.
const LEAST_ROWS: usize = 50;
const MOST_OF_A_FAMILY: usize = 4_000;
const TESTED_SHARE: f64 = 0.3;
// Made-up families, and names of each.
const INVENTED: (usize, usize) = (800, 30);

/// Judges every family that was left out, and returns whether every goal was met.
pub fn run(spec: &Spec, data: &Data, seeds: u64) -> Result<bool> {
    ensure!(!data.texts.is_empty(), "task \"left-out\" needs kind \"names\"");
    let all: Vec<usize> = (0..data.labels.len()).collect();
    let (benign, others): (Vec<usize>, Vec<usize>) = all.into_iter().partition(|i| spec.is_normal(&data.labels[*i]));
    let family = |i: usize| match spec.apart {
        Apart::Label => data.labels[i].clone(),
        Apart::Parent => data.texts[i].parent.clone(),
    };
    let mut families: std::collections::BTreeMap<String, Vec<usize>> = Default::default();
    others
        .iter()
        .for_each(|i| families.entry(family(*i)).or_default().push(*i));
    let mut met = true;
    for (name, own) in &families {
        if own.len() < LEAST_ROWS {
            println!("\n{name}: {} rows are too few to be left out", own.len());
            continue;
        }
        let mut outcomes: Vec<Outcome> = Vec::new();
        for seed in 1..=seeds {
            let mut rng = SplitMix64::new(mix(seed));
            let (test, train): (Vec<usize>, Vec<usize>) = benign.iter().partition(|i| match spec.apart {
                Apart::Label => rng.unit() < TESTED_SHARE,
                Apart::Parent => parent_share(&data.texts[**i].parent, seed) < TESTED_SHARE,
            });
            let known = families.iter().filter(|(other, _)| *other != name);
            let known = known.flat_map(|(_, rows)| detect::sample(rows, MOST_OF_A_FAMILY, seed));
            let rows = Rows {
                benign: train,
                others: known.collect(),
            };
            ensure!(
                !rows.others.is_empty(),
                "there is one family only; nothing is left to learn from"
            );
            let mut judged = detect::sample(own, test.len(), seed);
            judged.extend(test);
            let mut detectors = vec![by_letters(spec, data, &rows, seed)?];
            detectors.extend(detect::baselines(spec, data, &rows, true, seed)?);
            for detector in detectors {
                outcomes.extend(detector.judge(spec, data, &judged)?);
            }
        }
        let title = format!("## {}: {name} left out", spec.name);
        met &= report::print(&title, &outcomes, &spec.goals, name);
    }
    Ok(met)
}

fn parent_share(parent: &str, seed: u64) -> f64 {
    let hash = parent.bytes().fold(mix(seed), |key, b| mix(key ^ u64::from(b)));
    SplitMix64::new(hash).unit()
}

/// The network of letters. It is trained on made-up families too, where names are registered ones.
pub fn by_letters(spec: &Spec, data: &Data, rows: &Rows, seed: u64) -> Result<Detector> {
    let mut rng = SplitMix64::new(seed ^ 0x1E77);
    let (fit, held): (Vec<usize>, Vec<usize>) = rows.benign.iter().partition(|_| rng.unit() >= HELD_BACK);
    let below = rows.others.iter().filter(|i| data.texts[**i].below).count();
    let invented = if 2 * below < rows.others.len() {
        letters::families(INVENTED.0, INVENTED.1, seed)
    } else {
        Vec::new()
    };
    let mut generated = names(data, &rows.others);
    generated.extend(invented.iter().map(|n| Name {
        label: &n.label,
        suffix: n.suffix,
    }));
    let model = Letters::train(&generated, &names(data, &fit), &letters::Shape::default(), seed)?;
    let score = move |data: &Data, rows: &[usize]| Ok(model.score(&names(data, rows))?);
    let score: Score = Box::new(score);
    let calibration = score(data, &held)?;
    let titles = ["letters, threshold from benign rows", "letters"];
    // It was trained on as many names of either kind: the threshold is where both are as likely.
    Ok(Detector::new(titles, spec, data, &calibration, &rows.others, score)?.with_threshold(0.0))
}

fn names<'a>(data: &'a Data, rows: &[usize]) -> Vec<Name<'a>> {
    let name = |i: &usize| Name {
        label: &data.texts[*i].label,
        suffix: &data.texts[*i].suffix,
    };
    rows.iter().map(name).collect()
}
