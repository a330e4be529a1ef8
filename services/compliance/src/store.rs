//! The only SQL of this service.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use garrison_db::Tx;
use garrison_proof::{
    Hash,
    merkle::{self, Node, Plan, Tree},
};
use sqlx::Row as _;
use uuid::Uuid;

use crate::{domain::record::Record, error::Error};

/// A stored entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Position, from 0.
    pub index: u64,
    /// The bytes that are hashed.
    pub body: Vec<u8>,
    /// When it was logged.
    pub logged: DateTime<Utc>,
    /// When it happened.
    pub occurred: DateTime<Utc>,
}

/// What became of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is a new entry.
    New,
    /// It was there already.
    Repeat,
    /// Its id is taken by a record with another content.
    Conflict,
}

/// A stored checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The signed note.
    pub note: String,
    /// Entries that it covers.
    pub size: u64,
    /// Root over them.
    pub root: Hash,
}

/// A stored report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// UUIDv7.
    pub id: Uuid,
    /// `soc2`.
    pub framework: String,
    /// Start of the period.
    pub since: DateTime<Utc>,
    /// End of the period.
    pub until: DateTime<Utc>,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// The OSCAL document; empty in lists.
    pub oscal_json: String,
    /// The page; empty in lists.
    pub html: String,
    /// The signed checkpoint.
    pub checkpoint: String,
    /// Number of findings.
    pub findings: u64,
}

const READ: &str = "reading the log";
const WRITE: &str = "writing the log";

fn number(value: i64) -> u64 {
    // Constraints keep every stored number at or above zero.
    value.unsigned_abs()
}

/// PostgreSQL counts to 2^63; no log gets there.
fn bound(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn hash(tx: &Tx<'_>, bytes: &[u8]) -> Result<Hash, Error> {
    bytes
        .try_into()
        .map_err(|_| damaged(tx, "a hash has not 32 bytes".into()))
}

fn damaged(tx: &Tx<'_>, reason: String) -> Error {
    Error::Damaged {
        tenant: tx.tenant().to_string(),
        reason,
    }
}

/// Number of entries.
///
/// # Errors
/// [`Error::Database`].
pub async fn size(tx: &mut Tx<'_>) -> Result<u64, Error> {
    sqlx::query_scalar::<_, i64>("SELECT coalesce(max(index) + 1, 0) FROM log_entry")
        .fetch_one(&mut **tx)
        .await
        .map(number)
        .map_err(Error::database(READ))
}

/// Hashes of stored subtrees. Those that are not stored are left out.
///
/// # Errors
/// [`Error::Database`] or [`Error::Damaged`].
pub async fn nodes(tx: &mut Tx<'_>, wanted: impl IntoIterator<Item = Node>) -> Result<HashMap<Node, Hash>, Error> {
    let (levels, indexes): (Vec<i16>, Vec<i64>) = wanted
        .into_iter()
        .map(|node| (i16::from(node.level), bound(node.index)))
        .unzip();
    if levels.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query(
        "SELECT n.level, n.index, n.hash FROM unnest($1::smallint[], $2::bigint[]) AS w (level, index)
         JOIN log_node n ON n.tenant_id = current_setting('garrison.tenant', true)
                        AND n.level = w.level AND n.index = w.index",
    )
    .bind(levels)
    .bind(indexes)
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::database(READ))?;
    rows.iter()
        .map(|row| {
            let node = Node {
                level: row.get::<i16, _>(0).unsigned_abs() as u8,
                index: number(row.get(1)),
            };
            Ok((node, hash(tx, row.get(2))?))
        })
        .collect()
}

/// The tree of the first `size` entries.
///
/// # Errors
/// [`Error::Damaged`] when a hash that must be there is not.
pub async fn tree(tx: &mut Tx<'_>, size: u64) -> Result<Tree, Error> {
    let wanted = merkle::peaks(size);
    let stored = nodes(tx, wanted.iter().copied()).await?;
    let peaks = wanted.iter().filter_map(|node| stored.get(node).copied()).collect();
    Tree::from_peaks(size, peaks).ok_or_else(|| damaged(tx, format!("hashes of the first {size} entries are missing")))
}

/// Makes a proof from stored hashes.
///
/// # Errors
/// [`Error::Damaged`] when a hash that must be there is not.
pub async fn prove(tx: &mut Tx<'_>, plan: &Plan) -> Result<Vec<Hash>, Error> {
    let stored = nodes(tx, plan.nodes()).await?;
    plan.resolve(|node| stored.get(&node).copied())
        .ok_or_else(|| damaged(tx, "hashes that a proof needs are missing".into()))
}

