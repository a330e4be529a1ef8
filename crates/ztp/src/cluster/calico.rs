//! Calico's NetworkPolicy, GlobalNetworkPolicy and Tier (`projectcalico.org/v3`, and as custom resources).
//!
//! Tiers decide one after the other, and in a tier policies by their order. Whoever a policy of a tier governs, and
//! nothing in it matches, is denied there, or passed on where the tier says so. NetworkPolicies of Kubernetes stand in the
//! default tier.

use super::{Collected, Resource, only};
use crate::{
    decode::{Findings, Object, read_network},
    diagnostic::Code,
    ir::{NAMESPACE_NAME_LABEL, SERVICE_ACCOUNT_LABEL},
    node::{Node, Value},
    reach::{Action, Peer, Policy, Ports, Rest, Rule},
    sets::{LabelValues, Selector, ServiceSet},
};

/// The tier of policies that name none, and where it stands.
pub(super) const DEFAULT_TIER: &str = "default";
const DEFAULT_TIER_ORDER: f64 = 1_000_000.0;
/// Where NetworkPolicies of Kubernetes stand in it.
pub(super) const KUBERNETES_ORDER: f64 = 1_000.0;
/// How deep a selector may nest.
const DEPTH: usize = 32;

/// A policy and where it stands.
pub(super) struct Placed {
    pub(super) tier: String,
    pub(super) order: f64,
    pub(super) policy: Policy,
}

/// What is said of tiers.
#[derive(Default)]
pub(super) struct Calico {
    pub(super) policies: Vec<Placed>,
    tiers: std::collections::BTreeMap<String, (f64, Rest)>,
}

impl Calico {
    /// Where a tier stands, and what becomes of the rest.
    pub(super) fn tier(&self, name: &str) -> (f64, Rest) {
        let unsaid = if name == DEFAULT_TIER {
            DEFAULT_TIER_ORDER
        } else {
            f64::INFINITY
        };
        self.tiers.get(name).copied().unwrap_or((unsaid, Rest::Deny))
    }
}

fn number(node: Option<&Node>) -> Option<f64> {
    match node.map(|n| &n.value) {
        Some(Value::Integer(number)) => Some(*number as f64),
        Some(Value::Float(number)) => Some(*number),
        _ => None,
    }
}

pub(super) fn tier(resource: &Resource<'_>, all: &mut Collected, f: &mut Findings<'_>) {
    let Some(spec) = resource
        .node
        .at("spec")
        .and_then(|n| f.object(n, "spec", &["order", "defaultAction"]))
    else {
        return;
    };
    let choices = [("Deny", Rest::Deny), ("Pass", Rest::Next)];
    let rest = spec
        .get("defaultAction")
        .and_then(|node| f.choice(node, "spec.defaultAction", &choices));
    let order = number(spec.get("order")).unwrap_or(f64::INFINITY);
    all.calico
        .tiers
        .insert(resource.name.clone(), (order, rest.unwrap_or(Rest::Deny)));
}

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
    let global = resource.namespace.is_empty();
    let mut fields = vec![
        "tier",
        "order",
        "selector",
        "types",
        "ingress",
        "egress",
        "serviceAccountSelector",
    ];
    if global {
        fields.push("namespaceSelector");
    }
    let Some(spec) = f.object(node, "spec", &fields) else {
        return;
    };
    let own = if global {
        Peer::Any
    } else {
        pods(only(&resource.namespace), Selector::full())
    };
    let mut parts = vec![if global { Peer::pods() } else { own.clone() }];
    for (field, kind) in [
        ("selector", Kind::Pod),
        ("namespaceSelector", Kind::Namespace),
        ("serviceAccountSelector", Kind::Account),
    ] {
        if let Some(node) = spec.get(field) {
            parts.extend(expression(node, &spec.path(field), kind, f));
        }
    }
    let mut policy = resource.policy(all_of(parts));
    let mut rules: [Option<Vec<Rule>>; 2] = [None, None];
    for (slot, name) in rules.iter_mut().zip(["ingress", "egress"]) {
        if let Some(node) = spec.get(name) {
            let most = f.limits.rules;
            let list = f.list(node, &spec.path(name), most);
            *slot = Some(
                list.into_iter()
                    .filter_map(|(path, node)| rule(node, &path, name == "ingress", &own, global, f))
                    .collect(),
            );
        }
    }
    let [ingress, egress] = rules;
    // Without types, they follow from the rules.
    let (mut on_ingress, mut on_egress) = (ingress.is_some() || egress.is_none(), egress.is_some());
    if let Some(node) = spec.get("types") {
        (on_ingress, on_egress) = (false, false);
        for (path, node) in f.list(node, "spec.types", 2) {
            match f.choice(node, &path, &[("Ingress", true), ("Egress", false)]) {
                Some(true) => on_ingress = true,
                Some(false) => on_egress = true,
                None => {}
            }
        }
    }
    policy.ingress = on_ingress.then(|| ingress.unwrap_or_default());
    policy.egress = on_egress.then(|| egress.unwrap_or_default());
    let tier = spec.get("tier").and_then(Node::as_text).unwrap_or(DEFAULT_TIER);
    all.calico.policies.push(Placed {
        tier: tier.to_owned(),
        order: number(spec.get("order")).unwrap_or(f64::INFINITY),
        policy,
    });
}

