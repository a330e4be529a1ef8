//! A promise of so many alerts a day, kept whatever the traffic does.
//!
//! Something else says how rare a score is now: a [`Spot`] for scores with a tail, or a rank among the last ones. How
//! rare it must be for an alert follows from the promise and from how many scores come: `promised alerts a day / scores
//! a day`. What a tail that has moved, a busy hour or a new kind of traffic makes of this is set right by what was
//! issued: alerts ahead of the promise make the bound stricter, alerts behind it laxer, by the exponential of how many
//! they are (the idea of correcting a promised error rate by the realised one: Gibbs and Candès 2021). So the promise
//! holds over days even where the model of the tail does not.
//!
//! Nothing is lost by it: whoever asks gets for every score that the promise alone would have let through whether it was
//! issued, and if not, why.

use serde::{Deserialize, Serialize};

use crate::spot::{Judgement, Spot};

const DAY: f64 = 86_400.0;
// How long the count of scores remembers, in seconds: about a day, so that nights and days are one.
const MEMORY: f64 = DAY;
// The bound moves by at most this factor either way, as an exponent.
const MOST_CORRECTION: f64 = 4.0;
// A gap in the stream longer than this promises nothing: nobody was watching.
const LONGEST_GAP: f64 = 3_600.0;

/// The widest bound on scores whose rarity a [`Spot`] tells: it knows nothing of what is below the tail.
pub const WIDEST_OF_A_TAIL: f64 = 0.5;

/// The promise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// Alerts a day, above 0.
    pub alerts_a_day: f64,
    /// Scores a day, as far as is known at the start, above 0.
    pub scores_a_day: f64,
    /// For how many seconds of watching that counts: the less, the sooner what really comes takes its place.
    pub known_for: f64,
}

/// Why an unusual score is no alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// Rare enough for the promise, but alerts are ahead of it.
    AheadOfPromise,
    /// It is below the least score that was set.
    BelowFloor,
}

/// What becomes of a score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Usual enough.
    Quiet,
    /// An alert.
    Alert,
    /// Unusual, and held back.
    Held(Held),
}

/// Promised and issued alerts, and where the bound is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetState {
    /// Time of the last score, seconds; none before the first.
    pub latest: Option<f64>,
    /// Scores of about the last day, each weighing less the older it is.
    pub scores: f64,
    /// Seconds that they stand for, weighed alike.
    pub seconds: f64,
    /// Alerts issued beyond those promised so far; below 0 when behind.
    pub ahead: f64,
    /// Alerts promised since the start.
    pub promised: f64,
    /// Alerts issued since the start.
    pub issued: u64,
    /// Scores held back since the start.
    pub held: u64,
}

/// Keeps the promise. It knows nothing of scores, only of how rare they are, so that what says so can be replaced while
/// the promise goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AlarmBudget {
    alerts_a_day: f64,
    state: BudgetState,
}

impl AlarmBudget {
    /// Starts to promise.
    pub fn new(promise: Promise) -> Self {
        Self {
            alerts_a_day: promise.alerts_a_day,
            state: BudgetState {
                scores: promise.scores_a_day.max(1.0) * promise.known_for / DAY,
                seconds: promise.known_for,
                ..BudgetState::default()
            },
        }
    }

    /// Goes on from what was stored.
    pub fn restore(alerts_a_day: f64, state: BudgetState) -> Self {
        Self { alerts_a_day, state }
    }

    /// What to store.
    pub fn state(&self) -> BudgetState {
        self.state
    }

    /// Alerts promised a day.
    pub fn alerts_a_day(&self) -> f64 {
        self.alerts_a_day
    }

    /// Promises another number from now on. What was issued before counts on, as far as the new promise lets it.
    pub fn promise(&mut self, alerts_a_day: f64) {
        self.alerts_a_day = alerts_a_day;
        self.limit();
    }

    /// Takes another guess at the scores a day while nothing was promised yet; later what was counted is better.
    pub fn guess(&mut self, scores_a_day: f64) {
        if self.state.promised <= 0.0 && scores_a_day.is_finite() {
            self.state.scores = scores_a_day.max(1.0) * self.state.seconds / DAY;
        }
    }

