//! Channels by themselves, and beacons in a tenant's traffic.

use std::sync::Arc;

use garrison_flow::{FlowBatchBuilder, FlowRow, FlowState};
use garrison_models::rng::SplitMix64;
use garrison_proto::alert::v1::Alert;
use proptest::prelude::*;

use super::*;
use crate::domain::{
    shard::tests::settings,
    tenant::{Arrival, Tenant},
};

const START: Nanos = 1_750_000_000 * SECOND;
const MOST: usize = 12;

fn contact(seconds: f64, sent: u32) -> Contact {
    Contact {
        time: START + (seconds * SECOND as f64) as Nanos,
        sent,
        received: 900,
    }
}

fn channel(contacts: &[Contact]) -> Channel {
    let mut channel = Channel::default();
    for c in contacts {
        channel.note(*c, MOST);
    }
    channel
}

fn jittered(rng: &mut SplitMix64, n: usize, period: f64, jitter: f64) -> Vec<Contact> {
    let mut at = 0.0;
    (0..n)
        .map(|_| {
            at += period * (1.0 + jitter * (2.0 * rng.unit() - 1.0));
            contact(at, 300 + rng.below(20) as u32)
        })
        .collect()
}

#[test]
fn jitter_of_forty_percent_is_told_and_independent_events_are_not() {
    let settings = settings().beacon;
    let mut rng = SplitMix64::new(7);
    let mut found = 0;
    let mut alarms = 0;
    for _ in 0..2_000 {
        let beacon = channel(&jittered(&mut rng, 12, 60.0, 0.4));
        found += u32::from(tells(&beacon.evidence(12).unwrap(), &settings, false));
        let mut at = 0.0;
        let poisson: Vec<Contact> = (0..12)
            .map(|_| {
                at += 1.0 - 60.0 * (1.0 - rng.unit()).ln();
                contact(at, (600.0 * rng.normal().exp()) as u32)
            })
            .collect();
        alarms += u32::from(
            channel(&poisson)
                .evidence(12)
                .is_some_and(|e| tells(&e, &settings, false)),
        );
    }
    assert!(found >= 1_980, "{found} of 2,000 beacons");
    assert_eq!(alarms, 0);
}

#[test]
fn several_flows_of_one_contact_are_one_and_a_stream_is_no_beacon() {
    let mut twice: Vec<Contact> = (0..12).map(|n| contact(f64::from(n) * 30.0, 100)).collect();
    twice.extend((0..12).map(|n| contact(f64::from(n) * 30.0 + 0.3, 4_000)));
    twice.sort_by_key(|c| c.time);
    let channel_ = channel(&twice);
    assert_eq!(channel_.contacts.len(), 12);
    assert!(channel_.contacts.iter().all(|c| c.sent == 100));
    let stream: Vec<Contact> = (0..600).map(|n| contact(f64::from(n) * 0.4, 100)).collect();
    assert_eq!(channel(&stream).contacts.len(), 1);
}

#[test]
fn presence_counts_slots_and_fades() {
    let every_ten_minutes: Vec<Contact> = (0..12).map(|n| contact(f64::from(n) * 600.0, 100)).collect();
    let c = channel(&every_ten_minutes);
    assert!((c.presence(c.latest) - 0.5).abs() < 0.01, "{}", c.presence(c.latest));
    assert!(c.presence(c.latest + 3_600 * SECOND) < 0.3);
    assert_eq!(c.presence(c.latest + 3 * 3_600 * SECOND), 0.0);
}

proptest! {
    #[test]
    fn parts_merge_into_the_whole(seconds in prop::collection::btree_set(0_u32..5_000, 1..40), cut in any::<prop::sample::Index>()) {
        let contacts: Vec<Contact> = seconds.iter().map(|s| contact(f64::from(*s) * 2.0, 100)).collect();
        let whole = channel(&contacts);
        let cut = cut.index(contacts.len() + 1);
        let mut merged = channel(&contacts[..cut]);
        merged.merge(&channel(&contacts[cut..]), MOST);
        prop_assert_eq!(merged, whole);
    }

    #[test]
    fn any_times_and_sizes_are_taken(contacts in prop::collection::vec((any::<i64>(), any::<u32>()), 0..60)) {
        let mut channel = Channel::default();
        for (time, sent) in contacts {
            channel.note(Contact { time: time / 4, sent, received: 0 }, MOST);
            prop_assert!(channel.contacts.len() <= MOST);
            prop_assert!(channel.contacts.is_sorted_by_key(|c| c.time));
            if let Some(e) = channel.evidence(MOST) {
                prop_assert!(e.total.is_finite() && e.jitter > 0.0);
            }
            prop_assert!((0.0..=1.0).contains(&channel.presence(time)));
        }
    }

    #[test]
    fn evidence_falls_as_jitter_grows(seed in any::<u64>()) {
        let mean = |jitter: f64| -> f64 {
            let mut rng = SplitMix64::new(seed);
            (0..50).map(|_| channel(&jittered(&mut rng, 12, 60.0, jitter)).evidence(12).unwrap().time).sum()
        };
        let (a, b, c) = (mean(0.05), mean(0.4), mean(0.95));
        prop_assert!(a > b && b > c);
    }
}

