//! The alarm budget of a tenant: so many alerts a day of each group of detectors, and what became of the rest.
//!
//! Time is when the broker stored a batch: one clock for all sensors, which nobody who sends flows can turn, and the same
//! again when a batch is read back. The promise is about the day of the people who read alerts: a week of old flows that
//! is imported within an hour is an hour of theirs.
//!
//! A repeat of an alert is not a new one. What is never held back is not counted against the promise either: whoever
//! makes noise with it cannot silence the rest.

use std::collections::VecDeque;

use garrison_models::{
    budget::{AlarmBudget, Held, Promise, Verdict, WIDEST_OF_A_TAIL},
    spot::{Judgement, Spot},
};
use garrison_proto::{
    TenantId,
    alert::v1::{Alert, Severity},
};
use uuid::Uuid;

use super::{
    bounded::BoundedMap,
    detector::Detector,
    finding::{self, Finding, Fingerprint, Fold},
    settings::Settings,
    window::{Nanos, SECOND},
};

mod ledger;

pub use ledger::{Count, Hour, Ledger};

/// Findings of a group whose weights are remembered, to tell how a new one ranks.
const RANKED: usize = 500;
const DAY: f64 = 86_400.0;

/// Detectors that share a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// What is unusual for a model.
    Model,
    /// What is suspicious without one.
    Behaviour,
    /// What threat intelligence lists. It has no budget: what a feed lists is for its source to answer for, and warning
    /// and allow-lists are the brakes on it.
    Intelligence,
}

impl Group {
    /// Every group.
    pub const ALL: [Self; 3] = [Self::Model, Self::Behaviour, Self::Intelligence];

    /// Those with a budget.
    pub const PROMISED: [Self; 2] = [Self::Model, Self::Behaviour];

    /// Its name.
    pub fn id(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Behaviour => "behaviour",
            Self::Intelligence => "intelligence",
        }
    }

    /// The group of that name.
    pub fn of_id(id: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.id() == id)
    }

    /// The group of a detector.
    pub fn of(detector: Detector) -> Self {
        match detector {
            Detector::IntelMatch => Self::Intelligence,
            other if other.id().starts_with("model.") => Self::Model,
            _ => Self::Behaviour,
        }
    }

    /// Its detectors.
    pub fn detectors(self) -> impl Iterator<Item = Detector> {
        Detector::ALL.into_iter().filter(move |d| Self::of(*d) == self)
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// What the operator promises when nothing else is set for a tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetSettings {
    /// Alerts a day, in the order of [`Group::PROMISED`].
    pub alerts_a_day: [f64; 2],
    /// From this severity on nothing is held back, in the same order.
    pub never_held_severity: [Severity; 2],
    /// Detectors that are never held back, by [`Detector::index`].
    pub never_held: [bool; Detector::ALL.len()],
    /// Alerts held back of which the whole is kept, at most so many a day.
    pub kept: u64,
}

impl BudgetSettings {
    /// What a group promises by configuration; none for one without a budget.
    pub fn promised(&self, group: Group) -> Option<f64> {
        self.alerts_a_day.get(group.index()).copied()
    }

    /// From which severity on nothing of a group is held back.
    pub fn grave(&self, group: Group) -> Severity {
        self.never_held_severity
            .get(group.index())
            .copied()
            .unwrap_or(Severity::Unspecified)
    }

    fn never_holds(&self, detector: Detector, severity: i32) -> bool {
        let group = Group::of(detector);
        let grave = self.never_held_severity.get(group.index());
        grave.is_none_or(|grave| severity >= *grave as i32) || self.never_held[detector.index()]
    }
}

/// The budget of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupBudget {
    /// The promise, and where it stands.
    pub budget: AlarmBudget,
    /// What was set at run time in place of the configuration's.
    pub set: Option<f64>,
    /// What was promised and what became of it, by the hour.
    pub ledger: Ledger,
    /// Weights of the last findings, oldest first; empty for the model, whose threshold knows the tail.
    pub weights: VecDeque<f64>,
}

