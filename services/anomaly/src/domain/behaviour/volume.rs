//! Exfiltration by volume: a host sends more to the outside within an hour than it ever does, and than its neighbours do.
//!
//! Each host has the decayed mean and spread of the logarithm of its hourly volumes and their decayed maximum; each group
//! of neighbours (a /24, a /64) a histogram of the hourly volumes of its hosts. An alert needs both to be exceeded, as far
//! as both are known. What is learnt of an hour is cut at what was allowed, so that one theft does not excuse the next.

use super::Row;
use crate::domain::{
    detector::Detector,
    finding::{Finding, Target},
    settings::VolumeSettings,
    shard::{Context, Shard, feature, feature_within},
    wide::{Wide, host_hash},
    window::{Host, Nanos, SECOND},
};

const HOUR: Nanos = 3_600 * SECOND;
/// Hours after which the past counts for a third.
const MEMORY: f64 = 72.0;
/// Spreads above the mean that are still usual.
const SPREADS: f64 = 4.0;
/// Host-hours before a group says what is usual.
const LEAST_GROUP_HOURS: u32 = 100;
/// The share of a group's host-hours that is usual.
const GROUP_SHARE: f64 = 0.99;

/// What a host sends to the outside.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Volume {
    /// The hour, since the epoch.
    #[prost(sint64, tag = "1")]
    pub hour: i64,
    /// Octets in it so far.
    #[prost(uint64, tag = "2")]
    pub sent: u64,
    /// Hours before it in which anything was sent.
    #[prost(uint32, tag = "3")]
    pub hours: u32,
    /// Decayed mean of the logarithm of their octets.
    #[prost(double, tag = "4")]
    pub mean: f64,
    /// Decayed variance.
    #[prost(double, tag = "5")]
    pub variance: f64,
    /// Decayed maximum.
    #[prost(double, tag = "6")]
    pub most: f64,
    /// Octets at which the hour is told again; 0 before the first time.
    #[prost(uint64, tag = "7")]
    pub next: u64,
    /// What the hour is allowed.
    #[prost(double, tag = "8")]
    pub limit: f64,
}

impl Volume {
    /// Adds octets. Returns the logarithm of the last hour's when a new one begins.
    pub fn add(&mut self, time: Nanos, octets: u64) -> Option<f64> {
        let hour = time.div_euclid(HOUR);
        let ended = if self.sent > 0 && hour > self.hour {
            let allowed = if self.limit > 0.0 { self.limit.ln() } else { f64::MAX };
            let log = (self.sent as f64).ln_1p().min(allowed);
            self.learn(log);
            Some(log)
        } else {
            None
        };
        if hour > self.hour {
            (self.hour, self.sent, self.next) = (hour, 0, 0);
        }
        self.sent = self.sent.saturating_add(octets);
        ended
    }

    fn learn(&mut self, log: f64) {
        self.hours = self.hours.saturating_add(1);
        let weight = (1.0 / f64::from(self.hours)).max(1.0 / MEMORY);
        let step = log - self.mean;
        self.mean += weight * step;
        self.variance = (1.0 - weight) * (self.variance + weight * step * step);
        // It falls by a factor of two in as long as the memory.
        self.most = (self.most - std::f64::consts::LN_2 / MEMORY).max(log);
    }

    /// The most that is usual for it, octets. `None` before it is known.
    pub fn usual(&self, least_hours: u32) -> Option<f64> {
        (self.hours >= least_hours).then(|| {
            let spread = self.variance.sqrt();
            (self.mean + SPREADS * spread)
                .max(self.most + std::f64::consts::LN_2)
                .exp()
        })
    }
}

/// The hourly volumes of a group of neighbours, by the position of their highest bit.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Group {
    /// Host-hours of each size.
    #[prost(uint32, repeated, tag = "1")]
    pub sizes: Vec<u32>,
}

impl Group {
    /// Adds a host's hour.
    pub fn add(&mut self, log: f64) {
        self.sizes.resize(64, 0);
        let at = (log / std::f64::consts::LN_2).clamp(0.0, 63.0) as usize;
        self.sizes[at] = self.sizes[at].saturating_add(1);
        if self.sizes[at] >= 1 << 20 {
            self.sizes.iter_mut().for_each(|n| *n /= 2);
        }
    }

    /// Adds what another part of the same group has seen.
    pub fn merge(&mut self, other: &Self) {
        self.sizes.resize(64, 0);
        for (mine, theirs) in self.sizes.iter_mut().zip(&other.sizes) {
            *mine = mine.saturating_add(*theirs);
        }
    }

    /// The most that is usual in it, octets. `None` before it is known.
    pub fn usual(&self) -> Option<f64> {
        let all: u32 = self.sizes.iter().fold(0, |sum, n| sum.saturating_add(*n));
        if all < LEAST_GROUP_HOURS {
            return None;
        }
        let mut left = f64::from(all) * (1.0 - GROUP_SHARE);
        let at = self.sizes.iter().rposition(|n| {
            left -= f64::from(*n);
            left < 0.0
        });
        at.map(|at| 2.0_f64.powi(at as i32 + 1))
    }
}

