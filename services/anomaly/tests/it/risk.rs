//! Alerts and logins on one timeline.

use anomaly::{app::Risks, config::risk::RiskConfig, store::verdicts};
use chrono::{Duration, Utc};
use garrison_bus::{Bus, Message, subject};
use garrison_db::Db;
use garrison_proto::{
    TenantId,
    alert::v1::{EntityKind, EntityRisk, Severity, Verdict},
    event::v1::{LoginEvent, login_event::Outcome},
    to_timestamp,
};
use garrison_testkit::Stack;
use uuid::Uuid;

use crate::{
    traffic::Flow,
    world::{World, tenant},
};

const OFFICE: &str = "10.0.9.9";

fn login(outcome: Outcome, address: &str, hours_ago: i64) -> LoginEvent {
    LoginEvent {
        event_id: Uuid::now_v7().to_string(),
        time: Some(to_timestamp(Utc::now() - Duration::hours(hours_ago))),
        user: "users/1".to_owned(),
        login: "ada".to_owned(),
        outcome: outcome.into(),
        client_address: address.to_owned(),
        ..LoginEvent::default()
    }
}

fn names(risks: &[EntityRisk]) -> Vec<(EntityKind, String)> {
    let of = |risk: &EntityRisk| risk.entity.clone().unwrap_or_default();
    risks.iter().map(|risk| (of(risk).kind(), of(risk).value)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_on_a_host_counts_for_who_logged_in_from_there() {
    let mut world = World::new().await;
    world.start("").await;
    let (acme, other) = (tenant("acme"), tenant("other"));
    let iam = Bus::connect(&world.stack.bus_config("svc/iam"), "iam").await.unwrap();
    let tell = async |tenant: &TenantId, event: &LoginEvent| {
        let message = Message::proto(subject::events(tenant, "login"), "iam", event);
        iam.publisher().publish(&message).await.unwrap();
    };
    tell(&acme, &login(Outcome::Succeeded, OFFICE, 1)).await;
    let reading = Risks::new(Db::connect(&world.database, "anomaly").unwrap(), RiskConfig::default());
    let highest = async |tenant: &TenantId| reading.highest(tenant, &[], 0.0, 100).await.unwrap();
    let odd = LoginEvent {
        attempts: 7,
        ..login(Outcome::WrongPassword, OFFICE, 0)
    };
    tell(&acme, &odd).await;
    world
        .until("seven wrong passwords", async || {
            names(&highest(&acme).await).contains(&(EntityKind::User, "ada".to_owned()))
        })
        .await;
    let quiet = highest(&acme).await;

    // What policy found counts too.
    let policy = Bus::connect(&world.stack.bus_config("svc/policy"), "policy")
        .await
        .unwrap();
    let violation = garrison_proto::alert::v1::Alert {
        alert_id: Uuid::now_v7().to_string(),
        detector: "policy.violation".to_owned(),
        title: "forbidden".to_owned(),
        severity: Severity::Medium.into(),
        entity: Some(anomaly::domain::risk::host("10.0.7.7")),
        ..garrison_proto::alert::v1::Alert::default()
    };
    let subject = subject::alerts(&acme, Severity::Medium, "policy.violation");
    let message = Message::proto(subject, "policy", &violation);
    policy.publisher().publish(&message).await.unwrap();
    world
        .until("the violation", async || {
            names(&highest(&acme).await).contains(&(EntityKind::Host, "10.0.7.7".to_owned()))
        })
        .await;

    // What cannot be read goes to the dead letters, and what comes after it is taken.
    let garbage = Message::new(
        subject::events(&acme, "login"),
        "iam",
        "garrison.event.v1.LoginEvent",
        "application/protobuf",
        vec![0xff; 9].into(),
    );
    iam.publisher().publish(&garbage).await.unwrap();
    let scan: Vec<Flow> = (1..=40).map(|port| Flow::refused(OFFICE, "10.0.0.2", port)).collect();
    world.publish(&acme, &scan).await;
    world.settle().await;
    let alerts = world.alerts(&acme).await;
    let alerts: Vec<_> = alerts
        .iter()
        .filter(|alert| alert.detector == "scan.vertical")
        .collect();
    assert!(!alerts.is_empty());
    world
        .until("the scan counts for the user", async || {
            let user = (EntityKind::User, "ada".to_owned());
            let risks = highest(&acme).await;
            let now = risks.iter().zip(names(&risks)).find(|(_, name)| *name == user);
            let before = quiet.iter().zip(names(&quiet)).find(|(_, name)| *name == user);
            now.unwrap().0.risk > before.unwrap().0.risk + 5.0
        })
        .await;
    world
        .until("a dead letter", async || world.kept("DLQ").await.len() == 1)
        .await;
    let risks = highest(&acme).await;
    assert_eq!(
        names(&risks)[0],
        (EntityKind::Host, OFFICE.to_owned()),
        "who did it comes first: {risks:#?}"
    );
    assert!(
        names(&risks).contains(&(EntityKind::Host, "10.0.0.2".to_owned())),
        "and whom it hit is there"
    );
    assert!(highest(&other).await.is_empty());

    let ada = anomaly::domain::risk::user("ada");
    let (whole, entries) = reading.of(&acme, &ada, 100).await.unwrap();
    assert_eq!(whole.entries as usize, entries.len());
    let told = entries.iter().find(|entry| entry.kind == "scan.vertical").unwrap();
    assert_eq!(told.through.as_ref().unwrap().value, OFFICE);
    assert_eq!(told.alert_id, alerts[0].alert_id);
    assert!(
        entries
            .iter()
            .any(|entry| entry.kind == "login.failed" && entry.count == 7)
    );
    assert_eq!(reading.of(&other, &ada, 100).await.unwrap().1, []);

    // After SIGKILL everything is there still, and nothing counts twice.
    world.kill();
    world.start("").await;
    assert_eq!(names(&highest(&acme).await), names(&risks));
    let (again, _) = reading.of(&acme, &ada, 100).await.unwrap();
    assert_eq!(again.entries, whole.entries);
}

#[tokio::test(flavor = "multi_thread")]
async fn risk_falls_with_time_and_with_what_people_say() {
    let database = Stack::shared().await.database("anomaly", &anomaly::MIGRATOR).await;
    let db = Db::connect(&database, "anomaly").unwrap();
    let acme = tenant("acme");
    let risks = Risks::new(
        db.clone(),
        RiskConfig {
            half_life_seconds: 3_600,
            ..RiskConfig::default()
        },
    );
    let alert = |hours_ago: i64, count: u64| garrison_proto::alert::v1::Alert {
        alert_id: "01970000-0000-7000-8000-000000000001".to_owned(),
        detector: "scan.vertical".to_owned(),
        title: "a scan".to_owned(),
        severity: Severity::High.into(),
        confidence: 1.0,
        entity: Some(anomaly::domain::risk::host(OFFICE)),
        last_seen: Some(to_timestamp(Utc::now() - Duration::hours(hours_ago))),
        count,
        ..garrison_proto::alert::v1::Alert::default()
    };
    let of = async || risks.of(&acme, &anomaly::domain::risk::host(OFFICE), 10).await.unwrap();

    let first = Uuid::now_v7();
    for _ in 0..2 {
        risks.take_alert(&acme, first, &alert(2, 1), Utc::now()).await.unwrap();
    }
    let (old, entries) = of().await;
    assert_eq!(entries.len(), 1);
    assert!((entries[0].weight - 60.0).abs() < 1e-9);
    assert!(
        (entries[0].remaining - 15.0).abs() < 0.1,
        "two half-lives: {}",
        entries[0].remaining
    );

    // A later account of the same alert is the same entry, of now.
    risks
        .take_alert(&acme, Uuid::now_v7(), &alert(0, 8), Utc::now())
        .await
        .unwrap();
    let (new, entries) = of().await;
    assert_eq!((entries.len(), entries[0].count), (1, 8));
    assert!(new.risk > 2.0 * old.risk, "{} {}", new.risk, old.risk);

    let mut tx = db.begin(&acme).await.unwrap();
    let id = entries[0].alert_id.parse().unwrap();
    verdicts::insert(
        &mut tx,
        (id, &alert(0, 8)),
        (Verdict::False, ""),
        ("users/1", Utc::now()),
    )
    .await
    .unwrap();
    tx.commit().await.unwrap();
    let (nothing, entries) = of().await;
    assert_eq!((nothing.risk, entries[0].remaining), (0.0, 0.0));
    assert!(risks.highest(&acme, &[], 0.0, 10).await.unwrap().is_empty());

    // The same login of an hour counts once for each delivery, and again for none.
    let again = Uuid::now_v7();
    let locked = login(Outcome::Locked, OFFICE, 0);
    for delivery in [again, again, Uuid::now_v7()] {
        risks.take_login(&acme, delivery, &locked, Utc::now()).await.unwrap();
    }
    let (user, entries) = risks.of(&acme, &anomaly::domain::risk::user("ada"), 10).await.unwrap();
    assert_eq!((entries.len(), entries[0].count), (1, 2));
    assert!(user.risk > 0.0);
    let kinds = [EntityKind::User as i16];
    assert_eq!(
        names(&risks.highest(&acme, &kinds, 1.0, 10).await.unwrap()),
        [(EntityKind::User, "ada".to_owned())]
    );
}
