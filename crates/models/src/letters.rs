//! Tells names that a generator made from names in use, letter by letter: hashed groups of letters in a linear model, and
//! beside it convolutions over the letters, each of which keeps where in the name it answers most (Yu et al. 2018 compare
//! such networks for this task). The linear one knows which groups of letters occur, the convolutions which patterns do.
//!
//! The suffix of a name is part of what both see, but it is hidden from half of what is trained on, and a name is
//! scored with and without it: a generator that uses another suffix must not thereby become invisible.

use candle_core::{Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer as _, ParamsAdamW};

use crate::{
    error::{ModelError, tensor},
    hashed,
    rng::{SplitMix64, mix},
};

mod invented;

pub use invented::{Invented, families};

// Letters, digits, hyphen, underscore, anything else, begin, end, and nothing.
const SYMBOLS: usize = 42;
// Letters that the convolutions see.
const SEEN: usize = 24;
const SUFFIXES: usize = 64;
const WIDTHS: [usize; 2] = [3, 5];
const BATCH: usize = 128;
const LEARNING_RATE: f64 = 2e-3;
const LAST_RATE: f64 = 0.02;
const DROPPED: f64 = 0.3;
const SUFFIX_HIDDEN: f64 = 0.5;
const SCORED_AT_ONCE: usize = 512;

const WIDE: usize = 1 << 17;
const LONGEST: usize = 63;

/// A name: what is judged, and the suffix behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a> {
    /// The registered label, or what stands before it.
    pub label: &'a str,
    /// The suffix, without the dot before it.
    pub suffix: &'a str,
}

/// The size of the network, and how it is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Numbers a letter becomes.
    pub embedding: usize,
    /// Patterns of each width.
    pub filters: usize,
    /// Width of the hidden layer.
    pub hidden: usize,
    /// Networks.
    pub members: usize,
    /// Steps of training for each, with 128 names each.
    pub steps: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            embedding: 16,
            filters: 40,
            hidden: 48,
            members: 2,
            steps: 800,
        }
    }
}

/// A trained model.
#[derive(Debug)]
pub struct Letters {
    wide: Vec<f32>,
    members: Vec<Vec<Tensor>>,
    shape: Shape,
}

impl Letters {
    /// Trains on names; both kinds count the same, however many there are. The same names, shape and seed give the same
    /// model on the same machine.
    ///
    /// # Errors
    /// [`ModelError::TooLittle`] without names of both kinds, [`ModelError::Tensor`].
    pub fn train(generated: &[Name<'_>], in_use: &[Name<'_>], shape: &Shape, seed: u64) -> Result<Self, ModelError> {
        let learnt = generated.len().min(in_use.len());
        if learnt < 10 {
            return Err(ModelError::TooLittle { learnt, needed: 10 });
        }
        let wide = train_wide(generated, in_use, seed);
        let one = |k: usize| {
            let seed = SplitMix64::new(seed ^ (k as u64 + 1).wrapping_mul(0x9E37_79B9)).next_u64();
            train_member(generated, in_use, shape, seed).map_err(tensor("training on letters"))
        };
        let mut members = Vec::with_capacity(shape.members);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for first in (0..shape.members).step_by(threads) {
            let last = (first + threads).min(shape.members);
            let trained: Vec<_> = std::thread::scope(|scope| {
                let started: Vec<_> = (first..last).map(|k| scope.spawn(move || one(k))).collect();
                started.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
            });
            for member in trained {
                members.push(member.map_err(|_| ModelError::Diverged { loss: f32::NAN })??);
            }
        }
        Ok(Self {
            wide,
            members,
            shape: shape.clone(),
        })
    }

