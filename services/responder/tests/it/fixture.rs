//! The use cases on a fresh database, with hand-made callers and alerts.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use garrison_auth::{Caller, Principal};
use garrison_db::{Db, DbConfig};
use garrison_proto::{
    TenantId,
    alert::v1::{Alert, Entity, EntityKind, Severity, Technique},
    response::v1::{EnforcementReport, Response, ResponseState, enforcement_report::Outcome},
    to_timestamp,
};
use garrison_testkit::Stack;
use responder::{
    app::{App, Settings, Taken},
    config::Config,
};
use sqlx::Row as _;
use uuid::Uuid;

/// A configuration with everything at its default, and two tenants on the node `router`. One beat of a node lasts for a
/// test, however slow the machine is.
pub(crate) fn settings() -> Settings {
    let text = "[core.identity]\ntrust_domain='t'\ncert_file='c'\nkey_file='k'\nca_file='a'\n[core.bus]\nurls=['tls://n:4222']\nca_file='a'\ncert_file='c'\nkey_file='k'\n[core.grpc]\nlisten='127.0.0.1:0'\n[enforcement]\nstale_after_s=600\n[enforcement.nodes]\nrouter=['acme','globex']\nedge=['acme']\n";
    let config: Config = toml::from_str(text).unwrap();
    config.settings().unwrap()
}

pub(crate) struct Bench {
    pub(crate) app: App,
    pub(crate) tenant: TenantId,
    pub(crate) db: Db,
    pub(crate) config: DbConfig,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        Self::with(settings()).await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        let stack = Stack::shared().await;
        let config = stack.database("responder", &responder::MIGRATOR).await;
        let db = Db::connect(&config, "responder").unwrap();
        let app = App::new(
            responder::INFO,
            db.clone(),
            settings,
            Utc::now() - chrono::Duration::hours(1),
        );
        Self {
            app,
            tenant: "acme".parse().unwrap(),
            db,
            config,
        }
    }

    /// A node says that it is alive.
    pub(crate) async fn beat(&self, node: &str, now: DateTime<Utc>) -> String {
        self.app
            .heartbeat(&enforcer(node), node, "", &[self.tenant.to_string()], now)
            .await
            .unwrap()
    }

    /// Takes an alert in and answers with its incident and responses.
    pub(crate) async fn take(&self, alert: &Alert) -> (Uuid, Vec<Response>) {
        let taken = self
            .app
            .take_alert(Uuid::now_v7(), &self.tenant, alert, Utc::now())
            .await
            .unwrap();
        let Taken::In {
            incident, responses, ..
        } = taken
        else {
            panic!("a fresh message was taken for a repeat");
        };
        let mut found = Vec::new();
        for id in responses {
            found.push(self.response(id).await);
        }
        (incident, found)
    }

    pub(crate) async fn response(&self, id: Uuid) -> Response {
        self.app.get_response(&self.tenant, id).await.unwrap().unwrap()
    }

    pub(crate) async fn report(&self, response: &Response, node: &str, outcome: Outcome) {
        let report = EnforcementReport {
            response_id: id_of(&response.name).to_string(),
            node: node.to_owned(),
            outcome: outcome as i32,
            kernel_time: Some(to_timestamp(Utc::now())),
            confirmed_time: Some(to_timestamp(Utc::now())),
            error: if outcome == Outcome::Failed {
                "no".into()
            } else {
                String::new()
            },
            expired: false,
        };
        let state = match outcome {
            Outcome::Applied => "applied",
            Outcome::Removed => "removed",
            _ => "failed",
        };
        let subject = garrison_bus::subject::reports(&self.tenant, response.action(), state, node);
        self.app
            .take_report(Uuid::now_v7(), &subject, &report, Utc::now())
            .await
            .unwrap();
    }

    pub(crate) async fn state(&self, response: &Response) -> ResponseState {
        self.response(id_of(&response.name)).await.state()
    }

    /// What waits in the outbox, in order: subject and payload.
    pub(crate) async fn outbox(&self) -> Vec<(String, Vec<u8>)> {
        let stack = Stack::shared().await;
        let mut superuser = stack.postgres().superuser(&self.config.database).await.unwrap();
        sqlx::query("SELECT subject, payload FROM responder.outbox ORDER BY id")
            .fetch_all(&mut superuser)
            .await
            .unwrap()
            .iter()
            .map(|row| (row.get("subject"), row.get("payload")))
            .collect()
    }

    /// How many messages of a kind wait in the outbox.
    pub(crate) async fn count(&self, part: &str) -> usize {
        self.outbox()
            .await
            .iter()
            .filter(|(subject, _)| subject.contains(part))
            .count()
    }
}

