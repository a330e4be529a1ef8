//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (`cilium.io/v2`).
//!
//! They add up with NetworkPolicies; deny rules are stronger than both. Rules about requests are taken for what they
//! let pass of connections, and told.

use super::{Collected, Resource, only};
use crate::{
    decode::{Findings, Object, read_network},
    diagnostic::Code,
    ir::{NAMESPACE_NAME_LABEL, SERVICE_ACCOUNT_LABEL},
    node::{Node, Value},
    reach::{Action, Peer, Policy, Ports, Rule},
    sets::{AddressSet, LabelValues, Selector, ServiceSet},
};

/// The label that Cilium gives a pod with its namespace's name, and what stands before labels of its namespace.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
const ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";

pub(super) fn read(resource: &Resource<'_>, all: &mut Collected, f: &mut Findings<'_>) {
    let mut specs: Vec<(String, &Node)> = resource
        .node
        .at("spec")
        .map(|n| ("spec".to_owned(), n))
        .into_iter()
        .collect();
    if let Some(node) = resource.node.at("specs") {
        let most = f.limits.rules;
        specs.extend(f.list(node, "specs", most));
    }
    if specs.is_empty() {
        f.error(
            Code::MissingField,
            "spec",
            resource.node.position,
            "the policy has no `spec`",
            "Give the resource as the cluster has it",
        );
    }
    for (path, node) in specs {
        let mut of_requests = Vec::new();
        if let Some(policy) = spec(resource, node, &path, &mut of_requests, f) {
            let place = |field| (policy.file.clone(), policy.line, field);
            all.of_requests.extend(of_requests.into_iter().map(place));
            all.network_policies.entry(String::new()).or_default().push(policy);
        }
    }
}

/// Reads one policy; the places of rules that only let some requests through go to `of_requests`.
fn spec(
    resource: &Resource<'_>,
    node: &Node,
    path: &str,
    of_requests: &mut Vec<String>,
    f: &mut Findings<'_>,
) -> Option<Policy> {
    let object = f.object(
        node,
        path,
        &[
            "description",
            "labels",
            "endpointSelector",
            "ingress",
            "ingressDeny",
            "egress",
            "egressDeny",
        ],
    )?;
    let namespace = (!resource.namespace.is_empty()).then_some(resource.namespace.as_str());
    let selector = object.require("endpointSelector", "Name the pods; `{}` for all of them", f)?;
    let subject = pods(selector, &object.path("endpointSelector"), namespace, f)?;
    let mut policy = resource.policy(subject);
    for (name, side, ingress) in [("ingress", "from", true), ("egress", "to", false)] {
        let mut rules = Vec::new();
        let mut there = false;
        for (field, action) in [(format!("{name}Deny"), Action::Deny), (name.to_owned(), Action::Accept)] {
            let Some(node) = object.get(&field) else { continue };
            there = true;
            let most = f.limits.rules;
            for (path, node) in f.list(node, &object.path(&field), most) {
                rules.extend(rule(node, &path, side, action, namespace, f));
                if node.items_at("toPorts").iter().any(|entry| entry.at("rules").is_some()) {
                    of_requests.push(path);
                }
            }
        }
        let rules = there.then_some(rules);
        if ingress {
            policy.ingress = rules;
        } else {
            policy.egress = rules;
        }
    }
    Some(policy)
}