fn pods(namespaces: Selector, pods: Selector) -> Peer {
    Peer::Pods {
        namespaces,
        pods,
        hosts: false,
    }
}

fn all_of(mut parts: Vec<Peer>) -> Peer {
    match parts.len() {
        0 => Peer::Any,
        1 => parts.remove(0),
        _ => Peer::All(parts),
    }
}

fn rule(node: &Node, path: &str, ingress: bool, own: &Peer, global: bool, f: &mut Findings<'_>) -> Option<Rule> {
    let object = f.object(
        node,
        path,
        &["metadata", "action", "protocol", "icmp", "source", "destination"],
    )?;
    let choices = [
        ("Allow", Some(Action::Accept)),
        ("Deny", Some(Action::Deny)),
        ("Pass", Some(Action::Pass)),
        ("Log", None),
    ];
    let action = object.require("action", "Write `action: Allow`, `Deny` or `Pass`", f)?;
    // What is only logged goes on to the next rule.
    let action = f.choice(action, &object.path("action"), &choices)??;
    let mut numbers = ServiceSet::full();
    let mut named = Vec::new();
    let protocols: Option<Vec<u8>> = match object.get("protocol").map(|n| &n.value) {
        None => None,
        Some(Value::Integer(number)) => Some(u8::try_from(*number).into_iter().collect()),
        Some(Value::Text(text)) => match text.to_ascii_uppercase().as_str() {
            "TCP" => Some(vec![6]),
            "UDP" => Some(vec![17]),
            "SCTP" => Some(vec![132]),
            "ICMP" => Some(vec![1]),
            "ICMPV6" => Some(vec![58]),
            "UDPLITE" => Some(vec![136]),
            other => {
                f.error_at(
                    Code::BadValue,
                    &object.path("protocol"),
                    format!("{other:?} is not a protocol that is known here"),
                    "Write the protocol's number",
                );
                return None;
            }
        },
        Some(_) => return None,
    };
    if let Some(protocols) = &protocols {
        numbers = ServiceSet::empty();
        for protocol in protocols {
            numbers.insert(*protocol, 0, u16::MAX);
        }
    }
    if let Some(node) = object.get("icmp") {
        let one = f.object(node, &object.path("icmp"), &["type"])?;
        let kind = one
            .get("type")
            .and_then(Node::as_port)
            .and_then(|t| u8::try_from(t).ok())?;
        numbers = ServiceSet::empty();
        for protocol in protocols.as_deref().unwrap_or(&[1]) {
            numbers.insert_icmp(*protocol, kind);
        }
    }
    let (far, near) = if ingress {
        ("source", "destination")
    } else {
        ("destination", "source")
    };
    let mut peer = Peer::Any;
    if let Some(node) = object.get(far) {
        let mut fields = vec![
            "nets",
            "notNets",
            "selector",
            "notSelector",
            "namespaceSelector",
            "serviceAccounts",
        ];
        if !ingress {
            fields.push("ports");
        }
        let entity = f.object(node, &object.path(far), &fields)?;
        peer = self::entity(&entity, own, global, f)?;
        if !ingress {
            ports(&entity, protocols.as_deref(), &mut numbers, &mut named, f);
        }
    }
    if let Some(node) = object.get(near) {
        // The near side is the subject, whose ports alone are looked at.
        let fields: &[&str] = if ingress { &["ports"] } else { &[] };
        let entity = f.object(node, &object.path(near), fields)?;
        ports(&entity, protocols.as_deref(), &mut numbers, &mut named, f);
    }
    Some(Rule {
        name: String::new(),
        field: path.to_owned(),
        action,
        peers: vec![peer],
        ports: Ports { numbers, named },
    })
}

