//! Flow exports over a real UDP socket, through the whole service; and every datagram of the public collection.

use std::{net::UdpSocket, time::Duration};

use flow_ingest::{
    domain::Sink,
    export::{Collector, CollectorLimits, Outcome, read_folder},
};
use garrison_flow::{FlowBatch, FlowBatchBuilder, FlowRow, FlowState};
use garrison_testkit::{Stack, corpora, free_port};

use crate::{
    captures::{conversations, pcap},
    world::{World, stored, write},
};

fn halves(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

// An IPFIX message: addresses, ports, protocol, octets, packets; with or without its template.
fn message(sequence: u32, template: bool, flows: u16) -> Vec<u8> {
    let fields = [8, 4, 12, 4, 7, 2, 11, 2, 4, 1, 1, 4, 2, 4];
    let mut sets = Vec::new();
    if template {
        sets.extend(halves(&[2, 4 + 4 + 28, 256, 7]));
        sets.extend(halves(&fields));
    }
    sets.extend(halves(&[256, 4 + flows * 21]));
    for flow in 0..flows {
        sets.extend([10, 0, 0, 1, 10, 9, 0, 2]);
        sets.extend(halves(&[20_000 + flow, 443]));
        sets.push(6);
        sets.extend(words(&[1000, 10]));
    }
    let mut data = halves(&[10, sets.len() as u16 + 16]);
    data.extend(words(&[1_700_000_000, sequence, 1]));
    data.extend(sets);
    data
}

fn send(port: u16, datagrams: &[Vec<u8>]) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for datagram in datagrams {
        socket.send_to(datagram, ("127.0.0.1", port)).unwrap();
    }
}

