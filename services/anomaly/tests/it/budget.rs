//! The alarm budget: kept on a made stream, over restarts and kills, and nobody else's; what was held back is listed.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

use anomaly::{
    app::Engine,
    config::Config,
    domain::budget::Reason,
    grpc::{budget::Budgets, verdicts::Verdicts},
    store::held::{self, Query},
};
use chrono::{DateTime, Utc};
use garrison_bus::{Bus, Delivery, Disposition, Message, subject};
use garrison_db::{Db, DbConfig};
use garrison_flow::{BatchMeta, FlowBatchBuilder, FlowRow, FlowState, LossLedger, encode};
use garrison_proto::{
    TenantId,
    alert::v1::{
        AlarmBudget, GetAlarmBudgetRequest, HeldAlert, HeldReason, ListHeldAlertsRequest, ListRankedAlertsRequest,
        ReleaseHeldAlertRequest, SetAlarmBudgetRequest, Severity, budget_service_server::BudgetService as _,
        verdict_service_server::VerdictService as _,
    },
    audit::v1::AuditRecord,
};
use garrison_testkit::Stack;
use prost::Message as _;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::{
    api::by,
    traffic::{Flow, now},
    world::{World, tenant},
};

mod records;

const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400 * SECOND;

/// Logins that anybody on the way can read, each at a service of its own: alerts of low severity.
fn readable_logins(tenant: &TenantId, at: i64, hosts: std::ops::Range<u32>) -> bytes::Bytes {
    let mut builder = FlowBatchBuilder::new(hosts.len());
    for host in hosts {
        let [_, b, c, d] = host.to_be_bytes();
        builder.push(&FlowRow {
            flow_id: *Uuid::now_v7().as_bytes(),
            record_seq: 1,
            state: FlowState::Ended as u8,
            sensor: "edge",
            first_seen: at,
            last_seen: at + SECOND / 10,
            protocol: 6,
            src_ip: [10, 9, 9, 9].into(),
            dst_ip: [10, b, c, d].into(),
            src_port: 40_000,
            dst_port: 2_121,
            community_id: "1:LQU9qZlK+B5F3KDmev6m5PMibrg=",
            src_packets: Some(6),
            dst_packets: Some(8),
            src_bytes: Some(400),
            dst_bytes: Some(900),
            conn_state: Some("SF"),
            service: Some("ftp"),
            ..FlowRow::default()
        });
    }
    let meta = BatchMeta {
        tenant: tenant.clone(),
        sensor: "edge".to_owned(),
        batch_seq: 0,
        ledger: LossLedger::default(),
    };
    encode(&builder.finish(), &meta).unwrap()
}

struct Bench {
    database: DbConfig,
    engine: Arc<Engine>,
    clock: Arc<AtomicI64>,
    position: AtomicU64,
    hosts: u32,
}

impl Bench {
    async fn new() -> Self {
        let stack = Stack::shared().await;
        let database = stack.database("anomaly", &anomaly::MIGRATOR).await;
        let clock = Arc::new(AtomicI64::new(Utc::now().timestamp_nanos_opt().unwrap()));
        Self {
            engine: Self::engine(&database, &clock).await,
            database,
            clock,
            position: AtomicU64::new(1),
            hosts: 1,
        }
    }

    async fn engine(database: &DbConfig, clock: &Arc<AtomicI64>) -> Arc<Engine> {
        let stack = Stack::shared().await;
        let db = Db::connect(database, "anomaly").unwrap();
        let bus = Bus::connect(&stack.bus_config("svc/anomaly"), "anomaly").await.unwrap();
        let text = r#"
            core.identity = { trust_domain = "t", cert_file = "c", key_file = "k", ca_file = "a" }
            core.bus = { urls = ["tls://localhost:1"], cert_file = "c", key_file = "k", ca_file = "a" }
        "#;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("anomaly.toml");
        std::fs::write(&path, text).unwrap();
        let config: Config = garrison_service::read_config(&path).unwrap();
        let clock = Arc::clone(clock);
        let clock = Arc::new(move || clock.load(Ordering::Relaxed));
        Arc::new(Engine::new(db, bus, &config, clock))
    }

    /// What is saved is all that is left.
    async fn restart(&mut self) {
        self.engine.checkpoint().await.unwrap();
        self.engine = Self::engine(&self.database, &self.clock).await;
    }

