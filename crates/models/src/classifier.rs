//! Names the class of a row: a few networks whose mean probability is made honest by a temperature on rows held back
//! (Guo et al. 2017), that abstain where they do not know, and that decide by what a mistake costs (Elkan 2001).

use candle_core::{D, Device, Tensor};
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

const BATCH: usize = 256;
const HELD_BACK: f64 = 0.15;
const LEARNING_RATE: f64 = 2e-3;
const LAST_RATE: f64 = 0.02;
// Share of the truth that is spread over all classes: without it the networks are sure of what they know nothing of.
const SMOOTHING: f32 = 0.02;
const SCORED_AT_ONCE: usize = 8_192;

/// The size of the networks, and how they are trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Widths of the hidden layers.
    pub hidden: Vec<usize>,
    /// Networks.
    pub members: usize,
    /// Steps of training for each network, with 256 rows each.
    pub steps: usize,
    /// How classes are drawn: 1 as often as they occur, 0 all alike.
    pub balance: f64,
    /// Numbers of a row that are hidden while training, so that no class hangs on one of them.
    pub dropped: f64,
    /// How strongly weights are drawn to zero.
    pub decay: f64,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            hidden: vec![128, 64],
            members: 3,
            steps: 3_000,
            balance: 0.5,
            dropped: 0.2,
            decay: 1e-3,
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
    /// Numbers in a row.
    pub width: usize,
    /// Names of the classes; the first is the benign one.
    pub classes: Vec<String>,
    /// Share of each class among the training rows.
    pub priors: Vec<f64>,
    /// What logarithms of probability are divided by.
    pub temperature: f64,
    /// Seed of the split, the weights and the batches.
    pub seed: u64,
    /// Rows trained on.
    pub training_rows: usize,
    /// Rows held back.
    pub held_rows: usize,
    /// Mean of -ln(probability of the truth) on the rows held back.
    pub held_loss: f64,
    /// Expected calibration error on the rows held back, in ten bins.
    pub held_calibration_error: f64,
    /// SHA-256 of the safetensors bytes, hexadecimal.
    pub weights_sha256: String,
}

/// A trained classifier.
#[derive(Clone, Debug)]
pub struct Classifier {
    manifest: Manifest,
    members: Vec<Layers>,
}

/// What is decided of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// The class; `None` when the classifier abstains.
    pub class: Option<usize>,
    /// Probability of the likeliest class.
    pub probability: f64,
}

/// Labelled rows to train on.
#[derive(Clone, Copy, Debug)]
pub struct Labelled<'a> {
    /// Encoded and scaled rows.
    pub rows: &'a Matrix,
    /// The class of each row.
    pub labels: &'a [usize],
    /// How much each row counts; empty for all alike.
    pub weights: &'a [f64],
}

