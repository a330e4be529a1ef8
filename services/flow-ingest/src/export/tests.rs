//! Hand-made datagrams of each format, and arbitrary ones.

use std::net::IpAddr;

use garrison_flow::{FlowBatch, FlowBatchBuilder, FlowRow};
use proptest::prelude::*;

use super::*;

/// Keeps records.
struct Keep(FlowBatchBuilder);

impl Sink for Keep {
    fn record(&mut self, row: &FlowRow<'_>) {
        self.0.push(row);
    }
}

struct World {
    collector: Collector,
    keep: Keep,
}

const ROUTER: [u8; 4] = [192, 0, 2, 1];
const NOW: i64 = 1_700_000_000_000_000_000;

impl World {
    fn new() -> Self {
        Self::with(CollectorLimits::default())
    }

    fn with(limits: CollectorLimits) -> Self {
        Self {
            collector: Collector::new("edge", limits, 7),
            keep: Keep(FlowBatchBuilder::new(4)),
        }
    }

    fn from(&mut self, exporter: [u8; 4], datagram: &[u8]) -> Outcome {
        let outcome = self
            .collector
            .datagram(IpAddr::from(exporter), NOW, datagram, &mut self.keep);
        assert!(self.collector.counts().ledger().balances());
        outcome
    }

    fn take(&mut self, datagram: &[u8]) -> Outcome {
        self.from(ROUTER, datagram)
    }

