//! Cilium output against an interpreter of Cilium's documentation, never wider than the documents.

use std::collections::BTreeMap;

use garrison_ztp::{Policy, compile, document::Mode, ir::lower};
use proptest::{prelude::*, sample::select};
use serde::Deserialize;

use crate::{
    generate::documents,
    kubernetes::{LabelSelector, endpoint, selects},
    reference::{By, Endpoint, Event, decide, denied},
};

type Labels = BTreeMap<String, String>;

// The types of cilium.io/v2, with no other field taken.

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct CiliumNetworkPolicy {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    namespace: Option<String>,
    labels: Labels,
    #[serde(rename = "annotations")]
    _annotations: Labels,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "description")]
    _description: String,
    endpoint_selector: LabelSelector,
    ingress: Option<Vec<Ingress>>,
    #[serde(default)]
    ingress_deny: Vec<Ingress>,
    egress: Option<Vec<Egress>>,
    #[serde(default)]
    egress_deny: Vec<Egress>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Ingress {
    from_endpoints: Option<Vec<LabelSelector>>,
    from_entities: Option<Vec<String>>,
    #[serde(rename = "fromCIDR")]
    from_cidr: Option<Vec<ipnet::IpNet>>,
    to_ports: Option<Vec<PortRule>>,
    icmps: Option<Vec<Icmp>>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Icmp {
    fields: Vec<IcmpField>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct IcmpField {
    family: String,
    #[serde(rename = "type")]
    kind: u16,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Fqdn {
    match_name: Option<String>,
    match_pattern: Option<String>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Layer7 {
    http: Vec<Http>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Http {
    method: Option<String>,
    host: Option<String>,
    path: Option<String>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Egress {
    to_endpoints: Option<Vec<LabelSelector>>,
    to_entities: Option<Vec<String>>,
    #[serde(rename = "toCIDR")]
    to_cidr: Option<Vec<ipnet::IpNet>>,
    #[serde(rename = "toFQDNs")]
    to_fqdns: Option<Vec<Fqdn>>,
    to_ports: Option<Vec<PortRule>>,
    icmps: Option<Vec<Icmp>>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct PortRule {
    ports: Vec<Port>,
    rules: Option<Layer7>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Port {
    port: String,
    end_port: Option<u16>,
    protocol: String,
}

struct Rule<'r> {
    endpoints: Option<&'r Vec<LabelSelector>>,
    entities: Option<&'r Vec<String>>,
    cidr: Option<&'r Vec<ipnet::IpNet>>,
    fqdns: Option<&'r Vec<Fqdn>>,
    ports: Option<&'r Vec<PortRule>>,
    icmps: Option<&'r Vec<Icmp>>,
}

impl<'r> From<&'r Ingress> for Rule<'r> {
    fn from(r: &'r Ingress) -> Self {
        Rule {
            endpoints: r.from_endpoints.as_ref(),
            entities: r.from_entities.as_ref(),
            cidr: r.from_cidr.as_ref(),
            fqdns: None,
            ports: r.to_ports.as_ref(),
            icmps: r.icmps.as_ref(),
        }
    }
}

impl<'r> From<&'r Egress> for Rule<'r> {
    fn from(r: &'r Egress) -> Self {
        Rule {
            endpoints: r.to_endpoints.as_ref(),
            entities: r.to_entities.as_ref(),
            cidr: r.to_cidr.as_ref(),
            fqdns: r.to_fqdns.as_ref(),
            ports: r.to_ports.as_ref(),
            icmps: r.icmps.as_ref(),
        }
    }
}

/// The labels of a pod's identity, with their source.
fn identity(who: &Endpoint) -> Option<Labels> {
    let pod = who.pod.as_ref()?;
    let mut labels: Labels = pod
        .labels
        .iter()
        .map(|(k, v)| (format!("k8s:{k}"), v.clone()))
        .collect();
    labels.insert("k8s:io.kubernetes.pod.namespace".to_owned(), pod.namespace.clone());
    labels.insert(
        "k8s:io.cilium.k8s.policy.serviceaccount".to_owned(),
        pod.account.clone(),
    );
    for (key, value) in &pod.namespace_labels {
        labels.insert(format!("k8s:io.cilium.k8s.namespace.labels.{key}"), value.clone());
    }
    Some(labels)
}

fn whole(expression: &str, text: &str) -> bool {
    regex::Regex::new(&format!("^(?:{expression})$"))
        .unwrap()
        .is_match(text)
}

/// Whether an HTTP rule takes the event's request. Nothing else than HTTP passes the proxy.
fn http_matches(rule: &Http, event: &Event) -> bool {
    let Some((method, host, path)) = &event.request else {
        return false;
    };
    let one = |expression: &Option<String>, text: &str| expression.as_ref().is_none_or(|e| whole(e, text));
    // A port behind the host and a query behind the path change nothing.
    let (with_port, with_query) = (format!("{host}:8443"), format!("{path}?q=/items"));
    let plain = one(&rule.method, method) && one(&rule.host, host) && one(&rule.path, path);
    let dressed = one(&rule.method, method) && one(&rule.host, &with_port) && one(&rule.path, &with_query);
    assert_eq!(plain, dressed, "{rule:?} {event:?}");
    plain
}

fn rule_matches(rule: &Rule<'_>, namespace: Option<&str>, peer: &Endpoint, event: &Event) -> bool {
    let (protocol, port) = (event.protocol, event.port);
    let kinds = usize::from(rule.endpoints.is_some())
        + usize::from(rule.entities.is_some())
        + usize::from(rule.cidr.is_some())
        + usize::from(rule.fqdns.is_some());
    assert!(kinds <= 1, "Cilium does not combine these in one rule");
    let by_peer = if let Some(endpoints) = rule.endpoints {
        identity(peer).is_some_and(|labels| {
            endpoints.iter().any(|selector| {
                let text = format!("{selector:?}");
                let says =
                    text.contains("io.kubernetes.pod.namespace") || text.contains("io.cilium.k8s.namespace.labels");
                // Without a word on the namespace, the policy's own is meant, if it has one.
                selects(selector, &labels)
                    && (says || namespace.is_none_or(|own| labels["k8s:io.kubernetes.pod.namespace"] == own))
            })
        })
    } else if let Some(entities) = rule.entities {
        entities.iter().any(|entity| match entity.as_str() {
            "all" => true,
            "world" => peer.pod.is_none(),
            "cluster" => peer.pod.is_some(),
            other => panic!("not written: {other}"),
        })
    } else if let Some(nets) = rule.cidr {
        // Addresses of pods have the pods' identity instead.
        peer.pod.is_none() && nets.iter().any(|net| net.contains(&peer.address))
    } else if let Some(names) = rule.fqdns {
        let known = event.name.as_ref().filter(|_| peer.pod.is_none());
        known.is_some_and(|known| {
            names.iter().any(|name| match (&name.match_name, &name.match_pattern) {
                (Some(name), None) => name == known,
                (None, Some(pattern)) => {
                    let expression = pattern.replace('.', "[.]").replace('*', "[-a-zA-Z0-9_]*");
                    whole(&expression, known)
                }
                other => panic!("not written: {other:?}"),
            })
        })
    } else {
        // Without a peer, ports alone would select; an empty rule selects nothing.
        rule.ports.is_some() || rule.icmps.is_some()
    };
    if let Some(icmps) = rule.icmps {
        assert!(rule.ports.is_none(), "Cilium takes ports or ICMP in a rule");
        return by_peer
            && icmps.iter().any(|icmp| {
                assert!(icmp.fields.len() <= 40, "Cilium takes 40 types");
                icmp.fields.iter().any(|field| {
                    let number = match field.family.as_str() {
                        "IPv4" => 1,
                        "IPv6" => 58,
                        other => panic!("not written: {other}"),
                    };
                    number == protocol && field.kind == port
                })
            });
    }
    by_peer
        && rule.ports.is_none_or(|rules| {
            rules
                .iter()
                .filter(|r| {
                    assert!(r.ports.len() <= 40, "Cilium takes 40 ports");
                    let single = r.ports.iter().all(|p| p.port != "0" && p.end_port.is_none());
                    assert!(r.rules.is_none() || single, "requests are seen on single ports");
                    r.rules
                        .as_ref()
                        .is_none_or(|seven| seven.http.iter().any(|http| http_matches(http, event)))
                })
                .flat_map(|r| &r.ports)
                .any(|p| {
                    let number = match p.protocol.as_str() {
                        "TCP" => 6,
                        "UDP" => 17,
                        "SCTP" => 132,
                        other => panic!("not written: {other}"),
                    };
                    let from: u16 = p.port.parse().unwrap();
                    number == protocol
                        && (from == 0 && p.end_port.is_none() || (from..=p.end_port.unwrap_or(from)).contains(&port))
                })
        })
}

pub(crate) fn passes(
    policies: &[CiliumNetworkPolicy],
    src: &Endpoint,
    dst: &Endpoint,
    protocol: u8,
    port: u16,
) -> bool {
    let event = Event {
        protocol,
        port,
        ..Event::default()
    };
    passes_event(policies, src, dst, &event)
}

pub(crate) fn passes_event(policies: &[CiliumNetworkPolicy], src: &Endpoint, dst: &Endpoint, event: &Event) -> bool {
    if src.address == dst.address {
        return true;
    }
    [(false, src, dst), (true, dst, src)]
        .into_iter()
        .all(|(ingress, governed, peer)| {
            let (Some(pod), Some(labels)) = (&governed.pod, identity(governed)) else {
                return true;
            };
            let here: Vec<_> = policies
                .iter()
                .filter(|p| p.metadata.namespace.as_ref().is_none_or(|own| *own == pod.namespace))
                .filter(|p| selects(&p.spec.endpoint_selector, &labels))
                .collect();
            let hit = |rule: Rule<'_>, p: &CiliumNetworkPolicy| {
                rule_matches(&rule, p.metadata.namespace.as_deref(), peer, event)
            };
            let (mut isolated, mut allowed) = (false, false);
            for p in here {
                let spec = &p.spec;
                if ingress {
                    if spec.ingress_deny.iter().any(|r| hit(r.into(), p)) {
                        return false;
                    }
                    isolated |= spec.ingress.is_some() || !spec.ingress_deny.is_empty();
                    allowed |= spec.ingress.iter().flatten().any(|r| hit(r.into(), p));
                } else {
                    if spec.egress_deny.iter().any(|r| hit(r.into(), p)) {
                        return false;
                    }
                    isolated |= spec.egress.is_some() || !spec.egress_deny.is_empty();
                    allowed |= spec.egress.iter().flatten().any(|r| hit(r.into(), p));
                }
            }
            !isolated || allowed
        })
}

pub(crate) fn compile_to(policies: &[Policy]) -> (Vec<CiliumNetworkPolicy>, compile::Compiled) {
    let compiled = compile::cilium(policies, |name| Some(format!("sha-of-{name}")));
    let manifests: Vec<CiliumNetworkPolicy> = compiled
        .files
        .iter()
        .flat_map(|file| {
            serde_saphyr::from_multiple::<CiliumNetworkPolicy>(&file.content)
                .unwrap_or_else(|e| panic!("{e}\n{}", file.content))
        })
        .collect();
    for manifest in &manifests {
        assert_eq!(manifest.api_version, "cilium.io/v2");
        let expected = match manifest.metadata.namespace {
            Some(_) => "CiliumNetworkPolicy",
            None => "CiliumClusterwideNetworkPolicy",
        };
        assert_eq!(manifest.kind, expected);
        assert!(manifest.metadata.name.starts_with("garrison-"));
        assert_eq!(manifest.metadata.labels["app.kubernetes.io/managed-by"], "garrison");
    }
    (manifests, compiled)
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
fn a_deny_rule_that_no_earlier_tier_overrules_is_written_as_one() {
    let text = "apiVersion: garrison.dev/v1alpha1
kind: ZeroTrustPolicy
metadata: {name: p}
spec:
  mode: enforce
  subject: {workloads: {namespace: shop, podSelector: {matchLabels: {app: db}}}}
  ingress:
    - {name: everyone, from: [{any: true}], ports: [{protocol: TCP, port: 5432}]}
    - {name: but, action: deny, from: [{podSelector: {matchLabels: {app: guest}}}]}
";
    let checked = garrison_ztp::check(text);
    assert!(checked.is_valid(), "{:?}", checked.diagnostics);
    let (_, compiled) = compile_to(&[checked.documents[0].lower(1)]);
    assert_eq!(compiled.gaps, [], "NetworkPolicy could not say this, Cilium can");
    assert_eq!(
        compiled.files[0].content,
        "# Generated by Garrison from ZeroTrustPolicy p@1. Changes here are lost.
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: garrison-p
  namespace: shop
  labels:
    app.kubernetes.io/managed-by: garrison
    garrison.dev/policy: p
  annotations:
    garrison.dev/document-sha256: sha-of-p
    garrison.dev/ingress.0: everyone (spec.ingress[0])
    garrison.dev/ingress.1: but (spec.ingress[1])
    garrison.dev/policy-version: \"1\"
spec:
  description: ZeroTrustPolicy p@1
  endpointSelector:
    matchLabels:
      \"k8s:app\": db
  ingress:
  - fromEntities:
    - all
    toPorts:
    - ports:
      - port: \"5432\"
        protocol: TCP
  ingressDeny:
  - fromEndpoints:
    - matchLabels:
        \"k8s:app\": guest
        \"k8s:io.kubernetes.pod.namespace\": shop
"
    );
}
