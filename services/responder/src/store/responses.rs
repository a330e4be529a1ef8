//! Responses and their history.

use std::collections::BTreeMap;

use chrono::{DateTime, Duration, Utc};
use garrison_proto::{
    response::v1::{self as proto, ResponseState},
    to_timestamp,
};
use sqlx::{PgConnection, Row, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::corrupt;
use crate::domain::{
    guard::Usage,
    response::{Action, Ending, NodeState, Response, Transition},
};

fn read(row: &PgRow) -> Result<Response, sqlx::Error> {
    let action: i16 = row.try_get("action")?;
    let state: i16 = row.try_get("state")?;
    let target: String = row.try_get("target")?;
    let nodes: Json<BTreeMap<String, i16>> = row.try_get("nodes")?;
    let ending: Option<i16> = row.try_get("ending")?;
    Ok(Response {
        id: row.try_get("response_id")?,
        incident: row.try_get("incident_id")?,
        action: Action::try_from(i32::from(action)).map_err(|_| corrupt("response.action"))?,
        target: target.parse().map_err(|_| corrupt("response.target"))?,
        state: ResponseState::try_from(i32::from(state)).map_err(|_| corrupt("response.state"))?,
        priority: row.try_get("priority")?,
        ttl: row.try_get::<Option<i64>, _>("ttl_ms")?.map(Duration::milliseconds),
        packets_per_second: u32::try_from(row.try_get::<i64, _>("packets_per_second")?)
            .map_err(|_| corrupt("response.packets_per_second"))?,
        playbook: row.try_get("playbook")?,
        reason: row.try_get("reason")?,
        created: row.try_get("created")?,
        applied: row.try_get("applied")?,
        expires: row.try_get("expires")?,
        alert: row.try_get("alert_id")?,
        trigger_time: row.try_get("trigger_time")?,
        error: row.try_get("error")?,
        nodes: nodes
            .0
            .into_iter()
            .map(|(node, state)| (node, NodeState::from_number(state)))
            .collect(),
        deadline: row.try_get("deadline")?,
        attempts: row.try_get("attempts")?,
        ending: match ending {
            None => None,
            Some(1) => Some(Ending::Rollback),
            Some(_) => Some(Ending::Expiry),
        },
    })
}

fn nodes(response: &Response) -> Json<BTreeMap<&str, i16>> {
    Json(
        response
            .nodes
            .iter()
            .map(|(node, state)| (node.as_str(), *state as i16))
            .collect(),
    )
}

/// Writes a response that was decided just now, with the first step of its history.
pub async fn insert(
    tx: &mut PgConnection,
    tenant: &str,
    response: &Response,
    transition: &Transition,
    request: Option<Uuid>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let dispatched = (response.state == ResponseState::Dispatched).then_some(now);
    sqlx::query(
        "WITH step AS (
             INSERT INTO response_transition (tenant_id, response_id, state, time, actor, detail)
             VALUES ($1, $2, $6, $26, $24, $25)
         )
         INSERT INTO response (tenant_id, response_id, incident_id, action, target, state, priority, ttl_ms,
                               packets_per_second, playbook, reason, created, dispatched, expires, alert_id,
                               trigger_time, error, nodes, deadline, attempts, ending, hosts, request_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
                 $21, $22, $23)",
    )
    .bind(tenant)
    .bind(response.id)
    .bind(response.incident)
    .bind(response.action as i16)
    .bind(response.target.to_string())
    .bind(response.state as i16)
    .bind(response.priority)
    .bind(response.ttl.map(|t| t.num_milliseconds()))
    .bind(i64::from(response.packets_per_second))
    .bind(&response.playbook)
    .bind(&response.reason)
    .bind(response.created)
    .bind(dispatched)
    .bind(response.expires)
    .bind(response.alert)
    .bind(response.trigger_time)
    .bind(&response.error)
    .bind(nodes(response))
    .bind(response.deadline)
    .bind(response.attempts)
    .bind(response.ending.map(|e| e as i16))
    .bind(i64::try_from(response.target.hosts()).unwrap_or(i64::MAX))
    .bind(request)
    .bind(&transition.actor)
    .bind(&transition.detail)
    .bind(now)
    .execute(tx)
    .await?;
    Ok(())
}

