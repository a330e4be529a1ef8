//! What speaks against hosts, services and users.

use chrono::{DateTime, Duration, Utc};
use garrison_db::{Db, DbError, Tx};
use garrison_proto::{
    TenantId,
    alert::v1::{Alert, Entity, EntityKind, EntityRisk, RiskEntry},
    to_timestamp,
};
use prost::Message as _;
use sqlx::{Row as _, postgres::PgRow, types::Json};

use crate::domain::risk::{Entry, Profile, many, risk};

/// Users of one host, and hosts of one user, that are told at most.
const PRESENT: i64 = 16;
/// Entries that explain a risk in a list.
const REASONS: i64 = 3;

// What is left of an entry: halved with every half-life, and changed by what people said of the alert. $2 is now, $3 the
// half-life in seconds. The latest verdict counts: 1 true, 2 false, 3 benign.
const REMAINING: &str = "weight * exp(-ln(2) * greatest(extract(epoch FROM $2 - time), 0)::float8 / $3) \
     * coalesce((SELECT CASE v.verdict WHEN 1 THEN 1.5 WHEN 2 THEN 0 ELSE 0.3 END::float8 FROM verdict v \
                 WHERE v.tenant_id = $1 AND v.alert_id = risk_entry.alert_id ORDER BY v.given DESC LIMIT 1), 1)";

/// Keeps an entry. An alert's later account replaces the earlier; an hour's logins are counted together.
///
/// # Errors
/// When the database is away or fails.
pub async fn put(tx: &mut Tx<'_>, entry: &Entry) -> Result<(), DbError> {
    let id = tx.tenant().clone();
    let (through_kind, through) = match &entry.through {
        Some(entity) => (entity.kind, entity.value.as_str()),
        None => (0, ""),
    };
    let counted = entry.alert.is_none();
    let weight = if counted {
        many(entry.weight, entry.count)
    } else {
        entry.weight
    };
    sqlx::query(
        "INSERT INTO risk_entry AS r (tenant_id, entity_kind, entity, kind, reference, through_kind, through, time, \
             weight, count, summary, alert_id) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
         ON CONFLICT (tenant_id, entity_kind, entity, kind, reference, through_kind, through) DO UPDATE SET \
             time = greatest(r.time, excluded.time), summary = excluded.summary, \
             count = CASE WHEN $13 THEN r.count + excluded.count ELSE greatest(r.count, excluded.count) END, \
             weight = CASE WHEN $13 THEN $14 * (1 + log(2, (r.count + excluded.count)::numeric))::float8 \
                           ELSE greatest(r.weight, excluded.weight) END",
    )
    .bind(id.as_str())
    .bind(narrow(entry.entity.kind))
    .bind(&entry.entity.value)
    .bind(&entry.kind)
    .bind(&entry.reference)
    .bind(narrow(through_kind))
    .bind(through)
    .bind(entry.time)
    .bind(weight)
    .bind(i64::try_from(entry.count).unwrap_or(i64::MAX))
    .bind(&entry.summary)
    .bind(entry.alert)
    .bind(counted)
    .bind(entry.weight)
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("keep what adds to a risk"))?;
    Ok(())
}

/// Alerts that do not count yet, or not in their latest account, oldest first. From here on they do, if the transaction
/// commits.
///
/// # Errors
/// When the database is away or fails.
pub async fn uncounted(tx: &mut Tx<'_>, most: i64) -> Result<Vec<Alert>, DbError> {
    let id = tx.tenant().clone();
    let bodies: Vec<Vec<u8>> = sqlx::query_scalar(
        "UPDATE alert SET counted = count WHERE tenant_id = $1 AND alert_id IN \
             (SELECT alert_id FROM alert WHERE tenant_id = $1 AND counted < count ORDER BY detected LIMIT $2 \
              FOR UPDATE SKIP LOCKED) \
         RETURNING body",
    )
    .bind(id.as_str())
    .bind(most)
    .fetch_all(&mut **tx)
    .await
    .map_err(DbError::during("read alerts that do not count yet"))?;
    let alerts = bodies
        .into_iter()
        .filter_map(|body| Alert::decode(body.as_slice()).ok());
    Ok(alerts.collect())
}

/// Who logged in from an address since a time, latest first.
///
/// # Errors
/// When the database is away or fails.
pub async fn users_of(tx: &mut Tx<'_>, address: &str, since: DateTime<Utc>) -> Result<Vec<String>, DbError> {
    let id = tx.tenant().clone();
    sqlx::query_scalar(
        "SELECT login FROM presence WHERE tenant_id = $1 AND address = $2 AND time >= $3 ORDER BY time DESC LIMIT $4",
    )
    .bind(id.as_str())
    .bind(address)
    .bind(since)
    .bind(PRESENT)
    .fetch_all(&mut **tx)
    .await
    .map_err(DbError::during("look for the users of a host"))
}

