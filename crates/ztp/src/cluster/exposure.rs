//! Services, and what Ingresses and Routes open of them.

use super::{Collected, Resource, only};
use crate::{
    node::{Node, Value},
    reach::{Exposed, Peer, Ports},
    sets::{LabelValues, Selector, ServiceSet},
};

/// A port by number or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PortName {
    Number(u16),
    Name(String),
}

fn port_name(node: &Node) -> Option<PortName> {
    match &node.value {
        Value::Integer(number) => u16::try_from(*number).ok().map(PortName::Number),
        Value::Text(name) => Some(PortName::Name(name.clone())),
        _ => None,
    }
}

pub(super) struct Service {
    namespace: String,
    name: String,
    selector: Selector,
    ports: Vec<ServicePort>,
}

struct ServicePort {
    name: String,
    protocol: u8,
    port: u16,
    target: PortName,
}

pub(super) fn service(resource: &Resource<'_>, all: &mut Collected) {
    let Some(spec) = resource.node.at("spec") else { return };
    let labels = spec.at("selector").map(Node::labels).unwrap_or_default();
    // A service without a selector has endpoints that only a live cluster knows.
    if labels.is_empty() {
        return;
    }
    let selector = labels.into_iter().fold(Selector::full(), |all, (key, value)| {
        all.and(key, LabelValues::within([value]))
    });
    let ports = spec
        .items_at("ports")
        .iter()
        .filter_map(|port| {
            let number = port.at("port")?.as_port()?;
            Some(ServicePort {
                name: port.text_at("name").unwrap_or_default().to_owned(),
                protocol: match port.text_at("protocol") {
                    Some("UDP") => 17,
                    Some("SCTP") => 132,
                    _ => 6,
                },
                port: number,
                target: port
                    .at("targetPort")
                    .and_then(port_name)
                    .unwrap_or(PortName::Number(number)),
            })
        })
        .collect();
    all.services.push(Service {
        namespace: resource.namespace.clone(),
        name: resource.name.clone(),
        selector,
        ports,
    });
}

pub(super) struct Route {
    by: String,
    namespace: String,
    service: String,
    /// The service's port; all when missing.
    port: Option<PortName>,
}

pub(super) fn route(resource: &Resource<'_>, all: &mut Collected) {
    let Some(spec) = resource.node.at("spec") else { return };
    let mut add = |service: Option<&str>, port: Option<PortName>| {
        if let Some(service) = service {
            all.routes.push(Route {
                by: format!("{} {}/{}", resource.kind, resource.namespace, resource.name),
                namespace: resource.namespace.clone(),
                service: service.to_owned(),
                port,
            });
        }
    };
    if resource.kind == "Route" {
        let port = spec.path(&["port", "targetPort"]).and_then(port_name);
        add(spec.path(&["to", "name"]).and_then(Node::as_text), port.clone());
        for backend in spec.items_at("alternateBackends") {
            add(backend.text_at("name"), port.clone());
        }
        return;
    }
    let paths = spec
        .items_at("rules")
        .iter()
        .filter_map(|rule| rule.at("http"))
        .flat_map(|http| http.items_at("paths"));
    let backends = paths
        .filter_map(|path| path.at("backend"))
        .chain(spec.at("defaultBackend"))
        .chain(spec.at("backend"));
    for backend in backends {
        match backend.at("service") {
            Some(service) => {
                let port = service.at("port");
                let port = port.and_then(|p| p.at("number").or_else(|| p.at("name")));
                add(service.text_at("name"), port.and_then(port_name));
            }
            // networking.k8s.io/v1beta1
            None => add(
                backend.text_at("serviceName"),
                backend.at("servicePort").and_then(port_name),
            ),
        }
    }
}

/// What routes open, of the services that are there.
pub(super) fn exposed(routes: &[Route], services: &[Service]) -> Vec<Exposed> {
    let mut all = Vec::new();
    for route in routes {
        for service in services
            .iter()
            .filter(|s| s.namespace == route.namespace && s.name == route.service)
        {
            let mut ports = Ports::default();
            for port in &service.ports {
                let wanted = match &route.port {
                    None => true,
                    Some(PortName::Number(number)) => port.port == *number || port.target == PortName::Number(*number),
                    Some(PortName::Name(name)) => port.name == *name || port.target == PortName::Name(name.clone()),
                };
                match &port.target {
                    _ if !wanted => {}
                    PortName::Number(number) => ports.numbers.insert(port.protocol, *number, *number),
                    PortName::Name(name) => ports.named.push((Some(port.protocol), name.clone())),
                }
            }
            if ports.numbers == ServiceSet::empty() && ports.named.is_empty() {
                continue;
            }
            all.push(Exposed {
                by: route.by.clone(),
                pods: Peer::Pods {
                    namespaces: only(&service.namespace),
                    pods: service.selector.clone(),
                    hosts: true,
                },
                ports,
            });
        }
    }
    all
}
