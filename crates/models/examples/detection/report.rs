//! Figures of several seeds, printed whole.

use std::fmt::Write as _;

use garrison_models::metrics::{Confusion, detection_at, pr_auc, roc_auc};

use crate::spec::Goal;

/// What one model did on one test with one seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The model.
    pub model: &'static str,
    /// Figures by name.
    pub figures: Vec<(&'static str, f64)>,
    /// Decisions at the threshold.
    pub confusion: Confusion,
}

/// Judges scores against the truth at a threshold that was set before.
pub fn outcome(model: &'static str, scores: &[f64], positive: &[bool], threshold: f64) -> Outcome {
    let confusion = Confusion::at(scores, positive, threshold);
    Outcome {
        model,
        figures: vec![
            ("roc_auc", roc_auc(scores, positive)),
            ("pr_auc", pr_auc(scores, positive)),
            ("accuracy", confusion.accuracy()),
            ("f1", confusion.f1()),
            ("found_at_0.1%", detection_at(scores, positive, 0.001)),
            ("found_at_1%", detection_at(scores, positive, 0.01)),
            ("false_positives", confusion.false_positive_rate()),
        ],
        confusion,
    }
}

/// Prints the figures of a test over all seeds: mean ± standard deviation. Returns whether every goal was met.
pub fn print(title: &str, outcomes: &[Outcome], goals: &[Goal], test: &str) -> bool {
    let mut text = format!("\n{title}\n\n| model |");
    let Some(first) = outcomes.first() else { return true };
    for (name, _) in &first.figures {
        let _ = write!(text, " {} |", name.replace('_', " "));
    }
    let _ = writeln!(text, " confusion (tp/fp/tn/fn, first seed) |");
    let _ = writeln!(text, "|---|{}", "---|".repeat(first.figures.len() + 1));
    let mut models: Vec<&str> = Vec::new();
    for outcome in outcomes {
        if !models.contains(&outcome.model) {
            models.push(outcome.model);
        }
    }
    for model in &models {
        let own: Vec<&Outcome> = outcomes.iter().filter(|o| o.model == *model).collect();
        let _ = write!(text, "| {model} |");
        for k in 0..own[0].figures.len() {
            let (mean, spread) = mean_spread(own.iter().map(|o| o.figures[k].1));
            let _ = write!(text, " {mean:.4} ± {spread:.4} |");
        }
        let c = own[0].confusion;
        let _ = writeln!(
            text,
            " {}/{}/{}/{} |",
            c.true_positives, c.false_positives, c.true_negatives, c.false_negatives
        );
    }
    println!("{text}");
    let ours = models.first().copied().unwrap_or_default();
    let mut met = true;
    for goal in goals.iter().filter(|g| g.test.as_deref().is_none_or(|t| t == test)) {
        let values = outcomes.iter().filter(|o| o.model == ours);
        let values: Vec<f64> = values
            .filter_map(|o| o.figures.iter().find(|(name, _)| *name == goal.metric).map(|f| f.1))
            .collect();
        if !values.is_empty() {
            let (mean, spread) = mean_spread(values.iter().copied());
            met &= print_goal(goal, mean, spread);
        }
    }
    met
}

/// Says whether a goal was met.
pub fn print_goal(goal: &Goal, mean: f64, spread: f64) -> bool {
    let enough = goal.at_least.is_none_or(|least| mean >= least);
    let little = goal.at_most.is_none_or(|most| mean <= most);
    let bound = match (goal.at_least, goal.at_most) {
        (Some(least), _) => format!("≥ {least}"),
        (None, Some(most)) => format!("≤ {most}"),
        (None, None) => "none".to_owned(),
    };
    let met = enough && little;
    let verdict = if met { "met" } else { "MISSED" };
    println!("goal {} {bound}: {mean:.4} ± {spread:.4}: {verdict}", goal.metric);
    met
}

/// Mean and standard deviation.
pub fn mean_spread(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let values: Vec<f64> = values.collect();
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let spread = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
    (mean, spread)
}
