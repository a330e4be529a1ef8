//! Linear models: the distance from the first principal components for rows without labels, logistic regression for
//! rows with them.

use crate::{Matrix, rng::SplitMix64};

// Share of the variance that the components kept explain together.
const EXPLAINED: f64 = 0.95;
const MOST_COMPONENTS: usize = 32;
const POWER_STEPS: usize = 30;

const EPOCHS: usize = 30;
const RATE: f64 = 0.5;
const DECAY: f64 = 1e-4;

/// A linear model.
#[derive(Clone, Debug)]
pub enum Linear {
    /// Squared distance from the plane of the first principal components (Jackson and Mudholkar 1979).
    Components {
        /// Mean of each feature.
        mean: Vec<f64>,
        /// Orthonormal directions.
        directions: Vec<Vec<f64>>,
    },
    /// Logistic regression, one against the rest when there are more than two classes.
    Logistic {
        /// Weights and bias of each class.
        classes: Vec<(Vec<f64>, f64)>,
    },
}

impl Linear {
    /// Finds the plane that the rows lie near.
    pub fn components(rows: &Matrix, seed: u64) -> Self {
        let (n, width) = (rows.rows().max(1) as f64, rows.width());
        let mean: Vec<f64> = (0..width)
            .map(|j| rows.feature(j).iter().map(|v| f64::from(*v)).sum::<f64>() / n)
            .collect();
        let mut covariance = vec![vec![0.0; width]; width];
        for a in 0..width {
            for b in 0..=a {
                let pairs = rows.feature(a).iter().zip(rows.feature(b));
                let sum: f64 = pairs
                    .map(|(x, y)| (f64::from(*x) - mean[a]) * (f64::from(*y) - mean[b]))
                    .sum();
                covariance[a][b] = sum / n;
                covariance[b][a] = sum / n;
            }
        }
        let total: f64 = (0..width).map(|j| covariance[j][j]).sum();
        let mut rng = SplitMix64::new(seed);
        let (mut directions, mut explained) = (Vec::new(), 0.0);
        while explained < EXPLAINED * total && directions.len() < MOST_COMPONENTS.min(width) {
            let mut v: Vec<f64> = (0..width).map(|_| rng.normal()).collect();
            let mut length = 0.0;
            for _ in 0..POWER_STEPS {
                let mut next: Vec<f64> = covariance.iter().map(|row| dot(row, &v)).collect();
                length = dot(&next, &next).sqrt();
                if length <= f64::EPSILON {
                    break;
                }
                for x in &mut next {
                    *x /= length;
                }
                v = next;
            }
            if length <= f64::EPSILON {
                break;
            }
            for a in 0..width {
                for b in 0..width {
                    covariance[a][b] -= length * v[a] * v[b];
                }
            }
            explained += length;
            directions.push(v);
        }
        Self::Components { mean, directions }
    }

    /// Fits logistic regressions on labelled rows by gradient steps. Each class weighs the same.
    pub fn logistic(rows: &Matrix, labels: &[usize], classes: usize, seed: u64) -> Self {
        let width = rows.width();
        let by_rows = crate::dense::by_rows(rows);
        let fit = |class: usize| {
            let mut rng = SplitMix64::new(seed.wrapping_add(class as u64));
            let positives = labels.iter().filter(|l| **l == class).count().max(1) as f64;
            let weigh = (
                labels.len() as f64 / (2.0 * positives),
                labels.len() as f64 / (2.0 * (labels.len() as f64 - positives).max(1.0)),
            );
            let (mut weights, mut bias) = (vec![0.0; width], 0.0);
            let mut order: Vec<usize> = (0..labels.len()).collect();
            for epoch in 0..EPOCHS {
                rng.shuffle(&mut order);
                let rate = RATE / (1.0 + epoch as f64) / width as f64;
                for &i in &order {
                    let row = &by_rows[i * width..(i + 1) * width];
                    let z = bias + row.iter().zip(&weights).map(|(x, w)| f64::from(*x) * w).sum::<f64>();
                    let is = labels[i] == class;
                    let weight = if is { weigh.0 } else { weigh.1 };
                    let slope = (logistic(z) - f64::from(u8::from(is))) * weight.min(100.0);
                    for (w, x) in weights.iter_mut().zip(row) {
                        *w -= rate * (slope * f64::from(*x) + DECAY * *w);
                    }
                    bias -= rate * slope;
                }
            }
            (weights, bias)
        };
        Self::Logistic {
            classes: (0..classes).map(fit).collect(),
        }
    }

