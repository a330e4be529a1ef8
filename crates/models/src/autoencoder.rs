//! The neural model: an autoencoder that learns to reproduce normal flows through a narrow middle. What it
//! reproduces badly is unusual, and the features it misses by most say why (Hawkins et al. 2002).
//!
//! While scoring, the middle is held within the range it had in the learnt period: otherwise the network would carry
//! a value far outside that range straight through, and reproduce best what is most extreme.
//!
//! Flows are columns of the input matrix. Training is matrix products; scoring takes a few flows at a time through all
//! layers (`fused`).

mod fused;

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer as _, ParamsAdamW};
use serde::{Deserialize, Serialize};

use self::fused::{Fused, Level, Weights};
pub use crate::error::ModelError;
use crate::{
    Matrix,
    error::tensor,
    rng::SplitMix64,
    scaler::RobustScaler,
    weights::{self, Reader},
};

/// Widths of the layers between input and output.
pub const HIDDEN: [usize; 3] = [24, 8, 24];

// Which of the layers is the middle.
const MIDDLE: usize = 1;

/// Version of the manifest's form.
pub const MANIFEST_VERSION: u32 = 1;

const BATCH: usize = 128;
const HELD_BACK: f64 = 0.2;
const LEARNING_RATE: f64 = 3e-3;
const MOST_STEPS: usize = 4_000;
const PATIENCE: usize = 8;

/// What belongs to the weights: stored beside them as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this form.
    pub format: u32,
    /// Version of the model within its tenant, from 1.
    pub version: u64,
    /// Features in the order of the input.
    pub features: Vec<String>,
    /// Widths of the hidden layers.
    pub hidden: Vec<usize>,
    /// Scaling of the input.
    pub scaler: RobustScaler,
    /// Seed of the split, the initial weights and the order of the batches.
    pub seed: u64,
    /// Flow time of the first and last record learnt, nanoseconds since the epoch.
    pub window: (i64, i64),
    /// Records offered while learning.
    pub learnt_flows: u64,
    /// Records trained on.
    pub training_rows: usize,
    /// Records held back.
    pub validation_rows: usize,
    /// Passes over the training part.
    pub epochs: usize,
    /// Mean squared error on the training part, in squared spreads.
    pub training_loss: f32,
    /// Mean squared error on the part held back.
    pub validation_loss: f32,
    /// SHA-256 of the safetensors bytes, hexadecimal.
    pub weights_sha256: String,
}

/// What training is told.
#[derive(Clone, Debug)]
pub struct Training {
    /// Names of the features, in the order of the sample.
    pub features: Vec<String>,
    /// Seed: the same sample and seed give the same weights on the same machine.
    pub seed: u64,
    /// Version the model will have.
    pub version: u64,
    /// Fewest rows to train on.
    pub least_rows: usize,
    /// Flow time of the learnt period.
    pub window: (i64, i64),
    /// Records offered while learning.
    pub learnt_flows: u64,
}

/// A model as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredModel {
    /// What it is.
    pub manifest: Manifest,
    /// The weights as safetensors.
    pub weights: Vec<u8>,
}

/// A trained model, ready to score.
#[derive(Debug)]
pub struct Autoencoder {
    manifest: Manifest,
    fused: Arc<Fused>,
}

/// Scores of a batch.
#[derive(Clone, Debug)]
pub struct Scores {
    /// `ln(1 + mean squared error)` of each row, in squared spreads.
    pub values: Vec<f64>,
    scaled: Matrix,
    fused: Arc<Fused>,
}

impl Scores {
    /// The share of each feature in a row's error, largest first. An unusual value also spoils the reproduction of
    /// features that are as usual; so an error counts by how far the value itself is from its median.
    pub fn shares(&self, row: usize) -> Vec<(usize, f64)> {
        let scaled: Vec<f32> = self.scaled.row(row).collect();
        let errors: Vec<f64> = scaled
            .iter()
            .zip(self.fused.errors(&scaled))
            .map(|(x, error)| {
                let away = f64::from(*x).powi(2);
                f64::from(error) * away / (1.0 + away)
            })
            .collect();
        let total = errors.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let mut shares: Vec<(usize, f64)> = errors.iter().map(|e| e / total).enumerate().collect();
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        shares
    }
}

