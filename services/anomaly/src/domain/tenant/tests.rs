//! The whole core on made traffic: behaviours, the model beside a naive baseline, repeats, disorder, replays.

use garrison_flow::{FlowBatchBuilder, FlowRow, FlowState};
use garrison_proto::alert::v1::ModelPhase;

use super::*;
use crate::domain::{rng::SplitMix64, shard::tests::settings, window::SECOND};

mod candidates;

const START: Nanos = 1_750_000_000 * SECOND;

/// One flow, from which its records are made.
#[derive(Clone, Debug)]
struct Made {
    id: u64,
    at: Nanos,
    src: [u8; 4],
    dst: [u8; 4],
    port: u16,
    bytes: (u64, u64),
    lasts: Nanos,
    conn_state: &'static str,
    auth_failures: u32,
}

impl Made {
    fn new(id: u64, at: Nanos, src: [u8; 4], dst: [u8; 4], port: u16) -> Self {
        Self {
            id,
            at,
            src,
            dst,
            port,
            bytes: (500, 5_000),
            lasts: SECOND / 5,
            conn_state: "SF",
            auth_failures: 0,
        }
    }

    fn refused(self) -> Self {
        Self {
            bytes: (0, 0),
            lasts: 1_000,
            conn_state: "REJ",
            ..self
        }
    }

    fn records(&self) -> [FlowRow<'static>; 2] {
        let mut flow_id = [0; 16];
        flow_id[..8].copy_from_slice(&self.id.to_be_bytes());
        let new = FlowRow {
            flow_id,
            state: FlowState::New as u8,
            sensor: "s",
            first_seen: self.at,
            last_seen: self.at,
            protocol: 6,
            src_ip: self.src.into(),
            dst_ip: self.dst.into(),
            src_port: 40_000 + (self.id % 20_000) as u16,
            dst_port: self.port,
            community_id: "1:abc",
            src_packets: Some(1),
            dst_packets: Some(0),
            src_bytes: Some(0),
            dst_bytes: Some(0),
            conn_state: Some("S0"),
            ..FlowRow::default()
        };
        let refused = self.conn_state == "REJ";
        let ended = FlowRow {
            record_seq: 1,
            state: FlowState::Ended as u8,
            last_seen: self.at + self.lasts,
            src_packets: Some(if refused { 1 } else { 4 + self.bytes.0 / 1_400 }),
            dst_packets: Some(if refused { 1 } else { 4 + self.bytes.1 / 1_400 }),
            src_bytes: Some(self.bytes.0),
            dst_bytes: Some(self.bytes.1),
            conn_state: Some(self.conn_state),
            service: (!refused).then_some("http"),
            http_requests: (!refused).then_some(self.auth_failures.max(1)),
            http_auth_failures: (!refused).then_some(self.auth_failures),
            http_status: (!refused).then_some(if self.auth_failures > 0 { 401 } else { 200 }),
            ..new.clone()
        };
        [new, ended]
    }
}

struct Feed {
    tenant: Tenant,
    messages: u64,
}

impl Feed {
    fn new(name: &str) -> Self {
        Self::with(name, settings())
    }

    fn with(name: &str, settings: Settings) -> Self {
        Self {
            tenant: Tenant::new(name.parse().unwrap(), Arc::new(settings), 16),
            messages: 0,
        }
    }

    fn rows(&mut self, rows: &[FlowRow<'_>]) -> Judged {
        self.messages += 1;
        let n = self.messages;
        self.message(n, rows)
    }

    fn message(&mut self, n: u64, rows: &[FlowRow<'_>]) -> Judged {
        let mut builder = FlowBatchBuilder::new(rows.len());
        rows.iter().for_each(|r| builder.push(r));
        let batch = builder.finish();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_be_bytes());
        self.tenant.judge(&Arrival {
            id,
            shard: 3,
            position: n,
            published: START + 1_000_000 * SECOND,
            now: 42,
            batch: &batch,
        })
    }

    fn flows(&mut self, flows: &[Made]) -> Judged {
        let rows: Vec<FlowRow<'static>> = flows.iter().flat_map(Made::records).collect();
        self.rows(&rows)
    }

    fn learn(&mut self, flows: &[Made]) {
        self.tenant.start_learning(1, false).unwrap();
        for part in flows.chunks(50) {
            let judged = self.flows(part);
            assert!(judged.alerts.is_empty(), "{:?}", judged.alerts);
        }
        self.tenant.finish_learning(200).unwrap();
        let trained = self.tenant.training_job().unwrap().run().unwrap();
        self.tenant.install(trained, 2);
    }
}

const SERVER: [u8; 4] = [10, 0, 0, 1];
const DATABASE: [u8; 4] = [10, 0, 0, 2];

// Office traffic: twenty clients browse one server, sizes log-normal.
fn benign(n: u64, first_id: u64, from: Nanos, seed: u64) -> Vec<Made> {
    let mut rng = SplitMix64::new(seed);
    (0..n)
        .map(|i| {
            let client = [10, 0, 1, rng.below(20) as u8 + 1];
            let mut flow = Made::new(first_id + i, from + i as Nanos * SECOND / 10, client, SERVER, 80);
            flow.bytes = (
                (400.0 * (0.3 * rng.normal()).exp()) as u64,
                (6_000.0 * (0.8 * rng.normal()).exp()) as u64,
            );
            flow.lasts = (0.2 * (0.5 * rng.normal()).exp() * SECOND as f64) as Nanos;
            flow
        })
        .collect()
}

fn detectors(alerts: &[Alert]) -> Vec<&str> {
    alerts.iter().map(|a| a.detector.as_str()).collect()
}

fn by_detector<'a>(alerts: &'a [Alert], detector: &str) -> Vec<&'a Alert> {
    alerts.iter().filter(|a| a.detector == detector).collect()
}

