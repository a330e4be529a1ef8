//! Security groups of Amazon Web Services, as Terraform JSON and as bodies of `AuthorizeSecurityGroupIngress` and
//! `AuthorizeSecurityGroupEgress`.
//!
//! Security groups only allow, and the rules of all groups of an interface count together. So addresses that the same
//! policies govern get one group of their own, and its rules are what remains allowed after every tier and deny rule,
//! worked out exactly on addresses and ports. An interface gets the group of its address, or the groups, where one cannot
//! hold all rules: they add up.

use std::{borrow::Borrow, collections::BTreeMap};

use serde_json::{Map, Value, json};

use super::{
    Compiled,
    gcp::{file, refused},
    ordered::{Entry, Sayable, Tags, by_address, entries, families, subject_tags, tag_name, together},
    project::{Says, project},
};
use crate::{
    ir::{Direction, Policy},
    sets::{AddressSet, PORT_PROTOCOLS, ServiceSet},
};

/// What the account may have. The provider raises these on request, so that their product is at most 1,000.
///
/// Source: "Security groups" of the Amazon VPC quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AwsQuotas {
    /// Rules of a group in one direction and address family. A rule that names a group counts in both families.
    pub rules: usize,
    /// Groups of a network interface.
    pub groups: usize,
}

impl AwsQuotas {
    /// The most that `rules` times `groups` can be.
    pub const PRODUCT: usize = 1_000;
    /// The most that `groups` can be.
    pub const GROUPS: usize = 16;
}

impl Default for AwsQuotas {
    /// Those of a new account.
    fn default() -> Self {
        Self { rules: 60, groups: 5 }
    }
}

/// The most groups of a region (the provider's quota at first).
const GROUPS: usize = 2_500;

/// A group has the instances that carry all of some tags, whichever those are.
const SAYABLE: Sayable = Some(|_| true);

/// What one group allows.
#[derive(Default)]
pub(super) struct Group {
    pub(super) addresses: AddressSet,
    /// Who has it by tag, in the place of addresses.
    pub(super) tags: Option<Tags>,
    pub(super) policies: Vec<String>,
    /// Egress, ingress: peers by what they may speak.
    pub(super) allowed: [Vec<(AddressSet, ServiceSet)>; 2],
    /// Egress, ingress: peers by tag.
    pub(super) tagged: [Vec<(Tags, ServiceSet)>; 2],
}

/// What each tag set's instances may speak with whom a list of entries governs. Addresses of theirs are not known: a deny
/// rule for some addresses is taken to mean them too.
fn tagged(governing: &[&Policy], direction: Direction, out: &mut Compiled) -> Vec<(Tags, ServiceSet)> {
    if governing.iter().all(|policy| policy.rules(direction).is_none()) {
        return Vec::new();
    }
    let entries = entries(governing, direction, SAYABLE);
    let mut sets: Vec<&Tags> = entries
        .iter()
        .flat_map(|entry| entry.peer_tags.iter().copied())
        .collect();
    sets.sort();
    sets.dedup();
    let mut all = Vec::new();
    for tags in sets {
        let mut open = ServiceSet::full();
        let mut allowed = ServiceSet::empty();
        for entry in &entries {
            // Whoever carries these carries each part of them.
            let carried = entry
                .peer_tags
                .iter()
                .any(|part| part.iter().all(|(key, value)| tags.get(key) == Some(value)));
            if entry.allows && (carried || entry.peers.is_full()) {
                allowed = allowed.union(&open.intersect(&entry.services));
                open = open.subtract(&entry.services);
            } else if !entry.allows && !open.intersect(&entry.services).is_empty() {
                if !entry.peers.is_full() {
                    out.gap(
                        format!("{}/{}", entry.policy.name, entry.rule),
                        "the addresses of instances told by tag are not known: what the rule denies is denied to all of them",
                    );
                }
                open = open.subtract(&entry.services);
            }
        }
        if !allowed.is_empty() {
            all.push((tags.clone(), allowed));
        }
    }
    all
}

