//! Alerts that were held back.

use chrono::{DateTime, Utc};
use garrison_db::{Db, DbError, Tx};
use garrison_proto::{TenantId, alert::v1::Alert};
use prost::Message as _;
use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use crate::domain::budget::{Group, HeldChange, Reason};

/// One of them, as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// Its id.
    pub id: Uuid,
    /// As it would have been published.
    pub alert: Alert,
    /// Of which group's budget.
    pub group: String,
    /// Why.
    pub reason: Reason,
    /// How rare it was, and how rare it had to be.
    pub rarity: (f64, f64),
    /// Alerts told beyond those promised.
    pub ahead: f64,
    /// When it was held back first.
    pub held: DateTime<Utc>,
    /// When it was told after all, and by whom.
    pub told: Option<(DateTime<Utc>, String)>,
}

/// Which of them are asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query {
    /// Of this group.
    pub group: Option<Group>,
    /// Of this detector.
    pub detector: Option<String>,
    /// Those that were told after all, too.
    pub told: bool,
    /// After this one.
    pub after: Option<(DateTime<Utc>, Uuid)>,
    /// At most so many.
    pub most: i64,
}

/// Who told what a repeat told.
pub const BY_BUDGET: &str = "budget";

/// Keeps what became of alerts that were held back, in their order.
///
/// # Errors
/// When the database is away or fails.
pub async fn keep(tx: &mut Tx<'_>, changes: &[HeldChange]) -> Result<(), DbError> {
    let id = tx.tenant().clone();
    // The last word on each alert: a statement may not touch a row twice.
    let mut rows: Vec<&HeldChange> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for change in changes.iter().rev() {
        if let HeldChange::Held(held) = change
            && seen.insert(&held.alert.alert_id)
        {
            rows.push(change);
        }
    }
    let mut columns = Columns::default();
    for change in rows {
        if let HeldChange::Held(held) = change
            && let Ok(alert) = held.alert.alert_id.parse()
        {
            columns.ids.push(alert);
            columns.fingerprints.push(held.alert.fingerprint.clone());
            columns.detectors.push(held.alert.detector.clone());
            columns.budgets.push(held.group.id().to_owned());
            columns.reasons.push(number(held.reason));
            columns.rarities.push(held.rarity);
            columns.bounds.push(held.bound);
            columns.aheads.push(held.ahead);
            columns.counts.push(i64::try_from(held.alert.count).unwrap_or(i64::MAX));
            columns.held.push(DateTime::from_timestamp_nanos(held.at));
            columns.bodies.push(held.alert.encode_to_vec());
        }
    }
    if !columns.ids.is_empty() {
        // Why it was held back first stays; what was seen since is in the alert.
        sqlx::query(
            "INSERT INTO held_alert (tenant_id, alert_id, fingerprint, detector, budget, reason, rarity, bound, ahead, \
             count, held, body) \
             SELECT $1, h.* FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::smallint[], $7::float8[], \
             $8::float8[], $9::float8[], $10::bigint[], $11::timestamptz[], $12::bytea[]) AS h \
             ON CONFLICT (tenant_id, alert_id) DO UPDATE SET count = excluded.count, body = excluded.body \
             WHERE held_alert.count < excluded.count",
        )
        .bind(id.as_str())
        .bind(columns.ids)
        .bind(columns.fingerprints)
        .bind(columns.detectors)
        .bind(columns.budgets)
        .bind(columns.reasons)
        .bind(columns.rarities)
        .bind(columns.bounds)
        .bind(columns.aheads)
        .bind(columns.counts)
        .bind(columns.held)
        .bind(columns.bodies)
        .execute(&mut **tx)
        .await
        .map_err(DbError::during("keep alerts that were held back"))?;
    }
    let told = changes.iter().filter_map(|change| match change {
        HeldChange::Told { alert, at } => Some((*alert, DateTime::from_timestamp_nanos(*at))),
        HeldChange::Held(_) => None,
    });
    let (ids, times): (Vec<Uuid>, Vec<DateTime<Utc>>) = told.unzip();
    if !ids.is_empty() {
        sqlx::query(
            "UPDATE held_alert SET told = t.told, told_by = $4 FROM unnest($2::uuid[], $3::timestamptz[]) \
             AS t (alert_id, told) WHERE held_alert.tenant_id = $1 AND held_alert.alert_id = t.alert_id \
             AND held_alert.told IS NULL",
        )
        .bind(id.as_str())
        .bind(ids)
        .bind(times)
        .bind(BY_BUDGET)
        .execute(&mut **tx)
        .await
        .map_err(DbError::during("mark alerts that were told after all"))?;
    }
    Ok(())
}

#[derive(Default)]
struct Columns {
    ids: Vec<Uuid>,
    fingerprints: Vec<String>,
    detectors: Vec<String>,
    budgets: Vec<String>,
    reasons: Vec<i16>,
    rarities: Vec<f64>,
    bounds: Vec<f64>,
    aheads: Vec<f64>,
    counts: Vec<i64>,
    held: Vec<DateTime<Utc>>,
    bodies: Vec<Vec<u8>>,
}