#[test]
fn a_vertical_scan_is_told_on_the_record_that_crosses() {
    let mut feed = Feed::new("acme");
    let attacker = [10, 0, 9, 9];
    let ms = 1_000_000;
    for port in 1..=14 {
        let probe = Made::new(port, START + port as i64 * ms, attacker, SERVER, port as u16).refused();
        assert!(feed.flows(&[probe]).alerts.is_empty());
    }
    let last = Made::new(15, START + 15 * ms, attacker, SERVER, 15).refused();
    let judged = feed.flows(std::slice::from_ref(&last));
    assert_eq!(detectors(&judged.alerts), ["scan.vertical"]);
    let alert = &judged.alerts[0];
    assert_eq!(alert.trigger_time, Some(timestamp(last.at + last.lasts)));
    assert_eq!(alert.entity.as_ref().unwrap().value, "10.0.9.9");
    assert_eq!(alert.targets[0].value, "10.0.0.1");
    assert_eq!((alert.score, alert.threshold, alert.count), (15.0, 15.0, 1));
    assert_eq!(alert.techniques[0].id, "T1046");
    assert_eq!(alert.flows.len(), 15);
    assert_eq!(alert.flows[14].dst_port, 15);
    assert_eq!(alert.first_seen, Some(timestamp(START + ms)));
    assert!(alert.confidence > 0.9);
    assert_eq!(alert.features[0].name, "failed_ports");
}

#[test]
fn a_scan_of_silent_ports_is_told_while_it_runs_and_answered_ports_are_no_scan() {
    let mut feed = Feed::new("acme");
    let ms = 1_000_000;
    let attacker = [10, 0, 9, 9];
    let mut alerts = Vec::new();
    for port in 1..=60_u16 {
        let probe = Made::new(port.into(), START + i64::from(port) * ms, attacker, SERVER, port);
        alerts.extend(feed.rows(&probe.records()[..1]).alerts);
    }
    assert!(!alerts.is_empty());
    assert!(alerts.iter().all(|a| a.detector == "scan.vertical"));

    let mut feed = Feed::new("acme");
    for port in 1..=60_u16 {
        let check = Made::new(port.into(), START + i64::from(port) * ms, attacker, SERVER, port);
        assert!(feed.flows(&[check]).alerts.is_empty(), "port {port}");
    }
}

#[test]
fn a_horizontal_scan_and_a_ping_sweep_are_told() {
    let mut feed = Feed::new("acme");
    let probes: Vec<Made> = (1..=15)
        .map(|n| Made::new(n, START + n as i64, [10, 0, 9, 9], [10, 0, 2, n as u8], 445).refused())
        .collect();
    let judged = feed.flows(&probes);
    assert_eq!(detectors(&judged.alerts), ["scan.horizontal"]);
    assert_eq!(judged.alerts[0].targets.len(), 15);
    assert_eq!(judged.alerts[0].techniques.len(), 2);

    let pings: Vec<FlowRow<'static>> = (1..=15)
        .map(|n| {
            let flow = Made::new(100 + n, START, [10, 0, 9, 8], [10, 0, 2, n as u8], 0).refused();
            FlowRow {
                protocol: 1,
                src_port: 8,
                conn_state: None,
                dst_packets: Some(0),
                ..flow.records()[1].clone()
            }
        })
        .collect();
    assert_eq!(detectors(&feed.rows(&pings).alerts), ["scan.horizontal"]);
}

