//! One-class learning with several networks that each tell hidden features from the others.
//!
//! A member sees a row with some features hidden, and is trained to say what they are. Of a row to be scored every
//! feature is hidden once, a group at a time, so that the error of each is that of a prediction from the rest: a plain
//! autoencoder may carry an odd value through its middle, this cannot. (The idea of predicting each feature from the
//! others: Noto, Brodley and Slonim 2012; of training one network for all of them by random masks: He et al. 2022.)
//!
//! An error counts by how it compares with what is usual for its feature: `ln(1 + e / σ²)`, where σ² is the mean error
//! of normal rows that were held back. So a feature that is easily told from the others speaks even when it is off by
//! little, and no single absurd value outweighs everything else.

use candle_core::{Device, Tensor};
use candle_nn::{AdamW, Optimizer as _, ParamsAdamW};
use serde::{Deserialize, Serialize};

use crate::{
    Matrix,
    dense::{self, Layers},
    error::{ModelError, tensor},
    rng::{SplitMix64, mix},
    weights::{self, Reader},
};

/// Version of the manifest's form.
pub const MANIFEST_VERSION: u32 = 1;

const BATCH: usize = 128;
const HELD_BACK: f64 = 0.2;
const LEARNING_RATE: f64 = 3e-3;
const LAST_RATE: f64 = 0.02;
// A feature that is always told exactly still has a usual error, so that its first miss is not infinite.
const SMALLEST_ERROR: f32 = 1e-3;
const SCORED_AT_ONCE: usize = 4_096;

/// The size of an ensemble, and how long it is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Widths of the hidden layers of a member.
    pub hidden: Vec<usize>,
    /// Members.
    pub members: usize,
    /// Share of the features that is hidden at a time: above 0, at most a half is sensible.
    pub masked: f64,
    /// Steps of training for each member, with 128 rows each.
    pub steps: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            hidden: vec![128, 32, 128],
            members: 4,
            masked: 0.5,
            steps: 4_000,
        }
    }
}

/// What belongs to the weights: stored beside them as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this form.
    pub format: u32,
    /// Size and training.
    pub shape: Shape,
    /// Numbers of a row that belong to each feature.
    pub blocks: Vec<usize>,
    /// Seed of the split, the weights, the batches and the masks.
    pub seed: u64,
    /// Rows trained on.
    pub training_rows: usize,
    /// Rows held back.
    pub held_rows: usize,
    /// Mean score of the rows held back.
    pub held_score: f64,
    /// SHA-256 of the safetensors bytes, hexadecimal.
    pub weights_sha256: String,
}

#[derive(Clone, Debug)]
struct Member {
    layers: Layers,
    // Which features are hidden together.
    groups: Vec<Vec<usize>>,
    // Usual error of each feature.
    usual: Vec<f32>,
}

/// A trained ensemble.
#[derive(Clone, Debug)]
pub struct Ensemble {
    manifest: Manifest,
    members: Vec<Member>,
}

/// Scores of some rows.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// The score of each row: the mean over members and features of `ln(1 + e / σ²)`.
    pub values: Vec<f64>,
    features: usize,
    // Feature by feature within a row.
    parts: Vec<f32>,
}

impl Scores {
    /// The share of each feature in a row's score, largest first.
    pub fn shares(&self, row: usize) -> Vec<(usize, f64)> {
        let parts = &self.parts[row * self.features..(row + 1) * self.features];
        let total = parts.iter().map(|p| f64::from(*p)).sum::<f64>().max(f64::MIN_POSITIVE);
        let mut shares: Vec<(usize, f64)> = parts.iter().map(|p| f64::from(*p) / total).enumerate().collect();
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        shares
    }
}

// Rows one after another, and which feature each number belongs to.
struct Rows {
    values: Vec<f32>,
    width: usize,
    feature: Vec<usize>,
    features: usize,
}

impl Rows {
    fn new(matrix: &Matrix, blocks: &[usize]) -> Result<Self, ModelError> {
        let feature: Vec<usize> = blocks
            .iter()
            .enumerate()
            .flat_map(|(b, n)| std::iter::repeat_n(b, *n))
            .collect();
        if feature.len() != matrix.width() || blocks.is_empty() {
            return Err(ModelError::Unusable(format!(
                "rows have {} numbers and the features {}",
                matrix.width(),
                feature.len()
            )));
        }
        Ok(Self {
            values: dense::by_rows(matrix),
            width: matrix.width(),
            feature,
            features: blocks.len(),
        })
    }

