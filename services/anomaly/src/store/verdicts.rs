//! What people said of alerts.

use chrono::{DateTime, Utc};
use garrison_db::{Db, DbError, Tx};
use garrison_proto::{
    TenantId,
    alert::v1::{Alert, Verdict},
};
use prost::Message as _;
use uuid::Uuid;

use crate::domain::ranking::Said;

/// The latest verdicts that count.
const COUNTED: i64 = 10_000;

/// An alert as it was published last.
///
/// # Errors
/// When the database is away or fails.
pub async fn alert(tx: &mut Tx<'_>, alert: Uuid) -> Result<Option<Alert>, DbError> {
    let id = tx.tenant().clone();
    let body: Option<(Vec<u8>,)> = sqlx::query_as("SELECT body FROM alert WHERE tenant_id = $1 AND alert_id = $2")
        .bind(id.as_str())
        .bind(alert)
        .fetch_optional(&mut **tx)
        .await
        .map_err(DbError::during("look for an alert"))?;
    Ok(body.and_then(|(body,)| Alert::decode(body.as_slice()).ok()))
}

/// Keeps a verdict in place of the same person's earlier one.
///
/// # Errors
/// When the database is away or fails.
pub async fn insert(
    tx: &mut Tx<'_>,
    (alert_id, alert): (Uuid, &Alert),
    (verdict, comment): (Verdict, &str),
    (actor, given): (&str, DateTime<Utc>),
) -> Result<(), DbError> {
    let id = tx.tenant().clone();
    sqlx::query(
        "INSERT INTO verdict (tenant_id, alert_id, actor, verdict, comment, given, fingerprint, detector, entity) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
         ON CONFLICT (tenant_id, alert_id, actor) DO UPDATE SET verdict = excluded.verdict, \
         comment = excluded.comment, given = excluded.given",
    )
    .bind(id.as_str())
    .bind(alert_id)
    .bind(actor)
    .bind(verdict as i16)
    .bind(comment)
    .bind(given)
    .bind(&alert.fingerprint)
    .bind(&alert.detector)
    .bind(alert.entity.as_ref().map_or("", |e| e.value.as_str()))
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("keep a verdict"))?;
    Ok(())
}

/// What was said lately, and the alerts that were detected since, newest first.
///
/// # Errors
/// When the database is away or fails.
pub async fn latest(
    db: &Db,
    tenant: &TenantId,
    since: DateTime<Utc>,
    most: i64,
) -> Result<(Vec<Said>, Vec<Alert>), DbError> {
    let mut tx = db.begin(tenant).await?;
    let said: Vec<(String, String, String, i16)> = sqlx::query_as(
        "SELECT fingerprint, detector, entity, verdict FROM verdict WHERE tenant_id = $1 \
         ORDER BY given DESC LIMIT $2",
    )
    .bind(tenant.as_str())
    .bind(COUNTED)
    .fetch_all(&mut *tx)
    .await
    .map_err(DbError::during("read verdicts"))?;
    let alerts: Vec<(Vec<u8>,)> = sqlx::query_as(
        "SELECT body FROM alert WHERE tenant_id = $1 AND detected >= $2 ORDER BY detected DESC LIMIT $3",
    )
    .bind(tenant.as_str())
    .bind(since)
    .bind(most)
    .fetch_all(&mut *tx)
    .await
    .map_err(DbError::during("read alerts"))?;
    tx.rollback().await?;
    let said = said.into_iter().map(|(fingerprint, detector, entity, verdict)| Said {
        fingerprint,
        detector,
        entity,
        verdict: Verdict::try_from(i32::from(verdict)).unwrap_or(Verdict::Unspecified),
    });
    let alerts = alerts
        .into_iter()
        .filter_map(|(body,)| Alert::decode(body.as_slice()).ok());
    Ok((said.collect(), alerts.collect()))
}
