//! Istio AuthorizationPolicy, PeerAuthentication and RequestAuthentication (`security.istio.io/v1`).
//!
//! Denying AuthorizationPolicies are stronger than every allowing one, and there are no tiers: a deny rule is written as
//! one where no earlier tier may allow what it denies, and cut out of the allow rules elsewhere. A workload that an
//! allowing policy selects is denied everything that none allows. With sidecars, policies see requests; with the
//! node's proxy of ambient mode, they see connections only.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
};

use serde::Serialize;

use super::{
    Compiled, CompiledFile,
    manifest::Metadata,
    mesh::{self, Identity, needs_identity},
    project::{Says, project},
};
use crate::{
    document::{Action, Mode, Need},
    ir::{Direction, PeerSet, Policy, Rule},
    sets::{IntervalSet, RequestBox, Selector, ServiceSet, TextPattern, TextSet},
};

/// What the mesh is called and whose tokens it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IstioOptions {
    /// The trust domain of service accounts.
    pub trust_domain: String,
    /// The trust domains whose identities can be proved here; `None` when that is not known, and every one is believed to
    /// be.
    pub proved: Option<BTreeSet<String>>,
    /// Who signs people's tokens and where the keys are; without it, people are a gap.
    pub issuer: Option<Issuer>,
    /// The claim that has the groups of iam.
    pub groups_claim: String,
}

/// Who signs people's tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// The tokens' `iss`.
    pub issuer: String,
    /// Where the keys are.
    pub jwks_uri: String,
}

impl Default for IstioOptions {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            proved: None,
            issuer: None,
            groups_claim: "groups".to_owned(),
        }
    }
}

/// The most ports of one operation; more are told by what they leave out.
const PORTS: usize = 128;
/// The most policies that one subject may be written as.
const SELECTORS: usize = 32;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Resource<S> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    spec: S,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct MatchLabels {
    match_labels: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Authorization {
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<MatchLabels>,
    action: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<Written>,
}

#[derive(Clone, Serialize, Default)]
struct Written {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    from: Vec<From>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    to: Vec<To>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    when: Vec<When>,
}

#[derive(Clone, Serialize)]
struct From {
    source: Source,
}

#[derive(Clone, Serialize, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Source {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    principals: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    request_principals: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ip_blocks: Vec<String>,
}

#[derive(Clone, Serialize)]
struct To {
    operation: Operation,
}

#[derive(Clone, Serialize, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Operation {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hosts: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_ports: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    methods: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    paths: Vec<String>,
}

#[derive(Clone, Serialize)]
struct When {
    key: String,
    values: Vec<String>,
}

#[derive(Serialize)]
struct PeerAuthentication {
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<MatchLabels>,
    mtls: Mtls,
}

