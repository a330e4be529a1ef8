//! Evidence bundles and their chain of custody.

use chrono::{DateTime, SecondsFormat, Utc};
use garrison_db::Tx;
use garrison_proof::{bundle::Counts, custody::CustodyEntry};
use garrison_proto::forensics::v1::BundleState;
use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{bound, number};
use crate::error::Error;

const READ: &str = "reading bundles";
const WRITE: &str = "keeping a bundle";

/// A bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// UUIDv7.
    pub id: Uuid,
    /// What it is about.
    pub incident: Uuid,
    /// How far it is.
    pub state: BundleState,
    /// Who asked for it.
    pub author: String,
    /// When it was asked for.
    pub created: DateTime<Utc>,
    /// When it was sealed.
    pub sealed: Option<DateTime<Utc>>,
    /// SHA-256 of the archive, hexadecimal.
    pub sha256: String,
    /// Bytes of the archive.
    pub bytes: u64,
    /// What is in it.
    pub counts: Counts,
    /// The key that signed.
    pub key_id: String,
    /// Why it failed.
    pub error: String,
    /// What could not be gathered.
    pub omissions: Vec<String>,
    /// How often it was tried.
    pub attempts: u32,
}

/// What sealing adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// When.
    pub time: DateTime<Utc>,
    /// SHA-256 of the archive.
    pub sha256: String,
    /// Bytes of the archive.
    pub bytes: u64,
    /// What is in it.
    pub counts: Counts,
    /// The key that signed.
    pub key_id: String,
    /// What could not be gathered.
    pub omissions: Vec<String>,
}

fn bundle(row: &PgRow) -> Bundle {
    Bundle {
        id: row.get("bundle_id"),
        incident: row.get("incident_id"),
        state: BundleState::try_from(i32::from(row.get::<i16, _>("state"))).unwrap_or_default(),
        author: row.get("author"),
        created: row.get("created"),
        sealed: row.get("sealed"),
        sha256: row.get("sha256"),
        bytes: number(row.get("bytes")),
        counts: Counts {
            alerts: number(row.get("alerts")),
            responses: number(row.get("responses")),
            flows: number(row.get("flows")),
            packets: number(row.get("packets")),
        },
        key_id: row.get("key_id"),
        error: row.get("error"),
        omissions: row.get("omissions"),
        attempts: row.get::<i32, _>("attempts").unsigned_abs(),
    }
}

fn attempt(claimed: &Bundle) -> i32 {
    i32::try_from(claimed.attempts).unwrap_or(i32::MAX)
}

fn state(state: BundleState) -> i16 {
    state as i16
}

/// Begins a bundle. A repeat of a request answers with the first bundle and false.
///
/// # Errors
/// [`Error::Database`].
pub async fn create(
    tx: &mut Tx<'_>,
    id: Uuid,
    incident: Uuid,
    request: Uuid,
    author: &str,
    now: DateTime<Utc>,
) -> Result<(Bundle, bool), Error> {
    let done = sqlx::query(
        "INSERT INTO bundle (tenant_id, bundle_id, incident_id, request_id, state, author, created, next_attempt)
         VALUES (current_setting('garrison.tenant', true), $1, $2, $3, $4, $5, $6, $6)
         ON CONFLICT (tenant_id, request_id) DO NOTHING",
    )
    .bind(id)
    .bind(incident)
    .bind(request)
    .bind(state(BundleState::Gathering))
    .bind(author)
    .bind(now)
    .execute(&mut **tx)
    .await
    .map_err(Error::database(WRITE))?;
    let row = sqlx::query("SELECT * FROM bundle WHERE request_id = $1")
        .bind(request)
        .fetch_one(&mut **tx)
        .await
        .map_err(Error::database(READ))?;
    Ok((bundle(&row), done.rows_affected() == 1))
}

/// One bundle.
///
/// # Errors
/// [`Error::Database`].
pub async fn get(tx: &mut Tx<'_>, id: Uuid) -> Result<Option<Bundle>, Error> {
    sqlx::query("SELECT * FROM bundle WHERE bundle_id = $1")
        .bind(id)
        .fetch_optional(&mut **tx)
        .await
        .map(|row| row.as_ref().map(bundle))
        .map_err(Error::database(READ))
}