#[test]
fn failed_logins_count_by_what_is_new_in_each_record() {
    let mut feed = Feed::new("acme");
    let login = Made::new(1, START, [10, 0, 9, 9], SERVER, 80);
    let mut alerts = Vec::new();
    // One connection that goes on: its counter is cumulative.
    for seq in 1..=10_u32 {
        let record = FlowRow {
            record_seq: seq,
            state: FlowState::Active as u8,
            last_seen: START + i64::from(seq) * SECOND,
            http_requests: Some(seq),
            http_auth_failures: Some(seq),
            ..login.records()[1].clone()
        };
        alerts.extend(feed.rows(std::slice::from_ref(&record)).alerts);
        // A repeat in another message adds nothing.
        alerts.extend(feed.rows(&[record]).alerts);
        assert_eq!(alerts.len(), usize::from(seq == 10), "after {seq}");
    }
    let alert = &alerts[0];
    assert_eq!(alert.detector, "bruteforce.http");
    assert_eq!(alert.targets[0].value, "10.0.0.1:80/tcp");
    assert_eq!(alert.techniques[0].id, "T1110.001");
    assert_eq!(alert.trigger_time, Some(timestamp(START + 10 * SECOND)));
    assert_eq!(alert.flows.len(), 1);
    assert_eq!(alert.score, 10.0);
}

#[test]
fn short_sessions_with_a_login_service_are_guesses_and_long_ones_are_work() {
    let session = |n: u64, lasts| Made {
        lasts,
        bytes: (1_200, 2_500),
        ..Made::new(n, START + n as i64 * SECOND, [10, 0, 9, 9], SERVER, 22)
    };
    let guesses: Vec<Made> = (1..=10).map(|n| session(n, SECOND)).collect();
    let judged = Feed::new("acme").flows(&guesses);
    assert_eq!(detectors(&judged.alerts), ["bruteforce.connection"]);
    let work: Vec<Made> = (1..=30).map(|n| session(n, 60 * SECOND)).collect();
    assert!(Feed::new("acme").flows(&work).alerts.is_empty());
}

#[test]
fn a_new_internal_contact_is_told_once_and_a_learnt_one_never() {
    let mut feed = Feed::new("acme");
    feed.learn(&benign(600, 1, START, 1));
    let later = START + 10_000 * SECOND;
    let known = Made::new(9_000, later, [10, 0, 1, 1], SERVER, 80);
    let judged = feed.flows(&[known]);
    assert!(by_detector(&judged.alerts, "contact.new_internal").is_empty());
    let new = Made::new(9_001, later, [10, 0, 1, 1], DATABASE, 5_432);
    let judged = feed.flows(std::slice::from_ref(&new));
    let alerts = by_detector(&judged.alerts, "contact.new_internal");
    assert_eq!(alerts.len(), 1);
    assert_eq!(alerts[0].targets[0].value, "10.0.0.2:5432/tcp");
    assert_eq!(alerts[0].techniques[0].id, "T1021");
    let again = Made {
        id: 9_002,
        ..new.clone()
    };
    let outside = Made {
        id: 9_003,
        dst: [8, 8, 8, 8],
        ..new.clone()
    };
    let unanswered = Made {
        id: 9_004,
        port: 5_433,
        ..new
    }
    .refused();
    let judged = feed.flows(&[again, outside, unanswered]);
    assert!(by_detector(&judged.alerts, "contact.new_internal").is_empty());
}

