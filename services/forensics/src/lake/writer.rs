//! The thread that makes batches durable: many appends, one sync.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
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
        let outcome = if fresh.is_empty() {
            Ok(())
        } else {
            self.write(tenant, &fresh)
        };
        match outcome {
            Ok(()) => {
                self.trouble.send_if_modified(|trouble| trouble.take().is_some());
                for append in fresh {
                    let _ = append.done.send(Ok(Appended::New));
                }
                for append in repeats {
                    let _ = append.done.send(Ok(Appended::Repeat));
                }
            }
            Err(error) => {
                let reason = error.to_string();
                self.trouble.send_if_modified(|trouble| {
                    let changed = trouble.as_deref() != Some(reason.as_str());
                    *trouble = Some(reason.clone());
                    changed
                });
                // A repeat within the group may be of a batch that was just refused.
                for append in fresh.into_iter().chain(repeats) {
                    let _ = append.done.send(Err(error.clone()));
                }
            }
        }
    }

    fn write(&mut self, tenant: &TenantId, appends: &[Append]) -> Result<(), LakeError> {
        let bytes: u64 = appends.iter().map(|a| (a.payload.len() + wal::HEADER) as u64).sum();
        let free = free_bytes(&self.root).map_err(LakeError::storage("asking for free space"))?;
        if free < self.reserve.saturating_add(bytes) {
            return Err(LakeError::Full {
                free,
                reserve: self.reserve,
            });
        }
        if !self.active.contains_key(tenant) {
            let active = self
                .begin(tenant)
                .map_err(LakeError::storage("beginning a write-ahead segment"))?;
            self.active.insert(tenant.clone(), active);
        }
        let Some(active) = self.active.get_mut(tenant) else {
            return Err(LakeError::Stopped);
        };
        let mut buffer = Vec::with_capacity(bytes as usize);
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
