//! One tenant: its shards, its model and threshold, and the phases in which it learns. Nothing here is shared
//! with another tenant.

mod lifecycle;

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use garrison_flow::{Columns, FlowBatch};
use garrison_models::{Matrix, error::ModelError};
use garrison_proto::{
    TenantId,
    alert::v1::{Alert, Model, Severity},
};

pub use self::lifecycle::{Learning, Live, Memento, Origin, Phase, PhaseError, Trained, TrainingJob};
use super::{
    budget::{Budgets, Group, HeldChange, Outcome, Rare},
    detector::{Detector, hinted_technique},
    facts::Facts,
    features::{self, FEATURES},
    finding::{self, Finding, Target, fold},
    intel::{Matched, View},
    network::{Network, Scores},
    registry::{self, Models},
    sample::tag,
    settings::Settings,
    shard::{Context, Shard, feature},
    threat::Threats,
    wide::Wide,
    window::{Nanos, timestamp},
};

/// Messages remembered to tell repeats.
const RECENT_MESSAGES: usize = 4_096;

/// Findings of a batch that say what would have been normal; in a flood of them the rest does without.
const EXPLAINED: usize = 4;

/// Features an alert of the model names at most, and the share of the error they explain together.
const TOP_FEATURES: (usize, f64) = (5, 0.9);

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
    /// The other models, and what is gathered for the next.
    pub models: Models,
    /// How many alerts are promised, and what became of the promise.
    pub budgets: Budgets,
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
    /// What the budget held back, and what of it was told after all.
    pub held: Vec<HeldChange>,
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

impl Judged {
    // Returns how many alerts are new by it.
    fn note(&mut self, outcome: Outcome, now: Nanos) -> u64 {
        match outcome {
            Outcome::Told {
                alert,
                first,
                held_before,
            } => {
                if let (true, Ok(alert)) = (held_before, alert.alert_id.parse()) {
                    self.held.push(HeldChange::Told { alert, at: now });
                }
                self.alerts.push(alert);
                u64::from(first)
            }
            Outcome::Held(held) => {
                self.held.push(HeldChange::Held(held));
                0
            }
            Outcome::Folded => 0,
        }
    }
}

impl Tenant {
    /// A tenant of which nothing is known.
    pub fn new(id: TenantId, settings: Arc<Settings>, shards: u16) -> Self {
        Self {
            id,
            wide: Wide::new(settings.wide),
            models: Models::new(&settings.candidate, settings.seed),
            budgets: Budgets::new(&settings),
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
            learning: self.phase.is_a_period(),
            learnt: matches!(self.phase, Phase::Scoring) || (self.live.is_some() && !self.phase.is_a_period()),
            usual: &usual,
            intel: self.intel.as_ref().filter(|_| settings.runs(Detector::IntelMatch)),
        };
        let mut shard = self.shards[slot]
            .take()
            .unwrap_or_else(|| Box::new(Shard::new(settings.bounds)));
        let pass = shard.pass(&mut self.wide, &columns, &mut facts, &context);
        judged.repeated = pass.repeated;
        judged.late = pass.late;
        judged.unusable = pass.unusable;
        let grave = |f: &&Finding| f.severity as i32 >= Severity::Medium as i32;
        let told = pass.findings.iter().chain(pass.matched.iter().map(|m| &m.finding));
        self.models.suspect(told.filter(grave), settings.fold);
        let mut rare = Vec::new();
        if !pass.scorable.is_empty() && (self.live.is_some() || matches!(self.phase, Phase::Learning(_))) {
            let rows = features::compute_some(columns, &facts, &pass.scorable);
            match self.model_pass(&columns, &facts, &pass.scorable, &rows, &mut judged) {
                Ok(found) => rare = found,
                Err(error) => judged.model_error = Some(error),
            }
        }
        let found = pass.findings.iter().map(|finding| (finding, None));
        for (finding, rare) in found.chain(rare.iter().map(|(finding, rare)| (finding, Some(*rare)))) {
            judged.findings[finding.detector.index()] += 1;
            let folds = &mut shard.folds;
            let outcome = self
                .budgets
                .admit(folds, finding, rare, &self.id, &settings, arrival.now);
            self.alerts[finding.detector.index()] += judged.note(outcome, arrival.now);
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
        if alert.count == 1 {
            self.budgets.exempt(Group::Intelligence);
        }
        matched.complete(&mut alert);
        alert
    }

    /// A person raised an alert that was held back: its repeats are told from now on.
    pub fn released(&mut self, alert: &Alert) {
        let group = Detector::ALL.iter().find(|d| d.id() == alert.detector);
        if let Some(detector) = group {
            self.budgets.released(Group::of(*detector));
            self.alerts[detector.index()] += 1;
        }
        let mut fingerprint = [0; 16];
        if hex::decode_to_slice(&alert.fingerprint, &mut fingerprint).is_err() {
            return;
        }
        for (slot, shard) in self.shards.iter_mut().enumerate() {
            let Some(shard) = shard else { continue };
            // A later fold of the same is another alert.
            if let Some(fold) = shard.folds.get_mut(&fingerprint)
                && finding::alert_id(&fingerprint, *fold).to_string() == alert.alert_id
            {
                fold.held = false;
                self.dirty[slot] = true;
            }
        }
    }

    // Learns or scores.
    fn model_pass(
        &mut self,
        columns: &Columns<'_>,
        facts: &Facts,
        indices: &[usize],
        rows: &Matrix,
        judged: &mut Judged,
    ) -> Result<Vec<(Finding, Rare)>, ModelError> {
        let mut found = Vec::new();
        let (mut exceeded, mut places) = (Vec::new(), Vec::new());
        let settings = Arc::clone(&self.settings);
        if let Some(live) = self.live.as_mut().filter(|_| settings.runs(Detector::ModelAutoencoder)) {
            let scores = live.model.score(rows)?;
            judged.scored = indices.len() as u64;
            exceeded.reserve(indices.len());
            for (row, &i) in indices.iter().enumerate() {
                let score = scores.values()[row];
                let (judgement, rare) = self.budgets.score(&mut live.spot, score, settings.spot.floor);
                exceeded.push(judgement.exceeds || rare.is_some());
                if let Some(rare) = rare {
                    let scored = Scored {
                        model: &live.model,
                        rows,
                        row,
                        scores: &scores,
                        rare,
                        whole: found.len() < EXPLAINED,
                    };
                    found.push((unusual(columns, facts, i, &scored), rare));
                    places.push(row);
                }
            }
            name_threats(rows, &places, &mut found);
            self.models
                .suspect(found.iter().map(|(finding, _)| finding), settings.fold);
            let batch = registry::Scored {
                rows,
                indices,
                facts,
                scores: &scores,
                exceeded: &exceeded,
            };
            // A candidate that cannot score takes nothing away from the model at work.
            judged.model_error = self.models.follow(&settings.candidate, &batch).err();
            if let Phase::Learning(learning) = &mut self.phase {
                let whole = learning.origin == Origin::WholePeriod;
                for (row, &i) in indices.iter().enumerate() {
                    if whole || self.models.may_teach(&settings.candidate, &batch, row) {
                        learning.offer(rows.row(row), tag(facts.src[i]), facts.time[i]);
                        judged.learnt += 1;
                    }
                }
            }
        } else if let Phase::Learning(learning) = &mut self.phase {
            for (row, &i) in indices.iter().enumerate() {
                learning.offer(rows.row(row), tag(facts.src[i]), facts.time[i]);
            }
            judged.learnt = indices.len() as u64;
        }
        Ok(found)
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
            model.version = manifest.version();
            model.learnt_flows = manifest.learnt_flows();
            model.trained = Some(timestamp(live.trained));
            model.threshold = self.budgets.threshold(&live.spot);
            model.realised_rate = live.spot.realised_rate();
            model.weights_sha256 = manifest.weights_sha256().to_owned();
            model.scored_flows = live.spot.observed();
            model.validation_loss = manifest.validation_loss();
        }
        if let Phase::Learning(learning) | Phase::Training(learning) = &self.phase {
            model.learnt_flows = learning.sample.offered();
        }
        model
    }
}

