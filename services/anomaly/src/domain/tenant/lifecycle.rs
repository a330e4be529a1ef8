//! The life of a tenant's model: learnt, trained, tried beside the live one, promoted, rolled back.

use std::sync::Arc;

use garrison_models::{Matrix, autoencoder::Training, error::ModelError};
use garrison_proto::alert::v1::ModelPhase;

use super::Tenant;
use crate::domain::{
    anchor::Anchor,
    drift::Reference,
    features::{self, WIDTH},
    network::{Network, StoredModel},
    registry::{Candidate, Profile, RegistryError, Roles, Shadow},
    reservoir::Reservoir,
    sample::within_share,
    settings::Settings,
    spot::Spot,
    window::Nanos,
};

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

impl Phase {
    // What is new is taken for normal.
    pub(super) fn is_a_period(&self) -> bool {
        matches!(self, Self::Learning(l) | Self::Training(l) if l.origin != Origin::Recent)
    }
}

/// A learnt period in progress.
#[derive(Clone, Debug, PartialEq)]
pub struct Learning {
    /// When it began, by the service's clock.
    pub started: Nanos,
    /// It ends by itself after the configured time.
    pub automatic: bool,
    /// Where the rows come from.
    pub origin: Origin,
    /// The sample of feature rows.
    pub sample: Reservoir,
    /// The source of each row, as far as it is known.
    pub tags: Vec<u32>,
    /// Flow time of the first and last record.
    pub window: (Nanos, Nanos),
}

impl Learning {
    pub(super) fn offer(&mut self, row: impl Iterator<Item = f32>, source: u32, time: Nanos) {
        if let Some(at) = self.sample.place(row) {
            if self.tags.len() <= at {
                self.tags.resize(at + 1, 0);
            }
            self.tags[at] = source;
        }
        self.window = (self.window.0.min(time), self.window.1.max(time));
    }
}

/// Where the rows of a learnt period come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// From a period that somebody started, or from the first flows of a tenant. Where a model is live, what it takes for
    /// unusual is left out.
    #[default]
    Period,
    /// From such a period, with what the live model takes for unusual: the network has changed.
    WholePeriod,
    /// From the recent rows.
    Recent,
}

/// A model at work with its threshold.
#[derive(Clone, Debug)]
pub struct Live {
    /// The model.
    pub model: Arc<Network>,
    /// Its threshold.
    pub spot: Spot,
    /// When it was trained, by the service's clock.
    pub trained: Nanos,
}

/// Training that is to be done, away from the stream of messages.
pub struct TrainingJob {
    sample: Matrix,
    training: Training,
    settings: Arc<Settings>,
    anchor: Option<Arc<Anchor>>,
    // The model at work and its threshold, where it is of a release that kept no anchor.
    instead: Option<(Arc<Network>, f64)>,
}

/// What training gave.
#[derive(Clone, Debug)]
pub struct Trained {
    /// As it is to be stored.
    pub stored: StoredModel,
    /// What is kept of the training besides.
    pub profile: Arc<Profile>,
    model: Arc<Network>,
    spot: Spot,
    anchor: Arc<Anchor>,
}

/// What a change of phase may have to take back.
#[derive(Debug)]
pub struct Memento {
    phase: Phase,
    live: Option<Live>,
    version: u64,
    roles: Roles,
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
    /// Starts a learnt period, in place of one that is under way. The present model goes on scoring.
    ///
    /// # Errors
    /// [`PhaseError::Training`].
    pub fn start_learning(&mut self, now: Nanos, automatic: bool) -> Result<(), PhaseError> {
        self.start_learning_from(now, automatic, Origin::Period)
    }

