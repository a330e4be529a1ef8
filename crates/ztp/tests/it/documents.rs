//! Wrong documents: each error is found, at its place, with its code and a remedy; all of them at once.

use garrison_ztp::{Code, Limits, Version, check, check_with, version::json_schema};

/// The web server may reach the database, everyone may reach the web server, nobody else may reach either.
pub(crate) const LAB: &str = include_str!("shop.yaml");

fn with_spec(spec: &str) -> String {
    format!("apiVersion: garrison.dev/v1alpha1\nkind: ZeroTrustPolicy\nmetadata:\n  name: p\nspec:\n{spec}")
}

/// Code, field, line and column of every finding.
fn findings(text: &str) -> Vec<(String, String, u32, u32)> {
    check(text)
        .diagnostics
        .into_iter()
        .inspect(|d| assert!(!d.message.is_empty() && d.remedy.len() > 8, "{d}"))
        .map(|d| (d.code.to_string(), d.field, d.position.line, d.position.column))
        .collect()
}

#[test]
fn the_examples_of_the_documentation_are_right() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples");
    let mut policies = 0;
    for entry in std::fs::read_dir(examples).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        if text.contains("kind: ZeroTrustPolicy") {
            policies += 1;
            assert_eq!(check(&text).diagnostics, [], "{text}");
        }
    }
    assert!(policies > 0);
}

#[test]
fn the_shop_is_right() {
    let checked = check(LAB);
    assert_eq!(checked.diagnostics, []);
    assert_eq!(checked.documents.len(), 2);
}

#[test]
fn several_errors_are_found_at_once_each_at_its_place() {
    let text = with_spec(
        "  mod: enforce
  subject:
    cidrs: [10.0.0.5/24]
  ingress:
    - name: One
      from: [{group: wbe}]
    - name: two
      action: permit
      from: [{cidr: 10.0.0.0/33}]
      ports:
        - {protocol: tcp, port: 0}
        - {protocol: TCP, port: 90, endPort: 80}
",
    );
    let found = findings(&text);
    let expected = [
        ("GAR-POLICY-0003", "spec.mod", 6, 3),
        ("GAR-POLICY-0007", "spec.subject.cidrs[0]", 8, 13),
        ("GAR-POLICY-0006", "spec.ingress[0].name", 10, 13),
        ("GAR-POLICY-0009", "spec.ingress[0].from[0].group", 11, 22),
        ("GAR-POLICY-0006", "spec.ingress[1].action", 13, 15),
        ("GAR-POLICY-0007", "spec.ingress[1].from[0].cidr", 14, 21),
        ("GAR-POLICY-0006", "spec.ingress[1].ports[0].protocol", 16, 22),
        ("GAR-POLICY-0006", "spec.ingress[1].ports[0].port", 16, 33),
        ("GAR-POLICY-0006", "spec.ingress[1].ports[1].endPort", 17, 46),
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|(c, f, l, k)| ((*c).to_owned(), (*f).to_owned(), *l, *k))
        .collect();
    assert_eq!(found, expected);
    let remedies: Vec<_> = check(&text).diagnostics.into_iter().map(|d| d.remedy).collect();
    assert_eq!(remedies[0], "Did you mean `mode`?");
    assert_eq!(remedies[1], "Write 10.0.0.0/24, or 10.0.0.5/32 for the single host");
    assert_eq!(remedies[6], "Did you mean `TCP`?");
}

#[test]
fn one_broken_document_does_not_hide_the_others() {
    let file = format!(
        "{LAB}---\na: [1\n---\n{}",
        with_spec("  subject: {cidrs: [10.0.0.1]}\n")
    );
    let checked = check(&file);
    assert_eq!(checked.documents.len(), 2);
    let codes: Vec<_> = checked.errors().map(|d| (d.code, d.position.line > 60)).collect();
    assert_eq!(
        codes,
        [(Code::Syntax, false), (Code::Contradiction, false)].map(|(c, _)| (c, codes[0].1))
    );
    let lines: Vec<_> = checked.errors().map(|d| d.position.line).collect();
    let first = LAB.lines().count() as u32;
    assert!(lines[0] > first && lines[1] > lines[0], "{lines:?} after {first}");
}

