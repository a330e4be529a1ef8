//! The flow lake: raw batches in write-ahead segments, then Parquet, and searches over both.

pub mod compact;
mod files;
mod prune;
mod rows;
pub mod search;
mod segment;
mod wal;
mod writer;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
};

use bytes::Bytes;
use garrison_flow::{FlowBatch, FlowError};
use garrison_proto::TenantId;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

pub use files::{FlowFile, FlowFileWriter};
pub use segment::BatchError;
pub use wal::Extent;

use crate::config::LakeConfig;
use segment::{Recent, Segment, View};
use writer::{Append, Request, Writer};

/// Batches that may wait for the writing thread.
const QUEUE: usize = 512;

/// Flows could not be stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LakeError {
    /// There is no room.
    #[error("GAR-FOR-0001: the flow lake is full: {free} bytes are free, and {reserve} are kept back")]
    Full {
        /// Free bytes.
        free: u64,
        /// `lake.reserve_bytes`.
        reserve: u64,
    },
    /// The file system refused.
    #[error("GAR-FOR-0002: {operation} failed: {source}")]
    Storage {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: Arc<io::Error>,
    },
    /// The writing thread has ended.
    #[error("GAR-FOR-0002: the flow lake is closed")]
    Stopped,
}

impl LakeError {
    pub(crate) fn storage(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { free: 0, reserve: 0 },
            _ => Self::Storage {
                operation,
                source: Arc::new(error),
            },
        }
    }
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is durable now.
    New,
    /// It had been before.
    Repeat,
}

/// What a batch must be before it is stored.
#[derive(Debug, Clone)]
pub struct Checked {
    extent: Extent,
}

impl Checked {
    /// Decodes a message, and checks that it is of this tenant.
    ///
    /// # Errors
    /// The reason for a rejection.
    pub fn read(payload: &[u8], tenant: &TenantId) -> Result<Self, String> {
        let (batch, meta) =
            garrison_flow::decode(payload).map_err(|error: FlowError| format!("GAR-FOR-0003: {error}"))?;
        if meta.tenant != *tenant {
            return Err(format!(
                "GAR-FOR-0003: the batch is of {}, and its subject is of {tenant}",
                meta.tenant
            ));
        }
        Ok(Self { extent: extent(&batch) })
    }

    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.extent.rows
    }
}

pub(crate) fn extent(batch: &FlowBatch) -> Extent {
    let columns = batch.columns();
    Extent {
        rows: batch.len() as u64,
        first_seen: columns.first_seen.values().iter().copied().min().unwrap_or(i64::MAX),
        last_seen: columns.last_seen.values().iter().copied().max().unwrap_or(i64::MIN),
    }
}

/// The lake. One process owns a data folder.
#[derive(Clone)]
pub struct Lake {
    root: PathBuf,
    config: LakeConfig,
    view: Arc<View>,
    recent: Arc<Mutex<Recent>>,
    requests: mpsc::Sender<Request>,
    trouble: watch::Sender<Option<String>>,
    wanted: Arc<AtomicU64>,
    /// Held for the life of the process, so that no second one writes here.
    _lock: Arc<File>,
}

