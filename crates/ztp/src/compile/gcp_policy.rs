//! Firewall policies of Google Cloud: one for a network, and the same for a folder or an organisation.
//!
//! The language's order becomes priorities, each of which a policy has once. Unlike VPC rules, a policy can leave a
//! connection to the next level, so what nothing governs is left to it rather than allowed. Each comes as Terraform JSON
//! and as the body of `compute.networkFirewallPolicies.insert` or `compute.firewallPolicies.insert`.

use std::borrow::Borrow;

use serde_json::{Map, Value, json};

use super::{
    Compiled,
    gcp::{file, protocols, refused},
    ordered::{Entry, Sayable, Tags, by_address, entries, families, name},
    project::{Says, project},
};
use crate::ir::{Direction, Policy};

/// The most attributes of a policy's rules together: ranges, protocols and ports (the provider's quota at first).
const ATTRIBUTES: usize = 2_000;
/// The most ranges of one list of a rule.
const RANGES: usize = 5_000;
/// The first priority, and the step to the next, so that rules can be put between by hand.
const FIRST: u64 = 1_000;
const STEP: u64 = 10;
/// The first of the four priorities that every policy ends with.
const DEFAULTS: u64 = 2_147_483_644;

/// Whether a secure tag can say it: a rule names several as alternatives, and so tells one tag at a time.
const SAYABLE: Sayable = Some(|tags| tags.len() == 1);
/// The most secure tags of one list of a rule.
const TAGS: usize = 256;

/// Compiles the enforced policies to a network firewall policy and a hierarchical one; one of them is to be applied.
/// When they do not fit, no file is written, and a gap says why.
pub fn gcp_firewall_policy<P: Borrow<Policy>>(policies: &[P]) -> Compiled {
    let mut out = Compiled::default();
    let says = Says {
        target: "Google Cloud",
        by_address: true,
        ..Says::default()
    };
    let policies = project(policies, &says, &mut out);
    let policies = by_address(&policies, "Google Cloud", SAYABLE, &mut out);
    let mut rules: Vec<Value> = Vec::new();
    for direction in Direction::BOTH {
        for entry in entries(&policies, direction, SAYABLE) {
            let layer4: Vec<Value> = protocols(&entry.services).into_iter().map(layer4).collect();
            let (word, own, other) = match direction {
                Direction::Ingress => ("INGRESS", "destIpRanges", "srcIpRanges"),
                Direction::Egress => ("EGRESS", "srcIpRanges", "destIpRanges"),
            };
            for (subject, peers) in families(entry.subject).into_iter().zip(families(&entry.peers)) {
                if (subject.is_empty() && entry.tags.is_none()) || peers.is_empty() {
                    continue;
                }
                if subject.len().max(peers.len()) > RANGES {
                    return refused(out, &format!("a rule names more than {RANGES} ranges"));
                }
                let mut matcher = Map::from_iter([
                    (other.to_owned(), json!(peers)),
                    ("layer4Configs".to_owned(), json!(layer4)),
                ]);
                if entry.tags.is_none() {
                    matcher.insert(own.to_owned(), json!(subject));
                }
                rules.push(written(rules.len(), word, &entry, matcher));
            }
            // Who opens a connection can be told by tag, whom it goes to cannot.
            if direction == Direction::Egress && !entry.peer_tags.is_empty() {
                out.gap(
                    format!("{}/{}", entry.policy.name, entry.rule),
                    "Google Cloud does not tell destinations by tag: they are not allowed",
                );
                continue;
            }
            if entry.peer_tags.is_empty() {
                continue;
            }
            if entry.peer_tags.len() > TAGS {
                return refused(out, &format!("a rule names more than {TAGS} tags"));
            }
            let sources: Vec<Value> = entry.peer_tags.iter().copied().map(secure).collect();
            let subjects = match entry.tags {
                Some(_) => vec![None],
                None => families(entry.subject)
                    .into_iter()
                    .filter(|nets| !nets.is_empty())
                    .map(Some)
                    .collect(),
            };
            for subject in subjects {
                let mut matcher = Map::from_iter([
                    ("srcSecureTags".to_owned(), json!(sources)),
                    ("layer4Configs".to_owned(), json!(layer4)),
                ]);
                if let Some(nets) = subject {
                    matcher.insert(own.to_owned(), json!(nets));
                }
                rules.push(written(rules.len(), word, &entry, matcher));
            }
        }
    }
    if rules.is_empty() {
        return out;
    }
    let attributes: usize = rules.iter().map(|rule| attributes(&rule["match"])).sum();
    if attributes > ATTRIBUTES {
        return refused(
            out,
            &format!("their rules have {attributes} attributes where a policy takes {ATTRIBUTES}"),
        );
    }
    const ABOUT: &str = "Generated by Garrison. Changes here are lost.";
    let mut all = rules.clone();
    all.extend(defaults());
    let body = |key: &str| json!({ key: "garrison", "description": ABOUT, "rules": all });
    for (folder, key, resource) in [
        ("gcp-network-policy", "name", with_tags(network(&rules), &rules)),
        (
            "gcp-hierarchical-policy",
            "shortName",
            with_tags(hierarchical(&rules), &rules),
        ),
    ] {
        out.files
            .push(file(&format!("{folder}/firewall-policy.json"), &body(key)));
        out.files.push(file(&format!("{folder}/garrison.tf.json"), &resource));
    }
    out.files.sort_by(|a, b| a.path.cmp(&b.path));
    out
}

