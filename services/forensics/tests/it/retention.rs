//! What is old goes, and sealed evidence never does.

use chrono::Utc;
use garrison_proof::verify_bundle;
use garrison_proto::forensics::v1::{BundleState, CreateBundleRequest};
use uuid::Uuid;

use crate::{
    evidence::{create, happen, until_done},
    world::{World, files, flow_id, tenant},
};

async fn execute(world: &World, statement: &'static str) -> u64 {
    let mut tx = world.db.begin(&tenant("acme")).await.unwrap();
    let done = sqlx::query(statement).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    done.rows_affected()
}

async fn count(world: &World, statement: &'static str) -> i64 {
    let mut tx = world.db.begin(&tenant("acme")).await.unwrap();
    sqlx::query_scalar(statement).fetch_one(&mut *tx).await.unwrap()
}

fn parquet(world: &World) -> usize {
    let files = files(&world.data.join("acme"));
    files
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "parquet"))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_and_events_go_with_age_and_sealed_evidence_never() {
    let mut world = World::new().await;
    world.lake = "roll_interval_ms = 200\nreserve_bytes = 0\nretention_hours = 2".into();
    // One attempt at the bundle, however slow the machine is.
    world.evidence = "lease_ms = 60000\npacket_timeout_ms = 60000".into();
    world.start();
    world.until_ready().await;
    world.publish("acme", 0, 50).await;
    world
        .until("the first file", async || world.catalogue("acme").await == (1, 50))
        .await;
    let case = happen(&world, "acme").await;
    let request: CreateBundleRequest = create(&case, Uuid::now_v7());
    let made = world
        .responder("acme")
        .create_bundle(request)
        .await
        .unwrap()
        .into_inner()
        .bundle
        .unwrap();
    let sealed = until_done(&world, "acme", &made.name).await;
    assert_eq!(sealed.state(), BundleState::Sealed, "{}", sealed.error);
    world.publish("acme", 50, 80).await;
    world
        .until("the second file", async || world.catalogue("acme").await == (2, 80))
        .await;
    assert_eq!(parquet(&world), 2);

    // Everything was a minute too long ago, or a minute not long enough, and the evidence ten years ago.
    world.kill();
    let first = "UPDATE flow_file SET stored = now() - interval '2 hours 1 minute' WHERE rows = 50";
    assert_eq!(execute(&world, first).await, 1);
    let second = "UPDATE flow_file SET stored = now() - interval '1 hour 59 minutes' WHERE rows = 30";
    assert_eq!(execute(&world, second).await, 1);
    for statement in [
        "UPDATE alert SET stored = now() - interval '401 days' WHERE alert_id = (SELECT min(alert_id::text)::uuid FROM alert)",
        "UPDATE alert SET stored = now() - interval '399 days' WHERE stored > now() - interval '1 day'",
        "UPDATE incident SET stored = now() - interval '401 days'",
        "UPDATE response SET stored = now() - interval '401 days'",
        "UPDATE event SET stored = now() - interval '401 days'",
        "UPDATE bundle SET created = now() - interval '10 years', sealed = now() - interval '10 years'",
    ] {
        assert!(execute(&world, statement).await > 0, "{statement}");
    }
    // An older version of the policy, which was replaced before the time that is kept.
    let older = "INSERT INTO event (tenant_id, event_id, kind, subject, time, message, stored)
        SELECT tenant_id, '00000000-0000-7000-8000-000000000001', kind, subject, time, message, stored - interval '1 day'
        FROM event WHERE subject = 'policies/database-only'";
    assert_eq!(execute(&world, older).await, 1);
    world.start();
    world.until_ready().await;
    world
        .until("flows gone", async || world.catalogue("acme").await == (1, 30))
        .await;
    world
        .until("events gone", async || {
            count(&world, "SELECT count(*) FROM event").await == 2
        })
        .await;
    assert_eq!(parquet(&world), 1);
    let left = world.until_found("acme", 30).await;
    assert!(left.iter().all(|flow| flow.flow_id != flow_id(0).to_string()));
    // The policies in force stay, and what was kept less than 400 days ago.
    assert_eq!(
        count(&world, "SELECT count(*) FROM event WHERE subject LIKE 'policies/%'").await,
        2
    );
    assert_eq!(count(&world, "SELECT count(*) FROM alert").await, 1);
    assert_eq!(count(&world, "SELECT count(*) FROM incident").await, 0);
    assert_eq!(count(&world, "SELECT count(*) FROM response").await, 0);

    let bundle = until_done(&world, "acme", &made.name).await;
    assert_eq!((bundle.state(), &bundle.sha256), (BundleState::Sealed, &sealed.sha256));
    let custody = count(&world, "SELECT count(*) FROM custody_event").await;
    assert_eq!(custody, 3);
    let archives = files(&world.data.join("acme/bundles"));
    assert_eq!(archives.len(), 1);
    let report = verify_bundle(std::fs::File::open(&archives[0]).unwrap(), Some(&sealed.key_id)).unwrap();
    assert_eq!(report.sha256, sealed.sha256);
    assert!(report.manifest.created < Utc::now().to_rfc3339());
}