/// Replaces what may change of a response, and adds to its history when its state did.
pub async fn update(
    tx: &mut PgConnection,
    tenant: &str,
    response: &Response,
    transition: Option<&Transition>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let dispatched = transition.filter(|t| t.state == ResponseState::Dispatched).map(|_| now);
    sqlx::query(
        "UPDATE response SET state = $3, applied = $4, expires = $5, error = $6, nodes = $7, deadline = $8,
             attempts = $9, ending = $10, dispatched = coalesce(dispatched, $11)
         WHERE tenant_id = $1 AND response_id = $2",
    )
    .bind(tenant)
    .bind(response.id)
    .bind(response.state as i16)
    .bind(response.applied)
    .bind(response.expires)
    .bind(&response.error)
    .bind(nodes(response))
    .bind(response.deadline)
    .bind(response.attempts)
    .bind(response.ending.map(|e| e as i16))
    .bind(dispatched)
    .execute(&mut *tx)
    .await?;
    if let Some(transition) = transition {
        sqlx::query(
            "INSERT INTO response_transition (tenant_id, response_id, state, time, actor, detail)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(tenant)
        .bind(response.id)
        .bind(transition.state as i16)
        .bind(now)
        .bind(&transition.actor)
        .bind(&transition.detail)
        .execute(tx)
        .await?;
    }
    Ok(())
}

/// One response.
pub async fn get(tx: &mut PgConnection, tenant: &str, id: Uuid) -> Result<Option<Response>, sqlx::Error> {
    let row = sqlx::query("SELECT * FROM response WHERE tenant_id = $1 AND response_id = $2")
        .bind(tenant)
        .bind(id)
        .fetch_optional(tx)
        .await?;
    row.as_ref().map(read).transpose()
}

/// The response that an earlier request with this id led to.
pub async fn by_request(tx: &mut PgConnection, tenant: &str, request: Uuid) -> Result<Option<Response>, sqlx::Error> {
    let row = sqlx::query("SELECT * FROM response WHERE tenant_id = $1 AND request_id = $2")
        .bind(tenant)
        .bind(request)
        .fetch_optional(tx)
        .await?;
    row.as_ref().map(read).transpose()
}

/// A page of responses, the youngest first.
pub async fn list(
    tx: &mut PgConnection,
    tenant: &str,
    states: &[i16],
    incident: Option<Uuid>,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Response>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT * FROM response
         WHERE tenant_id = $1 AND ($2::smallint[] = '{}' OR state = ANY($2))
           AND ($3::uuid IS NULL OR incident_id = $3 OR response_id = ANY(
                (SELECT i.responses FROM incident i WHERE i.tenant_id = $1 AND i.incident_id = $3)::uuid[]))
           AND ($4::timestamptz IS NULL OR (created, response_id) < ($4, $5))
         ORDER BY created DESC, response_id DESC LIMIT $6",
    )
    .bind(tenant)
    .bind(states)
    .bind(incident)
    .bind(after.map(|a| a.0))
    .bind(after.map(|a| a.1))
    .bind(limit)
    .fetch_all(tx)
    .await?;
    rows.iter().map(read).collect()
}

/// Responses by id, the oldest first.
pub async fn load(tx: &mut PgConnection, tenant: &str, ids: &[Uuid]) -> Result<Vec<Response>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT * FROM response WHERE tenant_id = $1 AND response_id = ANY($2) ORDER BY created, response_id",
    )
    .bind(tenant)
    .bind(ids)
    .fetch_all(tx)
    .await?;
    rows.iter().map(read).collect()
}

/// Ids of the incidents that list a response.
pub async fn incidents_of(tx: &mut PgConnection, tenant: &str, response: &Response) -> Result<Vec<Uuid>, sqlx::Error> {
    let Some(home) = response.incident else {
        return Ok(Vec::new());
    };
    sqlx::query_scalar(
        "SELECT incident_id FROM incident WHERE tenant_id = $1 AND incident_id = $2
         UNION
         SELECT incident_id FROM incident
         WHERE tenant_id = $1 AND status IN (1, 2) AND responses @> ARRAY[$3]",
    )
    .bind(tenant)
    .bind(home)
    .bind(response.id)
    .fetch_all(tx)
    .await
}

/// Responses whose deadline has passed, the longest overdue first.
pub async fn due(
    tx: &mut PgConnection,
    tenant: &str,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Response>, sqlx::Error> {
    let rows = sqlx::query("SELECT * FROM response WHERE tenant_id = $1 AND deadline <= $2 ORDER BY deadline LIMIT $3")
        .bind(tenant)
        .bind(now)
        .bind(limit)
        .fetch_all(tx)
        .await?;
    rows.iter().map(read).collect()
}

/// The next deadline of a tenant.
pub async fn next_deadline(tx: &mut PgConnection, tenant: &str) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    sqlx::query_scalar("SELECT min(deadline) FROM response WHERE tenant_id = $1 AND deadline IS NOT NULL")
        .bind(tenant)
        .fetch_one(tx)
        .await
}

