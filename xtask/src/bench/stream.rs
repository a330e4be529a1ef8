//! `cargo xtask bench stream`: flow records through the broker to the anomaly service, scored and alerted; then what one
//! core scores without a broker, what entities take, and how the cost grows.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::machine;
use crate::{absolute, eval, paths, setup};

/// What `bench stream` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct StreamOptions {
    /// Make the batches out of this capture instead of one made from the corpora
    #[arg(long)]
    pcap: Option<PathBuf>,
    /// Size of the capture that is made from the corpora, mebibytes
    #[arg(long, default_value_t = 48)]
    mib: u64,
    /// Records of each run, in thousands; the last run has three times as many
    #[arg(long, default_value_t = 2_000)]
    thousands: u64,
    /// Hosts at most, about
    #[arg(long, default_value_t = 50_000)]
    hosts: u64,
    /// Tenants that share the hosts
    #[arg(long, default_value_t = 1)]
    tenants: u64,
    /// Batches under way at once, one run each
    #[arg(long, value_delimiter = ',', default_value = "2,4,8,16,32")]
    windows: Vec<u64>,
    /// Only these parts: pipeline, core
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

const PARTS: [&str; 2] = ["pipeline", "core"];

/// Runs the measurement.
pub fn run(options: StreamOptions) -> Result<()> {
    for part in &options.only {
        ensure!(
            PARTS.contains(&part.as_str()),
            "--only {part}: the parts are {}",
            PARTS.join(", ")
        );
    }
    let wanted = |part: &str| options.only.is_empty() || options.only.iter().any(|only| only == part);
    if wanted("pipeline") {
        pipeline(&options)?;
    }
    if wanted("core") {
        println!();
        cargo(&["bench", "--locked", "--quiet", "-p", "anomaly", "--bench", "rate"])?;
    }
    machine();
    Ok(())
}

fn cargo(arguments: &[&str]) -> Result<()> {
    let status = paths::cargo()
        .args(arguments)
        .current_dir(paths::root())
        .status()
        .context("starting cargo failed")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

fn pipeline(options: &StreamOptions) -> Result<()> {
    setup::run()?;
    let build = ["build", "--locked", "--quiet", "--release"];
    cargo(
        &[
            &build[..],
            &["-p", "anomaly", "--bin", "anomaly", "--example", "stream"],
        ]
        .concat(),
    )?;
    cargo(
        &[
            &build[..],
            &["-p", "flow-ingest", "--bin", "flow-ingest", "--example", "measure"],
        ]
        .concat(),
    )?;
    let binaries = paths::binaries(paths::Profile::Release);
    let capture = match &options.pcap {
        Some(path) => absolute(path.clone())?,
        None => made(options.mib)?,
    };
    let windows: Vec<String> = options.windows.iter().map(u64::to_string).collect();
    let status = Command::new(binaries.join("examples/stream"))
        .arg(&capture)
        .args([binaries.join("flow-ingest"), binaries.join("anomaly")])
        .arg(format!("rows={}", options.thousands * 1_000))
        .arg(format!("hosts={}", options.hosts))
        .arg(format!("tenants={}", options.tenants))
        .arg(format!("windows={}", windows.join(",")))
        .status()
        .context("starting the measurement failed")?;
    ensure!(status.success(), "the measurement failed");
    Ok(())
}

// The captures of the corpora side by side.
fn made(mib: u64) -> Result<PathBuf> {
    let folder = paths::state().join("bench");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("stream-{mib}.pcap"));
    if path.is_file() {
        return Ok(path);
    }
    let corpora = eval::corpora();
    ensure!(
        corpora.join("packets").is_dir(),
        "{} has no folder packets: name a capture with --pcap, or set GARRISON_CORPORA to the folder of the corpora",
        corpora.display()
    );
    let output = Command::new(paths::binaries(paths::Profile::Release).join("examples/measure"))
        .arg("capture")
        .args([&corpora, &path])
        .arg((mib << 20).to_string())
        .output()?;
    ensure!(
        output.status.success(),
        "making a capture failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(path)
}
