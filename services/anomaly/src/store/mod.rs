//! The only SQL.

pub mod entries;
mod form;
pub mod snapshot;

use chrono::{DateTime, Utc};
use garrison_bus::{Message, subject};
use garrison_db::{Db, DbError, Tx};
use garrison_proto::{TenantId, alert::v1::Alert, from_timestamp};
use prost::Message as _;
use uuid::Uuid;

use crate::domain::{
    autoencoder::{Manifest, StoredModel},
    finding::message_id,
};

/// Models of a tenant that are kept.
const MODELS_KEPT: i64 = 10;

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

/// Keeps alerts as they are now, and their messages. What is there already with the same or a higher count, because its
/// messages were taken before a crash and are taken again now, is left out. Returns the messages of the others.
///
/// # Errors
/// When the database is away or fails.
pub async fn publish_alerts(tx: &mut Tx<'_>, alerts: &[Alert]) -> Result<Vec<Message>, DbError> {
    let id = tx.tenant().clone();
    let known: Vec<(Uuid, &Alert)> = alerts
        .iter()
        .filter_map(|alert| Some((alert.alert_id.parse().ok()?, alert)))
        .collect();
    let column = |of: fn(&Alert) -> &str| -> Vec<&str> { known.iter().map(|(_, alert)| of(alert)).collect() };
    let time = |of: fn(&Alert) -> Option<&garrison_proto::Timestamp>| -> Vec<DateTime<Utc>> {
        let read = |alert: &Alert| of(alert).and_then(from_timestamp).unwrap_or_default();
        known.iter().map(|(_, alert)| read(alert)).collect()
    };
    // The last part sees the table as it was before: what each alert's count was.
    let new: Vec<(Uuid, i64)> = sqlx::query_as(
        "WITH given AS ( \
             SELECT * FROM unnest($2::uuid[], $3::text[], $4::text[], $5::smallint[], $6::bigint[], \
             $7::timestamptz[], $8::timestamptz[], $9::bytea[]) \
             AS a (alert_id, fingerprint, detector, severity, count, triggered, detected, body) \
         ), kept AS ( \
             INSERT INTO alert (tenant_id, alert_id, fingerprint, detector, severity, count, triggered, detected, body) \
             SELECT DISTINCT ON (alert_id) $1, given.* FROM given ORDER BY alert_id, count DESC \
             ON CONFLICT (tenant_id, alert_id) DO UPDATE SET severity = excluded.severity, count = excluded.count, \
             triggered = excluded.triggered, detected = excluded.detected, body = excluded.body \
             WHERE excluded.count > alert.count \
         ) \
         SELECT given.alert_id, given.count FROM given \
         LEFT JOIN alert ON alert.tenant_id = $1 AND alert.alert_id = given.alert_id \
         WHERE alert.count IS NULL OR alert.count < given.count",
    )
    .bind(id.as_str())
    .bind(known.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(column(|alert| &alert.fingerprint))
    .bind(column(|alert| &alert.detector))
    .bind(known.iter().map(|(_, alert)| alert.severity as i16).collect::<Vec<_>>())
    .bind(
        known
            .iter()
            .map(|(_, alert)| i64::try_from(alert.count).unwrap_or(i64::MAX))
            .collect::<Vec<_>>(),
    )
    .bind(time(|alert| alert.trigger_time.as_ref()))
    .bind(time(|alert| alert.detected_time.as_ref()))
    .bind(known.iter().map(|(_, alert)| alert.encode_to_vec()).collect::<Vec<_>>())
    .fetch_all(&mut **tx)
    .await
    .map_err(DbError::during("insert alerts"))?;
    let messages: Vec<Message> = known
        .iter()
        .filter(|(id, alert)| new.contains(&(*id, i64::try_from(alert.count).unwrap_or(i64::MAX))))
        .filter_map(|(_, alert)| {
            let subject = subject::alerts(&id, alert.severity(), &alert.detector);
            Some(Message::proto(subject, crate::INFO.name, *alert).with_id(message_id(alert)?))
        })
        .collect();
    tx.publish_all(&messages).await?;
    Ok(messages)
}

/// Deletes alerts that were published longer ago than they are kept. Returns how many.
///
/// # Errors
/// When the database is away or fails.
pub async fn forget_alerts(db: &Db, tenant: &TenantId, days: u32) -> Result<u64, DbError> {
    let mut tx = db.begin(tenant).await?;
    let done = sqlx::query("DELETE FROM alert WHERE tenant_id = $1 AND detected < now() - make_interval(days => $2)")
        .bind(tenant.as_str())
        .bind(i32::try_from(days).unwrap_or(i32::MAX))
        .execute(&mut *tx)
        .await
        .map_err(DbError::during("forget old alerts"))?;
    tx.commit().await?;
    Ok(done.rows_affected())
}

/// Stores a model and forgets the oldest.
///
/// # Errors
/// When the database is away or fails.
pub async fn insert_model(tx: &mut Tx<'_>, model: &StoredModel, trained: DateTime<Utc>) -> Result<(), DbError> {
    let id = tx.tenant().clone();
    let version = i64::try_from(model.manifest.version).unwrap_or(i64::MAX);
    sqlx::query(
        "INSERT INTO model (tenant_id, version, manifest, weights, trained) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (tenant_id, version) DO UPDATE SET manifest = excluded.manifest, weights = excluded.weights, \
         trained = excluded.trained",
    )
    .bind(id.as_str())
    .bind(version)
    .bind(sqlx::types::Json(&model.manifest))
    .bind(&model.weights)
    .bind(trained)
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("store a model"))?;
    sqlx::query("DELETE FROM model WHERE tenant_id = $1 AND version <= $2")
        .bind(id.as_str())
        .bind(version - MODELS_KEPT)
        .execute(&mut **tx)
        .await
        .map_err(DbError::during("forget old models"))?;
    Ok(())
}

/// Loads a model.
///
/// # Errors
/// When the database is away or fails, or the manifest is not one.
pub async fn load_model(db: &Db, tenant: &TenantId, version: u64) -> Result<Option<StoredModel>, DbError> {
    let mut tx = db.begin(tenant).await?;
    let row: Option<(sqlx::types::Json<Manifest>, Vec<u8>)> =
        sqlx::query_as("SELECT manifest, weights FROM model WHERE tenant_id = $1 AND version = $2")
            .bind(tenant.as_str())
            .bind(i64::try_from(version).unwrap_or(i64::MAX))
            .fetch_optional(&mut *tx)
            .await
            .map_err(DbError::during("load a model"))?;
    tx.rollback().await?;
    Ok(row.map(|(manifest, weights)| StoredModel {
        manifest: manifest.0,
        weights,
    }))
}
