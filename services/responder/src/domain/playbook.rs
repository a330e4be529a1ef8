//! What to do about which alerts, as data: `kind: Playbook` documents.

use std::net::IpAddr;

use chrono::Duration;
use garrison_proto::alert::v1::Severity;
use ipnet::IpNet;
use serde::Deserialize;

use super::{
    alert::{AlertFacts, Party},
    guard::Target,
    incident::Incident,
    response::{Action, Draft, action_word},
};

/// The API version that is understood.
pub const API_VERSION: &str = "garrison.dev/v1alpha1";
/// The kind of document.
pub const KIND: &str = "Playbook";
/// Longest document, in bytes.
pub const MAX_DOCUMENT: usize = 64 * 1024;
/// Most detectors or actions in one playbook.
pub const MAX_ENTRIES: usize = 64;
/// Most destinations of one alert that one action is taken on.
pub const MAX_DESTINATIONS: usize = 8;
/// Longest time that an action may stay in force by playbook or by hand: 30 days.
pub const MAX_TTL: Duration = Duration::days(30);

/// Something wrong in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Where: a path such as `spec.do[0].ttl`, or `document` with the line in the message.
    pub field: String,
    /// What, and what would be right.
    pub message: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Metadata {
    name: String,
    #[serde(default)]
    description: String,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    #[serde(default = "yes")]
    enabled: bool,
    when: When,
    #[serde(rename = "do")]
    actions: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct When {
    detectors: Vec<String>,
    min_severity: Option<String>,
    max_severity: Option<String>,
    min_confidence: Option<f64>,
    source: Option<String>,
    destination: Option<String>,
    incident: Option<IncidentWhen>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IncidentWhen {
    min_severity: Option<String>,
    min_techniques: Option<u32>,
    min_alerts: Option<u64>,
    min_score: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Step {
    action: String,
    target: String,
    ttl: Option<String>,
    approval: Option<String>,
    priority: Option<i32>,
    packets_per_second: Option<u32>,
}

/// Where an address may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Within the tenant's own networks.
    Internal,
    /// Outside them.
    External,
}

/// Whom an action is taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// The alert's entity.
    Source,
    /// Each of the alert's targets.
    Destination,
}

/// One action of a playbook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedAction {
    /// What.
    pub action: Action,
    /// On whom.
    pub whom: Whom,
    /// How long.
    pub ttl: Option<Duration>,
    /// Whether a person must approve.
    pub approval: bool,
    /// Higher wins.
    pub priority: i32,
    /// For rate limits.
    pub packets_per_second: u32,
}

/// A checked playbook.
#[derive(Debug, Clone, PartialEq)]
pub struct Playbook {
    /// Unique in the tenant.
    pub name: String,
    /// For people.
    pub description: String,
    /// Whether it acts.
    pub enabled: bool,
    detectors: Vec<String>,
    min_severity: Severity,
    max_severity: Severity,
    min_confidence: f64,
    source: Option<Side>,
    destination: Option<Side>,
    incident_severity: Severity,
    incident_techniques: usize,
    incident_alerts: u64,
    incident_score: f64,
    /// What it does, in order.
    pub actions: Vec<PlannedAction>,
}

/// Collects everything that is wrong, so that a person can mend it in one go.
struct Check(Vec<Violation>);

impl Check {
    fn wrong(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Violation {
            field: field.into(),
            message: message.into(),
        });
    }

    fn severity(&mut self, field: &str, given: Option<&str>, default: Severity) -> Severity {
        match given {
            None => default,
            Some("info") => Severity::Info,
            Some("low") => Severity::Low,
            Some("medium") => Severity::Medium,
            Some("high") => Severity::High,
            Some("critical") => Severity::Critical,
            Some(other) => {
                self.wrong(field, format!("{other:?} is none of info, low, medium, high, critical"));
                default
            }
        }
    }

    fn side(&mut self, field: &str, given: Option<&str>) -> Option<Side> {
        match given {
            None | Some("any") => None,
            Some("internal") => Some(Side::Internal),
            Some("external") => Some(Side::External),
            Some(other) => {
                self.wrong(field, format!("{other:?} is none of internal, external, any"));
                None
            }
        }
    }
}

impl Playbook {
    /// Reads and checks a document.
    ///
    /// # Errors
    /// Every [`Violation`] found; for a document that is no YAML of this shape, the one that stopped reading.
    pub fn parse(document: &str) -> Result<Self, Vec<Violation>> {
        let one = |message: String| {
            Err(vec![Violation {
                field: "document".to_owned(),
                message,
            }])
        };
        if document.len() > MAX_DOCUMENT {
            return one(format!("{} bytes are more than {MAX_DOCUMENT}", document.len()));
        }
        let raw: Document = match serde_saphyr::from_str(document) {
            Ok(raw) => raw,
            Err(error) => return one(error.to_string()),
        };
        let mut check = Check(Vec::new());
        let playbook = Self::check(raw, &mut check);
        if check.0.is_empty() { Ok(playbook) } else { Err(check.0) }
    }

