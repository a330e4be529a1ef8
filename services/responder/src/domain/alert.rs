//! An alert as the responder reasons about it, checked once at the door.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use garrison_proto::{
    alert::v1::{Alert, Entity, EntityKind, Severity, Technique},
    from_timestamp,
};
use uuid::Uuid;

use super::stage::{Stage, stages};

/// Most targets of one alert that are looked at; a scan may name thousands.
pub const MAX_TARGETS: usize = 1024;
/// Most techniques one alert may name.
pub const MAX_TECHNIQUES: usize = 64;
/// Longest text of an entity, a detector or a title, in bytes.
pub const MAX_TEXT: usize = 512;

/// An alert that cannot be taken, with the field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("alert field {field}: {problem}")]
pub struct InvalidAlert {
    /// The field of `garrison.alert.v1.Alert`.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

fn invalid<T>(field: &'static str, problem: impl Into<String>) -> Result<T, InvalidAlert> {
    Err(InvalidAlert {
        field,
        problem: problem.into(),
    })
}

/// Somebody or something in an alert.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Party {
    /// Host, service or user.
    pub kind: EntityKind,
    /// The entity's value as the detector gave it, an address in canonical text.
    pub value: String,
    /// What alerts are linked by: the address of a host or of a service's host, `user:<login>` for people.
    pub host: String,
    /// The address, when there is one.
    pub address: Option<IpAddr>,
}

impl Party {
    fn read(entity: &Entity, field: &'static str) -> Result<Self, InvalidAlert> {
        if entity.value.is_empty() || entity.value.len() > MAX_TEXT {
            return invalid(field, format!("the value must have 1 to {MAX_TEXT} bytes"));
        }
        let value = entity.value.as_str();
        match entity.kind() {
            EntityKind::Host => match value.parse::<IpAddr>() {
                Ok(address) => {
                    let address = address.to_canonical();
                    Ok(Self {
                        kind: EntityKind::Host,
                        value: address.to_string(),
                        host: address.to_string(),
                        address: Some(address),
                    })
                }
                Err(_) => invalid(field, format!("{value:?} is not an IP address")),
            },
            EntityKind::Service => {
                let socket = value.split_once('/').map_or(value, |(socket, _)| socket);
                let host = socket.rsplit_once(':').map_or("", |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                match host.parse::<IpAddr>() {
                    Ok(address) => {
                        let address = address.to_canonical();
                        Ok(Self {
                            kind: EntityKind::Service,
                            value: value.to_owned(),
                            host: address.to_string(),
                            address: Some(address),
                        })
                    }
                    Err(_) => invalid(
                        field,
                        format!("{value:?} is not a service of the form address:port/protocol"),
                    ),
                }
            }
            EntityKind::User => Ok(Self {
                kind: EntityKind::User,
                value: value.to_owned(),
                host: format!("user:{value}"),
                address: None,
            }),
            EntityKind::Unspecified => invalid(field, "the kind of the entity is not given"),
        }
    }
}

/// A checked alert.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertFacts {
    /// The alert's id.
    pub id: Uuid,
    /// The detector, for example `scan.vertical`.
    pub detector: String,
    /// One line for people.
    pub title: String,
    /// How bad.
    pub severity: Severity,
    /// How sure, 0 to 1.
    pub confidence: f64,
    /// Who did it.
    pub source: Party,
    /// To whom, at most [`MAX_TARGETS`], each once.
    pub targets: Vec<Party>,
    /// ATT&CK techniques.
    pub techniques: Vec<Technique>,
    /// First sign.
    pub first_seen: DateTime<Utc>,
    /// Latest sign, not before the first.
    pub last_seen: DateTime<Utc>,
    /// When the offending packet was captured.
    pub trigger_time: Option<DateTime<Utc>>,
    /// How often.
    pub count: u64,
}

impl AlertFacts {
    /// Checks an alert. `received` stands in for times that the alert does not carry.
    ///
    /// # Errors
    /// [`InvalidAlert`] names the first field that is wrong.
    pub fn read(alert: &Alert, received: DateTime<Utc>) -> Result<Self, InvalidAlert> {
        let Ok(id) = Uuid::parse_str(&alert.alert_id) else {
            return invalid("alert_id", format!("{:?} is not a UUID", shorten(&alert.alert_id)));
        };
        let detector_ok = (1..=128).contains(&alert.detector.len())
            && alert
                .detector
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        if !detector_ok {
            return invalid(
                "detector",
                format!(
                    "{:?} is not 1 to 128 letters, digits, dots, hyphens and underscores",
                    shorten(&alert.detector)
                ),
            );
        }
        let severity = alert.severity();
        if severity == Severity::Unspecified {
            return invalid("severity", format!("{} is no severity", alert.severity));
        }
        if !(0.0..=1.0).contains(&alert.confidence) {
            return invalid("confidence", format!("{} is not within 0 to 1", alert.confidence));
        }
        if alert.techniques.len() > MAX_TECHNIQUES {
            return invalid(
                "techniques",
                format!("{} are more than {MAX_TECHNIQUES}", alert.techniques.len()),
            );
        }
        let Some(entity) = &alert.entity else {
            return invalid("entity", "an alert must say who did it");
        };
        let source = Party::read(entity, "entity")?;
        let mut targets = Vec::new();
        for target in alert.targets.iter().take(MAX_TARGETS) {
            let party = Party::read(target, "targets")?;
            if !targets.contains(&party) {
                targets.push(party);
            }
        }
        let time = |field, given: &Option<prost_types::Timestamp>| match given {
            None => Ok(None),
            Some(given) => match from_timestamp(given) {
                Some(time) => Ok(Some(time)),
                None => invalid(field, "outside what a calendar can hold"),
            },
        };
        let last_seen = time("last_seen", &alert.last_seen)?;
        let first_seen = time("first_seen", &alert.first_seen)?;
        let first_seen = first_seen.or(last_seen).unwrap_or(received);
        let last_seen = last_seen.unwrap_or(first_seen);
        if last_seen < first_seen {
            return invalid("last_seen", "before first_seen");
        }
        Ok(Self {
            id,
            detector: alert.detector.clone(),
            title: if alert.title.is_empty() {
                alert.detector.clone()
            } else {
                shorten(&alert.title)
            },
            severity,
            confidence: alert.confidence,
            source,
            targets,
            techniques: alert.techniques.clone(),
            first_seen,
            last_seen,
            trigger_time: time("trigger_time", &alert.trigger_time)?,
            count: alert.count.max(1),
        })
    }

