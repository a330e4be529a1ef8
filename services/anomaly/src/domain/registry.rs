//! The versions of a tenant's model beside the live one: a candidate that is scored in its shadow, the recent rows that
//! the next one is learnt from, how far the traffic has drifted, and what speaks against a promotion.

use std::sync::Arc;

use garrison_models::{Matrix, error::ModelError};

use super::{
    anchor::Anchor,
    drift::{Drift, Reference},
    facts::Facts,
    finding::Finding,
    network::{Network, Scores},
    sample::{Recent, SampleSettings, Suspects, tag},
    spot::Spot,
    window::Nanos,
};

/// Bins of the scores that are compared.
pub const SCORE_BINS: usize = 256;
/// Width of such a bin; what is beyond the last is in it.
pub const SCORE_BIN: f64 = 0.05;
/// Earlier live versions that are remembered.
const PREVIOUS: usize = 10;
/// A candidate may be unusual for so many times the rate that was promised, or that the live model reaches.
const NOISY: f64 = 3.0;

/// What the operator decides of candidates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CandidateSettings {
    /// One batch in so many is scored by the candidate, too, and counted for drift.
    pub every: u32,
    /// Records both models score before a candidate may be promoted by itself.
    pub shadow_rows: u64,
    /// Candidates are promoted by themselves when nothing speaks against them.
    pub automatic: bool,
    /// A candidate is learnt from recent rows so often; 0 for never.
    pub update_every: Nanos,
    /// The recent rows.
    pub sample: SampleSettings,
    /// Share of a kind of reference attack that a candidate may find less than the first model.
    pub most_lost: f64,
    /// Keeps attackers from teaching the model. Only the simulation of an attack takes it away, to show what it is for.
    pub guarded: bool,
}

/// What is kept of a training besides weights and manifest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// Scores of normal rows, from which a threshold starts.
    pub calibration: Vec<f64>,
    /// Where the values of the learnt period lay.
    pub reference: Reference,
    /// The normal rows that reference attacks are made from, feature by feature, and what the model finds of these attacks.
    pub normal: Vec<f32>,
    /// By the order of [`super::anchor::names`].
    pub found: Vec<f64>,
    /// What it finds of the attacks that it was held against, which are those of another version.
    pub measured: Vec<f64>,
    /// Why it must not go live by itself; empty when nothing speaks against it.
    pub objection: String,
}

/// A model that is tried beside the live one.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The model.
    pub model: Arc<Network>,
    /// Its threshold, which follows what it scores.
    pub spot: Spot,
    /// When it was trained, by the service's clock.
    pub trained: Nanos,
    /// What is kept of its training.
    pub profile: Arc<Profile>,
    /// How it compares.
    pub shadow: Shadow,
}

impl Candidate {
    /// Its version.
    pub fn version(&self) -> u64 {
        self.model.manifest().version()
    }

    /// Why it is not promoted by itself, or not yet; empty when it may be.
    pub fn hindrance(&self, settings: &CandidateSettings, promised: f64) -> String {
        if !self.profile.objection.is_empty() {
            return self.profile.objection.clone();
        }
        let shadow = &self.shadow;
        if shadow.rows < settings.shadow_rows {
            return format!(
                "it has scored {} of {} records beside the live model",
                shadow.rows, settings.shadow_rows
            );
        }
        let rows = shadow.rows as f64;
        let (live, candidate) = (shadow.live_above as f64 / rows, shadow.candidate_above as f64 / rows);
        // A handful of records is no rate.
        if shadow.candidate_above > 5 && candidate > NOISY * promised.max(live) {
            return format!(
                "it takes {:.4} % of the records for unusual, the live model {:.4} %",
                100.0 * candidate,
                100.0 * live
            );
        }
        String::new()
    }
}