fn ports(
    entity: &Object<'_>,
    protocols: Option<&[u8]>,
    numbers: &mut ServiceSet,
    named: &mut Vec<(Option<u8>, String)>,
    f: &mut Findings<'_>,
) {
    let Some(node) = entity.get("ports") else { return };
    let Some(protocols) = protocols else {
        f.error_at(
            Code::Contradiction,
            &entity.path("ports"),
            "ports without a protocol are refused by Calico",
            "Add `protocol`",
        );
        return;
    };
    *numbers = ServiceSet::empty();
    let most = f.limits.ports;
    for (path, node) in f.list(node, &entity.path("ports"), most) {
        let range = match &node.value {
            Value::Integer(number) => u16::try_from(*number).ok().map(|n| (n, n)),
            Value::Text(text) => match text.split_once(':') {
                Some((from, to)) => from.parse().ok().zip(to.parse().ok()),
                None => match text.parse::<u16>() {
                    Ok(number) => Some((number, number)),
                    Err(_) => {
                        named.extend(protocols.iter().map(|p| (Some(*p), text.clone())));
                        continue;
                    }
                },
            },
            _ => None,
        };
        match range {
            Some((from, to)) => protocols.iter().for_each(|p| numbers.insert(*p, from, to)),
            None => f.wrong_type(node, &path, "a port, `from:to`, or a name"),
        }
    }
}

fn entity(entity: &Object<'_>, own: &Peer, global: bool, f: &mut Findings<'_>) -> Option<Peer> {
    let mut parts = Vec::new();
    let selects = ["selector", "namespaceSelector", "serviceAccounts", "notSelector"];
    if selects.iter().any(|name| entity.get(name).is_some()) {
        match entity.get("namespaceSelector") {
            Some(node) => {
                parts.push(Peer::pods());
                parts.push(expression(node, &entity.path("namespaceSelector"), Kind::Namespace, f)?);
            }
            None if global => parts.push(Peer::pods()),
            None => parts.push(own.clone()),
        }
    }
    if let Some(node) = entity.get("selector") {
        parts.push(expression(node, &entity.path("selector"), Kind::Pod, f)?);
    }
    if let Some(node) = entity.get("notSelector") {
        let not = expression(node, &entity.path("notSelector"), Kind::Pod, f)?;
        parts.push(Peer::Not(Box::new(not)));
    }
    if let Some(node) = entity.get("serviceAccounts") {
        let path = entity.path("serviceAccounts");
        let one = f.object(node, &path, &["names", "selector"])?;
        if let Some(node) = one.get("names") {
            let most = f.limits.labels;
            let list = f.list(node, &one.path("names"), most);
            let names: Vec<String> = list
                .iter()
                .filter_map(|(_, n)| n.as_text().map(str::to_owned))
                .collect();
            let accounts = Selector::full().and(SERVICE_ACCOUNT_LABEL, LabelValues::within(names));
            parts.push(pods(Selector::full(), accounts));
        }
        if let Some(node) = one.get("selector") {
            parts.push(expression(node, &one.path("selector"), Kind::Account, f)?);
        }
    }
    for (name, not) in [("nets", false), ("notNets", true)] {
        let Some(node) = entity.get(name) else { continue };
        let most = f.limits.networks;
        let mut nets = Vec::new();
        for (path, node) in f.list(node, &entity.path(name), most) {
            nets.extend(f.network(node, &path).and_then(|text| read_network(&text).ok()));
        }
        let peer = Peer::Addresses(nets);
        parts.push(if not { Peer::Not(Box::new(peer)) } else { peer });
    }
    Some(all_of(parts))
}

/// What the keys of an expression are labels of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pod,
    Namespace,
    Account,
}

/// Reads a selector in Calico's language.
fn expression(node: &Node, path: &str, kind: Kind, f: &mut Findings<'_>) -> Option<Peer> {
    let text = f.text(node, path)?;
    let mut parser = Parser {
        rest: &text,
        kind,
        depth: 0,
    };
    let read = parser.either().and_then(|peer| match parser.rest.trim() {
        "" => Ok(peer),
        rest => Err(format!("{rest:?} is left over")),
    });
    match read {
        Ok(peer) => Some(peer),
        Err(message) => {
            f.error(
                Code::BadValue,
                path,
                node.position,
                format!("the selector is not understood: {message}"),
                "Write it with ==, !=, in, not in, has(), all(), !, && and ||",
            );
            None
        }
    }
}

