//! Reading AuthorizationPolicies, strictly.

use super::{Action, Attribute, AuthorizationPolicy, Field, Pattern, Rule};
use crate::{
    Limits,
    decode::{Findings, Object, Spans},
    diagnostic::{Code, Diagnostic},
    node::{self, Node, Value},
    sets::{LabelValues, Selector},
};

/// Reads every AuthorizationPolicy of a file; other resources are passed over.
///
/// # Errors
/// Everything that is wrong, each at its place.
pub fn read(text: &str) -> Result<Vec<AuthorizationPolicy>, Vec<Diagnostic>> {
    let limits = Limits::default();
    let mut f = Findings {
        limits: &limits,
        diagnostics: Vec::new(),
        spans: Spans::new(),
    };
    let mut policies = Vec::new();
    if text.len() > limits.bytes {
        let message = format!(
            "the file has {} bytes where at most {} are taken",
            text.len(),
            limits.bytes
        );
        f.error_at(Code::Limit, "", message, "Split it into several files");
        return Err(f.diagnostics);
    }
    for source in node::split(text) {
        f.spans.clear();
        match node::parse(source, &limits) {
            Ok(tree) => {
                // A list has its resources under `items`.
                let list = tree.text_at("kind").is_some_and(|kind| kind.ends_with("List"));
                let items = if list {
                    tree.items_at("items")
                } else {
                    std::slice::from_ref(&tree)
                };
                for item in items {
                    // Linkerd has a kind of the same name.
                    let linkerd = item
                        .text_at("apiVersion")
                        .is_some_and(|v| v.starts_with("policy.linkerd.io/"));
                    if item.text_at("kind") == Some("AuthorizationPolicy") && !linkerd {
                        policies.extend(policy(item, &mut f));
                    }
                }
            }
            Err(diagnostic) => f.diagnostics.push(diagnostic),
        }
    }
    if f.has_errors() {
        Err(f.diagnostics)
    } else {
        Ok(policies)
    }
}

/// Reads one AuthorizationPolicy. What is wrong is among the findings.
pub(crate) fn policy(tree: &Node, f: &mut Findings<'_>) -> Option<AuthorizationPolicy> {
    let metadata = tree.at("metadata");
    let field = |name| metadata.and_then(|m| m.text_at(name)).unwrap_or_default().to_owned();
    let mut namespace = field("namespace");
    if namespace.is_empty() {
        namespace = "default".to_owned();
    }
    let dry_run = metadata
        .and_then(|m| m.at("annotations"))
        .and_then(|a| a.text_at("istio.io/dry-run"))
        == Some("true");
    let mut policy = AuthorizationPolicy {
        name: field("name"),
        namespace,
        action: Action::Allow,
        dry_run,
        selector: Selector::full(),
        rules: Vec::new(),
    };
    let Some(spec) = tree.at("spec") else {
        return Some(policy);
    };
    let spec = f.object(spec, "spec", &["selector", "action", "provider", "rules"])?;
    let provider = match spec.get("provider") {
        Some(node) => {
            let provider = f.object(node, "spec.provider", &["name"])?;
            let name = provider.require("name", "Name the authoriser", f)?;
            f.text(name, "spec.provider.name")
        }
        None => None,
    };
    if let Some(node) = spec.get("action") {
        let action = f.choice(
            node,
            "spec.action",
            &[("ALLOW", 0), ("DENY", 1), ("AUDIT", 2), ("CUSTOM", 3)],
        )?;
        policy.action = match (action, provider) {
            (0, _) => Action::Allow,
            (1, _) => Action::Deny,
            (2, _) => Action::Audit,
            (_, Some(provider)) => Action::Custom(provider),
            (_, None) => {
                f.error_at(
                    Code::MissingField,
                    "spec.provider",
                    "a CUSTOM policy has no `provider`",
                    "Name the authoriser that is asked",
                );
                return None;
            }
        };
    }
    if let Some(node) = spec.get("selector") {
        let selector = f.object(node, "spec.selector", &["matchLabels"])?;
        if let Some(labels) = selector.get("matchLabels") {
            policy.selector = labels.labels().into_iter().fold(Selector::full(), |all, (key, value)| {
                all.and(key, LabelValues::within([value]))
            });
        }
    }
    if let Some(node) = spec.get("rules") {
        let most = f.limits.rules;
        for (path, node) in f.list(node, "spec.rules", most) {
            policy.rules.push(rule(node, &path, &policy.namespace, f)?);
        }
    }
    Some(policy)
}

