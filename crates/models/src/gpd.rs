//! The generalised Pareto distribution, which the excesses over a high threshold follow whatever the parent
//! (Balkema and de Haan 1974, Pickands 1975).

/// `P(excess > y) = (1 + γ y / σ)^(-1/γ)`, and `exp(-y/σ)` at γ = 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GeneralisedPareto {
    /// Shape γ: above 0 a heavy tail, below 0 a bounded one.
    pub shape: f64,
    /// Scale σ, above 0, in the unit of the excesses.
    pub scale: f64,
}

const NEARLY_ZERO: f64 = 1e-8;
// Beyond these a sample of the size kept here says little, and one outlier would move the threshold by
// orders of magnitude.
const SHAPE_RANGE: (f64, f64) = (-0.9, 0.9);
const GRID: usize = 12;
const BISECTIONS: usize = 32;

impl GeneralisedPareto {
    /// Fits by maximum likelihood with Grimshaw's reduction to one variable (Technometrics 35, 1993), and by
    /// probability-weighted moments (Hosking and Wallis 1987) where no root beats the moments.
    ///
    /// `None` when fewer than two excesses are given or all are the same: there is no tail to fit.
    pub fn fit(excesses: &[f64]) -> Option<Self> {
        let n = excesses.len() as f64;
        let (mut sum, mut min, mut max) = (0.0, f64::INFINITY, 0.0_f64);
        for &y in excesses {
            sum += y;
            min = min.min(y);
            max = max.max(y);
        }
        let mean = sum / n;
        if excesses.len() < 2 || !(mean.is_finite() && max > min && mean > 0.0) {
            return None;
        }
        let mut best = Self {
            shape: 0.0,
            scale: mean,
        };
        let mut likelihood = best.log_likelihood(excesses);
        let mut consider = |candidate: Self| {
            let value = candidate.log_likelihood(excesses);
            if value > likelihood {
                (best, likelihood) = (candidate, value);
            }
        };
        if let Some(moments) = Self::by_weighted_moments(excesses, mean) {
            consider(moments);
        }
        for x in grimshaw_roots(excesses, mean, min, max) {
            // γ = mean of ln(1 + xY), σ = γ / x.
            let shape = excesses.iter().map(|y| (x * y).ln_1p()).sum::<f64>() / n;
            let scale = shape / x;
            if scale > 0.0 && scale.is_finite() {
                consider(Self { shape, scale });
            }
        }
        let shape = best.shape.clamp(SHAPE_RANGE.0, SHAPE_RANGE.1);
        if shape != best.shape {
            // Keep the mean σ / (1 - γ) where it exists.
            best.scale = (mean * (1.0 - shape)).max(f64::MIN_POSITIVE);
            best.shape = shape;
        }
        Some(best)
    }

    /// Probability that an excess is above `y`.
    pub fn survival(&self, y: f64) -> f64 {
        if y <= 0.0 {
            return 1.0;
        }
        if self.shape.abs() < NEARLY_ZERO {
            return (-y / self.scale).exp();
        }
        let base = 1.0 + self.shape * y / self.scale;
        if base <= 0.0 { 0.0 } else { base.powf(-1.0 / self.shape) }
    }

    /// The excess that is exceeded with probability `p`, above 0 and at most 1.
    pub fn quantile_above(&self, p: f64) -> f64 {
        if self.shape.abs() < NEARLY_ZERO {
            -self.scale * p.ln()
        } else {
            self.scale / self.shape * (p.powf(-self.shape) - 1.0)
        }
    }

    fn log_likelihood(&self, excesses: &[f64]) -> f64 {
        let n = excesses.len() as f64;
        if self.shape.abs() < NEARLY_ZERO {
            return -n * self.scale.ln() - excesses.iter().sum::<f64>() / self.scale;
        }
        let ratio = self.shape / self.scale;
        let mut logs = 0.0;
        for y in excesses {
            let base = 1.0 + ratio * y;
            if base <= 0.0 {
                return f64::NEG_INFINITY;
            }
            logs += base.ln();
        }
        -n * self.scale.ln() - (1.0 + 1.0 / self.shape) * logs
    }

    fn by_weighted_moments(excesses: &[f64], mean: f64) -> Option<Self> {
        let mut sorted = excesses.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len() as f64;
        let weighted = sorted
            .iter()
            .enumerate()
            .map(|(i, y)| y * (1.0 - (i as f64 + 0.65) / n))
            .sum::<f64>()
            / n;
        let divisor = mean - 2.0 * weighted;
        if divisor.abs() < f64::EPSILON * mean {
            return None;
        }
        let shape = 2.0 - mean / divisor;
        let scale = 2.0 * mean * weighted / divisor;
        (scale > 0.0 && scale.is_finite()).then_some(Self { shape, scale })
    }
}

