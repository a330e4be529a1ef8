//! Create, update, conflict, delete; one namespace and many; a thousand policies.

use std::time::Instant;

use serde_json::{Value, json};

use crate::cluster::{allows, condition, get, policy, shared};

#[test]
fn a_policy_comes_changes_and_goes() {
    let Some(cluster) = shared("lifecycle::a_policy_comes_changes_and_goes") else {
        return;
    };
    cluster.namespace("life", "");
    cluster.apply(&policy("life", "web", allows("web", "10.0.0.0/8", 80)));
    let object = cluster.programmed("life", "web");
    assert_eq!(condition(&object, "Accepted")["status"], "True");
    assert_eq!(condition(&object, "Complete")["status"], "True", "{object:#}");
    assert_eq!(object["status"]["enforcedGeneration"], 1);
    assert_eq!(object["status"]["objects"], 1);
    let made = cluster.get("networkpolicy", "life", "garrison-web").unwrap();
    assert_eq!(made["spec"]["podSelector"], json!({"matchLabels": {"app": "web"}}));
    assert_eq!(made["spec"]["ingress"][0]["from"][0]["ipBlock"]["cidr"], "10.0.0.0/8");
    assert_eq!(made["spec"]["ingress"][0]["ports"][0]["port"], 80);
    assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], object["metadata"]["uid"]);

    cluster.apply(&policy("life", "web", allows("web", "10.0.0.0/8", 8080)));
    let object = cluster.wait("the second generation", || {
        let object = cluster.get("ztp", "life", "web")?;
        (object["status"]["enforcedGeneration"] == 2).then_some(object)
    });
    assert_eq!(condition(&object, "Programmed")["observedGeneration"], 2);
    let made = cluster.get("networkpolicy", "life", "garrison-web").unwrap();
    assert_eq!(made["spec"]["ingress"][0]["ports"][0]["port"], 8080);

    // As an observer it takes nothing from anybody.
    let mut spec = allows("web", "10.0.0.0/8", 8080);
    spec["mode"] = json!("observe");
    cluster.apply(&policy("life", "web", spec));
    cluster.reason("ztp", "life", "web", "Programmed", "NotEnforced");
    assert_eq!(cluster.get("networkpolicy", "life", "garrison-web"), None);

    cluster.apply(&policy("life", "web", allows("web", "10.0.0.0/8", 80)));
    cluster.programmed("life", "web");
    cluster.kubectl(&["delete", "ztp", "-n", "life", "web"]);
    cluster.wait("the object to go", || {
        cluster
            .get("networkpolicy", "life", "garrison-web")
            .is_none()
            .then_some(())
    });
    let events = cluster.kubectl(&["get", "events", "-n", "life", "-o", "json"]);
    assert!(events.contains("\"Programmed\""), "{events}");
}

#[test]
fn what_another_made_is_left_alone() {
    let Some(cluster) = shared("lifecycle::what_another_made_is_left_alone") else {
        return;
    };
    cluster.namespace("taken", "");
    let other = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "garrison-web", "namespace": "taken"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"]},
    });
    cluster.apply(&other.to_string());
    cluster.apply(&policy("taken", "web", allows("web", "10.0.0.0/8", 80)));
    let object = cluster.reason("ztp", "taken", "web", "Programmed", "Conflict");
    let message = condition(&object, "Programmed")["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("taken/garrison-web") && message.contains("GAR-CTL-0005"),
        "{message}"
    );
    let there = cluster.get("networkpolicy", "taken", "garrison-web").unwrap();
    assert_eq!(there["spec"]["policyTypes"], json!(["Egress"]));

    cluster.kubectl(&["delete", "networkpolicy", "-n", "taken", "garrison-web"]);
    cluster.programmed("taken", "web");
}

