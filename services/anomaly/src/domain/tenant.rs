//! One tenant: its shards, its model and threshold, and the phases in which it learns. Nothing here is shared
//! with another tenant.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use garrison_flow::{Columns, FlowBatch};
use garrison_models::Matrix;
use garrison_proto::{
    TenantId,
    alert::v1::{Alert, Model, ModelPhase, Severity},
};

use super::{
    autoencoder::{Autoencoder, ModelError, Scores, StoredModel, Training},
    detector::{Detector, hinted_technique},
    facts::Facts,
    features::{self, FEATURES, WIDTH},
    finding::{Finding, Target, fold},
    intel::{Matched, View},
    reservoir::Reservoir,
    settings::Settings,
    shard::{Context, Shard, feature},
    spot::{Judgement, Spot},
    wide::Wide,
    window::{Nanos, timestamp},
};

/// Messages remembered to tell repeats.
const RECENT_MESSAGES: usize = 4_096;

/// Features an alert of the model names at most, and the share of the error they explain together.
const TOP_FEATURES: (usize, f64) = (5, 0.9);

/// What the tenant's model is doing.
#[derive(Clone, Debug, Default)]
pub enum Phase {
    /// No model, and not learning.
    #[default]
    Idle,
    /// Sampling flows.
    Learning(Learning),
    /// Training on the sample.
    Training(Learning),
    /// Scoring with the model.
    Scoring,
}

impl Phase {
    /// As the API names it.
    pub fn to_proto(&self) -> ModelPhase {
        match self {
            Self::Idle => ModelPhase::Idle,
            Self::Learning(_) => ModelPhase::Learning,
            Self::Training(_) => ModelPhase::Training,
            Self::Scoring => ModelPhase::Scoring,
        }
    }
}

/// A learnt period in progress.
#[derive(Clone, Debug, PartialEq)]
pub struct Learning {
    /// When it began, by the service's clock.
    pub started: Nanos,
    /// It ends by itself after the configured time.
    pub automatic: bool,
    /// The sample of feature rows.
    pub sample: Reservoir,
    /// Flow time of the first and last record.
    pub window: (Nanos, Nanos),
}

/// A model at work with its threshold.
#[derive(Clone, Debug)]
pub struct Live {
    /// The model.
    pub model: Arc<Autoencoder>,
    /// Its threshold.
    pub spot: Spot,
    /// When it was trained, by the service's clock.
    pub trained: Nanos,
}

/// Ids of the latest messages.
#[derive(Debug, Default)]
pub struct RecentMessages {
    order: VecDeque<[u8; 16]>,
    known: HashSet<[u8; 16]>,
}

impl RecentMessages {
    /// Remembers an id. False when it was known.
    pub fn insert(&mut self, id: [u8; 16]) -> bool {
        if !self.known.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > RECENT_MESSAGES
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    /// The id is known.
    pub fn contains(&self, id: &[u8; 16]) -> bool {
        self.known.contains(id)
    }

    /// The ids, oldest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8; 16]> {
        self.order.iter()
    }
}

/// A tenant's whole state.
#[derive(Debug)]
pub struct Tenant {
    /// Whose.
    pub id: TenantId,
    /// What the operator decided.
    pub settings: Arc<Settings>,
    /// What the model is doing.
    pub phase: Phase,
    /// The model, once there is one.
    pub live: Option<Live>,
    /// Version of the last model trained; 0 before the first.
    pub version: u64,
    /// Alerts published by detector, repeats included.
    pub alerts: [u64; Detector::ALL.len()],
    /// State by shard of the source host.
    pub shards: Vec<Option<Box<Shard>>>,
    /// State that the shards share.
    pub wide: Wide,
    /// Shards changed since the last checkpoint.
    pub dirty: Vec<bool>,
    /// Ids of the latest messages.
    pub recent: RecentMessages,
    /// Stream position of the last message taken.
    pub applied: u64,
    /// What threat intelligence knows; set before a batch is judged.
    pub intel: Option<View>,
}

