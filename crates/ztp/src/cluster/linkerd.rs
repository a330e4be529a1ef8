//! Linkerd's Server, AuthorizationPolicy, MeshTLSAuthentication and NetworkAuthentication (`policy.linkerd.io`).
//!
//! A Server is one port of some pods, and nothing reaches it but what an AuthorizationPolicy for it or for its namespace
//! lets in, or what its `accessPolicy` does. Ports without a Server are open, as they are where nobody changed
//! `default-inbound-policy`. A policy for a route counts as one for the whole Server, and is told.

use super::{
    Collected, Resource,
    mesh::{Accounts, members, pods, rule},
};
use crate::{
    decode::{Findings, Object, label_selector, read_network},
    diagnostic::Code,
    ir,
    node::Node,
    reach::{Action, Order, Peer, Plane, Policy, Ports, Rest, Rule, Stage},
    sets::{AddressSet, ServiceSet},
};

/// What stands between a service account with its namespace and the mesh's trust domain in a name.
pub(super) const KIND: &str = "serviceaccount.identity.";

/// What is said of a mesh.
#[derive(Clone, Debug, Default)]
pub(super) struct Linkerd {
    pub(super) servers: Vec<Server>,
    pub(super) authorizations: Vec<Authorization>,
    pub(super) authentications: Vec<Authentication>,
}

#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) policy: Policy,
    pub(super) ports: Ports,
    /// Whom it lets in without an AuthorizationPolicy.
    pub(super) open: Option<Open>,
}

/// Whom a Server lets in by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Open {
    Everyone,
    /// Everybody with an identity.
    Members,
    /// Pods with an identity.
    OwnMembers,
    /// Everyone in the cluster.
    Inside,
}

#[derive(Clone, Debug)]
pub(super) struct Authorization {
    pub(super) name: String,
    pub(super) namespace: String,
    /// A Server, or `None` for every Server of the namespace.
    pub(super) server: Option<String>,
    /// The kind of what it is for, where that is neither a Server nor a namespace.
    pub(super) narrower: Option<String>,
    /// Kind, namespace and name; all of them must hold.
    pub(super) required: Vec<(String, String, String)>,
}

#[derive(Clone, Debug)]
pub(super) struct Authentication {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) who: Who,
}

#[derive(Clone, Debug)]
pub(super) enum Who {
    Networks(AddressSet),
    /// Anybody with an identity, if `everyone`; names such as `web.shop.serviceaccount.identity.linkerd.cluster.local`;
    /// service accounts and namespaces.
    Identities {
        everyone: bool,
        names: Vec<String>,
        accounts: Vec<(String, Option<String>)>,
    },
}

/// Reads one resource of the group.
pub(super) fn read(resource: &Resource<'_>, all: &mut Collected, f: &mut Findings<'_>) {
    // What is wrong is among the findings.
    let _ = match resource.kind {
        "Server" => server(resource, all, f),
        "AuthorizationPolicy" => authorization(resource, all, f),
        "MeshTLSAuthentication" => mesh_tls(resource, all, f),
        _ => networks(resource, all, f),
    };
}

fn spec<'n>(resource: &Resource<'n>, fields: &[&str], f: &mut Findings<'_>) -> Option<Object<'n>> {
    let Some(node) = resource.node.at("spec") else {
        f.error(
            Code::MissingField,
            "spec",
            resource.node.position,
            "the resource has no `spec`",
            "Give the resource as the cluster has it",
        );
        return None;
    };
    f.object(node, "spec", fields)
}

