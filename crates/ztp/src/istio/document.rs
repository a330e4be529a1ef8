//! AuthorizationPolicies as ZeroTrustPolicy documents.
//!
//! Istio decides about TCP alone, denies first, and isolates what an allowing policy selects. Denying policies so come in
//! an earlier tier; what they do not deny is allowed in the last one. What the language cannot say is left out of what is
//! allowed and told; a deny rule then denies everything else that it says.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Attribute, AuthorizationPolicy, Field, Pattern};
use crate::{
    cluster::Imported,
    document::{
        Action as Wanted, CLUSTER_KIND, HttpMatch, IngressRule, KIND, LabelSelector, Peer, Port, Protocol, Subject,
        TrustLevel, Workloads, ZeroTrustPolicy,
    },
    ir::NAMESPACE_NAME_LABEL,
    security_group::named,
};

/// Tiers: what is denied, what is allowed, the end of what is isolated, and what nobody spoke about.
const TIERS: [u16; 4] = [100, 101, 102, 1_000];

/// AuthorizationPolicies as documents. Those of the root namespace are for every namespace.
pub fn documents(policies: &[AuthorizationPolicy], root: &str) -> Imported {
    let mut out = Imported::default();
    let mut names = BTreeSet::new();
    let denies = policies
        .iter()
        .any(|p| matches!(p.action, Action::Deny | Action::Custom(_)) && !p.dry_run);
    for policy in policies {
        let place = format!("AuthorizationPolicy {}/{}", policy.namespace, policy.name);
        let action = match &policy.action {
            Action::Allow => Wanted::Allow,
            Action::Deny => Wanted::Deny,
            Action::Audit => continue,
            Action::Custom(_) => Wanted::Deny,
        };
        if policy.dry_run {
            out.left_out
                .push(format!("{place}: it is on trial and decides nothing; it is left out"));
            continue;
        }
        if let Action::Custom(provider) = &policy.action {
            out.left_out.push(format!(
                "{place}: {provider} is asked, which documents cannot say; what it is asked about is denied"
            ));
        }
        let mut rules = Vec::new();
        for (i, rule) in policy.rules.iter().enumerate() {
            let place = format!("{place}: spec.rules[{i}]");
            rules.extend(written(rule, action, &place, &mut out));
        }
        for (n, rule) in rules.iter_mut().enumerate() {
            rule.name = format!("rule-{n}");
        }
        let mut push = |what: &str, tier: u16, ingress: Vec<IngressRule>| {
            let parts = [policy.namespace.as_str(), policy.name.as_str(), what];
            let name = named(
                &parts
                    .into_iter()
                    .filter(|part| !part.is_empty())
                    .collect::<Vec<_>>()
                    .join("-"),
            );
            let mut unique = name.clone();
            for number in 2.. {
                if names.insert(unique.clone()) {
                    break;
                }
                unique = format!(
                    "{}-{number}",
                    name.chars().take(56).collect::<String>().trim_end_matches('-')
                );
            }
            out.documents.push(document(policy, root, unique, tier, ingress));
        };
        let [deny, allow, end, rest] = TIERS;
        if action == Wanted::Deny {
            push("", deny, rules);
            push("rest", rest, vec![rule("rest", Wanted::Allow, anyone())]);
        } else {
            let mut other = rule("not-tcp", Wanted::Allow, anyone());
            other.ports = [Protocol::Udp, Protocol::Sctp, Protocol::Icmp].map(port).to_vec();
            rules.push(other);
            push("", allow, rules);
            if denies {
                push("end", end, vec![rule("end", Wanted::Deny, anyone())]);
            }
        }
    }
    out
}

