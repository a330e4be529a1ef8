//! A network security group of Microsoft Azure, as Terraform JSON and as a body for
//! `Microsoft.Network/networkSecurityGroups`.
//!
//! The group is meant for every subnet with governed addresses. The language's order becomes priorities; the last
//! rules allow what nothing governs, as Azure's own default rules would partly deny it.

use std::borrow::Borrow;

use serde_json::{Map, Value, json};

use super::{
    Compiled,
    gcp::{file, refused},
    ordered::{Entry, Sayable, Tags, by_address, entries, families, name, ports},
    project::{Says, project},
};
use crate::{
    ir::{Direction, Policy},
    sets::{AddressSet, ServiceSet},
};

/// The most rules of a group, and the first and last priority.
const RULES: usize = 1_000;
const FIRST: usize = 100;
const LAST: usize = 4_096;
/// The most addresses and port ranges of a group's rules together.
pub(super) const ADDRESSES: usize = 4_000;

/// Compiles the enforced policies to one network security group. When they do not fit, no file is written, and a gap
/// says why.
pub fn azure<P: Borrow<Policy>>(policies: &[P]) -> Compiled {
    let mut out = Compiled::default();
    let says = Says {
        target: "Azure",
        by_address: true,
        ..Says::default()
    };
    let policies = project(policies, &says, &mut out);
    let policies = by_address(&policies, "Azure", None, &mut out);
    let rules = match rules(&policies, None, &mut out) {
        Ok(rules) => rules,
        Err(why) => return refused(out, &why),
    };
    if rules.is_empty() {
        return out;
    }
    let named = named(&rules);
    if named > ADDRESSES {
        return refused(
            out,
            &format!("they name {named} addresses and ports where a group takes {ADDRESSES}"),
        );
    }
    out.files.push(file("azure/garrison.tf.json", &terraform(&rules)));
    out.files.push(file("azure/network-security-group.json", &body(&rules)));
    out
}

/// Application security groups, as rules name them.
#[derive(Clone, Copy)]
pub(super) struct Groups<'g> {
    /// The one of a set of addresses.
    pub(super) of: &'g dyn Fn(&AddressSet) -> Option<Value>,
    /// Whether a set has interfaces of the network only.
    pub(super) inside: &'g dyn Fn(&AddressSet) -> bool,
    /// The one of who carries some tags.
    pub(super) tagged: &'g dyn Fn(&Tags) -> Option<Value>,
    /// Which tags can be said.
    pub(super) sayable: Sayable,
}

/// The rules of the group in both directions, the last ones included; empty without policies.
///
/// # Errors
/// Why they do not fit.
pub(super) fn rules(
    policies: &[&Policy],
    groups: Option<Groups<'_>>,
    out: &mut Compiled,
) -> Result<Vec<Value>, String> {
    let sayable = groups.and_then(|groups| groups.sayable);
    let mut rules: Vec<Value> = Vec::new();
    for direction in Direction::BOTH {
        let mut priority = FIRST;
        for entry in entries(policies, direction, sayable) {
            for rule in write(&entry, direction, (priority, rules.len()), groups, out) {
                rules.push(rule);
                priority += 1;
            }
        }
        if priority > LAST {
            return Err("there are more rules than priorities".to_owned());
        }
    }
    if rules.is_empty() {
        return Ok(rules);
    }
    for direction in ["Inbound", "Outbound"] {
        rules.push(json!({
            "name": format!("garrison-{}-ungoverned", direction.to_lowercase()),
            "properties": {
                "description": "Garrison: nothing governs it",
                "direction": direction,
                "priority": LAST,
                "access": "Allow",
                "protocol": "*",
                "sourceAddressPrefix": "*",
                "sourcePortRange": "*",
                "destinationAddressPrefix": "*",
                "destinationPortRange": "*",
            },
        }));
    }
    if rules.len() > RULES {
        return Err(format!("they are {} rules where a group takes {RULES}", rules.len()));
    }
    Ok(rules)
}

