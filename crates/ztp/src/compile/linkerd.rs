//! Linkerd Server, AuthorizationPolicy, MeshTLSAuthentication and NetworkAuthentication.
//!
//! A Server is one port of some pods, and nothing reaches it but what an AuthorizationPolicy lets in. No two Servers may
//! have the same port of the same pod, so the pods of a namespace are cut into parts by which policies govern them, and
//! each part gets a Server for each port that somebody may reach. Linkerd only allows: deny rules are cut out of the
//! allow rules. Ports that no Server is for are decided by the pods' annotation
//! `config.linkerd.io/default-inbound-policy`, which has to be `deny`.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
};

use serde::Serialize;

use super::{
    Compiled, CompiledFile,
    kubernetes::{Term, labels},
    manifest::{LabelSelector, Metadata},
    mesh::{self, Identity, needs_identity},
    project::{Says, project},
};
use crate::{
    document::Need,
    ir::{PeerSet, Policy},
    sets::{IntervalSet, Selector},
};

/// What the mesh is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkerdOptions {
    /// The trust domain of service accounts (`identityTrustDomain`).
    pub trust_domain: String,
    /// The namespace of the control plane, which is in the name of every identity.
    pub control_plane: String,
}

impl Default for LinkerdOptions {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            control_plane: "linkerd".to_owned(),
        }
    }
}

impl LinkerdOptions {
    /// Every service account of the mesh.
    fn pods(&self) -> String {
        format!("*.serviceaccount.identity.{}.{}", self.control_plane, self.trust_domain)
    }
}

/// The most parts that a namespace's pods are cut into.
const PARTS: usize = 64;
/// The most ports of one part.
const PORTS: usize = 64;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Resource<S> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    spec: S,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Server {
    pod_selector: LabelSelector,
    port: u16,
    proxy_protocol: &'static str,
    /// As the kind's default has it; written, so that what the API server gives back is what was sent.
    access_policy: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Authorization {
    target_ref: Reference,
    required_authentication_refs: Vec<Reference>,
}

#[derive(Clone, Serialize)]
struct Reference {
    group: &'static str,
    kind: &'static str,
    name: String,
}

#[derive(Serialize)]
struct Networks {
    networks: Vec<Network>,
}

#[derive(Serialize)]
struct Network {
    cidr: String,
}

#[derive(Serialize, Default, Debug, PartialEq, Eq, PartialOrd, Ord, Clone)]
#[serde(rename_all = "camelCase")]
struct Mesh {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    identities: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    identity_refs: Vec<IdentityReference>,
}

#[derive(Serialize, Debug, PartialEq, Eq, PartialOrd, Ord, Clone)]
struct IdentityReference {
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'static str>,
    kind: &'static str,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
}

const GROUP: &str = "policy.linkerd.io";

/// Who may reach a port.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone)]
enum Who {
    Mesh(Mesh),
    /// Networks, and whether an identity is needed too.
    Networks(Vec<String>, bool),
}

/// Compiles the enforced policies to Linkerd's resources, one file a namespace, with the default [`LinkerdOptions`].
pub fn linkerd<P: Borrow<Policy>>(policies: &[P], sha256: impl Fn(&str) -> Option<String>) -> Compiled {
    linkerd_with(policies, sha256, &LinkerdOptions::default())
}

/// Compiles the enforced policies to Linkerd's resources, one file a namespace.
///
/// `sha256` gives the hash of a policy's document for its provenance annotation, by name.
pub fn linkerd_with<P: Borrow<Policy>>(
    policies: &[P],
    sha256: impl Fn(&str) -> Option<String>,
    options: &LinkerdOptions,
) -> Compiled {
    let mut out = Compiled::default();
    let says = Says {
        target: "Linkerd",
        accounts: true,
        needs: &[Need::Identity, Need::Mtls],
        ..Says::default()
    };
    let all = project(policies, &says, &mut out);
    let mut by_namespace: BTreeMap<String, Vec<Policy>> = BTreeMap::new();
    for (policy, namespace, pods) in super::by_workload(&all, says.target, &mut out) {
        mesh::told(policy, says.target, &mut out);
        if policy.ingress.is_none() {
            continue;
        }
        if pods.labels().contains_key(crate::ir::SERVICE_ACCOUNT_LABEL) {
            out.gap(
                &policy.name,
                "the subject is told by service account, and Linkerd's servers select by label",
            );
            continue;
        }
        by_namespace
            .entry(namespace.to_owned())
            .or_default()
            .push(policy.clone());
    }
    for (namespace, policies) in by_namespace {
        let Some(parts) = parts(&policies) else {
            for policy in &policies {
                out.gap(
                    &policy.name,
                    format!("the subjects of namespace {namespace} meet in more than {PARTS} ways: nothing is emitted for it"),
                );
            }
            continue;
        };
        let mut documents = Vec::new();
        let all: Vec<&Policy> = policies.iter().collect();
        for (pods, members) in parts {
            let names: Vec<String> = members.iter().map(|i| policies[*i].reference()).collect();
            let part = Part {
                namespace: &namespace,
                pods: &pods,
                members: members.iter().map(|i| &policies[*i]).collect(),
                options,
            };
            let (ports, reached) = part.reached(&all, &mut out);
            if ports.len() > PORTS {
                for name in &names {
                    out.gap(
                        name.split('@').next().unwrap_or(name),
                        format!("its pods are reached on more than {PORTS} ports: nothing is allowed to them"),
                    );
                }
                continue;
            }
            part.write(&ports, &reached, &sha256, &mut documents);
        }
        if documents.is_empty() {
            // Nothing may reach these pods: that is the annotation's to say.
            continue;
        }
        let governed: Vec<String> = policies.iter().map(Policy::reference).collect();
        out.files.push(CompiledFile {
            path: format!("linkerd/{namespace}.yaml"),
            content: format!(
                "# Generated by Garrison from ZeroTrustPolicies {}. Changes here are lost.\n# The pods need the annotation config.linkerd.io/default-inbound-policy: deny.\n{}",
                governed.join(", "),
                documents.join("---\n")
            ),
        });
    }
    out
}

/// Disjoint sets of pods by the policies that govern them together; `None` when there are too many.
fn parts(policies: &[Policy]) -> Option<Vec<(Selector, Vec<usize>)>> {
    let mut parts: Vec<(Selector, Vec<usize>)> = Vec::new();
    for (i, policy) in policies.iter().enumerate() {
        let Some((_, pods)) = &policy.subject.workloads else {
            continue;
        };
        let mut rest = vec![pods.clone()];
        let mut next = Vec::new();
        for (selector, members) in parts {
            let both = selector.intersect(pods);
            if both.is_empty() {
                next.push((selector, members));
                continue;
            }
            rest = rest.iter().flat_map(|r| r.subtract(&selector)).collect();
            next.extend(selector.subtract(pods).into_iter().map(|s| (s, members.clone())));
            let mut with = members;
            with.push(i);
            next.push((both, with));
        }
        next.extend(rest.into_iter().map(|s| (s, vec![i])));
        parts = next;
        if parts.len() > PARTS {
            return None;
        }
    }
    let written: Vec<(Selector, Vec<usize>)> = parts
        .into_iter()
        .flat_map(|(selector, members)| selector.writable().into_iter().map(move |s| (s, members.clone())))
        .collect();
    (written.len() <= PARTS).then_some(written)
}

struct Part<'p> {
    namespace: &'p str,
    pods: &'p Selector,
    members: Vec<&'p Policy>,
    options: &'p LinkerdOptions,
}

