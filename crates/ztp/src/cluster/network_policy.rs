//! `networking.k8s.io/v1` NetworkPolicy, and MultiNetworkPolicy for secondary networks.

use ipnet::IpNet;

use super::{Collected, Resource, only};
use crate::{
    decode::{Findings, Object, label_selector},
    diagnostic::Code,
    ir::selector,
    node::{Node, Value},
    reach::{Action, Peer, Ports, Rule},
    sets::{Selector, ServiceSet},
};

/// The annotation that says which networks a MultiNetworkPolicy is for.
const POLICY_FOR: &str = "k8s.v1.cni.cncf.io/policy-for";

pub(super) fn read(resource: &Resource<'_>, all: &mut Collected, f: &mut Findings<'_>) {
    let Some(node) = resource.node.at("spec") else {
        f.error(
            Code::MissingField,
            "spec",
            resource.node.position,
            "the policy has no `spec`",
            "Give the resource as the cluster has it",
        );
        return;
    };
    let Some(spec) = f.object(node, "spec", &["podSelector", "policyTypes", "ingress", "egress"]) else {
        return;
    };
    let pods = label_selector(&spec, "podSelector", f).map_or_else(Selector::full, |s| selector(&s));
    let mut policy = resource.policy(Peer::Pods {
        namespaces: only(&resource.namespace),
        pods,
        hosts: true,
    });
    let (mut ingress, mut egress) = (Vec::new(), Vec::new());
    for (name, side, rules) in [("ingress", "from", &mut ingress), ("egress", "to", &mut egress)] {
        if let Some(node) = spec.get(name) {
            let most = f.limits.rules;
            for (path, node) in f.list(node, &spec.path(name), most) {
                rules.extend(rule(node, &path, side, &resource.namespace, f));
            }
        }
    }
    let (mut on_ingress, mut on_egress) = (true, !egress.is_empty());
    if let Some(node) = spec.get("policyTypes") {
        let list = f.list(node, "spec.policyTypes", 2);
        if !list.is_empty() {
            (on_ingress, on_egress) = (false, false);
        }
        for (path, node) in list {
            match f.choice(node, &path, &[("Ingress", true), ("Egress", false)]) {
                Some(true) => on_ingress = true,
                Some(false) => on_egress = true,
                None => {}
            }
        }
    }
    policy.ingress = on_ingress.then_some(ingress);
    policy.egress = on_egress.then_some(egress);
    if resource.kind == "NetworkPolicy" {
        all.network_policies.entry(String::new()).or_default().push(policy);
        return;
    }
    let annotation = resource
        .node
        .path(&["metadata", "annotations"])
        .and_then(|a| a.text_at(POLICY_FOR));
    let Some(networks) = annotation else {
        f.error(
            Code::MissingField,
            "metadata.annotations",
            resource.node.position,
            format!("the policy has no annotation {POLICY_FOR}, so it is for no network"),
            "Name the networks there, with commas between",
        );
        return;
    };
    for network in networks.split(',').map(str::trim).filter(|n| !n.is_empty()) {
        let name = if network.contains('/') {
            network.to_owned()
        } else {
            format!("{}/{network}", resource.namespace)
        };
        all.network_policies.entry(name).or_default().push(policy.clone());
    }
}

fn rule(node: &Node, path: &str, side: &str, namespace: &str, f: &mut Findings<'_>) -> Option<Rule> {
    let object = match &node.value {
        // `- {}` and `-` both mean everything.
        Value::Null => None,
        _ => Some(f.object(node, path, &[side, "ports"])?),
    };
    let mut peers = Vec::new();
    if let Some(node) = object.as_ref().and_then(|o| o.get(side)) {
        let most = f.limits.peers;
        for (path, node) in f.list(node, &format!("{path}.{side}"), most) {
            peers.push(peer(node, &path, namespace, f)?);
        }
    }
    if peers.is_empty() {
        peers.push(Peer::Any);
    }
    let mut ports = Ports::default();
    let mut any = true;
    if let Some(node) = object.as_ref().and_then(|o| o.get("ports")) {
        let most = f.limits.ports;
        for (path, node) in f.list(node, &format!("{path}.ports"), most) {
            any = false;
            port(node, &path, &mut ports, f);
        }
    }
    if any {
        ports = Ports::all();
    }
    Some(Rule {
        name: String::new(),
        field: path.to_owned(),
        action: Action::Accept,
        peers,
        ports,
    })
}

