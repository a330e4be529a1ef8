//! Calico NetworkPolicy in tiers, and GlobalNetworkPolicy for subjects whose namespaces are told by label
//! (`projectcalico.org/v3`).
//!
//! Every tier of the policies is a Calico tier. In it, denying policies come before allowing ones, and what none of
//! them matches is passed to the next tier. The last tier denies. So the order of decisions is the language's own,
//! nothing has to be cut, and nothing is left out.
//!
//! Policies in mode `observe` or `stage` become staged policies, which Calico evaluates and reports but does not enforce.

use std::{borrow::Borrow, collections::BTreeMap};

use serde::Serialize;

use super::{
    Compiled, CompiledFile,
    manifest::Metadata,
    project::{Says, project},
    scope::{Place, by_scope},
};
use crate::{
    document::{Action, Mode},
    ir::{DEFAULT_DENY, Direction, PeerSet, Policy, Rule},
    sets::{PORT_PROTOCOLS, Selector, ServiceSet},
};

/// The order of the last tier: behind every tier of the language (0 to 1000), before Calico's own default tier.
const LAST_TIER: u32 = 2_000;

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
struct TierSpec {
    order: u32,
    default_action: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicySpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    staged_action: Option<&'static str>,
    tier: String,
    order: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace_selector: Option<String>,
    selector: String,
    types: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ingress: Vec<CalicoRule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    egress: Vec<CalicoRule>,
}

#[derive(Clone, Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct CalicoRule {
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<RuleMetadata>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Entity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<Entity>,
}

#[derive(Clone, Serialize)]
struct RuleMetadata {
    annotations: BTreeMap<&'static str, String>,
}

#[derive(Clone, Serialize)]
#[serde(untagged)]
enum Protocol {
    Name(&'static str),
    Number(u8),
}

#[derive(Clone, Serialize)]
#[serde(untagged)]
enum Port {
    One(u16),
    Range(String),
}

#[derive(Clone, Serialize, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Entity {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nets: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace_selector: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<Port>,
}

impl PartialEq for Port {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::One(a), Self::One(b)) => a == b,
            (Self::Range(a), Self::Range(b)) => a == b,
            _ => false,
        }
    }
}

/// Compiles policies to Calico tiers and policies, one file a policy and one for the tiers.
///
/// `sha256` gives the hash of a policy's document for its provenance annotation, by name.
pub fn calico<P: Borrow<Policy>>(policies: &[P], sha256: impl Fn(&str) -> Option<String>) -> Compiled {
    let mut out = Compiled::default();
    // Staged policies are written too; the mode is looked at when they are.
    let says = Says {
        target: "Calico",
        staged: true,
        clusterwide: true,
        ..Says::default()
    };
    let policies = project(policies, &says, &mut out);
    let mut selected: Vec<Policy> = policies.clone();
    for policy in &mut selected {
        policy.mode = Mode::Enforce;
    }
    let tried = policies.iter().filter(|p| p.mode != Mode::Enforce);
    let trial: std::collections::BTreeSet<&str> = tried.map(|p| p.name.as_str()).collect();
    let governing = by_scope(&selected, "Calico", &mut out);
    let mut tiers: BTreeMap<String, u32> = BTreeMap::new();
    for (policy, place, pods) in governing {
        let (namespace, of_many) = match place {
            Place::Namespace(namespace) => (Some(namespace), None),
            Place::Namespaces(namespaces) => (None, Some(selector(namespaces))),
        };
        let staged = trial.contains(policy.name.as_str());
        tiers.insert(tier_name(policy), policy.tier.into());
        tiers.insert(LAST.to_owned(), LAST_TIER);
        let parts = parts(policy, &selector(pods));
        let documents: Vec<String> = parts
            .into_iter()
            .filter_map(|(what, mut spec)| {
                spec.staged_action = staged.then_some("Set");
                spec.namespace_selector.clone_from(&of_many);
                let resource = Resource {
                    api_version: "projectcalico.org/v3",
                    kind: match (staged, namespace) {
                        (false, Some(_)) => "NetworkPolicy",
                        (true, Some(_)) => "StagedNetworkPolicy",
                        (false, None) => "GlobalNetworkPolicy",
                        (true, None) => "StagedGlobalNetworkPolicy",
                    },
                    metadata: Metadata {
                        // Before Calico 3.29, a policy's name has to start with its tier's.
                        name: format!("{}.{}-{what}", spec.tier, policy.name),
                        namespace: namespace.map(str::to_owned),
                        labels: super::owned(policy),
                        annotations: super::annotations(policy, sha256(&policy.name)),
                    },
                    spec,
                };
                serde_saphyr::to_string(&resource).ok()
            })
            .collect();
        out.files.push(CompiledFile {
            path: format!("calico/{}/{}.yaml", namespace.unwrap_or("cluster-wide"), policy.name),
            content: format!("{}{}", super::provenance(policy), documents.join("---\n")),
        });
    }
    if !tiers.is_empty() {
        let documents: Vec<String> = tiers
            .into_iter()
            .filter_map(|(name, order)| {
                let tier = Resource {
                    api_version: "projectcalico.org/v3",
                    kind: "Tier",
                    metadata: Metadata {
                        name,
                        namespace: None,
                        labels: BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "garrison".to_owned())]),
                        annotations: BTreeMap::new(),
                    },
                    spec: TierSpec {
                        order,
                        default_action: if order == LAST_TIER { "Deny" } else { "Pass" },
                    },
                };
                serde_saphyr::to_string(&tier).ok()
            })
            .collect();
        out.files.push(CompiledFile {
            path: "calico/tiers.yaml".to_owned(),
            content: format!(
                "# Generated by Garrison. Apply before the policies. Changes here are lost.\n{}",
                documents.join("---\n")
            ),
        });
    }
    out.files.sort_by(|a, b| a.path.cmp(&b.path));
    out
}

