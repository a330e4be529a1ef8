//! How much speaks against hosts, services and users: what an alert or a login adds, and to whom.
//!
//! Alerts and logins meet on one timeline. What is found on a host counts half for those who logged in from it lately, and
//! what is odd about a login counts half for the host that it came from: a stolen password and the machine that it was
//! stolen on are one story.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike as _, Duration, Timelike as _, Utc};
use garrison_proto::{
    alert::v1::{Alert, Entity, EntityKind, Severity},
    event::v1::{LoginEvent, login_event::Outcome},
    from_timestamp,
};
use serde::{Deserialize, Serialize};

/// What an alert adds for those that it was done to, of what it adds for who did it.
const TARGET_SHARE: f64 = 0.3;
/// What an entry adds for the other side: the users of a host, the host of a user.
const THROUGH_SHARE: f64 = 0.5;
/// What adds less than this by itself is not told to the other side.
const TOLD: f64 = 10.0;
/// Targets of one alert that count.
const TARGETS: usize = 32;
/// Addresses that are remembered of a user.
const ADDRESSES: usize = 64;
/// Logins after which a user's addresses and hours are known.
const KNOWN_AFTER: u32 = 10;
/// How long failed logins are remembered for what a successful one means.
const FAILURES_FOR: Duration = Duration::hours(1);
/// Failed logins after which a successful one is odd.
const FAILURES: u32 = 5;

/// What adds to an entity's risk.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Whose risk.
    pub entity: Entity,
    /// A detector, or `login.` and what happened.
    pub kind: String,
    /// What makes it one entry: a later one with the same replaces or adds to it.
    pub reference: String,
    /// Whose doing it is, when it is not the entity's own.
    pub through: Option<Entity>,
    /// When.
    pub time: DateTime<Utc>,
    /// What it adds.
    pub weight: f64,
    /// How often it happened.
    pub count: u64,
    /// In words.
    pub summary: String,
    /// The alert.
    pub alert: Option<uuid::Uuid>,
}

/// A host.
pub fn host(address: &str) -> Entity {
    Entity {
        kind: EntityKind::Host.into(),
        value: address.to_owned(),
    }
}

/// A user.
pub fn user(login: &str) -> Entity {
    Entity {
        kind: EntityKind::User.into(),
        value: login.to_owned(),
    }
}

/// Risk from the sum of what remains, 0 to 100.
pub fn risk(remaining: f64) -> f64 {
    100.0 * (1.0 - (-remaining.max(0.0) / 100.0).exp())
}

/// What an alert adds, for who did it and for those that it was done to. `None` without a usable id or entity.
pub fn of_alert(alert: &Alert, received: DateTime<Utc>) -> Option<Vec<Entry>> {
    let id: uuid::Uuid = alert.alert_id.parse().ok()?;
    let who = alert.entity.as_ref().filter(|entity| !entity.value.is_empty())?;
    let grave = match alert.severity() {
        Severity::Critical => 100.0,
        Severity::High => 60.0,
        Severity::Medium => 30.0,
        Severity::Low => 12.0,
        Severity::Info | Severity::Unspecified => 4.0,
    };
    let sure = 0.4 + 0.6 * alert.confidence.clamp(0.0, 1.0);
    // A thousandth finding says little more than the tenth.
    let often = (1.0 + 0.15 * (alert.count.max(1) as f64).log2()).min(2.0);
    let weight = grave * sure * often;
    let entry = |entity: &Entity, share: f64| Entry {
        entity: entity.clone(),
        kind: alert.detector.clone(),
        reference: alert.alert_id.clone(),
        through: None,
        time: alert.last_seen.as_ref().and_then(from_timestamp).unwrap_or(received),
        weight: weight * share,
        count: alert.count.max(1),
        summary: alert.title.clone(),
        alert: Some(id),
    };
    let targets = alert
        .targets
        .iter()
        .filter(|target| !target.value.is_empty() && *target != who);
    let targets = targets.take(TARGETS).map(|target| Entry {
        summary: format!("target of {}: {}", who.value, alert.title),
        ..entry(target, TARGET_SHARE)
    });
    Some(std::iter::once(entry(who, 1.0)).chain(targets).collect())
}

/// The same for the other side: a user of the host, or the host of the user.
pub fn through(entry: &Entry, other: Entity) -> Option<Entry> {
    (entry.weight >= TOLD && entry.through.is_none() && entry.entity != other).then(|| Entry {
        summary: format!("{} (through {})", entry.summary, entry.entity.value),
        through: Some(entry.entity.clone()),
        entity: other,
        weight: entry.weight * THROUGH_SHARE,
        ..entry.clone()
    })
}

