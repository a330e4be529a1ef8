use chrono::{DateTime, Utc};
use garrison_db::Tx;
use sqlx::{FromRow as _, Row as _};
use uuid::Uuid;

use super::{Result, tenant_of};
use crate::{domain::Lockout, error::Error};

/// Whether an attempt may be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptStanding {
    /// Yes; it already counts as failed until it is forgiven.
    Counted,
    /// The login is shut until then.
    Locked {
        /// The end of the lock.
        until: DateTime<Utc>,
        /// This lock has refused somebody before, and that was recorded.
        recorded: bool,
    },
}

/// Attempts that a lock refused and that are in no record yet.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct RefusedByLock {
    /// How many.
    pub refused: i32,
    /// Whom they were for, when the name exists.
    pub refused_user: Option<Uuid>,
    /// The end of the lock.
    pub locked_until: Option<DateTime<Utc>>,
}

/// Counts an attempt on a login name as failed before it is judged, so that guesses in parallel cannot outrun the lock.
/// Also answers with what an earlier lock refused, to be recorded now.
pub async fn begin_attempt(
    tx: &mut Tx<'_>,
    login_mac: &[u8],
    lockout: &Lockout,
    now: DateTime<Utc>,
) -> Result<(AttemptStanding, Option<RefusedByLock>)> {
    let operation = "counting a login attempt";
    // One statement makes the row or locks the one that is there: a login that succeeds meanwhile may delete it, and a
    // select would then find nothing.
    let (failures, last_at, recorded, before): (i32, DateTime<Utc>, bool, RefusedByLock) = sqlx::query(
        "INSERT INTO login_attempts AS known (tenant_id, login_mac, failures, last_at) VALUES ($1, $2, 0, $3)
         ON CONFLICT (tenant_id, login_mac) DO UPDATE SET failures = known.failures
         RETURNING failures, last_at, locked_until, refused, refused_user,
             recorded_lock IS NOT DISTINCT FROM locked_until AS recorded",
    )
    .bind(tenant_of(tx))
    .bind(login_mac)
    .bind(now)
    .fetch_one(&mut **tx)
    .await
    .and_then(|row| {
        let before = RefusedByLock::from_row(&row)?;
        Ok((
            row.try_get("failures")?,
            row.try_get("last_at")?,
            row.try_get("recorded")?,
            before,
        ))
    })
    .map_err(Error::query(operation))?;
    if let Some(until) = before.locked_until.filter(|until| *until > now) {
        return Ok((AttemptStanding::Locked { until, recorded }, None));
    }
    let failures = lockout.count(u32::try_from(failures).unwrap_or(0), last_at, now);
    sqlx::query(
        "UPDATE login_attempts SET failures = $2, last_at = $3, locked_until = $4, refused = 0 WHERE login_mac = $1",
    )
    .bind(login_mac)
    .bind(i32::try_from(failures).unwrap_or(i32::MAX))
    .bind(now)
    .bind(lockout.locked_until(failures, now))
    .execute(&mut **tx)
    .await
    .map_err(Error::query(operation))?;
    Ok((
        AttemptStanding::Counted,
        Some(before).filter(|before| before.refused > 0),
    ))
}

/// Notes that the lock's first refusal is recorded with this transaction.
pub async fn note_lock_recorded(tx: &mut Tx<'_>, login_mac: &[u8]) -> Result<()> {
    sqlx::query("UPDATE login_attempts SET recorded_lock = locked_until WHERE login_mac = $1")
        .bind(login_mac)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("noting a lock"))
}

/// Counts an attempt that the lock refused.
pub async fn count_refused(tx: &mut Tx<'_>, login_mac: &[u8], user: Option<Uuid>) -> Result<()> {
    sqlx::query(
        "UPDATE login_attempts SET refused = CASE WHEN refused < 2147483647 THEN refused + 1 ELSE refused END,
             refused_user = $2
         WHERE login_mac = $1",
    )
    .bind(login_mac)
    .bind(user)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(Error::query("counting an attempt on a locked login"))
}

/// What locks that are over refused, at most so many; they count as recorded from then on.
pub async fn take_refused(tx: &mut Tx<'_>, now: DateTime<Utc>, most: i64) -> Result<Vec<RefusedByLock>> {
    sqlx::query_as(
        "WITH over AS (
             SELECT tenant_id, login_mac, refused, refused_user, locked_until FROM login_attempts
             WHERE refused > 0 AND (locked_until IS NULL OR locked_until <= $1)
             ORDER BY locked_until LIMIT $2 FOR UPDATE SKIP LOCKED
         ), taken AS (
             UPDATE login_attempts AS known SET refused = 0 FROM over
             WHERE known.tenant_id = over.tenant_id AND known.login_mac = over.login_mac
             RETURNING over.refused, over.refused_user, over.locked_until
         )
         SELECT * FROM taken",
    )
    .bind(now)
    .bind(most)
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::query("reading what locks refused"))
}

/// Takes back the one attempt that turned out right but did not finish the login.
pub async fn forgive_attempt(tx: &mut Tx<'_>, login_mac: &[u8], lockout: &Lockout) -> Result<()> {
    sqlx::query(
        "UPDATE login_attempts SET failures = greatest(failures - 1, 0),
             locked_until = CASE WHEN failures - 1 < $2 THEN NULL ELSE locked_until END
         WHERE login_mac = $1",
    )
    .bind(login_mac)
    .bind(i32::try_from(lockout.threshold).unwrap_or(i32::MAX))
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(Error::query("taking back a login attempt"))
}

/// Forgets all failures after a complete login or an administrator's reset. Answers with what a lock refused, to be
/// recorded now.
pub async fn forget_failures(tx: &mut Tx<'_>, login_macs: &[Vec<u8>]) -> Result<Vec<RefusedByLock>> {
    let forgotten: Vec<RefusedByLock> = sqlx::query_as(
        "DELETE FROM login_attempts WHERE login_mac = ANY ($1) RETURNING refused, refused_user, locked_until",
    )
    .bind(login_macs)
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::query("forgetting failed logins"))?;
    Ok(forgotten.into_iter().filter(|lock| lock.refused > 0).collect())
}

/// The locks of these names that are still in force.
pub async fn locked_until(
    tx: &mut Tx<'_>,
    login_macs: &[Vec<u8>],
    now: DateTime<Utc>,
) -> Result<Vec<(Vec<u8>, DateTime<Utc>)>> {
    sqlx::query_as(
        "SELECT login_mac, locked_until FROM login_attempts WHERE login_mac = ANY ($1) AND locked_until > $2",
    )
    .bind(login_macs)
    .bind(now)
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::query("reading locks"))
}

/// Drops counts that no longer matter.
pub async fn forget_old_attempts(tx: &mut Tx<'_>, before: DateTime<Utc>) -> Result<u64> {
    sqlx::query(
        "DELETE FROM login_attempts
         WHERE last_at < $1 AND (locked_until IS NULL OR locked_until < $1) AND refused = 0",
    )
    .bind(before)
    .execute(&mut **tx)
    .await
    .map(|done| done.rows_affected())
    .map_err(Error::query("dropping old login attempts"))
}