/// The budgets of a tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct Budgets {
    groups: [GroupBudget; 3],
    // When the batch that is judged was stored, seconds since the epoch.
    now: f64,
    // Alerts held back that may still be kept whole today.
    room: u64,
}

/// A score that is rare enough to ask for an alert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rare {
    /// Probability of a score at least as high.
    pub rarity: f64,
    /// How rare it has to be.
    pub bound: f64,
    /// The score that is so rare.
    pub threshold: f64,
    /// It is below the least score that may be an alert.
    pub below_floor: bool,
}

/// Why an alert was held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is rare enough for the promise, but alerts are ahead of it.
    AheadOfPromise,
    /// More findings come than alerts are promised, and others weigh more.
    Outranked,
    /// The score is below the least that may be an alert.
    BelowFloor,
}

/// An alert that was held back.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldBack {
    /// As it would have been published.
    pub alert: Alert,
    /// Of which group's budget.
    pub group: Group,
    /// Why.
    pub reason: Reason,
    /// How rare it was: the share of scores, or of the last findings of the group, that weigh at least as much.
    pub rarity: f64,
    /// How rare it had to be.
    pub bound: f64,
    /// Alerts told beyond those promised at that time.
    pub ahead: f64,
    /// When.
    pub at: Nanos,
}

/// What became of a finding.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)] // most findings are told or folded, and none is kept in this form
pub enum Outcome {
    /// An alert to publish.
    Told {
        /// The alert.
        alert: Alert,
        /// It was not told before.
        first: bool,
        /// It was held back before.
        held_before: bool,
    },
    /// It was held back.
    Held(HeldBack),
    /// It is a repeat that need not be told, or was held back and is only counted.
    Folded,
}

/// What is to be kept of what was held back.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)] // they come one at a time
pub enum HeldChange {
    /// An alert was held back, or seen again.
    Held(HeldBack),
    /// What was held back was told after all.
    Told {
        /// Which alert.
        alert: Uuid,
        /// When.
        at: Nanos,
    },
}

impl Budgets {
    /// Starts to promise what is configured.
    pub fn new(settings: &Settings) -> Self {
        let group = |group: Group| {
            let alerts_a_day = settings.budget.promised(group).unwrap_or_default();
            let promise = match group {
                // Until it is known how many come, the share that the threshold is calibrated for.
                Group::Model => Promise {
                    alerts_a_day,
                    scores_a_day: alerts_a_day / settings.spot.rate.max(1e-9),
                    known_for: 3_600.0,
                },
                // Findings come in bursts; one minute says nothing of a day.
                Group::Behaviour | Group::Intelligence => Promise {
                    alerts_a_day,
                    scores_a_day: 1.0,
                    known_for: DAY,
                },
            };
            GroupBudget {
                budget: AlarmBudget::new(promise),
                set: None,
                ledger: Ledger::default(),
                weights: VecDeque::new(),
            }
        };
        Self {
            groups: Group::ALL.map(group),
            now: 0.0,
            room: settings.budget.kept,
        }
    }

    /// A group's budget.
    pub fn group(&self, group: Group) -> &GroupBudget {
        &self.groups[group.index()]
    }

    /// Puts back what was stored of a group. What is configured now holds where nothing was set.
    pub fn restore(&mut self, group: Group, stored: GroupBudget) {
        let configured = self.groups[group.index()].budget.alerts_a_day();
        let mut stored = stored;
        stored.budget.promise(stored.set.unwrap_or(configured));
        self.now = self.now.max(stored.budget.state().latest.unwrap_or_default());
        self.groups[group.index()] = stored;
    }

