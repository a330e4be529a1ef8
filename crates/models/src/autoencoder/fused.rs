//! The forward pass of scoring. Sixteen rows at a time go through all layers while they are in the nearest cache, and the
//! sums of several units of a layer stay in registers. Written for the compiler to use vectors of whatever width the
//! processor has; which of three versions runs is decided when a model is made.
//!
//! The sums of a row are added in the same order wherever it stands in a batch, so that its score does not depend on what
//! it came with. Versions differ in the last digits, as processors with and without fused multiplication do.

use crate::{Matrix, scaler::RobustScaler};

/// Rows that go through the layers together.
const LANES: usize = 16;

type Tile = [f32; LANES];

/// One layer, or none of them for an input that is empty.
#[derive(Clone, Debug)]
struct Layer {
    inputs: usize,
    outputs: usize,
    // In groups of as many units as are summed at once: input by input, unit by unit. Units that fill up the last group
    // have no weight.
    weights: Vec<f32>,
    bias: Vec<f32>,
}

/// What is done to what a layer puts out.
#[derive(Clone, Debug)]
enum Activation {
    Linear,
    Rectified,
    // Held between a least and a greatest value, unit by unit.
    Bounded(Vec<f32>, Vec<f32>),
}

/// How vectors are computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// What every processor of the architecture has.
    Plain,
    /// Eight numbers at once, with fused multiplication and addition.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Sixteen.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The best that this processor has.
    pub(super) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Plain
    }

    // How many units are summed at once: as many as there are registers for.
    fn group(self) -> usize {
        match self {
            Self::Plain => 2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 4,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => 8,
        }
    }
}

/// The weights of a layer: outputs × inputs, row by row, and the bias.
pub(super) struct Weights {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) weights: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// The layers, laid out for one level.
#[derive(Clone, Debug)]
pub(super) struct Fused {
    level: Level,
    layers: Vec<(Layer, Activation)>,
    // Most units of any layer, with those that fill up a group.
    widest: usize,
}

/// What one pass gives.
pub(super) struct Pass {
    /// Sum of the squared errors of each row.
    pub(super) sums: Vec<f32>,
    /// The rows, scaled.
    pub(super) scaled: Matrix,
}

impl Fused {
    /// Lays the layers out. The last is linear, the one at `middle` is held between `least` and `greatest`, the others
    /// rectify.
    pub(super) fn new(level: Level, layers: Vec<Weights>, middle: usize, least: &[f32], greatest: &[f32]) -> Self {
        let group = level.group();
        let last = layers.len().saturating_sub(1);
        let mut widest = 0;
        let layers = layers
            .into_iter()
            .enumerate()
            .map(|(i, given)| {
                let padded = given.outputs.next_multiple_of(group);
                widest = widest.max(padded).max(given.inputs);
                let activation = match i {
                    _ if i == middle => Activation::Bounded(filled(least, padded), filled(greatest, padded)),
                    _ if i == last => Activation::Linear,
                    _ => Activation::Rectified,
                };
                (Layer::new(&given, group), activation)
            })
            .collect();
        Self { level, layers, widest }
    }

    /// Scales every row, and says how badly each is reproduced.
    pub(super) fn pass(&self, rows: &Matrix, scaler: &RobustScaler) -> Pass {
        let mut scaled = rows.clone();
        scaler.apply(&mut scaled);
        let mut sums = vec![0.0; rows.rows()];
        self.run(&scaled, &mut sums);
        Pass { sums, scaled }
    }

    /// The squared errors of one scaled row, feature by feature.
    pub(super) fn errors(&self, row: &[f32]) -> Vec<f32> {
        let one = Matrix::from_rows(row.len(), std::iter::once(row));
        let mut tiles = Tiles::new(self.widest);
        load(&one, 0, &mut tiles.input);
        tiles.now[..row.len()].copy_from_slice(&tiles.input[..row.len()]);
        self.forward(&mut tiles);
        let out = tiles.now.iter().zip(row);
        out.map(|(y, x)| (x - y[0]) * (x - y[0])).collect()
    }

    fn forward(&self, tiles: &mut Tiles) {
        match self.level {
            Level::Plain => forward::<2, false>(&self.layers, tiles),
            // SAFETY: the level was chosen because the processor has what it is named after.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { forward_avx2(&self.layers, tiles) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { forward_avx512(&self.layers, tiles) },
        }
    }