/// One rule.
fn written(number: usize, direction: &str, entry: &Entry<'_>, matcher: Map<String, Value>) -> Value {
    let mut rule = json!({
        "ruleName": name(number, &entry.policy.name, entry.rule, 63),
        "description": format!("ZeroTrustPolicy {} {} ({})", entry.policy.reference(), entry.rule, entry.field),
        "priority": FIRST + STEP * number as u64,
        "direction": direction,
        "action": if entry.allows { "allow" } else { "deny" },
        "match": matcher,
    });
    if let Some(tags) = entry.tags {
        rule["targetSecureTags"] = json!([secure(tags)]);
    }
    rule
}

/// A secure tag by its namespaced name; the API wants the number of its value in the place of it.
fn secure(tags: &Tags) -> Value {
    let (key, value) = tags
        .first_key_value()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .unwrap_or_default();
    json!({ "name": format!("TAG_PARENT/{key}/{value}") })
}

/// What VPC rules call `IPProtocol`.
fn layer4(entry: Value) -> Value {
    match entry.get("ports") {
        Some(ports) => json!({ "ipProtocol": entry["IPProtocol"], "ports": ports }),
        None => json!({ "ipProtocol": entry["IPProtocol"] }),
    }
}

fn attributes(matcher: &Value) -> usize {
    let count = |value: &Value| value.as_array().map_or(0, Vec::len);
    let layer4 = matcher["layer4Configs"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    count(&matcher["srcIpRanges"])
        + count(&matcher["srcSecureTags"])
        + count(&matcher["destIpRanges"])
        + layer4.iter().map(|entry| count(&entry["ports"]).max(1)).sum::<usize>()
}

/// The rules that every policy ends with: whatever none matches is left to the next level.
fn defaults() -> Vec<Value> {
    let mut all = Vec::new();
    for (family, range) in [("ipv6", "::/0"), ("ipv4", "0.0.0.0/0")] {
        for (word, list) in [("EGRESS", "destIpRanges"), ("INGRESS", "srcIpRanges")] {
            all.push(json!({
                "ruleName": format!("garrison-next-{}-{family}", word.to_lowercase()),
                "description": "Garrison: nothing governs it",
                "priority": DEFAULTS + all.len() as u64,
                "direction": word,
                "action": "goto_next",
                "match": { list: [range], "layer4Configs": [{ "ipProtocol": "all" }] },
            }));
        }
    }
    all
}

/// The rules as blocks of Terraform's provider `google`. The provider adds the defaults itself.
fn blocks(rules: &[Value]) -> Vec<Value> {
    rules
        .iter()
        .map(|rule| {
            let matcher = &rule["match"];
            let mut written = Map::new();
            for (from, to) in [("srcIpRanges", "src_ip_ranges"), ("destIpRanges", "dest_ip_ranges")] {
                if let Some(nets) = matcher.get(from) {
                    written.insert(to.to_owned(), nets.clone());
                }
            }
            if let Some(tags) = matcher.get("srcSecureTags") {
                written.insert("src_secure_tag".to_owned(), references(tags));
            }
            let layer4 = matcher["layer4Configs"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            let layer4: Vec<Value> = layer4
                .iter()
                .map(|entry| match entry.get("ports") {
                    Some(ports) => json!({ "ip_protocol": entry["ipProtocol"], "ports": ports }),
                    None => json!({ "ip_protocol": entry["ipProtocol"] }),
                })
                .collect();
            written.insert("layer4_config".to_owned(), Value::Array(layer4));
            let mut block = json!({
                "rule_name": rule["ruleName"],
                "description": rule["description"],
                "priority": rule["priority"],
                "direction": rule["direction"],
                "action": rule["action"],
                "match": written,
            });
            if let Some(tags) = rule.get("targetSecureTags") {
                block["target_secure_tag"] = references(tags);
            }
            block
        })
        .collect()
}

/// Secure tags as Terraform's variable has their numbers.
fn references(tags: &Value) -> Value {
    let names = tags
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|tag| tag["name"].as_str());
    let own = names.filter_map(|name| name.strip_prefix("TAG_PARENT/"));
    own.map(|name| json!({ "name": format!("${{var.tag_values[{name:?}]}}") }))
        .collect()
}

/// The variable that has the numbers of tag values, where rules name some.
fn with_tags(mut terraform: Value, rules: &[Value]) -> Value {
    if rules.iter().any(|rule| rule.to_string().contains("TAG_PARENT/")) {
        terraform["variable"]["tag_values"] = json!({
            "type": "map(string)",
            "description": "The ids (tagValues/123) of secure tag values with the purpose GCE_FIREWALL, by key/value",
        });
    }
    terraform
}

fn network(rules: &[Value]) -> Value {
    json!({
        "//": "Generated by Garrison. Changes here are lost.",
        "variable": { "network": { "type": "string", "description": "The id of the VPC network" } },
        "resource": {
            "google_compute_network_firewall_policy_with_rules": {
                "garrison": { "name": "garrison", "description": "Generated by Garrison", "rule": blocks(rules) },
            },
            "google_compute_network_firewall_policy_association": {
                "garrison": {
                    "name": "garrison",
                    "attachment_target": "${var.network}",
                    "firewall_policy": "${google_compute_network_firewall_policy_with_rules.garrison.id}",
                },
            },
        },
    })
}

fn hierarchical(rules: &[Value]) -> Value {
    json!({
        "//": "Generated by Garrison. Changes here are lost.",
        "variable": {
            "parent": { "type": "string", "description": "Where the policy is: organizations/ID or folders/ID" },
            "target": { "type": "string", "description": "What it is for: organizations/ID or folders/ID" },
        },
        "resource": {
            "google_compute_firewall_policy_with_rules": {
                "garrison": {
                    "parent": "${var.parent}",
                    "short_name": "garrison",
                    "description": "Generated by Garrison",
                    "rule": blocks(rules),
                },
            },
            "google_compute_firewall_policy_association": {
                "garrison": {
                    "name": "garrison",
                    "attachment_target": "${var.target}",
                    "firewall_policy": "${google_compute_firewall_policy_with_rules.garrison.id}",
                },
            },
        },
    })
}