pub(crate) fn id_of(name: &str) -> Uuid {
    Uuid::parse_str(name.rsplit('/').next().unwrap()).unwrap()
}

pub(crate) fn person(tenant: &TenantId) -> Caller {
    Caller {
        tenant: tenant.clone(),
        principal: Principal::User {
            id: Uuid::from_u128(7),
            login: "ana".into(),
        },
        roles: vec!["analyst".into()],
        session: None,
        second_factor: true,
        address: None,
    }
}

pub(crate) fn enforcer(node: &str) -> Caller {
    Caller {
        tenant: TenantId::system(),
        principal: Principal::Enforcer { node: node.into() },
        roles: Vec::new(),
        session: None,
        second_factor: false,
        address: None,
    }
}

fn host(value: &str) -> Entity {
    Entity {
        kind: EntityKind::Host as i32,
        value: value.to_owned(),
    }
}

/// An alert with one technique, seen now.
pub(crate) fn alert(
    detector: &str,
    severity: Severity,
    source: &str,
    targets: &[&str],
    technique: (&str, &str),
) -> Alert {
    let now = Utc::now();
    Alert {
        alert_id: Uuid::now_v7().to_string(),
        detector: detector.to_owned(),
        title: format!("{detector} from {source}"),
        severity: severity as i32,
        confidence: 0.9,
        entity: Some(host(source)),
        targets: targets.iter().map(|t| host(t)).collect(),
        techniques: vec![Technique {
            id: technique.0.to_owned(),
            name: technique.1.to_owned(),
            tactic: technique.1.to_owned(),
        }],
        first_seen: Some(to_timestamp(now)),
        last_seen: Some(to_timestamp(now)),
        trigger_time: Some(to_timestamp(now)),
        detected_time: Some(to_timestamp(now)),
        count: 1,
        ..Alert::default()
    }
}

pub(crate) fn brute_force(source: &str, target: &str) -> Alert {
    alert(
        "bruteforce.http",
        Severity::High,
        source,
        &[target],
        ("T1110", "Credential Access"),
    )
}

pub(crate) fn scan(source: &str, targets: &[&str], severity: Severity) -> Alert {
    alert("scan.vertical", severity, source, targets, ("T1046", "Discovery"))
}

pub(crate) fn forbidden(source: &str, target: &str) -> Alert {
    alert(
        "policy.violation",
        Severity::High,
        source,
        &[target],
        ("T1021", "Lateral Movement"),
    )
}

/// Details of a violation, by field.
pub(crate) fn violations(status: &tonic::Status) -> BTreeMap<String, String> {
    use tonic_types::StatusExt as _;
    status
        .get_error_details()
        .bad_request()
        .map(|bad| {
            bad.field_violations
                .iter()
                .map(|v| (v.field.clone(), v.description.clone()))
                .collect()
        })
        .unwrap_or_default()
}

/// Asks again and again until the answer is `Some`, at most for a while.
pub(crate) async fn eventually<T, F, Fut>(what: &str, limit: Duration, mut ask: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let started = std::time::Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < limit, "{what} did not happen within {limit:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