    fn run(&self, scaled: &Matrix, sums: &mut [f32]) {
        let width = scaled.width();
        let mut tiles = Tiles::new(self.widest.max(width));
        for (block, sums) in sums.chunks_mut(LANES).enumerate() {
            load(scaled, block * LANES, &mut tiles.input);
            tiles.now[..width].copy_from_slice(&tiles.input[..width]);
            self.forward(&mut tiles);
            let mut sum = [0.0; LANES];
            for (x, y) in tiles.input[..width].iter().zip(&tiles.now) {
                for r in 0..LANES {
                    let error = x[r] - y[r];
                    sum[r] += error * error;
                }
            }
            sums.copy_from_slice(&sum[..sums.len()]);
        }
    }
}

// What goes in, and what comes out of one layer and of the next.
struct Tiles {
    input: Vec<Tile>,
    now: Vec<Tile>,
    next: Vec<Tile>,
}

impl Tiles {
    fn new(widest: usize) -> Self {
        let tiles = || vec![[0.0; LANES]; widest];
        Self {
            input: tiles(),
            now: tiles(),
            next: tiles(),
        }
    }
}

impl Layer {
    fn new(given: &Weights, group: usize) -> Self {
        let groups = given.outputs.div_ceil(group);
        let mut weights = Vec::with_capacity(groups * group * given.inputs);
        for g in 0..groups {
            for input in 0..given.inputs {
                for unit in g * group..(g + 1) * group {
                    let at = unit * given.inputs + input;
                    weights.push(if unit < given.outputs { given.weights[at] } else { 0.0 });
                }
            }
        }
        Self {
            inputs: given.inputs,
            outputs: given.outputs,
            weights,
            bias: filled(&given.bias, groups * group),
        }
    }
}

fn filled(values: &[f32], to: usize) -> Vec<f32> {
    let mut values = values.to_vec();
    values.resize(to, 0.0);
    values
}