    /// How unusual each row is: the distance from the plane, or what speaks against class 0.
    pub fn score(&self, rows: &Matrix) -> Vec<f64> {
        let mut row = vec![0.0; rows.width()];
        (0..rows.rows())
            .map(|i| {
                for (v, x) in row.iter_mut().zip(rows.row(i)) {
                    *v = f64::from(x);
                }
                match self {
                    Self::Components { mean, directions } => {
                        let away: Vec<f64> = row.iter().zip(mean).map(|(x, m)| x - m).collect();
                        let along: f64 = directions.iter().map(|d| dot(d, &away).powi(2)).sum();
                        dot(&away, &away) - along
                    }
                    Self::Logistic { classes } => {
                        let z = classes.iter().map(|(weights, bias)| dot(weights, &row) + bias);
                        let (normal, other) =
                            z.enumerate().fold((0.0, f64::NEG_INFINITY), |(normal, other), (c, z)| {
                                if c == 0 { (z, other) } else { (normal, other.max(z)) }
                            });
                        if classes.len() > 1 { other - normal } else { -normal }
                    }
                }
            })
            .collect()
    }

    /// The likeliest class of each row; 0 without labels.
    pub fn classify(&self, rows: &Matrix) -> Vec<usize> {
        let Self::Logistic { classes } = self else {
            return vec![0; rows.rows()];
        };
        (0..rows.rows())
            .map(|i| {
                let row: Vec<f64> = rows.row(i).map(f64::from).collect();
                let z = classes.iter().map(|(weights, bias)| dot(weights, &row) + bias);
                z.enumerate()
                    .fold(
                        (0, f64::NEG_INFINITY),
                        |best, (c, z)| if z > best.1 { (c, z) } else { best },
                    )
                    .0
            })
            .collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn logistic(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_off_the_plane_is_far_from_it() {
        let mut rng = SplitMix64::new(1);
        let mut rows: Vec<[f32; 3]> = (0..400)
            .map(|_| {
                let a = rng.normal() as f32;
                [a, 2.0 * a, 0.01 * rng.normal() as f32]
            })
            .collect();
        rows.push([1.0, -2.0, 0.0]);
        let matrix = Matrix::from_rows(3, rows.iter().map(<[f32; 3]>::as_slice));
        let scores = Linear::components(&matrix, 1).score(&matrix);
        assert!(scores[400] > 100.0 * scores[..400].iter().copied().fold(0.0, f64::max));
    }

    #[test]
    fn classes_that_a_line_parts_are_told_apart() {
        let mut rng = SplitMix64::new(2);
        let labels: Vec<usize> = (0..600).map(|i| usize::from(i % 10 == 0)).collect();
        let rows: Vec<[f32; 2]> = labels
            .iter()
            .map(|l| [rng.normal() as f32 + 6.0 * *l as f32, rng.normal() as f32])
            .collect();
        let matrix = Matrix::from_rows(2, rows.iter().map(<[f32; 2]>::as_slice));
        let model = Linear::logistic(&matrix, &labels, 2, 1);
        let right = model
            .classify(&matrix)
            .iter()
            .zip(&labels)
            .filter(|(a, b)| a == b)
            .count();
        assert!(right > 585, "{right}");
        let positive: Vec<bool> = labels.iter().map(|l| *l == 1).collect();
        assert!(crate::metrics::roc_auc(&model.score(&matrix), &positive) > 0.99);
    }
}
