//! A hierarchical timer wheel (Varghese and Lauck, 1987) whose lists run beside the flows.
//!
//! Each flow is in one bucket. A packet does not touch the wheel: when a bucket comes up, each of its flows is asked
//! for its deadline and goes back in if that has moved.
//!
//! The lists are in an array of their own, which is small enough to stay near: a flow's neighbours change without the
//! flows being touched, and whoever walks a list knows whom it comes to before it gets there.

use super::flow::NONE;

const TICK_BITS: u32 = 23;
const LEVEL_BITS: u32 = 8;
const LEVELS: usize = 4;
const SLOTS: usize = 1 << LEVEL_BITS;

/// Length of a tick, nanoseconds: about 8 ms.
pub const TICK: i64 = 1 << TICK_BITS;

/// A slot's neighbours in its bucket, or in the list of free slots.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The slot behind it.
    pub next: u32,
    /// The slot before it.
    pub previous: u32,
}

impl Link {
    /// In no list.
    pub const NONE: Self = Self {
        next: NONE,
        previous: NONE,
    };
}

/// The wheel. Times are nanoseconds since the epoch.
pub struct Wheel {
    heads: Box<[u32]>,
    // The tick that is handled, counted from `epoch`, and how many of its levels are still to be looked at.
    now: u64,
    levels: u32,
    epoch: Option<i64>,
}

impl Default for Wheel {
    fn default() -> Self {
        Self {
            heads: vec![NONE; LEVELS * SLOTS].into_boxed_slice(),
            now: 0,
            levels: 0,
            epoch: None,
        }
    }
}

impl Wheel {
    /// Sets the time the wheel starts at, once.
    pub fn start(&mut self, time: i64) {
        self.epoch.get_or_insert(time);
    }

    /// The time of the tick that is handled: what is due by then is due now. `i64::MAX` before the start.
    pub fn now(&self) -> i64 {
        match self.epoch {
            Some(epoch) => epoch + (self.now as i64) * TICK,
            None => i64::MAX,
        }
    }

    fn tick(&self, time: i64) -> u64 {
        let since = time.saturating_sub(self.epoch.unwrap_or(time)).max(0);
        (since as u64).div_ceil(TICK as u64)
    }

    /// Puts a flow into the bucket of its deadline, at the earliest the next tick. Gives the bucket.
    pub fn insert(&mut self, links: &mut [Link], slot: u32, deadline: i64) -> u16 {
        let tick = self.tick(deadline).max(self.now + 1);
        let ahead = tick - self.now;
        let level = (LEVELS as u32 - 1).min((63 - ahead.leading_zeros()) / LEVEL_BITS);
        // Beyond the last level's reach a timer comes up early and is put back.
        let reach = ahead.min((1 << (LEVEL_BITS * LEVELS as u32)) - 1);
        let place = ((self.now + reach) >> (LEVEL_BITS * level)) as usize % SLOTS;
        let bucket = level as usize * SLOTS + place;
        let head = std::mem::replace(&mut self.heads[bucket], slot);
        if let Some(behind) = links.get_mut(head as usize) {
            behind.previous = slot;
        }
        links[slot as usize] = Link {
            next: head,
            previous: NONE,
        };
        bucket as u16
    }

    /// Takes a flow out of its bucket.
    pub fn remove(&mut self, links: &mut [Link], slot: u32, bucket: u16) {
        let Link { next, previous } = links[slot as usize];
        match previous {
            NONE => self.heads[usize::from(bucket)] = next,
            previous => links[previous as usize].next = next,
        }
        if let Some(behind) = links.get_mut(next as usize) {
            behind.previous = previous;
        }
    }

    /// Goes on towards `time` and gives the first flow of a chain linked by [`Link::next`], each of which the caller must
    /// act on if it is due by [`now`](Self::now), or insert again. `None` once `time` is reached.
    pub fn advance(&mut self, time: i64) -> Option<u32> {
        let target = self.target(time);
        loop {
            // On round numbers the higher levels come up too; their flows are handled or go down a level.
            while self.levels > 0 {
                self.levels -= 1;
                let shift = LEVEL_BITS * self.levels;
                if self.now & ((1 << shift) - 1) != 0 {
                    continue;
                }
                let place = (self.now >> shift) as usize % SLOTS;
                let bucket = self.levels as usize * SLOTS + place;
                let head = std::mem::replace(&mut self.heads[bucket], NONE);
                if head != NONE {
                    return Some(head);
                }
            }
            if self.now >= target {
                return None;
            }
            self.now += 1;
            self.levels = LEVELS as u32;
        }
    }

    /// The first flow of those whose timers come up with the next tick; `NONE` where there is none.
    pub fn coming(&self) -> u32 {
        self.heads[(self.now + 1) as usize % SLOTS]
    }

    /// Whether `time` is so far ahead that walking there tick by tick would take longer than asking every flow.
    pub fn is_far(&self, time: i64) -> bool {
        self.target(time).saturating_sub(self.now) > 1 << 20
    }

    /// Empties the wheel and sets it to `time`. The caller inserts every flow again.
    pub fn jump(&mut self, time: i64) {
        self.heads.fill(NONE);
        self.levels = 0;
        self.now = self.target(time).max(self.now);
    }

    fn target(&self, time: i64) -> u64 {
        let since = time.saturating_sub(self.epoch.unwrap_or(time)).max(0);
        since as u64 / TICK as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_timer_comes_up_once_at_its_tick(
            deadlines in prop::collection::vec(0_i64..3_000_000, 1..60),
            removed in prop::collection::vec(any::<bool>(), 60),
            step in 1_i64..200_000,
        ) {
            let mut links = vec![Link::NONE; deadlines.len()];
            let mut wheel = Wheel::default();
            wheel.start(1_000);
            let due = |i: usize| 1_000 + deadlines[i] * (TICK / 100);
            let buckets: Vec<u16> =
                (0..deadlines.len()).map(|i| wheel.insert(&mut links, i as u32, due(i))).collect();
            let mut kept = Vec::new();
            for (i, removed) in removed.iter().enumerate().take(deadlines.len()) {
                if *removed {
                    wheel.remove(&mut links, i as u32, buckets[i]);
                } else {
                    kept.push(i);
                }
            }
            let mut fired = Vec::new();
            let mut time = 1_000;
            while time < 1_000 + 3_000_100 * (TICK / 100) {
                time += step * (TICK / 100);
                while let Some(mut slot) = wheel.advance(time) {
                    while slot != NONE {
                        let next = links[slot as usize].next;
                        let at = due(slot as usize);
                        if at <= wheel.now() {
                            prop_assert!(wheel.now() - at <= 2 * TICK, "late by {}", wheel.now() - at);
                            fired.push(slot as usize);
                        } else {
                            wheel.insert(&mut links, slot, at);
                        }
                        slot = next;
                    }
                }
            }
            fired.sort_unstable();
            prop_assert_eq!(fired, kept);
        }
    }
}
