//! A uniform sample of a stream in bounded memory (algorithm R: Vitter 1985).

use super::rng::SplitMix64;

/// Keeps `capacity` rows, each equally likely to be any of those offered.
#[derive(Clone, Debug, PartialEq)]
pub struct Reservoir {
    width: usize,
    capacity: usize,
    rows: Vec<f32>,
    offered: u64,
    rng: SplitMix64,
}

impl Reservoir {
    /// Starts empty. `width` is the length of a row.
    pub fn new(width: usize, capacity: usize, seed: u64) -> Self {
        Self {
            width: width.max(1),
            capacity: capacity.max(1),
            rows: Vec::new(),
            offered: 0,
            rng: SplitMix64::new(seed),
        }
    }

    /// Puts a reservoir together again; rows beyond whole ones or beyond the capacity are left out.
    pub fn restore(width: usize, capacity: usize, mut rows: Vec<f32>, offered: u64, rng: u64) -> Self {
        let width = width.max(1);
        let whole = rows.len() / width * width;
        rows.truncate(whole.min(capacity.max(1) * width));
        Self {
            width,
            capacity: capacity.max(1),
            rows,
            offered,
            rng: SplitMix64::new(rng),
        }
    }

    /// Offers a row of the right width.
    pub fn offer(&mut self, row: impl Iterator<Item = f32>) {
        self.place(row);
    }

    /// Offers a row of the right width, and says which place it got, if any.
    pub fn place(&mut self, row: impl Iterator<Item = f32>) -> Option<usize> {
        self.offered += 1;
        if self.len() < self.capacity {
            self.rows.extend(row.take(self.width));
            return Some(self.len() - 1);
        }
        let at = self.rng.below(self.offered) as usize;
        if at >= self.capacity {
            return None;
        }
        let slot = &mut self.rows[at * self.width..(at + 1) * self.width];
        for (kept, v) in slot.iter_mut().zip(row) {
            *kept = v;
        }
        Some(at)
    }

    /// Rows kept.
    pub fn len(&self) -> usize {
        self.rows.len() / self.width
    }

    /// No row is kept.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Rows offered so far.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// The rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.rows.chunks_exact(self.width)
    }

    /// All values, row after row, and where the sequence of chance stands.
    pub fn state(&self) -> (&[f32], u64) {
        (&self.rows, self.rng.state())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_equally_likely_to_stay() {
        let (mut early, mut late) = (0, 0);
        for seed in 0..200 {
            let mut r = Reservoir::new(1, 10, seed);
            for i in 0..1_000 {
                r.offer(std::iter::once(i as f32));
            }
            assert_eq!((r.len(), r.offered()), (10, 1_000));
            early += r.rows().filter(|v| v[0] < 500.0).count();
            late += r.rows().filter(|v| v[0] >= 500.0).count();
        }
        let share = early as f64 / (early + late) as f64;
        assert!((share - 0.5).abs() < 0.05, "{share}");
    }

    #[test]
    fn restored_it_goes_on_with_the_same_choices() {
        let mut whole = Reservoir::new(2, 5, 1);
        let row = |i: u32| [i as f32, -(i as f32)].into_iter();
        (0..20).for_each(|i| whole.offer(row(i)));
        let (rows, rng) = whole.state();
        let mut again = Reservoir::restore(2, 5, rows.to_vec(), whole.offered(), rng);
        (20..60).for_each(|i| {
            whole.offer(row(i));
            again.offer(row(i));
        });
        assert_eq!(whole, again);
    }
}
