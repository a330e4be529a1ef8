//! `cargo xtask bench flows`: the meter beside others on one core, several workers, floods, full tables, exports, and live
//! capture; each with its goal.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde_json::Value;

use super::machine;
use crate::{absolute, eval, paths};

/// What `bench flows` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct FlowsOptions {
    /// Measure with this capture instead of one made from the corpora
    #[arg(long)]
    pcap: Option<PathBuf>,
    /// Size of the capture that is made from the corpora, mebibytes
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// How often each program runs; the best run counts
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only these parts: peers, workers, flood, table, exports, live
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// The goals.
const PACKETS_A_SECOND: f64 = 7e6;
const TIMES_THE_FASTEST_PEER: f64 = 2.0;
const TWO_WORKERS: f64 = 1.8;
const OCTETS_A_FLOW: f64 = 256.0;
const NEW_FLOWS_A_SECOND: f64 = 1e6;
const EXPORTS_A_SECOND: f64 = 2e6;

const PARTS: [&str; 6] = ["peers", "workers", "flood", "table", "exports", "live"];

/// Runs the measurement.
pub fn run(options: FlowsOptions) -> Result<()> {
    if let Some(unknown) = options.only.iter().find(|part| !PARTS.contains(&part.as_str())) {
        bail!("--only {unknown}: the parts are {}", PARTS.join(", "));
    }
    let wanted = |part: &str| options.only.is_empty() || options.only.iter().any(|only| only == part);
    let status = paths::cargo()
        .args([
            "build",
            "--locked",
            "--quiet",
            "--release",
            "-p",
            "flow-ingest",
            "--example",
            "measure",
        ])
        .current_dir(paths::root())
        .status()
        .context("starting cargo failed")?;
    ensure!(status.success(), "the build failed");
    let bench = Bench {
        program: paths::binaries(paths::Profile::Release).join("examples/measure"),
        folder: paths::state().join("bench"),
        runs: options.runs.clamp(1, 20),
    };
    fs::create_dir_all(&bench.folder)?;
    let captures = bench.captures(&options)?;
    for capture in &captures {
        if wanted("peers") {
            bench.peers(capture)?;
        }
        if wanted("workers") {
            bench.workers(capture)?;
        }
    }
    if wanted("flood") {
        bench.flood()?;
    }
    if wanted("table") {
        bench.table()?;
    }
    if wanted("exports") {
        bench.exports()?;
    }
    if wanted("live") {
        bench.live()?;
    }
    machine();
    Ok(())
}

struct Bench {
    program: PathBuf,
    folder: PathBuf,
    runs: usize,
}

struct Capture {
    path: PathBuf,
    packets: f64,
    bytes: f64,
}

// What a process took.
struct Run {
    // Time on a core, all threads together, in user and kernel mode.
    seconds: f64,
    peak_kib: u64,
    said: String,
}

