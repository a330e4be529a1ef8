//! The network behind a tenant's model: an ensemble, or the single autoencoder of earlier releases. Both learn from rows
//! of features as they are, keep their scaling with them, and score a batch as matrix products.

use garrison_models::{
    Matrix,
    autoencoder::{self, Autoencoder, Training},
    ensemble::{self, Ensemble, Shape},
    error::ModelError,
    scaler::RobustScaler,
};
use serde::{Deserialize, Serialize};

use super::features::WIDTH;

/// Values between a feature's own and its usual one that are tried.
const STEPS: usize = 20;
/// Version of the ensemble's manifest.
const FORMAT: u32 = 1;
/// Rows held back below which a threshold from them alone would be a guess.
const ENOUGH_HELD: usize = 1_000;

/// What a new model is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Networks that tell hidden features from the others.
    Ensemble(Shape),
    /// One network that reproduces a row through a narrow middle.
    Autoencoder,
}

/// What belongs to an ensemble's weights: stored beside them as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnsembleManifest {
    /// Version of this form.
    pub format: u32,
    /// Version of the model within its tenant, from 1.
    pub version: u64,
    /// Features in the order of the input.
    pub features: Vec<String>,
    /// Scaling of the input.
    pub scaler: RobustScaler,
    /// Flow time of the first and last record learnt, nanoseconds since the epoch.
    pub window: (i64, i64),
    /// Records offered while learning.
    pub learnt_flows: u64,
    /// Size, training, seed, losses and the hash of the weights.
    pub ensemble: ensemble::Manifest,
}

/// What belongs to a model's weights. Told apart by the field that only an ensemble has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Manifest {
    /// Of an ensemble.
    Ensemble(Box<EnsembleManifest>),
    /// Of an autoencoder.
    Autoencoder(Box<autoencoder::Manifest>),
}

impl Manifest {
    /// `ensemble` or `autoencoder`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ensemble(_) => "ensemble",
            Self::Autoencoder(_) => "autoencoder",
        }
    }

    /// Version within the tenant.
    pub fn version(&self) -> u64 {
        match self {
            Self::Ensemble(m) => m.version,
            Self::Autoencoder(m) => m.version,
        }
    }

    /// Names of the features.
    pub fn features(&self) -> &[String] {
        match self {
            Self::Ensemble(m) => &m.features,
            Self::Autoencoder(m) => &m.features,
        }
    }

    /// The scaling of the input.
    pub fn scaler(&self) -> &RobustScaler {
        match self {
            Self::Ensemble(m) => &m.scaler,
            Self::Autoencoder(m) => &m.scaler,
        }
    }

    /// Flow time of the first and last record learnt.
    pub fn window(&self) -> (i64, i64) {
        match self {
            Self::Ensemble(m) => m.window,
            Self::Autoencoder(m) => m.window,
        }
    }

    /// Records offered while learning.
    pub fn learnt_flows(&self) -> u64 {
        match self {
            Self::Ensemble(m) => m.learnt_flows,
            Self::Autoencoder(m) => m.learnt_flows,
        }
    }

    /// Records trained on, and records held back.
    pub fn rows(&self) -> (usize, usize) {
        match self {
            Self::Ensemble(m) => (m.ensemble.training_rows, m.ensemble.held_rows),
            Self::Autoencoder(m) => (m.training_rows, m.validation_rows),
        }
    }

    /// Loss on the rows held back: an ensemble's mean score, an autoencoder's mean squared error.
    pub fn validation_loss(&self) -> f64 {
        match self {
            Self::Ensemble(m) => m.ensemble.held_score,
            Self::Autoencoder(m) => f64::from(m.validation_loss),
        }
    }

    /// Seed of the training.
    pub fn seed(&self) -> u64 {
        match self {
            Self::Ensemble(m) => m.ensemble.seed,
            Self::Autoencoder(m) => m.seed,
        }
    }

    /// SHA-256 of the weights, hexadecimal.
    pub fn weights_sha256(&self) -> &str {
        match self {
            Self::Ensemble(m) => &m.ensemble.weights_sha256,
            Self::Autoencoder(m) => &m.weights_sha256,
        }
    }
}

/// A model as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredModel {
    /// What it is.
    pub manifest: Manifest,
    /// The weights as safetensors.
    pub weights: Vec<u8>,
}

#[derive(Debug)]
enum Inner {
    Ensemble(Ensemble),
    Autoencoder(Autoencoder),
}

/// A trained model, ready to score.
#[derive(Debug)]
pub struct Network {
    manifest: Manifest,
    inner: Inner,
}

/// Scores of a batch.
#[derive(Debug)]
pub enum Scores {
    /// Of an ensemble, with the scaled rows.
    Ensemble(ensemble::Scores, Matrix),
    /// Of an autoencoder.
    Autoencoder(autoencoder::Scores),
}

impl Scores {
    /// The score of each row.
    pub fn values(&self) -> &[f64] {
        match self {
            Self::Ensemble(s, _) => &s.values,
            Self::Autoencoder(s) => &s.values,
        }
    }

