//! From a detector's finding to an alert: fingerprint, folding of repeats, ids that a replay gives again.

use garrison_proto::{
    TenantId,
    alert::v1::{Alert, Entity, EntityKind, Feature, Severity, Technique},
};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    behaviour::Row,
    bounded::BoundedMap,
    detector::Detector,
    settings::Settings,
    threat::ThreatClass,
    window::{FlowRef, Host, Nanos, timestamp},
};

/// What a detector found in one record.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Who found it.
    pub detector: Detector,
    /// One line for people.
    pub title: String,
    /// How grave.
    pub severity: Severity,
    /// How sure, 0 to 1.
    pub confidence: f64,
    /// The source.
    pub source: Host,
    /// Whom it concerns.
    pub targets: Vec<Target>,
    /// Findings with the same source and subject are repeats of each other.
    pub subject: String,
    /// Techniques shown.
    pub techniques: Vec<Technique>,
    /// The numbers that mattered.
    pub features: Vec<Feature>,
    /// The flows that it rests on.
    pub flows: Vec<FlowRef>,
    /// Capture time of the record that crossed the threshold.
    pub trigger: Nanos,
    /// Its score.
    pub score: f64,
    /// The threshold it crossed.
    pub threshold: f64,
    /// When it is graver than its severity says.
    pub loud: Option<Loud>,
    /// What it looks like to the classifier of threats, where that was asked.
    pub class: Option<ThreatClass>,
}

impl Finding {
    /// A finding about one row, with everything that is the same for most detectors; the rest is to be filled in.
    pub fn of(detector: Detector, row: &Row<'_>, subject: String) -> Self {
        Self {
            detector,
            title: String::new(),
            severity: detector.severity(),
            confidence: 0.5,
            source: row.src(),
            targets: Vec::new(),
            subject,
            techniques: detector.techniques(),
            features: Vec::new(),
            flows: vec![row.flow_ref()],
            trigger: row.facts.time[row.i],
            score: 1.0,
            threshold: 1.0,
            loud: None,
            class: None,
        }
    }
}

/// What makes a finding grave: its repeats' scores add up to so much within so much time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loud {
    /// The sum.
    pub score: f64,
    /// The time, of the records themselves.
    pub within: Nanos,
}

/// Whom a finding concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A host.
    Host(Host),
    /// A service: host, port, IP protocol number.
    Service(Host, u16, u8),
}

impl Target {
    fn to_proto(self) -> Entity {
        match self {
            Self::Host(host) => Entity {
                kind: EntityKind::Host.into(),
                value: host.to_string(),
            },
            Self::Service(host, port, protocol) => Entity {
                kind: EntityKind::Service.into(),
                value: service_name(host, port, protocol),
            },
        }
    }
}

/// A service as alerts name it: `ip:port/proto`, an IPv6 address in brackets.
pub fn service_name(host: Host, port: u16, protocol: u8) -> String {
    let protocol = match protocol {
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => other.to_string(),
    };
    format!("{}/{protocol}", std::net::SocketAddr::new(host.ip(), port))
}

/// Identifies findings that are repeats of each other: the first half of a SHA-256.
pub type Fingerprint = [u8; 16];

/// What is known of an alert while its repeats are folded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fold {
    /// Capture time that opened it.
    pub opened: Nanos,
    /// Earliest flow of all findings.
    pub first_seen: Nanos,
    /// Findings so far.
    pub count: u64,
    /// The count at which it is published again.
    pub next: u64,
    /// When the period began that loudness is measured in.
    pub period: Nanos,
    /// Sum of the scores of that period.
    pub period_score: f64,
    /// It was loud once, and is grave since.
    pub loud: bool,
    /// The budget held it back, and it was not told since.
    pub held: bool,
}

impl Fold {
    fn open(trigger: Nanos, first_seen: Nanos) -> Self {
        Self {
            opened: trigger,
            first_seen,
            count: 0,
            next: 1,
            period: trigger,
            period_score: 0.0,
            loud: false,
            held: false,
        }
    }