/// Who may reach which ports, and by which rule.
type Reached = Vec<(Who, IntervalSet<u16>, String)>;

impl Part<'_> {
    fn reached(&self, policies: &[&Policy], out: &mut Compiled) -> (BTreeSet<u16>, Reached) {
        let mut reached = Reached::new();
        let mut ports = BTreeSet::new();
        for member in &self.members {
            // Every deny rule is cut out, as there are none here.
            for Term { rule, peer, services } in mesh::allowed(member, policies, |_| true, out) {
                let name = format!("{}/{}", member.name, rule.name);
                let Some(tcp) = services.ports(6).filter(|p| !p.is_empty()) else {
                    continue;
                };
                let Some(single) = mesh::single_ports(tcp, PORTS) else {
                    out.gap(
                        &name,
                        "Linkerd names ports one by one, and these are too many: they are allowed where other rules name them",
                    );
                    if let Some(who) = who(rule, &peer, &name, self.options, out) {
                        reached.push((who, tcp.clone(), name));
                    }
                    continue;
                };
                if let Some(who) = who(rule, &peer, &name, self.options, out) {
                    ports.extend(single.into_iter().filter(|p| *p > 0));
                    reached.push((who, tcp.clone(), name));
                }
            }
        }
        (ports, reached)
    }

    fn write(
        &self,
        ports: &BTreeSet<u16>,
        reached: &Reached,
        sha256: &impl Fn(&str) -> Option<String>,
        documents: &mut Vec<String>,
    ) {
        let Some(first) = self.members.first() else { return };
        let metadata = |name: String, rule: Option<&str>| {
            let mut annotations = super::annotations(first, sha256(&first.name));
            let policies: Vec<String> = self.members.iter().map(|p| p.reference()).collect();
            annotations.insert("garrison.dev/policies".to_owned(), policies.join(", "));
            if let Some(rule) = rule {
                annotations.insert("garrison.dev/rule".to_owned(), rule.to_owned());
            }
            Metadata {
                name,
                namespace: Some(self.namespace.to_owned()),
                labels: super::owned(first),
                annotations,
            }
        };
        // Everything is named after what it says, so that a change never hands an object from some pods, or somebody, to
        // others.
        let part = super::short_hash(&format!("{:?}", self.pods));
        let mut known: BTreeMap<&Who, Vec<Reference>> = BTreeMap::new();
        for port in ports {
            let server = format!("garrison-{part}-{port}");
            documents.extend(serde_saphyr::to_string(&Resource {
                api_version: "policy.linkerd.io/v1beta3",
                kind: "Server",
                metadata: metadata(server.clone(), None),
                spec: Server {
                    pod_selector: labels(self.pods),
                    port: *port,
                    proxy_protocol: "unknown",
                    access_policy: "deny",
                },
            }));
            let mut rules: BTreeMap<&Who, Vec<&str>> = BTreeMap::new();
            for (who, _, rule) in reached.iter().filter(|(_, set, _)| set.contains(*port)) {
                rules.entry(who).or_default().push(rule);
            }
            for (who, rules) in rules {
                let hash = super::short_hash(&format!("{who:?}"));
                let references = known
                    .entry(who)
                    .or_insert_with(|| {
                        authentications(who, format!("garrison-{part}-who-{hash}"), &metadata, documents)
                    })
                    .clone();
                documents.extend(serde_saphyr::to_string(&Resource {
                    api_version: "policy.linkerd.io/v1alpha1",
                    kind: "AuthorizationPolicy",
                    metadata: metadata(format!("{server}-{hash}"), Some(&rules.join(", "))),
                    spec: Authorization {
                        target_ref: Reference {
                            group: GROUP,
                            kind: "Server",
                            name: server.clone(),
                        },
                        required_authentication_refs: references,
                    },
                }));
            }
        }
    }
}

