//! How many exported flow records a second one core reads, beside the budget and the rate of only looking at the octets.
//!
//! `cargo bench -p flow-ingest --bench exports`. The datagrams are made here: IPFIX with the eighteen fields that routers
//! commonly send, and NetFlow 5; a million different flows.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    hint::black_box,
    net::IpAddr,
    time::{Duration, Instant},
};

use flow_ingest::{
    domain::Sink,
    export::{Collector, CollectorLimits, Outcome},
};
use garrison_bus::subject::{SHARDS, shard_of};
use garrison_flow::{FlowBatchBuilder, FlowRow};

/// Records a second on one core that are asked for.
const BUDGET: f64 = 2e6;

#[path = "made/datagrams.rs"]
mod datagrams;

use datagrams::{FLOWS, ipfix, netflow5};

struct Nothing;

impl Sink for Nothing {
    fn record(&mut self, row: &FlowRow<'_>) {
        black_box(row.src_packets);
    }
}

struct Batches(Vec<FlowBatchBuilder>);

impl Sink for Batches {
    fn record(&mut self, row: &FlowRow<'_>) {
        let builder = &mut self.0[usize::from(shard_of(row.src_ip))];
        builder.push(row);
        if builder.len() == 4096 {
            black_box(builder.finish());
        }
    }
}

// Time this thread was on a core, so that a busy machine does not make the meter look slow.
fn on_core() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn report(what: &str, run: impl FnOnce() -> u64) {
    let (wall, start) = (Instant::now(), on_core());
    let records = run();
    let seconds = (on_core() - start).as_secs_f64();
    let rate = records as f64 / seconds;
    println!(
        "{what:48} {:6.2} M records/s  {:5.0} ns each  {:4.1} x the budget  ({:.2} s on the clock)",
        rate / 1e6,
        1e9 / rate,
        rate / BUDGET,
        wall.elapsed().as_secs_f64()
    );
}

fn read(datagrams: &[Vec<u8>], extra: bool, sink: &mut impl Sink) -> u64 {
    let mut collector = Collector::new("bench", CollectorLimits::default(), 1);
    collector.keep_extra(extra);
    let exporter = IpAddr::from([192, 0, 2, 1]);
    for datagram in datagrams {
        assert_eq!(collector.datagram(exporter, 0, datagram, sink), Outcome::Parsed);
    }
    assert_eq!(collector.tally().missing, 0);
    collector.tally().records
}

fn batches() -> Batches {
    Batches((0..SHARDS).map(|_| FlowBatchBuilder::new(4096)).collect())
}

fn main() {
    for (name, datagrams) in [("IPFIX", ipfix()), ("NetFlow 5", netflow5())] {
        for _ in 0..2 {
            report(&format!("{name}: octets looked at"), || {
                let sum: u64 = datagrams.iter().flatten().map(|&octet| u64::from(octet)).sum();
                black_box(sum);
                u64::from(FLOWS)
            });
            report(&format!("{name}: decoded"), || read(&datagrams, false, &mut Nothing));
            report(&format!("{name}: decoded with everything beside"), || {
                read(&datagrams, true, &mut Nothing)
            });
            report(&format!("{name}: into Arrow batches"), || {
                read(&datagrams, false, &mut batches())
            });
            report(&format!("{name}: into Arrow batches with everything"), || {
                read(&datagrams, true, &mut batches())
            });
        }
    }
}
