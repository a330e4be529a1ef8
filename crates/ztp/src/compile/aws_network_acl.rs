//! Network ACLs of Amazon Web Services beside the security groups, as Terraform JSON and as their entries.

use std::{borrow::Borrow, collections::BTreeMap};

use serde_json::{Map, Value, json};

use super::{
    Compiled,
    aws::{AwsQuotas, Group, aws, groups},
    gcp::file,
};
use crate::{
    ir::Policy,
    sets::{AddressSet, PORT_PROTOCOLS, ServiceSet},
};

/// Compiles the enforced policies to security groups, and to network ACLs for the subnets that have exactly a group's
/// addresses.
///
/// ACLs know no connections, so they let every packet pass that may belong to one that a group allows, or to its answer.
/// They never hold back what the groups allow; they stop the rest before it reaches an interface, and where an interface
/// got the wrong group.
pub fn aws_network_acl<P: Borrow<Policy>>(policies: &[P], quotas: &AwsQuotas) -> Compiled {
    let mut out = aws(policies, quotas);
    if out.files.is_empty() {
        return out;
    }
    // Subnets have addresses, and ACLs name nobody by tag: those are the security groups' alone.
    let groups: Vec<Group> = groups(policies, &mut Compiled::default())
        .into_iter()
        .filter(|group| group.tags.is_none() && group.tagged.iter().all(Vec::is_empty))
        .collect();
    let bodies: Vec<Value> = (1..).zip(&groups).map(|(i, group)| acl(i, group)).collect();
    out.files.push(file("aws/network-acls.json", &json!(bodies)));
    out.files
        .push(file("aws/network-acls.tf.json", &acl_terraform(&bodies)));
    out.files.sort_by(|a, b| a.path.cmp(&b.path));
    out
}

/// Entries of an ACL in one direction (the provider's quota at first).
const ACL_ENTRIES: usize = 20;
/// Ports that answers come back to.
const ANSWERS: (u16, u16) = (1024, u16::MAX);

fn acl(number: usize, group: &Group) -> Value {
    let [egress, ingress] = &group.allowed;
    let mut list: Vec<Value> = Vec::new();
    for (outgoing, opened, answered) in [(false, ingress, egress), (true, egress, ingress)] {
        for (i, (protocol, ports, net)) in acl_entries(opened, answered).into_iter().enumerate() {
            let mut entry = Map::from_iter([
                ("RuleNumber".to_owned(), json!((i + 1) * 100)),
                ("Egress".to_owned(), json!(outgoing)),
                ("RuleAction".to_owned(), json!("allow")),
                ("Protocol".to_owned(), json!(protocol)),
            ]);
            let key = if net.addr().is_ipv4() {
                "CidrBlock"
            } else {
                "Ipv6CidrBlock"
            };
            entry.insert(key.to_owned(), json!(net.to_string()));
            if let Some((from, to)) = ports {
                entry.insert("PortRange".to_owned(), json!({ "From": from, "To": to }));
            }
            if protocol == "1" || protocol == "58" {
                entry.insert("IcmpTypeCode".to_owned(), json!({ "Type": -1, "Code": -1 }));
            }
            list.push(Value::Object(entry));
        }
    }
    json!({
        "Name": format!("garrison-{number}"),
        "Description": format!("ZeroTrustPolicy {}", group.policies.join(" ")),
        "Addresses": group.addresses.to_nets().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "Entries": list,
    })
}

/// A protocol and its ports.
type Spoken = (u16, Option<(u16, u16)>);
type AclEntry = (String, Option<(u16, u16)>, ipnet::IpNet);

