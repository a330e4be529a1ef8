//! ZeroTrustPolicy: who may talk to whom.
//!
//! A document ([`document`]) is read from YAML under bounds with every error at its place ([`check`]), lowered
//! to one representation with an exact meaning ([`ir`]), and from there judged against connections
//! ([`Engine`]) or compiled for enforcement points ([`compile`]).
//!
//! What clusters run today, of whatever origin, is read by [`cluster`] and analysed by [`reach`].
//!
//! The crate does no input or output and knows no clock.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cluster;
pub mod compile;
mod decode;
mod diagnostic;
pub mod document;
mod engine;
mod format;
pub mod ir;
pub mod istio;
mod limits;
mod lint;
mod node;
pub mod reach;
pub mod recommend;
pub mod security_group;
pub mod sets;
pub mod version;
pub mod what_if;

pub use decode::{Spans, is_name};
pub use diagnostic::{Code, Diagnostic, Level, Position};
pub use document::{ZeroTrustPolicy, json_schema};
pub use engine::{Decision, Engine, Entry, Explanation, Judgement, Side, TooComplex, Verdict};
pub use format::{format, format_with};
pub use ir::Policy;
pub use limits::Limits;
pub use lint::{Overlap, Overlaps, overlaps};
pub use version::Version;

/// What a file says, and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// The documents without errors, in the order of the file.
    pub documents: Vec<Document>,
    /// What was found, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
}

/// One document without errors.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its text alone, from the file.
    pub text: String,
    /// What it says.
    pub policy: ZeroTrustPolicy,
    /// Where in the file each field is.
    pub spans: Spans,
    /// The version of the API that it is written in.
    pub version: Version,
}

impl Document {
    /// The document's meaning. `version` is the stored version, or 0.
    pub fn lower(&self, version: u64) -> Policy {
        ir::lower(&self.policy, version)
    }
}

impl Checked {
    /// Whether the file has no error. Warnings do not count.
    pub fn is_valid(&self) -> bool {
        self.diagnostics.iter().all(|d| d.level != Level::Error)
    }

    /// The errors alone.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(|d| d.level == Level::Error)
    }
}

/// Checks a file of one or more documents under the default [`Limits`].
pub fn check(text: &str) -> Checked {
    check_with(text, &Limits::default())
}

/// Checks a file of one or more documents.
pub fn check_with(text: &str, limits: &Limits) -> Checked {
    let mut checked = Checked::default();
    let whole = |code, message: String, remedy: &str| Diagnostic {
        level: Level::Error,
        code,
        field: String::new(),
        position: Position::default(),
        message,
        remedy: remedy.to_owned(),
    };
    if text.len() > limits.bytes {
        checked.diagnostics.push(whole(
            Code::Limit,
            format!(
                "the file has {} bytes where at most {} are taken",
                text.len(),
                limits.bytes
            ),
            "Split it into several files",
        ));
        return checked;
    }
    let sources = node::split(text);
    if sources.is_empty() {
        checked.diagnostics.push(whole(
            Code::MissingField,
            "the file has no document".to_owned(),
            "Write a ZeroTrustPolicy document",
        ));
    }
    if sources.len() > limits.documents {
        checked.diagnostics.push(whole(
            Code::Limit,
            format!(
                "the file has {} documents where at most {} are taken",
                sources.len(),
                limits.documents
            ),
            "Split it into several files",
        ));
        return checked;
    }
    let mut names = std::collections::BTreeMap::new();
    for source in sources {
        let mut findings = decode::Findings::new(limits);
        let (policy, version) = judge(node::parse(source, limits), &mut names, &mut findings);
        if let Some(policy) = policy {
            checked.documents.push(Document {
                text: source.text.to_owned(),
                policy,
                spans: std::mem::take(&mut findings.spans),
                version,
            });
        }
        findings.diagnostics.sort_by_key(|d| (d.position, d.level));
        checked.diagnostics.append(&mut findings.diagnostics);
    }
    checked
}

/// Checks one object that was read as JSON, under the default [`Limits`]: what [`check`] says of its text, without the
/// places and without reading it again. The policy is there when it has no errors.
pub fn check_object(object: &serde_json::Value) -> (Option<ZeroTrustPolicy>, Vec<Diagnostic>) {
    let limits = Limits::default();
    let mut findings = decode::Findings::new(&limits);
    let node = node::from_json(object, &limits);
    let (policy, _) = judge(node, &mut std::collections::BTreeMap::new(), &mut findings);
    findings.diagnostics.sort_by_key(|d| d.level);
    (policy, findings.diagnostics)
}

/// What a document says when it has no errors, and in which version. `names` are the lines of the policies before it.
fn judge(
    parsed: Result<node::Node, Diagnostic>,
    names: &mut std::collections::BTreeMap<String, u32>,
    findings: &mut decode::Findings<'_>,
) -> (Option<ZeroTrustPolicy>, Version) {
    let mut version = Version::default();
    let mut read = 0;
    let policy = match parsed {
        Ok(parsed) => {
            let node;
            (node, version) = version::to_hub(parsed, findings);
            read = findings.diagnostics.len();
            decode::decode(&node, findings)
        }
        Err(diagnostic) => {
            findings.diagnostics.push(diagnostic);
            None
        }
    };
    if let Some(policy) = &policy {
        let place = findings.place("metadata.name");
        if let Some(line) = names.insert(policy.metadata.full_name(), place.line) {
            findings.error_at(
                Code::Duplicate,
                "metadata.name",
                format!(
                    "two documents are called {:?}; the first is at line {line}",
                    policy.metadata.full_name()
                ),
                "Give each policy its own name",
            );
        }
        let lowered = ir::lower(policy, 0);
        lint::lint(policy, &lowered, findings);
        if let Err(error) = Engine::build(std::slice::from_ref(&lowered)) {
            findings.error_at(
                Code::TooComplex,
                "spec",
                error.to_string(),
                "Merge rules that differ only in a peer or port, or split the policy by subject",
            );
        }
    }
    version::as_written(version, read, findings);
    (policy.filter(|_| !findings.has_errors()), version)
}
