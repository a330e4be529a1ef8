//! What is known about one attack.

use chrono::{DateTime, Utc};
use garrison_proto::{
    alert::v1::{Entity, EntityKind, Severity, Technique},
    resource_name,
    response::v1::{self as proto, IncidentStatus, ResponseState},
    to_timestamp,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{alert::AlertFacts, response::Action, stage::Stage};

/// Most entities that one incident lists; the oldest stay.
pub const MAX_ENTITIES: usize = 1000;
/// Most techniques that one incident lists.
pub const MAX_TECHNIQUES: usize = 200;
/// Most alerts and responses that one incident lists by id; all are counted and can be listed by query.
pub const MAX_LISTED: usize = 1000;
/// Distinct techniques from which on the severity is one step higher than the worst alert's.
pub const ESCALATE_TECHNIQUES: usize = 3;

/// An entity of an incident.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `garrison.alert.v1.EntityKind`.
    pub kind: i32,
    /// The entity's value.
    pub value: String,
    /// Whether it acted in an alert.
    pub acted: bool,
}

/// A technique seen in an incident.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// For example `T1046`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its tactic.
    pub tactic: String,
}

/// An incident.
#[derive(Debug, Clone, PartialEq)]
pub struct Incident {
    /// UUIDv7.
    pub id: Uuid,
    /// Open, contained or closed.
    pub status: IncidentStatus,
    /// The worst alert's severity; see [`Incident::severity`].
    pub worst: Severity,
    /// Entities in the order in which they were first seen by the responder.
    pub entities: Vec<Member>,
    /// Techniques in order of first sight.
    pub techniques: Vec<Seen>,
    /// Ids of alerts, at most [`MAX_LISTED`].
    pub alert_ids: Vec<Uuid>,
    /// Ids of responses, at most [`MAX_LISTED`].
    pub responses: Vec<Uuid>,
    /// First sign of any alert.
    pub first_seen: DateTime<Utc>,
    /// Latest sign of any alert.
    pub last_seen: DateTime<Utc>,
    /// When it was opened.
    pub created: DateTime<Utc>,
    /// When it last changed.
    pub updated: DateTime<Utc>,
    /// Sum of the alerts' weights.
    pub score: f64,
    /// All alerts, listed or not.
    pub alert_count: u64,
    /// The source of the alert with the earliest first sign.
    pub root: String,
    /// The first alert's title, for incidents without techniques.
    pub headline: String,
    /// The incident that took this one in.
    pub merged_into: Option<Uuid>,
}

impl Incident {
    /// Opens an incident for an alert that belongs to none.
    pub fn open(id: Uuid, alert: &AlertFacts, now: DateTime<Utc>) -> Self {
        let mut incident = Self {
            id,
            status: IncidentStatus::Open,
            worst: alert.severity,
            entities: Vec::new(),
            techniques: Vec::new(),
            alert_ids: Vec::new(),
            responses: Vec::new(),
            first_seen: alert.first_seen,
            last_seen: alert.last_seen,
            created: now,
            updated: now,
            score: 0.0,
            alert_count: 0,
            root: alert.source.value.clone(),
            headline: alert.title.clone(),
            merged_into: None,
        };
        incident.absorb(alert, true, now);
        incident
    }

    /// Takes an alert in. `new` is false when the alert is a later account of one that is in already.
    pub fn absorb(&mut self, alert: &AlertFacts, new: bool, now: DateTime<Utc>) {
        self.worst = self.worst.max(alert.severity);
        if alert.first_seen < self.first_seen {
            self.root.clone_from(&alert.source.value);
            self.headline.clone_from(&alert.title);
            self.first_seen = alert.first_seen;
        }
        self.last_seen = self.last_seen.max(alert.last_seen);
        self.updated = now;
        self.add_member(alert.source.kind as i32, &alert.source.value, true);
        for target in &alert.targets {
            self.add_member(target.kind as i32, &target.value, false);
        }
        for technique in &alert.techniques {
            self.add_technique(Seen {
                id: technique.id.clone(),
                name: technique.name.clone(),
                tactic: technique.tactic.clone(),
            });
        }
        if new {
            self.score += alert.weight();
            self.alert_count += 1;
            if self.alert_ids.len() < MAX_LISTED {
                self.alert_ids.push(alert.id);
            }
        }
    }