/// Writes the resources that say who it is, and answers with references to them, all of which must hold.
fn authentications(
    who: &Who,
    name: String,
    metadata: &impl Fn(String, Option<&str>) -> Metadata,
    documents: &mut Vec<String>,
) -> Vec<Reference> {
    let mut references = Vec::new();
    let mut mesh = |name: String, spec: &Mesh, documents: &mut Vec<String>| {
        documents.extend(serde_saphyr::to_string(&Resource {
            api_version: "policy.linkerd.io/v1alpha1",
            kind: "MeshTLSAuthentication",
            metadata: metadata(name.clone(), None),
            spec,
        }));
        references.push(Reference {
            group: GROUP,
            kind: "MeshTLSAuthentication",
            name,
        });
    };
    match who {
        Who::Mesh(spec) => mesh(name, spec, documents),
        Who::Networks(nets, identity) => {
            if *identity {
                let anyone = Mesh {
                    identities: vec!["*".to_owned()],
                    ..Mesh::default()
                };
                mesh(format!("{name}-identity"), &anyone, documents);
            }
            documents.extend(serde_saphyr::to_string(&Resource {
                api_version: "policy.linkerd.io/v1alpha1",
                kind: "NetworkAuthentication",
                metadata: metadata(name.clone(), None),
                spec: Networks {
                    networks: nets.iter().map(|cidr| Network { cidr: cidr.clone() }).collect(),
                },
            }));
            references.push(Reference {
                group: GROUP,
                kind: "NetworkAuthentication",
                name,
            });
        }
    }
    references
}

fn who(
    rule: &crate::ir::Rule,
    peer: &PeerSet,
    name: &str,
    options: &LinkerdOptions,
    out: &mut Compiled,
) -> Option<Who> {
    let identity = needs_identity(&rule.condition.needs);
    if identity && !rule.condition.needs.contains(&Need::Mtls) && !matches!(peer, PeerSet::Pods { .. }) {
        out.gap(
            name,
            "Linkerd asks for mutual TLS where an identity is needed: one by token is not taken",
        );
    }
    match peer {
        PeerSet::Any => Some(Who::Networks(vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()], identity)),
        PeerSet::Addresses(set) if set.is_empty() => None,
        PeerSet::Addresses(set) => Some(Who::Networks(
            set.to_nets().iter().map(ToString::to_string).collect(),
            identity,
        )),
        PeerSet::Pods { namespaces, pods } if namespaces.is_empty() || pods.is_empty() => None,
        PeerSet::Pods { namespaces, pods } => {
            let Some(known) = mesh::identity(namespaces, pods) else {
                out.gap(
                    name,
                    "Linkerd knows pods by namespace and service account, not by label: they are not allowed",
                );
                return None;
            };
            out.gap(
                name,
                "Linkerd does not know pods outside the mesh: they are not allowed",
            );
            Some(Who::Mesh(match known {
                // Whoever has an identity and is no pod may be let into the mesh too.
                Identity::Any => Mesh {
                    identities: vec![options.pods()],
                    ..Mesh::default()
                },
                Identity::Namespaces(names) => Mesh {
                    identity_refs: names
                        .into_iter()
                        .map(|name| IdentityReference {
                            group: None,
                            kind: "Namespace",
                            name,
                            namespace: None,
                        })
                        .collect(),
                    ..Mesh::default()
                },
                Identity::Accounts(accounts) => Mesh {
                    identity_refs: accounts
                        .into_iter()
                        .map(|(namespace, name)| IdentityReference {
                            group: None,
                            kind: "ServiceAccount",
                            name,
                            namespace: Some(namespace),
                        })
                        .collect(),
                    ..Mesh::default()
                },
            }))
        }
        _ => None,
    }
}
