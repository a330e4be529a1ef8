//! Istio AuthorizationPolicy (`security.istio.io/v1`): what it is, how it is read, and what it decides.
//!
//! A workload's policies are asked by action: custom ones hand the request to an external authoriser, a denying one
//! that matches denies, and when there are allowing ones, one of them must match. On a connection that is not HTTP,
//! allowing rules that speak of HTTP match nothing, and the other actions' rules match by what else they say, so that
//! both err on the side of denial.

mod document;
mod read;

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::sets::{Labels, Selector};

pub use document::documents;
pub(crate) use document::{deny_requests, with_other_than_requests};
pub(crate) use read::policy;
pub use read::read;

/// What a policy does with what it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The request is allowed.
    Allow,
    /// The request is denied.
    Deny,
    /// The request is logged.
    Audit,
    /// An external authoriser of this name is asked.
    Custom(String),
}

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// What it does.
    pub action: Action,
    /// Whether it is only tried (`istio.io/dry-run`).
    pub dry_run: bool,
    /// Which workloads of the namespace it is for.
    pub selector: Selector,
    /// The rules, any one of which may match. Without rules, nothing matches.
    pub rules: Vec<Rule>,
}

/// One rule: a source, an operation and every condition must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Sources, any one of which may match; empty for everyone. All fields of a source must match.
    pub from: Vec<Vec<Field>>,
    /// Operations, any one of which may match; empty for everything. All fields of an operation must match.
    pub to: Vec<Vec<Field>>,
    /// Conditions, all of which must match.
    pub when: Vec<Field>,
}

/// What a field is compared with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attribute {
    /// The peer's identity: a SPIFFE id without `spiffe://`.
    Principal,
    /// The namespace in the peer's identity.
    Namespace,
    /// The service account in the peer's identity, as `namespace/name`.
    ServiceAccount,
    /// Issuer and subject of the request's token, as `issuer/subject`.
    RequestPrincipal,
    /// The address that the connection comes from.
    SourceIp,
    /// The address that the request comes from, as forwarding headers tell.
    RemoteIp,
    /// The address that the connection goes to.
    DestinationIp,
    /// The port that the connection goes to.
    DestinationPort,
    /// The server name of TLS.
    Sni,
    /// The HTTP method.
    Method,
    /// The HTTP host.
    Host,
    /// The HTTP path.
    Path,
    /// An HTTP header.
    Header(String),
    /// A claim of the request's token, by its path.
    Claim(Vec<String>),
    /// Metadata of an Envoy filter: the filter and the key.
    Filter(String, String),
}

impl Attribute {
    /// Whether only an HTTP request has it.
    pub fn is_http(&self) -> bool {
        matches!(
            self,
            Self::RequestPrincipal | Self::Method | Self::Host | Self::Path | Self::Header(_) | Self::Claim(_)
        )
    }
}

/// One value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Exactly this.
    Exact(String),
    /// Everything that starts so: `prefix*`.
    Prefix(String),
    /// Everything that ends so: `*suffix`.
    Suffix(String),
    /// Anything, but not nothing: `*`.
    Present,
    /// A path template: `{*}` is one segment, `{**}` any number.
    Template(String),
    /// Addresses.
    Network(IpNet),
    /// A port.
    Port(u16),
}

impl Pattern {
    fn matches(&self, text: &str, ignore_case: bool) -> bool {
        if ignore_case {
            let folded = match self {
                Self::Exact(t) => Self::Exact(t.to_ascii_lowercase()),
                Self::Prefix(t) => Self::Prefix(t.to_ascii_lowercase()),
                Self::Suffix(t) => Self::Suffix(t.to_ascii_lowercase()),
                other => other.clone(),
            };
            return folded.matches(&text.to_ascii_lowercase(), false);
        }
        match self {
            Self::Exact(exact) => text == exact,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_str()),
            Self::Present => !text.is_empty(),
            Self::Template(template) => {
                let template: Vec<&str> = template.split('/').collect();
                let path: Vec<&str> = text.split('/').collect();
                segments(&template, &path)
            }
            Self::Network(_) | Self::Port(_) => false,
        }
    }
}

/// Segments of a path against those of a template.
fn segments(template: &[&str], path: &[&str]) -> bool {
    match template.split_first() {
        None => path.is_empty(),
        Some((&"{**}", rest)) => (0..=path.len()).any(|n| segments(rest, &path[n..])),
        Some((&"{*}", rest)) => path
            .split_first()
            .is_some_and(|(first, path)| !first.is_empty() && segments(rest, path)),
        Some((literal, rest)) => path
            .split_first()
            .is_some_and(|(first, path)| first == literal && segments(rest, path)),
    }
}

