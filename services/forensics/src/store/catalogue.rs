//! The catalogue of flow files.

use std::path::Path;

use chrono::{DateTime, Utc};
use garrison_db::Tx;
use sqlx::Row as _;
use uuid::Uuid;

use super::{bound, number};
use crate::{
    error::Error,
    lake::{Extent, FlowFile, search::Stored},
};

const OPERATION: &str = "using the catalogue of flow files";

/// A file to be catalogued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    /// Its id.
    pub id: Uuid,
    /// Where it is, below the tenant's folder.
    pub path: String,
    /// What is in it.
    pub file: FlowFile,
    /// When its segment was begun.
    pub stored: DateTime<Utc>,
}

/// Whether a file is catalogued.
///
/// # Errors
/// [`Error::Database`].
pub async fn contains(tx: &mut Tx<'_>, id: Uuid) -> Result<bool, Error> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM flow_file WHERE file_id = $1)")
        .bind(id)
        .fetch_one(&mut **tx)
        .await
        .map_err(Error::database(OPERATION))
}

/// Catalogues a file.
///
/// # Errors
/// [`Error::Database`].
pub async fn insert(tx: &mut Tx<'_>, new: &NewFile) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO flow_file (tenant_id, file_id, path, first_seen, last_seen, rows, bytes, sha256, stored)
         VALUES (current_setting('garrison.tenant', true), $1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(new.id)
    .bind(&new.path)
    .bind(new.file.extent.first_seen)
    .bind(new.file.extent.last_seen)
    .bind(bound(new.file.extent.rows))
    .bind(bound(new.file.bytes))
    .bind(&new.file.sha256)
    .bind(new.stored)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(Error::database(OPERATION))
}

/// Files that may hold rows of a period, those with the oldest flows first, and how many others there are.
///
/// # Errors
/// [`Error::Database`].
pub async fn files(
    tx: &mut Tx<'_>,
    folder: &Path,
    since: Option<i64>,
    until: Option<i64>,
) -> Result<(Vec<Stored>, u64), Error> {
    let total: i64 = sqlx::query_scalar("SELECT count(*) FROM flow_file")
        .fetch_one(&mut **tx)
        .await
        .map_err(Error::database(OPERATION))?;
    let rows = sqlx::query(
        "SELECT file_id, path, first_seen, last_seen, rows FROM flow_file
         WHERE ($1::bigint IS NULL OR last_seen >= $1) AND ($2::bigint IS NULL OR first_seen < $2)
         ORDER BY first_seen, file_id",
    )
    .bind(since)
    .bind(until)
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::database(OPERATION))?;
    let files: Vec<Stored> = rows
        .iter()
        .map(|row| Stored {
            id: row.get(0),
            path: folder.join(row.get::<&str, _>(1)),
            extent: Extent {
                first_seen: row.get(2),
                last_seen: row.get(3),
                rows: number(row.get(4)),
            },
        })
        .collect();
    let skipped = number(total).saturating_sub(files.len() as u64);
    Ok((files, skipped))
}

/// Files stored before a time, and the oldest of what is more than `bytes` in all.
///
/// # Errors
/// [`Error::Database`].
pub async fn surplus(tx: &mut Tx<'_>, before: DateTime<Utc>, bytes: u64) -> Result<Vec<(Uuid, String)>, Error> {
    let rows = sqlx::query(
        "SELECT file_id, path FROM (
             SELECT file_id, path, stored, sum(bytes) OVER (ORDER BY stored DESC, file_id DESC) AS newer
             FROM flow_file) AS f
         WHERE stored < $1 OR newer > $2 ORDER BY stored, file_id LIMIT 1000",
    )
    .bind(before)
    .bind(bound(bytes))
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::database(OPERATION))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Removes a file from the catalogue.
///
/// # Errors
/// [`Error::Database`].
pub async fn delete(tx: &mut Tx<'_>, id: Uuid) -> Result<(), Error> {
    sqlx::query("DELETE FROM flow_file WHERE file_id = $1")
        .bind(id)
        .execute(&mut **tx)
        .await
        .map(drop)
        .map_err(Error::database(OPERATION))
}
