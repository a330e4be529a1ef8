//! What was promised and what became of it, by the hour.

/// Hours that are remembered: a week.
const HOURS: usize = 7 * 24;

/// Promised and real alerts of some time.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Count {
    /// Alerts promised.
    #[prost(double, tag = "1")]
    pub promised: f64,
    /// Alerts told on the budget.
    #[prost(uint64, tag = "2")]
    pub issued: u64,
    /// Alerts told that are never held back.
    #[prost(uint64, tag = "3")]
    pub exempt: u64,
    /// Alerts held back.
    #[prost(uint64, tag = "4")]
    pub held: u64,
    /// Of these, raised by a person.
    #[prost(uint64, tag = "5")]
    pub released: u64,
    /// Of these, only counted, because more were held back than are kept.
    #[prost(uint64, tag = "6")]
    pub not_kept: u64,
}

impl Count {
    /// Alerts held back that were kept whole.
    pub fn kept(&self) -> u64 {
        self.held.saturating_sub(self.not_kept)
    }

    /// Adds another time's.
    pub fn add(&mut self, other: &Self) {
        self.promised += other.promised;
        self.issued += other.issued;
        self.exempt += other.exempt;
        self.held += other.held;
        self.released += other.released;
        self.not_kept += other.not_kept;
    }
}

/// One hour.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Hour {
    /// Hours since the epoch.
    #[prost(sint64, tag = "1")]
    pub hour: i64,
    /// What it had.
    #[prost(message, required, tag = "2")]
    pub count: Count,
}

/// The counts of the last week by the hour, and of all time before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    // Oldest first; the last is open.
    hours: Vec<Hour>,
    // What hours that were dropped had.
    before: Count,
    // When it began.
    since: i64,
}

impl Ledger {
    /// Puts back what was stored. Hours in another order than that of time are left out.
    pub fn restore(hours: Vec<Hour>, before: Count, since: i64) -> Self {
        let mut ledger = Self {
            before,
            since,
            hours: Vec::new(),
        };
        for hour in hours {
            if ledger.hours.last().is_none_or(|last| last.hour < hour.hour) {
                ledger.hours.push(hour);
            }
        }
        ledger
    }

    /// The hours, oldest first.
    pub fn hours(&self) -> &[Hour] {
        &self.hours
    }

    /// What came before them.
    pub fn before(&self) -> Count {
        self.before
    }

    /// The first hour of all, since the epoch; 0 before there was one.
    pub fn since(&self) -> i64 {
        self.since
    }

    /// The count of an hour; one that is over counts in the latest.
    pub fn at(&mut self, hour: i64) -> &mut Count {
        if self.since == 0 {
            self.since = hour;
        }
        if self.hours.last().is_none_or(|last| last.hour < hour) {
            if self.hours.len() == HOURS {
                let dropped = self.hours.remove(0);
                self.before.add(&dropped.count);
            }
            self.hours.push(Hour {
                hour,
                count: Count::default(),
            });
        }
        let last = self.hours.len() - 1;
        &mut self.hours[last].count
    }

    /// The last hours together, that of now among them.
    pub fn last(&self, now: i64, hours: i64) -> Count {
        let mut sum = Count::default();
        let recent = self.hours.iter().rev().take_while(|h| h.hour > now - hours);
        recent.for_each(|h| sum.add(&h.count));
        sum
    }

    /// Everything since it began.
    pub fn total(&self) -> Count {
        let mut sum = self.before;
        self.hours.iter().for_each(|h| sum.add(&h.count));
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_week_is_remembered_by_the_hour_and_the_rest_as_a_sum() {
        let mut ledger = Ledger::default();
        for hour in 1_000..1_000 + 400 {
            let count = ledger.at(hour);
            count.promised += 2.0;
            count.issued += 1;
        }
        // An hour that is over counts in the latest.
        ledger.at(5).issued += 1;
        assert_eq!((ledger.hours().len(), ledger.since()), (HOURS, 1_000));
        assert_eq!(ledger.total().issued, 401);
        assert_eq!(ledger.total().promised, 800.0);
        let day = ledger.last(1_399, 24);
        assert_eq!((day.promised, day.issued), (48.0, 25));
        assert_eq!(ledger.last(5_000, 24), Count::default());
        let again = Ledger::restore(ledger.hours().to_vec(), ledger.before(), ledger.since());
        assert_eq!(again, ledger);
    }

    #[test]
    fn hours_out_of_order_are_left_out() {
        let hour = |hour| Hour {
            hour,
            count: Count::default(),
        };
        let ledger = Ledger::restore(vec![hour(5), hour(4), hour(6)], Count::default(), 5);
        assert_eq!(ledger.hours().iter().map(|h| h.hour).collect::<Vec<_>>(), [5, 6]);
    }
}
