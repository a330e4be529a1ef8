use chrono::{DateTime, Utc};
use garrison_db::Tx;
use garrison_proto::TenantId;
use uuid::Uuid;

use super::{Result, tenant_of};
use crate::{domain::Session, error::Error};

/// A session with the hash of the one refresh token that works.
pub struct StoredSession {
    /// The session.
    pub session: Session,
    /// SHA-256 of the token's secret part.
    pub refresh_sha256: Vec<u8>,
}

/// A session that was just ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedSession {
    /// Which.
    pub id: Uuid,
    /// When its last access token expires.
    pub access_until: DateTime<Utc>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    user_id: Uuid,
    created_at: DateTime<Utc>,
    last_used_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    access_until: DateTime<Utc>,
    client_address: String,
    second_factor: bool,
    refresh_sha256: Vec<u8>,
    ended_at: Option<DateTime<Utc>>,
}

impl From<Row> for StoredSession {
    fn from(row: Row) -> Self {
        Self {
            session: Session {
                id: row.id,
                user: row.user_id,
                created: row.created_at,
                last_used: row.last_used_at,
                expires: row.expires_at,
                access_until: row.access_until,
                client_address: row.client_address,
                second_factor: row.second_factor,
                ended: row.ended_at,
            },
            refresh_sha256: row.refresh_sha256,
        }
    }
}

macro_rules! select_sessions {
    ($rest:literal) => {
        concat!(
            "SELECT id, user_id, created_at, last_used_at, expires_at, access_until, client_address, second_factor, \
             refresh_sha256, ended_at FROM sessions ",
            $rest
        )
    };
}

/// Stores a new session.
pub async fn insert_session(tx: &mut Tx<'_>, session: &Session, refresh_sha256: &[u8]) -> Result<()> {
    sqlx::query(
        "INSERT INTO sessions (tenant_id, id, user_id, created_at, last_used_at, expires_at, access_until,
             client_address, second_factor, refresh_sha256)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(tenant_of(tx))
    .bind(session.id)
    .bind(session.user)
    .bind(session.created)
    .bind(session.last_used)
    .bind(session.expires)
    .bind(session.access_until)
    .bind(&session.client_address)
    .bind(session.second_factor)
    .bind(refresh_sha256)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(Error::query("opening a session"))
}

/// The session with this id, locked until the end of the transaction.
pub async fn find_session(tx: &mut Tx<'_>, id: Uuid) -> Result<Option<StoredSession>> {
    sqlx::query_as::<_, Row>(select_sessions!("WHERE id = $1 FOR UPDATE"))
        .bind(id)
        .fetch_optional(&mut **tx)
        .await
        .map(|row| row.map(Into::into))
        .map_err(Error::query("reading a session"))
}

/// Whose session it is, without a lock: to lock the account first, as everything does that ends sessions.
pub async fn find_session_owner(tx: &mut Tx<'_>, id: Uuid) -> Result<Option<Uuid>> {
    sqlx::query_scalar("SELECT user_id FROM sessions WHERE id = $1")
        .bind(id)
        .fetch_optional(&mut **tx)
        .await
        .map_err(Error::query("reading a session's owner"))
}

/// A person's sessions that nobody has ended, oldest first.
pub async fn list_open_sessions(tx: &mut Tx<'_>, user: Uuid, now: DateTime<Utc>) -> Result<Vec<Session>> {
    sqlx::query_as::<_, Row>(select_sessions!(
        "WHERE user_id = $1 AND ended_at IS NULL AND expires_at > $2 ORDER BY created_at, id LIMIT 1000"
    ))
    .bind(user)
    .bind(now)
    .fetch_all(&mut **tx)
    .await
    .map(|rows| rows.into_iter().map(|row| StoredSession::from(row).session).collect())
    .map_err(Error::query("listing sessions"))
}

/// Gives the session its next refresh token and notes the use.
pub async fn rotate_session(
    tx: &mut Tx<'_>,
    id: Uuid,
    refresh_sha256: &[u8],
    now: DateTime<Utc>,
    access_until: DateTime<Utc>,
) -> Result<()> {
    sqlx::query("UPDATE sessions SET refresh_sha256 = $2, last_used_at = $3, access_until = $4 WHERE id = $1")
        .bind(id)
        .bind(refresh_sha256)
        .bind(now)
        .bind(access_until)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("refreshing a session"))
}