impl Classifier {
    /// Trains on labelled rows. Classes are drawn as `shape.balance` says, and the probabilities are brought back to
    /// how often classes occur among the rows.
    ///
    /// # Errors
    /// Every [`ModelError`].
    pub fn train(data: &Labelled<'_>, classes: &[String], shape: &Shape, seed: u64) -> Result<Self, ModelError> {
        let (n, width) = (data.rows.rows(), data.rows.width());
        let usable = n == data.labels.len() && data.labels.iter().all(|l| *l < classes.len());
        if !usable {
            return Err(ModelError::Unusable("labels do not fit the rows".to_owned()));
        }
        // Not the caller's own sequence: rows that were drawn with the same seed must not decide where they go.
        let mut rng = SplitMix64::new(mix(seed));
        let (fit, held): (Vec<usize>, Vec<usize>) = (0..n).partition(|_| rng.unit() >= HELD_BACK);
        if fit.len() < 10 || held.is_empty() {
            return Err(ModelError::TooLittle { learnt: n, needed: 20 });
        }
        let weight = |i: usize| data.weights.get(i).copied().unwrap_or(1.0);
        let mut priors = vec![0.0; classes.len()];
        fit.iter().for_each(|&i| priors[data.labels[i]] += weight(i));
        let total: f64 = priors.iter().sum();
        priors.iter_mut().for_each(|p| *p /= total);
        let values = dense::by_rows(data.rows);
        let drawn = Drawn::new(&fit, data, &priors, shape.balance);
        let one = |k: usize| {
            let seed = SplitMix64::new(seed ^ (k as u64 + 1).wrapping_mul(0x9E37_79B9)).next_u64();
            train_member(&values, width, data.labels, &drawn, classes.len(), shape, seed)
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut members = Vec::new();
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
        let mut classifier = Self {
            manifest: Manifest {
                format: MANIFEST_VERSION,
                shape: shape.clone(),
                width,
                classes: classes.to_vec(),
                priors,
                temperature: 1.0,
                seed,
                training_rows: fit.len(),
                held_rows: held.len(),
                held_loss: 0.0,
                held_calibration_error: 0.0,
                weights_sha256: String::new(),
            },
            members,
        };
        classifier.calibrate(&data.rows.select(&held), &held, data.labels, &weight)?;
        classifier.manifest.weights_sha256 = weights::hash(&classifier.weights()?);
        Ok(classifier)
    }

    // The temperature with the least loss on the rows held back, by golden section.
    fn calibrate(
        &mut self,
        rows: &Matrix,
        held: &[usize],
        labels: &[usize],
        weight: &impl Fn(usize) -> f64,
    ) -> Result<(), ModelError> {
        let truth: Vec<(usize, f64)> = held.iter().map(|&i| (labels[i], weight(i))).collect();
        let logits = self.logits(rows)?;
        let classes = self.manifest.classes.len();
        let loss = |temperature: f64| {
            let (mut sum, mut count) = (0.0, 0.0);
            for (logit, (label, weight)) in logits.chunks_exact(classes).zip(&truth) {
                sum -= weight * softmax(logit, temperature)[*label].max(1e-12).ln();
                count += weight;
            }
            sum / count
        };
        let ratio = 0.5 * (5.0_f64.sqrt() - 1.0);
        let (mut low, mut high) = (0.2_f64.ln(), 10.0_f64.ln());
        for _ in 0..30 {
            let (a, b) = (high - ratio * (high - low), low + ratio * (high - low));
            if loss(a.exp()) < loss(b.exp()) {
                high = b;
            } else {
                low = a;
            }
        }
        let temperature = (0.5 * (low + high)).exp();
        let held_loss = loss(temperature);
        if !held_loss.is_finite() {
            return Err(ModelError::Diverged { loss: held_loss as f32 });
        }
        let mut bins = [(0.0, 0.0, 0.0); 10];
        for (logit, (label, weight)) in logits.chunks_exact(classes).zip(&truth) {
            let p = softmax(logit, temperature);
            let best = likeliest(&p);
            let bin = &mut bins[((p[best] * 10.0) as usize).min(9)];
            bin.0 += weight;
            bin.1 += weight * p[best];
            bin.2 += weight * f64::from(u8::from(best == *label));
        }
        let count: f64 = bins.iter().map(|b| b.0).sum();
        self.manifest.temperature = temperature;
        self.manifest.held_loss = held_loss;
        self.manifest.held_calibration_error = bins.iter().map(|b| (b.1 - b.2).abs()).sum::<f64>() / count;
        Ok(())
    }

    /// What belongs to the weights.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    // Logarithms of the members' mean probability, brought to the priors; row by row.
    fn logits(&self, rows: &Matrix) -> Result<Vec<f32>, ModelError> {
        let (width, classes) = (self.manifest.width, self.manifest.classes.len());
        if rows.width() != width {
            let problem = format!("rows have {} numbers instead of {width}", rows.width());
            return Err(ModelError::Unusable(problem));
        }
        let values = dense::by_rows(rows);
        // Drawing more of a class makes it likelier by so much.
        let balance = self.manifest.shape.balance;
        let shift: Vec<f32> = self
            .manifest
            .priors
            .iter()
            .map(|p| ((1.0 - balance) * p.max(1e-9).ln()) as f32)
            .collect();
        let mut logits = vec![0.0; rows.rows() * classes];
        for first in (0..rows.rows()).step_by(SCORED_AT_ONCE) {
            let n = (rows.rows() - first).min(SCORED_AT_ONCE);
            let x = Tensor::from_slice(&values[first * width..(first + n) * width], (n, width), &Device::Cpu)
                .map_err(tensor("laying out the input"))?;
            let mut sum = vec![0.0_f32; n * classes];
            for member in &self.members {
                let p = network(member, &x)
                    .and_then(|y| candle_nn::ops::softmax(&y, D::Minus1))
                    .and_then(|p| p.flatten_all()?.to_vec1::<f32>())
                    .map_err(tensor("classifying"))?;
                sum.iter_mut().zip(p).for_each(|(s, p)| *s += p);
            }
            let out = &mut logits[first * classes..(first + n) * classes];
            for (k, (logit, p)) in out.iter_mut().zip(sum).enumerate() {
                *logit = (p / self.members.len() as f32).max(1e-9).ln() + shift[k % classes];
            }
        }
        Ok(logits)
    }

    /// Probability of each class for every row.
    ///
    /// # Errors
    /// [`ModelError::Unusable`] when the rows are of another width, [`ModelError::Tensor`].
    pub fn probabilities(&self, rows: &Matrix) -> Result<Vec<Vec<f64>>, ModelError> {
        let logits = self.logits(rows)?;
        let rows = logits.chunks_exact(self.manifest.classes.len());
        Ok(rows.map(|logit| softmax(logit, self.manifest.temperature)).collect())
    }

    /// The weights as safetensors.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] when they cannot be read.
    pub fn weights(&self) -> Result<Vec<u8>, ModelError> {
        let mut named: Vec<(String, &Tensor)> = Vec::new();
        for (k, member) in self.members.iter().enumerate() {
            for (i, (weight, bias)) in member.iter().enumerate() {
                named.push((format!("members.{k}.layers.{i}.weight"), weight));
                named.push((format!("members.{k}.layers.{i}.bias"), bias));
            }
        }
        weights::write(&named, "garrison.classifier.v1")
    }

    /// Reads a stored classifier.
    ///
    /// # Errors
    /// [`ModelError::Unusable`] when weights and manifest do not fit each other.
    pub fn load(manifest: &Manifest, weights: &[u8]) -> Result<Self, ModelError> {
        if manifest.format != MANIFEST_VERSION || manifest.priors.len() != manifest.classes.len() {
            return Err(ModelError::Unusable("the manifest is of another release".to_owned()));
        }
        let reader = Reader::open(weights, &manifest.weights_sha256)?;
        let widths = widths(manifest.width, &manifest.shape, manifest.classes.len());
        let direct = [manifest.width, manifest.classes.len()];
        let members = (0..manifest.shape.members.max(1))
            .map(|k| {
                let layers = widths.windows(2).chain([direct.as_slice()]).enumerate();
                layers
                    .map(|(i, w)| {
                        Ok((
                            reader.tensor(&format!("members.{k}.layers.{i}.weight"), &[w[0], w[1]])?,
                            reader.tensor(&format!("members.{k}.layers.{i}.bias"), &[1, w[1]])?,
                        ))
                    })
                    .collect()
            })
            .collect::<Result<_, ModelError>>()?;
        Ok(Self {
            manifest: manifest.clone(),
            members,
        })
    }
}

/// The likeliest class, or nothing when it is less likely than `least`.
pub fn decide(probabilities: &[f64], least: f64) -> Decision {
    let class = likeliest(probabilities);
    let probability = probabilities.get(class).copied().unwrap_or(0.0);
    Decision {
        class: (probability >= least).then_some(class),
        probability,
    }
}

/// The class whose expected cost is least, where `costs[truth][decision]` is what a decision costs.
pub fn cheapest(probabilities: &[f64], costs: &[Vec<f64>]) -> usize {
    let expected = |decision: usize| -> f64 {
        let pairs = probabilities.iter().zip(costs);
        pairs
            .map(|(p, costs)| p * costs.get(decision).copied().unwrap_or(0.0))
            .sum()
    };
    let decisions = (0..probabilities.len()).map(|d| (d, expected(d)));
    decisions.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(d, _)| d)
}