impl Lake {
    /// Opens the data folder, recovers what an earlier process left, and starts the writing thread.
    ///
    /// # Errors
    /// [`LakeError::Storage`] when the folder cannot be used or another process uses it.
    pub fn open(config: &LakeConfig) -> Result<Self, LakeError> {
        let root = config.data_dir.clone();
        let prepare = || -> io::Result<File> {
            fs::create_dir_all(&root)?;
            let lock = File::create(root.join(".lock"))?;
            match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Ok(lock),
                Err(error) => Err(io::Error::other(format!(
                    "{} is in use by another process: {error}",
                    root.display()
                ))),
            }
        };
        let lock = prepare().map_err(LakeError::storage("opening the data folder"))?;
        let view = Arc::new(View::default());
        let mut recent = Recent::default();
        recover(&root, &view, &mut recent).map_err(LakeError::storage("recovering write-ahead segments"))?;
        let recent = Arc::new(Mutex::new(recent));
        let (requests, receiver) = mpsc::channel(QUEUE);
        let trouble = watch::Sender::new(None);
        let wanted = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            root: root.clone(),
            view: Arc::clone(&view),
            recent: Arc::clone(&recent),
            roll_rows: config.roll_rows,
            roll_bytes: config.roll_bytes,
            reserve: config.reserve_bytes,
            trouble: trouble.clone(),
            wanted: Arc::clone(&wanted),
            active: HashMap::new(),
        };
        std::thread::Builder::new()
            .name("lake writer".to_owned())
            .spawn(move || writer.run(receiver))
            .map_err(LakeError::storage("starting the writing thread"))?;
        Ok(Self {
            root,
            config: config.clone(),
            view,
            recent,
            requests,
            trouble,
            wanted,
            _lock: Arc::new(lock),
        })
    }

    /// Stores a message's bytes and answers once they are durable. A message that was stored before is not stored
    /// again.
    ///
    /// # Errors
    /// [`LakeError`]; the message is not stored then.
    pub async fn append(
        &self,
        tenant: &TenantId,
        id: Uuid,
        checked: &Checked,
        payload: Bytes,
    ) -> Result<Appended, LakeError> {
        let (done, outcome) = oneshot::channel();
        let append = Append {
            tenant: tenant.clone(),
            id,
            extent: checked.extent,
            payload,
            done,
        };
        self.requests
            .send(Request::Append(append))
            .await
            .map_err(|_| LakeError::Stopped)?;
        outcome.await.map_err(|_| LakeError::Stopped)?
    }

    /// Why nothing can be stored at present; `None` when all is well.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// Where everything is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a tenant's files are.
    pub fn tenant_folder(&self, tenant: &TenantId) -> PathBuf {
        self.root.join(tenant.as_str())
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes up the segments and message ids that an earlier process left.
fn recover(root: &Path, view: &View, recent: &mut Recent) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let Some(tenant) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<TenantId>().ok())
        else {
            continue;
        };
        let folder = writer::wal_folder(root, &tenant);
        if !folder.is_dir() {
            continue;
        }
        let mut paths: Vec<PathBuf> = fs::read_dir(&folder)?
            .map(|e| e.map(|e| e.path()))
            .collect::<Result<_, _>>()?;
        // By name, which is by age; kept ids come before the segments that might repeat them.
        paths.sort_by_key(|path| (path.extension().is_some_and(|e| e == "wal"), path.clone()));
        for path in paths {
            let id = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .and_then(|stem| Uuid::parse_str(stem).ok());
            match (id, path.extension().and_then(|e| e.to_str())) {
                (Some(id), Some("ids")) => {
                    for message in fs::read(&path)?.chunks_exact(16) {
                        recent.insert(id, Uuid::from_slice(message).unwrap_or_default());
                    }
                    recent.retire(id, path);
                }
                (Some(id), Some("wal")) => {
                    if let Some(segment) = recover_segment(id, &path, recent)? {
                        view.add(&tenant, Arc::new(segment));
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn recover_segment(id: Uuid, path: &Path, recent: &mut Recent) -> io::Result<Option<Segment>> {
    let found = wal::recover(path)?;
    let size = fs::metadata(path)?.len();
    if found.length < size {
        tracing::warn!(
            segment = %path.display(), cut = size - found.length, damaged = found.damaged,
            "GAR-FOR-0004: a write-ahead segment ends in a record that is not whole; it is cut off"
        );
        if found.damaged {
            // A torn write was never acknowledged; damage may hide what was. Keep it for a person to look at.
            fs::copy(path, path.with_extension("damaged"))?;
        }
        let file = File::options().write(true).open(path)?;
        file.set_len(found.length)?;
        file.sync_all()?;
    }
    // Ids of this segment may have been kept already, when the process died just before it deleted the segment.
    let own: HashSet<Uuid> = recent.of(id).into_iter().collect();
    let mut seen = HashSet::new();
    let kept: Vec<_> = found
        .records
        .into_iter()
        .filter(|record| seen.insert(record.id) && (own.contains(&record.id) || recent.insert(id, record.id)))
        .collect();
    if kept.is_empty() {
        fs::remove_file(path)?;
        return Ok(None);
    }
    Ok(Some(Segment::new(id, path.to_owned(), File::open(path)?, kept, true)))
}

#[cfg(test)]
mod tests;