/// One message, with what is known of its way here.
pub struct Arrival<'a> {
    /// Its id.
    pub id: [u8; 16],
    /// Its shard.
    pub shard: u16,
    /// Its position in the stream.
    pub position: u64,
    /// When it was published.
    pub published: Nanos,
    /// Now.
    pub now: Nanos,
    /// Its flows.
    pub batch: &'a FlowBatch,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Judged {
    /// Alerts to publish.
    pub alerts: Vec<Alert>,
    /// Rows in the batch.
    pub rows: u64,
    /// Rows the model scored.
    pub scored: u64,
    /// Rows learnt.
    pub learnt: u64,
    /// Records seen before.
    pub repeated: u64,
    /// Records too old for their source's window.
    pub late: u64,
    /// Records with a meaningless state.
    pub unusable: u64,
    /// Records whose sensor's clock runs ahead.
    pub ahead_of_clock: u64,
    /// Findings by detector, folded ones included.
    pub findings: [u64; Detector::ALL.len()],
    /// The model could not score the batch; behaviours went on.
    pub model_error: Option<ModelError>,
}

/// Training that is to be done, away from the stream of messages.
pub struct TrainingJob {
    sample: Matrix,
    training: Training,
    settings: Arc<Settings>,
}

/// What training gave.
#[derive(Clone, Debug)]
pub struct Trained {
    /// As it is to be stored.
    pub stored: StoredModel,
    model: Arc<Autoencoder>,
    spot: Spot,
}

/// What a change of phase may have to take back.
#[derive(Debug)]
pub struct Memento {
    phase: Phase,
    live: Option<Live>,
    version: u64,
}

/// A change of phase is not possible now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PhaseError {
    /// There is nothing to finish.
    #[error("GAR-ANOM-0002: the model is not learning")]
    NotLearning,
    /// Training is under way.
    #[error("GAR-ANOM-0002: the model is being trained; wait until it scores")]
    Training,
    /// Too little was learnt.
    #[error("GAR-ANOM-0003: {learnt} flows were learnt and training needs {needed}")]
    TooLittle {
        /// Flows learnt.
        learnt: u64,
        /// Flows needed.
        needed: u64,
    },
}

impl Tenant {
    /// A tenant of which nothing is known.
    pub fn new(id: TenantId, settings: Arc<Settings>, shards: u16) -> Self {
        Self {
            id,
            wide: Wide::new(settings.wide),
            settings,
            phase: Phase::Idle,
            live: None,
            version: 0,
            alerts: [0; Detector::ALL.len()],
            shards: (0..shards).map(|_| None).collect(),
            dirty: vec![false; usize::from(shards)],
            recent: RecentMessages::default(),
            applied: 0,
            intel: None,
        }
    }

