//! A report as OSCAL 1.1.2 assessment results (NIST), JSON.
//!
//! Every log entry that a finding rests on is a back-matter resource with its body and its inclusion proof embedded,
//! so the document can be checked offline against the checkpoint, which is embedded too.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::{DateTime, SecondsFormat, Utc};
use garrison_proof::{Hash, merkle};
use serde_json::{Value, json};
use uuid::Uuid;

use super::assessment::{Fact, Finding, Outcome, Status};

/// The version of the format.
pub const OSCAL_VERSION: &str = "1.1.2";
/// Namespace of this project's properties.
const NAMESPACE: &str = "https://garrison.dev/ns/oscal";

/// A log entry with its proof.
#[derive(Debug, Clone)]
pub struct Proven {
    /// Position in the log.
    pub index: u64,
    /// The bytes that are hashed.
    pub body: Vec<u8>,
    /// The inclusion proof at the report's checkpoint.
    pub proof: Vec<Hash>,
}

/// Everything a report is made of.
#[derive(Debug)]
pub struct Input<'a> {
    /// The report's id, from which all ids in the document are derived.
    pub report: Uuid,
    /// Whose log.
    pub tenant: &'a str,
    /// Start of the period.
    pub since: DateTime<Utc>,
    /// End of the period, exclusive.
    pub until: DateTime<Utc>,
    /// When the report was made.
    pub created: DateTime<Utc>,
    /// The verdicts.
    pub outcome: &'a Outcome,
    /// The quoted entries with proofs, by index.
    pub proven: &'a std::collections::BTreeMap<u64, Proven>,
    /// The signed checkpoint.
    pub checkpoint: &'a str,
    /// Entries that the checkpoint covers.
    pub tree_size: u64,
    /// The key that signed it.
    pub verifier_key: &'a str,
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

