//! Calico output against an interpreter of Calico's documentation, equal to the documents.

use std::collections::BTreeMap;

use garrison_ztp::{Policy, compile, document::Mode, ir::lower};
use proptest::{prelude::*, sample::select};
use serde::Deserialize;

use crate::{
    generate::documents,
    kubernetes::endpoint,
    reference::{By, Endpoint, decide, denied},
};

type Labels = BTreeMap<String, String>;

// The types of projectcalico.org/v3, with no other field taken.

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Tier {
    api_version: String,
    metadata: Metadata,
    spec: TierSpec,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TierSpec {
    order: f64,
    default_action: String,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    namespace: Option<String>,
    labels: Labels,
    #[serde(default, rename = "annotations")]
    _annotations: Labels,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct NetworkPolicy {
    api_version: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Spec {
    staged_action: Option<String>,
    tier: String,
    order: f64,
    namespace_selector: Option<String>,
    selector: String,
    types: Vec<String>,
    #[serde(default)]
    ingress: Vec<Rule>,
    #[serde(default)]
    egress: Vec<Rule>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Rule {
    action: String,
    #[serde(rename = "metadata")]
    _metadata: Option<serde_json::Value>,
    protocol: Option<serde_json::Value>,
    #[serde(default)]
    source: Entity,
    #[serde(default)]
    destination: Entity,
}

#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entity {
    #[serde(default)]
    nets: Vec<ipnet::IpNet>,
    namespace_selector: Option<String>,
    selector: Option<String>,
    #[serde(default)]
    ports: Vec<serde_json::Value>,
}

/// Calico's selector language: `||`, `&&`, `!`, parentheses, `all()`, `has(k)`, `k == 'v'`, `k != 'v'`,
/// `k in {…}`, `k not in {…}`.
fn selects(expression: &str, labels: &Labels) -> bool {
    let mut rest = expression;
    let value = either(&mut rest, labels);
    assert!(rest.trim().is_empty(), "{expression}: {rest:?} is left over");
    value
}

fn eat(rest: &mut &str, token: &str) -> bool {
    *rest = rest.trim_start();
    match rest.strip_prefix(token) {
        Some(after) => {
            *rest = after;
            true
        }
        None => false,
    }
}

fn either(rest: &mut &str, labels: &Labels) -> bool {
    let mut value = both(rest, labels);
    while eat(rest, "||") {
        let right = both(rest, labels);
        value |= right;
    }
    value
}

fn both(rest: &mut &str, labels: &Labels) -> bool {
    let mut value = unary(rest, labels);
    while eat(rest, "&&") {
        let right = unary(rest, labels);
        value &= right;
    }
    value
}

fn until<'t>(rest: &mut &'t str, end: impl Fn(char) -> bool) -> &'t str {
    *rest = rest.trim_start();
    let at = rest.find(end).expect("an end");
    let (word, after) = rest.split_at(at);
    *rest = after;
    word
}

fn quoted(rest: &mut &str) -> String {
    assert!(eat(rest, "'"), "{rest}");
    let word = until(rest, |c| c == '\'').to_owned();
    assert!(eat(rest, "'"));
    word
}

fn unary(rest: &mut &str, labels: &Labels) -> bool {
    if eat(rest, "(") {
        let value = either(rest, labels);
        assert!(eat(rest, ")"));
        return value;
    }
    if eat(rest, "all()") {
        return true;
    }
    if !rest.trim_start().starts_with("!=") && eat(rest, "!") {
        return !unary(rest, labels);
    }
    if eat(rest, "has(") {
        let key = until(rest, |c| c == ')').to_owned();
        assert!(eat(rest, ")"));
        return labels.contains_key(&key);
    }
    let key = until(rest, |c| c == ' ').to_owned();
    let value = labels.get(&key);
    if eat(rest, "==") {
        return value == Some(&quoted(rest));
    }
    if eat(rest, "!=") {
        // True where the label is missing.
        return value != Some(&quoted(rest));
    }
    let inverted = eat(rest, "not");
    assert!(eat(rest, "in") && eat(rest, "{"), "{rest}");
    let mut set = Vec::new();
    loop {
        set.push(quoted(rest));
        if eat(rest, "}") {
            break;
        }
        assert!(eat(rest, ","));
    }
    value.is_some_and(|v| set.contains(v)) != inverted
}

fn entity_matches(entity: &Entity, namespace: Option<&str>, who: &Endpoint) -> bool {
    if !entity.nets.is_empty() && !entity.nets.iter().any(|net| net.contains(&who.address)) {
        return false;
    }
    if entity.selector.is_none() && entity.namespace_selector.is_none() {
        return true;
    }
    let Some(pod) = &who.pod else { return false };
    let in_namespace = match &entity.namespace_selector {
        Some(selector) => selects(selector, &pod.namespace_labels),
        // Of a policy for the whole cluster, pods of every namespace.
        None => namespace.is_none_or(|own| pod.namespace == own),
    };
    in_namespace && entity.selector.as_ref().is_none_or(|s| selects(s, &pod.labels))
}

fn rule_matches(rule: &Rule, namespace: Option<&str>, src: &Endpoint, dst: &Endpoint, protocol: u8, port: u16) -> bool {
    let number = rule.protocol.as_ref().map(|p| match p {
        serde_json::Value::String(name) => match name.as_str() {
            "TCP" => 6,
            "UDP" => 17,
            "SCTP" => 132,
            "ICMP" => 1,
            "ICMPv6" => 58,
            other => panic!("Calico has no protocol {other}"),
        },
        number => u8::try_from(number.as_u64().unwrap()).unwrap(),
    });
    let ports = &rule.destination.ports;
    assert!(rule.source.ports.is_empty());
    assert!(
        ports.is_empty() || matches!(number, Some(6 | 17 | 132)),
        "Calico refuses ports without a protocol that has them"
    );
    number.is_none_or(|n| n == protocol)
        && (ports.is_empty()
            || ports.iter().any(|p| match p {
                serde_json::Value::String(range) => {
                    let (from, to) = range.split_once(':').unwrap();
                    (from.parse::<u16>().unwrap()..=to.parse().unwrap()).contains(&port)
                }
                one => one.as_u64() == Some(port.into()),
            }))
        && entity_matches(&rule.source, namespace, src)
        && entity_matches(&rule.destination, namespace, dst)
}

/// One side. Kubernetes pods that no tier decides about have a profile that allows.
fn passes_side(
    tiers: &[Tier],
    policies: &[NetworkPolicy],
    ingress: bool,
    governed: &Endpoint,
    (src, dst): (&Endpoint, &Endpoint),
    protocol: u8,
    port: u16,
) -> bool {
    let Some(pod) = &governed.pod else { return true };
    let wanted = if ingress { "Ingress" } else { "Egress" };
    let mut ordered: Vec<&Tier> = tiers.iter().collect();
    ordered.sort_by(|a, b| a.spec.order.total_cmp(&b.spec.order));
    'tiers: for tier in ordered {
        let mut here: Vec<_> = policies
            .iter()
            .filter(|p| p.spec.tier == tier.metadata.name && p.spec.types.iter().any(|t| t == wanted))
            .filter(|p| p.metadata.namespace.as_ref().is_none_or(|own| *own == pod.namespace))
            .filter(|p| {
                let namespaces = p.spec.namespace_selector.as_ref();
                namespaces.is_none_or(|n| selects(n, &pod.namespace_labels)) && selects(&p.spec.selector, &pod.labels)
            })
            .collect();
        if here.is_empty() {
            continue;
        }
        here.sort_by(|a, b| {
            a.spec
                .order
                .total_cmp(&b.spec.order)
                .then_with(|| a.metadata.name.cmp(&b.metadata.name))
        });
        for policy in here {
            let rules = if ingress {
                &policy.spec.ingress
            } else {
                &policy.spec.egress
            };
            for rule in rules {
                if rule_matches(rule, policy.metadata.namespace.as_deref(), src, dst, protocol, port) {
                    match rule.action.as_str() {
                        "Allow" => return true,
                        "Deny" => return false,
                        "Pass" => continue 'tiers,
                        other => panic!("not written: {other}"),
                    }
                }
            }
        }
        if tier.spec.default_action == "Deny" {
            return false;
        }
    }
    true
}

