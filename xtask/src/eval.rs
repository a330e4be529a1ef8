//! `cargo xtask eval`: how right the fleet is, against answers that others gave.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::paths::{self, Profile};

/// What to evaluate.
#[derive(Debug, clap::Subcommand)]
pub enum Eval {
    /// The flow meter against Zeek's connection logs and nDPI's flow lists
    Flows {
        /// Print everything that differs
        #[arg(long)]
        differences: bool,
        /// Build for speed
        #[arg(long)]
        release: bool,
    },
    /// The policy analysis and compilers against the answers of others, and random policies on every target
    Policy {
        /// How many sets of random policies each property test tries, besides; 0 for none
        #[arg(long, default_value_t = 0)]
        cases: u32,
    },
    /// The models of anomaly on labelled data, beside what is naive, and its alarm budget over days with drift
    Anomaly {
        /// A dataset described in TOML, in place of those of the corpora; may be given several times
        #[arg(long)]
        spec: Vec<PathBuf>,
        /// Only the dataset of this name; `budget` for the alarm budget, `behaviours` for what the service watches for
        #[arg(long)]
        only: Option<String>,
        /// How many seeds
        #[arg(long, default_value_t = 5)]
        seeds: u64,
    },
}

/// Runs an evaluation.
pub fn run(eval: Eval) -> Result<()> {
    let corpora = corpora();
    let (differences, release) = match eval {
        Eval::Flows { differences, release } => (differences, release),
        Eval::Policy { cases } => return random_policies(cases).and_then(|()| policy(&corpora)),
        Eval::Anomaly { spec, only, seeds } => return anomaly(&corpora, spec, only, seeds),
    };
    if !corpora.join("packets/zeek/index.tsv").is_file() {
        println!(
            "skipped: {} has no packets/zeek/index.tsv. Set GARRISON_CORPORA to the folder of the corpora.",
            corpora.display()
        );
        return Ok(());
    }
    let profile = if release { Profile::Release } else { Profile::Dev };
    let mut command = example(profile, "flow-ingest", "agreement");
    command.arg(&corpora);
    if differences {
        command.arg("--differences");
    }
    let status = command.status().context("starting cargo failed")?;
    ensure!(status.success(), "the evaluation failed");
    Ok(())
}

/// Runs an example of a package, with the arguments that are added.
fn example(profile: Profile, package: &str, name: &str) -> Command {
    let mut command = paths::cargo();
    command.args(["run", "--locked", "--quiet", "-p", package, "--example", name]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    command.arg("--").current_dir(paths::root());
    command
}

/// The property tests of the targets at a size that the test command has no time for, with what the generators reach.
fn random_policies(cases: u32) -> Result<()> {
    if cases == 0 {
        return Ok(());
    }
    println!("{cases} sets of random policies for each property, up to 4 policies a set");
    let status = paths::cargo()
        .args([
            "test",
            "--locked",
            "--quiet",
            // What takes minutes then would take an hour.
            "--release",
            "-p",
            "garrison-ztp",
            "--test",
            "it",
            "--",
            "never_",
            "equal_",
            "imported_",
            "the_generator",
            "what_sees",
            "--nocapture",
            "--test-threads",
            "2",
        ])
        .env("GARRISON_POLICY_CASES", cases.to_string())
        .current_dir(paths::root())
        .status()
        .context("starting cargo failed")?;
    ensure!(status.success(), "a property does not hold");
    Ok(())
}

fn policy(corpora: &Path) -> Result<()> {
    if !corpora.join("policy").is_dir() {
        println!(
            "skipped: {} has no folder policy. Set GARRISON_CORPORA to the folder of the corpora.",
            corpora.display()
        );
        return Ok(());
    }
    let status = example(Profile::Dev, "garrison-ztp", "evaluate")
        .arg(corpora)
        .status()
        .context("starting cargo failed")?;
    ensure!(status.success(), "the evaluation found differences");
    Ok(())
}

// Always optimised: what takes minutes then would take an hour.
fn anomaly(corpora: &Path, specs: Vec<PathBuf>, only: Option<String>, seeds: u64) -> Result<()> {
    if specs.is_empty() && !corpora.join("tabular").is_dir() {
        println!(
            "skipped: {} has no folder tabular. Set GARRISON_CORPORA to the folder of the corpora, or give --spec.",
            corpora.display()
        );
        return Ok(());
    }
    let budget = specs.is_empty() && only.as_deref().is_none_or(|only| only == "budget");
    if only.as_deref() == Some("budget") {
        return alarm_budget(corpora);
    }
    let own = specs.is_empty() && only.as_deref().is_none_or(|only| only == "behaviours");
    if only.as_deref() == Some("behaviours") {
        return behaviours(corpora);
    }
    let mut command = example(Profile::Release, "garrison-models", "detection");
    command
        .arg("--corpora")
        .arg(corpora)
        .args(["--seeds", &seeds.to_string()])
        // Members are trained beside each other; a pool below them would only wait for itself.
        .env("CANDLE_NUM_THREADS", "1")
        .env("RAYON_NUM_THREADS", "1");
    for spec in specs {
        command.arg("--spec").arg(crate::absolute(spec)?);
    }
    if let Some(only) = only {
        command.args(["--only", &only]);
    }
    let status = command.status().context("starting cargo failed")?;
    ensure!(status.success(), "the evaluation failed");
    if own {
        behaviours(corpora)?;
    }
    if budget { alarm_budget(corpora) } else { Ok(()) }
}

// What the service itself makes of beacons, of windows of questions and of hosts that ask for generated domains. It says which
// goals were missed, as the datasets do, and that is no failure.
fn behaviours(corpora: &Path) -> Result<()> {
    let status = example(Profile::Release, "anomaly", "behaviours")
        .arg(corpora)
        .status()
        .context("starting cargo failed")?;
    ensure!(
        matches!(status.code(), Some(0 | 1)),
        "the evaluation of behaviours failed"
    );
    Ok(())
}

// Through the service's own code, because a restart goes through its snapshot.
fn alarm_budget(corpora: &Path) -> Result<()> {
    let status = example(Profile::Release, "anomaly", "budget")
        .arg(corpora)
        .status()
        .context("starting cargo failed")?;
    ensure!(status.success(), "the alarm budget was not kept");
    Ok(())
}

/// The folder of the corpora: `GARRISON_CORPORA`, or beside the checkout.
pub fn corpora() -> PathBuf {
    match std::env::var_os("GARRISON_CORPORA") {
        Some(folder) => std::path::absolute(&folder).unwrap_or_else(|_| folder.into()),
        None => paths::root().join("../shared/corpora"),
    }
}