/// The tags by which subjects are told, when no instance can have two of them and none is governed by address too.
fn exclusive<'p>(policies: &[&'p Policy]) -> Option<Vec<&'p Tags>> {
    let mut sets: Vec<&Tags> = policies
        .iter()
        .flat_map(|policy| subject_tags(policy, SAYABLE))
        .collect();
    sets.sort();
    sets.dedup();
    let apart = |a: &Tags, b: &Tags| {
        a.iter()
            .any(|(key, value)| b.get(key).is_some_and(|other| other != value))
    };
    let all = sets
        .iter()
        .enumerate()
        .all(|(i, a)| sets[..i].iter().all(|b| apart(a, b)));
    let by_tag = policies.iter().all(|policy| policy.subject.addresses.is_empty());
    (all && by_tag).then_some(sets)
}

/// What each group allows, by the policies that govern its addresses together.
pub(super) fn groups<P: Borrow<Policy>>(policies: &[P], out: &mut Compiled) -> Vec<Group> {
    let says = Says {
        target: "AWS",
        by_address: true,
        ..Says::default()
    };
    let policies = project(policies, &says, out);
    let mut policies = by_address(&policies, "AWS", SAYABLE, out);
    let by_tag = exclusive(&policies);
    if by_tag.is_none() {
        policies.retain(|policy| {
            let told = !policy.subject.addresses.is_empty();
            if !told {
                out.gap(
                    &policy.name,
                    "the subject is told by tag, and an instance may be governed in another way too: AWS adds up what groups allow, so that nothing is emitted for it",
                );
            }
            told
        });
    }
    let mut groups = Vec::new();
    let mut cells: Vec<(Vec<usize>, AddressSet, Option<&Tags>)> = together(&policies)
        .into_iter()
        .map(|(members, addresses)| (members, addresses, None))
        .collect();
    for tags in by_tag.unwrap_or_default() {
        let members = (0..policies.len()).filter(|i| subject_tags(policies[*i], SAYABLE).contains(&tags));
        cells.push((members.collect(), AddressSet::empty(), Some(tags)));
    }
    for (members, addresses, tags) in cells {
        let governing: Vec<&Policy> = members.iter().map(|i| policies[*i]).collect();
        let tagged = Direction::BOTH.map(|direction| tagged(&governing, direction, out));
        if tags.is_some() || tagged.iter().any(|list| !list.is_empty()) {
            for policy in &governing {
                out.gap(
                    &policy.name,
                    "AWS knows groups, not tags: who gets the tags later belongs to them when the output is applied again",
                );
            }
        }
        groups.push(Group {
            addresses,
            tags: tags.cloned(),
            policies: governing.iter().map(|p| p.reference()).collect(),
            allowed: Direction::BOTH.map(|direction| {
                if governing.iter().all(|p| p.rules(direction).is_none()) {
                    return vec![(AddressSet::full(), ServiceSet::full())];
                }
                allowed(&entries(&governing, direction, SAYABLE))
            }),
            tagged,
        });
    }
    groups
}

/// Every set of tags whose carriers have a group that other groups name.
fn marks(groups: &[Group]) -> Vec<&Tags> {
    let mut all: Vec<&Tags> = groups
        .iter()
        .flat_map(|group| group.tagged.iter().flatten())
        .map(|(tags, _)| tags)
        .collect();
    all.sort();
    all.dedup();
    all
}

fn mark(tags: &Tags) -> String {
    format!("garrison-tag-{}", tag_name(tags, 60))
}

