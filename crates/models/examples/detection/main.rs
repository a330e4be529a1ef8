//! How right the models are: every dataset of the corpora, or any other that a TOML file describes, beside what is
//! naive. Thresholds and everything else that is chosen comes from the training rows; the test rows are only judged.

#![allow(unreachable_pub)] // a program has no public interface; `pub` says what a module offers

mod alike;
mod carried;
mod classes;
mod conn;
mod data;
mod detect;
mod leftout;
mod names;
mod report;
mod spec;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;

use data::Data;
use detect::{Rows, Shapes};
use report::Outcome;
use spec::{Kind, Source, Spec, Task};

#[derive(Parser)]
struct Options {
    /// Folder of the corpora
    #[arg(long)]
    corpora: Option<PathBuf>,
    /// A dataset described in TOML, in place of those of the corpora; may be given several times
    #[arg(long)]
    spec: Vec<PathBuf>,
    /// Only the datasets of this name
    #[arg(long)]
    only: Option<String>,
    /// How many seeds
    #[arg(long, default_value_t = 5)]
    seeds: u64,
}

const BUILT_IN: [(&str, &str); 5] = [
    ("nsl-kdd", include_str!("specs/nsl-kdd.toml")),
    ("kdd99", include_str!("specs/kdd99.toml")),
    ("zeek-labelled", include_str!("specs/zeek-labelled.toml")),
    ("generated", include_str!("specs/generated.toml")),
    ("tunnels", include_str!("specs/tunnels.toml")),
];

fn main() -> Result<()> {
    let options = Options::parse();
    let mut specs = Vec::new();
    for path in &options.spec {
        specs.push(Spec::load(path)?);
    }
    if let (Some(corpora), true) = (&options.corpora, specs.is_empty()) {
        for (name, text) in BUILT_IN {
            specs.push(Spec::parse(text, corpora).with_context(|| format!("the built-in spec {name}"))?);
        }
    }
    let mut met = true;
    for spec in specs
        .iter()
        .filter(|s| options.only.as_ref().is_none_or(|only| *only == s.name))
    {
        println!("\n# {}", spec.name);
        met &= run(spec, options.seeds).with_context(|| format!("evaluating {} failed", spec.name))?;
    }
    println!(
        "\n{}",
        if met {
            "every goal was met"
        } else {
            "NOT every goal was met"
        }
    );
    Ok(())
}

fn run(spec: &Spec, seeds: u64) -> Result<bool> {
    if spec.task == Task::Pairs {
        return pairs(spec, seeds);
    }
    let sources: Vec<&Source> = spec.train.iter().chain(&spec.test).collect();
    let data = data::load(spec, &sources)?;
    if spec.task == Task::LeftOut {
        let all: Vec<usize> = (0..data.labels.len()).collect();
        describe(spec, &data, "all", &all);
        return leftout::run(spec, &data, seeds);
    }
    let mut tests: Vec<(String, Vec<usize>)> = Vec::new();
    for (k, source) in spec.test.iter().enumerate() {
        let (title, rows) = (source.title(), data.of(spec.train.len() + k));
        // Sources of the same name are one test.
        match tests.iter_mut().find(|(known, _)| *known == title) {
            Some((_, known)) => known.extend(rows),
            None => tests.push((title, rows)),
        }
    }
    let train: Vec<usize> = (0..data.labels.len())
        .filter(|i| data.source[*i] < spec.train.len())
        .collect();
    describe(spec, &data, "training", &train);
    for (name, rows) in &tests {
        describe(spec, &data, name, rows);
    }
    let mut outcomes: Vec<Vec<Outcome>> = Vec::new();
    for seed in 1..=seeds {
        let (train, tests) = match spec.split {
            Some(share) if tests.is_empty() => {
                let mut rng = garrison_models::rng::SplitMix64::new(garrison_models::rng::mix(seed));
                let (test, train): (Vec<usize>, Vec<usize>) = train.iter().partition(|_| rng.unit() < share);
                (train, vec![("held out".to_owned(), test)])
            }
            _ => (train.clone(), tests.clone()),
        };
        let judged = match spec.task {
            Task::Classes => classes::run(spec, &data, &train, &tests, &Shapes::default(), seed, seed == 1)?,
            _ => detect(spec, &data, &train, &tests, seed)?,
        };
        outcomes.resize_with(judged.len(), Vec::new);
        outcomes.iter_mut().zip(judged).for_each(|(all, new)| all.extend(new));
    }
    let names: Vec<String> = if tests.is_empty() {
        vec!["held out".to_owned()]
    } else {
        tests.into_iter().map(|t| t.0).collect()
    };
    let mut met = true;
    for (name, outcomes) in names.iter().zip(&outcomes) {
        met &= report::print(&format!("## {}: {name}", spec.name), outcomes, &spec.goals, name);
    }
    Ok(met)
}

