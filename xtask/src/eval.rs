//! `cargo xtask eval`: how right the fleet is, against answers that others gave.

use std::path::PathBuf;

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
}

/// Runs an evaluation.
pub fn run(eval: Eval) -> Result<()> {
    let Eval::Flows { differences, release } = eval;
    let corpora = corpora();
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

/// The folder of the corpora: `GARRISON_CORPORA`, or beside the checkout.
fn corpora() -> PathBuf {
    match std::env::var_os("GARRISON_CORPORA") {
        Some(folder) => std::path::absolute(&folder).unwrap_or_else(|_| folder.into()),
        None => paths::root().join("../shared/corpora"),
    }
}
