//! Istio's and Linkerd's policies: written, kept, gone back from, and following what the mesh is called and trusts.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use serde_json::{Map, Value, json};

use crate::{
    cluster::{Cluster, Settings, condition, policy},
    rollout::figures,
    targets::definition,
};

const ISTIO: &str = "authorizationpolicies.security.istio.io";
const LINKERD: &str = "authorizationpolicies.policy.linkerd.io";

/// Group, version, kind and plural of everything that meshes have.
const KINDS: [(&str, &str, &str, &str); 7] = [
    (
        "security.istio.io",
        "v1",
        "AuthorizationPolicy",
        "authorizationpolicies",
    ),
    ("security.istio.io", "v1", "PeerAuthentication", "peerauthentications"),
    (
        "security.istio.io",
        "v1",
        "RequestAuthentication",
        "requestauthentications",
    ),
    ("policy.linkerd.io", "v1beta3", "Server", "servers"),
    (
        "policy.linkerd.io",
        "v1alpha1",
        "AuthorizationPolicy",
        "authorizationpolicies",
    ),
    (
        "policy.linkerd.io",
        "v1alpha1",
        "MeshTLSAuthentication",
        "meshtlsauthentications",
    ),
    (
        "policy.linkerd.io",
        "v1alpha1",
        "NetworkAuthentication",
        "networkauthentications",
    ),
];

/// A published JSON Schema as a definition has it.
fn structural(schema: &Value) -> Value {
    match schema {
        Value::Object(map) => {
            let mut out = Map::new();
            let choices = map.get("anyOf").map(Value::to_string).unwrap_or_default();
            if choices.contains("\"integer\"") && choices.contains("\"string\"") {
                return json!({"x-kubernetes-int-or-string": true});
            }
            for (key, value) in map {
                let closed = key == "additionalProperties" && value == &json!(false);
                // CEL is younger than this server.
                if !closed && key != "x-kubernetes-validations" && key != "$schema" {
                    out.insert(key.clone(), structural(value));
                }
            }
            Value::Object(out)
        }
        Value::Array(list) => list.iter().map(structural).collect(),
        other => other.clone(),
    }
}

/// The definitions: with the schemas that the projects publish where those are here, else without.
fn install(cluster: &Cluster) -> usize {
    let folder = std::env::var_os("GARRISON_CORPORA").map(|root| PathBuf::from(root).join("policy/crd-schemas"));
    let mut published = 0;
    for (group, version, kind, plural) in KINDS {
        let mut made: Value = serde_json::from_str(&definition(group, version, kind, plural, "Namespaced")).unwrap();
        let name = format!("{group}_{}_{version}.json", kind.to_lowercase());
        if let Some(text) = folder
            .as_ref()
            .and_then(|folder| fs::read_to_string(folder.join(name)).ok())
        {
            let schema = structural(&serde_json::from_str(&text).unwrap());
            made["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = schema;
            published += 1;
        }
        cluster.apply(&made.to_string());
    }
    cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]);
    published
}

fn call(domain: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "istio-system", "name": "istio"},
        "data": {"mesh": format!("enableTracing: true\ntrustDomain: {domain}\n")},
    })
    .to_string()
}

fn spec(port: u16) -> Value {
    json!({
        "mode": "enforce", "owner": "shop", "reason": "a test",
        "subject": {"workloads": {"podSelector": {"matchLabels": {"app": "ledger"}}}},
        "ingress": [
            {
                "name": "booking", "requires": "trusted", "ports": [{"protocol": "TCP", "port": port}],
                "from": [{"serviceAccounts": ["booking"]}],
            },
            {
                "name": "partner", "requires": "trusted", "ports": [{"protocol": "TCP", "port": port}],
                "from": [{"spiffeIds": ["spiffe://partner.example/ns/a/sa/b"]}],
            },
        ],
    })
}

fn principals(cluster: &Cluster) -> Option<Vec<String>> {
    let made = cluster.get(ISTIO, "shop", "garrison-ledger")?;
    let rules = made["spec"]["rules"].as_array()?;
    let sources = rules
        .iter()
        .flat_map(|rule| rule["from"].as_array().into_iter().flatten());
    let names = sources.flat_map(|from| from["source"]["principals"].as_array().into_iter().flatten());
    Some(names.filter_map(|name| Some(name.as_str()?.to_owned())).collect())
}

fn expect(cluster: &Cluster, wanted: &[&str]) {
    cluster.wait(&format!("the principals {wanted:?}"), || {
        (principals(cluster)? == wanted).then_some(())
    });
}

fn restored(cluster: &Cluster, count: u64) -> Value {
    cluster.wait("the report", || {
        let status = cluster.get("ztp", "shop", "ledger")?["status"].clone();
        (status["restored"] == count).then(|| status["lastRestored"].clone())
    })
}

