//! Responses and their history.

use std::collections::BTreeMap;

use chrono::{DateTime, Duration, Utc};
use garrison_proto::{
    response::v1::{self as proto, ResponseState},
    to_timestamp,
};
use serde::Serialize;
use sqlx::{PgConnection, Row as _, postgres::PgRow, types::Json};
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

fn nodes(response: &Response) -> BTreeMap<&str, i16> {
    let nodes = response.nodes.iter();
    nodes.map(|(node, state)| (node.as_str(), *state as i16)).collect()
}

/// A response that was decided just now, with the first step of its history.
#[derive(Debug, Clone)]
pub struct Created {
    /// The response.
    pub response: Response,
    /// What was decided about it.
    pub step: Transition,
    /// The client's own id of the request.
    pub request: Option<Uuid>,
}

/// [`Created`] as the statements that write it read it.
#[derive(Serialize)]
pub(super) struct Row<'a> {
    response_id: Uuid,
    incident_id: Option<Uuid>,
    action: i16,
    target: String,
    state: i16,
    priority: i32,
    ttl_ms: Option<i64>,
    packets_per_second: u32,
    playbook: &'a str,
    reason: &'a str,
    created: DateTime<Utc>,
    dispatched: Option<DateTime<Utc>>,
    expires: Option<DateTime<Utc>>,
    alert_id: Option<Uuid>,
    trigger_time: Option<DateTime<Utc>>,
    error: &'a str,
    nodes: BTreeMap<&'a str, i16>,
    deadline: Option<DateTime<Utc>>,
    attempts: i32,
    ending: Option<i16>,
    hosts: i64,
    request_id: Option<Uuid>,
    actor: &'a str,
    detail: &'a str,
    time: DateTime<Utc>,
}

impl Created {
    fn row(&self, now: DateTime<Utc>) -> Row<'_> {
        let Self {
            response,
            step,
            request,
        } = self;
        Row {
            response_id: response.id,
            incident_id: response.incident,
            action: response.action as i16,
            target: response.target.to_string(),
            state: response.state as i16,
            priority: response.priority,
            ttl_ms: response.ttl.map(|t| t.num_milliseconds()),
            packets_per_second: response.packets_per_second,
            playbook: &response.playbook,
            reason: &response.reason,
            created: response.created,
            dispatched: (response.state == ResponseState::Dispatched).then_some(now),
            expires: response.expires,
            alert_id: response.alert,
            trigger_time: response.trigger_time,
            error: &response.error,
            nodes: nodes(response),
            deadline: response.deadline,
            attempts: response.attempts,
            ending: response.ending.map(|e| e as i16),
            hosts: i64::try_from(response.target.hosts()).unwrap_or(i64::MAX),
            request_id: *request,
            actor: &step.actor,
            detail: &step.detail,
            time: now,
        }
    }
}

/// The rows of responses decided at `now`.
pub(super) fn rows(created: &[Created], now: DateTime<Utc>) -> Json<Vec<Row<'_>>> {
    Json(created.iter().map(|created| created.row(now)).collect())
}

/// Writes responses that were decided just now.
pub async fn insert(
    tx: &mut PgConnection,
    tenant: &str,
    created: &[Created],
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT write_responses($1, $2)")
        .bind(tenant)
        .bind(rows(created, now))
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
    .bind(Json(nodes(response)))
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
    /// Responses on the same targets that wait, are sent or are in force, or were settled.
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
    /// The incident within which the question is answered: it was refused, or a person turned it down or took it
    /// back. `None` for one that is not over.
    pub settled: Option<Uuid>,
}

/// A row of a situation: id, action, target, state, the incident that it is settled in.
type Known = (Uuid, i32, String, i32, Option<Uuid>);

/// Everything that a decision about some targets needs, in one round trip.
pub async fn situation(
    tx: &mut PgConnection,
    tenant: &str,
    targets: &[String],
    incident: Option<Uuid>,
    now: DateTime<Utc>,
    heard_since: DateTime<Utc>,
) -> Result<Situation, sqlx::Error> {
    let row = sqlx::query("SELECT addresses, last_hour, alive, in_play FROM situation($1, $2, ARRAY[$3], $4, $5)")
        .bind(tenant)
        .bind(targets)
        .bind(incident)
        .bind(now)
        .bind(heard_since)
        .fetch_one(tx)
        .await?;
    read_situation(&row)
}

/// Reads what the database's `situation` answers with.
pub(super) fn read_situation(row: &PgRow) -> Result<Situation, sqlx::Error> {
    let in_play: Json<Vec<Known>> = row.try_get("in_play")?;
    Ok(Situation {
        usage: Usage {
            addresses: row.try_get::<f64, _>("addresses")? as u64,
            last_hour: row.try_get::<i64, _>("last_hour")?.max(0) as u64,
        },
        nodes: row.try_get("alive")?,
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
