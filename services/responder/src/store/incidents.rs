//! Incidents, their notes and their alerts.

use chrono::{DateTime, Utc};
use garrison_proto::{alert::v1::Severity, response::v1::IncidentStatus};
use sqlx::{PgConnection, Row, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::corrupt;
use crate::domain::incident::Incident;

/// A remark in an incident's timeline.
#[derive(Debug, Clone)]
pub struct Note {
    /// When.
    pub time: DateTime<Utc>,
    /// What.
    pub summary: String,
    /// Resource name it is about.
    pub subject: String,
    /// Who.
    pub actor: String,
}

/// Reads a row of `incident`.
pub(super) fn read(row: &PgRow) -> Result<Incident, sqlx::Error> {
    let status: i16 = row.try_get("status")?;
    let worst: i16 = row.try_get("worst")?;
    Ok(Incident {
        id: row.try_get("incident_id")?,
        status: IncidentStatus::try_from(i32::from(status)).map_err(|_| corrupt("incident.status"))?,
        worst: Severity::try_from(i32::from(worst)).map_err(|_| corrupt("incident.worst"))?,
        entities: row.try_get::<Json<_>, _>("entities")?.0,
        techniques: row.try_get::<Json<_>, _>("techniques")?.0,
        alert_ids: row.try_get("alert_ids")?,
        responses: row.try_get("responses")?,
        first_seen: row.try_get("first_seen")?,
        last_seen: row.try_get("last_seen")?,
        created: row.try_get("created")?,
        updated: row.try_get("updated")?,
        score: row.try_get("score")?,
        alert_count: row.try_get::<i64, _>("alert_count")?.max(0) as u64,
        root: row.try_get("root")?,
        headline: row.try_get("headline")?,
        merged_into: row.try_get("merged_into")?,
    })
}

/// Incidents by id; those that do not exist are missing from the answer.
pub async fn load(tx: &mut PgConnection, tenant: &str, ids: &[Uuid]) -> Result<Vec<Incident>, sqlx::Error> {
    let rows = sqlx::query("SELECT * FROM incident WHERE tenant_id = $1 AND incident_id = ANY($2)")
        .bind(tenant)
        .bind(ids)
        .fetch_all(tx)
        .await?;
    rows.iter().map(read).collect()
}

/// One incident.
pub async fn get(tx: &mut PgConnection, tenant: &str, id: Uuid) -> Result<Option<Incident>, sqlx::Error> {
    Ok(load(tx, tenant, &[id]).await?.pop())
}

/// A page of incidents, the youngest first. `after` is the last one of the page before.
pub async fn list(
    tx: &mut PgConnection,
    tenant: &str,
    statuses: &[i16],
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Incident>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT * FROM incident
         WHERE tenant_id = $1 AND ($2::smallint[] = '{}' OR status = ANY($2))
           AND ($3::timestamptz IS NULL OR (created, incident_id) < ($3, $4))
         ORDER BY created DESC, incident_id DESC LIMIT $5",
    )
    .bind(tenant)
    .bind(statuses)
    .bind(after.map(|a| a.0))
    .bind(after.map(|a| a.1))
    .bind(limit)
    .fetch_all(tx)
    .await?;
    rows.iter().map(read).collect()
}

/// Replaces what may change of an incident.
pub async fn update(tx: &mut PgConnection, tenant: &str, incident: &Incident) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE incident SET status = $3, worst = $4, entities = $5, techniques = $6, alert_ids = $7,
             responses = $8, first_seen = $9, last_seen = $10, updated = $11, score = $12,
             alert_count = $13, root = $14, headline = $15, merged_into = $16
         WHERE tenant_id = $1 AND incident_id = $2",
    )
    .bind(tenant)
    .bind(incident.id)
    .bind(incident.status as i16)
    .bind(incident.worst as i16)
    .bind(Json(&incident.entities))
    .bind(Json(&incident.techniques))
    .bind(&incident.alert_ids)
    .bind(&incident.responses)
    .bind(incident.first_seen)
    .bind(incident.last_seen)
    .bind(incident.updated)
    .bind(incident.score)
    .bind(incident.alert_count as i64)
    .bind(&incident.root)
    .bind(&incident.headline)
    .bind(incident.merged_into)
    .execute(tx)
    .await?;
    Ok(())
}

/// Moves everything that belongs to one incident to another.
pub async fn move_contents(tx: &mut PgConnection, tenant: &str, from: Uuid, to: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query(
        "WITH alerts AS (
             UPDATE alert SET incident_id = $3 WHERE tenant_id = $1 AND incident_id = $2
         ), responses AS (
             UPDATE response SET incident_id = $3 WHERE tenant_id = $1 AND incident_id = $2
         ), notes AS (
             UPDATE incident_note SET incident_id = $3 WHERE tenant_id = $1 AND incident_id = $2
         ), moved AS (
             DELETE FROM fact WHERE tenant_id = $1 AND incident_id = $2 RETURNING *
         )
         INSERT INTO fact (tenant_id, host, role, minute, stage, incident_id)
         SELECT tenant_id, host, role, minute, stage, $3 FROM moved ON CONFLICT DO NOTHING",
    )
    .bind(tenant)
    .bind(from)
    .bind(to)
    .execute(tx)
    .await?;
    Ok(())
}

/// Forgets the correlation facts of an incident: nothing joins it any more.
pub async fn forget_facts(tx: &mut PgConnection, tenant: &str, id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM fact WHERE tenant_id = $1 AND incident_id = $2")
        .bind(tenant)
        .bind(id)
        .execute(tx)
        .await?;
    Ok(())
}

/// Removes facts that are too old to link anything. Answers with how many.
pub async fn prune_facts(tx: &mut PgConnection, tenant: &str, before_minute: i64) -> Result<u64, sqlx::Error> {
    let done = sqlx::query("DELETE FROM fact WHERE tenant_id = $1 AND minute < $2")
        .bind(tenant)
        .bind(before_minute)
        .execute(tx)
        .await?;
    Ok(done.rows_affected())
}

/// Adds a remark.
pub async fn add_note(tx: &mut PgConnection, tenant: &str, incident: Uuid, note: &Note) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO incident_note (tenant_id, note_id, incident_id, time, summary, subject, actor)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(tenant)
    .bind(Uuid::now_v7())
    .bind(incident)
    .bind(note.time)
    .bind(&note.summary)
    .bind(&note.subject)
    .bind(&note.actor)
    .execute(tx)
    .await?;
    Ok(())
}

/// Remarks of an incident, at most `limit`, the oldest first.
pub async fn notes(tx: &mut PgConnection, tenant: &str, incident: Uuid, limit: i64) -> Result<Vec<Note>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT time, summary, subject, actor FROM incident_note
         WHERE tenant_id = $1 AND incident_id = $2 ORDER BY time, note_id LIMIT $3",
    )
    .bind(tenant)
    .bind(incident)
    .bind(limit)
    .fetch_all(tx)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Note {
                time: row.try_get("time")?,
                summary: row.try_get("summary")?,
                subject: row.try_get("subject")?,
                actor: row.try_get("actor")?,
            })
        })
        .collect()
}
