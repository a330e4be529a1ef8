//! Numbers of many rows, laid out feature by feature, as matrix products and column-wise work want them.

/// Rows of `width` features: the value of feature `j` in row `i` is at `j * rows + i`.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    rows: usize,
    width: usize,
    values: Vec<f32>,
}

impl Matrix {
    /// All zeros.
    pub fn zeros(width: usize, rows: usize) -> Self {
        Self {
            rows,
            width,
            values: vec![0.0; width * rows],
        }
    }

    /// Takes values laid out feature by feature. `None` when they are not `width` times `rows`.
    pub fn from_features(width: usize, rows: usize, values: Vec<f32>) -> Option<Self> {
        (values.len() == width * rows).then_some(Self { rows, width, values })
    }

    /// Puts rows together; what a row has beyond `width` is left out, what it lacks is 0.
    pub fn from_rows<'a>(width: usize, rows: impl ExactSizeIterator<Item = &'a [f32]>) -> Self {
        let n = rows.len();
        let mut matrix = Self::zeros(width, n);
        for (i, row) in rows.enumerate() {
            for (j, v) in row.iter().take(width).enumerate() {
                matrix.values[j * n + i] = *v;
            }
        }
        matrix
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of features.
    pub fn width(&self) -> usize {
        self.width
    }

    /// One feature of every row.
    pub fn feature(&self, j: usize) -> &[f32] {
        &self.values[j * self.rows..(j + 1) * self.rows]
    }

    /// One feature of every row, to be changed in place.
    pub fn feature_mut(&mut self, j: usize) -> &mut [f32] {
        &mut self.values[j * self.rows..(j + 1) * self.rows]
    }

    /// Every feature of one row.
    pub fn row(&self, i: usize) -> impl Iterator<Item = f32> + '_ {
        (0..self.width).map(move |j| self.values[j * self.rows + i])
    }

    /// The rows of the given indices, in their order.
    pub fn select(&self, indices: &[usize]) -> Self {
        let mut values = Vec::with_capacity(indices.len() * self.width);
        for j in 0..self.width {
            let feature = self.feature(j);
            values.extend(indices.iter().map(|&i| feature[i]));
        }
        Self {
            rows: indices.len(),
            width: self.width,
            values,
        }
    }

    /// All values, feature by feature.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All values, to be changed in place.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// All values, feature by feature, taken.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_were_put_together() {
        let rows: Vec<Vec<f32>> = (0..3).map(|i| (0..5).map(|j| (i * 100 + j) as f32).collect()).collect();
        let matrix = Matrix::from_rows(5, rows.iter().map(Vec::as_slice));
        assert_eq!(matrix.row(1).collect::<Vec<_>>(), rows[1]);
        let picked = matrix.select(&[2, 0]);
        assert_eq!(picked.row(0).collect::<Vec<_>>(), rows[2]);
        assert_eq!((picked.rows(), picked.width()), (2, 5));
        assert_eq!(Matrix::from_features(2, 2, vec![0.0; 3]), None);
    }
}