#[derive(Default)]
pub(crate) struct Output {
    tiers: Vec<Tier>,
    policies: Vec<NetworkPolicy>,
    staged: Vec<NetworkPolicy>,
    pub(crate) compiled: compile::Compiled,
}

impl Output {
    /// Whether what is enforced lets a connection pass.
    pub(crate) fn passes(&self, src: &Endpoint, dst: &Endpoint, protocol: u8, port: u16) -> bool {
        self.passes_with(&self.policies, src, dst, protocol, port)
    }

    fn passes_with(&self, policies: &[NetworkPolicy], src: &Endpoint, dst: &Endpoint, protocol: u8, port: u16) -> bool {
        src.address == dst.address
            || passes_side(&self.tiers, policies, false, src, (src, dst), protocol, port)
                && passes_side(&self.tiers, policies, true, dst, (src, dst), protocol, port)
    }
}

pub(crate) fn compile_to(policies: &[Policy]) -> Output {
    let compiled = compile::calico(policies, |name| Some(format!("sha-of-{name}")));
    let mut output = Output::default();
    for file in &compiled.files {
        for text in file.content.split("---\n") {
            let kind = text.lines().find_map(|line| line.strip_prefix("kind: ")).unwrap();
            match kind {
                "Tier" => output.tiers.push(read(text)),
                "NetworkPolicy" | "GlobalNetworkPolicy" => {
                    let policy: NetworkPolicy = read(text);
                    assert_eq!(policy.metadata.namespace.is_none(), kind.starts_with("Global"));
                    output.policies.push(policy);
                }
                "StagedNetworkPolicy" | "StagedGlobalNetworkPolicy" => {
                    let policy: NetworkPolicy = read(text);
                    assert_eq!(policy.metadata.namespace.is_none(), kind.contains("Global"));
                    output.staged.push(policy);
                }
                other => panic!("not written: {other}"),
            }
        }
    }
    for policy in output.policies.iter().chain(&output.staged) {
        assert_eq!(policy.api_version, "projectcalico.org/v3");
        // Only policies for the whole cluster select namespaces.
        assert_eq!(
            policy.metadata.namespace.is_none(),
            policy.spec.namespace_selector.is_some()
        );
        assert!(policy.metadata.name.starts_with(&format!("{}.", policy.spec.tier)));
        assert_eq!(policy.metadata.labels["app.kubernetes.io/managed-by"], "garrison");
        assert!(
            output.tiers.iter().any(|t| t.metadata.name == policy.spec.tier),
            "no tier"
        );
    }
    assert!(output.tiers.iter().all(|t| t.api_version == "projectcalico.org/v3"));
    assert!(
        output
            .staged
            .iter()
            .all(|p| p.spec.staged_action.as_deref() == Some("Set"))
    );
    assert!(output.policies.iter().all(|p| p.spec.staged_action.is_none()));
    output.compiled = compiled;
    output
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> T {
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with("kind: "))
        .map(|line| format!("{line}\n"))
        .collect();
    serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

proptest! {
    // 1,200 sets of policies × 24 connections.
    #![proptest_config(ProptestConfig { cases: crate::generate::cases(1_200), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equal_always(
        documents in documents(true, 4),
        connections in prop::collection::vec(
            (endpoint(), endpoint(), select(&[6u8, 6, 17, 132, 1, 47, 58][..]), select(&[0u16, 1, 79, 80, 81, 82, 83, 443, 444, 65535][..])),
            24,
        ),
    ) {
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 7)).collect();
        let output = compile_to(&lowered);
        let enforced: Vec<_> = documents.iter().filter(|d| d.spec.mode == Mode::Enforce).collect();
        let observed: Vec<_> = documents.iter().collect();
        let unsatisfiable = |gap: &compile::Gap| gap.reason.contains("no pod has them");
        prop_assert!(output.compiled.gaps.iter().all(unsatisfiable), "{:#?}", output.compiled.gaps);
        for (src, dst, protocol, port) in connections {
            let passes = |policies: &[NetworkPolicy]| output.passes_with(policies, &src, &dst, protocol, port);
            let intended = !denied(&decide(&enforced, &src, &dst, protocol, port, By::Label));
            prop_assert_eq!(passes(&output.policies), intended, "{:?} → {:?} {}/{}\n{:#?}", src, dst, protocol, port, output.compiled);
            if output.policies.is_empty() {
                // What the staged policies alone would do.
                let intended = !denied(&decide(&observed, &src, &dst, protocol, port, By::Label));
                prop_assert_eq!(passes(&output.staged), intended);
            }
        }
    }
}