/// The name of the tier that denies.
const LAST: &str = "garrison-default";

fn tier_name(policy: &Policy) -> String {
    format!("garrison-{}", policy.tier)
}

/// What one policy becomes: what it denies, what it allows, that the rest is passed on, and that the rest is denied
/// in the end.
fn parts(policy: &Policy, selector: &str) -> Vec<(&'static str, PolicySpec)> {
    let spec = |tier: String, order: u32, rules: [Option<Vec<CalicoRule>>; 2]| {
        let [egress, ingress] = rules;
        let mut types = Vec::new();
        types.extend(ingress.is_some().then_some("Ingress"));
        types.extend(egress.is_some().then_some("Egress"));
        (!types.is_empty()).then(|| PolicySpec {
            staged_action: None,
            namespace_selector: None,
            tier,
            order,
            selector: selector.to_owned(),
            types,
            ingress: ingress.unwrap_or_default(),
            egress: egress.unwrap_or_default(),
        })
    };
    let rules = |action: Action| {
        Direction::BOTH.map(|direction| {
            let rules: Vec<CalicoRule> = policy
                .rules(direction)?
                .iter()
                .filter(|rule| rule.action == action)
                .flat_map(|rule| write(policy, rule, direction))
                .collect();
            (!rules.is_empty()).then_some(rules)
        })
    };
    let end = |action: &'static str| {
        Direction::BOTH.map(|direction| {
            policy.rules(direction).map(|_| {
                vec![CalicoRule {
                    action,
                    metadata: (action == "Deny").then(|| RuleMetadata {
                        annotations: BTreeMap::from([("garrison.dev/rule", DEFAULT_DENY.to_owned())]),
                    }),
                    ..CalicoRule::default()
                }]
            })
        })
    };
    let tier = tier_name(policy);
    [
        ("deny", spec(tier.clone(), 100, rules(Action::Deny))),
        ("allow", spec(tier.clone(), 200, rules(Action::Allow))),
        ("pass", spec(tier, 300, end("Pass"))),
        ("default", spec(LAST.to_owned(), 100, end("Deny"))),
    ]
    .into_iter()
    .filter_map(|(what, spec)| Some((what, spec?)))
    .collect()
}

