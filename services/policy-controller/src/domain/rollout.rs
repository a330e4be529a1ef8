//! Whether a new version stays.

use serde_json::{Value, json};

/// When a version is too much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Denied connections per second beyond those before.
    pub most: f64,
    /// How many looks in a row must find more.
    pub looks: u32,
    /// Seconds that a version is watched.
    pub watch: i64,
}

/// How far a version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is enforced, and looked at.
    Watching,
    /// It stays.
    Kept,
    /// The one before is enforced again.
    Returned,
}

impl Phase {
    fn word(self) -> &'static str {
        match self {
            Self::Watching => "Watching",
            Self::Kept => "Kept",
            Self::Returned => "Returned",
        }
    }
}

/// How the newest version of a policy does.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// The version: the generation of `spec`.
    pub generation: i64,
    /// How far it is.
    pub phase: Phase,
    /// Seconds since the epoch at which it was first enforced.
    pub since: i64,
    /// Denied connections per second before it. `None` while that could not be asked.
    pub before: Option<f64>,
    /// Denied connections per second at the last look.
    pub denied: Option<f64>,
    /// Looks in a row that found too many.
    pub over: u32,
    /// The version before it that was kept; `None` when it is the first.
    pub previous: Option<i64>,
}

impl Rollout {
    /// A new version begins.
    pub fn begin(generation: i64, previous: Option<i64>, before: Option<f64>, now: i64) -> Self {
        Self {
            generation,
            phase: Phase::Watching,
            since: now,
            before,
            denied: None,
            over: 0,
            previous,
        }
    }

    /// One look at it. A figure that could not be had counts for nothing: the watch is over when its time is.
    pub fn look(&mut self, denied: Option<f64>, bound: &Bound, now: i64) {
        if self.phase != Phase::Watching {
            return;
        }
        if let Some(denied) = denied {
            self.denied = Some(denied);
            // Without a figure from before, the first one is what there was.
            let before = *self.before.get_or_insert(denied);
            self.over = if denied - before > bound.most { self.over + 1 } else { 0 };
            if self.over >= bound.looks {
                self.phase = Phase::Returned;
                return;
            }
        }
        if now >= self.since + bound.watch {
            self.phase = Phase::Kept;
        }
    }

    /// As the status has it.
    pub fn to_status(&self, time: impl Fn(i64) -> String) -> Value {
        json!({
            "generation": self.generation,
            "phase": self.phase.word(),
            "since": time(self.since),
            "deniedBefore": self.before,
            "denied": self.denied,
            "previous": self.previous,
        })
    }

    /// From a status, as an earlier process wrote it.
    pub fn read(status: &Value, seconds: impl Fn(&str) -> Option<i64>) -> Option<Self> {
        let rollout = status.get("rollout")?;
        let phase = rollout.get("phase")?.as_str()?;
        Some(Self {
            generation: rollout.get("generation")?.as_i64()?,
            phase: [Phase::Watching, Phase::Kept, Phase::Returned]
                .into_iter()
                .find(|p| p.word() == phase)?,
            since: seconds(rollout.get("since")?.as_str()?)?,
            before: rollout.get("deniedBefore").and_then(Value::as_f64),
            denied: rollout.get("denied").and_then(Value::as_f64),
            over: 0,
            previous: rollout.get("previous").and_then(Value::as_i64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Bound = Bound {
        most: 5.0,
        looks: 2,
        watch: 60,
    };

    #[test]
    fn a_version_that_denies_no_more_than_before_stays() {
        let mut rollout = Rollout::begin(2, Some(1), Some(10.0), 100);
        for (now, denied) in [(110, Some(14.0)), (120, Some(99.0)), (130, Some(15.0)), (140, None)] {
            rollout.look(denied, &BOUND, now);
            assert_eq!(rollout.phase, Phase::Watching, "{now}");
        }
        rollout.look(Some(12.0), &BOUND, 160);
        assert_eq!(rollout.phase, Phase::Kept);
        rollout.look(Some(1_000.0), &BOUND, 170);
        assert_eq!(rollout.phase, Phase::Kept);
    }

    #[test]
    fn one_that_denies_too_much_goes_back() {
        let mut rollout = Rollout::begin(2, Some(1), None, 100);
        rollout.look(Some(3.0), &BOUND, 101);
        rollout.look(Some(9.0), &BOUND, 102);
        assert_eq!((rollout.phase, rollout.over), (Phase::Watching, 1));
        rollout.look(Some(8.5), &BOUND, 103);
        assert_eq!((rollout.phase, rollout.before), (Phase::Returned, Some(3.0)));
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let mut rollout = Rollout::begin(7, None, Some(1.5), 100);
        rollout.look(Some(2.0), &BOUND, 110);
        let status = json!({"rollout": rollout.to_status(|s| s.to_string())});
        assert_eq!(Rollout::read(&status, |text| text.parse().ok()), Some(rollout));
        assert_eq!(Rollout::read(&Value::Null, |_| None), None);
    }
}
