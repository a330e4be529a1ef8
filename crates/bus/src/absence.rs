//! What is said about a broker that is away: once when it goes, once a minute while it is gone, once when it is back.
//! The client tries twice a second, and a line for each try would bury everything else.

use std::time::{Duration, Instant};

/// Least time between two lines about the same absence.
const EVERY: Duration = Duration::from_secs(60);

/// Whether the broker is there, and what was said about it.
#[derive(Debug, Default)]
pub(crate) struct Absence {
    now: State,
}

#[derive(Debug, Default)]
enum State {
    /// Not connected yet, and nothing was said.
    #[default]
    New,
    Here,
    Away {
        since: Instant,
        said: Instant,
        attempts: u64,
    },
}

/// What is worth a line in the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The first connection, at the first try.
    Connected,
    /// There is no connection any more, or never was one.
    Lost,
    /// Still none.
    StillAway {
        /// Since it was lost.
        away: Duration,
        /// Failed attempts since then.
        attempts: u64,
    },
    /// There is one again.
    Back {
        /// How long there was none.
        away: Duration,
        /// Failed attempts in that time.
        attempts: u64,
    },
}

impl Absence {
    /// A connection stands.
    pub(crate) fn connected(&mut self, now: Instant) -> Notice {
        match std::mem::replace(&mut self.now, State::Here) {
            State::Away { since, attempts, .. } => Notice::Back {
                away: now.duration_since(since),
                attempts,
            },
            State::New | State::Here => Notice::Connected,
        }
    }

    /// The connection is gone.
    pub(crate) fn lost(&mut self, now: Instant) -> Option<Notice> {
        if matches!(self.now, State::Away { .. }) {
            return None;
        }
        self.now = State::Away {
            since: now,
            said: now,
            attempts: 0,
        };
        Some(Notice::Lost)
    }

    /// An attempt to connect failed.
    pub(crate) fn failed(&mut self, now: Instant) -> Option<Notice> {
        let first = self.lost(now);
        let State::Away { since, said, attempts } = &mut self.now else {
            return first;
        };
        *attempts += 1;
        if first.is_some() || now.duration_since(*said) < EVERY {
            return first;
        }
        *said = now;
        Some(Notice::StillAway {
            away: now.duration_since(*since),
            attempts: *attempts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_without_the_broker_is_sixty_lines_and_not_thousands() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut absence = Absence::default();
        assert_eq!(absence.connected(at(0.0)), Notice::Connected);
        assert_eq!(absence.lost(at(1.0)), Some(Notice::Lost));
        assert_eq!(absence.lost(at(1.1)), None);
        let mut said = Vec::new();
        for attempt in 1..=7_200 {
            said.extend(absence.failed(at(1.0 + f64::from(attempt) / 2.0)));
        }
        assert_eq!(said.len(), 60);
        let first = Notice::StillAway {
            away: Duration::from_secs(60),
            attempts: 120,
        };
        assert_eq!(said[0], first);
        let back = absence.connected(at(3_602.0));
        let expected = Notice::Back {
            away: Duration::from_secs(3_601),
            attempts: 7_200,
        };
        assert_eq!(back, expected);
        // The next absence is said at once again.
        assert_eq!(absence.lost(at(3_603.0)), Some(Notice::Lost));
    }

    #[test]
    fn a_broker_that_was_never_there_is_said_once_too() {
        let start = Instant::now();
        let mut absence = Absence::default();
        let said: Vec<_> = (0..100)
            .filter_map(|n| absence.failed(start + Duration::from_millis(500 * n)))
            .collect();
        assert_eq!(said, [Notice::Lost]);
        let back = absence.connected(start + Duration::from_secs(51));
        assert!(matches!(back, Notice::Back { attempts: 100, .. }), "{back:?}");
    }
}
