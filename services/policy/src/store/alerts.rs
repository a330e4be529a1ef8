use chrono::{DateTime, Utc};
use garrison_db::{DbError, Tx};
use garrison_proto::{alert::v1::Alert, from_timestamp};
use prost::Message as _;
use sqlx::Row as _;
use uuid::Uuid;

/// An alert that was raised before. Its row is locked until the transaction ends.
#[derive(Debug)]
pub struct RaisedAlert {
    /// Its id.
    pub id: Uuid,
    /// The alert as it grew.
    pub alert: Alert,
    /// Its count when it was last published.
    pub announced: u64,
}

fn seen(alert: &Alert) -> DateTime<Utc> {
    alert.last_seen.as_ref().and_then(from_timestamp).unwrap_or_default()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Those of the alerts that were raised before, locked in the order of their ids.
///
/// # Errors
/// When the database fails, or a stored alert does not read.
pub async fn raised(tx: &mut Tx<'_>, ids: &[Uuid]) -> Result<Vec<RaisedAlert>, DbError> {
    let operation = "read raised alerts";
    let tenant = tx.tenant().to_string();
    let rows = sqlx::query(
        "SELECT alert_id, body, announced FROM alert WHERE tenant_id = $1 AND alert_id = ANY($2)
         ORDER BY alert_id FOR UPDATE",
    )
    .bind(tenant)
    .bind(ids)
    .fetch_all(&mut **tx)
    .await
    .map_err(DbError::during(operation))?;
    rows.iter()
        .map(|row| {
            let body: Vec<u8> = row.try_get("body")?;
            Ok(RaisedAlert {
                id: row.try_get("alert_id")?,
                alert: Alert::decode(body.as_slice()).map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
                announced: u64::try_from(row.try_get::<i64, _>("announced")?).unwrap_or_default(),
            })
        })
        .collect::<Result<_, _>>()
        .map_err(DbError::during(operation))
}

/// Stores new alerts, in the order of their ids. Answers those that were not there already.
///
/// # Errors
/// When the database fails.
pub async fn raise(tx: &mut Tx<'_>, alerts: &[(Uuid, Alert)]) -> Result<Vec<Uuid>, DbError> {
    let tenant = tx.tenant().to_string();
    let counts: Vec<i64> = alerts.iter().map(|(_, alert)| signed(alert.count)).collect();
    sqlx::query_scalar(
        "INSERT INTO alert (tenant_id, alert_id, body, announced, last_seen)
         SELECT $1, new.* FROM unnest($2::uuid[], $3::bytea[], $4::bigint[], $5::timestamptz[]) AS new (id, a, b, c)
         ORDER BY new.id ON CONFLICT (tenant_id, alert_id) DO NOTHING RETURNING alert_id",
    )
    .bind(tenant)
    .bind(alerts.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(
        alerts
            .iter()
            .map(|(_, alert)| alert.encode_to_vec())
            .collect::<Vec<_>>(),
    )
    .bind(counts)
    .bind(alerts.iter().map(|(_, alert)| seen(alert)).collect::<Vec<_>>())
    .fetch_all(&mut **tx)
    .await
    .map_err(DbError::during("store alerts"))
}

/// Writes alerts that grew.
///
/// # Errors
/// When the database fails.
pub async fn grow(tx: &mut Tx<'_>, alerts: &[RaisedAlert]) -> Result<(), DbError> {
    let tenant = tx.tenant().to_string();
    sqlx::query(
        "UPDATE alert SET body = new.body, announced = new.announced, last_seen = new.seen
         FROM unnest($2::uuid[], $3::bytea[], $4::bigint[], $5::timestamptz[]) AS new (id, body, announced, seen)
         WHERE tenant_id = $1 AND alert_id = new.id",
    )
    .bind(tenant)
    .bind(alerts.iter().map(|a| a.id).collect::<Vec<_>>())
    .bind(alerts.iter().map(|a| a.alert.encode_to_vec()).collect::<Vec<_>>())
    .bind(alerts.iter().map(|a| signed(a.announced)).collect::<Vec<_>>())
    .bind(alerts.iter().map(|a| seen(&a.alert)).collect::<Vec<_>>())
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("write alerts that grew"))?;
    Ok(())
}

/// Forgets alerts that were last seen before a time; at most `limit`. Answers how many.
///
/// # Errors
/// When the database fails.
pub async fn forget_alerts(tx: &mut Tx<'_>, before: DateTime<Utc>, limit: i64) -> Result<u64, DbError> {
    let tenant = tx.tenant().to_string();
    let done = sqlx::query(
        "DELETE FROM alert WHERE (tenant_id, alert_id) IN (
             SELECT tenant_id, alert_id FROM alert WHERE tenant_id = $1 AND last_seen < $2 LIMIT $3)",
    )
    .bind(tenant)
    .bind(before)
    .bind(limit)
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("forget old alerts"))?;
    Ok(done.rows_affected())
}
