//! How much of some rows is like what was learnt, without looking at a label: from the distance of each row to the nearest
//! of a sample of the training rows.

use garrison_models::{Matrix, metrics::quantile, rng::SplitMix64};

const SAMPLE: usize = 1_500;
// The distance that this share of training rows keeps is what the others are held against.
const USUAL: f64 = 0.75;
// Most rows of the test that are looked at; they are spread evenly.
const MOST_ASKED: usize = 3_000;

/// What training rows look like.
pub struct Alike {
    sample: Vec<Vec<f32>>,
    usual: f64,
}

impl Alike {
    /// Keeps a sample, and how far the other rows usually are from it.
    pub fn new(rows: &Matrix, seed: u64) -> Self {
        let mut order: Vec<usize> = (0..rows.rows()).collect();
        let mut rng = SplitMix64::new(seed ^ 0xA11E);
        rng.shuffle(&mut order);
        let cut = SAMPLE.min(order.len() / 2);
        let sample: Vec<Vec<f32>> = order[..cut].iter().map(|i| rows.row(*i).collect()).collect();
        let mut alike = Self { sample, usual: 0.0 };
        let others = &order[cut..order.len().min(cut + SAMPLE)];
        let away: Vec<f64> = others
            .iter()
            .map(|i| alike.distance(&rows.row(*i).collect::<Vec<f32>>()))
            .collect();
        alike.usual = quantile(&away, USUAL).max(1e-3);
        alike
    }

    fn distance(&self, row: &[f32]) -> f64 {
        let squared = |other: &Vec<f32>| row.iter().zip(other).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        f64::from(self.sample.iter().map(squared).fold(f32::INFINITY, f32::min)).sqrt()
    }

    /// How alike the rows are to what was learnt, from 0 to 1: the share that is no further away than three quarters of the
    /// training rows are, beside those three quarters; sharpened, so that what is half alike decides nothing and 0.9 nearly
    /// everything.
    pub fn share(&self, rows: &Matrix) -> f64 {
        let step = rows.rows().div_ceil(MOST_ASKED).max(1);
        let asked: Vec<usize> = (0..rows.rows()).step_by(step).collect();
        let near = asked
            .iter()
            .filter(|i| self.distance(&rows.row(**i).collect::<Vec<f32>>()) <= self.usual);
        let share = (near.count() as f64 / asked.len().max(1) as f64 / USUAL).min(1.0);
        let (for_it, against) = (share.powi(2), (1.0 - share).powi(2));
        for_it / (for_it + against)
    }
}
