//! Two tenants side by side: no method lets one see or touch what is the other's.

use std::collections::BTreeSet;

use chrono::Utc;
use garrison_bus::subject;
use garrison_proto::{
    FILE_DESCRIPTOR_SET,
    alert::v1::Severity,
    response::v1::{
        Action, AddProtectedHostRequest, ApplyPlaybookRequest, ApproveResponseRequest, CloseIncidentRequest,
        CreateResponseRequest, EnforcementReport, GetAlertRequest, GetIncidentRequest, GetResponseRequest,
        GetTimelineRequest, HeartbeatRequest, ListAlertsRequest, ListDesiredActionsRequest, ListIncidentsRequest,
        ListPlaybooksRequest, ListProtectedHostsRequest, ListResponsesRequest, RejectResponseRequest,
        RemoveProtectedHostRequest, ResponseState, RollbackResponseRequest, alert_service_client::AlertServiceClient,
        enforcement_report::Outcome, enforcer_service_client::EnforcerServiceClient,
        incident_service_client::IncidentServiceClient, playbook_service_client::PlaybookServiceClient,
        response_service_client::ResponseServiceClient,
    },
};
use prost::Message as _;
use tonic::Code;

use crate::{
    api::called,
    fixture::{Bench, enforcer, forbidden, id_of, person, scan},
};

/// Every method of `garrison.response.v1`, from the contract itself.
fn methods() -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    set.file
        .iter()
        .filter(|file| file.package() == "garrison.response.v1")
        .flat_map(|file| &file.service)
        .flat_map(|s| s.method.iter().map(move |m| format!("{}/{}", s.name(), m.name())))
        .collect()
}