    /// Takes a batch: keeps state current, and says what is to be published. A message that was taken before
    /// changes nothing.
    pub fn judge(&mut self, arrival: &Arrival<'_>) -> Judged {
        let mut judged = Judged {
            rows: arrival.batch.len() as u64,
            ..Judged::default()
        };
        let slot = usize::from(arrival.shard);
        if slot >= self.shards.len() || !self.recent.insert(arrival.id) {
            judged.repeated = judged.rows;
            return judged;
        }
        self.applied = self.applied.max(arrival.position);
        self.dirty[slot] = true;
        let settings = Arc::clone(&self.settings);
        let latest = arrival.published.saturating_add(settings.clock_tolerance);
        let mut facts = Facts::read(arrival.batch, latest);
        facts.place(&settings);
        judged.ahead_of_clock = facts.ahead_of_clock;
        let columns = arrival.batch.columns();

        let model = self.live.as_ref().map(|live| Arc::clone(&live.model));
        let usual = |name: &str| usual(model.as_deref(), name);
        let context = Context {
            settings: &settings,
            learning: matches!(self.phase, Phase::Learning(_) | Phase::Training(_)),
            learnt: matches!(self.phase, Phase::Scoring),
            usual: &usual,
            intel: self.intel.as_ref().filter(|_| settings.runs(Detector::IntelMatch)),
        };
        let mut shard = self.shards[slot]
            .take()
            .unwrap_or_else(|| Box::new(Shard::new(settings.bounds)));
        let mut pass = shard.pass(&mut self.wide, &columns, &mut facts, &context);
        judged.repeated = pass.repeated;
        judged.late = pass.late;
        judged.unusable = pass.unusable;
        if !pass.scorable.is_empty() && !matches!(self.phase, Phase::Idle | Phase::Training(_)) {
            let rows = features::compute(columns, &facts).select(&pass.scorable);
            match self.model_pass(&columns, &facts, &pass.scorable, &rows, &mut judged) {
                Ok(found) => pass.findings.extend(found),
                Err(error) => judged.model_error = Some(error),
            }
        }
        for finding in &pass.findings {
            judged.findings[finding.detector.index()] += 1;
            let alert = fold(&mut shard.folds, finding, &self.id, &settings, arrival.now);
            if let Some(alert) = alert {
                // Later ones tell the same alert anew.
                self.alerts[finding.detector.index()] += u64::from(alert.count == 1);
                judged.alerts.push(alert);
            }
        }
        for matched in &pass.matched {
            judged.findings[Detector::IntelMatch.index()] += 1;
            let alert = fold(&mut shard.folds, &matched.finding, &self.id, &settings, arrival.now);
            judged.alerts.extend(alert.map(|alert| self.tell(matched, alert)));
        }
        self.shards[slot] = Some(shard);
        judged
    }

    /// Takes what was found in flows that were judged before, and says what is to be published.
    pub fn look_back(&mut self, shard: u16, found: &[Matched], now: Nanos) -> Vec<Alert> {
        let slot = usize::from(shard);
        if slot >= self.shards.len() || !self.settings.runs(Detector::IntelMatch) {
            return Vec::new();
        }
        self.dirty[slot] = true;
        let settings = Arc::clone(&self.settings);
        let mut shard = self.shards[slot]
            .take()
            .unwrap_or_else(|| Box::new(Shard::new(settings.bounds)));
        let mut alerts = Vec::new();
        for matched in found {
            let alert = fold(&mut shard.folds, &matched.finding, &self.id, &settings, now);
            alerts.extend(alert.map(|alert| self.tell(matched, alert)));
        }
        self.shards[slot] = Some(shard);
        alerts
    }

    // Later ones tell the same alert anew.
    fn tell(&mut self, matched: &Matched, mut alert: Alert) -> Alert {
        self.alerts[Detector::IntelMatch.index()] += u64::from(alert.count == 1);
        matched.complete(&mut alert);
        alert
    }

    // Learns or scores.
    fn model_pass(
        &mut self,
        columns: &Columns<'_>,
        facts: &Facts,
        indices: &[usize],
        rows: &Matrix,
        judged: &mut Judged,
    ) -> Result<Vec<Finding>, ModelError> {
        if let Phase::Learning(learning) = &mut self.phase {
            for (row, &i) in indices.iter().enumerate() {
                learning.sample.offer(rows.row(row));
                let time = facts.time[i];
                learning.window = (learning.window.0.min(time), learning.window.1.max(time));
            }
            judged.learnt = indices.len() as u64;
            return Ok(Vec::new());
        }
        let Some(live) = &mut self.live else {
            return Ok(Vec::new());
        };
        if !self.settings.runs(Detector::ModelAutoencoder) {
            return Ok(Vec::new());
        }
        let scores = live.model.score(rows)?;
        judged.scored = indices.len() as u64;
        let mut found = Vec::new();
        for (row, &i) in indices.iter().enumerate() {
            let judgement = live.spot.observe(scores.values[row]);
            if judgement.exceeds {
                let scored = Scored {
                    model: &live.model,
                    rows,
                    row,
                    scores: &scores,
                    judgement,
                };
                found.push(unusual(columns, facts, i, &scored, self.settings.spot.rate));
            }
        }
        Ok(found)
    }

