//! What a sensor shows of itself while it works.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use garrison_flow::LossLedger;
use garrison_proto::TenantId;

use crate::{
    domain::{Counts, packet::LinkType},
    export::{InterfaceCounters, Tally},
    ring::PacketRing,
};

/// A sensor's state, written by its worker and read by everyone.
pub struct Sensor {
    /// Its id.
    pub id: String,
    /// Whose traffic it sees.
    pub tenant: TenantId,
    /// Its interfaces, or its file.
    pub source: String,
    /// It captures live.
    pub live: bool,
    /// When it started, nanoseconds since the epoch.
    pub started: i64,
    /// Its packet ring.
    pub ring: Option<Arc<PacketRing>>,
    status: Mutex<Status>,
    shares: Mutex<Vec<Share>>,
    sequence: Mutex<u64>,
    emitted: AtomicU64,
    published: AtomicU64,
    lost: AtomicU64,
    finished: AtomicI64,
}

/// What one of a sensor's workers has to report: its part of the status.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    /// What became of its packets and flows.
    pub counts: Counts,
    /// Packets the kernel dropped, as far as this worker asks for them.
    pub dropped_by_kernel: u64,
    /// Flows in its table.
    pub active_flows: u64,
}

/// What a worker reports now and then.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// What became of packets and flows.
    pub counts: Counts,
    /// Packets the kernel dropped.
    pub dropped_by_kernel: u64,
    /// Flows in the table.
    pub active_flows: u64,
    /// How its frames begin.
    pub link: Option<LinkType>,
    /// What keeps it from capturing.
    pub problem: Option<String>,
    /// Of a sensor that reads flow exports: what became of what is in them.
    pub exports: Option<Tally>,
    /// Of a sensor that reads flow exports: interfaces by agent and index, as sFlow agents last told.
    pub interfaces: Arc<BTreeMap<(IpAddr, u32), InterfaceCounters>>,
}

const NOT_FINISHED: i64 = i64::MIN;

impl Sensor {
    /// Makes the state of a sensor that is about to start.
    pub fn new(
        id: &str,
        tenant: TenantId,
        source: String,
        live: bool,
        started: i64,
        ring: Option<Arc<PacketRing>>,
    ) -> Self {
        Self {
            id: id.to_owned(),
            tenant,
            source,
            live,
            started,
            ring,
            status: Mutex::default(),
            shares: Mutex::default(),
            sequence: Mutex::default(),
            emitted: AtomicU64::new(0),
            published: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            finished: AtomicI64::new(NOT_FINISHED),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its latest status.
    pub fn status(&self) -> Status {
        self.lock().clone()
    }

    /// Notes what changed.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.lock());
    }

    /// Takes over a worker's share, and gives the sum of all workers'.
    pub fn share(&self, worker: usize, share: Share) -> Share {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if shares.len() <= worker {
            shares.resize(worker + 1, Share::default());
        }
        shares[worker] = share;
        let mut sum = Share::default();
        for share in shares.iter() {
            sum.counts += share.counts;
            sum.dropped_by_kernel += share.dropped_by_kernel;
            sum.active_flows += share.active_flows;
        }
        self.update(|status| {
            status.counts = sum.counts;
            status.dropped_by_kernel = sum.dropped_by_kernel;
            status.active_flows = sum.active_flows;
        });
        sum
    }

    /// Hands a batch over under the sensor's next number, one worker at a time, so that batches leave in their order.
    pub fn in_sequence<R>(&self, hand_over: impl FnOnce(u64) -> R) -> R {
        let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        let given = hand_over(*sequence);
        *sequence += 1;
        given
    }

    /// Records were made.
    pub fn emitted(&self, records: u64) {
        self.emitted.fetch_add(records, Ordering::AcqRel);
    }

    /// The broker has stored records.
    pub fn published(&self, records: u64) {
        self.published.fetch_add(records, Ordering::AcqRel);
    }

    /// Records were given up.
    pub fn lost(&self, records: u64) {
        self.lost.fetch_add(records, Ordering::AcqRel);
    }

    /// Records that are neither stored nor given up.
    pub fn waiting(&self) -> u64 {
        // Read in this order, a record can only be counted as waiting too long, never too short.
        let settled = self.published.load(Ordering::Acquire) + self.lost.load(Ordering::Acquire);
        self.emitted.load(Ordering::Acquire).saturating_sub(settled)
    }

    /// What became of every packet and record. `records_published` are those the broker has stored.
    pub fn ledger(&self) -> LossLedger {
        let status = self.lock();
        LossLedger {
            dropped_by_kernel: status.dropped_by_kernel,
            records_published: self.published.load(Ordering::Acquire),
            records_lost: self.lost.load(Ordering::Acquire),
            ..status.counts.ledger()
        }
    }

    /// The ledger that travels with a batch: the records in it count as handed over.
    pub fn ledger_with_batch(&self, counts: &Counts, dropped_by_kernel: u64) -> LossLedger {
        let lost = self.lost.load(Ordering::Acquire);
        LossLedger {
            dropped_by_kernel,
            records_published: self.emitted.load(Ordering::Acquire).saturating_sub(lost),
            records_lost: lost,
            ..counts.ledger()
        }
    }

    /// Its file was played, and each of its records is stored or given up.
    pub fn finish(&self, now: i64) {
        self.finished.store(now, Ordering::Release);
    }

    /// When that was, nanoseconds since the epoch.
    pub fn finished(&self) -> Option<i64> {
        let finished = self.finished.load(Ordering::Acquire);
        (finished != NOT_FINISHED).then_some(finished)
    }
}
