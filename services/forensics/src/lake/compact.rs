//! Turns segments into Parquet files, and deletes what is older or more than is kept.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use chrono::Utc;
use garrison_db::Db;
use garrison_proto::TenantId;
use parquet::errors::ParquetError;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{
    FlowFile, FlowFileWriter, Lake, LakeError,
    files::is_full,
    segment::{BatchError, Segment},
    writer::{Request, free_bytes, sync_folder, wal_folder},
};
use crate::{
    error::Error,
    metrics::Metrics,
    store::catalogue::{self, NewFile},
};

/// How often segments are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often retention is looked at.
const RETENTION: Duration = Duration::from_secs(60);
/// How long, and how many, message ids are remembered after their segment became Parquet. The broker delivers a
/// message again only while it was not acknowledged, so minutes suffice; the segment itself covers an outage.
const REMEMBER: Duration = Duration::from_secs(3_600);
const REMEMBER_MOST: usize = 500_000;

/// The background work of a lake.
pub struct Compactor {
    /// The lake.
    pub lake: Lake,
    /// The catalogue.
    pub db: Db,
    /// Counts.
    pub metrics: Metrics,
}

impl Compactor {
    /// Runs until told to stop. What fails is tried again; segments stay searchable meanwhile.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retained: Option<Instant> = None;
        let mut failing = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.cancelled() => return,
            }
            self.look_at_space();
            match self.compact_all(&shutdown).await {
                Ok(()) => failing = false,
                Err(error) => {
                    if !failing {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "writing Parquet failed; trying again"
                        );
                    }
                    failing = true;
                    self.metrics.compaction_failed();
                    // The next look would most likely fail as well.
                    tokio::select! {
                        () = tokio::time::sleep(Duration::from_secs(2)) => {}
                        () = shutdown.cancelled() => return,
                    }
                }
            }
            if retained.is_none_or(|last| last.elapsed() >= RETENTION) {
                retained = Some(Instant::now());
                if let Err(error) = self.retain().await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "retention was not applied; trying again"
                    );
                }
                for path in self.lake.recent().expire(REMEMBER, REMEMBER_MOST) {
                    let _ = fs::remove_file(path);
                }
            }
        }
    }

    /// Says that all is well as soon as there is room, whether or not a batch comes to try it.
    fn look_at_space(&self) {
        let Ok(free) = free_bytes(self.lake.root()) else { return };
        self.metrics.free(free);
        let wanted = self.lake.wanted.load(Ordering::Relaxed);
        if free >= self.lake.config.reserve_bytes.saturating_add(wanted) {
            self.lake.trouble.send_if_modified(|trouble| trouble.take().is_some());
        }
    }

    async fn compact_all(&self, shutdown: &CancellationToken) -> Result<(), Error> {
        let age = Duration::from_millis(self.lake.config.roll_interval_ms);
        for (tenant, segment) in self.lake.view.all() {
            if shutdown.is_cancelled() {
                return Ok(());
            }
            if segment.is_sealed() {
                self.compact(&tenant, segment).await?;
            } else if segment.begun.elapsed() >= age && segment.extent().rows > 0 {
                let _ = self.lake.requests.send(Request::Roll(tenant, segment.id)).await;
            }
        }
        Ok(())
    }

    async fn compact(&self, tenant: &TenantId, segment: Arc<Segment>) -> Result<(), Error> {
        let operation = "cataloguing a flow file";
        let id = segment.id;
        let mut tx = self.db.begin(tenant).await.map_err(Error::database(operation))?;
        let known = catalogue::contains(&mut tx, id).await?;
        if !known && segment.extent().rows > 0 {
            let (root, path) = (self.lake.tenant_folder(tenant), file_path(&segment));
            let (source, target) = (Arc::clone(&segment), root.join(&path));
            let file = tokio::task::spawn_blocking(move || write(&source, &target))
                .await
                .map_err(|_| Error::Lake(LakeError::Stopped))?
                .map_err(|error| failure(&segment, error))?;
            self.metrics.compacted(file.bytes);
            let new = NewFile {
                id,
                path: path.display().to_string(),
                file,
                stored: segment.stored,
            };
            catalogue::insert(&mut tx, &new).await?;
        }
        tx.commit().await.map_err(Error::database(operation))?;
        self.forget(tenant, &segment)
            .map_err(|e| Error::Lake(LakeError::storage("retiring a segment")(e)))
    }

    /// The file is catalogued: the message ids are kept for a while, and the segment goes.
    fn forget(&self, tenant: &TenantId, segment: &Segment) -> std::io::Result<()> {
        let folder = wal_folder(self.lake.root(), tenant);
        let kept = folder.join(format!("{}.ids", segment.id));
        let ids: Vec<u8> = self
            .lake
            .recent()
            .of(segment.id)
            .iter()
            .flat_map(|id| *id.as_bytes())
            .collect();
        let mut file = fs::File::create(&kept)?;
        file.write_all(&ids)?;
        file.sync_all()?;
        sync_folder(&folder)?;
        self.lake.view.remove(tenant, segment.id);
        fs::remove_file(&segment.path)?;
        self.lake.recent().retire(segment.id, kept);
        Ok(())
    }

    /// Deletes files that are too old or too many. The file goes first: a catalogue entry without its file is
    /// removed by the next round, a file without its entry would stay for ever.
    async fn retain(&self) -> Result<(), Error> {
        let operation = "applying retention";
        let config = &self.lake.config;
        let before = Utc::now() - chrono::Duration::hours(i64::from(config.retention_hours));
        for tenant in self.db.known_tenants().await.map_err(Error::database(operation))? {
            let mut tx = self.db.begin(&tenant).await.map_err(Error::database(operation))?;
            let surplus = catalogue::surplus(&mut tx, before, config.retention_bytes).await?;
            for (id, path) in surplus {
                let path = self.lake.tenant_folder(&tenant).join(path);
                match fs::remove_file(&path) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(Error::Lake(LakeError::storage("deleting a flow file")(error))),
                }
                catalogue::delete(&mut tx, id).await?;
                self.metrics.retired();
                tracing::info!(%tenant, file = %path.display(), "flow file deleted by retention");
            }
            tx.commit().await.map_err(Error::database(operation))?;
        }
        Ok(())
    }
}

