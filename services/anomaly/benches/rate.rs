//! How many flow records a second one core judges, what is known of hosts takes in memory, and how the cost grows:
//! `cargo bench -p anomaly --bench rate`. A made mix of TLS, DNS, HTTP and refused flows, two records a flow, in batches of
//! 4,000 rows by the shard of their sources, as the broker delivers them. Decoding is measured for itself; judging is given
//! batches that are decoded. "None" is what reading the columns and telling repeats costs.

use std::{sync::Arc, time::Duration};

use anomaly::domain::{
    detector::Detector,
    intel::{Grades, View},
    settings::Settings,
    tenant::{Arrival, Tenant},
    window::SECOND,
};
use bytes::Bytes;
use garrison_bus::subject;
use garrison_flow::{BatchMeta, FlowBatch, FlowBatchBuilder, FlowRow, FlowState, LossLedger, decode_message, encode};
use garrison_intel::{Builder, Indicator, Value, Warnings};
use garrison_models::rng::SplitMix64;

const ROWS: usize = 4_000;
const BATCHES: usize = 160;
const HOSTS: u64 = 5_000;
const START: i64 = 1_750_000_000 * SECOND;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// One batch of one shard.
struct Sharded {
    shard: u16,
    batch: FlowBatch,
}

// `count` batches of `hosts` hosts, each in its shard.
fn batches(hosts: u64, count: usize) -> Vec<Sharded> {
    let mut rng = SplitMix64::new(1);
    let names: Vec<String> = (0..20_000)
        .map(|n| format!("host-{n}.example-{}.net", n % 4_000))
        .collect();
    let mut shards: Vec<(FlowBatchBuilder, usize)> =
        (0..subject::SHARDS).map(|_| (FlowBatchBuilder::new(ROWS), 0)).collect();
    let (mut made, mut flow) = (Vec::new(), 0_u64);
    while made.len() < count {
        flow += 1;
        let at = START + flow as i64 * (SECOND / 10_000);
        let [new, ended] = records(&mut rng, &names, hosts, flow, at);
        let shard = subject::shard_of(new.src_ip);
        let (builder, rows) = &mut shards[usize::from(shard)];
        builder.push(&new);
        builder.push(&ended);
        *rows += 2;
        if *rows >= ROWS {
            *rows = 0;
            made.push(Sharded {
                shard,
                batch: builder.finish(),
            });
        }
    }
    made
}

fn records<'a>(rng: &mut SplitMix64, names: &'a [String], hosts: u64, flow: u64, at: i64) -> [FlowRow<'a>; 2] {
    const AGENTS: [&str; 3] = [
        "Mozilla/5.0 (X11; Linux x86_64)",
        "curl/8.1",
        "Mozilla/5.0 (Windows NT 10.0)",
    ];
    let name = names[(20_000_f64.powf(rng.unit())) as usize % 20_000].as_str();
    let kind = rng.below(100);
    let host = rng.below(hosts);
    let mut new = FlowRow {
        flow_id: u128::from(flow).to_be_bytes(),
        state: FlowState::New as u8,
        sensor: "s",
        first_seen: at,
        last_seen: at,
        protocol: 6,
        src_ip: [10, (host >> 16) as u8, (host >> 8) as u8, host as u8].into(),
        dst_ip: [203, 0, (rng.below(64)) as u8, (rng.below(256)) as u8].into(),
        src_port: 40_000,
        dst_port: 443,
        community_id: "1:wCb3OG7yAFWelaUydu0D+125CLM=",
        src_packets: Some(1),
        dst_packets: Some(0),
        src_bytes: Some(0),
        dst_bytes: Some(0),
        ..FlowRow::default()
    };
    let mut ended = FlowRow {
        record_seq: 1,
        state: FlowState::Ended as u8,
        last_seen: at + SECOND / 10,
        src_packets: Some(9),
        dst_packets: Some(12),
        src_bytes: Some(700 + rng.below(400)),
        dst_bytes: Some(9_000 + rng.below(9_000)),
        conn_state: Some("SF"),
        ..new.clone()
    };
    match kind {
        0..60 => {
            (ended.service, ended.tls_sni, ended.tls_version) = (Some("tls"), Some(name), Some(0x0304));
            ended.ja4 = Some("t13d1516h2_8daaf6152771_02713d6af862");
        }
        60..85 => {
            for row in [&mut new, &mut ended] {
                (row.protocol, row.dst_port) = (17, 53);
                row.dst_ip = [10, 255, 255, 53].into();
            }
            (ended.service, ended.dns_query) = (Some("dns"), Some(name));
            (ended.dns_rcode, ended.dns_queries) = (Some(0), Some(1));
        }
        85..95 => {
            for row in [&mut new, &mut ended] {
                row.dst_port = 80;
            }
            (ended.service, ended.http_host, ended.http_status) = (Some("http"), Some(name), Some(200));
            ended.http_user_agent = Some(AGENTS[rng.below(3) as usize]);
            ended.http_requests = Some(1);
        }
        _ => {
            (ended.conn_state, ended.src_bytes, ended.dst_bytes) = (Some("REJ"), Some(0), Some(0));
        }
    }
    [new, ended]
}