/// What may pass in one direction: what is opened in it, and answers to what is opened against it.
fn acl_entries(opened: &[(AddressSet, ServiceSet)], answered: &[(AddressSet, ServiceSet)]) -> Vec<AclEntry> {
    let mut by_service: BTreeMap<Spoken, AddressSet> = BTreeMap::new();
    // Protocol 256 stands for all.
    const ALL: u16 = 256;
    let mut add = |protocol: u16, ports: Option<(u16, u16)>, peers: &AddressSet| {
        let all = by_service.entry((protocol, ports)).or_default();
        *all = all.union(peers);
    };
    for (answers, list) in [(false, opened), (true, answered)] {
        for (peers, services) in list {
            if services.is_full() {
                add(ALL, None, peers);
                continue;
            }
            for number in PORT_PROTOCOLS {
                let ports = services.ports(number).filter(|p| !p.is_empty());
                for (from, to) in ports.map(|p| p.ranges()).unwrap_or_default() {
                    match (number, answers) {
                        // Ports of other protocols cannot be named.
                        (132, _) => add(132, None, peers),
                        (_, true) => add(number.into(), Some(ANSWERS), peers),
                        (_, false) => add(number.into(), Some((*from, *to)), peers),
                    }
                }
            }
            for number in services.portless() {
                add(number.into(), None, peers);
            }
        }
    }
    let write = |map: &BTreeMap<Spoken, AddressSet>| -> Vec<AclEntry> {
        map.iter()
            .flat_map(|((protocol, ports), peers)| {
                let protocol = if *protocol == ALL {
                    "-1".to_owned()
                } else {
                    protocol.to_string()
                };
                peers
                    .to_nets()
                    .into_iter()
                    .map(move |net| (protocol.clone(), *ports, net))
            })
            .collect()
    };
    let exact = write(&by_service);
    if exact.len() <= ACL_ENTRIES {
        return exact;
    }
    // They hold back less then, which the groups do exactly: first every protocol of the peers, then larger networks.
    let peers = by_service.values().fold(AddressSet::empty(), |all, set| all.union(set));
    let mut shorter = 0;
    loop {
        let nets = peers.to_nets().into_iter().map(|net| {
            let length = net.prefix_len().saturating_sub(shorter);
            ipnet::IpNet::new(net.addr(), length).map_or(net, |net| net.trunc())
        });
        let coarse = write(&BTreeMap::from([((ALL, None), AddressSet::from_nets(nets))]));
        if coarse.len() <= ACL_ENTRIES || shorter >= 128 {
            return coarse;
        }
        shorter += 4;
    }
}

/// The same ACLs for Terraform's provider `aws`; the subnets are variables.
fn acl_terraform(bodies: &[Value]) -> Value {
    // The VPC is a variable of the security groups' file, which this one goes with.
    let (mut variables, mut resources) = (Map::new(), Map::new());
    for body in bodies {
        let name = body["Name"].as_str().unwrap_or_default().replace('-', "_");
        let entries = |outgoing: bool| -> Vec<Value> {
            let list = body["Entries"].as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter()
                .filter(|entry| entry["Egress"] == outgoing)
                .map(|entry| {
                    let port = |end: &str| entry["PortRange"].get(end).cloned().unwrap_or(json!(0));
                    json!({
                        "rule_no": entry["RuleNumber"],
                        "action": "allow",
                        "protocol": entry["Protocol"],
                        "from_port": port("From"),
                        "to_port": port("To"),
                        "cidr_block": entry.get("CidrBlock").cloned().unwrap_or(json!("")),
                        "ipv6_cidr_block": entry.get("Ipv6CidrBlock").cloned().unwrap_or(json!("")),
                        "icmp_type": entry.get("IcmpTypeCode").map_or(json!(0), |t| t["Type"].clone()),
                        "icmp_code": entry.get("IcmpTypeCode").map_or(json!(0), |t| t["Code"].clone()),
                    })
                })
                .collect()
        };
        variables.insert(
            format!("{name}_subnet_ids"),
            json!({ "type": "list(string)", "description": format!("Subnets of {}", body["Addresses"]) }),
        );
        resources.insert(
            name.clone(),
            json!({
                "vpc_id": "${var.vpc_id}",
                "subnet_ids": format!("${{var.{name}_subnet_ids}}"),
                "ingress": entries(false),
                "egress": entries(true),
                "tags": { "Name": body["Name"], "managed-by": "garrison" },
            }),
        );
    }
    json!({
        "//": "Generated by Garrison, to go with its security groups. Changes here are lost.",
        "variable": variables,
        "resource": { "aws_network_acl": resources },
    })
}