/// One field of a rule: some value matches, and no other one does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// What is compared.
    pub attribute: Attribute,
    /// Values, one of which must match; empty for no such demand.
    pub values: Vec<Pattern>,
    /// Values, none of which may match.
    pub not_values: Vec<Pattern>,
}

/// A connection, and the request on it when it is HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The peer's SPIFFE id, with `spiffe://`; `None` without mutual TLS.
    pub principal: Option<String>,
    /// The address that the connection comes from.
    pub source_ip: Option<IpAddr>,
    /// The address that the request comes from.
    pub remote_ip: Option<IpAddr>,
    /// The address that the connection goes to.
    pub destination_ip: Option<IpAddr>,
    /// The port that it goes to.
    pub port: u16,
    /// The server name of TLS.
    pub sni: Option<String>,
    /// The request; `None` when the connection is not HTTP.
    pub http: Option<Http>,
    /// Metadata of Envoy filters.
    pub filters: BTreeMap<(String, String), String>,
}

/// An HTTP request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Http {
    /// The method.
    pub method: String,
    /// The host, with a port where the client wrote one.
    pub host: String,
    /// The path, without the query.
    pub path: String,
    /// Headers by name.
    pub headers: BTreeMap<String, String>,
    /// Claims of the token by their path, each with its values.
    pub claims: BTreeMap<Vec<String>, Vec<String>>,
}

impl Field {
    /// Whether one of `values` matches.
    pub fn any(&self, patterns: &[Pattern], request: &Request) -> bool {
        let address = |address: Option<IpAddr>| {
            address.is_some_and(|a| {
                patterns
                    .iter()
                    .any(|p| matches!(p, Pattern::Network(net) if net.contains(&a)))
            })
        };
        let text = |text: Option<&str>| text.is_some_and(|t| patterns.iter().any(|p| p.matches(t, false)));
        let http = request.http.as_ref();
        let claim = |path: &[String]| -> &[String] {
            http.and_then(|h| h.claims.get(path))
                .map(Vec::as_slice)
                .unwrap_or_default()
        };
        match &self.attribute {
            Attribute::Principal => request.principal.as_deref().is_some_and(|id| {
                patterns.iter().any(|p| match p {
                    Pattern::Present => !id.is_empty(),
                    p => id.strip_prefix("spiffe://").is_some_and(|id| p.matches(id, false)),
                })
            }),
            Attribute::Namespace => request
                .principal
                .as_deref()
                .is_some_and(|id| patterns.iter().any(|p| in_namespace(id, p))),
            Attribute::ServiceAccount => request
                .principal
                .as_deref()
                .is_some_and(|id| patterns.iter().any(|p| has_account(id, p))),
            Attribute::RequestPrincipal => {
                let one = |name: &str| match claim(&[name.to_owned()]) {
                    [one] => Some(one.as_str()),
                    _ => None,
                };
                let (issuer, subject) = (one("iss"), one("sub"));
                patterns.iter().any(|p| {
                    let (of_issuer, of_subject) = token(p);
                    issuer.is_some_and(|i| of_issuer.matches(i, false))
                        && subject.is_some_and(|s| of_subject.matches(s, false))
                })
            }
            Attribute::SourceIp => address(request.source_ip),
            Attribute::RemoteIp => address(request.remote_ip),
            Attribute::DestinationIp => address(request.destination_ip),
            Attribute::DestinationPort => patterns
                .iter()
                .any(|p| matches!(p, Pattern::Port(port) if *port == request.port)),
            Attribute::Sni => text(request.sni.as_deref()),
            // Every request has a method.
            Attribute::Method => http.is_some_and(|h| {
                patterns
                    .iter()
                    .any(|p| *p == Pattern::Present || p.matches(&h.method, false))
            }),
            // A header that is there may be empty.
            Attribute::Host => http.is_some_and(|h| {
                patterns
                    .iter()
                    .any(|p| *p == Pattern::Present || p.matches(&h.host, true))
            }),
            Attribute::Path => text(http.map(|h| h.path.as_str())),
            Attribute::Header(name) => {
                let value = match name.as_str() {
                    ":method" => http.map(|h| h.method.as_str()),
                    ":authority" => http.map(|h| h.host.as_str()),
                    ":path" => http.map(|h| h.path.as_str()),
                    name => http.and_then(|h| h.headers.get(name)).map(String::as_str),
                };
                value.is_some_and(|v| patterns.iter().any(|p| *p == Pattern::Present || p.matches(v, false)))
            }
            Attribute::Claim(path) => claim(path)
                .iter()
                .any(|value| patterns.iter().any(|p| p.matches(value, false))),
            Attribute::Filter(filter, key) => {
                text(request.filters.get(&(filter.clone(), key.clone())).map(String::as_str))
            }
        }
    }