fn server(resource: &Resource<'_>, all: &mut Collected, f: &mut Findings<'_>) -> Option<()> {
    let spec = spec(
        resource,
        &[
            "podSelector",
            "externalWorkloadSelector",
            "port",
            "proxyProtocol",
            "accessPolicy",
        ],
        f,
    )?;
    if spec.has("externalWorkloadSelector") {
        // Machines outside the cluster are no endpoints here.
        return None;
    }
    spec.require("podSelector", "Name the pods; `{}` for all of them", f)?;
    let labels = label_selector(&spec, "podSelector", f)?;
    let port = spec.require("port", "Name the port, by number or by name", f)?;
    let mut ports = Ports::default();
    match port.as_port() {
        Some(number) => ports.numbers.insert(6, number, number),
        None => ports.named.push((Some(6), f.text(port, "spec.port")?)),
    }
    let choices = [
        ("deny", 0),
        ("all-unauthenticated", 1),
        ("audit", 1),
        ("all-authenticated", 2),
        ("cluster-unauthenticated", 3),
        ("cluster-authenticated", 4),
    ];
    let open = match spec.get("accessPolicy") {
        Some(node) => match f.choice(node, "spec.accessPolicy", &choices)? {
            0 => None,
            2 => Some(Open::Members),
            3 => Some(Open::Inside),
            4 => Some(Open::OwnMembers),
            _ => Some(Open::Everyone),
        },
        None => None,
    };
    all.linkerd.servers.push(Server {
        name: resource.name.clone(),
        namespace: resource.namespace.clone(),
        policy: resource.policy(pods(Some(&resource.namespace), ir::selector(&labels))),
        ports,
        open,
    });
    Some(())
}

fn authorization(resource: &Resource<'_>, all: &mut Collected, f: &mut Findings<'_>) -> Option<()> {
    let spec = spec(resource, &["targetRef", "requiredAuthenticationRefs"], f)?;
    let target = spec.require("targetRef", "Name the Server, or the Namespace", f)?;
    let named = |node: &Node, field: &str| node.text_at(field).unwrap_or_default().to_owned();
    let mut narrower = None;
    let server = match named(target, "kind").as_str() {
        "Server" => Some(named(target, "name")),
        "Namespace" => None,
        kind => {
            f.warn_at(
                Code::UnknownKind,
                "spec.targetRef",
                format!("{kind} is not analysed: what the policy lets in counts for every Server of the namespace"),
                "Take the answer for what it says about connections",
            );
            narrower = Some(kind.to_owned());
            None
        }
    };
    let mut required = Vec::new();
    if let Some(node) = spec.get("requiredAuthenticationRefs") {
        let most = f.limits.peers;
        for (_, node) in f.list(node, "spec.requiredAuthenticationRefs", most) {
            let namespace = match named(node, "namespace") {
                empty if empty.is_empty() => resource.namespace.clone(),
                namespace => namespace,
            };
            required.push((named(node, "kind"), namespace, named(node, "name")));
        }
    }
    all.linkerd.authorizations.push(Authorization {
        name: resource.name.clone(),
        namespace: resource.namespace.clone(),
        server,
        narrower,
        required,
    });
    Some(())
}

fn mesh_tls(resource: &Resource<'_>, all: &mut Collected, f: &mut Findings<'_>) -> Option<()> {
    let spec = spec(resource, &["identities", "identityRefs"], f)?;
    let (mut everyone, mut names, mut accounts) = (false, Vec::new(), Vec::new());
    let most = f.limits.peers;
    if let Some(node) = spec.get("identities") {
        for (path, node) in f.list(node, "spec.identities", most) {
            let text = f.text(node, &path)?;
            everyone |= text == "*";
            names.push(text);
        }
    }
    if let Some(node) = spec.get("identityRefs") {
        for (path, node) in f.list(node, "spec.identityRefs", most) {
            let name = node.text_at("name").unwrap_or_default().to_owned();
            match node.text_at("kind") {
                Some("Namespace") => {
                    // Without a name, the own one.
                    let namespace = if name.is_empty() {
                        resource.namespace.clone()
                    } else {
                        name
                    };
                    accounts.push((namespace, None));
                }
                Some("ServiceAccount") => {
                    let namespace = node.text_at("namespace").unwrap_or(&resource.namespace).to_owned();
                    accounts.push((namespace, Some(name)));
                }
                _ => f.error_at(
                    Code::BadValue,
                    &path,
                    "neither a ServiceAccount nor a Namespace",
                    "Correct it as Linkerd's documentation says",
                ),
            }
        }
    }
    all.linkerd.authentications.push(Authentication {
        kind: "MeshTLSAuthentication",
        name: resource.name.clone(),
        namespace: resource.namespace.clone(),
        who: Who::Identities {
            everyone,
            names,
            accounts,
        },
    });
    Some(())
}