fn rule(node: &Node, path: &str, namespace: &str, f: &mut Findings<'_>) -> Option<Rule> {
    const SOURCE: [(&str, Attribute); 6] = [
        ("principals", Attribute::Principal),
        ("requestPrincipals", Attribute::RequestPrincipal),
        ("namespaces", Attribute::Namespace),
        ("serviceAccounts", Attribute::ServiceAccount),
        ("ipBlocks", Attribute::SourceIp),
        ("remoteIpBlocks", Attribute::RemoteIp),
    ];
    const OPERATION: [(&str, Attribute); 4] = [
        ("hosts", Attribute::Host),
        ("ports", Attribute::DestinationPort),
        ("methods", Attribute::Method),
        ("paths", Attribute::Path),
    ];
    if matches!(node.value, Value::Null) {
        return Some(Rule::default());
    }
    let object = f.object(node, path, &["from", "to", "when"])?;
    let mut rule = Rule::default();
    for (list, inner, fields, into) in [
        ("from", "source", &SOURCE[..], &mut rule.from),
        ("to", "operation", &OPERATION[..], &mut rule.to),
    ] {
        let Some(node) = object.get(list) else { continue };
        let most = f.limits.peers;
        for (path, node) in f.list(node, &object.path(list), most) {
            let entry = f.object(node, &path, &[inner])?;
            let node = entry.require(inner, &format!("Write `{inner}:` there"), f)?;
            into.push(fields_of(node, &entry.path(inner), fields, namespace, f)?);
        }
    }
    if let Some(node) = object.get("when") {
        let most = f.limits.peers;
        for (path, node) in f.list(node, &object.path("when"), most) {
            rule.when.push(condition(node, &path, namespace, f)?);
        }
    }
    Some(rule)
}

fn fields_of(
    node: &Node,
    path: &str,
    fields: &[(&str, Attribute)],
    namespace: &str,
    f: &mut Findings<'_>,
) -> Option<Vec<Field>> {
    let names: Vec<String> = fields
        .iter()
        .flat_map(|(name, _)| [(*name).to_owned(), negated(name)])
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let object = f.object(node, path, &names)?;
    let mut all = Vec::new();
    for (name, attribute) in fields {
        let values = patterns(&object, name, attribute, namespace, f)?;
        let not_values = patterns(&object, &negated(name), attribute, namespace, f)?;
        if !values.is_empty() || !not_values.is_empty() {
            all.push(Field {
                attribute: attribute.clone(),
                values,
                not_values,
            });
        }
    }
    Some(all)
}

/// `notPrincipals` of `principals`.
fn negated(name: &str) -> String {
    let mut letters = name.chars();
    match letters.next() {
        Some(first) => format!("not{}{}", first.to_ascii_uppercase(), letters.as_str()),
        None => String::new(),
    }
}

fn condition(node: &Node, path: &str, namespace: &str, f: &mut Findings<'_>) -> Option<Field> {
    let object = f.object(node, path, &["key", "values", "notValues"])?;
    let key_path = object.path("key");
    let key = object.require("key", "Name the attribute", f)?;
    let key = f.text(key, &key_path)?;
    let Some(attribute) = attribute(&key) else {
        f.error_at(
            Code::BadValue,
            &key_path,
            format!("Istio has no attribute {:?}", node::shorten(&key)),
            "Use one that its documentation of conditions names, such as `source.namespace`",
        );
        return None;
    };
    let values = patterns(&object, "values", &attribute, namespace, f)?;
    let not_values = patterns(&object, "notValues", &attribute, namespace, f)?;
    if values.is_empty() && not_values.is_empty() {
        f.error_at(
            Code::Contradiction,
            path,
            "the condition has neither `values` nor `notValues`",
            "Write one of them",
        );
        return None;
    }
    Some(Field {
        attribute,
        values,
        not_values,
    })
}

