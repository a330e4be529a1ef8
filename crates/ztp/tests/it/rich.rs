//! Documents with requests, identities, trust and times: what sees none of that is never wider than they are.

use garrison_ztp::{Policy, check, document::*, ir::lower};
use proptest::{prelude::*, sample::select};

use crate::{
    calico, cilium, generate,
    kubernetes::{self, endpoint},
    reference::{By, Event, decide_event, denied},
};

pub(crate) fn event() -> impl Strategy<Value = Event> {
    let request = (
        select(&["GET", "POST", "DELETE", "PUT"][..]),
        select(&["shop.test", "www.shop.test", "api.shop.test", "shop.test.evil"][..]),
        select(
            &[
                "/",
                "/items",
                "/items/",
                "/items/7",
                "/a.png",
                "/cart.v1.Cart/Add",
                "/cart.v1.Cart/Drop",
            ][..],
        ),
    )
        .prop_map(|(method, host, path)| (method.to_owned(), host.to_owned(), path.to_owned()));
    let shown = prop::collection::vec(select(&[Need::Posture, Need::Time, Need::Approval][..]), 0..4);
    let person = prop::option::of(prop::collection::vec(
        select(&["sre", "dba", "guest"][..]).prop_map(str::to_owned),
        0..3,
    ));
    (
        select(&[6u8, 6, 6, 6, 17, 132, 1, 58][..]),
        select(&[0u16, 1, 8, 79, 80, 81, 82, 128, 129, 443, 444, 65535][..]),
        any::<bool>(),
        shown,
        prop::option::weighted(0.7, request),
        person,
        prop::option::of(select(
            &["api.outside.test", "a.wild.test", "wild.test", "other.test"][..],
        )),
        // Before and after what the generator's rules are valid until.
        select(&[1_790_000_000_000_000_000i64, 1_800_000_000_000_000_000][..]),
    )
        .prop_map(|(protocol, port, mtls, shown, request, person, name, time)| Event {
            protocol,
            port,
            mtls,
            shown,
            // A token travels with a request.
            person: person.filter(|_| protocol == 6 && request.is_some()),
            request: request.filter(|_| protocol == 6),
            name: name.map(str::to_owned),
            time,
        })
}

/// The documents that the target is attached for.
pub(crate) fn attached<'d>(
    documents: &'d [ZeroTrustPolicy],
    compiled: &garrison_ztp::compile::Compiled,
) -> Vec<&'d ZeroTrustPolicy> {
    documents
        .iter()
        .filter(|d| d.spec.mode == Mode::Enforce)
        .filter(|d| {
            !compiled
                .gaps
                .iter()
                .any(|gap| gap.rule == d.metadata.name && gap.reason.starts_with("the subject"))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: generate::cases(100), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_sees_connections_only_is_never_wider(
        documents in generate::rich(4),
        events in prop::collection::vec((endpoint(), endpoint(), event()), 24),
    ) {
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 1)).collect();
        let (network_policies, compiled) = kubernetes::compile_to(&lowered);
        let enforced = attached(&documents, &compiled);
        let (cilium_policies, cilium_compiled) = cilium::compile_to(&lowered);
        let cilium_enforced = attached(&documents, &cilium_compiled);
        let calico = calico::compile_to(&lowered);
        let calico_enforced = attached(&documents, &calico.compiled);
        let cilium_exact = cilium_compiled.gaps.iter().all(|gap| gap.reason.contains("the policy is in mode"));
        for (src, dst, event) in events {
            let intended = !denied(&decide_event(&enforced, &src, &dst, &event, By::Label));
            let passed = kubernetes::passes(&network_policies, &src, &dst, event.protocol, event.port);
            prop_assert!(!passed || intended, "NetworkPolicy is wider: {:?} → {:?} {:?}\n{:#?}", src, dst, event, compiled);
            let passed = calico.passes(&src, &dst, event.protocol, event.port);
            let intended = !denied(&decide_event(&calico_enforced, &src, &dst, &event, By::Label));
            prop_assert!(!passed || intended, "Calico is wider: {:?} → {:?} {:?}\n{:#?}", src, dst, event, calico.compiled);
            prop_assert!(!calico.compiled.gaps.is_empty() || passed == intended, "Calico is narrower: {:?} → {:?} {:?}", src, dst, event);
            let passed = cilium::passes_event(&cilium_policies, &src, &dst, &event);
            let intended = !denied(&decide_event(&cilium_enforced, &src, &dst, &event, By::Label));
            prop_assert!(!cilium_exact || passed == intended, "Cilium is narrower: {:?} → {:?} {:?}\n{:#?}", src, dst, event, cilium_compiled);
            prop_assert!(!passed || intended, "Cilium is wider: {:?} → {:?} {:?}\n{:#?}", src, dst, event, documents);
        }
    }

    #[test]
    fn what_is_written_is_read_again(documents in generate::rich(3)) {
        for document in &documents {
            let text = generate::text(document);
            let checked = check(&text);
            prop_assert!(checked.is_valid(), "{:?}\n{}", checked.diagnostics, text);
            prop_assert_eq!(&checked.documents[0].policy, document);
            let formatted = garrison_ztp::format(&text).unwrap();
            prop_assert_eq!(&check(&formatted).documents[0].policy, document);
            prop_assert_eq!(garrison_ztp::format(&formatted).unwrap(), formatted);
        }
    }
}

