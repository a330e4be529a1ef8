//! Alerts: taking them in with as few round trips as possible, and reading them again.

use chrono::{DateTime, Utc};
use garrison_db::Outgoing;
use sqlx::{PgConnection, Row as _, types::Json};
use uuid::Uuid;

use super::responses::{Created, Situation, read_situation, rows, situation_columns, write_responses};
use crate::domain::{
    alert::AlertFacts,
    correlation::{Fact, Known, Role},
    incident::Incident,
    stage::Stage,
};

/// Most correlation facts that one alert is compared with.
const MAX_FACTS: i64 = 50_000;

/// What is on record about an alert and its hosts.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// Generation of the tenant's rules; `None` for a tenant that the responder has never worked for.
    pub generation: Option<i64>,
    /// The incident that already holds this alert, when it is not the first account of it.
    pub present: Option<Uuid>,
    /// Facts of open incidents that the alert could be linked with.
    pub known: Vec<Known>,
    /// What decides about actions on the alert's addresses. Settled responses of every incident in `known` and of
    /// `present` are among them.
    pub situation: Situation,
}

/// When something is looked up.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Now.
    pub now: DateTime<Utc>,
    /// Since when a node must have been heard of to be alive.
    pub heard_since: DateTime<Utc>,
    /// How far apart alerts may be linked, in minutes.
    pub window_minutes: i64,
}

/// A fact: host, role, minute, stage, incident.
type FactRow = (String, i16, i64, i16, Uuid);

/// Looks up everything that taking an alert in depends on, in one round trip.
pub async fn surroundings(
    tx: &mut PgConnection,
    tenant: &str,
    alert: &AlertFacts,
    facts: &[Fact],
    targets: &[String],
    moment: Moment,
) -> Result<Surroundings, sqlx::Error> {
    let minute = facts.first().map_or(0, |f| f.minute);
    let victims: Vec<&str> = facts
        .iter()
        .filter(|f| f.role == Role::Target)
        .map(|f| f.host.as_str())
        .collect();
    let row = sqlx::query(concat!(
        "WITH nearby AS MATERIALIZED (
             (SELECT host, role, minute, stage, incident_id FROM fact
              WHERE tenant_id = $1 AND host = $3 AND minute BETWEEN $5 AND $6 LIMIT $7)
             UNION ALL
             (SELECT host, role, minute, stage, incident_id FROM fact
              WHERE tenant_id = $1 AND host = ANY($4) AND role = 0 AND minute BETWEEN $5 AND $6 LIMIT $7)
         ), present AS MATERIALIZED (
             SELECT incident_id FROM alert WHERE tenant_id = $1 AND alert_id = $2
         )
         SELECT (SELECT generation FROM tenant_state WHERE tenant_id = $1) AS generation,
                (SELECT incident_id FROM present) AS present,
                (SELECT coalesce(jsonb_agg(jsonb_build_array(host, role, minute, stage, incident_id)), '[]')
                 FROM nearby) AS nearby, ",
        situation_columns!(
            "$8",
            "ARRAY(SELECT incident_id FROM nearby UNION SELECT incident_id FROM present)",
            "$9",
            "$10"
        )
    ))
    .bind(tenant)
    .bind(alert.id)
    .bind(&alert.source.host)
    .bind(&victims)
    .bind(minute - moment.window_minutes - 1)
    .bind(minute + moment.window_minutes + 1)
    .bind(MAX_FACTS)
    .bind(targets)
    .bind(moment.now)
    .bind(moment.heard_since)
    .fetch_one(tx)
    .await?;
    let nearby: Json<Vec<FactRow>> = row.try_get("nearby")?;
    let known = nearby.0.into_iter().map(|(host, role, minute, stage, incident)| Known {
        incident,
        fact: Fact {
            host,
            role: if role == 0 { Role::Source } else { Role::Target },
            stage: Stage::from_number(stage),
            minute,
        },
    });
    Ok(Surroundings {
        generation: row.try_get("generation")?,
        present: row.try_get("present")?,
        known: known.collect(),
        situation: read_situation(&row)?,
    })
}

