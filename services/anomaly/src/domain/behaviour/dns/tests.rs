//! Tunnels and generated domains in a tenant's traffic.

use std::sync::Arc;

use garrison_flow::{FlowBatchBuilder, FlowRow, FlowState};
use garrison_models::rng::SplitMix64;
use garrison_proto::alert::v1::Alert;
use proptest::prelude::*;

use super::tunnel::Zone;
use crate::domain::{
    shard::tests::settings,
    tenant::{Arrival, Tenant},
    window::SECOND,
};

const START: i64 = 1_750_000_000 * SECOND;

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

    fn ask(&mut self, src: u8, name: &str, rcode: u8) -> Vec<Alert> {
        self.n += 1;
        self.record((self.n, 0), src, name, rcode, (1, 60))
    }

    fn record(
        &mut self,
        (flow, seq): (u64, u32),
        src: u8,
        name: &str,
        rcode: u8,
        (queries, bytes): (u32, u64),
    ) -> Vec<Alert> {
        let row = FlowRow {
            flow_id: u128::from(flow).to_be_bytes(),
            record_seq: seq,
            state: FlowState::Active as u8,
            first_seen: START + flow as i64 * SECOND,
            last_seen: START + flow as i64 * SECOND,
            protocol: 17,
            src_ip: [10, 0, 1, src].into(),
            dst_ip: [10, 0, 0, 53].into(),
            dst_port: 53,
            src_packets: Some(queries.into()),
            dst_packets: Some(queries.into()),
            src_bytes: Some(bytes),
            dst_bytes: Some(bytes),
            service: Some("dns"),
            dns_query: Some(name),
            dns_rcode: Some(rcode),
            dns_queries: Some(queries),
            ..FlowRow::default()
        };
        let mut builder = FlowBatchBuilder::new(1);
        builder.push(&row);
        self.tenant
            .judge(&Arrival {
                id: (u128::from(flow) << 32 | u128::from(seq) << 8 | 1).to_be_bytes(),
                shard: 1,
                position: flow,
                published: START + 1_000_000 * SECOND,
                now: 7,
                batch: &builder.finish(),
            })
            .alerts
    }
}

fn letters(rng: &mut SplitMix64, n: u64) -> String {
    (0..n)
        .map(|_| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[rng.below(32) as usize]))
        .collect()
}

#[test]
fn a_tunnel_is_told_with_its_parent_and_what_would_have_been_normal() {
    let (mut feed, mut rng) = (Feed::new(), SplitMix64::new(1));
    let mut alerts = Vec::new();
    for _ in 0..30 {
        let name = format!("{}.{}.t.example.net", letters(&mut rng, 60), letters(&mut rng, 50));
        alerts.extend(feed.ask(1, &name, 0).into_iter().filter(|a| a.detector == "dns.tunnel"));
    }
    assert!(!alerts.is_empty());
    let alert = &alerts[0];
    assert!(alert.title.contains("example.net"), "{}", alert.title);
    assert_eq!(alert.techniques[0].id, "T1071.004");
    let length = &alert.features[0];
    assert_eq!(length.name, "name_length");
    assert!(length.normal() < length.value);
}

#[test]
fn questions_of_one_flow_are_judged_by_how_long_they_are() {
    let mut feed = Feed::new();
    let first = format!("{}.t.example.net", letters(&mut SplitMix64::new(2), 60));
    let mut alerts = Vec::new();
    for seq in 0..10_u32 {
        let queries = 1 + seq * 20;
        alerts.extend(feed.record((1, seq), 1, &first, 0, (queries, u64::from(queries) * 130)));
    }
    assert!(alerts.iter().any(|a| a.detector == "dns.tunnel"));
}

#[test]
fn ordinary_names_are_no_tunnel_and_not_generated() {
    let mut feed = Feed::new();
    let hosts = [
        "www", "mail", "static", "img", "api", "login", "cdn", "news", "m", "shop", "blog", "assets",
    ];
    let parents = [
        "wikipedia.org",
        "example.co.uk",
        "weather.com",
        "openstreetmap.org",
        "bookshop.de",
        "nature.com",
    ];
    for round in 0..20 {
        for host in hosts {
            for parent in parents {
                let missing = if round % 7 == 0 { 3 } else { 0 };
                assert!(feed.ask(1, &format!("{host}.{parent}"), missing).is_empty());
            }
        }
    }
}

#[test]
fn generated_domains_are_told_after_a_few_and_not_when_everybody_asks_for_them() {
    let (mut feed, mut rng) = (Feed::new(), SplitMix64::new(3));
    let names: Vec<String> = (0..20).map(|_| format!("{}.net", letters(&mut rng, 14))).collect();
    let mut told = None;
    for (n, name) in names.iter().enumerate() {
        if let Some(alert) = feed.ask(1, name, 3).into_iter().find(|a| a.detector == "dns.generated") {
            told.get_or_insert((n + 1, alert));
        }
    }
    let (after, alert) = told.unwrap();
    assert!(after <= 10, "{after}");
    assert_eq!(alert.techniques[0].id, "T1568.002");
    assert!(alert.features[0].normal() < alert.features[0].value);

    let mut feed = Feed::new();
    for name in &names {
        for src in 1..=12 {
            let alerts = feed.ask(src, name, 3);
            assert!(alerts.is_empty() || src < 6, "{src}");
        }
    }
}

proptest! {
    #[test]
    fn windows_merge_into_the_whole(names in prop::collection::vec("[a-z0-9.+/]{0,80}", 1..40), cut in any::<prop::sample::Index>()) {
        let zone = |names: &[String]| {
            let mut zone = Zone::default();
            names.iter().for_each(|n| zone.note(n));
            zone
        };
        let cut = cut.index(names.len());
        let mut merged = zone(&names[..cut]);
        merged.merge(&zone(&names[cut..]));
        let whole = zone(&names);
        prop_assert!(whole.features().iter().all(|f| f.is_finite()));
        prop_assert_eq!(merged.features(), whole.features());
    }
}