/// Two models on the same records.
#[derive(Clone, Debug, PartialEq)]
pub struct Shadow {
    /// Batches that both scored.
    pub batches: u64,
    /// Records that both scored.
    pub rows: u64,
    /// Records above the live threshold, above the candidate's, and above both.
    pub live_above: u64,
    /// Above the candidate's.
    pub candidate_above: u64,
    /// Above both.
    pub both_above: u64,
    /// Scores of the live model and of the candidate, in bins of [`SCORE_BIN`].
    pub live: Vec<u32>,
    /// Of the candidate.
    pub candidate: Vec<u32>,
    /// Sums of the live scores, the candidate's, their squares and their product.
    pub sums: [f64; 5],
}

impl Default for Shadow {
    fn default() -> Self {
        Self {
            batches: 0,
            rows: 0,
            live_above: 0,
            candidate_above: 0,
            both_above: 0,
            live: vec![0; SCORE_BINS],
            candidate: vec![0; SCORE_BINS],
            sums: [0.0; 5],
        }
    }
}

fn score_bin(score: f64) -> usize {
    ((score / SCORE_BIN).max(0.0) as usize).min(SCORE_BINS - 1)
}

impl Shadow {
    fn add(&mut self, live: &[f64], exceeded: &[bool], spot: &mut Spot, candidate: &[f64]) {
        self.batches += 1;
        for ((l, above), c) in live.iter().zip(exceeded).zip(candidate) {
            let also = spot.observe(*c).exceeds;
            self.rows += 1;
            self.live_above += u64::from(*above);
            self.candidate_above += u64::from(also);
            self.both_above += u64::from(*above && also);
            self.live[score_bin(*l)] += 1;
            self.candidate[score_bin(*c)] += 1;
            let terms = [*l, *c, l * l, c * c, l * c];
            if terms.iter().all(|t| t.is_finite()) {
                self.sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
            }
        }
    }

    /// Pearson's correlation of the scores; 0 while there is none.
    pub fn correlation(&self) -> f64 {
        let n = self.rows as f64;
        let [l, c, ll, cc, lc] = self.sums;
        let spread = ((n * ll - l * l) * (n * cc - c * c)).sqrt();
        if spread > 0.0 { (n * lc - l * c) / spread } else { 0.0 }
    }

    /// The score that a share of the records does not exceed, of the live model and of the candidate, to the width of a bin.
    pub fn quantile(&self, share: f64) -> (f64, f64) {
        let of = |bins: &[u32]| {
            let least = share * self.rows as f64;
            let mut sum = 0.0;
            for (b, n) in bins.iter().enumerate() {
                sum += f64::from(*n);
                if sum >= least {
                    return (b + 1) as f64 * SCORE_BIN;
                }
            }
            SCORE_BINS as f64 * SCORE_BIN
        };
        (of(&self.live), of(&self.candidate))
    }
}

/// What changes when a version takes another's place. Small enough to be put back when it could not be saved.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    /// Version of the live model; 0 without one.
    pub live: u64,
    /// Versions that were live before, the latest last.
    pub previous: Vec<u64>,
    /// The model that is tried.
    pub candidate: Option<Candidate>,
    /// What models are held against.
    pub anchor: Option<Arc<Anchor>>,
    /// Where the values lay that the live model learnt.
    pub reference: Option<Arc<Reference>>,
    /// Where they lie now.
    pub drift: Drift,
    /// When a candidate was last learnt from recent rows, by the service's clock.
    pub updated: Nanos,
}

impl Roles {
    /// A version takes the live one's place.
    pub fn go_live(&mut self, version: u64, profile: &Profile) {
        if self.live != 0 && self.live != version {
            self.previous.retain(|v| *v != self.live && *v != version);
            self.previous.push(self.live);
            let beyond = self.previous.len().saturating_sub(PREVIOUS);
            self.previous.drain(..beyond);
        }
        self.live = version;
        if self.candidate.as_ref().is_some_and(|c| c.version() == version) {
            self.candidate = None;
        }
        self.reference = profile
            .reference
            .is_usable()
            .then(|| Arc::new(profile.reference.clone()));
        self.drift = Drift::default();
    }