/// Appends records in the given order, each id once. Other writers of the same tenant's log wait.
///
/// # Errors
/// [`Error::Database`] or [`Error::Damaged`]; nothing is appended then.
pub async fn append(tx: &mut Tx<'_>, records: &[Record], now: DateTime<Utc>) -> Result<Vec<Appended>, Error> {
    sqlx::query(
        "SELECT pg_advisory_xact_lock(hashtextextended('log ' || current_setting('garrison.tenant', true), 0))",
    )
    .execute(&mut **tx)
    .await
    .map_err(Error::database(WRITE))?;
    let ids: Vec<Uuid> = records.iter().map(|record| record.id).collect();
    let known = sqlx::query("SELECT record_id, leaf_hash FROM log_entry WHERE record_id = ANY($1)")
        .bind(ids)
        .fetch_all(&mut **tx)
        .await
        .map_err(Error::database(READ))?;
    let mut seen: HashMap<Uuid, Hash> = known
        .iter()
        .map(|row| Ok((row.get(0), hash(tx, row.get(1))?)))
        .collect::<Result<_, Error>>()?;

    let size = size(tx).await?;
    let mut tree = tree(tx, size).await?;
    let (mut levels, mut positions, mut hashes) = (Vec::<i16>::new(), Vec::<i64>::new(), Vec::<Vec<u8>>::new());
    let mut fresh = Vec::new();
    let mut outcomes = Vec::with_capacity(records.len());
    for record in records {
        match seen.insert(record.id, record.leaf) {
            Some(before) if before == record.leaf => outcomes.push(Appended::Repeat),
            Some(before) => {
                seen.insert(record.id, before);
                outcomes.push(Appended::Conflict);
            }
            None => {
                fresh.push((bound(tree.size()), record));
                tree.push(record.leaf, |node, hash| {
                    levels.push(i16::from(node.level));
                    positions.push(bound(node.index));
                    hashes.push(hash.to_vec());
                });
                outcomes.push(Appended::New);
            }
        }
    }
    if fresh.is_empty() {
        return Ok(outcomes);
    }
    sqlx::query(
        "INSERT INTO log_entry (tenant_id, index, record_id, body, leaf_hash, logged, occurred)
         SELECT current_setting('garrison.tenant', true), e.index, e.record_id, e.body, e.leaf_hash, $6, e.occurred
         FROM unnest($1::bigint[], $2::uuid[], $3::bytea[], $4::bytea[], $5::timestamptz[])
              AS e (index, record_id, body, leaf_hash, occurred)",
    )
    .bind(fresh.iter().map(|(index, _)| *index).collect::<Vec<_>>())
    .bind(fresh.iter().map(|(_, record)| record.id).collect::<Vec<_>>())
    .bind(fresh.iter().map(|(_, record)| record.body.clone()).collect::<Vec<_>>())
    .bind(fresh.iter().map(|(_, record)| record.leaf.to_vec()).collect::<Vec<_>>())
    .bind(fresh.iter().map(|(_, record)| record.occurred).collect::<Vec<_>>())
    .bind(now)
    .execute(&mut **tx)
    .await
    .map_err(Error::database(WRITE))?;
    sqlx::query(
        "INSERT INTO log_node (tenant_id, level, index, hash)
         SELECT current_setting('garrison.tenant', true), n.level, n.index, n.hash
         FROM unnest($1::smallint[], $2::bigint[], $3::bytea[]) AS n (level, index, hash)",
    )
    .bind(levels)
    .bind(positions)
    .bind(hashes)
    .execute(&mut **tx)
    .await
    .map_err(Error::database(WRITE))?;
    Ok(outcomes)
}

fn entry(row: &sqlx::postgres::PgRow) -> Entry {
    Entry {
        index: number(row.get(0)),
        body: row.get(1),
        logged: row.get(2),
        occurred: row.get(3),
    }
}

/// Entries from `start` on, below `end`, at most `limit`.
///
/// # Errors
/// [`Error::Database`].
pub async fn entries(tx: &mut Tx<'_>, start: u64, end: u64, limit: usize) -> Result<Vec<Entry>, Error> {
    let rows = sqlx::query(
        "SELECT index, body, logged, occurred FROM log_entry WHERE index >= $1 AND index < $2 ORDER BY index LIMIT $3",
    )
    .bind(bound(start))
    .bind(bound(end))
    .bind(bound(limit as u64))
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::database(READ))?;
    Ok(rows.iter().map(entry).collect())
}

