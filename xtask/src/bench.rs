//! `cargo xtask bench`: measurements, each with its limit beside it.

mod flows;
mod policy;
mod stream;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use garrison_testkit::{Fleet, bootstrap::Source};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    actor, build,
    demo::{
        TENANT, fleet_options, login,
        report::{items, text},
        until,
    },
    network::{self, Lab, OFFICE, Task},
    otlp::{Collector, Span},
    paths::{self, Profile},
    setup,
};

/// What to measure.
#[derive(Debug, clap::Subcommand)]
pub enum Bench {
    /// From the offending packet to the live drop rule, and where the time goes
    Contain(ContainOptions),
    /// Resident memory of the whole fleet at rest
    Memory,
    /// Cold and warm build times
    Build,
    /// The flow meter beside softflowd, nfpcapd, argus and Suricata, and its table, floods, exports and live capture
    Flows(flows::FlowsOptions),
    /// Flow records through the broker to scored and alerted: rate, latency, the alerts' lane; what one core scores, what
    /// entities take, and how the cost grows
    Stream(stream::StreamOptions),
    /// The policy engine at scale: connectivity, one changed policy, compiling, replaying, verdicts, memory; the webhook
    Policy {
        /// A tenth of everything
        #[arg(long)]
        quick: bool,
    },
}

/// What `bench contain` takes.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
pub struct ContainOptions {
    /// How often
    #[arg(long, default_value_t = 50)]
    pub trials: usize,
}

/// The budgets of the design, milliseconds and mebibytes.
const CONTAIN_P50_MS: f64 = 10.0;
const CONTAIN_P99_MS: f64 = 50.0;
const RESIDENT_MIB: f64 = 600.0;

/// Runs a measurement.
pub fn run(bench: Bench) -> Result<()> {
    let bench = match bench {
        Bench::Build => return build_times(),
        Bench::Flows(options) => return flows::run(options),
        Bench::Stream(options) => return stream::run(options),
        Bench::Policy { quick } => return policy::run(quick),
        bench @ (Bench::Contain(_) | Bench::Memory) => bench,
    };
    setup::run()?;
    build::fleet(Profile::Release)?;
    network::run(&match bench {
        Bench::Contain(options) => Task::Contain(options),
        _ => Task::Memory,
    })
}

/// The part of `bench contain` inside the namespaces.
pub async fn contain_inside(options: ContainOptions) -> Result<()> {
    ensure!((1..=200).contains(&options.trials), "--trials takes 1 to 200");
    let dir = fresh("bench")?;
    let lab = Lab::build(&dir.join("lab"))?;
    let collector = Collector::start().await?;
    let binaries = paths::binaries(Profile::Release);
    let mut fleet_options = fleet_options(binaries.clone(), dir, Some(Source::Interfaces(lab.interfaces())), false);
    fleet_options.otlp_endpoint = Some(collector.endpoint());
    let fleet = Fleet::start(fleet_options).await?;
    let analyst = login(&fleet, &binaries, TENANT, "analyst")?;

    let mut trials = Vec::new();
    for trial in 0..options.trials {
        // Every trial is another attacker, as a block lasts.
        let source = Ipv4Addr::new(203, 0, 113, u8::try_from(trial % 200).unwrap_or_default() + 2);
        let address = format!("{source}/24");
        let _ = lab
            .attacker
            .command("ip")
            .args(["address", "add", &address, "dev", "eth0"])
            .output()?;
        let target = format!("{OFFICE}:8080");
        let source_text = source.to_string();
        let output = lab.act(
            &lab.attacker,
            &[
                "brute-force",
                "--target",
                &target,
                "--source",
                &source_text,
                "--pause-ms",
                "5",
            ],
        )?;
        actor::deeds(&output)?;
        let block = until(Duration::from_secs(20), &format!("the block of {source}"), || {
            let responses = analyst.json(&["responses", "list", "--limit", "400"])?;
            let found = items(&responses, "responses").iter().find(|response| {
                text(&response["action"]) == "ACTION_BLOCK"
                    && text(&response["state"]) == "RESPONSE_STATE_APPLIED"
                    && text(&response["target"]).split('/').next() == Some(source_text.as_str())
            });
            Ok(found.cloned())
        })
        .await?;
        trials.push(block);
        eprint!("\r{} of {} trials", trial + 1, options.trials);
    }
    eprintln!();
    let mut total: Vec<f64> = trials
        .iter()
        .map(|block| milliseconds(&block["triggerTime"], &block["applied"]))
        .collect::<Result<_>>()?;
    println!(
        "offending packet captured → drop rule live and read back, {} trials",
        total.len()
    );
    row("total", &mut total, Some((CONTAIN_P50_MS, CONTAIN_P99_MS)));
    hops(&analyst.json(&["alerts", "list", "--limit", "1000"])?, &trials)?;
    // Spans arrive a little after what they tell of.
    tokio::time::sleep(Duration::from_secs(6)).await;
    spans(&collector.spans(), &trials)?;
    machine();
    Ok(())
}

