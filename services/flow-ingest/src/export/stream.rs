//! What is known of an exporter's observation domain: templates, sampling, sequence.

use std::{collections::HashMap, net::IpAddr};

use super::{Tally, plan::Plan};

/// Samplers kept of one domain.
const SAMPLERS: usize = 256;
/// A jump of the sequence number beyond this is a restart, not a loss.
const RESTART: i32 = 1 << 20;
/// A step back within this is a datagram that came late.
const LATE: i32 = 1 << 10;

/// Whose records: the templates of one do not hold for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct StreamKey {
    /// The exporter's address.
    pub(super) exporter: IpAddr,
    /// 5, 9, 10 for IPFIX, 105 for sFlow 5.
    pub(super) version: u16,
    /// Observation domain, source id, engine, or sub-agent.
    pub(super) domain: u32,
}

/// The state of one.
pub(super) struct Stream {
    pub(super) templates: HashMap<u16, Plan>,
    /// One in how many packets, by sampler.
    pub(super) samplers: Vec<(u64, u32)>,
    /// The same for records that name no sampler.
    pub(super) sampling: Option<u32>,
    /// When it was heard last, nanoseconds since the epoch.
    pub(super) heard: i64,
    expected: Option<u32>,
}

impl Stream {
    pub(super) fn new(heard: i64) -> Self {
        Self {
            templates: HashMap::new(),
            samplers: Vec::new(),
            sampling: None,
            heard,
            expected: None,
        }
    }

    /// Compares a sequence number with the one expected; `units` is by how much this datagram advances it.
    pub(super) fn count(&mut self, sequence: u32, units: u32, tally: &mut Tally) {
        let Some(expected) = self.expected else {
            self.expected = Some(sequence.wrapping_add(units));
            return;
        };
        let ahead = sequence.wrapping_sub(expected) as i32;
        match ahead {
            0 => {}
            1..=RESTART => tally.missing += ahead as u64,
            // It was counted as missing when the later one came.
            _ if (-LATE..0).contains(&ahead) => {
                tally.late += 1;
                tally.missing = tally.missing.saturating_sub(units.into());
                return;
            }
            _ => tally.restarts += 1,
        }
        self.expected = Some(sequence.wrapping_add(units));
    }

    /// The next sequence number cannot be told.
    pub(super) fn forget_sequence(&mut self) {
        self.expected = None;
    }

    /// Notes the rate of a sampler, or of the whole domain. Says whether it is news.
    pub(super) fn note_sampling(&mut self, sampler: Option<u64>, rate: u32) -> bool {
        let Some(sampler) = sampler else {
            return self.sampling.replace(rate) != Some(rate);
        };
        if let Some((_, known)) = self.samplers.iter_mut().find(|(id, _)| *id == sampler) {
            return std::mem::replace(known, rate) != rate;
        }
        let room = self.samplers.len() < SAMPLERS;
        if room {
            self.samplers.push((sampler, rate));
        }
        room
    }

    /// The rate of a sampler.
    pub(super) fn sampler(&self, sampler: u64) -> Option<u32> {
        self.samplers
            .iter()
            .find(|(id, _)| *id == sampler)
            .map(|(_, rate)| *rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_late_ones_and_restarts_are_told_apart() {
        let (mut stream, mut tally) = (Stream::new(0), Tally::default());
        let mut seen = |sequence, units| {
            stream.count(sequence, units, &mut tally);
            (tally.missing, tally.late, tally.restarts)
        };
        assert_eq!(seen(u32::MAX - 1, 2), (0, 0, 0));
        assert_eq!(seen(0, 3), (0, 0, 0));
        assert_eq!(seen(10, 1), (7, 0, 0));
        assert_eq!(seen(3, 4), (3, 1, 0));
        assert_eq!(seen(11, 1), (3, 1, 0));
        assert_eq!(seen(4_000_000_000, 1), (3, 1, 1));
        assert_eq!(seen(4_000_000_001, 1), (3, 1, 1));
    }

    #[test]
    fn samplers_are_bounded() {
        let mut stream = Stream::new(0);
        for id in 0..2 * SAMPLERS as u64 {
            stream.note_sampling(Some(id), 10);
        }
        assert_eq!(stream.samplers.len(), SAMPLERS);
        assert!(stream.note_sampling(Some(0), 11));
        assert!(!stream.note_sampling(Some(0), 11));
        assert_eq!(stream.sampler(0), Some(11));
    }
}
