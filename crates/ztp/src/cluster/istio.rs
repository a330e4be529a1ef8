//! Istio's AuthorizationPolicy and PeerAuthentication (`security.istio.io`), as far as they decide about connections.
//!
//! Denying policies come first, and whoever an allowing one selects is denied the rest. What depends on the request, on a
//! token or on something else that manifests do not tell counts as possible: an allowing rule lets the connection
//! through, and a denying one holds nothing back; each is told. Policies on trial and logging ones decide nothing.

use super::{
    Collected, Resource,
    mesh::{Accounts, members, others, pods, rule, tcp},
};
use crate::{
    decode::{Findings, Object},
    diagnostic::Code,
    istio::{self, AuthorizationPolicy, Field, Pattern, Request},
    node::{Node, Value},
    reach::{Action, Order, Peer, Plane, Policy, Rest, Rule, Stage},
    sets::{LabelValues, Selector, ServiceSet},
};

/// The namespace whose policies count for the whole mesh.
const ROOT: &str = "istio-system";
/// What Istio calls the mesh's own trust domain, whatever it is.
const TRUST_DOMAIN: &str = "cluster.local";

/// What is said of a mesh.
#[derive(Clone, Debug, Default)]
pub(super) struct Istio {
    /// AuthorizationPolicies as they are written, whatever they decide.
    pub(super) read: Vec<AuthorizationPolicy>,
    authorization: Vec<(AuthorizationPolicy, Policy)>,
    /// The more special first: of workloads, of a namespace, of the mesh.
    pub(super) authentication: [Vec<Policy>; 3],
}

/// Reads an AuthorizationPolicy.
pub(super) fn authorization(resource: &Resource<'_>, all: &mut Collected, f: &mut Findings<'_>) {
    if waypoint(resource, f) {
        return;
    }
    let Some(policy) = istio::policy(resource.node, f) else {
        return;
    };
    all.istio.read.push(policy.clone());
    if policy.dry_run || policy.action == istio::Action::Audit {
        return;
    }
    if let istio::Action::Custom(provider) = &policy.action {
        let message = format!("{provider:?} decides about it, and what it says is not known: it counts as allowed");
        told(&message, "spec.action", f);
        return;
    }
    let allows = policy.action == istio::Action::Allow;
    let unsure = policy.rules.iter().any(|rule| {
        let fields = rule.from.iter().chain(&rule.to).flatten().chain(&rule.when);
        fields.into_iter().any(|field| matches!(said(field), Said::Unsure))
    });
    if unsure && allows {
        told(
            "requests are not analysed: a connection counts as allowed when some request on it may be",
            "spec.rules",
            f,
        );
    } else if unsure {
        told(
            "requests are not analysed: what only some of them are denied counts as allowed",
            "spec.rules",
            f,
        );
    }
    let namespace = (policy.namespace != ROOT).then_some(policy.namespace.as_str());
    let mut shell = resource.policy(pods(namespace, policy.selector.clone()));
    shell.ingress = Some(Vec::new());
    all.istio.authorization.push((policy, shell));
}

fn told(message: &str, field: &str, f: &mut Findings<'_>) {
    f.warn_at(
        Code::UnknownKind,
        field,
        message,
        "Ask about single requests with `garrison policy authorize`",
    );
}

/// Whether the policy is for a waypoint or a gateway rather than for pods.
fn waypoint(resource: &Resource<'_>, f: &mut Findings<'_>) -> bool {
    let spec = resource.node.at("spec");
    let there = |name: &str| spec.is_some_and(|spec| spec.at(name).is_some());
    let found = there("targetRef") || there("targetRefs");
    if found {
        f.warn_at(
            Code::UnknownKind,
            "spec",
            "a policy for a waypoint or gateway is not analysed: what it denies is missing from the answer",
            "Take the answer for what the other policies say",
        );
    }
    found
}

/// Reads a PeerAuthentication.
pub(super) fn authentication(resource: &Resource<'_>, all: &mut Collected, f: &mut Findings<'_>) {
    let Some(node) = resource.node.at("spec") else { return };
    let Some(spec) = f.object(node, "spec", &["selector", "mtls", "portLevelMtls"]) else {
        return;
    };
    let mut selector = Selector::full();
    if let Some(node) = spec.get("selector")
        && let Some(object) = f.object(node, "spec.selector", &["matchLabels"])
    {
        let labels = object.get("matchLabels").map(Node::labels).unwrap_or_default();
        selector = labels.into_iter().fold(Selector::full(), |all, (key, value)| {
            all.and(key, LabelValues::within([value]))
        });
    }
    let mut rules = Vec::new();
    if let Some(node) = spec.get("portLevelMtls") {
        let most = f.limits.ports;
        for (port, path, node) in f.entries(node, "spec.portLevelMtls", most) {
            let Some(mtls) = f.object(node, &path, &["mode"]) else {
                continue;
            };
            match port.parse::<u16>() {
                Ok(number) => {
                    let mut services = ServiceSet::empty();
                    services.insert(6, number, number);
                    rules.extend(mode(&mtls, services, f));
                }
                Err(_) => f.error_at(Code::BadValue, &path, "not a port", "Write the number of a port"),
            }
        }
    }
    if let Some(node) = spec.get("mtls")
        && !matches!(node.value, Value::Null)
        && let Some(mtls) = f.object(node, "spec.mtls", &["mode"])
    {
        rules.extend(mode(&mtls, tcp(), f));
    }
    let level = match (selector.is_full(), resource.namespace == ROOT) {
        (false, _) => 0,
        (true, false) => 1,
        (true, true) => 2,
    };
    let namespace = (level < 2).then_some(resource.namespace.as_str());
    let mut policy = resource.policy(pods(namespace, selector));
    policy.ingress = Some(rules);
    all.istio.authentication[level].push(policy);
}