const FULL: &str = r#"apiVersion: garrison.dev/v1alpha1
kind: ClusterZeroTrustPolicy
metadata: {name: ledger}
spec:
  mode: stage
  tier: 50
  owner: finance-platform
  reason: the ledger is written by the booking service only
  ticket: CHG-1042
  requires: restricted
  trustLevels:
    privileged: {needs: [identity, mtls, approval]}
  groups:
    booking: {serviceAccounts: [booking], namespaceSelector: {matchLabels: {team: finance}}, cidrs: [10.0.1.0/24]}
    partners: {spiffeIds: ["spiffe://partner.example/ns/edge/*"]}
    both: {groups: [booking, partners]}
  subject:
    workloads:
      namespaceSelector: {matchLabels: {team: finance}}
      podSelector: {matchLabels: {app: ledger}}
      serviceAccounts: [ledger]
  ingress:
    - name: book
      from: [{group: both}]
      ports: [{protocol: TCP, port: 8443}]
      http: [{methods: [POST], hosts: ["ledger.finance.test"], paths: ["/entries", "/entries/*"]}]
      grpc: [{service: ledger.v1.Ledger, methods: [Append]}]
      requires: trusted
    - name: audit
      from: [{iamGroups: [auditors]}]
      ports: [{protocol: TCP, port: 8443}]
      http: [{methods: [GET]}]
      requires: privileged
      validUntil: "2026-12-31T00:00:00Z"
    - name: ping
      from: [{any: true}]
      ports: [{protocol: ICMP, icmpType: 8, icmpv6Type: 128}]
  egress:
    - name: rates
      to: [{fqdns: [rates.example.com, "*.central-bank.example"]}]
      ports: [{protocol: TCP, port: 443}]
    - name: vault
      to: [{hosts: [vault-1]}, {tags: {role: vault}}]
      ports: [{protocol: TCP, port: 8200}]
"#;

#[test]
fn everything_the_language_has_is_read() {
    let checked = check(FULL);
    assert!(checked.is_valid(), "{:#?}", checked.diagnostics);
    let policy = checked.documents[0].lower(1);
    let rules = policy.ingress.as_ref().unwrap();
    assert_eq!(rules[0].condition.needs.len(), 2, "trusted is more than restricted");
    assert_eq!(rules[0].condition.requests.as_ref().unwrap().boxes.len(), 2);
    assert_eq!(rules[1].condition.needs.len(), 3, "privileged as the document has it");
    assert_eq!(rules[2].services.to_string(), "ICMP type 8, ICMPv6 type 128");
    let (now, next) = garrison_ztp::ir::at(&[policy], 1_790_000_000_000_000_000);
    assert_eq!(now[0].ingress.as_ref().unwrap().len(), 3);
    let (later, never) = garrison_ztp::ir::at(&now, next.unwrap());
    assert_eq!(
        (later[0].ingress.as_ref().unwrap().len(), never),
        (3, None),
        "the bound was resolved before"
    );
}