    /// Starts a learnt period, in place of one that is under way. The present model rests meanwhile.
    ///
    /// # Errors
    /// [`PhaseError::Training`].
    pub fn start_learning(&mut self, now: Nanos, automatic: bool) -> Result<(), PhaseError> {
        if matches!(self.phase, Phase::Training(_)) {
            return Err(PhaseError::Training);
        }
        let seed = self.settings.seed.wrapping_add(self.version);
        self.phase = Phase::Learning(Learning {
            started: now,
            automatic,
            sample: Reservoir::new(WIDTH, self.settings.sample_rows, seed),
            window: (Nanos::MAX, Nanos::MIN),
        });
        Ok(())
    }

    /// Ends the learnt period; what comes next is training.
    ///
    /// # Errors
    /// Every [`PhaseError`]; the phase is then unchanged.
    pub fn finish_learning(&mut self, least: u64) -> Result<(), PhaseError> {
        match std::mem::take(&mut self.phase) {
            Phase::Learning(learning) if learning.sample.len() as u64 >= least => {
                self.phase = Phase::Training(learning);
                Ok(())
            }
            Phase::Learning(learning) => {
                let learnt = learning.sample.len() as u64;
                self.phase = Phase::Learning(learning);
                Err(PhaseError::TooLittle { learnt, needed: least })
            }
            other => {
                let error = match other {
                    Phase::Training(_) => PhaseError::Training,
                    _ => PhaseError::NotLearning,
                };
                self.phase = other;
                Err(error)
            }
        }
    }

    /// The training to be done, while the phase is training.
    pub fn training_job(&self) -> Option<TrainingJob> {
        let Phase::Training(learning) = &self.phase else {
            return None;
        };
        Some(TrainingJob {
            sample: Matrix::from_rows(WIDTH, learning.sample.rows()),
            training: Training {
                features: features::names().map(str::to_owned).collect(),
                seed: self.settings.seed.wrapping_add(self.version),
                version: self.version + 1,
                least_rows: 1,
                window: learning.window,
                learnt_flows: learning.sample.offered(),
            },
            settings: Arc::clone(&self.settings),
        })
    }

    /// Puts a trained model to work.
    pub fn install(&mut self, trained: Trained, now: Nanos) {
        self.version = trained.stored.manifest.version;
        self.live = Some(Live {
            model: trained.model,
            spot: trained.spot,
            trained: now,
        });
        self.phase = Phase::Scoring;
    }

    /// Gives up a training that failed: back to the model there was, or to none.
    pub fn abandon_training(&mut self) {
        if matches!(self.phase, Phase::Training(_)) {
            self.phase = if self.live.is_some() {
                Phase::Scoring
            } else {
                Phase::Idle
            };
        }
    }

    /// Goes on without the model, which cannot be used.
    pub fn without_model(&mut self) {
        self.live = None;
        if matches!(self.phase, Phase::Scoring) {
            self.phase = Phase::Idle;
        }
    }

    /// What phase and model are now.
    pub fn memento(&self) -> Memento {
        Memento {
            phase: self.phase.clone(),
            live: self.live.clone(),
            version: self.version,
        }
    }

    /// Puts phase and model back to what they were.
    pub fn restore(&mut self, memento: Memento) {
        self.phase = memento.phase;
        self.live = memento.live;
        self.version = memento.version;
    }

