//! Robust scaling: features are measured from their median in units of their spread, so that the few wild
//! values of a learnt period do not set the scale.

use serde::{Deserialize, Serialize};

use crate::Matrix;

/// Scaled values are cut at ± this many spreads: one absurd counter must not outweigh everything else.
pub const CLIP: f32 = 8.0;

// A feature that never moved in the learnt period still gets a scale, so that its first move is seen.
const SMALLEST_SPREAD: f32 = 0.2;

// Half the interquartile range of a normal distribution is 0.6745 standard deviations.
const QUARTILE: f32 = 1.349;

/// Median and spread of each feature, in the model's space.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RobustScaler {
    /// Medians.
    pub medians: Vec<f32>,
    /// Spreads, all above 0.
    pub spreads: Vec<f32>,
}

impl RobustScaler {
    /// Measures a sample. The spread is the interquartile range as a standard deviation; where at least half
    /// of the values are the same, the standard deviation.
    pub fn fit(sample: &Matrix) -> Self {
        let width = sample.width();
        let (mut medians, mut spreads) = (Vec::with_capacity(width), Vec::with_capacity(width));
        for j in 0..width {
            let mut values = sample.feature(j).to_vec();
            values.sort_by(f32::total_cmp);
            let at = |share: f32| {
                let last = values.len().saturating_sub(1);
                values
                    .get((share * last as f32).round() as usize)
                    .copied()
                    .unwrap_or(0.0)
            };
            let mut spread = (at(0.75) - at(0.25)) / QUARTILE;
            if spread <= 0.0 {
                let n = values.len().max(1) as f32;
                let mean = values.iter().sum::<f32>() / n;
                spread = (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt();
            }
            medians.push(at(0.5));
            spreads.push(spread.max(SMALLEST_SPREAD));
        }
        Self { medians, spreads }
    }

    /// Scales in place.
    pub fn apply(&self, matrix: &mut Matrix) {
        let rows = matrix.rows();
        if rows == 0 {
            return;
        }
        let features = matrix.values_mut().chunks_exact_mut(rows);
        for ((feature, median), spread) in features.zip(&self.medians).zip(&self.spreads) {
            let factor = spread.recip();
            for v in feature {
                *v = ((*v - median) * factor).clamp(-CLIP, CLIP);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 4;

    #[test]
    fn outliers_do_not_set_the_scale_and_are_cut() {
        let rows: Vec<Vec<f32>> = (0..101)
            .map(|i| {
                let v = if i == 100 { 1e6 } else { i as f32 };
                vec![v; WIDTH]
            })
            .collect();
        let sample = Matrix::from_rows(WIDTH, rows.iter().map(Vec::as_slice));
        let scaler = RobustScaler::fit(&sample);
        assert_eq!(scaler.medians[0], 50.0);
        assert!((scaler.spreads[0] - 50.0 / QUARTILE).abs() < 1.0);
        let mut scaled = sample;
        scaler.apply(&mut scaled);
        assert_eq!(scaled.feature(0)[50], 0.0);
        assert_eq!(scaled.feature(0)[100], CLIP);
    }

    #[test]
    fn a_feature_that_never_moved_has_a_scale() {
        let rows = vec![vec![1.0; WIDTH]; 10];
        let scaler = RobustScaler::fit(&Matrix::from_rows(WIDTH, rows.iter().map(Vec::as_slice)));
        assert!(scaler.spreads.iter().all(|s| *s > 0.0));
        let empty = RobustScaler::fit(&Matrix::from_rows(WIDTH, std::iter::empty::<&[f32]>()));
        assert_eq!(empty.medians, vec![0.0; WIDTH]);
    }
}
