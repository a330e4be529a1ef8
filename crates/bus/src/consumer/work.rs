use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use async_nats::{Message, jetstream::AckKind};
use chrono::Utc;
use futures::FutureExt;
use opentelemetry::KeyValue;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    Disposition, Handler, MIN_RETRY,
    dead_letter::{self, Letter},
    direct::{Turn, Turns},
    tracker::{JobPosition, Tracker},
};
use crate::{Bus, ConsumerSpec, Delivery, PublishError, delivery::Position, trace};

/// One message to be handled.
pub(crate) struct Job {
    pub(crate) message: Message,
    pub(crate) position: JobPosition,
}

/// Handles messages of one consumer and carries out what the handler decided.
pub(crate) struct Worker<H> {
    pub(crate) bus: Bus,
    pub(crate) spec: ConsumerSpec,
    pub(crate) handler: Arc<H>,
    pub(crate) tracker: Tracker,
    /// Used where the consumer is direct.
    pub(crate) turns: Turns,
    pub(crate) shutdown: CancellationToken,
    pub(crate) labels: [KeyValue; 2],
}

impl<H: Handler> Worker<H> {
    /// A retry gives the place up: the broker keeps the time.
    pub(crate) async fn concurrently(&self, job: Job) {
        let turn = match self.spec.direct {
            true => self.turns.wait(&job.message).await,
            false => None,
        };
        if turn.as_deref() == Some(&true) {
            self.count("direct");
            return self.tracker.finish(job.position.stream_sequence, AckKind::Ack).await;
        }
        let span = self.span(&job.message, job.position.attempt);
        self.work(job, false, turn).instrument(span).await;
    }

    /// A message that was heard directly. Unless it is handled to the end, its copy from the stream will be.
    pub(crate) async fn directly(&self, message: Message, mut turn: Turn) {
        let position = Position {
            attempt: 1,
            stream_sequence: 0,
            consumer_sequence: 0,
            stored: Some(Utc::now()),
            stream: Some(self.spec.stream),
        };
        let span = self.span(&message, 1);
        *turn = self.handle(&message, position).instrument(span).await == Disposition::Ack;
    }

    /// A retry stays at the head: what comes behind it waits.
    pub(crate) async fn in_order(&self, job: Job) {
        if self.shutdown.is_cancelled() {
            return self
                .tracker
                .finish(job.position.stream_sequence, AckKind::Nak(Some(MIN_RETRY)))
                .await;
        }
        let span = self.span(&job.message, job.position.attempt);
        self.work(job, true, None).instrument(span).await;
    }

    async fn work(&self, job: Job, in_place: bool, mut turn: Option<Turn>) {
        let sequence = job.position.stream_sequence;
        let mut attempt = job.position.attempt;
        loop {
            let decision = if attempt > self.spec.max_deliver {
                // Delivered too often without any answer: its handler kills the process.
                Disposition::Reject {
                    reason: format!("no answer in {} deliveries", self.spec.max_deliver),
                }
            } else {
                let position = Position {
                    attempt,
                    stream_sequence: sequence,
                    consumer_sequence: job.position.consumer_sequence,
                    stored: Some(job.position.stored),
                    stream: Some(self.spec.stream),
                };
                self.handle(&job.message, position).await
            };
            match decision {
                Disposition::Ack => {
                    if let Some(turn) = &mut turn {
                        **turn = true;
                    }
                    return self.tracker.finish(sequence, AckKind::Ack).await;
                }
                Disposition::Reject { reason } => {
                    return self.dead_letter(&job, attempt, &reason).await;
                }
                Disposition::Retry { reason, .. } if attempt >= self.spec.max_deliver => {
                    let reason = format!("given up after {attempt} attempts; the last failed with: {reason}");
                    return self.dead_letter(&job, attempt, &reason).await;
                }
                Disposition::Retry { after, reason } => {
                    let pause = self.pause(after, attempt);
                    tracing::warn!(reason, attempt, ?pause, "a message will be tried again");
                    if !in_place {
                        return self.tracker.finish(sequence, AckKind::Nak(Some(pause))).await;
                    }
                    attempt += 1;
                    if !self.sleep(pause).await {
                        return self.tracker.finish(sequence, AckKind::Nak(Some(MIN_RETRY))).await;
                    }
                }
                Disposition::Hold { after, reason } => {
                    tracing::warn!(reason, "a message waits for something that is away");
                    if !self.sleep(jitter(after.max(MIN_RETRY))).await {
                        return self.tracker.finish(sequence, AckKind::Nak(Some(MIN_RETRY))).await;
                    }
                }
            }
        }
    }

