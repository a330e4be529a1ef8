//! Gives a tenant one of everything.

use std::{net::Ipv4Addr, time::Duration};

use futures::TryStreamExt as _;
use garrison_proto::{
    alert::v1::StartLearningRequest,
    compliance::v1::{CreateReportRequest, ListEntriesRequest},
    flow::v1::FlowFilter,
    forensics::v1::{BundleState, CreateBundleRequest, GetBundleRequest, SearchFlowsRequest},
    iam::v1::{ListSessionsRequest, ListUsersRequest},
    policy::v1::ApplyPolicyRequest,
    response::v1::{
        Action, AddProtectedHostRequest, ApplyPlaybookRequest, CreateResponseRequest, GetAlertRequest,
        ListResponsesRequest, Response, ResponseState,
    },
    to_timestamp,
};
use garrison_testkit::Fleet;
use tonic::Code;
use uuid::Uuid;

use crate::{
    calls::{Desk, Doors, log_in},
    place::until,
    stimuli::{alert_message, batch, brute_force, forbidden_contact},
    world::{ACME, bus},
};

/// What a tenant has, by name.
pub struct Side {
    /// The tenant.
    pub id: &'static str,
    /// Its number, which is the second octet of its own addresses.
    pub n: u8,
    /// Its administrator, logged in with a second factor: nobody in the tenant may do more.
    pub admin: Desk,
    /// An alert, and the incident it is in.
    pub alert: String,
    pub incident: String,
    /// A response of a playbook in that incident.
    pub response: Response,
    /// Responses that wait for approval.
    pub pending: Vec<String>,
    /// A response made by hand, and the id its client chose.
    pub manual: String,
    pub request: String,
    /// A sealed bundle, and the id its client chose.
    pub bundle: String,
    pub bundle_request: String,
    pub report: String,
    /// A policy whose name only this tenant uses, and one whose name both use.
    pub policy: String,
    pub document: String,
    pub playbook: String,
    pub protected: String,
    /// `users/…` of the person `temp`, and a session of theirs.
    pub user: String,
    pub session: String,
    /// Ids of flows in the lake.
    pub flow_ids: Vec<String>,
    /// The id of an audit record.
    pub record: String,
}

impl Side {
    /// A host of this tenant's own.
    pub fn host(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.n, 1, last)
    }
}

/// The name of the policy that both tenants have.
pub const SHARED_POLICY: &str = "both";

pub fn policy(name: &str, mode: &str, subject: &str) -> String {
    format!(
        "apiVersion: garrison.dev/v1alpha1\nkind: ZeroTrustPolicy\nmetadata: {{name: {name}}}\nspec:\n  mode: {mode}\n  \
         subject: {{cidrs: [{subject}]}}\n  ingress:\n    - name: web\n      from: [{{cidr: 10.0.0.0/8}}]\n      ports:\n        \
         - {{protocol: TCP, port: 80}}\n"
    )
}

pub fn playbook(name: &str) -> String {
    format!(
        "apiVersion: garrison.dev/v1alpha1\nkind: Playbook\nmetadata: {{name: {name}}}\nspec:\n  when:\n    \
         detectors: [\"nothing.at.all\"]\n  do:\n    - {{action: block, target: source, ttl: 1h, approval: required, priority: 1}}\n"
    )
}

