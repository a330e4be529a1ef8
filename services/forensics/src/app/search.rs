//! Searches over everything that is stored for a tenant.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use garrison_db::Db;
use garrison_flow::FlowBatch;
use garrison_proto::TenantId;
use tokio::sync::{Semaphore, mpsc};

use crate::{
    error::Error,
    lake::{
        Lake,
        search::{Query, Search, SearchError, Stats},
    },
    metrics::Metrics,
    store::catalogue,
};

/// How long a search waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// Searches.
#[derive(Clone)]
pub struct Searcher {
    /// Fresh flows.
    pub lake: Lake,
    /// The catalogue.
    pub db: Db,
    /// Turns.
    pub permits: Arc<Semaphore>,
    /// Counts.
    pub metrics: Metrics,
}

/// A part of an answer.
#[derive(Debug)]
pub enum Part {
    /// Whole records, in order.
    Flows(FlowBatch),
    /// The end of the answer.
    Done(Stats),
}

/// Tells a search's thread that nobody waits any more.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Searcher {
    /// Runs a search and sends the answer in parts. It ends early when the receiver is dropped.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn search(&self, tenant: &TenantId, query: Query, parts: mpsc::Sender<Part>) -> Result<(), Error> {
        let began = Instant::now();
        let permit = tokio::time::timeout(PATIENCE, Arc::clone(&self.permits).acquire_owned()).await;
        let permit = permit.ok().and_then(Result::ok).ok_or(Error::Busy)?;
        // In this order: see `Lake::fresh`.
        let fresh = self.lake.fresh(tenant);
        let operation = "asking the catalogue of flow files";
        let mut tx = self.db.begin(tenant).await.map_err(Error::database(operation))?;
        let folder = self.lake.tenant_folder(tenant);
        let (files, skipped) = catalogue::files(&mut tx, &folder, query.filter.since, query.filter.until).await?;
        tx.commit().await.map_err(Error::database(operation))?;

        let gone = Arc::new(AtomicBool::new(false));
        let _guard = CancelOnDrop(Arc::clone(&gone));
        let span = tracing::info_span!("search", %tenant, files = files.len());
        let running = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let _entered = span.entered();
            let cancelled = || gone.load(Ordering::Relaxed) || parts.is_closed();
            let stats = Search::new(fresh, files, skipped, query)
                .run(&cancelled, &mut |batch| parts.blocking_send(Part::Flows(batch)).is_ok())?;
            let _ = parts.blocking_send(Part::Done(stats));
            Ok::<_, SearchError>(())
        });
        let outcome = running.await.map_err(|error| Error::gather("searching")(error))?;
        self.metrics.search(began.elapsed().as_secs_f64());
        Ok(outcome?)
    }
}
