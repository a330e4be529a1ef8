//! Playbooks and protected hosts.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row as _};

/// A stored version of a playbook.
#[derive(Debug, Clone)]
pub struct StoredPlaybook {
    /// Its name.
    pub name: String,
    /// 1 for the first.
    pub version: i64,
    /// The YAML text.
    pub document: String,
    /// Whether it acts.
    pub enabled: bool,
}

/// A protected host or network.
#[derive(Debug, Clone)]
pub struct StoredProtection {
    /// Canonical CIDR text.
    pub network: String,
    /// Why.
    pub reason: String,
    /// Who added it.
    pub author: String,
}

/// Starts a tenant's rules. False when somebody else has.
pub async fn initialise(tx: &mut PgConnection, tenant: &str) -> Result<bool, sqlx::Error> {
    let done = sqlx::query("INSERT INTO tenant_state (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING")
        .bind(tenant)
        .execute(tx)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Makes every cached copy of the tenant's rules stale.
pub async fn raise_generation(tx: &mut PgConnection, tenant: &str) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE tenant_state SET generation = generation + 1 WHERE tenant_id = $1")
        .bind(tenant)
        .execute(tx)
        .await?;
    Ok(())
}

/// The latest version of every playbook, by name.
pub async fn playbooks(tx: &mut PgConnection, tenant: &str) -> Result<Vec<StoredPlaybook>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT DISTINCT ON (name) name, version, document, enabled FROM playbook
         WHERE tenant_id = $1 ORDER BY name, version DESC",
    )
    .bind(tenant)
    .fetch_all(tx)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(StoredPlaybook {
                name: row.try_get("name")?,
                version: row.try_get("version")?,
                document: row.try_get("document")?,
                enabled: row.try_get("enabled")?,
            })
        })
        .collect()
}

/// Stores a new version.
pub async fn insert_playbook(
    tx: &mut PgConnection,
    tenant: &str,
    playbook: &StoredPlaybook,
    author: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO playbook (tenant_id, name, version, document, enabled, author, created)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(tenant)
    .bind(&playbook.name)
    .bind(playbook.version)
    .bind(&playbook.document)
    .bind(playbook.enabled)
    .bind(author)
    .bind(now)
    .execute(tx)
    .await?;
    Ok(())
}

/// Every protected host, by network.
pub async fn protections(tx: &mut PgConnection, tenant: &str) -> Result<Vec<StoredProtection>, sqlx::Error> {
    let rows = sqlx::query("SELECT network, reason, author FROM protected_host WHERE tenant_id = $1 ORDER BY network")
        .bind(tenant)
        .fetch_all(tx)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(StoredProtection {
                network: row.try_get("network")?,
                reason: row.try_get("reason")?,
                author: row.try_get("author")?,
            })
        })
        .collect()
}

/// Adds a protected host, or gives a known one a new reason.
pub async fn put_protection(
    tx: &mut PgConnection,
    tenant: &str,
    protection: &StoredProtection,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO protected_host (tenant_id, network, reason, author) VALUES ($1, $2, $3, $4)
         ON CONFLICT (tenant_id, network) DO UPDATE SET reason = excluded.reason, author = excluded.author",
    )
    .bind(tenant)
    .bind(&protection.network)
    .bind(&protection.reason)
    .bind(&protection.author)
    .execute(tx)
    .await?;
    Ok(())
}

/// Removes a protected host. False when there was none.
pub async fn delete_protection(tx: &mut PgConnection, tenant: &str, network: &str) -> Result<bool, sqlx::Error> {
    let done = sqlx::query("DELETE FROM protected_host WHERE tenant_id = $1 AND network = $2")
        .bind(tenant)
        .bind(network)
        .execute(tx)
        .await?;
    Ok(done.rows_affected() == 1)
}
