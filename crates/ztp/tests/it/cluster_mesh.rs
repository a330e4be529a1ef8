//! Imported manifests of meshes: what they let through, against readings of the meshes' documentation, and by hand.

use std::fmt::Write as _;

use garrison_ztp::{Policy, compile, ir::lower, istio, reach::Reach};
use proptest::prelude::*;

use crate::{
    cluster::{between, clean, lets_through, lines, manifests, read, world},
    generate::{cases, rich},
    mesh::{by_account, documents_of, istio_passes, linkerd_decides, options},
    reference::Event,
    rich::event,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(120), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn imported_istio_policies_mean_what_istio_decides(
        documents in prop_oneof![rich(3), by_account()],
        world in world(),
        events in prop::collection::vec(event(), 12),
    ) {
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 1)).collect();
        // Of ambient mode, which sees connections only, the answer is exact: pods show who they are, and nobody else does.
        let compiled = compile::istio_ambient(&lowered, |_| None);
        let mut text = manifests(&world);
        for file in &compiled.files {
            write!(text, "---\n{}\n", file.content).unwrap();
        }
        let cluster = read(&text);
        prop_assert!(cluster.findings.is_empty(), "{:#?}\n{}", cluster.findings, text);
        let of = |compiled: &compile::Compiled| -> Vec<istio::AuthorizationPolicy> {
            let text: Vec<&str> = compiled.files.iter().map(|f| f.content.as_str()).collect();
            istio::read(&text.join("---\n")).unwrap()
        };
        let (policies, others) = (of(&compiled), documents_of(&compiled));
        lets_through(&cluster, &world, &text, |src, dst, protocol, port| {
            let event = Event { protocol, port, mtls: src.pod.is_some(), ..Event::default() };
            protocol != 6 || istio_passes(&policies, &others, src, dst, &event)
        })?;
        // Of sidecars, whatever some request may do is among the answer.
        let compiled = compile::istio_with(&lowered, |_| None, &options());
        let mut text = manifests(&world);
        for file in &compiled.files {
            write!(text, "---\n{}\n", file.content).unwrap();
        }
        let cluster = read(&text);
        prop_assert!(cluster.is_valid(), "{:#?}\n{}", cluster.findings, text);
        let (policies, others) = (of(&compiled), documents_of(&compiled));
        let reach = Reach::of(&cluster.program);
        for (i, src) in world.iter().enumerate() {
            for (j, dst) in world.iter().enumerate().filter(|(j, _)| *j != i) {
                let possible = reach.allowed(0, crate::cluster::find(&reach, i, src), crate::cluster::find(&reach, j, dst));
                for event in events.iter().filter(|event| event.protocol == 6) {
                    let event = Event { mtls: src.pod.is_some(), ..event.clone() };
                    let passes = istio_passes(&policies, &others, src, dst, &event);
                    prop_assert!(!passes || possible.contains(6, event.port), "{:?} → {:?} {:?}\n{}", src, dst, event, text);
                }
            }
        }
    }

    #[test]
    fn imported_linkerd_policies_mean_what_servers_decide(
        documents in prop_oneof![rich(3), by_account()],
        world in world(),
    ) {
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 1)).collect();
        let compiled = compile::linkerd(&lowered, |_| None);
        let mut text = manifests(&world);
        for file in &compiled.files {
            write!(text, "---\n{}\n", file.content).unwrap();
        }
        let cluster = read(&text);
        prop_assert!(cluster.findings.is_empty(), "{:#?}\n{}", cluster.findings, text);
        let resources = documents_of(&compiled);
        lets_through(&cluster, &world, &text, |src, dst, protocol, port| {
            let event = Event { protocol, port, mtls: src.pod.is_some(), ..Event::default() };
            protocol != 6 || linkerd_decides(&resources, src, dst, &event).unwrap_or(true)
        })?;
    }
}

const PODS: &str = "apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: web}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {serviceAccountName: db, containers: [{ports: [{name: sql, containerPort: 5432}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: agent, namespace: ops}
spec: {hostNetwork: true, serviceAccountName: web}
---
";

