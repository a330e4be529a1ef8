use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use async_nats::jetstream;
use garrison_bus::{Bus, Message, subject};
use garrison_db::{Db, DbConfig, DbError, Migrator, run_outbox_relay};
use garrison_proto::{TenantId, event::v1::KeySetChanged};
use garrison_testkit::Stack;
use sqlx::{
    SqlStr,
    migrate::{Migration, MigrationType},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const NOTES: &str = "
    CREATE TABLE note (tenant_id text NOT NULL, id integer NOT NULL, PRIMARY KEY (tenant_id, id));
    ALTER TABLE note ENABLE ROW LEVEL SECURITY;
    ALTER TABLE note FORCE ROW LEVEL SECURITY;
    CREATE POLICY tenant ON note USING (tenant_id = current_setting('garrison.tenant', true))
        WITH CHECK (tenant_id = current_setting('garrison.tenant', true));
";

pub(crate) fn migrator(statements: &[&'static str]) -> Migrator {
    let migration = |(index, statement): (usize, &&'static str)| {
        let version = i64::try_from(index).unwrap() + 1;
        let text = SqlStr::from_static(statement);
        Migration::new(version, Cow::Borrowed("test"), MigrationType::Simple, text, false)
    };
    Migrator::with_migrations(statements.iter().enumerate().map(migration).collect())
}

pub(crate) fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

/// A fresh database of a service whose events go out as `policy`.
pub(crate) async fn database(stack: &Stack) -> (Db, DbConfig) {
    let config = stack.database("policy", &migrator(&[NOTES])).await;
    (Db::connect(&config, "policy").unwrap(), config)
}

pub(crate) fn event(tenant: &TenantId, number: usize) -> Message {
    let data = KeySetChanged {
        key_id: number.to_string(),
    };
    Message::proto(subject::events(tenant, "policy"), "policy", &data)
}

pub(crate) struct Relay {
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), DbError>>,
}

impl Relay {
    pub(crate) async fn start(stack: &Stack, db: &Db) -> Self {
        let mut config = stack.bus_config("svc/policy");
        config.ack_timeout_ms = 1_000;
        let bus = Bus::connect(&config, "policy").await.unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(run_outbox_relay(db.clone(), bus.publisher(), stop.clone()));
        Self { stop, task }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(60), self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

/// Counts rows of a table over all tenants, past row-level security.
pub(crate) async fn count(stack: &Stack, config: &DbConfig, table: &str) -> i64 {
    let mut superuser = stack.postgres().superuser(&config.database).await.unwrap();
    let query = format!("SELECT count(*) FROM policy.{table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(query))
        .fetch_one(&mut superuser)
        .await
        .unwrap()
}

/// The numbers in the EVENTS stream in stored order, by tenant.
pub(crate) async fn published(stack: &Stack) -> BTreeMap<TenantId, Vec<usize>> {
    let admin = Bus::connect(&stack.bus_config("svc/bus-admin"), "bus-admin")
        .await
        .unwrap();
    let stream: jetstream::stream::Stream = admin.jetstream().get_stream("EVENTS").await.unwrap();
    let mut found: BTreeMap<TenantId, Vec<usize>> = BTreeMap::new();
    for sequence in 1..=stream.cached_info().state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let tenant = subject::tenant_of(&message.subject).unwrap();
        let data: KeySetChanged = prost::Message::decode(message.payload.as_ref()).unwrap();
        found.entry(tenant).or_default().push(data.key_id.parse().unwrap());
    }
    found
}

/// Waits until a condition holds, two minutes at most.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..2_400 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never happened: {what}");
}
