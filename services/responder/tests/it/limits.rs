//! What no playbook and no person can do.

use chrono::{Duration, Utc};
use garrison_proto::response::v1::{Action, ResponseState, enforcement_report::Outcome};
use responder::app::NewResponse;
use uuid::Uuid;

use crate::fixture::{Bench, brute_force, forbidden, id_of, person, settings};

fn block(target: &str) -> NewResponse {
    NewResponse {
        action: Action::Block,
        target: target.to_owned(),
        ttl: Some(Duration::minutes(10)),
        packets_per_second: 0,
        incident: None,
        reason: "test".to_owned(),
        request: None,
    }
}

#[tokio::test]
async fn the_allow_list_holds_against_playbooks_people_and_approvals() {
    let bench = Bench::new().await;
    let ana = person(&bench.tenant);
    bench.beat("router", Utc::now()).await;
    // Asked for before the host was protected.
    let (_, waiting) = bench.take(&forbidden("10.0.0.2", "10.0.0.4")).await;
    bench
        .app
        .add_protection(&ana, "10.0.0.0/29", "core", Utc::now())
        .await
        .unwrap();
    bench
        .app
        .add_protection(&ana, "198.51.100.9", "our scanner", Utc::now())
        .await
        .unwrap();

    let (_, refused) = bench.take(&brute_force("198.51.100.9", "10.0.0.20")).await;
    assert_eq!(refused[0].state(), ResponseState::Refused);
    assert!(refused[0].error.contains("our scanner"), "{}", refused[0].error);
    let (_, again) = bench.take(&brute_force("198.51.100.9", "10.0.0.20")).await;
    assert!(again.is_empty(), "the same refusal was written twice");

    for target in ["10.0.0.1", "10.0.0.0/24"] {
        let by_hand = bench
            .app
            .create_response(&ana, &block(target), Utc::now())
            .await
            .unwrap();
        assert_eq!(by_hand.state(), ResponseState::Refused, "{target}");
    }
    let approved = bench
        .app
        .approve_response(&ana, id_of(&waiting[0].name), "", Utc::now())
        .await
        .unwrap();
    assert_eq!(approved.state(), ResponseState::Rejected);
    assert_eq!(
        bench.count("responses.v1").await,
        0,
        "an order for a protected host was sent"
    );

    bench
        .app
        .remove_protection(&ana, "198.51.100.9", Utc::now())
        .await
        .unwrap();
    assert!(
        bench
            .app
            .remove_protection(&ana, "198.51.100.9", Utc::now())
            .await
            .is_err()
    );
    let free = bench
        .app
        .create_response(&ana, &block("198.51.100.9"), Utc::now())
        .await
        .unwrap();
    assert_eq!(free.state(), ResponseState::Dispatched);
}

#[tokio::test]
async fn the_blast_radius_is_limited_per_tenant() {
    let mut settings = settings();
    settings.limits.max_addresses = 3;
    settings.limits.max_per_hour = 5;
    let bench = Bench::with(settings).await;
    let ana = person(&bench.tenant);
    bench.beat("router", Utc::now()).await;
    let mut sent = Vec::new();
    for i in 1..=3 {
        let target = format!("198.51.100.{i}");
        sent.push(
            bench
                .app
                .create_response(&ana, &block(&target), Utc::now())
                .await
                .unwrap(),
        );
    }
    assert!(sent.iter().all(|r| r.state() == ResponseState::Dispatched));
    let fourth = bench
        .app
        .create_response(&ana, &block("198.51.100.4"), Utc::now())
        .await
        .unwrap();
    assert_eq!(fourth.state(), ResponseState::Refused);
    assert!(fourth.error.contains("limit of 3"), "{}", fourth.error);
    let wide = bench
        .app
        .create_response(&ana, &block("198.51.0.0/16"), Utc::now())
        .await
        .unwrap();
    assert!(wide.error.contains("/24"), "{}", wide.error);

    // What has been undone makes room, but counts within the hour.
    for response in &sent {
        let id = id_of(&response.name);
        bench.report(response, "router", Outcome::Applied).await;
        bench.app.roll_back_response(&ana, id, "", Utc::now()).await.unwrap();
        bench.report(response, "router", Outcome::Removed).await;
    }
    for i in 11..=12 {
        let target = format!("198.51.100.{i}");
        let next = bench
            .app
            .create_response(&ana, &block(&target), Utc::now())
            .await
            .unwrap();
        assert_eq!(next.state(), ResponseState::Dispatched);
    }
    let sixth = bench
        .app
        .create_response(&ana, &block("198.51.100.13"), Utc::now())
        .await
        .unwrap();
    assert!(sixth.error.contains("within the last hour"), "{}", sixth.error);
}

#[tokio::test]
async fn an_action_in_force_is_linked_and_a_request_is_answered_once() {
    let bench = Bench::new().await;
    let ana = person(&bench.tenant);
    bench.beat("router", Utc::now()).await;
    let request = Some(Uuid::now_v7());
    let wanted = NewResponse {
        request,
        ..block("198.51.100.9")
    };
    let first = bench.app.create_response(&ana, &wanted, Utc::now()).await.unwrap();
    let again = bench.app.create_response(&ana, &wanted, Utc::now()).await.unwrap();
    assert_eq!(first.name, again.name);
    let other = NewResponse {
        request: None,
        ..wanted
    };
    let linked = bench.app.create_response(&ana, &other, Utc::now()).await.unwrap();
    assert_eq!(linked.name, first.name);
    // The playbook wants the same: the incident lists what is in force.
    let (incident, none) = bench.take(&brute_force("198.51.100.9", "10.0.0.2")).await;
    assert!(none.is_empty());
    let incident = bench.app.get_incident(&bench.tenant, incident).await.unwrap().unwrap();
    assert_eq!(incident.responses, [id_of(&first.name)]);
    assert_eq!(bench.count(".dispatched").await, 1);
}