fn judge(tenant: &mut Tenant, sharded: &Sharded, n: usize) -> u64 {
    let judged = tenant.judge(&Arrival {
        id: (n as u128 + 1).to_be_bytes(),
        shard: sharded.shard,
        position: n as u64,
        published: START + 1_000_000 * SECOND,
        now: 0,
        batch: &sharded.batch,
    });
    judged.findings.iter().sum()
}

fn feed(tenant: &mut Tenant, batches: &[Sharded], first: usize) -> (f64, u64) {
    let started = on_core();
    let findings = batches
        .iter()
        .enumerate()
        .map(|(n, batch)| judge(tenant, batch, first + n))
        .sum();
    (rate(batches.len(), started), findings)
}

fn rate(batches: usize, since: Duration) -> f64 {
    (batches * ROWS) as f64 / (on_core() - since).as_secs_f64()
}

// Time that this thread was on a core, so that a busy machine does not make the service look slow: the first number of
// its schedstat (proc_pid_schedstat(5)).
fn on_core() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split_whitespace().next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_default())
}

fn entities(tenant: &Tenant) -> usize {
    tenant.shards.iter().flatten().map(|s| s.entities()).sum::<usize>() + tenant.wide.entities()
}

// A tenant whose model is at work.
fn trained(settings: &Settings, learnt: &[Sharded]) -> Result<Tenant, Box<dyn std::error::Error>> {
    let mut tenant = Tenant::new("bench".parse()?, Arc::new(settings.without_budget()), subject::SHARDS);
    tenant.start_learning(0, false)?;
    feed(&mut tenant, learnt, 0);
    tenant.finish_learning(200)?;
    let trained = tenant.training_job().ok_or("nothing to train")?.run()?;
    tenant.install(trained, 1);
    Ok(tenant)
}

fn run(what: &str, settings: &Settings, batches: &[Sharded]) -> Outcome {
    let (learnt, judged) = batches.split_at(batches.len() / 5);
    let mut tenant = trained(settings, learnt)?;
    let (rate, findings) = feed(&mut tenant, judged, BATCHES);
    println!(
        "{what:<28} {rate:>9.0} records/s a core   {findings:>6} findings   {:>8} entities",
        entities(&tenant)
    );
    Ok(())
}

fn decoding(batches: &[Sharded]) -> Outcome {
    let meta = BatchMeta {
        tenant: "bench".parse()?,
        sensor: "s".to_owned(),
        batch_seq: 0,
        ledger: LossLedger::default(),
    };
    let messages = batches
        .iter()
        .map(|b| encode(&b.batch, &meta))
        .collect::<Result<Vec<Bytes>, _>>()?;
    let octets: usize = messages.iter().map(Bytes::len).sum();
    let started = on_core();
    let mut rows = 0;
    for message in &messages {
        rows += decode_message(message.clone())?.0.len();
    }
    let each = octets / rows.max(1);
    println!(
        "{:<28} {:>9.0} records/s a core   {each} octets a record",
        "decoding",
        rate(batches.len(), started)
    );
    Ok(())
}

