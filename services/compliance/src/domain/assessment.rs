//! Judges log entries against the controls. Says "no evidence" where there is none.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::controls::{CONTROLS, Control, Objective, Pattern, Test};

/// What a report needs to know about one log entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Position in the log.
    pub index: u64,
    /// When it happened.
    pub occurred: DateTime<Utc>,
    /// Who did it.
    pub actor: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub resource: String,
    /// Whether it was refused.
    pub denied: bool,
}

/// The parts of an entry's body that [`Fact`] is made of.
#[derive(Debug, Deserialize)]
struct Body {
    #[serde(default)]
    actor: Actor,
    #[serde(default)]
    action: String,
    #[serde(default)]
    resource: String,
    #[serde(default)]
    decision: String,
}

#[derive(Debug, Default, Deserialize)]
struct Actor {
    #[serde(default)]
    name: String,
}

impl Fact {
    /// Reads an entry's body. `None` when it is no audit record.
    pub fn read(index: u64, occurred: DateTime<Utc>, body: &[u8]) -> Option<Self> {
        let body: Body = serde_json::from_slice(body).ok()?;
        Some(Self {
            index,
            occurred,
            actor: body.actor.name,
            action: body.action,
            resource: body.resource,
            denied: body.decision == "DECISION_DENY",
        })
    }
}

/// Whether an objective is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Evidence supports it and none contradicts it.
    Satisfied,
    /// Evidence contradicts it.
    NotSatisfied,
    /// The log has nothing about it.
    NoEvidence,
}

impl Status {
    /// For people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Satisfied => "satisfied",
            Self::NotSatisfied => "not satisfied",
            Self::NoEvidence => "no evidence",
        }
    }
}

/// What was found for one objective.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The control that it belongs to.
    pub control: &'static Control,
    /// The objective.
    pub objective: &'static Objective,
    /// The verdict.
    pub status: Status,
    /// The verdict in words.
    pub reason: String,
    /// Entries that speak for it, the first of them.
    pub evidence: Vec<Fact>,
    /// How many entries speak for it.
    pub evidence_total: u64,
    /// Entries that opened a matter which nothing settled.
    pub contradictions: Vec<Fact>,
    /// How many such entries there are.
    pub contradictions_total: u64,
}

/// Open matters are remembered up to this many for each objective; beyond it the objective cannot be satisfied.
const MAX_OPEN: usize = 100_000;

struct Progress {
    finding: Finding,
    open: BTreeMap<String, Fact>,
    overflow: bool,
}

impl Progress {
    fn observe(&mut self, fact: &Fact, keep: usize) {
        let matches = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(&fact.action));
        let objective = self.finding.objective;
        if !fact.denied && matches(objective.evidence) {
            self.finding.evidence_total += 1;
            if self.finding.evidence.len() < keep {
                self.finding.evidence.push(fact.clone());
            }
        }
        let Test::Concluded { opens, settles, .. } = objective.test else {
            return;
        };
        if !fact.denied && matches(opens) {
            if self.open.len() < MAX_OPEN {
                self.open.insert(fact.resource.clone(), fact.clone());
            } else {
                self.overflow = true;
            }
        } else if matches(settles) {
            self.open.remove(&fact.resource);
        }
    }
}

/// Takes entries one by one, in log order.
pub struct Assessment {
    progress: Vec<Progress>,
    keep: usize,
    entries: u64,
    denied: u64,
}

impl Assessment {
    /// Begins; at most `keep` entries are quoted for each objective.
    pub fn new(keep: usize) -> Self {
        let progress = CONTROLS
            .iter()
            .flat_map(|control| control.objectives.iter().map(move |objective| (control, objective)))
            .map(|(control, objective)| Progress {
                finding: Finding {
                    control,
                    objective,
                    status: Status::NoEvidence,
                    reason: String::new(),
                    evidence: Vec::new(),
                    evidence_total: 0,
                    contradictions: Vec::new(),
                    contradictions_total: 0,
                },
                open: BTreeMap::new(),
                overflow: false,
            })
            .collect();
        Self {
            progress,
            keep,
            entries: 0,
            denied: 0,
        }
    }

    /// Looks at one entry. What was refused is counted and is evidence of nothing that was done, but it may settle
    /// a matter: a response that a limit refuses waits for nobody any more.
    pub fn observe(&mut self, fact: &Fact) {
        self.entries += 1;
        self.denied += u64::from(fact.denied);
        for progress in &mut self.progress {
            progress.observe(fact, self.keep);
        }
    }

    /// The verdicts, in the order of the controls.
    pub fn finish(self) -> Outcome {
        let keep = self.keep;
        let findings = self
            .progress
            .into_iter()
            .map(|progress| conclude(progress, keep))
            .collect();
        Outcome {
            findings,
            entries: self.entries,
            denied: self.denied,
        }
    }
}