impl Autoencoder {
    /// Trains on a sample of normal rows and returns the model together with the scores of rows it was not
    /// trained on (or of all, where those would be too few) for setting the threshold.
    ///
    /// AdamW (Loshchilov and Hutter 2019) on the mean squared error; the weights of the epoch with the least
    /// error on the part held back are kept, and training ends when that has not improved for a while.
    ///
    /// # Errors
    /// Every [`ModelError`] but `Unusable`.
    pub fn train(sample: &Matrix, training: &Training) -> Result<(Self, StoredModel, Vec<f64>), ModelError> {
        if sample.rows() < training.least_rows.max(10) {
            return Err(ModelError::TooLittle {
                learnt: sample.rows(),
                needed: training.least_rows.max(10),
            });
        }
        let mut rng = SplitMix64::new(training.seed);
        let (mut train_rows, mut held_rows) = (Vec::new(), Vec::new());
        for i in 0..sample.rows() {
            if rng.unit() < HELD_BACK {
                held_rows.push(i);
            } else {
                train_rows.push(i);
            }
        }
        if held_rows.is_empty() {
            held_rows.push(train_rows[0]);
        }
        let mut train = sample.select(&train_rows);
        let mut held = sample.select(&held_rows);
        let scaler = RobustScaler::fit(&train);
        scaler.apply(&mut train);
        scaler.apply(&mut held);
        let held_input = input(&held)?;

        let variables = initial_weights(sample.width(), &mut rng)?;
        let flat: Vec<Var> = variables.iter().flat_map(|(w, b)| [w.clone(), b.clone()]).collect();
        let mut optimiser = AdamW::new(
            flat,
            ParamsAdamW {
                lr: LEARNING_RATE,
                weight_decay: 1e-4,
                ..ParamsAdamW::default()
            },
        )
        .map_err(tensor("starting the optimiser"))?;

        let live: Vec<(Tensor, Tensor)> = variables
            .iter()
            .map(|(w, b)| (w.as_tensor().clone(), b.as_tensor().clone()))
            .collect();
        let steps_an_epoch = train.rows().div_ceil(BATCH);
        let most_epochs = (MOST_STEPS / steps_an_epoch).clamp(12, 200);
        let mut order: Vec<usize> = (0..train.rows()).collect();
        let mut best = (f32::INFINITY, freeze(&live).map_err(tensor("copying the weights"))?);
        let (mut stale, mut epochs, mut training_loss, mut last) = (0, 0, 0.0, 0.0);
        while epochs < most_epochs && stale < PATIENCE {
            rng.shuffle(&mut order);
            let mut sum = 0.0;
            for rows in order.chunks(BATCH) {
                let x = input(&train.select(rows))?;
                let loss = mean_squared_error(&live, &x).map_err(tensor("a training step"))?;
                sum += loss.to_scalar::<f32>().map_err(tensor("reading the training loss"))? * rows.len() as f32;
                optimiser.backward_step(&loss).map_err(tensor("a training step"))?;
            }
            epochs += 1;
            training_loss = sum / train.rows() as f32;
            last = mean_squared_error(&live, &held_input)
                .and_then(|loss| loss.to_scalar::<f32>())
                .map_err(tensor("validation"))?;
            if last < best.0 * 0.999 {
                best = (last, freeze(&live).map_err(tensor("copying the weights"))?);
                stale = 0;
            } else {
                stale += 1;
            }
        }
        let (validation_loss, layers) = best;
        if !validation_loss.is_finite() {
            return Err(ModelError::Diverged { loss: last });
        }
        let range = middle_range(&layers, &input(&train)?)?;
        let weights = serialise(&layers, &range)?;
        let manifest = Manifest {
            format: MANIFEST_VERSION,
            version: training.version,
            features: training.features.clone(),
            hidden: HIDDEN.to_vec(),
            scaler,
            seed: training.seed,
            window: training.window,
            learnt_flows: training.learnt_flows,
            training_rows: train_rows.len(),
            validation_rows: held_rows.len(),
            epochs,
            training_loss,
            validation_loss,
            weights_sha256: weights::hash(&weights),
        };
        let model = Self {
            manifest,
            fused: fuse(&layers, &range)?,
        };
        // A threshold from a handful of values would be a guess, and what training on them takes off the
        // score is small beside that.
        let calibration = if held_rows.len() >= 1_000 {
            model.score(&sample.select(&held_rows))?.values
        } else {
            model.score(sample)?.values
        };
        let stored = StoredModel {
            manifest: model.manifest.clone(),
            weights,
        };
        Ok((model, stored, calibration))
    }

