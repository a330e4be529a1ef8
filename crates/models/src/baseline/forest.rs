//! Isolation forest (Liu, Ting and Zhou, ICDM 2008), with the sizes of the paper.

use crate::{Matrix, rng::SplitMix64};

const TREES: usize = 100;
const SAMPLE: usize = 256;
const EULER: f64 = 0.577_215_664_901_532_9;

#[derive(Clone, Copy, Debug)]
enum Node {
    // Feature, where it is cut, and where the node for greater values is; that for smaller ones follows.
    Cut { feature: u32, at: f32, greater: u32 },
    // What the path is still expected to be long.
    Leaf { rest: f32 },
}

/// Trees that cut at random; what is cut off soon is unusual.
#[derive(Clone, Debug)]
pub struct IsolationForest {
    trees: Vec<Vec<Node>>,
    usual: f64,
}

impl IsolationForest {
    /// Grows trees on samples of the rows.
    pub fn fit(rows: &Matrix, seed: u64) -> Self {
        let mut rng = SplitMix64::new(seed);
        let sample = SAMPLE.min(rows.rows());
        let deepest = (sample.max(2) as f64).log2().ceil() as usize;
        let mut trees = Vec::with_capacity(TREES);
        for _ in 0..TREES {
            let mut taken: Vec<usize> = (0..rows.rows()).collect();
            for i in 0..sample {
                let j = i + rng.below((taken.len() - i) as u64) as usize;
                taken.swap(i, j);
            }
            taken.truncate(sample);
            let mut tree = Vec::new();
            grow(rows, taken, deepest, &mut rng, &mut tree);
            trees.push(tree);
        }
        Self {
            trees,
            usual: path(sample).max(f64::MIN_POSITIVE),
        }
    }

    /// A score of each row between 0 and 1; about 0.5 is usual.
    pub fn score(&self, rows: &Matrix) -> Vec<f64> {
        (0..rows.rows())
            .map(|i| {
                let lengths = self.trees.iter().map(|tree| length(tree, rows, i));
                let mean = lengths.sum::<f64>() / self.trees.len() as f64;
                (-mean / self.usual).exp2()
            })
            .collect()
    }
}

fn length(tree: &[Node], rows: &Matrix, row: usize) -> f64 {
    let (mut at, mut depth) = (0, 0.0);
    loop {
        match tree.get(at) {
            Some(Node::Cut {
                feature,
                at: cut,
                greater,
            }) => {
                let value = rows.feature(*feature as usize)[row];
                at = if value > *cut { *greater as usize } else { at + 1 };
                depth += 1.0;
            }
            Some(Node::Leaf { rest }) => return depth + f64::from(*rest),
            None => return depth,
        }
    }
}

// Mean length of an unsuccessful search in a binary search tree of so many.
fn path(n: usize) -> f64 {
    match n {
        0 | 1 => 0.0,
        2 => 1.0,
        n => {
            let n = n as f64;
            2.0 * ((n - 1.0).ln() + EULER) - 2.0 * (n - 1.0) / n
        }
    }
}

fn grow(rows: &Matrix, taken: Vec<usize>, depth: usize, rng: &mut SplitMix64, tree: &mut Vec<Node>) {
    let leaf = Node::Leaf {
        rest: path(taken.len()) as f32,
    };
    if depth == 0 || taken.len() < 2 {
        tree.push(leaf);
        return;
    }
    // A feature that differs among the rows taken; a few tries, as most may be constant.
    for _ in 0..2 * rows.width() {
        let feature = rng.below(rows.width() as u64) as usize;
        let values = rows.feature(feature);
        let (least, greatest) = taken
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &i| {
                (low.min(values[i]), high.max(values[i]))
            });
        if greatest > least {
            let cut = least + (greatest - least) * rng.unit() as f32;
            let (greater, smaller): (Vec<usize>, Vec<usize>) = taken.iter().partition(|i| values[**i] > cut);
            let here = tree.len();
            tree.push(leaf);
            grow(rows, smaller, depth - 1, rng, tree);
            let next = tree.len() as u32;
            grow(rows, greater, depth - 1, rng, tree);
            tree[here] = Node::Cut {
                feature: feature as u32,
                at: cut,
                greater: next,
            };
            return;
        }
    }
    tree.push(leaf);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_far_from_the_others_is_isolated_first() {
        let mut rng = SplitMix64::new(1);
        let mut rows: Vec<[f32; 3]> = (0..500)
            .map(|_| [rng.normal() as f32, rng.normal() as f32, 1.0])
            .collect();
        rows.push([9.0, -9.0, 1.0]);
        let matrix = Matrix::from_rows(3, rows.iter().map(<[f32; 3]>::as_slice));
        let scores = IsolationForest::fit(&matrix, 7).score(&matrix);
        let highest = scores[..500].iter().copied().fold(0.0, f64::max);
        assert!(
            scores[500] > highest && scores[500] > 0.7,
            "{} vs {highest}",
            scores[500]
        );
        assert_eq!(scores, IsolationForest::fit(&matrix, 7).score(&matrix));
    }

    #[test]
    fn rows_that_are_all_alike_have_one_score() {
        let matrix = Matrix::zeros(2, 50);
        let scores = IsolationForest::fit(&matrix, 1).score(&matrix);
        assert!(scores.iter().all(|s| *s == scores[0] && s.is_finite()));
        assert!(
            IsolationForest::fit(&Matrix::zeros(2, 0), 1)
                .score(&Matrix::zeros(2, 0))
                .is_empty()
        );
    }
}