#[test]
fn every_kind_of_mistake_has_its_code() {
    let subject = "  subject: {cidrs: [10.0.0.1]}\n";
    let cases: &[(Code, String)] = &[
        (Code::Syntax, "a: b: c".to_owned()),
        (Code::Syntax, "a: \"unclosed".to_owned()),
        (Code::Syntax, "a: *nowhere".to_owned()),
        (Code::MissingField, String::new()),
        (Code::MissingField, "# nothing\n---\n".to_owned()),
        (
            Code::MissingField,
            "apiVersion: garrison.dev/v1alpha1\nkind: ZeroTrustPolicy\nmetadata: {name: p}\n".to_owned(),
        ),
        (Code::WrongType, "- a\n- b\n".to_owned()),
        (
            Code::WrongType,
            with_spec(&format!("{subject}  owner: 12\n  ingress: []\n")),
        ),
        (Code::WrongType, with_spec(&format!("{subject}  ingress: {{}}\n"))),
        (
            Code::WrongType,
            with_spec("  subject: {cidrs: 10.0.0.1}\n  ingress: []\n"),
        ),
        (Code::UnknownKind, LAB.replace("ZeroTrustPolicy", "NetworkPolicy")),
        (Code::UnknownKind, LAB.replace("v1alpha1", "v9")),
        (
            Code::BadValue,
            with_spec(&format!("{subject}  tier: 70000\n  ingress: []\n")),
        ),
        (
            Code::BadValue,
            with_spec(&format!(
                "{subject}  ingress: [{{name: default-deny, from: [{{any: true}}]}}]\n"
            )),
        ),
        (
            Code::BadAddress,
            with_spec(&format!(
                "{subject}  ingress: [{{name: a, from: [{{cidr: 10.0.0.0/24, except: [10.0.1.0/25]}}]}}]\n"
            )),
        ),
        (
            Code::BadAddress,
            with_spec("  subject: {cidrs: [\"::ffff:10.0.0.0/104\"]}\n  ingress: []\n"),
        ),
        (
            Code::Duplicate,
            with_spec(&format!("{subject}  mode: observe\n  mode: enforce\n  ingress: []\n")),
        ),
        (
            Code::Duplicate,
            with_spec(&format!(
                "{subject}  ingress: [{{name: a, from: [{{any: true}}]}}, {{name: a, from: [{{any: true}}]}}]\n"
            )),
        ),
        (Code::Duplicate, format!("{LAB}---\n{LAB}")),
        (Code::UnknownGroup, with_spec("  subject: {group: x}\n  ingress: []\n")),
        (Code::Contradiction, with_spec(subject)),
        (Code::Contradiction, with_spec("  subject: {}\n  ingress: []\n")),
        (
            Code::Contradiction,
            with_spec(&format!("{subject}  ingress: [{{name: a, from: []}}]\n")),
        ),
        (
            Code::Contradiction,
            with_spec(&format!(
                "{subject}  ingress: [{{name: a, from: [{{any: true, cidr: 10.0.0.0/8}}]}}]\n"
            )),
        ),
        (
            Code::Contradiction,
            with_spec(&format!("{subject}  ingress: [{{name: a, from: [{{any: false}}]}}]\n")),
        ),
        (
            Code::Contradiction,
            with_spec(&format!(
                "{subject}  ingress: [{{name: a, from: [{{any: true}}], ports: [{{protocol: ICMP, port: 8}}]}}]\n"
            )),
        ),
        (
            Code::Undecidable,
            with_spec(&format!(
                "{subject}  ingress: [{{name: a, action: deny, from: [{{namespaceSelector: {{}}}}]}}]\n"
            )),
        ),
    ];
    for (code, text) in cases {
        let checked = check(text);
        let codes: Vec<_> = checked.errors().map(|d| d.code).collect();
        assert!(
            codes.contains(code),
            "{code} is not among {:#?} of\n{text}",
            checked.diagnostics
        );
        for diagnostic in &checked.diagnostics {
            assert!(diagnostic.remedy.len() > 8, "{diagnostic}");
        }
    }
}

