//! Alerts that were published.

use chrono::{DateTime, Utc};
use garrison_bus::{Message, subject};
use garrison_db::{Db, DbError, Lane, Outgoing};
use garrison_proto::{TenantId, Timestamp, alert::v1::Alert, from_timestamp};
use prost::Message as _;
use sqlx::{Postgres, Row as _, postgres::PgArguments, query::Query};
use uuid::Uuid;

use super::replicas::Lease;
use crate::domain::finding::message_id;

const PUBLISH: &str = "publish alerts";

/// Keeps alerts as they are now and appends their messages, in a transaction of its own and one round trip. What is
/// there already with the same or a higher count, because its messages were taken before a crash and are taken again
/// now, is left out. Returns the messages of the others, which are on their way; `None` when the tenant is not held under
/// the lease any more, and then nothing was kept.
///
/// Alerts that are `new` leave before they are kept, because containment waits for them. Nothing is lost or doubled by
/// that: their flows are acknowledged only when they are kept, and judging the flows again gives the same alerts with the
/// same ids.
///
/// # Errors
/// When the database is away or fails.
pub async fn publish_alerts(
    lane: &Lane,
    tenant: &TenantId,
    lease: &Lease,
    alerts: &[Alert],
    new: bool,
) -> Result<Option<Vec<Message>>, DbError> {
    let rows = Rows::new(tenant, alerts)?;
    if new {
        lane.db().hurry(rows.messages.clone());
    }
    let answer = lane.run(tenant, PUBLISH, rows.statement(lease)).await?;
    let news: Option<Vec<i32>> = match answer.first() {
        Some(row) => row.try_get(0).map_err(DbError::during(PUBLISH))?,
        None => None,
    };
    let Some(news) = news else { return Ok(None) };
    let mut position = 0;
    let mut messages = rows.messages;
    messages.retain(|_| {
        position += 1;
        news.contains(&position)
    });
    if !new {
        lane.db().hurry(messages.clone());
    }
    Ok(Some(messages))
}

/// Walks through [`publish_alerts`] with an alert that nobody raised, for a tenant that does not exist, and undoes it: the
/// connection and its plans are warm when there is a real one.
///
/// # Errors
/// When the database is away or fails.
pub async fn rehearse(lane: &Lane) -> Result<(), DbError> {
    let mut rehearsal = lane.rehearsal().await?;
    let alert = Alert {
        alert_id: Uuid::now_v7().to_string(),
        detector: "rehearsal".to_owned(),
        count: 1,
        ..Alert::default()
    };
    let tenant = rehearsal.tenant().clone();
    let lease = Lease {
        owner: Uuid::nil(),
        epoch: 1,
        since: 0,
    };
    sqlx::query("INSERT INTO tenant_lease (tenant_id, owner, epoch, since) VALUES ($1, $2, $3, 0)")
        .bind(tenant.as_str())
        .bind(lease.owner)
        .bind(lease.epoch)
        .execute(&mut *rehearsal)
        .await
        .map_err(DbError::during("rehearse the publication of an alert"))?;
    let rows = Rows::new(&tenant, &[alert])?;
    rows.statement(&lease)
        .fetch_all(&mut *rehearsal)
        .await
        .map_err(DbError::during("rehearse the publication of an alert"))?;
    rehearsal.end().await
}

/// Deletes alerts that were published longer ago than they are kept. Returns how many.
///
/// # Errors
/// When the database is away or fails.
pub async fn forget_alerts(db: &Db, tenant: &TenantId, days: u32) -> Result<u64, DbError> {
    let mut tx = db.begin(tenant).await?;
    let done = sqlx::query("DELETE FROM alert WHERE tenant_id = $1 AND detected < now() - make_interval(days => $2)")
        .bind(tenant.as_str())
        .bind(i32::try_from(days).unwrap_or(i32::MAX))
        .execute(&mut *tx)
        .await
        .map_err(DbError::during("forget old alerts"))?;
    tx.commit().await?;
    Ok(done.rows_affected())
}

/// Alerts as the database's `publish_alerts` takes them.
#[derive(Default)]
struct Columns {
    ids: Vec<Uuid>,
    fingerprints: Vec<String>,
    detectors: Vec<String>,
    severities: Vec<i16>,
    counts: Vec<i64>,
    triggered: Vec<DateTime<Utc>>,
    detected: Vec<DateTime<Utc>>,
    bodies: Vec<Vec<u8>>,
}

struct Rows {
    columns: Columns,
    messages: Vec<Message>,
    outgoing: Outgoing,
}

impl Rows {
    fn new(tenant: &TenantId, alerts: &[Alert]) -> Result<Self, DbError> {
        let time = |time: &Option<Timestamp>| time.as_ref().and_then(from_timestamp).unwrap_or_default();
        let mut columns = Columns::default();
        let mut messages = Vec::with_capacity(alerts.len());
        for alert in alerts {
            let (Ok(id), Some(message)) = (alert.alert_id.parse(), message_id(alert)) else {
                continue;
            };
            columns.ids.push(id);
            columns.fingerprints.push(alert.fingerprint.clone());
            columns.detectors.push(alert.detector.clone());
            columns.severities.push(alert.severity as i16);
            columns.counts.push(i64::try_from(alert.count).unwrap_or(i64::MAX));
            columns.triggered.push(time(&alert.trigger_time));
            columns.detected.push(time(&alert.detected_time));
            columns.bodies.push(alert.encode_to_vec());
            let subject = subject::alerts(tenant, alert.severity(), &alert.detector);
            messages.push(Message::proto(subject, crate::INFO.name, alert).with_id(message));
        }
        Ok(Self {
            outgoing: Outgoing::new(tenant, &messages)?,
            columns,
            messages,
        })
    }

    fn statement(&self, lease: &Lease) -> Query<'_, Postgres, PgArguments> {
        let statement = sqlx::query(
            "SELECT publish_alerts($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, \
             $19, $20, $21, $22)",
        )
        .bind(&self.columns.ids)
        .bind(&self.columns.fingerprints)
        .bind(&self.columns.detectors)
        .bind(&self.columns.severities)
        .bind(&self.columns.counts)
        .bind(&self.columns.triggered)
        .bind(&self.columns.detected)
        .bind(&self.columns.bodies);
        self.outgoing.bind(statement).bind(lease.owner).bind(lease.epoch)
    }
}
