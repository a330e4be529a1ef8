//! The behaviours that watch over hours and across sources, on made traffic.

use std::sync::Arc;

use garrison_flow::{FlowBatchBuilder, FlowRow, FlowState};
use garrison_proto::alert::v1::{Alert, Severity};

use crate::domain::{
    settings::Settings,
    shard::tests::settings,
    tenant::{Arrival, Phase, Tenant},
    window::SECOND,
};

const START: i64 = 1_750_000_000 * SECOND;
const HOUR: i64 = 3_600 * SECOND;

struct Feed {
    tenant: Tenant,
    n: u64,
}

impl Feed {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: Settings) -> Self {
        Self {
            tenant: Tenant::new("acme".parse().unwrap(), Arc::new(settings), 16),
            n: 0,
        }
    }

    // A flow that has ended; `change` makes it what it is.
    fn row(
        &mut self,
        src: [u8; 4],
        dst: [u8; 4],
        at: i64,
        change: impl FnOnce(&mut FlowRow<'static>),
    ) -> FlowRow<'static> {
        self.n += 1;
        let mut row = FlowRow {
            flow_id: u128::from(self.n).to_be_bytes(),
            state: FlowState::Ended as u8,
            first_seen: START + at,
            last_seen: START + at + SECOND / 10,
            protocol: 6,
            src_ip: src.into(),
            dst_ip: dst.into(),
            src_port: 40_000,
            dst_port: 443,
            src_packets: Some(6),
            dst_packets: Some(6),
            src_bytes: Some(400),
            dst_bytes: Some(900),
            conn_state: Some("SF"),
            ..FlowRow::default()
        };
        change(&mut row);
        row
    }

    fn judge(&mut self, shard: u16, rows: &[FlowRow<'_>]) -> Vec<Alert> {
        self.n += 1;
        let mut builder = FlowBatchBuilder::new(rows.len());
        rows.iter().for_each(|r| builder.push(r));
        self.tenant
            .judge(&Arrival {
                id: (u128::from(self.n) << 64).to_be_bytes(),
                shard,
                position: self.n,
                published: START + 10_000 * HOUR,
                now: 7,
                batch: &builder.finish(),
            })
            .alerts
    }

    fn one(&mut self, src: [u8; 4], dst: [u8; 4], at: i64, change: impl FnOnce(&mut FlowRow<'static>)) -> Vec<Alert> {
        let row = self.row(src, dst, at, change);
        self.judge(1, &[row])
    }
}

fn of<'a>(alerts: &'a [Alert], detector: &str) -> Vec<&'a Alert> {
    alerts.iter().filter(|a| a.detector == detector).collect()
}

fn refused(row: &mut FlowRow<'static>) {
    (row.conn_state, row.src_bytes, row.dst_bytes) = (Some("REJ"), Some(0), Some(0));
}

#[test]
fn a_theft_is_told_against_own_history_and_a_backup_that_runs_every_night_is_not() {
    let mut feed = Feed::new();
    let (thief, backup, outside) = ([10, 0, 1, 1], [10, 0, 1, 2], [203, 0, 113, 5]);
    for hour in 0..30 {
        for (host, octets) in [(thief, 20_000_000), (backup, 3_000_000_000)] {
            let alerts = feed.one(host, outside, hour * HOUR, |r| r.src_bytes = Some(octets));
            assert!(of(&alerts, "exfiltration.volume").is_empty(), "{alerts:?}");
        }
    }
    let alerts = feed.one(thief, outside, 31 * HOUR, |r| r.src_bytes = Some(3_000_000_000));
    let alerts = of(&alerts, "exfiltration.volume");
    assert_eq!(alerts.len(), 1);
    let sent = &alerts[0].features[0];
    assert_eq!((sent.value, sent.unit.as_str()), (3e9, "octets"));
    assert!(sent.normal() < 1e9 && sent.usual < 1e8, "{sent:?}");
    assert_eq!(alerts[0].techniques[0].id, "T1048");
    // The same to an inside host is no exfiltration.
    let alerts = feed.one(thief, [10, 0, 0, 9], 32 * HOUR, |r| r.src_bytes = Some(9_000_000_000));
    assert!(of(&alerts, "exfiltration.volume").is_empty());
}

#[test]
fn neighbours_say_what_is_usual_for_a_host_without_history() {
    let mut feed = Feed::new();
    for hour in 0..6 {
        for host in 1..=30 {
            feed.one([10, 0, 1, host], [203, 0, 113, 5], hour * HOUR, |r| {
                r.src_bytes = Some(2_000_000)
            });
        }
    }
    let alerts = feed.one([10, 0, 1, 77], [203, 0, 113, 5], 7 * HOUR, |r| {
        r.src_bytes = Some(500_000_000)
    });
    assert_eq!(of(&alerts, "exfiltration.volume").len(), 1);
    // Elsewhere nothing is known yet.
    let alerts = feed.one([10, 9, 1, 77], [203, 0, 113, 5], 7 * HOUR, |r| {
        r.src_bytes = Some(500_000_000)
    });
    assert!(of(&alerts, "exfiltration.volume").is_empty());
}

