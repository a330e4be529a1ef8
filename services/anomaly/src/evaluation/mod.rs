//! How right the behaviours are, on public data with known answers and on simulated networks. Nothing here runs in the
//! service; `cargo xtask eval anomaly` and the tests call it.

pub mod beacon;
pub mod budget;
pub mod dns;
pub mod networks;
pub mod threats;
pub mod zeek;

use std::{fmt, path::PathBuf};

/// An evaluation could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// A file could not be read.
    #[error("reading {path} failed")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {problem}")]
    Format {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// What came out.
    pub value: f64,
    /// What was aimed at; `None` for a figure that only informs.
    pub goal: Option<Goal>,
}

/// What a figure is to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Goal {
    /// The value is as it should be.
    pub fn met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

/// What an evaluation gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// What was evaluated.
    pub title: String,
    /// The figures.
    pub figures: Vec<Figure>,
    /// What has to be known to read them.
    pub notes: Vec<String>,
}

impl Report {
    /// Starts a report.
    pub fn new(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            ..Self::default()
        }
    }

    /// Adds a figure with a goal.
    pub fn goal(&mut self, what: impl Into<String>, value: f64, goal: Goal) {
        self.figures.push(Figure {
            what: what.into(),
            value,
            goal: Some(goal),
        });
    }

    /// Adds a figure that only informs.
    pub fn figure(&mut self, what: impl Into<String>, value: f64) {
        self.figures.push(Figure {
            what: what.into(),
            value,
            goal: None,
        });
    }

    /// Every goal is met.
    pub fn met(&self) -> bool {
        self.figures.iter().all(|f| f.goal.is_none_or(|goal| goal.met(f.value)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        for figure in &self.figures {
            write!(f, "  {:<72} {:>10.4}", figure.what, figure.value)?;
            match figure.goal {
                Some(goal) => {
                    let (sign, bound) = match goal {
                        Goal::AtLeast(bound) => ("≥", bound),
                        Goal::AtMost(bound) => ("≤", bound),
                    };
                    let verdict = if goal.met(figure.value) { "met" } else { "MISSED" };
                    writeln!(f, "  goal {sign} {bound}: {verdict}")?;
                }
                None => writeln!(f)?,
            }
        }
        for note in &self.notes {
            writeln!(f, "  {note}")?;
        }
        Ok(())
    }
}