const COLUMNS: &str = "alert_id, budget, reason, rarity, bound, ahead, held, told, told_by, body";

/// Lists them, latest first.
///
/// # Errors
/// When the database is away or fails.
pub async fn list(db: &Db, tenant: &TenantId, query: &Query) -> Result<Vec<Kept>, DbError> {
    const DOING: &str = "list alerts that were held back";
    let mut tx = db.begin(tenant).await?;
    let (time, id) = query.after.unzip();
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "SELECT {COLUMNS} FROM held_alert WHERE tenant_id = $1 AND ($2::text IS NULL OR budget = $2) \
         AND ($3::text IS NULL OR detector = $3) AND ($4 OR told IS NULL) \
         AND ($5::timestamptz IS NULL OR (held, alert_id) < ($5, $6)) ORDER BY held DESC, alert_id DESC LIMIT $7"
    )))
    .bind(tenant.as_str())
    .bind(query.group.map(Group::id))
    .bind(query.detector.as_deref())
    .bind(query.told)
    .bind(time)
    .bind(id)
    .bind(query.most)
    .fetch_all(&mut *tx)
    .await
    .map_err(DbError::during(DOING))?;
    tx.rollback().await?;
    rows.iter()
        .map(|row| kept(row).map_err(DbError::during(DOING)))
        .collect()
}

/// One of them.
///
/// # Errors
/// When the database is away or fails.
pub async fn find(tx: &mut Tx<'_>, alert: Uuid) -> Result<Option<Kept>, DbError> {
    const DOING: &str = "look for an alert that was held back";
    let id = tx.tenant().clone();
    let row = sqlx::query(sqlx::AssertSqlSafe(format!(
        "SELECT {COLUMNS} FROM held_alert WHERE tenant_id = $1 AND alert_id = $2 FOR UPDATE"
    )))
    .bind(id.as_str())
    .bind(alert)
    .fetch_optional(&mut **tx)
    .await
    .map_err(DbError::during(DOING))?;
    row.map(|row| kept(&row).map_err(DbError::during(DOING))).transpose()
}

/// Notes when a person raised one, and who.
///
/// # Errors
/// When the database is away or fails.
pub async fn mark(tx: &mut Tx<'_>, id: Uuid, alert: &Alert, told: (DateTime<Utc>, &str)) -> Result<(), DbError> {
    let tenant = tx.tenant().clone();
    sqlx::query("UPDATE held_alert SET told = $3, told_by = $4, body = $5 WHERE tenant_id = $1 AND alert_id = $2")
        .bind(tenant.as_str())
        .bind(id)
        .bind(told.0)
        .bind(told.1)
        .bind(alert.encode_to_vec())
        .execute(&mut **tx)
        .await
        .map_err(DbError::during("note that an alert was raised"))?;
    Ok(())
}

/// Deletes those that were held back longer ago than they are kept, and the oldest beyond the number that is kept.
/// Returns how many.
///
/// # Errors
/// When the database is away or fails.
pub async fn forget(db: &Db, tenant: &TenantId, days: u32, most: u64) -> Result<u64, DbError> {
    let mut tx = db.begin(tenant).await?;
    let done = sqlx::query(
        "DELETE FROM held_alert WHERE tenant_id = $1 AND (held < now() - make_interval(days => $2) OR (held, alert_id) \
         <= (SELECT held, alert_id FROM held_alert WHERE tenant_id = $1 ORDER BY held DESC, alert_id DESC \
         OFFSET $3 LIMIT 1))",
    )
    .bind(tenant.as_str())
    .bind(i32::try_from(days).unwrap_or(i32::MAX))
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .execute(&mut *tx)
    .await
    .map_err(DbError::during("forget alerts that were held back"))?;
    tx.commit().await?;
    Ok(done.rows_affected())
}

fn kept(row: &PgRow) -> Result<Kept, sqlx::Error> {
    let body: Vec<u8> = row.try_get("body")?;
    let told: Option<DateTime<Utc>> = row.try_get("told")?;
    let by: String = row.try_get("told_by")?;
    Ok(Kept {
        id: row.try_get("alert_id")?,
        alert: Alert::decode(body.as_slice()).map_err(|e| sqlx::Error::Decode(Box::new(e)))?,
        group: row.try_get("budget")?,
        reason: match row.try_get::<i16, _>("reason")? {
            1 => Reason::AheadOfPromise,
            2 => Reason::Outranked,
            _ => Reason::BelowFloor,
        },
        rarity: (row.try_get("rarity")?, row.try_get("bound")?),
        ahead: row.try_get("ahead")?,
        held: row.try_get("held")?,
        told: told.map(|at| (at, by)),
    })
}

fn number(reason: Reason) -> i16 {
    match reason {
        Reason::AheadOfPromise => 1,
        Reason::Outranked => 2,
        Reason::BelowFloor => 3,
    }
}