#[derive(Serialize)]
struct Mtls {
    mode: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RequestAuthentication {
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<MatchLabels>,
    jwt_rules: Vec<JwtRule>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JwtRule {
    issuer: String,
    jwks_uri: String,
}

/// Compiles for sidecars, which see requests, with the default [`IstioOptions`].
pub fn istio<P: Borrow<Policy>>(policies: &[P], sha256: impl Fn(&str) -> Option<String>) -> Compiled {
    istio_with(policies, sha256, &IstioOptions::default())
}

/// Compiles for sidecars, which see requests.
///
/// `sha256` gives the hash of a policy's document for its provenance annotation, by name.
pub fn istio_with<P: Borrow<Policy>>(
    policies: &[P],
    sha256: impl Fn(&str) -> Option<String>,
    options: &IstioOptions,
) -> Compiled {
    let says = Says {
        target: "Istio",
        accounts: true,
        principals: true,
        people: options.issuer.is_some(),
        requests: true,
        requests_denied: true,
        needs: &[Need::Identity, Need::Mtls],
        ..Says::default()
    };
    compile(policies, sha256, options, &says)
}

/// Compiles for the node's proxy of ambient mode, which sees connections only, with the default [`IstioOptions`].
pub fn istio_ambient<P: Borrow<Policy>>(policies: &[P], sha256: impl Fn(&str) -> Option<String>) -> Compiled {
    istio_ambient_with(policies, sha256, &IstioOptions::default())
}

/// Compiles for the node's proxy of ambient mode, which sees connections only. Tokens are not seen there.
pub fn istio_ambient_with<P: Borrow<Policy>>(
    policies: &[P],
    sha256: impl Fn(&str) -> Option<String>,
    options: &IstioOptions,
) -> Compiled {
    let says = Says {
        target: "Istio's ambient mode",
        accounts: true,
        principals: true,
        needs: &[Need::Identity, Need::Mtls],
        ..Says::default()
    };
    compile(policies, sha256, options, &says)
}

fn compile<P: Borrow<Policy>>(
    policies: &[P],
    sha256: impl Fn(&str) -> Option<String>,
    options: &IstioOptions,
    says: &Says,
) -> Compiled {
    let mut out = Compiled::default();
    let all = project(policies, says, &mut out);
    // What cannot be selected is not attached, and takes nothing from others.
    let mut policies: Vec<Policy> = Vec::new();
    for (policy, _, pods) in super::by_workload(&all, says.target, &mut out) {
        mesh::told(policy, says.target, &mut out);
        if policy.ingress.is_none() {
            continue;
        }
        if selectors(pods).is_none() {
            out.gap(
                &policy.name,
                format!("the subject is told by more than labels that are equal to something, which is all that {} selects by", says.target),
            );
            continue;
        }
        policies.push(policy.clone());
    }
    let listed: Vec<&Policy> = policies.iter().collect();
    let by_namespace = super::by_namespace(&listed);
    for policy in &policies {
        let Some((namespace, pods)) = &policy.subject.workloads else {
            continue;
        };
        let near = by_namespace
            .get(namespace.as_str())
            .map(Vec::as_slice)
            .unwrap_or_default();
        let folded = |denier: &Policy| !super::scope::stands_first(denier, Direction::Ingress, near);
        let writer = Writer { policy, options, says };
        let mut allow = Vec::new();
        for term in mesh::allowed(policy, near, folded, &mut out) {
            allow.extend(writer.rule(term.rule, &term.peer, &term.services, &mut out));
        }
        let mut deny = Vec::new();
        let rules = policy.ingress.iter().flatten();
        for rule in rules.filter(|rule| rule.action == Action::Deny && !folded(policy)) {
            for peer in &rule.peers.workloads {
                deny.extend(writer.rule(rule, peer, &rule.services, &mut out));
            }
        }
        let people = policy
            .ingress
            .iter()
            .flatten()
            .any(|rule| rule.peers.workloads.iter().any(|p| matches!(p, PeerSet::People(_))));
        let strict = asks_for_mtls(policy, near);
        let choices = selectors(pods).unwrap_or_default();
        let several = choices.len() > 1;
        let mut documents = Vec::new();
        for labels in choices {
            // Named after what it selects, so that a change of the subject never hands an object from some pods to others.
            let part = if several {
                format!("-{}", super::short_hash(&format!("{labels:?}")))
            } else {
                String::new()
            };
            let name = |what: &str| format!("garrison-{}{part}{what}", policy.name);
            let metadata = |what: &str| {
                let mut annotations = super::annotations(policy, sha256(&policy.name));
                for (n, rule) in policy.ingress.iter().flatten().enumerate() {
                    annotations.insert(
                        format!("garrison.dev/ingress.{n}"),
                        format!("{} ({})", rule.name, rule.field),
                    );
                }
                Metadata {
                    name: name(what),
                    namespace: Some(namespace.clone()),
                    labels: super::owned(policy),
                    annotations,
                }
            };
            let selector = (!labels.is_empty()).then(|| MatchLabels {
                match_labels: labels.clone(),
            });
            let authorization = |action, rules: &[Written], what| Resource {
                api_version: "security.istio.io/v1",
                kind: "AuthorizationPolicy",
                metadata: metadata(what),
                spec: Authorization {
                    selector: selector.clone(),
                    action,
                    rules: rules.to_vec(),
                },
            };
            // Without rules, it allows nothing: everything is denied that no other policy allows.
            documents.extend(serde_saphyr::to_string(&authorization("ALLOW", &allow, "")));
            if !deny.is_empty() {
                documents.extend(serde_saphyr::to_string(&authorization("DENY", &deny, "-deny")));
            }
            if strict {
                documents.extend(serde_saphyr::to_string(&Resource {
                    api_version: "security.istio.io/v1",
                    kind: "PeerAuthentication",
                    metadata: metadata(""),
                    spec: PeerAuthentication {
                        selector: selector.clone(),
                        mtls: Mtls { mode: "STRICT" },
                    },
                }));
            }
            if let Some(issuer) = options.issuer.as_ref().filter(|_| people) {
                documents.extend(serde_saphyr::to_string(&Resource {
                    api_version: "security.istio.io/v1",
                    kind: "RequestAuthentication",
                    metadata: metadata(""),
                    spec: RequestAuthentication {
                        selector: selector.clone(),
                        jwt_rules: vec![JwtRule {
                            issuer: issuer.issuer.clone(),
                            jwks_uri: issuer.jwks_uri.clone(),
                        }],
                    },
                }));
            }
        }
        out.files.push(CompiledFile {
            path: format!("istio/{namespace}/{}.yaml", policy.name),
            content: format!("{}{}", super::provenance(policy), documents.join("---\n")),
        });
    }
    out.files.sort_by(|a, b| a.path.cmp(&b.path));
    out
}

/// The labels that select the same pods, any one of the maps; `None` when equality cannot say it.
fn selectors(pods: &Selector) -> Option<Vec<BTreeMap<String, String>>> {
    let mut all = vec![BTreeMap::new()];
    for (key, values) in pods.labels() {
        if values.absent || values.inverted || key == crate::ir::SERVICE_ACCOUNT_LABEL {
            return None;
        }
        all = all
            .iter()
            .flat_map(|labels| {
                values.values.iter().map(move |value| {
                    let mut labels: BTreeMap<String, String> = labels.clone();
                    labels.insert(key.clone(), value.clone());
                    labels
                })
            })
            .collect();
        if all.len() > SELECTORS {
            return None;
        }
    }
    Some(all)
}

/// Whether everything that is allowed to the policy's pods, by whichever policy, asks for mutual TLS.
fn asks_for_mtls(policy: &Policy, policies: &[&Policy]) -> bool {
    let Some((namespace, pods)) = &policy.subject.workloads else {
        return false;
    };
    let mut asked = false;
    for other in policies.iter().filter(|p| p.mode == Mode::Enforce) {
        let meets = other
            .subject
            .workloads
            .as_ref()
            .is_some_and(|(same, theirs)| same == namespace && !theirs.intersect(pods).is_empty());
        if !meets {
            continue;
        }
        for rule in other.ingress.iter().flatten().filter(|r| r.action == Action::Allow) {
            if !rule.condition.needs.contains(&Need::Mtls) {
                return false;
            }
            asked = true;
        }
    }
    asked
}

struct Writer<'a> {
    policy: &'a Policy,
    options: &'a IstioOptions,
    says: &'a Says,
}

impl Writer<'_> {
    /// The trust domain of a SPIFFE id, when nobody can prove one of it.
    fn unproved<'t>(&self, pattern: &'t TextPattern) -> Option<&'t str> {
        let proved = self.options.proved.as_ref()?;
        let (TextPattern::Exact(id) | TextPattern::Prefix(id)) = pattern else {
            return None;
        };
        let (domain, _) = id.strip_prefix("spiffe://")?.split_once('/')?;
        (domain != self.options.trust_domain && !proved.contains(domain)).then_some(domain)
    }

    /// One rule for one peer; nothing when nothing of it can be said.
    fn rule(&self, rule: &Rule, peer: &PeerSet, services: &ServiceSet, out: &mut Compiled) -> Option<Written> {
        let name = format!("{}/{}", self.policy.name, rule.name);
        let denies = rule.action == Action::Deny;
        // Nothing listens on port 0, which Istio does not take.
        let listening = IntervalSet::from_ranges([(1, u16::MAX)]);
        let ports = services.ports(6)?.intersect(&listening);
        if ports.is_empty() {
            return None;
        }
        let mut written = Written::default();
        self.source(rule, peer, &name, &mut written, out)?;
        let mut operation = Operation::default();
        if ports != listening {
            let texts = |list: Vec<u16>| list.iter().map(u16::to_string).collect::<Vec<_>>();
            if let Some(list) = mesh::single_ports(&ports, PORTS) {
                operation.ports = texts(list);
            } else if let Some(list) = mesh::single_ports(&listening.subtract(&ports), PORTS) {
                operation.not_ports = texts(list);
            } else if denies {
                out.gap(
                    &name,
                    "Istio names ports one by one, and these are too many: every port is denied",
                );
            } else {
                out.gap(
                    &name,
                    "Istio names ports one by one, and these are too many: none is allowed",
                );
                return None;
            }
        }
        match &rule.condition.requests {
            None if operation == Operation::default() => {}
            None => written.to.push(To { operation }),
            Some(requests) => {
                if denies {
                    out.gap(&name, "Istio denies connections that are not HTTP with the requests");
                }
                for one in &requests.boxes {
                    written.to.push(To {
                        operation: request(one, operation.clone(), denies, &name, out),
                    });
                }
            }
        }
        Some(written)
    }

    fn source(&self, rule: &Rule, peer: &PeerSet, name: &str, written: &mut Written, out: &mut Compiled) -> Option<()> {
        let denies = rule.action == Action::Deny;
        let mut source = Source::default();
        let mut identified = false;
        match peer {
            PeerSet::Any => {}
            PeerSet::Addresses(set) if set.is_empty() => return None,
            PeerSet::Addresses(set) => source.ip_blocks = set.to_nets().iter().map(ToString::to_string).collect(),
            PeerSet::Pods { namespaces, pods } if namespaces.is_empty() || pods.is_empty() => return None,
            PeerSet::Pods { namespaces, pods } => {
                // A pod without mutual TLS is nobody here.
                if denies {
                    out.gap(
                        name,
                        "Istio does not know pods that do not speak mutual TLS: everyone is denied",
                    );
                } else {
                    identified = true;
                    match mesh::identity(namespaces, pods) {
                        None => {
                            out.gap(
                                name,
                                "Istio knows pods by namespace and service account, not by label: they are not allowed",
                            );
                            return None;
                        }
                        // Pods are of the mesh's own trust domain; others may be let into the mesh too.
                        Some(Identity::Any) => source.principals.push(format!("{}/ns/*", self.options.trust_domain)),
                        Some(Identity::Namespaces(names)) => {
                            source.principals = names
                                .iter()
                                .map(|ns| format!("{}/ns/{ns}/*", self.options.trust_domain))
                                .collect();
                        }
                        Some(Identity::Accounts(accounts)) => {
                            source.principals = accounts
                                .iter()
                                .map(|(ns, account)| format!("{}/ns/{ns}/sa/{account}", self.options.trust_domain))
                                .collect();
                        }
                    }
                    out.gap(
                        name,
                        "Istio does not know pods that do not speak mutual TLS: they are not allowed",
                    );
                }
            }
            PeerSet::Principals(set) => {
                identified = true;
                for pattern in set.patterns() {
                    if !denies && let Some(domain) = self.unproved(pattern) {
                        out.gap(
                            name,
                            format!("nobody can prove an identity of the trust domain {domain:?} here, as there is no bundle for it: it is not allowed"),
                        );
                        continue;
                    }
                    source.principals.push(match pattern {
                        TextPattern::Exact(text) => text.trim_start_matches("spiffe://").to_owned(),
                        TextPattern::Prefix(text) => format!("{}*", text.trim_start_matches("spiffe://")),
                        TextPattern::Suffix(text) => format!("*{text}"),
                        TextPattern::Any => "*".to_owned(),
                    });
                }
                if source.principals.is_empty() {
                    return None;
                }
            }
            PeerSet::People(groups) => {
                let issuer = self.options.issuer.as_ref()?;
                source.request_principals.push(format!("{}/*", issuer.issuer));
                written.when.push(When {
                    key: format!("request.auth.claims[{}]", self.options.groups_claim),
                    values: groups.iter().cloned().collect(),
                });
                if denies {
                    out.gap(
                        name,
                        "Istio denies connections that are not HTTP with the people's requests",
                    );
                }
            }
            PeerSet::Domains(_) | PeerSet::Hosts(_) | PeerSet::Tags(_) => return None,
        }
        let needs = &rule.condition.needs;
        if needs_identity(needs) && !identified {
            let by_token = !source.request_principals.is_empty();
            if needs.contains(&Need::Mtls) || !by_token {
                if !needs.contains(&Need::Mtls) {
                    out.gap(
                        name,
                        format!(
                            "{} asks for mutual TLS where an identity is needed: one by token is not taken",
                            self.says.target
                        ),
                    );
                }
                source.principals.push("*".to_owned());
            }
        }
        if source != Source::default() {
            written.from.push(From { source });
        }
        Some(())
    }
}