/// Ends one session; `None` when there is none or it has ended before.
pub async fn end_session(tx: &mut Tx<'_>, id: Uuid, reason: &str, now: DateTime<Utc>) -> Result<Option<EndedSession>> {
    let row: Option<(DateTime<Utc>,)> = sqlx::query_as(
        "UPDATE sessions SET ended_at = $2, end_reason = $3 WHERE id = $1 AND ended_at IS NULL RETURNING access_until",
    )
    .bind(id)
    .bind(now)
    .bind(reason)
    .fetch_optional(&mut **tx)
    .await
    .map_err(Error::query("ending a session"))?;
    Ok(row.map(|(access_until,)| EndedSession { id, access_until }))
}

/// Ends every open session of a person but one, or of the whole tenant when no person is given.
pub async fn end_sessions_of_user(
    tx: &mut Tx<'_>,
    user: Option<Uuid>,
    except: Option<Uuid>,
    reason: &str,
    now: DateTime<Utc>,
) -> Result<Vec<EndedSession>> {
    let rows: Vec<(Uuid, DateTime<Utc>)> = sqlx::query_as(
        // Rows are locked in the order of their ids, so that two of these cannot wait for each other.
        "WITH open AS (
             SELECT id FROM sessions
             WHERE ended_at IS NULL AND ($1 IS NULL OR user_id = $1) AND ($2 IS NULL OR id <> $2)
             ORDER BY id FOR UPDATE)
         UPDATE sessions SET ended_at = $3, end_reason = $4 FROM open
         WHERE sessions.id = open.id AND sessions.ended_at IS NULL
         RETURNING sessions.id, sessions.access_until",
    )
    .bind(user)
    .bind(except)
    .bind(now)
    .bind(reason)
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::query("ending sessions"))?;
    Ok(rows
        .into_iter()
        .map(|(id, access_until)| EndedSession { id, access_until })
        .collect())
}

/// Notes a session whose tokens are to be refused.
pub async fn record_revocation(tx: &mut Tx<'_>, session: Uuid, now: DateTime<Utc>, until: DateTime<Utc>) -> Result<()> {
    sqlx::query(
        "INSERT INTO revocations (tenant_id, session_id, revoked_at, until) VALUES ($1, $2, $3, $4)
         ON CONFLICT (tenant_id, session_id) DO NOTHING",
    )
    .bind(tenant_of(tx))
    .bind(session)
    .bind(now)
    .bind(until)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(Error::query("recording a revocation"))
}

/// A row of [`list_revocations`].
pub type RevocationRow = (TenantId, Uuid, DateTime<Utc>, DateTime<Utc>);

/// Revocations that the transaction may see and that still matter: tenant, session, time, until.
pub async fn list_revocations(tx: &mut Tx<'_>, now: DateTime<Utc>) -> Result<Vec<RevocationRow>> {
    let operation = "listing revocations";
    let rows: Vec<(String, Uuid, DateTime<Utc>, DateTime<Utc>)> = sqlx::query_as(
        "SELECT tenant_id, session_id, revoked_at, until FROM revocations WHERE until > $1 ORDER BY revoked_at",
    )
    .bind(now)
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::query(operation))?;
    rows.into_iter()
        .map(|(tenant, session, at, until)| {
            let tenant = tenant.parse().map_err(|error| Error::Stored {
                operation,
                detail: format!("{error}"),
            })?;
            Ok((tenant, session, at, until))
        })
        .collect()
}

/// Drops revocations of tokens that have all expired.
pub async fn forget_revocations(tx: &mut Tx<'_>, before: DateTime<Utc>) -> Result<u64> {
    sqlx::query("DELETE FROM revocations WHERE until < $1 AND tenant_id = current_setting('garrison.tenant')")
        .bind(before)
        .execute(&mut **tx)
        .await
        .map(|done| done.rows_affected())
        .map_err(Error::query("dropping old revocations"))
}

/// Drops sessions that ended or expired before a time; the audit log remembers them.
pub async fn delete_old_sessions(tx: &mut Tx<'_>, before: DateTime<Utc>) -> Result<u64> {
    sqlx::query("DELETE FROM sessions WHERE expires_at < $1")
        .bind(before)
        .execute(&mut **tx)
        .await
        .map(|done| done.rows_affected())
        .map_err(Error::query("dropping old sessions"))
}