/// Notes that somebody logged in from an address.
///
/// # Errors
/// When the database is away or fails.
pub async fn present(tx: &mut Tx<'_>, login: &str, address: &str, time: DateTime<Utc>) -> Result<(), DbError> {
    let id = tx.tenant().clone();
    sqlx::query(
        "INSERT INTO presence AS p (tenant_id, login, address, time) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (tenant_id, login, address) DO UPDATE SET time = greatest(p.time, excluded.time)",
    )
    .bind(id.as_str())
    .bind(login)
    .bind(address)
    .bind(time)
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("note a login"))?;
    Ok(())
}

/// How a user usually logs in. Locked until the transaction ends, if there is one.
///
/// # Errors
/// When the database is away or fails.
pub async fn profile(tx: &mut Tx<'_>, login: &str) -> Result<Profile, DbError> {
    let id = tx.tenant().clone();
    let found: Option<Json<Profile>> =
        sqlx::query_scalar("SELECT profile FROM login_profile WHERE tenant_id = $1 AND login = $2 FOR UPDATE")
            .bind(id.as_str())
            .bind(login)
            .fetch_optional(&mut **tx)
            .await
            .map_err(DbError::during("read how a user logs in"))?;
    Ok(found.map(|found| found.0).unwrap_or_default())
}

/// Keeps how a user usually logs in.
///
/// # Errors
/// When the database is away or fails.
pub async fn put_profile(tx: &mut Tx<'_>, login: &str, profile: &Profile, time: DateTime<Utc>) -> Result<(), DbError> {
    let id = tx.tenant().clone();
    sqlx::query(
        "INSERT INTO login_profile (tenant_id, login, updated, profile) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (tenant_id, login) DO UPDATE SET updated = excluded.updated, profile = excluded.profile",
    )
    .bind(id.as_str())
    .bind(login)
    .bind(time)
    .bind(Json(profile))
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("keep how a user logs in"))?;
    Ok(())
}

/// Forgets what is older than it is kept. Returns how many entries.
///
/// # Errors
/// When the database is away or fails.
pub async fn forget(db: &Db, tenant: &TenantId, before: DateTime<Utc>) -> Result<u64, DbError> {
    let operation = DbError::during;
    let mut tx = db.begin(tenant).await?;
    let done = sqlx::query("DELETE FROM risk_entry WHERE tenant_id = $1 AND time < $2")
        .bind(tenant.as_str())
        .bind(before)
        .execute(&mut *tx)
        .await
        .map_err(operation("forget old entries"))?;
    for statement in [
        "DELETE FROM presence WHERE tenant_id = $1 AND time < $2",
        // Who has not logged in for as long is learnt anew.
        "DELETE FROM login_profile WHERE tenant_id = $1 AND updated < $2",
    ] {
        sqlx::query(statement)
            .bind(tenant.as_str())
            .bind(before)
            .execute(&mut *tx)
            .await
            .map_err(operation("forget old logins"))?;
    }
    tx.commit().await?;
    Ok(done.rows_affected())
}

/// When, and how fast risk falls.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Now.
    pub now: DateTime<Utc>,
    /// In this time half of a risk is gone.
    pub half_life: Duration,
}

impl Reading {
    fn half_life_seconds(&self) -> f64 {
        (self.half_life.as_seconds_f64()).max(1.0)
    }
}

