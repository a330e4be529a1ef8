//! A service that runs: becoming ready, serving, hearing of revocations, recording, and stopping.

use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use garrison_bus::{Bus, Message, subject};
use garrison_proto::{
    TenantId,
    alert::v1::{GetModelRequest, ListDetectorsRequest, StartLearningRequest},
    audit::v1::{AuditRecord, Decision},
    event::v1::SessionRevoked,
};
use prost::Message as _;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::{
    child::{PATIENCE, finish},
    fleet::{Fleet, bearer, lacking, page, until, until_draining, until_lacking},
};

#[tokio::test]
async fn starts_alone_says_what_it_lacks_and_becomes_ready_when_it_comes() {
    let fleet = Fleet::start().await;
    fleet.stack.postgres().stop();
    fleet.stack.nats().stop();
    let service = fleet.service("");
    until_lacking(&service, &["bus", "database", "iam"]).await;
    assert_eq!(page(service.admin, "/livez").await.unwrap().0, 200);
    let config = service.config.to_str().unwrap().to_owned();
    assert_eq!(finish(&["healthcheck", "--config", &config]).0, 1);
    assert_eq!(finish(&["healthcheck", "--live", "--config", &config]).0, 0);
    let mut health = HealthClient::new(fleet.channel(&service));
    let mut serving = async || {
        health
            .check(HealthCheckRequest::default())
            .await
            .unwrap()
            .into_inner()
            .status()
    };
    assert_eq!(serving().await, ServingStatus::NotServing);
    let result = fleet
        .client(&service)
        .list_detectors(bearer(ListDetectorsRequest {}, "x.y.z"))
        .await;
    assert_eq!(
        result.unwrap_err().get_details_error_info().unwrap().reason,
        "GAR-AUTH-0008"
    );

    until("the database is missed", &service, async || {
        service.log().contains("the database does not answer")
    })
    .await;
    fleet.stack.nats().resume().unwrap();
    until_lacking(&service, &["database", "iam"]).await;
    fleet.stack.postgres().resume().unwrap();
    until_lacking(&service, &["iam"]).await;
    fleet.serve_iam().await;
    until_lacking(&service, &[]).await;
    // What gRPC says follows what the admin port says.
    until("it says so by gRPC", &service, async || {
        serving().await == ServingStatus::Serving
    })
    .await;
    let (status, out, _) = finish(&["healthcheck", "--config", &config]);
    assert!(status == 0 && out.contains("\"ready\":true"), "{out}");

    fleet.stack.nats().stop();
    until_lacking(&service, &["bus"]).await;
    fleet.stack.nats().resume().unwrap();
    until_lacking(&service, &[]).await;
    let log = service.log();
    let said = |dependency: &str, what: &str| {
        let lines = log
            .lines()
            .filter(|line| line.contains(&format!("\"dependency\":\"{dependency}\"")));
        lines
            .filter(|line| line.contains(&format!("\"message\":\"{what}\"")))
            .count()
    };
    assert_eq!(
        (said("database", "not ready"), said("database", "ready")),
        (1, 1),
        "{log}"
    );
    assert_eq!((said("bus", "not ready"), said("bus", "ready")), (2, 2), "{log}");

    let (_, version) = page(service.admin, "/version").await.unwrap();
    assert_eq!(version, r#"{"name":"anomaly","version":"1.2.3"}"#);
    let (_, metrics) = page(service.admin, "/metrics").await.unwrap();
    for name in [
        "garrison_auth_decisions_total",
        "garrison_service_rpc_duration_seconds_bucket",
        "service_version",
    ] {
        assert!(metrics.contains(name), "{name} is not in:\n{metrics}");
    }
}

#[tokio::test]
async fn a_revocation_takes_effect_by_bus_and_by_list() {
    let fleet = Fleet::start().await;
    fleet.serve_iam().await;
    let service = fleet.service("");
    until_lacking(&service, &[]).await;
    let mut client = fleet.client(&service);
    let iam_bus = Bus::connect(&fleet.stack.bus_config("svc/iam"), "iam").await.unwrap();

    for by_bus in [true, false] {
        let session = Uuid::now_v7();
        let token = fleet.iam.token(session);
        client
            .list_detectors(bearer(ListDetectorsRequest {}, &token))
            .await
            .unwrap();
        let began = Instant::now();
        if !by_bus {
            fleet.iam.revoke_listed(session);
        }
        let mut told = 0;
        let refused = loop {
            // A listener hears what is said while it listens, and a service is ready a moment before it does.
            if by_bus && began.elapsed() >= Duration::from_secs(told) {
                told += 1;
                let event = SessionRevoked {
                    session: format!("sessions/{session}"),
                    time: Some(garrison_proto::to_timestamp(Utc::now())),
                    until: Some(garrison_proto::to_timestamp(Utc::now() + TimeDelta::minutes(10))),
                    reason: "test".into(),
                };
                let acme: TenantId = "acme".parse().unwrap();
                let message = Message::proto(subject::events(&acme, "revocation"), "iam", &event);
                iam_bus.publisher().publish(&message).await.unwrap();
            }
            match client.list_detectors(bearer(ListDetectorsRequest {}, &token)).await {
                Ok(_) => assert!(began.elapsed() < PATIENCE, "the revocation never took effect"),
                Err(status) => break status,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(refused.get_details_error_info().unwrap().reason, "GAR-AUTH-0004");
        // For information: how long it takes depends on the machine.
        println!("revocation effective after {:?} (by bus: {by_bus})", began.elapsed());
    }
    // Who hears nothing asks within the second that is promised.
    assert!(garrison_auth::RefreshIntervals::default().revocations < Duration::from_secs(1));
}

#[tokio::test]
async fn a_change_is_on_the_audit_stream_with_decision_and_effect() {
    let fleet = Fleet::start().await;
    fleet.serve_iam().await;
    let service = fleet.service("");
    until_lacking(&service, &[]).await;
    let token = fleet.iam.token(Uuid::now_v7());
    let mut client = fleet.client(&service);

    // The broker is away: the record waits in the outbox and the call goes on.
    fleet.stack.nats().stop();
    let mut request = bearer(StartLearningRequest::default(), &token);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request.metadata_mut().insert("traceparent", trace.parse().unwrap());
    client.start_learning(request).await.unwrap();
    fleet.stack.nats().resume().unwrap();

    let admin = Bus::connect(&fleet.stack.bus_config("svc/bus-admin"), "bus-admin")
        .await
        .unwrap();
    let began = Instant::now();
    let records: Vec<AuditRecord> = loop {
        let stream = admin.jetstream().get_stream("AUDIT").await.unwrap();
        let mut found = Vec::new();
        for sequence in 1..=stream.cached_info().state.last_sequence {
            let message = stream.get_raw_message(sequence).await.unwrap();
            assert_eq!(message.subject.as_str(), "audit.v1.acme.anomaly");
            found.push(AuditRecord::decode(message.payload).unwrap());
        }
        if found.len() == 2 {
            break found;
        }
        assert!(began.elapsed() < PATIENCE * 2, "{found:?}\n{}", service.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let (decision, effect) = (&records[0], &records[1]);
    assert_eq!(decision.action, "garrison.alert.v1.DetectionService/StartLearning");
    assert_eq!(
        (decision.decision(), decision.trace_id.as_str()),
        (Decision::Allow, &trace[3..35])
    );
    assert_eq!(
        (effect.action.as_str(), effect.resource.as_str()),
        ("model.learning", "models/1")
    );
    for record in &records {
        let actor = record.actor.as_ref().unwrap();
        assert!(
            actor.name.starts_with("users/") && actor.address == "127.0.0.1",
            "{record:?}"
        );
    }
}

#[tokio::test]
async fn the_caller_s_trace_is_continued_and_the_last_spans_are_sent_at_exit() {
    let fleet = Fleet::start().await;
    fleet.serve_iam().await;
    let (collector, spans) = crate::collector::start().await;
    let mut service = fleet.service_with(
        "",
        &format!("[core.telemetry]\notlp_endpoint = \"http://{collector}\"\n"),
    );
    until_lacking(&service, &[]).await;
    let token = fleet.iam.token(Uuid::now_v7());
    let mut request = bearer(ListDetectorsRequest {}, &token);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request.metadata_mut().insert("traceparent", trace.parse().unwrap());
    let client = fleet.client(&service);
    { client }.list_detectors(request).await.unwrap();
    service.signal();
    assert_eq!(service.ended().await, 0);
    let spans = spans.lock().unwrap();
    let name = "garrison.alert.v1.DetectionService/ListDetectors";
    let span = spans.iter().find(|span| span.name == name);
    let span = span.unwrap_or_else(|| panic!("{name} is not among {spans:#?}\n{}", service.log()));
    assert_eq!(span.trace, trace[3..35]);
    assert_eq!(
        (span.parent.as_str(), span.service.as_str()),
        ("b7ad6b7169203331", "garrison-anomaly")
    );
}

#[tokio::test]
async fn work_under_way_is_finished_before_the_service_stops() {
    let fleet = Fleet::start().await;
    fleet.serve_iam().await;
    let mut service = fleet.service("");
    until_lacking(&service, &[]).await;
    let token = fleet.iam.token(Uuid::now_v7());
    let mut client = fleet.client(&service);
    let mut slow = bearer(GetModelRequest {}, &token);
    let gate = tempfile::tempdir().unwrap();
    let folder = gate.path().to_str().unwrap();
    slow.metadata_mut().insert("gate", folder.parse().unwrap());
    let call = tokio::spawn({
        let mut client = client.clone();
        async move { client.get_model(slow).await }
    });
    until("the call is under way", &service, async || {
        gate.path().join("begun").exists()
    })
    .await;
    service.signal();
    until_draining(&service).await;
    until("no new connection is served while draining", &service, async || {
        let mut fresh = fleet.client(&service);
        let request = bearer(ListDetectorsRequest {}, &token);
        fresh.list_detectors(request).await.is_err()
    })
    .await;
    assert!(!call.is_finished(), "work under way was not finished");
    std::fs::write(gate.path().join("end"), "").unwrap();
    call.await.unwrap().unwrap();
    drop(client.list_detectors(bearer(ListDetectorsRequest {}, &token)).await);
    assert_eq!(service.ended().await, 0);
    assert!(lacking(&service).await.is_none());
}

#[tokio::test]
async fn what_does_not_finish_is_cut_off_by_time_or_a_second_signal() {
    let fleet = Fleet::start().await;
    fleet.serve_iam().await;
    let mut service = fleet.service("trouble = \"stuck\"");
    until_lacking(&service, &[]).await;
    service.signal();
    // Two signals at once are one.
    until_draining(&service).await;
    service.signal();
    assert_eq!(service.ended().await, 1);
    let log = service.log();
    assert!(log.contains("GAR-SVC-0004") && log.contains("stuck"), "{log}");
}

#[tokio::test]
async fn a_service_inside_another_program_stops_when_told() {
    let fleet = Fleet::start().await;
    let config = fleet.configure(crate::fleet::local(), crate::fleet::local(), "");
    let text = std::fs::read_to_string(config).unwrap();
    let mut core: toml::Table = toml::from_str(&text).unwrap();
    let core: garrison_service::Core = core.remove("core").unwrap().try_into().unwrap();
    let service = garrison_service::Service::embedded(crate::child::INFO, core)
        .await
        .unwrap();
    let stop = service.shutdown();
    let serving = tokio::spawn(service.serve_admin());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!serving.is_finished());
    stop.cancel();
    let ended = tokio::time::timeout(PATIENCE, serving).await;
    ended.expect("it did not stop").unwrap().unwrap();
}