#[test]
fn warnings_do_not_refuse() {
    let text = with_spec(
        "  mode: enforce
  groups:
    idle: {cidrs: [10.9.0.0/16]}
    pods: {podSelector: {matchLabels: {app: x}}}
  subject: {cidrs: [10.0.0.0/24], workloads: {namespace: shop}}
  ingress:
    - {name: wide, from: [{any: true}]}
    - {name: again, from: [{cidr: 10.0.0.0/8}], ports: [{protocol: TCP, port: 80}]}
    - {name: labels, from: [{group: pods}]}
    - {name: v4, from: [{cidr: 0.0.0.0/0}], ports: [{protocol: TCP, port: 81}]}
  egress:
    - {name: never, to: [{cidr: 10.1.0.0/16}], ports: [{protocol: UDP, port: 53}]}
    - {name: no, action: deny, to: [{cidr: 10.0.0.0/8}]}
",
    );
    let checked = check(&text);
    assert!(checked.is_valid(), "{:#?}", checked.diagnostics);
    let mut codes: Vec<_> = checked.diagnostics.iter().map(|d| (d.code, d.field.as_str())).collect();
    codes.sort_unstable();
    for expected in [
        (Code::Unreachable, "spec.egress[0]"),
        (Code::Redundant, "spec.ingress[1]"),
        (Code::OverWide, "spec.ingress[0]"),
        (Code::UnusedGroup, "spec.groups.idle"),
        (Code::Unowned, "spec"),
        (Code::NoAddresses, "spec.ingress[2].from[0]"),
        (Code::OneFamily, "spec.ingress[3]"),
    ] {
        assert!(codes.contains(&expected), "{expected:?} is not among {codes:?}");
    }
}

#[test]
fn hostile_files_end_at_a_bound() {
    let limit = |text: &str| {
        let checked = check(text);
        let codes: Vec<_> = checked.errors().map(|d| d.code).collect();
        assert_eq!(codes.first(), Some(&Code::Limit), "{:?}", checked.diagnostics.first());
        checked
    };
    // A billion laughs.
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let uses = vec![format!("*a{}", i - 1); 9].join(", ");
        bomb.push_str(&format!("a{i}: &a{i} [{uses}]\n"));
    }
    limit(&bomb);
    limit(&"[".repeat(5_000));
    limit(&format!("{}x\n", "- ".repeat(100)));
    limit(&"x".repeat(4 << 20));
    limit(&"a: 1\n---\n".repeat(2_000));
    let rule = "    - {name: r, from: [{any: true}]}\n";
    limit(&with_spec(&format!(
        "  subject: {{cidrs: [10.0.0.1]}}\n  ingress:\n{}",
        rule.repeat(60_000)
    )));
    let million = with_spec(&format!(
        "  subject: {{cidrs: [10.0.0.1]}}\n  ingress:\n{}",
        rule.repeat(1_000_000)
    ));
    limit(&million);
    let networks = vec!["10.0.0.1"; 20_000].join(", ");
    limit(&with_spec(&format!(
        "  subject: {{cidrs: [{networks}]}}\n  ingress: []\n"
    )));
}

#[test]
fn findings_are_bounded_and_say_so() {
    let text = with_spec(&format!(
        "  subject: {{cidrs: [{}]}}\n  ingress: []\n",
        vec!["x"; 500].join(", ")
    ));
    let limits = Limits {
        diagnostics: 10,
        ..Limits::default()
    };
    let checked = check_with(&text, &limits);
    assert_eq!(checked.diagnostics.len(), 11);
    assert_eq!(checked.diagnostics[10].code, Code::Limit);
    assert!(!checked.is_valid());
}

#[test]
fn the_schema_knows_every_field_and_refuses_others() {
    for (version, kept) in [
        (
            Version::V1Alpha1,
            include_str!("../../../../docs/reference/zero-trust-policy.schema.json"),
        ),
        (
            Version::V1Beta1,
            include_str!("../../../../docs/reference/zero-trust-policy.v1beta1.schema.json"),
        ),
    ] {
        let schema = json_schema(version);
        let text = schema.to_string();
        for field in [
            "apiVersion",
            "podSelector",
            "namespaceSelector",
            "endPort",
            "matchExpressions",
            "workloads",
        ] {
            assert!(text.contains(&format!("\"{field}\"")), "{field}");
        }
        let objects = std::iter::once(&schema).chain(schema["$defs"].as_object().unwrap().values());
        for object in objects.filter(|o| o["type"] == "object") {
            assert_eq!(object["additionalProperties"], false, "{object}");
        }
        let kept: serde_json::Value = serde_json::from_str(kept).unwrap();
        assert_eq!(
            kept,
            schema,
            "write the schema anew: garrison policy schema {} > the file in docs/reference",
            version.name()
        );
    }
}
