//! The only SQL.

mod alerts;
mod budget;
pub mod entries;
mod form;
pub mod held;
pub mod models;
pub mod replicas;
pub mod risk;
pub mod roles;
pub mod snapshot;
pub mod verdicts;

use garrison_db::{Db, DbError, Tx};
use garrison_proto::TenantId;

pub use alerts::{forget_alerts, publish_alerts, rehearse};

/// What was saved of a tenant.
#[derive(Debug, Default)]
pub struct Saved {
    /// The tenant's own state; `None` when nothing was ever saved.
    pub tenant: Option<Vec<u8>>,
    /// Its shards.
    pub shards: Vec<(u16, Vec<u8>)>,
}

/// Loads what was saved of a tenant.
///
/// # Errors
/// When the database is away or fails.
pub async fn load(db: &Db, tenant: &TenantId) -> Result<Saved, DbError> {
    let mut tx = db.begin(tenant).await?;
    let state = sqlx::query_scalar("SELECT state FROM tenant_state WHERE tenant_id = $1")
        .bind(tenant.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(DbError::during("load a tenant's state"))?;
    let shards: Vec<(i16, Vec<u8>)> =
        sqlx::query_as("SELECT shard, state FROM shard_state WHERE tenant_id = $1 ORDER BY shard")
            .bind(tenant.as_str())
            .fetch_all(&mut *tx)
            .await
            .map_err(DbError::during("load the shards' state"))?;
    tx.rollback().await?;
    Ok(Saved {
        tenant: state,
        shards: shards
            .into_iter()
            .filter_map(|(shard, state)| Some((u16::try_from(shard).ok()?, state)))
            .collect(),
    })
}

/// Saves a tenant's state and those of its shards that changed.
///
/// # Errors
/// When the database is away or fails.
pub async fn save(tx: &mut Tx<'_>, applied: u64, tenant: &[u8], shards: &[(u16, Vec<u8>)]) -> Result<(), DbError> {
    let id = tx.tenant().clone();
    sqlx::query(
        "INSERT INTO tenant_state (tenant_id, applied, state, saved) VALUES ($1, $2, $3, now()) \
         ON CONFLICT (tenant_id) DO UPDATE SET applied = excluded.applied, state = excluded.state, saved = now()",
    )
    .bind(id.as_str())
    .bind(i64::try_from(applied).unwrap_or(i64::MAX))
    .bind(tenant)
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("save a tenant's state"))?;
    if shards.is_empty() {
        return Ok(());
    }
    let numbers: Vec<i16> = shards
        .iter()
        .map(|(shard, _)| i16::try_from(*shard).unwrap_or(i16::MAX))
        .collect();
    let states: Vec<&[u8]> = shards.iter().map(|(_, state)| state.as_slice()).collect();
    sqlx::query(
        "INSERT INTO shard_state (tenant_id, shard, state) \
         SELECT $1, s.shard, s.state FROM unnest($2::smallint[], $3::bytea[]) AS s (shard, state) \
         ON CONFLICT (tenant_id, shard) DO UPDATE SET state = excluded.state",
    )
    .bind(id.as_str())
    .bind(numbers)
    .bind(states)
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("save the shards' state"))?;
    Ok(())
}