    /// What the alert adds to its incident's score.
    pub fn weight(&self) -> f64 {
        let severity = match self.severity {
            Severity::Unspecified | Severity::Info => 1.0,
            Severity::Low => 3.0,
            Severity::Medium => 10.0,
            Severity::High => 30.0,
            Severity::Critical => 100.0,
        };
        severity * self.confidence
    }

    /// The stages of its techniques.
    pub fn stages(&self) -> Vec<Stage> {
        stages(&self.detector, &self.techniques)
    }

    /// Every host it names, the source first, each once.
    pub fn hosts(&self) -> Vec<String> {
        let mut hosts = vec![self.source.host.clone()];
        for target in &self.targets {
            if !hosts.contains(&target.host) {
                hosts.push(target.host.clone());
            }
        }
        hosts
    }
}

/// The first [`MAX_TEXT`] characters, so that hostile text cannot fill logs and tables.
pub fn shorten(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn host(value: &str) -> Entity {
        Entity {
            kind: EntityKind::Host as i32,
            value: value.to_owned(),
        }
    }

    pub(crate) fn sample(source: &str, targets: &[&str]) -> Alert {
        Alert {
            alert_id: Uuid::now_v7().to_string(),
            detector: "scan.vertical".to_owned(),
            title: "Port scan".to_owned(),
            severity: Severity::High as i32,
            confidence: 0.9,
            entity: Some(host(source)),
            targets: targets.iter().map(|t| host(t)).collect(),
            count: 1,
            ..Alert::default()
        }
    }

    #[test]
    fn reads_hosts_services_and_people() {
        let mut alert = sample("::ffff:10.0.0.1", &["10.0.0.2", "10.0.0.2"]);
        alert.targets.push(Entity {
            kind: EntityKind::Service as i32,
            value: "[2001:db8::1]:443/tcp".to_owned(),
        });
        alert.targets.push(Entity {
            kind: EntityKind::User as i32,
            value: "mallory".to_owned(),
        });
        let facts = AlertFacts::read(&alert, Utc::now()).unwrap();
        assert_eq!(facts.hosts(), ["10.0.0.1", "10.0.0.2", "2001:db8::1", "user:mallory"]);
    }

    #[test]
    fn names_the_field_that_is_wrong() {
        let now = Utc::now();
        let wrong = |field: &str, change: fn(&mut Alert)| {
            let mut alert = sample("10.0.0.1", &["10.0.0.2"]);
            change(&mut alert);
            assert_eq!(AlertFacts::read(&alert, now).unwrap_err().field, field);
        };
        wrong("alert_id", |a| a.alert_id = "7".into());
        wrong("detector", |a| a.detector = "a b".into());
        wrong("severity", |a| a.severity = 77);
        wrong("confidence", |a| a.confidence = f64::NAN);
        wrong("entity", |a| a.entity = None);
        wrong("entity", |a| a.entity = Some(host("nowhere")));
        wrong("targets", |a| a.targets = vec![Entity::default()]);
        wrong("last_seen", |a| {
            a.first_seen = Some(prost_types::Timestamp { seconds: 9, nanos: 0 });
            a.last_seen = Some(prost_types::Timestamp { seconds: 8, nanos: 0 });
        });
        wrong("first_seen", |a| {
            a.first_seen = Some(prost_types::Timestamp {
                seconds: i64::MAX,
                nanos: -1,
            });
        });
    }

    proptest! {
        #[test]
        fn never_panics_on_hostile_text(value in "\\PC{0,40}", kind in 0..5i32, id in "\\PC{0,40}") {
            let mut alert = sample("10.0.0.1", &[]);
            alert.entity = Some(Entity { kind, value });
            let _ = AlertFacts::read(&alert, Utc::now());
            alert.alert_id = id;
            let _ = AlertFacts::read(&alert, Utc::now());
        }
    }
}
