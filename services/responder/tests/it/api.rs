//! gRPC: what is wrong is named, lists lead on, nothing is answered that does not exist.

use std::task::{Context, Poll};

use chrono::Utc;
use garrison_auth::Caller;
use garrison_proto::{
    alert::v1::Severity,
    response::v1::{
        AddProtectedHostRequest, ApplyPlaybookRequest, CloseIncidentRequest, CreateResponseRequest, GetAlertRequest,
        GetIncidentRequest, GetResponseRequest, HeartbeatRequest, ListAlertsRequest, ListIncidentsRequest,
        ListPlaybooksRequest, ListResponsesRequest, alert_service_client::AlertServiceClient,
        enforcer_service_client::EnforcerServiceClient, incident_service_client::IncidentServiceClient,
        playbook_service_client::PlaybookServiceClient, response_service_client::ResponseServiceClient,
    },
};
use tonic::{Code, body::Body, codegen::http, service::Routes};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::fixture::{Bench, brute_force, enforcer, person, scan, violations};

/// The routes as the layer in front leaves requests: with a caller.
#[derive(Clone)]
pub(crate) struct Called {
    routes: Routes,
    caller: Caller,
}

impl tower::Service<http::Request<Body>> for Called {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = <Routes as tower::Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower::Service::<http::Request<Body>>::poll_ready(&mut self.routes, context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        request.extensions_mut().insert(self.caller.clone());
        self.routes.call(request)
    }
}

pub(crate) fn called(bench: &Bench, caller: Caller) -> Called {
    Called {
        routes: responder::grpc::routes(bench.app.clone()),
        caller,
    }
}

