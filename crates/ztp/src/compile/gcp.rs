//! VPC firewall rules of Google Cloud, as Terraform JSON and as bodies of `compute.firewalls.insert`.
//!
//! The language's order becomes priorities. Rules are for the whole network and name governed addresses as
//! destination (ingress) or source (egress) ranges, so no tags have to be set on instances. What nothing governs is
//! allowed by the last rules, as Google Cloud would deny it otherwise.

use std::borrow::Borrow;

use serde_json::{Map, Value, json};

use super::{
    Compiled, CompiledFile,
    ordered::{Entry, by_address, entries, families, name},
    project::{Says, project},
};
use crate::{
    ir::{Direction, Policy},
    sets::{PORT_PROTOCOLS, ServiceSet},
};

/// The most rules of a project that are taken for ours (the provider's quota is 100 at first and can be raised).
pub(super) const RULES: usize = 1_000;
/// The most ranges of one list of a rule.
const RANGES: usize = 5_000;
/// The priority of the last rules, before the implied ones at 65535.
const LAST: u64 = 65_534;

/// Compiles the enforced policies to firewall rules. When they do not fit, no file is written, and a gap says why.
pub fn gcp<P: Borrow<Policy>>(policies: &[P]) -> Compiled {
    let mut out = Compiled::default();
    let says = Says {
        target: "Google Cloud",
        by_address: true,
        ..Says::default()
    };
    let policies = project(policies, &says, &mut out);
    let policies = by_address(&policies, "Google Cloud", None, &mut out);
    let mut rules: Vec<Value> = Vec::new();
    for direction in Direction::BOTH {
        let mut priority = 1_000;
        for entry in entries(&policies, direction, None) {
            rules.extend(write(&entry, direction, priority, rules.len()));
            priority += 10;
        }
        if priority >= LAST {
            return refused(out, "there are more rules than priorities");
        }
    }
    if rules.is_empty() {
        return out;
    }
    for (direction, word) in [(Direction::Ingress, "INGRESS"), (Direction::Egress, "EGRESS")] {
        let range = match direction {
            Direction::Ingress => "sourceRanges",
            Direction::Egress => "destinationRanges",
        };
        for (family, all) in [("v4", "0.0.0.0/0"), ("v6", "::/0")] {
            rules.push(json!({
                "name": format!("garrison-{}-ungoverned-{family}", direction.as_str()),
                "description": "Garrison: nothing governs it",
                "direction": word,
                "priority": LAST,
                "allowed": [{ "IPProtocol": "all" }],
                range: [all],
            }));
        }
    }
    if rules.len() > RULES {
        return refused(out, &format!("they are {} rules where {RULES} are taken", rules.len()));
    }
    let too_long = rules.iter().any(|rule| {
        ["sourceRanges", "destinationRanges"]
            .iter()
            .any(|list| rule[list].as_array().is_some_and(|l| l.len() > RANGES))
    });
    if too_long {
        return refused(out, &format!("a rule names more than {RANGES} ranges"));
    }
    out.files.push(file("gcp/garrison.tf.json", &terraform(&rules)));
    out.files.push(file("gcp/firewalls.json", &json!(rules)));
    out
}

pub(super) fn refused(mut out: Compiled, why: &str) -> Compiled {
    out.files.clear();
    out.gap(
        "*",
        format!("the policies do not fit: {why}; keep the rules that are in place"),
    );
    out
}

pub(super) fn file(path: &str, value: &Value) -> CompiledFile {
    CompiledFile {
        path: path.to_owned(),
        content: format!("{value:#}\n"),
    }
}

fn write(entry: &Entry<'_>, direction: Direction, priority: u64, number: usize) -> Vec<Value> {
    let (word, own, other) = match direction {
        Direction::Ingress => ("INGRESS", "destinationRanges", "sourceRanges"),
        Direction::Egress => ("EGRESS", "sourceRanges", "destinationRanges"),
    };
    let protocols = protocols(&entry.services);
    let mut rules = Vec::new();
    for (subject, peers) in families(entry.subject).into_iter().zip(families(&entry.peers)) {
        if subject.is_empty() || peers.is_empty() {
            continue;
        }
        rules.push(json!({
            "name": name(number + rules.len(), &entry.policy.name, entry.rule, 63),
            "description": format!("ZeroTrustPolicy {} {} ({})", entry.policy.reference(), entry.rule, entry.field),
            "direction": word,
            "priority": priority,
            if entry.allows { "allowed" } else { "denied" }: protocols,
            own: subject,
            other: peers,
        }));
    }
    rules
}

pub(super) fn protocols(set: &ServiceSet) -> Vec<Value> {
    if set.is_full() {
        return vec![json!({ "IPProtocol": "all" })];
    }
    let mut all = Vec::new();
    for (number, protocol) in PORT_PROTOCOLS.into_iter().zip(["tcp", "udp", "sctp"]) {
        let Some(ports) = set.ports(number).filter(|ports| !ports.is_empty()) else {
            continue;
        };
        if ports.is_full() {
            all.push(json!({ "IPProtocol": protocol }));
        } else {
            all.push(json!({ "IPProtocol": protocol, "ports": super::ordered::ports(ports) }));
        }
    }
    all.extend(set.portless().map(|number| {
        let protocol = if number == 1 {
            "icmp".to_owned()
        } else {
            number.to_string()
        };
        json!({ "IPProtocol": protocol })
    }));
    all
}

/// The same rules for Terraform's provider `google`; `network` is a variable.
fn terraform(rules: &[Value]) -> Value {
    let mut resources = Map::new();
    for rule in rules {
        let mut resource = Map::new();
        for (key, to) in [
            ("name", "name"),
            ("description", "description"),
            ("direction", "direction"),
            ("priority", "priority"),
            ("sourceRanges", "source_ranges"),
            ("destinationRanges", "destination_ranges"),
        ] {
            if let Some(value) = rule.get(key) {
                resource.insert(to.to_owned(), value.clone());
            }
        }
        for (key, to) in [("allowed", "allow"), ("denied", "deny")] {
            if let Some(Value::Array(list)) = rule.get(key) {
                let list: Vec<Value> = list
                    .iter()
                    .map(|entry| {
                        let mut written = Map::from_iter([("protocol".to_owned(), entry["IPProtocol"].clone())]);
                        if let Some(ports) = entry.get("ports") {
                            written.insert("ports".to_owned(), ports.clone());
                        }
                        Value::Object(written)
                    })
                    .collect();
                resource.insert(to.to_owned(), Value::Array(list));
            }
        }
        resource.insert("network".to_owned(), json!("${var.network}"));
        let key = rule["name"].as_str().unwrap_or_default().replace('-', "_");
        resources.insert(key, Value::Object(resource));
    }
    json!({
        "//": "Generated by Garrison. Changes here are lost.",
        "variable": { "network": { "type": "string", "description": "The VPC network" } },
        "resource": { "google_compute_firewall": resources },
    })
}