fn conclude(progress: Progress, keep: usize) -> Finding {
    let mut finding = progress.finding;
    finding.contradictions_total = progress.open.len() as u64;
    let mut open: Vec<Fact> = progress.open.into_values().collect();
    open.sort_by_key(|fact| fact.index);
    open.truncate(keep);
    finding.contradictions = open;
    let matter = match finding.objective.test {
        Test::Concluded { open_matter, .. } => open_matter,
        Test::Exists => "open matter",
    };
    (finding.status, finding.reason) = if progress.overflow {
        (
            Status::NotSatisfied,
            format!(
                "More than {MAX_OPEN} matters of the kind \"{matter}\" were open at once; they could not all be followed."
            ),
        )
    } else if finding.contradictions_total > 0 {
        (
            Status::NotSatisfied,
            format!("{} × {matter} at the end of the period.", finding.contradictions_total),
        )
    } else if finding.evidence_total == 0 {
        (
            Status::NoEvidence,
            "The log has no entry about this in the period. That is not evidence that nothing happened.".to_owned(),
        )
    } else {
        (
            Status::Satisfied,
            format!(
                "{} log entries support this, and none contradicts it.",
                finding.evidence_total
            ),
        )
    };
    finding
}

/// What an assessment found.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// One for each objective.
    pub findings: Vec<Finding>,
    /// Entries looked at.
    pub entries: u64,
    /// Entries about something that was refused.
    pub denied: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(index: u64, action: &str, resource: &str) -> Fact {
        Fact {
            index,
            occurred: DateTime::from_timestamp(1_767_225_600 + index as i64, 0).unwrap(),
            actor: "users/1".into(),
            action: action.into(),
            resource: resource.into(),
            denied: false,
        }
    }

    fn judge(facts: &[Fact]) -> BTreeMap<&'static str, Finding> {
        let mut assessment = Assessment::new(2);
        facts.iter().for_each(|fact| assessment.observe(fact));
        assessment
            .finish()
            .findings
            .into_iter()
            .map(|f| (f.objective.id, f))
            .collect()
    }

    #[test]
    fn an_empty_log_satisfies_nothing() {
        let findings = judge(&[]);
        assert!(findings.values().all(|f| f.status == Status::NoEvidence));
        assert!(
            findings["cc7.2-a"]
                .reason
                .contains("not evidence that nothing happened")
        );
    }

    #[test]
    fn an_open_incident_contradicts_and_a_closed_one_supports() {
        let open = fact(0, "incident.opened", "incidents/1");
        let findings = judge(std::slice::from_ref(&open));
        assert_eq!(findings["cc7.3-b"].status, Status::NotSatisfied);
        assert_eq!(findings["cc7.3-b"].contradictions, vec![open.clone()]);
        let findings = judge(&[open, fact(1, "incident.closed", "incidents/1")]);
        assert_eq!(findings["cc7.3-b"].status, Status::Satisfied);
        assert_eq!(findings["cc7.5-b"].status, Status::Satisfied);
    }

    #[test]
    fn a_failed_response_is_not_satisfied_until_it_is_applied() {
        let mut facts = vec![
            fact(0, "response.dispatched", "responses/1"),
            fact(1, "response.failed", "responses/1"),
        ];
        assert_eq!(judge(&facts)["cc7.4-c"].status, Status::NotSatisfied);
        facts.push(fact(2, "response.applied", "responses/1"));
        assert_eq!(judge(&facts)["cc7.4-c"].status, Status::Satisfied);
    }

    #[test]
    fn what_was_refused_is_no_evidence() {
        let mut refused = fact(0, "garrison.policy.v1.PolicyService/ApplyPolicy", "policies/a");
        refused.denied = true;
        assert_eq!(judge(&[refused])["cc7.2-a"].status, Status::NoEvidence);
    }

    #[test]
    fn a_response_that_waits_is_settled_by_a_decision_also_by_a_refusal() {
        let mut facts = vec![fact(0, "response.pending_approval", "responses/1")];
        assert_eq!(judge(&facts)["cc7.4-b"].status, Status::NotSatisfied);
        let mut refused = fact(1, "response.refused", "responses/1");
        refused.denied = true;
        facts.push(refused);
        assert_eq!(judge(&facts)["cc7.4-b"].status, Status::NoEvidence);
        facts.push(fact(2, "garrison.response.v1.ResponseService/ApproveResponse", ""));
        assert_eq!(judge(&facts)["cc7.4-b"].status, Status::Satisfied);
    }

    #[test]
    fn counts_all_and_quotes_some() {
        let facts: Vec<_> = (0..9)
            .map(|i| fact(i, "response.applied", &format!("responses/{i}")))
            .collect();
        let finding = &judge(&facts)["cc7.4-a"];
        assert_eq!((finding.evidence_total, finding.evidence.len()), (9, 2));
    }

    #[test]
    fn a_body_that_is_no_record_is_none() {
        assert_eq!(Fact::read(0, Utc::now(), b"no JSON"), None);
        let body = br#"{"actor":{"name":"users/1"},"action":"x","decision":"DECISION_DENY"}"#;
        assert!(Fact::read(0, Utc::now(), body).unwrap().denied);
    }
}
