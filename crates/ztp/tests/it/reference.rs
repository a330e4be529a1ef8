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
    /// Its service account; its identity is `spiffe://cluster.local/ns/NAMESPACE/sa/ACCOUNT`.
    pub(crate) account: String,
}

/// A connection with what is on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Event {
    pub(crate) protocol: u8,
    /// Of ICMP, the type.
    pub(crate) port: u16,
    /// Whether it is mutual TLS, so that the opener's identity is known.
    pub(crate) mtls: bool,
    /// What else the opener has shown.
    pub(crate) shown: Vec<Need>,
    /// Method, host and path, when it is HTTP.
    pub(crate) request: Option<(String, String, String)>,
    /// The groups of the person whose token the request carries.
    pub(crate) person: Option<Vec<String>>,
    /// The name in DNS under which the destination is called.
    pub(crate) name: Option<String>,
    /// Nanoseconds since the epoch.
    pub(crate) time: i64,
}

fn starred(pattern: &str, text: &str) -> bool {
    if let Some(prefix) = pattern.strip_suffix('*') {
        text.starts_with(prefix)
    } else if let Some(suffix) = pattern.strip_prefix('*') {
        text.ends_with(suffix)
    } else {
        pattern == text
    }
}

impl Event {
    fn spoken(&self, http: &[HttpMatch], grpc: &[GrpcMatch]) -> bool {
        if http.is_empty() && grpc.is_empty() {
            return true;
        }
        let Some((method, host, path)) = &self.request else {
            return false;
        };
        let one = |list: &[String], text: &str| list.is_empty() || list.iter().any(|p| starred(p, text));
        http.iter()
            .any(|m| (m.methods.is_empty() || m.methods.contains(method)) && one(&m.hosts, host) && one(&m.paths, path))
            || grpc.iter().any(|m| {
                method == "POST"
                    && path
                        .strip_prefix('/')
                        .and_then(|rest| rest.split_once('/'))
                        .is_some_and(|(service, call)| {
                            service == m.service && (m.methods.is_empty() || m.methods.iter().any(|name| name == call))
                        })
            })
    }

    fn trusted(&self, document: &ZeroTrustPolicy, level: Option<TrustLevel>) -> bool {
        let Some(level) = level else { return true };
        let own = document.spec.trust_levels.get(&level);
        let needs = own.map_or_else(|| level.needs().to_vec(), |own| own.needs.clone());
        needs.iter().all(|need| match need {
            Need::Mtls => self.mtls,
            Need::Identity => self.mtls || self.person.is_some(),
            other => self.shown.contains(other),
        })
    }

