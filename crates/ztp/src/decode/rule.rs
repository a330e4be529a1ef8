//! Rules, their peers and their ports.

use std::collections::BTreeMap;

use super::{
    Findings,
    field::{Object, read_network},
    label::selector,
    policy::{group_name, networks},
};
use crate::{
    diagnostic::Code,
    document::{Action, Group, Peer, Port, Protocol},
    node::{Node, Value},
};

/// A rule of either direction.
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) action: Action,
    pub(super) peers: Vec<Peer>,
    pub(super) ports: Vec<Port>,
}

pub(super) fn rules(
    object: &Object<'_>,
    direction: &str,
    side: &str,
    groups: &BTreeMap<String, Group>,
    budget: &mut usize,
    names: &mut BTreeMap<String, u32>,
    f: &mut Findings<'_>,
) -> Vec<Rule> {
    let Some(node) = object.get(direction) else {
        return Vec::new();
    };
    let list = f.list(node, &object.path(direction), *budget);
    *budget -= list.len();
    list.into_iter()
        .filter_map(|(path, node)| rule(node, &path, side, groups, names, f))
        .collect()
}

fn rule(
    node: &Node,
    path: &str,
    side: &str,
    groups: &BTreeMap<String, Group>,
    names: &mut BTreeMap<String, u32>,
    f: &mut Findings<'_>,
) -> Option<Rule> {
    let object = f.object(node, path, &["name", "action", side, "ports"])?;
    let name = object
        .require("name", "Name the rule: verdicts and alerts carry its name", f)
        .and_then(|node| {
            let path = object.path("name");
            let name = f.name(node, &path)?;
            if let Some(line) = names.insert(name.clone(), node.position.line) {
                f.error(
                    Code::Duplicate,
                    &path,
                    node.position,
                    format!("two rules are called {name:?}; the first is at line {line}"),
                    "Give each rule of a policy its own name",
                );
            }
            if name == crate::ir::DEFAULT_DENY {
                f.error(
                    Code::BadValue,
                    &path,
                    node.position,
                    format!("{name:?} is what verdicts call the end of a policy"),
                    "Choose another name",
                );
            }
            Some(name)
        });
    let action = object
        .get("action")
        .and_then(|node| {
            let choices = [("allow", Action::Allow), ("deny", Action::Deny)];
            f.choice(node, &object.path("action"), &choices)
        })
        .unwrap_or_default();
    let peers_path = object.path(side);
    let most_peers = f.limits.peers;
    let peers: Vec<Peer> = object
        .require(side, &format!("Say who: `{side}: [{{any: true}}]` is everyone"), f)
        .map(|node| {
            let list = f.list(node, &peers_path, most_peers);
            if matches!(&node.value, Value::List(list) if list.is_empty()) {
                f.error(
                    Code::Contradiction,
                    &peers_path,
                    node.position,
                    format!("`{side}` is empty"),
                    "Write `- any: true` for everyone, or remove the rule",
                );
            }
            list.into_iter()
                .filter_map(|(path, node)| peer(node, &path, groups, f))
                .collect()
        })
        .unwrap_or_default();
    let ports_path = object.path("ports");
    let most_ports = f.limits.ports;
    let ports = object
        .get("ports")
        .map(|node| {
            let list = f.list(node, &ports_path, most_ports);
            if matches!(&node.value, Value::List(list) if list.is_empty()) {
                f.error(
                    Code::Contradiction,
                    &ports_path,
                    node.position,
                    "`ports` is empty",
                    "Leave the field out for every protocol and port, or remove the rule",
                );
            }
            list.into_iter()
                .filter_map(|(path, node)| port(node, &path, f))
                .collect()
        })
        .unwrap_or_default();
    Some(Rule {
        name: name?,
        action,
        peers,
        ports,
    })
}

