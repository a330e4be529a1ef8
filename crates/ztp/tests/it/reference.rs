//! What documents mean, read straight from them: slow, and sharing nothing with the product but the types.

use std::{collections::BTreeMap, net::IpAddr};

use garrison_ztp::document::*;
use ipnet::IpNet;

/// Someone on the network: an address, and a pod's identity where it is one.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: IpAddr,
    pub(crate) pod: Option<Pod>,
}

#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) namespace_labels: BTreeMap<String, String>,
    pub(crate) labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Address,
    Label,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Silent,
    /// Policy, rule, and whether it allows.
    Decided(String, String, bool),
}

pub(crate) fn in_net(text: &str, address: IpAddr) -> bool {
    let address = address.to_canonical();
    match text.parse::<IpNet>() {
        Ok(net) => net.contains(&address),
        Err(_) => text.parse::<IpAddr>().unwrap() == address,
    }
}

pub(crate) fn labels_match(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    selector.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
        && selector.match_expressions.iter().all(|r| {
            let value = labels.get(&r.key);
            match r.operator {
                LabelOperator::In => value.is_some_and(|v| r.values.contains(v)),
                LabelOperator::NotIn => value.is_none_or(|v| !r.values.contains(v)),
                LabelOperator::Exists => value.is_some(),
                LabelOperator::DoesNotExist => value.is_none(),
            }
        })
}

fn pod_matches(
    document: &ZeroTrustPolicy,
    pods: Option<&LabelSelector>,
    namespaces: Option<&LabelSelector>,
    pod: &Pod,
) -> bool {
    let namespace_matches = match namespaces {
        Some(selector) => labels_match(selector, &pod.namespace_labels),
        None => document
            .spec
            .subject
            .workloads
            .as_ref()
            .is_some_and(|w| w.namespace == pod.namespace),
    };
    namespace_matches && pods.is_none_or(|selector| labels_match(selector, &pod.labels))
}

fn peer_matches(document: &ZeroTrustPolicy, peer: &Peer, who: &Endpoint, by: By) -> bool {
    let labelled = |pods: Option<&LabelSelector>, namespaces: Option<&LabelSelector>| {
        by == By::Label
            && who
                .pod
                .as_ref()
                .is_some_and(|pod| pod_matches(document, pods, namespaces, pod))
    };
    if peer.any {
        return true;
    }
    if let Some(cidr) = &peer.cidr {
        return in_net(cidr, who.address) && !peer.except.iter().any(|e| in_net(e, who.address));
    }
    if let Some(group) = &peer.group {
        let group = &document.spec.groups[group];
        let has_labels = group.pod_selector.is_some() || group.namespace_selector.is_some();
        return if by == By::Label && has_labels {
            labelled(group.pod_selector.as_ref(), group.namespace_selector.as_ref())
        } else {
            group.cidrs.iter().any(|c| in_net(c, who.address))
        };
    }
    labelled(peer.pod_selector.as_ref(), peer.namespace_selector.as_ref())
}

fn governs(document: &ZeroTrustPolicy, who: &Endpoint, by: By) -> bool {
    let subject = &document.spec.subject;
    match by {
        By::Address => match &subject.group {
            Some(group) => document.spec.groups[group].cidrs.iter().any(|c| in_net(c, who.address)),
            None => subject.cidrs.iter().any(|c| in_net(c, who.address)),
        },
        By::Label => match (&subject.workloads, &who.pod) {
            (Some(workloads), Some(pod)) => {
                workloads.namespace == pod.namespace
                    && workloads
                        .pod_selector
                        .as_ref()
                        .is_none_or(|s| labels_match(s, &pod.labels))
            }
            _ => false,
        },
    }
}

fn port_matches(ports: &[Port], protocol: u8, port: u16) -> bool {
    ports.is_empty()
        || ports.iter().any(|p| match p.protocol {
            Protocol::Icmp => protocol == 1 || protocol == 58,
            ported => {
                let number = match ported {
                    Protocol::Tcp => 6,
                    Protocol::Udp => 17,
                    _ => 132,
                };
                number == protocol
                    && match (p.port, p.end_port) {
                        (None, _) => true,
                        (Some(from), None) => port == from,
                        (Some(from), Some(to)) => from <= port && port <= to,
                    }
            }
        })
}

/// Decides one side. `governed` is the endpoint whose policies are asked.
fn side(
    documents: &[&ZeroTrustPolicy],
    ingress: bool,
    governed: &Endpoint,
    peer: &Endpoint,
    protocol: u8,
    port: u16,
    by: By,
) -> Side {
    let mut here: Vec<&ZeroTrustPolicy> = documents
        .iter()
        .copied()
        .filter(|d| {
            if ingress {
                d.spec.ingress.is_some()
            } else {
                d.spec.egress.is_some()
            }
        })
        .filter(|d| governs(d, governed, by))
        .collect();
    here.sort_by_key(|d| d.spec.tier); // stable
    let Some(first) = here.first() else {
        return Side::Silent;
    };
    let default = Side::Decided(first.metadata.name.clone(), "default-deny".to_owned(), false);
    let mut tiers: Vec<u16> = here.iter().map(|d| d.spec.tier).collect();
    tiers.dedup();
    for tier in tiers {
        for wanted in [Action::Deny, Action::Allow] {
            for document in here.iter().filter(|d| d.spec.tier == tier) {
                let rules: Vec<(&String, Action, &Vec<Peer>, &Vec<Port>)> = if ingress {
                    document
                        .spec
                        .ingress
                        .iter()
                        .flatten()
                        .map(|r| (&r.name, r.action, &r.from, &r.ports))
                        .collect()
                } else {
                    document
                        .spec
                        .egress
                        .iter()
                        .flatten()
                        .map(|r| (&r.name, r.action, &r.to, &r.ports))
                        .collect()
                };
                for (name, action, peers, ports) in rules {
                    if action == wanted
                        && peers.iter().any(|p| peer_matches(document, p, peer, by))
                        && port_matches(ports, protocol, port)
                    {
                        return Side::Decided(document.metadata.name.clone(), name.clone(), action == Action::Allow);
                    }
                }
            }
        }
    }
    default
}

/// Decides a connection: (egress, ingress).
pub(crate) fn decide(
    documents: &[&ZeroTrustPolicy],
    src: &Endpoint,
    dst: &Endpoint,
    protocol: u8,
    port: u16,
    by: By,
) -> (Side, Side) {
    if src.address.to_canonical() == dst.address.to_canonical() {
        return (Side::Silent, Side::Silent);
    }
    (
        side(documents, false, src, dst, protocol, port, by),
        side(documents, true, dst, src, protocol, port, by),
    )
}

pub(crate) fn denied((egress, ingress): &(Side, Side)) -> bool {
    [egress, ingress]
        .iter()
        .any(|s| matches!(s, Side::Decided(_, _, false)))
}

pub(crate) fn by_address(address: IpAddr) -> Endpoint {
    Endpoint { address, pod: None }
}
