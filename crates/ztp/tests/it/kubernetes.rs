//! NetworkPolicy output against an interpreter of the Kubernetes API reference, never wider than the documents.

use std::{collections::BTreeMap, net::IpAddr};

use garrison_ztp::{Policy, check, compile, document::Mode, ir::lower};
use proptest::{prelude::*, sample::select};
use serde::Deserialize;

use crate::{
    generate::documents,
    reference::{By, Endpoint, Pod, decide, denied},
};

// The types of networking.k8s.io/v1, with no other field taken.

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct NetworkPolicy {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    namespace: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Spec {
    pod_selector: LabelSelector,
    policy_types: Vec<String>,
    #[serde(default)]
    ingress: Vec<Ingress>,
    #[serde(default)]
    egress: Vec<Egress>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Ingress {
    #[serde(default)]
    from: Vec<Peer>,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Egress {
    #[serde(default)]
    to: Vec<Peer>,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Peer {
    ip_block: Option<IpBlock>,
    namespace_selector: Option<LabelSelector>,
    pod_selector: Option<LabelSelector>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct IpBlock {
    cidr: ipnet::IpNet,
    #[serde(default)]
    except: Vec<ipnet::IpNet>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Port {
    protocol: String,
    port: Option<u16>,
    end_port: Option<u16>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct LabelSelector {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    #[serde(default)]
    match_expressions: Vec<Requirement>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Requirement {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

pub(crate) fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    selector.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
        && selector.match_expressions.iter().all(|r| {
            let value = labels.get(&r.key);
            assert_eq!(
                matches!(r.operator.as_str(), "In" | "NotIn"),
                !r.values.is_empty(),
                "the API refuses {r:?}"
            );
            match r.operator.as_str() {
                "In" => value.is_some_and(|v| r.values.contains(v)),
                "NotIn" => value.is_none_or(|v| !r.values.contains(v)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => panic!("the API has no operator {other}"),
            }
        })
}

fn peer_matches(policy: &NetworkPolicy, peer: &Peer, who: &Endpoint) -> bool {
    if let Some(block) = &peer.ip_block {
        assert!(
            peer.namespace_selector.is_none() && peer.pod_selector.is_none(),
            "the API refuses both"
        );
        return block.cidr.contains(&who.address) && !block.except.iter().any(|e| e.contains(&who.address));
    }
    assert!(
        peer.namespace_selector.is_some() || peer.pod_selector.is_some(),
        "the API refuses an empty peer"
    );
    let Some(pod) = &who.pod else { return false };
    let in_namespace = match &peer.namespace_selector {
        Some(selector) => selects(selector, &pod.namespace_labels),
        None => pod.namespace == policy.metadata.namespace,
    };
    in_namespace && peer.pod_selector.as_ref().is_none_or(|s| selects(s, &pod.labels))
}

fn port_matches(ports: &[Port], protocol: u8, port: u16) -> bool {
    ports.is_empty()
        || ports.iter().any(|p| {
            assert!(
                p.port != Some(0) && p.end_port.is_none_or(|e| e >= p.port.unwrap()),
                "the API refuses {p:?}"
            );
            let number = match p.protocol.as_str() {
                "TCP" => 6,
                "UDP" => 17,
                "SCTP" => 132,
                other => panic!("the API has no protocol {other}"),
            };
            number == protocol
                && match (p.port, p.end_port) {
                    (None, _) => true,
                    (Some(from), None) => from == port,
                    (Some(from), Some(to)) => (from..=to).contains(&port),
                }
        })
}

/// Whether the API server's documented semantics let the connection pass.
pub(crate) fn passes(policies: &[NetworkPolicy], src: &Endpoint, dst: &Endpoint, protocol: u8, port: u16) -> bool {
    src.address == dst.address
        || [("Egress", src, dst), ("Ingress", dst, src)]
            .into_iter()
            .all(|(kind, governed, peer)| passes_side(policies, kind, governed, peer, protocol, port))
}

/// One side of [`passes`].
pub(crate) fn passes_side(
    policies: &[NetworkPolicy],
    kind: &str,
    governed: &Endpoint,
    peer: &Endpoint,
    protocol: u8,
    port: u16,
) -> bool {
    let Some(pod) = &governed.pod else {
        return true;
    };
    let isolating: Vec<_> = policies
        .iter()
        .filter(|p| p.metadata.namespace == pod.namespace && selects(&p.spec.pod_selector, &pod.labels))
        .filter(|p| p.spec.policy_types.iter().any(|t| t == kind))
        .collect();
    let rules = |p: &NetworkPolicy| {
        let check = |peers: &[Peer], ports: &[Port]| {
            (peers.is_empty() || peers.iter().any(|x| peer_matches(p, x, peer))) && port_matches(ports, protocol, port)
        };
        match kind {
            "Egress" => p.spec.egress.iter().any(|r| check(&r.to, &r.ports)),
            _ => p.spec.ingress.iter().any(|r| check(&r.from, &r.ports)),
        }
    };
    isolating.is_empty() || isolating.iter().any(|p| rules(p))
}

pub(crate) fn compile_to(policies: &[Policy]) -> (Vec<NetworkPolicy>, compile::Compiled) {
    let compiled = compile::kubernetes(policies, |name| Some(format!("sha-of-{name}")));
    let manifests = compiled
        .files
        .iter()
        .flat_map(|file| {
            serde_saphyr::from_multiple::<NetworkPolicy>(&file.content)
                .unwrap_or_else(|e| panic!("{e}\n{}", file.content))
        })
        .collect();
    (manifests, compiled)
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub(crate) fn endpoint() -> impl Strategy<Value = Endpoint> {
    let address = select(crate::generate::hosts());
    let pod = (
        select(&["blue", "green", "red"][..]),
        select(&[None, Some("x"), Some("y"), Some("z")][..]),
        select(&[None, Some("x"), Some("y")][..]),
        select(&["web", "db", "default"][..]),
    )
        .prop_map(|(namespace, app, env, account)| {
            let mut own = BTreeMap::new();
            own.extend(app.map(|v| ("app".to_owned(), v.to_owned())));
            own.extend(env.map(|v| ("env".to_owned(), v.to_owned())));
            let mut of_namespace = labels(&[("kubernetes.io/metadata.name", namespace)]);
            match namespace {
                "blue" => of_namespace.extend(labels(&[("app", "x")])),
                "green" => of_namespace.extend(labels(&[("app", "y"), ("env", "x")])),
                _ => {}
            }
            Pod {
                namespace: namespace.to_owned(),
                namespace_labels: of_namespace,
                labels: own,
                account: account.to_owned(),
            }
        });
    (address, prop::option::weighted(0.8, pod)).prop_map(|(address, pod)| Endpoint { address, pod })
}

proptest! {
    // 1,200 sets of policies × 24 connections.
    #![proptest_config(ProptestConfig { cases: crate::generate::cases(1_200), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_wider_and_equal_without_gaps(
        documents in documents(true, 4),
        connections in prop::collection::vec(
            (endpoint(), endpoint(), select(&[6u8, 6, 17, 132, 1][..]), select(&[0u16, 1, 79, 80, 81, 82, 83, 443, 444, 65535][..])),
            24,
        ),
    ) {
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 7)).collect();
        let (manifests, compiled) = compile_to(&lowered);
        let enforced: Vec<_> = documents.iter().filter(|d| d.spec.mode == Mode::Enforce).collect();
        let exact = compiled.gaps.iter().all(|gap| gap.reason.contains("mode observe"));
        for (src, dst, protocol, port) in connections {
            let intended = !denied(&decide(&enforced, &src, &dst, protocol, port, By::Label));
            let passed = passes(&manifests, &src, &dst, protocol, port);
            prop_assert!(!passed || intended, "wider: {:?} → {:?} {}/{}\n{:#?}", src, dst, protocol, port, compiled);
            prop_assert!(!exact || passed == intended, "narrower without a gap: {:?} → {:?} {}/{}\n{:#?}", src, dst, protocol, port, compiled);
        }
    }
}

#[test]
fn the_lab_compiles_to_readable_owned_manifests() {
    let checked = check(crate::documents::LAB);
    let lowered: Vec<Policy> = checked.documents.iter().map(|d| d.lower(3)).collect();
    let (manifests, compiled) = compile_to(&lowered);
    assert_eq!(compiled.gaps, []);
    assert_eq!(manifests[0].api_version, "networking.k8s.io/v1");
    assert_eq!(manifests[0].kind, "NetworkPolicy");
    let owned = &manifests[0].metadata;
    assert_eq!(owned.name, "garrison-database");
    assert_eq!(owned.labels["garrison.dev/policy"], "database");
    assert_eq!(owned.annotations["garrison.dev/policy-version"], "3");
    assert_eq!(compiled.files[0].path, "networkpolicy/shop/database.yaml");
    assert_eq!(
        compiled.files[0].content,
        "# Generated by Garrison from ZeroTrustPolicy database@3. Changes here are lost.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: garrison-database
  namespace: shop
  labels:
    app.kubernetes.io/managed-by: garrison
    garrison.dev/policy: database
  annotations:
    garrison.dev/document-sha256: sha-of-database
    garrison.dev/ingress.0: from-web (spec.ingress[0])
    garrison.dev/policy-version: \"3\"
spec:
  podSelector:
    matchLabels:
      app: database
  policyTypes:
  - Ingress
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: web
    ports:
    - protocol: TCP
      port: 5432
"
    );
}

#[test]
fn a_denied_part_is_cut_out_of_selectors() {
    let text = "apiVersion: garrison.dev/v1alpha1
kind: ZeroTrustPolicy
metadata: {name: p}
spec:
  mode: enforce
  subject: {workloads: {namespace: shop, podSelector: {matchLabels: {app: db}}}}
  ingress:
    - {name: all, from: [{podSelector: {}}]}
    - {name: but, action: deny, from: [{podSelector: {matchLabels: {app: guest}}}]}
";
    let checked = check(text);
    assert!(checked.is_valid(), "{:?}", checked.diagnostics);
    let (manifests, compiled) = compile_to(&[checked.documents[0].lower(1)]);
    assert_eq!(compiled.gaps, [], "labels can be told apart exactly");
    let pod = |app: &str, last: u8| Endpoint {
        address: IpAddr::from([10, 0, 0, last]),
        pod: Some(Pod {
            namespace: "shop".to_owned(),
            namespace_labels: labels(&[("kubernetes.io/metadata.name", "shop")]),
            labels: labels(&[("app", app)]),
            account: "default".to_owned(),
        }),
    };
    assert!(passes(&manifests, &pod("web", 1), &pod("db", 2), 6, 5432));
    assert!(!passes(&manifests, &pod("guest", 1), &pod("db", 2), 6, 5432));
}
