//! ClusterNetworkPolicy (`policy.networking.k8s.io/v1alpha2`), and its predecessors AdminNetworkPolicy and
//! BaselineAdminNetworkPolicy (`v1alpha1`).

use super::{Cluster, Collected, Finding, Resource, accept_word, network_policy};
use crate::{
    decode::{Findings, Object, label_selector},
    diagnostic::{Code, Diagnostic, Level, Position},
    ir::selector,
    node::Node,
    reach::{Action, Peer, Policy, Ports, Rule},
    sets::{Selector, ServiceSet},
};

/// A policy with what ranks it.
pub(super) struct Ranked {
    baseline: bool,
    priority: u16,
    policy: Policy,
}

/// The admin and the baseline tier, each in deciding order.
pub(super) fn tiers(mut ranked: Vec<Ranked>, cluster: &mut Cluster) -> (Vec<Policy>, Vec<Policy>) {
    ranked.sort_by(|a, b| {
        (a.baseline, a.priority, &a.policy.kind, &a.policy.name).cmp(&(
            b.baseline,
            b.priority,
            &b.policy.kind,
            &b.policy.name,
        ))
    });
    for pair in ranked.windows(2) {
        let [a, b] = pair else { continue };
        if (a.baseline, a.priority) == (b.baseline, b.priority) {
            cluster.findings.push(Finding {
                file: b.policy.file.clone(),
                diagnostic: Diagnostic {
                    level: Level::Warning,
                    code: Code::Contradiction,
                    field: "spec.priority".to_owned(),
                    position: Position {
                        line: b.policy.line,
                        column: 1,
                    },
                    message: format!(
                        "{} and {} have the same priority: which decides first is up to the implementation, here the name",
                        a.policy, b.policy
                    ),
                    remedy: "Give each its own priority".to_owned(),
                },
            });
        }
    }
    let (baseline, admin): (Vec<Ranked>, Vec<Ranked>) = ranked.into_iter().partition(|r| r.baseline);
    let policies = |ranked: Vec<Ranked>| ranked.into_iter().map(|r| r.policy).collect();
    (policies(admin), policies(baseline))
}

pub(super) fn read(resource: &Resource<'_>, all: &mut Collected, f: &mut Findings<'_>) {
    let fields: &[&str] = match resource.kind {
        "ClusterNetworkPolicy" => &["tier", "priority", "subject", "ingress", "egress"],
        "AdminNetworkPolicy" => &["priority", "subject", "ingress", "egress"],
        _ => &["subject", "ingress", "egress"],
    };
    let Some(spec) = resource.node.at("spec").and_then(|node| f.object(node, "spec", fields)) else {
        f.error(
            Code::MissingField,
            "spec",
            resource.node.position,
            "the policy has no `spec`",
            "Give the resource as the cluster has it",
        );
        return;
    };
    let baseline = match resource.kind {
        "ClusterNetworkPolicy" => {
            let Some(tier) = spec.require("tier", "Write Admin or Baseline", f) else {
                return;
            };
            let Some(tier) = f.choice(tier, "spec.tier", &[("Admin", false), ("Baseline", true)]) else {
                return;
            };
            tier
        }
        "AdminNetworkPolicy" => false,
        _ => true,
    };
    let priority = if fields.contains(&"priority") {
        let Some(node) = spec.require("priority", "Write a number from 0 to 1000", f) else {
            return;
        };
        let Some(priority) = f.number(node, "spec.priority", 0, 1_000) else {
            return;
        };
        priority
    } else {
        0
    };
    let Some(subject) = spec
        .require("subject", "Write `namespaces` or `pods` there", f)
        .and_then(|node| f.object(node, "spec.subject", &["namespaces", "pods"]))
        .and_then(|object| pods(&object, f))
    else {
        return;
    };
    let mut policy = resource.policy(subject);
    for (name, side) in [("ingress", "from"), ("egress", "to")] {
        let Some(node) = spec.get(name) else { continue };
        let most = f.limits.rules;
        let rules: Vec<Rule> = f
            .list(node, &spec.path(name), most)
            .into_iter()
            .filter_map(|(path, node)| rule(node, &path, side, resource.kind, f))
            .collect();
        // A policy without rules of a direction does not affect it.
        let rules = (!rules.is_empty()).then_some(rules);
        match name {
            "ingress" => policy.ingress = rules,
            _ => policy.egress = rules,
        }
    }
    all.cluster_policies.push(Ranked {
        baseline,
        priority,
        policy,
    });
}

