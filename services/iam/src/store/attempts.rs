use chrono::{DateTime, Utc};
use garrison_db::Tx;

use super::{Result, tenant_of};
use crate::{domain::Lockout, error::Error};

/// Whether an attempt may be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptStanding {
    /// Yes; it already counts as failed until it is forgiven.
    Counted,
    /// The login is shut until then.
    Locked(DateTime<Utc>),
}

/// Counts an attempt on a login name as failed before it is judged, so that guesses in parallel cannot outrun the lock.
pub async fn begin_attempt(
    tx: &mut Tx<'_>,
    login_mac: &[u8],
    lockout: &Lockout,
    now: DateTime<Utc>,
) -> Result<AttemptStanding> {
    let operation = "counting a login attempt";
    // One statement makes the row or locks the one that is there: a login that succeeds meanwhile may delete it, and a
    // select would then find nothing.
    let (failures, last_at, locked_until): (i32, DateTime<Utc>, Option<DateTime<Utc>>) = sqlx::query_as(
        "INSERT INTO login_attempts AS known (tenant_id, login_mac, failures, last_at) VALUES ($1, $2, 0, $3)
         ON CONFLICT (tenant_id, login_mac) DO UPDATE SET failures = known.failures
         RETURNING failures, last_at, locked_until",
    )
    .bind(tenant_of(tx))
    .bind(login_mac)
    .bind(now)
    .fetch_one(&mut **tx)
    .await
    .map_err(Error::query(operation))?;
    if let Some(until) = locked_until.filter(|until| *until > now) {
        return Ok(AttemptStanding::Locked(until));
    }
    let failures = lockout.count(u32::try_from(failures).unwrap_or(0), last_at, now);
    sqlx::query("UPDATE login_attempts SET failures = $2, last_at = $3, locked_until = $4 WHERE login_mac = $1")
        .bind(login_mac)
        .bind(i32::try_from(failures).unwrap_or(i32::MAX))
        .bind(now)
        .bind(lockout.locked_until(failures, now))
        .execute(&mut **tx)
        .await
        .map_err(Error::query(operation))?;
    Ok(AttemptStanding::Counted)
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

/// Forgets all failures after a complete login or an administrator's reset.
pub async fn forget_failures(tx: &mut Tx<'_>, login_macs: &[Vec<u8>]) -> Result<()> {
    sqlx::query("DELETE FROM login_attempts WHERE login_mac = ANY ($1)")
        .bind(login_macs)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("forgetting failed logins"))
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
    sqlx::query("DELETE FROM login_attempts WHERE last_at < $1 AND (locked_until IS NULL OR locked_until < $1)")
        .bind(before)
        .execute(&mut **tx)
        .await
        .map(|done| done.rows_affected())
        .map_err(Error::query("dropping old login attempts"))
}
