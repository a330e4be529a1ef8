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
    capture::CaptureFile,
    domain::{Limits, Meter, Sink, record::EndReason},
};
use garrison_bus::subject::{SHARDS, shard_of};
use garrison_flow::{FlowBatchBuilder, FlowRow};

#[path = "../src/domain/craft.rs"]
mod craft;

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
            fs::write(&path, mixed()).unwrap();
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
    while let Some(burst) = file.burst().unwrap() {
        octets += burst.packets().iter().map(|p| u64::from(p.wire_len)).sum::<u64>();
    }
    std::hint::black_box(octets);
    (file.packets(), String::new())
}

fn metered(path: &Path, sink: &mut impl Sink) -> (u64, String) {
    let mut file = CaptureFile::open(path).unwrap();
    let mut meter = Meter::new("bench", Limits::default(), 1);
    while let Some(burst) = file.burst().unwrap() {
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

// 1.5 million packets of 40,000 flows that overlap, 350 octets each on average.
fn mixed() -> Vec<u8> {
    let mut flows: Vec<Vec<Vec<u8>>> = Vec::new();
    for i in 0..40_000_u32 {
        let client = format!("10.{}.{}.{}:{}", i >> 16, i >> 8 & 0xff, i & 0xff, 20_000 + i % 40_000);
        let (c, web) = (client.as_str(), format!("172.16.{}.{}:80", i % 7, i % 50));
        let s = web.as_str();
        let mut frames = Vec::new();
        match i % 10 {
            0..5 => {
                frames.push(craft::tcp4(c, s, 2, 99, 0, b""));
                frames.push(craft::tcp4(s, c, 0x12, 499, 100, b""));
                frames.push(craft::tcp4(c, s, 0x10, 100, 500, b""));
                let request = format!(
                    "GET /page/{i} HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n\r\n"
                );
                frames.push(craft::tcp4(c, s, 0x18, 100, 500, request.as_bytes()));
                let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 40000\r\n\r\n";
                frames.push(craft::tcp4(s, c, 0x18, 500, 200, head));
                let (start, ack) = (500 + head.len() as u32, 100 + request.len() as u32);
                for part in 0..32 {
                    frames.push(craft::tcp4(s, c, 0x10, start + part * 1250, ack, &[7; 1250]));
                    frames.push(craft::tcp4(c, s, 0x10, ack, start + (part + 1) * 1250, b""));
                }
                frames.push(craft::tcp4(c, s, 0x11, ack, start + 40_000, b""));
                frames.push(craft::tcp4(s, c, 0x11, start + 40_000, ack + 1, b""));
                frames.push(craft::tcp4(c, s, 0x10, ack + 1, start + 40_001, b""));
            }
            5..8 => {
                let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, b'w', b'w', b'w', 7];
                query.extend(b"example\x03com\0\0\x01\0\x01");
                let server = "172.16.0.53:53";
                frames.push(craft::udp4(c, server, &query));
                query[2] = 0x81;
                frames.push(craft::udp4(server, c, &query));
            }
            8 => {
                for _ in 0..20 {
                    frames.push(craft::udp4(c, "172.16.9.9:9999", &[0x80; 200]));
                }
            }
            _ => frames.push(craft::tcp4(c, s, 2, 1, 0, b"")),
        }
        flows.push(frames);
    }
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    // A thousand flows at a time take turns.
    let mut time = 0_u64;
    for group in flows.chunks(1000) {
        let longest = group.iter().map(Vec::len).max().unwrap_or(0);
        for turn in 0..longest {
            for frame in group.iter().filter_map(|frames| frames.get(turn)) {
                time += 2;
                let (seconds, micros) = (1_700_000_000 + time / 1_000_000, time % 1_000_000);
                for word in [seconds as u32, micros as u32, frame.len() as u32, frame.len() as u32] {
                    file.extend(word.to_le_bytes());
                }
                file.extend(frame);
            }
        }
    }
    file
}