fn networks(resource: &Resource<'_>, all: &mut Collected, f: &mut Findings<'_>) -> Option<()> {
    let spec = spec(resource, &["networks"], f)?;
    let node = spec.require("networks", "Name the networks", f)?;
    let most = f.limits.peers;
    let mut nets = AddressSet::empty();
    for (path, node) in f.list(node, "spec.networks", most) {
        let one = f.object(node, &path, &["cidr", "except"])?;
        let cidr = one.require("cidr", "Name the network", f)?;
        let read = |node: &Node, path: &str, f: &mut Findings<'_>| {
            let net = f.network(node, path).and_then(|text| read_network(&text).ok());
            AddressSet::from_nets(net)
        };
        let mut set = read(cidr, &one.path("cidr"), f);
        if let Some(node) = one.get("except") {
            for (path, node) in f.list(node, &one.path("except"), most) {
                set = set.subtract(&read(node, &path, f));
            }
        }
        nets = nets.union(&set);
    }
    all.linkerd.authentications.push(Authentication {
        kind: "NetworkAuthentication",
        name: resource.name.clone(),
        namespace: resource.namespace.clone(),
        who: Who::Networks(nets),
    });
    Some(())
}

impl Open {
    fn peer(self) -> Peer {
        match self {
            Self::Everyone => Peer::Any,
            Self::Members | Self::OwnMembers => members(),
            Self::Inside => Peer::Not(Box::new(Peer::Outside)),
        }
    }
}

impl Who {
    fn peer(&self, all: &Accounts) -> Peer {
        match self {
            Self::Networks(set) => Peer::Addresses(set.to_nets()),
            Self::Identities { everyone: true, .. } => members(),
            Self::Identities { names, accounts, .. } => all.pods(|namespace, account| {
                // The trust domain behind it is the mesh's own, whatever it is.
                let own = format!("{account}.{namespace}.{KIND}");
                let named = names.iter().any(|name| match name.strip_prefix('*') {
                    Some(rest) => rest.find(KIND).is_none_or(|at| own.ends_with(&rest[..at + KIND.len()])),
                    None => name.starts_with(&own),
                });
                named
                    || accounts
                        .iter()
                        .any(|(of, name)| of == namespace && name.as_ref().is_none_or(|name| name == account))
            }),
        }
    }
}

impl Authorization {
    /// Whom it lets in; whatever is required and not there holds for nobody.
    fn peer(&self, authentications: &[Authentication], accounts: &Accounts) -> Peer {
        let held = self.required.iter().map(|(kind, namespace, name)| {
            if kind == "ServiceAccount" {
                return accounts.pods(|of, account| of == namespace && account == name);
            }
            authentications
                .iter()
                .find(|a| a.kind == kind && a.namespace == *namespace && a.name == *name)
                .map_or(Peer::Some(Vec::new()), |found| found.who.peer(accounts))
        });
        Peer::All(held.collect())
    }
}

/// What the mesh decides, as a plane of its own; `None` without Servers.
pub(super) fn plane(linkerd: Linkerd, accounts: &Accounts) -> Option<Plane> {
    if linkerd.servers.is_empty() {
        return None;
    }
    let Linkerd {
        servers,
        authorizations,
        authentications,
    } = linkerd;
    let policies = servers
        .into_iter()
        .map(|server| {
            let on_port = |name: &str, field: &str, action, peer| {
                let mut rule = rule(field, action, peer, ServiceSet::empty());
                rule.name = name.to_owned();
                rule.ports = server.ports.clone();
                rule
            };
            let for_it = authorizations.iter().filter(|a| {
                a.namespace == server.namespace && a.server.as_ref().is_none_or(|name| *name == server.name)
            });
            let mut rules: Vec<Rule> = for_it
                .map(|a| on_port(&a.name, "spec", Action::Accept, a.peer(&authentications, accounts)))
                .collect();
            let open = server.open.map(Open::peer);
            rules.extend(open.map(|peer| on_port("", "spec.accessPolicy", Action::Accept, peer)));
            rules.push(on_port("", "spec.port", Action::Deny, Peer::Any));
            let mut policy = server.policy.clone();
            policy.ingress = Some(rules);
            policy
        })
        .collect();
    Some(Plane {
        name: "Linkerd".to_owned(),
        stages: vec![Stage {
            name: "Servers".to_owned(),
            order: Order::InOrder,
            rest: Rest::Next,
            policies,
        }],
    })
}