    /// Promises another number of alerts a day from now on, or again what is configured. Returns what held before.
    pub fn promise(&mut self, group: Group, alerts_a_day: Option<f64>, settings: &BudgetSettings) -> f64 {
        let own = &mut self.groups[group.index()];
        let before = own.budget.alerts_a_day();
        own.set = alerts_a_day;
        let promise = alerts_a_day.or(settings.promised(group)).unwrap_or(before);
        own.budget.promise(promise);
        before
    }

    /// How many scores a day the model can be expected to give, from a learnt period.
    pub fn expect(&mut self, scores: u64, period: Nanos) {
        // What comes within minutes says little of a day.
        if period >= 600 * SECOND {
            let seconds = period as f64 / SECOND as f64;
            let model = &mut self.groups[Group::Model.index()];
            model.budget.guess(scores as f64 * DAY / seconds);
        }
    }

    /// Time goes on: a batch is judged that the broker stored then. Nothing of the model is promised while none scores.
    pub fn begin(&mut self, stored: Nanos, scoring: bool, settings: &BudgetSettings) {
        self.now = stored as f64 / SECOND as f64;
        let hour = stored / (3_600 * SECOND);
        let mut kept = 0;
        for (group, own) in Group::ALL.into_iter().zip(&mut self.groups) {
            if group != Group::Model || scoring {
                let due = own.budget.pass(self.now);
                own.ledger.at(hour).promised += due;
            } else {
                own.budget.skip(self.now);
            }
            kept += own.ledger.last(hour, 24).kept();
        }
        self.room = settings.kept.saturating_sub(kept);
    }

    /// Takes a score of the model, with its threshold. What is usual enough is not rare.
    pub fn score(&mut self, spot: &mut Spot, score: f64, floor: f64) -> (Judgement, Option<Rare>) {
        let budget = &mut self.groups[Group::Model.index()].budget;
        budget.count(1);
        let judgement = spot.observe(score);
        let (rarity, below_floor) = (judgement.tail_probability, score < floor);
        let rare = match budget.verdict(rarity, below_floor, WIDEST_OF_A_TAIL) {
            Verdict::Quiet => None,
            Verdict::Alert | Verdict::Held(_) => {
                let bound = budget.bound().min(WIDEST_OF_A_TAIL);
                Some(Rare {
                    rarity,
                    bound,
                    // What is let through is at the threshold or above it, whatever the last digit says.
                    threshold: spot
                        .value_at(bound)
                        .min(if rarity <= bound { score } else { f64::INFINITY }),
                    below_floor,
                })
            }
        };
        (judgement, rare)
    }

    /// The score above which the model raises alerts now.
    pub fn threshold(&self, spot: &Spot) -> f64 {
        let bound = self.group(Group::Model).budget.bound();
        spot.value_at(bound.min(WIDEST_OF_A_TAIL))
    }

