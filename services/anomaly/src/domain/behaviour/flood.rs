//! Floods, by victim and over all shards: more connections within ten seconds to one service than it can be meant to have,
//! and many times what it usually has. And scans that many sources share, each too small to be told alone.

use super::{Row, is_one_host};
use crate::domain::{
    activity::Distinct,
    detector::Detector,
    facts::{TCP, UDP, text},
    finding::{Finding, Target, service_name},
    shard::{Context, feature, feature_within},
    wide::{Wide, host_hash},
    window::{Host, Nanos, SECOND},
};

/// Connections are counted in slots of this length.
pub const SLOT: Nanos = 10 * SECOND;
const SLOT_SECONDS: f64 = 10.0;
/// Slots after which the past counts for a third.
const MEMORY: f64 = 360.0;
/// Above this many sources nobody in particular is the source.
const FEW_SOURCES: f32 = 3.0;

/// The connections to one service.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Victim {
    /// The slot, since the epoch.
    #[prost(sint64, tag = "1")]
    pub slot: i64,
    /// Connections in it.
    #[prost(uint64, tag = "2")]
    pub flows: u64,
    /// Of them, without an answer or refused.
    #[prost(uint64, tag = "3")]
    pub failed: u64,
    /// Sources in it, as [`Distinct`] has it.
    #[prost(fixed64, repeated, tag = "4")]
    pub sources: Vec<u64>,
    /// Decayed mean of the connections in slots that had any.
    #[prost(double, tag = "5")]
    pub usual: f64,
    /// Slots that had any.
    #[prost(uint32, tag = "6")]
    pub slots: u32,
    /// The slot was told.
    #[prost(bool, tag = "7")]
    pub told: bool,
    /// The source that alerts name while the flood lasts.
    #[prost(bytes = "vec", tag = "8")]
    pub source: Vec<u8>,
    /// The latest slot that was told.
    #[prost(sint64, tag = "9")]
    pub last_told: i64,
}

impl Victim {
    /// Goes to the slot of a time. False for a time that it has left behind.
    fn turn(&mut self, time: Nanos, most: f64) -> bool {
        let slot = time.div_euclid(SLOT);
        if slot < self.slot {
            return false;
        }
        if slot > self.slot {
            if self.flows > 0 {
                self.slots = self.slots.saturating_add(1);
                let weight = (1.0 / f64::from(self.slots)).max(1.0 / MEMORY);
                // A flood teaches no more than what is allowed.
                self.usual += weight * ((self.flows as f64).min(most) - self.usual);
            }
            (self.slot, self.flows, self.failed, self.told) = (slot, 0, 0, false);
            self.sources.clear();
        }
        true
    }

    fn distinct(&self) -> Distinct {
        Distinct(self.sources.as_slice().try_into().unwrap_or_default())
    }

    /// Adds what another shard has seen of the same slot; of an older one, nothing.
    pub fn merge(&mut self, other: &Self) {
        if other.slot > self.slot {
            *self = other.clone();
        } else if other.slot == self.slot {
            self.flows = self.flows.saturating_add(other.flows);
            self.failed = self.failed.saturating_add(other.failed);
            let mut sources = self.distinct();
            sources.merge(&other.distinct());
            self.sources = sources.0.to_vec();
            self.usual = self.usual.max(other.usual);
            self.told |= other.told;
        }
    }
}

// A record that sums up a flood says how many flows it stands for.
fn flows_of(row: &Row<'_>) -> u64 {
    if text(row.columns.end_reason, row.i) != Some("aggregated") {
        return 1;
    }
    let extra = text(row.columns.extra, row.i).unwrap_or_default();
    let digits = extra.split_once("\"aggregated_flows\":").map_or("", |(_, rest)| rest);
    let digits: &str = digits.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or(1)
}

