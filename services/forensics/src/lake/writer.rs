//! The thread that makes batches durable: many appends, one sync.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use garrison_proto::TenantId;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::{
    Appended, LakeError,
    segment::{Recent, Segment, View},
    wal::{self, Extent, Record},
};

/// Batches that share one sync at most.
const GROUP: usize = 256;

pub(crate) enum Request {
    Append(Append),
    /// Begin another segment if this one is the one in use.
    Roll(TenantId, Uuid),
}

pub(crate) struct Append {
    pub(crate) tenant: TenantId,
    pub(crate) id: Uuid,
    pub(crate) extent: Extent,
    pub(crate) payload: Bytes,
    pub(crate) done: oneshot::Sender<Result<Appended, LakeError>>,
}

pub(crate) struct Writer {
    pub(crate) root: PathBuf,
    pub(crate) view: Arc<View>,
    pub(crate) recent: Arc<Mutex<Recent>>,
    pub(crate) roll_rows: u64,
    pub(crate) roll_bytes: u64,
    pub(crate) reserve: u64,
    /// Why nothing can be stored at present.
    pub(crate) trouble: watch::Sender<Option<String>>,
    /// Bytes of the batch that was refused last for lack of room.
    pub(crate) wanted: Arc<AtomicU64>,
    pub(crate) active: HashMap<TenantId, Active>,
}

pub(crate) struct Active {
    segment: Arc<Segment>,
    file: File,
    length: u64,
}

impl Writer {
    /// Runs until every sender is gone.
    pub(crate) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut group = Vec::with_capacity(GROUP);
        while requests.blocking_recv_many(&mut group, GROUP) > 0 {
            let mut tenants: HashMap<TenantId, Vec<Append>> = HashMap::new();
            for request in group.drain(..) {
                match request {
                    Request::Append(append) => tenants.entry(append.tenant.clone()).or_default().push(append),
                    Request::Roll(tenant, id) => self.roll(&tenant, Some(id)),
                }
            }
            for (tenant, appends) in tenants {
                self.store(&tenant, appends);
            }
        }
    }

    fn roll(&mut self, tenant: &TenantId, only: Option<Uuid>) {
        if let Some(active) = self.active.get(tenant)
            && only.is_none_or(|id| active.segment.id == id)
        {
            active.segment.seal();
            self.active.remove(tenant);
        }
    }

    fn store(&mut self, tenant: &TenantId, appends: Vec<Append>) {
        let mut fresh = Vec::with_capacity(appends.len());
        let mut repeats = Vec::new();
        {
            let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            let mut here = std::collections::HashSet::new();
            for append in appends {
                if recent.contains(&append.id) || !here.insert(append.id) {
                    repeats.push(append);
                } else {
                    fresh.push(append);
                }
            }
        }
        let (fitting, error) = self.fitting(&fresh);
        let outcome = if fitting == 0 {
            Ok(())
        } else {
            self.write(tenant, &fresh[..fitting])
        };
        let (stored, error) = match outcome {
            Ok(()) => (fitting, error),
            Err(error) => (0, Some(error)),
        };
        self.trouble.send_if_modified(|trouble| {
            let now = error.as_ref().map(ToString::to_string);
            let changed = *trouble != now;
            *trouble = now;
            changed
        });
        let refusal = error.unwrap_or(LakeError::Stopped);
        for (number, append) in fresh.into_iter().enumerate() {
            let answer = if number < stored {
                Ok(Appended::New)
            } else {
                Err(refusal.clone())
            };
            let _ = append.done.send(answer);
        }
        for append in repeats {
            // It may repeat one of this group that was just refused.
            let known = self
                .recent
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(&append.id);
            let _ = append.done.send(if known {
                Ok(Appended::Repeat)
            } else {
                Err(refusal.clone())
            });
        }
    }

    /// How many of the first appends there is room for, and why not for all.
    fn fitting(&self, appends: &[Append]) -> (usize, Option<LakeError>) {
        let free = match free_bytes(&self.root) {
            Ok(free) => free,
            Err(error) => return (0, Some(LakeError::storage("asking for free space")(error))),
        };
        let mut needed = self.reserve;
        for (number, append) in appends.iter().enumerate() {
            let before = needed;
            needed = needed.saturating_add((append.payload.len() + wal::HEADER) as u64);
            if needed > free {
                self.wanted.store(needed - before, Ordering::Relaxed);
                return (
                    number,
                    Some(LakeError::Full {
                        free,
                        reserve: self.reserve,
                    }),
                );
            }
        }
        (appends.len(), None)
    }

    fn write(&mut self, tenant: &TenantId, appends: &[Append]) -> Result<(), LakeError> {
        if !self.active.contains_key(tenant) {
            let active = self
                .begin(tenant)
                .map_err(LakeError::storage("beginning a write-ahead segment"))?;
            self.active.insert(tenant.clone(), active);
        }
        let Some(active) = self.active.get_mut(tenant) else {
            return Err(LakeError::Stopped);
        };
        let bytes: usize = appends.iter().map(|append| append.payload.len() + wal::HEADER).sum();
        let mut buffer = Vec::with_capacity(bytes);
        let mut records = Vec::with_capacity(appends.len());
        for append in appends {
            let offset = active.length + (buffer.len() + wal::HEADER) as u64;
            let length = append.payload.len() as u32;
            wal::encode(&mut buffer, append.id, append.extent, &append.payload);
            records.push(Record {
                id: append.id,
                offset,
                length,
                extent: append.extent,
            });
        }
        let written = active.file.write_all(&buffer).and_then(|()| active.file.sync_data());
        if let Err(error) = written {
            // What was not synced was not acknowledged. After a failed sync the file is not used again.
            let _ = active.file.set_len(active.length);
            let _ = active.file.sync_data();
            self.roll(tenant, None);
            return Err(LakeError::storage("writing a write-ahead segment")(error));
        }
        active.length += buffer.len() as u64;
        active.segment.extend(&records);
        {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            for record in &records {
                recent.insert(active.segment.id, record.id);
            }
        }
        if active.length >= self.roll_bytes || active.segment.extent().rows >= self.roll_rows {
            self.roll(tenant, None);
        }
        Ok(())
    }

    fn begin(&self, tenant: &TenantId) -> io::Result<Active> {
        let folder = wal_folder(&self.root, tenant);
        fs::create_dir_all(&folder)?;
        let id = Uuid::now_v7();
        let path = folder.join(format!("{id}.wal"));
        let mut file = OpenOptions::new()
            .append(true)
            .read(true)
            .create_new(true)
            .open(&path)?;
        let prepared = file
            .write_all(&wal::MAGIC)
            .and_then(|()| file.sync_all())
            .and_then(|()| sync_folder(&folder));
        if let Err(error) = prepared {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        let length = wal::MAGIC.len() as u64;
        let segment = Arc::new(Segment::new(id, path, file.try_clone()?, Vec::new(), false));
        self.view.add(tenant, segment.clone());
        Ok(Active { segment, file, length })
    }
}

/// Where a tenant's segments are.
pub(crate) fn wal_folder(root: &Path, tenant: &TenantId) -> PathBuf {
    root.join(tenant.as_str()).join("wal")
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Bytes that this process may still write below a folder.
pub(crate) fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
