//! A promise of so many alerts a day, kept whatever the traffic does.
//!
//! A [`Spot`] says how rare a score is now. How rare it must be for an alert follows from the promise and from how many
//! scores come: `promised alerts a day / scores a day`. What a tail that has moved, a busy hour or a new kind of traffic
//! makes of this is set right by what was issued: alerts ahead of the promise make the bound stricter, alerts behind it
//! laxer, by the exponential of how many they are (the idea of correcting a promised error rate by the realised one:
//! Gibbs and Candès 2021). So the promise holds over days even where the model of the tail does not.
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

/// The promise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// Alerts a day, above 0.
    pub alerts_a_day: f64,
    /// Scores a day, as far as is known at the start, above 0.
    pub scores_a_day: f64,
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

/// Keeps the promise.
#[derive(Clone, Debug, PartialEq)]
pub struct AlarmBudget {
    promise: Promise,
    floor: f64,
    spot: Spot,
    state: BudgetState,
}

impl AlarmBudget {
    /// Starts with a threshold that knows the tail. Scores below `floor` are never an alert.
    pub fn new(promise: Promise, floor: f64, spot: Spot) -> Self {
        let state = BudgetState {
            scores: promise.scores_a_day.max(1.0),
            seconds: DAY,
            ..BudgetState::default()
        };
        Self {
            promise,
            floor,
            spot,
            state,
        }
    }

    /// Goes on from what was stored.
    pub fn restore(promise: Promise, floor: f64, spot: Spot, state: BudgetState) -> Self {
        Self {
            promise,
            floor,
            spot,
            state,
        }
    }

    /// What to store beside the threshold.
    pub fn state(&self) -> BudgetState {
        self.state
    }

    /// The threshold beneath.
    pub fn spot(&self) -> &Spot {
        &self.spot
    }

    /// How rare a score must be now to be an alert.
    pub fn bound(&self) -> f64 {
        (self.share() * self.correction().exp()).min(0.5)
    }

    /// Takes a score of a time in seconds. Times that go back count as the latest.
    pub fn observe(&mut self, time: f64, score: f64) -> (Verdict, Judgement) {
        self.pass(time);
        let judgement = self.spot.observe(score);
        let rare = judgement.tail_probability;
        let (bound, share) = (self.bound(), self.share());
        let verdict = if rare <= bound && score >= self.floor {
            self.state.issued += 1;
            self.state.ahead += 1.0;
            Verdict::Alert
        } else if rare <= share {
            self.state.held += 1;
            Verdict::Held(if score < self.floor {
                Held::BelowFloor
            } else {
                Held::AheadOfPromise
            })
        } else {
            Verdict::Quiet
        };
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

    // Share of the scores that may be alerts.
    fn share(&self) -> f64 {
        let scores_a_day = self.state.scores / self.state.seconds.max(1.0) * DAY;
        (self.promise.alerts_a_day / scores_a_day.max(1.0)).min(0.5)
    }

    // A quarter of a day's alerts ahead makes the bound stricter by e.
    fn correction(&self) -> f64 {
        let step = (0.25 * self.promise.alerts_a_day).max(1.0);
        (-self.state.ahead / step).clamp(-MOST_CORRECTION, MOST_CORRECTION)
    }

    fn pass(&mut self, time: f64) {
        let gone = match self.state.latest {
            Some(latest) => (time - latest).clamp(0.0, LONGEST_GAP),
            None => 0.0,
        };
        if time.is_finite() {
            self.state.latest = Some(self.state.latest.map_or(time, |latest| latest.max(time)));
        }
        let kept = (-gone / MEMORY).exp();
        self.state.scores = self.state.scores * kept + 1.0;
        self.state.seconds = self.state.seconds * kept + gone;
        let due = self.promise.alerts_a_day * gone / DAY;
        self.state.promised += due;
        // A quiet week must not end in a storm, nor a storm in a week of silence.
        let most = self.promise.alerts_a_day.max(1.0);
        self.state.ahead = (self.state.ahead - due).clamp(-most, 4.0 * most);
    }
}

#[cfg(test)]
mod tests;