#[tokio::test]
async fn requests_that_do_not_hold_together_are_told_where() {
    let bench = Bench::new().await;
    let api = called(&bench, person(&bench.tenant));
    let mut responses = ResponseServiceClient::new(api.clone());
    let status = responses
        .create_response(CreateResponseRequest {
            target: "everybody".into(),
            ttl: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
            packets_per_second: 5,
            ..CreateResponseRequest::default()
        })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let wrong = violations(&status);
    for field in ["action", "target", "ttl", "packets_per_second", "reason"] {
        assert!(wrong.contains_key(field), "{field}: {wrong:?}");
    }
    let info = status.get_error_details().error_info().cloned().unwrap();
    assert_eq!(
        (info.reason.as_str(), info.domain.as_str()),
        ("GAR-RESP-0005", "garrison.dev")
    );

    for (name, code) in [("incidents/1", Code::InvalidArgument), ("", Code::InvalidArgument)] {
        let status = responses
            .get_response(GetResponseRequest { name: name.into() })
            .await
            .unwrap_err();
        assert_eq!(status.code(), code);
    }
    let nobody = format!("responses/{}", Uuid::now_v7());
    let status = responses
        .get_response(GetResponseRequest { name: nobody })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let status = responses
        .list_responses(ListResponsesRequest {
            states: vec![77],
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert!(violations(&status).contains_key("states"));
    let status = responses
        .create_response(CreateResponseRequest {
            action: 1,
            target: "198.51.100.9".into(),
            reason: "r".into(),
            request_id: "mine".into(),
            ..CreateResponseRequest::default()
        })
        .await
        .unwrap_err();
    assert!(violations(&status).contains_key("request_id"));

    let mut incidents = IncidentServiceClient::new(api.clone());
    let status = incidents
        .close_incident(CloseIncidentRequest {
            name: format!("incidents/{}", Uuid::now_v7()),
            reason: "r".into(),
        })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound);

    let mut alerts = AlertServiceClient::new(api.clone());
    let status = alerts
        .get_alert(GetAlertRequest { alert_id: "7".into() })
        .await
        .unwrap_err();
    assert!(violations(&status).contains_key("alert_id"));
    let status = alerts
        .list_alerts(ListAlertsRequest {
            page_token: "nonsense".into(),
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert!(violations(&status).contains_key("page_token"));

    let mut playbooks = PlaybookServiceClient::new(api.clone());
    let status = playbooks
        .add_protected_host(AddProtectedHostRequest {
            network: "x".into(),
            reason: "r".into(),
        })
        .await
        .unwrap_err();
    assert!(violations(&status).contains_key("network"));

    let mut enforcers = EnforcerServiceClient::new(api);
    let status = enforcers
        .heartbeat(HeartbeatRequest {
            node: "router".into(),
            applied_digest: String::new(),
            tenants: vec!["acme".into()],
        })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "a person spoke for a node");
}

#[tokio::test]
async fn playbooks_are_versioned_and_their_mistakes_named() {
    let bench = Bench::new().await;
    let mut playbooks = PlaybookServiceClient::new(called(&bench, person(&bench.tenant)));
    let listed = playbooks
        .list_playbooks(ListPlaybooksRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.playbooks.len(), 4, "a new tenant starts with the default set");
    let document = listed.playbooks[0].document.clone();
    let apply = |document: String| ApplyPlaybookRequest { document };

    let same = playbooks
        .apply_playbook(apply(document.clone()))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(same.playbook.unwrap().version, 1, "the same text made a new version");
    let off = document.replace("spec:\n", "spec:\n  enabled: false\n");
    let second = playbooks
        .apply_playbook(apply(off))
        .await
        .unwrap()
        .into_inner()
        .playbook
        .unwrap();
    assert_eq!((second.version, second.enabled), (2, false));

    let wrong = document
        .replace("ttl: 1h", "ttl: soon")
        .replace("action: block", "action: punish");
    let status = playbooks.apply_playbook(apply(wrong)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let wrong = violations(&status);
    assert!(wrong["spec.do[0].ttl"].contains("soon"), "{wrong:?}");
    assert!(wrong["spec.do[0].action"].contains("punish"), "{wrong:?}");
    assert!(status.message().contains("GAR-RESP-0006"));

    // The changed playbook counts at once.
    bench.beat("router", Utc::now()).await;
    assert!(second.name.ends_with("block-brute-force"));
    let (_, none) = bench.take(&brute_force("198.51.100.9", "10.0.0.2")).await;
    assert!(none.is_empty(), "a disabled playbook acted");
}

#[tokio::test]
async fn pages_lead_to_everything_once() {
    let bench = Bench::new().await;
    for i in 0..7 {
        bench
            .take(&scan(&format!("198.51.100.{i}"), &["10.0.0.2"], Severity::Info))
            .await;
    }
    let api = called(&bench, person(&bench.tenant));
    let mut incidents = IncidentServiceClient::new(api.clone());
    let mut seen = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListIncidentsRequest {
            page_size: 3,
            page_token,
            statuses: vec![1],
        };
        let page = incidents.list_incidents(request).await.unwrap().into_inner();
        seen.extend(page.incidents.into_iter().map(|i| i.name));
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    let mut unique = seen.clone();
    unique.sort();
    unique.dedup();
    assert_eq!((seen.len(), unique.len()), (7, 7));
    let found = incidents
        .get_incident(GetIncidentRequest { name: seen[0].clone() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(found.incident.unwrap().name, seen[0]);

    let mut alerts = AlertServiceClient::new(api);
    let list = |request: ListAlertsRequest| {
        let mut alerts = alerts.clone();
        async move { alerts.list_alerts(request).await.unwrap().into_inner().alerts.len() }
    };
    assert_eq!(
        list(ListAlertsRequest {
            entity: "198.51.100.3".into(),
            ..Default::default()
        })
        .await,
        1
    );
    assert_eq!(
        list(ListAlertsRequest {
            entity: "10.0.0.2".into(),
            ..Default::default()
        })
        .await,
        7
    );
    assert_eq!(
        list(ListAlertsRequest {
            detectors: vec!["scan.".into()],
            ..Default::default()
        })
        .await,
        7
    );
    assert_eq!(
        list(ListAlertsRequest {
            detectors: vec!["brute".into()],
            ..Default::default()
        })
        .await,
        0
    );
    assert_eq!(
        list(ListAlertsRequest {
            severities: vec![Severity::High as i32],
            ..Default::default()
        })
        .await,
        0
    );
    let first = alerts
        .list_alerts(ListAlertsRequest {
            page_size: 1,
            ..Default::default()
        })
        .await
        .unwrap();
    let first = first.into_inner().alerts.remove(0);
    let got = alerts
        .get_alert(GetAlertRequest {
            alert_id: first.alert_id.clone(),
        })
        .await
        .unwrap();
    assert!(seen.contains(&got.into_inner().incident));
}

#[tokio::test]
async fn a_node_is_heard() {
    let bench = Bench::new().await;
    let mut enforcers = EnforcerServiceClient::new(called(&bench, enforcer("router")));
    let answer = enforcers
        .heartbeat(HeartbeatRequest {
            node: "router".into(),
            applied_digest: responder::digest::digest([]),
            tenants: vec!["acme".into(), "globex".into()],
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.desired_digest, responder::digest::digest([]));
}