// The hops that the records themselves carry times for.
fn hops(alerts: &Value, blocks: &[Value]) -> Result<()> {
    let mut detect = Vec::new();
    let mut decide = Vec::new();
    let mut enforce = Vec::new();
    for block in blocks {
        let id = text(&block["alertId"]);
        let Some(alert) = items(alerts, "alerts")
            .iter()
            .find(|alert| text(&alert["alertId"]) == id)
        else {
            continue;
        };
        detect.push(milliseconds(&alert["triggerTime"], &alert["detectedTime"])?);
        decide.push(milliseconds(&alert["detectedTime"], &block["created"])?);
        enforce.push(milliseconds(&block["created"], &block["applied"])?);
    }
    println!("\nhop by hop, from the records:");
    row("capture → detected", &mut detect, None);
    row("detected → decided", &mut decide, None);
    row("decided → applied", &mut enforce, None);
    Ok(())
}

// The spans of the traces that hold the blocks' decisions: how long each takes, and when it begins.
fn spans(all: &[Span], blocks: &[Value]) -> Result<()> {
    // Trace → when its offending packet was captured, nanoseconds since the epoch.
    let mut wanted: HashMap<&str, u64> = HashMap::new();
    for span in all {
        let block = blocks.iter().find(|block| {
            let id = text(&block["name"]);
            let id = id.rsplit('/').next().unwrap_or_default();
            !id.is_empty() && span.attributes.values().any(|value| value.contains(id))
        });
        if let Some(block) = block {
            let trigger = time(&block["triggerTime"])?.timestamp_nanos_opt().unwrap_or_default();
            wanted.insert(&span.trace_id, u64::try_from(trigger).unwrap_or_default());
        }
    }
    type Times = (Vec<f64>, Vec<f64>);
    let mut by_name: BTreeMap<(&str, &str), Times> = BTreeMap::new();
    for span in all {
        let Some(trigger) = wanted.get(span.trace_id.as_str()) else {
            continue;
        };
        let (begins, lasts) = by_name.entry((&span.service, &span.name)).or_default();
        begins.push((span.start_ns as f64 - *trigger as f64) / 1e6);
        lasts.push(span.end_ns.saturating_sub(span.start_ns) as f64 / 1e6);
    }
    let mut rows: Vec<_> = by_name.into_iter().collect();
    for (_, (begins, _)) in &mut rows {
        begins.sort_by(f64::total_cmp);
    }
    rows.sort_by(|(_, (a, _)), (_, (b, _))| at(a, 0.5).total_cmp(&at(b, 0.5)));
    println!(
        "\nspans in {} traces of containments, from OTLP, in the order in which they begin:",
        wanted.len()
    );
    for ((service, name), (begins, mut lasts)) in rows {
        row(
            &format!("{:>7.2} ms  {service}: {name}", at(&begins, 0.5)),
            &mut lasts,
            None,
        );
    }
    Ok(())
}