    /// Folds a finding, and decides whether it is told. `rare` is what the model said of it.
    pub fn admit(
        &mut self,
        folds: &mut BoundedMap<Fingerprint, Fold>,
        finding: &Finding,
        rare: Option<Rare>,
        tenant: &TenantId,
        settings: &Settings,
        detected: Nanos,
    ) -> Outcome {
        let group = Group::of(finding.detector);
        let step = finding::advance(folds, finding, tenant, settings);
        let (first, held_before) = (step.fold.count == 1, step.fold.held);
        let below_floor = rare.is_some_and(|rare| rare.below_floor);
        let hour = self.hour();
        let own = &mut self.groups[group.index()];
        if !first && !held_before {
            // A repeat of what was told. What is below the floor tells nothing.
            return if step.due && !below_floor {
                Outcome::Told {
                    alert: step.alert(finding, settings, detected),
                    first: false,
                    held_before: false,
                }
            } else {
                Outcome::Folded
            };
        }
        if settings.budget.never_holds(finding.detector, step.severity(finding)) && !below_floor {
            own.ledger.at(hour).exempt += 1;
            step.fold.held = false;
            return Outcome::Told {
                alert: step.alert(finding, settings, detected),
                first: true,
                held_before,
            };
        }
        // A rarer score of the same is judged by itself; a finding asks again when its count has reached a step.
        if held_before && !step.due && rare.is_none() {
            return Outcome::Folded;
        }
        let (rarity, widest) = match rare {
            Some(rare) => (rare.rarity, WIDEST_OF_A_TAIL),
            None => {
                let weight = weight(finding, step.severity(finding));
                (own.rank(weight, &step.fingerprint, first), f64::INFINITY)
            }
        };
        let reason = match own.budget.verdict(rarity, below_floor, widest) {
            Verdict::Alert => {
                own.budget.issue();
                own.ledger.at(hour).issued += 1;
                step.fold.held = false;
                return Outcome::Told {
                    alert: step.alert(finding, settings, detected),
                    first: true,
                    held_before,
                };
            }
            Verdict::Held(Held::BelowFloor) => Reason::BelowFloor,
            Verdict::Held(Held::AheadOfPromise) => Reason::AheadOfPromise,
            // The model's were rare enough before others of the same batch took what was left.
            Verdict::Quiet if rare.is_some() => Reason::AheadOfPromise,
            Verdict::Quiet => Reason::Outranked,
        };
        step.fold.held = true;
        if first {
            own.budget.hold();
            own.ledger.at(hour).held += 1;
            if self.room == 0 {
                own.ledger.at(hour).not_kept += 1;
                return Outcome::Folded;
            }
            self.room -= 1;
        } else if !step.due {
            return Outcome::Folded;
        }
        Outcome::Held(HeldBack {
            alert: step.alert(finding, settings, detected),
            group,
            reason,
            rarity,
            bound: own.budget.bound().min(widest),
            ahead: own.budget.state().ahead,
            at: self.nanos(),
        })
    }

    /// Counts an alert of a group without a budget.
    pub fn exempt(&mut self, group: Group) {
        let hour = self.hour();
        self.groups[group.index()].ledger.at(hour).exempt += 1;
    }

    /// Counts an alert that a person raised.
    pub fn released(&mut self, group: Group) {
        let hour = self.hour();
        self.groups[group.index()].ledger.at(hour).released += 1;
    }

    fn nanos(&self) -> Nanos {
        (self.now * SECOND as f64) as Nanos
    }

    fn hour(&self) -> i64 {
        (self.now / 3_600.0) as i64
    }
}

impl GroupBudget {
    // The share of the last findings that weigh at least as much: a smoothed conformal p-value (Vovk, Gammerman, Shafer
    // 2005), so that it is uniform for a stream that stays as it is. Which of equals come first is left to the
    // fingerprint, which a replay gives again.
    fn rank(&mut self, weight: f64, fingerprint: &Fingerprint, new: bool) -> f64 {
        let more = self.weights.iter().filter(|w| **w > weight).count();
        let equal = self.weights.iter().filter(|w| **w == weight).count();
        let mut head = [0; 8];
        head.copy_from_slice(&fingerprint[..8]);
        // Above 0 and below 1.
        let place = (u64::from_be_bytes(head) as f64 + 0.5) / (u64::MAX as f64 + 1.0);
        let rarity = (more as f64 + place * (equal + 1) as f64) / (self.weights.len() + 1) as f64;
        if new {
            self.budget.count(1);
            self.weights.push_back(weight);
            if self.weights.len() > RANKED {
                self.weights.pop_front();
            }
        }
        rarity
    }
}

// How grave it is first, then how sure and how far beyond its threshold.
fn weight(finding: &Finding, severity: i32) -> f64 {
    let beyond = if finding.score > 0.0 && finding.threshold > 0.0 {
        1.0 - (finding.threshold / finding.score).clamp(0.0, 1.0)
    } else {
        0.0
    };
    f64::from(severity) + 0.6 * finding.confidence.clamp(0.0, 1.0) + 0.3 * beyond
}

#[cfg(test)]
mod tests;
