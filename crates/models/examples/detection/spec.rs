//! A dataset as its TOML file describes it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Rows of columns, separated by a character.
    Tabular,
    /// A labelled connection log of Zeek.
    Conn,
    /// A list of domain names.
    Names,
}

/// What is asked of the models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Learn from benign rows alone, find the others.
    OneClass,
    /// Learn from labelled rows, find what is not benign, known or new.
    Detect,
    /// Learn from labelled rows, name the class.
    Classes,
    /// `detect`, from each scenario to each other.
    Pairs,
    /// Names: learn from all families but one, find that one among benign names that were held back.
    LeftOut,
}

/// What is left out at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Apart {
    /// All names of a label.
    #[default]
    Label,
    /// All names below a parent domain; benign names are parted by theirs.
    Parent,
}

/// A dataset.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Its name in the report.
    pub name: String,
    /// What its files hold.
    pub kind: Kind,
    /// What is asked.
    pub task: Task,
    /// Files to learn from.
    #[serde(default)]
    pub train: Vec<Source>,
    /// Files to be judged.
    #[serde(default)]
    pub test: Vec<Source>,
    /// Files of which each is trained on in turn.
    #[serde(default)]
    pub scenario: Vec<Source>,
    /// Share of the training rows that are the test, when there is no test file.
    pub split: Option<f64>,
    /// The first line names the columns.
    #[serde(default)]
    pub header: bool,
    /// What separates columns.
    #[serde(default = "comma")]
    pub separator: char,
    /// Names of the columns, when no header does. Without either they are `0`, `1`, …
    #[serde(default)]
    pub columns: Vec<String>,
    /// Columns of categories. A column with a value that is no number is one anyway.
    #[serde(default)]
    pub categorical: Vec<String>,
    /// Columns of numbers, when anything else in them is to be taken as missing.
    #[serde(default)]
    pub numeric: Vec<String>,
    /// Columns to leave out.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// The column of the label; the last one when it is not said.
    pub label: Option<String>,
    /// Labels that are benign, whatever their case and a dot at the end; `normal` and `benign` when none is said,
    /// and `background` in connection logs.
    #[serde(default)]
    pub normal: Vec<String>,
    /// Labels gathered into classes; without any, every label is one.
    #[serde(default)]
    pub class: Vec<Class>,
    /// For `left-out`: what is left out at once.
    #[serde(default)]
    pub apart: Apart,
    /// `costs[truth][decision]`, benign first, then the classes in their order.
    #[serde(default)]
    pub costs: Vec<Vec<f64>>,
    /// The column that the boxplot looks at; the first of numbers when it is not said.
    pub rate: Option<String>,
    /// Share of benign rows that the threshold from benign rows lets through.
    #[serde(default = "tenth")]
    pub expected_false_positives: f64,
    /// Most training rows; a sample by the seed when there are more.
    #[serde(default = "most_rows")]
    pub most_rows: usize,
    /// What is to be reached.
    #[serde(default)]
    pub goals: Vec<Goal>,
    /// The folder that files are relative to.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// A file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Where it is, relative to the spec; gzip when it ends in `.gz`.
    pub file: PathBuf,
    /// Its name in the report.
    pub name: Option<String>,
    /// The label of all its rows, when no column says it.
    pub label: Option<String>,
    /// For names: the column of the name, from 0.
    #[serde(default)]
    pub column: usize,
}

/// Labels that are one class.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Vec<String>,
}

/// A figure to be reached.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    /// The test it is for; all when it is not said.
    pub test: Option<String>,
    /// The figure.
    pub metric: String,
    /// It must be this or more.
    pub at_least: Option<f64>,
    /// It must be this or less.
    pub at_most: Option<f64>,
}

fn comma() -> char {
    ','
}

fn tenth() -> f64 {
    0.1
}

fn most_rows() -> usize {
    200_000
}

impl Source {
    /// Its name in the report.
    pub fn title(&self) -> String {
        let stem = || {
            self.file
                .file_name()
                .map_or(String::new(), |n| n.to_string_lossy().into_owned())
        };
        self.name.clone().unwrap_or_else(stem)
    }
}

impl Spec {
    /// Reads a spec; files in it are relative to `folder`.
    pub fn parse(text: &str, folder: &Path) -> Result<Self> {
        let mut spec: Self = toml::from_str(text)?;
        spec.folder = folder.to_owned();
        if spec.task == Task::Pairs {
            ensure!(
                spec.scenario.len() >= 2,
                "task \"pairs\" needs at least two [[scenario]]"
            );
        } else {
            ensure!(!spec.train.is_empty(), "at least one [[train]] is needed");
            if spec.test.is_empty() && spec.split.is_none() && spec.task != Task::LeftOut {
                bail!("either [[test]] or split is needed");
            }
        }
        ensure!(
            spec.task != Task::LeftOut || spec.kind == Kind::Names,
            "task \"left-out\" needs kind \"names\""
        );
        if let Some(split) = spec.split {
            ensure!(
                split > 0.0 && split < 1.0,
                "split is {split}; it must lie between 0 and 1"
            );
        }
        let classes = spec.class.len() + 1;
        let square = spec.costs.len() == classes && spec.costs.iter().all(|row| row.len() == classes);
        ensure!(
            spec.costs.is_empty() || (square && !spec.class.is_empty()),
            "costs must have {classes} rows of {classes} numbers: benign and each [[class]]"
        );
        ensure!(
            spec.expected_false_positives > 0.0 && spec.expected_false_positives < 1.0,
            "expected_false_positives must lie between 0 and 1"
        );
        Ok(spec)
    }

    /// Reads a file of a spec.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {} failed", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, folder).with_context(|| format!("{} is not a spec", path.display()))
    }

    /// A label is benign.
    pub fn is_normal(&self, label: &str) -> bool {
        let label = plain(label);
        let usual = matches!(label.as_str(), "normal" | "benign") || (self.kind == Kind::Conn && label == "background");
        // The reader of connection logs writes `benign` for whatever the spec calls so.
        if self.normal.is_empty() || (self.kind == Kind::Conn && label == "benign") {
            return usual;
        }
        self.normal.iter().any(|n| plain(n) == label)
    }
}

/// A label without case, spaces around it and a dot at its end.
pub fn plain(label: &str) -> String {
    label.trim().trim_end_matches('.').to_ascii_lowercase()
}
