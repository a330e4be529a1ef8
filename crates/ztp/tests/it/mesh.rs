//! Istio and Linkerd output against readings of their documentation: of TCP that reaches a subject, never wider than the
//! documents.

use std::collections::BTreeMap;

use garrison_ztp::{
    Policy,
    compile::{self, Compiled, Issuer, IstioOptions},
    document::{ZeroTrustPolicy, *},
    ir::lower,
    istio::{self, AuthorizationPolicy, Decision, Http, Request},
};
use proptest::prelude::*;
use serde_json::Value;

use crate::{
    generate::{self, rich},
    kubernetes::endpoint,
    reference::{By, Endpoint, Event, Side, decide_event},
    rich::{attached, event},
};

const ISSUER: &str = "https://iam.test";

pub(crate) fn documents_of(compiled: &Compiled) -> Vec<Value> {
    compiled
        .files
        .iter()
        .flat_map(|file| file.content.split("---\n"))
        .map(|text| serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{e}\n{text}")))
        .collect()
}

/// Whether what every gap is about leaves the direction and protocol that are looked at here.
fn exact(compiled: &Compiled) -> bool {
    compiled.gaps.iter().all(|gap| {
        [
            "mode observe",
            "mode stage",
            "decides at the destination",
            "decides about TCP only",
            "no pod has them",
        ]
        .iter()
        .any(|said| gap.reason.contains(said))
    })
}

fn equal_labels(selector: &Value, labels: &BTreeMap<String, String>) -> bool {
    let wanted = selector["matchLabels"].as_object();
    wanted.is_none_or(|w| w.iter().all(|(k, v)| labels.get(k).map(String::as_str) == v.as_str()))
}

/// A connection as a sidecar sees it.
fn request(src: &Endpoint, dst: &Endpoint, event: &Event) -> Request {
    let principal = match &src.pod {
        Some(pod) => format!("spiffe://cluster.local/ns/{}/sa/{}", pod.namespace, pod.account),
        None => "spiffe://outside.test/somebody".to_owned(),
    };
    let claims = event.person.as_ref().map(|groups| {
        BTreeMap::from([
            (vec!["iss".to_owned()], vec![ISSUER.to_owned()]),
            (vec!["sub".to_owned()], vec!["somebody".to_owned()]),
            (vec!["groups".to_owned()], groups.clone()),
        ])
    });
    Request {
        principal: event.mtls.then_some(principal),
        source_ip: Some(src.address),
        remote_ip: Some(src.address),
        destination_ip: Some(dst.address),
        port: event.port,
        http: event.request.clone().map(|(method, host, path)| Http {
            method,
            host,
            path,
            headers: BTreeMap::new(),
            claims: claims.unwrap_or_default(),
        }),
        ..Request::default()
    }
}

/// Whether Istio lets it reach its destination.
pub(crate) fn istio_passes(
    policies: &[AuthorizationPolicy],
    others: &[Value],
    src: &Endpoint,
    dst: &Endpoint,
    event: &Event,
) -> bool {
    let Some(pod) = &dst.pod else { return true };
    if src.address == dst.address {
        return true;
    }
    let strict = others.iter().any(|resource| {
        resource["kind"] == "PeerAuthentication"
            && resource["metadata"]["namespace"] == pod.namespace.as_str()
            && equal_labels(&resource["spec"]["selector"], &pod.labels)
            && resource["spec"]["mtls"]["mode"] == "STRICT"
    });
    if strict && !event.mtls {
        return false;
    }
    let mut request = request(src, dst, event);
    // A token counts where somebody says who may sign it; elsewhere it is not looked at.
    let tokens = others.iter().any(|resource| {
        resource["kind"] == "RequestAuthentication"
            && resource["metadata"]["namespace"] == pod.namespace.as_str()
            && equal_labels(&resource["spec"]["selector"], &pod.labels)
            && resource["spec"]["jwtRules"][0]["issuer"] == ISSUER
    });
    if let Some(http) = request.http.as_mut().filter(|_| !tokens) {
        http.claims.clear();
    }
    let decision = istio::decide(policies, "istio-system", &pod.namespace, &pod.labels, &request);
    matches!(decision, Decision::Allowed(_))
}

/// Whether Linkerd lets it reach its destination, if its pod has the annotation that the output asks for.
fn linkerd_passes(resources: &[Value], src: &Endpoint, dst: &Endpoint, event: &Event) -> bool {
    linkerd_decides(resources, src, dst, event).unwrap_or(false)
}

/// What a Server decides about it; `None` when none is for its port.
pub(crate) fn linkerd_decides(resources: &[Value], src: &Endpoint, dst: &Endpoint, event: &Event) -> Option<bool> {
    let Some(pod) = &dst.pod else { return Some(true) };
    if src.address == dst.address {
        return Some(true);
    }
    let in_namespace = |kind: &str| {
        let kind = kind.to_owned();
        resources
            .iter()
            .filter(move |r| r["kind"] == kind.as_str() && r["metadata"]["namespace"] == pod.namespace.as_str())
    };
    let servers: Vec<&Value> = in_namespace("Server")
        .filter(|server| {
            let selector: crate::kubernetes::LabelSelector =
                serde_json::from_value(server["spec"]["podSelector"].clone()).unwrap();
            server["spec"]["port"] == event.port && crate::kubernetes::selects(&selector, &pod.labels)
        })
        .collect();
    assert!(servers.len() <= 1, "two servers have one port of a pod: {servers:?}");
    let server = servers.first()?;
    let held = |reference: &Value| {
        let kind = reference["kind"].as_str().unwrap();
        let found = in_namespace(kind)
            .find(|r| r["metadata"]["name"] == reference["name"])
            .unwrap_or_else(|| panic!("nothing is called {reference}"));
        let spec = &found["spec"];
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        match kind {
            "NetworkAuthentication" => list(&spec["networks"]).iter().any(|network| {
                let net: ipnet::IpNet = network["cidr"].as_str().unwrap().parse().unwrap();
                net.contains(&src.address)
            }),
            "MeshTLSAuthentication" => {
                assert_ne!(
                    spec["identities"].is_null(),
                    spec["identityRefs"].is_null(),
                    "the schema takes one"
                );
                event.mtls
                    && (list(&spec["identities"]).iter().any(|id| {
                        let id = id.as_str().unwrap();
                        id == "*"
                            || src.pod.as_ref().is_some_and(|pod| {
                                let own = format!("{}.{}.serviceaccount.identity", pod.account, pod.namespace);
                                let own = format!("{own}.linkerd.cluster.local");
                                id == own || id.strip_prefix('*').is_some_and(|end| own.ends_with(end))
                            })
                    }) || list(&spec["identityRefs"]).iter().any(|reference| {
                        src.pod
                            .as_ref()
                            .is_some_and(|pod| match reference["kind"].as_str().unwrap() {
                                "Namespace" => reference["name"] == pod.namespace.as_str(),
                                "ServiceAccount" => {
                                    reference["name"] == pod.account.as_str()
                                        && reference["namespace"] == pod.namespace.as_str()
                                }
                                other => panic!("not written: {other}"),
                            })
                    }))
            }
            other => panic!("not written: {other}"),
        }
    };
    let let_in = in_namespace("AuthorizationPolicy")
        .filter(|policy| policy["spec"]["targetRef"]["name"] == server["metadata"]["name"])
        .any(|policy| {
            policy["spec"]["requiredAuthenticationRefs"]
                .as_array()
                .unwrap()
                .iter()
                .all(held)
        });
    Some(let_in)
}

fn intended(documents: &[&ZeroTrustPolicy], src: &Endpoint, dst: &Endpoint, event: &Event) -> Side {
    decide_event(documents, src, dst, event, By::Label).1
}

/// Nothing listens on port 0, which neither mesh can name.
fn seen_by_a_mesh(event: &Event) -> bool {
    event.protocol == 6 && event.port != 0
}

/// Options with an issuer, so that people are known.
pub(crate) fn options() -> IstioOptions {
    IstioOptions {
        issuer: Some(Issuer {
            issuer: ISSUER.to_owned(),
            jwks_uri: format!("{ISSUER}/keys"),
        }),
        ..IstioOptions::default()
    }
}

/// Documents that meshes can say more of: pods by account and namespace only.
pub(crate) fn by_account() -> impl Strategy<Value = Vec<ZeroTrustPolicy>> {
    rich(3).prop_map(|mut documents| {
        for document in &mut documents {
            let spec = &mut document.spec;
            spec.mode = Mode::Enforce;
            for rule in spec.ingress.iter_mut().flatten() {
                for peer in &mut rule.from {
                    if peer.pod_selector.is_some() || peer.namespace_selector.is_some() {
                        *peer = Peer {
                            service_accounts: vec!["web".to_owned()],
                            ..Peer::default()
                        };
                    }
                }
            }
            if let Some(workloads) = &mut spec.subject.workloads {
                workloads.service_accounts.clear();
                if let Some(selector) = &mut workloads.pod_selector {
                    selector.match_expressions.retain(|r| r.operator == LabelOperator::In);
                }
            }
        }
        documents
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: generate::cases(100), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn istio_and_linkerd_are_never_wider_and_equal_without_gaps(
        documents in prop_oneof![rich(4), by_account()],
        events in prop::collection::vec((endpoint(), endpoint(), event()), 24),
    ) {
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 1)).collect();
        let sidecars = compile::istio_with(&lowered, |_| None, &options());
        let ambient = compile::istio_ambient(&lowered, |_| None);
        for (name, compiled) in [("sidecars", &sidecars), ("ambient", &ambient)] {
            let text: Vec<&str> = compiled.files.iter().map(|f| f.content.as_str()).collect();
            let policies = istio::read(&text.join("---\n")).unwrap();
            let others = documents_of(compiled);
            let enforced = attached(&documents, compiled);
            let exact = exact(compiled);
            for (src, dst, event) in events.iter().filter(|(_, _, event)| seen_by_a_mesh(event)) {
                let intended = !matches!(intended(&enforced, src, dst, event), Side::Decided(_, _, false));
                let mut seen = event.clone();
                if name == "ambient" {
                    seen.request = None;
                }
                let passed = istio_passes(&policies, &others, src, dst, &seen);
                prop_assert!(!passed || intended, "{} is wider: {:?} → {:?} {:?}\n{:#?}", name, src, dst, event, compiled);
                prop_assert!(!exact || passed == intended, "{} is narrower without a gap: {:?} → {:?} {:?}\n{:#?}", name, src, dst, event, compiled);
            }
        }
        let compiled = compile::linkerd(&lowered, |_| None);
        let resources = documents_of(&compiled);
        let enforced = attached(&documents, &compiled);
        for (src, dst, event) in events.iter().filter(|(_, _, event)| seen_by_a_mesh(event)) {
            let side = intended(&enforced, src, dst, event);
            if side == Side::Silent {
                // Nothing governs the pod, so nothing asks for its annotation.
                continue;
            }
            let intended = matches!(side, Side::Decided(_, _, true));
            let passed = linkerd_passes(&resources, src, dst, event);
            prop_assert!(!passed || intended, "Linkerd is wider: {:?} → {:?} {:?}\n{:#?}", src, dst, event, compiled);
            prop_assert!(!exact(&compiled) || passed == intended, "Linkerd is narrower without a gap: {:?} → {:?} {:?}\n{:#?}", src, dst, event, compiled);
        }
    }
}

#[test]
fn a_policy_of_identities_and_requests_becomes_readable_istio() {
    let text = "apiVersion: garrison.dev/v1alpha1
kind: ZeroTrustPolicy
metadata: {name: ledger}
spec:
  mode: enforce
  subject: {workloads: {namespace: finance, podSelector: {matchLabels: {app: ledger}}}}
  requires: trusted
  ingress:
    - name: book
      from: [{spiffeIds: ['spiffe://cluster.local/ns/finance/sa/booking']}]
      ports: [{protocol: TCP, port: 8443}]
      http: [{methods: [POST], paths: ['/entries/*']}]
    - {name: no-admin, action: deny, from: [{any: true}], ports: [{protocol: TCP, port: 9000}]}
";
    let checked = garrison_ztp::check(text);
    assert!(checked.is_valid(), "{:?}", checked.diagnostics);
    let compiled = compile::istio(&[checked.documents[0].lower(3)], |_| None);
    let reasons: Vec<&str> = compiled.gaps.iter().map(|g| g.reason.as_str()).collect();
    assert_eq!(reasons, ["Istio decides about TCP only: other protocols pass by it"]);
    let kinds: Vec<String> = documents_of(&compiled)
        .iter()
        .map(|d| {
            format!(
                "{} {}",
                d["kind"].as_str().unwrap(),
                d["spec"]["action"].as_str().unwrap_or("-")
            )
        })
        .collect();
    assert_eq!(
        kinds,
        [
            "AuthorizationPolicy ALLOW",
            "AuthorizationPolicy DENY",
            "PeerAuthentication -"
        ]
    );
    let allow = &documents_of(&compiled)[0]["spec"]["rules"][0];
    assert_eq!(
        allow["from"][0]["source"]["principals"][0],
        "cluster.local/ns/finance/sa/booking"
    );
    assert_eq!(allow["to"][0]["operation"]["paths"][0], "/entries/*");
    assert!(
        compiled.files[0]
            .content
            .starts_with("# Generated by Garrison from ZeroTrustPolicy ledger@3.")
    );
}

/// Found by ten thousand random sets: who comes from another mesh has an identity, and is no pod of this one.
#[test]
fn every_pod_is_not_everyone_with_an_identity() {
    let text = "apiVersion: garrison.dev/v1alpha1
kind: ZeroTrustPolicy
metadata: {name: open}
spec:
  mode: enforce
  subject: {workloads: {namespace: blue}}
  ingress:
    - {name: pods, from: [{namespaceSelector: {}}], ports: [{protocol: TCP, port: 80}]}
";
    let lowered = [garrison_ztp::check(text).documents[0].lower(1)];
    let istio = documents_of(&compile::istio(&lowered, |_| None));
    let principals = &istio[0]["spec"]["rules"][0]["from"][0]["source"]["principals"];
    assert_eq!(*principals, serde_json::json!(["cluster.local/ns/*"]));
    let linkerd = documents_of(&compile::linkerd(&lowered, |_| None));
    let tls = linkerd.iter().find(|r| r["kind"] == "MeshTLSAuthentication").unwrap();
    assert_eq!(
        tls["spec"]["identities"],
        serde_json::json!(["*.serviceaccount.identity.linkerd.cluster.local"])
    );
}
