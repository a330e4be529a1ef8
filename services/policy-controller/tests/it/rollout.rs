//! A version that denies too much is gone back from.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::cluster::{Cluster, Settings, allows, policy};

/// Answers every query with a number, in the words of Prometheus' API.
pub(crate) fn figures(denied: Arc<AtomicU32>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut request = [0; 4_096];
            let read = stream.read(&mut request).unwrap_or_default();
            let asked = String::from_utf8_lossy(&request[..read]).into_owned();
            // The query is about this policy.
            let number = if asked.contains("policy%3D%22web%22") {
                denied.load(Ordering::Relaxed)
            } else {
                0
            };
            let body = format!(
                "{{\"status\":\"success\",\"data\":{{\"resultType\":\"vector\",\"result\":[{{\"metric\":{{}},\"value\":[1,\"{number}\"]}}]}}}}"
            );
            let _ = write!(
                stream,
                "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
    port
}

#[test]
fn a_version_that_denies_too_much_is_gone_back_from() {
    let name = "rollout::a_version_that_denies_too_much_is_gone_back_from";
    let Some(programs) = garrison_testkit::kubernetes(name) else {
        return;
    };
    let cluster = Cluster::start(&programs);
    cluster.namespace("shop", "");
    let denied = Arc::new(AtomicU32::new(3));
    let port = figures(denied.clone());
    let more = format!(
        "[rollout]\nprometheus = \"http://127.0.0.1:{port}\"\nquery = 'sum(rate(denied{{namespace=\"{{namespace}}\",policy=\"{{policy}}\"}}[1m]))'\n\
         watch_ms = 3000\ninterval_ms = 200\nmost_denied_per_second = 5.0\nlooks = 2\n"
    );
    let settings = |name| Settings {
        name,
        more: more.clone(),
        ..Settings::default()
    };
    let mut controller = cluster.controller(&settings("first"));
    let phase = |wanted: &str, generation: u32| {
        cluster.wait(&format!("{wanted} of {generation}"), || {
            let object = cluster.get("ztp", "shop", "web")?;
            let rollout = &object["status"]["rollout"];
            (rollout["phase"] == wanted && rollout["generation"] == generation).then_some(object.clone())
        })
    };
    let from = || {
        let made = cluster.get("networkpolicy", "shop", "garrison-web")?;
        made["spec"]["ingress"][0]["from"][0]["ipBlock"]["cidr"]
            .as_str()
            .map(str::to_owned)
    };
    // The first version denies no more than was denied before, and is kept.
    cluster.apply(&policy("shop", "web", allows("web", "10.0.0.0/8", 80)));
    phase("Kept", 1);
    assert_eq!(from().as_deref(), Some("10.0.0.0/8"));

    // The second shuts too many out.
    cluster.apply(&policy("shop", "web", allows("web", "10.1.0.0/16", 80)));
    cluster.wait("the second version", || (from()? == "10.1.0.0/16").then_some(()));
    denied.store(50, Ordering::Relaxed);
    let object = phase("Returned", 2);
    assert_eq!(object["status"]["rollout"]["previous"], 1);
    cluster.wait("the first version", || (from()? == "10.0.0.0/8").then_some(()));
    let object = cluster.reason("ztp", "shop", "web", "Programmed", "Returned");
    assert_eq!(object["status"]["enforcedGeneration"], 1, "{object:#}");

    // Another process goes on where this one ended.
    controller.process.kill();
    let _second = cluster.controller(&settings("second"));
    cluster.wait("the second process to lead", || {
        let lease = cluster.get("lease", "garrison", "policy-controller")?;
        (lease["spec"]["holderIdentity"] == "second").then_some(())
    });
    // A third version is judged anew.
    denied.store(50, Ordering::Relaxed);
    cluster.apply(&policy("shop", "web", allows("web", "10.2.0.0/16", 80)));
    phase("Kept", 3);
    assert_eq!(from().as_deref(), Some("10.2.0.0/16"));
    let revisions = cluster.list("controllerrevisions", "shop");
    assert_eq!(revisions.len(), 1, "{revisions:#?}");
}