#[test]
fn a_flood_is_added_up_over_shards_and_a_busy_service_is_none() {
    let mut feed = Feed::new();
    let mut alerts = Vec::new();
    for n in 0..600_u32 {
        let rows: Vec<_> = (0..10_u8)
            .map(|k| {
                let src = [198, 51, (n >> 4) as u8, (n as u8) << 4 | k];
                feed.row(src, [10, 0, 0, 1], i64::from(n) * SECOND / 100, |r| {
                    (r.conn_state, r.dst_packets, r.src_bytes, r.dst_bytes) = (Some("S0"), Some(0), Some(0), Some(0));
                })
            })
            .collect();
        alerts.extend(feed.judge((n % 16) as u16, &rows));
    }
    let floods = of(&alerts, "flood.victim");
    assert_eq!(floods.len(), 1, "{floods:?}");
    assert_eq!(floods[0].targets[0].value, "10.0.0.1:443/tcp");
    assert!(floods[0].features[1].value > 100.0, "{:?}", floods[0].features);
    assert!(floods[0].features[0].normal() <= floods[0].features[0].value);

    let mut feed = Feed::new();
    for second in 0..60_i64 {
        let rows: Vec<_> = (0..100_u8)
            .map(|k| feed.row([10, 0, 1, k], [10, 0, 0, 1], second * SECOND, |_| ()))
            .collect();
        assert!(of(&feed.judge(1, &rows), "flood.victim").is_empty());
    }
}

#[test]
fn one_record_that_sums_up_a_flood_counts_for_all_of_it() {
    let mut feed = Feed::new();
    let alerts = feed.one([198, 51, 100, 1], [10, 0, 0, 1], 0, |r| {
        (r.end_reason, r.extra) = (Some("aggregated"), Some("{\"aggregated_flows\":80000}"));
    });
    assert_eq!(of(&alerts, "flood.victim")[0].score, 8_000.0);
}

#[test]
fn a_slow_scan_is_told_and_a_host_that_is_mostly_answered_is_not() {
    let mut feed = Feed::new();
    let mut alerts = Vec::new();
    for n in 0..60_u8 {
        alerts.extend(
            feed.one([10, 0, 9, 9], [10, 0, 2, n], i64::from(n) * 600 * SECOND, |r| {
                r.dst_port = 445;
                refused(r);
            }),
        );
    }
    assert_eq!(of(&alerts, "scan.slow").len(), 1);
    assert!(of(&alerts, "scan.horizontal").is_empty());
    let mut feed = Feed::new();
    for n in 0..60_u8 {
        let at = i64::from(n) * 600 * SECOND;
        for _ in 0..2 {
            feed.one([10, 0, 9, 9], [10, 0, 2, n], at, |_| ());
        }
        assert!(feed.one([10, 0, 9, 9], [10, 0, 2, n], at, refused).is_empty());
    }
}

#[test]
fn a_scan_that_many_share_is_told() {
    let mut feed = Feed::new();
    let mut alerts = Vec::new();
    for n in 0..200_u16 {
        let row = feed.row(
            [198, 51, 100, (n % 40) as u8],
            [10, 0, 0, 1],
            i64::from(n) * SECOND,
            |r| {
                r.dst_port = 1 + n;
                refused(r);
            },
        );
        alerts.extend(feed.judge(n % 16, &[row]));
    }
    assert_eq!(of(&alerts, "scan.distributed").len(), 1);
    assert!(of(&alerts, "scan.vertical").is_empty());
}

#[test]
fn logins_at_three_new_hosts_are_lateral_movement_and_one_is_a_contact() {
    let mut feed = Feed::new();
    feed.tenant.phase = Phase::Scoring;
    let mut lateral = Vec::new();
    for host in 1..=4_u8 {
        let alerts = feed.one([10, 0, 1, 1], [10, 0, 3, host], i64::from(host) * 60 * SECOND, |r| {
            r.dst_port = 3_389
        });
        assert_eq!(of(&alerts, "contact.new_internal").len(), 1);
        lateral.push(
            of(&alerts, "lateral.credential")
                .into_iter()
                .cloned()
                .collect::<Vec<_>>(),
        );
    }
    assert!(lateral[0].is_empty() && lateral[1].is_empty());
    assert_eq!(lateral[2][0].techniques[0].id, "T1021.001");
    assert_eq!(lateral[2][0].targets.len(), 3);
    assert_eq!(lateral[2][0].features[0].normal, Some(2.0));
}

#[test]
fn a_long_connection_is_told_once() {
    let mut feed = Feed::new();
    let mut alerts = Vec::new();
    let row = feed.row([10, 0, 1, 1], [203, 0, 113, 5], 0, |r| {
        r.state = FlowState::Active as u8
    });
    for hour in 1..=6_i64 {
        let record = FlowRow {
            record_seq: hour as u32,
            last_seen: row.first_seen + hour * HOUR,
            src_bytes: Some(hour as u64 * 1_000),
            ..row.clone()
        };
        alerts.extend(feed.judge(1, &[record]));
    }
    let long = of(&alerts, "connection.long");
    assert_eq!(long.len(), 1);
    assert_eq!(long[0].score, 4.0);
}

