//! Extremely randomised trees (Geurts, Ernst and Wehenkel 2006) on labelled rows: of a few columns, each cut at random, the
//! cut that parts the classes best is taken. Beside a network they make the decision of a committee: they are sharp where a
//! column has a value that means one thing, which a network smooths over, and say little where nothing was learnt.

use crate::{Matrix, error::ModelError, rng::SplitMix64};

/// How the trees grow.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Trees.
    pub trees: usize,
    /// Share of the columns that are tried for each cut.
    pub tried: f64,
    /// Fewest rows of a leaf.
    pub leaf: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            trees: 60,
            tried: 0.25,
            leaf: 1,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Node {
    // Feature, where it is cut, and where the node for greater values is; that for smaller ones follows.
    Cut { feature: u32, at: f32, greater: u32 },
    // Where its shares begin.
    Leaf { shares: u32 },
}

#[derive(Clone, Debug, Default)]
struct Tree {
    nodes: Vec<Node>,
    // Shares of the classes, leaf by leaf.
    shares: Vec<f32>,
}

/// A committee of trees.
#[derive(Clone, Debug)]
pub struct Trees {
    trees: Vec<Tree>,
    width: usize,
    classes: usize,
}

struct Growing<'a> {
    rows: &'a Matrix,
    labels: &'a [usize],
    weights: &'a [f64],
    classes: usize,
    tried: usize,
    leaf: usize,
}

impl Trees {
    /// Grows trees on all rows. Empty `weights` are all alike. The same rows and seed give the same trees.
    ///
    /// # Errors
    /// [`ModelError::Unusable`] when labels or weights do not fit the rows.
    pub fn grow(
        rows: &Matrix,
        labels: &[usize],
        weights: &[f64],
        classes: usize,
        shape: &Shape,
        seed: u64,
    ) -> Result<Self, ModelError> {
        let n = rows.rows();
        let fits = n == labels.len() && n > 0 && (weights.is_empty() || weights.len() == n);
        if !fits || labels.iter().any(|l| *l >= classes) {
            return Err(ModelError::Unusable("labels or weights do not fit the rows".to_owned()));
        }
        let growing = Growing {
            rows,
            labels,
            weights,
            classes,
            tried: ((shape.tried * rows.width() as f64).ceil() as usize).clamp(1, rows.width().max(1)),
            leaf: shape.leaf.max(1),
        };
        let one = |k: usize| {
            let mut rng = SplitMix64::new(SplitMix64::new(seed ^ (k as u64 + 1).wrapping_mul(0x9E37_79B9)).next_u64());
            let mut tree = Tree::default();
            growing.node((0..n as u32).collect(), &mut rng, &mut tree);
            tree
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut trees = Vec::with_capacity(shape.trees);
        for first in (0..shape.trees.max(1)).step_by(threads) {
            let last = (first + threads).min(shape.trees.max(1));
            let grown: Vec<_> = std::thread::scope(|scope| {
                let started: Vec<_> = (first..last).map(|k| scope.spawn(move || one(k))).collect();
                started.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
            });
            for tree in grown {
                trees.push(tree.map_err(|_| ModelError::Diverged { loss: f32::NAN })?);
            }
        }
        Ok(Self {
            trees,
            width: rows.width(),
            classes,
        })
    }

    /// Probability of each class for every row: the mean of the shares in the leaves that it falls into.
    ///
    /// # Errors
    /// [`ModelError::Unusable`] when the rows are of another width.
    pub fn probabilities(&self, rows: &Matrix) -> Result<Vec<Vec<f64>>, ModelError> {
        if rows.width() != self.width {
            let problem = format!("rows have {} numbers instead of {}", rows.width(), self.width);
            return Err(ModelError::Unusable(problem));
        }
        let share = 1.0 / self.trees.len() as f64;
        Ok((0..rows.rows())
            .map(|i| {
                let mut p = vec![0.0; self.classes];
                for tree in &self.trees {
                    for (p, s) in p.iter_mut().zip(tree.leaf(rows, i, self.classes)) {
                        *p += f64::from(*s) * share;
                    }
                }
                p
            })
            .collect())
    }
}

impl Tree {
    fn leaf(&self, rows: &Matrix, row: usize, classes: usize) -> &[f32] {
        let mut at = 0;
        loop {
            match self.nodes[at] {
                Node::Cut {
                    feature,
                    at: cut,
                    greater,
                } => {
                    at = if rows.feature(feature as usize)[row] > cut {
                        greater as usize
                    } else {
                        at + 1
                    };
                }
                Node::Leaf { shares } => return &self.shares[shares as usize..shares as usize + classes],
            }
        }
    }
}

impl Growing<'_> {
    fn weight(&self, row: u32) -> f64 {
        self.weights.get(row as usize).copied().unwrap_or(1.0)
    }

    fn counts(&self, rows: &[u32]) -> Vec<f64> {
        let mut counts = vec![0.0; self.classes];
        rows.iter()
            .for_each(|i| counts[self.labels[*i as usize]] += self.weight(*i));
        counts
    }