// Resident memory, octets.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or_default() * 1024.0
}

fn memory(settings: &Settings) -> Outcome {
    println!("\nmemory, everything that is kept of them");
    for hosts in [10_000, 100_000] {
        let batches = batches(hosts, BATCHES);
        let mut tenant = Tenant::new("bench".parse()?, Arc::new(settings.clone()), subject::SHARDS);
        tenant.start_learning(0, false)?;
        let before = resident();
        feed(&mut tenant, &batches, 0);
        let taken = resident() - before;
        let entities = entities(&tenant) as f64;
        let evicted: u64 = tenant.shards.iter().flatten().map(|s| s.evicted()).sum::<u64>() + tenant.wide.evicted();
        println!(
            "{hosts:>8} hosts   {entities:>8.0} entities   {:>7.1} MiB   {:>6.1} MiB per 100,000 entities   {evicted} evicted",
            taken / f64::from(1 << 20),
            taken / entities * 1e5 / f64::from(1 << 20),
        );
    }
    Ok(())
}

// Addresses of a network for documentation (RFC 3849), which no flow has.
fn indicators(count: u32) -> Result<View, Box<dyn std::error::Error>> {
    let mut builder = Builder::new(count as usize + 1, 0);
    for n in 0..count {
        let value = Value::guess(&format!("2001:db8::{:x}:{:x}", n >> 16, n & 0xffff), false)?;
        builder.add("feed", &Indicator::of(value), 90, false)?;
    }
    Ok(View {
        index: Arc::new(builder.build()),
        warnings: Arc::new(Warnings::built_in()),
        allowed: Arc::default(),
        grades: Grades { medium: 50, high: 80 },
        retroactive: false,
    })
}

fn growth(settings: &Settings) -> Outcome {
    const FEW: usize = 80;
    println!("\nall detectors, as what they know of grows");
    for hosts in [1_000, 10_000, 100_000] {
        run(&format!("{hosts} hosts"), settings, &batches(hosts, FEW))?;
    }
    let batches = batches(HOSTS, FEW);
    let (learnt, judged) = batches.split_at(FEW / 5);
    for count in [1_000, 100_000, 1_000_000] {
        let mut tenant = trained(settings, learnt)?;
        tenant.intel = Some(indicators(count)?);
        let (rate, _) = feed(&mut tenant, judged, FEW);
        println!("{:<28} {rate:>9.0} records/s a core", format!("{count} indicators"));
    }
    // A smaller sample trains sooner, and scores as fast.
    let small = Settings {
        sample_rows: 1_000,
        ..settings.clone()
    };
    for count in [4, 16] {
        let mut tenants = (0..count)
            .map(|_| trained(&small, learnt))
            .collect::<Result<Vec<_>, _>>()?;
        let started = on_core();
        // Each has flows of its own: as many in all as one has above.
        for (n, batch) in judged.iter().enumerate() {
            judge(&mut tenants[n % count], batch, FEW + n);
        }
        println!(
            "{:<28} {:>9.0} records/s a core",
            format!("{count} tenants"),
            rate(judged.len(), started)
        );
    }
    Ok(())
}

fn main() -> Outcome {
    let batches = batches(HOSTS, BATCHES);
    let all = anomaly::config::default_settings();
    let mut behaviours = all.clone();
    behaviours.enabled[Detector::ModelAutoencoder.index()] = false;
    let mut old = all.clone();
    for detector in Detector::ALL.iter().skip(6) {
        old.enabled[detector.index()] = false;
    }
    let mut none = all.clone();
    none.enabled = [false; Detector::ALL.len()];
    decoding(&batches)?;
    run("all detectors", &all, &batches)?;
    // Another part of the measurement than the first, for profilers.
    if std::env::args().any(|argument| argument == "first") {
        return Ok(());
    }
    run("all but the model", &behaviours, &batches)?;
    run("the first six", &old, &batches)?;
    run("none", &none, &batches)?;
    memory(&all)?;
    growth(&all)
}
