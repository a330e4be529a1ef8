//! How many packets a second one core meters, beside the rate of only reading the file.
//!
//! `cargo bench -p flow-ingest --bench rate [-- FILE]`. Without a file it makes one of mixed traffic: HTTP, TLS and DNS
//! with their heads, bulk transfers, and single packets.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use flow_ingest::{
    capture::{Burst, CaptureFile},
    domain::{Limits, Meter, Sink, record::EndReason},
};
use garrison_bus::subject::{SHARDS, shard_of};
use garrison_flow::{FlowBatchBuilder, FlowRow};

#[path = "../src/domain/craft.rs"]
mod craft;
#[path = "made/traffic.rs"]
mod traffic;

struct Nothing(u64);

impl Sink for Nothing {
    fn record(&mut self, _: &FlowRow<'_>) {
        self.0 += 1;
    }
}

struct Batches(Vec<FlowBatchBuilder>, u64);

impl Sink for Batches {
    fn record(&mut self, row: &FlowRow<'_>) {
        let builder = &mut self.0[usize::from(shard_of(row.src_ip))];
        builder.push(row);
        self.1 += 1;
        if builder.len() == 4096 {
            std::hint::black_box(builder.finish());
        }
    }
}

fn main() {
    let given = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let folder = tempfile::tempdir().unwrap();
    let path = match given {
        Some(path) => PathBuf::from(path),
        None => {
            let path = folder.path().join("mixed.pcap");
            fs::write(&path, traffic::mixed()).unwrap();
            path
        }
    };
    let size = fs::metadata(&path).unwrap().len();
    println!("{}: {:.1} MB", path.display(), size as f64 / 1e6);
    for _ in 0..2 {
        report("read only", size, || read(&path));
        report("metered", size, || metered(&path, &mut Nothing(0)));
        let batches = || (0..SHARDS).map(|_| FlowBatchBuilder::new(4096)).collect();
        report("metered into batches", size, || {
            metered(&path, &mut Batches(batches(), 0))
        });
    }
}

// Time this thread was on a core, so that a busy machine does not make the meter look slow.
fn on_core() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn report(what: &str, bytes: u64, run: impl FnOnce() -> (u64, String)) {
    let (started, core) = (Instant::now(), on_core());
    let (packets, more) = run();
    let seconds = (on_core() - core).max(Duration::from_nanos(1)).as_secs_f64();
    println!(
        "{what:>22}: {packets} packets in {:.0} ms on the core ({:.0} ms passed): {:.2} M packets/s, {:.1} Gbit/s{more}",
        seconds * 1e3,
        started.elapsed().as_secs_f64() * 1e3,
        packets as f64 / seconds / 1e6,
        bytes as f64 * 8.0 / seconds / 1e9,
    );
}

fn read(path: &Path) -> (u64, String) {
    let mut file = CaptureFile::open(path).unwrap();
    let mut octets = 0;
    loop {
        let mut burst = Burst::default();
        if !file.fill_burst(&mut burst).unwrap() {
            break;
        }
        octets += burst.packets().iter().map(|p| u64::from(p.wire_len)).sum::<u64>();
    }
    std::hint::black_box(octets);
    (file.packets(), String::new())
}

fn metered(path: &Path, sink: &mut impl Sink) -> (u64, String) {
    let mut file = CaptureFile::open(path).unwrap();
    let mut meter = Meter::new("bench", Limits::default(), 1);
    loop {
        let mut burst = Burst::default();
        if !file.fill_burst(&mut burst).unwrap() {
            break;
        }
        meter.process(burst.packets(), sink);
    }
    meter.finish(EndReason::EndOfFile, sink);
    let counts = meter.counts();
    assert!(counts.ledger().balances());
    (
        counts.received,
        format!(", {} flows, {} records", counts.opened, counts.records),
    )
}