fn write(policy: &Policy, rule: &Rule, direction: Direction) -> Vec<CalicoRule> {
    let mut written = Vec::new();
    let metadata = RuleMetadata {
        annotations: BTreeMap::from([
            ("garrison.dev/rule", format!("{}/{}", policy.name, rule.name)),
            ("garrison.dev/field", rule.field.clone()),
        ]),
    };
    for peer in &rule.peers.workloads {
        let peer = match peer {
            PeerSet::Any => Entity::default(),
            PeerSet::Addresses(set) if set.is_empty() => continue,
            PeerSet::Addresses(set) => Entity {
                nets: set.to_nets().iter().map(ToString::to_string).collect(),
                ..Entity::default()
            },
            // What is told by identity was taken out by the projection.
            PeerSet::Principals(_)
            | PeerSet::Domains(_)
            | PeerSet::Hosts(_)
            | PeerSet::Tags(_)
            | PeerSet::People(_) => continue,
            PeerSet::Pods { namespaces, pods } if namespaces.is_empty() || pods.is_empty() => continue,
            PeerSet::Pods { namespaces, pods } => Entity {
                // With an explicit selector of namespaces, a rule never means the policy's own one by default.
                namespace_selector: Some(selector(namespaces)),
                selector: Some(selector(pods)),
                ..Entity::default()
            },
        };
        for (protocol, ports) in services(&rule.services) {
            let (source, mut destination) = match direction {
                Direction::Ingress => (peer.clone(), Entity::default()),
                Direction::Egress => (Entity::default(), peer.clone()),
            };
            destination.ports = ports;
            let some = |entity: Entity| (entity != Entity::default()).then_some(entity);
            written.push(CalicoRule {
                action: match rule.action {
                    Action::Allow => "Allow",
                    Action::Deny => "Deny",
                },
                metadata: Some(metadata.clone()),
                protocol,
                source: some(source),
                destination: some(destination),
            });
        }
    }
    written
}

/// One entry a protocol; no protocol means every one.
fn services(set: &ServiceSet) -> Vec<(Option<Protocol>, Vec<Port>)> {
    if set.is_full() {
        return vec![(None, Vec::new())];
    }
    let mut all = Vec::new();
    for (number, name) in PORT_PROTOCOLS.into_iter().zip(["TCP", "UDP", "SCTP"]) {
        let Some(ports) = set.ports(number).filter(|ports| !ports.is_empty()) else {
            continue;
        };
        let list = if ports.is_full() {
            Vec::new()
        } else {
            let ranges = ports.ranges().iter();
            ranges
                .map(|(from, to)| {
                    if from == to {
                        Port::One(*from)
                    } else {
                        Port::Range(format!("{from}:{to}"))
                    }
                })
                .collect()
        };
        all.push((Some(Protocol::Name(name)), list));
    }
    all.extend(set.portless().map(|number| {
        let protocol = match number {
            1 => Protocol::Name("ICMP"),
            58 => Protocol::Name("ICMPv6"),
            number => Protocol::Number(number),
        };
        (Some(protocol), Vec::new())
    }));
    all
}

/// A selector in Calico's language. Label keys and values have no quotes in them.
fn selector(selector: &Selector) -> String {
    let mut terms = Vec::new();
    for (key, values) in selector.labels() {
        let list: Vec<String> = values.values.iter().map(|v| format!("'{v}'")).collect();
        let within = match list.as_slice() {
            [one] => format!("{key} == {one}"),
            list => format!("{key} in {{{}}}", list.join(", ")),
        };
        let without = match list.as_slice() {
            [one] => format!("{key} != {one}"),
            list => format!("{key} not in {{{}}}", list.join(", ")),
        };
        terms.push(match (values.absent, values.inverted, list.is_empty()) {
            (false, false, _) => within,
            (true, false, true) => format!("!has({key})"),
            (true, false, false) => format!("(!has({key}) || {within})"),
            (true, true, _) => without,
            (false, true, true) => format!("has({key})"),
            (false, true, false) => format!("has({key}) && {without}"),
        });
    }
    if terms.is_empty() {
        "all()".to_owned()
    } else {
        terms.join(" && ")
    }
}