/// Works through the fleet's own interfaces until there is one of everything.
pub async fn seed(fleet: &Fleet, doors: &Doors, id: &'static str, n: u8) -> Side {
    let mut admin = log_in(fleet, doors, id, "admin").await;
    let temp = log_in(fleet, doors, id, "temp").await;
    let (document, playbook_name) = (format!("own-{id}"), format!("book-{id}"));
    for (name, mode, subject) in [
        (document.as_str(), "observe", format!("10.{n}.8.0/24")),
        (SHARED_POLICY, "enforce", format!("10.{n}.9.0/24")),
    ] {
        let request = ApplyPolicyRequest {
            document: policy(name, mode, &subject),
            expected_version: None,
        };
        admin.policies.apply_policy(request).await.unwrap();
    }
    let request = ApplyPlaybookRequest {
        document: playbook(&playbook_name),
    };
    admin.playbooks.apply_playbook(request).await.unwrap();
    let protected = format!("10.{n}.99.0/24");
    let request = AddProtectedHostRequest {
        network: protected.clone(),
        reason: "the heart of it".to_owned(),
    };
    admin.playbooks.add_protected_host(request).await.unwrap();
    if id == ACME {
        admin
            .detection
            .start_learning(StartLearningRequest::default())
            .await
            .unwrap();
    }

    let own = |last| Ipv4Addr::new(10, n, 1, last);
    let outside = Ipv4Addr::new(203, 0, 113, n);
    let (anomaly, policy) = (bus(fleet, "svc/anomaly").await, bus(fleet, "svc/policy").await);
    let first = brute_force(outside, own(10));
    anomaly.publisher().publish(&alert_message(id, &first)).await.unwrap();
    for alert in [
        &forbidden_contact(own(20), own(99)),
        &forbidden_contact(own(21), own(98)),
        &forbidden_contact(own(22), own(97)),
    ] {
        policy.publisher().publish(&alert_message(id, alert)).await.unwrap();
    }
    let ingest = bus(fleet, "svc/flow-ingest").await;
    let flows = batch(
        id,
        &format!("published-{id}"),
        own(10),
        Ipv4Addr::new(10, n, 8, 80),
        80,
        20,
    );
    ingest.publisher().publish(&flows).await.unwrap();

    let limit = Duration::from_secs(120);
    let incident = until(limit, "the alert in an incident", || {
        let (mut admin, alert_id) = (admin.clone(), first.alert_id.clone());
        async move {
            let answer = admin.alerts.get_alert(GetAlertRequest { alert_id }).await;
            answer.ok().map(|answer| answer.into_inner().incident)
        }
    })
    .await;
    let responses = until(limit, "the playbooks' responses", || {
        let mut admin = admin.clone();
        async move {
            let list = admin.responses.list_responses(ListResponsesRequest::default()).await;
            let list = list.unwrap().into_inner().responses;
            (list.len() >= 4).then_some(list)
        }
    })
    .await;
    let pending = responses
        .iter()
        .filter(|response| response.state() == ResponseState::PendingApproval)
        .map(|response| response.name.clone())
        .collect::<Vec<_>>();
    let response = responses
        .iter()
        .find(|response| response.incident == incident)
        .cloned()
        .unwrap();

    let request = Uuid::now_v7().to_string();
    let manual = CreateResponseRequest {
        action: Action::RateLimit.into(),
        target: Ipv4Addr::new(198, 51, 100, n).to_string(),
        packets_per_second: 10,
        reason: "by hand".to_owned(),
        request_id: request.clone(),
        ..CreateResponseRequest::default()
    };
    let manual = admin.responses.create_response(manual).await.unwrap().into_inner();
    let bundle_request = Uuid::now_v7().to_string();
    let bundle = bundle(&admin, &incident, &bundle_request).await;
    let report = CreateReportRequest {
        framework: "soc2".to_owned(),
        since: Some(to_timestamp(chrono::Utc::now() - chrono::TimeDelta::hours(1))),
        until: None,
    };
    let report = admin.reports.create_report(report).await.unwrap().into_inner();
    let users = admin.users.list_users(ListUsersRequest::default()).await.unwrap();
    let user = users
        .into_inner()
        .users
        .into_iter()
        .find(|user| user.login == "temp")
        .unwrap();
    let sessions = temp
        .sessions
        .clone()
        .list_sessions(ListSessionsRequest::default())
        .await
        .unwrap();
    let flow_ids = until(limit, "the flows in the lake", || {
        let admin = admin.clone();
        async move {
            let found = search(&admin, FlowFilter::default()).await;
            let ids: Vec<String> = found
                .into_iter()
                .filter(|flow| flow.sensor.starts_with("published"))
                .map(|flow| flow.flow_id)
                .collect();
            (ids.len() == 20).then_some(ids)
        }
    })
    .await;
    let record = until(limit, "entries in the log", || {
        let mut admin = admin.clone();
        async move {
            let answer = admin.log.list_entries(ListEntriesRequest::default()).await.unwrap();
            let answer = answer.into_inner();
            let entry = answer.entries.first()?;
            let body: serde_json::Value = serde_json::from_slice(&entry.body).unwrap();
            Some(body["recordId"].as_str()?.to_owned())
        }
    })
    .await;
    Side {
        id,
        n,
        admin,
        alert: first.alert_id,
        incident,
        response,
        pending,
        manual: manual.response.unwrap().name,
        request,
        bundle,
        bundle_request,
        report: report.report.unwrap().name,
        policy: format!("policies/{document}"),
        document,
        playbook: format!("playbooks/{playbook_name}"),
        protected,
        user: user.name,
        session: sessions.into_inner().sessions.first().unwrap().name.clone(),
        flow_ids,
        record,
    }
}

/// Asks for a bundle of an incident, which forensics may not have heard of yet, and waits for its seal.
pub async fn bundle(desk: &Desk, incident: &str, request_id: &str) -> String {
    let limit = Duration::from_secs(120);
    let name = until(limit, "the incident to reach forensics", || {
        let mut desk = desk.clone();
        let request = CreateBundleRequest {
            incident: incident.to_owned(),
            request_id: request_id.to_owned(),
        };
        async move {
            match desk.evidence.create_bundle(request).await {
                Ok(answer) => Some(answer.into_inner().bundle.unwrap().name),
                Err(status) => {
                    assert!(
                        matches!(status.code(), Code::NotFound | Code::Unavailable),
                        "{status:?}"
                    );
                    None
                }
            }
        }
    })
    .await;
    until(limit, "the bundle's seal", || {
        let (mut desk, name) = (desk.clone(), name.clone());
        async move {
            let answer = desk.evidence.get_bundle(GetBundleRequest { name }).await.ok()?;
            let bundle = answer.into_inner().bundle.unwrap();
            assert_ne!(bundle.state(), BundleState::Failed, "{}", bundle.error);
            (bundle.state() == BundleState::Sealed).then_some(())
        }
    })
    .await;
    name
}

/// Every flow that a search finds.
pub async fn search(desk: &Desk, filter: FlowFilter) -> Vec<garrison_proto::flow::v1::Flow> {
    let request = SearchFlowsRequest {
        filter: Some(filter),
        limit: 0,
    };
    let answers = desk.search.clone().search_flows(request).await.unwrap().into_inner();
    let answers: Vec<_> = answers.try_collect().await.unwrap();
    answers.into_iter().flat_map(|answer| answer.flows).collect()
}