    /// Adds a finding to the period that it is in. True when that made the alert loud.
    fn grows_loud(&mut self, finding: &Finding) -> bool {
        let Some(loud) = finding.loud else {
            return false;
        };
        if finding.trigger.saturating_sub(self.period) > loud.within {
            self.period = finding.trigger;
            self.period_score = 0.0;
        }
        self.period_score += finding.score;
        let now = !self.loud && self.period_score >= loud.score;
        self.loud |= now;
        now
    }
}

/// A finding that was counted in its fold.
pub struct Step<'a> {
    /// What it is about.
    pub fingerprint: Fingerprint,
    /// The fold, with it.
    pub fold: &'a mut Fold,
    /// It is the first, the count reached the next step of 1, 2, 5, 10, 20, 50, 100, …, or it has become loud.
    pub due: bool,
}

impl Step<'_> {
    /// How grave the alert is by now.
    pub fn severity(&self, finding: &Finding) -> i32 {
        if self.fold.loud {
            (finding.severity as i32).max(Severity::High.into())
        } else {
            finding.severity.into()
        }
    }

    /// The alert as it is by now.
    pub fn alert(&self, finding: &Finding, settings: &Settings, detected: Nanos) -> Alert {
        alert(finding, self, settings, detected)
    }
}

/// Counts a finding in its fold, which begins anew when its time is over.
pub fn advance<'a>(
    folds: &'a mut BoundedMap<Fingerprint, Fold>,
    finding: &Finding,
    tenant: &TenantId,
    settings: &Settings,
) -> Step<'a> {
    let fingerprint = fingerprint(tenant, finding);
    let first_flow = finding.flows.iter().map(|f| f.first_seen).min();
    let first_seen = first_flow.unwrap_or(finding.trigger).min(finding.trigger);
    let fresh = Fold::open(finding.trigger, first_seen);
    let fold = folds.get_or_insert_with(fingerprint, || fresh);
    if finding.trigger.saturating_sub(fold.opened) > settings.fold {
        *fold = fresh;
    }
    fold.count += 1;
    fold.first_seen = fold.first_seen.min(first_seen);
    let grew_loud = fold.grows_loud(finding);
    let due = fold.count >= fold.next || grew_loud;
    if fold.count >= fold.next {
        fold.next = next_step(fold.next);
    }
    Step { fingerprint, fold, due }
}

/// Folds a finding that is never held back. Returns the alert, which keeps its id, when it is due.
pub fn fold(
    folds: &mut BoundedMap<Fingerprint, Fold>,
    finding: &Finding,
    tenant: &TenantId,
    settings: &Settings,
    detected: Nanos,
) -> Option<Alert> {
    let step = advance(folds, finding, tenant, settings);
    step.due.then(|| step.alert(finding, settings, detected))
}

fn next_step(step: u64) -> u64 {
    let mut decade = 1_u64;
    while step / decade >= 10 {
        decade *= 10;
    }
    match step / decade {
        1 => decade.saturating_mul(2),
        2..=4 => decade.saturating_mul(5),
        _ => decade.saturating_mul(10),
    }
}

fn fingerprint(tenant: &TenantId, finding: &Finding) -> Fingerprint {
    let mut hash = Sha256::new();
    for part in [
        tenant.as_str(),
        finding.detector.id(),
        &finding.source.to_string(),
        &finding.subject,
    ] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    first_half(&hash.finalize())
}

fn first_half(hash: &[u8]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    half
}

// A UUIDv7 whose time is that of the first finding's trigger and whose other bits come from what makes the alert
// itself, so that its repeats and a replay of the same messages give the same id.
pub(super) fn alert_id(fingerprint: &Fingerprint, fold: Fold) -> Uuid {
    timed_id(fold.opened / 1_000_000, fingerprint, fold.opened.to_be_bytes())
}

