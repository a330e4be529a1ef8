//! What a flood leaves: flows that were given up before they said anything are summed by what they called, so that their
//! packets stay counted and nobody is sent a record for each.

use garrison_flow::{FlowRow, FlowState};

use super::{
    flow::{Flow, mark},
    key::{COMMUNITY_ID_LEN, FlowKey, HashSeed, community_id, flow_id},
    packet::address,
    record::EndReason,
};

// Sums held at once, and how far one may lie from its place. What has no place goes into a sum without a destination.
const PLACES: usize = 1024;
const REACH: usize = 16;

/// How often sums are reported while a flood lasts, nanoseconds.
pub const INTERVAL: i64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, Default)]
struct Side {
    packets: u64,
    payload: u64,
    ip_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sum {
    dst: [u8; 16],
    dst_port: u16,
    protocol: u8,
    ip_version: u8,
    vlan: u16,
    flows: u64,
    first_seen: i64,
    last_seen: i64,
    sides: [Side; 2],
}

/// The sums of a table. Their memory is fixed.
pub struct Aggregates {
    places: Vec<Option<Sum>>,
    // One for each IP version.
    rest: [Option<Sum>; 2],
    used: usize,
    reported: i64,
    serial: u16,
}

impl Default for Aggregates {
    fn default() -> Self {
        Self {
            // Most tables never meet a flood.
            places: Vec::new(),
            rest: [None; 2],
            used: 0,
            reported: i64::MIN,
            serial: 0,
        }
    }
}

impl Aggregates {
    /// Adds a flow that goes without a record of its own.
    pub fn add(&mut self, flow: &Flow, seed: &HashSeed) {
        if self.places.is_empty() {
            self.places.resize(PLACES, None);
        }
        if self.used == 0 {
            self.reported = flow.last_seen();
        }
        let called = FlowKey {
            src: [0; 16],
            src_port: 0,
            ..flow.key
        };
        let home = seed.hash(&called) as usize;
        let place = (0..REACH).map(|i| (home + i) % PLACES).find(|&at| {
            self.places[at].is_none_or(|sum| {
                sum.dst == called.dst && sum.dst_port == called.dst_port && sum.protocol == called.protocol
            })
        });
        let (slot, known) = match place {
            Some(at) => (&mut self.places[at], true),
            None => (&mut self.rest[usize::from(flow.ip_version == 6)], false),
        };
        if slot.is_none() {
            self.used += 1;
        }
        let sum = slot.get_or_insert(Sum {
            dst: if known { called.dst } else { [0; 16] },
            dst_port: if known { called.dst_port } else { 0 },
            protocol: if known { called.protocol } else { 0 },
            ip_version: flow.ip_version,
            vlan: flow.vlan,
            flows: 0,
            first_seen: flow.first_seen,
            last_seen: flow.first_seen,
            sides: [Side::default(); 2],
        });
        sum.flows += 1;
        sum.first_seen = sum.first_seen.min(flow.first_seen);
        sum.last_seen = sum.last_seen.max(flow.last_seen());
        for (sum, side) in sum.sides.iter_mut().zip(&flow.sides) {
            sum.packets += side.packets();
            sum.payload += side.payload;
            sum.ip_bytes += side.ip_bytes;
        }
    }

    /// Something waits to be reported at this time.
    pub fn is_due(&self, now: i64) -> bool {
        self.used > 0 && now.saturating_sub(self.reported) >= INTERVAL
    }

    /// Reports every sum and begins anew. Gives how many there were.
    pub fn report(&mut self, sensor: &str, seed: &HashSeed, mut take: impl FnMut(&FlowRow<'_>)) -> u64 {
        if self.used == 0 {
            return 0;
        }
        let mut reported = 0;
        let waiting = self.places.iter_mut().chain(&mut self.rest);
        for sum in waiting.filter_map(Option::take) {
            self.serial = self.serial.wrapping_add(1);
            sum.row(sensor, seed, self.serial, &mut take);
            reported += 1;
        }
        self.used = 0;
        reported
    }
}

impl Sum {
    fn row(&self, sensor: &str, seed: &HashSeed, serial: u16, take: &mut impl FnMut(&FlowRow<'_>)) {
        // No address of this version stands for many.
        let nobody = match self.ip_version {
            4 => [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0],
            _ => [0; 16],
        };
        let key = FlowKey {
            src: nobody,
            dst: if self.dst == [0; 16] { nobody } else { self.dst },
            src_port: 0,
            dst_port: self.dst_port,
            protocol: self.protocol,
        };
        let mut community = [0; COMMUNITY_ID_LEN];
        community_id(&key, self.ip_version, &mut community);
        let extra = format!("{{\"aggregated_flows\":{}}}", self.flows);
        let [src, dst] = &self.sides;
        take(&FlowRow {
            flow_id: flow_id(seed, &key, self.first_seen, serial),
            state: FlowState::Ended as u8,
            sensor,
            first_seen: self.first_seen,
            last_seen: self.last_seen,
            ip_version: self.ip_version,
            protocol: self.protocol,
            src_ip: address(&key.src),
            dst_ip: address(&key.dst),
            dst_port: self.dst_port,
            vlan: (self.vlan != u16::MAX).then_some(self.vlan),
            community_id: std::str::from_utf8(&community).unwrap_or_default(),
            src_packets: Some(src.packets),
            dst_packets: Some(dst.packets),
            src_bytes: Some(src.payload),
            dst_bytes: Some(dst.payload),
            src_ip_bytes: Some(src.ip_bytes),
            dst_ip_bytes: Some(dst.ip_bytes),
            end_reason: Some(EndReason::Aggregated.name()),
            extra: Some(&extra),
            ..FlowRow::default()
        });
    }
}

/// Whether a flow that has to go goes into a sum: nobody was told of it.
pub fn is_unheard(flow: &Flow) -> bool {
    flow.is(mark::SILENT) && flow.records == 0
}
