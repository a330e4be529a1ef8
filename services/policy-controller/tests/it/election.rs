//! Two controllers, one of which acts; and an API server that goes and comes back.

use std::time::Duration;

use crate::cluster::{Cluster, Settings, allows, policy};

fn holder(cluster: &Cluster) -> String {
    let lease = cluster.get("lease", "garrison", "policy-controller");
    let holder = lease.and_then(|lease| lease["spec"]["holderIdentity"].as_str().map(str::to_owned));
    holder.unwrap_or_default()
}

fn led_by(cluster: &Cluster, wanted: &str) {
    cluster.wait(&format!("{wanted} to lead"), || {
        (holder(cluster) == wanted).then_some(())
    });
}

#[test]
fn one_acts_another_takes_over_and_the_server_may_go() {
    let name = "election::one_acts_another_takes_over_and_the_server_may_go";
    let Some(programs) = garrison_testkit::kubernetes(name) else {
        return;
    };
    let cluster = Cluster::start(&programs);
    let settings = |name| Settings {
        name,
        ..Settings::default()
    };
    cluster.namespace("shop", "");
    let mut first = cluster.controller(&settings("first"));
    led_by(&cluster, "first");
    let mut second = cluster.controller(&settings("second"));
    cluster.apply(&policy("shop", "a", allows("a", "10.0.0.0/8", 80)));
    cluster.programmed("shop", "a");
    assert_eq!(holder(&cluster), "first");

    // Killed: the lease runs out, and the other acts.
    first.process.kill();
    led_by(&cluster, "second");
    cluster.apply(&policy("shop", "b", allows("b", "10.0.0.0/8", 80)));
    cluster.programmed("shop", "b");
    // What the first had written was no change by another.
    let object = cluster.get("ztp", "shop", "a").unwrap();
    assert_eq!(object["status"]["restored"], 0, "{object:#}");

    // The API server goes: the controller stays, says so, and goes on when it is back.
    cluster.server.stop();
    cluster.wait("the controller to be not ready", || {
        let (status, text) = crate::cluster::get(second.admin, "/readyz")?;
        (status == 503 && text.contains("kubernetes")).then_some(())
    });
    assert!(second.process.is_running());
    cluster.server.resume().unwrap();
    cluster.apply(&policy("shop", "c", allows("c", "10.0.0.0/8", 80)));
    cluster.programmed("shop", "c");
    cluster.kubectl(&[
        "patch",
        "networkpolicy",
        "-n",
        "shop",
        "garrison-a",
        "--type=merge",
        "-p",
        r#"{"spec":{"ingress":[{}]}}"#,
    ]);
    cluster.wait("the change to be undone", || {
        let object = cluster.get("networkpolicy", "shop", "garrison-a")?;
        object["spec"].to_string().contains("10.0.0.0/8").then_some(())
    });

    // There is no webhook here. A document with errors takes nothing away, and one that reaches for another namespace
    // gets nothing there.
    let mut wrong = allows("a", "10.9.0.0/16", 80);
    wrong["subject"]["workloads"]["namespace"] = serde_json::json!("garrison");
    cluster.apply(&policy("shop", "a", wrong));
    cluster.reason("ztp", "shop", "a", "Programmed", "Invalid");
    let object = cluster.get("networkpolicy", "shop", "garrison-a").unwrap();
    assert!(object["spec"].to_string().contains("10.0.0.0/8"), "{object:#}");
    assert_eq!(cluster.get("networkpolicy", "garrison", "garrison-a"), None);

    // Asked to stop, it gives the lease back, so that nobody has to wait.
    assert!(
        second
            .process
            .end(garrison_testkit::Signal::TERM, Duration::from_secs(30))
    );
    assert_eq!(holder(&cluster), "");
    let third = cluster.controller(&settings("third"));
    led_by(&cluster, "third");
    let log = std::fs::read_to_string(&third.log).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}
