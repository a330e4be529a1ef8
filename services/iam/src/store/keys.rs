use chrono::{DateTime, Utc};
use garrison_db::Tx;

use super::{Result, tenant_of};
use crate::{crypto::SigningKeyRow, error::Error};

/// Lets one process at a time change the signing keys, until the end of the transaction.
pub async fn lock_keys(tx: &mut Tx<'_>) -> Result<()> {
    // An arbitrary constant; advisory locks are per database and nothing else here takes one with it.
    sqlx::query("SELECT pg_advisory_xact_lock(4919131752989213764)")
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("locking the signing keys"))
}

/// The keys that verify at a time, oldest first.
pub async fn list_keys(tx: &mut Tx<'_>, now: DateTime<Utc>) -> Result<Vec<SigningKeyRow>> {
    #[derive(sqlx::FromRow)]
    struct Row {
        key_id: String,
        public_key: Vec<u8>,
        private_key: Vec<u8>,
        created_at: DateTime<Utc>,
        verifies_until: Option<DateTime<Utc>>,
    }
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT key_id, public_key, private_key, created_at, verifies_until FROM signing_keys
         WHERE verifies_until IS NULL OR verifies_until > $1 ORDER BY created_at, key_id",
    )
    .bind(now)
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::query("reading the signing keys"))?;
    Ok(rows
        .into_iter()
        .map(|row| SigningKeyRow {
            key_id: row.key_id,
            public_key: row.public_key,
            private_key: row.private_key,
            created: row.created_at,
            verifies_until: row.verifies_until,
        })
        .collect())
}

/// Ends signing with every key that still signs; they verify until the given time.
pub async fn retire_keys(tx: &mut Tx<'_>, verifies_until: DateTime<Utc>) -> Result<()> {
    sqlx::query("UPDATE signing_keys SET verifies_until = $1 WHERE verifies_until IS NULL")
        .bind(verifies_until)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::query("retiring the signing key"))
}

/// Stores a new key.
pub async fn insert_key(tx: &mut Tx<'_>, key: &SigningKeyRow) -> Result<()> {
    sqlx::query(
        "INSERT INTO signing_keys (tenant_id, key_id, public_key, private_key, created_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(tenant_of(tx))
    .bind(&key.key_id)
    .bind(&key.public_key)
    .bind(&key.private_key)
    .bind(key.created)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(Error::query("storing a signing key"))
}

/// Drops keys whose last token has expired.
pub async fn delete_expired_keys(tx: &mut Tx<'_>, now: DateTime<Utc>) -> Result<u64> {
    sqlx::query("DELETE FROM signing_keys WHERE verifies_until < $1")
        .bind(now)
        .execute(&mut **tx)
        .await
        .map(|done| done.rows_affected())
        .map_err(Error::query("dropping expired signing keys"))
}