    /// The model as the API shows it.
    pub fn model(&self) -> Model {
        let mut model = Model {
            phase: self.phase.to_proto().into(),
            version: self.version,
            features: features::names().map(str::to_owned).collect(),
            ..Model::default()
        };
        if let Some(live) = &self.live {
            let manifest = live.model.manifest();
            model.learnt_flows = manifest.learnt_flows;
            model.trained = Some(timestamp(live.trained));
            model.threshold = live.spot.threshold();
            model.realised_rate = live.spot.realised_rate();
            model.weights_sha256 = manifest.weights_sha256.clone();
            model.scored_flows = live.spot.observed();
            model.validation_loss = f64::from(manifest.validation_loss);
        }
        if let Phase::Learning(learning) | Phase::Training(learning) = &self.phase {
            model.learnt_flows = learning.sample.offered();
        }
        model
    }
}

impl TrainingJob {
    /// Trains, and sets the threshold. Takes seconds of one processor.
    ///
    /// # Errors
    /// Any [`ModelError`].
    pub fn run(self) -> Result<Trained, ModelError> {
        let (model, stored, calibration) = Autoencoder::train(&self.sample, &self.training)?;
        let spot = Spot::calibrate(self.settings.spot, &calibration).ok_or(ModelError::TooLittle {
            learnt: calibration.len(),
            needed: Spot::MIN_CALIBRATION,
        })?;
        Ok(Trained {
            stored,
            model: Arc::new(model),
            spot,
        })
    }
}

struct Scored<'a> {
    model: &'a Autoencoder,
    rows: &'a Matrix,
    row: usize,
    scores: &'a Scores,
    judgement: Judgement,
}

fn unusual(columns: &Columns<'_>, facts: &Facts, i: usize, scored: &Scored<'_>, rate: f64) -> Finding {
    let values: Vec<f32> = scored.rows.row(scored.row).collect();
    let mut features = Vec::new();
    let mut techniques: Vec<garrison_proto::alert::v1::Technique> = Vec::new();
    let mut explained = 0.0;
    for (j, share) in scored.scores.shares(scored.row) {
        if features.len() == TOP_FEATURES.0 || explained >= TOP_FEATURES.1 {
            break;
        }
        explained += share;
        let f = &FEATURES[j];
        let value = f.transform.invert(values[j]);
        features.push(feature(
            f.name,
            f.unit,
            value,
            f.transform.invert(scored.model.median(j)),
            share,
        ));
        if let Some(technique) = hinted_technique(f.name)
            && share >= 0.2
            && !techniques.iter().any(|t| t.id == technique.id)
        {
            techniques.push(technique);
        }
    }
    let Judgement {
        threshold,
        tail_probability,
        ..
    } = scored.judgement;
    // How many times rarer than what is let through.
    let rarity = (rate / tail_probability.max(1e-300)).log10();
    let (src, dst) = (facts.src[i], facts.dst[i]);
    let target = Target::Service(dst, columns.dst_port.value(i), columns.protocol.value(i));
    let why = features.first().map_or(String::new(), |f| {
        format!(": {} is {:.4} {}, usually {:.4}", f.name, f.value, f.unit, f.usual)
    });
    Finding {
        detector: Detector::ModelAutoencoder,
        title: format!("Unusual flow from {src} to {dst}{why}"),
        severity: if rarity >= 2.0 {
            Severity::Medium
        } else {
            Detector::ModelAutoencoder.severity()
        },
        confidence: (0.5 + 0.1 * rarity).clamp(0.5, 0.95),
        source: src,
        targets: vec![target],
        subject: dst.to_string(),
        techniques,
        features,
        flows: vec![facts.flow_ref(columns, i)],
        trigger: facts.time[i],
        score: scored.scores.values[scored.row],
        threshold,
        loud: None,
    }
}

fn usual(model: Option<&Autoencoder>, name: &str) -> f64 {
    let index = FEATURES.iter().position(|f| f.name == name);
    match (model, index) {
        (Some(model), Some(index)) => FEATURES[index].transform.invert(model.median(index)),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests;