    /// Versions that must not be forgotten.
    pub fn in_use(&self) -> Vec<u64> {
        let candidate = self.candidate.as_ref().map(Candidate::version);
        let anchor = self.anchor.as_ref().map(|a| a.version);
        [Some(self.live), self.previous.last().copied(), candidate, anchor]
            .into_iter()
            .flatten()
            .filter(|v| *v != 0)
            .collect()
    }
}

/// A tenant's models but the live one, and what is gathered for the next.
#[derive(Debug)]
pub struct Models {
    /// Who is what.
    pub roles: Roles,
    /// Recent normal rows.
    pub recent: Recent,
    /// Sources with an open alert.
    pub suspects: Suspects,
    // Batches since the candidate and the drift were last looked at.
    skipped: u32,
}

/// A batch that the live model has scored.
pub struct Scored<'a> {
    /// The rows that were scored.
    pub rows: &'a Matrix,
    /// Their places in the batch.
    pub indices: &'a [usize],
    /// The batch.
    pub facts: &'a Facts,
    /// Their scores.
    pub scores: &'a Scores,
    /// Which of them are above the live threshold.
    pub exceeded: &'a [bool],
}

impl Models {
    /// Starts without any.
    pub fn new(settings: &CandidateSettings, seed: u64) -> Self {
        Self {
            roles: Roles::default(),
            recent: Recent::new(settings.sample, seed),
            suspects: Suspects::default(),
            skipped: 0,
        }
    }

    /// Remembers whom there are alerts about. `fold` is how long an alert stays open.
    pub fn suspect<'a>(&mut self, findings: impl Iterator<Item = &'a Finding>, fold: Nanos) {
        for finding in findings {
            let until = finding.trigger.saturating_add(fold);
            self.suspects.insert(finding.source, finding.trigger, until);
        }
    }

    /// Whether a row may be learnt from, by the guard.
    pub fn may_teach(&mut self, settings: &CandidateSettings, batch: &Scored<'_>, row: usize) -> bool {
        if !settings.guarded {
            return true;
        }
        let i = batch.indices[row];
        if batch.exceeded[row] {
            self.recent.turned_away.unusual += 1;
            return false;
        }
        if self.suspects.contains(batch.facts.src[i], batch.facts.time[i]) {
            self.recent.turned_away.suspect += 1;
            return false;
        }
        true
    }

    /// Follows a batch that the live model has scored: keeps rows for the next model, and from time to time looks at the
    /// drift and lets the candidate score.
    ///
    /// # Errors
    /// When the candidate cannot score; the batch counts for everything else.
    pub fn follow(&mut self, settings: &CandidateSettings, batch: &Scored<'_>) -> Result<(), ModelError> {
        for (row, &i) in batch.indices.iter().enumerate() {
            let time = batch.facts.time[i];
            if self.recent.is_due(time) && self.may_teach(settings, batch, row) {
                let source = if settings.guarded { tag(batch.facts.src[i]) } else { 0 };
                self.recent.take(batch.rows.row(row), source, time);
            }
        }
        self.skipped += 1;
        if self.skipped < settings.every {
            return Ok(());
        }
        self.skipped = 0;
        let roles = &mut self.roles;
        if let Some(reference) = &roles.reference {
            roles.drift.add(reference, batch.rows, batch.scores.values());
        }
        if let Some(candidate) = &mut roles.candidate {
            let scores = candidate.model.score(batch.rows)?;
            candidate.shadow.add(
                batch.scores.values(),
                batch.exceeded,
                &mut candidate.spot,
                scores.values(),
            );
        }
        Ok(())
    }
}

/// A version cannot take the role that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// There is no such version.
    #[error("GAR-ANOM-0020: version {version} of the model is not there")]
    NoVersion {
        /// Which.
        version: u64,
    },
    /// Something speaks against the candidate.
    #[error("GAR-ANOM-0021: version {version} is not promoted: {objection}")]
    Objection {
        /// Which.
        version: u64,
        /// What.
        objection: String,
    },
    /// There is nothing to learn from, or nothing to compare with.
    #[error("GAR-ANOM-0022: {0}")]
    NotNow(String),
}

#[cfg(test)]
mod tests;