/// Takes from the benign class what it owes to knowing only some attacks. `rarity` is the share of benign rows at least as
/// unusual as this one, `unknown` how likely an attack of no known kind is beforehand. How much the rarity speaks against
/// the row being benign is at most `-e p ln p` (Sellke, Bayarri and Berger 2001); what the benign class loses goes to the
/// other classes by how likely each is already, and where none is likely to all alike.
pub fn with_unknown(probabilities: &[f64], rarity: f64, unknown: f64) -> Vec<f64> {
    let mut p = probabilities.to_vec();
    let others = p.len().saturating_sub(1);
    if others == 0 {
        return p;
    }
    let rarity = rarity.clamp(1e-6, (-1.0_f64).exp());
    let factor = -std::f64::consts::E * rarity * rarity.ln();
    let stays = factor * (1.0 - unknown) / (factor * (1.0 - unknown) + unknown);
    // At a rarity of 1/e the factor is 1: nothing speaks against it, and nothing is taken.
    let taken = p[0] * (1.0 - stays - unknown).max(0.0);
    p[0] -= taken;
    let even = 0.01 / others as f64;
    let likely: f64 = p[1..].iter().map(|other| other + even).sum();
    p[1..]
        .iter_mut()
        .for_each(|other| *other += taken * (*other + even) / likely);
    p
}

