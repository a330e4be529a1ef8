//! The webhook's certificate: from an authority that the controllers keep, or from files with an authority beside them.

use std::fs;

use serde_json::{Value, json};

use crate::cluster::{Cluster, Controller, Settings, allows, deploy, policy};

const CONFIGURATION: &str = "garrison-policy-controller";

/// The webhook and the conversion by address, with nobody's authority.
fn install(cluster: &Cluster, controller: &Controller) {
    let text = fs::read_to_string(deploy().join("policy-controller/webhook.yaml")).unwrap();
    let (before, _) = text.split_once("    clientConfig:").unwrap();
    let url = |path: &str| format!("https://127.0.0.1:{}/{path}", controller.webhook);
    cluster.apply(&format!("{before}    clientConfig:\n      url: {}\n", url("validate")));
    cluster.conversion_by(json!({"url": url("convert")}));
}

/// What the API server was told of authorities: by the webhook configuration, and by the definitions.
fn told(cluster: &Cluster) -> Vec<Value> {
    let webhook = cluster
        .get("validatingwebhookconfiguration", "", CONFIGURATION)
        .unwrap();
    let mut all = vec![webhook["webhooks"][0]["clientConfig"]["caBundle"].clone()];
    for plural in ["zerotrustpolicies", "clusterzerotrustpolicies"] {
        let crd = cluster.get("crd", "", &format!("{plural}.garrison.dev")).unwrap();
        all.push(crd["spec"]["conversion"]["webhook"]["clientConfig"]["caBundle"].clone());
    }
    all
}

fn wait_told(cluster: &Cluster, bundle: &Value) {
    cluster.wait("the authority to be told", || {
        told(cluster).iter().all(|known| known == bundle).then_some(())
    });
}

/// Whether the API server reaches the webhook and the conversion: the one refuses, the other answers.
fn serves(cluster: &Cluster) {
    let wrong = policy("shop", "wrong", json!({"subject": {"workloads": {}}, "wrong": 1}));
    cluster.wait("the webhook to refuse", || {
        let refused = cluster.try_apply(&wrong).err();
        if refused.is_none() {
            cluster.kubectl(&["delete", "ztp", "-n", "shop", "wrong"]);
        }
        refused.filter(|error| error.contains("spec.wrong"))
    });
    cluster.wait("the conversion", || {
        let read = cluster.try_kubectl(&["get", "zerotrustpolicies.v1beta1.garrison.dev", "-n", "shop"], None);
        read.is_ok().then_some(())
    });
}

#[test]
fn an_authority_is_kept_or_followed_and_told() {
    let name = "serving::an_authority_is_kept_or_followed_and_told";
    let Some(programs) = garrison_testkit::kubernetes(name) else {
        return;
    };
    let cluster = Cluster::start(&programs);
    cluster.namespace("shop", "");
    cluster.apply(&policy("shop", "web", allows("web", "10.0.0.0/8", 80)));
    let settings = |name| Settings {
        name,
        certificate: Some("authority = { names = [\"policy-controller.garrison.svc\", \"127.0.0.1\"] }\n".to_owned()),
        ..Settings::default()
    };
    let secret = || {
        let secret = cluster.get("secret", "garrison", "policy-controller-webhook")?;
        Some((secret["data"]["ca.crt"].clone(), secret["data"]["tls.crt"].clone()))
    };
    let mut first = cluster.controller(&settings("first"));
    let (authority, _) = cluster.wait("the Secret", secret);
    install(&cluster, &first);
    wait_told(&cluster, &authority);
    serves(&cluster);

    // Whoever writes another authority there is undone.
    let other = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]).to_string();
    cluster.kubectl(&[
        "patch",
        "validatingwebhookconfiguration",
        CONFIGURATION,
        "--type=json",
        "-p",
        &other,
    ]);
    wait_told(&cluster, &authority);

    // A second replica shows the same, and takes over.
    let mut second = cluster.controller(&settings("second"));
    install(&cluster, &second);
    wait_told(&cluster, &authority);
    serves(&cluster);
    first.process.kill();
    cluster.wait("the second to lead", || {
        let lease = cluster.get("lease", "garrison", "policy-controller")?;
        (lease["spec"]["holderIdentity"] == "second").then_some(())
    });

    // A Secret that is lost is made anew, and everybody learns of it.
    cluster.kubectl(&["delete", "secret", "-n", "garrison", "policy-controller-webhook"]);
    let (fresh, _) = cluster.wait("another Secret", || secret().filter(|(bundle, _)| *bundle != authority));
    wait_told(&cluster, &fresh);
    serves(&cluster);
    second.process.kill();
    files(&cluster);
}

/// An authority beside certificate files.
fn files(cluster: &Cluster) {
    // As a mounted Secret, or SPIRE's helper, writes them.
    let place = |authority: &str| {
        let pki = garrison_testkit::Pki::open_or_create(&cluster.file(authority), "cluster.local").unwrap();
        let identity = pki.identity("svc/policy-controller").unwrap();
        for (from, to) in [
            (&identity.ca_file, "ca.crt"),
            (&identity.cert_file, "tls.crt"),
            (&identity.key_file, "tls.key"),
        ] {
            let next = cluster.file("next");
            fs::copy(from, &next).unwrap();
            fs::rename(&next, cluster.file(to)).unwrap();
        }
        json!(crate::cluster::base64(&fs::read(&identity.ca_file).unwrap()))
    };
    let bundle = place("first-authority");
    let certificate = [
        "cert_file = \"tls.crt\"\n",
        "key_file = \"tls.key\"\n",
        "ca_file = \"ca.crt\"\n",
    ]
    .concat();
    let certificate = certificate.replace(
        "= \"",
        &format!("= \"{}/", cluster.file("").display().to_string().trim_end_matches('/')),
    );
    let controller = cluster.controller(&Settings {
        name: "files",
        certificate: Some(certificate),
        ..Settings::default()
    });
    install(cluster, &controller);
    wait_told(cluster, &bundle);
    serves(cluster);
    let bundle = place("second-authority");
    wait_told(cluster, &bundle);
    serves(cluster);
}
