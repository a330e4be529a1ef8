//! The thread between capture and the broker: encodes closed batches, shows them to watching clients, queues them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use garrison_bus::{Message, subject};
use garrison_flow::{BatchMeta, FlowBatch, FlowError, LossLedger, encode};

use super::{
    hub::Hub,
    queue::{Item, Queue},
};
use crate::app::{forward::Forwarder, sensor::Sensor};

/// Closed batches that may wait for the encoder.
const WAITING: usize = 1024;
/// How often disk is looked at while messages are there.
const REFILL: Duration = Duration::from_millis(5);

/// A batch that takes no more records.
pub struct ClosedBatch {
    /// Who made it.
    pub sensor: Arc<Sensor>,
    /// The shard of its records' source hosts.
    pub shard: u16,
    /// The records.
    pub batch: FlowBatch,
    /// Counts the sensor's batches.
    pub sequence: u64,
    /// The sensor's ledger.
    pub ledger: LossLedger,
    /// Time of the oldest packet that made a record in it, nanoseconds since the epoch.
    pub oldest: Option<i64>,
}

/// The capturing side. Never waits for the broker.
#[derive(Clone)]
pub struct Outlet {
    sender: SyncSender<ClosedBatch>,
    queue: Arc<Queue>,
    depth: Arc<AtomicUsize>,
}

impl Outlet {
    /// Hands a batch over, unless the encoder is far behind: then it says `false` and the batch is gone.
    pub fn offer(&self, batch: ClosedBatch) -> bool {
        self.depth.fetch_add(1, Ordering::Relaxed);
        match self.sender.try_send(batch) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.depth.fetch_sub(1, Ordering::Relaxed);
                false
            }
        }
    }

    /// Hands a batch over and waits for room: for files, which can.
    pub fn push(&self, batch: ClosedBatch) {
        while !self.queue.has_room() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (rows, sensor) = (batch.batch.len() as u64, Arc::clone(&batch.sensor));
        self.depth.fetch_add(1, Ordering::Relaxed);
        if self.sender.send(batch).is_err() {
            self.depth.fetch_sub(1, Ordering::Relaxed);
            sensor.lost(rows);
        }
    }

    /// Batches pile up.
    pub fn is_crowded(&self) -> bool {
        self.depth.load(Ordering::Relaxed) > 64 || self.queue.is_crowded()
    }
}

/// Starts the thread. It ends, and closes the queue, when every outlet is gone.
///
/// # Errors
/// When the system gives no thread.
pub fn start(
    queue: Arc<Queue>,
    hub: Arc<Hub>,
    sensors: Vec<Arc<Sensor>>,
    forwarders: Vec<Forwarder>,
    max_bytes: usize,
) -> std::io::Result<(Outlet, JoinHandle<()>)> {
    let (sender, batches) = sync_channel(WAITING);
    let depth = Arc::new(AtomicUsize::new(0));
    let outlet = Outlet {
        sender,
        queue: Arc::clone(&queue),
        depth: Arc::clone(&depth),
    };
    let thread = std::thread::Builder::new().name("outbound".to_owned()).spawn(move || {
        let work = Work {
            queue: &queue,
            hub: &hub,
            sensors: &sensors,
            forwarders: &forwarders,
            max_bytes,
        };
        run(&work, &batches, &depth);
        queue.close();
    })?;
    Ok((outlet, thread))
}

// Who gets the batches.
struct Work<'a> {
    queue: &'a Queue,
    hub: &'a Hub,
    sensors: &'a [Arc<Sensor>],
    forwarders: &'a [Forwarder],
    max_bytes: usize,
}

fn run(work: &Work<'_>, batches: &Receiver<ClosedBatch>, depth: &AtomicUsize) {
    loop {
        let spooled = work.queue.refill(work.sensors);
        let next = match spooled {
            true => batches.recv_timeout(REFILL),
            // Messages come to disk only through this thread, so there is nothing to look for meanwhile.
            false => batches.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(closed) => {
                depth.fetch_sub(1, Ordering::Relaxed);
                work.hub.show(&closed.sensor.tenant, &closed.batch);
                for forwarder in work.forwarders {
                    forwarder.offer(&closed.sensor.tenant, &closed.sensor.id, &closed.batch);
                }
                prepare(work.queue, &closed, &closed.batch, work.max_bytes);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

// Encodes a batch, in halves if it is too large for one message, and queues it.
fn prepare(queue: &Queue, closed: &ClosedBatch, batch: &FlowBatch, max_bytes: usize) {
    let rows = batch.len();
    let meta = BatchMeta {
        tenant: closed.sensor.tenant.clone(),
        sensor: closed.sensor.id.clone(),
        batch_seq: closed.sequence,
        ledger: closed.ledger,
    };
    let span = tracing::info_span!(
        "flows.publish",
        otel.kind = "producer",
        sensor = closed.sensor.id,
        tenant = %closed.sensor.tenant,
        shard = closed.shard,
        rows,
        packet.oldest_unix_nano = closed.oldest,
    );
    let payload = match encode(batch, &meta) {
        Ok(payload) => payload,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, cause, records = rows, "GAR-FLOW-0031: records are lost: a batch cannot be encoded");
            closed.sensor.lost(rows as u64);
            return;
        }
    };
    if payload.len() > max_bytes && rows > 1 {
        let halves = [(0, rows / 2), (rows / 2, rows - rows / 2)];
        for (start, len) in halves {
            match part(batch, start, len) {
                Ok(half) => prepare(queue, closed, &half, max_bytes),
                Err(error) => {
                    tracing::error!(%error, records = len, "GAR-FLOW-0031: records are lost: a batch cannot be split");
                    closed.sensor.lost(len as u64);
                }
            }
        }
        return;
    }
    let subject = subject::flows(&closed.sensor.tenant, closed.shard);
    let message = span.in_scope(|| Message::flows(subject, "flow-ingest", payload));
    queue.push(Item {
        message,
        rows: rows as u64,
        sensor: Some(Arc::clone(&closed.sensor)),
        oldest: closed.oldest.filter(|_| closed.sensor.live),
        span,
        run: queue.run(),
        guard: None,
        order: 0,
    });
}

fn part(batch: &FlowBatch, start: usize, len: usize) -> Result<FlowBatch, FlowError> {
    FlowBatch::try_from_record_batch(batch.record_batch().slice(start, len))
}
