//! The one runner that pulls, dispatches, acknowledges and dead-letters.

mod dead_letter;
mod direct;
mod tracker;
mod work;

use std::{future::Future, sync::Arc, time::Duration};

use async_nats::Message;
use opentelemetry::KeyValue;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Bus, BusError, ConsumerSpec, Delivery,
    metrics::consumer_labels,
    pull::{Pull, Pulled},
};
use tracker::{Tracker, position};
use work::{Job, Worker};

/// Messages that an [`Dispatch::Ordered`] consumer holds besides the one in work, to hide the broker's round trip.
const ORDERED_PREFETCH: usize = 8;
/// Shortest pause before a redelivery: a bare negative acknowledgement would come back at once.
const MIN_RETRY: Duration = Duration::from_millis(20);
/// Longest wait for running handlers at shutdown. What is not done by then is delivered again.
const DRAIN: Duration = Duration::from_secs(15);
/// How often the lag is asked for when no message brings it.
const LAG_INTERVAL: Duration = Duration::from_secs(10);
/// Pauses before looking again for a consumer that is not provisioned.
const MISSING: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What to do with a message after its handler ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// Done. Never delivered again.
    Ack,
    /// Failed in a way that may pass: deliver again after this pause (at least 20 ms; it grows with every attempt).
    /// After the consumer's `max_deliver` attempts the message goes to the DLQ.
    Retry {
        /// Least pause before the next attempt.
        after: Duration,
        /// Why, for logs and the DLQ.
        reason: String,
    },
    /// Something that the message has no part in is away, such as the database. The runner keeps the message and
    /// its place, tries again after the pause and pulls nothing more in its stead. Does not count as an attempt.
    Hold {
        /// Pause before the next attempt.
        after: Duration,
        /// What is away.
        reason: String,
    },
    /// The message can never be handled: straight to the DLQ.
    Reject {
        /// Why.
        reason: String,
    },
}

/// Handles the messages of one consumer.
///
/// A handler may be given the same message again, also after it returned [`Disposition::Ack`], and an older one
/// after a newer one: use an inbox table. A panic counts as a [`Disposition::Retry`].
pub trait Handler: Send + Sync + 'static {
    /// Handles one message.
    fn handle(&self, delivery: Delivery) -> impl Future<Output = Disposition> + Send;
}

/// How many messages a consumer works on at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dispatch {
    /// One, in the order the broker delivers. A retry blocks what comes behind it.
    Ordered,
    /// Up to so many at once, in no order. A retry gives its place up.
    Concurrent(usize),
}

/// Runs a handler on a consumer until `shutdown`, then finishes what is running (15 seconds at most) and hands
/// the rest back. Survives absence and restarts of the broker, and waits for a consumer that is not provisioned.
///
/// # Errors
/// Only for what cannot heal: today nothing; the type leaves room.
pub async fn run_consumer<H: Handler>(
    bus: &Bus,
    consumer: &ConsumerSpec,
    dispatch: Dispatch,
    handler: Arc<H>,
    shutdown: CancellationToken,
) -> Result<(), BusError> {
    Runner::new(bus, consumer, dispatch, handler, shutdown).run().await
}

/// Why the inner loop stopped.
enum Ended {
    Shutdown,
    Reopen,
    Missing,
}

struct Runner<H> {
    worker: Arc<Worker<H>>,
    tracker: Tracker,
    dispatch: Dispatch,
    capacity: usize,
    shutdown: CancellationToken,
    /// Handlers that run: many for concurrent dispatch, one loop for ordered dispatch.
    tasks: JoinSet<()>,
    queue: Option<mpsc::Sender<Job>>,
    labels: [KeyValue; 2],
}

impl<H: Handler> Runner<H> {
    fn new(
        bus: &Bus,
        consumer: &ConsumerSpec,
        dispatch: Dispatch,
        handler: Arc<H>,
        shutdown: CancellationToken,
    ) -> Self {
        let labels = consumer_labels(consumer.stream, &consumer.name);
        let tracker = Tracker::new(bus.clone(), consumer.ack_wait, labels.clone());
        let worker = Arc::new(Worker {
            bus: bus.clone(),
            spec: consumer.clone(),
            handler,
            tracker: tracker.clone(),
            turns: direct::Turns::default(),
            shutdown: shutdown.clone(),
            labels: labels.clone(),
        });
        let capacity = match dispatch {
            Dispatch::Ordered => ORDERED_PREFETCH,
            Dispatch::Concurrent(places) => places.max(1),
        };
        let mut tasks = JoinSet::new();
        let queue = (dispatch == Dispatch::Ordered).then(|| {
            let (sender, mut receiver) = mpsc::channel::<Job>(capacity);
            let worker = Arc::clone(&worker);
            tasks.spawn(async move {
                while let Some(job) = receiver.recv().await {
                    worker.in_order(job).await;
                }
            });
            sender
        });
        Self {
            worker,
            tracker,
            dispatch,
            capacity,
            shutdown,
            tasks,
            queue,
            labels,
        }
    }