    fn check(raw: Document, check: &mut Check) -> Self {
        if raw.api_version != API_VERSION {
            check.wrong("apiVersion", format!("{:?} is not {API_VERSION}", raw.api_version));
        }
        if raw.kind != KIND {
            check.wrong("kind", format!("{:?} is not {KIND}", raw.kind));
        }
        let name = &raw.metadata.name;
        let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(1..=63).contains(&name.len()) || !name.bytes().all(label) || name.starts_with('-') || name.ends_with('-') {
            check.wrong(
                "metadata.name",
                format!("{name:?} is not 1 to 63 lower-case letters, digits and inner hyphens"),
            );
        }
        let when = &raw.spec.when;
        if when.detectors.is_empty() || when.detectors.len() > MAX_ENTRIES {
            check.wrong(
                "spec.when.detectors",
                format!("give 1 to {MAX_ENTRIES} detectors, for example \"bruteforce.*\""),
            );
        }
        for (i, pattern) in when.detectors.iter().enumerate() {
            let stem = pattern.strip_suffix('*').unwrap_or(pattern);
            let fits = pattern.len() <= 128
                && !pattern.is_empty()
                && stem
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
            if !fits {
                check.wrong(
                    format!("spec.when.detectors[{i}]"),
                    format!("{pattern:?} is no detector name; a * is allowed at its end only"),
                );
            }
        }
        let min_severity = check.severity("spec.when.minSeverity", when.min_severity.as_deref(), Severity::Info);
        let max_severity = check.severity(
            "spec.when.maxSeverity",
            when.max_severity.as_deref(),
            Severity::Critical,
        );
        if max_severity < min_severity {
            check.wrong("spec.when.maxSeverity", "lower than minSeverity: nothing would match");
        }
        let min_confidence = when.min_confidence.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&min_confidence) {
            check.wrong(
                "spec.when.minConfidence",
                format!("{min_confidence} is not within 0 to 1"),
            );
        }
        let incident = when.incident.as_ref();
        let incident_score = incident.and_then(|i| i.min_score).unwrap_or(0.0);
        if !incident_score.is_finite() || incident_score < 0.0 {
            check.wrong(
                "spec.when.incident.minScore",
                format!("{incident_score} is not a number from 0 on"),
            );
        }
        if raw.spec.actions.is_empty() || raw.spec.actions.len() > MAX_ENTRIES {
            check.wrong("spec.do", format!("give 1 to {MAX_ENTRIES} actions"));
        }
        let actions = raw
            .spec
            .actions
            .iter()
            .enumerate()
            .map(|(i, step)| check_step(step, &format!("spec.do[{i}]"), check))
            .collect();
        Self {
            name: raw.metadata.name.clone(),
            description: raw.metadata.description.clone(),
            enabled: raw.spec.enabled,
            detectors: when.detectors.clone(),
            min_severity,
            max_severity,
            min_confidence,
            source: check.side("spec.when.source", when.source.as_deref()),
            destination: check.side("spec.when.destination", when.destination.as_deref()),
            incident_severity: check.severity(
                "spec.when.incident.minSeverity",
                incident.and_then(|i| i.min_severity.as_deref()),
                Severity::Info,
            ),
            incident_techniques: incident.and_then(|i| i.min_techniques).unwrap_or(0) as usize,
            incident_alerts: incident.and_then(|i| i.min_alerts).unwrap_or(0),
            incident_score,
            actions,
        }
    }

    /// Whether it applies to an alert within its incident. `internal` are the tenant's own networks.
    pub fn matches(&self, alert: &AlertFacts, incident: &Incident, internal: &[IpNet]) -> bool {
        let detector = self.detectors.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(stem) => alert.detector.starts_with(stem),
            None => alert.detector == *pattern,
        });
        self.enabled
            && detector
            && (self.min_severity..=self.max_severity).contains(&alert.severity)
            && alert.confidence >= self.min_confidence
            && self.source.is_none_or(|side| on_side(&alert.source, side, internal))
            && self
                .destination
                .is_none_or(|side| alert.targets.iter().any(|t| on_side(t, side, internal)))
            && incident.severity() >= self.incident_severity
            && incident.techniques.len() >= self.incident_techniques
            && incident.alert_count >= self.incident_alerts
            && incident.score >= self.incident_score
    }

    /// What it asks for. Entities without an address that may be acted on are passed over: nobody blocks loopback
    /// because a packet claimed to come from there.
    pub fn drafts(&self, alert: &AlertFacts) -> Vec<Draft> {
        let mut drafts = Vec::new();
        for planned in &self.actions {
            let targets: Vec<Target> = match planned.whom {
                Whom::Source => sources(alert).collect(),
                Whom::Destination => destinations(alert).collect(),
            };
            for target in targets {
                drafts.push(Draft {
                    action: planned.action,
                    target,
                    ttl: planned.ttl,
                    packets_per_second: planned.packets_per_second,
                    priority: planned.priority,
                    approval: planned.approval,
                    playbook: self.name.clone(),
                    reason: format!("{}: {}", alert.detector, alert.title),
                });
            }
        }
        drafts
    }
}

