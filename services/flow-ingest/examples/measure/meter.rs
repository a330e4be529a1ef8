//! The meter on one core.

use std::{
    fs,
    path::Path,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use flow_ingest::{
    capture::{Burst, CaptureFile, spread::spread},
    domain::{Counts, Limits, Meter, Sink, record::EndReason},
};
use garrison_bus::subject::{SHARDS, shard_of};
use garrison_flow::{FlowBatchBuilder, FlowRow};
use serde_json::{Value, json};

/// Counts records and leaves them.
pub struct Nothing(pub u64);

impl Sink for Nothing {
    fn record(&mut self, _: &FlowRow<'_>) {
        self.0 += 1;
    }
}

/// Makes Arrow batches of records, one for each shard, as the service does.
pub struct Batches(Vec<FlowBatchBuilder>);

impl Default for Batches {
    fn default() -> Self {
        Self((0..SHARDS).map(|_| FlowBatchBuilder::new(4096)).collect())
    }
}

impl Sink for Batches {
    fn record(&mut self, row: &FlowRow<'_>) {
        let builder = &mut self.0[usize::from(shard_of(row.src_ip))];
        builder.push(row);
        if builder.len() == 4096 {
            std::hint::black_box(builder.finish());
        }
    }
}

/// Time this thread was on a core, so that a busy machine does not make the meter look slow.
pub fn on_core() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or_default())
}

/// Most memory that was resident, KiB.
pub fn peak() -> u64 {
    memory("VmHWM:")
}

/// Memory that is resident, KiB.
pub fn resident() -> u64 {
    memory("VmRSS:")
}

fn memory(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

/// Only reads the packets of a file.
pub fn read(path: &Path) -> Result<Value, String> {
    let (wall, core) = (Instant::now(), on_core());
    let mut file = CaptureFile::open(path).map_err(|error| error.to_string())?;
    let mut octets = 0;
    loop {
        let mut burst = Burst::default();
        if !file.fill_burst(&mut burst).map_err(|error| error.to_string())? {
            break;
        }
        octets += burst.packets().iter().map(|p| u64::from(p.wire_len)).sum::<u64>();
    }
    Ok(json!({
        "packets": file.packets(), "octets": octets,
        "core_ns": (on_core() - core).as_nanos() as u64, "wall_ns": wall.elapsed().as_nanos() as u64, "peak_kib": peak(),
    }))
}

/// Meters a file.
pub fn metered(path: &Path, sink: &mut impl Sink) -> Result<Value, String> {
    let (wall, core) = (Instant::now(), on_core());
    let mut file = CaptureFile::open(path).map_err(|error| error.to_string())?;
    let mut meter = Meter::new("bench", Limits::default(), 1);
    loop {
        let mut burst = Burst::default();
        if !file.fill_burst(&mut burst).map_err(|error| error.to_string())? {
            break;
        }
        meter.process(burst.packets(), sink);
    }
    meter.finish(EndReason::EndOfFile, sink);
    let counts = meter.counts();
    if !counts.ledger().balances() {
        return Err("the ledger does not add up".to_owned());
    }
    Ok(json!({
        "packets": counts.received, "flows": counts.opened, "records": counts.records,
        "malformed": counts.malformed, "shed": counts.shed, "evicted": counts.evicted,
        "core_ns": (on_core() - core).as_nanos() as u64, "wall_ns": wall.elapsed().as_nanos() as u64, "peak_kib": peak(),
    }))
}

/// Meters a file with several workers that share nothing, into Arrow batches.
pub fn shared(path: &Path, workers: usize) -> Result<Value, String> {
    let wall = Instant::now();
    let file = CaptureFile::open(path).map_err(|error| error.to_string())?;
    let mut share: Vec<_> = (0..workers)
        .map(|_| (Meter::new("bench", Limits::default(), 1), Batches::default()))
        .collect();
    let stop = AtomicBool::new(false);
    spread(
        file,
        &mut share,
        &stop,
        |(meter, sink), packets| meter.process(packets, sink),
        |(meter, sink)| meter.finish(EndReason::EndOfFile, sink),
    )
    .map_err(|error| error.to_string())?;
    let mut counts = Counts::default();
    for (meter, _) in &share {
        counts += meter.counts();
    }
    if !counts.ledger().balances() {
        return Err("the ledger does not add up".to_owned());
    }
    Ok(json!({
        "packets": counts.received, "flows": counts.opened, "records": counts.records,
        "wall_ns": wall.elapsed().as_nanos() as u64, "peak_kib": peak(),
    }))
}