fn failure(segment: &Segment, error: WriteError) -> Error {
    match error {
        WriteError::Parquet(error) if is_full(&error) => Error::Lake(LakeError::Full { free: 0, reserve: 0 }),
        source => Error::Compaction {
            segment: segment.path.display().to_string(),
            source,
        },
    }
}

/// Below the tenant's folder: by day and hour of storing, which no sensor's clock can spread over years.
fn file_path(segment: &Segment) -> PathBuf {
    PathBuf::from(segment.stored.format("%Y-%m-%d/%H").to_string()).join(format!("{}.parquet", segment.id))
}

/// A segment could not be written as Parquet.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The segment.
    #[error(transparent)]
    Segment(#[from] BatchError),
    /// The file.
    #[error("writing a Parquet file")]
    Parquet(#[from] ParquetError),
    /// The folder.
    #[error("making a Parquet file durable")]
    Io(#[from] std::io::Error),
}

fn write(segment: &Segment, target: &Path) -> Result<FlowFile, WriteError> {
    let folder = target.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let temporary = folder.join(format!(".{}.tmp", segment.id));
    let _ = fs::remove_file(&temporary);
    let outcome = write_to(segment, &temporary);
    if outcome.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    let file = outcome?;
    fs::rename(&temporary, target)?;
    sync_folder(folder)?;
    if let Some(day) = folder.parent() {
        sync_folder(day)?;
    }
    Ok(file)
}

fn write_to(segment: &Segment, path: &Path) -> Result<FlowFile, WriteError> {
    let mut writer = FlowFileWriter::create(path)?;
    for record in segment.records() {
        writer.write(&segment.batch(&record)?)?;
    }
    Ok(writer.finish()?)
}
