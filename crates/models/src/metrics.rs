//! How right scores and decisions are, against known answers.

/// A point of decision: everything with a score of at least `threshold` is called positive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confusion {
    /// Positives called positive.
    pub true_positives: u64,
    /// Negatives called positive.
    pub false_positives: u64,
    /// Negatives called negative.
    pub true_negatives: u64,
    /// Positives called negative.
    pub false_negatives: u64,
}

impl Confusion {
    /// Counts the decisions `score > threshold`.
    pub fn at(scores: &[f64], positive: &[bool], threshold: f64) -> Self {
        let mut confusion = Self::default();
        for (score, positive) in scores.iter().zip(positive) {
            *match (*score > threshold, positive) {
                (true, true) => &mut confusion.true_positives,
                (true, false) => &mut confusion.false_positives,
                (false, false) => &mut confusion.true_negatives,
                (false, true) => &mut confusion.false_negatives,
            } += 1;
        }
        confusion
    }

    /// Share of right decisions.
    pub fn accuracy(&self) -> f64 {
        let right = self.true_positives + self.true_negatives;
        share(right, right + self.false_positives + self.false_negatives)
    }

    /// Share of positives among those called positive.
    pub fn precision(&self) -> f64 {
        share(self.true_positives, self.true_positives + self.false_positives)
    }

    /// Share of the positives that were found.
    pub fn recall(&self) -> f64 {
        share(self.true_positives, self.true_positives + self.false_negatives)
    }

    /// Share of the negatives called positive.
    pub fn false_positive_rate(&self) -> f64 {
        share(self.false_positives, self.false_positives + self.true_negatives)
    }

    /// Harmonic mean of precision and recall.
    pub fn f1(&self) -> f64 {
        let twice = 2 * self.true_positives;
        share(twice, twice + self.false_positives + self.false_negatives)
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Counts of each distinct score, highest first: (positives, negatives).
fn steps(scores: &[f64], positive: &[bool]) -> Vec<(f64, f64)> {
    let mut order: Vec<usize> = (0..scores.len().min(positive.len())).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let mut steps: Vec<(f64, f64)> = Vec::new();
    let mut last = None;
    for i in order {
        if last != Some(scores[i]) {
            steps.push((0.0, 0.0));
            last = Some(scores[i]);
        }
        if let Some(step) = steps.last_mut() {
            if positive[i] {
                step.0 += 1.0;
            } else {
                step.1 += 1.0;
            }
        }
    }
    steps
}

/// Area under the receiver operating characteristic; ties count half. Not a number when a class is missing.
pub fn roc_auc(scores: &[f64], positive: &[bool]) -> f64 {
    let (mut area, mut found, mut negatives) = (0.0, 0.0, 0.0);
    for (p, n) in steps(scores, positive) {
        area += n * (found + 0.5 * p);
        found += p;
        negatives += n;
    }
    area / (found * negatives)
}

/// Area under precision over recall, as average precision. Not a number without a positive.
pub fn pr_auc(scores: &[f64], positive: &[bool]) -> f64 {
    let (mut area, mut found, mut called) = (0.0, 0.0, 0.0);
    for (p, n) in steps(scores, positive) {
        called += p + n;
        found += p;
        area += p * found / called;
    }
    area / found
}

/// Share of the positives found when at most `rate` of the negatives are called positive.
pub fn detection_at(scores: &[f64], positive: &[bool], rate: f64) -> f64 {
    let negatives = positive.iter().filter(|p| !**p).count() as f64;
    let positives = positive.iter().filter(|p| **p).count() as f64;
    let (mut found, mut wrong) = (0.0, 0.0);
    for (p, n) in steps(scores, positive) {
        if wrong + n > rate * negatives {
            break;
        }
        wrong += n;
        found += p;
    }
    found / positives
}

/// The value that `share` of the values lie below, between two of them by their distance.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = share.clamp(0.0, 1.0) * last as f64;
    let low = at.floor() as usize;
    let high = (low + 1).min(last);
    sorted[low] + (at - low as f64) * (sorted[high] - sorted[low])
}

/// Counts of decisions among several classes: `counts[truth][decision]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassConfusion {
    /// Rows are the truth, columns the decision.
    pub counts: Vec<Vec<u64>>,
}