fn document(
    policy: &AuthorizationPolicy,
    root: &str,
    name: String,
    tier: u16,
    ingress: Vec<IngressRule>,
) -> ZeroTrustPolicy {
    let everywhere = policy.namespace == root;
    let labels = policy.selector.labels().iter();
    let match_labels: BTreeMap<String, String> = labels
        .filter_map(|(key, values)| Some((key.clone(), values.values.first()?.clone())))
        .collect();
    let subject = Subject {
        workloads: Some(Workloads {
            namespace: if everywhere {
                String::new()
            } else {
                policy.namespace.clone()
            },
            namespace_selector: None,
            pod_selector: (!match_labels.is_empty()).then(|| LabelSelector {
                match_labels,
                ..LabelSelector::default()
            }),
            service_accounts: Vec::new(),
        }),
        ..Subject::default()
    };
    let mut document = ZeroTrustPolicy::observing(
        if everywhere { CLUSTER_KIND } else { KIND },
        name,
        tier,
        format!("imported from AuthorizationPolicy {}/{}", policy.namespace, policy.name),
        subject,
    );
    document.spec.ingress = Some(ingress);
    document
}

fn anyone() -> Peer {
    Peer {
        any: true,
        ..Peer::default()
    }
}

fn port(protocol: Protocol) -> Port {
    Port {
        protocol,
        port: None,
        end_port: None,
        icmp_type: None,
        icmpv6_type: None,
    }
}

fn rule(name: &str, action: Wanted, from: Peer) -> IngressRule {
    IngressRule::new(name.to_owned(), action, vec![from], Vec::new())
}

/// One rule for each source and operation.
fn written(raw: &super::Rule, action: Wanted, place: &str, out: &mut Imported) -> Vec<IngressRule> {
    let denies = action == Wanted::Deny;
    let mut tell = |what: &str| {
        let effect = if denies {
            "it is denied without that"
        } else {
            "it is not allowed"
        };
        out.left_out.push(format!("{place}: {what}; {effect}"));
    };
    if !raw.when.is_empty() {
        tell("documents have no conditions on attributes (`when`)");
        if !denies {
            return Vec::new();
        }
    }
    let everyone = vec![(anyone(), None)];
    let mut from: Vec<(Peer, Option<TrustLevel>)> = Vec::new();
    for source in &raw.from {
        match peers(source) {
            Ok(peers) => from.extend(peers),
            Err(what) => {
                tell(what);
                if denies {
                    from.clone_from(&everyone);
                    break;
                }
            }
        }
    }
    if raw.from.is_empty() {
        from.clone_from(&everyone);
    }
    let mut to = Vec::new();
    for operation in &raw.to {
        match spoken(operation) {
            Ok(spoken) => to.push(spoken),
            Err(what) => {
                tell(what);
                if denies {
                    to = vec![(Vec::new(), None)];
                    break;
                }
            }
        }
    }
    if raw.to.is_empty() {
        to.push((Vec::new(), None));
    }
    let mut all = Vec::new();
    for (peer, level) in &from {
        for (ports, request) in &to {
            let mut one = rule("", action, peer.clone());
            one.ports = if ports.is_empty() {
                vec![port(Protocol::Tcp)]
            } else {
                ports.clone()
            };
            one.http = request.iter().cloned().collect();
            // A deny rule needs no trust of whom it denies.
            one.requires = level.filter(|_| !denies);
            all.push(one);
        }
    }
    all
}

/// Who a source is, and what they have to prove.
fn peers(source: &[Field]) -> Result<Vec<(Peer, Option<TrustLevel>)>, &'static str> {
    let [field] = source else {
        return Err("a source that asks for several things at once");
    };
    if !field.not_values.is_empty() {
        return Err("a source that is told by whom it is not");
    }
    let proved = Some(TrustLevel::Trusted);
    let namespace = |name: &str| LabelSelector {
        match_labels: BTreeMap::from([(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned())]),
        ..LabelSelector::default()
    };
    let mut all = Vec::new();
    for value in &field.values {
        all.push(match (&field.attribute, value) {
            (Attribute::Principal | Attribute::Namespace | Attribute::ServiceAccount, Pattern::Present) => {
                (anyone(), proved)
            }
            (Attribute::Principal, Pattern::Exact(text)) if text.contains('/') => (spiffe(text.clone()), proved),
            (Attribute::Principal, Pattern::Prefix(text)) if text.contains('/') => (spiffe(format!("{text}*")), proved),
            (Attribute::Namespace, Pattern::Exact(name)) => {
                let peer = Peer {
                    namespace_selector: Some(namespace(name)),
                    ..Peer::default()
                };
                (peer, proved)
            }
            (Attribute::ServiceAccount, Pattern::Exact(text)) => {
                let (ns, name) = text.split_once('/').ok_or("a service account without its namespace")?;
                let peer = Peer {
                    namespace_selector: Some(namespace(ns)),
                    service_accounts: vec![name.to_owned()],
                    ..Peer::default()
                };
                (peer, proved)
            }
            (Attribute::SourceIp, Pattern::Network(net)) => {
                let peer = Peer {
                    cidr: Some(net.trunc().to_string()),
                    ..Peer::default()
                };
                (peer, None)
            }
            _ => return Err("a source that the language has no word for"),
        });
    }
    Ok(all)
}