    fn in_time(&self, from: Option<&String>, until: Option<&String>) -> bool {
        let read = |text: &String| {
            chrono::DateTime::parse_from_rfc3339(text)
                .unwrap()
                .timestamp_nanos_opt()
                .unwrap()
        };
        from.is_none_or(|t| read(t) <= self.time) && until.is_none_or(|t| self.time < read(t))
    }
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

fn in_subject_namespace(workloads: &Workloads, pod: &Pod) -> bool {
    match &workloads.namespace_selector {
        Some(selector) => labels_match(selector, &pod.namespace_labels),
        None => workloads.namespace.is_empty() || workloads.namespace == pod.namespace,
    }
}

fn pod_matches(
    document: &ZeroTrustPolicy,
    pods: Option<&LabelSelector>,
    namespaces: Option<&LabelSelector>,
    accounts: &[String],
    pod: &Pod,
) -> bool {
    if !accounts.is_empty() && !accounts.contains(&pod.account) {
        return false;
    }
    let namespace_matches = match namespaces {
        Some(selector) => labels_match(selector, &pod.namespace_labels),
        None => document
            .spec
            .subject
            .workloads
            .as_ref()
            .is_some_and(|w| in_subject_namespace(w, pod)),
    };
    namespace_matches && pods.is_none_or(|selector| labels_match(selector, &pod.labels))
}

fn peer_matches(document: &ZeroTrustPolicy, peer: &Peer, who: &Endpoint, by: By, ingress: bool, event: &Event) -> bool {
    let labelled = |pods: Option<&LabelSelector>, namespaces: Option<&LabelSelector>, accounts: &[String]| {
        by == By::Label
            && who
                .pod
                .as_ref()
                .is_some_and(|pod| pod_matches(document, pods, namespaces, accounts, pod))
    };
    if !peer.spiffe_ids.is_empty() {
        let id = who
            .pod
            .as_ref()
            .filter(|_| event.mtls)
            .map(|pod| format!("spiffe://cluster.local/ns/{}/sa/{}", pod.namespace, pod.account));
        return id.is_some_and(|id| peer.spiffe_ids.iter().any(|pattern| starred(pattern, &id)));
    }
    if !peer.iam_groups.is_empty() {
        let groups = event.person.as_ref().filter(|_| ingress);
        return groups.is_some_and(|groups| groups.iter().any(|g| peer.iam_groups.contains(g)));
    }
    if !peer.fqdns.is_empty() {
        let name = event.name.as_ref().filter(|_| !ingress && who.pod.is_none());
        return name.is_some_and(|name| peer.fqdns.iter().any(|pattern| starred(pattern, name)));
    }
    if !peer.hosts.is_empty() || !peer.tags.is_empty() {
        // Nothing in this world has a place in an inventory.
        return false;
    }
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
            labelled(
                group.pod_selector.as_ref(),
                group.namespace_selector.as_ref(),
                &group.service_accounts,
            )
        } else {
            group.cidrs.iter().any(|c| in_net(c, who.address))
        };
    }
    labelled(
        peer.pod_selector.as_ref(),
        peer.namespace_selector.as_ref(),
        &peer.service_accounts,
    )
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
                in_subject_namespace(workloads, pod)
                    && (workloads.service_accounts.is_empty() || workloads.service_accounts.contains(&pod.account))
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
            Protocol::Icmp if p.icmp_type.is_some() || p.icmpv6_type.is_some() => {
                let kind = if protocol == 1 { p.icmp_type } else { p.icmpv6_type };
                (protocol == 1 || protocol == 58) && kind.is_some_and(|kind| u16::from(kind) == port)
            }
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
    event: &Event,
    by: By,
) -> Side {
    let (protocol, port) = (event.protocol, event.port);
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
                let required = document.spec.requires.filter(|_| ingress);
                let spec = &document.spec;
                let ingress_rules = spec.ingress.iter().flatten().filter(|_| ingress).map(|r| {
                    let more = event.spoken(&r.http, &r.grpc)
                        && (r.action == Action::Deny || event.trusted(document, r.requires.max(required)))
                        && event.in_time(r.valid_from.as_ref(), r.valid_until.as_ref());
                    let ports = port_matches(&r.ports, protocol, port)
                        && (protocol == 6 || (r.http.is_empty() && r.grpc.is_empty()));
                    (&r.name, r.action, &r.from, ports && more)
                });
                let egress_rules = spec.egress.iter().flatten().filter(|_| !ingress).map(|r| {
                    let more = event.spoken(&r.http, &r.grpc)
                        && (r.action == Action::Deny || event.trusted(document, r.requires))
                        && event.in_time(r.valid_from.as_ref(), r.valid_until.as_ref());
                    let ports = port_matches(&r.ports, protocol, port)
                        && (protocol == 6 || (r.http.is_empty() && r.grpc.is_empty()));
                    (&r.name, r.action, &r.to, ports && more)
                });
                for (name, action, peers, rest) in ingress_rules.chain(egress_rules) {
                    if action == wanted
                        && rest
                        && peers
                            .iter()
                            .any(|p| peer_matches(document, p, peer, by, ingress, event))
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
    let event = Event {
        protocol,
        port,
        ..Event::default()
    };
    decide_event(documents, src, dst, &event, by)
}

/// Decides a connection with what is on it: (egress, ingress).
pub(crate) fn decide_event(
    documents: &[&ZeroTrustPolicy],
    src: &Endpoint,
    dst: &Endpoint,
    event: &Event,
    by: By,
) -> (Side, Side) {
    if src.address.to_canonical() == dst.address.to_canonical() {
        return (Side::Silent, Side::Silent);
    }
    (
        side(documents, false, src, dst, event, by),
        side(documents, true, dst, src, event, by),
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
