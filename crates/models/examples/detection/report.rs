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

impl Outcome {
    /// As it stands among models that name classes: what it says is of attacks alone.
    pub fn of_attacks(mut self) -> Self {
        for (name, _) in &mut self.figures {
            *name = match *name {
                "accuracy" => "attack_accuracy",
                "f1" => "attack_f1",
                other => other,
            };
        }
        self.figures.push(("attacks_found", self.confusion.recall()));
        self
    }

    /// The figure of a name.
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|(known, _)| *known == name).map(|f| f.1)
    }
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

/// Prints the figures of a test over all seeds: mean ± standard deviation, least to greatest where they differ. Returns
/// whether every goal was met by the first model.
pub fn print(title: &str, outcomes: &[Outcome], goals: &[Goal], test: &str) -> bool {
    let Some(first) = outcomes.first() else { return true };
    let names: Vec<&str> = first.figures.iter().map(|f| f.0).collect();
    let mut models: Vec<&str> = Vec::new();
    for outcome in outcomes {
        if !models.contains(&outcome.model) {
            models.push(outcome.model);
        }
    }
    let own = |model: &str| -> Vec<&Outcome> { outcomes.iter().filter(|o| o.model == model).collect() };
    let seeds = own(first.model).len();
    let mut text = format!("\n{title}; {seeds} seeds: mean ± standard deviation (least to greatest)\n\n| model |");
    for name in &names {
        let _ = write!(text, " {} |", name.replace('_', " "));
    }
    let _ = writeln!(text, " confusion: tp, fp, tn, fn (mean) |");
    let _ = writeln!(text, "|---|{}", "---|".repeat(names.len() + 1));
    for model in &models {
        let own = own(model);
        let _ = write!(text, "| {model} |");
        for name in &names {
            let values: Vec<f64> = own
                .iter()
                .filter_map(|o| o.figure(name))
                .filter(|v| !v.is_nan())
                .collect();
            let _ = write!(text, " {} |", spread_text(&values));
        }
        let mean = |count: fn(&Confusion) -> u64| mean_spread(own.iter().map(|o| count(&o.confusion) as f64)).0;
        let _ = writeln!(
            text,
            " {:.0}, {:.0}, {:.0}, {:.0} |",
            mean(|c| c.true_positives),
            mean(|c| c.false_positives),
            mean(|c| c.true_negatives),
            mean(|c| c.false_negatives)
        );
    }
    println!("{text}");
    let mut met = true;
    for goal in goals.iter().filter(|g| g.test.as_deref().is_none_or(|t| t == test)) {
        let values: Vec<f64> = own(models[0]).iter().filter_map(|o| o.figure(&goal.metric)).collect();
        if !values.is_empty() {
            let (mean, spread) = mean_spread(values.iter().copied());
            met &= print_goal(goal, mean, spread);
        }
    }
    met
}

fn spread_text(values: &[f64]) -> String {
    let (mean, spread) = mean_spread(values.iter().copied());
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.is_empty() {
        "–".to_owned()
    } else if greatest - least < 5e-5 {
        format!("{mean:.4}")
    } else {
        format!("{mean:.4} ± {spread:.4} ({least:.4} to {greatest:.4})")
    }
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
