//! Several replicas: whatever becomes of one, together they tell what one alone would have told.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anomaly::domain::{
    detector::Detector,
    finding::message_id,
    tenant::{Arrival, Tenant},
};
use chrono::DateTime;
use garrison_bus::subject::{self, SHARDS};
use garrison_db::Db;
use garrison_proto::{
    TenantId,
    alert::v1::{ModelPhase, StartLearningRequest, detection_service_server::DetectionService as _},
};
use garrison_testkit::{Signal, Stack};
use uuid::Uuid;

use crate::{
    api::{Bench, by},
    traffic::{Flow, now, office},
    world::{Kept, Replica, World, tenant},
};

/// Tenants of the test, and scanners of each.
const TENANTS: usize = 4;
const SCANNERS: usize = 2;

fn tenants() -> Vec<TenantId> {
    (0..TENANTS).map(|n| tenant(&format!("tenant{n}"))).collect()
}

/// One probe a message of every scanner of every tenant, port by port. Times are made up, so that windows are the same
/// however long the test takes.
async fn probe(world: &World, start: i64, ports: std::ops::RangeInclusive<u16>) {
    for port in ports {
        for id in tenants() {
            for scanner in 0..SCANNERS {
                let at = start + i64::from(port) * 50_000_000 + scanner as i64;
                let flow = Flow {
                    at,
                    ..Flow::refused(&format!("10.0.{scanner}.9"), "10.0.7.2", port)
                };
                world.publish(&id, &[flow]).await;
            }
        }
    }
}

/// The messages that one replica would publish that nothing ever happened to.
fn of_one_alone(flows: &[Kept]) -> BTreeSet<Uuid> {
    let settings = Arc::new(anomaly::config::default_settings());
    let mut told = BTreeSet::new();
    for id in tenants() {
        let mut alone = Tenant::new(id.clone(), Arc::clone(&settings), SHARDS);
        for (position, kept) in flows.iter().enumerate() {
            let parsed = subject::parse(&kept.subject).unwrap();
            if parsed.tenant != id {
                continue;
            }
            let header = |name: &str| kept.headers.get(name).unwrap().as_str();
            let published = DateTime::parse_from_rfc3339(header("ce-time")).unwrap();
            let (batch, _) = garrison_flow::decode(&kept.payload).unwrap();
            let published = published.timestamp_nanos_opt().unwrap();
            alone.budgets.begin(published, false, &settings.budget);
            let judged = alone.judge(&Arrival {
                id: header("ce-id").parse::<Uuid>().unwrap().into_bytes(),
                shard: parsed.rest[0].parse().unwrap(),
                position: position as u64 + 1,
                published,
                now: published,
                batch: &batch,
            });
            assert!(judged.held.is_empty());
            told.extend(judged.alerts.iter().map(|alert| message_id(alert).unwrap()));
        }
        assert!(alone.alerts[Detector::ScanVertical.index()] >= SCANNERS as u64);
    }
    told
}

fn told(alerts: &[Kept]) -> Vec<Uuid> {
    let ids = alerts.iter().map(|kept| kept.headers.get("ce-id").unwrap().as_str());
    ids.map(|id| id.parse().unwrap()).collect()
}

/// What was published is what one replica alone would have published, each message once.
async fn until_all_is_told(world: &World, when: &str) {
    let wanted = of_one_alone(&world.kept("FLOWS").await);
    world
        .until(when, async || told(&world.kept("ALERTS").await).len() >= wanted.len())
        .await;
    let told = told(&world.kept("ALERTS").await);
    assert_eq!(told.len(), wanted.len(), "{when}");
    assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), wanted, "{when}");
}

