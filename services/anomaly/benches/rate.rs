//! How many flow records a second one core judges: `cargo bench -p anomaly --bench rate`. A made mix of TLS, DNS, HTTP and
//! refused flows of 5,000 hosts, two records a flow, in batches of 4,000 rows; decoding is not part of it. With all
//! detectors, with all but the model, and with none, which is what reading the columns and telling repeats costs.

use std::{sync::Arc, time::Instant};

use anomaly::domain::{
    detector::Detector,
    settings::Settings,
    tenant::{Arrival, Tenant},
    window::SECOND,
};
use garrison_flow::{FlowBatch, FlowBatchBuilder, FlowRow, FlowState};
use garrison_models::rng::SplitMix64;

const ROWS: usize = 4_000;
const BATCHES: usize = 150;
const HOSTS: u64 = 5_000;
const START: i64 = 1_750_000_000 * SECOND;

fn batches() -> Vec<FlowBatch> {
    let mut rng = SplitMix64::new(1);
    let names: Vec<String> = (0..20_000)
        .map(|n| format!("host-{n}.example-{}.net", n % 4_000))
        .collect();
    let agents = [
        "Mozilla/5.0 (X11; Linux x86_64)",
        "curl/8.1",
        "Mozilla/5.0 (Windows NT 10.0)",
    ];
    let mut flow = 0_u64;
    (0..BATCHES)
        .map(|batch| {
            let mut builder = FlowBatchBuilder::new(ROWS);
            for n in 0..ROWS / 2 {
                flow += 1;
                let at = START + (batch * ROWS + n) as i64 * (SECOND / 20_000);
                let name = names[(20_000_f64.powf(rng.unit())) as usize % 20_000].as_str();
                let kind = rng.below(100);
                let host = rng.below(HOSTS);
                let mut new = FlowRow {
                    flow_id: u128::from(flow).to_be_bytes(),
                    state: FlowState::New as u8,
                    sensor: "s",
                    first_seen: at,
                    last_seen: at,
                    protocol: 6,
                    src_ip: [10, 1, (host >> 8) as u8, host as u8].into(),
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
                            row.dst_ip = [10, 1, 255, 53].into();
                        }
                        (ended.service, ended.dns_query) = (Some("dns"), Some(name));
                        (ended.dns_rcode, ended.dns_queries) = (Some(0), Some(1));
                    }
                    85..95 => {
                        for row in [&mut new, &mut ended] {
                            row.dst_port = 80;
                        }
                        (ended.service, ended.http_host, ended.http_status) = (Some("http"), Some(name), Some(200));
                        ended.http_user_agent = Some(agents[rng.below(3) as usize]);
                        ended.http_requests = Some(1);
                    }
                    _ => {
                        (ended.conn_state, ended.src_bytes, ended.dst_bytes) = (Some("REJ"), Some(0), Some(0));
                    }
                }
                builder.push(&new);
                builder.push(&ended);
            }
            builder.finish()
        })
        .collect()
}

fn feed(tenant: &mut Tenant, batches: &[FlowBatch], first: usize) -> (f64, u64) {
    let started = Instant::now();
    let mut findings = 0;
    for (n, batch) in batches.iter().enumerate() {
        let judged = tenant.judge(&Arrival {
            id: ((first + n) as u128 + 1).to_be_bytes(),
            shard: (n % 16) as u16,
            position: (first + n) as u64,
            published: START + 1_000_000 * SECOND,
            now: 0,
            batch,
        });
        findings += judged.findings.iter().sum::<u64>();
    }
    (
        (batches.len() * ROWS) as f64 / started.elapsed().as_secs_f64(),
        findings,
    )
}

fn run(what: &str, settings: Settings, batches: &[FlowBatch]) -> Result<(), Box<dyn std::error::Error>> {
    let mut tenant = Tenant::new("bench".parse()?, Arc::new(settings.without_budget()), 16);
    let (learnt, judged) = batches.split_at(BATCHES / 5);
    tenant.start_learning(0, false)?;
    feed(&mut tenant, learnt, 0);
    tenant.finish_learning(200)?;
    let job = tenant.training_job().ok_or("nothing to train")?;
    let trained = job.run()?;
    tenant.install(trained, 1);
    let (rate, findings) = feed(&mut tenant, judged, BATCHES);
    let entities: usize = tenant.shards.iter().flatten().map(|s| s.entities()).sum::<usize>() + tenant.wide.entities();
    println!(
        "{what:<28} {:>8.0} records/s a core   {findings:>6} findings   {entities:>8} entities",
        rate
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let batches = batches();
    let all = anomaly::config::default_settings();
    let mut behaviours = all.clone();
    behaviours.enabled[Detector::ModelAutoencoder.index()] = false;
    let mut old = all.clone();
    for detector in Detector::ALL.iter().skip(6) {
        old.enabled[detector.index()] = false;
    }
    let mut none = all.clone();
    none.enabled = [false; Detector::ALL.len()];
    run("all detectors", all, &batches)?;
    run("all but the model", behaviours, &batches)?;
    run("the first six", old, &batches)?;
    run("none", none, &batches)
}