    /// The share of each feature in a row's score, largest first. An unusual value also makes features hard to tell that
    /// are as usual; so a feature counts by how far its own value is from its median, too.
    pub fn shares(&self, row: usize) -> Vec<(usize, f64)> {
        match self {
            Self::Ensemble(s, scaled) => {
                let mut shares = s.shares(row);
                for (feature, share) in &mut shares {
                    let away = f64::from(scaled.feature(*feature)[row]).powi(2);
                    *share *= away / (1.0 + away);
                }
                let total = shares.iter().map(|(_, s)| s).sum::<f64>().max(f64::MIN_POSITIVE);
                shares.iter_mut().for_each(|(_, share)| *share /= total);
                shares.sort_by(|a, b| b.1.total_cmp(&a.1));
                shares
            }
            Self::Autoencoder(s) => s.shares(row),
        }
    }
}

impl Network {
    /// Trains on a sample of normal rows, and returns the model, what is to be stored of it, and the scores of normal rows
    /// for setting a threshold: of those held back, or of all where those would be too few. The same sample, seed and kind
    /// give the same weights on the same machine.
    ///
    /// # Errors
    /// Every [`ModelError`] but `Unusable`.
    pub fn train(
        kind: &Kind,
        sample: &Matrix,
        training: &Training,
    ) -> Result<(Self, StoredModel, Vec<f64>), ModelError> {
        let (model, weights, scores) = match kind {
            Kind::Autoencoder => {
                let (model, stored, scores) = Autoencoder::train(sample, training)?;
                let manifest = Manifest::Autoencoder(Box::new(stored.manifest));
                let inner = Inner::Autoencoder(model);
                (Self { manifest, inner }, stored.weights, scores)
            }
            Kind::Ensemble(shape) => {
                let scaler = RobustScaler::fit(sample);
                let mut scaled = sample.clone();
                scaler.apply(&mut scaled);
                let (ensemble, held) = Ensemble::train(&scaled, &[1; WIDTH], shape, training.seed)?;
                let scores = if held.len() >= ENOUGH_HELD {
                    held
                } else {
                    ensemble.score(&scaled)?.values
                };
                let manifest = Manifest::Ensemble(Box::new(EnsembleManifest {
                    format: FORMAT,
                    version: training.version,
                    features: training.features.clone(),
                    scaler,
                    window: training.window,
                    learnt_flows: training.learnt_flows,
                    ensemble: ensemble.manifest().clone(),
                }));
                let weights = ensemble.weights()?;
                let inner = Inner::Ensemble(ensemble);
                (Self { manifest, inner }, weights, scores)
            }
        };
        let stored = StoredModel {
            manifest: model.manifest.clone(),
            weights,
        };
        Ok((model, stored, scores))
    }

    /// Reads a stored model for rows of the named features.
    ///
    /// # Errors
    /// [`ModelError::Unusable`] when weights and manifest do not fit each other or the features.
    pub fn load<'a>(stored: &StoredModel, features: impl Iterator<Item = &'a str>) -> Result<Self, ModelError> {
        let inner = match &stored.manifest {
            Manifest::Autoencoder(manifest) => {
                let own = autoencoder::StoredModel {
                    manifest: (**manifest).clone(),
                    weights: stored.weights.clone(),
                };
                Inner::Autoencoder(Autoencoder::load(&own, features)?)
            }
            Manifest::Ensemble(manifest) => {
                let unusable = |problem: &str| ModelError::Unusable(problem.to_owned());
                if manifest.format != FORMAT {
                    return Err(unusable("the manifest is of another release"));
                }
                if !manifest.features.iter().map(String::as_str).eq(features) {
                    return Err(unusable("it was trained on other features; learn again"));
                }
                let width = manifest.features.len();
                let scaler = &manifest.scaler;
                if scaler.medians.len() != width
                    || scaler.spreads.len() != width
                    || manifest.ensemble.blocks != vec![1; width]
                {
                    return Err(unusable("its shape is another"));
                }
                Inner::Ensemble(Ensemble::load(&manifest.ensemble, &stored.weights)?)
            }
        };
        Ok(Self {
            manifest: stored.manifest.clone(),
            inner,
        })
    }

    /// Scores every row of an unscaled matrix.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] when the tensor library fails.
    pub fn score(&self, rows: &Matrix) -> Result<Scores, ModelError> {
        match &self.inner {
            Inner::Autoencoder(model) => model.score(rows).map(Scores::Autoencoder),
            Inner::Ensemble(model) => {
                let mut scaled = rows.clone();
                self.manifest.scaler().apply(&mut scaled);
                let scores = model.score(&scaled)?;
                Ok(Scores::Ensemble(scores, scaled))
            }
        }
    }

    /// For some features of a row, the value nearest to its own with which the row would score no more than the threshold
    /// if all others stayed as they are; `None` where no value between its own and the usual one does.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] when the tensor library fails.
    pub fn normal_values(
        &self,
        row: &[f32],
        features: &[usize],
        threshold: f64,
    ) -> Result<Vec<Option<f32>>, ModelError> {
        let mut rows = Matrix::from_rows(row.len(), std::iter::repeat_n(row, features.len() * STEPS));
        let value = |feature: usize, step: usize| {
            let share = (step + 1) as f32 / STEPS as f32;
            row[feature] + share * (self.median(feature) - row[feature])
        };
        for (k, feature) in features.iter().enumerate() {
            let column = rows.feature_mut(*feature);
            (0..STEPS).for_each(|step| column[k * STEPS + step] = value(*feature, step));
        }
        let scores = self.score(&rows)?;
        let below = scores.values().chunks_exact(STEPS);
        let first = below.map(|steps| steps.iter().position(|score| *score <= threshold));
        Ok(first
            .zip(features)
            .map(|(step, f)| step.map(|step| value(*f, step)))
            .collect())
    }

    /// The usual value of a feature, as the model sees it.
    pub fn median(&self, feature: usize) -> f32 {
        self.manifest.scaler().medians.get(feature).copied().unwrap_or(0.0)
    }

    /// What belongs to the weights.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