fn peer(node: &Node, path: &str, groups: &BTreeMap<String, Group>, f: &mut Findings<'_>) -> Option<Peer> {
    let object = f.object(
        node,
        path,
        &["any", "cidr", "except", "group", "podSelector", "namespaceSelector"],
    )?;
    let any = object.get("any").and_then(|node| f.boolean(node, &object.path("any")));
    let peer = Peer {
        any: any.unwrap_or(false),
        cidr: object
            .get("cidr")
            .and_then(|node| f.network(node, &object.path("cidr"))),
        except: networks(&object, "except", f),
        group: object
            .get("group")
            .and_then(|node| group_name(node, &object.path("group"), groups, f)),
        pod_selector: selector(&object, "podSelector", f),
        namespace_selector: selector(&object, "namespaceSelector", f),
    };
    let said = |name: &str| object.get(name).is_some();
    let ways = usize::from(said("any"))
        + usize::from(said("cidr"))
        + usize::from(said("group"))
        + usize::from(said("podSelector") || said("namespaceSelector"));
    if ways != 1 {
        f.error_at(
            Code::Contradiction,
            path,
            if ways == 0 {
                "the peer says nobody"
            } else {
                "the peer says who it is in more than one way"
            },
            "Write exactly one of `any: true`, `cidr`, `group`, or `podSelector` and `namespaceSelector`; several peers are several list entries",
        );
    }
    if any == Some(false) {
        f.error_at(
            Code::Contradiction,
            &object.path("any"),
            "`any: false` says nobody",
            "Write `any: true`, or another kind of peer",
        );
    }
    excepts(&object, &peer, f);
    Some(peer)
}

fn excepts(object: &Object<'_>, peer: &Peer, f: &mut Findings<'_>) {
    if object.get("except").is_none() {
        return;
    }
    let Some(cidr) = &peer.cidr else {
        if object.get("cidr").is_none() {
            f.error_at(
                Code::Contradiction,
                &object.path("except"),
                "`except` has no `cidr` to take from",
                "Add `cidr`",
            );
        }
        return;
    };
    let Ok(whole) = read_network(cidr) else {
        return;
    };
    for (i, text) in peer.except.iter().enumerate() {
        let Ok(part) = read_network(text) else {
            continue;
        };
        if !whole.contains(&part) || whole == part {
            f.error_at(
                Code::BadAddress,
                &format!("{}[{i}]", object.path("except")),
                format!("{text} is not a smaller part of {cidr}"),
                "Name networks inside `cidr` only",
            );
        }
    }
}

fn port(node: &Node, path: &str, f: &mut Findings<'_>) -> Option<Port> {
    let object = f.object(node, path, &["protocol", "port", "endPort"])?;
    let protocol = object
        .require("protocol", "Write `protocol: TCP`, `UDP`, `SCTP` or `ICMP`", f)
        .and_then(|node| {
            let choices = [
                ("TCP", Protocol::Tcp),
                ("UDP", Protocol::Udp),
                ("SCTP", Protocol::Sctp),
                ("ICMP", Protocol::Icmp),
            ];
            f.choice(node, &object.path("protocol"), &choices)
        });
    let number = |name: &str, f: &mut Findings<'_>| {
        let node = object.get(name)?;
        f.number(node, &object.path(name), 1, u16::MAX)
    };
    let (from, to) = (number("port", f), number("endPort", f));
    if protocol == Some(Protocol::Icmp) && (object.get("port").is_some() || object.get("endPort").is_some()) {
        f.error_at(
            Code::Contradiction,
            path,
            "ICMP has no ports",
            "Leave `port` and `endPort` out",
        );
    }
    if object.get("endPort").is_some() && object.get("port").is_none() {
        f.error_at(
            Code::Contradiction,
            &object.path("endPort"),
            "`endPort` has no `port` to start from",
            "Add `port`",
        );
    }
    if let (Some(from), Some(to)) = (from, to)
        && to < from
    {
        f.error_at(
            Code::BadValue,
            &object.path("endPort"),
            format!("the range ends at {to} before it starts at {from}"),
            "Swap the two",
        );
    }
    Some(Port {
        protocol: protocol?,
        port: from,
        end_port: to,
    })
}
