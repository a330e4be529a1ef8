//! Targets whose kinds come later, and objects that no owner reference can follow.

use serde_json::json;

use crate::cluster::{Cluster, Settings, allows, policy};

pub(crate) fn definition(group: &str, version: &str, kind: &str, plural: &str, scope: &str) -> String {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{group}"),
            // Groups of kubernetes.io say who approved them.
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": group, "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{
                "name": version, "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    })
    .to_string()
}

#[test]
fn a_target_waits_for_its_kinds_and_cleans_up_behind_itself() {
    let name = "targets::a_target_waits_for_its_kinds_and_cleans_up_behind_itself";
    let Some(programs) = garrison_testkit::kubernetes(name) else {
        return;
    };
    let cluster = Cluster::start(&programs);
    cluster.namespace("shop", "");
    {
        // What an earlier configuration wrote.
        let mut controller = cluster.controller(&Settings {
            name: "before",
            ..Settings::default()
        });
        cluster.apply(&policy("shop", "web", allows("web", "10.0.0.0/8", 80)));
        cluster.programmed("shop", "web");
        controller
            .process
            .end(garrison_testkit::Signal::TERM, std::time::Duration::from_secs(30));
    }
    let _controller = cluster.controller(&Settings {
        name: "after",
        targets: "\"cilium\", \"cluster-network-policy\"",
        ..Settings::default()
    });
    let object = cluster.reason("ztp", "shop", "web", "Programmed", "TargetMissing");
    assert_eq!(object["metadata"]["finalizers"], json!(null));
    cluster.apply(&definition(
        "cilium.io",
        "v2",
        "CiliumNetworkPolicy",
        "ciliumnetworkpolicies",
        "Namespaced",
    ));
    cluster.apply(&definition(
        "policy.networking.k8s.io",
        "v1alpha2",
        "ClusterNetworkPolicy",
        "clusternetworkpolicies",
        "Cluster",
    ));
    cluster.programmed("shop", "web");
    let cilium = cluster.list("ciliumnetworkpolicies", "shop");
    assert_eq!(cilium.len(), 1, "{cilium:#?}");
    assert_eq!(cilium[0]["metadata"]["ownerReferences"][0]["name"], "web");
    let wide = cluster.list("clusternetworkpolicies", "");
    assert!(!wide.is_empty());
    assert_eq!(
        cluster.get("networkpolicy", "shop", "garrison-web"),
        None,
        "the earlier target's object stayed"
    );

    // Nothing collects what is of the cluster, so the policy stays until it is gone.
    let object = cluster.wait("the finalizer", || {
        let object = cluster.get("ztp", "shop", "web")?;
        (object["metadata"]["finalizers"] == json!(["garrison.dev/policy-controller"])).then_some(object)
    });
    assert_eq!(object["status"]["restored"], 0);
    cluster.kubectl(&["delete", "ztp", "-n", "shop", "web", "--timeout=60s"]);
    assert_eq!(cluster.list("clusternetworkpolicies", "").len(), 0);
    cluster.wait("the rest to go", || {
        cluster.list("ciliumnetworkpolicies", "shop").is_empty().then_some(())
    });
}
