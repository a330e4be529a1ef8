//! A network security group of Microsoft Azure whose rules name application security groups: governed interfaces are
//! told by the groups they belong to rather than by their addresses.
//!
//! Each set of addresses that a policy governs is one group, and its interfaces are to be put into it. Who is on the
//! other side of an allowing rule is told by such a group too, where it is exactly one of private addresses; who is
//! denied is told by address, as not everyone who has one needs to be an interface of the network.

use std::{borrow::Borrow, collections::BTreeSet};

use serde_json::{Map, Value, json};

use super::{
    Compiled,
    azure::{self, ADDRESSES},
    gcp::{file, refused},
    ordered::{Sayable, Tags, by_address, entries, tag_name},
    project::{Says, project},
};
use crate::{
    ir::{Direction, Policy},
    sets::AddressSet,
};

/// The most application security groups that the rules of a network security group name.
const GROUPS: usize = 100;
/// The most groups of one interface.
const MEMBERSHIPS: usize = 20;
/// The addresses that interfaces have in a virtual network. Others are no interface's, whoever has them.
const PRIVATE: [&str; 5] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "fc00::/7",
];
/// Where a group is, before its name.
const SCOPE: &str = "/subscriptions/SUBSCRIPTION/resourceGroups/RESOURCE_GROUP/providers/\
                     Microsoft.Network/applicationSecurityGroups/";

/// A group has the interfaces that carry all of some tags, whichever those are.
const SAYABLE: Sayable = Some(|_| true);
/// Why a group told by tag may lack somebody.
const LATER: &str = "who gets the tags later belongs to it when the output is applied again";

/// A group, and whose interfaces belong to it.
struct Group<'p> {
    name: String,
    policies: Vec<&'p str>,
    addresses: &'p AddressSet,
}

/// Compiles the enforced policies to application security groups and the network security group that names them. When
/// they do not fit, no file is written, and a gap says why.
pub fn azure_application_groups<P: Borrow<Policy>>(policies: &[P]) -> Compiled {
    let mut out = Compiled::default();
    let says = Says {
        target: "Azure",
        by_address: true,
        ..Says::default()
    };
    let policies = project(policies, &says, &mut out);
    let policies = by_address(&policies, "Azure", SAYABLE, &mut out);
    let mut groups: Vec<Group<'_>> = Vec::new();
    for policy in policies.iter().filter(|policy| !policy.subject.addresses.is_empty()) {
        let addresses = &policy.subject.addresses;
        match groups.iter_mut().find(|group| group.addresses == addresses) {
            Some(group) => group.policies.push(&policy.name),
            None => groups.push(Group {
                // Azure takes 80 characters.
                name: format!("garrison-{}", policy.name),
                policies: vec![&policy.name],
                addresses,
            }),
        }
    }
    let mut tagged: BTreeSet<&Tags> = BTreeSet::new();
    for entry in Direction::BOTH
        .into_iter()
        .flat_map(|direction| entries(&policies, direction, SAYABLE))
    {
        let named: Vec<&Tags> = entry.tags.into_iter().chain(entry.peer_tags.iter().copied()).collect();
        if !named.is_empty() {
            out.gap(
                format!("{}/{}", entry.policy.name, entry.rule),
                format!("Azure knows groups, not tags: {LATER}"),
            );
        }
        tagged.extend(named);
    }
    if groups.len() + tagged.len() > GROUPS {
        let count = groups.len() + tagged.len();
        return refused(
            out,
            &format!("they govern {count} sets of addresses and tags where a group's rules name {GROUPS}"),
        );
    }
    let most = super::ordered::together(&policies);
    let sets_of = |members: &Vec<usize>| {
        let own = |group: &&Group<'_>| {
            members
                .iter()
                .any(|i| policies[*i].subject.addresses == *group.addresses)
        };
        groups.iter().filter(own).count()
    };
    // An interface may carry all of the tags.
    let most = most.keys().map(sets_of).max().unwrap_or_default() + tagged.len();
    if let Some(count) = Some(most).filter(|count| *count > MEMBERSHIPS) {
        return refused(
            out,
            &format!("an interface would be in {count} groups where it can be in {MEMBERSHIPS}"),
        );
    }
    let id = |group: &Group<'_>| json!([{ "id": format!("{SCOPE}{}", group.name) }]);
    let of = |set: &AddressSet| groups.iter().find(|group| group.addresses == set).map(id);
    let inside = AddressSet::from_nets(PRIVATE.iter().filter_map(|net| net.parse().ok()));
    let interfaces = |set: &AddressSet| set.subtract(&inside).is_empty();
    let of_tags = |tags: &Tags| Some(json!([{ "id": format!("{SCOPE}{}", tag_group(tags)) }]));
    let known = azure::Groups {
        of: &of,
        inside: &interfaces,
        tagged: &of_tags,
        sayable: SAYABLE,
    };
    let rules = match azure::rules(&policies, Some(known), &mut out) {
        Ok(rules) => rules,
        Err(why) => return refused(out, &why),
    };
    if rules.is_empty() {
        return out;
    }
    let named = azure::named(&rules);
    if named > ADDRESSES {
        return refused(
            out,
            &format!("they name {named} addresses and ports where a group takes {ADDRESSES}"),
        );
    }
    let mut listed: Vec<Value> = groups
        .iter()
        .map(|group| {
            json!({
                "name": group.name,
                "tags": { "managed-by": "garrison", "policies": group.policies.join(" ") },
                "addresses": group.addresses.to_nets().iter().map(ToString::to_string).collect::<Vec<_>>(),
            })
        })
        .collect();
    listed.extend(
        tagged
            .iter()
            .map(|tags| json!({ "name": tag_group(tags), "tags": { "managed-by": "garrison" }, "carries": tags })),
    );
    out.files.push(file(
        "azure-application-groups/application-security-groups.json",
        &json!(listed),
    ));
    out.files.push(file(
        "azure-application-groups/garrison.tf.json",
        &terraform(&rules, &groups, &tagged),
    ));
    out.files.push(file(
        "azure-application-groups/network-security-group.json",
        &azure::body(&rules),
    ));
    out
}