#[test]
fn a_cluster_wide_policy_follows_the_labels_of_namespaces() {
    let Some(cluster) = shared("lifecycle::a_cluster_wide_policy_follows_the_labels_of_namespaces") else {
        return;
    };
    cluster.namespace("wide-a", "wide=yes");
    cluster.namespace("wide-b", "");
    let spec = json!({
        "mode": "enforce", "owner": "platform", "reason": "a test", "tier": 10,
        "subject": {"workloads": {"namespaceSelector": {"matchLabels": {"wide": "yes"}}}},
        "ingress": [{"name": "not-from-there", "action": "deny", "from": [{"cidr": "10.128.0.0/9"}]}],
    });
    cluster.apply(&policy("", "wide", spec));
    // What the cluster denies is cut out of what the namespace allows.
    let open = allows("web", "10.0.0.0/8", 23);
    cluster.apply(&policy("wide-a", "web", open.clone()));
    cluster.apply(&policy("wide-b", "web", open));
    let from = |namespace: &str| {
        let made = cluster.get("networkpolicy", namespace, "garrison-web")?;
        made["spec"]["ingress"][0]["from"][0]["ipBlock"]["cidr"]
            .as_str()
            .map(str::to_owned)
    };
    cluster.wait("the cut", || from("wide-a").filter(|cidr| cidr == "10.0.0.0/9"));
    cluster.programmed("wide-b", "web");
    assert_eq!(from("wide-b").as_deref(), Some("10.0.0.0/8"));
    assert!(
        cluster
            .get("networkpolicy", "wide-a", "garrison-cluster.wide")
            .is_some()
    );
    assert_eq!(cluster.get("networkpolicy", "wide-b", "garrison-cluster.wide"), None);
    cluster.reason("cztp", "", "wide", "Programmed", "Programmed");

    cluster.kubectl(&["label", "namespace", "wide-b", "wide=yes"]);
    cluster.wait("the cut in the other", || {
        from("wide-b").filter(|cidr| cidr == "10.0.0.0/9")
    });
    cluster.kubectl(&["delete", "cztp", "wide"]);
    for namespace in ["wide-a", "wide-b"] {
        cluster.wait("the cut to go", || from(namespace).filter(|cidr| cidr == "10.0.0.0/8"));
        assert_eq!(cluster.get("networkpolicy", namespace, "garrison-cluster.wide"), None);
    }
}

#[test]
fn a_thousand_policies() {
    let Some(cluster) = shared("lifecycle::a_thousand_policies") else {
        return;
    };
    let (namespaces, each) = (10_u16, 100_u16);
    let name = |n: u16| format!("many-{n}");
    for n in 0..namespaces {
        cluster.namespace(&name(n), "");
    }
    // kubectl holds itself to a few calls a second, so each namespace gets its own.
    let in_each = |work: &(dyn Fn(u16) + Sync)| {
        std::thread::scope(|scope| {
            for n in 0..namespaces {
                scope.spawn(move || work(n));
            }
        });
    };
    let began = Instant::now();
    in_each(&|n| {
        let items: Vec<Value> = (0..each)
            .map(|i| {
                let spec = allows(&format!("app-{i}"), "10.0.0.0/8", 1_000 + i);
                serde_json::from_str(&policy(&name(n), &format!("app-{i}"), spec)).unwrap()
            })
            .collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        let arguments = ["create", "--validate=false", "-f", "-"];
        cluster.try_kubectl(&arguments, Some(&list)).unwrap();
    });
    let created = began.elapsed();
    for n in 0..namespaces {
        cluster.wait("a hundred policies", || {
            let policies = cluster.list("ztp", &name(n));
            let done = |object: &&Value| condition(object, "Programmed")["status"] == "True";
            (policies.iter().filter(done).count() == usize::from(each)).then_some(())
        });
        assert_eq!(cluster.list("networkpolicy", &name(n)).len(), usize::from(each));
    }
    println!(
        "1000 policies: created in {created:.1?}, all programmed after {:.1?}",
        began.elapsed()
    );
    // One call removes all of a namespace.
    let began = Instant::now();
    in_each(&|n| {
        let path = format!("/apis/garrison.dev/v1alpha1/namespaces/{}/zerotrustpolicies", name(n));
        cluster.kubectl(&["delete", "--raw", &path]);
    });
    for n in 0..namespaces {
        cluster.wait("nothing to be left", || {
            cluster.list("networkpolicy", &name(n)).is_empty().then_some(())
        });
    }
    println!("1000 policies: gone after {:.1?}", began.elapsed());
}

#[test]
fn metrics_are_served() {
    let Some(cluster) = shared("lifecycle::metrics_are_served") else {
        return;
    };
    let second = cluster.controller(&crate::cluster::Settings {
        name: "metrics",
        ..Default::default()
    });
    let (status, text) = get(second.admin, "/metrics").unwrap();
    assert_eq!(status, 200);
    assert!(text.contains("target_info"), "{text}");
}
