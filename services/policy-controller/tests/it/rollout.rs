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
    let more = |watch_ms: u32| {
        format!(
            "[rollout]\nprometheus = \"http://127.0.0.1:{port}\"\nquery = 'sum(rate(denied{{namespace=\"{{namespace}}\",policy=\"{{policy}}\"}}[1m]))'\n\
         watch_ms = {watch_ms}\ninterval_ms = 200\nmost_denied_per_second = 5.0\nlooks = 2\n"
        )
    };
    let lead = |name, watch_ms| {
        let settings = Settings {
            name,
            more: more(watch_ms),
            ..Settings::default()
        };
        let controller = cluster.controller(&settings);
        cluster.wait("the process to lead", || {
            let lease = cluster.get("lease", "garrison", "policy-controller")?;
            (lease["spec"]["holderIdentity"] == name).then_some(())
        });
        controller
    };
    let mut controller = lead("first", 3_000);
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
    cluster.wait("the first version", || (from()? == "10.0.0.0/8").then_some(()));

    // Another process goes on where this one ended. The second version shuts too many out; it is watched for so long that
    // this is seen on a slow machine too.
    controller.process.kill();
    let mut controller = lead("second", 600_000);
    cluster.apply(&policy("shop", "web", allows("web", "10.1.0.0/16", 80)));
    cluster.wait("the second version", || (from()? == "10.1.0.0/16").then_some(()));
    denied.store(50, Ordering::Relaxed);
    let object = phase("Returned", 2);
    assert_eq!(object["status"]["rollout"]["previous"], 1);
    cluster.wait("the first version again", || (from()? == "10.0.0.0/8").then_some(()));
    let object = cluster.reason("ztp", "shop", "web", "Programmed", "Returned");
    assert_eq!(object["status"]["enforcedGeneration"], 1, "{object:#}");

    // A third version is judged anew.
    controller.process.kill();
    let _controller = lead("third", 3_000);
    denied.store(50, Ordering::Relaxed);
    cluster.apply(&policy("shop", "web", allows("web", "10.2.0.0/16", 80)));
    phase("Kept", 3);
    cluster.wait("the third version", || (from()? == "10.2.0.0/16").then_some(()));
    let revisions = cluster.list("controllerrevisions", "shop");
    assert_eq!(revisions.len(), 1, "{revisions:#?}");
}