#[test]
fn output_is_readable_and_owned() {
    let checked = garrison_ztp::check(crate::documents::LAB);
    let lowered: Vec<Policy> = checked.documents.iter().map(|d| d.lower(3)).collect();
    let output = compile_to(&lowered);
    let file = output
        .compiled
        .files
        .iter()
        .find(|f| f.path == "calico/shop/database.yaml")
        .unwrap();
    let first = file.content.split("---\n").next().unwrap();
    assert_eq!(
        first,
        "# Generated by Garrison from ZeroTrustPolicy database@3. Changes here are lost.
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata:
  name: garrison-100.database-allow
  namespace: shop
  labels:
    app.kubernetes.io/managed-by: garrison
    garrison.dev/policy: database
  annotations:
    garrison.dev/document-sha256: sha-of-database
    garrison.dev/policy-version: \"3\"
spec:
  tier: garrison-100
  order: 200
  selector: app == 'database'
  types:
  - Ingress
  ingress:
  - action: Allow
    metadata:
      annotations:
        garrison.dev/field: spec.ingress[0]
        garrison.dev/rule: database/from-web
    protocol: TCP
    source:
      namespaceSelector: kubernetes.io/metadata.name == 'shop'
      selector: app == 'web'
    destination:
      ports:
      - 5432
"
    );
}