/// `namespaces`, or `pods` with both selectors. Pods on their node's network never belong to it.
fn pods(object: &Object<'_>, f: &mut Findings<'_>) -> Option<Peer> {
    let peer = |namespaces, pods| Peer::Pods {
        namespaces,
        pods,
        hosts: false,
    };
    if object.has("namespaces") {
        let namespaces = label_selector(object, "namespaces", f).map_or_else(Selector::full, |s| selector(&s));
        return Some(peer(namespaces, Selector::full()));
    }
    let path = object.path("pods");
    let Some(node) = object.get("pods") else {
        f.error_at(
            Code::Contradiction,
            &object.path,
            "it has neither `namespaces` nor `pods`",
            "Write one of them",
        );
        return None;
    };
    let pods = f.object(node, &path, &["namespaceSelector", "podSelector"])?;
    let read =
        |name, f: &mut Findings<'_>| label_selector(&pods, name, f).map_or_else(Selector::full, |s| selector(&s));
    Some(peer(read("namespaceSelector", f), read("podSelector", f)))
}

fn rule(node: &Node, path: &str, side: &str, kind: &str, f: &mut Findings<'_>) -> Option<Rule> {
    let current = kind == "ClusterNetworkPolicy";
    let (ports, accept) = if current {
        ("protocols", "Accept")
    } else {
        ("ports", "Allow")
    };
    let object = f.object(node, path, &["name", "action", side, ports])?;
    let action = object.require("action", &format!("Write {accept}, Deny or Pass"), f)?;
    let words = [
        (accept, accept_word(accept)),
        ("Deny", accept_word("Deny")),
        ("Pass", accept_word("Pass")),
    ];
    let action_path = object.path("action");
    let words: &[(&str, Action)] = if kind == "BaselineAdminNetworkPolicy" {
        &words[..2]
    } else {
        &words
    };
    let action = f.choice(action, &action_path, words)?;
    let list = object.require(side, "Say who the other side is", f)?;
    let list_path = object.path(side);
    let most = f.limits.peers;
    let mut peers = Vec::new();
    for (path, node) in f.list(list, &list_path, most) {
        peers.push(peer(node, &path, side, action, f)?);
    }
    if peers.is_empty() {
        f.error_at(
            Code::MissingField,
            &list_path,
            format!("`{side}` is empty"),
            "Say who the other side is",
        );
    }
    let mut set = Ports::default();
    match object.get(ports) {
        None => set = Ports::all(),
        Some(node) => {
            let most = f.limits.ports;
            for (path, node) in f.list(node, &object.path(ports), most) {
                if current {
                    protocol(node, &path, &mut set, f)?;
                } else {
                    port(node, &path, &mut set, f)?;
                }
            }
        }
    }
    let name = match object.get("name") {
        Some(node) => f.text(node, &object.path("name")).unwrap_or_default(),
        None => String::new(),
    };
    Some(Rule {
        name,
        field: path.to_owned(),
        action,
        peers,
        ports: set,
    })
}

fn peer(node: &Node, path: &str, side: &str, action: Action, f: &mut Findings<'_>) -> Option<Peer> {
    let fields: &[&str] = if side == "to" {
        &["namespaces", "pods", "nodes", "networks", "domainNames"]
    } else {
        &["namespaces", "pods"]
    };
    let object = f.object(node, path, fields)?;
    if object.has("nodes") {
        let nodes = label_selector(&object, "nodes", f).map_or_else(Selector::full, |s| selector(&s));
        return Some(Peer::Nodes(nodes));
    }
    if let Some(node) = object.get("networks") {
        let mut nets = Vec::new();
        for (path, node) in f.list(node, &object.path("networks"), 25) {
            nets.push(network_policy::network(node, &path, f)?);
        }
        // Traffic inside the cluster counts too, and whatever address a pod has, it is one of all of them.
        let everything = nets.iter().any(|net| net.prefix_len() == 0);
        let nets = Peer::Addresses(nets);
        return Some(if everything {
            Peer::Some(vec![nets, Peer::pods()])
        } else {
            nets
        });
    }
    if let Some(node) = object.get("domainNames") {
        if action != Action::Accept {
            f.error_at(
                Code::Contradiction,
                path,
                "`domainNames` goes with accepting rules only",
                "Deny networks instead, after the accepting rule",
            );
            return None;
        }
        let mut names = Vec::new();
        for (path, node) in f.list(node, &object.path("domainNames"), 25) {
            names.push(f.text(node, &path)?.trim_end_matches('.').to_ascii_lowercase());
        }
        return Some(Peer::Domains(names));
    }
    pods(&object, f)
}