/// The id of the message that publishes an alert: the alert's own for the first, which is its id in traces and logs,
/// and for each later one an id that a replay gives again. `None` when the alert has no id.
pub fn message_id(alert: &Alert) -> Option<Uuid> {
    let id: Uuid = alert.alert_id.parse().ok()?;
    if alert.count <= 1 {
        return Some(id);
    }
    let trigger = alert.trigger_time.unwrap_or_default();
    let millis = trigger.seconds * 1_000 + i64::from(trigger.nanos) / 1_000_000;
    Some(timed_id(millis, id.as_bytes(), alert.count.to_be_bytes()))
}

// A UUIDv7 that is always the same for the same parts.
fn timed_id(millis: i64, what: &[u8; 16], which: [u8; 8]) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(what);
    hash.update(which);
    let mut random = [0; 10];
    random.copy_from_slice(&hash.finalize()[..10]);
    uuid::Builder::from_unix_timestamp_millis(u64::try_from(millis).unwrap_or(0), &random).into_uuid()
}

fn alert(finding: &Finding, step: &Step<'_>, settings: &Settings, detected: Nanos) -> Alert {
    let (fold, fingerprint) = (*step.fold, step.fingerprint);
    let skip = finding.flows.len().saturating_sub(settings.flows_an_alert);
    let last_flow = finding.flows.iter().map(|f| f.last_seen).max();
    Alert {
        alert_id: alert_id(&fingerprint, fold).to_string(),
        detector: finding.detector.id().to_owned(),
        title: finding.title.clone(),
        severity: step.severity(finding),
        confidence: finding.confidence.clamp(0.0, 1.0),
        entity: Some(Target::Host(finding.source).to_proto()),
        targets: finding
            .targets
            .iter()
            .take(settings.targets_an_alert)
            .map(|t| t.to_proto())
            .collect(),
        techniques: finding.techniques.clone(),
        features: finding.features.clone(),
        // The latest ones, among them the flow that crossed the threshold.
        flows: finding.flows[skip..].iter().map(FlowRef::to_proto).collect(),
        first_seen: Some(timestamp(fold.first_seen)),
        last_seen: Some(timestamp(last_flow.unwrap_or(finding.trigger).max(finding.trigger))),
        trigger_time: Some(timestamp(finding.trigger)),
        detected_time: Some(timestamp(detected)),
        count: fold.count,
        policy: String::new(),
        fingerprint: hex::encode(fingerprint),
        score: finding.score,
        threshold: finding.threshold,
        indicators: Vec::new(),
        classification: finding.class.as_ref().map(ThreatClass::to_proto),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        shard::tests::settings,
        window::{SECOND, tests::flow_ref},
    };

    fn finding(trigger: Nanos) -> Finding {
        Finding {
            detector: Detector::ScanVertical,
            title: "t".to_owned(),
            severity: Severity::Medium,
            confidence: 0.9,
            source: Host::from("10.0.0.9".parse::<std::net::IpAddr>().unwrap()),
            targets: vec![Target::Service(Host(1), 80, 6); 100],
            subject: "10.0.0.1".to_owned(),
            techniques: Detector::ScanVertical.techniques(),
            features: Vec::new(),
            flows: (0..100).map(flow_ref).collect(),
            trigger,
            score: 15.0,
            threshold: 15.0,
            loud: Some(Loud {
                score: 75.0,
                within: 60 * SECOND,
            }),
            class: None,
        }
    }

    fn run(tenant: &str, triggers: &[Nanos]) -> Vec<Alert> {
        let mut folds = BoundedMap::new(10);
        let tenant = tenant.parse().unwrap();
        triggers
            .iter()
            .filter_map(|t| fold(&mut folds, &finding(*t), &tenant, &settings(), 7))
            .collect()
    }

    #[test]
    fn repeats_are_folded_and_told_at_growing_steps() {
        let triggers: Vec<Nanos> = (1..=120).map(|s| s * SECOND).collect();
        let alerts = run("acme", &triggers);
        let counts: Vec<u64> = alerts.iter().map(|a| a.count).collect();
        assert_eq!(counts, [1, 2, 5, 10, 20, 50, 100]);
        assert!(alerts.iter().all(|a| a.fingerprint == alerts[0].fingerprint));
        // One alert, which every message tells anew.
        assert!(alerts.iter().all(|a| a.alert_id == alerts[0].alert_id));
        let messages: std::collections::BTreeSet<_> = alerts.iter().map(|a| message_id(a).unwrap()).collect();
        assert_eq!(messages.len(), alerts.len());
        assert_eq!(message_id(&alerts[0]).unwrap().to_string(), alerts[0].alert_id);
        assert!(alerts.iter().all(|a| message_id(a) == message_id(a)));
        assert!(alerts.iter().all(|a| a.flows.len() == 32 && a.targets.len() == 32));
        assert_eq!(alerts[0].flows[31].flow_id, garrison_flow::flow_id_text(&[99; 16]));
    }

    #[test]
    fn what_is_loud_is_grave_at_once_and_what_is_slow_is_not() {
        let severities = |pause: Nanos, repeats: i64| -> Vec<(u64, Severity)> {
            let triggers: Vec<Nanos> = (1..=repeats).map(|n| n * pause).collect();
            run("acme", &triggers).iter().map(|a| (a.count, a.severity())).collect()
        };
        // 15 a second: the fifth finding makes 75 within a minute.
        assert_eq!(
            severities(SECOND, 12),
            [
                (1, Severity::Medium),
                (2, Severity::Medium),
                (5, Severity::High),
                (10, Severity::High)
            ]
        );
        // 15 in 16 seconds are 60 a minute.
        assert!(severities(16 * SECOND, 100).iter().all(|(_, s)| *s == Severity::Medium));
        // It need not wait for the next step of the count: quiet first, then loud with the eighth.
        let quiet = (0..3).map(|n| n * 100 * SECOND);
        let loud = (1..=5).map(|n| 1_000 * SECOND + n);
        let told: Vec<_> = run("acme", &quiet.chain(loud).collect::<Vec<_>>());
        let last = told.last().unwrap();
        assert_eq!((last.count, last.severity()), (8, Severity::High));
    }

    #[test]
    fn after_the_fold_window_it_is_a_new_alert() {
        let late = SECOND + settings().fold + 1;
        let counts: Vec<u64> = run("acme", &[SECOND, late]).iter().map(|a| a.count).collect();
        assert_eq!(counts, [1, 1]);
    }

    #[test]
    fn ids_are_those_of_a_replay_and_never_those_of_another_tenant() {
        let triggers = [SECOND, 2 * SECOND];
        assert_eq!(run("acme", &triggers), run("acme", &triggers));
        let (a, b) = (run("acme", &triggers), run("other", &triggers));
        assert!(a.iter().zip(&b).all(|(a, b)| a.alert_id != b.alert_id));
        let id: Uuid = a[0].alert_id.parse().unwrap();
        assert_eq!(id.get_version_num(), 7);
        assert_eq!(id.get_timestamp().unwrap().to_unix().0, 1);
    }

    #[test]
    fn steps_grow() {
        let mut step = 1;
        for want in [2, 5, 10, 20, 50, 100, 200, 500, 1_000] {
            step = next_step(step);
            assert_eq!(step, want);
        }
        assert!(next_step(u64::MAX) >= 10_000_000_000_000_000_000);
    }

    #[test]
    fn services_are_named_with_their_port_and_protocol() {
        let v6 = Host::from("2001:db8::1".parse::<std::net::IpAddr>().unwrap());
        assert_eq!(service_name(v6, 443, 17), "[2001:db8::1]:443/udp");
        let v4 = Host::from("10.0.0.1".parse::<std::net::IpAddr>().unwrap());
        assert_eq!(service_name(v4, 80, 6), "10.0.0.1:80/tcp");
    }
}