fn peer(node: &Node, path: &str, namespace: &str, f: &mut Findings<'_>) -> Option<Peer> {
    let object = f.object(node, path, &["ipBlock", "namespaceSelector", "podSelector"])?;
    let labels = object.get("namespaceSelector").is_some() || object.get("podSelector").is_some();
    let Some(block) = object.get("ipBlock") else {
        if !labels {
            f.error_at(
                Code::Contradiction,
                path,
                "the peer says nothing",
                "Write `ipBlock`, or `podSelector` and `namespaceSelector`; `podSelector: {}` for every pod",
            );
            return None;
        }
        let pods = label_selector(&object, "podSelector", f).map_or_else(Selector::full, |s| selector(&s));
        let namespaces =
            label_selector(&object, "namespaceSelector", f).map_or_else(|| only(namespace), |s| selector(&s));
        return Some(Peer::Pods {
            namespaces,
            pods,
            hosts: true,
        });
    };
    if labels {
        f.error_at(
            Code::Contradiction,
            path,
            "`ipBlock` stands beside selectors",
            "Make two peers of it",
        );
        return None;
    }
    let path = object.path("ipBlock");
    let block = f.object(block, &path, &["cidr", "except"])?;
    let cidr = block.require("cidr", "Write a network such as 10.0.0.0/8", f)?;
    let cidr = network(cidr, &block.path("cidr"), f)?;
    let mut except = Vec::new();
    if let Some(node) = block.get("except") {
        let most = f.limits.networks;
        for (path, node) in f.list(node, &block.path("except"), most) {
            let net = network(node, &path, f)?;
            if !cidr.contains(&net) || net == cidr {
                f.error_at(
                    Code::Contradiction,
                    &path,
                    format!("{net} is not a part of {cidr}"),
                    "Leave it out, or correct it; the API server refuses the policy",
                );
            }
            except.push(net);
        }
    }
    let all = Peer::Addresses(vec![cidr]);
    Some(if except.is_empty() {
        all
    } else {
        Peer::All(vec![all, Peer::Not(Box::new(Peer::Addresses(except)))])
    })
}

/// A network in CIDR notation. Bits behind the prefix length are ignored, as API servers do.
pub(super) fn network(node: &Node, path: &str, f: &mut Findings<'_>) -> Option<IpNet> {
    let text = f.text(node, path)?;
    match text.parse::<IpNet>() {
        Ok(net) => Some(net.trunc()),
        Err(_) => {
            f.error(
                Code::BadAddress,
                path,
                node.position,
                format!("{:?} is not a network", crate::node::shorten(&text)),
                "Write a network such as 10.0.0.0/8 or 2001:db8::/32",
            );
            None
        }
    }
}

fn port(node: &Node, path: &str, ports: &mut Ports, f: &mut Findings<'_>) -> Option<()> {
    let object = f.object(node, path, &["protocol", "port", "endPort"])?;
    let protocol = match object.get("protocol") {
        Some(node) => protocol(node, &object, f)?,
        None => 6,
    };
    let end = match object.get("endPort") {
        Some(node) => Some(f.number(node, &object.path("endPort"), 1, u16::MAX)?),
        None => None,
    };
    match object.get("port") {
        None => {
            if end.is_some() {
                f.error_at(
                    Code::Contradiction,
                    path,
                    "`endPort` is there without `port`",
                    "Write the first port too",
                );
            }
            ports.numbers.insert(protocol, 0, u16::MAX);
        }
        Some(node) if matches!(node.value, Value::Text(_)) => {
            let name = f.text(node, &object.path("port"))?;
            if end.is_some() {
                f.error_at(
                    Code::Contradiction,
                    path,
                    "`endPort` is there with a port's name",
                    "Write the first port as a number",
                );
            }
            ports.named.push((Some(protocol), name));
        }
        Some(node) => {
            let from = f.number(node, &object.path("port"), 1, u16::MAX)?;
            let to = end.unwrap_or(from);
            if to < from {
                f.error_at(
                    Code::BadValue,
                    &object.path("endPort"),
                    format!("{to} comes before {from}"),
                    "Write the larger port as `endPort`",
                );
            }
            ports.numbers.insert(protocol, from, to);
        }
    }
    Some(())
}

fn protocol(node: &Node, object: &Object<'_>, f: &mut Findings<'_>) -> Option<u8> {
    f.choice(
        node,
        &object.path("protocol"),
        &[("TCP", 6), ("UDP", 17), ("SCTP", 132)],
    )
}

/// Ports `from` to `to` of a protocol.
pub(super) fn range(protocol: u8, from: u16, to: u16) -> ServiceSet {
    let mut set = ServiceSet::empty();
    set.insert(protocol, from, to);
    set
}