impl Input<'_> {
    /// OSCAL takes UUIDs of versions 4 and 5 only.
    fn id(&self, label: &str) -> String {
        Uuid::new_v5(&self.report, label.as_bytes()).to_string()
    }

    /// The document.
    pub fn document(&self) -> Value {
        let controls: Vec<Value> = super::controls::CONTROLS
            .iter()
            .map(|control| json!({"control-id": control.id.to_lowercase()}))
            .collect();
        json!({"assessment-results": {
            "uuid": self.id("document"),
            "metadata": {
                "title": format!("SOC 2 CC7.2 to CC7.5: what the audit log of {} shows", self.tenant),
                "last-modified": time(self.created),
                "version": "1",
                "oscal-version": OSCAL_VERSION,
                "roles": [{"id": "assessor", "title": "Assessor"}],
                "parties": [{"uuid": self.id("party"), "type": "organization", "name": "Garrison compliance service"}],
                "responsible-parties": [{"role-id": "assessor", "party-uuids": [self.id("party")]}],
            },
            "import-ap": {"href": format!("#{}", self.id("plan"))},
            "results": [{
                "uuid": self.id("result"),
                "title": "Automated examination of the transparency log",
                "description": format!(
                    "{} log entries of the period were examined ({} of them refusals), in a log of {} entries that one signed checkpoint covers.",
                    self.outcome.entries, self.outcome.denied, self.tree_size
                ),
                "start": time(self.since),
                "end": time(self.until),
                "props": [
                    prop("log-tree-size", &self.tree_size.to_string()),
                    prop("log-entries-examined", &self.outcome.entries.to_string()),
                ],
                "reviewed-controls": {"control-selections": [{"include-controls": controls}]},
                "observations": self.outcome.findings.iter().map(|f| self.observation(f)).collect::<Vec<_>>(),
                "findings": self.outcome.findings.iter().map(|f| self.finding(f)).collect::<Vec<_>>(),
            }],
            "back-matter": {"resources": self.resources()},
        }})
    }

    fn observation(&self, finding: &Finding) -> Value {
        let quoted: Vec<&Fact> = finding.evidence.iter().chain(&finding.contradictions).collect();
        let mut observation = json!({
            "uuid": self.id(&format!("observation {}", finding.objective.id)),
            "title": format!("Log entries about {}", finding.objective.id),
            "description": format!(
                "{} entries match, {} are quoted. {}",
                finding.evidence_total + finding.contradictions_total, quoted.len(), finding.reason
            ),
            "methods": ["EXAMINE"],
            "collected": time(self.created),
        });
        // An empty array is not valid OSCAL.
        if !quoted.is_empty() {
            observation["relevant-evidence"] = quoted.iter().map(|fact| self.evidence(fact)).collect();
        }
        observation
    }

    fn evidence(&self, fact: &Fact) -> Value {
        let mut props = vec![prop("log-index", &fact.index.to_string())];
        // What is too much to embed is still in the log that the checkpoint covers.
        let mut resource = "checkpoint".to_owned();
        if let Some(proven) = self.proven.get(&fact.index) {
            resource = format!("entry {}", fact.index);
            props.push(prop("log-leaf-hash", &hex::encode(merkle::leaf_hash(&proven.body))));
        }
        json!({
            "href": format!("#{}", self.id(&resource)),
            "description": format!(
                "Log entry {}: at {} {} did {}{}{}",
                fact.index, time(fact.occurred), fact.actor, fact.action,
                if fact.resource.is_empty() { "" } else { " on " }, fact.resource
            ),
            "props": props,
        })
    }

    fn finding(&self, finding: &Finding) -> Value {
        let (state, reason) = match finding.status {
            Status::Satisfied => ("satisfied", "pass"),
            Status::NotSatisfied => ("not-satisfied", "fail"),
            Status::NoEvidence => ("not-satisfied", "other"),
        };
        json!({
            "uuid": self.id(&format!("finding {}", finding.objective.id)),
            "title": format!("{}: {}", finding.control.id, finding.control.title),
            "description": format!("{}. {}", finding.objective.statement, finding.reason),
            "target": {
                "type": "objective-id",
                "target-id": finding.objective.id,
                "description": finding.objective.statement,
                "status": {"state": state, "reason": reason, "remarks": finding.reason},
            },
            "related-observations": [
                {"observation-uuid": self.id(&format!("observation {}", finding.objective.id))},
            ],
        })
    }

    fn resources(&self) -> Vec<Value> {
        let mut resources = vec![
            json!({
                "uuid": self.id("plan"),
                "title": "Assessment plan",
                "description": "Every entry of the tenant's transparency log whose time lies in the period is read in log order and matched by its action against the objectives of CC7.2 to CC7.5 as this project words them. An objective without a matching entry is reported as without evidence.",
            }),
            json!({
                "uuid": self.id("checkpoint"),
                "title": "Signed checkpoint of the transparency log",
                "description": "C2SP tlog-checkpoint. Every quoted entry has an inclusion proof against it.",
                "props": [prop("log-verifier-key", self.verifier_key), prop("log-tree-size", &self.tree_size.to_string())],
                "base64": embedded("checkpoint.txt", "text/plain", self.checkpoint.as_bytes()),
            }),
        ];
        resources.extend(self.proven.values().map(|entry| {
            let proof = json!({
                "index": entry.index,
                "tree_size": self.tree_size,
                "leaf_hash": hex::encode(merkle::leaf_hash(&entry.body)),
                "body": String::from_utf8_lossy(&entry.body),
                "inclusion_proof": entry.proof.iter().map(hex::encode).collect::<Vec<_>>(),
            });
            let name = format!("entry-{}.json", entry.index);
            json!({
                "uuid": self.id(&format!("entry {}", entry.index)),
                "title": format!("Log entry {}", entry.index),
                "description": "The entry's body and its inclusion proof (RFC 9162).",
                "props": [prop("log-index", &entry.index.to_string())],
                "base64": embedded(&name, "application/json", proof.to_string().as_bytes()),
            })
        }));
        resources
    }
}

fn prop(name: &str, value: &str) -> Value {
    json!({"name": name, "ns": NAMESPACE, "value": value})
}

fn embedded(filename: &str, media_type: &str, content: &[u8]) -> Value {
    json!({"filename": filename, "media-type": media_type, "value": STANDARD.encode(content)})
}
