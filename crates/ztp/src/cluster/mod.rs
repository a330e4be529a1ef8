//! What a cluster runs, from its manifests, whoever wrote them.
//!
//! Reads workloads, services and policies of Kubernetes and turns them into a [`Program`] whose meaning
//! [`crate::reach`] works out. Policies are read strictly: a field that their API does not have is an error, because
//! a policy that is half understood would be misjudged. Of everything else only what matters is read.

mod calico;
mod cilium;
mod cluster_network_policy;
mod document;
mod exposure;
mod istio;
mod linkerd;
mod mesh;
mod network_policy;
mod tree;
mod workload;
mod zero_trust;

use std::collections::{BTreeMap, BTreeSet};

pub use document::{Imported, documents};
use serde::Serialize;

use crate::{
    Limits,
    decode::{Findings, Spans},
    diagnostic::{Code, Diagnostic, Level, Position},
    ir::NAMESPACE_NAME_LABEL,
    node::{self, Node},
    reach::{Action, Endpoint, Exposed, Identity, Network, Order, Peer, Plane, Policy, Program, Rest, Stage},
    sets::{LabelValues, Labels, Selector},
};

/// One file.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name, for messages.
    pub file: String,
    /// What it says: YAML of any number of documents, or JSON.
    pub text: String,
}

/// Something found in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// What was found.
    #[serde(flatten)]
    pub diagnostic: Diagnostic,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.diagnostic)
    }
}

/// What files say together.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Endpoints and policies.
    pub program: Program,
    /// What was found. With an error among it, the program is not to be trusted.
    pub findings: Vec<Finding>,
    /// How many resources of each kind there are, those that say nothing about connections included.
    pub kinds: BTreeMap<String, usize>,
    /// What meshes are told, as it was read.
    meshes: Meshes,
    /// Rules that only let some requests through: file, line of the policy, field.
    of_requests: BTreeSet<(String, u32, String)>,
}

/// What meshes are told.
#[derive(Clone, Debug, Default)]
struct Meshes {
    istio: istio::Istio,
    linkerd: linkerd::Linkerd,
}

impl Cluster {
    /// Whether a rule lets only some requests through.
    fn of_requests(&self, policy: &Policy, field: &str) -> bool {
        let key = (policy.file.clone(), policy.line, field.to_owned());
        self.of_requests.contains(&key)
    }

    /// Whether nothing is wrong. Warnings do not count.
    pub fn is_valid(&self) -> bool {
        self.findings.iter().all(|f| f.diagnostic.level != Level::Error)
    }
}

/// Bounds for files of whole clusters: 64 MiB and 4 million values a file, 500,000 resources together.
pub fn limits() -> Limits {
    Limits {
        bytes: 64 << 20,
        documents: 100_000,
        depth: 64,
        nodes: 4_000_000,
        replayed: 200_000,
        labels: 512,
        text: 1 << 20,
        ..Limits::default()
    }
}

/// Most resources of all files.
const RESOURCES: usize = 500_000;

/// API groups whose resources say who may talk to whom. One of an unknown kind is a warning: the answer lacks it.
const POLICY_GROUPS: [&str; 7] = [
    "cilium.io",
    "projectcalico.org",
    "crd.projectcalico.org",
    "security.istio.io",
    "policy.linkerd.io",
    "policy.networking.k8s.io",
    "k8s.cni.cncf.io",
];

/// Everything read, before it is put in order.
#[derive(Default)]
struct Collected {
    namespaces: BTreeMap<String, Labels>,
    endpoints: Vec<Endpoint>,
    services: Vec<exposure::Service>,
    routes: Vec<exposure::Route>,
    /// By network.
    network_policies: BTreeMap<String, Vec<Policy>>,
    cluster_policies: Vec<cluster_network_policy::Ranked>,
    zero_trust: Vec<crate::Policy>,
    calico: calico::Calico,
    istio: istio::Istio,
    linkerd: linkerd::Linkerd,
    of_requests: BTreeSet<(String, u32, String)>,
    networks: BTreeSet<String>,
    seen: BTreeMap<(String, String, String), (String, u32)>,
}

/// What a reader of one resource gets.
struct Resource<'a> {
    file: &'a str,
    node: &'a Node,
    kind: &'a str,
    namespace: String,
    name: String,
}

impl Resource<'_> {
    /// A policy without rules that is called after the resource.
    fn policy(&self, subject: Peer) -> Policy {
        Policy {
            kind: self.kind.to_owned(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            file: self.file.to_owned(),
            line: self.node.position.line,
            subject,
            egress: None,
            ingress: None,
        }
    }
}

/// Reads files under the default [`limits`].
pub fn import(sources: &[Source]) -> Cluster {
    import_with(sources, &limits())
}