    fn len(&self) -> usize {
        self.values.len() / self.width
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.width..(i + 1) * self.width]
    }

    // A row without what is hidden, and a flag for each hidden feature.
    fn hide(&self, i: usize, hidden: &[bool], out: &mut Vec<f32>) {
        let kept = self.row(i).iter().zip(&self.feature);
        out.extend(kept.map(|(v, f)| if hidden[*f] { 0.0 } else { *v }));
        out.extend(hidden.iter().map(|h| f32::from(u8::from(*h))));
    }
}

impl Ensemble {
    /// Trains on normal rows, encoded and scaled; `blocks` says how many numbers belong to each feature. Returns the
    /// ensemble with the scores of the rows it was not trained on, for setting a threshold.
    ///
    /// The same rows, shape and seed give the same weights on the same machine.
    ///
    /// # Errors
    /// Every [`ModelError`].
    pub fn train(matrix: &Matrix, blocks: &[usize], shape: &Shape, seed: u64) -> Result<(Self, Vec<f64>), ModelError> {
        Self::learn(matrix, blocks, shape, seed, None)
    }

    /// Goes on learning from further rows, with a tenth of the rate, and keeps what the rows before it said of what is
    /// usual by `memory`, between 0 and 1.
    ///
    /// # Errors
    /// Every [`ModelError`].
    pub fn updated(
        &self,
        matrix: &Matrix,
        steps: usize,
        memory: f32,
        seed: u64,
    ) -> Result<(Self, Vec<f64>), ModelError> {
        let shape = Shape {
            steps,
            ..self.manifest.shape.clone()
        };
        let (mut next, _) = Self::learn(matrix, &self.manifest.blocks, &shape, seed, Some(self))?;
        for (new, old) in next.members.iter_mut().zip(&self.members) {
            for (n, o) in new.usual.iter_mut().zip(&old.usual) {
                *n = memory * o + (1.0 - memory) * *n;
            }
        }
        next.manifest.shape.steps = self.manifest.shape.steps + steps;
        let held = next.score(&matrix.select(&split(matrix.rows(), seed).1))?.values;
        next.manifest.held_score = mean(&held);
        next.manifest.weights_sha256 = weights::hash(&next.weights()?);
        Ok((next, held))
    }