fn spiffe(id: String) -> Peer {
    Peer {
        spiffe_ids: vec![format!("spiffe://{id}")],
        ..Peer::default()
    }
}

/// Ports and the request of an operation.
fn spoken(operation: &[Field]) -> Result<(Vec<Port>, Option<HttpMatch>), &'static str> {
    let mut ports = Vec::new();
    let mut request = HttpMatch::default();
    for field in operation {
        if !field.not_values.is_empty() {
            return Err("an operation that is told by what it is not");
        }
        for value in &field.values {
            let text = match value {
                Pattern::Exact(text) => text.clone(),
                Pattern::Prefix(text) => format!("{text}*"),
                Pattern::Suffix(text) => format!("*{text}"),
                Pattern::Present => "*".to_owned(),
                Pattern::Port(number) => {
                    ports.push(Port {
                        port: Some(*number),
                        ..port(Protocol::Tcp)
                    });
                    continue;
                }
                Pattern::Template(_) | Pattern::Network(_) => {
                    return Err("an operation that the language has no word for");
                }
            };
            match (&field.attribute, value) {
                (Attribute::Method, Pattern::Exact(_)) => request.methods.push(text),
                (Attribute::Path, _) => request.paths.push(text),
                // A port may stand behind a host there; the language has hosts without one.
                (Attribute::Host, Pattern::Exact(_)) if !text.contains(':') => request.hosts.push(text),
                (Attribute::Host, Pattern::Suffix(end)) if end.starts_with('.') => request.hosts.push(text),
                _ => return Err("an operation that the language has no word for"),
            }
        }
    }
    Ok((ports, (request != HttpMatch::default()).then_some(request)))
}

/// Whether a rule denies requests, rather than connections.
pub(crate) fn deny_requests(documents: &[ZeroTrustPolicy]) -> bool {
    let rules = documents.iter().flat_map(|d| d.spec.ingress.iter().flatten());
    rules
        .into_iter()
        .any(|rule| rule.action == Wanted::Deny && !rule.http.is_empty())
}

/// Documents of denying policies alone, and what denies connections without requests: of those, Istio takes a rule for
/// what it says besides. Requests that no rule denies pass, and what is no request is denied behind them.
pub(crate) fn with_other_than_requests(documents: Vec<ZeroTrustPolicy>) -> Vec<ZeroTrustPolicy> {
    let mut all = Vec::new();
    for document in documents {
        let rules = document.spec.ingress.iter().flatten();
        let of_requests: Vec<IngressRule> = rules
            .filter(|rule| rule.action == Wanted::Deny && !rule.http.is_empty())
            .cloned()
            .collect();
        if !of_requests.is_empty() {
            let [_, requests, others, _] = TIERS;
            for (tier, action) in [(requests, Wanted::Allow), (others, Wanted::Deny)] {
                let mut more = document.clone();
                more.spec.tier = tier;
                let rules = of_requests.iter().cloned().map(|mut rule| {
                    rule.action = action;
                    rule.http = match action {
                        Wanted::Allow => vec![HttpMatch {
                            paths: vec!["*".to_owned()],
                            ..HttpMatch::default()
                        }],
                        Wanted::Deny => Vec::new(),
                    };
                    rule
                });
                more.spec.ingress = Some(rules.collect());
                all.push(more);
            }
        }
        all.push(document);
    }
    all
}