/// Reads files.
pub fn import_with(sources: &[Source], limits: &Limits) -> Cluster {
    let mut cluster = Cluster::default();
    let mut collected = Collected::default();
    let mut resources = 0;
    for source in sources {
        let report = |diagnostic| Finding {
            file: source.file.clone(),
            diagnostic,
        };
        if source.text.len() > limits.bytes {
            cluster.findings.push(report(too_much(format!(
                "the file has {} bytes where at most {} are taken",
                source.text.len(),
                limits.bytes
            ))));
            continue;
        }
        let documents = node::split(&source.text);
        if documents.len() > limits.documents {
            cluster.findings.push(report(too_much(format!(
                "the file has {} documents where at most {} are taken",
                documents.len(),
                limits.documents
            ))));
            continue;
        }
        for document in documents {
            let tree = match node::parse(document, limits) {
                Ok(tree) => tree,
                Err(diagnostic) => {
                    cluster.findings.push(report(diagnostic));
                    continue;
                }
            };
            let mut findings = Findings {
                limits,
                diagnostics: Vec::new(),
                spans: Spans::new(),
            };
            for (node, implied) in unfold(&tree) {
                resources += 1;
                if resources > RESOURCES {
                    findings.diagnostics.push(too_much(format!(
                        "there are more than {RESOURCES} resources; the rest is not read"
                    )));
                    break;
                }
                findings.spans.clear();
                let kind = read(node, implied, &source.file, &mut collected, &mut findings);
                *cluster.kinds.entry(kind).or_default() += 1;
            }
            cluster.findings.extend(findings.diagnostics.into_iter().map(report));
        }
    }
    assemble(collected, &mut cluster);
    cluster
}

fn too_much(message: String) -> Diagnostic {
    Diagnostic {
        level: Level::Error,
        code: Code::Limit,
        field: String::new(),
        position: Position::default(),
        message,
        remedy: "Give fewer or smaller files, for example one namespace at a time".to_owned(),
    }
}

/// The resources of a document: itself, or the items of a list, with the kind that the list implies.
fn unfold(tree: &Node) -> Vec<(&Node, Option<&str>)> {
    let kind = tree.text_at("kind").unwrap_or_default();
    match kind.strip_suffix("List") {
        Some(implied) if tree.at("items").is_some() => {
            let implied = (!implied.is_empty()).then_some(implied);
            tree.items_at("items")
                .iter()
                .flat_map(|item| match item.text_at("kind") {
                    Some(kind) if kind.ends_with("List") => unfold(item),
                    _ => vec![(item, implied)],
                })
                .collect()
        }
        _ => vec![(tree, None)],
    }
}