    fn rows(&mut self) -> FlowBatch {
        self.keep.0.finish()
    }
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn halves(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn set(id: u16, body: &[u8]) -> Vec<u8> {
    [&halves(&[id, body.len() as u16 + 4])[..], body].concat()
}

fn netflow5(sequence: u32, sampling: u16, records: &[Vec<u8>]) -> Vec<u8> {
    let mut data = halves(&[5, records.len() as u16]);
    data.extend(words(&[10_000, 1_700_000_000, 500, sequence]));
    data.extend(halves(&[0x0102, sampling]));
    data.extend(records.concat());
    data
}

fn record5(src: [u8; 4], dst: [u8; 4], ports: [u16; 2], packets: u32, octets: u32) -> Vec<u8> {
    let mut data = [src, dst, [10, 0, 0, 254]].concat();
    data.extend(halves(&[3, 0]));
    data.extend(words(&[packets, octets, 4_000, 9_000]));
    data.extend(halves(&ports));
    data.extend([0, 0x1b, 6, 0]);
    data.extend(halves(&[64_512, 0]));
    data.extend([24, 0, 0, 0]);
    data
}

fn netflow9(domain: u32, sequence: u32, sets: &[Vec<u8>]) -> Vec<u8> {
    let mut data = halves(&[9, sets.len() as u16]);
    data.extend(words(&[10_000, 1_700_000_000, sequence, domain]));
    data.extend(sets.concat());
    data
}

fn ipfix(domain: u32, sequence: u32, sets: &[Vec<u8>]) -> Vec<u8> {
    let body = sets.concat();
    let mut data = halves(&[10, body.len() as u16 + 16]);
    data.extend(words(&[1_700_000_000, sequence, domain]));
    data.extend(body);
    data
}

fn template(id: u16, fields: &[(u16, u16)]) -> Vec<u8> {
    let mut body = halves(&[id, fields.len() as u16]);
    fields
        .iter()
        .for_each(|&(id, length)| body.extend(halves(&[id, length])));
    body
}

const SIMPLE: [(u16, u16); 7] = [(8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (1, 4), (2, 4)];

fn simple(packets: u32) -> Vec<u8> {
    let mut data = [[10, 0, 0, 1], [10, 0, 0, 2]].concat();
    data.extend(halves(&[40_000, 443]));
    data.push(6);
    data.extend(words(&[packets * 100, packets]));
    data
}

#[test]
fn netflow_5_with_sampling_and_a_gap() {
    let mut world = World::new();
    let there = record5([10, 0, 0, 1], [10, 0, 0, 2], [40_000, 80], 3, 400);
    let back = record5([10, 0, 0, 2], [10, 0, 0, 1], [80, 40_000], 2, 2_000);
    assert_eq!(
        world.take(&netflow5(100, 0x4000 | 10, &[there.clone(), back])),
        Outcome::Parsed
    );
    assert_eq!(world.take(&netflow5(107, 0, &[there])), Outcome::Parsed);
    assert_eq!(world.collector.tally().missing, 5);
    let batch = world.rows();
    let row = batch.row(0);
    assert_eq!((row.origin, row.sensor, row.sampling), ("netflow5", "edge", 10));
    assert_eq!(
        (row.src_packets, row.src_ip_bytes, row.src_bytes),
        (Some(30), Some(4_000), None)
    );
    assert_eq!((row.dst_packets, row.dst_ip_bytes), (None, None));
    assert_eq!(
        (row.src_tcp_flags, row.dst_tcp_flags, row.conn_state),
        (Some(0x1b), None, None)
    );
    let exported = 1_700_000_000_000_000_500;
    assert_eq!(row.first_seen, exported - 6_000_000_000);
    assert_eq!(row.last_seen, exported - 1_000_000_000);
    assert_eq!(row.exporter, Some(IpAddr::from(ROUTER)));
    let extra: serde_json::Value = serde_json::from_str(row.extra.unwrap()).unwrap();
    assert_eq!(extra["ingressInterface"], 3);
    assert_eq!(extra["bgpSourceAsNumber"], 64_512);
    assert_eq!(extra["egressInterface"], serde_json::Value::Null);
    // The server's direction is told as the called side of the same flow.
    let answer = batch.row(1);
    assert_eq!((answer.src_ip, answer.dst_port), (row.src_ip, 80));
    assert_eq!((answer.src_packets, answer.dst_packets), (None, Some(20)));
    assert_eq!(answer.community_id, row.community_id);
    assert_ne!(answer.flow_id, row.flow_id);
    assert_eq!(batch.row(2).sampling, 1);
}

#[test]
fn who_sent_what_is_in_a_file_is_unknown() {
    let mut world = World::new();
    let datagram = netflow5(0, 0, &[record5([1; 4], [2; 4], [1, 2], 1, 1)]);
    world.from([0; 4], &datagram);
    assert_eq!(world.rows().row(0).exporter, None);
}

#[test]
fn netflow_5_that_contradicts_itself_is_refused() {
    let mut world = World::new();
    let good = netflow5(0, 0, &[record5([1; 4], [2; 4], [1, 2], 1, 1)]);
    for bad in [
        &good[..10],
        &good[..71],
        &[&good[..], &[0]].concat(),
        &netflow5(0, 0, &[]),
    ] {
        assert!(matches!(world.take(bad), Outcome::Malformed(_)));
    }
    assert_eq!(world.rows().len(), 0);
}

#[test]
fn templates_belong_to_one_domain_of_one_exporter() {
    let mut world = World::new();
    let data = |domain, sequence| netflow9(domain, sequence, &[set(256, &simple(1))]);
    assert_eq!(world.take(&data(1, 0)), Outcome::NoTemplate);
    assert_eq!(
        world.take(&netflow9(1, 1, &[set(0, &template(256, &SIMPLE))])),
        Outcome::Parsed
    );
    assert_eq!(world.take(&data(1, 2)), Outcome::Parsed);
    assert_eq!(world.take(&data(2, 0)), Outcome::NoTemplate);
    assert_eq!(world.from([192, 0, 2, 2], &data(1, 3)), Outcome::NoTemplate);
    // Ten datagrams are missing.
    assert_eq!(world.take(&data(1, 13)), Outcome::Parsed);
    let tally = world.collector.tally();
    assert_eq!((tally.records, tally.sets_without_template, tally.missing), (2, 3, 10));
    let counts = world.collector.counts();
    assert_eq!((counts.received, counts.parsed, counts.shed), (6, 3, 3));
    assert_eq!(world.rows().row(0).dst_port, 443);
}

#[test]
fn sampling_comes_from_options_by_sampler_or_for_the_whole_domain() {
    let mut world = World::new();
    // Scope: system; options: sampler id, random interval.
    let options = [halves(&[300, 4, 8, 1, 4, 48, 1, 50, 4])].concat();
    let sampler = |id: u8, rate: u32| [&[0, 0, 0, 0, id][..], &rate.to_be_bytes()].concat();
    let mut fields = SIMPLE.to_vec();
    fields.push((48, 1));
    let record = |sampler: u8| [simple(2), vec![sampler]].concat();
    world.take(&netflow9(
        0,
        0,
        &[
            set(1, &options),
            set(0, &template(256, &fields)),
            set(300, &[sampler(1, 100), sampler(2, 1000)].concat()),
            set(256, &[record(1), record(2), record(3)].concat()),
        ],
    ));
    let batch = world.rows();
    let seen: Vec<_> = batch.rows().map(|row| (row.sampling, row.src_packets)).collect();
    assert_eq!(seen, [(100, Some(200)), (1000, Some(2000)), (1, Some(2))]);
    // IPFIX: one in ten, as taken and passed-over packets, for the domain.
    let options = halves(&[300, 3, 1, 149, 4, 305, 4, 306, 4]);
    world.take(&ipfix(
        0,
        0,
        &[
            set(3, &options),
            set(2, &template(256, &SIMPLE)),
            set(300, &words(&[0, 1, 9])),
            set(256, &simple(5)),
        ],
    ));
    assert_eq!(world.rows().row(0).src_packets, Some(50));
    assert_eq!(world.collector.tally().options, 3);
}

#[test]
fn ipfix_biflows_enterprise_fields_and_reduced_sizes() {
    let mut world = World::new();
    let mut body = halves(&[400, 11]);
    for (id, length) in [(27, 16), (28, 16), (7, 2), (11, 2), (4, 1), (1, 3), (2, 2)] {
        body.extend(halves(&[id, length]));
    }
    for (id, length, enterprise) in [(1, 8, 29_305), (2, 1, 29_305), (7, 0xffff, 9999)] {
        body.extend(halves(&[id | 0x8000, length]));
        body.extend(words(&[enterprise]));
    }
    body.extend(halves(&[136, 1]));
    let mut record = [[0x20; 16], [0x30; 16]].concat();
    record.extend(halves(&[40_000, 443]));
    record.extend([6, 0, 1, 0, 0, 9]);
    record.extend(70_000u64.to_be_bytes());
    record.push(8);
    record.extend(b"\x05hello");
    record.push(3);
    let outcome = world.take(&ipfix(
        5,
        0,
        &[set(2, &body), set(400, &[record.clone(), record].concat())],
    ));
    assert_eq!(outcome, Outcome::Parsed);
    let batch = world.rows();
    assert_eq!(batch.len(), 2);
    let row = batch.row(1);
    assert_eq!((row.ip_version, row.protocol, row.end_reason), (6, 6, Some("fin")));
    assert_eq!((row.src_ip_bytes, row.src_packets), (Some(256), Some(9)));
    assert_eq!((row.dst_ip_bytes, row.dst_packets), (Some(70_000), Some(8)));
    // Five octets are a number; nobody told their kind.
    let extra: serde_json::Value = serde_json::from_str(row.extra.unwrap()).unwrap();
    assert_eq!(extra["9999.7"], 0x68_656c_6c6fu64);
    // The sequence counts records.
    world.take(&ipfix(5, 2, &[set(400, &[0; 2])]));
    assert_eq!(world.collector.tally().missing, 0);
    // A withdrawn template is gone.
    world.take(&ipfix(5, 2, &[set(2, &halves(&[400, 0]))]));
    assert_eq!(world.take(&ipfix(5, 2, &[set(400, &[1; 60])])), Outcome::NoTemplate);
}

#[test]
fn records_without_two_hosts_are_counted_and_make_no_flow() {
    let mut world = World::new();
    world.take(&netflow9(
        0,
        0,
        &[set(0, &template(256, &[(10, 4), (1, 4)])), set(256, &[1; 16])],
    ));
    let tally = world.collector.tally();
    assert_eq!((tally.records, tally.without_flow), (0, 2));
    assert_eq!(world.collector.counts().no_flow, 1);
}

fn sflow(samples: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut data = words(&[
        5,
        1,
        u32::from_be_bytes([198, 51, 100, 7]),
        0,
        1,
        60_000,
        samples.len() as u32,
    ]);
    for (kind, body) in samples {
        data.extend(words(&[*kind, body.len() as u32]));
        data.extend(body);
    }
    data
}

fn sampled_header(rate: u32) -> Vec<u8> {
    let packet = crate::domain::craft::tcp4("10.0.0.1:40000", "10.0.0.2:443", 0x18, 1, 1, &[7; 30]);
    let padding = packet.len().wrapping_neg() % 4;
    let mut header = words(&[1, 1_000, 4, packet.len() as u32]);
    header.extend(&packet);
    header.resize(header.len() + padding, 0);
    let mut body = words(&[1, 2, rate, 500, 0, 11, 0x8000_0002, 1]);
    body.extend(words(&[1, header.len() as u32]));
    body.extend(header);
    body
}

#[test]
fn sflow_samples_are_packets_and_counters_are_kept() {
    let mut world = World::new();
    let mut counters = words(&[9, 3, 1, 1, 88]);
    counters.extend(words(&[4, 6, 0, 1_000_000_000, 1, 3, 0, 5_000, 10, 1, 2, 3, 4, 0]));
    counters.extend(words(&[0, 6_000, 20, 0, 0, 5, 6, 0]));
    assert_eq!(
        world.take(&sflow(&[(1, sampled_header(512)), (2, counters)])),
        Outcome::Parsed
    );
    let batch = world.rows();
    let row = batch.row(0);
    assert_eq!((row.origin, row.sampling, row.src_packets), ("sflow", 512, Some(512)));
    assert_eq!(row.exporter, Some(IpAddr::from([198, 51, 100, 7])));
    assert_eq!(row.src_tcp_flags, Some(0x18));
    assert_eq!(row.extra, Some("{\"ingressInterface\":11}"));
    let (key, counters) = world.collector.interfaces().iter().next().unwrap();
    assert_eq!(key.1, 4);
    assert_eq!((counters.in_octets, counters.out_octets), (5_000, 6_000));
    assert_eq!(
        (counters.in_packets, counters.in_discards, counters.in_errors),
        (13, 3, 4)
    );
}

#[test]
fn every_bound_holds() {
    let mut world = World::with(CollectorLimits {
        streams: 3,
        templates: 2,
        interfaces: 1,
    });
    let data = netflow9(0, 0, &[set(0, &template(256, &SIMPLE)), set(256, &simple(1))]);
    for host in 1..=3 {
        world.from([192, 0, 2, host], &data);
    }
    assert_eq!(world.collector.tally().templates, 2);
    assert_eq!(world.collector.tally().templates_refused, 1);
    assert_eq!(world.from([192, 0, 2, 4], &data), Outcome::TooMany);
    assert_eq!(world.collector.streams(), 3);
    // After a long silence the others make room.
    let later = NOW + SILENT + 1;
    let exporter = IpAddr::from([192, 0, 2, 5]);
    assert_eq!(
        world.collector.datagram(exporter, later, &data, &mut world.keep),
        Outcome::Parsed
    );
    assert_eq!(world.collector.streams(), 1);
}

#[test]
fn templates_outlive_a_restart_and_a_damaged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("templates.json");
    let mut world = World::new();
    assert_eq!(world.collector.load(&path).unwrap(), 0);
    let options = halves(&[300, 3, 1, 149, 4, 305, 4, 306, 4]);
    world.take(&ipfix(
        7,
        0,
        &[
            set(2, &template(256, &SIMPLE)),
            set(3, &options),
            set(300, &words(&[0, 1, 1])),
        ],
    ));
    assert!(world.collector.has_news());
    world.collector.save(&path).unwrap();
    assert!(!world.collector.has_news());
    let mut again = World::new();
    assert_eq!(again.collector.load(&path).unwrap(), 2);
    assert_eq!(again.take(&ipfix(7, 0, &[set(256, &simple(3))])), Outcome::Parsed);
    assert_eq!(again.rows().row(0).src_packets, Some(6));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() / 2]).unwrap();
    let error = World::new().collector.load(&path).unwrap_err().to_string();
    assert!(error.starts_with("GAR-FLOW-0050"), "{error}");
}