/// How many addresses and ports the rules name.
pub(super) fn named(rules: &[Value]) -> usize {
    let entries = |rule: &Value, list: &str| rule["properties"][list].as_array().map_or(0, Vec::len);
    let lists = [
        "sourceAddressPrefixes",
        "destinationAddressPrefixes",
        "destinationPortRanges",
    ];
    rules
        .iter()
        .map(|rule| lists.iter().map(|list| entries(rule, list)).sum::<usize>())
        .sum()
}

pub(super) fn body(rules: &[Value]) -> Value {
    json!({ "tags": { "managed-by": "garrison" }, "properties": { "securityRules": rules } })
}

fn write(
    entry: &Entry<'_>,
    direction: Direction,
    (priority, number): (usize, usize),
    groups: Option<Groups<'_>>,
    out: &mut Compiled,
) -> Vec<Value> {
    let (word, own, other) = match direction {
        Direction::Ingress => ("Inbound", "destination", "source"),
        Direction::Egress => ("Outbound", "source", "destination"),
    };
    let subject = match (entry.tags, groups) {
        (Some(tags), Some(groups)) => (groups.tagged)(tags),
        (None, Some(groups)) => (groups.of)(entry.subject),
        (_, None) => None,
    };
    // Whoever is denied is told by address: not everyone who has one needs to be in a group.
    let peers = groups.filter(|groups| entry.allows && (groups.inside)(&entry.peers));
    let peers = peers.and_then(|groups| (groups.of)(&entry.peers));
    let tagged = entry.peer_tags.iter().filter_map(|tags| (groups?.tagged)(tags));
    let tagged: Vec<[(String, Value); 2]> = match &subject {
        Some(subject) => tagged
            .map(|peers| [members(own, subject), members(other, &peers)])
            .collect(),
        None => tagged
            .flat_map(|peers| {
                let subjects = families(entry.subject).into_iter().filter(|nets| !nets.is_empty());
                subjects
                    .map(move |nets| [prefixes(own, nets), members(other, &peers)])
                    .collect::<Vec<_>>()
            })
            .collect(),
    };
    let mut sides: Vec<[(String, Value); 2]> = match (subject, peers) {
        (None, None) => families(entry.subject)
            .into_iter()
            .zip(families(&entry.peers))
            .filter(|(subject, peers)| !subject.is_empty() && !peers.is_empty())
            .map(|(subject, peers)| [prefixes(own, subject), prefixes(other, peers)])
            .collect(),
        // A group has interfaces of both families.
        (Some(subject), None) => families(&entry.peers)
            .into_iter()
            .filter(|peers| !peers.is_empty())
            .map(|peers| [members(own, &subject), prefixes(other, peers)])
            .collect(),
        (None, Some(peers)) => families(entry.subject)
            .into_iter()
            .filter(|subject| !subject.is_empty())
            .map(|subject| [prefixes(own, subject), members(other, &peers)])
            .collect(),
        (Some(subject), Some(peers)) => vec![[members(own, &subject), members(other, &peers)]],
    };
    sides.extend(tagged);
    let mut rules = Vec::new();
    let protocols = protocols(entry, out);
    for [(own, subject), (other, peers)] in sides {
        for (protocol, ranges) in &protocols {
            let n = rules.len();
            rules.push(json!({
                "name": name(number + n, &entry.policy.name, entry.rule, 80),
                "properties": {
                    // Azure takes 140 characters.
                    "description": format!("ZeroTrustPolicy {} {}", entry.policy.reference(), entry.rule).chars().take(140).collect::<String>(),
                    "direction": word,
                    "priority": priority + n,
                    "access": if entry.allows { "Allow" } else { "Deny" },
                    "protocol": protocol,
                    own.as_str(): subject,
                    other.as_str(): peers,
                    "sourcePortRange": "*",
                    "destinationPortRanges": ranges,
                },
            }));
        }
    }
    rules
}

fn prefixes(side: &str, nets: Vec<String>) -> (String, Value) {
    (format!("{side}AddressPrefixes"), json!(nets))
}

fn members(side: &str, group: &Value) -> (String, Value) {
    (format!("{side}ApplicationSecurityGroups"), group.clone())
}

