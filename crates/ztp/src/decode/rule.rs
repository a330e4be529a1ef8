//! Rules, their peers and their ports.

use std::collections::BTreeMap;

use super::{
    Findings,
    field::{Object, read_network},
    identity,
    label::selector,
    policy::{group_name, networks},
};
use crate::{
    diagnostic::Code,
    document::{Action, Group, GrpcMatch, HttpMatch, Peer, Port, Protocol, TrustLevel},
    node::{Node, Value},
};

/// A rule of either direction.
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) action: Action,
    pub(super) peers: Vec<Peer>,
    pub(super) ports: Vec<Port>,
    pub(super) http: Vec<HttpMatch>,
    pub(super) grpc: Vec<GrpcMatch>,
    pub(super) requires: Option<TrustLevel>,
    pub(super) valid_from: Option<String>,
    pub(super) valid_until: Option<String>,
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
    let fields = [
        "name",
        "action",
        side,
        "ports",
        "http",
        "grpc",
        "requires",
        "validFrom",
        "validUntil",
    ];
    let object = f.object(node, path, &fields)?;
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
                .filter_map(|(path, node)| peer(node, &path, side, groups, f))
                .collect()
        })
        .unwrap_or_default();
    let ports_path = object.path("ports");
    let most_ports = f.limits.ports;
    let ports: Vec<Port> = object
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
    let (http, grpc) = (identity::http(&object, f), identity::grpc(&object, f));
    let speaks = object.get("http").is_some() || object.get("grpc").is_some();
    if speaks && ports.iter().any(|port| port.protocol != Protocol::Tcp) {
        f.error_at(
            Code::Contradiction,
            &object.path("ports"),
            "HTTP and gRPC are carried by TCP only",
            "Name ports of TCP, or leave out `http` and `grpc`",
        );
    }
    let requires = identity::level(&object, "requires", f);
    if action == Action::Deny && object.get("requires").is_some() {
        f.error_at(
            Code::Contradiction,
            &object.path("requires"),
            "a deny rule denies whoever it is: it requires no trust",
            "Remove `requires`, or write an allow rule that requires it",
        );
    }
    let (valid_from, valid_until) = identity::validity(&object, f);
    Some(Rule {
        name: name?,
        action,
        peers,
        ports,
        http,
        grpc,
        requires,
        valid_from,
        valid_until,
    })
}

/// The ways to say who somebody is that go together with no other.
const WAYS: [&str; 8] = [
    "any",
    "cidr",
    "group",
    "spiffeIds",
    "fqdns",
    "hosts",
    "tags",
    "iamGroups",
];
/// The ways that go together.
const SELECTORS: [&str; 3] = ["podSelector", "namespaceSelector", "serviceAccounts"];

fn peer(node: &Node, path: &str, side: &str, groups: &BTreeMap<String, Group>, f: &mut Findings<'_>) -> Option<Peer> {
    let fields: Vec<&str> = WAYS.into_iter().chain(SELECTORS).chain(["except"]).collect();
    let object = f.object(node, path, &fields)?;
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
        service_accounts: identity::texts(&object, "serviceAccounts", f, identity::account),
        spiffe_ids: identity::texts(&object, "spiffeIds", f, identity::spiffe),
        fqdns: identity::texts(&object, "fqdns", f, identity::fqdn),
        hosts: identity::texts(&object, "hosts", f, identity::host),
        tags: identity::tags(&object, f),
        iam_groups: identity::texts(&object, "iamGroups", f, identity::iam_group),
    };
    let said = |name: &str| object.get(name).is_some();
    let ways = WAYS.iter().filter(|name| said(name)).count() + usize::from(SELECTORS.iter().any(|name| said(name)));
    if ways != 1 {
        f.error_at(
            Code::Contradiction,
            path,
            if ways == 0 {
                "the peer says nobody"
            } else {
                "the peer says who it is in more than one way"
            },
            "Write exactly one of `any: true`, `cidr`, `group`, `spiffeIds`, `fqdns`, `hosts`, `tags`, `iamGroups`, or selectors; several peers are several list entries",
        );
    }
    let group = peer.group.as_ref().and_then(|name| groups.get(name));
    let wrong = match side {
        "from" if !peer.fqdns.is_empty() => Some("fqdns"),
        "from" if group.is_some_and(|g| !g.fqdns.is_empty()) => Some("group"),
        "to" if !peer.iam_groups.is_empty() => Some("iamGroups"),
        "to" if group.is_some_and(|g| !g.iam_groups.is_empty()) => Some("group"),
        _ => None,
    };
    if let Some(field) = wrong {
        f.error_at(
            Code::Contradiction,
            &object.path(field),
            if side == "from" {
                "a connection is opened by an address, and no name in DNS says who that is"
            } else {
                "connections go to hosts and workloads, not to people"
            },
            if side == "from" {
                "Name the source by address, label or identity"
            } else {
                "Name the destination by address, label, identity or name"
            },
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
    let fields = ["protocol", "port", "endPort", "icmpType", "icmpv6Type"];
    let object = f.object(node, path, &fields)?;
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
    let kind = |name: &str, f: &mut Findings<'_>| {
        let node = object.get(name)?;
        let number = f.number(node, &object.path(name), 0, 255)?;
        u8::try_from(number).ok()
    };
    let (icmp_type, icmpv6_type) = (kind("icmpType", f), kind("icmpv6Type", f));
    let typed = object.get("icmpType").is_some() || object.get("icmpv6Type").is_some();
    if typed && protocol.is_some_and(|p| p != Protocol::Icmp) {
        f.error_at(
            Code::Contradiction,
            path,
            "only ICMP has message types",
            "Write `protocol: ICMP`, or leave `icmpType` and `icmpv6Type` out",
        );
    }
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
        icmp_type,
        icmpv6_type,
    })
}