/// What a mode says about connections: whoever shows no certificate is denied, or a less special policy has no say.
fn mode(mtls: &Object<'_>, services: ServiceSet, f: &mut Findings<'_>) -> Vec<Rule> {
    let choices = [("UNSET", 0), ("DISABLE", 1), ("PERMISSIVE", 1), ("STRICT", 2)];
    let path = mtls.path("mode");
    let mode = mtls
        .get("mode")
        .and_then(|node| f.choice(node, &path, &choices))
        .unwrap_or_default();
    let mut rules = Vec::new();
    if mode == 2 {
        let strangers = Peer::Not(Box::new(members()));
        rules.push(rule(&path, Action::Deny, strangers, services.clone()));
    }
    if mode > 0 {
        rules.push(rule(&path, Action::Pass, Peer::Any, services));
    }
    rules
}

/// What a field of a rule is about.
enum Said {
    /// Who opens the connection.
    Who,
    /// The port.
    Port,
    /// Something that manifests do not tell.
    Unsure,
}

fn said(field: &Field) -> Said {
    match field.attribute {
        istio::Attribute::Principal
        | istio::Attribute::Namespace
        | istio::Attribute::ServiceAccount
        | istio::Attribute::SourceIp => Said::Who,
        istio::Attribute::DestinationPort => Said::Port,
        _ => Said::Unsure,
    }
}

fn who(field: &Field, accounts: &Accounts) -> Peer {
    if field.attribute == istio::Attribute::SourceIp {
        let nets = |patterns: &[Pattern]| {
            let nets = patterns.iter().filter_map(|pattern| match pattern {
                Pattern::Network(net) => Some(*net),
                _ => None,
            });
            Peer::Addresses(nets.collect())
        };
        let mut all = Vec::new();
        if !field.values.is_empty() {
            all.push(nets(&field.values));
        }
        if !field.not_values.is_empty() {
            all.push(Peer::Not(Box::new(nets(&field.not_values))));
        }
        return Peer::All(all);
    }
    let holds = |principal: Option<String>| {
        field.matches(&Request {
            principal,
            ..Request::default()
        })
    };
    let known =
        accounts.pods(|namespace, account| holds(Some(format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}"))));
    if holds(None) {
        Peer::Some(vec![known, Peer::Not(Box::new(members()))])
    } else {
        known
    }
}

fn ports(field: &Field) -> ServiceSet {
    let listed = |patterns: &[Pattern]| {
        let mut set = ServiceSet::empty();
        for pattern in patterns {
            if let Pattern::Port(port) = pattern {
                set.insert(6, *port, *port);
            }
        }
        set
    };
    let wanted = if field.values.is_empty() {
        tcp()
    } else {
        listed(&field.values)
    };
    wanted.subtract(&listed(&field.not_values))
}

/// What a rule says about connections; `None` when it says nothing that is sure.
fn connections(raw: &istio::Rule, number: usize, action: Action, accounts: &Accounts) -> Option<Rule> {
    let denies = action == Action::Deny;
    let sure = |fields: &&Vec<Field>| !denies || !fields.iter().any(|f| matches!(said(f), Said::Unsure));
    if !sure(&&raw.when) {
        return None;
    }
    let peers_of = |fields: &Vec<Field>| {
        let fields = fields.iter().filter(|f| matches!(said(f), Said::Who));
        Peer::All(fields.map(|field| who(field, accounts)).collect())
    };
    let ports_of = |fields: &Vec<Field>| {
        let fields = fields.iter().filter(|f| matches!(said(f), Said::Port));
        fields.fold(tcp(), |all, field| all.intersect(&ports(field)))
    };
    let mut peers = vec![peers_of(&raw.when)];
    let mut services = ports_of(&raw.when);
    if !raw.from.is_empty() {
        peers.push(Peer::Some(raw.from.iter().filter(sure).map(peers_of).collect()));
    }
    if !raw.to.is_empty() {
        let listed = raw.to.iter().filter(sure).map(ports_of);
        services = services.intersect(&listed.fold(ServiceSet::empty(), |all, set| all.union(&set)));
    }
    Some(rule(
        &format!("spec.rules[{number}]"),
        action,
        Peer::All(peers),
        services,
    ))
}

/// What the mesh decides, as a plane of its own; `None` without policies.
pub(super) fn plane(istio: Istio, accounts: &Accounts) -> Option<Plane> {
    let authentication: Vec<Policy> = istio.authentication.into_iter().flatten().collect();
    if istio.authorization.is_empty() && authentication.is_empty() {
        return None;
    }
    let mut denying = Vec::new();
    let mut allowing = Vec::new();
    for (policy, mut shell) in istio.authorization {
        let allows = policy.action == istio::Action::Allow;
        let action = if allows { Action::Accept } else { Action::Deny };
        let rules = (0..).zip(&policy.rules);
        let mut rules: Vec<Rule> = rules
            .filter_map(|(i, raw)| connections(raw, i, action, accounts))
            .collect();
        if allows {
            rules.push(others());
        }
        shell.ingress = Some(rules);
        if allows {
            allowing.push(shell);
        } else {
            denying.push(shell);
        }
    }
    let stage = |name: &str, order, rest, policies| Stage {
        name: name.to_owned(),
        order,
        rest,
        policies,
    };
    Some(Plane {
        name: "Istio".to_owned(),
        stages: vec![
            stage("PeerAuthentication", Order::InOrder, Rest::Next, authentication),
            stage("denying AuthorizationPolicies", Order::DenyFirst, Rest::Next, denying),
            stage("AuthorizationPolicies", Order::DenyFirst, Rest::Deny, allowing),
        ],
    })
}