// Says of what was found in some rows what it looks like, all in one pass of the classifier.
fn name_threats(rows: &Matrix, places: &[usize], found: &mut [(Finding, Rare)]) {
    let Some(threats) = Threats::shipped().filter(|_| !places.is_empty()) else {
        return;
    };
    match threats.classify(&rows.select(places)) {
        Ok(classes) => {
            for ((finding, _), class) in found.iter_mut().zip(classes) {
                if let Some(technique) = class.technique() {
                    finding.techniques.retain(|t| t.id != technique.id);
                    finding.techniques.insert(0, technique);
                }
                finding.class = Some(class);
            }
        }
        // The alert stands without it.
        Err(error) => tracing::error!(%error, "what was found could not be classified"),
    }
}

struct Scored<'a> {
    model: &'a Network,
    rows: &'a Matrix,
    row: usize,
    scores: &'a Scores,
    rare: Rare,
    // Also say what would have been normal, which takes scoring it several times.
    whole: bool,
}

fn unusual(columns: &Columns<'_>, facts: &Facts, i: usize, scored: &Scored<'_>) -> Finding {
    let values: Vec<f32> = scored.rows.row(scored.row).collect();
    let mut features = Vec::new();
    let mut techniques: Vec<garrison_proto::alert::v1::Technique> = Vec::new();
    let mut explained = 0.0;
    let mut named = Vec::new();
    for (j, share) in scored.scores.shares(scored.row) {
        if features.len() == TOP_FEATURES.0 || explained >= TOP_FEATURES.1 {
            break;
        }
        explained += share;
        named.push(j);
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
    if scored.whole
        && let Ok(normal) = scored.model.normal_values(&values, &named, scored.rare.threshold)
    {
        for ((feature, j), value) in features.iter_mut().zip(named).zip(normal) {
            feature.normal = value.map(|v| FEATURES[j].transform.invert(v));
        }
    }
    let Rare {
        threshold,
        rarity,
        bound,
        ..
    } = scored.rare;
    // How many times rarer than what is let through.
    let rarity = (bound / rarity.max(1e-300)).log10();
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
        score: scored.scores.values()[scored.row],
        threshold,
        loud: None,
        class: None,
    }
}

fn usual(model: Option<&Network>, name: &str) -> f64 {
    let index = FEATURES.iter().position(|f| f.name == name);
    match (model, index) {
        (Some(model), Some(index)) => FEATURES[index].transform.invert(model.median(index)),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests;