/// Entries of a period from `start` on, below `end`, at most `limit`, in log order.
///
/// # Errors
/// [`Error::Database`].
pub async fn entries_of_period(
    tx: &mut Tx<'_>,
    start: u64,
    end: u64,
    (since, until): (DateTime<Utc>, DateTime<Utc>),
    limit: usize,
) -> Result<Vec<Entry>, Error> {
    let rows = sqlx::query(
        "SELECT index, body, logged, occurred FROM log_entry
         WHERE index >= $1 AND index < $2 AND occurred >= $3 AND occurred < $4 ORDER BY index LIMIT $5",
    )
    .bind(bound(start))
    .bind(bound(end))
    .bind(since)
    .bind(until)
    .bind(bound(limit as u64))
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::database(READ))?;
    Ok(rows.iter().map(entry).collect())
}

/// Where the entry of an audit record is.
///
/// # Errors
/// [`Error::Database`].
pub async fn index_of(tx: &mut Tx<'_>, record: Uuid) -> Result<Option<u64>, Error> {
    sqlx::query_scalar::<_, i64>("SELECT index FROM log_entry WHERE record_id = $1")
        .bind(record)
        .fetch_optional(&mut **tx)
        .await
        .map(|index| index.map(number))
        .map_err(Error::database(READ))
}

/// The checkpoint of this size, or the latest.
///
/// # Errors
/// [`Error::Database`] or [`Error::Damaged`].
pub async fn checkpoint(tx: &mut Tx<'_>, size: Option<u64>) -> Result<Option<Signed>, Error> {
    let row = sqlx::query(
        "SELECT note, size, root FROM log_checkpoint WHERE $1::bigint IS NULL OR size = $1 ORDER BY size DESC LIMIT 1",
    )
    .bind(size.map(bound))
    .fetch_optional(&mut **tx)
    .await
    .map_err(Error::database(READ))?;
    row.map(|row| {
        Ok(Signed {
            note: row.get(0),
            size: number(row.get(1)),
            root: hash(tx, row.get(2))?,
        })
    })
    .transpose()
}

/// Keeps a checkpoint; the first of a size stays.
///
/// # Errors
/// [`Error::Database`].
pub async fn insert_checkpoint(tx: &mut Tx<'_>, signed: &Signed, now: DateTime<Utc>) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO log_checkpoint (tenant_id, size, root, note, signed)
         VALUES (current_setting('garrison.tenant', true), $1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(bound(signed.size))
    .bind(signed.root.to_vec())
    .bind(&signed.note)
    .bind(now)
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(Error::database("keeping a checkpoint"))
}

/// Keeps a report.
///
/// # Errors
/// [`Error::Database`].
pub async fn insert_report(tx: &mut Tx<'_>, report: &Report) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO report (tenant_id, report_id, framework, since, until, created, oscal_json, html, checkpoint, findings)
         VALUES (current_setting('garrison.tenant', true), $1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(report.id)
    .bind(&report.framework)
    .bind(report.since)
    .bind(report.until)
    .bind(report.created)
    .bind(&report.oscal_json)
    .bind(&report.html)
    .bind(&report.checkpoint)
    .bind(bound(report.findings))
    .execute(&mut **tx)
    .await
    .map(drop)
    .map_err(Error::database("keeping a report"))
}

fn report(row: &sqlx::postgres::PgRow) -> Report {
    Report {
        id: row.get("report_id"),
        framework: row.get("framework"),
        since: row.get("since"),
        until: row.get("until"),
        created: row.get("created"),
        oscal_json: row.get("oscal_json"),
        html: row.get("html"),
        checkpoint: row.get("checkpoint"),
        findings: number(row.get("findings")),
    }
}

/// One report.
///
/// # Errors
/// [`Error::Database`].
pub async fn get_report(tx: &mut Tx<'_>, id: Uuid) -> Result<Option<Report>, Error> {
    sqlx::query(
        "SELECT report_id, framework, since, until, created, oscal_json, html, checkpoint, findings
         FROM report WHERE report_id = $1",
    )
    .bind(id)
    .fetch_optional(&mut **tx)
    .await
    .map(|row| row.as_ref().map(report))
    .map_err(Error::database("reading a report"))
}

/// Reports without their bodies, newest first, after the given one.
///
/// # Errors
/// [`Error::Database`].
pub async fn list_reports(tx: &mut Tx<'_>, after: Option<Uuid>, limit: usize) -> Result<Vec<Report>, Error> {
    let rows = sqlx::query(
        "SELECT report_id, framework, since, until, created, '' AS oscal_json, '' AS html, checkpoint, findings
         FROM report WHERE $1::uuid IS NULL OR report_id < $1 ORDER BY report_id DESC LIMIT $2",
    )
    .bind(after)
    .bind(bound(limit as u64))
    .fetch_all(&mut **tx)
    .await
    .map_err(Error::database("reading reports"))?;
    Ok(rows.iter().map(report).collect())
}
