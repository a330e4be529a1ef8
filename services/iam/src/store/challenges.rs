use chrono::{DateTime, Utc};
use garrison_db::Tx;
use uuid::Uuid;

use super::{Result, tenant_of};
use crate::{crypto::OpaqueToken, error::Error};

/// A login that waits for a factor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Whose.
    pub user: Uuid,
    /// SHA-256 of its secret part.
    pub secret_sha256: Vec<u8>,
    /// Wrong codes so far.
    pub attempts: u32,
    /// When it is over.
    pub expires: DateTime<Utc>,
}

/// Stores a challenge.
pub async fn insert_challenge(tx: &mut Tx<'_>, token: &OpaqueToken, user: Uuid, expires: DateTime<Utc>) -> Result<()> {
    sqlx::query(
        "INSERT INTO challenges (tenant_id, id, user_id, secret_sha256, expires_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(tenant_of(tx))
    .bind(token.id)
    .bind(user)
    .bind(token.secret_sha256())
    .bind(expires)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(Error::query("storing a challenge"))
}

/// The challenge with this id, locked until the end of the transaction.
pub async fn find_challenge(tx: &mut Tx<'_>, id: Uuid) -> Result<Option<Challenge>> {
    let row: Option<(Uuid, Vec<u8>, i32, DateTime<Utc>)> =
        sqlx::query_as("SELECT user_id, secret_sha256, attempts, expires_at FROM challenges WHERE id = $1 FOR UPDATE")
            .bind(id)
            .fetch_optional(&mut **tx)
            .await
            .map_err(Error::query("reading a challenge"))?;
    Ok(row.map(|(user, secret_sha256, attempts, expires)| Challenge {
        user,
        secret_sha256,
        attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        expires,
    }))
}

/// Counts a wrong code.
pub async fn count_challenge_attempt(tx: &mut Tx<'_>, id: Uuid) -> Result<()> {
    sqlx::query("UPDATE challenges SET attempts = attempts + 1 WHERE id = $1")
        .bind(id)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("counting a wrong code"))
}

/// Uses a challenge up.
pub async fn delete_challenge(tx: &mut Tx<'_>, id: Uuid) -> Result<()> {
    sqlx::query("DELETE FROM challenges WHERE id = $1")
        .bind(id)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("using up a challenge"))
}

/// Drops challenges that are over.
pub async fn delete_old_challenges(tx: &mut Tx<'_>, now: DateTime<Utc>) -> Result<u64> {
    sqlx::query("DELETE FROM challenges WHERE expires_at < $1")
        .bind(now)
        .execute(&mut **tx)
        .await
        .map(|done| done.rows_affected())
        .map_err(Error::query("dropping old challenges"))
}
