use chrono::Utc;
use garrison_proto::alert::v1::{Alert, Entity, EntityKind};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::alert::tests::sample;

const GOOD: &str = "\
apiVersion: garrison.dev/v1alpha1
kind: Playbook
metadata: { name: block-scanners }
spec:
  when: { detectors: ['scan.*'], minSeverity: high, minConfidence: 0.8 }
  do:
    - { action: block, target: source, ttl: 1h, priority: 10 }
";

fn fields(document: &str) -> Vec<String> {
    Playbook::parse(document)
        .unwrap_err()
        .into_iter()
        .map(|v| v.field)
        .collect()
}

#[test]
fn reads_a_document_and_drafts_its_actions() {
    let playbook = Playbook::parse(GOOD).unwrap();
    let alert = AlertFacts::read(&sample("198.51.100.9", &["10.0.0.2"]), Utc::now()).unwrap();
    let incident = Incident::open(Uuid::now_v7(), &alert, Utc::now());
    assert!(playbook.matches(&alert, &incident, &[]));
    let drafts = playbook.drafts(&alert);
    assert_eq!(drafts.len(), 1);
    assert_eq!(drafts[0].target.to_string(), "198.51.100.9");
    assert_eq!(drafts[0].ttl, Some(Duration::hours(1)));

    let mut weak = alert.clone();
    weak.severity = Severity::Medium;
    assert!(!playbook.matches(&weak, &incident, &[]));
    let mut unsure = alert.clone();
    unsure.confidence = 0.79;
    assert!(!playbook.matches(&unsure, &incident, &[]));
    let mut other = alert;
    other.detector = "bruteforce.http".into();
    assert!(!playbook.matches(&other, &incident, &[]));
}

#[test]
fn a_source_that_no_action_may_touch_makes_no_draft() {
    let playbook = Playbook::parse(GOOD).unwrap();
    for source in [
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "ff02::1",
        "::ffff:127.0.0.1",
    ] {
        let alert = AlertFacts::read(&sample(source, &["10.0.0.2"]), Utc::now()).unwrap();
        assert!(playbook.drafts(&alert).is_empty(), "{source}");
    }
}

#[test]
fn sides_are_judged_by_the_tenants_networks() {
    let inside = GOOD.replace("minSeverity: high", "source: internal, destination: external");
    let playbook = Playbook::parse(&inside).unwrap();
    let internal = ["10.0.0.0/8".parse().unwrap()];
    let judge = |from: &str, to: &str| {
        let alert = AlertFacts::read(&sample(from, &[to]), Utc::now()).unwrap();
        let incident = Incident::open(Uuid::now_v7(), &alert, Utc::now());
        playbook.matches(&alert, &incident, &internal)
    };
    assert!(judge("10.0.0.1", "192.0.2.1"));
    assert!(!judge("10.0.0.1", "10.0.0.2"));
    assert!(!judge("192.0.2.1", "192.0.2.2"));
}

#[test]
fn every_mistake_is_named_at_its_place() {
    let wrong = GOOD
        .replace("v1alpha1", "v7")
        .replace("block-scanners", "Block_Scanners")
        .replace("'scan.*'", "'sc*an'")
        .replace("high", "loud")
        .replace("0.8", "80")
        .replace("action: block", "action: rate-limit")
        .replace("ttl: 1h", "ttl: 1 hour, approval: maybe")
        .replace("target: source", "target: everyone")
        .replace("priority: 10", "priority: 5000");
    assert_eq!(
        fields(&wrong),
        [
            "apiVersion",
            "metadata.name",
            "spec.when.detectors[0]",
            "spec.when.minSeverity",
            "spec.when.minConfidence",
            "spec.do[0].target",
            "spec.do[0].ttl",
            "spec.do[0].approval",
            "spec.do[0].packetsPerSecond",
            "spec.do[0].priority",
        ]
    );
    assert_eq!(fields(""), ["document"]);
    assert_eq!(fields("a: [b"), ["document"]);
    let unknown = Playbook::parse(&GOOD.replace("ttl: 1h", "tll: 1h")).unwrap_err();
    assert!(unknown[0].message.contains("tll"), "{}", unknown[0].message);
    assert!(unknown[0].message.contains('7'), "no line: {}", unknown[0].message);
    assert_eq!(fields(&"x".repeat(MAX_DOCUMENT + 1)), ["document"]);
}

#[test]
fn the_default_set_is_valid() {
    let documents = split(include_str!("../../../playbooks/default.yaml"));
    let names: Vec<String> = documents.iter().map(|d| Playbook::parse(d).unwrap().name).collect();
    assert_eq!(
        names,
        [
            "block-brute-force",
            "block-scanners",
            "slow-down-scanners",
            "isolate-forbidden-contact"
        ]
    );
}

