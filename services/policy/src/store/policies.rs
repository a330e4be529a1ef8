use chrono::{DateTime, Utc};
use garrison_db::{DbError, Tx};
use garrison_ztp::document::Mode;
use sqlx::{Row as _, postgres::PgRow};

/// One version of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPolicy {
    /// The policy's name.
    pub name: String,
    /// Counts from 1.
    pub version: u64,
    /// Whether it is enforced.
    pub mode: Mode,
    /// The document as applied.
    pub document: String,
    /// SHA-256 of the document, hexadecimal.
    pub sha256: String,
    /// Who applied it.
    pub author: String,
    /// When.
    pub created: DateTime<Utc>,
    /// Whether the policy is withdrawn.
    pub withdrawn: bool,
}

/// A policy that changed after an epoch, as it is now.
#[derive(Debug)]
pub struct Change {
    /// The epoch of the change.
    pub epoch: u64,
    /// The current version.
    pub policy: StoredPolicy,
}

fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn mode_number(mode: Mode) -> i16 {
    match mode {
        Mode::Observe => 1,
        Mode::Enforce => 2,
        Mode::Stage => 3,
    }
}

fn read(row: &PgRow) -> Result<StoredPolicy, sqlx::Error> {
    Ok(StoredPolicy {
        name: row.try_get("name")?,
        version: number(row.try_get("version")?),
        mode: match row.try_get::<i16, _>("mode")? {
            2 => Mode::Enforce,
            3 => Mode::Stage,
            _ => Mode::Observe,
        },
        document: row.try_get("document")?,
        sha256: row.try_get("sha256")?,
        author: row.try_get("author")?,
        created: row.try_get("created")?,
        withdrawn: row.try_get("withdrawn")?,
    })
}

fn read_all(rows: &[PgRow]) -> Result<Vec<StoredPolicy>, DbError> {
    rows.iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(DbError::during("read policies"))
}

/// Takes the tenant's turn to change policies and gives the epoch of the change. Others wait until this
/// transaction ends.
///
/// # Errors
/// When the database fails.
pub async fn next_epoch(tx: &mut Tx<'_>) -> Result<u64, DbError> {
    let tenant = tx.tenant().to_string();
    let epoch: i64 = sqlx::query_scalar(
        "INSERT INTO ruleset (tenant_id, epoch) VALUES ($1, 1)
         ON CONFLICT (tenant_id) DO UPDATE SET epoch = ruleset.epoch + 1 RETURNING epoch",
    )
    .bind(tenant)
    .fetch_one(&mut **tx)
    .await
    .map_err(DbError::during("take the turn to change policies"))?;
    Ok(number(epoch))
}

/// Policies that changed after an epoch, withdrawn ones included.
///
/// # Errors
/// When the database fails.
pub async fn changes(tx: &mut Tx<'_>, after: u64) -> Result<Vec<Change>, DbError> {
    let tenant = tx.tenant().to_string();
    let rows = sqlx::query(
        "SELECT p.epoch, p.withdrawn, v.* FROM policy p
         JOIN policy_version v ON v.tenant_id = p.tenant_id AND v.name = p.name AND v.version = p.version
         WHERE p.tenant_id = $1 AND p.epoch > $2",
    )
    .bind(tenant)
    .bind(signed(after))
    .fetch_all(&mut **tx)
    .await
    .map_err(DbError::during("look for changed policies"))?;
    let read = |row: &PgRow| {
        Ok(Change {
            epoch: number(row.try_get("epoch")?),
            policy: read(row)?,
        })
    };
    rows.iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map_err(DbError::during("read changed policies"))
}

/// The current version of a policy, withdrawn or not.
///
/// # Errors
/// When the database fails.
pub async fn current(tx: &mut Tx<'_>, name: &str) -> Result<Option<StoredPolicy>, DbError> {
    let tenant = tx.tenant().to_string();
    let row = sqlx::query(
        "SELECT p.withdrawn, v.* FROM policy p
         JOIN policy_version v ON v.tenant_id = p.tenant_id AND v.name = p.name AND v.version = p.version
         WHERE p.tenant_id = $1 AND p.name = $2",
    )
    .bind(tenant)
    .bind(name)
    .fetch_optional(&mut **tx)
    .await
    .map_err(DbError::during("read a policy"))?;
    row.as_ref()
        .map(read)
        .transpose()
        .map_err(DbError::during("read a policy"))
}

