//! From flows to verdicts, counts and alerts.

use garrison_flow::{FlowRow, FlowState};
use garrison_proto::{
    alert::v1::{EntityKind, Severity},
    from_timestamp,
    policy::v1::{self as proto, Verdict, policy_service_server::PolicyService as _},
};
use uuid::Uuid;

use crate::world::{CAPTURED, World, batch, flow, lab, request, tenant};

fn count(policy: &str, rule: &str, verdict: Verdict, flows: u64) -> (String, String, Verdict, u64) {
    (policy.to_owned(), rule.to_owned(), verdict, flows)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forbidden_flow_raises_one_alert_and_every_flow_is_counted() {
    let world = World::start().await;
    let replica = world.replica().await;
    replica.apply("acme", &lab("database")).await;
    let rows = [
        flow(1, "10.20.0.10", "10.20.0.20", 5432),
        flow(2, "10.20.0.30", "10.20.0.20", 5432),
        flow(3, "10.20.0.30", "10.20.0.10", 80),
    ];
    world.flows("acme", &rows).await;
    let alerts = world.alerts(1).await;
    let alert = &alerts[0];
    assert_eq!(alert.detector, "policy.violation");
    assert_eq!(alert.severity(), Severity::High);
    assert_eq!(alert.policy, "database@1 default-deny");
    assert_eq!(
        alert.title,
        "10.20.0.30 opened TCP/5432 of 10.20.0.20, which policy database forbids"
    );
    let entity = alert.entity.as_ref().unwrap();
    assert_eq!((entity.kind(), entity.value.as_str()), (EntityKind::Host, "10.20.0.30"));
    assert_eq!(alert.targets[0].value, "10.20.0.20:5432/tcp");
    assert_eq!(alert.techniques[0].id, "T1021");
    assert_eq!(alert.flows.len(), 1);
    assert_eq!(alert.flows[0].flow_id, Uuid::from_bytes([2; 16]).to_string());
    let trigger = from_timestamp(alert.trigger_time.as_ref().unwrap()).unwrap();
    assert_eq!(
        trigger.timestamp_nanos_opt(),
        Some(CAPTURED + 2),
        "the packet's capture time"
    );
    let (subject, _) = &world.messages("ALERTS").await[0];
    assert_eq!(subject, "alerts.v1.acme.high.policy-violation");

    // Later records of known flows change nothing.
    let later: Vec<FlowRow<'_>> = rows
        .iter()
        .map(|row| FlowRow {
            state: FlowState::Ended as u8,
            record_seq: 1,
            ..row.clone()
        })
        .collect();
    world.flows("acme", &later).await;
    world.flows_are_done().await;
    world.alerts(1).await;
    assert_eq!(
        replica.counts("acme").await,
        [
            count("", "", Verdict::Ungoverned, 1),
            count("policies/database", "default-deny", Verdict::Deny, 1),
            count("policies/database", "from-web", Verdict::Allow, 1),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_violations_fold_and_doubling_is_told() {
    let world = World::start().await;
    let replica = world.replica().await;
    replica.apply("acme", &lab("database")).await;
    for number in 1..=5 {
        world
            .flows("acme", &[flow(number, "10.20.0.30", "10.20.0.20", 5432)])
            .await;
        world.flows_are_done().await;
    }
    let alerts = world.alerts(3).await;
    let ids: Vec<_> = alerts.iter().map(|a| a.alert_id.clone()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "one alert, told three times");
    assert_eq!(alerts.iter().map(|a| a.count).collect::<Vec<_>>(), [1, 2, 4]);
    assert_eq!(alerts[2].flows.len(), 4);
    // A port scan of the governed host is a few alerts.
    let scan: Vec<_> = (1..=200)
        .map(|port| FlowRow {
            flow_id: [200, port as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ..flow(9, "10.20.0.31", "10.20.0.20", port)
        })
        .collect();
    world.flows("acme", &scan).await;
    world.flows_are_done().await;
    let alerts = world.alerts(3 + 17).await;
    assert_eq!(alerts[3..].iter().map(|a| a.count).sum::<u64>(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observing_policy_counts_and_raises_nothing() {
    let world = World::start().await;
    let replica = world.replica().await;
    let document = lab("database").replace("mode: enforce", "mode: observe");
    replica.apply("acme", &document).await;
    world.flows("acme", &[flow(1, "10.20.0.30", "10.20.0.20", 5432)]).await;
    world.flows_are_done().await;
    world.alerts(0).await;
    assert_eq!(
        replica.counts("acme").await,
        [
            count("", "", Verdict::Ungoverned, 1),
            count("policies/database", "default-deny", Verdict::Deny, 1),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_policy_meets_flows_that_are_under_way() {
    let world = World::start().await;
    let replica = world.replica().await;
    replica.apply("acme", &lab("database")).await;
    let web = flow(1, "10.20.0.10", "10.20.0.20", 5432);
    world.flows("acme", std::slice::from_ref(&web)).await;
    world.flows_are_done().await;
    replica
        .apply("acme", &lab("database").replace("port: 5432", "port: 5433"))
        .await;
    let later = FlowRow {
        state: FlowState::Active as u8,
        record_seq: 1,
        last_seen: CAPTURED + 5_000_000_000,
        ..web
    };
    world.flows("acme", &[later]).await;
    let alert = world.alerts(1).await.remove(0);
    assert_eq!(alert.policy, "database@2 default-deny");
    let trigger = from_timestamp(alert.trigger_time.as_ref().unwrap()).unwrap();
    assert_eq!(trigger.timestamp_nanos_opt(), Some(CAPTURED + 5_000_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_the_other_replica_within_about_a_second() {
    let world = World::start().await;
    let (first, second) = (world.replica().await, world.replica().await);
    let explain = async || {
        let message = proto::ExplainConnectionRequest {
            src_ip: "10.20.0.30".to_owned(),
            dst_ip: "10.20.0.20".to_owned(),
            dst_port: 5432,
            protocol: 6,
        };
        second
            .api
            .explain_connection(request("acme", message))
            .await
            .unwrap()
            .into_inner()
    };
    assert_eq!(explain().await.verdict(), Verdict::Ungoverned);
    let start = std::time::Instant::now();
    first.apply("acme", &lab("database")).await;
    crate::world::until("the other replica knows", async || {
        explain().await.verdict() == Verdict::Deny
    })
    .await;
    let answer = explain().await;
    assert_eq!(
        (answer.policy.as_str(), answer.version, answer.rule.as_str()),
        ("policies/database", 1, "default-deny")
    );
    println!(
        "the change was in force in the other replica after {:?}",
        start.elapsed()
    );
    first
        .api
        .delete_policy(request(
            "acme",
            proto::DeletePolicyRequest {
                name: "database".to_owned(),
            },
        ))
        .await
        .unwrap();
    crate::world::until("it is gone", async || explain().await.verdict() == Verdict::Ungoverned).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_raise_nothing_twice() {
    let world = World::start().await;
    let replica = world.replica().await;
    replica.apply("acme", &lab("database")).await;
    let rows = [flow(1, "10.20.0.30", "10.20.0.20", 5432)];
    world.flows("acme", &rows).await;
    world.alerts(1).await;
    drop(replica);
    // Another process remembers no flow. The same message again, and the same flow in another message.
    let after = world.replica().await;
    let (again, _) = garrison_flow::decode(&batch("acme", &rows)).unwrap();
    let message = Uuid::now_v7();
    after.app.judge(&tenant("acme"), message, &again).await.unwrap();
    let third = world.replica().await;
    third.app.judge(&tenant("acme"), message, &again).await.unwrap();
    world.alerts(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_go_to_the_dead_letters_and_hold_nothing_up() {
    use garrison_bus::{Message, content_type, subject};
    let world = World::start().await;
    let replica = world.replica().await;
    replica.apply("acme", &lab("database")).await;
    let flows = || subject::flows(&tenant("acme"), 0);
    let rows = [flow(1, "10.20.0.30", "10.20.0.20", 5432)];
    let whole = batch("acme", &rows);
    world
        .send(Message::flows(flows(), "flow-ingest", "garbage".into()))
        .await;
    world
        .send(Message::flows(flows(), "flow-ingest", whole.slice(..whole.len() / 2)))
        .await;
    world
        .send(Message::flows(flows(), "flow-ingest", batch("other", &rows)))
        .await;
    world
        .send(Message::new(
            flows(),
            "flow-ingest",
            "x",
            content_type::JSON,
            "{}".into(),
        ))
        .await;
    world
        .send(Message::flows(flows(), "flow-ingest", bytes::Bytes::new()))
        .await;
    world.flows("acme", &rows).await;
    world.alerts(1).await;
    let dead = world.exactly("DLQ", 5).await;
    let dlq = subject::dlq("FLOWS", "policy");
    assert_eq!(dead.iter().filter(|(subject, _)| *subject == dlq).count(), 5);
}
