//! How far the traffic of now is from what the model learnt: the population stability index of each feature and of the
//! scores, over ten bins that held the same share of the learnt period each (Siddiqi 2006: below 0.1 nothing has changed,
//! above 0.25 much has).

use garrison_models::Matrix;

use super::features::WIDTH;

/// Most bins of a feature.
pub const BINS: usize = 12;
/// Rows from which an index is told; with fewer it is mostly chance.
pub const LEAST_ROWS: u64 = 1_000;
/// An index from which on something has changed.
pub const CHANGED: f64 = 0.1;
/// An index from which on much has changed.
pub const MUCH_CHANGED: f64 = 0.25;

// Rows that the present stands for: beyond twice as many, all counts are halved.
const WINDOW: u64 = 20_000;
// The scores come after the features.
const SCORE: usize = WIDTH;

/// Where values of the learnt period lay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reference {
    /// Upper ends of the bins but the last, of each feature and then of the scores.
    pub edges: Vec<Vec<f32>>,
    /// How many of the learnt period were in each bin.
    pub counts: Vec<Vec<u32>>,
}

impl Reference {
    /// Measures a sample and the scores of normal rows.
    pub fn of(sample: &Matrix, scores: &[f64]) -> Self {
        let scores: Vec<f32> = scores.iter().map(|s| *s as f32).collect();
        let mut reference = Self::default();
        for j in 0..=sample.width() {
            let values = if j < sample.width() { sample.feature(j) } else { &scores };
            let edges = edges(values);
            let mut counts = vec![0; edges.len() + 1];
            values.iter().for_each(|v| counts[bin(&edges, *v)] += 1);
            reference.edges.push(edges);
            reference.counts.push(counts);
        }
        reference
    }

    /// It is of rows as they are now, and whole.
    pub fn is_usable(&self) -> bool {
        let whole = |(edges, counts): (&Vec<f32>, &Vec<u32>)| edges.len() + 1 == counts.len() && counts.len() <= BINS;
        self.edges.len() == WIDTH + 1
            && self.counts.len() == WIDTH + 1
            && self.edges.iter().zip(&self.counts).all(whole)
    }
}

// Deciles without repeats; and one just below the least of them, so that values below all of them show, too.
fn edges(values: &[f32]) -> Vec<f32> {
    let mut sorted: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f32::total_cmp);
    let Some(least) = sorted.first() else {
        return Vec::new();
    };
    let mut edges = vec![least.next_down()];
    for decile in 1..=9 {
        let edge = sorted[(decile * (sorted.len() - 1)) / 10];
        if edge > edges[edges.len() - 1] {
            edges.push(edge);
        }
    }
    edges
}

fn bin(edges: &[f32], value: f32) -> usize {
    edges.iter().map(|e| usize::from(value > *e)).sum()
}

/// The present, in the bins of the learnt period.
#[derive(Clone, Debug, PartialEq)]
pub struct Drift {
    /// Rows in each bin: [`BINS`] for each feature, and then for the scores.
    pub counts: Vec<u32>,
    /// Rows counted since the model went to work.
    pub rows: u64,
    // Rows that the counts stand for.
    weight: u64,
}

impl Default for Drift {
    fn default() -> Self {
        Self {
            counts: vec![0; (WIDTH + 1) * BINS],
            rows: 0,
            weight: 0,
        }
    }
}

impl Drift {
    /// Goes on from what was stored; begins anew when that was of other features.
    pub fn restore(counts: Vec<u32>, rows: u64) -> Self {
        if counts.len() != (WIDTH + 1) * BINS {
            return Self::default();
        }
        let weight = counts[SCORE * BINS..].iter().map(|n| u64::from(*n)).sum();
        Self { counts, rows, weight }
    }

    /// Counts rows and their scores.
    pub fn add(&mut self, reference: &Reference, rows: &Matrix, scores: &[f64]) {
        for (j, edges) in reference.edges.iter().enumerate().take(WIDTH) {
            // Rows above each edge; what is above one and not above the next lies between them.
            let values = rows.feature(j);
            let mut above = values.len() as u32;
            let counts = &mut self.counts[j * BINS..(j + 1) * BINS];
            for (b, edge) in edges.iter().enumerate() {
                let higher = values.iter().map(|v| u32::from(v > edge)).sum::<u32>();
                counts[b] += above - higher;
                above = higher;
            }
            counts[edges.len()] += above;
        }
        if let Some(edges) = reference.edges.get(SCORE) {
            for score in scores {
                self.counts[SCORE * BINS + bin(edges, *score as f32)] += 1;
            }
        }
        self.rows += rows.rows() as u64;
        self.weight += rows.rows() as u64;
        if self.weight >= 2 * WINDOW {
            self.counts.iter_mut().for_each(|n| *n /= 2);
            self.weight /= 2;
        }
    }