impl ClassConfusion {
    /// No decision yet among so many classes.
    pub fn new(classes: usize) -> Self {
        Self {
            counts: vec![vec![0; classes]; classes],
        }
    }

    /// Counts a decision.
    pub fn add(&mut self, truth: usize, decision: usize) {
        self.counts[truth][decision] += 1;
    }

    /// Decisions counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// Share of right decisions.
    pub fn accuracy(&self) -> f64 {
        share((0..self.counts.len()).map(|c| self.counts[c][c]).sum(), self.total())
    }

    /// F1 of one class against the others.
    pub fn f1(&self, class: usize) -> f64 {
        let right = 2 * self.counts[class][class];
        let truth: u64 = self.counts[class].iter().sum();
        let called: u64 = self.counts.iter().map(|row| row[class]).sum();
        share(right, truth + called)
    }

    /// Mean F1 over the classes that occur.
    pub fn macro_f1(&self) -> f64 {
        let present: Vec<usize> = (0..self.counts.len())
            .filter(|c| self.counts[*c].iter().any(|n| *n > 0))
            .collect();
        present.iter().map(|c| self.f1(*c)).sum::<f64>() / present.len().max(1) as f64
    }

    /// Mean cost of a decision, where `costs[truth][decision]` is what each costs.
    pub fn cost(&self, costs: &[Vec<f64>]) -> f64 {
        let pairs = self.counts.iter().flatten().zip(costs.iter().flatten());
        pairs.map(|(n, cost)| *n as f64 * cost).sum::<f64>() / self.total().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_those_of_a_worked_example() {
        let scores = [0.9, 0.8, 0.7, 0.6, 0.5];
        let positive = [true, false, true, false, false];
        // Of six pairs five are in order.
        assert!((roc_auc(&scores, &positive) - 5.0 / 6.0).abs() < 1e-12);
        assert!((pr_auc(&scores, &positive) - (1.0 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
        assert_eq!(roc_auc(&[1.0; 4], &[true, false, true, false]), 0.5);
        assert_eq!(detection_at(&scores, &positive, 0.0), 0.5);
        assert_eq!(detection_at(&scores, &positive, 0.34), 1.0);
        assert!(roc_auc(&scores, &[true; 5]).is_nan());
    }

    #[test]
    fn decisions_are_counted_at_a_threshold() {
        let confusion = Confusion::at(&[0.9, 0.8, 0.2, 0.1], &[true, false, true, false], 0.5);
        assert_eq!((confusion.accuracy(), confusion.f1()), (0.5, 0.5));
        assert_eq!((confusion.recall(), confusion.precision()), (0.5, 0.5));
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.75), 2.5);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn the_winner_of_1999_has_the_figures_that_were_published() {
        // Elkan, Results of the KDD'99 Classifier Learning Contest: rows are normal, probe, DoS, U2R, R2L.
        let counts = [
            [60_262, 243, 78, 4, 6],
            [511, 3_471, 184, 0, 0],
            [5_299, 1_328, 223_226, 0, 0],
            [168, 20, 0, 30, 10],
            [14_527, 294, 0, 8, 1_360],
        ];
        let confusion = ClassConfusion {
            counts: counts.iter().map(|row| row.to_vec()).collect(),
        };
        let costs = [
            [0.0, 1.0, 2.0, 2.0, 2.0],
            [1.0, 0.0, 2.0, 2.0, 2.0],
            [2.0, 1.0, 0.0, 2.0, 2.0],
            [3.0, 2.0, 2.0, 0.0, 2.0],
            [4.0, 2.0, 2.0, 2.0, 0.0],
        ];
        let costs: Vec<Vec<f64>> = costs.iter().map(|row| row.to_vec()).collect();
        assert!((confusion.cost(&costs) - 0.2331).abs() < 5e-5);
        assert!((confusion.macro_f1() - 0.588).abs() < 1e-3, "{}", confusion.macro_f1());
    }
}