/// The labels of a pod as Cilium names them, taken apart. A key is written with its source before a colon.
fn pods(node: &Node, path: &str, namespace: Option<&str>, f: &mut Findings<'_>) -> Option<Peer> {
    let object = f.object(node, path, &["matchLabels", "matchExpressions"])?;
    let (mut namespaces, mut labels) = (Selector::full(), Selector::full());
    let mut said = false;
    let mut add = |key: &str, values: LabelValues, f: &mut Findings<'_>, path: &str| {
        let (source, key) = key.split_once(':').unwrap_or(("any", key));
        if !matches!(source, "k8s" | "any") {
            f.error_at(
                Code::BadValue,
                path,
                format!("labels of the source {source:?} are not analysed"),
                "Leave the policy out of what you analyse",
            );
            return;
        }
        if key == NAMESPACE {
            said = true;
            namespaces = std::mem::take(&mut namespaces).and(NAMESPACE_NAME_LABEL, values);
        } else if let Some(key) = key.strip_prefix(NAMESPACE_LABELS) {
            said = true;
            namespaces = std::mem::take(&mut namespaces).and(key, values);
        } else if key == ACCOUNT {
            labels = std::mem::take(&mut labels).and(SERVICE_ACCOUNT_LABEL, values);
        } else {
            labels = std::mem::take(&mut labels).and(key, values);
        }
    };
    if let Some(node) = object.get("matchLabels") {
        let most = f.limits.labels;
        for (key, path, value) in f.entries(node, &object.path("matchLabels"), most) {
            let text = value.as_text().unwrap_or_default().to_owned();
            add(key, LabelValues::within([text]), f, &path);
        }
    }
    if let Some(node) = object.get("matchExpressions") {
        let most = f.limits.labels;
        for (path, node) in f.list(node, &object.path("matchExpressions"), most) {
            let one = f.object(node, &path, &["key", "operator", "values"])?;
            let key = one
                .require("key", "Name the label", f)?
                .as_text()
                .unwrap_or_default()
                .to_owned();
            let values: Vec<String> = node
                .items_at("values")
                .iter()
                .filter_map(|v| v.as_text().map(str::to_owned))
                .collect();
            let operator = one.require("operator", "Write `In`, `NotIn`, `Exists` or `DoesNotExist`", f)?;
            let choices = [("In", 0), ("NotIn", 1), ("Exists", 2), ("DoesNotExist", 3)];
            let set = match f.choice(operator, &one.path("operator"), &choices)? {
                0 => LabelValues::within(values),
                1 => LabelValues::not_within(values),
                2 => LabelValues::exists(),
                _ => LabelValues::missing(),
            };
            add(&key, set, f, &path);
        }
    }
    if !said && let Some(namespace) = namespace {
        namespaces = only(namespace);
    }
    Some(Peer::Pods {
        namespaces,
        pods: labels,
        hosts: false,
    })
}

fn rule(
    node: &Node,
    path: &str,
    side: &str,
    action: Action,
    namespace: Option<&str>,
    f: &mut Findings<'_>,
) -> Option<Rule> {
    let fields: Vec<String> = ["Endpoints", "Entities", "CIDR", "CIDRSet", "FQDNs"]
        .iter()
        .map(|what| format!("{side}{what}"))
        .collect();
    let mut names: Vec<&str> = fields.iter().map(String::as_str).collect();
    names.extend(["toPorts", "icmps"]);
    let object = match &node.value {
        Value::Null => return None,
        _ => f.object(node, path, &names)?,
    };
    let most = f.limits.peers;
    let mut peers = Vec::new();
    let mut said = false;
    let mut list = |name: &str, f: &mut Findings<'_>| -> Vec<(String, &Node)> {
        let Some(node) = object.get(name) else {
            return Vec::new();
        };
        said = true;
        f.list(node, &object.path(name), most)
    };
    for (path, node) in list(&fields[0], f) {
        peers.extend(pods(node, &path, namespace, f));
    }
    for (path, node) in list(&fields[1], f) {
        let choices = [
            ("all", 0),
            ("world", 1),
            ("cluster", 2),
            ("host", 3),
            ("remote-node", 3),
        ];
        peers.extend(f.choice(node, &path, &choices).map(|entity| match entity {
            0 => Peer::Any,
            1 => Peer::Outside,
            2 => Peer::Some(vec![Peer::pods(), Peer::Nodes(Selector::full())]),
            _ => Peer::Nodes(Selector::full()),
        }));
    }
    let mut nets = AddressSet::empty();
    for (path, node) in list(&fields[2], f) {
        let net = f.network(node, &path).and_then(|text| read_network(&text).ok());
        nets = nets.union(&AddressSet::from_nets(net));
    }
    for (path, node) in list(&fields[3], f) {
        let one = f.object(node, &path, &["cidr", "except"])?;
        let cidr = one.require("cidr", "Name the network", f)?;
        let whole = f
            .network(cidr, &one.path("cidr"))
            .and_then(|text| read_network(&text).ok());
        let mut set = AddressSet::from_nets(whole);
        if let Some(node) = one.get("except") {
            for (path, node) in f.list(node, &one.path("except"), most) {
                let net = f.network(node, &path).and_then(|text| read_network(&text).ok());
                set = set.subtract(&AddressSet::from_nets(net));
            }
        }
        nets = nets.union(&set);
    }
    if !nets.is_empty() {
        // Addresses of pods have the pods' identity instead.
        peers.push(Peer::All(vec![Peer::Outside, Peer::Addresses(nets.to_nets())]));
    }
    let mut names = Vec::new();
    for (path, node) in list(&fields[4], f) {
        let one = f.object(node, &path, &["matchName", "matchPattern"])?;
        let name = one.get("matchName").or(one.get("matchPattern")).and_then(Node::as_text);
        names.extend(name.map(str::to_owned));
    }
    if !names.is_empty() {
        peers.push(Peer::Domains(names));
    }
    let (ports, spoken) = ports(&object, f);
    if !said {
        // Without a peer, ports alone select; an empty rule selects nothing.
        if !spoken {
            return None;
        }
        peers.push(Peer::Any);
    }
    Some(Rule {
        name: String::new(),
        field: path.to_owned(),
        action,
        peers,
        ports,
    })
}

