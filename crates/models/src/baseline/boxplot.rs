//! The box of Tukey (Exploratory Data Analysis, 1977) on one number, as people put it on a rate.

/// Quartiles of one number among the training rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Boxplot {
    lower: f32,
    upper: f32,
    range: f32,
}

impl Boxplot {
    /// Where the whiskers end, in interquartile ranges beyond the box.
    pub const WHISKER: f64 = 1.5;

    /// Measures the training values; those that are not finite are left out.
    pub fn fit(values: impl Iterator<Item = f32>) -> Self {
        let mut sorted: Vec<f32> = values.filter(|v| v.is_finite()).collect();
        sorted.sort_by(f32::total_cmp);
        let last = sorted.len().saturating_sub(1);
        let at = |share: f32| {
            sorted
                .get((share * last as f32).round() as usize)
                .copied()
                .unwrap_or(0.0)
        };
        let (lower, upper) = (at(0.25), at(0.75));
        Self {
            lower,
            upper,
            range: (upper - lower).max(1e-6),
        }
    }

    /// How far outside the box, in interquartile ranges; 0 inside.
    pub fn score(&self, value: f32) -> f64 {
        let away = (value - self.upper).max(self.lower - value).max(0.0);
        f64::from(away / self.range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_whiskers_scores_more_than_the_box() {
        let boxplot = Boxplot::fit((0..=100_u8).map(f32::from).chain([f32::NAN]));
        assert_eq!(boxplot.score(50.0), 0.0);
        assert!(boxplot.score(149.0) < Boxplot::WHISKER);
        assert!(boxplot.score(151.0) > Boxplot::WHISKER);
        assert!(boxplot.score(-60.0) > Boxplot::WHISKER);
    }
}
