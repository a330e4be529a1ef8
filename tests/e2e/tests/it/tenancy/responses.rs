//! `response.v1`: alerts, incidents, responses, playbooks, enforcers.

use garrison_proto::response::v1::{
    Action, AddProtectedHostRequest, ApplyPlaybookRequest, ApproveResponseRequest, CloseIncidentRequest,
    CreateResponseRequest, GetAlertRequest, GetIncidentRequest, GetResponseRequest, GetTimelineRequest,
    HeartbeatRequest, IncidentStatus, ListAlertsRequest, ListDesiredActionsRequest, ListIncidentsRequest,
    ListPlaybooksRequest, ListProtectedHostsRequest, ListResponsesRequest, RejectResponseRequest,
    RemoveProtectedHostRequest, ResponseState, RollbackResponseRequest, enforcer_service_client::EnforcerServiceClient,
};
use garrison_testkit::TRUST_DOMAIN;
use tonic::transport::Channel;

use super::cases;
use crate::{
    calls::{forbidden, gone},
    seed::{Side, playbook},
    world::{NODE, World},
};

cases! {
    "response.v1.AlertService/ListAlerts" => |world| {
        let mut globex = world.globex.admin.alerts.clone();
        let all = globex.list_alerts(ListAlertsRequest::default()).await.unwrap().into_inner().alerts;
        assert!(all.iter().any(|alert| alert.alert_id == world.globex.alert));
        assert!(all.iter().all(|alert| !format!("{alert:?}").contains("\"10.1.")), "{all:?}");
        let request = ListAlertsRequest { entity: world.acme.host(10).to_string(), ..ListAlertsRequest::default() };
        assert!(globex.list_alerts(request).await.unwrap().into_inner().alerts.is_empty());
        // A place in acme's list.
        let page = ListAlertsRequest { page_size: 1, ..ListAlertsRequest::default() };
        let first = world.acme.admin.alerts.clone().list_alerts(page.clone()).await.unwrap().into_inner();
        let page = ListAlertsRequest { page_token: first.next_page_token, ..page };
        if let Ok(answer) = globex.list_alerts(page).await {
            assert!(!format!("{answer:?}").contains("\"10.1."), "{answer:?}");
        }
    };
    "response.v1.AlertService/GetAlert" => |world| {
        let request = GetAlertRequest { alert_id: world.acme.alert.clone() };
        gone(world.globex.admin.alerts.clone().get_alert(request).await);
    };
    "response.v1.IncidentService/ListIncidents" => |world| {
        let answer = world.globex.admin.incidents.clone().list_incidents(ListIncidentsRequest::default()).await.unwrap();
        let incidents = answer.into_inner().incidents;
        assert!(incidents.iter().any(|incident| incident.name == world.globex.incident));
        assert!(incidents.iter().all(|incident| !format!("{incident:?}").contains("\"10.1.")), "{incidents:?}");
    };
    "response.v1.IncidentService/GetIncident" => |world| {
        let request = GetIncidentRequest { name: world.acme.incident.clone() };
        gone(world.globex.admin.incidents.clone().get_incident(request).await);
    };
    "response.v1.IncidentService/GetTimeline" => |world| {
        let request = GetTimelineRequest { name: world.acme.incident.clone() };
        gone(world.globex.admin.incidents.clone().get_timeline(request).await);
    };
    "response.v1.IncidentService/CloseIncident" => |world| {
        let request = CloseIncidentRequest { name: world.acme.incident.clone(), reason: "not mine".to_owned() };
        gone(world.globex.admin.incidents.clone().close_incident(request).await);
        let request = GetIncidentRequest { name: world.acme.incident.clone() };
        let kept = world.acme.admin.incidents.clone().get_incident(request).await.unwrap().into_inner();
        assert_ne!(kept.incident.unwrap().status(), IncidentStatus::Closed);
    };
    "response.v1.ResponseService/ListResponses" => |world| {
        let mut globex = world.globex.admin.responses.clone();
        let all = globex.list_responses(ListResponsesRequest::default()).await.unwrap().into_inner().responses;
        assert!(all.iter().any(|response| response.name == world.globex.manual));
        let acme = [&world.acme.manual, &world.acme.response.name];
        assert!(all.iter().all(|response| !acme.contains(&&response.name)), "{all:?}");
        assert!(all.iter().all(|response| !response.target.starts_with("10.1.")), "{all:?}");
        let request = ListResponsesRequest { incident: world.acme.incident.clone(), ..ListResponsesRequest::default() };
        assert!(globex.list_responses(request).await.unwrap().into_inner().responses.is_empty());
    };
    "response.v1.ResponseService/GetResponse" => |world| {
        for name in [&world.acme.manual, &world.acme.response.name, &world.acme.pending[0]] {
            gone(world.globex.admin.responses.clone().get_response(GetResponseRequest { name: name.clone() }).await);
        }
    };
    "response.v1.ResponseService/CreateResponse" => |world| {
        let request = CreateResponseRequest {
            action: Action::Block.into(),
            target: "198.51.100.99".to_owned(),
            reason: "another's".to_owned(),
            ..CreateResponseRequest::default()
        };
        let mut globex = world.globex.admin.responses.clone();
        let into_theirs = CreateResponseRequest { incident: world.acme.incident.clone(), ..request.clone() };
        gone(globex.create_response(into_theirs).await);
        // A request id that acme used is globex's own to use.
        let same_id = CreateResponseRequest { request_id: world.acme.request.clone(), ..request };
        let made = globex.create_response(same_id).await.unwrap().into_inner().response.unwrap();
        assert_ne!(made.name, world.acme.manual);
        assert_eq!(made.target.split('/').next(), Some("198.51.100.99"));
        gone(world.acme.admin.responses.clone().get_response(GetResponseRequest { name: made.name }).await);
    };
    "response.v1.ResponseService/ApproveResponse" => |world| {
        let name = world.acme.pending[0].clone();
        let request = ApproveResponseRequest { name: name.clone(), reason: "mine".to_owned() };
        gone(world.globex.admin.responses.clone().approve_response(request).await);
        assert_eq!(state(&world.acme, name).await, ResponseState::PendingApproval);
    };
    "response.v1.ResponseService/RejectResponse" => |world| {
        let name = world.acme.pending[1].clone();
        let request = RejectResponseRequest { name: name.clone(), reason: "mine".to_owned() };
        gone(world.globex.admin.responses.clone().reject_response(request).await);
        assert_eq!(state(&world.acme, name).await, ResponseState::PendingApproval);
    };
    "response.v1.ResponseService/RollbackResponse" => |world| {
        let name = world.acme.response.name.clone();
        let before = state(&world.acme, name.clone()).await;
        let request = RollbackResponseRequest { name: name.clone(), reason: "mine".to_owned() };
        gone(world.globex.admin.responses.clone().rollback_response(request).await);
        assert_eq!(state(&world.acme, name).await, before);
    };
    "response.v1.PlaybookService/ListPlaybooks" => |world| {
        for (side, other) in [(&world.acme, &world.globex), (&world.globex, &world.acme)] {
            let names = playbooks(side).await;
            assert!(names.contains(&side.playbook) && !names.contains(&other.playbook), "{names:?}");
        }
    };
    "response.v1.PlaybookService/ApplyPlaybook" => |world| {
        // Under acme's name: a first version of globex's own.
        let name = world.acme.playbook.strip_prefix("playbooks/").unwrap();
        let changed = playbook(name).replace("priority: 1}", "priority: 2}");
        let request = ApplyPlaybookRequest { document: changed };
        let made = world.globex.admin.playbooks.clone().apply_playbook(request).await.unwrap().into_inner();
        assert_eq!(made.playbook.unwrap().version, 1);
        let acme = world.acme.admin.playbooks.clone().list_playbooks(ListPlaybooksRequest {}).await.unwrap();
        let kept = acme.into_inner().playbooks.into_iter().find(|p| p.name == world.acme.playbook).unwrap();
        assert!(kept.document.contains("priority: 1}"), "{}", kept.document);
    };
    "response.v1.PlaybookService/ListProtectedHosts" => |world| {
        for (side, other) in [(&world.acme, &world.globex), (&world.globex, &world.acme)] {
            let networks = protected(side).await;
            assert!(networks.contains(&side.protected) && !networks.contains(&other.protected), "{networks:?}");
        }
    };
    "response.v1.PlaybookService/AddProtectedHost" => |world| {
        let network = "10.222.0.0/16".to_owned();
        let request = AddProtectedHostRequest { network: network.clone(), reason: "globex's".to_owned() };
        world.globex.admin.playbooks.clone().add_protected_host(request).await.unwrap();
        assert!(!protected(&world.acme).await.contains(&network));
    };
    "response.v1.PlaybookService/RemoveProtectedHost" => |world| {
        let request = RemoveProtectedHostRequest { network: world.acme.protected.clone() };
        gone(world.globex.admin.playbooks.clone().remove_protected_host(request).await);
        assert!(protected(&world.acme).await.contains(&world.acme.protected));
    };
    "response.v1.EnforcerService/Heartbeat" => |world| {
        let beat = |node: &str, tenants: &[&str]| HeartbeatRequest {
            node: node.to_owned(),
            applied_digest: String::new(),
            tenants: tenants.iter().map(|tenant| (*tenant).to_owned()).collect(),
        };
        forbidden(world.globex.admin.enforcers.clone().heartbeat(beat(NODE, &["globex"])).await);
        // A node speaks for itself, and for the tenants that it may serve.
        gone(node(world, NODE).heartbeat(beat("other", &["globex"])).await);
        gone(node(world, NODE).heartbeat(beat(NODE, &["system"])).await);
        gone(node(world, "stray").heartbeat(beat("stray", &["globex"])).await);
    };
    "response.v1.EnforcerService/ListDesiredActions" => |world| {
        let ask = |node: &str, tenants: &[&str]| ListDesiredActionsRequest {
            node: node.to_owned(),
            tenants: tenants.iter().map(|tenant| (*tenant).to_owned()).collect(),
        };
        forbidden(world.globex.admin.enforcers.clone().list_desired_actions(ask(NODE, &["globex"])).await);
        gone(node(world, NODE).list_desired_actions(ask(NODE, &["system"])).await);
        gone(node(world, "stray").list_desired_actions(ask("stray", &["acme"])).await);
        gone(node(world, "stray").list_desired_actions(ask(NODE, &["acme"])).await);
        let globex = node(world, NODE).list_desired_actions(ask(NODE, &["globex"])).await.unwrap().into_inner();
        assert!(globex.orders.iter().all(|order| order.tenant == "globex"), "{globex:?}");
    };
}

fn node(world: &World, name: &str) -> EnforcerServiceClient<Channel> {
    let files = world
        .fleet
        .pki()
        .unwrap()
        .identity(&format!("enforcer/{name}"))
        .unwrap();
    EnforcerServiceClient::new(world.doors.channel_with("responder", &files, TRUST_DOMAIN))
}

async fn state(side: &Side, name: String) -> ResponseState {
    let answer = side
        .admin
        .responses
        .clone()
        .get_response(GetResponseRequest { name })
        .await
        .unwrap();
    answer.into_inner().response.unwrap().state()
}

async fn playbooks(side: &Side) -> Vec<String> {
    let answer = side
        .admin
        .playbooks
        .clone()
        .list_playbooks(ListPlaybooksRequest {})
        .await
        .unwrap();
    answer
        .into_inner()
        .playbooks
        .into_iter()
        .map(|playbook| playbook.name)
        .collect()
}

async fn protected(side: &Side) -> Vec<String> {
    let request = ListProtectedHostsRequest {};
    let answer = side
        .admin
        .playbooks
        .clone()
        .list_protected_hosts(request)
        .await
        .unwrap();
    answer.into_inner().hosts.into_iter().map(|host| host.network).collect()
}
