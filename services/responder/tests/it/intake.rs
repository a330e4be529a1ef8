//! Alerts become incidents, incidents become responses, responses live their lives.

use std::collections::BTreeSet;

use chrono::{Duration, Utc};
use garrison_proto::{
    alert::v1::Severity,
    response::v1::{EnforcementOrder, IncidentStatus, ResponseState, enforcement_report::Outcome},
    to_timestamp,
};
use garrison_testkit::Stack;
use prost::Message as _;
use responder::{app::Taken, store::intake::AlertQuery};
use uuid::Uuid;

use crate::fixture::{Bench, alert, brute_force, forbidden, id_of, person, scan};

#[tokio::test]
async fn a_brute_force_is_blocked_in_one_transaction_and_the_order_leaves_first() {
    let bench = Bench::new().await;
    bench.beat("router", Utc::now()).await;
    let attack = brute_force("198.51.100.9", "10.0.0.2");
    let delivery = Uuid::now_v7();
    let taken = bench
        .app
        .take_alert(delivery, &bench.tenant, &attack, Utc::now())
        .await
        .unwrap();
    let Taken::In {
        incident,
        opened,
        responses,
    } = taken
    else {
        panic!("{taken:?}")
    };
    assert!(opened);
    assert_eq!(responses.len(), 1);
    let response = bench.response(responses[0]).await;
    assert_eq!(response.state(), ResponseState::Dispatched);
    assert_eq!(response.target, "198.51.100.9");
    assert_eq!(response.nodes, ["router"]);
    assert_eq!(response.playbook, "playbooks/block-brute-force");
    assert_eq!(response.alert_id, attack.alert_id);
    assert_eq!(
        response.trigger_time.map(|t| t.seconds),
        attack.trigger_time.map(|t| t.seconds)
    );

    let outbox = bench.outbox().await;
    assert_eq!(outbox[0].0, "responses.v1.acme.block.dispatched");
    let order = EnforcementOrder::decode(outbox[0].1.as_slice()).unwrap();
    assert_eq!(
        (order.target.as_str(), order.tenant.as_str(), order.revert),
        ("198.51.100.9", "acme", false)
    );
    assert!(order.expires.is_some());
    for subject in [
        "events.v1.acme.response",
        "events.v1.acme.incident",
        "audit.v1.acme.responder",
        "siem.v1.acme.detection_finding",
    ] {
        assert!(outbox.iter().any(|(s, _)| s == subject), "{subject} is missing");
    }
    let finding = outbox.iter().find(|(s, _)| s.starts_with("siem")).unwrap();
    let finding: serde_json::Value = serde_json::from_slice(&finding.1).unwrap();
    assert_eq!(finding["class_uid"], 2004);
    assert_eq!(finding["finding_info"]["uid"], attack.alert_id);

    // The same message again changes nothing.
    let again = bench
        .app
        .take_alert(delivery, &bench.tenant, &attack, Utc::now())
        .await
        .unwrap();
    assert_eq!(again, Taken::Repeat);
    assert_eq!(bench.outbox().await.len(), outbox.len());

    // A later account of the same alert is no second alert and no second block.
    let mut later = attack.clone();
    later.count = 9;
    let (same, more) = bench.take(&later).await;
    assert_eq!(same, incident);
    assert!(more.is_empty());
    let incident = bench.app.get_incident(&bench.tenant, incident).await.unwrap().unwrap();
    assert_eq!(incident.alert_count, 1);
    assert_eq!(incident.responses, responses);
    let stored = bench
        .app
        .get_alert(&bench.tenant, incident.alert_ids[0])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(stored.alert.count, 9);

    // Only the enforcer's word makes it applied, and then the incident is contained.
    bench.report(&response, "router", Outcome::Applied).await;
    assert_eq!(bench.state(&response).await, ResponseState::Applied);
    let incident = bench
        .app
        .get_incident(&bench.tenant, incident.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(incident.status, IncidentStatus::Contained);
}

#[tokio::test]
async fn a_rehearsal_walks_the_whole_path_and_leaves_nothing() {
    let bench = Bench::new().await;
    bench.app.rehearse().await.unwrap();
    assert_eq!(bench.db.known_tenants().await.unwrap(), []);
    let mut superuser = Stack::shared()
        .await
        .postgres()
        .superuser(&bench.config.database)
        .await
        .unwrap();
    for table in [
        "alert",
        "incident",
        "fact",
        "response",
        "response_transition",
        "inbox",
        "outbox",
    ] {
        let query = format!("SELECT count(*) FROM responder.{table}");
        let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(query))
            .fetch_one(&mut superuser)
            .await
            .unwrap();
        assert_eq!(rows, 0, "{table}");
    }
}