/// Writes the alert, its incident, its facts, the responses that it led to and the messages that tell of it, in one
/// statement. False when the delivery that the messages come from was handled before: then the transaction must be
/// rolled back.
#[allow(clippy::too_many_arguments)] // what one alert leaves behind
pub async fn put(
    tx: &mut PgConnection,
    tenant: &str,
    alert: &AlertFacts,
    body: &[u8],
    facts: &[Fact],
    incident: &Incident,
    responses: &[Created],
    outgoing: &Outgoing,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let mut searchable = alert.hosts();
    for party in std::iter::once(&alert.source).chain(&alert.targets) {
        if !searchable.contains(&party.value) {
            searchable.push(party.value.clone());
        }
    }
    let hosts: Vec<&str> = facts.iter().map(|f| f.host.as_str()).collect();
    let roles: Vec<i16> = facts.iter().map(|f| f.role as i16).collect();
    let minutes: Vec<i64> = facts.iter().map(|f| f.minute).collect();
    let stages: Vec<i16> = facts.iter().map(|f| f.stage as i16).collect();
    let statement = sqlx::query(concat!(
        "WITH ",
        write_responses!(),
        ", alert_row AS (
             INSERT INTO alert (tenant_id, alert_id, incident_id, detector, severity, title, source, hosts,
                                last_seen, received, body)
             VALUES ($1, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
             ON CONFLICT (tenant_id, alert_id) DO UPDATE
             SET incident_id = excluded.incident_id, severity = excluded.severity, title = excluded.title,
                 hosts = excluded.hosts, last_seen = excluded.last_seen, body = excluded.body
         ), incident_row AS (
             INSERT INTO incident (tenant_id, incident_id, status, worst, entities, techniques, alert_ids,
                                   responses, first_seen, last_seen, created, updated, score, alert_count,
                                   root, headline, merged_into)
             VALUES ($1, $4, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, NULL)
             ON CONFLICT (tenant_id, incident_id) DO UPDATE
             SET status = excluded.status, worst = excluded.worst, entities = excluded.entities,
                 techniques = excluded.techniques, alert_ids = excluded.alert_ids,
                 responses = excluded.responses, first_seen = excluded.first_seen,
                 last_seen = excluded.last_seen, updated = excluded.updated, score = excluded.score,
                 alert_count = excluded.alert_count, root = excluded.root, headline = excluded.headline
         ), fact_rows AS (
             INSERT INTO fact (tenant_id, host, role, minute, stage, incident_id)
             SELECT $1, f.host, f.role, f.minute, f.stage, $4
             FROM unnest($27::text[], $28::smallint[], $29::bigint[], $30::smallint[])
                  AS f (host, role, minute, stage)
             ON CONFLICT DO NOTHING
         )
         SELECT append_messages($31, $32, $33, $34, $35, $36, $37, $38, $39, $40, $41, $42)"
    ))
    .bind(tenant)
    .bind(rows(responses, now))
    .bind(alert.id)
    .bind(incident.id)
    .bind(&alert.detector)
    .bind(alert.severity as i16)
    .bind(&alert.title)
    .bind(&alert.source.value)
    .bind(&searchable)
    .bind(alert.last_seen)
    .bind(now)
    .bind(body)
    .bind(incident.status as i16)
    .bind(incident.worst as i16)
    .bind(Json(&incident.entities))
    .bind(Json(&incident.techniques))
    .bind(&incident.alert_ids)
    .bind(&incident.responses)
    .bind(incident.first_seen)
    .bind(incident.last_seen)
    .bind(incident.created)
    .bind(incident.updated)
    .bind(incident.score)
    .bind(incident.alert_count as i64)
    .bind(&incident.root)
    .bind(&incident.headline)
    .bind(&hosts)
    .bind(&roles)
    .bind(&minutes)
    .bind(&stages);
    outgoing.bind(statement).fetch_one(tx).await?.try_get(0)
}

/// What to list.
#[derive(Debug, Default)]
pub struct AlertQuery {
    /// Any of these; empty for all.
    pub severities: Vec<i16>,
    /// Any detector that starts with one of these; empty for all.
    pub detectors: Vec<String>,
    /// An entity value or host.
    pub entity: Option<String>,
    /// Not received before.
    pub since: Option<DateTime<Utc>>,
    /// Received before.
    pub until: Option<DateTime<Utc>>,
    /// The last one of the page before.
    pub after: Option<(DateTime<Utc>, Uuid)>,
    /// At most so many.
    pub limit: i64,
}

/// A stored alert.
#[derive(Debug)]
pub struct StoredAlert {
    /// Its id.
    pub id: Uuid,
    /// Its incident.
    pub incident: Uuid,
    /// When it was taken in.
    pub received: DateTime<Utc>,
    /// `garrison.alert.v1.Alert`.
    pub body: Vec<u8>,
}

/// A page of alerts, the youngest first.
pub async fn list(tx: &mut PgConnection, tenant: &str, query: &AlertQuery) -> Result<Vec<StoredAlert>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT alert_id, incident_id, received, body FROM alert
         WHERE tenant_id = $1
           AND ($2::smallint[] = '{}' OR severity = ANY($2))
           AND ($3::text[] = '{}' OR EXISTS (SELECT 1 FROM unnest($3) AS p WHERE starts_with(detector, p)))
           AND ($4::text IS NULL OR hosts @> ARRAY[$4])
           AND ($5::timestamptz IS NULL OR received >= $5)
           AND ($6::timestamptz IS NULL OR received < $6)
           AND ($7::timestamptz IS NULL OR (received, alert_id) < ($7, $8))
         ORDER BY received DESC, alert_id DESC LIMIT $9",
    )
    .bind(tenant)
    .bind(&query.severities)
    .bind(&query.detectors)
    .bind(&query.entity)
    .bind(query.since)
    .bind(query.until)
    .bind(query.after.map(|a| a.0))
    .bind(query.after.map(|a| a.1))
    .bind(query.limit)
    .fetch_all(tx)
    .await?;
    rows.iter().map(read).collect()
}

fn read(row: &sqlx::postgres::PgRow) -> Result<StoredAlert, sqlx::Error> {
    Ok(StoredAlert {
        id: row.try_get("alert_id")?,
        incident: row.try_get("incident_id")?,
        received: row.try_get("received")?,
        body: row.try_get("body")?,
    })
}

/// One alert.
pub async fn get(tx: &mut PgConnection, tenant: &str, id: Uuid) -> Result<Option<StoredAlert>, sqlx::Error> {
    let row =
        sqlx::query("SELECT alert_id, incident_id, received, body FROM alert WHERE tenant_id = $1 AND alert_id = $2")
            .bind(tenant)
            .bind(id)
            .fetch_optional(tx)
            .await?;
    row.as_ref().map(read).transpose()
}

/// The alerts of an incident, at most `limit`, in the order in which they were taken in.
pub async fn of_incident(
    tx: &mut PgConnection,
    tenant: &str,
    incident: Uuid,
    limit: i64,
) -> Result<Vec<StoredAlert>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT alert_id, incident_id, received, body FROM alert
         WHERE tenant_id = $1 AND incident_id = $2 ORDER BY received, alert_id LIMIT $3",
    )
    .bind(tenant)
    .bind(incident)
    .bind(limit)
    .fetch_all(tx)
    .await?;
    rows.iter().map(read).collect()
}