    async fn run(mut self) -> Result<(), BusError> {
        let bus = self.worker.bus.clone();
        let spec = self.worker.spec.clone();
        let listening = (spec.direct && self.dispatch != Dispatch::Ordered).then(|| {
            let listen = direct::listen(Arc::clone(&self.worker), self.capacity, self.shutdown.clone());
            tokio::spawn(listen)
        });
        let mut missing_pause = MISSING.0;
        loop {
            let connected = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => None,
                epoch = bus.inner.link.connected() => Some(epoch),
            };
            let Some(epoch) = connected else { break };
            let mut pull = match Pull::open(&bus, spec.stream, &spec.name).await {
                Ok(pull) => pull,
                Err(error) => {
                    tracing::warn!(%error, "cannot open a pull subscription; trying again");
                    tokio::time::sleep(MISSING.0).await;
                    continue;
                }
            };
            let mut heard = false;
            let ended = self.serve(&mut pull, epoch, &mut heard).await;
            for message in pull.close().await {
                self.tracker.hand_back(&message, MIN_RETRY).await;
            }
            if heard {
                missing_pause = MISSING.0;
            }
            match ended {
                Ended::Shutdown => break,
                Ended::Reopen => {}
                Ended::Missing => {
                    tokio::select! {
                        () = self.shutdown.cancelled() => break,
                        () = tokio::time::sleep(missing_pause) => {}
                    }
                    missing_pause = (missing_pause * 2).min(MISSING.1);
                }
            }
        }
        self.drain().await;
        if let Some(listening) = listening
            && let Err(error) = listening.await
        {
            tracing::error!(%error, "listening directly died; the stream delivered alone");
        }
        Ok(())
    }

    /// Pulls over one connection.
    async fn serve(&mut self, pull: &mut Pull, epoch: u64, heard: &mut bool) -> Ended {
        let mut epochs: watch::Receiver<u64> = self.worker.bus.inner.link.epoch();
        let mut progress = tokio::time::interval(self.tracker.progress_interval());
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lag = tokio::time::interval_at(Instant::now() + LAG_INTERVAL, LAG_INTERVAL);
        lag.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let room = self.capacity.saturating_sub(self.tracker.len() + pull.outstanding());
            let worth_asking = room > 0 && (pull.outstanding() == 0 || room * 4 >= self.capacity);
            if worth_asking && let Err(error) = pull.request(room).await {
                tracing::warn!(%error, "cannot ask for messages; opening a new subscription");
                return Ended::Reopen;
            }
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Ended::Shutdown,
                // The guard that `wait_for` answers would keep this future from being spawned.
                () = async { drop(epochs.wait_for(|now| *now != epoch).await) } => return Ended::Reopen,
                () = self.tracker.freed() => {}
                Some(done) = self.tasks.join_next(), if self.dispatch != Dispatch::Ordered => {
                    if let Err(error) = done {
                        // Handlers' panics are caught inside; this would be a defect of the runner itself.
                        tracing::error!(%error, "a delivery task died; its message will be delivered again");
                    }
                }
                pulled = pull.next() => match pulled {
                    Pulled::Message(message) => {
                        *heard = true;
                        self.take(message).await;
                    }
                    Pulled::Again => *heard = true,
                    Pulled::Lost(reason) => {
                        tracing::info!(reason, stream = self.worker.spec.stream, consumer = %self.worker.spec.name,
                            "pulling again");
                        return Ended::Reopen;
                    }
                    Pulled::Missing(reason) => {
                        tracing::warn!(code = "GAR-BUS-0005", reason, stream = self.worker.spec.stream,
                            consumer = %self.worker.spec.name, "the consumer is not provisioned or not ready");
                        return Ended::Missing;
                    }
                },
                _ = progress.tick() => self.tracker.renew().await,
                _ = lag.tick() => self.ask_lag(),
            }
        }
    }

    async fn take(&mut self, message: Message) {
        let Some(position) = position(&message) else {
            tracing::warn!(subject = %message.subject, "left out a message that does not come from JetStream");
            return;
        };
        self.worker.bus.inner.metrics.lag.record(position.pending, &self.labels);
        if position.attempt > 1 {
            self.worker.bus.inner.metrics.redeliveries.add(1, &self.labels);
        }
        if !self.tracker.begin(position.stream_sequence, &message) {
            // Delivered again while it is still in work, after a lost connection. The first will answer.
            return;
        }
        let job = Job { message, position };
        match &self.queue {
            // Never more than the channel holds: the capacity bounds both.
            Some(queue) => {
                let _ = queue.send(job).await;
            }
            None => {
                let worker = Arc::clone(&self.worker);
                self.tasks.spawn(async move { worker.concurrently(job).await });
            }
        }
    }

    fn ask_lag(&self) {
        let bus = self.worker.bus.clone();
        let subject = format!(
            "$JS.API.CONSUMER.INFO.{}.{}",
            self.worker.spec.stream, self.worker.spec.name
        );
        let labels = self.labels.clone();
        tokio::spawn(async move {
            let Ok(answer) = bus.client().request(subject, bytes::Bytes::new()).await else {
                return;
            };
            let info: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
            if let Some(pending) = info.get("num_pending").and_then(serde_json::Value::as_u64) {
                bus.inner.metrics.lag.record(pending, &labels);
            }
        });
    }

    async fn drain(&mut self) {
        self.queue = None;
        let tracker = self.tracker.clone();
        let tasks = &mut self.tasks;
        let finish = async {
            let mut renew = tokio::time::interval(tracker.progress_interval());
            loop {
                tokio::select! {
                    done = tasks.join_next() => if done.is_none() { return },
                    _ = renew.tick() => tracker.renew().await,
                }
            }
        };
        if tokio::time::timeout(DRAIN, finish).await.is_err() {
            tracing::warn!(
                stream = self.worker.spec.stream,
                consumer = %self.worker.spec.name,
                "handlers still run after {} s; their messages will be delivered again",
                DRAIN.as_secs()
            );
            self.tasks.shutdown().await;
        }
        // Acknowledgements are only buffered until here.
        if self.worker.bus.is_connected() {
            let _ = tokio::time::timeout(Duration::from_secs(2), self.worker.bus.client().flush()).await;
        }
        self.tracker.forget();
    }
}