    /// Time passes, in seconds, and is promised for. Times that go back count as the latest. Returns how many alerts
    /// were promised for it.
    pub fn pass(&mut self, time: f64) -> f64 {
        if !time.is_finite() {
            return 0.0;
        }
        let state = &mut self.state;
        let gone = state
            .latest
            .map_or(0.0, |latest| (time - latest).clamp(0.0, LONGEST_GAP));
        state.latest = Some(state.latest.map_or(time, |latest| latest.max(time)));
        let kept = (-gone / MEMORY).exp();
        state.scores *= kept;
        state.seconds = state.seconds * kept + gone;
        let due = self.alerts_a_day * gone / DAY;
        state.promised += due;
        state.ahead -= due;
        self.limit();
        due
    }

    /// Time passes while nobody watches: nothing is promised for it.
    pub fn skip(&mut self, time: f64) {
        if time.is_finite() {
            self.state.latest = Some(self.state.latest.map_or(time, |latest| latest.max(time)));
        }
    }

    /// Counts scores, whatever becomes of them.
    pub fn count(&mut self, scores: u64) {
        self.state.scores += scores as f64;
    }

    /// Share of the scores that may be alerts; above 1 when fewer come than are promised.
    pub fn share(&self) -> f64 {
        let scores_a_day = self.state.scores / self.state.seconds.max(1.0) * DAY;
        self.alerts_a_day / scores_a_day.max(1.0)
    }

    /// How rare a score must be now to be an alert.
    pub fn bound(&self) -> f64 {
        // A quarter of a day's alerts ahead makes the bound stricter by e.
        let step = (0.25 * self.alerts_a_day).max(1.0);
        self.share()
            * (-self.state.ahead / step)
                .clamp(-MOST_CORRECTION, MOST_CORRECTION)
                .exp()
    }

    /// Counts an alert.
    pub fn issue(&mut self) {
        self.state.issued += 1;
        self.state.ahead += 1.0;
    }

    /// Counts a score that was held back.
    pub fn hold(&mut self) {
        self.state.held += 1;
    }

    /// What becomes of a score, by how rare it is and whether it is below the floor. Nothing is counted.
    pub fn verdict(&self, rarity: f64, below_floor: bool, widest: f64) -> Verdict {
        // Most scores: neither of the bounds below is asked for.
        if rarity > widest {
            return Verdict::Quiet;
        }
        if !below_floor && rarity <= self.bound().min(widest) {
            Verdict::Alert
        } else if rarity <= self.share().min(widest) {
            Verdict::Held(if below_floor {
                Held::BelowFloor
            } else {
                Held::AheadOfPromise
            })
        } else {
            Verdict::Quiet
        }
    }

    /// Takes a score of a time in seconds, each of which would be an alert of its own. Scores below `floor` are never
    /// one.
    pub fn observe(&mut self, spot: &mut Spot, floor: f64, time: f64, score: f64) -> (Verdict, Judgement) {
        self.pass(time);
        self.count(1);
        let judgement = spot.observe(score);
        // What is no number is above every floor.
        let verdict = self.verdict(judgement.tail_probability, score < floor, WIDEST_OF_A_TAIL);
        match verdict {
            Verdict::Alert => self.issue(),
            Verdict::Held(_) => self.hold(),
            Verdict::Quiet => {}
        }
        (verdict, judgement)
    }

    /// Alerts issued for each one promised since the start; 1 before any was.
    pub fn realised(&self) -> f64 {
        if self.state.promised <= 0.0 {
            1.0
        } else {
            self.state.issued as f64 / self.state.promised
        }
    }

    // A quiet week must not end in a storm, nor a storm in a week of silence.
    fn limit(&mut self) {
        let most = self.alerts_a_day.max(1.0);
        self.state.ahead = self.state.ahead.clamp(-most, 4.0 * most);
    }
}

#[cfg(test)]
mod tests;