#[test]
fn policies_of_meshes_are_written_and_kept() {
    let name = "mesh::policies_of_meshes_are_written_and_kept";
    let Some(programs) = garrison_testkit::kubernetes(name) else {
        return;
    };
    let cluster = Cluster::start(&programs);
    cluster.namespace("shop", "");
    cluster.namespace("istio-system", "");
    let published = install(&cluster);
    println!("{published} of {} definitions have the published schema", KINDS.len());
    let partner = garrison_testkit::Pki::open_or_create(&cluster.file("partner"), "partner.example").unwrap();
    let bundle = cluster.file("partner.pem");
    fs::copy(partner.ca_file(), &bundle).unwrap();
    let denied = Arc::new(AtomicU32::new(0));
    let port = figures(denied.clone());
    let _controller = cluster.controller(&Settings {
        targets: "\"istio\", \"linkerd\"",
        more: format!(
            "[mesh]\ntrust_domain = \"linkerd.example\"\nistio_config = \"istio-system/istio\"\nreload_interval_ms = 200\n\
             [[mesh.bundles]]\ntrust_domain = \"partner.example\"\nfile = {bundle:?}\n\
             [rollout]\nprometheus = \"http://127.0.0.1:{port}\"\nquery = 'policy=\"web\" {{policy}}'\n\
             watch_ms = 2000\ninterval_ms = 200\nmost_denied_per_second = 5.0\n"
        ),
        ..Settings::default()
    });

    // Before it is known what the mesh is called, nothing is written for it.
    cluster.apply(&policy("shop", "ledger", spec(8443)));
    let object = cluster.reason("ztp", "shop", "ledger", "Programmed", "TargetMissing");
    let message = condition(&object, "Programmed")["message"].to_string();
    assert!(
        message.contains("istio-system/istio") && message.contains("GAR-CTL-0009"),
        "{message}"
    );
    assert_eq!(cluster.get(ISTIO, "shop", "garrison-ledger"), None);
    cluster.apply(&call("prod.example"));
    expect(
        &cluster,
        &["prod.example/ns/shop/sa/booking", "partner.example/ns/a/sa/b"],
    );
    let object = cluster.programmed("shop", "ledger");
    let made = cluster.get(ISTIO, "shop", "garrison-ledger").unwrap();
    assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], object["metadata"]["uid"]);
    assert_eq!(made["spec"]["action"], "ALLOW");
    let strict = cluster
        .get("peerauthentications.security.istio.io", "shop", "garrison-ledger")
        .unwrap();
    assert_eq!(strict["spec"]["mtls"]["mode"], "STRICT");
    let servers = cluster.list("servers.policy.linkerd.io", "shop");
    assert_eq!(servers.len(), 1, "{servers:#?}");
    assert_eq!(servers[0]["spec"]["port"], 8443);
    let authorizations = cluster.list(LINKERD, "shop");
    assert_eq!(
        authorizations[0]["spec"]["targetRef"]["name"],
        servers[0]["metadata"]["name"]
    );
    let who = cluster.list("meshtlsauthentications.policy.linkerd.io", "shop");
    assert_eq!(who[0]["spec"]["identityRefs"][0]["name"], "booking", "{who:#?}");

    // What others do is undone and told.
    let open = json!({"spec": {"rules": [{}]}}).to_string();
    cluster.kubectl(&[
        "patch",
        ISTIO,
        "-n",
        "shop",
        "garrison-ledger",
        "--type=merge",
        "-p",
        &open,
        "--field-manager=mallory",
    ]);
    expect(
        &cluster,
        &["prod.example/ns/shop/sa/booking", "partner.example/ns/a/sa/b"],
    );
    let report = restored(&cluster, 1);
    assert_eq!(report["manager"], "mallory", "{report}");
    let server = servers[0]["metadata"]["name"].as_str().unwrap();
    cluster.kubectl(&["delete", "servers.policy.linkerd.io", "-n", "shop", server]);
    cluster.wait("the server", || {
        cluster.get("servers.policy.linkerd.io", "shop", server)
    });
    restored(&cluster, 2);

    // The mesh is called something else; a bundle is lost, and comes back.
    cluster.apply(&call("next.example"));
    expect(
        &cluster,
        &["next.example/ns/shop/sa/booking", "partner.example/ns/a/sa/b"],
    );
    fs::write(&bundle, "{\"keys\": []}").unwrap();
    expect(&cluster, &["next.example/ns/shop/sa/booking"]);
    let object = cluster.wait("the gap", || {
        let object = cluster.get("ztp", "shop", "ledger")?;
        object["status"]["gaps"]
            .to_string()
            .contains("partner.example")
            .then_some(object)
    });
    assert_eq!(condition(&object, "Complete")["status"], "False");
    fs::copy(partner.ca_file(), &bundle).unwrap();
    expect(
        &cluster,
        &["next.example/ns/shop/sa/booking", "partner.example/ns/a/sa/b"],
    );

    // A version that denies too much is gone back from in meshes too.
    let ports = || {
        let made = cluster.list("servers.policy.linkerd.io", "shop");
        made.iter()
            .map(|server| server["spec"]["port"].clone())
            .collect::<Vec<_>>()
    };
    cluster.wait("the first version to be kept", || {
        let object = cluster.get("ztp", "shop", "ledger")?;
        (object["status"]["rollout"]["phase"] == "Kept").then_some(())
    });
    cluster.apply(&policy("shop", "ledger", spec(9443)));
    cluster.wait("the second version", || (ports() == [json!(9443)]).then_some(()));
    denied.store(50, Ordering::Relaxed);
    cluster.reason("ztp", "shop", "ledger", "Programmed", "Returned");
    cluster.wait("the first version", || (ports() == [json!(8443)]).then_some(()));
    assert_eq!(restored(&cluster, 2)["object"], format!("Server shop/{server}"));

    // And all of it goes with the policy.
    cluster.kubectl(&["delete", "ztp", "-n", "shop", "ledger"]);
    for (group, _, _, plural) in KINDS {
        let kind = format!("{plural}.{group}");
        cluster.wait(&format!("{kind} to go"), || {
            cluster.list(&kind, "shop").is_empty().then_some(())
        });
    }
}