fn likeliest(p: &[f64]) -> usize {
    let best = p.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(class, _)| class)
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits
        .iter()
        .map(|l| (f64::from(l - most) / temperature).exp())
        .collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

fn widths(width: usize, shape: &Shape, classes: usize) -> Vec<usize> {
    let mut widths = vec![width];
    widths.extend(&shape.hidden);
    widths.push(classes);
    widths
}

// The hidden layers, and beside them one from the input at once: far from everything learnt, it is the plain one that
// goes on as before (Cheng et al. 2016, wide and deep).
fn network(layers: &Layers, x: &Tensor) -> candle_core::Result<Tensor> {
    match layers.split_last() {
        Some((direct, hidden)) => {
            let wide = x.matmul(&direct.0)?.broadcast_add(&direct.1)?;
            dense::forward(hidden, x)?.add(&wide)
        }
        None => Ok(x.clone()),
    }
}

// Rows to be drawn: a class first, then one of its rows by weight.
struct Drawn {
    classes: Vec<f64>,
    rows: Vec<(Vec<usize>, Vec<f64>)>,
}

impl Drawn {
    fn new(fit: &[usize], data: &Labelled<'_>, priors: &[f64], balance: f64) -> Self {
        let mut rows = vec![(Vec::new(), Vec::new()); priors.len()];
        for &i in fit {
            let (rows, sums): &mut (Vec<usize>, Vec<f64>) = &mut rows[data.labels[i]];
            let before = sums.last().copied().unwrap_or(0.0);
            rows.push(i);
            sums.push(before + data.weights.get(i).copied().unwrap_or(1.0));
        }
        let mut classes = Vec::with_capacity(priors.len());
        let mut sum = 0.0;
        for p in priors {
            sum += if *p > 0.0 { p.powf(balance) } else { 0.0 };
            classes.push(sum);
        }
        Self { classes, rows }
    }

    fn draw(&self, rng: &mut SplitMix64) -> usize {
        let pick = |sums: &[f64], rng: &mut SplitMix64| {
            let at = rng.unit() * sums.last().copied().unwrap_or(0.0);
            sums.partition_point(|s| *s <= at).min(sums.len().saturating_sub(1))
        };
        let (rows, sums) = &self.rows[pick(&self.classes, rng)];
        rows[pick(sums, rng)]
    }
}

fn train_member(
    values: &[f32],
    width: usize,
    labels: &[usize],
    drawn: &Drawn,
    classes: usize,
    shape: &Shape,
    seed: u64,
) -> Result<Layers, ModelError> {
    let mut rng = SplitMix64::new(seed);
    let mut variables =
        dense::variables(&widths(width, shape, classes), &mut rng).map_err(tensor("making the first weights"))?;
    variables.extend(dense::variables(&[width, classes], &mut rng).map_err(tensor("making the first weights"))?);
    let flat = variables.iter().flat_map(|(w, b)| [w.clone(), b.clone()]).collect();
    let settings = ParamsAdamW {
        lr: LEARNING_RATE,
        weight_decay: shape.decay,
        ..ParamsAdamW::default()
    };
    let mut optimiser = AdamW::new(flat, settings).map_err(tensor("starting the optimiser"))?;
    let live = dense::live(&variables);
    for step in 0..shape.steps {
        optimiser.set_learning_rate(LEARNING_RATE * (1.0 - step as f64 / shape.steps as f64).max(LAST_RATE));
        let rows: Vec<usize> = (0..BATCH).map(|_| drawn.draw(&mut rng)).collect();
        let mut x = dense::gather(values, width, &rows);
        if shape.dropped > 0.0 {
            x.iter_mut().for_each(|v| {
                if rng.unit() < shape.dropped {
                    *v = 0.0;
                }
            });
        }
        let mut truth = vec![SMOOTHING / classes as f32; BATCH * classes];
        for (i, row) in rows.iter().enumerate() {
            truth[i * classes + labels[*row]] += 1.0 - SMOOTHING;
        }
        let loss = Tensor::from_vec(x, (BATCH, width), &Device::Cpu)
            .and_then(|x| candle_nn::ops::log_softmax(&network(&live, &x)?, D::Minus1))
            .and_then(|p| p.mul(&Tensor::from_vec(truth, (BATCH, classes), &Device::Cpu)?))
            .and_then(|p| p.sum_all()?.affine(-1.0 / BATCH as f64, 0.0))
            .map_err(tensor("a training step"))?;
        optimiser.backward_step(&loss).map_err(tensor("a training step"))?;
    }
    dense::freeze(&live).map_err(tensor("copying the weights"))
}

#[cfg(test)]
mod tests;
