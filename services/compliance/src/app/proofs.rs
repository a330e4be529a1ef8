//! Answers of the log: entries and proofs, each with the checkpoint that they belong to.

use garrison_db::Db;
use garrison_proof::{Hash, merkle::Plan};
use garrison_proto::TenantId;
use uuid::Uuid;

use super::checkpoints::Checkpoints;
use crate::{
    error::Error,
    store::{self, Entry, Signed},
};

/// An entry with its proof.
#[derive(Debug)]
pub struct Included {
    /// The entry.
    pub entry: Entry,
    /// The proof.
    pub hashes: Vec<Hash>,
    /// The checkpoint that it leads to.
    pub checkpoint: Signed,
}

/// Which entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// By position.
    Index(u64),
    /// By the audit record's id.
    Record(Uuid),
}

/// Proves that an entry is in the log of `size` entries; `None` for the latest.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Proof`] when the entry is not in that tree, [`Error::Database`].
pub async fn inclusion(
    db: &Db,
    checkpoints: &Checkpoints,
    tenant: &TenantId,
    which: Which,
    size: Option<u64>,
) -> Result<Included, Error> {
    let mut tx = db.begin(tenant).await.map_err(Error::database("opening the log"))?;
    let index = match which {
        Which::Index(index) => index,
        Which::Record(record) => store::index_of(&mut tx, record).await?.ok_or_else(|| Error::NotFound {
            what: format!("an entry of audit record {record}"),
        })?,
    };
    let latest = checkpoints.latest_in(&mut tx).await?;
    let size = covered(size.unwrap_or(latest.size), latest.size)?;
    let plan = Plan::inclusion(index, size)?;
    let hashes = store::prove(&mut tx, &plan).await?;
    let checkpoint = if size == latest.size {
        latest
    } else {
        checkpoints.of_size(&mut tx, size).await?
    };
    let entry = store::entries(&mut tx, index, size, 1)
        .await?
        .pop()
        .ok_or_else(|| Error::NotFound {
            what: format!("entry {index}"),
        })?;
    tx.commit().await.map_err(Error::database("reading the log"))?;
    Ok(Included {
        entry,
        hashes,
        checkpoint,
    })
}

/// Proves that the log of `second` entries (`None` for the latest) extends the one of `first`.
///
/// # Errors
/// [`Error::Proof`] when the sizes are in the wrong order, [`Error::Field`] when the log is shorter.
pub async fn consistency(
    db: &Db,
    checkpoints: &Checkpoints,
    tenant: &TenantId,
    first: u64,
    second: Option<u64>,
) -> Result<(Vec<Hash>, Signed), Error> {
    let mut tx = db.begin(tenant).await.map_err(Error::database("opening the log"))?;
    let latest = checkpoints.latest_in(&mut tx).await?;
    let second = covered(second.unwrap_or(latest.size), latest.size)?;
    let plan = Plan::consistency(first, second)?;
    let hashes = store::prove(&mut tx, &plan).await?;
    let checkpoint = if second == latest.size {
        latest
    } else {
        checkpoints.of_size(&mut tx, second).await?
    };
    tx.commit().await.map_err(Error::database("reading the log"))?;
    Ok((hashes, checkpoint))
}

fn covered(size: u64, latest: u64) -> Result<u64, Error> {
    if size > latest {
        let message = format!("{size} entries were asked for, and the log has {latest}");
        return Err(Error::Field {
            field: "tree_size",
            message,
        });
    }
    Ok(size)
}

/// Entries from `start` on that the latest checkpoint covers, at most `limit` and about two mebibytes.
///
/// # Errors
/// [`Error::Database`].
pub async fn entries(db: &Db, tenant: &TenantId, start: u64, end: u64, limit: usize) -> Result<Vec<Entry>, Error> {
    const BYTES: usize = 2 << 20;
    let mut tx = db.begin(tenant).await.map_err(Error::database("opening the log"))?;
    let mut page = store::entries(&mut tx, start, end, limit).await?;
    tx.commit().await.map_err(Error::database("reading the log"))?;
    let mut bytes = 0;
    let fits = page.iter().take_while(|entry| {
        let first = bytes == 0;
        bytes += entry.body.len();
        first || bytes <= BYTES
    });
    let fits = fits.count();
    page.truncate(fits);
    Ok(page)
}
