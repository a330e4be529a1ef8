//! What others do to the objects is undone, and told.

use serde_json::{Value, json};

use crate::cluster::{Cluster, allows, policy, shared};

const OBJECT: &str = "garrison-web";

fn spec(cluster: &Cluster, namespace: &str) -> Option<Value> {
    Some(cluster.get("networkpolicy", namespace, OBJECT)?["spec"].clone())
}

fn restored(cluster: &Cluster, namespace: &str, count: u64) -> Value {
    cluster.wait("the report", || {
        let status = cluster.get("ztp", namespace, "web")?["status"].clone();
        (status["restored"] == count).then(|| status["lastRestored"].clone())
    })
}

#[test]
fn changes_of_every_kind_are_undone_and_reported() {
    let Some(cluster) = shared("tampering::changes_of_every_kind_are_undone_and_reported") else {
        return;
    };
    let namespace = "tamper";
    cluster.namespace(namespace, "");
    cluster.apply(&policy(namespace, "web", allows("web", "10.0.0.0/8", 80)));
    cluster.programmed(namespace, "web");
    let wanted = spec(cluster, namespace).unwrap();
    let patch = |text: Value| {
        let text = text.to_string();
        let arguments = [
            "patch",
            "networkpolicy",
            "-n",
            namespace,
            OBJECT,
            "--type=merge",
            "-p",
            &text,
        ];
        cluster.kubectl(&[&arguments[..], &["--field-manager=mallory"]].concat());
    };

    // Something that the controller wrote.
    patch(json!({"spec": {"ingress": [{}]}}));
    cluster.wait("the rules", || (spec(cluster, namespace)? == wanted).then_some(()));
    let report = restored(cluster, namespace, 1);
    assert_eq!(
        (report["manager"].as_str(), report["operation"].as_str()),
        (Some("mallory"), Some("Update"))
    );
    assert!(report["fields"].to_string().contains("spec.ingress"), "{report}");

    // Something beside it, which server-side apply alone would leave.
    patch(json!({"spec": {"podSelector": {"matchLabels": {"narrower": "yes"}}}}));
    cluster.wait("the selector", || (spec(cluster, namespace)? == wanted).then_some(()));
    let report = restored(cluster, namespace, 2);
    assert_eq!(report["manager"], "mallory");

    // The label by which it is watched.
    patch(json!({"metadata": {"labels": {"garrison.dev/controlled-by": null}}}));
    let report = restored(cluster, namespace, 3);
    assert!(report["fields"].to_string().contains("controlled-by"), "{report}");

    // The annotation by which the controller knows its own writing, along with what was written.
    patch(json!({
        "metadata": {"annotations": {"garrison.dev/written-sha256": "0"}},
        "spec": {"ingress": [{}]},
    }));
    cluster.wait("the rules again", || {
        (spec(cluster, namespace)? == wanted).then_some(())
    });
    assert_eq!(restored(cluster, namespace, 4)["manager"], "mallory");

    // All of it.
    cluster.kubectl(&["delete", "networkpolicy", "-n", namespace, OBJECT]);
    cluster.wait("the object", || (spec(cluster, namespace)? == wanted).then_some(()));
    restored(cluster, namespace, 5);

    let events = cluster.kubectl(&["get", "events", "-n", namespace, "-o", "json"]);
    assert!(
        events.contains("\"Restored\"") && events.contains("mallory"),
        "{events}"
    );
}

#[test]
fn what_the_controller_did_not_write_is_nobodys_business() {
    let Some(cluster) = shared("tampering::what_the_controller_did_not_write_is_nobodys_business") else {
        return;
    };
    let namespace = "bystander";
    cluster.namespace(namespace, "");
    cluster.apply(&policy(namespace, "web", allows("web", "10.0.0.0/8", 80)));
    cluster.programmed(namespace, "web");
    // A label of somebody's own stays, and is no change to report.
    cluster.kubectl(&["label", "networkpolicy", "-n", namespace, OBJECT, "team=shop"]);
    // Proof that the change was seen: one that follows it is undone.
    cluster.kubectl(&[
        "annotate",
        "networkpolicy",
        "-n",
        namespace,
        OBJECT,
        "--overwrite",
        "garrison.dev/policy-version=99",
    ]);
    restored(cluster, namespace, 1);
    let object = cluster.get("networkpolicy", namespace, OBJECT).unwrap();
    assert_eq!(object["metadata"]["labels"]["team"], "shop");
    assert_eq!(object["metadata"]["annotations"]["garrison.dev/policy-version"], "1");
}