/// Bundles, newest first, after the given one.
///
/// # Errors
/// [`Error::Database`].
pub async fn list(
    tx: &mut Tx<'_>,
    incident: Option<Uuid>,
    after: Option<Uuid>,
    limit: usize,
) -> Result<Vec<Bundle>, Error> {
    let rows = sqlx::query(
        "SELECT * FROM bundle WHERE ($1::uuid IS NULL OR incident_id = $1) AND ($2::uuid IS NULL OR bundle_id < $2)
         ORDER BY bundle_id DESC LIMIT $3",
    )
    .bind(incident)
    .bind(after)
    .bind(bound(limit as u64))
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::database(READ))?;
    Ok(rows.iter().map(bundle).collect())
}

/// Takes bundles that nobody works on, for the time of the lease.
///
/// # Errors
/// [`Error::Database`].
pub async fn claim(tx: &mut Tx<'_>, now: DateTime<Utc>, lease_until: DateTime<Utc>) -> Result<Vec<Bundle>, Error> {
    let rows = sqlx::query(
        "UPDATE bundle SET lease_until = $3, attempts = attempts + 1 WHERE bundle_id IN (
             SELECT bundle_id FROM bundle
             WHERE state = $1 AND next_attempt <= $2 AND (lease_until IS NULL OR lease_until < $2)
             ORDER BY created LIMIT 4 FOR UPDATE SKIP LOCKED)
         RETURNING *",
    )
    .bind(state(BundleState::Gathering))
    .bind(now)
    .bind(lease_until)
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::database(WRITE))?;
    Ok(rows.iter().map(bundle).collect())
}

/// One bundle, which nobody else changes until the transaction ends.
///
/// # Errors
/// [`Error::Database`].
pub async fn lock(tx: &mut Tx<'_>, id: Uuid) -> Result<Option<Bundle>, Error> {
    sqlx::query("SELECT * FROM bundle WHERE bundle_id = $1 FOR UPDATE")
        .bind(id)
        .fetch_optional(&mut **tx)
        .await
        .map(|row| row.as_ref().map(bundle))
        .map_err(Error::database(READ))
}

/// Keeps a bundle that is being worked on. Like the others below, it does nothing and answers false when the bundle is
/// not gathered any more or a later attempt than the claimed one has begun.
///
/// # Errors
/// [`Error::Database`].
pub async fn renew(tx: &mut Tx<'_>, claimed: &Bundle, lease_until: DateTime<Utc>) -> Result<bool, Error> {
    let done = sqlx::query("UPDATE bundle SET lease_until = $4 WHERE bundle_id = $1 AND attempts = $2 AND state = $3")
        .bind(claimed.id)
        .bind(attempt(claimed))
        .bind(state(BundleState::Gathering))
        .bind(lease_until)
        .execute(&mut **tx)
        .await
        .map_err(Error::database(WRITE))?;
    Ok(done.rows_affected() == 1)
}

/// Gives a bundle back, to be tried again later.
///
/// # Errors
/// [`Error::Database`].
pub async fn postpone(
    tx: &mut Tx<'_>,
    claimed: &Bundle,
    next_attempt: DateTime<Utc>,
    error: &str,
) -> Result<bool, Error> {
    let done = sqlx::query(
        "UPDATE bundle SET lease_until = NULL, next_attempt = $4, error = $5
         WHERE bundle_id = $1 AND attempts = $2 AND state = $3",
    )
    .bind(claimed.id)
    .bind(attempt(claimed))
    .bind(state(BundleState::Gathering))
    .bind(next_attempt)
    .bind(error)
    .execute(&mut **tx)
    .await
    .map_err(Error::database(WRITE))?;
    Ok(done.rows_affected() == 1)
}