#[tokio::test]
async fn the_story_of_one_attack_is_one_incident_and_isolation_waits_for_a_person() {
    let bench = Bench::new().await;
    bench.beat("router", Utc::now()).await;
    let (first, _) = bench
        .take(&scan("198.51.100.9", &["10.0.0.2", "10.0.0.3"], Severity::Medium))
        .await;
    let (second, blocked) = bench.take(&brute_force("198.51.100.9", "10.0.0.2")).await;
    let (third, isolated) = bench.take(&forbidden("10.0.0.2", "10.0.0.4")).await;
    assert_eq!((first, first), (second, third));
    assert_eq!(blocked[0].state(), ResponseState::Dispatched);
    assert_eq!(isolated.len(), 1);
    assert_eq!(isolated[0].state(), ResponseState::PendingApproval);
    assert_eq!(isolated[0].target, "10.0.0.2");
    let incident = bench.app.get_incident(&bench.tenant, first).await.unwrap().unwrap();
    assert_eq!(incident.severity(), Severity::Critical, "three techniques escalate");
    assert_eq!(incident.responses.len(), 3);

    // Approval, confirmation, rollback, confirmation.
    let ana = person(&bench.tenant);
    let id = id_of(&isolated[0].name);
    let approved = bench.app.approve_response(&ana, id, "go", Utc::now()).await.unwrap();
    assert_eq!(approved.state(), ResponseState::Dispatched);
    assert!(
        bench.app.approve_response(&ana, id, "", Utc::now()).await.is_err(),
        "approved twice"
    );
    bench.report(&approved, "router", Outcome::Applied).await;
    let back = bench
        .app
        .roll_back_response(&ana, id, "clean again", Utc::now())
        .await
        .unwrap();
    assert_eq!(back.state(), ResponseState::Reverting);
    bench.report(&approved, "router", Outcome::Removed).await;
    let done = bench.response(id).await;
    assert_eq!(done.state(), ResponseState::Reverted);
    let path: Vec<ResponseState> = done.history.iter().map(|h| h.state()).collect();
    assert_eq!(
        path,
        [
            ResponseState::PendingApproval,
            ResponseState::Dispatched,
            ResponseState::Applied,
            ResponseState::Reverting,
            ResponseState::Reverted
        ]
    );
    assert_eq!(done.history[1].actor, format!("users/{}", Uuid::from_u128(7)));
    assert_eq!(done.history[4].actor, "enforcers/router");

    // What a person took back is not asked for again in this incident.
    let (_, again) = bench.take(&forbidden("10.0.0.2", "10.0.0.4")).await;
    assert!(again.is_empty(), "{again:?}");

    let timeline = bench.app.timeline(&bench.tenant, first).await.unwrap().unwrap();
    assert!(timeline.windows(2).all(|w| w[0].time <= w[1].time));
    assert_eq!(timeline.iter().filter(|e| e.kind == "alert").count(), 4);
    assert!(
        timeline
            .iter()
            .any(|e| e.summary.contains("isolate 10.0.0.2: reverted"))
    );
}

