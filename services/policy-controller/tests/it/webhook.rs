//! Documents with errors are refused before they are stored.

use serde_json::{Value, json};

use crate::cluster::{allows, policy, shared};

#[test]
fn documents_with_errors_are_refused_at_their_fields() {
    let Some(cluster) = shared("webhook::documents_with_errors_are_refused_at_their_fields") else {
        return;
    };
    cluster.namespace("gate", "");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut spec = allows("web", "10.0.0.0/8", 80);
        change(&mut spec);
        spec
    };
    let cases: [(Value, &str, &str); 7] = [
        (
            with(&|spec| spec["ingress"][0]["from"][0]["cidr"] = json!("10.0.0.0/33")),
            "spec.ingress[0].from[0].cidr",
            "GAR-POLICY-0007",
        ),
        (
            with(&|spec| spec["ingress"][0]["prots"] = json!([])),
            "spec.ingress[0].prots",
            "GAR-POLICY-0003",
        ),
        (
            with(&|spec| spec["ingress"][0]["from"] = json!([{"group": "nobody"}])),
            "spec.ingress[0].from[0].group",
            "GAR-POLICY-0009",
        ),
        (
            with(&|spec| spec["subject"]["workloads"]["namespace"] = json!("kube-system")),
            "spec.subject.workloads.namespace",
            "GAR-CTL-0001",
        ),
        (with(&|spec| spec["tier"] = json!(5)), "spec.tier", "GAR-CTL-0002"),
        (
            with(&|spec| spec["subject"] = json!({"cidrs": ["10.0.0.0/8"]})),
            "spec.subject.workloads",
            "GAR-CTL-0001",
        ),
        (
            with(&|spec| {
                let rule = spec["ingress"][0].clone();
                spec["ingress"].as_array_mut().unwrap().push(rule);
            }),
            "spec.ingress[1].name",
            "GAR-POLICY-0008",
        ),
    ];
    for (spec, field, code) in cases {
        let refused = cluster.try_apply(&policy("gate", "web", spec)).unwrap_err();
        assert!(
            refused.contains(field) && refused.contains(code),
            "{field} {code}: {refused}"
        );
    }
    assert_eq!(cluster.get("ztp", "gate", "web"), None);
    // What the schema itself knows is refused by the API server.
    let wrong = with(&|spec| spec["mode"] = json!("sometimes"));
    let refused = cluster.try_apply(&policy("gate", "web", wrong)).unwrap_err();
    assert!(refused.contains("spec.mode"), "{refused}");
    // An update is held to the same, and a good one passes.
    cluster.apply(&policy("gate", "web", allows("web", "10.0.0.0/8", 80)));
    let wrong = policy("gate", "web", with(&|spec| spec["tier"] = json!(7)));
    assert!(cluster.try_apply(&wrong).unwrap_err().contains("spec.tier"));
    // Other kinds are none of its business.
    cluster.kubectl(&["create", "configmap", "-n", "gate", "other"]);
}
