//! Policies of others as documents: what those mean, against what the policies mean.

use std::collections::BTreeMap;

use garrison_ztp::{
    check,
    cluster::{Imported, documents},
    document::Mode,
    istio,
    reach::diff,
};
use proptest::prelude::*;

use crate::{
    cluster::{manifests, read},
    generate,
    reference::Endpoint,
};

const PODS: &str = "\
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: red}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: bank, labels: {team: blue}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web, tier: front}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: ledger, namespace: bank, labels: {app: ledger}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: teller, namespace: bank, labels: {app: teller}}}
";

pub(crate) fn enforced(imported: &Imported) -> String {
    let mut text = String::new();
    for document in &imported.documents {
        let mut document = document.clone();
        document.spec.mode = Mode::Enforce;
        let one = document.text();
        let checked = check(&one);
        assert!(checked.is_valid(), "{one}\n{:?}", checked.diagnostics);
        text.push_str(&format!("---\n{one}"));
    }
    text
}

/// Nothing is left out, and the documents mean the same.
fn same(policies: &str, pods: &str) -> Imported {
    let before = read(&format!("{pods}{policies}"));
    assert!(before.is_valid(), "{:?}", before.findings);
    let imported = documents(&before, "istio-system").unwrap();
    let text = enforced(&imported);
    let after = read(&format!("{pods}{text}"));
    assert!(after.is_valid(), "{:?}\n{text}", after.findings);
    let changes = diff(&before.program, &after.program, true);
    assert!(
        changes.is_empty(),
        "{changes:#?}\n{policies}\nbecame\n{text}\nleft out: {:?}",
        imported.left_out
    );
    imported
}

#[test]
fn network_policies_become_documents_that_mean_the_same() {
    let imported = same(
        "---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db, namespace: shop}, spec: {podSelector: {matchLabels: {app: db}},
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}, {namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [teller]}]}}], ports: [{port: 5432}]},
            {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{protocol: UDP, port: 1000, endPort: 2000}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: quiet, namespace: bank}, spec: {podSelector: {}, policyTypes: [Ingress, Egress]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: teller, namespace: bank}, spec: {podSelector: {matchLabels: {app: teller}}, egress: [{to: [{podSelector: {}}]}]}}
",
        PODS,
    );
    assert_eq!(imported.left_out, Vec::<String>::new());
    let names: Vec<&str> = imported.documents.iter().map(|d| d.metadata.name.as_str()).collect();
    assert_eq!(names, ["shop-db", "bank-quiet", "bank-teller"]);
    let text = imported.documents[0].text();
    assert!(
        text.contains("NetworkPolicy shop/db") && text.contains("app: web"),
        "{text}"
    );
}

#[test]
fn tiers_and_orders_of_others_become_tiers() {
    same(
        "---
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: first}, spec: {tier: Admin, priority: 10,
  subject: {namespaces: {matchLabels: {team: red}}},
  ingress: [{name: a, action: Deny, from: [{pods: {namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchLabels: {app: teller}}}}]},
            {name: b, action: Accept, from: [{namespaces: {matchLabels: {team: blue}}}]},
            {name: c, action: Deny, from: [{namespaces: {}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: ledger, namespace: bank}, spec: {podSelector: {matchLabels: {app: ledger}}, ingress: [{from: [{podSelector: {}}]}]}}
",
        PODS,
    );
    same(
        "---
{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: a, namespace: shop}, spec: {order: 10, selector: app == 'db', types: [Ingress],
  ingress: [{action: Allow, protocol: TCP, source: {selector: app == 'web'}, destination: {ports: [80]}}, {action: Deny, protocol: TCP, destination: {ports: ['80:90']}}, {action: Allow, protocol: TCP}]}}
---
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: b}, spec: {order: 20, selector: has(tier), types: [Egress], egress: [{action: Deny, destination: {nets: [10.0.0.0/8]}}, {action: Allow}]}}
",
        PODS,
    );
    same(
        "---
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: db, namespace: shop}, spec: {endpointSelector: {matchLabels: {app: db}},
  ingress: [{fromEndpoints: [{matchLabels: {app: web}}], toPorts: [{ports: [{port: '5432', protocol: TCP}]}]}],
  ingressDeny: [{fromEndpoints: [{matchLabels: {tier: front}}], toPorts: [{ports: [{port: '5433', protocol: TCP}]}]}]}}
",
        PODS,
    );
}

#[test]
fn what_cannot_be_said_is_told_and_never_allowed() {
    let before = read(&format!(
        "{PODS}---
{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: db, namespace: shop}}, spec: {{endpointSelector: {{matchLabels: {{app: db}}}}, ingress: [{{fromEntities: [world]}}, {{fromEndpoints: [{{matchLabels: {{app: web}}}}]}}]}}}}
---
{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: web, namespace: shop}}, spec: {{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{ports: [{{port: http}}]}}]}}}}
"
    ));
    let imported = documents(&before, "istio-system").unwrap();
    let said = imported.left_out.join("\n");
    assert!(
        said.contains("CiliumNetworkPolicy shop/db") && said.contains("outside the cluster"),
        "{said}"
    );
    assert!(
        said.contains("http") && said.contains("NetworkPolicy shop/web"),
        "{said}"
    );
    let after = read(&format!("{PODS}{}", enforced(&imported)));
    let gained: Vec<_> = diff(&before.program, &after.program, true)
        .into_iter()
        .filter(|c| !c.gained.is_empty())
        .collect();
    assert!(gained.is_empty(), "{gained:#?}");
}

