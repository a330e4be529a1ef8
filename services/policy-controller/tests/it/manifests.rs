//! Everything under deploy/k8s, as the API server itself judges it.

use serde_json::{Value, json};

use crate::cluster::{Cluster, deploy};

/// Builds a folder with kustomize and answers its objects.
fn build(cluster: &Cluster, folder: &str) -> Vec<Value> {
    let path = deploy().join(folder);
    let text = cluster.kubectl(&["kustomize", path.to_str().unwrap()]);
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    assert!(objects.len() > 5, "{folder} has only {} objects", objects.len());
    objects
}

#[test]
fn the_api_server_takes_what_is_deployed() {
    let Some(programs) = garrison_testkit::kubernetes("manifests::the_api_server_takes_what_is_deployed") else {
        return;
    };
    let cluster = Cluster::start(&programs);
    let served = cluster.kubectl(&["api-versions"]);
    let mut older = 0;
    for folder in ["base", "policy-controller"] {
        let mut objects = build(&cluster, folder);
        // What is in a namespace needs it there, also to be only tried.
        for object in objects.iter().filter(|object| object["kind"] == "Namespace") {
            cluster.apply(&object.to_string());
        }
        for object in &mut objects {
            // Younger than this server, and otherwise the same.
            if object["apiVersion"] == "policy/v1" && !served.lines().any(|version| version == "policy/v1") {
                object["apiVersion"] = json!("policy/v1beta1");
                older += 1;
            }
        }
        let count = objects.len();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        // Tried by the server, and held to its schema by the client, which refuses fields that it does not know.
        let tried = cluster.try_kubectl(
            &["apply", "--dry-run=server", "--validate=true", "-o", "name", "-f", "-"],
            Some(&list),
        );
        let taken = tried.unwrap_or_else(|error| panic!("{folder}: {error}"));
        assert_eq!(taken.lines().count(), count, "{taken}");
        println!("{folder}: {count} objects taken");
    }
    println!("{older} of them as policy/v1beta1");
}

#[test]
fn the_deployed_configuration_is_taken() {
    let config = deploy().join("policy-controller/config/policy-controller.toml");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_policy-controller"))
        .args(["check", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn wrong_configuration_ends_with_64_and_names_the_key() {
    let folder = tempfile::tempdir().unwrap();
    for (text, key) in [
        (
            "[controller]\ntargets = [\"kubernetes\", \"cluster-network-policy\"]\n",
            "controller.targets",
        ),
        (
            "[controller]\nresync_interval_ms = 90000\n",
            "controller.resync_interval_ms",
        ),
        (
            "[leader]\nduration_ms = 1000\nrenew_interval_ms = 900\n",
            "leader.renew_interval_ms",
        ),
        ("[controler]\n", "controler"),
        (
            "[rollout]\nprometheus = \"ftp://x\"\nquery = \"a\"\nmost_denied_per_second = 1.0\n",
            "rollout.prometheus",
        ),
    ] {
        let path = folder.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_policy-controller"))
            .args(["run", "--config"])
            .arg(&path)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{error}");
        assert!(error.contains(key), "{key}: {error}");
    }
}
