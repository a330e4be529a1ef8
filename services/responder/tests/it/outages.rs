//! The responder as a process, while its dependencies come and go and it is killed itself.

use std::{collections::BTreeSet, time::Duration};

use garrison_auth::{SpiffeId, TlsFiles, TlsIdentity, client};
use garrison_bus::{Bus, Message, Publisher, subject};
use garrison_proto::{
    alert::v1::{Alert, Severity},
    response::v1::{
        CloseIncidentRequest, ListAlertsRequest, ListIncidentsRequest, ListResponsesRequest,
        alert_service_client::AlertServiceClient, incident_service_client::IncidentServiceClient,
        response_service_client::ResponseServiceClient,
    },
};
use garrison_testkit::{Stack, TRUST_DOMAIN};
use tonic::{Code, service::interceptor::InterceptedService, transport::Channel};

use crate::{
    fixture::{brute_force, eventually, scan},
    processes::{Program, responder_config},
};

const RESPONDER: &str = env!("CARGO_BIN_EXE_responder");
/// After an outage: reconnecting to the database and the broker, and their pauses between attempts.
const RECOVERY: Duration = Duration::from_secs(180);

struct Run {
    stack: Stack,
    folder: tempfile::TempDir,
    port: u16,
}

impl Run {
    async fn new() -> Self {
        let stack = Stack::start().await;
        let db = stack.database("responder", &responder::MIGRATOR).await;
        let folder = tempfile::tempdir().unwrap();
        let port = responder_config(&stack, &db, &folder.path().join("responder.toml"));
        Self { stack, folder, port }
    }

    fn start(&self) -> Program {
        Program::start(
            RESPONDER,
            &self.folder.path().join("responder.toml"),
            &self.folder.path().join("responder.log"),
        )
    }

    async fn publisher(&self) -> Publisher {
        Bus::connect(&self.stack.bus_config("svc/anomaly"), "anomaly")
            .await
            .unwrap()
            .publisher()
    }

    /// The fleet's own way in, as one of its services.
    fn channel(&self, identity: &str, tenant: &str) -> InterceptedService<Channel, client::ForTenant> {
        let files = self.stack.identity(identity);
        let files = TlsFiles {
            cert_file: files.cert_file,
            key_file: files.key_file,
            ca_file: files.ca_file,
        };
        let identity = TlsIdentity::load(files, TRUST_DOMAIN).unwrap();
        let expected = SpiffeId::service(TRUST_DOMAIN, "responder").unwrap();
        let endpoint = format!("https://127.0.0.1:{}", self.port);
        let channel = client::channel(&identity, &endpoint, &expected).unwrap();
        InterceptedService::new(channel, client::for_tenant(&tenant.parse().unwrap()))
    }

    async fn listed(&self, tenant: &str) -> Option<BTreeSet<String>> {
        let mut alerts = AlertServiceClient::new(self.channel("svc/forensics", tenant));
        let request = ListAlertsRequest {
            page_size: 500,
            ..Default::default()
        };
        let answer = tokio::time::timeout(Duration::from_secs(20), alerts.list_alerts(request)).await;
        let page = answer.ok()?.ok()?.into_inner();
        Some(page.alerts.into_iter().map(|a| a.alert_id).collect())
    }

    async fn all_arrive(&self, sent: &BTreeSet<String>) {
        eventually("every alert taken in", RECOVERY, || async {
            self.listed("acme").await.filter(|listed| listed == sent)
        })
        .await;
    }
}

fn message(alert: &Alert) -> Message {
    let tenant = "acme".parse().unwrap();
    Message::proto(
        subject::alerts(&tenant, alert.severity(), &alert.detector),
        "anomaly",
        alert,
    )
}

async fn send(publisher: &Publisher, sent: &mut BTreeSet<String>, alert: &Alert) {
    let message = message(alert);
    while publisher.publish(&message).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    sent.insert(alert.alert_id.clone());
}

