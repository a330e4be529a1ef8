//! Alerts, events, incidents and responses, kept as they came.

use chrono::{DateTime, Utc};
use garrison_db::Tx;
use garrison_proto::{
    alert::v1::Alert,
    response::v1::{Incident, Response},
};
use prost::Message as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::error::Error;

const READ: &str = "reading events";
const WRITE: &str = "keeping an event";

/// An event as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its id on the bus.
    pub id: Uuid,
    /// Its message name.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// The message.
    pub message: Vec<u8>,
}

/// Keeps an event.
///
/// # Errors
/// [`Error::Database`].
pub async fn insert(tx: &mut Tx<'_>, event: &Event) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO event (tenant_id, event_id, kind, subject, time, message)
         VALUES (current_setting('garrison.tenant', true), $1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
    )
    .bind(event.id)
    .bind(&event.kind)
    .bind(&event.subject)
    .bind(event.time)
    .bind(&event.message)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(Error::database(WRITE))
}

/// Events about something, oldest first, at most `limit`.
///
/// # Errors
/// [`Error::Database`].
pub async fn about(tx: &mut Tx<'_>, subject: &str, limit: i64) -> Result<Vec<Event>, Error> {
    let rows = sqlx::query(
        "SELECT event_id, kind, subject, time, message FROM event WHERE subject = $1 ORDER BY time, event_id LIMIT $2",
    )
    .bind(subject)
    .bind(limit)
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::database(READ))?;
    Ok(rows.iter().map(event).collect())
}

/// Policy changes, oldest first, at most `limit` of the newest.
///
/// # Errors
/// [`Error::Database`].
pub async fn policy_changes(tx: &mut Tx<'_>, limit: i64) -> Result<Vec<Event>, Error> {
    let rows = sqlx::query(
        "SELECT * FROM (SELECT event_id, kind, subject, time, message FROM event
                        WHERE subject >= 'policies/' AND subject < 'policies0' ORDER BY time DESC, event_id LIMIT $1) AS e
         ORDER BY time, event_id",
    )
    .bind(limit)
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::database(READ))?;
    Ok(rows.iter().map(event).collect())
}

fn event(row: &sqlx::postgres::PgRow) -> Event {
    Event {
        id: row.get(0),
        kind: row.get(1),
        subject: row.get(2),
        time: row.get(3),
        message: row.get(4),
    }
}

/// Keeps an alert; of several versions the one with the highest count stays.
///
/// # Errors
/// [`Error::Database`].
pub async fn upsert_alert(tx: &mut Tx<'_>, id: Uuid, alert: &Alert, last_seen: DateTime<Utc>) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO alert (tenant_id, alert_id, count, last_seen, message)
         VALUES (current_setting('garrison.tenant', true), $1, $2, $3, $4)
         ON CONFLICT (tenant_id, alert_id) DO UPDATE
         SET count = excluded.count, last_seen = excluded.last_seen, message = excluded.message, stored = now()
         WHERE excluded.count >= alert.count",
    )
    .bind(id)
    .bind(super::bound(alert.count))
    .bind(last_seen)
    .bind(alert.encode_to_vec())
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(Error::database(WRITE))
}

/// Keeps an incident's state; the latest stays.
///
/// # Errors
/// [`Error::Database`].
pub async fn upsert_incident(
    tx: &mut Tx<'_>,
    id: Uuid,
    incident: &Incident,
    updated: DateTime<Utc>,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO incident (tenant_id, incident_id, updated, message)
         VALUES (current_setting('garrison.tenant', true), $1, $2, $3)
         ON CONFLICT (tenant_id, incident_id) DO UPDATE
         SET updated = excluded.updated, message = excluded.message, stored = now()
         WHERE excluded.updated >= incident.updated",
    )
    .bind(id)
    .bind(updated)
    .bind(incident.encode_to_vec())
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(Error::database(WRITE))
}