    /// Reads a stored model for rows of the named features.
    ///
    /// # Errors
    /// [`ModelError::Unusable`] when weights and manifest do not fit each other or the features.
    pub fn load<'a>(stored: &StoredModel, features: impl Iterator<Item = &'a str>) -> Result<Self, ModelError> {
        let unusable = |what: String| ModelError::Unusable(what);
        let manifest = &stored.manifest;
        if manifest.format != MANIFEST_VERSION {
            return Err(unusable(format!(
                "manifest version {} instead of {MANIFEST_VERSION}",
                manifest.format
            )));
        }
        let reader = Reader::open(&stored.weights, &manifest.weights_sha256)?;
        if !manifest.features.iter().map(String::as_str).eq(features) {
            return Err(unusable("it was trained on other features; learn again".to_owned()));
        }
        let scales = [&manifest.scaler.medians, &manifest.scaler.spreads];
        if scales.iter().any(|s| s.len() != manifest.features.len()) || manifest.hidden != HIDDEN {
            return Err(unusable("its shape is another".to_owned()));
        }
        let read = |name: String, shape: &[usize]| reader.tensor(&name, shape);
        let layers = shapes(manifest.features.len())
            .into_iter()
            .enumerate()
            .map(|(i, (outputs, inputs))| {
                Ok((
                    read(format!("layers.{i}.weight"), &[outputs, inputs])?,
                    read(format!("layers.{i}.bias"), &[outputs, 1])?,
                ))
            })
            .collect::<Result<Vec<_>, ModelError>>()?;
        let bounds = [HIDDEN[MIDDLE], 1];
        let range = (
            read("middle.least".to_owned(), &bounds)?,
            read("middle.greatest".to_owned(), &bounds)?,
        );
        Ok(Self {
            manifest: manifest.clone(),
            fused: fuse(&layers, &range)?,
        })
    }

    /// Scores every row of an unscaled matrix.
    ///
    /// # Errors
    /// None today; the type leaves room.
    pub fn score(&self, rows: &Matrix) -> Result<Scores, ModelError> {
        let pass = self.fused.pass(rows, &self.manifest.scaler);
        Ok(Scores {
            values: pass
                .sums
                .iter()
                .map(|s| (f64::from(*s) / rows.width() as f64).ln_1p())
                .collect(),
            scaled: pass.scaled,
            fused: Arc::clone(&self.fused),
        })
    }

    /// What belongs to the model.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The usual value of a feature, as it is in the rows that are scored.
    pub fn median(&self, feature: usize) -> f32 {
        self.manifest.scaler.medians.get(feature).copied().unwrap_or(0.0)
    }
}

// Lays trained layers out for scoring.
fn fuse(layers: &[(Tensor, Tensor)], range: &(Tensor, Tensor)) -> Result<Arc<Fused>, ModelError> {
    let numbers = |values: &Tensor| values.flatten_all()?.to_vec1::<f32>();
    let laid_out = || -> candle_core::Result<Fused> {
        let weights = layers
            .iter()
            .map(|(weight, bias)| {
                let (outputs, inputs) = weight.dims2()?;
                Ok(Weights {
                    inputs,
                    outputs,
                    weights: numbers(weight)?,
                    bias: numbers(bias)?,
                })
            })
            .collect::<candle_core::Result<_>>()?;
        let (least, greatest) = (numbers(&range.0)?, numbers(&range.1)?);
        Ok(Fused::new(Level::best(), weights, MIDDLE, &least, &greatest))
    };
    laid_out().map(Arc::new).map_err(tensor("laying out the layers"))
}