fn attribute(key: &str) -> Option<Attribute> {
    let brackets = |prefix: &str| -> Option<Vec<String>> {
        let inner = key.strip_prefix(prefix)?.strip_prefix('[')?.strip_suffix(']')?;
        Some(inner.split("][").map(str::to_owned).collect())
    };
    Some(match key {
        "source.ip" => Attribute::SourceIp,
        "remote.ip" => Attribute::RemoteIp,
        "source.namespace" => Attribute::Namespace,
        "source.principal" => Attribute::Principal,
        "source.serviceAccount" => Attribute::ServiceAccount,
        "request.auth.principal" => Attribute::RequestPrincipal,
        "request.auth.audiences" => Attribute::Claim(vec!["aud".to_owned()]),
        "request.auth.presenter" => Attribute::Claim(vec!["azp".to_owned()]),
        "destination.ip" => Attribute::DestinationIp,
        "destination.port" => Attribute::DestinationPort,
        "connection.sni" => Attribute::Sni,
        _ => {
            if let Some(header) = brackets("request.headers") {
                return Some(Attribute::Header(header.join("][")));
            }
            if let Some(claim) = brackets("request.auth.claims") {
                return Some(Attribute::Claim(claim));
            }
            let (filter, rest) = key.strip_prefix("experimental.")?.split_once('[')?;
            Attribute::Filter(filter.to_owned(), rest.strip_suffix(']')?.to_owned())
        }
    })
}

fn patterns(
    object: &Object<'_>,
    name: &str,
    attribute: &Attribute,
    namespace: &str,
    f: &mut Findings<'_>,
) -> Option<Vec<Pattern>> {
    let Some(node) = object.get(name) else {
        return Some(Vec::new());
    };
    let most = f.limits.peers;
    let mut all = Vec::new();
    for (path, node) in f.list(node, &object.path(name), most) {
        let text = f.text(node, &path)?;
        let read = match attribute {
            Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => text
                .parse::<ipnet::IpNet>()
                .or_else(|_| text.parse::<std::net::IpAddr>().map(Into::into))
                .ok()
                .map(|net| Pattern::Network(net.trunc())),
            Attribute::DestinationPort => text.parse().ok().filter(|port| *port > 0).map(Pattern::Port),
            Attribute::ServiceAccount => {
                let full = if text.contains('/') {
                    text.clone()
                } else {
                    format!("{namespace}/{text}")
                };
                (!text.contains('*')).then_some(Pattern::Exact(full))
            }
            Attribute::Path if text.contains("{*}") || text.contains("{**}") => Some(Pattern::Template(text.clone())),
            _ => Some(match text.as_str() {
                "*" => Pattern::Present,
                text => match (text.strip_suffix('*'), text.strip_prefix('*')) {
                    (_, Some(suffix)) => Pattern::Suffix(suffix.to_owned()),
                    (Some(prefix), None) => Pattern::Prefix(prefix.to_owned()),
                    (None, None) => Pattern::Exact(text.to_owned()),
                },
            }),
        };
        match read {
            Some(pattern) => all.push(pattern),
            None => {
                let (code, what) = match attribute {
                    Attribute::DestinationPort => (Code::BadValue, "a port"),
                    Attribute::ServiceAccount => (Code::BadValue, "a service account"),
                    _ => (Code::BadAddress, "an address or network"),
                };
                f.error(
                    code,
                    &path,
                    node.position,
                    format!("{:?} is not {what}", node::shorten(&text)),
                    "Correct it as Istio's documentation says",
                );
                return None;
            }
        }
    }
    Some(all)
}
