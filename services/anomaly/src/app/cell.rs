//! A tenant in memory.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use garrison_proto::alert::v1::Alert;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

use super::checkpoint::Cut;
use crate::{
    domain::{budget::HeldChange, replicas::Run, tenant::Tenant},
    store::replicas::Lease,
};

/// A tenant's place for as long as this replica holds one lease of it. `turn` is taken before `saving` and that before
/// `slot`, and none while a later one is held.
pub(super) struct Cell {
    lease: Lease,
    pub(super) slot: Arc<Mutex<Slot>>,
    /// Held while messages are judged in their order.
    pub(super) turn: Mutex<()>,
    /// Held from the making of a checkpoint to its commit, so that an older never replaces a newer one.
    pub(super) saving: Mutex<()>,
    /// A training of this tenant runs in this process.
    pub(super) training: AtomicBool,
    /// There may be messages of it that were handed to others.
    bell: Notify,
    /// What there was when it was taken has been judged, or cannot be.
    caught_up: AtomicBool,
    /// So much is to be judged first that others must not wait for it.
    pub(super) is_behind: AtomicBool,
    /// It is about to be handed over.
    asked_back: AtomicBool,
    gone: CancellationToken,
}

impl Cell {
    pub(super) fn new(lease: Lease) -> Self {
        Self {
            lease,
            slot: Arc::default(),
            turn: Mutex::default(),
            saving: Mutex::default(),
            training: AtomicBool::new(false),
            bell: Notify::new(),
            caught_up: AtomicBool::new(false),
            is_behind: AtomicBool::new(false),
            asked_back: AtomicBool::new(false),
            gone: CancellationToken::new(),
        }
    }

    pub(super) fn lease(&self) -> Lease {
        self.lease
    }

    /// Has its messages looked for in the stream.
    pub(super) fn ring(&self) {
        self.bell.notify_one();
    }

    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }

    pub(super) fn is_caught_up(&self) -> bool {
        self.caught_up.load(Ordering::Acquire)
    }

    pub(super) fn set_caught_up(&self) {
        self.caught_up.store(true, Ordering::Release);
    }

    pub(super) fn ask_back(&self) {
        self.asked_back.store(true, Ordering::Release);
    }

    pub(super) fn keep(&self) {
        self.asked_back.store(false, Ordering::Release);
        self.ring();
    }

    pub(super) fn is_asked_back(&self) -> bool {
        self.asked_back.load(Ordering::Acquire)
    }

    /// It is not this replica's any more.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.is_cancelled()
    }

    pub(super) fn go(&self) {
        self.gone.cancel();
    }

    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }
}

/// What a tenant's lock guards.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) tenant: Option<Tenant>,
    /// Every message up to this stream position was judged, or cannot be.
    pub(super) through: u64,
    /// The last message that was judged, its position and id: by it the stream is known again.
    pub(super) last: Option<(u64, [u8; 16])>,
    /// What was made sure of the stream.
    pub(super) known: Option<Known>,
    /// While deliveries go on without a gap, those of this tenant are all there are.
    pub(super) run: Option<Run>,
    /// Something was saved of it when it was loaded.
    pub(super) saved: bool,
    /// It differs from its checkpoint.
    pub(super) changed: bool,
    /// Alerts of a batch that the state includes already, and that are not committed yet.
    pub(super) pending: Vec<Alert>,
    /// What the budget held back, to be saved with the state.
    pub(super) held_back: Vec<HeldChange>,
    /// A checkpoint of which shards are still to be written.
    pub(super) cut: Option<Cut>,
}

/// The stream was found to be the one that the state is of.
#[derive(Clone, Copy)]
pub(super) struct Known {
    /// How far it went: what came until then may have been judged before.
    pub(super) until: u64,
    /// Over which connection.
    pub(super) connection: u64,
}

impl Slot {
    /// The message at a position is judged, and so are those before it.
    pub(super) fn judged(&mut self, position: u64, message: [u8; 16]) {
        self.through = self.through.max(position);
        self.last = Some((position, message));
        if let Some(tenant) = self.tenant.as_mut() {
            tenant.applied = tenant.applied.max(position);
        }
    }
}

/// A loaded tenant, locked.
pub(super) struct Held {
    guard: OwnedMutexGuard<Slot>,
    cell: Arc<Cell>,
}

impl Held {
    pub(super) fn new(guard: OwnedMutexGuard<Slot>, cell: &Arc<Cell>) -> Self {
        Self {
            guard,
            cell: Arc::clone(cell),
        }
    }

    pub(super) fn cell(&self) -> &Arc<Cell> {
        &self.cell
    }
}

impl std::ops::Deref for Held {
    type Target = Slot;
    fn deref(&self) -> &Slot {
        &self.guard
    }
}

impl std::ops::DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Slot {
        &mut self.guard
    }
}