// Sixteen rows from `first` on; those that are not there are zero.
fn load(matrix: &Matrix, first: usize, tiles: &mut [Tile]) {
    let n = LANES.min(matrix.rows() - first);
    for (j, tile) in tiles[..matrix.width()].iter_mut().enumerate() {
        let values = &matrix.feature(j)[first..first + n];
        match values.try_into() {
            Ok(whole) => *tile = whole,
            Err(_) => {
                *tile = [0.0; LANES];
                tile[..n].copy_from_slice(values);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn forward_avx2(layers: &[(Layer, Activation)], tiles: &mut Tiles) {
    forward::<4, true>(layers, tiles);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn forward_avx512(layers: &[(Layer, Activation)], tiles: &mut Tiles) {
    forward::<8, true>(layers, tiles);
}

#[inline(always)]
fn forward<const GROUP: usize, const FUSED: bool>(layers: &[(Layer, Activation)], tiles: &mut Tiles) {
    for (layer, activation) in layers {
        let input = &tiles.now[..layer.inputs];
        let groups = layer.weights.chunks_exact(GROUP * layer.inputs.max(1));
        for (g, weights) in groups.enumerate() {
            let mut sums = [[0.0_f32; LANES]; GROUP];
            for (weights, x) in weights.chunks_exact(GROUP).zip(input) {
                for k in 0..GROUP {
                    for r in 0..LANES {
                        sums[k][r] = if FUSED {
                            weights[k].mul_add(x[r], sums[k][r])
                        } else {
                            weights[k] * x[r] + sums[k][r]
                        };
                    }
                }
            }
            for (k, sums) in sums.iter().enumerate() {
                let unit = g * GROUP + k;
                let bias = layer.bias[unit];
                let out = &mut tiles.next[unit];
                for r in 0..LANES {
                    let sum = sums[r] + bias;
                    out[r] = match activation {
                        Activation::Linear => sum,
                        Activation::Rectified => sum.max(0.0),
                        Activation::Bounded(least, greatest) => sum.max(least[unit]).min(greatest[unit]),
                    };
                }
            }
        }
        debug_assert!(layer.outputs <= tiles.next.len());
        std::mem::swap(&mut tiles.now, &mut tiles.next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::SplitMix64;

    fn weights(rng: &mut SplitMix64, outputs: usize, inputs: usize) -> Weights {
        let mut draw = |n: usize| (0..n).map(|_| rng.normal() as f32 * 0.3).collect::<Vec<_>>();
        Weights {
            inputs,
            outputs,
            weights: draw(outputs * inputs),
            bias: draw(outputs),
        }
    }

    // The textbook's way, in double precision.
    fn straight(layers: &[Weights], middle: usize, bounds: (f32, f32), row: &[f32]) -> Vec<f64> {
        let mut h: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
        for (i, layer) in layers.iter().enumerate() {
            h = (0..layer.outputs)
                .map(|o| {
                    let sum: f64 = (0..layer.inputs)
                        .map(|j| f64::from(layer.weights[o * layer.inputs + j]) * h[j])
                        .sum();
                    let sum = sum + f64::from(layer.bias[o]);
                    match i {
                        _ if i == middle => sum.clamp(bounds.0.into(), bounds.1.into()),
                        _ if i + 1 == layers.len() => sum,
                        _ => sum.max(0.0),
                    }
                })
                .collect();
        }
        h
    }

    fn levels() -> Vec<Level> {
        let mut levels = vec![Level::Plain];
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                levels.push(Level::Avx2);
            }
            if std::arch::is_x86_feature_detected!("avx512f") {
                levels.push(Level::Avx512);
            }
        }
        levels
    }

    #[test]
    fn every_level_gives_what_the_textbook_gives_wherever_a_row_stands() {
        let shapes = [(24, 33), (8, 24), (24, 8), (33, 24)];
        for level in levels() {
            let mut rng = SplitMix64::new(5);
            let layers = || {
                let mut rng = SplitMix64::new(6);
                shapes
                    .map(|(o, i)| weights(&mut rng, o, i))
                    .into_iter()
                    .collect::<Vec<_>>()
            };
            let fused = Fused::new(level, layers(), 1, &[-0.5; 8], &[0.75; 8]);
            let rows: Vec<Vec<f32>> = (0..37)
                .map(|_| (0..33).map(|_| rng.normal() as f32).collect())
                .collect();
            let matrix = Matrix::from_rows(33, rows.iter().map(Vec::as_slice));
            let same = RobustScaler {
                medians: vec![0.0; 33],
                spreads: vec![1.0; 33],
            };
            let pass = fused.pass(&matrix, &same);
            for (row, sum) in rows.iter().zip(&pass.sums) {
                let want: Vec<f64> = straight(&layers(), 1, (-0.5, 0.75), row)
                    .iter()
                    .zip(row)
                    .map(|(y, x)| (f64::from(*x) - y).powi(2))
                    .collect();
                let whole: f64 = want.iter().sum();
                assert!(
                    (f64::from(*sum) - whole).abs() < 1e-4 * whole,
                    "{level:?}: {sum} {whole}"
                );
                let errors = fused.errors(row);
                assert_eq!(errors.len(), 33);
                for (got, want) in errors.iter().zip(&want) {
                    assert!((f64::from(*got) - want).abs() < 1e-3 * whole, "{level:?}: {got} {want}");
                }
                // Alone it scores the same to the last digit.
                let alone = fused.pass(&Matrix::from_rows(33, std::iter::once(row.as_slice())), &same);
                assert_eq!(alone.sums[0].to_bits(), sum.to_bits());
            }
        }
    }

    #[test]
    fn what_is_no_number_gives_no_number_and_nothing_gives_nothing() {
        let mut rng = SplitMix64::new(1);
        let layers = vec![weights(&mut rng, 3, 4), weights(&mut rng, 4, 3)];
        let fused = Fused::new(Level::best(), layers, 0, &[-1.0; 3], &[1.0; 3]);
        let same = RobustScaler {
            medians: vec![0.0; 4],
            spreads: vec![1.0; 4],
        };
        let odd = Matrix::from_rows(4, std::iter::once(&[1.0, f32::NAN, 0.0, 2.0][..]));
        assert!(fused.pass(&odd, &same).sums[0].is_nan());
        assert!(fused.pass(&Matrix::zeros(4, 0), &same).sums.is_empty());
    }
}