struct Feed {
    tenant: Tenant,
    n: u64,
}

impl Feed {
    fn new() -> Self {
        Self {
            tenant: Tenant::new("acme".parse().unwrap(), Arc::new(settings()), 16),
            n: 0,
        }
    }

    fn flow(&mut self, src: u8, at: f64, change: impl FnOnce(&mut FlowRow<'static>)) -> Vec<Alert> {
        self.n += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.n.to_be_bytes());
        let first_seen = START + (at * SECOND as f64) as Nanos;
        let mut row = FlowRow {
            flow_id: id,
            state: FlowState::Ended as u8,
            first_seen,
            last_seen: first_seen + SECOND / 10,
            protocol: 6,
            src_ip: [10, 0, 1, src].into(),
            dst_ip: [203, 0, 113, 7].into(),
            src_port: 40_000,
            dst_port: 443,
            src_packets: Some(6),
            dst_packets: Some(6),
            src_bytes: Some(400),
            dst_bytes: Some(900),
            conn_state: Some("SF"),
            service: Some("tls"),
            tls_sni: Some("cdn.example.net"),
            ..FlowRow::default()
        };
        change(&mut row);
        let mut builder = FlowBatchBuilder::new(1);
        builder.push(&row);
        let arrival = Arrival {
            id,
            shard: 1,
            position: self.n,
            published: START + 1_000_000 * SECOND,
            now: 7,
            batch: &builder.finish(),
        };
        self.tenant.judge(&arrival).alerts
    }
}

#[test]
fn the_twelfth_contact_raises_an_alert_that_explains_itself() {
    let mut feed = Feed::new();
    for n in 0..11 {
        assert!(feed.flow(1, f64::from(n) * 60.0, |_| ()).is_empty());
    }
    let alerts = feed.flow(1, 660.0, |_| ());
    assert_eq!(alerts.len(), 1);
    let alert = &alerts[0];
    assert_eq!(alert.detector, "beacon.periodic");
    assert!(
        alert.title.contains("cdn.example.net") && alert.title.contains("every 60 s"),
        "{}",
        alert.title
    );
    assert_eq!(alert.techniques[0].id, "T1071.001");
    let variation = &alert.features[0];
    assert_eq!(variation.name, "interval_variation");
    assert!(variation.normal() > variation.value && variation.normal() < variation.usual);
    assert_eq!(alert.features[2].normal, Some(11.0));
}

#[test]
fn what_many_turn_to_is_no_beacon_and_neither_is_a_clock() {
    let mut feed = Feed::new();
    for n in 0..30 {
        for src in 1..=8 {
            let at = f64::from(n) * 60.0 + f64::from(src);
            assert!(feed.flow(src, at, |_| ()).is_empty());
        }
        let clock = feed.flow(9, f64::from(n) * 64.0, |row| {
            (row.protocol, row.dst_port, row.service, row.tls_sni) = (17, 123, Some("ntp"), None);
            (row.src_packets, row.src_bytes) = (Some(1), Some(48));
        });
        assert!(clock.is_empty());
    }
}

#[test]
fn a_proxy_is_not_blamed_for_what_was_asked_of_it() {
    let mut feed = Feed::new();
    let mut told = Vec::new();
    for n in 0..20 {
        let at = f64::from(n) * 45.0;
        let asked = feed.flow(1, at, |row| {
            (row.dst_ip, row.dst_port) = ([10, 0, 0, 9].into(), 3_128);
            (row.service, row.tls_sni) = (Some("http"), None);
            (row.http_method, row.http_host) = (Some("CONNECT"), Some("cdn.example.net:443"));
        });
        told.extend(asked);
        told.extend(feed.flow(9, at + 0.05, |_| ()));
    }
    let sources: std::collections::BTreeSet<_> = told.iter().map(|a| a.entity.clone().unwrap().value).collect();
    assert_eq!(sources.into_iter().collect::<Vec<_>>(), ["10.0.1.1"]);
    assert!(
        told[0].title.contains("through the proxy 10.0.0.9:3128/tcp"),
        "{}",
        told[0].title
    );
    assert!(told[0].techniques.iter().any(|t| t.id == "T1090"));
}

#[test]
fn what_was_regular_while_normal_was_learnt_is_not_told_later() {
    let mut feed = Feed::new();
    feed.tenant.start_learning(1, false).unwrap();
    for n in 0..15 {
        feed.flow(1, f64::from(n) * 60.0, |_| ());
    }
    feed.tenant.phase = crate::domain::tenant::Phase::Scoring;
    for n in 15..40 {
        assert!(feed.flow(1, f64::from(n) * 60.0, |_| ()).is_empty());
    }
}
