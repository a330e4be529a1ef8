//! From a YAML tree to a typed document: every error found, each at its place.

mod field;
mod identity;
mod label;
mod policy;
mod rule;

use std::collections::BTreeMap;

pub use field::is_name;
pub(crate) use field::{Object, read_network};
pub(crate) use identity::read_time;
pub(crate) use label::selector as label_selector;

use crate::{
    Limits,
    diagnostic::{Code, Diagnostic, Level, Position},
    document::ZeroTrustPolicy,
    node::Node,
};

/// Where each field of a document is, by its path.
pub type Spans = BTreeMap<String, Position>;

/// Collects what is found while a document is read.
pub(crate) struct Findings<'l> {
    pub(crate) limits: &'l Limits,
    pub(crate) diagnostics: Vec<Diagnostic>,
    pub(crate) spans: Spans,
}

impl<'l> Findings<'l> {
    pub(crate) fn new(limits: &'l Limits) -> Self {
        Self {
            limits,
            diagnostics: Vec::new(),
            spans: Spans::new(),
        }
    }
}

impl Findings<'_> {
    /// The place of a field, or of the nearest thing around it that has one.
    pub(crate) fn place(&self, field: &str) -> Position {
        place(&self.spans, field)
    }

    pub(crate) fn error(
        &mut self,
        code: Code,
        field: &str,
        position: Position,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.report(Level::Error, code, field, position, message.into(), remedy.into());
    }

    /// An error at the place of a field.
    pub(crate) fn error_at(&mut self, code: Code, field: &str, message: impl Into<String>, remedy: impl Into<String>) {
        let position = self.place(field);
        self.error(code, field, position, message, remedy);
    }

    /// A warning at the place of a field.
    pub(crate) fn warn_at(&mut self, code: Code, field: &str, message: impl Into<String>, remedy: impl Into<String>) {
        let position = self.place(field);
        self.report(Level::Warning, code, field, position, message.into(), remedy.into());
    }

    fn report(&mut self, level: Level, code: Code, field: &str, position: Position, message: String, remedy: String) {
        use std::cmp::Ordering;
        match self.diagnostics.len().cmp(&self.limits.diagnostics) {
            Ordering::Less => self.diagnostics.push(Diagnostic {
                level,
                code,
                field: field.to_owned(),
                position,
                message,
                remedy,
            }),
            Ordering::Equal => self.diagnostics.push(Diagnostic {
                level,
                code: Code::Limit,
                field: String::new(),
                position,
                message: format!(
                    "there is more to say than {} findings; the rest is left out",
                    self.limits.diagnostics
                ),
                remedy: "Deal with these first and check again".to_owned(),
            }),
            Ordering::Greater => {
                // An error must never be lost behind warnings: the document would look right.
                if level == Level::Error
                    && let Some(last) = self.diagnostics.last_mut()
                {
                    last.level = Level::Error;
                }
            }
        }
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.level == Level::Error)
    }
}

/// The place of a field, or of the nearest thing around it that has one.
pub(crate) fn place(spans: &Spans, field: &str) -> Position {
    let mut path = field;
    loop {
        if let Some(position) = spans.get(path) {
            return *position;
        }
        match path.rfind(['.', '[']) {
            Some(cut) => path = &path[..cut],
            None => return spans.get("").copied().unwrap_or_default(),
        }
    }
}

/// Reads one document's tree. `None` when it has errors; they are in the findings.
pub(crate) fn decode(node: &Node, findings: &mut Findings<'_>) -> Option<ZeroTrustPolicy> {
    let policy = policy::policy(node, findings);
    if findings.has_errors() { None } else { policy }
}