/// The history of a response.
pub async fn history(
    tx: &mut PgConnection,
    tenant: &str,
    ids: &[Uuid],
) -> Result<BTreeMap<Uuid, Vec<proto::Transition>>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT response_id, state, time, actor, detail FROM response_transition
         WHERE tenant_id = $1 AND response_id = ANY($2) ORDER BY response_id, sequence",
    )
    .bind(tenant)
    .bind(ids)
    .fetch_all(tx)
    .await?;
    let mut history: BTreeMap<Uuid, Vec<proto::Transition>> = BTreeMap::new();
    for row in &rows {
        let time: DateTime<Utc> = row.try_get("time")?;
        history
            .entry(row.try_get("response_id")?)
            .or_default()
            .push(proto::Transition {
                state: i32::from(row.try_get::<i16, _>("state")?),
                time: Some(to_timestamp(time)),
                actor: row.try_get("actor")?,
                detail: row.try_get("detail")?,
            });
    }
    Ok(history)
}

/// What decides whether and how drafts become responses.
#[derive(Debug, Default)]
pub struct Situation {
    /// What the tenant's actions take up.
    pub usage: Usage,
    /// Nodes heard of lately.
    pub nodes: Vec<String>,
    /// Responses on the same targets that wait, are sent or are in force.
    pub in_play: Vec<InPlay>,
}

/// A response that wants, or has, an action on a target.
#[derive(Debug, Clone)]
pub struct InPlay {
    /// Its id.
    pub id: Uuid,
    /// Its action.
    pub action: Action,
    /// Its target.
    pub target: String,
    /// Where it stands.
    pub state: ResponseState,
    /// It is over, but within the same incident the question is answered: it was refused, or a person turned
    /// it down or took it back.
    pub settled: bool,
}

/// A row of [`situation`]: id, action, target, state, settled.
type Known = (Uuid, i32, String, i32, bool);

/// Everything that a decision about some targets needs, in one round trip.
pub async fn situation(
    tx: &mut PgConnection,
    tenant: &str,
    targets: &[String],
    incident: Option<Uuid>,
    now: DateTime<Utc>,
    heard_since: DateTime<Utc>,
) -> Result<Situation, sqlx::Error> {
    let row = sqlx::query(
        "SELECT
             (SELECT coalesce(sum(hosts), 0)::float8 FROM response
              WHERE tenant_id = $1 AND state IN (2, 3, 4, 5)
                AND nodes <> '{}' AND (expires IS NULL OR expires > $3)) AS addresses,
             (SELECT count(*) FROM response
              WHERE tenant_id = $1 AND dispatched > $3 - interval '1 hour') AS last_hour,
             ARRAY(SELECT node FROM node
                   WHERE tenant_id = $1 AND last_heartbeat >= $4 ORDER BY node) AS nodes,
             (SELECT coalesce(jsonb_agg(jsonb_build_array(response_id, action, target, state, settled)), '[]')
              FROM (SELECT response_id, action, target, state, false AS settled FROM response
                    WHERE tenant_id = $1 AND target = ANY($2) AND state IN (1, 2, 3)
                    UNION ALL
                    SELECT response_id, action, target, state, true FROM response
                    WHERE tenant_id = $1 AND incident_id = $5 AND target = ANY($2)
                      AND (state IN (8, 9) OR (state IN (5, 6) AND ending = 1))) AS known) AS in_play",
    )
    .bind(tenant)
    .bind(targets)
    .bind(now)
    .bind(heard_since)
    .bind(incident)
    .fetch_one(tx)
    .await?;
    let in_play: Json<Vec<Known>> = row.try_get("in_play")?;
    Ok(Situation {
        usage: Usage {
            addresses: row.try_get::<f64, _>("addresses")? as u64,
            last_hour: row.try_get::<i64, _>("last_hour")?.max(0) as u64,
        },
        nodes: row.try_get("nodes")?,
        in_play: in_play
            .0
            .into_iter()
            .map(|(id, action, target, state, settled)| {
                Ok(InPlay {
                    id,
                    action: Action::try_from(action).map_err(|_| corrupt("response.action"))?,
                    target,
                    state: ResponseState::try_from(state).map_err(|_| corrupt("response.state"))?,
                    settled,
                })
            })
            .collect::<Result<_, sqlx::Error>>()?,
    })
}
