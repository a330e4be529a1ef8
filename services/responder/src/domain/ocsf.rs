//! Alerts in the words of the Open Cybersecurity Schema Framework: Detection Finding, class 2004, version 1.4.0
//! (schema.ocsf.io/1.4.0/classes/detection_finding).

use std::collections::BTreeSet;

use garrison_proto::{
    alert::v1::{Alert, EntityKind, Severity},
    from_timestamp,
};
use serde_json::{Value, json};

use super::{alert::AlertFacts, stage::Stage};

/// The class uid of Detection Finding.
pub const CLASS_UID: u32 = 2004;
/// The schema's version.
pub const VERSION: &str = "1.4.0";
/// The event's type for `ce-type`.
pub const EVENT_TYPE: &str = "ocsf.detection_finding";
/// The ATT&CK version that technique ids are taken from.
const ATTACK_VERSION: &str = "16.1";

/// The finding for an alert. `update` tells a later account of a known alert from a new one; `incident` is
/// the resource name of its incident.
pub fn detection_finding(alert: &Alert, facts: &AlertFacts, tenant: &str, incident: &str, update: bool) -> Value {
    let activity = if update { 2 } else { 1 };
    let severity = match facts.severity {
        Severity::Unspecified => "Unknown",
        Severity::Info => "Informational",
        Severity::Low => "Low",
        Severity::Medium => "Medium",
        Severity::High => "High",
        Severity::Critical => "Critical",
    };
    let detected = alert
        .detected_time
        .as_ref()
        .and_then(from_timestamp)
        .unwrap_or(facts.last_seen);
    let attacks: Vec<Value> = facts
        .techniques
        .iter()
        .map(|technique| {
            let stage = Stage::of_tactic(&technique.tactic);
            let mut attack = json!({
                "version": ATTACK_VERSION,
                "technique": { "uid": technique.id, "name": technique.name },
            });
            if stage != Stage::Unknown {
                attack["tactic"] = json!({ "uid": stage.id(), "name": stage.name() });
            }
            attack
        })
        .collect();
    let evidences: Vec<Value> = alert
        .flows
        .iter()
        .take(100)
        .map(|flow| {
            json!({
                "src_endpoint": { "ip": flow.src_ip, "port": flow.src_port },
                "dst_endpoint": { "ip": flow.dst_ip, "port": flow.dst_port },
                "connection_info": {
                    "uid": flow.flow_id,
                    "community_uid": flow.community_id,
                    "protocol_num": flow.protocol,
                    "direction_id": 0,
                },
            })
        })
        .collect();
    let mut finding = json!({
        "activity_id": activity,
        "activity_name": if update { "Update" } else { "Create" },
        "category_uid": 2,
        "category_name": "Findings",
        "class_uid": CLASS_UID,
        "class_name": "Detection Finding",
        "type_uid": CLASS_UID * 100 + activity,
        "severity_id": facts.severity as i32,
        "severity": severity,
        "status_id": 1,
        "status": "New",
        "time": detected.timestamp_millis(),
        "start_time": facts.first_seen.timestamp_millis(),
        "end_time": facts.last_seen.timestamp_millis(),
        "count": facts.count,
        "message": facts.title,
        "confidence_score": (facts.confidence * 100.0).round() as i64,
        "confidence_id": match facts.confidence {
            c if c < 0.4 => 1,
            c if c < 0.75 => 2,
            _ => 3,
        },
        "is_alert": facts.severity >= Severity::Medium,
        "metadata": {
            "version": VERSION,
            "product": {
                "name": "Garrison",
                "vendor_name": "Garrison",
                "version": env!("CARGO_PKG_VERSION"),
                "feature": { "name": facts.detector },
            },
            "tenant_uid": tenant,
            "uid": alert.alert_id,
            "logged_time": detected.timestamp_millis(),
        },
        "finding_info": {
            "uid": alert.alert_id,
            "title": facts.title,
            "types": [facts.detector],
            "analytic": { "type_id": analytic_type(&facts.detector), "name": facts.detector, "uid": facts.detector },
            "first_seen_time": facts.first_seen.timestamp_millis(),
            "last_seen_time": facts.last_seen.timestamp_millis(),
            "attacks": attacks,
            "related_events": [{ "uid": incident, "type": "Incident" }],
        },
        "observables": observables(facts),
    });
    if !evidences.is_empty() {
        finding["evidences"] = json!(evidences);
    }
    if !alert.policy.is_empty() {
        finding["finding_info"]["desc"] = json!(format!("Forbidden by {}", alert.policy));
    }
    finding
}

/// OCSF analytic types: 1 Rule, 2 Behavioral, 4 Learning (ML/DL).
fn analytic_type(detector: &str) -> u8 {
    match detector.split('.').next() {
        Some("policy") => 1,
        Some("model") => 4,
        _ => 2,
    }
}

/// OCSF observable types: 2 IP Address, 4 User Name, 99 Other. Each value once, at most 1000.
fn observables(facts: &AlertFacts) -> Vec<Value> {
    let mut seen = BTreeSet::new();
    std::iter::once(&facts.source)
        .chain(&facts.targets)
        .enumerate()
        .filter_map(|(i, party)| {
            let (type_id, kind, value) = match (party.kind, party.address) {
                (EntityKind::User, _) => (4, "User Name", party.value.clone()),
                (_, Some(address)) => (2, "IP Address", address.to_string()),
                (_, None) => (99, "Other", party.value.clone()),
            };
            let name = if i == 0 { "actor" } else { "target" };
            seen.insert((type_id, value.clone()))
                .then(|| json!({ "name": name, "type_id": type_id, "type": kind, "value": value }))
        })
        .take(1000)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::alert::tests::sample;
    use chrono::Utc;

    #[test]
    fn has_every_attribute_that_the_class_requires() {
        let alert = sample("198.51.100.9", &["10.0.0.2", "198.51.100.9"]);
        let facts = AlertFacts::read(&alert, Utc::now()).unwrap();
        let finding = detection_finding(&alert, &facts, "acme", "incidents/1", false);
        // The attributes with requirement "required" of detection_finding, metadata, product, finding_info
        // and observable in OCSF 1.4.0.
        for path in [
            "/activity_id",
            "/category_uid",
            "/class_uid",
            "/finding_info",
            "/metadata",
            "/severity_id",
            "/time",
            "/type_uid",
            "/metadata/product",
            "/metadata/version",
            "/metadata/product/vendor_name",
            "/finding_info/title",
            "/finding_info/uid",
            "/observables/0/type_id",
            "/observables/0/name",
            "/finding_info/analytic/type_id",
        ] {
            assert!(finding.pointer(path).is_some_and(|v| !v.is_null()), "{path} is missing");
        }
        assert_eq!(finding["type_uid"], 200_401);
        assert_eq!(finding["severity_id"], 4);
        assert_eq!(finding["observables"].as_array().unwrap().len(), 2, "each address once");
        assert_eq!(
            detection_finding(&alert, &facts, "acme", "incidents/1", true)["type_uid"],
            200_402
        );
    }
}