/// How a user usually logs in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    /// Successful logins so far.
    pub logins: u32,
    /// Addresses they came from, with the time of the last.
    pub addresses: BTreeMap<String, DateTime<Utc>>,
    /// Successful logins by the hour of the day, UTC: working days, then weekends.
    pub hours: [[u32; 24]; 2],
    /// Failed logins in a row, and when the last was.
    pub failures: u32,
    /// When the last of them was.
    pub failed: Option<DateTime<Utc>>,
}

impl Profile {
    /// Learns a login, and says what is odd about it.
    pub fn observe(&mut self, event: &LoginEvent, time: DateTime<Utc>) -> Vec<Entry> {
        let attempts = event.attempts.max(1);
        let mut entries = Vec::new();
        let mut add = |what: &str, weight: f64, summary: String| {
            entries.push(Entry {
                entity: user(&event.login),
                kind: format!("login.{what}"),
                reference: hour_of(time),
                through: None,
                time,
                weight,
                count: attempts.into(),
                summary,
                alert: None,
            });
        };
        let from = match event.client_address.as_str() {
            "" => String::new(),
            address => format!(" from {address}"),
        };
        match event.outcome() {
            Outcome::WrongPassword => {
                self.fail(attempts, time);
                add("failed", 2.0, format!("wrong password{from}"));
            }
            Outcome::WrongFactor => {
                self.fail(attempts, time);
                // Whoever comes this far has the password.
                add(
                    "factor_failed",
                    12.0,
                    format!("right password, wrong second factor{from}"),
                );
            }
            Outcome::Locked => add("locked", 25.0, format!("locked after too many attempts{from}")),
            Outcome::Disabled => add("disabled", 15.0, format!("a disabled user tried to log in{from}")),
            Outcome::Succeeded => {
                let lately = self.failed.is_some_and(|failed| time - failed <= FAILURES_FOR);
                if lately && self.failures >= FAILURES {
                    let failures = self.failures;
                    add(
                        "after_failures",
                        40.0,
                        format!("logged in{from} after {failures} failed attempts"),
                    );
                }
                self.failures = 0;
                let known = self.logins >= KNOWN_AFTER;
                if known && !from.is_empty() && !self.addresses.contains_key(&event.client_address) {
                    add("new_address", 18.0, format!("logged in{from} for the first time"));
                }
                let (day, hour) = slot(time);
                let near = (hour + 23..=hour + 25).map(|h| self.hours[day][h % 24]).sum::<u32>();
                let whole: u32 = self.hours[day].iter().sum();
                if known && whole >= KNOWN_AFTER && near == 0 {
                    add(
                        "unusual_hour",
                        10.0,
                        format!("logged in{from} at {hour:02} h UTC, as never before"),
                    );
                }
                self.succeed(event, time);
            }
            // Of nobody, or of the address: see `of_address`.
            Outcome::UnknownUser | Outcome::RateLimited | Outcome::Unspecified => {}
        }
        entries
    }

    fn fail(&mut self, attempts: u32, time: DateTime<Utc>) {
        let lately = self.failed.is_some_and(|failed| time - failed <= FAILURES_FOR);
        self.failures = if lately {
            self.failures.saturating_add(attempts)
        } else {
            attempts
        };
        self.failed = Some(time);
    }

    fn succeed(&mut self, event: &LoginEvent, time: DateTime<Utc>) {
        self.logins = self.logins.saturating_add(1);
        let (day, hour) = slot(time);
        self.hours[day][hour] = self.hours[day][hour].saturating_add(1);
        if event.client_address.is_empty() {
            return;
        }
        self.addresses.insert(event.client_address.clone(), time);
        if self.addresses.len() > ADDRESSES {
            let oldest = self.addresses.iter().min_by_key(|(_, time)| **time);
            if let Some(oldest) = oldest.map(|(address, _)| address.clone()) {
                self.addresses.remove(&oldest);
            }
        }
    }
}

/// What a login says of the address that it came from, whoever the user is.
pub fn of_address(event: &LoginEvent, time: DateTime<Utc>) -> Option<Entry> {
    let (what, weight, summary) = match event.outcome() {
        Outcome::UnknownUser => ("unknown_user", 4.0, "tried a login that does not exist"),
        Outcome::RateLimited => ("rate_limited", 25.0, "too many login attempts"),
        Outcome::WrongPassword => ("failed", 2.0, "tried a wrong password"),
        _ => return None,
    };
    (!event.client_address.is_empty()).then(|| Entry {
        entity: host(&event.client_address),
        kind: format!("login.{what}"),
        reference: hour_of(time),
        through: None,
        time,
        weight,
        count: event.attempts.max(1).into(),
        summary: summary.to_owned(),
        alert: None,
    })
}

/// What so many of an hour's entries of one kind add together: the tenth as much as the second.
pub fn many(weight: f64, count: u64) -> f64 {
    weight * (1.0 + (count.max(1) as f64).log2())
}