/// Reads one resource and answers with its kind.
fn read(node: &Node, implied: Option<&str>, file: &str, all: &mut Collected, f: &mut Findings<'_>) -> String {
    let Some(kind) = node.text_at("kind").or(implied) else {
        f.error(
            Code::MissingField,
            "kind",
            node.position,
            "the resource has no `kind`",
            "Give files of Kubernetes resources, such as `kubectl get -o yaml` prints",
        );
        return "?".to_owned();
    };
    let version = node.text_at("apiVersion").unwrap_or_default();
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let metadata = node.at("metadata");
    let field = |name| metadata.and_then(|m| m.text_at(name)).unwrap_or_default().to_owned();
    let mut namespace = field("namespace");
    if namespace.is_empty() {
        namespace = "default".to_owned();
    }
    let mut resource = Resource {
        file,
        node,
        kind,
        namespace,
        name: field("name"),
    };
    if resource.name.is_empty() {
        resource.name = field("generateName");
    }
    match (group, kind) {
        ("", "Namespace") => {
            let mut labels = metadata
                .and_then(|m| m.at("labels"))
                .map(Node::labels)
                .unwrap_or_default();
            labels.insert(NAMESPACE_NAME_LABEL.to_owned(), resource.name.clone());
            all.namespaces.insert(resource.name.clone(), labels);
        }
        ("", "Node") => workload::node(&resource, all),
        ("" | "apps" | "batch" | "extensions", _) if workload::is_workload(kind) => {
            workload::workload(&resource, all, f);
        }
        ("", "Service") => exposure::service(&resource, all),
        ("networking.k8s.io" | "extensions", "Ingress") | ("route.openshift.io", "Route") => {
            exposure::route(&resource, all);
        }
        ("k8s.cni.cncf.io", "NetworkAttachmentDefinition") => {
            all.networks.insert(format!("{}/{}", resource.namespace, resource.name));
        }
        ("networking.k8s.io" | "extensions", "NetworkPolicy") | ("k8s.cni.cncf.io", "MultiNetworkPolicy") => {
            once(&resource, all, f);
            network_policy::read(&resource, all, f);
        }
        ("policy.networking.k8s.io", "ClusterNetworkPolicy" | "AdminNetworkPolicy" | "BaselineAdminNetworkPolicy") => {
            resource.namespace = String::new();
            once(&resource, all, f);
            cluster_network_policy::read(&resource, all, f);
        }
        ("cilium.io", "CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy") => {
            if kind == "CiliumClusterwideNetworkPolicy" {
                resource.namespace = String::new();
            }
            once(&resource, all, f);
            cilium::read(&resource, all, f);
        }
        ("projectcalico.org" | "crd.projectcalico.org", "Tier") => calico::tier(&resource, all, f),
        ("projectcalico.org" | "crd.projectcalico.org", "NetworkPolicy" | "GlobalNetworkPolicy") => {
            if kind == "GlobalNetworkPolicy" {
                resource.namespace = String::new();
            }
            once(&resource, all, f);
            calico::read(&resource, all, f);
        }
        // Staged policies are tried only: they let pass and hold back nothing.
        (
            "projectcalico.org" | "crd.projectcalico.org",
            "StagedNetworkPolicy" | "StagedGlobalNetworkPolicy" | "StagedKubernetesNetworkPolicy",
        ) => {}
        ("security.istio.io", "AuthorizationPolicy") => {
            once(&resource, all, f);
            istio::authorization(&resource, all, f);
        }
        ("security.istio.io", "PeerAuthentication") => {
            once(&resource, all, f);
            istio::authentication(&resource, all, f);
        }
        // It refuses requests with wrong tokens, and lets those without one pass.
        ("security.istio.io", "RequestAuthentication") => {}
        ("policy.linkerd.io", "Server" | "AuthorizationPolicy" | "MeshTLSAuthentication" | "NetworkAuthentication") => {
            once(&resource, all, f);
            linkerd::read(&resource, all, f);
        }
        // It tells how requests are routed; policies for one are told.
        ("policy.linkerd.io", "HTTPRoute") => {}
        ("garrison.dev", crate::document::KIND | crate::document::CLUSTER_KIND) => zero_trust::read(&resource, all, f),
        (group, kind) if POLICY_GROUPS.contains(&group) => f.warn_at(
            Code::UnknownKind,
            "kind",
            format!("{kind} of {version} is not analysed: what it allows or denies is missing from the answer"),
            "Leave it out of what you analyse, or take the answer for what the other policies say",
        ),
        _ => {}
    }
    kind.to_owned()
}

/// A second policy of the same name replaces the first in a cluster; which one is meant is not known here.
fn once(resource: &Resource<'_>, all: &mut Collected, f: &mut Findings<'_>) {
    // Two meshes have a kind of the same name.
    let version = resource.node.text_at("apiVersion").unwrap_or_default();
    let of = if version.starts_with("policy.linkerd.io/") {
        "Linkerd "
    } else {
        ""
    };
    let key = (
        format!("{of}{}", resource.kind),
        resource.namespace.clone(),
        resource.name.clone(),
    );
    let line = resource.node.position.line;
    if let Some((file, first)) = all.seen.insert(key, (resource.file.to_owned(), line)) {
        f.error(
            Code::Duplicate,
            "metadata.name",
            resource.node.position,
            format!(
                "{} {}/{} is there twice; the first is at {file}:{first}",
                resource.kind, resource.namespace, resource.name
            ),
            "Keep one of them: a cluster has one of each name",
        );
    }
}

/// A selector of one namespace.
fn only(namespace: &str) -> Selector {
    Selector::full().and(NAMESPACE_NAME_LABEL, LabelValues::within([namespace.to_owned()]))
}