/// One version of a policy. `withdrawn` is the policy's state now.
///
/// # Errors
/// When the database fails.
pub async fn find_version(tx: &mut Tx<'_>, name: &str, version: u64) -> Result<Option<StoredPolicy>, DbError> {
    let tenant = tx.tenant().to_string();
    let row = sqlx::query(
        "SELECT p.withdrawn, v.* FROM policy_version v
         JOIN policy p ON p.tenant_id = v.tenant_id AND p.name = v.name
         WHERE v.tenant_id = $1 AND v.name = $2 AND v.version = $3",
    )
    .bind(tenant)
    .bind(name)
    .bind(signed(version))
    .fetch_optional(&mut **tx)
    .await
    .map_err(DbError::during("read a version of a policy"))?;
    row.as_ref()
        .map(read)
        .transpose()
        .map_err(DbError::during("read a version of a policy"))
}

/// Policies in force with names after `after`, in order.
///
/// # Errors
/// When the database fails.
pub async fn list(tx: &mut Tx<'_>, after: &str, limit: i64) -> Result<Vec<StoredPolicy>, DbError> {
    let tenant = tx.tenant().to_string();
    let rows = sqlx::query(
        "SELECT p.withdrawn, v.* FROM policy p
         JOIN policy_version v ON v.tenant_id = p.tenant_id AND v.name = p.name AND v.version = p.version
         WHERE p.tenant_id = $1 AND p.name > $2 AND NOT p.withdrawn ORDER BY p.name LIMIT $3",
    )
    .bind(tenant)
    .bind(after)
    .bind(limit)
    .fetch_all(&mut **tx)
    .await
    .map_err(DbError::during("list policies"))?;
    read_all(&rows)
}

/// Versions of a policy below `before`, the newest first. 0 for all.
///
/// # Errors
/// When the database fails.
pub async fn list_versions(tx: &mut Tx<'_>, name: &str, before: u64, limit: i64) -> Result<Vec<StoredPolicy>, DbError> {
    let tenant = tx.tenant().to_string();
    let rows = sqlx::query(
        "SELECT p.withdrawn, v.* FROM policy_version v
         JOIN policy p ON p.tenant_id = v.tenant_id AND p.name = v.name
         WHERE v.tenant_id = $1 AND v.name = $2 AND ($3 = 0 OR v.version < $3) ORDER BY v.version DESC LIMIT $4",
    )
    .bind(tenant)
    .bind(name)
    .bind(signed(before))
    .bind(limit)
    .fetch_all(&mut **tx)
    .await
    .map_err(DbError::during("list versions of a policy"))?;
    read_all(&rows)
}

/// Stores a version and makes it current.
///
/// # Errors
/// When the database fails.
pub async fn insert_version(tx: &mut Tx<'_>, policy: &StoredPolicy, epoch: u64) -> Result<(), DbError> {
    let tenant = tx.tenant().to_string();
    sqlx::query(
        "WITH head AS (
             INSERT INTO policy (tenant_id, name, version, withdrawn, epoch) VALUES ($1, $2, $3, false, $4)
             ON CONFLICT (tenant_id, name) DO UPDATE SET version = $3, withdrawn = false, epoch = $4
         )
         INSERT INTO policy_version (tenant_id, name, version, mode, document, sha256, author, created)
         VALUES ($1, $2, $3, $5, $6, $7, $8, $9)",
    )
    .bind(tenant)
    .bind(&policy.name)
    .bind(signed(policy.version))
    .bind(signed(epoch))
    .bind(mode_number(policy.mode))
    .bind(&policy.document)
    .bind(&policy.sha256)
    .bind(&policy.author)
    .bind(policy.created)
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("store a version of a policy"))?;
    Ok(())
}

/// Withdraws a policy. Its versions stay.
///
/// # Errors
/// When the database fails.
pub async fn withdraw(tx: &mut Tx<'_>, name: &str, epoch: u64) -> Result<(), DbError> {
    let tenant = tx.tenant().to_string();
    sqlx::query("UPDATE policy SET withdrawn = true, epoch = $3 WHERE tenant_id = $1 AND name = $2")
        .bind(tenant)
        .bind(name)
        .bind(signed(epoch))
        .execute(&mut **tx)
        .await
        .map_err(DbError::during("withdraw a policy"))?;
    Ok(())
}