#[tokio::test]
async fn an_alert_that_belongs_to_two_incidents_merges_them_into_the_older() {
    let bench = Bench::new().await;
    let (older, _) = bench.take(&scan("198.51.100.9", &["10.0.0.50"], Severity::Low)).await;
    let (younger, isolated) = bench.take(&forbidden("10.0.0.2", "10.0.0.4")).await;
    assert_ne!(older, younger);
    // It comes late: the forbidden contact was its consequence.
    let (home, _) = bench.take(&brute_force("198.51.100.9", "10.0.0.2")).await;
    assert_eq!(home, older);
    let kept = bench.app.get_incident(&bench.tenant, older).await.unwrap().unwrap();
    let gone = bench.app.get_incident(&bench.tenant, younger).await.unwrap().unwrap();
    assert_eq!(kept.alert_count, 3);
    assert_eq!((gone.status, gone.merged_into), (IncidentStatus::Closed, Some(older)));
    assert!(kept.responses.contains(&id_of(&isolated[0].name)));
    assert_eq!(
        bench.response(id_of(&isolated[0].name)).await.incident,
        format!("incidents/{older}")
    );
    for id in &kept.alert_ids {
        let found = bench.app.get_alert(&bench.tenant, *id).await.unwrap().unwrap();
        assert_eq!(found.incident, older);
    }
    // And what follows finds the merged one.
    let (after, _) = bench.take(&forbidden("10.0.0.2", "10.0.0.5")).await;
    assert_eq!(after, older);
    let timeline = bench.app.timeline(&bench.tenant, older).await.unwrap().unwrap();
    assert!(timeline.iter().any(|e| e.summary.contains("took in incidents/")));
}

#[tokio::test]
async fn alerts_at_once_and_twice_are_each_taken_in_once() {
    let bench = Bench::new().await;
    bench.beat("router", Utc::now()).await;
    // The tenant's rules are known: from here on nobody takes the lock before looking.
    bench.take(&scan("192.0.2.77", &["10.9.9.9"], Severity::Low)).await;
    let mut work = Vec::new();
    for i in 0..40 {
        let attack = brute_force(&format!("198.51.100.{}", i % 4 + 1), "10.0.0.2");
        let delivery = Uuid::now_v7();
        for _ in 0..2 {
            let (app, tenant, attack) = (bench.app.clone(), bench.tenant.clone(), attack.clone());
            work.push(tokio::spawn(async move {
                app.take_alert(delivery, &tenant, &attack, Utc::now()).await.unwrap()
            }));
        }
    }
    let mut repeats = 0;
    for task in work {
        repeats += usize::from(task.await.unwrap() == Taken::Repeat);
    }
    assert_eq!(repeats, 40);
    let incidents = bench.app.list_incidents(&bench.tenant, &[], None, 100).await.unwrap();
    assert_eq!(incidents.len(), 5, "one, and four strangers with an incident each");
    let alerts: BTreeSet<Uuid> = incidents.iter().flat_map(|i| i.alert_ids.clone()).collect();
    assert_eq!(alerts.len(), 41);
    assert_eq!(incidents.iter().map(|i| i.alert_count).sum::<u64>(), 41);
    assert_eq!(bench.count(".block.dispatched").await, 4, "one block for each");
    let listed = bench
        .app
        .list_alerts(
            &bench.tenant,
            &AlertQuery {
                limit: 100,
                ..AlertQuery::default()
            },
        )
        .await
        .unwrap();
    assert_eq!(listed.len(), 41);
}

