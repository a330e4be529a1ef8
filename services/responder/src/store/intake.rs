//! Alerts: taking them in with as few round trips as possible, and reading them again.

use chrono::{DateTime, Utc};
use garrison_db::{DbError, Lane, Outgoing};
use garrison_proto::TenantId;
use sqlx::{
    PgConnection, Postgres, Row as _,
    postgres::{PgArguments, PgRow},
    query::Query,
    types::Json,
};
use uuid::Uuid;

use super::{
    corrupt, incidents,
    responses::{Created, Situation, read_situation, rows},
};
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
    /// The tenant's revision: as long as it is the same, so is everything here but the nodes.
    pub revision: i64,
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

/// A look at everything that taking an alert in depends on.
#[derive(Debug)]
pub struct Look<'a> {
    /// Whose.
    pub tenant: &'a TenantId,
    /// The alert.
    pub alert: &'a AlertFacts,
    /// Its correlation facts.
    pub facts: &'a [Fact],
    /// What could be acted on.
    pub targets: &'a [String],
    /// When.
    pub moment: Moment,
}

impl<'a> Look<'a> {
    /// One round trip within a transaction.
    ///
    /// # Errors
    /// When the database is away or fails.
    pub async fn within(&self, tx: &mut PgConnection) -> Result<Surroundings, sqlx::Error> {
        read_surroundings(&self.statement().fetch_one(tx).await?)
    }

    /// One round trip without one. A connection that died while it was idle is passed over.
    ///
    /// # Errors
    /// When the database is away or fails.
    pub async fn at_once(&self, lane: &Lane) -> Result<Surroundings, DbError> {
        let operation = "look up what surrounds an alert";
        let mut dead = 0;
        let answer = loop {
            match lane.run(self.tenant, operation, self.statement()).await {
                Err(error) if error.is_unavailable() && dead < lane.connections() => dead += 1,
                other => break other?,
            }
        };
        let row = answer.first().ok_or_else(|| corrupt("surroundings"));
        row.and_then(read_surroundings).map_err(DbError::during(operation))
    }

    fn statement(&self) -> Query<'_, Postgres, PgArguments> {
        let minute = self.facts.first().map_or(0, |f| f.minute);
        let victims = self.facts.iter().filter(|f| f.role == Role::Target);
        let victims: Vec<&str> = victims.map(|f| f.host.as_str()).collect();
        sqlx::query("SELECT * FROM surroundings($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)")
            .bind(self.tenant.as_str())
            .bind(self.alert.id)
            .bind(&self.alert.source.host)
            .bind(victims)
            .bind(minute - self.moment.window_minutes - 1)
            .bind(minute + self.moment.window_minutes + 1)
            .bind(MAX_FACTS)
            .bind(self.targets)
            .bind(self.moment.now)
            .bind(self.moment.heard_since)
    }
}

fn read_surroundings(row: &PgRow) -> Result<Surroundings, sqlx::Error> {
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
        revision: row.try_get::<Option<i64>, _>("revision")?.unwrap_or_default(),
        present: row.try_get("present")?,
        known: known.collect(),
        situation: read_situation(row)?,
    })
}

/// An incident, in one round trip without a transaction.
///
/// # Errors
/// When the database is away or fails.
pub async fn incident_at_once(lane: &Lane, tenant: &TenantId, id: Uuid) -> Result<Option<Incident>, DbError> {
    let operation = "load an incident";
    let answer = lane.run(tenant, operation, one_incident(tenant, id)).await?;
    let found = answer.first().map(incidents::read).transpose();
    found.map_err(DbError::during(operation))
}

/// [`incident_at_once`] within a transaction.
///
/// # Errors
/// When the database is away or fails.
pub async fn incident_within(
    tx: &mut PgConnection,
    tenant: &TenantId,
    id: Uuid,
) -> Result<Option<Incident>, sqlx::Error> {
    let found = one_incident(tenant, id).fetch_optional(tx).await?;
    found.as_ref().map(incidents::read).transpose()
}

fn one_incident(tenant: &TenantId, id: Uuid) -> Query<'_, Postgres, PgArguments> {
    sqlx::query("SELECT * FROM incidents($1, ARRAY[$2])")
        .bind(tenant.as_str())
        .bind(id)
}

/// An alert, its incident, its facts, the responses that it led to and the messages that tell of it.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The alert.
    pub alert: &'a AlertFacts,
    /// `garrison.alert.v1.Alert`.
    pub body: Vec<u8>,
    /// Its correlation facts.
    pub facts: &'a [Fact],
    /// The incident that it is in, as it is now.
    pub incident: Incident,
    /// Decided because of it.
    pub responses: Vec<Created>,
    /// What tells of it, with the delivery that it comes from.
    pub outgoing: Outgoing,
    /// Now.
    pub now: DateTime<Utc>,
}

/// What became of an [`Entry`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// It is written.
    Taken,
    /// Nothing is written: the tenant's revision is another.
    Changed,
    /// Nothing is written: the delivery was handled before.
    Repeat,
}

impl Entry<'_> {
    /// Writes it within a transaction that holds the tenant's lock.
    ///
    /// # Errors
    /// When the database is away or fails.
    pub async fn within(&self, tx: &mut PgConnection) -> Result<Entered, sqlx::Error> {
        read_entered(&self.statement(None).fetch_one(tx).await?)
    }

    /// Writes it in a transaction of its own and one round trip, if the tenant's revision is the one at which it was
    /// decided.
    ///
    /// # Errors
    /// When the database is away or fails. Whether it is written is then unknown: take the delivery again.
    pub async fn at_once(&self, lane: &Lane, tenant: &TenantId, revision: i64) -> Result<Entered, DbError> {
        let operation = "store an alert";
        let answer = lane.run(tenant, operation, self.statement(Some(revision))).await?;
        let row = answer.first().ok_or_else(|| corrupt("take_alert"));
        row.and_then(read_entered).map_err(DbError::during(operation))
    }

    fn statement(&self, revision: Option<i64>) -> Query<'_, Postgres, PgArguments> {
        let Self { alert, incident, .. } = self;
        let mut searchable = alert.hosts();
        for party in std::iter::once(&alert.source).chain(&alert.targets) {
            if !searchable.contains(&party.value) {
                searchable.push(party.value.clone());
            }
        }
        let hosts: Vec<&str> = self.facts.iter().map(|f| f.host.as_str()).collect();
        let roles: Vec<i16> = self.facts.iter().map(|f| f.role as i16).collect();
        let minutes: Vec<i64> = self.facts.iter().map(|f| f.minute).collect();
        let stages: Vec<i16> = self.facts.iter().map(|f| f.stage as i16).collect();
        let statement = sqlx::query(
            "SELECT take_alert($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, \
             $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40, \
             $41, $42)",
        )
        .bind(revision)
        .bind(rows(&self.responses, self.now))
        .bind(alert.id)
        .bind(incident.id)
        .bind(&alert.detector)
        .bind(alert.severity as i16)
        .bind(&alert.title)
        .bind(&alert.source.value)
        .bind(searchable)
        .bind(alert.last_seen)
        .bind(self.now)
        .bind(&self.body)
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
        .bind(hosts)
        .bind(roles)
        .bind(minutes)
        .bind(stages);
        self.outgoing.bind(statement)
    }
}

fn read_entered(row: &PgRow) -> Result<Entered, sqlx::Error> {
    match row.try_get::<&str, _>(0)? {
        "taken" => Ok(Entered::Taken),
        "changed" => Ok(Entered::Changed),
        "repeat" => Ok(Entered::Repeat),
        _ => Err(corrupt("take_alert")),
    }
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