fn assemble(mut all: Collected, cluster: &mut Cluster) {
    for endpoint in &mut all.endpoints {
        if let Identity::Workload { namespace, .. } = &endpoint.identity {
            endpoint.namespace_labels = all
                .namespaces
                .entry(namespace.clone())
                .or_insert_with(|| Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), namespace.clone())]))
                .clone();
        }
    }
    let exposed: Vec<Exposed> = exposure::exposed(&all.routes, &all.services);
    let plain = |identity: Identity| Endpoint {
        identity,
        namespace_labels: Labels::new(),
        labels: Labels::new(),
        addresses: Vec::new(),
        ports: Vec::new(),
        networks: Vec::new(),
        range: Default::default(),
    };
    if !exposed.is_empty() {
        all.endpoints.push(plain(Identity::IngressController));
    }

    let mut own = vec![kubernetes_plane(&mut all, cluster)];
    let accounts = mesh::Accounts::of(&all.endpoints);
    cluster.of_requests = std::mem::take(&mut all.of_requests);
    cluster.meshes = Meshes {
        istio: all.istio.clone(),
        linkerd: all.linkerd.clone(),
    };
    own.extend(istio::plane(std::mem::take(&mut all.istio), &accounts));
    own.extend(linkerd::plane(std::mem::take(&mut all.linkerd), &accounts));
    own.extend(zero_trust::plane(&all.zero_trust));
    // Every name that a rule speaks of is an endpoint.
    let mut domains = BTreeSet::new();
    for policy in own.iter().flat_map(|p| &p.stages).flat_map(|s| &s.policies) {
        for rule in policy.egress.iter().flatten() {
            for peer in &rule.peers {
                if let Peer::Domains(names) = peer {
                    domains.extend(names.iter().cloned());
                }
            }
        }
    }
    all.endpoints
        .extend(domains.into_iter().map(|name| plain(Identity::Domain { name })));

    let mut networks = vec![Network {
        name: String::new(),
        planes: own,
    }];
    for endpoint in &all.endpoints {
        all.networks
            .extend(endpoint.networks.iter().map(|(name, _)| name.clone()));
    }
    for name in all.networks {
        let policies = all.network_policies.remove(&name).unwrap_or_default();
        networks.push(Network {
            planes: vec![Plane {
                name: format!("policies of network {name}"),
                stages: vec![namespaced(policies)],
            }],
            name,
        });
    }
    for (name, policies) in all.network_policies.into_iter().filter(|(name, _)| !name.is_empty()) {
        for policy in policies {
            cluster.findings.push(Finding {
                file: policy.file.clone(),
                diagnostic: Diagnostic {
                    level: Level::Warning,
                    code: Code::UnknownGroup,
                    field: "metadata.annotations".to_owned(),
                    position: Position {
                        line: policy.line,
                        column: 1,
                    },
                    message: format!("{policy} is for network {name}, which nothing here is on"),
                    remedy: "Give the NetworkAttachmentDefinition and the pods on it too".to_owned(),
                },
            });
        }
    }
    cluster.program = Program {
        networks,
        endpoints: all.endpoints,
        exposed,
    };
}

fn namespaced(policies: Vec<Policy>) -> Stage {
    Stage {
        name: "NetworkPolicy".to_owned(),
        order: Order::DenyFirst,
        rest: Rest::Deny,
        policies,
    }
}

/// The admin tier, then NetworkPolicies, then the baseline tier.
fn kubernetes_plane(all: &mut Collected, cluster: &mut Cluster) -> Plane {
    let (admin, baseline) = cluster_network_policy::tiers(std::mem::take(&mut all.cluster_policies), cluster);
    let tier = |name: &str, policies| Stage {
        name: name.to_owned(),
        order: Order::InOrder,
        rest: Rest::Next,
        policies,
    };
    let own = all.network_policies.remove("").unwrap_or_default();
    let mut stages = vec![tier("admin tier", admin)];
    stages.extend(calico_tiers(std::mem::take(&mut all.calico), own));
    stages.push(tier("baseline tier", baseline));
    Plane {
        name: "Kubernetes".to_owned(),
        stages,
    }
}

/// Calico's tiers in their order, NetworkPolicies in the default one.
fn calico_tiers(mut calico: calico::Calico, own: Vec<Policy>) -> Vec<Stage> {
    if calico.policies.is_empty() {
        return vec![namespaced(own)];
    }
    calico.policies.extend(own.into_iter().map(|policy| calico::Placed {
        tier: calico::DEFAULT_TIER.to_owned(),
        order: calico::KUBERNETES_ORDER,
        policy,
    }));
    let mut by_tier: BTreeMap<String, Vec<calico::Placed>> = BTreeMap::new();
    for placed in std::mem::take(&mut calico.policies) {
        by_tier.entry(placed.tier.clone()).or_default().push(placed);
    }
    let mut tiers: Vec<(f64, Stage)> = by_tier
        .into_iter()
        .map(|(name, mut policies)| {
            // Of equal orders, the name decides.
            policies.sort_by(|a, b| {
                let name = |p: &calico::Placed| (p.policy.name.clone(), p.policy.namespace.clone());
                a.order.total_cmp(&b.order).then_with(|| name(a).cmp(&name(b)))
            });
            let (order, rest) = calico.tier(&name);
            let stage = Stage {
                name: format!("tier {name}"),
                order: Order::InOrder,
                rest,
                policies: policies.into_iter().map(|placed| placed.policy).collect(),
            };
            (order, stage)
        })
        .collect();
    tiers.sort_by(|a, b| a.0.total_cmp(&b.0));
    tiers.into_iter().map(|(_, stage)| stage).collect()
}

/// Everything that a policy without rules does not say.
fn accept_word(word: &str) -> Action {
    match word {
        "Deny" => Action::Deny,
        "Pass" => Action::Pass,
        _ => Action::Accept,
    }
}