/// Protocols with their port ranges.
fn protocols(entry: &Entry<'_>, out: &mut Compiled) -> Vec<(&'static str, Vec<String>)> {
    let set: &ServiceSet = &entry.services;
    let all = || vec!["*".to_owned()];
    if set.is_full() {
        return vec![("*", all())];
    }
    let named = |protocol| matches!(protocol, 1 | 6 | 17 | 50 | 51);
    let others = set.ports(132).is_some_and(|ports| !ports.is_empty()) || set.portless().any(|p| !named(p));
    if others {
        let rule = format!("{}/{}", entry.policy.name, entry.rule);
        if entry.allows {
            out.gap(
                rule,
                "Azure names only TCP, UDP, ICMP, ESP and AH: other protocols (SCTP, ICMPv6) are not allowed",
            );
        } else {
            out.gap(
                rule,
                "Azure names only TCP, UDP, ICMP, ESP and AH: every protocol is denied",
            );
            return vec![("*", all())];
        }
    }
    let mut protocols = Vec::new();
    for (number, word) in [(6, "Tcp"), (17, "Udp")] {
        if let Some(set) = set.ports(number).filter(|set| !set.is_empty()) {
            protocols.push((word, if set.is_full() { all() } else { ports(set) }));
        }
    }
    for (number, word) in [(1, "Icmp"), (50, "Esp"), (51, "Ah")] {
        if set.contains(number, 0) {
            protocols.push((word, all()));
        }
    }
    protocols
}

/// The same group for Terraform's provider `azurerm`; where it is, is told by variables.
pub(super) fn terraform(rules: &[Value]) -> Value {
    const FIELDS: [(&str, &str); 14] = [
        // Put in terms of resources where there are any.
        ("sourceApplicationSecurityGroups", "sourceApplicationSecurityGroups"),
        (
            "destinationApplicationSecurityGroups",
            "destinationApplicationSecurityGroups",
        ),
        ("description", "description"),
        ("direction", "direction"),
        ("priority", "priority"),
        ("access", "access"),
        ("protocol", "protocol"),
        ("sourcePortRange", "source_port_range"),
        ("sourceAddressPrefix", "source_address_prefix"),
        ("sourceAddressPrefixes", "source_address_prefixes"),
        ("destinationPortRange", "destination_port_range"),
        ("destinationPortRanges", "destination_port_ranges"),
        ("destinationAddressPrefix", "destination_address_prefix"),
        ("destinationAddressPrefixes", "destination_address_prefixes"),
    ];
    let mut resources = Map::new();
    for rule in rules {
        let mut resource = Map::from_iter([
            ("name".to_owned(), rule["name"].clone()),
            ("resource_group_name".to_owned(), json!("${var.resource_group}")),
            (
                "network_security_group_name".to_owned(),
                json!("${azurerm_network_security_group.garrison.name}"),
            ),
        ]);
        for (key, to) in FIELDS {
            if let Some(value) = rule["properties"].get(key) {
                // The provider takes `*` only in the singular.
                match value.as_array().map(Vec::as_slice) {
                    Some([Value::String(one)]) if one == "*" => {
                        resource.insert(to.trim_end_matches('s').to_owned(), json!("*"));
                    }
                    _ => {
                        resource.insert(to.to_owned(), value.clone());
                    }
                }
            }
        }
        let key = rule["name"].as_str().unwrap_or_default().replace('-', "_");
        resources.insert(key, Value::Object(resource));
    }
    json!({
        "//": "Generated by Garrison. Changes here are lost.",
        "variable": {
            "location": { "type": "string", "description": "The region" },
            "resource_group": { "type": "string", "description": "The resource group" },
        },
        "resource": {
            "azurerm_network_security_group": {
                "garrison": {
                    "name": "garrison",
                    "location": "${var.location}",
                    "resource_group_name": "${var.resource_group}",
                    "tags": { "managed-by": "garrison" },
                },
            },
            "azurerm_network_security_rule": resources,
        },
    })
}