    fn learn(
        matrix: &Matrix,
        blocks: &[usize],
        shape: &Shape,
        seed: u64,
        before: Option<&Self>,
    ) -> Result<(Self, Vec<f64>), ModelError> {
        let (fit, held) = split(matrix.rows(), seed);
        if fit.len() < 10 || held.is_empty() {
            return Err(ModelError::TooLittle {
                learnt: matrix.rows(),
                needed: 20,
            });
        }
        let rows = Rows::new(&matrix.select(&fit), blocks)?;
        let held_rows = Rows::new(&matrix.select(&held), blocks)?;
        let one = |k: usize| -> Result<Member, ModelError> {
            let seed = SplitMix64::new(seed ^ (k as u64 + 1).wrapping_mul(0x9E37_79B9)).next_u64();
            let mut member = train_member(&rows, shape, seed, before.map(|b| &b.members[k]))?;
            let errors = member.errors(&held_rows)?;
            for (f, usual) in member.usual.iter_mut().enumerate() {
                let sum: f64 = errors.chunks_exact(blocks.len()).map(|e| f64::from(e[f])).sum();
                *usual = ((sum / held_rows.len() as f64) as f32).max(SMALLEST_ERROR);
            }
            Ok(member)
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut members = Vec::with_capacity(shape.members);
        for first in (0..shape.members.max(1)).step_by(threads) {
            let last = (first + threads).min(shape.members.max(1));
            let trained: Vec<_> = std::thread::scope(|scope| {
                let started: Vec<_> = (first..last).map(|k| scope.spawn(move || one(k))).collect();
                started.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
            });
            for member in trained {
                members.push(member.map_err(|_| ModelError::Diverged { loss: f32::NAN })??);
            }
        }
        let mut ensemble = Self {
            manifest: Manifest {
                format: MANIFEST_VERSION,
                shape: shape.clone(),
                blocks: blocks.to_vec(),
                seed,
                training_rows: fit.len(),
                held_rows: held.len(),
                held_score: 0.0,
                weights_sha256: String::new(),
            },
            members,
        };
        let scores = ensemble.score_rows(&held_rows)?.values;
        let held_score = mean(&scores);
        if !held_score.is_finite() {
            return Err(ModelError::Diverged {
                loss: held_score as f32,
            });
        }
        ensemble.manifest.held_score = held_score;
        ensemble.manifest.weights_sha256 = weights::hash(&ensemble.weights()?);
        Ok((ensemble, scores))
    }

    /// What belongs to the weights.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Scores every row.
    ///
    /// # Errors
    /// [`ModelError::Unusable`] when the rows are of another width, [`ModelError::Tensor`].
    pub fn score(&self, matrix: &Matrix) -> Result<Scores, ModelError> {
        self.score_rows(&Rows::new(matrix, &self.manifest.blocks)?)
    }

    fn score_rows(&self, rows: &Rows) -> Result<Scores, ModelError> {
        let features = rows.features;
        let mut parts = vec![0.0_f32; rows.len() * features];
        for member in &self.members {
            let errors = member.errors(rows)?;
            for (part, error) in parts.chunks_exact_mut(features).zip(errors.chunks_exact(features)) {
                for ((p, e), usual) in part.iter_mut().zip(error).zip(&member.usual) {
                    *p += (e / usual).ln_1p();
                }
            }
        }
        let share = 1.0 / (self.members.len() * features) as f64;
        let values = parts.chunks_exact(features);
        Ok(Scores {
            values: values
                .map(|p| p.iter().map(|v| f64::from(*v)).sum::<f64>() * share)
                .collect(),
            features,
            parts,
        })
    }

    /// The weights as safetensors.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] when they cannot be read.
    pub fn weights(&self) -> Result<Vec<u8>, ModelError> {
        let mut own: Vec<(String, Tensor)> = Vec::new();
        for (k, member) in self.members.iter().enumerate() {
            for (i, (weight, bias)) in member.layers.iter().enumerate() {
                own.push((format!("members.{k}.layers.{i}.weight"), weight.clone()));
                own.push((format!("members.{k}.layers.{i}.bias"), bias.clone()));
            }
            let features = member.usual.len();
            let row = |values: Vec<f32>| Tensor::from_vec(values, (1, features), &Device::Cpu);
            let mut groups = vec![0.0; features];
            for (g, group) in member.groups.iter().enumerate() {
                group.iter().for_each(|f| groups[*f] = g as f32);
            }
            for (name, values) in [("usual", member.usual.clone()), ("groups", groups)] {
                own.push((
                    format!("members.{k}.{name}"),
                    row(values).map_err(tensor("writing the weights"))?,
                ));
            }
        }
        let named: Vec<(String, &Tensor)> = own.iter().map(|(name, t)| (name.clone(), t)).collect();
        weights::write(&named, "garrison.ensemble.v1")
    }

    /// Reads a stored ensemble.
    ///
    /// # Errors
    /// [`ModelError::Unusable`] when weights and manifest do not fit each other.
    pub fn load(manifest: &Manifest, weights: &[u8]) -> Result<Self, ModelError> {
        if manifest.format != MANIFEST_VERSION {
            let found = manifest.format;
            let problem = format!("manifest version {found} instead of {MANIFEST_VERSION}");
            return Err(ModelError::Unusable(problem));
        }
        let reader = Reader::open(weights, &manifest.weights_sha256)?;
        let features = manifest.blocks.len();
        let widths = widths(manifest.blocks.iter().sum(), features, &manifest.shape);
        let members = (0..manifest.shape.members.max(1))
            .map(|k| {
                let layers = widths.windows(2).enumerate().map(|(i, w)| {
                    Ok((
                        reader.tensor(&format!("members.{k}.layers.{i}.weight"), &[w[0], w[1]])?,
                        reader.tensor(&format!("members.{k}.layers.{i}.bias"), &[1, w[1]])?,
                    ))
                });
                let layers = layers.collect::<Result<_, ModelError>>()?;
                let row = |name: &str| -> Result<Vec<f32>, ModelError> {
                    let t = reader.tensor(&format!("members.{k}.{name}"), &[1, features])?;
                    t.flatten_all()
                        .and_then(|t| t.to_vec1())
                        .map_err(tensor("reading a tensor"))
                };
                let (usual, group_of) = (row("usual")?, row("groups")?);
                let count = group_count(&manifest.shape);
                let mut groups = vec![Vec::new(); count];
                for (f, g) in group_of.iter().enumerate() {
                    let group = groups.get_mut(*g as usize);
                    group
                        .ok_or_else(|| ModelError::Unusable(format!("member {k} hides feature {f} with no group")))?
                        .push(f);
                }
                Ok(Member { layers, groups, usual })
            })
            .collect::<Result<_, ModelError>>()?;
        Ok(Self {
            manifest: manifest.clone(),
            members,
        })
    }
}

impl Member {
    // Squared error of each feature of each row, hidden once.
    fn errors(&self, rows: &Rows) -> Result<Vec<f32>, ModelError> {
        let (width, features) = (rows.width, rows.features);
        let mut errors = vec![0.0; rows.len() * features];
        for first in (0..rows.len()).step_by(SCORED_AT_ONCE) {
            let n = (rows.len() - first).min(SCORED_AT_ONCE);
            for group in self.groups.iter().filter(|g| !g.is_empty()) {
                let mut hidden = vec![false; features];
                group.iter().for_each(|f| hidden[*f] = true);
                let mut x = Vec::with_capacity(n * (width + features));
                (first..first + n).for_each(|i| rows.hide(i, &hidden, &mut x));
                let y = Tensor::from_vec(x, (n, width + features), &Device::Cpu)
                    .and_then(|x| dense::forward(&self.layers, &x))
                    .and_then(|y| y.flatten_all())
                    .and_then(|y| y.to_vec1::<f32>())
                    .map_err(tensor("scoring"))?;
                let told: Vec<(usize, usize)> = (0..width)
                    .map(|j| (j, rows.feature[j]))
                    .filter(|(_, f)| hidden[*f])
                    .collect();
                for i in 0..n {
                    let (row, out) = (rows.row(first + i), (first + i) * features);
                    for (j, f) in &told {
                        let away = y[i * width + j] - row[*j];
                        errors[out + f] += away * away;
                    }
                }
            }
        }
        Ok(errors)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

// Rows to train on, and rows held back.
fn split(rows: usize, seed: u64) -> (Vec<usize>, Vec<usize>) {
    // Not the caller's own sequence: rows that were drawn with the same seed must not decide where they go.
    let mut rng = SplitMix64::new(mix(seed));
    (0..rows).partition(|_| rng.unit() >= HELD_BACK)
}

fn widths(width: usize, features: usize, shape: &Shape) -> Vec<usize> {
    let mut widths = vec![width + features];
    widths.extend(&shape.hidden);
    widths.push(width);
    widths
}

fn group_count(shape: &Shape) -> usize {
    (1.0 / shape.masked.clamp(0.05, 1.0)).ceil() as usize
}

fn train_member(rows: &Rows, shape: &Shape, seed: u64, before: Option<&Member>) -> Result<Member, ModelError> {
    let mut rng = SplitMix64::new(seed);
    let (width, features) = (rows.width, rows.features);
    let widths = widths(width, features, shape);
    let variables = dense::variables(&widths, &mut rng).map_err(tensor("making the first weights"))?;
    let mut rate = LEARNING_RATE;
    if let Some(before) = before {
        rate *= 0.1;
        for ((w, b), (old_w, old_b)) in variables.iter().zip(&before.layers) {
            w.set(old_w)
                .and_then(|()| b.set(old_b))
                .map_err(tensor("taking over the weights"))?;
        }
    }
    let flat = variables.iter().flat_map(|(w, b)| [w.clone(), b.clone()]).collect();
    let settings = ParamsAdamW {
        lr: rate,
        weight_decay: 1e-4,
        ..ParamsAdamW::default()
    };
    let mut optimiser = AdamW::new(flat, settings).map_err(tensor("starting the optimiser"))?;
    let live = dense::live(&variables);
    let n = rows.len() as u64;
    let mut hidden = vec![false; features];
    for step in 0..shape.steps {
        optimiser.set_learning_rate(rate * (1.0 - step as f64 / shape.steps as f64).max(LAST_RATE));
        let mut input = Vec::with_capacity(BATCH * (width + features));
        let (mut target, mut counts) = (Vec::with_capacity(BATCH * width), Vec::with_capacity(BATCH * width));
        for _ in 0..BATCH {
            let i = rng.below(n) as usize;
            hidden.iter_mut().for_each(|h| *h = rng.unit() < shape.masked);
            rows.hide(i, &hidden, &mut input);
            target.extend_from_slice(rows.row(i));
            counts.extend(rows.feature.iter().map(|f| f32::from(u8::from(hidden[*f]))));
        }
        let column = |values: Vec<f32>, width: usize| Tensor::from_vec(values, (BATCH, width), &Device::Cpu);
        let loss = column(input, width + features)
            .and_then(|x| dense::forward(&live, &x))
            .and_then(|y| y.sub(&column(target, width)?))
            .and_then(|e| e.sqr()?.mul(&column(counts, width)?)?.mean_all())
            .map_err(tensor("a training step"))?;
        optimiser.backward_step(&loss).map_err(tensor("a training step"))?;
    }
    let groups = match before {
        Some(before) => before.groups.clone(),
        None => {
            let count = group_count(shape);
            let mut order: Vec<usize> = (0..features).collect();
            rng.shuffle(&mut order);
            let mut groups = vec![Vec::new(); count];
            order
                .into_iter()
                .enumerate()
                .for_each(|(k, f)| groups[k % count].push(f));
            groups
        }
    };
    Ok(Member {
        layers: dense::freeze(&live).map_err(tensor("copying the weights"))?,
        groups,
        usual: vec![SMALLEST_ERROR; features],
    })
}

#[cfg(test)]
mod tests;