#[tokio::test]
async fn silence_is_retried_then_failed_and_a_late_word_is_still_the_truth() {
    let bench = Bench::new().await;
    bench.beat("router", Utc::now()).await;
    let start = Utc::now();
    let attack = brute_force("198.51.100.9", "10.0.0.2");
    let taken = bench.app.take_alert(Uuid::now_v7(), &bench.tenant, &attack, start);
    let Taken::In {
        incident, responses, ..
    } = taken.await.unwrap()
    else {
        panic!("a fresh message was taken for a repeat");
    };
    let response = &bench.response(responses[0]).await;
    for (seconds, orders) in [(1, 1), (3, 2), (6, 3), (9, 3)] {
        bench
            .app
            .meet_deadlines(&bench.tenant, start + Duration::seconds(seconds))
            .await
            .unwrap();
        assert_eq!(bench.count(".block.dispatched").await, orders, "after {seconds} s");
    }
    let failed = bench.response(id_of(&response.name)).await;
    assert_eq!(failed.state(), ResponseState::Failed);
    assert!(failed.error.contains("no confirmation from router"), "{}", failed.error);
    let found = bench.app.get_incident(&bench.tenant, incident).await.unwrap().unwrap();
    assert_eq!(found.status, IncidentStatus::Open);
    bench.report(response, "router", Outcome::Applied).await;
    assert_eq!(bench.state(response).await, ResponseState::Applied);
}

#[tokio::test]
async fn every_node_must_confirm_and_one_failure_is_a_failure() {
    let bench = Bench::new().await;
    bench.beat("router", Utc::now()).await;
    bench.beat("edge", Utc::now()).await;
    let (_, responses) = bench.take(&brute_force("198.51.100.9", "10.0.0.2")).await;
    assert_eq!(responses[0].nodes, ["edge", "router"]);
    bench.report(&responses[0], "router", Outcome::Applied).await;
    assert_eq!(bench.state(&responses[0]).await, ResponseState::Dispatched);
    bench.report(&responses[0], "edge", Outcome::Failed).await;
    let failed = bench.response(id_of(&responses[0].name)).await;
    assert_eq!(failed.state(), ResponseState::Failed);
    assert!(failed.error.contains("edge: no"), "{}", failed.error);
}

#[tokio::test]
async fn without_a_live_enforcer_a_response_fails_and_says_why() {
    let bench = Bench::new().await;
    let (_, responses) = bench.take(&brute_force("198.51.100.9", "10.0.0.2")).await;
    assert_eq!(responses[0].state(), ResponseState::Failed);
    assert!(responses[0].error.contains("no enforcer"), "{}", responses[0].error);
    assert_eq!(bench.count("responses.v1").await, 0, "an order was sent to nobody");

    // One that was heard of long ago is no help.
    bench.beat("router", Utc::now() - Duration::hours(1)).await;
    let (_, responses) = bench.take(&brute_force("198.51.100.10", "10.0.0.2")).await;
    assert_eq!(responses[0].state(), ResponseState::Failed);
}

#[tokio::test]
async fn what_nobody_approves_in_time_is_rejected() {
    let bench = Bench::new().await;
    bench.beat("router", Utc::now()).await;
    let (_, responses) = bench.take(&forbidden("10.0.0.2", "10.0.0.4")).await;
    let later = Utc::now() + Duration::hours(1) + Duration::seconds(1);
    assert_eq!(bench.app.meet_deadlines(&bench.tenant, later).await.unwrap(), 1);
    assert_eq!(bench.state(&responses[0]).await, ResponseState::Rejected);
    assert_eq!(bench.count("responses.v1").await, 0);
}

#[tokio::test]
async fn an_expiry_that_nobody_reports_is_forced() {
    let bench = Bench::new().await;
    bench.beat("router", Utc::now()).await;
    let (_, responses) = bench.take(&brute_force("198.51.100.9", "10.0.0.2")).await;
    bench.report(&responses[0], "router", Outcome::Applied).await;
    let later = Utc::now() + Duration::hours(1) + Duration::seconds(6);
    bench.app.meet_deadlines(&bench.tenant, later).await.unwrap();
    assert_eq!(bench.state(&responses[0]).await, ResponseState::Reverting);
    assert_eq!(bench.count(".block.reverting").await, 1);
    bench.report(&responses[0], "router", Outcome::Removed).await;
    assert_eq!(bench.state(&responses[0]).await, ResponseState::Expired);
}