    /// Whether the field matches.
    pub fn matches(&self, request: &Request) -> bool {
        (self.values.is_empty() || self.any(&self.values, request))
            && (self.not_values.is_empty() || !self.any(&self.not_values, request))
    }
}

/// Issuer and subject that a request principal means.
fn token(pattern: &Pattern) -> (Pattern, Pattern) {
    let split = |text: &str| text.rsplit_once('/').map(|(a, b)| (a.to_owned(), b.to_owned()));
    match pattern {
        Pattern::Exact(text) => match split(text) {
            Some((issuer, subject)) => (Pattern::Exact(issuer), Pattern::Exact(subject)),
            None => (Pattern::Exact(text.clone()), Pattern::Exact(String::new())),
        },
        Pattern::Prefix(text) => match split(text) {
            Some((issuer, subject)) if subject.is_empty() => (Pattern::Exact(issuer), Pattern::Present),
            Some((issuer, subject)) => (Pattern::Exact(issuer), Pattern::Prefix(subject)),
            None => (Pattern::Prefix(text.clone()), Pattern::Present),
        },
        Pattern::Suffix(text) => match split(text) {
            Some((issuer, subject)) if issuer.is_empty() => (Pattern::Present, Pattern::Exact(subject)),
            Some((issuer, subject)) => (Pattern::Suffix(issuer), Pattern::Exact(subject)),
            None => (Pattern::Present, Pattern::Suffix(text.clone())),
        },
        other => (other.clone(), other.clone()),
    }
}

/// Whether an identity has `/ns/NAMESPACE/` with a matching namespace, which may run over several segments.
fn in_namespace(id: &str, pattern: &Pattern) -> bool {
    let starts = id.match_indices("/ns/").map(|(i, m)| i + m.len());
    starts.into_iter().any(|start| {
        let rest = &id[start..];
        rest.match_indices('/').any(|(end, _)| match pattern {
            // Anything counts here, even nothing.
            Pattern::Present => true,
            pattern => pattern.matches(&rest[..end], false),
        })
    })
}

/// Whether an identity is of the form `spiffe://DOMAIN/ns/NAMESPACE/[…/]sa/NAME[/…]`.
fn has_account(id: &str, pattern: &Pattern) -> bool {
    let Pattern::Exact(text) = pattern else { return false };
    let Some((namespace, name)) = text.split_once('/') else {
        return false;
    };
    let Some(rest) = id.strip_prefix("spiffe://") else {
        return false;
    };
    let marker = format!("/ns/{namespace}/");
    rest.match_indices(&marker).filter(|(at, _)| *at > 0).any(|(at, _)| {
        let rest = &rest[at + marker.len()..];
        let direct = std::iter::once(0);
        let behind = rest.match_indices('/').filter(|(i, _)| *i > 0).map(|(i, _)| i + 1);
        direct.chain(behind).any(|start| {
            rest[start..]
                .strip_prefix("sa/")
                .and_then(|rest| rest.strip_prefix(name))
                .is_some_and(|rest| rest.is_empty() || (rest.starts_with('/') && rest.len() > 1))
        })
    })
}

impl Rule {
    /// Whether the rule matches. With `Action::Allow` on a connection that is not HTTP, fields of HTTP match nothing;
    /// with other actions they are passed over.
    pub fn matches(&self, action: &Action, request: &Request) -> bool {
        let holds = |field: &Field| {
            if field.attribute.is_http() && request.http.is_none() {
                return *action != Action::Allow;
            }
            field.matches(request)
        };
        let some = |list: &[Vec<Field>]| list.is_empty() || list.iter().any(|fields| fields.iter().all(holds));
        some(&self.from) && some(&self.to) && self.when.iter().all(holds)
    }
}