/// `tcp`, `udp` or `sctp` with a port, or a port's name.
fn protocol(node: &Node, path: &str, ports: &mut Ports, f: &mut Findings<'_>) -> Option<()> {
    let object = f.object(node, path, &["tcp", "udp", "sctp", "destinationNamedPort"])?;
    if let Some(node) = object.get("destinationNamedPort") {
        let name = f.text(node, &object.path("destinationNamedPort"))?;
        ports.named.push((None, name));
        return Some(());
    }
    let Some((name, number)) = [("tcp", 6), ("udp", 17), ("sctp", 132)]
        .into_iter()
        .find(|(name, _)| object.has(name))
    else {
        f.error_at(
            Code::Contradiction,
            path,
            "the entry names no protocol",
            "Write `tcp`, `udp`, `sctp` or `destinationNamedPort`",
        );
        return None;
    };
    let Some(node) = object.get(name) else {
        ports.numbers.insert(number, 0, u16::MAX);
        return Some(());
    };
    let inner = f.object(node, &object.path(name), &["destinationPort"])?;
    let Some(node) = inner.get("destinationPort") else {
        ports.numbers.insert(number, 0, u16::MAX);
        return Some(());
    };
    let inner = f.object(node, &inner.path("destinationPort"), &["number", "range"])?;
    if let Some(node) = inner.get("number") {
        let port = f.number(node, &inner.path("number"), 1, u16::MAX)?;
        ports.numbers.insert(number, port, port);
        return Some(());
    }
    let node = inner.require("range", "Write `number` or `range`", f)?;
    let set = span(node, &inner.path("range"), number, f)?;
    ports.numbers = ports.numbers.union(&set);
    Some(())
}

fn span(node: &Node, path: &str, protocol: u8, f: &mut Findings<'_>) -> Option<ServiceSet> {
    let range = f.object(node, path, &["start", "end", "protocol"])?;
    let mut bound = |name: &str| {
        let node = range.require(name, "Write both ends", f)?;
        f.number(node, &range.path(name), 1, u16::MAX)
    };
    let (from, to) = (bound("start")?, bound("end")?);
    if from >= to {
        f.error_at(
            Code::BadValue,
            path,
            format!("{from} does not come before {to}"),
            "Write the smaller port as `start`",
        );
        return None;
    }
    Some(network_policy::range(protocol, from, to))
}

/// `portNumber`, `portRange` or `namedPort` of `v1alpha1`.
fn port(node: &Node, path: &str, ports: &mut Ports, f: &mut Findings<'_>) -> Option<()> {
    let object = f.object(node, path, &["portNumber", "portRange", "namedPort"])?;
    if let Some(node) = object.get("namedPort") {
        let name = f.text(node, &object.path("namedPort"))?;
        ports.named.push((None, name));
        return Some(());
    }
    let field = if object.has("portNumber") {
        "portNumber"
    } else {
        "portRange"
    };
    let node = object.require(field, "Write `portNumber`, `portRange` or `namedPort`", f)?;
    let path = object.path(field);
    let inner = f.object(node, &path, &["protocol", "port", "start", "end"])?;
    let number = match inner.get("protocol") {
        Some(node) => f.choice(node, &inner.path("protocol"), &[("TCP", 6), ("UDP", 17), ("SCTP", 132)])?,
        None => 6,
    };
    let set = if field == "portNumber" {
        let port = inner.require("port", "Write a port", f)?;
        let port = f.number(port, &inner.path("port"), 1, u16::MAX)?;
        network_policy::range(number, port, port)
    } else {
        span(node, &path, number, f)?
    };
    ports.numbers = ports.numbers.union(&set);
    Some(())
}