#[test]
fn policies_are_read_as_a_cluster_gives_them_back() {
    let text = format!(
        "{PODS}---
apiVersion: v1
kind: List
items:
- apiVersion: garrison.dev/v1beta1
  kind: ZeroTrustPolicy
  metadata: {{name: db, namespace: shop, uid: a, resourceVersion: '3', generation: 2, annotations: {{a: b}}}}
  spec:
    mode: enforce
    accountability: {{owner: shop}}
    subject: {{workloads: {{podSelector: {{matchLabels: {{app: db}}}}}}}}
    ingress: [{{name: web, from: [{{podSelector: {{matchLabels: {{app: web}}}}}}]}}]
  status: {{objects: 1}}
"
    );
    let cluster = read(&text);
    assert!(cluster.is_valid(), "{:?}", cluster.findings);
    let without = read(PODS);
    let lost: Vec<_> = diff(&without.program, &cluster.program, true);
    // Everybody but the web server lost the database, and it alone.
    assert!(
        !lost.is_empty() && lost.iter().all(|change| change.gained.is_empty()),
        "{lost:#?}"
    );
    let shown = format!("{lost:?}");
    assert!(shown.contains("db") && shown.contains("teller"), "{shown}");
    let wrong = read(&text.replace("owner: shop", "boss: shop"));
    let found = &wrong.findings[0].diagnostic;
    assert_eq!(found.field, "spec.accountability.boss");
    assert!(!wrong.is_valid());
}

#[test]
fn authorization_policies_become_documents() {
    let policies = istio::read(
        "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/bank/sa/teller]}}, {source: {ipBlocks: [10.0.0.0/8]}}]
    to: [{operation: {methods: [GET], paths: [/items/*], ports: ['8080']}}]
  - from: [{source: {notNamespaces: [bank]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no, namespace: istio-system}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/admin]}}], when: [{key: 'request.headers[x]', values: [y]}]}]}
",
    )
    .unwrap();
    let imported = istio::documents(&policies, "istio-system");
    let text = enforced(&imported);
    for said in [
        "spiffe://cluster.local/ns/bank/sa/teller",
        "requires: trusted",
        "/items/*",
        "kind: ClusterZeroTrustPolicy",
        "/admin",
    ] {
        assert!(text.contains(said), "{said}\n{text}");
    }
    assert_eq!(imported.left_out.len(), 2, "{:?}", imported.left_out);
    let tiers: BTreeMap<&str, u16> = imported
        .documents
        .iter()
        .map(|d| (d.metadata.name.as_str(), d.spec.tier))
        .collect();
    assert_eq!(tiers["istio-system-no"], 100);
    assert_eq!(tiers["shop-web"], 101);
    assert_eq!(tiers["istio-system-no-rest"], 1_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: generate::cases(80), failure_persistence: None, ..ProptestConfig::default() })]

    // What is compiled for a platform comes back as documents that mean the same, or less where something was left out.
    #[test]
    fn imported_as_documents_never_wider(policies in generate::documents(true, 3), world in prop::collection::vec(crate::kubernetes::endpoint(), 2..5)) {
        round(&policies, &world)?;
    }
}

fn round(policies: &[garrison_ztp::ZeroTrustPolicy], world: &[Endpoint]) -> Result<(), TestCaseError> {
    let lowered: Vec<_> = policies
        .iter()
        .map(|policy| garrison_ztp::ir::lower(policy, 0))
        .collect();
    for compiled in [
        garrison_ztp::compile::kubernetes(&lowered, |_| None),
        garrison_ztp::compile::cilium(&lowered, |_| None),
        garrison_ztp::compile::calico(&lowered, |_| None),
    ] {
        let text: String = compiled
            .files
            .iter()
            .map(|file| format!("---\n{}", file.content))
            .collect();
        let pods = manifests(world);
        let before = read(&format!("{pods}{text}"));
        if !before.is_valid() || compiled.files.is_empty() {
            continue;
        }
        let imported = documents(&before, "istio-system").map_err(TestCaseError::fail)?;
        let after = read(&format!("{pods}{}", enforced(&imported)));
        let changes = diff(&before.program, &after.program, true);
        let wider = |change: &&garrison_ztp::reach::Change| !change.gained.is_empty();
        let outside = imported.left_out.iter().any(|said| said.contains("world outside"));
        prop_assert!(outside || !changes.iter().any(|c| wider(&c)), "{:#?}\n{text}", changes);
        if imported.left_out.is_empty() {
            prop_assert!(changes.is_empty(), "{:#?}\n{text}\n{}", changes, enforced(&imported));
        }
    }
    Ok(())
}
