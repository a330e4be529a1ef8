//! ClusterNetworkPolicy output against an interpreter of the API's documentation, never wider than the documents.

use std::collections::BTreeMap;

use garrison_ztp::{Policy, compile, document::Mode, ir::lower};
use proptest::{prelude::*, sample::select};
use serde::Deserialize;

use crate::{
    generate::documents,
    kubernetes::{LabelSelector, NetworkPolicy, endpoint, passes_side, selects},
    reference::{By, Endpoint, decide, denied},
};

// The types of policy.networking.k8s.io/v1alpha2, with no other field taken.

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClusterNetworkPolicy {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    labels: BTreeMap<String, String>,
    #[serde(rename = "annotations")]
    _annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Spec {
    tier: String,
    priority: u16,
    subject: Peer,
    #[serde(default)]
    ingress: Vec<Ingress>,
    #[serde(default)]
    egress: Vec<Egress>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Ingress {
    name: String,
    action: String,
    from: Vec<Peer>,
    protocols: Option<Vec<BTreeMap<String, Protocol>>>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Egress {
    name: String,
    action: String,
    to: Vec<Peer>,
    protocols: Option<Vec<BTreeMap<String, Protocol>>>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Peer {
    namespaces: Option<LabelSelector>,
    pods: Option<Pods>,
    networks: Option<Vec<ipnet::IpNet>>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Pods {
    namespace_selector: LabelSelector,
    pod_selector: LabelSelector,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Protocol {
    destination_port: DestinationPort,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct DestinationPort {
    number: Option<u16>,
    range: Option<Range>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Range {
    start: u16,
    end: u16,
}

fn peer_matches(peer: &Peer, who: &Endpoint) -> bool {
    let pod = who.pod.as_ref();
    match (&peer.namespaces, &peer.pods, &peer.networks) {
        (Some(namespaces), None, None) => pod.is_some_and(|pod| selects(namespaces, &pod.namespace_labels)),
        (None, Some(pods), None) => pod.is_some_and(|pod| {
            selects(&pods.namespace_selector, &pod.namespace_labels) && selects(&pods.pod_selector, &pod.labels)
        }),
        (None, None, Some(networks)) => {
            assert!((1..=25).contains(&networks.len()), "the API refuses {networks:?}");
            networks.iter().any(|net| net.contains(&who.address))
        }
        other => panic!("the API takes exactly one of these: {other:?}"),
    }
}

fn protocols_match(protocols: Option<&Vec<BTreeMap<String, Protocol>>>, protocol: u8, port: u16) -> bool {
    let Some(list) = protocols else { return true };
    assert!((1..=25).contains(&list.len()), "the API refuses {list:?}");
    list.iter().any(|entry| {
        assert_eq!(entry.len(), 1, "the API refuses {entry:?}");
        entry.iter().all(|(name, of)| {
            let number = match name.as_str() {
                "tcp" => 6,
                "udp" => 17,
                "sctp" => 132,
                other => panic!("the API has no {other}"),
            };
            number == protocol
                && match (&of.destination_port.number, &of.destination_port.range) {
                    (Some(number), None) => {
                        assert!(*number > 0);
                        *number == port
                    }
                    (None, Some(range)) => {
                        assert!(range.start > 0 && range.start < range.end, "the API refuses {range:?}");
                        (range.start..=range.end).contains(&port)
                    }
                    other => panic!("the API takes exactly one of these: {other:?}"),
                }
        })
    })
}

/// What one side's ClusterNetworkPolicies say; `None` when they leave it to NetworkPolicies.
fn tier_decides(
    policies: &[ClusterNetworkPolicy],
    ingress: bool,
    governed: &Endpoint,
    peer: &Endpoint,
    protocol: u8,
    port: u16,
) -> Option<bool> {
    // Pods alone are subjects, and ingress is about traffic from pods alone.
    governed.pod.as_ref()?;
    let mut here: Vec<_> = policies
        .iter()
        .filter(|p| peer_matches(&p.spec.subject, governed))
        .collect();
    here.sort_by_key(|p| p.spec.priority); // stable: which of equal priority comes first must not matter
    let mut decided: Option<(u16, String)> = None;
    for policy in here {
        let rules: Vec<(&String, &Vec<Peer>, Option<&Vec<_>>)> = if ingress {
            let rules = policy.spec.ingress.iter();
            rules.map(|r| (&r.action, &r.from, r.protocols.as_ref())).collect()
        } else {
            let rules = policy.spec.egress.iter();
            rules.map(|r| (&r.action, &r.to, r.protocols.as_ref())).collect()
        };
        assert!(rules.len() <= 25, "the API refuses {} rules", rules.len());
        let hit = rules.into_iter().find(|(_, peers, protocols)| {
            assert!((1..=25).contains(&peers.len()), "the API refuses {} peers", peers.len());
            peers.iter().any(|p| peer_matches(p, peer)) && protocols_match(*protocols, protocol, port)
        });
        let Some((action, ..)) = hit else { continue };
        match &decided {
            None => decided = Some((policy.spec.priority, action.clone())),
            Some((priority, first)) => {
                assert!(
                    *priority != policy.spec.priority || first == action,
                    "two policies of one priority disagree"
                );
            }
        }
    }
    decided.map(|(_, action)| match action.as_str() {
        "Accept" => true,
        "Deny" => false,
        other => panic!("not written: {other}"),
    })
}

fn passes(
    cnps: &[ClusterNetworkPolicy],
    nps: &[NetworkPolicy],
    src: &Endpoint,
    dst: &Endpoint,
    protocol: u8,
    port: u16,
) -> bool {
    src.address == dst.address
        || [("Egress", src, dst), ("Ingress", dst, src)]
            .into_iter()
            .all(|(kind, governed, peer)| {
                tier_decides(cnps, kind == "Ingress", governed, peer, protocol, port)
                    .unwrap_or_else(|| passes_side(nps, kind, governed, peer, protocol, port))
            })
}

fn compile_to(policies: &[Policy]) -> (Vec<ClusterNetworkPolicy>, Vec<NetworkPolicy>, compile::Compiled) {
    let compiled = compile::cluster_network_policy(policies, |name| Some(format!("sha-of-{name}")));
    let (mut cluster, mut namespaced) = (Vec::new(), Vec::new());
    for file in &compiled.files {
        if file.path.starts_with("clusternetworkpolicy/") {
            cluster.extend(
                serde_saphyr::from_multiple::<ClusterNetworkPolicy>(&file.content)
                    .unwrap_or_else(|e| panic!("{e}\n{}", file.content)),
            );
        } else {
            namespaced.extend(
                serde_saphyr::from_multiple::<NetworkPolicy>(&file.content)
                    .unwrap_or_else(|e| panic!("{e}\n{}", file.content)),
            );
        }
    }
    let mut names: Vec<_> = cluster.iter().map(|p| &p.metadata.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), cluster.len(), "a name twice");
    for policy in &cluster {
        assert_eq!(policy.api_version, "policy.networking.k8s.io/v1alpha2");
        assert_eq!(policy.kind, "ClusterNetworkPolicy");
        assert_eq!(policy.spec.tier, "Admin");
        assert!(policy.spec.priority <= 1_000);
        assert_eq!(policy.metadata.labels["app.kubernetes.io/managed-by"], "garrison");
        let rules = policy.spec.ingress.iter().map(|r| &r.name);
        for name in rules.chain(policy.spec.egress.iter().map(|r| &r.name)) {
            assert!(!name.is_empty() && name.len() <= 100);
        }
    }
    (cluster, namespaced, compiled)
}

proptest! {
    // 1,200 sets of policies × 24 connections.
    #![proptest_config(ProptestConfig { cases: crate::generate::cases(1_200), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_wider_and_equal_without_gaps(
        documents in documents(true, 4),
        connections in prop::collection::vec(
            (endpoint(), endpoint(), select(&[6u8, 6, 17, 132, 1][..]), select(&[1u16, 79, 80, 81, 82, 83, 443, 444, 65535][..])),
            24,
        ),
    ) {
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 7)).collect();
        let (cluster, namespaced, compiled) = compile_to(&lowered);
        let enforced: Vec<_> = documents.iter().filter(|d| d.spec.mode == Mode::Enforce).collect();
        let exact = compiled.gaps.iter().all(|gap| gap.reason.contains("mode observe"));
        for (src, dst, protocol, port) in connections {
            let intended = !denied(&decide(&enforced, &src, &dst, protocol, port, By::Label));
            let passed = passes(&cluster, &namespaced, &src, &dst, protocol, port);
            prop_assert!(!passed || intended, "wider: {:?} → {:?} {}/{}\n{:#?}", src, dst, protocol, port, compiled);
            prop_assert!(!exact || passed == intended, "narrower without a gap: {:?} → {:?} {}/{}\n{:#?}", src, dst, protocol, port, compiled);
        }
    }
}

#[test]
fn the_lab_compiles_to_readable_owned_manifests() {
    let checked = garrison_ztp::check(crate::documents::LAB);
    let lowered: Vec<Policy> = checked.documents.iter().map(|d| d.lower(3)).collect();
    let (_, _, compiled) = compile_to(&lowered);
    assert_eq!(compiled.gaps, []);
    assert_eq!(
        compiled.files[0].content,
        "# Generated by Garrison from ZeroTrustPolicy database@3. Changes here are lost.
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata:
  name: garrison-database-100-allow-1
  labels:
    app.kubernetes.io/managed-by: garrison
    garrison.dev/policy: database
  annotations:
    garrison.dev/document-sha256: sha-of-database
    garrison.dev/policy-version: \"3\"
spec:
  tier: Admin
  priority: 0
  subject:
    pods:
      namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: shop
      podSelector:
        matchLabels:
          app: database
  ingress:
  - name: from-web
    action: Accept
    from:
    - pods:
        namespaceSelector:
          matchLabels:
            kubernetes.io/metadata.name: shop
        podSelector:
          matchLabels:
            app: web
    protocols:
    - tcp:
        destinationPort:
          number: 5432
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata:
  name: garrison-database-100-default-1
  labels:
    app.kubernetes.io/managed-by: garrison
    garrison.dev/policy: database
  annotations:
    garrison.dev/document-sha256: sha-of-database
    garrison.dev/policy-version: \"3\"
spec:
  tier: Admin
  priority: 2
  subject:
    pods:
      namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: shop
      podSelector:
        matchLabels:
          app: database
  ingress:
  - name: default-deny
    action: Deny
    from:
    - namespaces: {}
"
    );
}
