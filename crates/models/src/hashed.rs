//! Logistic regression over hashed features, of which a sample has few and there may be any number: groups of letters.

use crate::rng::SplitMix64;

const RATE: f32 = 0.3;
const EPOCHS: usize = 4;
const DECAY: f32 = 1e-6;

/// Trains by AdaGrad (Duchi, Hazan and Singer 2011) and gives back `width` weights. Samples of `one` count for as much
/// together as those of `zero`.
///
/// `features` writes down where a sample has a feature, below `width`, and its value, each time that the sample comes up;
/// it may draw from the generator.
pub fn train<T>(
    width: usize,
    one: &[T],
    zero: &[T],
    rng: &mut SplitMix64,
    features: impl Fn(&T, &mut SplitMix64, &mut Vec<(usize, f32)>),
) -> Vec<f32> {
    let balance = zero.len().max(1) as f32 / one.len().max(1) as f32;
    let mut all: Vec<(&T, bool)> = one.iter().map(|sample| (sample, true)).collect();
    all.extend(zero.iter().map(|sample| (sample, false)));
    let (mut weights, mut seen) = (vec![0.0_f32; width], vec![1e-8_f32; width]);
    let mut row: Vec<(usize, f32)> = Vec::new();
    for _ in 0..EPOCHS {
        rng.shuffle(&mut all);
        for (sample, is_one) in &all {
            row.clear();
            features(sample, rng, &mut row);
            let sum: f32 = row.iter().map(|(at, value)| weights[*at] * value).sum();
            let p = 1.0 / (1.0 + (-sum.clamp(-30.0, 30.0)).exp());
            let error = if *is_one { (p - 1.0) * balance } else { p };
            for (at, value) in &row {
                let step = error * value + DECAY * weights[*at];
                seen[*at] += step * step;
                weights[*at] -= RATE * step / seen[*at].sqrt();
            }
        }
    }
    weights
}