// Roots of w(x) = u(x) v(x) - 1, u = mean of 1/(1+xY), v = 1 + mean of ln(1+xY), other than x = 0.
fn grimshaw_roots(excesses: &[f64], mean: f64, min: f64, max: f64) -> Vec<f64> {
    let n = excesses.len() as f64;
    let w = |x: f64| {
        let (mut u, mut v) = (0.0, 0.0);
        for y in excesses {
            let s = 1.0 + x * y;
            u += 1.0 / s;
            v += s.ln();
        }
        (u / n) * (1.0 + v / n) - 1.0
    };
    let edge = 1e-8 / mean;
    let upper = 2.0 * (mean - min) / (min * min).max(1e-12 * mean * mean);
    let mut roots = Vec::new();
    // Evenly on the left, where the interval is short; by factors on the right, where it may be huge.
    let low = -1.0 / max;
    let left = (0..=GRID).map(|i| {
        let share = i as f64 / GRID as f64;
        (low + edge) + share * (-2.0 * edge - low)
    });
    search(left, &w, &mut roots);
    if upper > edge {
        let ratio = (upper / edge).ln();
        let right = (0..=GRID).map(|i| edge * (ratio * i as f64 / GRID as f64).exp());
        search(right, &w, &mut roots);
    }
    roots
}

fn search(grid: impl Iterator<Item = f64>, w: &impl Fn(f64) -> f64, roots: &mut Vec<f64>) {
    let mut before: Option<(f64, f64)> = None;
    for x in grid {
        let value = w(x);
        if let Some((a, at_a)) = before
            && at_a.is_finite()
            && value.is_finite()
            && at_a.signum() != value.signum()
        {
            roots.push(bisect(a, at_a, x, w));
        }
        before = Some((x, value));
    }
}

fn bisect(mut a: f64, at_a: f64, mut b: f64, w: &impl Fn(f64) -> f64) -> f64 {
    for _ in 0..BISECTIONS {
        let middle = 0.5 * (a + b);
        if w(middle).signum() == at_a.signum() {
            a = middle;
        } else {
            b = middle;
        }
    }
    0.5 * (a + b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::SplitMix64;

    fn sample(truth: GeneralisedPareto, n: usize, seed: u64) -> Vec<f64> {
        let mut rng = SplitMix64::new(seed);
        (0..n).map(|_| truth.quantile_above(1.0 - rng.unit())).collect()
    }

    #[test]
    fn finds_the_distribution_the_sample_came_from() {
        for shape in [-0.3, -0.1, 0.0, 0.2, 0.5] {
            for scale in [0.01, 1.0, 400.0] {
                let truth = GeneralisedPareto { shape, scale };
                let fit = GeneralisedPareto::fit(&sample(truth, 4_000, 11)).unwrap();
                assert!((fit.shape - shape).abs() < 0.08, "{truth:?} → {fit:?}");
                assert!((fit.scale / scale - 1.0).abs() < 0.1, "{truth:?} → {fit:?}");
            }
        }
    }

    #[test]
    fn quantile_and_survival_undo_each_other() {
        for shape in [-0.4, 0.0, 0.4] {
            let d = GeneralisedPareto { shape, scale: 2.0 };
            for p in [1e-6, 1e-3, 0.5] {
                assert!((d.survival(d.quantile_above(p)) / p - 1.0).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn nothing_to_fit_gives_nothing() {
        assert_eq!(GeneralisedPareto::fit(&[]), None);
        assert_eq!(GeneralisedPareto::fit(&[1.0]), None);
        assert_eq!(GeneralisedPareto::fit(&[2.0; 50]), None);
        assert_eq!(GeneralisedPareto::fit(&[0.0; 50]), None);
        assert_eq!(GeneralisedPareto::fit(&[1.0, f64::INFINITY]), None);
    }

    proptest! {
        #[test]
        fn any_finite_sample_gives_a_usable_tail(
            excesses in prop::collection::vec(0.0_f64..1e9, 2..200),
        ) {
            if let Some(fit) = GeneralisedPareto::fit(&excesses) {
                prop_assert!(fit.scale > 0.0 && fit.scale.is_finite());
                prop_assert!((-0.9..=0.9).contains(&fit.shape));
                let high = fit.quantile_above(1e-4);
                prop_assert!(high.is_finite() && high >= 0.0, "{fit:?} gives {high}");
            }
        }
    }
}