/// Marks a bundle as sealed.
///
/// # Errors
/// [`Error::Database`].
pub async fn seal(tx: &mut Tx<'_>, claimed: &Bundle, sealed: &Sealed) -> Result<bool, Error> {
    let done = sqlx::query(
        "UPDATE bundle SET state = $4, sealed = $5, sha256 = $6, bytes = $7, flows = $8, packets = $9, alerts = $10,
                responses = $11, key_id = $12, omissions = $13, error = '', lease_until = NULL
         WHERE bundle_id = $1 AND attempts = $2 AND state = $3",
    )
    .bind(claimed.id)
    .bind(attempt(claimed))
    .bind(state(BundleState::Gathering))
    .bind(state(BundleState::Sealed))
    .bind(sealed.time)
    .bind(&sealed.sha256)
    .bind(bound(sealed.bytes))
    .bind(bound(sealed.counts.flows))
    .bind(bound(sealed.counts.packets))
    .bind(bound(sealed.counts.alerts))
    .bind(bound(sealed.counts.responses))
    .bind(&sealed.key_id)
    .bind(&sealed.omissions)
    .execute(&mut **tx)
    .await
    .map_err(Error::database(WRITE))?;
    Ok(done.rows_affected() == 1)
}

/// Marks a bundle as failed for good.
///
/// # Errors
/// [`Error::Database`].
pub async fn fail(tx: &mut Tx<'_>, claimed: &Bundle, error: &str) -> Result<bool, Error> {
    let done = sqlx::query(
        "UPDATE bundle SET state = $4, error = $5, lease_until = NULL
         WHERE bundle_id = $1 AND attempts = $2 AND state = $3",
    )
    .bind(claimed.id)
    .bind(attempt(claimed))
    .bind(state(BundleState::Gathering))
    .bind(state(BundleState::Failed))
    .bind(error)
    .execute(&mut **tx)
    .await
    .map_err(Error::database(WRITE))?;
    Ok(done.rows_affected() == 1)
}

/// Adds to a bundle's chain of custody. Others who add to the same chain wait.
///
/// # Errors
/// [`Error::Database`].
pub async fn append_custody(
    tx: &mut Tx<'_>,
    id: Uuid,
    now: DateTime<Utc>,
    actor: &str,
    action: &str,
    detail: &str,
) -> Result<CustodyEntry, Error> {
    let operation = "adding to a chain of custody";
    sqlx::query("SELECT 1 FROM bundle WHERE bundle_id = $1 FOR UPDATE")
        .bind(id)
        .fetch_optional(&mut **tx)
        .await
        .map_err(Error::database(operation))?;
    let last = sqlx::query("SELECT * FROM custody_event WHERE bundle_id = $1 ORDER BY sequence DESC LIMIT 1")
        .bind(id)
        .fetch_optional(&mut **tx)
        .await
        .map_err(Error::database(operation))?;
    let last = last.as_ref().map(custody);
    let time = now.to_rfc3339_opts(SecondsFormat::Micros, true);
    let entry = CustodyEntry::following(last.as_ref(), &time, actor, action, detail);
    sqlx::query(
        "INSERT INTO custody_event (tenant_id, bundle_id, sequence, time, actor, action, detail, previous, hash)
         VALUES (current_setting('garrison.tenant', true), $1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(id)
    .bind(bound(entry.sequence))
    .bind(&entry.time)
    .bind(&entry.actor)
    .bind(&entry.action)
    .bind(&entry.detail)
    .bind(&entry.previous)
    .bind(&entry.hash)
    .execute(&mut **tx)
    .await
    .map_err(Error::database(operation))?;
    Ok(entry)
}

/// A bundle's chain of custody, oldest first.
///
/// # Errors
/// [`Error::Database`].
pub async fn custody_chain(tx: &mut Tx<'_>, id: Uuid) -> Result<Vec<CustodyEntry>, Error> {
    let rows = sqlx::query("SELECT * FROM custody_event WHERE bundle_id = $1 ORDER BY sequence")
        .bind(id)
        .fetch_all(&mut **tx)
        .await
        .map_err(Error::database("reading a chain of custody"))?;
    Ok(rows.iter().map(custody).collect())
}

fn custody(row: &PgRow) -> CustodyEntry {
    CustodyEntry {
        sequence: number(row.get("sequence")),
        time: row.get("time"),
        actor: row.get("actor"),
        action: row.get("action"),
        detail: row.get("detail"),
        previous: row.get("previous"),
        hash: row.get("hash"),
    }
}