    async fn take(&self, tenant: &TenantId, payload: bytes::Bytes) {
        let time = DateTime::from_timestamp_nanos(self.clock.load(Ordering::Relaxed));
        let position = self.position.fetch_add(1, Ordering::Relaxed);
        let delivery = Delivery {
            id: Uuid::now_v7(),
            subject: subject::flows(tenant, 3),
            tenant: tenant.clone(),
            kind: "garrison.flow.v1.FlowBatch".to_owned(),
            source: "flow-ingest".to_owned(),
            time,
            content_type: "application/vnd.apache.arrow.stream".to_owned(),
            payload,
            traceparent: None,
            attempt: 1,
            stream_sequence: position,
            consumer_sequence: position,
            stored: time,
        };
        assert_eq!(self.engine.take(&delivery).await, Disposition::Ack);
    }

    /// Days of readable logins, so many a day.
    async fn days(&mut self, tenant: &TenantId, days: i64, a_day: u32) {
        const BATCHES: u32 = 30;
        for _ in 0..days * i64::from(BATCHES) {
            let at = self.clock.fetch_add(DAY / i64::from(BATCHES), Ordering::Relaxed) + DAY / i64::from(BATCHES);
            let hosts = self.hosts..self.hosts + a_day / BATCHES;
            self.hosts = hosts.end;
            self.take(tenant, readable_logins(tenant, at, hosts)).await;
        }
    }

    fn api(&self) -> Budgets {
        Budgets(Arc::clone(&self.engine))
    }

    async fn budget(&self, tenant: &TenantId, group: &str) -> AlarmBudget {
        let answer = self.api().get_alarm_budget(by(tenant, GetAlarmBudgetRequest {})).await;
        let mut budgets = answer.unwrap().into_inner().budgets.into_iter();
        budgets.find(|b| b.group == group).unwrap()
    }

    async fn set(&self, tenant: &TenantId, group: &str, alerts_per_day: Option<f64>) -> Result<AlarmBudget, Status> {
        let request = SetAlarmBudgetRequest {
            group: group.to_owned(),
            alerts_per_day,
        };
        let answer = self.api().set_alarm_budget(by(tenant, request)).await?;
        Ok(answer.into_inner().budget.unwrap())
    }

    async fn held(&self, tenant: &TenantId, asked: ListHeldAlertsRequest) -> Result<(Vec<HeldAlert>, String), Status> {
        let answer = self.api().list_held_alerts(by(tenant, asked)).await?.into_inner();
        Ok((answer.alerts, answer.next_page_token))
    }

    async fn release(&self, tenant: &TenantId, alert_id: &str) -> Result<HeldAlert, Status> {
        let request = ReleaseHeldAlertRequest {
            alert_id: alert_id.to_owned(),
            comment: "looks odd".to_owned(),
        };
        let answer = self.api().release_held_alert(by(tenant, request)).await?;
        Ok(answer.into_inner().alert.unwrap())
    }
}