#[test]
fn a_file_of_messages_is_split() {
    let one = ipfix(0, 0, &[set(2, &template(256, &SIMPLE))]);
    let file = [one.clone(), one.clone()].concat();
    assert_eq!(split_file(&file).unwrap(), [&one[..], &one[..]]);
    assert_eq!(split_file(b"#separator"), None);
    assert_eq!(split_file(b""), None);
}

// Datagrams of each kind, to be damaged.
fn specimens() -> Vec<Vec<u8>> {
    let mut body = halves(&[400, 4, 8, 4, 12, 4, 460, 0xffff]);
    body.extend(halves(&[0x8001, 4]));
    body.extend(words(&[29_305]));
    let mut record = [[10, 0, 0, 1], [10, 0, 0, 2]].concat();
    record.extend(b"\xff\x00\x04host");
    record.extend(words(&[99]));
    vec![
        netflow5(1, 0, &[record5([1; 4], [2; 4], [1, 2], 1, 1)]),
        netflow9(
            0,
            0,
            &[
                set(0, &template(256, &SIMPLE)),
                set(1, &halves(&[300, 4, 8, 1, 4, 48, 1, 50, 4])),
                set(300, &[0; 9]),
                set(256, &[simple(1), simple(2)].concat()),
            ],
        ),
        ipfix(0, 0, &[set(2, &body), set(400, &record)]),
        sflow(&[(1, sampled_header(3)), (2, words(&[1, 3, 0]))]),
    ]
}

