use chrono::{DateTime, TimeDelta, Utc};

/// Shuts a login name for a while after repeated failures, each time twice as long (NIST SP 800-63B, 5.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lockout {
    /// The failure in a row that first shuts the account; at least 1.
    pub threshold: u32,
    /// How long the first lock lasts.
    pub base: TimeDelta,
    /// No lock lasts longer.
    pub max: TimeDelta,
    /// Failures older than this are forgotten.
    pub forget_after: TimeDelta,
}

impl Lockout {
    /// How many failures stand after one more, given the count and time of the last one.
    pub fn count(&self, failures: u32, last: DateTime<Utc>, now: DateTime<Utc>) -> u32 {
        if now - last > self.forget_after {
            1
        } else {
            failures.saturating_add(1)
        }
    }

    /// Until when the account stays shut after the given number of failures in a row; `None` below the threshold.
    pub fn locked_until(&self, failures: u32, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let over = failures.checked_sub(self.threshold)?;
        // 2^20 × a second is beyond any maximum; the shift stays within i32.
        let delay = self
            .base
            .checked_mul(1 << over.min(20))
            .map_or(self.max, |delay| delay.min(self.max));
        Some(now + delay)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOCKOUT: Lockout = Lockout {
        threshold: 5,
        base: TimeDelta::seconds(30),
        max: TimeDelta::seconds(900),
        forget_after: TimeDelta::hours(1),
    };

    #[test]
    fn doubles_from_the_threshold_to_the_maximum() {
        let now = DateTime::UNIX_EPOCH;
        let delays: Vec<_> = (1..=12)
            .map(|failures| {
                LOCKOUT
                    .locked_until(failures, now)
                    .map(|until| (until - now).num_seconds())
            })
            .collect();
        assert_eq!(delays[..4], [None; 4]);
        let locked: Vec<_> = delays[4..].iter().flatten().copied().collect();
        assert_eq!(locked, [30, 60, 120, 240, 480, 900, 900, 900]);
    }

    #[test]
    fn old_failures_are_forgotten() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(1);
        assert_eq!(LOCKOUT.count(7, now - TimeDelta::minutes(59), now), 8);
        assert_eq!(LOCKOUT.count(7, now - TimeDelta::minutes(61), now), 1);
    }

    proptest! {
        #[test]
        fn never_shorter_for_more_failures(failures in 0u32..u32::MAX) {
            let now = DateTime::UNIX_EPOCH;
            prop_assert!(LOCKOUT.locked_until(failures, now) <= LOCKOUT.locked_until(failures + 1, now));
        }
    }
}