    async fn handle(&self, message: &Message, position: Position) -> Disposition {
        let started = Instant::now();
        let (outcome, decision) = match Delivery::read(
            &message.subject,
            message.headers.as_ref(),
            message.payload.clone(),
            position,
        ) {
            Err(reason) => ("reject", Disposition::Reject { reason }),
            Ok(delivery) => {
                // The handler is not used again by this call after a panic, and a later call starts afresh.
                match AssertUnwindSafe(self.call(delivery)).catch_unwind().await {
                    Ok(decision) => (name(&decision), decision),
                    Err(panic) => {
                        let reason = format!("the handler panicked: {}", panic_text(panic.as_ref()));
                        (
                            "panic",
                            Disposition::Retry {
                                after: Duration::from_secs(1),
                                reason,
                            },
                        )
                    }
                }
            }
        };
        self.bus
            .inner
            .metrics
            .handler_seconds
            .record(started.elapsed().as_secs_f64(), &self.labels);
        self.count(outcome);
        decision
    }

    fn count(&self, outcome: &'static str) {
        let [stream, consumer] = self.labels.clone();
        let labels = [stream, consumer, KeyValue::new("disposition", outcome)];
        self.bus.inner.metrics.handled.add(1, &labels);
    }

    /// Calling the handler is inside a future of its own, so that a panic before its first await is caught too.
    async fn call(&self, delivery: Delivery) -> Disposition {
        self.handler.handle(delivery).await
    }

    /// Stores the message in the DLQ, however long that takes, and only then ends it.
    async fn dead_letter(&self, job: &Job, attempts: u64, reason: &str) {
        let sequence = job.position.stream_sequence;
        tracing::error!(reason, attempts, sequence, "a message goes to the DLQ");
        let letter = Letter {
            spec: &self.spec,
            message: &job.message,
            sequence,
            attempts,
            reason,
        };
        let mut tries = 0;
        loop {
            tries += 1;
            match dead_letter::store(&self.bus, &letter).await {
                Ok(()) => return self.tracker.finish(sequence, AckKind::Term).await,
                Err(error @ PublishError::Unavailable { .. }) => {
                    tracing::warn!(%error, "cannot store in the DLQ yet");
                    if !self.sleep(self.pause(Duration::from_millis(200), tries)).await {
                        return self.tracker.finish(sequence, AckKind::Nak(Some(MIN_RETRY))).await;
                    }
                }
                Err(error) => {
                    // Keep the message where it is rather than lose it; somebody must look.
                    tracing::error!(%error, "the DLQ refuses a message; it stays in its stream");
                    return self
                        .tracker
                        .finish(sequence, AckKind::Nak(Some(self.spec.retry.1)))
                        .await;
                }
            }
        }
    }

    /// False when the sleep was cut short by shutdown.
    async fn sleep(&self, pause: Duration) -> bool {
        tokio::select! {
            () = self.shutdown.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }

    fn pause(&self, asked: Duration, attempt: u64) -> Duration {
        backoff(self.spec.retry, asked, attempt)
    }

    fn span(&self, message: &Message, attempt: u64) -> tracing::Span {
        let span = tracing::info_span!(
            "consume",
            otel.name = format!("consume {}/{}", self.spec.stream, self.spec.name),
            otel.kind = "consumer",
            subject = %message.subject,
            attempt,
        );
        let parent = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get(crate::message::header::TRACEPARENT));
        trace::span_with_parent(span, parent.map(async_nats::HeaderValue::as_str))
    }
}

fn name(decision: &Disposition) -> &'static str {
    match decision {
        Disposition::Ack => "ack",
        Disposition::Retry { .. } => "retry",
        Disposition::Hold { .. } => "hold",
        Disposition::Reject { .. } => "reject",
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// The pause before attempt `attempt + 1`: doubles from the first to the longest, never shorter than asked for or
/// than [`MIN_RETRY`], up to a quarter longer at random so that many do not return together.
fn backoff((first, longest): (Duration, Duration), asked: Duration, attempt: u64) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(20);
    jitter(
        first
            .saturating_mul(1 << doublings)
            .min(longest)
            .max(asked)
            .max(MIN_RETRY),
    )
}

fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(1.0 + rand::random::<f64>() / 4.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pauses_are_never_short_and_bounded(asked in 0u64..100_000, attempt in 0u64..u64::MAX) {
            let spec = (Duration::from_millis(50), Duration::from_secs(15));
            let asked = Duration::from_millis(asked);
            let pause = backoff(spec, asked, attempt);
            prop_assert!(pause >= MIN_RETRY && pause >= asked);
            prop_assert!(pause <= asked.max(Duration::from_secs(15)).mul_f64(1.25));
        }
    }

    #[test]
    fn panics_of_both_kinds_are_readable() {
        assert_eq!(panic_text(&"boom"), "boom");
        assert_eq!(panic_text(&"boom".to_owned()), "boom");
        assert_eq!(panic_text(&7), "no message");
    }
}