/// `flood.victim`.
pub fn flood(wide: &mut Wide, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    if !(row.news.first_record || row.news.failed) || !context.settings.runs(Detector::FloodVictim) {
        return;
    }
    let (dst, protocol) = (row.dst(), row.protocol());
    if !matches!(protocol, TCP | UDP) || !is_one_host(dst) {
        return;
    }
    let settings = &context.settings.flood;
    let least = f64::from(settings.flows_a_second) * SLOT_SECONDS;
    wide.dirty = true;
    let victim = wide.victims.get_or_insert_with((dst, row.dst_port()), Victim::default);
    if !victim.turn(row.facts.time[row.i], least) {
        return;
    }
    if row.news.first_record {
        victim.flows = victim.flows.saturating_add(flows_of(row));
        if victim.sources.is_empty() {
            victim.sources.resize(4, 0);
        }
        let hash = host_hash(row.src());
        victim.sources[(hash >> 6) as usize % 4] |= 1 << (hash & 63);
    }
    victim.failed = victim.failed.saturating_add(u64::from(row.news.failed));
    let limit = least.max(settings.factor * victim.usual);
    if victim.told || (victim.flows as f64) < limit {
        return;
    }
    let lasts = victim.slot.saturating_sub(victim.last_told) <= 30;
    (victim.told, victim.last_told) = (true, victim.slot);
    if !lasts || victim.source.len() != 16 {
        victim.source = row.src().0.to_be_bytes().to_vec();
    }
    let source = victim.source.as_slice().try_into().map_or(row.src(), Host::from_bytes);
    let sources = victim.distinct().estimate();
    let (flows, unanswered) = (victim.flows as f64, victim.failed as f64 / victim.flows as f64);
    let service = service_name(dst, row.dst_port(), protocol);
    let who = if sources < FEW_SOURCES {
        source.to_string()
    } else {
        format!("{sources:.0} sources")
    };
    out.push(Finding {
        title: format!(
            "Flood of {service} by {who}: {:.0} connections a second",
            flows / SLOT_SECONDS
        ),
        source,
        confidence: (0.5 + 0.45 * (1.0 - limit / (flows + limit))).min(0.95),
        targets: vec![Target::Service(dst, row.dst_port(), protocol)],
        features: vec![
            feature_within(
                "connections_a_second",
                "flows/s",
                flows / SLOT_SECONDS,
                victim.usual / SLOT_SECONDS,
                1.0,
                limit / SLOT_SECONDS,
            ),
            feature("sources", "hosts", f64::from(sources), 0.0, 0.0),
            feature("unanswered_share", "1", unanswered, 0.0, 0.0),
        ],
        score: flows / SLOT_SECONDS,
        threshold: limit / SLOT_SECONDS,
        ..Finding::of(Detector::FloodVictim, row, service)
    });
}

/// The failed attempts at one host.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Probed {
    /// When the window began.
    #[prost(sfixed64, tag = "1")]
    pub began: Nanos,
    /// Ports, as [`Distinct`] has it.
    #[prost(fixed64, repeated, tag = "2")]
    pub ports: Vec<u64>,
    /// Sources, likewise.
    #[prost(fixed64, repeated, tag = "3")]
    pub sources: Vec<u64>,
    /// The window was told.
    #[prost(bool, tag = "4")]
    pub told: bool,
}

impl Probed {
    fn add(&mut self, port: u64, source: u64) -> (f32, f32) {
        let mut sums = [0.0; 2];
        for ((words, hash), sum) in [(&mut self.ports, port), (&mut self.sources, source)]
            .into_iter()
            .zip(&mut sums)
        {
            words.resize(4, 0);
            words[(hash >> 6) as usize % 4] |= 1 << (hash & 63);
            *sum = Distinct(words.as_slice().try_into().unwrap_or_default()).estimate();
        }
        (sums[0], sums[1])
    }
}

/// `scan.distributed`: many ports of one internal host, tried in vain by many sources of which none is a scanner alone.
pub fn distributed(wide: &mut Wide, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    if !row.news.failed || !row.facts.dst_inside[row.i] || !context.settings.runs(Detector::ScanDistributed) {
        return;
    }
    let settings = &context.settings.distributed;
    let (dst, time) = (row.dst(), row.facts.time[row.i]);
    let fresh = || Probed {
        began: time,
        ..Probed::default()
    };
    wide.dirty = true;
    let probed = wide.probed.get_or_insert_with(dst, fresh);
    if time.saturating_sub(probed.began) > settings.window {
        *probed = fresh();
    }
    let port = crate::domain::activity::port_hash(row.protocol(), row.dst_port());
    let (ports, sources) = probed.add(port, host_hash(row.src()));
    let (ports, sources) = (f64::from(ports), f64::from(sources));
    let alone = context.settings.vertical.count as f64;
    if probed.told || ports < settings.ports || sources < settings.sources || ports / sources >= alone {
        return;
    }
    probed.told = true;
    out.push(Finding {
        title: format!("Port scan of {dst} that {sources:.0} sources share: {ports:.0} ports"),
        confidence: 0.6 + 0.3 * (1.0 - settings.ports / ports),
        targets: vec![Target::Host(dst)],
        features: vec![
            feature_within("failed_ports", "ports", ports, 0.0, 1.0, settings.ports - 1.0),
            feature_within("sources", "hosts", sources, 1.0, 0.0, settings.sources - 1.0),
        ],
        score: ports,
        threshold: settings.ports,
        ..Finding::of(Detector::ScanDistributed, row, dst.to_string())
    });
}