/// Everything that a playbook could act on because of an alert.
pub fn targets(alert: &AlertFacts) -> impl Iterator<Item = Target> {
    sources(alert).chain(destinations(alert))
}

fn sources(alert: &AlertFacts) -> impl Iterator<Item = Target> {
    actionable(alert.source.address.into_iter())
}

fn destinations(alert: &AlertFacts) -> impl Iterator<Item = Target> {
    actionable(alert.targets.iter().filter_map(|t| t.address).take(MAX_DESTINATIONS))
}

fn actionable(addresses: impl Iterator<Item = IpAddr>) -> impl Iterator<Item = Target> {
    addresses.filter_map(|address| Target::try_from(address).ok())
}

fn check_step(step: &Step, path: &str, check: &mut Check) -> PlannedAction {
    let action = match step.action.as_str() {
        "block" => Action::Block,
        "rate-limit" => Action::RateLimit,
        "isolate" => Action::Isolate,
        other => {
            check.wrong(
                format!("{path}.action"),
                format!("{other:?} is none of block, rate-limit, isolate"),
            );
            Action::Unspecified
        }
    };
    let whom = match step.target.as_str() {
        "source" => Whom::Source,
        "destination" => Whom::Destination,
        other => {
            check.wrong(
                format!("{path}.target"),
                format!("{other:?} is none of source, destination"),
            );
            Whom::Source
        }
    };
    let ttl = step.ttl.as_deref().and_then(|text| match duration(text) {
        Some(ttl) if ttl >= Duration::seconds(1) && ttl <= MAX_TTL => Some(ttl),
        _ => {
            check.wrong(
                format!("{path}.ttl"),
                format!("{text:?} is not a time from 1s to 30d, for example 15m, 1h30m or 2d"),
            );
            None
        }
    });
    let approval = match step.approval.as_deref() {
        None | Some("none") => false,
        Some("required") => true,
        Some(other) => {
            check.wrong(
                format!("{path}.approval"),
                format!("{other:?} is none of none, required"),
            );
            true
        }
    };
    let packets_per_second = step.packets_per_second.unwrap_or(0);
    if action == Action::RateLimit && packets_per_second == 0 {
        check.wrong(
            format!("{path}.packetsPerSecond"),
            "a rate limit needs a number of packets per second from 1 on",
        );
    }
    if action != Action::RateLimit && step.packets_per_second.is_some() {
        check.wrong(
            format!("{path}.packetsPerSecond"),
            format!("has no meaning for {}", action_word(action)),
        );
    }
    let priority = step.priority.unwrap_or(0);
    if !(-1000..=1000).contains(&priority) {
        check.wrong(
            format!("{path}.priority"),
            format!("{priority} is not within -1000 to 1000"),
        );
    }
    PlannedAction {
        action,
        whom,
        ttl,
        approval,
        priority,
        packets_per_second,
    }
}

fn on_side(party: &Party, side: Side, internal: &[IpNet]) -> bool {
    party.address.is_some_and(|address| {
        let inside = internal.iter().any(|net| net.contains(&address));
        inside == (side == Side::Internal)
    })
}

/// Reads `90s`, `15m`, `1h30m`, `2d`.
pub fn duration(text: &str) -> Option<Duration> {
    let mut total = 0i64;
    let mut number = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        let value: i64 = number.parse().ok()?;
        total = total.checked_add(value.checked_mul(unit)?)?;
        number.clear();
    }
    if !number.is_empty() || text.is_empty() {
        return None;
    }
    Duration::try_seconds(total)
}

/// Of several drafts with one action and target keeps the one with the highest priority; among equals, one
/// that needs no approval. The order of first appearance stays.
pub fn strongest(drafts: Vec<Draft>) -> Vec<Draft> {
    let mut kept: Vec<Draft> = Vec::new();
    for draft in drafts {
        match kept
            .iter_mut()
            .find(|k| k.action == draft.action && k.target == draft.target)
        {
            Some(known) => {
                if (draft.priority, !draft.approval) > (known.priority, !known.approval) {
                    *known = draft;
                }
            }
            None => kept.push(draft),
        }
    }
    kept
}

/// Splits a file of several documents at its `---` lines.
pub fn split(file: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in file.lines() {
        if line.trim_end() == "---" {
            documents.push(String::new());
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    documents.retain(|d| {
        d.lines()
            .any(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#'))
    });
    documents
}

#[cfg(test)]
mod tests;