#[test]
fn the_model_finds_what_a_boxplot_on_rate_does_not_and_leaves_normal_traffic_alone() {
    let mut feed = Feed::new("acme");
    let learnt = benign(4_000, 1, START, 1);
    feed.learn(&learnt);

    let fresh = benign(4_000, 100_000, START + 1_000 * SECOND, 2);
    let mut false_alarms = 0;
    for part in fresh.chunks(100) {
        false_alarms += feed.flows(part).findings[Detector::ModelAutoencoder.index()];
    }
    let rate = feed.tenant.model().realised_rate;
    assert!(
        false_alarms <= 16,
        "{false_alarms} of 4,000 normal flows ({rate}), promised 4"
    );

    // Ten flows that send far more than they receive, at the usual rate; and ten that never end.
    let at = START + 2_000 * SECOND;
    let exfiltration: Vec<Made> = (0..10)
        .map(|n| Made {
            bytes: (40_000_000, 2_000),
            lasts: 20 * SECOND,
            ..Made::new(200_000 + n, at + n as i64 * 30 * SECOND, [10, 0, 1, 3], SERVER, 80)
        })
        .collect();
    let mut found = 0;
    let mut alerts = Vec::new();
    for flow in &exfiltration {
        let judged = feed.flows(std::slice::from_ref(flow));
        found += judged.findings[Detector::ModelAutoencoder.index()];
        alerts.extend(judged.alerts);
    }
    assert_eq!(found, 10);
    let alert = by_detector(&alerts, "model.autoencoder")[0];
    let sizes = |name: &str| name.contains("byte") || name.contains("payload");
    assert!(alert.features.iter().any(|f| sizes(&f.name)), "{:#?}", alert);
    // Where one value alone could have made it normal, it lies between what is and what is usual.
    for (value, usual, normal) in alert
        .features
        .iter()
        .filter_map(|f| Some((f.value, f.usual, f.normal?)))
    {
        assert!((normal - value) * (normal - usual) <= 1e-6, "{value} {usual} {normal}");
    }
    assert!(
        alert
            .features
            .iter()
            .all(|f| f.value.is_finite() && f.usual.is_finite())
    );
    assert!(alert.score > alert.threshold);

    // The baseline sees only how many flows a source opens a minute: upper quartile + 1.5 ranges.
    let rates = |flows: &[Made]| -> Vec<f64> {
        let mut count = std::collections::BTreeMap::<_, f64>::new();
        for f in flows {
            *count.entry((f.src, f.at / (60 * SECOND))).or_default() += 1.0;
        }
        count.into_values().collect()
    };
    let mut usual = rates(&learnt);
    usual.sort_by(f64::total_cmp);
    let quartile = |q: f64| usual[(q * (usual.len() - 1) as f64) as usize];
    let fence = quartile(0.75) + 1.5 * (quartile(0.75) - quartile(0.25));
    assert!(
        rates(&exfiltration).iter().all(|r| *r <= fence),
        "the baseline is not blind here"
    );
}

#[test]
fn repeats_and_disorder_of_messages_neither_add_nor_lose_an_alert() {
    let probes: Vec<Made> = (1..=15)
        .map(|n| Made::new(n, START + n as i64 * 1_000_000, [10, 0, 9, 9], SERVER, n as u16).refused())
        .collect();
    let mut feed = Feed::new("acme");
    let mut alerts = Vec::new();
    // Last message first, and each twice under its own id.
    for (n, probe) in probes.iter().enumerate().rev() {
        for _ in 0..2 {
            alerts.extend(feed.message(n as u64 + 1, &probe.records()).alerts);
        }
    }
    assert_eq!(detectors(&alerts), ["scan.vertical"]);
}

#[test]
fn two_tenants_with_the_same_addresses_do_not_add_up() {
    let (mut a, mut b) = (Feed::new("acme"), Feed::new("other"));
    for n in 1..=15_u64 {
        let probe = Made::new(n, START, [10, 0, 9, 9], SERVER, n as u16).refused();
        let feed = if n % 2 == 0 { &mut a } else { &mut b };
        assert!(feed.flows(&[probe]).alerts.is_empty());
    }
}

#[test]
fn phases_follow_each_other_and_nothing_else() {
    let mut feed = Feed::new("acme");
    assert_eq!(feed.tenant.finish_learning(1), Err(PhaseError::NotLearning));
    feed.tenant.start_learning(1, true).unwrap();
    assert_eq!(feed.tenant.model().phase(), ModelPhase::Learning);
    let short = feed.tenant.finish_learning(10).unwrap_err();
    assert_eq!(short, PhaseError::TooLittle { learnt: 0, needed: 10 });
    feed.flows(&benign(300, 1, START, 1));
    assert_eq!(feed.tenant.model().learnt_flows, 300);
    feed.tenant.finish_learning(10).unwrap();
    assert_eq!(feed.tenant.start_learning(1, false), Err(PhaseError::Training));
    assert_eq!(feed.tenant.finish_learning(1), Err(PhaseError::Training));
    let trained = feed.tenant.training_job().unwrap().run().unwrap();
    feed.tenant.install(trained, 5);
    let model = feed.tenant.model();
    assert_eq!((model.phase(), model.version), (ModelPhase::Scoring, 1));
    assert!(model.threshold > 0.0 && model.weights_sha256.len() == 64);
    assert!(feed.tenant.training_job().is_none());
    feed.tenant.start_learning(6, false).unwrap();
    feed.tenant.abandon_training();
    assert_eq!(feed.tenant.model().phase(), ModelPhase::Learning);
}