/// Compiles the enforced policies to security groups. When they do not fit, no file is written, and a gap says why.
pub fn aws<P: Borrow<Policy>>(policies: &[P], quotas: &AwsQuotas) -> Compiled {
    let mut out = Compiled::default();
    let groups = groups(policies, &mut out);
    if groups.is_empty() {
        return out;
    }
    let marks = marks(&groups);
    let own = quotas.groups.saturating_sub(marks.len());
    if own == 0 {
        return refused(
            out,
            &format!(
                "they name {} sets of tags, and an interface can have {} groups, one of which is its own",
                marks.len(),
                quotas.groups
            ),
        );
    }
    let mut bodies = Vec::new();
    for (i, group) in (1..).zip(&groups) {
        let [egress, ingress] = &group.allowed;
        let [egress_tags, ingress_tags] = &group.tagged;
        let ((egress, some_lost), (ingress, more_lost)) =
            (permissions(egress, egress_tags), permissions(ingress, ingress_tags));
        if some_lost || more_lost {
            for policy in &group.policies {
                // The name without the version, as every gap has it.
                out.gap(
                    policy.split('@').next().unwrap_or(policy),
                    "security groups name ports of TCP and UDP only: SCTP on some of its ports is not allowed",
                );
            }
        }
        let mut egress = portions(egress, quotas.rules);
        let mut ingress = portions(ingress, quotas.rules);
        let parts = egress.len().max(ingress.len()).max(1);
        if bodies.len() + parts + marks.len() > GROUPS {
            return refused(out, &format!("they need more than the {GROUPS} groups of a region"));
        }
        if parts > own {
            return refused(
                out,
                &format!(
                    "{} needs {parts} groups of {} rules each where an interface can have {own}",
                    group.policies.join(" and "),
                    quotas.rules
                ),
            );
        }
        egress.resize(parts, Vec::new());
        ingress.resize(parts, Vec::new());
        for (part, (egress, ingress)) in (1..).zip(egress.into_iter().zip(ingress)) {
            bodies.push(json!({
                "GroupName": match (&group.tags, part) {
                    (Some(tags), 1) => format!("garrison-of-{}", tag_name(tags, 60)),
                    (Some(tags), part) => format!("garrison-part-{part}-of-{}", tag_name(tags, 60)),
                    (None, 1) => format!("garrison-{i}"),
                    (None, part) => format!("garrison-{i}-part-{part}"),
                },
                "Carries": group.tags,
                "Description": format!("ZeroTrustPolicy {}", group.policies.join(" ")).chars().take(255).collect::<String>(),
                "Addresses": group.addresses.to_nets().iter().map(ToString::to_string).collect::<Vec<_>>(),
                "IpPermissions": ingress,
                "IpPermissionsEgress": egress,
            }));
        }
    }
    for tags in marks {
        bodies.push(json!({
            "GroupName": mark(tags),
            "Carries": tags,
            "Description": "Instances that others name by their tags",
            "Addresses": [],
            "IpPermissions": [],
            "IpPermissionsEgress": [],
        }));
    }
    out.files.push(file("aws/garrison.tf.json", &terraform(&bodies)));
    out.files.push(file("aws/security-groups.json", &json!(bodies)));
    out
}

/// Permissions as those of the fewest groups that have at most so many rules in each family.
fn portions(permissions: Vec<Value>, rules: usize) -> Vec<Vec<Value>> {
    #[derive(Default)]
    struct Portion {
        /// IPv4, IPv6.
        used: [usize; 2],
        /// By their place among all.
        permissions: BTreeMap<usize, Value>,
    }
    let mut portions: Vec<Portion> = Vec::new();
    // Rules that count in both families come first: what is left of a family is filled by its own.
    for (list, counts) in [
        ("UserIdGroupPairs", [1, 1]),
        ("IpRanges", [1, 0]),
        ("Ipv6Ranges", [0, 1]),
    ] {
        let mut at = 0;
        for (i, permission) in permissions.iter().enumerate() {
            for other in permission[list].as_array().into_iter().flatten() {
                let full = |portion: &Portion| (0..2).any(|family| portion.used[family] + counts[family] > rules);
                while portions.get(at).is_some_and(full) {
                    at += 1;
                }
                if at == portions.len() {
                    portions.push(Portion::default());
                }
                let portion = &mut portions[at];
                for (used, count) in portion.used.iter_mut().zip(counts) {
                    *used += count;
                }
                let own = portion.permissions.entry(i).or_insert_with(|| {
                    let mut own = permission.clone();
                    for list in ["IpRanges", "Ipv6Ranges"] {
                        own[list] = json!([]);
                    }
                    if let Some(own) = own.as_object_mut() {
                        own.remove("UserIdGroupPairs");
                    }
                    own
                });
                match own[list].as_array_mut() {
                    Some(others) => others.push(other.clone()),
                    None => own[list] = json!([other]),
                }
            }
        }
    }
    let own = portions.into_iter().map(|portion| portion.permissions.into_values());
    own.map(Iterator::collect).collect()
}