#[test]
fn mistakes_in_what_is_new_are_told_at_their_place() {
    for (from, to, field) in [
        ("kind: Cluster", "kind: ", "spec.subject.workloads.namespaceSelector"),
        (
            "privileged: {needs: [identity, mtls, approval]}",
            "privileged: {needs: [approval]}",
            "spec.trustLevels",
        ),
        (
            "both: {groups: [booking, partners]}",
            "both: {groups: [booking, other]}\n    other: {groups: [both]}",
            "spec.groups.both.groups",
        ),
        (
            "both: {groups: [booking, partners]}",
            "both: {groups: [booking, nobody]}",
            "spec.groups.both.groups[1]",
        ),
        (
            "paths: [\"/entries\"",
            "paths: [\"entries\"",
            "spec.ingress[0].http[0].paths[0]",
        ),
        (
            "paths: [\"/entries\"",
            "paths: [\"/a*b\"",
            "spec.ingress[0].http[0].paths[0]",
        ),
        (
            "methods: [POST]",
            "methods: [post]",
            "spec.ingress[0].http[0].methods[0]",
        ),
        (
            "hosts: [\"ledger",
            "hosts: [\"Ledger",
            "spec.ingress[0].http[0].hosts[0]",
        ),
        (
            "service: ledger.v1.Ledger",
            "service: /ledger",
            "spec.ingress[0].grpc[0].service",
        ),
        (
            "\"2026-12-31T00:00:00Z\"",
            "\"31.12.2026\"",
            "spec.ingress[1].validUntil",
        ),
        (
            "protocol: ICMP, icmpType: 8",
            "protocol: TCP, icmpType: 8",
            "spec.ingress[2].ports[0]",
        ),
        ("icmpType: 8", "icmpType: 256", "spec.ingress[2].ports[0].icmpType"),
        ("requires: privileged", "requires: root", "spec.ingress[1].requires"),
        (
            "name: book\n",
            "name: book\n      action: deny\n",
            "spec.ingress[0].requires",
        ),
        (
            "fqdns: [rates.example.com",
            "fqdns: [\"*\"",
            "spec.egress[0].to[0].fqdns[0]",
        ),
        (
            "from: [{iamGroups: [auditors]}]",
            "from: [{fqdns: [a.example.com]}]",
            "spec.ingress[1].from[0].fqdns",
        ),
        (
            "to: [{hosts: [vault-1]}",
            "to: [{iamGroups: [ops]}",
            "spec.egress[1].to[0].iamGroups",
        ),
        (
            "spiffe://partner.example/ns/edge/*",
            "spiffe://partner.example",
            "spec.groups.partners.spiffeIds[0]",
        ),
        (
            "port: 8443}]\n      http: [{methods: [GET]}]",
            "port: 8443}, {protocol: UDP}]\n      http: [{methods: [GET]}]",
            "spec.ingress[1].ports",
        ),
        ("http: [{methods: [GET]}]", "http: [{}]", "spec.ingress[1].http[0]"),
        ("mode: stage", "mode: staged", "spec.mode"),
    ] {
        let text = FULL.replacen(from, to, 1);
        assert_ne!(text, FULL, "{from}");
        let checked = check(&text);
        let fields: Vec<&str> = checked.errors().map(|d| d.field.as_str()).collect();
        assert_eq!(fields, [field], "{to}: {:#?}", checked.diagnostics);
    }
}

fn policies(text: &str) -> Vec<Policy> {
    let checked = check(text);
    assert!(checked.is_valid(), "{:#?}", checked.diagnostics);
    checked.documents.iter().map(|d| d.lower(0)).collect()
}

fn policy(name: &str, tier: u16, ingress: &str) -> String {
    format!(
        "apiVersion: garrison.dev/v1alpha1
kind: ZeroTrustPolicy
metadata: {{name: {name}}}
spec:
  mode: enforce
  tier: {tier}
  subject: {{workloads: {{namespace: shop, podSelector: {{matchLabels: {{app: db}}}}}}}}
  ingress:
{ingress}---
"
    )
}

#[test]
fn rules_that_cover_and_contradict_each_other_are_found_by_exact_sets() {
    let all = policies(
        &[
            policy(
                "base",
                10,
                "  - {name: a, from: [{podSelector: {matchLabels: {env: x}}}], ports: [{protocol: TCP, port: 1, endPort: 99}]}
  - {name: b, action: deny, from: [{podSelector: {matchExpressions: [{key: env, operator: NotIn, values: [x]}]}}], ports: [{protocol: TCP, port: 1, endPort: 99}]}
",
            ),
            policy(
                "later",
                20,
                "  - {name: union, from: [{podSelector: {}}], ports: [{protocol: TCP, port: 80}]}
  - {name: part, action: deny, from: [{podSelector: {matchLabels: {env: x}}}], ports: [{protocol: TCP, port: 80, endPort: 200}]}
  - {name: get, from: [{any: true}], ports: [{protocol: TCP, port: 300}], http: [{methods: [GET], paths: [\"/a/*\"]}]}
  - {name: get-1, from: [{any: true}], ports: [{protocol: TCP, port: 300}], http: [{methods: [GET], paths: [\"/a/b*\"]}], requires: trusted}
  - {name: read, from: [{any: true}], ports: [{protocol: TCP, port: 300}], http: [{methods: [GET, HEAD], paths: [\"/a/c\"]}]}
",
            ),
        ]
        .concat()
        .replace("\\\"", "\""),
    );
    let found = garrison_ztp::overlaps(&all);
    assert_eq!(found.unsearched, 0);
    let told: Vec<(&str, &str)> = found.found.iter().map(|o| (o.code.as_str(), o.rule.as_str())).collect();
    assert_eq!(
        told,
        [
            // No rule of the first tier covers it alone.
            ("GAR-POLICY-0108", "union"),
            ("GAR-POLICY-0109", "part"),
            ("GAR-POLICY-0102", "get-1"),
        ]
    );
    assert_eq!(found.found[0].others, ["base/a", "base/b"]);
}