    /// Starts a learnt period, and says what of it is learnt.
    ///
    /// # Errors
    /// [`PhaseError::Training`].
    pub fn start_learning_from(&mut self, now: Nanos, automatic: bool, origin: Origin) -> Result<(), PhaseError> {
        if matches!(self.phase, Phase::Training(_)) {
            return Err(PhaseError::Training);
        }
        let seed = self.settings.seed.wrapping_add(self.version);
        self.phase = Phase::Learning(Learning {
            started: now,
            automatic,
            origin,
            tags: Vec::new(),
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
        let mut sample = Matrix::from_rows(WIDTH, learning.sample.rows());
        // Nobody may have more than a share of what replaces a model; the first has nobody to be measured by.
        if self.live.is_some() && self.settings.candidate.guarded {
            sample = sample.select(&within_share(
                &learning.tags,
                self.settings.candidate.sample.source_share,
            ));
        }
        let anchor = self.models.roles.anchor.clone();
        let live = self.live.as_ref().filter(|_| anchor.is_none());
        Some(TrainingJob {
            sample,
            training: Training {
                features: features::names().map(str::to_owned).collect(),
                seed: self.settings.seed.wrapping_add(self.version),
                version: self.version + 1,
                least_rows: 1,
                window: learning.window,
                learnt_flows: learning.sample.offered(),
            },
            settings: Arc::clone(&self.settings),
            anchor,
            instead: live.map(|live| (Arc::clone(&live.model), live.spot.threshold())),
        })
    }

    /// Takes a trained model: to work at once where there is none, as a candidate otherwise. True when it went to work.
    pub fn install(&mut self, trained: Trained, now: Nanos) -> bool {
        self.version = trained.stored.manifest.version();
        if let (None, Phase::Training(learning)) = (&self.live, &self.phase) {
            self.budgets
                .expect(learning.sample.offered(), now.saturating_sub(learning.started));
        }
        self.phase = Phase::Scoring;
        if self.live.is_some() {
            self.models.roles.anchor.get_or_insert(trained.anchor);
            self.models.roles.candidate = Some(Candidate {
                model: trained.model,
                spot: trained.spot,
                trained: now,
                profile: trained.profile,
                shadow: Shadow::default(),
            });
            return false;
        }
        self.models.roles.anchor = Some(trained.anchor);
        self.go_live(trained.model, trained.spot, now, &trained.profile);
        true
    }

    /// Puts a model to work in place of the present one.
    fn go_live(&mut self, model: Arc<Network>, spot: Spot, trained: Nanos, profile: &Profile) {
        self.models.roles.go_live(model.manifest().version(), profile);
        self.live = Some(Live { model, spot, trained });
    }

    /// Starts learning a candidate from the recent rows.
    ///
    /// # Errors
    /// [`RegistryError::NotNow`] when a period is being learnt or trained on, when no model is live, or when fewer than
    /// `least` rows may be learnt from.
    pub fn update(&mut self, now: Nanos, least: u64) -> Result<(), RegistryError> {
        let not_now = |why: &str| Err(RegistryError::NotNow(why.to_owned()));
        if self.live.is_none() {
            return not_now("no model is live; learn a first one");
        }
        if !matches!(self.phase, Phase::Scoring | Phase::Idle) {
            return not_now("a model is being learnt; wait until it is trained");
        }
        let recent = &self.models.recent;
        let (rows, tags) = recent.parts();
        let kept = within_share(tags, self.settings.candidate.sample.source_share).len() as u64;
        if kept < least {
            return Err(RegistryError::NotNow(format!(
                "{kept} recent records may be learnt from and training needs {least}"
            )));
        }
        let (offered, window) = recent.taken();
        self.phase = Phase::Training(Learning {
            started: now,
            automatic: false,
            origin: Origin::Recent,
            tags: tags.to_vec(),
            sample: Reservoir::restore(WIDTH, recent.len(), rows.to_vec(), offered, 0),
            window,
        });
        self.models.roles.updated = now;
        Ok(())
    }

    /// Puts the candidate in the live model's place. What speaks against it stops it, unless `despite` says that somebody
    /// has looked: then later models are held against this one.
    ///
    /// # Errors
    /// [`RegistryError::NoVersion`], [`RegistryError::Objection`].
    pub fn promote(&mut self, version: u64, despite: bool) -> Result<(), RegistryError> {
        let candidate = self.models.roles.candidate.take_if(|c| c.version() == version);
        let Some(candidate) = candidate else {
            return Err(RegistryError::NoVersion { version });
        };
        let objection = candidate.profile.objection.clone();
        if !objection.is_empty() {
            if !despite {
                self.models.roles.candidate = Some(candidate);
                return Err(RegistryError::Objection { version, objection });
            }
            let profile = &candidate.profile;
            let anchor = Anchor::restore(version, profile.normal.clone(), profile.found.clone());
            self.models.roles.anchor = anchor.map(Arc::new).or(self.models.roles.anchor.take());
        }
        self.go_live(candidate.model, candidate.spot, candidate.trained, &candidate.profile);
        Ok(())
    }

    /// Puts an earlier version in the live model's place, with a threshold from what its training kept, or from the recent
    /// rows where that was before anything was kept.
    ///
    /// # Errors
    /// [`RegistryError::NotNow`] when there is nothing to set a threshold from, or the model cannot score.
    pub fn roll_back(&mut self, model: Network, profile: &Profile, trained: Nanos) -> Result<(), RegistryError> {
        let mut scores = profile.calibration.clone();
        if scores.len() < Spot::MIN_CALIBRATION {
            let recent = Matrix::from_rows(WIDTH, self.models.recent.rows());
            let scored = model.score(&recent).map_err(|e| RegistryError::NotNow(e.to_string()))?;
            scores = scored.values().to_vec();
        }
        let spot = Spot::calibrate(self.settings.spot, &scores).ok_or_else(|| {
            let (has, needs) = (scores.len(), Spot::MIN_CALIBRATION);
            RegistryError::NotNow(format!(
                "{has} records are known to set a threshold from and it needs {needs}"
            ))
        })?;
        self.go_live(Arc::new(model), spot, trained, profile);
        Ok(())
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
            roles: self.models.roles.clone(),
        }
    }

    /// Puts phase and model back to what they were.
    pub fn restore(&mut self, memento: Memento) {
        self.phase = memento.phase;
        self.live = memento.live;
        self.version = memento.version;
        self.models.roles = memento.roles;
    }
}

impl TrainingJob {
    /// Trains, and sets the threshold. Takes seconds of one processor.
    ///
    /// # Errors
    /// Any [`ModelError`].
    pub fn run(self) -> Result<Trained, ModelError> {
        let kind = &self.settings.network;
        let (model, stored, calibration) = Network::train(kind, &self.sample, &self.training)?;
        let spot = Spot::calibrate(self.settings.spot, &calibration).ok_or(ModelError::TooLittle {
            learnt: calibration.len(),
            needed: Spot::MIN_CALIBRATION,
        })?;
        let threshold = spot.threshold();
        let own = Anchor::of(self.training.version, &model, threshold, &self.sample)?;
        let anchor = match (self.anchor, self.instead) {
            (Some(anchor), _) => anchor,
            (None, Some((live, threshold))) => {
                let version = live.manifest().version();
                Arc::new(Anchor::of(version, &live, threshold, &self.sample)?)
            }
            (None, None) => Arc::new(own.clone()),
        };
        let measured = anchor.measure(&model, threshold)?;
        let candidate = &self.settings.candidate;
        let objection = if candidate.guarded {
            anchor.objection(&measured, candidate.most_lost)
        } else {
            String::new()
        };
        let reference = Reference::of(&self.sample, &calibration);
        Ok(Trained {
            stored,
            profile: Arc::new(Profile {
                calibration,
                reference,
                normal: own.normal.into_values(),
                found: own.found,
                measured,
                objection,
            }),
            model: Arc::new(model),
            spot,
            anchor,
        })
    }
}