fn field_of(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "GAR-ANOM-0011");
    details.bad_request().unwrap().field_violations[0].field.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_promise_is_kept_over_a_restart_and_what_is_held_back_is_listed_with_the_reason() {
    let mut bench = Bench::new().await;
    let (acme, other) = (tenant("acme"), tenant("other"));
    let before = bench.budget(&acme, "behaviour").await;
    assert_eq!((before.alerts_per_day, before.set), (Some(200.0), false));
    let set = bench.set(&acme, "behaviour", Some(20.0)).await.unwrap();
    assert_eq!((set.alerts_per_day, set.set), (Some(20.0), true));
    assert_eq!(set.configured_alerts_per_day, Some(200.0));
    assert!(set.never_held.contains(&"scan.vertical".to_owned()));
    assert_eq!(set.never_held_severity(), Severity::High);

    bench.days(&acme, 3, 60).await;
    bench.restart().await;
    bench.days(&acme, 4, 90).await;
    let budget = bench.budget(&acme, "behaviour").await;
    let total = budget.total.unwrap();
    assert!((total.promised - 140.0).abs() < 2.0, "{total:?}");
    let realised = total.realised.unwrap();
    assert!((0.8..=1.2).contains(&realised), "{total:?}");
    let day = budget.last_day.unwrap();
    assert!((0.7..=1.3).contains(&day.realised.unwrap()), "{day:?}");
    assert_eq!(total.issued + total.held, 3 * 60 + 4 * 90);
    assert!(budget.set && budget.bound > 0.0);

    // Every one that was held back is there, page after page, latest first.
    let mut all: Vec<HeldAlert> = Vec::new();
    let mut page_token = String::new();
    loop {
        let asked = ListHeldAlertsRequest {
            page_size: 100,
            page_token,
            ..ListHeldAlertsRequest::default()
        };
        let (page, next) = bench.held(&acme, asked).await.unwrap();
        all.extend(page);
        page_token = next;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(all.len() as u64, total.held);
    let ids: std::collections::BTreeSet<&str> = all
        .iter()
        .map(|h| h.alert.as_ref().unwrap().alert_id.as_str())
        .collect();
    assert_eq!(ids.len(), all.len());
    let times: Vec<_> = all
        .iter()
        .map(|h| h.held_time.unwrap())
        .map(|t| (t.seconds, t.nanos))
        .collect();
    assert!(times.is_sorted_by(|a, b| a >= b));
    for held in &all {
        assert_eq!(held.group, "behaviour");
        assert!(matches!(
            held.reason(),
            HeldReason::AheadOfPromise | HeldReason::Outranked
        ));
        assert!(held.rarity > held.bound, "{held:?}");
        assert!(held.explanation.contains("may be told"), "{}", held.explanation);
        assert_eq!(held.alert.as_ref().unwrap().detector, "credentials.clear_text");
    }

    // Filters, and what cannot be asked.
    let of = |group: &str, detector: &str| ListHeldAlertsRequest {
        group: group.to_owned(),
        detector: detector.to_owned(),
        ..ListHeldAlertsRequest::default()
    };
    assert!(bench.held(&acme, of("model", "")).await.unwrap().0.is_empty());
    assert_eq!(
        bench
            .held(&acme, of("", "credentials.clear_text"))
            .await
            .unwrap()
            .0
            .len(),
        50
    );
    let (_, token) = bench.held(&acme, ListHeldAlertsRequest::default()).await.unwrap();
    for (asked, field) in [
        (of("everything", ""), "group"),
        (of("", "credentials"), "detector"),
        (
            ListHeldAlertsRequest {
                page_size: -1,
                ..of("", "")
            },
            "page_size",
        ),
        (
            ListHeldAlertsRequest {
                page_token: "garbage".to_owned(),
                ..of("", "")
            },
            "page_token",
        ),
        (
            ListHeldAlertsRequest {
                page_token: token,
                ..of("behaviour", "")
            },
            "page_token",
        ),
    ] {
        assert_eq!(field_of(&bench.held(&acme, asked).await.unwrap_err()), field);
    }
    for (group, n, field) in [
        ("", Some(5.0), "group"),
        ("intelligence", Some(5.0), "group"),
        ("model", Some(0.0), "alerts_per_day"),
        ("model", Some(-3.0), "alerts_per_day"),
        ("model", Some(f64::NAN), "alerts_per_day"),
        ("behaviour", Some(2e6), "alerts_per_day"),
    ] {
        assert_eq!(field_of(&bench.set(&acme, group, n).await.unwrap_err()), field);
    }
    assert_eq!(field_of(&bench.release(&acme, "7").await.unwrap_err()), "alert_id");

    // Nobody else's.
    let held = all[0].alert.as_ref().unwrap();
    let theirs = bench.budget(&other, "behaviour").await;
    assert_eq!((theirs.alerts_per_day, theirs.set), (Some(200.0), false));
    assert_eq!(theirs.total.unwrap().held, 0);
    let everything = ListHeldAlertsRequest {
        told: true,
        ..ListHeldAlertsRequest::default()
    };
    assert!(bench.held(&other, everything.clone()).await.unwrap().0.is_empty());
    let foreign = bench.release(&other, &held.alert_id).await.unwrap_err();
    assert_eq!(foreign.code(), Code::NotFound);
    assert_eq!(
        foreign.get_error_details().error_info().unwrap().reason,
        "GAR-ANOM-0030"
    );

    // A person raises one: it is an alert now, and only once.
    let verdicts = Verdicts(Arc::clone(&bench.engine));
    let alerts = async || {
        let asked = ListRankedAlertsRequest {
            within_seconds: 3_600,
            page_size: 1_000,
        };
        let answer = verdicts.list_ranked_alerts(by(&acme, asked)).await.unwrap();
        let alerts = answer.into_inner().alerts.into_iter();
        alerts
            .filter(|a| a.alert.as_ref().unwrap().alert_id == held.alert_id)
            .count()
    };
    assert_eq!(alerts().await, 0);
    let released = bench.release(&acme, &held.alert_id).await.unwrap();
    assert!(released.told_by.starts_with("users/"), "{released:?}");
    assert_eq!(alerts().await, 1);
    bench.clock.fetch_add(SECOND, Ordering::Relaxed);
    assert_eq!(bench.release(&acme, &held.alert_id).await.unwrap(), released);
    assert_eq!(alerts().await, 1);
    assert_eq!(bench.budget(&acme, "behaviour").await.total.unwrap().released, 1);
    let (page, _) = bench.held(&acme, ListHeldAlertsRequest::default()).await.unwrap();
    assert_ne!(page[0].alert.as_ref().unwrap().alert_id, held.alert_id);
    let (page, _) = bench.held(&acme, everything).await.unwrap();
    assert_eq!(page[0].told_by, released.told_by);

    // What was set survives a restart, and goes back to the configuration when asked.
    bench.restart().await;
    let after = bench.budget(&acme, "behaviour").await;
    assert_eq!((after.alerts_per_day, after.set), (Some(20.0), true));
    assert_eq!(after.total.unwrap().held, total.held);
    let back = bench.set(&acme, "behaviour", None).await.unwrap();
    assert_eq!((back.alerts_per_day, back.set), (Some(200.0), false));
}

#[tokio::test]
async fn a_request_without_a_verified_caller_is_refused() {
    let bench = Bench::new().await;
    let api = bench.api();
    for status in [
        api.get_alarm_budget(Request::new(GetAlarmBudgetRequest {})).await.err(),
        api.set_alarm_budget(Request::new(SetAlarmBudgetRequest::default()))
            .await
            .err(),
        api.list_held_alerts(Request::new(ListHeldAlertsRequest::default()))
            .await
            .err(),
        api.release_held_alert(Request::new(ReleaseHeldAlertRequest::default()))
            .await
            .err(),
    ] {
        assert!(matches!(status.unwrap().code(), Code::Unauthenticated | Code::Internal));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_it_holds_back_the_same_and_goes_on_counting() {
    const SMALL: &str = "[budget.behaviour]\nalerts_per_day = 2\n";
    let config = |interval: u32| format!("{SMALL}[checkpoint]\ninterval_ms = {interval}");
    let mut world = World::new().await;
    let acme = tenant("acme");
    // No checkpoint comes in between: everything is read back from the stream.
    world.start(&config(60_000)).await;
    let publish = async |world: &World, hosts: std::ops::Range<u32>| {
        let payload = readable_logins(&acme, now() - SECOND, hosts);
        let message = Message::flows(subject::flows(&acme, 3), "flow-ingest", payload);
        world.publish_raw(message).await;
        world.settle().await;
    };
    publish(&world, 1..31).await;
    world
        .until("the first alerts", async || !world.alerts(&acme).await.is_empty())
        .await;
    let first = world.alerts(&acme).await;
    assert!(first.len() < 15, "{}", first.len());
    world.kill();
    world.start(&config(50)).await;

    // A scan is never held back, whatever was told before.
    let scan: Vec<Flow> = (1..=15)
        .map(|port| Flow::refused("10.0.9.9", "10.0.0.2", port))
        .collect();
    world.publish(&acme, &scan).await;
    world.settle().await;
    let scans = async |world: &World| {
        let alerts = world.alerts(&acme).await;
        alerts.iter().filter(|a| a.detector == "scan.vertical").count()
    };
    world.until("the scan", async || scans(&world).await == 1).await;
    let others = world.alerts(&acme).await.len() - 1;
    assert_eq!(others, first.len(), "what was read back is not told again");

    let db = Db::connect(&world.database, "anomaly").unwrap();
    let query = Query {
        told: true,
        most: 1_000,
        ..Query::default()
    };
    let held = async || held::list(&db, &acme, &query).await.unwrap();
    world
        .until("what was held back", async || held().await.len() + others == 30)
        .await;
    assert!(
        held()
            .await
            .iter()
            .all(|h| h.reason != Reason::BelowFloor && h.told.is_none())
    );
    assert!(held::list(&db, &tenant("other"), &query).await.unwrap().is_empty());
    let metric = async |world: &World, name: &str| world.metric(name, "group=\"behaviour\"").await;
    let held_name = "garrison_anomaly_budget_held_alerts";
    world
        .until("the count", async || {
            metric(&world, held_name).await == Some((30 - others) as f64)
        })
        .await;
    assert_eq!(
        metric(&world, "garrison_anomaly_budget_alerts_per_day").await,
        Some(2.0)
    );

    // Killed with a checkpoint, it goes on from there: nothing is told because it forgot what it had told.
    world.kill();
    world.start(&config(50)).await;
    publish(&world, 31..41).await;
    world
        .until("all of them", async || held().await.len() + others >= 40)
        .await;
    assert_eq!(world.alerts(&acme).await.len(), others + 1);
    assert_eq!(held().await.len() + others, 40);
    assert!(world.kept("AUDIT").await.iter().all(|m| {
        // Nobody did anything.
        AuditRecord::decode(m.payload.as_slice()).unwrap().action != "budget.set"
    }));
}