#[test]
fn the_highest_priority_wins() {
    let playbook = Playbook::parse(GOOD).unwrap();
    let alert = AlertFacts::read(&sample("198.51.100.9", &[]), Utc::now()).unwrap();
    let low = playbook.drafts(&alert).remove(0);
    let high = Draft {
        priority: 20,
        approval: true,
        ..low.clone()
    };
    let equal = Draft {
        approval: true,
        ..low.clone()
    };
    assert_eq!(strongest(vec![low.clone(), high.clone()]), vec![high]);
    assert_eq!(strongest(vec![equal, low.clone()]), vec![low]);
}

#[test]
fn durations_are_read() {
    assert_eq!(duration("1h30m"), Some(Duration::minutes(90)));
    assert_eq!(duration("2d"), Some(Duration::days(2)));
    for bad in [
        "",
        "5",
        "h",
        "1w",
        "-1s",
        "1.5h",
        "99999999999999999999s",
        "9999999999999999d",
    ] {
        assert_eq!(duration(bad), None, "{bad}");
    }
}

proptest! {
    #[test]
    fn hostile_documents_never_panic(text in "\\PC{0,200}") {
        let _ = Playbook::parse(&text);
        let _ = duration(&text);
    }
}

/// The alerts are those that anomaly raises; its tests compare the file with what it really makes.
#[test]
fn the_default_set_acts_on_the_alerts_that_are_raised() {
    #[derive(serde::Deserialize)]
    struct Raised {
        case: String,
        detector: String,
        severity: String,
        confidence: f64,
        count: u64,
        source: String,
        target: Named,
    }
    #[derive(serde::Deserialize)]
    struct Named {
        kind: String,
        value: String,
    }
    let playbooks: Vec<Playbook> = split(include_str!("../../../playbooks/default.yaml"))
        .iter()
        .map(|document| Playbook::parse(document).unwrap())
        .collect();
    let internal: Vec<IpNet> = ["10.0.0.0/8".parse().unwrap()].to_vec();
    let mut acted: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
    let mut act = |case: &str, alert: &Alert| {
        let facts = AlertFacts::read(alert, Utc::now()).unwrap();
        let incident = Incident::open(Uuid::now_v7(), &facts, Utc::now());
        let matching = playbooks.iter().filter(|p| p.matches(&facts, &incident, &internal));
        acted.insert(case.to_owned(), matching.map(|p| p.name.clone()).collect());
    };
    let raised: Vec<Raised> =
        serde_json::from_str(include_str!("../../../../../proto/fixtures/behaviours.json")).unwrap();
    for raised in raised {
        let mut alert = sample(&raised.source, &[]);
        alert.targets.push(Entity {
            kind: EntityKind::from_str_name(&raised.target.kind).unwrap().into(),
            value: raised.target.value,
        });
        alert.detector = raised.detector;
        alert.severity = Severity::from_str_name(&raised.severity).unwrap().into();
        alert.confidence = raised.confidence;
        alert.count = raised.count;
        act(&raised.case, &alert);
    }
    // As policy makes it, between two internal hosts and from outside.
    for (case, source) in [
        ("forbidden inside", "10.0.0.7"),
        ("forbidden from outside", "203.0.113.9"),
    ] {
        let mut alert = sample(source, &["10.0.0.2"]);
        alert.detector = "policy.violation".into();
        alert.confidence = 1.0;
        act(case, &alert);
    }
    let acted: Vec<(&str, Vec<&str>)> = acted
        .iter()
        .map(|(case, names)| (case.as_str(), names.iter().map(String::as_str).collect()))
        .collect();
    assert_eq!(
        acted,
        [
            // A person looks at it first.
            ("beacon, at first", vec![]),
            ("beacon, at its gravest", vec![]),
            ("contact, at first", vec![]),
            ("contact, at its gravest", vec![]),
            ("forbidden from outside", vec![]),
            ("forbidden inside", vec!["isolate-forbidden-contact"]),
            ("hosts, at first", vec!["slow-down-scanners"]),
            ("hosts, at its gravest", vec!["block-scanners"]),
            ("lateral, at first", vec![]),
            ("lateral, at its gravest", vec![]),
            ("logins, at first", vec!["block-brute-force"]),
            ("logins, at its gravest", vec!["block-brute-force"]),
            ("ports, at first", vec!["slow-down-scanners"]),
            ("ports, at its gravest", vec!["block-scanners"]),
            ("sessions, at first", vec!["block-brute-force"]),
            ("sessions, at its gravest", vec!["block-brute-force"]),
            ("slow scan, at first", vec!["slow-down-scanners"]),
            ("slow scan, at its gravest", vec!["slow-down-scanners"]),
        ]
    );
    for playbook in &playbooks {
        let used = acted.iter().any(|(_, names)| names.contains(&playbook.name.as_str()));
        assert!(used, "nothing that is raised triggers {}", playbook.name);
    }
}
