//! Made flows.

use std::net::IpAddr;

use chrono::Utc;
use garrison_flow::{BatchMeta, FlowBatchBuilder, FlowRow, FlowState, LossLedger, encode};
use garrison_proto::TenantId;
use uuid::Uuid;

/// One flow that has ended, as its two records.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) id: [u8; 16],
    pub(crate) at: i64,
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) port: u16,
    pub(crate) refused: bool,
    pub(crate) bytes: (u64, u64),
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn now() -> i64 {
    Utc::now().timestamp_nanos_opt().unwrap()
}

impl Flow {
    pub(crate) fn new(src: &str, dst: &str, port: u16) -> Self {
        Self {
            id: *Uuid::now_v7().as_bytes(),
            at: now() - 5_000_000,
            src: ip(src),
            dst: ip(dst),
            port,
            refused: false,
            bytes: (400, 5_000),
        }
    }

    pub(crate) fn refused(src: &str, dst: &str, port: u16) -> Self {
        Self {
            refused: true,
            bytes: (0, 0),
            ..Self::new(src, dst, port)
        }
    }

    pub(crate) fn ended(&self) -> i64 {
        self.at + if self.refused { 50_000 } else { 4_000_000 }
    }

    pub(crate) fn records(&self) -> [FlowRow<'static>; 2] {
        let new = FlowRow {
            flow_id: self.id,
            state: FlowState::New as u8,
            sensor: "edge",
            first_seen: self.at,
            last_seen: self.at,
            protocol: 6,
            src_ip: self.src,
            dst_ip: self.dst,
            src_port: 40_000,
            dst_port: self.port,
            community_id: "1:LQU9qZlK+B5F3KDmev6m5PMibrg=",
            src_packets: Some(1),
            dst_packets: Some(0),
            src_bytes: Some(0),
            dst_bytes: Some(0),
            conn_state: Some("S0"),
            ..FlowRow::default()
        };
        let ended = FlowRow {
            record_seq: 1,
            state: FlowState::Ended as u8,
            last_seen: self.ended(),
            src_packets: Some(if self.refused { 1 } else { 6 }),
            dst_packets: Some(if self.refused { 1 } else { 8 }),
            src_bytes: Some(self.bytes.0),
            dst_bytes: Some(self.bytes.1),
            conn_state: Some(if self.refused { "REJ" } else { "SF" }),
            service: (!self.refused).then_some("http"),
            ..new.clone()
        };
        [new, ended]
    }
}

pub(crate) fn batch(tenant: &TenantId, flows: &[Flow]) -> bytes::Bytes {
    let mut builder = FlowBatchBuilder::new(flows.len() * 2);
    flows.iter().flat_map(Flow::records).for_each(|row| builder.push(&row));
    let meta = BatchMeta {
        tenant: tenant.clone(),
        sensor: "edge".to_owned(),
        batch_seq: 0,
        ledger: LossLedger::default(),
    };
    encode(&builder.finish(), &meta).unwrap()
}

/// Ordinary traffic of ten clients with a web server.
pub(crate) fn office(n: usize) -> Vec<Flow> {
    (0..n)
        .map(|i| Flow {
            bytes: (300 + (i as u64 * 37) % 200, 4_000 + (i as u64 * 131) % 3_000),
            ..Flow::new(&format!("10.1.0.{}", i % 10 + 1), "10.0.0.1", 80)
        })
        .collect()
}