#[tokio::test]
async fn desired_actions_follow_the_responses() {
    let bench = Bench::new().await;
    let nothing = bench.beat("router", Utc::now()).await;
    let (_, responses) = bench.take(&brute_force("198.51.100.9", "10.0.0.2")).await;
    let id = id_of(&responses[0].name);
    let wanted = bench.beat("router", Utc::now()).await;
    assert_eq!(wanted, responder::digest::digest([id]));
    let tenants = [bench.tenant.to_string()];
    let caller = crate::fixture::enforcer("router");
    let orders = bench
        .app
        .desired_actions(&caller, "router", &tenants, Utc::now())
        .await
        .unwrap();
    assert_eq!(orders.len(), 1);
    let ana = person(&bench.tenant);
    bench.app.roll_back_response(&ana, id, "", Utc::now()).await.unwrap();
    assert_eq!(bench.beat("router", Utc::now()).await, nothing);

    // A node speaks for itself and for its tenants only.
    let edge = crate::fixture::enforcer("edge");
    assert!(
        bench
            .app
            .heartbeat(&edge, "router", "", &tenants, Utc::now())
            .await
            .is_err()
    );
    let globex = ["globex".to_owned()];
    let refused = bench
        .app
        .heartbeat(&edge, "edge", "", &globex, Utc::now())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), "GAR-RESP-0009");
    assert!(
        bench
            .app
            .desired_actions(&ana, "router", &tenants, Utc::now())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn closing_forgets_and_an_attack_that_goes_on_opens_anew() {
    let bench = Bench::new().await;
    let ana = person(&bench.tenant);
    let (first, _) = bench.take(&scan("198.51.100.9", &["10.0.0.2"], Severity::Low)).await;
    let closed = bench
        .app
        .close_incident(&ana, first, "a test of ours", Utc::now())
        .await
        .unwrap();
    assert_eq!(closed.status(), IncidentStatus::Closed);
    let (second, _) = bench.take(&scan("198.51.100.9", &["10.0.0.2"], Severity::Low)).await;
    assert_ne!(first, second);

    let (waiting, _) = bench.take(&forbidden("10.0.0.7", "10.0.0.4")).await;
    let refused = bench
        .app
        .close_incident(&ana, waiting, "x", Utc::now())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), "GAR-RESP-0008");
}

#[tokio::test]
async fn the_window_separates_attacks() {
    let bench = Bench::new().await;
    let mut old = alert(
        "scan.vertical",
        Severity::Low,
        "198.51.100.9",
        &["10.0.0.2"],
        ("T1046", "Discovery"),
    );
    let then = Utc::now() - Duration::minutes(31);
    old.first_seen = Some(to_timestamp(then));
    old.last_seen = Some(to_timestamp(then));
    let (first, _) = bench.take(&old).await;
    let (second, _) = bench.take(&scan("198.51.100.9", &["10.0.0.2"], Severity::Low)).await;
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_broken_alert_is_refused_for_good_and_leaves_nothing() {
    let bench = Bench::new().await;
    let mut broken = brute_force("198.51.100.9", "10.0.0.2");
    broken.entity = None;
    let error = bench
        .app
        .take_alert(Uuid::now_v7(), &bench.tenant, &broken, Utc::now())
        .await
        .unwrap_err();
    assert_eq!(error.code(), "GAR-RESP-0002");
    assert!(
        bench
            .app
            .list_incidents(&bench.tenant, &[], None, 10)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn the_way_from_alert_to_committed_order_is_short() {
    let bench = Bench::new().await;
    bench.beat("router", Utc::now()).await;
    let mut times = Vec::new();
    for i in 0..60u32 {
        let attack = brute_force(&format!("198.51.{}.{}", 100 + i / 250, i % 250 + 1), "10.0.0.2");
        let started = std::time::Instant::now();
        bench.take(&attack).await;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    println!(
        "intake to commit: p50 {:?}, p90 {:?}, worst {:?}",
        times[30], times[54], times[59]
    );
}