#[cfg(test)]
mod tests {
    use garrison_models::rng::SplitMix64;

    use super::*;
    use crate::domain::features;

    fn sample(n: usize) -> Matrix {
        let mut rng = SplitMix64::new(4);
        let rows: Vec<Vec<f32>> = (0..n)
            .map(|_| {
                let a = rng.normal() as f32;
                (0..WIDTH)
                    .map(|j| a + 0.1 * j as f32 + 0.1 * rng.normal() as f32)
                    .collect()
            })
            .collect();
        Matrix::from_rows(WIDTH, rows.iter().map(Vec::as_slice))
    }

    fn training() -> Training {
        Training {
            features: features::names().map(str::to_owned).collect(),
            seed: 9,
            version: 3,
            least_rows: 1,
            window: (1, 2),
            learnt_flows: 300,
        }
    }

    fn small() -> Kind {
        Kind::Ensemble(Shape {
            hidden: vec![8],
            members: 2,
            masked: 0.5,
            steps: 30,
        })
    }

    #[test]
    fn either_kind_is_the_same_for_the_same_seed_and_comes_back_from_what_is_stored() {
        let sample = sample(300);
        for kind in [small(), Kind::Autoencoder] {
            let (model, stored, scores) = Network::train(&kind, &sample, &training()).unwrap();
            let (_, again, _) = Network::train(&kind, &sample, &training()).unwrap();
            assert_eq!(stored, again);
            assert_eq!(scores.len(), 300);
            let text = serde_json::to_string(&stored.manifest).unwrap();
            let manifest: Manifest = serde_json::from_str(&text).unwrap();
            assert_eq!(manifest.kind(), stored.manifest.kind());
            assert_eq!((manifest.version(), manifest.learnt_flows()), (3, 300));
            let read = StoredModel {
                manifest,
                weights: stored.weights.clone(),
            };
            let loaded = Network::load(&read, features::names()).unwrap();
            assert_eq!(
                loaded.score(&sample).unwrap().values(),
                model.score(&sample).unwrap().values()
            );
            let other = Network::load(&read, features::names().skip(1)).unwrap_err();
            assert!(other.to_string().contains("other features"), "{other}");
        }
    }

    #[test]
    fn the_feature_that_moved_is_named_and_the_value_that_would_have_been_normal() {
        let trained = Kind::Ensemble(Shape {
            hidden: vec![24],
            members: 2,
            masked: 0.5,
            steps: 500,
        });
        for kind in [trained, Kind::Autoencoder] {
            let sample = sample(600);
            let (model, _, _) = Network::train(&kind, &sample, &training()).unwrap();
            let usual: Vec<f32> = (0..WIDTH).map(|j| model.median(j)).collect();
            let mut row = usual.clone();
            row[7] += 30.0;
            let both = Matrix::from_rows(WIDTH, [row.as_slice(), usual.as_slice()].into_iter());
            let scored = model.score(&both).unwrap();
            let (high, low) = (scored.values()[0], scored.values()[1]);
            assert!(high > low, "{kind:?}: {high} {low}");
            let between = 0.5 * (high + low);
            assert_eq!(scored.shares(0)[0].0, 7, "{kind:?}");
            let normal = model.normal_values(&row, &[7, 8], between).unwrap();
            let value = normal[0].unwrap();
            assert!(value > model.median(7) - 1e-3 && value < row[7], "{value}");
            // Nothing is gained by changing what is as usual.
            assert_eq!(normal[1], None);
        }
    }

    #[test]
    fn a_model_of_an_earlier_release_is_read() {
        let (_, stored, _) = Autoencoder::train(&sample(200), &training()).unwrap();
        // As the service before this one stored it.
        let text = serde_json::to_string(&stored.manifest).unwrap();
        let read = StoredModel {
            manifest: serde_json::from_str(&text).unwrap(),
            weights: stored.weights,
        };
        assert_eq!(read.manifest.kind(), "autoencoder");
        assert!(Network::load(&read, features::names()).is_ok());
    }
}
