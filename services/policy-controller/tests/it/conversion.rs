//! One version written, another read, by way of the conversion webhook.

use serde_json::{Value, json};

use crate::cluster::{Cluster, Settings, allows, policy};

const BETA: &str = "zerotrustpolicies.v1beta1.garrison.dev";

fn beta(name: &str, spec: Value) -> String {
    json!({
        "apiVersion": "garrison.dev/v1beta1", "kind": "ZeroTrustPolicy",
        "metadata": {"namespace": "shop", "name": name}, "spec": spec,
    })
    .to_string()
}

fn grouped(app: &str) -> Value {
    let mut spec = allows(app, "10.0.0.0/8", 80);
    let map = spec.as_object_mut().unwrap();
    map.remove("owner");
    map.remove("reason");
    map.insert(
        "accountability".to_owned(),
        json!({"owner": "shop", "reason": "a test", "ticket": "T-1"}),
    );
    spec["ingress"][0]["valid"] = json!({"from": "2020-01-01T00:00:00Z"});
    spec
}

/// Reads a policy in the next version and writes it back as it is.
fn put_back(cluster: &Cluster, name: &str) {
    // Its status may be written in between, which makes it another object.
    cluster.wait("the replacement", || {
        let read = cluster.get(BETA, "shop", name)?.to_string();
        let put = cluster.try_kubectl(&["replace", "--validate=false", "-f", "-"], Some(&read));
        assert!(
            put.as_ref().err().is_none_or(|error| error.contains("Conflict")),
            "{put:?}"
        );
        put.ok()
    });
}

#[test]
fn one_version_is_written_and_another_read() {
    let name = "conversion::one_version_is_written_and_another_read";
    let Some(programs) = garrison_testkit::kubernetes(name) else {
        return;
    };
    let cluster = Cluster::start(&programs);
    cluster.namespace("shop", "");
    let mut controller = cluster.controller(&Settings::default());
    cluster.install_conversion(&controller);
    cluster.install_webhook(&controller);

    // Written in the next version, stored and enforced in the other.
    cluster.apply(&beta("web", grouped("web")));
    cluster.programmed("shop", "web");
    let stored = cluster.get("ztp", "shop", "web").unwrap();
    assert_eq!(stored["apiVersion"], "garrison.dev/v1alpha1");
    assert_eq!(
        (&stored["spec"]["owner"], &stored["spec"]["ticket"]),
        (&json!("shop"), &json!("T-1"))
    );
    assert_eq!(stored["spec"]["ingress"][0]["validFrom"], "2020-01-01T00:00:00Z");
    assert_eq!(stored["spec"].get("accountability"), None);
    let made = cluster.get("networkpolicy", "shop", "garrison-web").unwrap();
    assert_eq!(made["spec"]["ingress"][0]["ports"][0]["port"], 80);
    // Read as it was written, and put back unchanged it is no new generation.
    let read = cluster.get(BETA, "shop", "web").unwrap();
    assert_eq!(read["spec"], grouped("web"));
    assert_eq!(read["status"]["observedGeneration"], 1);
    put_back(&cluster, "web");
    let again = cluster.get("ztp", "shop", "web").unwrap();
    assert_eq!(
        (&again["spec"], &again["metadata"]["generation"]),
        (&stored["spec"], &json!(1))
    );

    // The other way, and a page of many at once.
    let many: Vec<Value> = (0..120)
        .map(|i| serde_json::from_str(&policy("shop", &format!("p{i}"), allows("many", "10.0.0.0/8", 80))).unwrap())
        .collect();
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": many}).to_string());
    let read = cluster.list(BETA, "shop");
    assert_eq!(read.len(), 121);
    for object in &read {
        assert_eq!(object["apiVersion"], "garrison.dev/v1beta1");
        assert_eq!(object["spec"]["accountability"]["owner"], "shop", "{object}");
    }

    // The admission webhook tells errors in the words of the version.
    let mut wrong = grouped("wrong");
    wrong["accountability"]["boss"] = json!("x");
    wrong["ingress"][0]["valid"]["from"] = json!("soon");
    let refused = cluster.try_apply(&beta("wrong", wrong.clone())).unwrap_err();
    assert!(
        refused.contains("spec.accountability.boss") && refused.contains("spec.ingress[0].valid.from"),
        "{refused}"
    );
    // Without it, the conversion refuses what it could not give back, and nothing is stored.
    cluster.kubectl(&["delete", "validatingwebhookconfiguration", "garrison-policy-controller"]);
    let refused = cluster.wait("the webhook to be gone", || {
        let refused = cluster.try_apply(&beta("wrong", wrong.clone())).unwrap_err();
        (!refused.contains("policies.garrison.dev")).then_some(refused)
    });
    assert!(
        refused.contains("spec.accountability.boss") && refused.contains("GAR-CTL-0010"),
        "{refused}"
    );
    assert_eq!(cluster.get("ztp", "shop", "wrong"), None);

    // A stored field that only looks like one of the other version's makes nothing unreadable, and is not lost.
    let mut odd = allows("odd", "10.0.0.0/8", 80);
    odd["accountability"] = json!({"x": 1});
    cluster.apply(&policy("shop", "odd", odd.clone()));
    let read = cluster.get(BETA, "shop", "odd").unwrap();
    assert_eq!(
        read["spec"]["accountability"],
        json!({"owner": "shop", "reason": "a test"})
    );
    assert_eq!(read["spec"]["x-v1alpha1-accountability"], json!({"x": 1}));
    put_back(&cluster, "odd");
    let stored = cluster.get("ztp", "shop", "odd").unwrap();
    assert_eq!(stored["spec"]["accountability"], json!({"x": 1}));
    assert_eq!(stored["spec"]["owner"], "shop");

    // With nobody to convert, the stored version is there as before, and the other says why it is not.
    controller.process.kill();
    let error = cluster
        .try_kubectl(&["get", BETA, "-n", "shop", "web"], None)
        .unwrap_err();
    assert!(error.contains("conversion webhook"), "{error}");
    assert_eq!(cluster.get("ztp", "shop", "web").unwrap()["spec"]["owner"], "shop");
}