/// One box of requests as an operation.
fn request(one: &RequestBox, mut operation: Operation, denies: bool, name: &str, out: &mut Compiled) -> Operation {
    if let Some(methods) = &one.methods {
        operation.methods = methods.iter().cloned().collect();
    }
    let texts = |set: &TextSet| set.patterns().map(ToString::to_string).collect::<Vec<_>>();
    if !one.paths.is_full() {
        operation.paths = texts(&one.paths);
    }
    if !one.hosts.is_full() {
        let open = one.hosts.patterns().any(|p| !matches!(p, TextPattern::Exact(_)));
        if open && denies {
            out.gap(
                name,
                "Istio cannot name hosts by their end with a port behind: requests to every host are denied",
            );
        } else {
            for pattern in one.hosts.patterns() {
                operation.hosts.push(pattern.to_string());
                // Clients write the port behind the host where it is not the usual one.
                if let TextPattern::Exact(host) = pattern {
                    operation.hosts.push(format!("{host}:*"));
                }
            }
            if open {
                out.gap(
                    name,
                    "Istio cannot name hosts by their end with a port behind: such requests are not allowed",
                );
            }
        }
    }
    // Something has to say that it is HTTP.
    if operation.methods.is_empty() && operation.hosts.is_empty() && operation.paths.is_empty() {
        operation.methods.push("*".to_owned());
    }
    operation
}
