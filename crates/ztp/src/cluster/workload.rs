//! Pods, and whatever makes pods; nodes.

use std::net::IpAddr;

use super::{Collected, Resource};
use crate::{
    decode::Findings,
    diagnostic::Code,
    node::{self, Node, Value},
    reach::{Endpoint, Identity, NamedPort},
    sets::Labels,
};

/// The annotation that puts pods on further networks (Network Plumbing Working Group).
const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";

pub(super) fn is_workload(kind: &str) -> bool {
    template(kind).is_some()
}

/// Where a kind holds its pods' description.
fn template(kind: &str) -> Option<&'static [&'static str]> {
    Some(match kind {
        "Pod" => &[],
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            &["spec", "template"]
        }
        "CronJob" => &["spec", "jobTemplate", "spec", "template"],
        _ => return None,
    })
}

pub(super) fn workload(resource: &Resource<'_>, all: &mut Collected, f: &mut Findings<'_>) {
    let Some(pod) = template(resource.kind).and_then(|path| resource.node.path(path)) else {
        f.error(
            Code::MissingField,
            "spec.template",
            resource.node.position,
            format!("{} {} has no pod template", resource.kind, resource.name),
            "Give the resource as the cluster has it",
        );
        return;
    };
    // Pods that were made by something are shown as that; what has both is shown once.
    let owner = if resource.kind == "Pod" {
        let owners = resource
            .node
            .path(&["metadata"])
            .map(|m| m.items_at("ownerReferences"))
            .unwrap_or_default();
        let controls = |o: &&Node| matches!(o.at("controller").map(|c| &c.value), Some(Value::Bool(true)));
        owners.iter().find(controls).or_else(|| owners.first())
    } else {
        None
    };
    let (name, kind) = match owner.and_then(|o| Some((o.text_at("name")?, o.text_at("kind").unwrap_or("Pod")))) {
        Some((name, kind)) => (name.to_owned(), kind.to_owned()),
        None => (resource.name.clone(), resource.kind.to_owned()),
    };
    let finished = resource.kind == "Pod"
        && matches!(
            resource.node.path(&["status", "phase"]).and_then(Node::as_text),
            Some("Succeeded" | "Failed")
        );
    if finished {
        return;
    }
    let host_network = matches!(
        pod.path(&["spec", "hostNetwork"]).map(|n| &n.value),
        Some(Value::Bool(true))
    );
    let mut ports = Vec::new();
    for list in ["containers", "initContainers"] {
        for container in pod.at("spec").map(|s| s.items_at(list)).unwrap_or_default() {
            for port in container.items_at("ports") {
                let number = port.at("containerPort").and_then(Node::as_port);
                let protocol = match port.text_at("protocol") {
                    Some("UDP") => 17,
                    Some("SCTP") => 132,
                    _ => 6,
                };
                if let (Some(name), Some(number)) = (port.text_at("name"), number) {
                    ports.push(NamedPort {
                        name: name.to_owned(),
                        protocol,
                        number,
                    });
                }
            }
        }
    }
    ports.sort();
    ports.dedup();
    let mut addresses: Vec<IpAddr> = Vec::new();
    if let Some(status) = resource.node.at("status") {
        let texts = status
            .items_at("podIPs")
            .iter()
            .filter_map(|ip| ip.text_at("ip"))
            .chain(status.text_at("podIP"));
        addresses.extend(texts.filter_map(|text| text.parse::<IpAddr>().ok()));
        addresses.sort();
        addresses.dedup();
    }
    let annotation = pod.path(&["metadata", "annotations"]).and_then(|a| a.text_at(NETWORKS));
    let networks = annotation.map_or_else(Vec::new, |text| networks(text, resource, f));
    let mut labels = pod.path(&["metadata", "labels"]).map(Node::labels).unwrap_or_default();
    let account = pod.path(&["spec"]).and_then(|s| s.text_at("serviceAccountName"));
    labels.insert(
        crate::ir::SERVICE_ACCOUNT_LABEL.to_owned(),
        account.unwrap_or("default").to_owned(),
    );
    all.endpoints.push(Endpoint {
        identity: Identity::Workload {
            namespace: resource.namespace.clone(),
            name,
            kind,
            pod: resource.name.clone(),
            host_network,
        },
        namespace_labels: Labels::new(),
        labels,
        addresses,
        ports,
        networks,
        range: Default::default(),
    });
}

/// Reads `name`, `namespace/name@interface`, lists of these with commas, and the JSON form.
fn networks(text: &str, resource: &Resource<'_>, f: &mut Findings<'_>) -> Vec<(String, Vec<IpAddr>)> {
    let mut found: Vec<(String, Vec<IpAddr>)> = Vec::new();
    let mut add = |namespace: Option<&str>, name: &str, addresses: Vec<IpAddr>| {
        let key = format!("{}/{name}", namespace.unwrap_or(&resource.namespace));
        match found.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => known.extend(addresses),
            None => found.push((key, addresses)),
        }
    };
    if text.trim_start().starts_with('[') {
        let source = node::Source { text, lines_before: 0 };
        let Ok(tree) = node::parse(source, f.limits) else {
            f.error(
                Code::Syntax,
                "metadata.annotations",
                resource.node.position,
                format!("annotation {NETWORKS} is not valid JSON"),
                "Correct it as the Network Plumbing Working Group's specification says",
            );
            return found;
        };
        if let Value::List(list) = &tree.value {
            for entry in list {
                let ips = entry.items_at("ips").iter().filter_map(Node::as_text);
                let addresses = ips
                    .filter_map(|ip| ip.split('/').next()?.parse::<IpAddr>().ok())
                    .collect();
                if let Some(name) = entry.text_at("name") {
                    add(entry.text_at("namespace"), name, addresses);
                }
            }
        }
        return found;
    }
    for entry in text.split(',') {
        let entry = entry.trim().split('@').next().unwrap_or_default();
        match entry.split_once('/') {
            Some((namespace, name)) => add(Some(namespace), name, Vec::new()),
            None if !entry.is_empty() => add(None, entry, Vec::new()),
            None => {}
        }
    }
    found
}

pub(super) fn node(resource: &Resource<'_>, all: &mut Collected) {
    let addresses = resource
        .node
        .at("status")
        .map(|status| status.items_at("addresses"))
        .unwrap_or_default();
    all.endpoints.push(Endpoint {
        identity: Identity::Node {
            name: resource.name.clone(),
        },
        namespace_labels: Labels::new(),
        labels: resource
            .node
            .path(&["metadata", "labels"])
            .map(Node::labels)
            .unwrap_or_default(),
        addresses: addresses
            .iter()
            .filter_map(|a| a.text_at("address")?.parse().ok())
            .collect(),
        ports: Vec::new(),
        networks: Vec::new(),
        range: Default::default(),
    });
}