// Neighbours share 24 bits of an IPv4 address and 64 of an IPv6 one.
fn group(host: Host) -> u64 {
    let bits = if host.ip().is_ipv4() { 8 } else { 64 };
    host_hash(Host(host.0 >> bits << bits))
}

fn limit(volume: &Volume, wide: &Wide, host: Host, settings: &VolumeSettings) -> Option<(f64, f64, f64)> {
    let own = volume.usual(settings.hours);
    let peers = wide.groups.peek(&group(host)).and_then(Group::usual);
    let known = match (own, peers) {
        (None, None) => return None,
        (own, peers) => (own.unwrap_or(0.0), peers.unwrap_or(0.0)),
    };
    let limit = (settings.factor * known.0.max(known.1)).max(settings.least as f64);
    Some((limit, known.0, known.1))
}

/// `exfiltration.volume`.
pub fn observe(shard: &mut Shard, wide: &mut Wide, row: &Row<'_>, context: &Context<'_>, out: &mut Vec<Finding>) {
    let (facts, i) = (row.facts, row.i);
    if row.news.bytes == 0
        || !facts.src_inside[i]
        || facts.dst_inside[i]
        || !context.settings.runs(Detector::ExfiltrationVolume)
        || !super::is_one_host(row.dst())
    {
        return;
    }
    let settings = &context.settings.volume;
    let src = row.src();
    let volume = shard.volumes.get_or_insert_with(src, Volume::default);
    if let Some(ended) = volume.add(facts.time[i], row.news.bytes) {
        wide.dirty = true;
        wide.groups.get_or_insert_with(group(src), Group::default).add(ended);
        volume.limit = limit(volume, wide, src, settings).map_or(0.0, |(limit, ..)| limit);
    }
    if volume.sent < settings.least.max(volume.next) {
        return;
    }
    let Some((limit, own, peers)) = limit(volume, wide, src, settings) else {
        return;
    };
    volume.limit = limit;
    let sent = volume.sent as f64;
    if sent <= limit {
        return;
    }
    volume.next = volume.sent.saturating_mul(2);
    let mebibytes = sent / f64::from(1 << 20);
    out.push(Finding {
        title: format!(
            "{src} sent {mebibytes:.0} MiB to the outside within an hour, the latest to {}",
            row.dst()
        ),
        confidence: 0.5 + 0.45 * (1.0 - limit / sent),
        targets: vec![Target::Service(row.dst(), row.dst_port(), row.protocol())],
        features: vec![
            feature_within("octets_sent_an_hour", "octets", sent, own.max(peers), 1.0, limit),
            feature("usual_of_host", "octets", own, own, 0.0),
            feature("usual_of_neighbours", "octets", peers, peers, 0.0),
            feature(
                "octets_of_this_record",
                "octets",
                row.news.bytes as f64,
                (context.usual)("src_bytes"),
                0.0,
            ),
        ],
        score: sent,
        threshold: limit,
        ..Finding::of(Detector::ExfiltrationVolume, row, "outbound volume".to_owned())
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn own_history_bounds_what_is_usual_and_a_theft_does_not_teach() {
        let mut volume = Volume::default();
        for hour in 0..48_i64 {
            volume.add(hour * HOUR, 10_000_000 + 1_000_000 * (hour as u64 % 5));
        }
        let usual = volume.usual(12).unwrap();
        assert!((15e6..60e6).contains(&usual), "{usual}");
        volume.limit = 2.0 * usual;
        volume.add(48 * HOUR, 10_000_000_000);
        volume.add(49 * HOUR, 1);
        assert!(volume.usual(12).unwrap() < 5.0 * usual, "{}", volume.usual(12).unwrap());
    }

    #[test]
    fn a_group_knows_its_usual_after_enough_host_hours() {
        let mut group = Group::default();
        for _ in 0..99 {
            group.add(1e6_f64.ln());
        }
        assert_eq!(group.usual(), None);
        group.add(1e6_f64.ln());
        group.add(1e9_f64.ln());
        let usual = group.usual().unwrap();
        assert!((1e6..4e6).contains(&usual), "{usual}");
    }

    proptest! {
        #[test]
        fn groups_merge_into_the_whole(logs in prop::collection::vec(0.0_f64..50.0, 0..300), cut in any::<prop::sample::Index>()) {
            let group = |logs: &[f64]| {
                let mut group = Group { sizes: vec![0; 64] };
                logs.iter().for_each(|l| group.add(*l));
                group
            };
            let cut = cut.index(logs.len() + 1);
            let mut merged = group(&logs[..cut]);
            merged.merge(&group(&logs[cut..]));
            prop_assert_eq!(merged, group(&logs));
        }

        #[test]
        fn any_times_and_volumes_are_taken(adds in prop::collection::vec((any::<i64>(), any::<u64>()), 0..60)) {
            let mut volume = Volume::default();
            for (time, octets) in adds {
                volume.add(time, octets);
                prop_assert!(volume.usual(1).is_none_or(|u| !u.is_nan()));
            }
        }
    }
}
