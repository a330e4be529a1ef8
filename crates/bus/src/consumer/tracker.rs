use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_nats::{Message, Subject, jetstream::AckKind};
use chrono::{DateTime, Utc};
use opentelemetry::KeyValue;
use tokio::{sync::Notify, time::Instant};

use crate::Bus;

/// Where a message stands, from its reply subject.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JobPosition {
    pub(crate) attempt: u64,
    pub(crate) stream_sequence: u64,
    pub(crate) consumer_sequence: u64,
    pub(crate) pending: u64,
    pub(crate) stored: DateTime<Utc>,
}

pub(crate) fn position(message: &Message) -> Option<JobPosition> {
    // The library reads both forms of the reply subject (ADR-15), but only from its own message type.
    let reply = message.reply.as_deref()?;
    let mut tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
    if tokens.len() >= 9 {
        tokens.drain(..2);
    }
    let number = |at: usize| tokens.get(at)?.parse::<u64>().ok();
    Some(JobPosition {
        attempt: number(2)?,
        stream_sequence: number(3)?,
        consumer_sequence: number(4)?,
        stored: DateTime::from_timestamp_nanos(i64::try_from(number(5)?).ok()?),
        pending: number(6)?,
    })
}

/// The messages that were taken and not yet answered, and the only code that answers.
#[derive(Clone)]
pub(crate) struct Tracker {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    ack_wait: Duration,
    labels: [KeyValue; 2],
    open: Mutex<HashMap<u64, Open>>,
    freed: Notify,
}

struct Open {
    reply: Subject,
    renewed: Instant,
}

impl Tracker {
    pub(crate) fn new(bus: Bus, ack_wait: Duration, labels: [KeyValue; 2]) -> Self {
        Self {
            inner: Arc::new(Inner {
                bus,
                ack_wait,
                labels,
                open: Mutex::default(),
                freed: Notify::new(),
            }),
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        // The map is consistent after every statement, so a panic elsewhere does not spoil it.
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.open().len()
    }

    /// Resolves after a message was answered.
    pub(crate) async fn freed(&self) {
        self.inner.freed.notified().await;
    }

    pub(crate) fn progress_interval(&self) -> Duration {
        (self.inner.ack_wait / 4).max(Duration::from_millis(50))
    }

    /// Takes a message. False when it is already in work; the answer will then use the newer reply subject.
    pub(crate) fn begin(&self, sequence: u64, message: &Message) -> bool {
        let Some(reply) = message.reply.clone() else {
            return false;
        };
        let fresh = self
            .open()
            .insert(
                sequence,
                Open {
                    reply,
                    renewed: Instant::now(),
                },
            )
            .is_none();
        if fresh {
            self.inner.bus.inner.metrics.in_flight.add(1, &self.inner.labels);
        }
        fresh
    }

    /// Answers a message and frees its place.
    pub(crate) async fn finish(&self, sequence: u64, answer: AckKind) {
        let Some(open) = self.open().remove(&sequence) else {
            return;
        };
        self.inner.bus.inner.metrics.in_flight.add(-1, &self.inner.labels);
        self.answer(open.reply, answer).await;
        self.inner.freed.notify_one();
    }

    /// Gives a message back that was never begun.
    pub(crate) async fn hand_back(&self, message: &Message, after: Duration) {
        if let Some(reply) = message.reply.clone() {
            self.answer(reply, AckKind::Nak(Some(after))).await;
        }
    }

    /// Tells the broker that the messages in work are still being worked on.
    pub(crate) async fn renew(&self) {
        let now = Instant::now();
        let due: Vec<Subject> = self
            .open()
            .values_mut()
            .filter(|open| now.duration_since(open.renewed) >= self.inner.ack_wait / 4)
            .map(|open| {
                open.renewed = now;
                open.reply.clone()
            })
            .collect();
        for reply in due {
            self.answer(reply, AckKind::Progress).await;
        }
    }

    /// Forgets what was aborted, so that the metric ends at zero.
    pub(crate) fn forget(&self) {
        let left = std::mem::take(&mut *self.open()).len();
        self.inner
            .bus
            .inner
            .metrics
            .in_flight
            .add(-i64::try_from(left).unwrap_or(0), &self.inner.labels);
    }

    async fn answer(&self, reply: Subject, answer: AckKind) {
        // While the broker is away the client keeps the answer and sends it after reconnecting.
        if let Err(error) = self.inner.bus.client().publish(reply, answer.into()).await {
            tracing::warn!(%error, "cannot answer for a message; it will be delivered again");
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(reply: &str) -> Message {
        Message {
            subject: "events.v1.acme.login".into(),
            reply: Some(reply.into()),
            payload: Bytes::new(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        }
    }

    #[test]
    fn both_forms_of_the_reply_subject_are_read() {
        let v1 = position(&message("$JS.ACK.EVENTS.anomaly.3.100.7.1790230470084404000.42")).unwrap();
        let v2 = position(&message(
            "$JS.ACK._.ACCHASH.EVENTS.anomaly.3.100.7.1790230470084404000.42.token",
        ))
        .unwrap();
        for position in [v1, v2] {
            assert_eq!(
                (position.attempt, position.stream_sequence, position.pending),
                (3, 100, 42)
            );
            assert_eq!(position.stored.timestamp(), 1_790_230_470);
        }
        for bad in [
            "",
            "$JS.ACK.",
            "$JS.ACK.EVENTS.anomaly.x.100.7.1.1",
            "_INBOX.a",
            "$JS.ACK.EVENTS.anomaly.1.2.3",
        ] {
            assert!(position(&message(bad)).is_none(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_negative_answer_carries_its_delay_in_nanoseconds() {
        let payload: Bytes = AckKind::Nak(Some(Duration::from_millis(20))).into();
        assert_eq!(payload, "-NAK {\"delay\":20000000}");
    }
}