fn hour_of(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%dT%H").to_string()
}

fn slot(time: DateTime<Utc>) -> (usize, usize) {
    let weekend = time.weekday().num_days_from_monday() >= 5;
    (usize::from(weekend), time.hour() as usize)
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone as _;
    use garrison_proto::to_timestamp;

    use super::*;

    fn at(day: u32, hour: u32) -> DateTime<Utc> {
        // 2026-11-02 is a Monday.
        Utc.with_ymd_and_hms(2026, 11, day, hour, 0, 0).unwrap()
    }

    fn login(outcome: Outcome, address: &str) -> LoginEvent {
        LoginEvent {
            user: "users/1".to_owned(),
            login: "ada".to_owned(),
            outcome: outcome.into(),
            client_address: address.to_owned(),
            ..LoginEvent::default()
        }
    }

    fn settled() -> Profile {
        let mut profile = Profile::default();
        for day in 2..7 {
            for hour in [8, 9, 13] {
                assert_eq!(
                    profile.observe(&login(Outcome::Succeeded, "10.0.0.5"), at(day, hour)),
                    []
                );
            }
        }
        profile
    }

    fn kinds(entries: &[Entry]) -> Vec<&str> {
        entries.iter().map(|entry| entry.kind.as_str()).collect()
    }

    #[test]
    fn what_a_user_never_did_is_odd_once_the_user_is_known() {
        let mut profile = settled();
        let usual = profile
            .clone()
            .observe(&login(Outcome::Succeeded, "10.0.0.5"), at(9, 10));
        assert_eq!(kinds(&usual), [""; 0], "an hour beside a known one");
        let odd = profile.observe(&login(Outcome::Succeeded, "203.0.113.7"), at(9, 3));
        assert_eq!(kinds(&odd), ["login.new_address", "login.unusual_hour"]);
        let again = profile.observe(&login(Outcome::Succeeded, "203.0.113.7"), at(10, 3));
        assert_eq!(kinds(&again), [""; 0], "it is known now");
    }

    #[test]
    fn a_guessed_password_is_graver_than_a_mistyped_one() {
        let mut profile = settled();
        let mut guess = login(Outcome::WrongPassword, "10.0.0.5");
        guess.attempts = 6;
        assert_eq!(kinds(&profile.observe(&guess, at(9, 9))), ["login.failed"]);
        let got_in = profile
            .clone()
            .observe(&login(Outcome::Succeeded, "10.0.0.5"), at(9, 9));
        assert_eq!(kinds(&got_in), ["login.after_failures"]);
        let later = profile.observe(&login(Outcome::Succeeded, "10.0.0.5"), at(9, 13));
        assert_eq!(kinds(&later), [""; 0]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut profile = Profile::default();
        for i in 0..1_000 {
            profile.observe(
                &login(Outcome::Succeeded, &format!("10.0.{}.{}", i / 250, i % 250)),
                at(2, 8),
            );
        }
        assert_eq!(profile.addresses.len(), ADDRESSES);
        assert_eq!(profile.logins, 1_000);
    }

    #[test]
    fn an_alert_counts_for_who_did_it_and_less_for_whom_it_hit() {
        let alert = Alert {
            alert_id: uuid::Uuid::now_v7().to_string(),
            detector: "scan.vertical".to_owned(),
            title: "a scan".to_owned(),
            severity: Severity::High.into(),
            confidence: 1.0,
            entity: Some(host("10.0.0.9")),
            targets: vec![host("10.0.0.1"), host("10.0.0.9")],
            count: 1,
            last_seen: Some(to_timestamp(at(9, 9))),
            ..Alert::default()
        };
        let entries = of_alert(&alert, at(9, 10)).unwrap();
        let told: Vec<_> = entries
            .iter()
            .map(|e| (e.entity.value.as_str(), e.weight, e.time))
            .collect();
        assert_eq!(told, [("10.0.0.9", 60.0, at(9, 9)), ("10.0.0.1", 18.0, at(9, 9))]);
        let of_user = through(&entries[0], user("ada")).unwrap();
        assert_eq!(
            (of_user.weight, of_user.through.clone()),
            (30.0, Some(host("10.0.0.9")))
        );
        assert_eq!(through(&of_user, host("10.0.0.3")), None, "no further than one step");
        assert_eq!(of_alert(&Alert::default(), at(9, 9)), None);
    }

    #[test]
    fn risk_grows_with_what_speaks_against_one_and_never_beyond_a_hundred() {
        assert_eq!(risk(0.0), 0.0);
        assert!(risk(60.0) > 40.0 && risk(60.0) < 50.0);
        assert!(risk(1e9) <= 100.0);
        assert!(many(2.0, 1_000) < 25.0);
    }
}