#[tokio::test]
async fn no_method_crosses_from_one_tenant_to_another() {
    let bench = Bench::new().await;
    bench.beat("router", Utc::now()).await;
    let ours = person(&bench.tenant);
    let theirs = person(&"globex".parse().unwrap());
    let (_, waiting) = bench.take(&forbidden("10.0.0.2", "10.0.0.4")).await;
    let attack = scan("198.51.100.9", &["10.0.0.2"], Severity::High);
    let (incident, sent) = bench.take(&attack).await;
    bench
        .app
        .add_protection(&ours, "10.9.0.0/24", "ours", Utc::now())
        .await
        .unwrap();
    let incident = format!("incidents/{incident}");
    let (waiting, sent) = (waiting[0].name.clone(), sent[0].name.clone());

    let api = called(&bench, theirs);
    let mut alerts = AlertServiceClient::new(api.clone());
    let mut incidents = IncidentServiceClient::new(api.clone());
    let mut responses = ResponseServiceClient::new(api.clone());
    let mut playbooks = PlaybookServiceClient::new(api);
    let mut tried = BTreeSet::new();
    let mut hidden = |method: &str, code: Option<Code>| {
        assert_eq!(code, Some(Code::NotFound), "{method} let a stranger in");
        tried.insert(method.to_owned());
    };

    let reason = || "r".to_owned();
    let code = |r: Result<(), tonic::Status>| r.err().map(|s| s.code());
    hidden(
        "AlertService/GetAlert",
        code(
            alerts
                .get_alert(GetAlertRequest {
                    alert_id: attack.alert_id.clone(),
                })
                .await
                .map(drop),
        ),
    );
    hidden(
        "IncidentService/GetIncident",
        code(
            incidents
                .get_incident(GetIncidentRequest { name: incident.clone() })
                .await
                .map(drop),
        ),
    );
    hidden(
        "IncidentService/GetTimeline",
        code(
            incidents
                .get_timeline(GetTimelineRequest { name: incident.clone() })
                .await
                .map(drop),
        ),
    );
    hidden(
        "IncidentService/CloseIncident",
        code(
            incidents
                .close_incident(CloseIncidentRequest {
                    name: incident.clone(),
                    reason: reason(),
                })
                .await
                .map(drop),
        ),
    );
    hidden(
        "ResponseService/GetResponse",
        code(
            responses
                .get_response(GetResponseRequest { name: sent.clone() })
                .await
                .map(drop),
        ),
    );
    hidden(
        "ResponseService/ApproveResponse",
        code(
            responses
                .approve_response(ApproveResponseRequest {
                    name: waiting.clone(),
                    reason: reason(),
                })
                .await
                .map(drop),
        ),
    );
    hidden(
        "ResponseService/RejectResponse",
        code(
            responses
                .reject_response(RejectResponseRequest {
                    name: waiting.clone(),
                    reason: reason(),
                })
                .await
                .map(drop),
        ),
    );
    hidden(
        "ResponseService/RollbackResponse",
        code(
            responses
                .rollback_response(RollbackResponseRequest {
                    name: sent.clone(),
                    reason: reason(),
                })
                .await
                .map(drop),
        ),
    );
    let attached = CreateResponseRequest {
        action: 1,
        target: "198.51.100.9".into(),
        incident: incident.clone(),
        reason: reason(),
        ..CreateResponseRequest::default()
    };
    hidden(
        "ResponseService/CreateResponse",
        code(responses.create_response(attached).await.map(drop)),
    );
    hidden(
        "PlaybookService/RemoveProtectedHost",
        code(
            playbooks
                .remove_protected_host(RemoveProtectedHostRequest {
                    network: "10.9.0.0/24".into(),
                })
                .await
                .map(drop),
        ),
    );

    let mut empty = |method: &str, count: usize| {
        assert_eq!(count, 0, "{method} showed a stranger something");
        tried.insert(method.to_owned());
    };
    empty(
        "AlertService/ListAlerts",
        alerts
            .list_alerts(ListAlertsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .alerts
            .len(),
    );
    empty(
        "IncidentService/ListIncidents",
        incidents
            .list_incidents(ListIncidentsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .incidents
            .len(),
    );
    empty(
        "ResponseService/ListResponses",
        responses
            .list_responses(ListResponsesRequest::default())
            .await
            .unwrap()
            .into_inner()
            .responses
            .len(),
    );
    empty(
        "PlaybookService/ListProtectedHosts",
        playbooks
            .list_protected_hosts(ListProtectedHostsRequest {})
            .await
            .unwrap()
            .into_inner()
            .hosts
            .len(),
    );

    // What they write is theirs alone.
    let document = playbooks
        .list_playbooks(ListPlaybooksRequest {})
        .await
        .unwrap()
        .into_inner()
        .playbooks[0]
        .document
        .clone();
    let changed = document.replace("spec:\n", "spec:\n  enabled: false\n");
    playbooks
        .apply_playbook(ApplyPlaybookRequest { document: changed })
        .await
        .unwrap();
    playbooks
        .add_protected_host(AddProtectedHostRequest {
            network: "198.51.100.0/24".into(),
            reason: reason(),
        })
        .await
        .unwrap();
    let kept = bench.app.list_playbooks(&bench.tenant, Utc::now()).await.unwrap();
    assert!(
        kept.iter().all(|p| p.version == 1 && p.enabled),
        "a stranger's playbook counts here"
    );
    assert_eq!(bench.app.list_protections(&bench.tenant).await.unwrap().len(), 1);
    for method in [
        "PlaybookService/ListPlaybooks",
        "PlaybookService/ApplyPlaybook",
        "PlaybookService/AddProtectedHost",
    ] {
        tried.insert(method.to_owned());
    }

    // A node of theirs learns nothing of ours: `edge` serves acme only, so it stands for the other side here.
    let mut nodes = EnforcerServiceClient::new(called(&bench, enforcer("router")));
    let desired = nodes
        .list_desired_actions(ListDesiredActionsRequest {
            node: "router".into(),
            tenants: vec!["globex".into()],
        })
        .await
        .unwrap()
        .into_inner();
    assert!(desired.orders.is_empty(), "an order of another tenant was handed out");
    let mut edge = EnforcerServiceClient::new(called(&bench, enforcer("edge")));
    let beat = HeartbeatRequest {
        node: "edge".into(),
        applied_digest: String::new(),
        tenants: vec!["globex".into()],
    };
    assert_eq!(edge.heartbeat(beat).await.unwrap_err().code(), Code::PermissionDenied);
    let ask = ListDesiredActionsRequest {
        node: "edge".into(),
        tenants: vec!["globex".into()],
    };
    assert_eq!(
        edge.list_desired_actions(ask).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    tried.extend(["EnforcerService/Heartbeat", "EnforcerService/ListDesiredActions"].map(str::to_owned));

    let untested: Vec<String> = methods().difference(&tried).cloned().collect();
    assert!(untested.is_empty(), "methods without a tenancy test: {untested:?}");
    let mine = bench
        .app
        .get_response(&bench.tenant, crate::fixture::id_of(&waiting))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(mine.state(), ResponseState::PendingApproval, "a stranger changed it");
}

#[tokio::test]
async fn the_database_itself_keeps_tenants_apart() {
    let bench = Bench::new().await;
    bench.take(&scan("198.51.100.9", &["10.0.0.2"], Severity::High)).await;
    let mut tx = bench.db.begin(&"globex".parse().unwrap()).await.unwrap();
    let tables = [
        "alert",
        "fact",
        "incident",
        "incident_note",
        "response",
        "response_transition",
        "playbook",
        "protected_host",
        "node",
        "tenant_state",
    ];
    for table in tables {
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
            .fetch_one(&mut *tx)
            .await
            .unwrap();
        assert_eq!(count, 0, "{table} showed another tenant's rows");
    }
    let forged = sqlx::query("INSERT INTO tenant_state (tenant_id) VALUES ('acme')")
        .execute(&mut *tx)
        .await;
    assert!(forged.is_err(), "a row of another tenant was written");
}

/// The broker holds the last token of a report's subject to the certificate; what the report says must agree.
#[tokio::test]
async fn a_node_speaks_for_itself_and_its_tenants_alone() {
    let bench = Bench::new().await;
    bench.beat("router", Utc::now()).await;
    let attack = scan("198.51.100.77", &["10.0.0.2"], Severity::High);
    let (_, sent) = bench.take(&attack).await;
    let report = EnforcementReport {
        response_id: id_of(&sent[0].name).to_string(),
        node: "router".to_owned(),
        outcome: Outcome::Applied.into(),
        ..EnforcementReport::default()
    };
    let globex = "globex".parse().unwrap();
    let subject = |state: &str, node: &str| subject::reports(&bench.tenant, Action::Block, state, node);
    let foreign = EnforcementReport {
        node: "stray".to_owned(),
        ..report.clone()
    };
    for (subject, report, said) in [
        (
            subject("applied", "edge"),
            &report,
            "of the node \"edge\", and claims to be of \"router\"",
        ),
        (
            subject("removed", "router"),
            &report,
            "\"applied\" on a subject for \"removed\"",
        ),
        (subject("applied", "stray"), &foreign, "may not serve"),
        (
            subject::responses(&bench.tenant, Action::Block, "applied"),
            &report,
            "names no node",
        ),
        (
            subject::reports(&globex, Action::Block, "applied", "router"),
            &report,
            "does not exist in globex",
        ),
        ("responses.v1.acme".to_owned(), &report, "not a subject"),
    ] {
        let refused = bench
            .app
            .take_report(uuid::Uuid::now_v7(), &subject, report, Utc::now())
            .await
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("GAR-RESP-0003") && refused.contains(said),
            "{subject}: {refused}"
        );
    }
    assert_eq!(
        bench.state(&sent[0]).await,
        ResponseState::Dispatched,
        "it was believed"
    );
    bench.report(&sent[0], "router", Outcome::Applied).await;
    assert_eq!(bench.state(&sent[0]).await, ResponseState::Applied);
}