#[test]
fn the_specimens_are_whole() {
    for specimen in specimens() {
        assert_eq!(World::new().take(&specimen), Outcome::Parsed);
    }
}

proptest! {
    #[test]
    fn damaged_datagrams_never_panic_and_the_ledger_holds(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut world = World::new();
        for mut specimen in specimens() {
            for (at, value) in &changes {
                let at = at.index(specimen.len());
                specimen[at] = *value;
            }
            world.take(&specimen);
            world.take(&specimen[..cut.index(specimen.len())]);
        }
        let batch = world.rows();
        prop_assert_eq!(batch.len() as u64, world.collector.counts().records);
        for row in batch.rows().filter(|row| row.extra.is_some()) {
            prop_assert!(serde_json::from_str::<serde_json::Value>(row.extra.unwrap()).is_ok());
        }
    }

    #[test]
    fn arbitrary_octets_never_panic(kind in 0..5usize, data in prop::collection::vec(any::<u8>(), 0..400)) {
        let head: &[u8] = [&[0, 5][..], &[0, 9], &[0, 10], &[0, 0, 0, 5], &[]][kind];
        let mut world = World::new();
        let mut datagram = [head, &data].concat();
        world.take(&datagram);
        if kind == 2 && datagram.len() >= 16 {
            let length = datagram.len() as u16;
            datagram[2..4].copy_from_slice(&length.to_be_bytes());
            world.take(&datagram);
        }
    }
}