fn tag_group(tags: &Tags) -> String {
    format!("garrison-tag-{}", tag_name(tags, 60))
}

/// The groups, who is in them, and the rules, for Terraform's provider `azurerm`.
fn terraform(rules: &[Value], groups: &[Group<'_>], tagged: &BTreeSet<&Tags>) -> Value {
    let mut all = azure::terraform(rules);
    let mut resources = Map::new();
    let mut members = Map::new();
    for group in groups {
        let key = group.name.replace('-', "_");
        let nets: Vec<String> = group.addresses.to_nets().iter().map(ToString::to_string).collect();
        resources.insert(
            key.clone(),
            json!({
                "//": format!("The interfaces with addresses of {}", nets.join(", ")),
                "name": group.name,
                "location": "${var.location}",
                "resource_group_name": "${var.resource_group}",
                "tags": { "managed-by": "garrison" },
            }),
        );
        members.insert(
            key.clone(),
            json!({
                "for_each": format!("${{toset(lookup(var.interfaces, {:?}, []))}}", group.name),
                "network_interface_id": "${each.value}",
                "application_security_group_id": format!("${{azurerm_application_security_group.{key}.id}}"),
            }),
        );
    }
    let mut found = Map::new();
    for tags in tagged {
        let name = tag_group(tags);
        let key = name.replace('-', "_");
        let said: Vec<String> = tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
        resources.insert(
            key.clone(),
            json!({
                "//": format!("The interfaces that carry {}", said.join(", ")),
                "name": name,
                "location": "${var.location}",
                "resource_group_name": "${var.resource_group}",
                "tags": { "managed-by": "garrison" },
            }),
        );
        found.insert(
            key.clone(),
            json!({ "type": "Microsoft.Network/networkInterfaces", "required_tags": tags }),
        );
        members.insert(
            key.clone(),
            json!({
                "for_each": format!("${{toset(data.azurerm_resources.{key}.resources[*].id)}}"),
                "network_interface_id": "${each.value}",
                "application_security_group_id": format!("${{azurerm_application_security_group.{key}.id}}"),
            }),
        );
    }
    if !found.is_empty() {
        all["data"] = json!({ "azurerm_resources": found });
    }
    all["variable"]["interfaces"] = json!({
        "type": "map(list(string))",
        "description": "The ids of the network interfaces of each application security group, by its name",
    });
    all["resource"]["azurerm_application_security_group"] = Value::Object(resources);
    all["resource"]["azurerm_network_interface_application_security_group_association"] = Value::Object(members);
    // Rules name groups by their resources here.
    if let Some(rules) = all["resource"]["azurerm_network_security_rule"].as_object_mut() {
        for rule in rules.values_mut().filter_map(Value::as_object_mut) {
            for side in ["source", "destination"] {
                let Some(ids) = rule.remove(&format!("{side}ApplicationSecurityGroups")) else {
                    continue;
                };
                let ids = ids.as_array().into_iter().flatten().filter_map(|id| id["id"].as_str());
                let references: Vec<String> = ids
                    .filter_map(|id| id.strip_prefix(SCOPE))
                    .map(|name| {
                        let key = name.replace('-', "_");
                        format!("${{azurerm_application_security_group.{key}.id}}")
                    })
                    .collect();
                rule.insert(format!("{side}_application_security_group_ids"), json!(references));
            }
        }
    }
    all
}