/// What a workload's policies decide about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<'p> {
    /// It passes: by this policy's rule, or for want of allowing policies.
    Allowed(Option<(&'p AuthorizationPolicy, usize)>),
    /// It is denied: by this policy's rule, or as no allowing policy matches.
    Denied(Option<(&'p AuthorizationPolicy, usize)>),
    /// It passes if this external authoriser allows it.
    Asked(&'p str),
}

/// Decides a request to a workload of a namespace. `root` is the mesh's root namespace, whose policies count for all.
pub fn decide<'p>(
    policies: &'p [AuthorizationPolicy],
    root: &str,
    namespace: &str,
    labels: &Labels,
    request: &Request,
) -> Decision<'p> {
    let here: Vec<&AuthorizationPolicy> = policies
        .iter()
        .filter(|p| !p.dry_run && (p.namespace == namespace || p.namespace == root) && p.selector.matches(labels))
        .collect();
    let hit = |wanted: &dyn Fn(&Action) -> bool| {
        here.iter().copied().filter(|p| wanted(&p.action)).find_map(|policy| {
            let rule = policy.rules.iter().position(|r| r.matches(&policy.action, request))?;
            Some((policy, rule))
        })
    };
    let asked = hit(&|action| matches!(action, Action::Custom(_)));
    if let Some(denied) = hit(&|action| *action == Action::Deny) {
        return Decision::Denied(Some(denied));
    }
    let allows = here.iter().any(|p| p.action == Action::Allow);
    let allowed = hit(&|action| *action == Action::Allow);
    if allows && allowed.is_none() {
        return Decision::Denied(None);
    }
    match asked {
        Some((
            AuthorizationPolicy {
                action: Action::Custom(provider),
                ..
            },
            _,
        )) => Decision::Asked(provider),
        _ => Decision::Allowed(allowed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICIES: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules:
    - from: [{source: {namespaces: [front]}}]
      to: [{operation: {methods: [GET], paths: ['/items/{*}'], ports: ['8080']}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody-writes, namespace: istio-system}
spec:
  action: DENY
  rules: [{to: [{operation: {methods: [POST], ports: ['8080']}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tried, namespace: shop, annotations: {istio.io/dry-run: 'true'}}
spec: {action: DENY, rules: [{}]}
";

    fn request(method: &str, path: &str) -> Request {
        Request {
            principal: Some("spiffe://cluster.local/ns/front/sa/web".to_owned()),
            port: 8080,
            http: Some(Http {
                method: method.to_owned(),
                path: path.to_owned(),
                ..Http::default()
            }),
            ..Request::default()
        }
    }

    #[test]
    fn denying_policies_of_the_root_namespace_come_before_allowing_ones() {
        let policies = read(POLICIES).unwrap();
        let labels = Labels::from([("app".to_owned(), "web".to_owned())]);
        let decide = |request: &Request| super::decide(&policies, "istio-system", "shop", &labels, request);
        let get = request("GET", "/items/7");
        assert_eq!(decide(&get), Decision::Allowed(Some((&policies[0], 0))));
        assert_eq!(decide(&request("GET", "/items/7/8")), Decision::Denied(None));
        assert_eq!(
            decide(&request("POST", "/items/7")),
            Decision::Denied(Some((&policies[1], 0)))
        );
        let stranger = Request {
            principal: None,
            ..get.clone()
        };
        assert_eq!(decide(&stranger), Decision::Denied(None));
        // Without HTTP, the allowing rule matches nothing, and the denying one by its port alone.
        let raw = Request {
            http: None,
            ..get.clone()
        };
        assert_eq!(decide(&raw), Decision::Denied(Some((&policies[1], 0))));
        // Another workload has no allowing policy.
        let other = super::decide(&policies, "istio-system", "shop", &Labels::new(), &get);
        assert_eq!(other, Decision::Allowed(None));
    }

    #[test]
    fn what_istio_would_refuse_is_told_with_its_place() {
        for (from, to, field) in [
            (
                "methods: [GET]",
                "method: [GET]",
                "spec.rules[0].to[0].operation.method",
            ),
            (
                "ports: ['8080']}}]\n---",
                "ports: [http]}}]\n---",
                "spec.rules[0].to[0].operation.ports[0]",
            ),
            ("action: DENY\n", "action: CUSTOM\n", "spec.provider"),
            ("action: DENY\n", "action: BLOCK\n", "spec.action"),
        ] {
            let text = POLICIES.replacen(from, to, 1);
            assert_ne!(text, POLICIES, "{from}");
            let errors = read(&text).unwrap_err();
            assert_eq!(errors[0].field, field, "{errors:?}");
        }
    }

    #[test]
    fn identities_are_taken_apart_as_envoy_s_expressions_do() {
        let exact = |text: &str| Pattern::Exact(text.to_owned());
        assert!(in_namespace("spiffe://td/ns/a/sa/b", &exact("a")));
        assert!(!in_namespace("spiffe://td/ns/a", &exact("a")));
        assert!(has_account("spiffe://td/ns/a/sa/b", &exact("a/b")));
        assert!(has_account("spiffe://td/ns/a/x/sa/b/y", &exact("a/b")));
        assert!(!has_account("spiffe://td/ns/a/sa/bc", &exact("a/b")));
    }
}
