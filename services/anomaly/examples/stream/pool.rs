//! Batches that wait to be published: what the meter made of real captures, again and again with other addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use garrison_bus::subject;
use garrison_flow::{BatchMeta, FlowBatch, FlowBatchBuilder, FlowRow, LossLedger, encode};
use garrison_models::rng::mix;
use garrison_proto::TenantId;

/// How flow-ingest gathers records by default.
const ROWS: usize = 4_096;
const OCTETS: usize = 921_600;
/// Shards of a tenant.
const SHARDS: usize = subject::SHARDS as usize;

/// One message.
pub struct Prepared {
    pub subject: String,
    pub payload: Bytes,
    pub rows: u64,
}

/// What is to be made.
pub struct Order<'a> {
    /// What the meter made.
    pub templates: &'a [FlowBatch],
    /// Records, about.
    pub rows: usize,
    /// How often the hosts are there with other addresses.
    pub networks: usize,
    /// Whose they are; each network belongs to one.
    pub tenants: &'a [TenantId],
    /// When the first flow begins, nanoseconds since the epoch.
    pub start: i64,
    /// Tells the flows of one order from those of another.
    pub seed: u64,
}

struct Shard {
    subject: String,
    tenant: TenantId,
    builder: FlowBatchBuilder,
    rows: usize,
}

/// Makes the batches, in the order of their flows' times.
pub fn make(order: &Order<'_>) -> Vec<Prepared> {
    let Some(first) = order
        .templates
        .iter()
        .flat_map(FlowBatch::rows)
        .map(|r| r.first_seen)
        .min()
    else {
        return Vec::new();
    };
    let each: usize = order.templates.iter().map(FlowBatch::len).sum();
    let copies = order.rows.div_ceil(each.max(1));
    let mut shards: Vec<Shard> = order.tenants.iter().flat_map(shards).collect();
    let (mut made, mut sequence) = (Vec::new(), 0);
    for template in order.templates {
        for copy in 0..copies {
            let network = copy % order.networks.max(1);
            let tenant = network % order.tenants.len();
            for row in template.rows() {
                let row = changed(row, order, network, copy, first);
                let at = tenant * SHARDS + usize::from(subject::shard_of(row.src_ip));
                let shard = &mut shards[at];
                shard.builder.push(&row);
                shard.rows += 1;
                if shard.rows == ROWS {
                    shard.close(&mut sequence, &mut made);
                }
            }
        }
    }
    for shard in &mut shards {
        shard.close(&mut sequence, &mut made);
    }
    made
}

fn shards(tenant: &TenantId) -> Vec<Shard> {
    (0..subject::SHARDS)
        .map(|shard| Shard {
            subject: subject::flows(tenant, shard),
            tenant: tenant.clone(),
            builder: FlowBatchBuilder::new(ROWS),
            rows: 0,
        })
        .collect()
}

impl Shard {
    fn close(&mut self, sequence: &mut u64, made: &mut Vec<Prepared>) {
        if self.rows > 0 {
            self.rows = 0;
            let batch = self.builder.finish();
            self.write(&batch, sequence, made);
        }
    }

    // What is too large for a message is split, as flow-ingest does.
    fn write(&self, batch: &FlowBatch, sequence: &mut u64, made: &mut Vec<Prepared>) {
        let meta = BatchMeta {
            tenant: self.tenant.clone(),
            sensor: "bench".to_owned(),
            batch_seq: *sequence,
            ledger: LossLedger::default(),
        };
        let payload = encode(batch, &meta).expect("it has the schema");
        let rows = batch.len();
        if payload.len() > OCTETS && rows > 1 {
            for (from, n) in [(0, rows / 2), (rows / 2, rows - rows / 2)] {
                let half = batch.record_batch().slice(from, n);
                let half = FlowBatch::try_from_record_batch(half).expect("it has the schema");
                self.write(&half, sequence, made);
            }
            return;
        }
        *sequence += 1;
        made.push(Prepared {
            subject: self.subject.clone(),
            payload,
            rows: rows as u64,
        });
    }
}

// A flow of another host at another time.
fn changed<'a>(row: FlowRow<'a>, order: &Order<'_>, network: usize, copy: usize, first: i64) -> FlowRow<'a> {
    let moved = order.start - first;
    let key = mix(order.seed ^ mix(copy as u64));
    let mut flow_id = row.flow_id;
    for (octet, with) in flow_id[6..14].iter_mut().zip(key.to_le_bytes()) {
        *octet ^= with;
    }
    FlowRow {
        flow_id,
        first_seen: row.first_seen + moved,
        last_seen: row.last_seen + moved,
        src_ip: readdressed(row.src_ip, network as u32),
        dst_ip: readdressed(row.dst_ip, network as u32),
        ..row
    }
}

// Private addresses stay private, public ones public, those of groups what they are.
fn readdressed(address: IpAddr, network: u32) -> IpAddr {
    match address {
        IpAddr::V4(v4) if v4.is_multicast() || v4.is_broadcast() || v4.is_unspecified() => address,
        IpAddr::V4(v4) => {
            let bits = v4.to_bits();
            let first = if v4.is_private() { 10 << 24 } else { bits & 0xff00_0000 };
            let other = (bits & 0x00ff_ffff) ^ ((network & 0xffff) << 8);
            IpAddr::V4(Ipv4Addr::from_bits(first | other))
        }
        IpAddr::V6(v6) if v6.is_multicast() || v6.is_unspecified() => address,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() ^ u128::from(network & 0xffff) << 80)),
    }
}
