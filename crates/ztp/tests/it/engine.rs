//! The verdict engine says what the documents say.

use garrison_ztp::{Engine, Policy, Verdict, check, document::Mode, ir::lower};
use proptest::prelude::*;

use crate::{
    generate::{connection, documents, text},
    reference::{By, Side, by_address, decide, denied},
};

fn words(engine: &Engine, side: garrison_ztp::Side) -> Side {
    match engine.entry(side) {
        None => Side::Silent,
        Some(entry) => Side::Decided(entry.policy.clone(), entry.rule.clone(), entry.allows),
    }
}

proptest! {
    // 1,500 sets of policies × 24 connections, each decided by what is enforced and by everything.
    #![proptest_config(ProptestConfig { cases: crate::generate::cases(1_500), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn engine_equals_reference(
        documents in documents(false, 5),
        connections in prop::collection::vec(connection(), 24),
    ) {
        let lowered: Vec<Policy> = documents.iter().map(|d| lower(d, 1)).collect();
        let engine = Engine::build(&lowered).unwrap();
        let enforced: Vec<_> = documents.iter().filter(|d| d.spec.mode == Mode::Enforce).collect();
        let all: Vec<_> = documents.iter().collect();
        for (src, dst, protocol, port) in connections {
            let judgement = engine.decide(src, dst, protocol, port);
            let expected = decide(&enforced, &by_address(src), &by_address(dst), protocol, port, By::Address);
            let given = (words(&engine, judgement.enforced.egress), words(&engine, judgement.enforced.ingress));
            prop_assert_eq!(&given, &expected, "{}→{} {}/{}", src, dst, protocol, port);
            prop_assert_eq!(judgement.enforced.verdict() == Verdict::Deny, denied(&expected));
            prop_assert_eq!(judgement.observed.is_some(), all.len() > enforced.len());
            if let Some(observed) = judgement.observed {
                let expected = decide(&all, &by_address(src), &by_address(dst), protocol, port, By::Address);
                prop_assert_eq!((words(&engine, observed.egress), words(&engine, observed.ingress)), expected);
            }
        }
    }

    #[test]
    fn what_is_written_is_what_is_read(documents in documents(false, 3)) {
        let file: String = documents.iter().map(|d| format!("---\n{}", text(d))).collect();
        let checked = check(&file);
        prop_assert!(documents.is_empty() || checked.is_valid(), "{:#?}\n{}", checked.diagnostics, file);
        let read: Vec<_> = checked.documents.into_iter().map(|d| d.policy).collect();
        prop_assert_eq!(read, documents);
    }

    #[test]
    fn hostile_text_ends_in_findings_not_in_a_panic(text in "[-a-z0-9:#&*!|>'\"%@{}\\[\\], \n\t]{0,200}") {
        let checked = check(&text);
        prop_assert!(checked.documents.is_empty() && !checked.is_valid());
    }
}

#[test]
fn explains_in_words() {
    let policy = check(crate::documents::LAB);
    assert!(policy.is_valid(), "{:?}", policy.diagnostics);
    let lowered: Vec<Policy> = policy.documents.iter().map(|d| d.lower(3)).collect();
    let engine = Engine::build(&lowered).unwrap();
    let explain = |src: &str, dst: &str, port| engine.explain(src.parse().unwrap(), dst.parse().unwrap(), 6, port);

    let web = explain("10.20.0.10", "10.20.0.20", 5432);
    assert_eq!(web.verdict, Verdict::Allow);
    assert_eq!(web.entry.unwrap().to_string(), "database@3 from-web");

    let client = explain("10.20.0.30", "10.20.0.20", 5432);
    assert_eq!(client.verdict, Verdict::Deny);
    assert_eq!(
        client.reason,
        "10.20.0.30 → 10.20.0.20 TCP/5432: denied: policy database@3 governs what 10.20.0.20 may receive, and no rule allows this"
    );
    assert_eq!(explain("10.20.0.30", "10.20.0.10", 443).verdict, Verdict::Allow);
    assert_eq!(explain("10.20.0.30", "10.20.0.10", 22).verdict, Verdict::Deny);
    assert_eq!(explain("10.20.0.30", "10.20.0.31", 22).verdict, Verdict::Ungoverned);
}

#[test]
fn overlap_without_bound_is_refused_before_it_takes_the_memory() {
    use std::fmt::Write as _;
    let mut text = String::from(
        "apiVersion: garrison.dev/v1alpha1\nkind: ZeroTrustPolicy\nmetadata: {name: p}\nspec:\n  subject: {cidrs: [10.0.0.0/8]}\n  ingress:\n",
    );
    for i in 0..9_000u32 {
        let peer = if i % 2 == 0 {
            "any: true".to_owned()
        } else {
            format!("cidr: 10.1.{}.{}", i / 250, i % 250)
        };
        writeln!(
            text,
            "  - {{name: r{i}, from: [{{{peer}}}], ports: [{{protocol: TCP, port: {}}}]}}",
            i + 1
        )
        .unwrap();
    }
    let checked = check(&text);
    let codes: Vec<_> = checked.errors().map(|d| d.code.as_str()).collect();
    assert_eq!(codes, ["GAR-POLICY-0013"]);
}

#[test]
fn ten_thousand_rules_are_decided() {
    use std::fmt::Write as _;
    let mut text = String::from(
        "apiVersion: garrison.dev/v1alpha1\nkind: ZeroTrustPolicy\nmetadata: {name: p}\nspec:\n  mode: enforce\n  subject: {cidrs: [10.0.0.0/8]}\n  ingress:\n",
    );
    for i in 0..10_000u32 {
        writeln!(
            text,
            "  - {{name: r{i}, from: [{{cidr: 172.16.{}.{}}}], ports: [{{protocol: TCP, port: {}}}]}}",
            i / 256,
            i % 256,
            i + 1
        )
        .unwrap();
    }
    let checked = check(&text);
    assert!(checked.is_valid(), "{:?}", checked.diagnostics);
    let engine = Engine::build(&[checked.documents[0].lower(1)]).unwrap();
    for i in [0u32, 1, 4_999, 9_999] {
        let src = format!("172.16.{}.{}", i / 256, i % 256).parse().unwrap();
        let dst = "10.1.2.3".parse().unwrap();
        assert_eq!(
            engine.decide(src, dst, 6, i as u16 + 1).enforced.verdict(),
            Verdict::Allow
        );
        assert_eq!(
            engine.decide(src, dst, 6, i as u16 + 2).enforced.verdict(),
            Verdict::Deny
        );
    }
}
