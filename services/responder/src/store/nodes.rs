//! Enforcer nodes.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

/// Notes a heartbeat. It need not be synced: the next one is seconds away.
pub async fn beat(
    tx: &mut PgConnection,
    tenant: &str,
    node: &str,
    digest: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query("SET LOCAL synchronous_commit = off")
        .execute(&mut *tx)
        .await?;
    sqlx::query(
        "INSERT INTO node (tenant_id, node, last_heartbeat, applied_digest) VALUES ($1, $2, $3, $4)
         ON CONFLICT (tenant_id, node) DO UPDATE
         SET last_heartbeat = excluded.last_heartbeat, applied_digest = excluded.applied_digest",
    )
    .bind(tenant)
    .bind(node)
    .bind(now)
    .bind(digest)
    .execute(tx)
    .await?;
    Ok(())
}

/// Nodes heard of since a time.
pub async fn heard_since(
    tx: &mut PgConnection,
    tenant: &str,
    since: DateTime<Utc>,
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT node FROM node WHERE tenant_id = $1 AND last_heartbeat >= $2 ORDER BY node")
        .bind(tenant)
        .bind(since)
        .fetch_all(tx)
        .await
}

/// Ids of the responses that should be in force; see
/// [`Response::is_desired`](crate::domain::response::Response::is_desired).
pub async fn desired_ids(tx: &mut PgConnection, tenant: &str, now: DateTime<Utc>) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT response_id FROM response
         WHERE tenant_id = $1 AND state IN (2, 3, 4) AND nodes <> '{}'
           AND (expires IS NULL OR expires > $2)",
    )
    .bind(tenant)
    .bind(now)
    .fetch_all(tx)
    .await
}