/// What is allowed after every entry had its say: disjoint peers, each with what it may speak.
fn allowed(entries: &[Entry<'_>]) -> Vec<(AddressSet, ServiceSet)> {
    // (peers, undecided, allowed), disjoint.
    let mut parts = vec![(AddressSet::full(), ServiceSet::full(), ServiceSet::empty())];
    for entry in entries {
        let mut next = Vec::new();
        for (peers, open, allowed) in parts {
            let both = peers.intersect(&entry.peers);
            let hit = open.intersect(&entry.services);
            if both.is_empty() || hit.is_empty() {
                next.push((peers, open, allowed));
                continue;
            }
            let rest = peers.subtract(&both);
            if !rest.is_empty() {
                next.push((rest, open.clone(), allowed.clone()));
            }
            let allowed = if entry.allows { allowed.union(&hit) } else { allowed };
            next.push((both, open.subtract(&hit), allowed));
        }
        // Peers with equal fates are one.
        let mut merged: Vec<(AddressSet, ServiceSet, ServiceSet)> = Vec::new();
        for (peers, open, allowed) in next {
            match merged.iter_mut().find(|(_, o, a)| *o == open && *a == allowed) {
                Some((known, ..)) => *known = known.union(&peers),
                None => merged.push((peers, open, allowed)),
            }
        }
        parts = merged;
    }
    let mut all: Vec<(AddressSet, ServiceSet)> = parts
        .into_iter()
        .filter(|(.., allowed)| !allowed.is_empty())
        .map(|(peers, _, allowed)| (peers, allowed))
        .collect();
    all.sort_by_cached_key(|(peers, _)| peers.to_nets());
    all
}

/// A protocol by its name or number, and its ports.
type Named = (String, Option<(u16, u16)>);

/// The other side of a permission.
enum Side<'s> {
    Addresses(&'s AddressSet),
    Tags(&'s Tags),
}

/// The permissions, and whether something could not be said.
fn permissions(allowed: &[(AddressSet, ServiceSet)], tagged: &[(Tags, ServiceSet)]) -> (Vec<Value>, bool) {
    let mut lost = false;
    // By protocol and ports, so that peers of one service stand together.
    let mut by_service: BTreeMap<Named, (AddressSet, Vec<String>)> = BTreeMap::new();
    let mut add = |protocol: &str, ports: Option<(u16, u16)>, peers: &Side<'_>| {
        let all = by_service.entry((protocol.to_owned(), ports)).or_default();
        match peers {
            Side::Addresses(set) => all.0 = all.0.union(set),
            Side::Tags(tags) => all.1.push(mark(tags)),
        }
    };
    let sides = allowed
        .iter()
        .map(|(peers, services)| (Side::Addresses(peers), services));
    let tagged = tagged.iter().map(|(tags, services)| (Side::Tags(tags), services));
    for (peers, services) in sides.chain(tagged) {
        let peers = &peers;
        if services.is_full() {
            add("-1", None, peers);
            continue;
        }
        for number in PORT_PROTOCOLS {
            for (from, to) in services.ports(number).map(|p| p.ranges()).unwrap_or_default() {
                match number {
                    6 => add("tcp", Some((*from, *to)), peers),
                    17 => add("udp", Some((*from, *to)), peers),
                    // Ports of other protocols cannot be named: all of them, or none.
                    _ if (*from, *to) == (0, u16::MAX) => add("132", None, peers),
                    _ => lost = true,
                }
            }
        }
        for number in services.portless() {
            match number {
                1 => add("icmp", None, peers),
                58 => add("icmpv6", None, peers),
                number => add(&number.to_string(), None, peers),
            }
        }
    }
    let permissions = by_service
        .into_iter()
        .map(|((protocol, ports), (peers, groups))| {
            let [v4, v6] = families(&peers);
            let mut rule = Map::from_iter([("IpProtocol".to_owned(), json!(protocol))]);
            if let Some((from, to)) = ports {
                rule.insert("FromPort".to_owned(), json!(from));
                rule.insert("ToPort".to_owned(), json!(to));
            } else if protocol.starts_with("icmp") {
                rule.insert("FromPort".to_owned(), json!(-1));
                rule.insert("ToPort".to_owned(), json!(-1));
            }
            let list =
                |nets: Vec<String>, key: &str| nets.into_iter().map(|net| json!({ key: net })).collect::<Vec<_>>();
            rule.insert("IpRanges".to_owned(), json!(list(v4, "CidrIp")));
            rule.insert("Ipv6Ranges".to_owned(), json!(list(v6, "CidrIpv6")));
            if !groups.is_empty() {
                rule.insert("UserIdGroupPairs".to_owned(), json!(list(groups, "GroupName")));
            }
            Value::Object(rule)
        })
        .collect();
    (permissions, lost)
}

/// The same groups for Terraform's provider `aws`; `vpc_id` is a variable.
fn terraform(groups: &[Value]) -> Value {
    let mut resources = Map::new();
    let (mut found, mut each, mut attached) = (Map::new(), Map::new(), Map::new());
    for group in groups {
        let rules = |key: &str| {
            let list = group[key].as_array().map(Vec::as_slice).unwrap_or_default();
            let texts = |rule: &Value, list: &str, key: &str| -> Vec<Value> {
                let nets = rule[list].as_array().map(Vec::as_slice).unwrap_or_default();
                nets.iter().map(|net| net[key].clone()).collect()
            };
            list.iter()
                .map(|rule| {
                    json!({
                        "protocol": rule["IpProtocol"],
                        "from_port": rule.get("FromPort").cloned().unwrap_or(json!(0)),
                        "to_port": rule.get("ToPort").cloned().unwrap_or(json!(0)),
                        "cidr_blocks": texts(rule, "IpRanges", "CidrIp"),
                        "ipv6_cidr_blocks": texts(rule, "Ipv6Ranges", "CidrIpv6"),
                        "description": "",
                        "prefix_list_ids": [],
                        "security_groups": texts(rule, "UserIdGroupPairs", "GroupName")
                            .iter()
                            .filter_map(Value::as_str)
                            .map(|name| format!("${{aws_security_group.{}.id}}", name.replace('-', "_")))
                            .collect::<Vec<_>>(),
                        "self": false,
                    })
                })
                .collect::<Vec<_>>()
        };
        let name = group["GroupName"].as_str().unwrap_or_default();
        if group["Carries"].is_object() {
            let key = name.replace('-', "_");
            found.insert(key.clone(), json!({ "instance_tags": group["Carries"] }));
            each.insert(
                key.clone(),
                json!({
                    "for_each": format!("${{toset(data.aws_instances.{key}.ids)}}"),
                    "instance_id": "${each.value}",
                }),
            );
            attached.insert(
                key.clone(),
                json!({
                    "for_each": format!("${{data.aws_instance.{key}}}"),
                    "security_group_id": format!("${{aws_security_group.{key}.id}}"),
                    "network_interface_id": "${each.value.network_interface_id}",
                }),
            );
        }
        resources.insert(
            name.replace('-', "_"),
            json!({
                "name": name,
                "description": group["Description"],
                "vpc_id": "${var.vpc_id}",
                "ingress": rules("IpPermissions"),
                "egress": rules("IpPermissionsEgress"),
                "tags": { "managed-by": "garrison", "garrison:addresses": group["Addresses"].as_array().map(|list| {
                    list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ").chars().take(256).collect::<String>()
                }) },
            }),
        );
    }
    let mut all = json!({
        "//": "Generated by Garrison. An interface gets every group of its address. Changes here are lost.",
        "variable": { "vpc_id": { "type": "string", "description": "The VPC" } },
        "resource": { "aws_security_group": resources },
    });
    if !found.is_empty() {
        all["data"] = json!({ "aws_instances": found, "aws_instance": each });
        all["resource"]["aws_network_interface_sg_attachment"] = Value::Object(attached);
    }
    all
}