/// Keeps a response's state; the one with the longest history stays.
///
/// # Errors
/// [`Error::Database`].
pub async fn upsert_response(tx: &mut Tx<'_>, id: Uuid, response: &Response) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO response (tenant_id, response_id, incident, transitions, message)
         VALUES (current_setting('garrison.tenant', true), $1, $2, $3, $4)
         ON CONFLICT (tenant_id, response_id) DO UPDATE
         SET incident = excluded.incident, transitions = excluded.transitions, message = excluded.message, stored = now()
         WHERE excluded.transitions >= response.transitions",
    )
    .bind(id)
    .bind(&response.incident)
    .bind(i32::try_from(response.history.len()).unwrap_or(i32::MAX))
    .bind(response.encode_to_vec())
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(Error::database(WRITE))
}

/// An incident in its latest state.
///
/// # Errors
/// [`Error::Database`] or [`Error::Stored`].
pub async fn incident(tx: &mut Tx<'_>, id: Uuid) -> Result<Option<Incident>, Error> {
    let message: Option<Vec<u8>> = sqlx::query_scalar("SELECT message FROM incident WHERE incident_id = $1")
        .bind(id)
        .fetch_optional(&mut **tx)
        .await
        .map_err(Error::database(READ))?;
    message.map(|bytes| decode(&bytes)).transpose()
}

/// The alerts with these ids, oldest first.
///
/// # Errors
/// [`Error::Database`] or [`Error::Stored`].
pub async fn alerts(tx: &mut Tx<'_>, ids: &[Uuid]) -> Result<Vec<Alert>, Error> {
    let messages: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT message FROM alert WHERE alert_id = ANY($1) ORDER BY alert_id")
            .bind(ids)
            .fetch_all(&mut **tx)
            .await
            .map_err(Error::database(READ))?;
    messages.iter().map(|bytes| decode(bytes)).collect()
}

/// The responses to an incident, oldest first.
///
/// # Errors
/// [`Error::Database`] or [`Error::Stored`].
pub async fn responses(tx: &mut Tx<'_>, incident: &str) -> Result<Vec<Response>, Error> {
    let messages: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT message FROM response WHERE incident = $1 ORDER BY response_id")
            .bind(incident)
            .fetch_all(&mut **tx)
            .await
            .map_err(Error::database(READ))?;
    messages.iter().map(|bytes| decode(bytes)).collect()
}

/// Deletes what was kept before a time, at most `limit` rows of each kind, and answers with how many that were.
/// The version of a policy that was in force then stays, as later alerts refer to it, and so does an incident whose
/// evidence is being gathered.
///
/// # Errors
/// [`Error::Database`].
pub async fn expire(tx: &mut Tx<'_>, before: DateTime<Utc>, limit: i64) -> Result<u64, Error> {
    let mut deleted = 0;
    for statement in [
        "DELETE FROM alert WHERE alert_id IN (
             SELECT alert_id FROM alert WHERE stored < $1 ORDER BY stored LIMIT $2)",
        "DELETE FROM response WHERE response_id IN (
             SELECT response_id FROM response WHERE stored < $1 ORDER BY stored LIMIT $2)",
        "DELETE FROM incident WHERE incident_id IN (
             SELECT incident_id FROM incident AS i WHERE stored < $1 AND NOT EXISTS (
                 SELECT 1 FROM bundle AS b WHERE b.incident_id = i.incident_id AND b.state = 1)
             ORDER BY stored LIMIT $2)",
        "DELETE FROM event WHERE event_id IN (
             SELECT event_id FROM event AS e WHERE stored < $1 AND (subject NOT LIKE 'policies/%' OR EXISTS (
                 SELECT 1 FROM event AS later WHERE later.subject = e.subject AND later.stored < $1
                 AND (later.stored, later.event_id) > (e.stored, e.event_id)))
             ORDER BY stored LIMIT $2)",
    ] {
        let done = sqlx::query(statement)
            .bind(before)
            .bind(limit)
            .execute(&mut **tx)
            .await
            .map_err(Error::database("applying retention to events"))?;
        deleted += done.rows_affected();
    }
    Ok(deleted)
}

fn decode<M: prost::Message + Default>(bytes: &[u8]) -> Result<M, Error> {
    M::decode(bytes).map_err(Error::Stored)
}