#[test]
fn new_programs_and_devices_are_told_once_normal_was_learnt() {
    let mut feed = Feed::new();
    feed.tenant.start_learning(1, false).unwrap();
    let agents = [
        "curl/8.1",
        "Mozilla/5.0 (X11)",
        "apt 2.9",
        "git/2.4",
        "python-requests/2.31",
        "Go-http-client/1.1",
    ];
    for (n, agent) in agents.into_iter().enumerate() {
        let alerts = feed.one([10, 0, 1, n as u8 + 1], [203, 0, 113, 5], n as i64 * SECOND, |r| {
            (r.http_user_agent, r.src_mac) = (Some(agent), Some([2, 0, 0, 0, 0, n as u8]));
        });
        assert!(alerts.is_empty());
    }
    feed.tenant.phase = Phase::Scoring;
    let newer = feed.one([10, 0, 1, 1], [203, 0, 113, 5], HOUR, |r| {
        (r.http_user_agent, r.src_mac) = (Some("curl/8.12"), Some([2, 0, 0, 0, 0, 0]));
    });
    assert!(newer.is_empty(), "{newer:?}");
    let mut told = Vec::new();
    for n in 0..3 {
        told.extend(feed.one([10, 0, 1, 99], [203, 0, 113, 5], HOUR + n, |r| {
            (r.http_user_agent, r.src_mac) = (Some("sqlmap/1.8"), Some([2, 0, 0, 0, 9, 9]));
        }));
    }
    let mut detectors: Vec<&str> = told.iter().map(|a| a.detector.as_str()).collect();
    detectors.sort_unstable();
    assert_eq!(detectors, ["client.rare", "device.new"]);
    // Another address of a known device is no new device.
    assert!(
        feed.one([10, 0, 1, 120], [203, 0, 113, 5], HOUR, |r| r.src_mac =
            Some([2, 0, 0, 0, 0, 0]))
            .is_empty()
    );
}

#[test]
fn logins_without_encryption_are_told_once_a_day_and_graver_when_they_leave() {
    let mut feed = Feed::new();
    let ftp = |r: &mut FlowRow<'static>| (r.dst_port, r.service) = (21, Some("ftp"));
    let inside = feed.one([10, 0, 1, 1], [10, 0, 0, 7], 0, ftp);
    assert_eq!(of(&inside, "credentials.clear_text")[0].severity(), Severity::Low);
    assert!(feed.one([10, 0, 1, 1], [10, 0, 0, 7], HOUR, ftp).is_empty());
    assert_eq!(
        of(
            &feed.one([10, 0, 1, 1], [10, 0, 0, 7], 25 * HOUR, ftp),
            "credentials.clear_text"
        )
        .len(),
        1
    );
    let outside = feed.one([10, 0, 1, 1], [203, 0, 113, 5], 0, ftp);
    assert_eq!(of(&outside, "credentials.clear_text")[0].severity(), Severity::Medium);
    let secured = feed.one([10, 0, 1, 2], [10, 0, 0, 7], 0, |r| {
        ftp(r);
        r.tls_version = Some(0x0303);
    });
    assert!(secured.is_empty());
    let basic = feed.one([10, 0, 1, 3], [10, 0, 0, 8], 0, |r| {
        (r.service, r.http_auth_failures, r.http_status) = (Some("http"), Some(1), Some(200));
    });
    assert_eq!(of(&basic, "credentials.clear_text").len(), 1);
}

#[test]
fn certificates_of_internal_services_are_judged_and_the_service_is_at_fault() {
    let mut feed = Feed::new();
    let expired = |r: &mut FlowRow<'static>| {
        (r.tls_not_after, r.tls_subject) = (Some(START - 48 * HOUR), Some("CN=intranet"));
    };
    let alerts = feed.one([10, 0, 1, 1], [10, 0, 0, 7], 0, expired);
    let alert = of(&alerts, "certificate.invalid")[0];
    assert_eq!(alert.entity.as_ref().unwrap().value, "10.0.0.7");
    assert!(alert.title.contains("has expired"));
    assert_eq!((alert.features[0].value * 10.0).round(), 20.0);
    assert!(feed.one([10, 0, 1, 2], [10, 0, 0, 7], HOUR, expired).is_empty());
    assert!(feed.one([10, 0, 1, 1], [203, 0, 113, 5], 0, expired).is_empty());
    let own = feed.one([10, 0, 1, 1], [10, 0, 0, 8], 0, |r| {
        (r.tls_not_after, r.tls_self_signed) = (Some(START + 48 * HOUR), Some(1));
    });
    assert!(of(&own, "certificate.invalid")[0].title.contains("signed by itself"));
}
