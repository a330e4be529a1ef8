//! Segments in use, and the view of them that searches take.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fs::File,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use chrono::{DateTime, Utc};
use garrison_flow::{FlowBatch, FlowError};
use garrison_proto::TenantId;
use uuid::Uuid;

use super::wal::{self, Extent, Record};

/// A write-ahead segment whose records are not in Parquet yet.
#[derive(Debug)]
pub(crate) struct Segment {
    /// Also the id of the Parquet file that it becomes.
    pub(crate) id: Uuid,
    pub(crate) path: PathBuf,
    /// When it was begun.
    pub(crate) stored: DateTime<Utc>,
    pub(crate) begun: Instant,
    file: File,
    state: Mutex<State>,
    sealed: AtomicBool,
}

#[derive(Debug)]
struct State {
    extent: Extent,
    records: Vec<Record>,
}

impl Segment {
    pub(crate) fn new(id: Uuid, path: PathBuf, file: File, records: Vec<Record>, sealed: bool) -> Self {
        let extent = records.iter().fold(Extent::EMPTY, |all, record| all.and(record.extent));
        // A UUIDv7 says when it was made, also after a restart.
        let stored = id
            .get_timestamp()
            .and_then(|t| DateTime::from_timestamp(i64::try_from(t.to_unix().0).ok()?, t.to_unix().1))
            .unwrap_or_else(Utc::now);
        Self {
            id,
            path,
            stored,
            begun: Instant::now(),
            file,
            state: Mutex::new(State { extent, records }),
            sealed: AtomicBool::new(sealed),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the durable records cover.
    pub(crate) fn extent(&self) -> Extent {
        self.state().extent
    }

    /// The durable records.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.state().records.clone()
    }

    /// Records were made durable.
    pub(crate) fn extend(&self, records: &[Record]) {
        let mut state = self.state();
        state.extent = records.iter().fold(state.extent, |all, record| all.and(record.extent));
        state.records.extend_from_slice(records);
    }

    /// Nothing is appended any more.
    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    pub(crate) fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    /// Reads the batch of a record.
    pub(crate) fn batch(&self, record: &Record) -> Result<FlowBatch, BatchError> {
        let payload = wal::read(&self.file, record)?;
        Ok(garrison_flow::decode(&payload)?.0)
    }
}

/// A record of a segment could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The file.
    #[error("reading a write-ahead segment")]
    Io(#[from] std::io::Error),
    /// Its content.
    #[error("decoding a batch of a write-ahead segment")]
    Flow(#[from] FlowError),
}

/// The segments of all tenants.
#[derive(Debug, Default)]
pub(crate) struct View(RwLock<BTreeMap<TenantId, Vec<Arc<Segment>>>>);

impl View {
    pub(crate) fn add(&self, tenant: &TenantId, segment: Arc<Segment>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.entry(tenant.clone()).or_default().push(segment);
    }

    pub(crate) fn remove(&self, tenant: &TenantId, id: Uuid) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(segments) = all.get_mut(tenant) {
            segments.retain(|segment| segment.id != id);
        }
    }

    pub(crate) fn of(&self, tenant: &TenantId) -> Vec<Arc<Segment>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(tenant)
            .cloned()
            .unwrap_or_default()
    }

    pub(crate) fn all(&self) -> Vec<(TenantId, Arc<Segment>)> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .flat_map(|(tenant, segments)| segments.iter().map(move |s| (tenant.clone(), s.clone())))
            .collect()
    }
}

/// Ids of messages that were taken, so that a redelivery after a crash is not stored twice.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    all: HashSet<Uuid>,
    by_segment: HashMap<Uuid, Vec<Uuid>>,
    /// Segments that are Parquet by now, oldest first, with where their ids are kept.
    retired: VecDeque<(Uuid, PathBuf, Instant)>,
}

impl Recent {
    pub(crate) fn contains(&self, id: &Uuid) -> bool {
        self.all.contains(id)
    }

    /// False when it was there already.
    pub(crate) fn insert(&mut self, segment: Uuid, id: Uuid) -> bool {
        let new = self.all.insert(id);
        if new {
            self.by_segment.entry(segment).or_default().push(id);
        }
        new
    }

    pub(crate) fn of(&self, segment: Uuid) -> Vec<Uuid> {
        self.by_segment.get(&segment).cloned().unwrap_or_default()
    }

    pub(crate) fn retire(&mut self, segment: Uuid, kept: PathBuf) {
        self.retired.push_back((segment, kept, Instant::now()));
    }

    /// Forgets retired segments that are too old or too many; answers with the files to delete.
    pub(crate) fn expire(&mut self, age: std::time::Duration, most: usize) -> Vec<PathBuf> {
        let mut gone = Vec::new();
        while let Some((_, _, since)) = self.retired.front() {
            if since.elapsed() < age && self.all.len() <= most {
                break;
            }
            if let Some((segment, path, _)) = self.retired.pop_front() {
                for id in self.by_segment.remove(&segment).unwrap_or_default() {
                    self.all.remove(&id);
                }
                gone.push(path);
            }
        }
        gone
    }
}
