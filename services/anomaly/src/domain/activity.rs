//! What a source did in the last minute, in constant memory: buckets of counters and linear-counting
//! bitmaps, which merge by addition and by `or`.

use std::sync::LazyLock;

use super::{
    rng::mix,
    window::{Nanos, SECOND},
};

/// Length of one bucket, seconds.
pub const BUCKET_SECONDS: i64 = 10;
/// Buckets in the window.
pub const BUCKETS: usize = 6;

const WORDS: usize = 4;

/// Estimates how many different values were seen (linear counting: Whang, Vander-Zanden, Taylor 1990). With
/// 256 bits the standard error is about 5 % at 100 values; it saturates near 1,400.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Distinct(pub [u64; WORDS]);

impl Distinct {
    /// Notes a value by its hash.
    pub fn add(&mut self, hash: u64) {
        self.0[(hash >> 6) as usize % WORDS] |= 1 << (hash & 63);
    }

    /// Adds everything another one has seen.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine |= theirs;
        }
    }

    /// The estimate.
    pub fn estimate(&self) -> f32 {
        static BY_ZEROS: LazyLock<[f32; WORDS * 64 + 1]> = LazyLock::new(|| {
            let bits = (WORDS * 64) as f32;
            std::array::from_fn(|zeros| -bits * ((zeros as f32).max(1.0) / bits).ln())
        });
        let zeros: u32 = self.0.iter().map(|w| w.count_zeros()).sum();
        BY_ZEROS[zeros as usize]
    }
}

/// One bucket of a [`SourceActivity`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Flow time divided by the bucket's length.
    pub index: i64,
    /// Flows opened.
    pub flows: u32,
    /// Flows that failed.
    pub failed: u32,
    /// Payload octets sent as opener.
    pub bytes: u64,
    /// Hosts called.
    pub hosts: Distinct,
    /// Ports called.
    pub ports: Distinct,
}

/// The last minute of a source, on flow time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceActivity {
    /// The buckets; the one of index `i` is at `i` modulo their number.
    pub buckets: [Bucket; BUCKETS],
}

/// A [`SourceActivity`] summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ActivitySummary {
    /// Flows opened.
    pub flows: f32,
    /// Share of them that failed.
    pub failed_share: f32,
    /// Payload octets sent.
    pub bytes: f32,
    /// Different hosts called, estimated.
    pub hosts: f32,
    /// Different ports called, estimated.
    pub ports: f32,
}

impl SourceActivity {
    /// The bucket of a time, emptied when it held an older one. `None` for a time the window has left behind.
    pub fn bucket(&mut self, time: Nanos) -> Option<&mut Bucket> {
        let index = time.div_euclid(BUCKET_SECONDS * SECOND);
        let slot = &mut self.buckets[index.rem_euclid(BUCKETS as i64) as usize];
        if slot.index > index {
            return None;
        }
        if slot.index < index {
            *slot = Bucket {
                index,
                ..Bucket::default()
            };
        }
        Some(slot)
    }

    /// What lies in the window that ends at `time`.
    pub fn summary(&self, time: Nanos) -> ActivitySummary {
        let last = time.div_euclid(BUCKET_SECONDS * SECOND);
        let mut sum = Bucket::default();
        for bucket in &self.buckets {
            if bucket.index <= last && bucket.index > last - BUCKETS as i64 {
                sum.flows = sum.flows.saturating_add(bucket.flows);
                sum.failed = sum.failed.saturating_add(bucket.failed);
                sum.bytes = sum.bytes.saturating_add(bucket.bytes);
                sum.hosts.merge(&bucket.hosts);
                sum.ports.merge(&bucket.ports);
            }
        }
        ActivitySummary {
            flows: sum.flows as f32,
            failed_share: sum.failed as f32 / sum.flows.max(1) as f32,
            bytes: sum.bytes as f32,
            hosts: sum.hosts.estimate(),
            ports: sum.ports.estimate(),
        }
    }
}

/// Hash of a host for [`Distinct`].
pub fn host_hash(host: u128) -> u64 {
    mix(mix(host as u64) ^ (host >> 64) as u64)
}

/// Hash of a port of a protocol for [`Distinct`].
pub fn port_hash(protocol: u8, port: u16) -> u64 {
    mix(u64::from(protocol) << 16 | u64::from(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_values_are_estimated_within_a_few_percent() {
        for n in [1_u64, 10, 100, 300] {
            let mut d = Distinct::default();
            for i in 0..n {
                d.add(host_hash(u128::from(i) + 77));
                d.add(host_hash(u128::from(i) + 77));
            }
            let error = (d.estimate() / n as f32 - 1.0).abs();
            assert!(error < 0.2, "{n}: {}", d.estimate());
        }
        let mut full = Distinct([u64::MAX; WORDS]);
        full.merge(&Distinct::default());
        assert!(full.estimate().is_finite());
    }

    #[test]
    fn the_window_slides_and_refuses_what_it_left_behind() {
        let mut a = SourceActivity::default();
        for second in 0..120 {
            if let Some(b) = a.bucket(second * SECOND) {
                b.flows += 1;
                b.failed += u32::from(second % 2 == 0);
                b.bytes += 10;
                b.ports.add(port_hash(6, second as u16));
            }
        }
        let s = a.summary(119 * SECOND);
        assert_eq!(s.flows, 60.0);
        assert_eq!(s.failed_share, 0.5);
        assert_eq!(s.bytes, 600.0);
        assert!((s.ports - 60.0).abs() < 10.0);
        assert!(a.bucket(5 * SECOND).is_none());
        assert_eq!(a.summary(1_000 * SECOND).flows, 0.0);
    }

    #[test]
    fn times_before_the_epoch_do_not_panic() {
        let mut a = SourceActivity::default();
        assert!(a.bucket(i64::MIN).is_none());
        assert!(a.bucket(i64::MAX).is_some());
        a.summary(i64::MIN);
    }
}