#[tokio::test]
async fn nothing_that_was_acknowledged_is_lost_when_database_broker_and_service_go_away() {
    let run = Run::new().await;
    run.stack.postgres().stop();
    let mut responder = run.start();
    let publisher = run.publisher().await;
    let mut sent = BTreeSet::new();
    // The database is away at the start.
    send(&publisher, &mut sent, &brute_force("198.51.100.1", "10.0.0.2")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(responder.is_running(), "{}", responder.log());
    run.stack.postgres().resume().unwrap();
    run.all_arrive(&sent).await;

    // It goes away in the middle, and the service is killed with -9 again and again while alerts come in.
    for round in 0..4u8 {
        if round == 1 {
            run.stack.postgres().kill();
        }
        for i in 0..10u8 {
            let source = format!("198.51.{}.{}", 100 + round, i + 1);
            send(&publisher, &mut sent, &scan(&source, &["10.0.0.2"], Severity::Low)).await;
            tokio::time::sleep(Duration::from_millis(7 * u64::from(i))).await;
            if i == 4 + round {
                responder.kill();
                responder = run.start();
            }
        }
        if round == 1 {
            run.stack.postgres().resume().unwrap();
        }
    }
    run.all_arrive(&sent).await;

    // The broker is gone for a while.
    run.stack.nats().kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(responder.is_running(), "{}", responder.log());
    run.stack.nats().resume().unwrap();
    send(&publisher, &mut sent, &brute_force("198.51.100.2", "10.0.0.2")).await;
    run.all_arrive(&sent).await;

    // Every alert is in exactly one incident.
    let mut incidents = IncidentServiceClient::new(run.channel("svc/forensics", "acme"));
    let request = ListIncidentsRequest {
        page_size: 500,
        ..Default::default()
    };
    let all = incidents.list_incidents(request).await.unwrap().into_inner().incidents;
    let listed: Vec<String> = all.iter().flat_map(|i| i.alert_ids.clone()).collect();
    assert_eq!(listed.len(), sent.len());
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), sent);
    assert!(responder.stop(), "SIGTERM did not end it well: {}", responder.log());
}

#[tokio::test]
async fn strangers_and_broken_messages_get_nowhere() {
    let run = Run::new().await;
    let _responder = run.start();
    let publisher = run.publisher().await;
    let mut sent = BTreeSet::new();

    // Broken in every layer; each goes aside and the next is taken.
    let good = brute_force("198.51.100.1", "10.0.0.2");
    let mut garbage = message(&good).with_id(uuid::Uuid::now_v7());
    garbage.payload = vec![0xff; 40].into();
    publisher.publish(&garbage).await.unwrap();
    let mut no_entity = good.clone();
    no_entity.entity = None;
    publisher.publish(&message(&no_entity)).await.unwrap();
    let mut wrong_kind = message(&good).with_id(uuid::Uuid::now_v7());
    wrong_kind.kind = "garrison.event.v1.LoginEvent".into();
    publisher.publish(&wrong_kind).await.unwrap();
    send(&publisher, &mut sent, &good).await;
    publisher
        .publish(&message(&good).with_id(uuid::Uuid::now_v7()))
        .await
        .unwrap();
    run.all_arrive(&sent).await;

    // Another tenant sees nothing; a service without the permission may not change anything; a service that
    // has no business here is refused.
    assert!(run.listed("globex").await.unwrap().is_empty());
    let mut incidents = IncidentServiceClient::new(run.channel("svc/forensics", "acme"));
    let close = CloseIncidentRequest {
        name: format!("incidents/{}", uuid::Uuid::now_v7()),
        reason: "x".into(),
    };
    assert_eq!(
        incidents.close_incident(close).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    let mut responses = ResponseServiceClient::new(run.channel("svc/anomaly", "acme"));
    let refused = responses
        .list_responses(ListResponsesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[test]
fn a_wrong_configuration_names_the_key_and_ends_with_64() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("c.toml");
    for (text, key) in [("[core]\n", "core"), ("", "core")] {
        std::fs::write(&config, text).unwrap();
        for binary in [RESPONDER, env!("CARGO_BIN_EXE_enforcer")] {
            let output = std::process::Command::new(binary)
                .arg("--config")
                .arg(&config)
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(64));
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains(key), "{said}");
        }
    }
}