/// What is spoken, and whether the rule says so.
fn ports(object: &Object<'_>, f: &mut Findings<'_>) -> (Ports, bool) {
    let mut ports = Ports::default();
    let mut said = false;
    let most = f.limits.ports;
    if let Some(node) = object.get("toPorts") {
        said = true;
        for (path, node) in f.list(node, &object.path("toPorts"), most) {
            let Some(entry) = f.object(node, &path, &["ports", "rules"]) else {
                continue;
            };
            if entry.get("rules").is_some() {
                f.warn_at(
                    Code::UnknownKind,
                    &entry.path("rules"),
                    "requests are not analysed: a connection counts as allowed when some request on it may be",
                    "Take the answer for what it says about connections",
                );
            }
            let Some(list) = entry.get("ports") else {
                ports.numbers = ServiceSet::full();
                continue;
            };
            for (path, node) in f.list(list, &entry.path("ports"), most) {
                port(node, &path, &mut ports, f);
            }
        }
    }
    if let Some(node) = object.get("icmps") {
        said = true;
        for (path, node) in f.list(node, &object.path("icmps"), most) {
            for field in node.items_at("fields") {
                let protocol = if field.text_at("family") == Some("IPv6") { 58 } else { 1 };
                match field
                    .at("type")
                    .and_then(Node::as_port)
                    .and_then(|t| u8::try_from(t).ok())
                {
                    Some(kind) => ports.numbers.insert_icmp(protocol, kind),
                    None => f.error_at(
                        Code::BadValue,
                        &path,
                        "only types of ICMP by number are analysed",
                        "Write the type as a number",
                    ),
                }
            }
        }
    }
    if !said {
        ports = Ports::all();
    }
    (ports, said)
}

fn port(node: &Node, path: &str, ports: &mut Ports, f: &mut Findings<'_>) {
    let Some(one) = f.object(node, path, &["port", "endPort", "protocol"]) else {
        return;
    };
    let protocols: &[u8] = match one.get("protocol").and_then(Node::as_text).unwrap_or("ANY") {
        "TCP" => &[6],
        "UDP" => &[17],
        "SCTP" => &[132],
        "ANY" => &[6, 17, 132],
        other => {
            let message = format!("{other:?} is no protocol with ports");
            f.error_at(Code::BadValue, path, message, "Write TCP, UDP, SCTP or ANY");
            return;
        }
    };
    let text = match one.get("port").map(|n| &n.value) {
        Some(Value::Text(text)) => text.clone(),
        Some(Value::Integer(number)) => number.to_string(),
        _ => "0".to_owned(),
    };
    let end = one.get("endPort").and_then(Node::as_port);
    for protocol in protocols {
        match text.parse::<u16>() {
            Ok(0) if end.is_none() => ports.numbers.insert(*protocol, 0, u16::MAX),
            Ok(from) => ports.numbers.insert(*protocol, from, end.unwrap_or(from).max(from)),
            Err(_) => ports.named.push((Some(*protocol), text.clone())),
        }
    }
}