fn detect(
    spec: &Spec,
    data: &Data,
    train: &[usize],
    tests: &[(String, Vec<usize>)],
    seed: u64,
) -> Result<Vec<Vec<Outcome>>> {
    let rows = Rows::new(spec, data, train, seed);
    let mut shapes = Shapes::default();
    if spec.task == Task::OneClass {
        // Alone, it is to depend less on its seed.
        shapes.ensemble.members = 8;
    }
    let labelled = spec.task != Task::OneClass && !rows.others.is_empty();
    let mut detectors = Vec::new();
    if labelled && spec.kind == Kind::Names {
        detectors.push(leftout::by_letters(spec, data, &rows, seed)?);
    }
    if labelled && data.portable.is_some() {
        detectors.extend(carried::both(spec, data, &rows, &shapes.classifier, seed)?);
    } else if labelled {
        detectors.push(detect::fused(spec, data, &rows, &shapes, seed)?);
        detectors.push(detect::known(spec, data, &rows, &shapes.classifier, seed)?);
    }
    // Between networks that share nothing everything is unusual, and it takes longest to say so.
    if data.portable.is_none() || !labelled {
        detectors.push(detect::ensemble(spec, data, &rows, &shapes.ensemble, seed)?);
    }
    detectors.push(detect::autoencoder(spec, data, &rows, seed)?);
    detectors.extend(detect::baselines(spec, data, &rows, labelled, seed)?);
    tests
        .iter()
        .map(|(_, rows)| {
            let judged = detectors
                .iter()
                .map(|d| d.judge(spec, data, rows))
                .collect::<Result<Vec<_>>>()?;
            Ok(judged.into_iter().flatten().collect())
        })
        .collect()
}

fn pairs(spec: &Spec, seeds: u64) -> Result<bool> {
    let sources: Vec<&Source> = spec.scenario.iter().collect();
    let data = data::load(spec, &sources)?;
    for (k, source) in sources.iter().enumerate() {
        describe(spec, &data, &source.title(), &data.of(k));
    }
    let mut lines = Vec::new();
    let mut beaten = true;
    for (from, source) in sources.iter().enumerate() {
        let train = data.of(from);
        let tests: Vec<(String, Vec<usize>)> = (0..sources.len())
            .filter(|to| *to != from)
            .map(|to| (sources[to].title(), data.of(to)))
            .collect();
        let mut outcomes: Vec<Vec<Outcome>> = vec![Vec::new(); tests.len()];
        for seed in 1..=seeds {
            let judged = detect(spec, &data, &train, &tests, seed)?;
            outcomes.iter_mut().zip(judged).for_each(|(all, new)| all.extend(new));
        }
        for ((to, _), outcomes) in tests.iter().zip(&outcomes) {
            let title = format!("{} → {to}", source.title());
            report::print(&format!("## {}: {title}", spec.name), outcomes, &spec.goals, to);
            let mean = |model: &str, figure: &str| {
                let values = outcomes.iter().filter(|o| o.model == model);
                report::mean_spread(values.filter_map(|o| o.figure(figure))).0
            };
            let ours = outcomes.first().map_or("", |o| o.model);
            let models = [ours, "boxplot", "isolation forest", "linear"];
            for figure in ["roc_auc", "pr_auc", "f1"] {
                let values: Vec<f64> = models.iter().map(|model| mean(model, figure)).collect();
                let best = values[1..].iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let won = values[0] > best;
                beaten &= won || figure != "roc_auc";
                let shown: Vec<String> = values.iter().map(|v| format!("{v:.4}")).collect();
                let verdict = if won { "all three beaten" } else { "NOT beaten" };
                lines.push(format!(
                    "| {title} | {} | {} | {verdict} |",
                    figure.replace('_', " "),
                    shown.join(" | ")
                ));
            }
        }
    }
    println!("\n## {}: every pair\n", spec.name);
    println!("| pair | figure | ours | boxplot | isolation forest | linear | goal |");
    println!("|---|---|---|---|---|---|---|");
    lines.iter().for_each(|line| println!("{line}"));
    Ok(beaten)
}

fn describe(spec: &Spec, data: &Data, name: &str, rows: &[usize]) {
    let benign = rows.iter().filter(|i| spec.is_normal(&data.labels[**i])).count();
    let others = data::count(
        rows.iter()
            .map(|i| data.labels[*i].clone())
            .filter(|label| !spec.is_normal(label)),
    );
    let shown: Vec<String> = others.iter().take(8).map(|(label, n)| format!("{label} {n}")).collect();
    let more = if others.len() > 8 { ", …" } else { "" };
    println!(
        "{name}: {} rows, {benign} benign; {}{more}",
        rows.len(),
        shown.join(", ")
    );
}
