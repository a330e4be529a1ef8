//! What this replica knows of itself and of the others.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex as Flat, MutexGuard as FlatGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use garrison_proto::TenantId;
use tokio::sync::{Mutex, MutexGuard, Notify, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    app::{Engine, cell::Cell},
    config::replicas::ReplicasConfig,
    domain::replicas::{Run, Runs},
    error::Error,
    metrics::ReplicaMetrics,
    store::{self, replicas::Replica},
};

/// A tenant that was taken, for whoever reads its messages.
pub(super) type Newcomer = (TenantId, Arc<Cell>);

/// This replica among the others.
pub(in crate::app) struct Replicas {
    pub(super) metrics: ReplicaMetrics,
    name: String,
    lease: Duration,
    state: Flat<State>,
    runs: Flat<Runs>,
    /// Held while this replica enters or takes a tenant.
    entering: Mutex<()>,
    newcomers: (
        mpsc::UnboundedSender<Newcomer>,
        Flat<Option<mpsc::UnboundedReceiver<Newcomer>>>,
    ),
    /// A tenant's messages were read to their end, or it is gone.
    progress: Notify,
    leaving: AtomicBool,
    joined: CancellationToken,
    left: CancellationToken,
}

#[derive(Default)]
struct State {
    id: Option<Uuid>,
    /// It was entered before: there is nobody whose place it takes.
    entered: bool,
    /// The others believe that it is there until then.
    until: Option<Instant>,
    /// Since when the database was never away for long.
    steady: Option<Instant>,
    renewed: Option<Instant>,
    /// Other replicas, now or when it was looked before.
    others: usize,
    others_before: usize,
    /// Tenants that are shared out among the replicas. None ever leaves.
    leased: HashSet<TenantId>,
}

/// Shows that the caller is the only one who enters.
pub(in crate::app) struct Entering<'a> {
    _guard: MutexGuard<'a, ()>,
}

impl Replicas {
    /// As configured.
    pub(in crate::app) fn new(config: &ReplicasConfig) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            metrics: ReplicaMetrics::default(),
            name: config.name(),
            lease: config.lease(),
            state: Flat::default(),
            runs: Flat::default(),
            entering: Mutex::default(),
            newcomers: (sender, Flat::new(Some(receiver))),
            progress: Notify::new(),
            leaving: AtomicBool::new(false),
            joined: CancellationToken::new(),
            left: CancellationToken::new(),
        }
    }

    fn state(&self) -> FlatGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a delivery of the consumer that the replicas share.
    pub(in crate::app) fn follow(&self, consumer_sequence: u64, connection: u64) -> Run {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.follow(consumer_sequence, connection)
    }

    pub(super) fn id(&self) -> Option<Uuid> {
        self.state().id
    }

    /// How often it says that it is there, and looks at the others.
    pub(super) fn interval(&self) -> Duration {
        self.lease / 5
    }

    pub(super) async fn entering(&self) -> Entering<'_> {
        Entering {
            _guard: self.entering.lock().await,
        }
    }

    /// False when this one was not meant any more.
    pub(super) fn forget(&self, me: Uuid) -> bool {
        let mut state = self.state();
        let was = state.id == Some(me);
        if was {
            state.id = None;
            state.until = None;
        }
        was
    }

    fn renewed(&self, asked: Instant) {
        let mut state = self.state();
        let steady = state
            .renewed
            .is_some_and(|before| asked.duration_since(before) < self.lease);
        if !steady {
            state.steady = Some(asked);
        }
        state.renewed = Some(asked);
        state.until = Some(asked + self.lease);
    }

    /// Whether the silence of another is its own: the database was there for a whole lease without a break.
    pub(super) fn may_bury(&self) -> bool {
        self.state().steady.is_some_and(|since| since.elapsed() >= self.lease)
    }

    /// Whether nobody can have taken anything from this replica: it would be asked first, or there is nobody else.
    pub(in crate::app) fn is_sure(&self) -> bool {
        let state = self.state();
        state.others == 0 || state.until.is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn note_others(&self, others: usize) {
        let mut state = self.state();
        state.others_before = std::mem::replace(&mut state.others, others);
    }

    pub(super) fn others(&self) -> usize {
        self.state().others
    }

    /// Whether others may have been given messages lately.
    pub(super) fn is_among_others(&self) -> bool {
        let state = self.state();
        state.others + state.others_before > 0
    }

    pub(super) fn note_leased<'a>(&self, tenants: impl IntoIterator<Item = &'a TenantId>) {
        let mut state = self.state();
        for tenant in tenants {
            if !state.leased.contains(tenant) {
                state.leased.insert(tenant.clone());
            }
        }
    }

    pub(in crate::app) fn is_leased(&self, tenant: &TenantId) -> bool {
        self.state().leased.contains(tenant)
    }

    /// Hands a tenant to whoever reads messages, if somebody does.
    pub(super) fn announce(&self, id: &TenantId, cell: &Arc<Cell>) {
        if self.newcomers.0.send((id.clone(), Arc::clone(cell))).is_err() {
            tracing::debug!(tenant = %id, "nobody reads messages any more");
        }
    }

    /// The tenants that are taken; for the first who asks.
    pub(super) fn newcomers(&self) -> Option<mpsc::UnboundedReceiver<Newcomer>> {
        let mut receiver = self.newcomers.1.lock().unwrap_or_else(PoisonError::into_inner);
        receiver.take()
    }

    pub(in crate::app) fn progress(&self) {
        self.progress.notify_one();
    }

    pub(super) async fn progressed(&self) {
        self.progress.notified().await;
    }

    pub(super) fn stop_taking(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    pub(super) fn join(&self) {
        self.joined.cancel();
    }

    pub(super) async fn joined(&self) {
        self.joined.cancelled().await;
    }

    pub(super) fn left(&self) {
        self.left.cancel();
    }

    pub(super) async fn until_left(&self) {
        self.left.cancelled().await;
    }

    pub(in crate::app) fn passed_on(&self) {
        self.metrics.passed_on();
    }
}

impl Engine {
    /// This replica's id; enters it when it is not there. A replica that leaves does not.
    pub(super) async fn enter(&self, entering: &Entering<'_>, tenant: &TenantId) -> Result<Uuid, Error> {
        if self.replicas.is_leaving() {
            return Err(Error::Elsewhere { tenant: tenant.clone() });
        }
        self.enter_anyhow(entering).await
    }

    pub(super) async fn enter_anyhow(&self, _entering: &Entering<'_>) -> Result<Uuid, Error> {
        let heir = {
            let state = self.replicas.state();
            if let Some(id) = state.id {
                return Ok(id);
            }
            !state.entered
        };
        let own = Replica {
            id: Uuid::now_v7(),
            name: self.replicas.name.clone(),
        };
        let asked = Instant::now();
        let inherited = store::replicas::enrol(&self.db, &own, self.replicas.lease, heir).await?;
        {
            let mut state = self.replicas.state();
            state.id = Some(own.id);
            state.entered = true;
        }
        self.replicas.renewed(asked);
        tracing::info!(replica = %own.id, name = own.name, predecessors = inherited, "entered this replica");
        Ok(own.id)
    }

    /// Says that this replica is there.
    pub(super) async fn renew(&self) {
        let Some(me) = self.replicas.id() else { return };
        let asked = Instant::now();
        match store::replicas::renew(&self.db, me, self.replicas.lease).await {
            Ok(true) => self.replicas.renewed(asked),
            Ok(false) => self.buried(me),
            Err(error) => tracing::debug!(%error, "this replica's lease could not be renewed"),
        }
    }
}