fn free_udp_port() -> u16 {
    // Nobody else of this test takes UDP ports.
    free_port().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_reach_the_broker_and_templates_outlive_a_kill() {
    let stack = Stack::shared().await;
    let port = free_udp_port();
    let sections = format!(
        "[[sensors]]\nid = 'exports'\ntenant = 'routers'\nlisten = '127.0.0.1:{port}'\n[state]\npath = '{{dir}}/state'\n"
    );
    let mut world = World::start(stack, tempfile::tempdir().unwrap(), &sections);
    world
        .sensor_when("routers", "listening", |sensor| sensor.problem.is_empty())
        .await;
    // The socket is opened by the sensor's thread, so the first ones may come too early.
    let mut sequence = 0;
    loop {
        send(port, &[message(sequence, true, 5)]);
        sequence += 5;
        tokio::time::sleep(Duration::from_millis(50)).await;
        if world.sensors("routers").await[0].ledger.unwrap().received > 0 {
            break;
        }
    }
    send(port, &[message(sequence + 100, false, 5), b"no export".to_vec()]);
    let sensor = world
        .sensor_when("routers", "read", |sensor| {
            let ledger = sensor.ledger.unwrap();
            ledger.received >= 3 && ledger.records_published >= 10
        })
        .await;
    let ledger = sensor.ledger.unwrap();
    assert_eq!(ledger.malformed, 1);
    assert_eq!(ledger.received, ledger.parsed + ledger.malformed + ledger.shed);
    assert_eq!(ledger.flows_ended, ledger.records_published);
    assert!(sensor.live);
    assert_eq!(sensor.source, format!("udp 127.0.0.1:{port}"));
    let kept = world.dir.path().join("state/routers/exports.templates.json");
    let deadline = std::time::Instant::now() + Duration::from_secs(180);
    while !kept.exists() {
        assert!(std::time::Instant::now() < deadline, "{}", world.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.kill_and_restart();
    // Without a template of their own.
    let sensor = loop {
        send(port, &[message(0, false, 5)]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let sensor = world.sensors("routers").await.remove(0);
        if sensor.ledger.unwrap().records_published > 0 {
            break sensor;
        }
    };
    assert_eq!(sensor.ledger.unwrap().shed, 0);
    world.end();
    assert!(world.log().contains("GAR-FLOW-0052"), "{}", world.log());
    let batches = stored(stack, "routers").await;
    let rows: Vec<_> = batches.iter().flat_map(|(batch, _)| FlowBatch::rows(batch)).collect();
    assert!(rows.iter().all(|row| row.origin == "ipfix" && row.dst_port == 443));
    assert!(
        rows.iter()
            .all(|row| row.src_ip_bytes == Some(1000) && row.dst_packets.is_none())
    );
    assert!(
        rows.iter()
            .all(|row| row.exporter == Some("127.0.0.1".parse().unwrap()))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_and_strange_exporters_are_told() {
    let stack = Stack::shared().await;
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (busy, port) = (taken.local_addr().unwrap().port(), free_udp_port());
    let sensor = |id: &str, tenant: &str, port: u16, more: &str| {
        format!("[[sensors]]\nid = '{id}'\ntenant = '{tenant}'\nlisten = '127.0.0.1:{port}'\n{more}\n")
    };
    let sections = sensor("one", "busy", busy, "") + &sensor("two", "strange", port, "exporters = ['192.0.2.0/24']");
    let mut world = World::start(stack, tempfile::tempdir().unwrap(), &sections);
    world
        .sensor_when("busy", "refused", |sensor| sensor.problem.contains("GAR-FLOW-0051"))
        .await;
    assert!(world.readiness().contains("503"), "{}", world.readiness());
    drop(taken);
    world
        .sensor_when("busy", "listening", |sensor| sensor.problem.is_empty())
        .await;
    loop {
        send(port, &[message(0, true, 5)]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let ledger = world.sensors("strange").await[0].ledger.unwrap();
        assert_eq!((ledger.parsed, ledger.records_published), (0, 0));
        if ledger.shed > 0 {
            break;
        }
    }
    world.end();
}

struct Keep(FlowBatchBuilder);

impl Sink for Keep {
    fn record(&mut self, row: &FlowRow<'_>) {
        self.0.push(row);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_on_as_ipfix_is_read_back_equal() {
    let stack = Stack::shared().await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let to = socket.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.pcap", &pcap(&conversations(33, 200, 50_000)));
    let sections = format!(
        "[[sensors]]\nid = 'edge'\ntenant = 'sent'\nfile = '{{dir}}/a.pcap'\n\
         [[export]]\nto = '{to}'\nmax_bytes = 1000\nsensors = ['edge']\n"
    );
    let mut world = World::start(stack, dir, &sections);
    let mut collector = Collector::new("back", CollectorLimits::default(), 1);
    let mut keep = Keep(FlowBatchBuilder::new(256));
    let mut buffer = [0; 65_535];
    while keep.0.len() < 200 {
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert!(length <= 1000);
        let outcome = collector.datagram(from.ip(), 0, &buffer[..length], &mut keep);
        assert_eq!(outcome, Outcome::Parsed);
    }
    assert_eq!(collector.tally().missing, 0);
    world.finished("sent").await;
    world.end();
    let text = |row: &FlowRow<'_>| {
        format!(
            "{} {} {} {} {} {} {} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
            row.src_ip,
            row.src_port,
            row.dst_ip,
            row.dst_port,
            row.protocol,
            row.first_seen,
            row.last_seen,
            row.src_packets,
            row.dst_packets,
            row.src_bytes,
            row.dst_bytes,
            row.src_ip_bytes,
            row.dst_ip_bytes,
            row.src_tcp_flags,
            row.dst_tcp_flags,
            row.src_mac,
            row.http_host,
        )
    };
    let back = keep.0.finish();
    let mut back: Vec<String> = back.rows().map(|row| text(&row)).collect();
    let batches = stored(stack, "sent").await;
    let mut sent: Vec<String> = batches
        .iter()
        .flat_map(|(batch, _)| FlowBatch::rows(batch))
        .filter(|row| row.state == FlowState::Ended as u8)
        .map(|row| text(&row))
        .collect();
    back.sort();
    sent.sort();
    assert_eq!(back, sent);
}

struct Origins(std::collections::BTreeMap<String, u64>);

impl Sink for Origins {
    fn record(&mut self, row: &FlowRow<'_>) {
        *self.0.entry(row.origin.to_owned()).or_default() += 1;
        assert_ne!(row.community_id, "");
        assert!(row.first_seen <= row.last_seen);
        if let Some(extra) = row.extra {
            assert!(serde_json::from_str::<serde_json::Value>(extra).unwrap().is_object());
        }
    }
}

#[test]
fn every_datagram_of_the_collection_is_read_or_refused() {
    let Some(corpora) = corpora("exports::every_datagram_of_the_collection_is_read_or_refused") else {
        return;
    };
    let mut origins = Origins(Default::default());
    let report = read_folder(&corpora.join("netflow"), &mut origins).unwrap();
    println!("{report:#?}\n{:?}", origins.0);
    assert!(report.datagrams >= 91);
    assert!(
        report.malformed.iter().all(|(name, _)| name.contains("invalid")),
        "{:?}",
        report.malformed
    );
    assert_eq!(report.malformed.len(), 3, "{:?}", report.malformed);
    // The collection has no templates 280 of the one and 259 and 262 of the other; their other sets are read.
    let lacking = [
        "ipfix_test_netscaler_data.dat",
        "netflow9_test_iptnetflow_reduced_size_encoding_tpldata260.dat",
    ];
    assert_eq!(report.without_template, lacking);
}