    /// Takes another incident's alerts and responses in, and closes that one.
    pub fn merge(&mut self, other: &mut Self, now: DateTime<Utc>) {
        self.worst = self.worst.max(other.worst);
        if other.first_seen < self.first_seen {
            self.root.clone_from(&other.root);
            self.headline.clone_from(&other.headline);
            self.first_seen = other.first_seen;
        }
        self.last_seen = self.last_seen.max(other.last_seen);
        for member in &other.entities {
            self.add_member(member.kind, &member.value, member.acted);
        }
        for technique in &other.techniques {
            self.add_technique(technique.clone());
        }
        self.score += other.score;
        self.alert_count += other.alert_count;
        for id in &other.alert_ids {
            if self.alert_ids.len() < MAX_LISTED && !self.alert_ids.contains(id) {
                self.alert_ids.push(*id);
            }
        }
        for id in &other.responses {
            self.add_response(*id);
        }
        self.updated = now;
        other.status = IncidentStatus::Closed;
        other.merged_into = Some(self.id);
        other.updated = now;
    }

    /// Lists a response, once.
    pub fn add_response(&mut self, id: Uuid) {
        if self.responses.len() < MAX_LISTED && !self.responses.contains(&id) {
            self.responses.push(id);
        }
    }

    fn add_member(&mut self, kind: i32, value: &str, acted: bool) {
        if let Some(known) = self.entities.iter_mut().find(|m| m.kind == kind && m.value == value) {
            known.acted |= acted;
        } else if self.entities.len() < MAX_ENTITIES {
            self.entities.push(Member {
                kind,
                value: value.to_owned(),
                acted,
            });
        }
    }

    fn add_technique(&mut self, technique: Seen) {
        let known = self.techniques.iter().any(|t| t.id == technique.id);
        if !known && !technique.id.is_empty() && self.techniques.len() < MAX_TECHNIQUES {
            self.techniques.push(technique);
        }
    }

    /// The worst alert's severity, one step higher when several techniques were combined.
    pub fn severity(&self) -> Severity {
        if self.techniques.len() < ESCALATE_TECHNIQUES {
            return self.worst;
        }
        match self.worst {
            Severity::Unspecified | Severity::Info => Severity::Low,
            Severity::Low => Severity::Medium,
            Severity::Medium => Severity::High,
            Severity::High | Severity::Critical => Severity::Critical,
        }
    }

    /// One line for people: what was done, by whom.
    pub fn title(&self) -> String {
        let mut stages: Vec<Stage> = Vec::new();
        for technique in &self.techniques {
            let stage = Stage::of_tactic(&technique.tactic);
            if stage != Stage::Unknown && !stages.contains(&stage) {
                stages.push(stage);
            }
        }
        stages.sort_unstable();
        let Some((last, rest)) = stages.split_last() else {
            return format!("{} by {}", self.headline, self.root);
        };
        let mut what = rest.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ");
        if !what.is_empty() {
            what.push_str(" and ");
        }
        what.push_str(last.name());
        // Sentence case: only the first letter stays a capital.
        let mut letters = what.chars();
        let what: String = letters
            .next()
            .into_iter()
            .chain(letters.map(|c| c.to_ascii_lowercase()))
            .collect();
        format!("{what} by {}", self.root)
    }

    /// The hosts, services and people in it, for the wire.
    fn wire_entities(&self) -> Vec<Entity> {
        self.entities
            .iter()
            .map(|m| Entity {
                kind: EntityKind::try_from(m.kind).unwrap_or_default() as i32,
                value: m.value.clone(),
            })
            .collect()
    }

    /// The message of the same name.
    pub fn to_proto(&self) -> proto::Incident {
        let name = |id: &Uuid| resource_name("responses", *id);
        proto::Incident {
            name: resource_name("incidents", self.id),
            title: self.title(),
            severity: self.severity() as i32,
            status: self.status as i32,
            entities: self.wire_entities(),
            techniques: self
                .techniques
                .iter()
                .map(|t| Technique {
                    id: t.id.clone(),
                    name: t.name.clone(),
                    tactic: t.tactic.clone(),
                })
                .collect(),
            alert_ids: self.alert_ids.iter().map(Uuid::to_string).collect(),
            responses: self.responses.iter().map(name).collect(),
            first_seen: Some(to_timestamp(self.first_seen)),
            last_seen: Some(to_timestamp(self.last_seen)),
            created: Some(to_timestamp(self.created)),
            updated: Some(to_timestamp(self.updated)),
            score: self.score,
            alert_count: self.alert_count,
            merged_into: self
                .merged_into
                .map(|id| resource_name("incidents", id))
                .unwrap_or_default(),
        }
    }
}