    fn node(&self, rows: Vec<u32>, rng: &mut SplitMix64, tree: &mut Tree) {
        let counts = self.counts(&rows);
        let pure = counts.iter().filter(|c| **c > 0.0).count() < 2;
        let cut = if pure || rows.len() < 2 * self.leaf {
            None
        } else {
            self.cut(&rows, &counts, rng)
        };
        let Some((feature, at)) = cut else {
            let total: f64 = counts.iter().sum::<f64>().max(f64::MIN_POSITIVE);
            tree.nodes.push(Node::Leaf {
                shares: tree.shares.len() as u32,
            });
            tree.shares.extend(counts.iter().map(|c| (c / total) as f32));
            return;
        };
        let values = self.rows.feature(feature);
        let (greater, smaller): (Vec<u32>, Vec<u32>) = rows.into_iter().partition(|i| values[*i as usize] > at);
        let here = tree.nodes.len();
        tree.nodes.push(Node::Leaf { shares: 0 });
        self.node(smaller, rng, tree);
        let next = tree.nodes.len() as u32;
        self.node(greater, rng, tree);
        tree.nodes[here] = Node::Cut {
            feature: feature as u32,
            at,
            greater: next,
        };
    }

    // Of so many columns that differ among the rows, each cut at random, the one with the purest parts.
    fn cut(&self, rows: &[u32], counts: &[f64], rng: &mut SplitMix64) -> Option<(usize, f32)> {
        let mut columns: Vec<usize> = (0..self.rows.width()).collect();
        let (mut best, mut purest, mut tried) = (None, f64::NEG_INFINITY, 0);
        for k in 0..columns.len() {
            if tried == self.tried {
                break;
            }
            let other = k + rng.below((columns.len() - k) as u64) as usize;
            columns.swap(k, other);
            let values = self.rows.feature(columns[k]);
            let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
            for i in rows {
                let v = values[*i as usize];
                least = least.min(v);
                most = most.max(v);
            }
            if most <= least {
                continue;
            }
            tried += 1;
            let at = (least + (most - least) * rng.unit() as f32).clamp(least, most.next_down());
            let (mut above, mut n) = (vec![0.0; self.classes], 0_usize);
            for i in rows {
                if values[*i as usize] > at {
                    above[self.labels[*i as usize]] += self.weight(*i);
                    n += 1;
                }
            }
            if n.min(rows.len() - n) < self.leaf {
                continue;
            }
            let below: Vec<f64> = counts.iter().zip(&above).map(|(all, above)| all - above).collect();
            // Sum of squares over the weight: the greater, the less is mixed (Gini).
            let pure = |part: &[f64]| {
                let total: f64 = part.iter().sum();
                part.iter().map(|c| c * c).sum::<f64>() / total.max(f64::MIN_POSITIVE)
            };
            let purity = pure(&above) + pure(&below);
            if purity > purest {
                (best, purest) = (Some((columns[k], at)), purity);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corner_that_no_line_parts_is_learnt() {
        let mut rng = SplitMix64::new(5);
        let rows: Vec<[f32; 4]> = (0..800).map(|_| [0; 4].map(|_: u8| rng.unit() as f32)).collect();
        let label = |row: &[f32; 4]| usize::from((row[0] > 0.5) != (row[1] > 0.5));
        let labels: Vec<usize> = rows.iter().map(label).collect();
        let matrix = Matrix::from_rows(4, rows.iter().map(<[f32; 4]>::as_slice));
        let shape = Shape {
            trees: 20,
            tried: 1.0,
            leaf: 2,
        };
        let (fit, asked): (Vec<usize>, Vec<usize>) = (0..800).partition(|i| i % 4 != 0);
        let fit_labels: Vec<usize> = fit.iter().map(|i| labels[*i]).collect();
        let trees = Trees::grow(&matrix.select(&fit), &fit_labels, &[], 2, &shape, 1).unwrap();
        let p = trees.probabilities(&matrix.select(&asked)).unwrap();
        let right = p
            .iter()
            .zip(&asked)
            .filter(|(p, i)| usize::from(p[1] > 0.5) == labels[**i])
            .count();
        assert!(right > 180, "{right} of 200");
        assert!(p.iter().all(|p| (p.iter().sum::<f64>() - 1.0).abs() < 1e-5));
        let again = Trees::grow(&matrix.select(&fit), &fit_labels, &[], 2, &shape, 1).unwrap();
        assert_eq!(again.probabilities(&matrix.select(&asked)).unwrap(), p);
    }

    #[test]
    fn rows_that_are_alike_give_their_shares() {
        let matrix = Matrix::zeros(3, 4);
        let trees = Trees::grow(&matrix, &[0, 1, 1, 1], &[3.0, 1.0, 1.0, 1.0], 2, &Shape::default(), 1).unwrap();
        assert!((trees.probabilities(&matrix).unwrap()[0][0] - 0.5).abs() < 1e-6);
        assert!(trees.probabilities(&Matrix::zeros(2, 1)).is_err());
        assert!(Trees::grow(&matrix, &[0, 1], &[], 2, &Shape::default(), 1).is_err());
        assert!(Trees::grow(&matrix, &[0, 1, 2, 1], &[], 2, &Shape::default(), 1).is_err());
    }
}
