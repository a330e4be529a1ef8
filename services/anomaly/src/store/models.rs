//! Versions of models, and what is kept of their training.

use chrono::{DateTime, Utc};
use garrison_db::{Db, DbError, Tx};
use garrison_proto::TenantId;
use prost::Message;

use crate::domain::{
    drift::Reference,
    network::{Manifest, StoredModel},
    registry::Profile,
};

/// Models of a tenant that are kept, beside those in use.
const KEPT: i64 = 10;
/// Scores of normal rows that are kept of a training.
const CALIBRATION: usize = 4_000;

#[derive(Clone, PartialEq, Message)]
struct ProfileState {
    #[prost(double, repeated, tag = "1")]
    calibration: Vec<f64>,
    #[prost(message, repeated, tag = "2")]
    bins: Vec<BinsState>,
    #[prost(float, repeated, tag = "3")]
    normal: Vec<f32>,
    #[prost(double, repeated, tag = "4")]
    found: Vec<f64>,
    #[prost(double, repeated, tag = "5")]
    measured: Vec<f64>,
    #[prost(string, tag = "6")]
    objection: String,
}

#[derive(Clone, PartialEq, Message)]
struct BinsState {
    #[prost(float, repeated, tag = "1")]
    edges: Vec<f32>,
    #[prost(uint32, repeated, tag = "2")]
    counts: Vec<u32>,
}

fn write_profile(profile: &Profile) -> Vec<u8> {
    let bins = profile.reference.edges.iter().zip(&profile.reference.counts);
    ProfileState {
        calibration: profile.calibration.iter().take(CALIBRATION).copied().collect(),
        bins: bins
            .map(|(edges, counts)| BinsState {
                edges: edges.clone(),
                counts: counts.clone(),
            })
            .collect(),
        normal: profile.normal.clone(),
        found: profile.found.clone(),
        measured: profile.measured.clone(),
        objection: profile.objection.clone(),
    }
    .encode_to_vec()
}

// What cannot be read is as if nothing had been kept.
fn read_profile(bytes: Option<&[u8]>) -> Profile {
    let Some(Ok(state)) = bytes.map(ProfileState::decode) else {
        return Profile::default();
    };
    let (edges, counts) = state.bins.into_iter().map(|b| (b.edges, b.counts)).unzip();
    Profile {
        calibration: state.calibration,
        reference: Reference { edges, counts },
        normal: state.normal,
        found: state.found,
        measured: state.measured,
        objection: state.objection,
    }
}

/// A version without its weights.
#[derive(Clone, Debug)]
pub struct Kept {
    /// What it is.
    pub manifest: Manifest,
    /// Octets of its weights.
    pub weights_bytes: u64,
    /// What is kept of its training.
    pub profile: Profile,
    /// When it was trained.
    pub trained: DateTime<Utc>,
}

/// Stores a model and forgets the oldest that are not in use.
///
/// # Errors
/// When the database is away or fails.
pub async fn insert(
    tx: &mut Tx<'_>,
    model: &StoredModel,
    profile: &Profile,
    trained: DateTime<Utc>,
    in_use: &[u64],
) -> Result<(), DbError> {
    let id = tx.tenant().clone();
    let version = number(model.manifest.version());
    sqlx::query(
        "INSERT INTO model (tenant_id, version, manifest, weights, trained, profile) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (tenant_id, version) DO UPDATE SET manifest = excluded.manifest, weights = excluded.weights, \
         trained = excluded.trained, profile = excluded.profile",
    )
    .bind(id.as_str())
    .bind(version)
    .bind(sqlx::types::Json(&model.manifest))
    .bind(&model.weights)
    .bind(trained)
    .bind(write_profile(profile))
    .execute(&mut **tx)
    .await
    .map_err(DbError::during("store a model"))?;
    let in_use: Vec<i64> = in_use.iter().map(|v| number(*v)).collect();
    sqlx::query("DELETE FROM model WHERE tenant_id = $1 AND version <= $2 AND NOT version = ANY($3)")
        .bind(id.as_str())
        .bind(version - KEPT)
        .bind(in_use)
        .execute(&mut **tx)
        .await
        .map_err(DbError::during("forget old models"))?;
    Ok(())
}

/// Loads a model with what is kept of its training, and when that was.
///
/// # Errors
/// When the database is away or fails, or the manifest is not one.
pub async fn load(
    db: &Db,
    tenant: &TenantId,
    version: u64,
) -> Result<Option<(StoredModel, Profile, DateTime<Utc>)>, DbError> {
    type Row = (sqlx::types::Json<Manifest>, Vec<u8>, Option<Vec<u8>>, DateTime<Utc>);
    let mut tx = db.begin(tenant).await?;
    let row: Option<Row> =
        sqlx::query_as("SELECT manifest, weights, profile, trained FROM model WHERE tenant_id = $1 AND version = $2")
            .bind(tenant.as_str())
            .bind(number(version))
            .fetch_optional(&mut *tx)
            .await
            .map_err(DbError::during("load a model"))?;
    tx.rollback().await?;
    Ok(row.map(|(manifest, weights, profile, trained)| {
        let stored = StoredModel {
            manifest: manifest.0,
            weights,
        };
        (stored, read_profile(profile.as_deref()), trained)
    }))
}

/// Every version of a tenant, or one, the latest first.
///
/// # Errors
/// When the database is away or fails, or a manifest is not one.
pub async fn list(db: &Db, tenant: &TenantId, version: Option<u64>) -> Result<Vec<Kept>, DbError> {
    type Row = (sqlx::types::Json<Manifest>, i64, Option<Vec<u8>>, DateTime<Utc>);
    let mut tx = db.begin(tenant).await?;
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT manifest, octet_length(weights)::bigint, profile, trained FROM model \
         WHERE tenant_id = $1 AND ($2::bigint IS NULL OR version = $2) ORDER BY version DESC",
    )
    .bind(tenant.as_str())
    .bind(version.map(number))
    .fetch_all(&mut *tx)
    .await
    .map_err(DbError::during("list models"))?;
    tx.rollback().await?;
    let kept = rows.into_iter().map(|(manifest, bytes, profile, trained)| Kept {
        manifest: manifest.0,
        weights_bytes: u64::try_from(bytes).unwrap_or(0),
        profile: read_profile(profile.as_deref()),
        trained,
    });
    Ok(kept.collect())
}

fn number(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_comes_back_and_none_is_an_empty_one() {
        let profile = Profile {
            calibration: vec![0.5, 1.5],
            reference: Reference {
                edges: vec![vec![1.0], vec![]],
                counts: vec![vec![3, 4], vec![7]],
            },
            normal: vec![1.0, 2.0],
            found: vec![0.25],
            measured: vec![0.125],
            objection: "it finds less".to_owned(),
        };
        assert_eq!(read_profile(Some(&write_profile(&profile))), profile);
        assert_eq!(read_profile(None), Profile::default());
        assert_eq!(read_profile(Some(&[0xff])), Profile::default());
    }
}
