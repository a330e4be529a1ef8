//! Documents that lie in a namespace, as a cluster has them.

use garrison_ztp::{check, format};

/// A policy with a place for `metadata`, one for its `kind` and one for its subject.
fn policy(kind: &str, metadata: &str, subject: &str) -> String {
    format!(
        "apiVersion: garrison.dev/v1alpha1
kind: {kind}
metadata: {{name: web{metadata}}}
spec:
  subject: {subject}
  ingress: []
"
    )
}

/// Code, field and line of every error.
fn errors(text: &str) -> Vec<(String, String, u32)> {
    let checked = check(text);
    let all = checked.errors();
    all.inspect(|d| assert!(d.remedy.len() > 8, "{d}"))
        .map(|d| (d.code.to_string(), d.field.clone(), d.position.line))
        .collect()
}

#[test]
fn a_policy_of_a_namespace_governs_its_pods() {
    for subject in ["{workloads: {}}", "{workloads: {namespace: shop}}"] {
        let text = policy("ZeroTrustPolicy", ", namespace: shop", subject);
        let checked = check(&text);
        assert!(checked.is_valid(), "{:?}", checked.diagnostics);
        let document = &checked.documents[0];
        assert_eq!(document.policy.metadata.full_name(), "shop/web");
        let (namespace, pods) = document.lower(0).subject.workloads.unwrap();
        assert!(namespace == "shop" && pods.is_full());
    }
    // Without one, the subject says where.
    let bare = policy("ZeroTrustPolicy", "", "{workloads: {namespace: shop}}");
    assert_eq!(check(&bare).documents[0].policy.metadata.full_name(), "web");
}

#[test]
fn peers_without_a_namespace_are_of_the_policys_own() {
    let text = policy("ZeroTrustPolicy", ", namespace: shop", "{workloads: {}}").replace(
        "ingress: []",
        "ingress: [{name: a, from: [{podSelector: {matchLabels: {app: db}}}]}]",
    );
    let checked = check(&text);
    assert!(checked.is_valid(), "{:?}", checked.diagnostics);
    let lowered = format!("{:?}", checked.documents[0].lower(0).ingress.unwrap()[0].peers);
    assert!(
        lowered.contains("kubernetes.io/metadata.name") && lowered.contains("\"shop\""),
        "{lowered}"
    );
}

#[test]
fn what_disagrees_is_refused_at_its_place() {
    let contradiction = |field: &str, line| vec![("GAR-POLICY-0010".to_owned(), field.to_owned(), line)];
    let cases = [
        (
            policy("ZeroTrustPolicy", ", namespace: shop", "{workloads: {namespace: bank}}"),
            contradiction("spec.subject.workloads.namespace", 5),
        ),
        (
            policy("ZeroTrustPolicy", ", namespace: shop", "{cidrs: [10.0.0.0/8]}"),
            contradiction("spec.subject", 5),
        ),
        (
            policy("ClusterZeroTrustPolicy", ", namespace: shop", "{workloads: {}}"),
            contradiction("metadata.namespace", 3),
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(errors(&text), expected, "{text}");
    }
    let wrong = policy("ZeroTrustPolicy", ", namespace: Shop_1", "{workloads: {}}");
    // One error says it: that the pods' namespace is not known follows from it.
    assert_eq!(
        errors(&wrong),
        [("GAR-POLICY-0006".to_owned(), "metadata.namespace".to_owned(), 3)]
    );
    let nowhere = policy("ZeroTrustPolicy", "", "{workloads: {}}");
    let found = check(&nowhere);
    let error = found.errors().next().unwrap();
    assert_eq!(error.field, "spec.subject.workloads.namespace");
    assert!(error.remedy.contains("metadata.namespace"), "{}", error.remedy);
}

#[test]
fn names_are_unique_in_their_namespace() {
    let of = |namespace: &str| {
        policy(
            "ZeroTrustPolicy",
            &format!(", namespace: {namespace}"),
            "{workloads: {}}",
        )
    };
    assert_eq!(errors(&format!("{}---\n{}", of("shop"), of("bank"))), []);
    let twice = format!("{}---\n{}", of("shop"), of("shop"));
    let checked = check(&twice);
    let error = checked.errors().next().unwrap();
    assert_eq!((error.field.as_str(), error.position.line), ("metadata.name", 10));
    assert!(error.message.contains("\"shop/web\""), "{}", error.message);
}

#[test]
fn the_one_form_names_the_namespace_once() {
    for version in ["v1alpha1", "v1beta1"] {
        let text = policy(
            "ZeroTrustPolicy",
            ", namespace: shop",
            "{workloads: {namespace: shop, podSelector: {matchLabels: {app: web}}}}",
        )
        .replace("v1alpha1", version);
        let once = format(&text).unwrap();
        assert!(once.contains("metadata:\n  name: web\n  namespace: shop\n"), "{once}");
        assert_eq!(once.matches("shop").count(), 1, "{once}");
        assert_eq!(format(&once).unwrap(), once);
        assert_eq!(check(&once).documents[0].policy, check(&text).documents[0].policy);
    }
}