// (outputs, inputs) of each layer.
fn shapes(width: usize) -> Vec<(usize, usize)> {
    let widths = [&[width][..], &HIDDEN, &[width]].concat();
    widths.windows(2).map(|w| (w[1], w[0])).collect()
}

fn input(matrix: &Matrix) -> Result<Tensor, ModelError> {
    Tensor::from_slice(matrix.values(), (matrix.width(), matrix.rows()), &Device::Cpu)
        .map_err(tensor("laying out the input"))
}

// Scaled uniform weights (He et al. 2015), no bias.
fn initial_weights(width: usize, rng: &mut SplitMix64) -> Result<Vec<(Var, Var)>, ModelError> {
    let build = |rng: &mut SplitMix64, (outputs, inputs): (usize, usize)| {
        let bound = (6.0 / inputs as f64).sqrt();
        let values: Vec<f32> = (0..outputs * inputs)
            .map(|_| ((2.0 * rng.unit() - 1.0) * bound) as f32)
            .collect();
        let weight = Tensor::from_vec(values, (outputs, inputs), &Device::Cpu)?;
        Ok((
            Var::from_tensor(&weight)?,
            Var::zeros((outputs, 1), DType::F32, &Device::Cpu)?,
        ))
    };
    shapes(width)
        .into_iter()
        .map(|shape| build(rng, shape).map_err(tensor("making the first weights")))
        .collect()
}

// The output and the middle are linear; the other layers rectify.
fn forward(layers: &[(Tensor, Tensor)], x: &Tensor) -> candle_core::Result<Tensor> {
    let mut h = x.clone();
    for (i, (weight, bias)) in layers.iter().enumerate() {
        h = weight.matmul(&h)?.broadcast_add(bias)?;
        if i != MIDDLE && i + 1 != layers.len() {
            h = h.relu()?;
        }
    }
    Ok(h)
}

// The range of each unit of the middle over the sample, its rarest thousandth on either side left out.
fn middle_range(layers: &[(Tensor, Tensor)], x: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
    let units = forward(&layers[..=MIDDLE], x)
        .and_then(|h| h.to_vec2::<f32>())
        .map_err(tensor("measuring the middle"))?;
    let (mut least, mut greatest) = (Vec::new(), Vec::new());
    for mut unit in units {
        unit.sort_by(f32::total_cmp);
        let rare = unit.len() / 1_000;
        least.push(unit.get(rare).copied().unwrap_or(0.0));
        greatest.push(unit.get(unit.len().saturating_sub(rare + 1)).copied().unwrap_or(0.0));
    }
    let column = |values: Vec<f32>| {
        let n = values.len();
        Tensor::from_vec(values, (n, 1), &Device::Cpu).map_err(tensor("measuring the middle"))
    };
    Ok((column(least)?, column(greatest)?))
}

fn mean_squared_error(layers: &[(Tensor, Tensor)], x: &Tensor) -> candle_core::Result<Tensor> {
    forward(layers, x)?.sub(x)?.sqr()?.mean(D::Minus1)?.mean_all()
}

// A copy that further training does not change.
fn freeze(layers: &[(Tensor, Tensor)]) -> candle_core::Result<Vec<(Tensor, Tensor)>> {
    layers
        .iter()
        .map(|(w, b)| Ok((w.copy()?.detach(), b.copy()?.detach())))
        .collect()
}

fn serialise(layers: &[(Tensor, Tensor)], range: &(Tensor, Tensor)) -> Result<Vec<u8>, ModelError> {
    let mut named: Vec<(String, &Tensor)> = Vec::new();
    for (i, (weight, bias)) in layers.iter().enumerate() {
        named.push((format!("layers.{i}.weight"), weight));
        named.push((format!("layers.{i}.bias"), bias));
    }
    named.push(("middle.least".to_owned(), &range.0));
    named.push(("middle.greatest".to_owned(), &range.1));
    weights::write(&named, "garrison.autoencoder.v1")
}

#[cfg(test)]
mod tests;
