//! `cargo xtask eval`: how right the fleet is, against answers that others gave.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::paths;

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
    /// The policy analysis and compilers against the answers of others
    Policy,
}

/// Runs an evaluation.
pub fn run(eval: Eval) -> Result<()> {
    let corpora = corpora();
    let (differences, release) = match eval {
        Eval::Flows { differences, release } => (differences, release),
        Eval::Policy => return policy(&corpora),
    };
    if !corpora.join("packets/zeek/index.tsv").is_file() {
        println!(
            "skipped: {} has no packets/zeek/index.tsv. Set GARRISON_CORPORA to the folder of the corpora.",
            corpora.display()
        );
        return Ok(());
    }
    let mut command = paths::cargo();
    command
        .args([
            "run",
            "--locked",
            "--quiet",
            "-p",
            "flow-ingest",
            "--example",
            "agreement",
        ])
        .current_dir(paths::root());
    if release {
        command.arg("--release");
    }
    command.arg("--").arg(&corpora);
    if differences {
        command.arg("--differences");
    }
    let status = command.status().context("starting cargo failed")?;
    ensure!(status.success(), "the evaluation failed");
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
    let status = paths::cargo()
        .args([
            "run",
            "--locked",
            "--quiet",
            "-p",
            "garrison-ztp",
            "--example",
            "evaluate",
            "--",
        ])
        .arg(corpora)
        .current_dir(paths::root())
        .status()
        .context("starting cargo failed")?;
    ensure!(status.success(), "the evaluation found differences");
    Ok(())
}

/// The folder of the corpora: `GARRISON_CORPORA`, or beside the checkout.
pub fn corpora() -> PathBuf {
    match std::env::var_os("GARRISON_CORPORA") {
        Some(folder) => std::path::absolute(&folder).unwrap_or_else(|_| folder.into()),
        None => paths::root().join("../shared/corpora"),
    }
}