    /// The index of every feature, and then of the scores. `None` while too few rows were counted.
    pub fn indices(&self, reference: &Reference) -> Option<Vec<f64>> {
        if self.weight < LEAST_ROWS || !reference.is_usable() {
            return None;
        }
        let of = |(j, then): (usize, &Vec<u32>)| stability(then, &self.counts[j * BINS..j * BINS + then.len()]);
        Some(reference.counts.iter().enumerate().map(of).collect())
    }
}

// Sum over bins of (now - then) ln(now / then). Half a row more in each bin keeps it finite.
fn stability(then: &[u32], now: &[u32]) -> f64 {
    let shares = |counts: &[u32]| -> Vec<f64> {
        let total: f64 = counts.iter().map(|n| f64::from(*n) + 0.5).sum();
        counts.iter().map(|n| (f64::from(*n) + 0.5) / total).collect()
    };
    let pairs = shares(now).into_iter().zip(shares(then));
    pairs.map(|(now, then)| (now - then) * (now / then).ln()).sum()
}

#[cfg(test)]
mod tests {
    use garrison_models::rng::SplitMix64;

    use super::*;

    fn rows(n: usize, shift: f32, seed: u64) -> (Matrix, Vec<f64>) {
        let mut rng = SplitMix64::new(seed);
        let mut matrix = Matrix::zeros(WIDTH, n);
        for v in matrix.feature_mut(0) {
            *v = rng.normal() as f32 + shift;
        }
        // A flag that was never set.
        let flag = if shift > 0.0 { 1.0 } else { 0.0 };
        matrix.feature_mut(1).fill(flag);
        (matrix, (0..n).map(|_| rng.unit()).collect())
    }

    #[test]
    fn the_index_is_small_for_the_same_traffic_and_large_where_it_moved() {
        let (sample, scores) = rows(5_000, 0.0, 1);
        let reference = Reference::of(&sample, &scores);
        assert!(reference.is_usable());
        let mut drift = Drift::default();
        let (few, their) = rows(500, 0.0, 2);
        drift.add(&reference, &few, &their);
        assert_eq!(drift.indices(&reference), None);
        let (same, their) = rows(4_000, 0.0, 3);
        drift.add(&reference, &same, &their);
        let calm = drift.indices(&reference).unwrap();
        assert!(calm.iter().all(|i| *i < CHANGED), "{calm:?}");
        let mut drift = Drift::default();
        let (moved, their) = rows(4_000, 1.0, 4);
        drift.add(&reference, &moved, &their);
        let indices = drift.indices(&reference).unwrap();
        assert!(indices[0] > MUCH_CHANGED && indices[1] > MUCH_CHANGED, "{indices:?}");
        assert!(indices[2] < CHANGED && indices[SCORE] < CHANGED, "{indices:?}");
        // The bins hold every row once, whichever way they are counted.
        assert_eq!(drift.counts[..BINS].iter().sum::<u32>(), 4_000);
        let again = Drift::restore(drift.counts.clone(), drift.rows);
        assert_eq!(again, drift);
        assert_eq!(Drift::restore(vec![1; 3], 9), Drift::default());
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let (sample, scores) = rows(5_000, 0.0, 1);
        let reference = Reference::of(&sample, &scores);
        let mut drift = Drift::default();
        let (moved, their) = rows(10_000, 2.0, 2);
        (0..4).for_each(|_| drift.add(&reference, &moved, &their));
        let before = drift.indices(&reference).unwrap()[0];
        for seed in 10..40 {
            let (same, their) = rows(10_000, 0.0, seed);
            drift.add(&reference, &same, &their);
        }
        let after = drift.indices(&reference).unwrap()[0];
        assert!(before > 1.0 && after < CHANGED, "{before} {after}");
    }

    #[test]
    fn a_reference_of_nothing_is_survived() {
        let reference = Reference::of(&Matrix::zeros(WIDTH, 0), &[]);
        let mut drift = Drift::default();
        let (rows, scores) = rows(2_000, 0.0, 1);
        drift.add(&reference, &rows, &scores);
        assert!(drift.indices(&reference).unwrap().iter().all(|i| i.is_finite()));
    }
}