/// Whether the responses of an incident contain it. Of several responses with one action and target, the
/// latest counts; what a person rejected, rolled back or let run out does not.
///
/// `responses` are ordered oldest first.
pub fn contained(responses: &[(Action, String, ResponseState)]) -> bool {
    let mut any = false;
    for (i, (action, target, state)) in responses.iter().enumerate() {
        let superseded = responses[i + 1..].iter().any(|(a, t, _)| a == action && t == target);
        if superseded {
            continue;
        }
        match state {
            ResponseState::Applied => any = true,
            ResponseState::Rejected | ResponseState::Reverted | ResponseState::Expired => {}
            ResponseState::Unspecified
            | ResponseState::PendingApproval
            | ResponseState::Dispatched
            | ResponseState::Failed
            | ResponseState::Reverting
            | ResponseState::Refused => return false,
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::alert::tests::sample;

    fn facts(source: &str, technique: &str, tactic: &str) -> AlertFacts {
        let mut alert = sample(source, &["10.0.0.2"]);
        alert.techniques = vec![Technique {
            id: technique.into(),
            name: String::new(),
            tactic: tactic.into(),
        }];
        AlertFacts::read(&alert, DateTime::from_timestamp(1_700_000_000, 0).unwrap()).unwrap()
    }

    #[test]
    fn several_techniques_escalate_and_name_the_incident() {
        let now = Utc::now();
        let mut incident = Incident::open(Uuid::now_v7(), &facts("10.0.0.9", "T1046", "Discovery"), now);
        assert_eq!(incident.severity(), Severity::High);
        assert_eq!(incident.title(), "Discovery by 10.0.0.9");
        incident.absorb(&facts("10.0.0.9", "T1110", "Credential Access"), true, now);
        incident.absorb(&facts("10.0.0.2", "T1021", "Lateral Movement"), true, now);
        assert_eq!(incident.severity(), Severity::Critical);
        assert_eq!(
            incident.title(),
            "Credential access, discovery and lateral movement by 10.0.0.9"
        );
        assert_eq!(incident.alert_count, 3);
    }

    #[test]
    fn a_repeat_of_an_alert_does_not_count_twice() {
        let now = Utc::now();
        let alert = facts("10.0.0.9", "T1046", "Discovery");
        let mut incident = Incident::open(Uuid::now_v7(), &alert, now);
        let score = incident.score;
        incident.absorb(&alert, false, now);
        assert_eq!((incident.alert_count, incident.score), (1, score));
    }

    #[test]
    fn contained_means_every_latest_decision_is_in_force() {
        use ResponseState as S;
        let block = |state| (Action::Block, "10.0.0.9/32".to_owned(), state);
        let isolate = |state| (Action::Isolate, "10.0.0.2/32".to_owned(), state);
        assert!(!contained(&[]));
        assert!(contained(&[block(S::Applied)]));
        assert!(contained(&[block(S::Failed), block(S::Applied)]));
        assert!(contained(&[block(S::Applied), isolate(S::Rejected)]));
        assert!(!contained(&[block(S::Applied), block(S::Reverted)]));
        for open in [S::PendingApproval, S::Dispatched, S::Failed, S::Reverting, S::Refused] {
            assert!(!contained(&[block(S::Applied), isolate(open)]), "{open:?}");
        }
        assert!(!contained(&[block(S::Expired)]));
    }

    proptest! {
        #[test]
        fn merging_loses_nothing_whichever_side_is_kept(
            left in prop::collection::vec((0..5u8, 0..5u8), 1..8),
            right in prop::collection::vec((0..5u8, 0..5u8), 1..8),
        ) {
            let now = Utc::now();
            let build = |parts: &[(u8, u8)]| {
                let alerts: Vec<AlertFacts> = parts.iter()
                    .map(|(s, t)| facts(&format!("10.0.0.{s}"), &format!("T{t}"), "Discovery"))
                    .collect();
                let mut incident = Incident::open(Uuid::now_v7(), &alerts[0], now);
                for alert in &alerts[1..] {
                    incident.absorb(alert, true, now);
                }
                incident
            };
            let (a, b) = (build(&left), build(&right));
            let (mut ab, mut ba) = (a.clone(), b.clone());
            ab.merge(&mut b.clone(), now);
            ba.merge(&mut a.clone(), now);
            let sorted = |incident: &Incident| {
                let mut ids = incident.alert_ids.clone();
                ids.sort_unstable();
                let mut entities: Vec<_> = incident.entities.iter().map(|m| (m.value.clone(), m.acted)).collect();
                entities.sort_unstable();
                let mut techniques: Vec<_> = incident.techniques.iter().map(|t| t.id.clone()).collect();
                techniques.sort_unstable();
                (ids, entities, techniques, incident.alert_count, incident.severity(), incident.first_seen, incident.last_seen)
            };
            prop_assert_eq!(sorted(&ab), sorted(&ba));
            prop_assert!((ab.score - ba.score).abs() < 1e-9);
            prop_assert_eq!(ab.alert_count as usize, left.len() + right.len());
        }
    }
}