async fn owns(replica: &Replica, tenants: usize) -> bool {
    replica.metric("garrison_anomaly_owned_tenants", "").await == Some(tenants as f64)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_goes_dies_or_stops_for_a_while_nothing_is_lost_and_nothing_is_doubled() {
    // What the first and the third judged is saved when they hand it over, and otherwise not at all.
    const SELDOM: &str = "lease_seconds = 2\n[checkpoint]\ninterval_ms = 60000";
    const OFTEN: &str = "lease_seconds = 2\n[checkpoint]\ninterval_ms = 100";
    let world = World::new().await;
    let start = now() - 60_000_000_000;
    let mut first = world.replica("first", SELDOM);
    world.until("all with the first", async || owns(&first, 0).await).await;
    probe(&world, start, 1..=6).await;
    world
        .until("all with the first", async || owns(&first, TENANTS).await)
        .await;

    // A second one joins in the middle of scans, and gets its half in order.
    let mut second = world.replica("second", OFTEN);
    probe(&world, start, 7..=12).await;
    world
        .until("half with each", async || {
            owns(&first, TENANTS / 2).await && owns(&second, TENANTS / 2).await
        })
        .await;
    probe(&world, start, 13..=15).await;
    until_all_is_told(&world, "the scans of both").await;
    assert_eq!(told(&world.kept("ALERTS").await).len(), TENANTS * SCANNERS);

    // The first stops without a word, and what it had goes to the second. When it is back it believes that it has it still.
    first.process.signal(Signal::STOP);
    probe(&world, start, 16..=30).await;
    world
        .until("all with the second", async || owns(&second, TENANTS).await)
        .await;
    until_all_is_told(&world, "the repeats while one has stopped").await;
    first.process.signal(Signal::CONT);
    probe(&world, start, 31..=38).await;
    world
        .until("half with each again", async || {
            owns(&first, TENANTS / 2).await && owns(&second, TENANTS / 2).await
        })
        .await;
    assert!(first.said("taken for dead") > 0);
    assert!(first.metric("garrison_anomaly_hand_overs", "change=\"lost\"").await >= Some(1.0));

    // The second is killed while more comes.
    probe(&world, start, 39..=42).await;
    second.process.kill();
    probe(&world, start, 43..=60).await;
    world
        .until("all with the first again", async || owns(&first, TENANTS).await)
        .await;
    until_all_is_told(&world, "what came while one died").await;

    // A third joins and the first leaves in order.
    let third = world.replica("third", SELDOM);
    world
        .until("half with the third", async || owns(&third, TENANTS / 2).await)
        .await;
    assert!(first.process.end(Signal::TERM, Duration::from_secs(60)));
    assert!(first.said("handed the tenant over") >= TENANTS / 2);
    world
        .until("all with the third", async || owns(&third, TENANTS).await)
        .await;
    probe(&world, start, 61..=80).await;
    world.settle().await;
    until_all_is_told(&world, "everything").await;
    assert!(world.kept("DLQ").await.is_empty());
}

async fn told_in(db: &Db, id: &TenantId) -> i64 {
    let mut tx = db.begin(id).await.unwrap();
    sqlx::query_scalar("SELECT count(*) FROM alert WHERE tenant_id = $1")
        .bind(id.as_str())
        .fetch_one(&mut *tx)
        .await
        .unwrap()
}

async fn saved_in(db: &Db, id: &TenantId) -> Vec<u8> {
    let mut tx = db.begin(id).await.unwrap();
    sqlx::query_scalar("SELECT state FROM tenant_state WHERE tenant_id = $1")
        .bind(id.as_str())
        .fetch_one(&mut *tx)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_former_owner_is_written_any_more() {
    let database = Stack::shared().await.database("anomaly", &anomaly::MIGRATOR).await;
    let db = Db::connect(&database, "anomaly").unwrap();
    let id = tenant("fenced");
    let probes: Vec<Flow> = (1..=15)
        .map(|port| Flow::refused("10.0.9.9", "10.0.0.2", port))
        .collect();
    let former = Bench::on(&database, "").await;
    for probe in &probes[..14] {
        former.take(&id, std::slice::from_ref(probe)).await;
    }
    former.engine.checkpoint().await.unwrap();

    // Another process of the same name takes its place; the former knows nothing of it yet.
    let owner = Bench::on(&database, "").await;
    owner.take(&id, &probes[..1]).await;
    owner.engine.checkpoint().await.unwrap();
    let saved = saved_in(&db, &id).await;
    former.take(&id, &office(3)).await;
    former.engine.checkpoint().await.unwrap();
    assert!(saved_in(&db, &id).await == saved, "a former owner saved its state");

    // It has noticed by that. One that notices by its first alert:
    let unaware = owner;
    let owner = Bench::on(&database, "").await;
    owner.take(&id, &probes[..1]).await;
    unaware.take(&id, &probes[14..]).await;
    assert_eq!(told_in(&db, &id).await, 0, "a former owner kept an alert");
    owner.take(&id, &probes[14..]).await;
    assert_eq!(told_in(&db, &id).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_asked_for_a_change_has_the_tenant_handed_over() {
    let database = Stack::shared().await.database("anomaly", &anomaly::MIGRATOR).await;
    let named = |name: &str| format!("[replicas]\nname = \"{name}\"");
    let id = tenant("moving");
    let (one, two) = (
        Bench::on(&database, &named("one")).await,
        Bench::on(&database, &named("two")).await,
    );
    let following = [&one, &two].map(|bench| tokio::spawn(Arc::clone(&bench.engine).follow_replicas()));
    one.take(&id, &office(20)).await;
    // What it has judged goes along: learning begins behind it.
    two.api
        .start_learning(by(&id, StartLearningRequest::default()))
        .await
        .unwrap();
    two.take(&id, &office(30)).await;
    let model = two.model(&id).await;
    assert_eq!((model.phase(), model.learnt_flows), (ModelPhase::Learning, 30));
    // The other one answers from what was saved, and may have it back.
    assert_eq!(one.model(&id).await.phase(), ModelPhase::Learning);
    one.api
        .start_learning(by(&id, StartLearningRequest { include_unusual: true }))
        .await
        .unwrap();
    assert_eq!(one.model(&id).await.learnt_flows, 0);
    one.engine.leave().await;
    two.engine.leave().await;
    for task in following {
        task.await.unwrap();
    }
}