struct Parser<'t> {
    rest: &'t str,
    kind: Kind,
    depth: usize,
}

impl<'t> Parser<'t> {
    fn take(&mut self, word: &str) -> bool {
        let rest = self.rest.trim_start();
        match rest.strip_prefix(word) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, word: &str) -> Result<(), String> {
        if self.take(word) {
            return Ok(());
        }
        Err(format!(
            "{word:?} is missing before {:?}",
            crate::node::shorten(self.rest)
        ))
    }

    fn either(&mut self) -> Result<Peer, String> {
        let mut any = vec![self.both()?];
        while self.take("||") {
            any.push(self.both()?);
        }
        Ok(if any.len() == 1 { any.remove(0) } else { Peer::Some(any) })
    }

    fn both(&mut self) -> Result<Peer, String> {
        let mut all = vec![self.one()?];
        while self.take("&&") {
            all.push(self.one()?);
        }
        Ok(all_of(all))
    }

    fn one(&mut self) -> Result<Peer, String> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(format!("it nests more than {DEPTH} levels deep"));
        }
        let peer = self.term();
        self.depth -= 1;
        peer
    }

    fn term(&mut self) -> Result<Peer, String> {
        if self.rest.trim_start().starts_with("!=") {
            return Err("a label is missing before \"!=\"".to_owned());
        }
        if self.take("!") {
            let inner = self.one()?;
            return Ok(Peer::All(vec![Peer::pods(), Peer::Not(Box::new(inner))]));
        }
        if self.take("(") {
            let inner = self.either()?;
            self.expect(")")?;
            return Ok(inner);
        }
        if self.take("all()") {
            return Ok(Peer::pods());
        }
        if self.take("has(") {
            let key = self.word()?;
            self.expect(")")?;
            return Ok(self.label(key, LabelValues::exists()));
        }
        let key = self.word()?;
        if self.take("==") {
            let value = self.quoted()?;
            return Ok(self.label(key, LabelValues::within([value])));
        }
        if self.take("!=") {
            let value = self.quoted()?;
            return Ok(self.label(key, LabelValues::not_within([value])));
        }
        if self.take("not in") {
            let values = self.list()?;
            return Ok(self.label(key, LabelValues::not_within(values)));
        }
        if self.take("in") {
            let values = self.list()?;
            return Ok(self.label(key, LabelValues::within(values)));
        }
        Err(format!(
            "no comparison is known in {:?}",
            crate::node::shorten(self.rest)
        ))
    }

    fn word(&mut self) -> Result<&'t str, String> {
        let rest = self.rest.trim_start();
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || "_./-".contains(c)))
            .unwrap_or(rest.len());
        if end == 0 {
            return Err(format!("a label is missing before {:?}", crate::node::shorten(rest)));
        }
        let (word, rest) = rest.split_at(end);
        self.rest = rest;
        Ok(word)
    }

    fn quoted(&mut self) -> Result<String, String> {
        let rest = self.rest.trim_start();
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let Some(quote) = quote else {
            return Err(format!(
                "a value in quotes is missing before {:?}",
                crate::node::shorten(rest)
            ));
        };
        let inner = &rest[1..];
        let Some(end) = inner.find(quote) else {
            return Err("a quote is not closed".to_owned());
        };
        self.rest = &inner[end + 1..];
        Ok(inner[..end].to_owned())
    }

    fn list(&mut self) -> Result<Vec<String>, String> {
        self.expect("{")?;
        let mut values = Vec::new();
        if self.take("}") {
            return Ok(values);
        }
        loop {
            values.push(self.quoted()?);
            if self.take("}") {
                return Ok(values);
            }
            self.expect(",")?;
        }
    }

    fn label(&self, key: &str, values: LabelValues) -> Peer {
        let full = Selector::full;
        match (self.kind, key) {
            (Kind::Namespace, "projectcalico.org/name") | (Kind::Pod, "projectcalico.org/namespace") => {
                pods(full().and(NAMESPACE_NAME_LABEL, values), full())
            }
            (Kind::Account, "projectcalico.org/name") | (Kind::Pod, "projectcalico.org/serviceaccount") => {
                pods(full(), full().and(SERVICE_ACCOUNT_LABEL, values))
            }
            (Kind::Namespace, key) => pods(full().and(key, values), full()),
            (Kind::Pod | Kind::Account, key) => pods(full(), full().and(key, values)),
        }
    }
}