// The value at a share of a sorted list.
fn at(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((share * last as f64).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

fn row(name: &str, values: &mut [f64], budget: Option<(f64, f64)>) {
    values.sort_by(f64::total_cmp);
    let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|share| at(values, share));
    print!(
        "  {name:<58} n {:>4}  p50 {p50:>7.2}  p90 {p90:>7.2}  p99 {p99:>7.2}  max {max:>7.2} ms",
        values.len()
    );
    if let Some((p50_budget, p99_budget)) = budget {
        let kept = p50 <= p50_budget && p99 <= p99_budget;
        print!(
            "  budget p50 {p50_budget} p99 {p99_budget}: {}",
            if kept { "kept" } else { "MISSED" }
        );
    }
    println!();
}

fn time(value: &Value) -> Result<chrono::DateTime<chrono::Utc>> {
    text(value).parse().with_context(|| format!("{value} is no time"))
}

fn milliseconds(from: &Value, to: &Value) -> Result<f64> {
    let length = time(to)? - time(from)?;
    Ok(length.num_nanoseconds().context("the times are too far apart")? as f64 / 1e6)
}

/// The part of `bench memory` inside the namespaces.
pub async fn memory_inside() -> Result<()> {
    let dir = fresh("bench")?;
    let binaries = paths::binaries(Profile::Release);
    let fleet = Fleet::start(fleet_options(
        binaries,
        dir,
        Some(Source::Interfaces(vec!["lo".to_owned()])),
        false,
    ))
    .await?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    println!("resident memory of the fleet at rest, MiB");
    let mut sum = 0.0;
    let mut measured = |name: &str, pids: Vec<u32>| -> Result<()> {
        // Proportional set size counts shared pages once over all processes, as PostgreSQL's are shared.
        let mut mebibytes = 0.0;
        for pid in pids {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let line = rollup
                .lines()
                .find(|line| line.starts_with("Pss:"))
                .context("no Pss in smaps_rollup")?;
            let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
            mebibytes += kib / 1024.0;
        }
        sum += mebibytes;
        println!("  {name:<14} {mebibytes:>8.1}");
        Ok(())
    };
    for program in fleet.programs() {
        measured(&program, fleet.process_id(&program).into_iter().collect())?;
    }
    measured("nats-server", children_named("nats-server")?)?;
    measured("postgres", children_named("postgres")?)?;
    println!(
        "  {:<14} {sum:>8.1}  budget {RESIDENT_MIB}: {}",
        "sum",
        if sum <= RESIDENT_MIB { "kept" } else { "MISSED" }
    );
    machine();
    Ok(())
}

// Processes of this network namespace with that name.
fn children_named(name: &str) -> Result<Vec<u32>> {
    let ours = fs::read_link("/proc/self/ns/net")?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|text| text.parse::<u32>().ok()) else {
            continue;
        };
        let path = entry.path();
        let same = fs::read_link(path.join("ns/net")).is_ok_and(|theirs| theirs == ours);
        if same && fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn fresh(name: &str) -> Result<std::path::PathBuf> {
    let dir = paths::state().join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    Ok(dir)
}

fn build_times() -> Result<()> {
    let target = paths::state().join("bench-target");
    if target.exists() {
        fs::remove_dir_all(&target)?;
    }
    let build = |what: &str| -> Result<()> {
        let began = Instant::now();
        let status = paths::cargo()
            .args(["build", "--locked", "--workspace", "--bins", "--release", "--quiet"])
            .env("CARGO_TARGET_DIR", &target)
            .current_dir(paths::root())
            .status()?;
        ensure!(status.success(), "the build failed");
        println!("  {what:<44} {:>7.1} s", began.elapsed().as_secs_f64());
        Ok(())
    };
    println!("release build of the whole workspace");
    build("cold")?;
    build("nothing changed")?;
    let touched = paths::root().join("services/responder/src/lib.rs");
    fs::File::options()
        .append(true)
        .open(&touched)?
        .set_modified(std::time::SystemTime::now())?;
    build("one service changed")?;
    fs::remove_dir_all(&target)?;
    machine();
    Ok(())
}

fn machine() {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!(
        "\n{} cores,{} , Linux {}, {}",
        std::thread::available_parallelism().map_or(0, usize::from),
        model.trim_start_matches(['\t', ' ', ':']).to_owned(),
        kernel.trim(),
        chrono::Utc::now().format("%Y-%m-%d")
    );
}
