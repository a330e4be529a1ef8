//! The database or the broker is away, and comes back.

use std::time::Duration;

use garrison_proto::policy::v1::{self as proto, policy_service_server::PolicyService as _};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::world::{World, flow, lab, request, until};

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_go_on_without_the_database_and_violations_wait_for_it() {
    let world = World::start().await;
    let replica = world.replica().await;
    replica.apply("acme", &lab("database")).await;
    world.flows("acme", &[flow(1, "10.20.0.10", "10.20.0.20", 5432)]).await;
    world.flows_are_done().await;
    world.stack.postgres().stop();

    // An allowed flow needs no database.
    world.flows("acme", &[flow(2, "10.20.0.10", "10.20.0.20", 5432)]).await;
    world.flows_are_done().await;
    let away = replica.try_apply("acme", &lab("web"), None).await.unwrap_err();
    assert_eq!(away.code(), Code::Unavailable, "{away:?}");
    assert_eq!(away.get_details_error_info().unwrap().reason, "GAR-POLICY-0204");
    // What is in memory still answers.
    let message = proto::ExplainConnectionRequest {
        src_ip: "10.20.0.30".to_owned(),
        dst_ip: "10.20.0.20".to_owned(),
        dst_port: 5432,
        protocol: 6,
    };
    let answer = replica
        .api
        .explain_connection(request("acme", message))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.verdict(), proto::Verdict::Deny);

    // A forbidden flow waits.
    world.flows("acme", &[flow(3, "10.20.0.30", "10.20.0.20", 5432)]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.stack.postgres().resume().unwrap();
    assert_eq!(world.alerts(1).await[0].count, 1);
    world.flows_are_done().await;
    let allowed =
        |counts: &[(String, String, proto::Verdict, u64)]| counts.iter().find(|c| c.1 == "from-web").map(|c| c.3);
    assert_eq!(
        allowed(&replica.counts("acme").await),
        Some(2),
        "nothing counted was lost"
    );
    until("policies can be applied again", async || {
        replica.try_apply("acme", &lab("web"), None).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_wait_for_the_broker() {
    let world = World::start().await;
    let replica = world.replica().await;
    replica.apply("acme", &lab("database")).await;
    let rows = [flow(1, "10.20.0.30", "10.20.0.20", 5432)];
    let (batch, _) = garrison_flow::decode(&crate::world::batch("acme", &rows)).unwrap();
    world.stack.nats().stop();
    let tenant = crate::world::tenant("acme");
    replica.app.judge(&tenant, uuid::Uuid::now_v7(), &batch).await.unwrap();
    replica.apply("acme", &lab("web")).await;
    world.stack.nats().resume().unwrap();
    world.alerts(1).await;
    assert_eq!(world.exactly("EVENTS", 2).await.len(), 2);
}