    /// The logarithm of the odds that a generator made each name, where both kinds are as frequent.
    ///
    /// # Errors
    /// [`ModelError::Tensor`].
    pub fn score(&self, names: &[Name<'_>]) -> Result<Vec<f64>, ModelError> {
        let mut scores: Vec<f64> = names
            .iter()
            .map(|name| 0.5 * f64::from(self.wide_score(name, true) + self.wide_score(name, false)))
            .collect();
        if self.members.is_empty() {
            return Ok(scores);
        }
        let share = 0.5 / self.members.len() as f64;
        for (names, scores) in names.chunks(SCORED_AT_ONCE).zip(scores.chunks_mut(SCORED_AT_ONCE)) {
            let mut sums = vec![0.0; names.len()];
            for shown in [true, false] {
                let all: Vec<(&Name<'_>, bool)> = names.iter().map(|name| (name, shown)).collect();
                let (letters, suffixes) = input(&all);
                for member in &self.members {
                    let logits = forward(member, &letters, &suffixes, &self.shape, None)
                        .and_then(|y| y.to_vec1::<f32>())
                        .map_err(tensor("scoring letters"))?;
                    sums.iter_mut()
                        .zip(logits)
                        .for_each(|(sum, y)| *sum += f64::from(y) * share);
                }
            }
            for (score, sum) in scores.iter_mut().zip(sums) {
                *score = 0.5 * (*score + sum);
            }
        }
        Ok(scores)
    }

    fn wide_score(&self, name: &Name<'_>, suffix: bool) -> f32 {
        let mut sum = 0.0;
        wide_features(name, suffix, |at, value| sum += self.wide[at] * value);
        sum
    }
}

// Each time that a name comes up its suffix is hidden or not.
fn train_wide(generated: &[Name<'_>], in_use: &[Name<'_>], seed: u64) -> Vec<f32> {
    let mut rng = SplitMix64::new(mix(seed));
    hashed::train(WIDE, generated, in_use, &mut rng, |name, rng, row| {
        wide_features(name, rng.unit() >= SUFFIX_HIDDEN, |at, value| row.push((at, value)));
    })
}

fn wide_features(name: &Name<'_>, suffix: bool, mut each: impl FnMut(usize, f32)) {
    let mut letters = vec![b'^'];
    letters.extend(name.label.bytes().take(LONGEST).map(|b| b.to_ascii_lowercase()));
    let length = letters.len() - 1;
    letters.push(b'$');
    let kinds: Vec<u8> = letters
        .iter()
        .map(|b| match b {
            b'a' | b'e' | b'i' | b'o' | b'u' | b'y' => b'v',
            b'0'..=b'9' => b'd',
            b'a'..=b'z' => b'c',
            other => *other,
        })
        .collect();
    let value = 1.0 / (length.max(1) as f32).sqrt();
    for (bytes, sizes, salt) in [(&letters, 2..=4, 1_u64), (&kinds, 3..=6, 2)] {
        for size in sizes {
            for group in bytes.windows(size) {
                let packed = group.iter().fold(size as u64, |key, b| key << 8 | u64::from(*b));
                each(place(salt, packed), value);
            }
        }
    }
    let coarse = if length <= 24 {
        length as u64
    } else {
        24 + (length as u64).ilog2() as u64
    };
    each(place(3, coarse), 1.0);
    each(place(4, 0), 1.0);
    if suffix {
        each(place(5, hash(name.suffix)), 1.0);
    }
}

fn place(salt: u64, what: u64) -> usize {
    (mix(what ^ salt << 58) >> 32) as usize % WIDE
}

fn hash(text: &str) -> u64 {
    text.bytes().fold(text.len() as u64, |key, b| {
        mix(key << 8 ^ u64::from(b.to_ascii_lowercase()))
    })
}

fn symbol(byte: u8) -> u32 {
    match byte.to_ascii_lowercase() {
        b @ b'a'..=b'z' => u32::from(b - b'a') + 1,
        b @ b'0'..=b'9' => u32::from(b - b'0') + 27,
        b'-' => 37,
        b'_' => 38,
        _ => 39,
    }
}

// Letters of each name, and its suffix; what is not shown is 0.
fn input(names: &[(&Name<'_>, bool)]) -> (Vec<u32>, Vec<u32>) {
    let mut letters = Vec::with_capacity(names.len() * SEEN);
    let mut suffixes = Vec::with_capacity(names.len());
    for (name, shown) in names {
        let start = letters.len();
        letters.push(40);
        letters.extend(name.label.bytes().take(SEEN - 2).map(symbol));
        letters.push(41);
        letters.resize(start + SEEN, 0);
        suffixes.push(if *shown {
            1 + (hash(name.suffix) % (SUFFIXES as u64 - 1)) as u32
        } else {
            0
        });
    }
    (letters, suffixes)
}

// Embedding of letters, embedding of suffixes, then weight and bias of each convolution, the hidden layer and the last.
fn variables(shape: &Shape, rng: &mut SplitMix64) -> candle_core::Result<Vec<Var>> {
    let mut uniform = |rows: usize, columns: usize, bound: f64| {
        let values: Vec<f32> = (0..rows * columns)
            .map(|_| ((2.0 * rng.unit() - 1.0) * bound) as f32)
            .collect();
        Var::from_tensor(&Tensor::from_vec(values, (rows, columns), &Device::Cpu)?)
    };
    let zero = |columns: usize| Var::zeros((1, columns), candle_core::DType::F32, &Device::Cpu);
    let he = |inputs: usize| (6.0 / inputs as f64).sqrt();
    let mut all = vec![uniform(SYMBOLS, shape.embedding, 0.5)?, uniform(SUFFIXES, 8, 0.1)?];
    for width in WIDTHS {
        let inputs = width * shape.embedding;
        all.push(uniform(inputs, shape.filters, he(inputs))?);
        all.push(zero(shape.filters)?);
    }
    let pooled = WIDTHS.len() * shape.filters + 8;
    all.push(uniform(pooled, shape.hidden, he(pooled))?);
    all.push(zero(shape.hidden)?);
    all.push(uniform(shape.hidden, 1, he(shape.hidden))?);
    all.push(zero(1)?);
    Ok(all)
}

fn forward(
    weights: &[Tensor],
    letters: &[u32],
    suffixes: &[u32],
    shape: &Shape,
    dropped: Option<Vec<f32>>,
) -> candle_core::Result<Tensor> {
    let n = suffixes.len();
    let ids = Tensor::from_slice(letters, n * SEEN, &Device::Cpu)?;
    let x = weights[0].index_select(&ids, 0)?.reshape((n, SEEN, shape.embedding))?;
    let mut pooled = Vec::with_capacity(WIDTHS.len() + 1);
    for (k, width) in WIDTHS.into_iter().enumerate() {
        let places = SEEN - width + 1;
        let shifted: Vec<Tensor> = (0..width)
            .map(|i| x.narrow(1, i, places))
            .collect::<candle_core::Result<_>>()?;
        let windows = Tensor::cat(&shifted, 2)?.reshape((n * places, width * shape.embedding))?;
        let y = windows
            .matmul(&weights[2 + 2 * k])?
            .broadcast_add(&weights[3 + 2 * k])?
            .relu()?;
        pooled.push(y.reshape((n, places, shape.filters))?.max(1)?);
    }
    pooled.push(weights[1].index_select(&Tensor::from_slice(suffixes, n, &Device::Cpu)?, 0)?);
    let mut pooled = Tensor::cat(&pooled, 1)?;
    if let Some(mask) = dropped {
        pooled = pooled.mul(&Tensor::from_vec(mask, pooled.shape(), &Device::Cpu)?)?;
    }
    let at = 2 + 2 * WIDTHS.len();
    let hidden = pooled.matmul(&weights[at])?.broadcast_add(&weights[at + 1])?.relu()?;
    hidden
        .matmul(&weights[at + 2])?
        .broadcast_add(&weights[at + 3])?
        .flatten_all()
}

fn train_member(
    generated: &[Name<'_>],
    in_use: &[Name<'_>],
    shape: &Shape,
    seed: u64,
) -> candle_core::Result<Vec<Tensor>> {
    let mut rng = SplitMix64::new(seed);
    let variables = variables(shape, &mut rng)?;
    let settings = ParamsAdamW {
        lr: LEARNING_RATE,
        weight_decay: 1e-3,
        ..ParamsAdamW::default()
    };
    let mut optimiser = AdamW::new(variables.clone(), settings)?;
    let live: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let pooled = WIDTHS.len() * shape.filters + 8;
    let keep = (1.0 / (1.0 - DROPPED)) as f32;
    for step in 0..shape.steps {
        optimiser.set_learning_rate(LEARNING_RATE * (1.0 - step as f64 / shape.steps as f64).max(LAST_RATE));
        let mut names = Vec::with_capacity(BATCH);
        let mut truth = Vec::with_capacity(BATCH);
        for k in 0..BATCH {
            let from = if k % 2 == 0 { generated } else { in_use };
            let name = &from[rng.below(from.len() as u64) as usize];
            names.push((name, rng.unit() >= SUFFIX_HIDDEN));
            truth.push(f32::from(u8::from(k % 2 == 0)));
        }
        let (letters, suffixes) = input(&names);
        let mask = (0..BATCH * pooled)
            .map(|_| if rng.unit() < DROPPED { 0.0 } else { keep })
            .collect();
        let y = forward(&live, &letters, &suffixes, shape, Some(mask))?;
        let truth = Tensor::from_vec(truth, BATCH, &Device::Cpu)?;
        // -ln of the probability of the truth, without overflow.
        let certain = y.abs()?.neg()?.exp()?.affine(1.0, 1.0)?.log()?;
        let loss = y.relu()?.sub(&y.mul(&truth)?)?.add(&certain)?.mean_all()?;
        optimiser.backward_step(&loss)?;
    }
    live.iter().map(|t| Ok(t.copy()?.detach())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names<'a>(labels: &[&'a str], suffix: &'a str) -> Vec<Name<'a>> {
        labels.iter().map(|label| Name { label, suffix }).collect()
    }

    #[test]
    fn letters_are_learnt_and_learnt_alike_again() {
        let syllables = ["gar", "den", "mar", "ket", "wea", "ther", "on", "line", "shop", "book"];
        let used: Vec<String> = (0..200)
            .map(|i| {
                format!(
                    "{}{}{}",
                    syllables[i % 10],
                    syllables[i / 10 % 10],
                    syllables[(i * 7 + i / 20) % 10]
                )
            })
            .collect();
        let made: Vec<Invented> = families(40, 10, 1);
        let generated: Vec<Name<'_>> = made
            .iter()
            .map(|n| Name {
                label: &n.label,
                suffix: n.suffix,
            })
            .collect();
        let in_use = names(&used.iter().map(String::as_str).collect::<Vec<_>>(), "com");
        let shape = Shape {
            embedding: 8,
            filters: 16,
            hidden: 16,
            members: 1,
            steps: 60,
        };
        let model = Letters::train(&generated, &in_use, &shape, 3).unwrap();
        let judged = names(&["bookmarket", "onlineden", "xqzvkjwpqh", "zkq8wx2jf"], "com");
        let scores = model.score(&judged).unwrap();
        assert!(scores[0] < 0.0 && scores[1] < 0.0, "{scores:?}");
        assert!(scores[2] > 0.0 && scores[3] > 0.0, "{scores:?}");
        let again = Letters::train(&generated, &in_use, &shape, 3).unwrap();
        assert_eq!(again.score(&judged).unwrap(), scores);
        // What a name scores does not depend on the names beside it.
        let alone = model.score(&judged[2..3]).unwrap()[0];
        assert!((alone - scores[2]).abs() < 1e-4, "{alone} {}", scores[2]);
        assert!(Letters::train(&[], &in_use, &shape, 3).is_err());
    }

    #[test]
    fn any_text_has_a_score() {
        let model = Letters {
            wide: vec![0.0; WIDE],
            members: Vec::new(),
            shape: Shape::default(),
        };
        let long = "ü".repeat(200);
        assert_eq!(model.score(&names(&["", "-", &long], "")).unwrap(), [0.0; 3]);
    }
}