impl Bench {
    // One line of JSON.
    fn tell(&self, arguments: &[&str]) -> Result<Value> {
        let output = Command::new(&self.program).args(arguments).output()?;
        let what = arguments.join(" ");
        ensure!(
            output.status.success(),
            "measure {what}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        serde_json::from_slice(&output.stdout).with_context(|| format!("measure {what} said no JSON"))
    }

    fn captures(&self, options: &FlowsOptions) -> Result<Vec<Capture>> {
        let mut paths = Vec::new();
        if let Some(path) = &options.pcap {
            paths.push(absolute(path.clone())?);
        } else {
            let corpora = eval::corpora();
            let made = self.folder.join(format!("corpora-{}.pcap", options.mib));
            if made.is_file() {
                paths.push(made);
            } else if corpora.join("packets").is_dir() {
                let octets = (options.mib << 20).to_string();
                let told = self.tell(&["capture", &text(&corpora), &text(&made), &octets])?;
                println!(
                    "{}: {} captures of the corpora side by side, {} rounds with other addresses; {} of other kinds left out",
                    made.display(),
                    told["captures"],
                    told["rounds"],
                    told["left_out"],
                );
                paths.push(made);
            } else {
                println!(
                    "{} has no folder packets: only made traffic is measured. Set GARRISON_CORPORA to the folder of the corpora.",
                    corpora.display()
                );
            }
            let mixed = self.folder.join("mixed.pcap");
            if !mixed.is_file() {
                self.tell(&["mixed", &text(&mixed)])?;
            }
            paths.push(mixed);
        }
        paths
            .into_iter()
            .map(|path| {
                // Reading it once also brings it into memory.
                let told = self.tell(&["read", &text(&path)])?;
                let bytes = fs::metadata(&path)?.len() as f64;
                Ok(Capture {
                    packets: told["packets"].as_f64().unwrap_or_default(),
                    bytes,
                    path,
                })
            })
            .collect()
    }

    // The best of some runs on one core.
    fn best(&self, program: &Path, arguments: &[&str]) -> Result<Run> {
        let mut best: Option<Run> = None;
        for _ in 0..self.runs {
            let run = on_one_core(program, arguments)?;
            if best.as_ref().is_none_or(|best| run.seconds < best.seconds) {
                best = Some(run);
            }
        }
        best.context("no run")
    }

    fn peers(&self, capture: &Capture) -> Result<()> {
        println!(
            "\n{}: {:.2} M packets, {:.0} octets each; one core, best of {} runs",
            capture.path.display(),
            capture.packets / 1e6,
            capture.bytes / capture.packets,
            self.runs
        );
        println!("  {:<44} M packets/s   Gbit/s   peak MiB      records", "");
        let file = text(&capture.path);
        let mut rates = Vec::new();
        for (name, kind) in [
            ("this meter, reading the file only", None),
            ("this meter, all parsers, records", Some("none")),
            ("this meter, all parsers, Arrow batches", Some("batches")),
        ] {
            let run = match kind {
                None => self.best(&self.program, &["read", &file])?,
                Some(kind) => self.best(&self.program, &["meter", &file, kind])?,
            };
            let told: Value = serde_json::from_str(&run.said).unwrap_or_default();
            rates.push(row(name, capture, &run, told["records"].as_u64()));
        }
        let mut fastest: Option<(&str, f64)> = None;
        for peer in PEERS {
            let Some(program) = installed(peer.program) else {
                println!("  {:<44} skipped: {} is not installed", peer.name, peer.program);
                continue;
            };
            let out = self.folder.join("peer");
            if out.exists() {
                fs::remove_dir_all(&out)?;
            }
            fs::create_dir_all(&out)?;
            let arguments = (peer.arguments)(&file, &text(&out));
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            match self.best(&program, &arguments) {
                Ok(run) => {
                    let rate = row(peer.name, capture, &run, (peer.records)(&run.said, &out));
                    if fastest.is_none_or(|(_, most)| rate > most) {
                        fastest = Some((peer.name, rate));
                    }
                }
                Err(error) => println!("  {:<44} failed: {error:#}", peer.name),
            }
            fs::remove_dir_all(&out)?;
        }
        let rate = rates.get(1).copied().unwrap_or_default();
        goal("packets/s a core", rate, PACKETS_A_SECOND, 1e6, " M");
        if let Some((name, peer)) = fastest {
            goal(
                &format!("times the fastest peer ({name})"),
                rate / peer,
                TIMES_THE_FASTEST_PEER,
                1.0,
                "",
            );
        }
        Ok(())
    }

    fn workers(&self, capture: &Capture) -> Result<()> {
        let file = text(&capture.path);
        let mut walls = Vec::new();
        for workers in ["1", "2"] {
            let mut best = f64::INFINITY;
            for _ in 0..self.runs {
                let told = self.tell(&["share", &file, workers])?;
                best = best.min(told["wall_ns"].as_f64().unwrap_or(f64::INFINITY));
            }
            walls.push(best / 1e9);
        }
        let [one, two] = walls[..] else { return Ok(()) };
        println!(
            "\n{}: one worker {:.2} s, two workers {two:.2} s on the clock, into Arrow batches",
            capture.path.display(),
            one
        );
        goal("two workers against one", one / two, TWO_WORKERS, 1.0, "");
        Ok(())
    }

    fn flood(&self) -> Result<()> {
        let told = self.tell(&["flood", "12", "10000"])?;
        let sizes: Vec<f64> = told["resident_kib_each_second"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_f64)
            .collect();
        let rate = told["sent"].as_f64().unwrap_or_default() * 1e9 / told["core_ns"].as_f64().unwrap_or(1.0);
        // The table is full after two seconds.
        let (from, to) = (
            sizes.get(3).copied().unwrap_or_default(),
            sizes.last().copied().unwrap_or_default(),
        );
        println!(
            "\nflood: {} new flows in 12 s of their time beside 10000 conversations; table of 1048576 flows",
            told["sent"]
        );
        goal("new flows/s a core", rate, NEW_FLOWS_A_SECOND, 1e6, " M");
        println!(
            "  resident after 4 s {:.1} MiB, after 12 s {:.1} MiB: {}",
            from / 1024.0,
            to / 1024.0,
            verdict(to <= from * 1.01)
        );
        println!(
            "  conversations counted whole to their end: {} of 10000: {}",
            told["whole"],
            verdict(told["whole"] == 10_000 && told["broken"] == 0 && told["balances"] == true)
        );
        println!(
            "  flows told of in sums only: {}; records {}; packets shed {}",
            told["aggregated"], told["records"], told["shed"]
        );
        Ok(())
    }

    fn table(&self) -> Result<()> {
        let told = self.tell(&["table", "10000000"])?;
        let octets = told["octets_a_flow"].as_f64().unwrap_or(f64::INFINITY);
        println!(
            "\ntable: {} flows at once, {octets:.1} octets each, goal at most {OCTETS_A_FLOW}: {}",
            told["flows"],
            verdict(octets <= OCTETS_A_FLOW && told["flows"] == 10_000_000)
        );
        Ok(())
    }

    fn exports(&self) -> Result<()> {
        let told = self.tell(&["exports", &(self.runs * 2).to_string()])?;
        let rate = |key: &str| {
            told["records"].as_f64().unwrap_or_default() * 1e9 / told[key].as_f64().unwrap_or(f64::INFINITY)
        };
        println!(
            "\nIPFIX, eighteen fields: decoded {:.2} M records/s",
            rate("decoded_ns") / 1e6
        );
        goal(
            "IPFIX records/s a core into Arrow batches",
            rate("batches_ns"),
            EXPORTS_A_SECOND,
            1e6,
            " M",
        );
        Ok(())
    }

    fn live(&self) -> Result<()> {
        println!(
            "\nlive capture over a pair of virtual interfaces, 64-octet datagrams of 200 flows, into Arrow batches"
        );
        for workers in ["1", "2"] {
            let told = self.tell(&["live", "5", workers])?;
            let number = |key: &str| told[key].as_f64().unwrap_or_default();
            println!(
                "  {workers} worker(s): sent {} ({:.2} M/s), on the card {}, offered {}, metered {}, dropped by the kernel {} \
                 ({:.2} %): sums {}",
                told["sent"],
                number("sent") / number("seconds") / 1e6,
                told["on_card"],
                told["offered"],
                told["received"],
                told["dropped"],
                100.0 * number("dropped") / number("offered").max(1.0),
                match told["adds_up"] == true {
                    true => "add up",
                    false => "DO NOT ADD UP",
                },
            );
        }
        Ok(())
    }
}

struct Peer {
    name: &'static str,
    program: &'static str,
    // From the capture's path and a folder of the peer's own.
    arguments: fn(&str, &str) -> Vec<String>,
    records: fn(&str, &Path) -> Option<u64>,
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

// The number behind a mark.
fn number_after(text: &str, mark: &str) -> Option<u64> {
    let rest = text.split(mark).nth(1)?.trim_start();
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

const PEERS: &[Peer] = &[
    Peer {
        name: "softflowd, counters only",
        program: "softflowd",
        // Records go to a port where nobody listens; none are lost to a table that is too small.
        arguments: |file, out| {
            words(&format!(
                "-r {file} -d -n 127.0.0.1:9 -v 9 -6 -m 2000000 -c none -p {out}/pid"
            ))
        },
        records: |said, _| number_after(said, "Flows exported:"),
    },
    Peer {
        name: "nfpcapd, counters only",
        program: "nfpcapd",
        arguments: |file, out| words(&format!("-r {file} -w {out}")),
        records: |said, _| {
            let counts = said.split("Flows:").skip(1);
            Some(
                counts
                    .filter_map(|rest| rest.trim_start().split(',').next()?.parse::<u64>().ok())
                    .sum(),
            )
        },
    },
    Peer {
        name: "argus, counters only",
        program: "argus",
        arguments: |file, out| words(&format!("-X -r {file} -w {out}/argus")),
        records: |_, out| {
            let counted = Command::new("racount").arg("-r").arg(out.join("argus")).output().ok()?;
            number_after(&String::from_utf8_lossy(&counted.stdout), "sum")
        },
    },
    Peer {
        name: "Suricata, flow and application logs",
        program: "suricata",
        arguments: |file, out| words(&format!("-r {file} -l {out} --runmode single -k none -S /dev/null")),
        records: |_, out| {
            let log = fs::read_to_string(out.join("eve.json")).ok()?;
            Some(
                log.lines()
                    .filter(|line| line.contains("\"event_type\":\"flow\""))
                    .count() as u64,
            )
        },
    },
];

fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn verdict(kept: bool) -> &'static str {
    if kept { "kept" } else { "MISSED" }
}

fn goal(what: &str, value: f64, goal: f64, unit: f64, letter: &str) {
    println!(
        "  {what}: {:.2}{letter}, goal {:.1}{letter}: {}",
        value / unit,
        goal / unit,
        verdict(value >= goal)
    );
}

// Prints a program's figures and gives its packets a second.
fn row(name: &str, capture: &Capture, run: &Run, records: Option<u64>) -> f64 {
    let rate = capture.packets / run.seconds;
    println!(
        "  {name:<44} {:>11.2} {:>8.1} {:>10.1} {:>12}",
        rate / 1e6,
        capture.bytes * 8.0 / run.seconds / 1e9,
        run.peak_kib as f64 / 1024.0,
        records.map_or("–".to_owned(), |records| records.to_string())
    );
    rate
}

// Runs a program on the last core, so that what else happens is most likely on another, and takes the time that it was on
// it from the kernel, so that what else happens there does not count.
fn on_one_core(program: &Path, arguments: &[&str]) -> Result<Run> {
    let core = std::thread::available_parallelism().map_or(0, |cores| cores.get() - 1);
    let said = tempfile_in(&paths::state().join("bench"))?;
    let mut child = Command::new("taskset")
        .args(["-c", &core.to_string()])
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(said.1.try_clone()?)
        .stderr(said.1.try_clone()?)
        .spawn()
        .context("starting taskset failed")?;
    let pid = Pid::from_child(&child);
    let number = child.id();
    let began = Instant::now();
    let mut peak_kib = 0;
    loop {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if waitid(WaitId::Pid(pid), options)?.is_some() {
            break;
        }
        if began.elapsed() > Duration::from_secs(600) {
            child.kill()?;
            child.wait()?;
            bail!("it took longer than ten minutes");
        }
        if let Ok(status) = fs::read_to_string(format!("/proc/{number}/status")) {
            peak_kib = peak_kib.max(number_after(&status, "VmHWM:").unwrap_or(0));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // It has ended and is still there, with the times it took.
    let stat = fs::read_to_string(format!("/proc/{number}/stat"))?;
    let status = child.wait()?;
    let said = (fs::read_to_string(&said.0)?, fs::remove_file(&said.0)?).0;
    ensure!(
        status.success(),
        "{status}: {}",
        said.lines().last().unwrap_or_default()
    );
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    // proc_pid_stat(5): fields 14 and 15; the first two are before the parenthesis. Linux counts in hundredths here.
    let seconds = (ticks(11).context("no user time")? + ticks(12).context("no kernel time")?) / 100.0;
    Ok(Run {
        seconds: seconds.max(0.01),
        peak_kib,
        said,
    })
}

fn tempfile_in(folder: &Path) -> Result<(PathBuf, fs::File)> {
    let path = folder.join(format!("said-{}", std::process::id()));
    let file = fs::File::create(&path)?;
    Ok((path, file))
}
