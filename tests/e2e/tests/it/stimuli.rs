//! What detectors and sensors would publish, published by the tests under the same identities.

use std::net::{IpAddr, Ipv4Addr};

use chrono::Utc;
use garrison_bus::{Message, subject};
use garrison_flow::{BatchMeta, FlowBatchBuilder, FlowRow, FlowState, LossLedger, encode};
use garrison_proto::{
    TenantId,
    alert::v1::{Alert, Entity, EntityKind, FlowReference, Severity, Technique},
    to_timestamp,
};
use uuid::Uuid;

pub fn tenant(id: &str) -> TenantId {
    id.parse().unwrap()
}

pub fn host(address: impl ToString) -> Entity {
    Entity {
        kind: EntityKind::Host.into(),
        value: address.to_string(),
    }
}

/// Password guessing, which the default playbook answers by blocking the source.
pub fn brute_force(source: Ipv4Addr, target: Ipv4Addr) -> Alert {
    alert(
        "bruteforce.http",
        source,
        target,
        ("T1110", "Brute Force", "Credential Access"),
    )
}

/// A forbidden contact inside, which the default playbook answers by asking for the source's isolation.
pub fn forbidden_contact(source: Ipv4Addr, target: Ipv4Addr) -> Alert {
    alert(
        "policy.violation",
        source,
        target,
        ("T1021", "Remote Services", "Lateral Movement"),
    )
}

fn alert(detector: &str, source: Ipv4Addr, target: Ipv4Addr, (id, name, tactic): (&str, &str, &str)) -> Alert {
    let now = to_timestamp(Utc::now());
    Alert {
        alert_id: Uuid::now_v7().to_string(),
        detector: detector.to_owned(),
        title: format!("{detector} from {source}"),
        severity: Severity::High.into(),
        confidence: 0.95,
        entity: Some(host(source)),
        targets: vec![host(target)],
        techniques: vec![Technique {
            id: id.to_owned(),
            name: name.to_owned(),
            tactic: tactic.to_owned(),
        }],
        flows: vec![FlowReference {
            flow_id: Uuid::now_v7().to_string(),
            src_ip: source.to_string(),
            dst_ip: target.to_string(),
            src_port: 40_000,
            dst_port: 8_080,
            protocol: 6,
            first_seen: Some(now),
            last_seen: Some(now),
            ..FlowReference::default()
        }],
        first_seen: Some(now),
        last_seen: Some(now),
        trigger_time: Some(now),
        detected_time: Some(now),
        count: 1,
        fingerprint: Uuid::now_v7().to_string(),
        score: 9.0,
        threshold: 5.0,
        ..Alert::default()
    }
}

/// An alert as its detector's service publishes it.
pub fn alert_message(owner: &str, alert: &Alert) -> Message {
    let subject = subject::alerts(&tenant(owner), alert.severity(), &alert.detector);
    let id = Uuid::parse_str(&alert.alert_id).unwrap_or_else(|_| Uuid::now_v7());
    Message::proto(subject, "anomaly", alert).with_id(id)
}

/// A batch of ended connections from one host to another's ports, from `first` on, one flow each.
pub fn batch(owner: &str, sensor: &str, from: Ipv4Addr, to: Ipv4Addr, first: u16, rows: u16) -> Message {
    batch_saying(owner, owner, sensor, from, to, first, rows)
}

/// The same, whose metadata may name another tenant than its subject.
pub fn batch_saying(
    owner: &str,
    said: &str,
    sensor: &str,
    from: Ipv4Addr,
    to: Ipv4Addr,
    first: u16,
    rows: u16,
) -> Message {
    let now = Utc::now().timestamp_nanos_opt().unwrap();
    let mut builder = FlowBatchBuilder::new(usize::from(rows));
    for n in 0..rows {
        builder.push(&FlowRow {
            flow_id: Uuid::now_v7().into_bytes(),
            sensor,
            origin: "packet",
            sampling: 1,
            end_reason: Some("fin"),
            state: FlowState::Ended as u8,
            first_seen: now - 50_000_000,
            last_seen: now,
            ip_version: 4,
            protocol: 6,
            src_ip: IpAddr::V4(from),
            dst_ip: IpAddr::V4(to),
            src_port: 30_000 + n,
            dst_port: first + n,
            src_packets: Some(6),
            dst_packets: Some(4),
            src_bytes: Some(300),
            dst_bytes: Some(900),
            conn_state: Some("SF"),
            ..FlowRow::default()
        });
    }
    let meta = BatchMeta {
        tenant: tenant(said),
        sensor: sensor.to_owned(),
        batch_seq: 0,
        ledger: LossLedger::default(),
    };
    let payload = encode(&builder.finish(), &meta).unwrap();
    let shard = subject::shard_of(IpAddr::V4(from));
    Message::flows(subject::flows(&tenant(owner), shard), "flow-ingest", payload)
}