#[test]
fn a_cluster_with_istio_is_analysed() {
    let policies = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {'8080': {mode: PERMISSIVE}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: db, namespace: shop}
spec:
  selector: {matchLabels: {app: db}}
  rules:
    - from: [{source: {principals: ['cluster.local/ns/shop/sa/web']}}]
      to: [{operation: {ports: ['5432']}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-metrics, namespace: istio-system}
spec: {action: DENY, rules: [{from: [{source: {notNamespaces: [ops]}}], to: [{operation: {ports: ['9090']}}]}]}
";
    let lines = lines(&clean(&format!("{PODS}{policies}")));
    let rest = "UDP, SCTP, every protocol without ports";
    let told = |ports: &str| format!("{ports}{}{rest}", if ports.is_empty() { "" } else { ", " });
    let of = |src: &str, dst: &str| between(&lines, src, dst).map(str::to_owned);
    assert_eq!(of("shop/web[Pod]", "shop/db[Pod]"), Some(told("TCP/5432")));
    assert_eq!(
        of("shop/db[Pod]", "shop/web[Pod]"),
        Some(told("TCP/0-9089, TCP/9091-65535"))
    );
    // On its node's network, the agent shows no certificate, whatever its account.
    assert_eq!(of("ops/agent[Pod]", "shop/db[Pod]"), Some(told("")));
    assert_eq!(of("ops/agent[Pod]", "shop/web[Pod]"), Some(told("TCP/8080")));
    // And nobody decides about connections to it.
    assert_eq!(
        of("shop/web[Pod]", "ops/agent[Pod]").as_deref(),
        Some("every protocol and port")
    );
}

#[test]
fn what_depends_on_requests_is_possible_and_told() {
    let policy = |action: &str| {
        format!(
            "{PODS}apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: db, namespace: shop}}
spec: {{action: {action}, rules: [{{to: [{{operation: {{methods: [GET], ports: ['5432']}}}}]}}]}}
"
        )
    };
    let rest = "UDP, SCTP, every protocol without ports";
    for (action, expected) in [
        ("ALLOW", format!("TCP/5432, {rest}")),
        ("DENY", "every protocol and port".to_owned()),
        ("AUDIT", "every protocol and port".to_owned()),
    ] {
        let cluster = read(&policy(action));
        assert!(cluster.is_valid(), "{:?}", cluster.findings);
        assert_eq!(cluster.findings.len(), usize::from(action != "AUDIT"));
        let lines = lines(&cluster);
        assert_eq!(
            between(&lines, "shop/web[Pod]", "shop/db[Pod]"),
            Some(expected.as_str()),
            "{action}"
        );
    }
    let waypoint = policy("DENY").replace("spec: {action", "spec: {targetRefs: [{kind: Gateway, name: w}], action");
    let cluster = read(&waypoint);
    assert!(cluster.is_valid() && cluster.findings[0].diagnostic.message.contains("waypoint"));
    let wrong = policy("DENY").replace("methods", "method");
    assert!(!read(&wrong).is_valid());
}

#[test]
fn a_cluster_with_linkerd_is_analysed() {
    let policies = "apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: sql, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, port: sql, proxyProtocol: opaque}
---
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: metrics, namespace: shop}
spec: {podSelector: {}, port: 9090, accessPolicy: all-authenticated}
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {name: sql, namespace: shop}
spec:
  targetRef: {group: policy.linkerd.io, kind: Server, name: sql}
  requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: web}]
---
apiVersion: policy.linkerd.io/v1alpha1
kind: MeshTLSAuthentication
metadata: {name: web, namespace: shop}
spec: {identities: ['web.shop.serviceaccount.identity.linkerd.cluster.local']}
";
    let told = |policies: &str, src: &str| {
        let lines = lines(&clean(&format!("{PODS}{policies}")));
        between(&lines, src, "shop/db[Pod]").map(str::to_owned)
    };
    let rest = "UDP, SCTP, every protocol without ports";
    assert_eq!(
        told(policies, "shop/web[Pod]").as_deref(),
        Some("every protocol and port")
    );
    let but = format!("TCP/0-5431, TCP/5433-9089, TCP/9091-65535, {rest}");
    assert_eq!(told(policies, "ops/agent[Pod]"), Some(but));
    let star = policies.replace("['web.shop", "['*.ops");
    let without_sql = format!("TCP/0-5431, TCP/5433-65535, {rest}");
    assert_eq!(told(&star, "shop/web[Pod]"), Some(without_sql));
    let all = policies.replace("['web.shop", "['*.shop");
    assert_eq!(told(&all, "shop/web[Pod]").as_deref(), Some("every protocol and port"));
}