/// Entities with the highest risk first, each with what adds most to it.
///
/// # Errors
/// When the database is away or fails.
pub async fn highest(
    db: &Db,
    tenant: &TenantId,
    reading: Reading,
    (kinds, least, most): (&[i16], f64, i64),
) -> Result<Vec<EntityRisk>, DbError> {
    let operation = "read risks";
    let mut tx = db.begin(tenant).await?;
    let statement = format!(
        "WITH counted AS (SELECT *, {REMAINING} AS remaining FROM risk_entry WHERE tenant_id = $1 \
             AND ($4::smallint[] = '{{}}' OR entity_kind = ANY($4))), \
         summed AS (SELECT entity_kind, entity, sum(remaining) AS total, max(time) AS latest, count(*) AS entries \
             FROM counted GROUP BY entity_kind, entity \
             HAVING 100 * (1 - exp(-sum(remaining) / 100)) >= greatest($5, 0.05) \
             ORDER BY total DESC, latest DESC LIMIT $6) \
         SELECT s.entity_kind, s.entity, s.total, s.latest, s.entries, c.kind, c.summary, c.alert_id, c.count, c.weight, \
             c.remaining, c.through_kind, c.through, c.time \
         FROM summed s CROSS JOIN LATERAL (SELECT * FROM counted c WHERE c.entity_kind = s.entity_kind \
             AND c.entity = s.entity ORDER BY c.remaining DESC LIMIT $7) AS c \
         ORDER BY s.total DESC, s.latest DESC, s.entity_kind, s.entity, c.remaining DESC"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(tenant.as_str())
        .bind(reading.now)
        .bind(reading.half_life_seconds())
        .bind(kinds)
        .bind(least)
        .bind(most)
        .bind(REASONS)
        .fetch_all(&mut *tx)
        .await
        .map_err(DbError::during(operation))?;
    tx.rollback().await?;
    let mut risks: Vec<EntityRisk> = Vec::new();
    for row in &rows {
        let mut next = read_risk(row).map_err(DbError::during(operation))?;
        // The rows of one entity come one after the other, each with a reason.
        match risks.last_mut().filter(|last| last.entity == next.entity) {
            Some(last) => last.reasons.append(&mut next.reasons),
            None => risks.push(next),
        }
    }
    Ok(risks)
}

/// The risk of one entity, and what adds to it, latest first.
///
/// # Errors
/// When the database is away or fails.
pub async fn of(
    db: &Db,
    tenant: &TenantId,
    entity: &Entity,
    reading: Reading,
    most: i64,
) -> Result<(EntityRisk, Vec<RiskEntry>), DbError> {
    let operation = "read a risk";
    let mut tx = db.begin(tenant).await?;
    let statement = format!(
        "WITH counted AS (SELECT *, {REMAINING} AS remaining FROM risk_entry WHERE tenant_id = $1 \
             AND entity_kind = $4 AND entity = $5) \
         SELECT c.*, (SELECT sum(remaining) FROM counted) AS total, (SELECT count(*) FROM counted) AS entries \
         FROM counted c ORDER BY c.time DESC, c.kind LIMIT $6"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(statement))
        .bind(tenant.as_str())
        .bind(reading.now)
        .bind(reading.half_life_seconds())
        .bind(narrow(entity.kind))
        .bind(&entity.value)
        .bind(most)
        .fetch_all(&mut *tx)
        .await
        .map_err(DbError::during(operation))?;
    tx.rollback().await?;
    let entries: Vec<RiskEntry> = rows
        .iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(DbError::during(operation))?;
    let (total, counted) = match rows.first() {
        Some(row) => (
            row.try_get::<f64, _>("total").map_err(DbError::during(operation))?,
            row.try_get::<i64, _>("entries").map_err(DbError::during(operation))?,
        ),
        None => (0.0, 0),
    };
    let whole = EntityRisk {
        entity: Some(entity.clone()),
        risk: risk(total),
        latest: entries.first().and_then(|entry| entry.time),
        entries: counted.max(0) as u64,
        reasons: Vec::new(),
    };
    Ok((whole, entries))
}

fn read_risk(row: &PgRow) -> Result<EntityRisk, sqlx::Error> {
    Ok(EntityRisk {
        entity: Some(Entity {
            kind: row.try_get::<i16, _>("entity_kind")?.into(),
            value: row.try_get("entity")?,
        }),
        risk: risk(row.try_get("total")?),
        latest: Some(to_timestamp(row.try_get("latest")?)),
        entries: row.try_get::<i64, _>("entries")?.max(0) as u64,
        reasons: vec![read(row)?],
    })
}

fn read(row: &PgRow) -> Result<RiskEntry, sqlx::Error> {
    let through_kind: i16 = row.try_get("through_kind")?;
    let alert: Option<uuid::Uuid> = row.try_get("alert_id")?;
    Ok(RiskEntry {
        time: Some(to_timestamp(row.try_get("time")?)),
        kind: row.try_get("kind")?,
        summary: row.try_get("summary")?,
        alert_id: alert.map(|id| id.to_string()).unwrap_or_default(),
        count: row.try_get::<i64, _>("count")?.max(0) as u64,
        weight: row.try_get("weight")?,
        remaining: row.try_get("remaining")?,
        through: (i32::from(through_kind) != EntityKind::Unspecified as i32).then_some(Entity {
            kind: through_kind.into(),
            value: row.try_get("through")?,
        }),
    })
}

fn narrow(kind: i32) -> i16 {
    i16::try_from(kind).unwrap_or_default()
}