#[test]
fn memory_is_bounded_under_a_flood_of_spoofed_sources() {
    let mut feed = Feed::new("acme");
    for part in 0..40_u64 {
        let flood: Vec<Made> = (0..1_000)
            .map(|n| {
                let id = part * 1_000 + n;
                let src = [11, (id >> 16) as u8, (id >> 8) as u8, id as u8];
                Made::new(id, START + id as i64, src, SERVER, id as u16).refused()
            })
            .collect();
        feed.flows(&flood);
    }
    let bounds = settings().bounds;
    let shard = feed.tenant.shards[3].as_ref().unwrap();
    assert_eq!(shard.flows.len(), bounds.flows);
    assert_eq!(shard.sources.len(), bounds.sources);
    assert_eq!(shard.vertical.len(), bounds.windows);
    assert_eq!(shard.horizontal.len(), bounds.windows);
    assert!(shard.evicted() > 100_000);
}

/// What the behaviours raise with the default configuration, each at first and at its gravest. The responder's tests
/// read the same file, so that its default playbooks and these severities agree.
#[test]
fn alerts_are_those_that_the_default_playbooks_are_tested_with() {
    const FIXTURE: &str = include_str!("../../../../../proto/fixtures/behaviours.json");
    let feed = || Feed::with("acme", crate::config::tests::config("").unwrap().settings());
    let attacker = [203, 0, 113, 9];
    let ms = 1_000_000;
    let probe = |n: u64, dst: [u8; 4], port: u16| Made::new(n, START + n as i64 * ms, attacker, dst, port).refused();
    let ports: Vec<Made> = (1..=75).map(|n| probe(n, SERVER, n as u16)).collect();
    let hosts: Vec<Made> = (1..=75).map(|n| probe(n, [10, 0, 2, n as u8], 445)).collect();
    let login = Made {
        auth_failures: 10,
        ..Made::new(1, START, attacker, SERVER, 80)
    };
    let sessions: Vec<Made> = (1..=10)
        .map(|n| Made {
            lasts: SECOND,
            bytes: (1_200, 2_500),
            ..Made::new(n, START + n as i64 * SECOND, attacker, SERVER, 22)
        })
        .collect();
    let mut learnt = feed();
    learnt.learn(&benign(600, 1, START, 1));
    let contact = Made::new(9_001, START + 10_000 * SECOND, [10, 0, 1, 1], DATABASE, 5_432);
    let mut inside = feed();
    inside.learn(&benign(600, 1, START, 1));
    let logins: Vec<Made> = (1..=3)
        .map(|n| {
            Made::new(
                9_100 + n,
                START + 10_000 * SECOND,
                [10, 0, 1, 1],
                [10, 0, 3, n as u8],
                3_389,
            )
        })
        .collect();
    let beacon: Vec<Made> = (1..=12)
        .map(|n| Made::new(n, START + n as i64 * 60 * SECOND, [10, 0, 1, 1], [203, 0, 113, 7], 443))
        .collect();
    let slow: Vec<Made> = (1..=60)
        .map(|n| {
            Made::new(
                n,
                START + n as i64 * 600 * SECOND,
                [10, 0, 9, 9],
                [10, 0, 2, n as u8],
                445,
            )
            .refused()
        })
        .collect();
    let mut found = Vec::new();
    for (case, alerts) in [
        ("ports", feed().flows(&ports).alerts),
        ("hosts", feed().flows(&hosts).alerts),
        ("logins", feed().flows(&[login]).alerts),
        ("sessions", feed().flows(&sessions).alerts),
        ("contact", learnt.flows(&[contact]).alerts),
        ("beacon", feed().flows(&beacon).alerts),
        ("lateral", inside.flows(&logins).alerts),
        ("slow scan", feed().flows(&slow).alerts),
    ] {
        let alerts: Vec<&Alert> = alerts.iter().filter(|a| a.detector != "model.autoencoder").collect();
        let gravest = alerts
            .iter()
            .max_by_key(|a| (a.severity, std::cmp::Reverse(a.count)))
            .unwrap();
        for (when, alert) in [("at first", alerts[0]), ("at its gravest", *gravest)] {
            let entity = alert.entity.as_ref().unwrap();
            let target = &alert.targets[0];
            found.push(serde_json::json!({
                "case": format!("{case}, {when}"),
                "detector": alert.detector,
                "severity": alert.severity().as_str_name(),
                // Rounded: how sure it is, is no matter of the last digit.
                "confidence": (alert.confidence * 100.0).round() / 100.0,
                "count": alert.count,
                "source": entity.value,
                "target": { "kind": target.kind().as_str_name(), "value": target.value },
            }));
        }
    }
    let found = serde_json::to_string_pretty(&found).unwrap() + "\n";
    assert_eq!(
        found, FIXTURE,
        "alerts look different: look whether the responder's default playbooks still fit, then make \
         proto/fixtures/behaviours.json\n{found}"
    );
}
