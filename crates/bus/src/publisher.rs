use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{
    self, ErrorCode,
    context::{PublishAckFuture, PublishErrorKind},
    message::PublishMessage,
    publish::PublishAck,
};
use opentelemetry::KeyValue;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, broadcast},
    time::Instant,
};

use crate::{Message, PublishError, connection::Link, metrics::Metrics, subject};

/// Publishes to JetStream with a bounded number of messages in flight. Cheap to clone; clones share the bound.
#[derive(Clone)]
pub struct Publisher {
    jetstream: jetstream::Context,
    link: Link,
    metrics: Metrics,
    permits: Arc<Semaphore>,
    ack_timeout: Duration,
}

/// A message that was handed to the connection and waits for the broker's word; see [`Publisher::start`].
pub struct Pending {
    subject: String,
    size: usize,
    ack: PublishAckFuture,
    denied: broadcast::Receiver<Arc<str>>,
    metrics: Metrics,
    started: Instant,
    deadline: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Publisher {
    pub(crate) fn new(
        jetstream: jetstream::Context,
        link: Link,
        metrics: Metrics,
        max_in_flight: usize,
        ack_timeout: Duration,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(max_in_flight.min(Semaphore::MAX_PERMITS)));
        Self {
            jetstream,
            link,
            metrics,
            permits,
            ack_timeout,
        }
    }

    /// Waits until there is a connection to the broker, which may be for ever.
    pub async fn connected(&self) {
        self.link.connected().await;
    }

    /// Publishes and waits until the broker has stored the message. A repeat of a message whose id is still in
    /// the stream's duplicate window counts as stored.
    ///
    /// # Errors
    /// See [`PublishError`]; [`PublishError::is_transient`] tells whether to try the same message again.
    pub async fn publish(&self, message: &Message) -> Result<(), PublishError> {
        self.start(message).await?.confirmed().await
    }

    /// Waits for a free place, the connection if need be, hands the message over and returns without waiting for
    /// the broker. Messages started one after the other reach the broker in that order as long as the connection
    /// stands.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub async fn start(&self, message: &Message) -> Result<Pending, PublishError> {
        let outcome = self.send(message).await;
        if let Err(error) = &outcome {
            count(&self.metrics, error);
        }
        outcome
    }

    /// Publishes something that is not a CloudEvent, with the same bounds and errors.
    pub(crate) async fn publish_raw(
        &self,
        subject: &str,
        publish: PublishMessage,
        size: usize,
    ) -> Result<(), PublishError> {
        match self.send_raw(subject, publish, size).await {
            Ok(pending) => pending.confirmed().await,
            Err(error) => {
                count(&self.metrics, &error);
                Err(error)
            }
        }
    }

    async fn send(&self, message: &Message) -> Result<Pending, PublishError> {
        // The broker would store a literal wildcard or any tenant; every consumer would then reject it.
        subject::parse(&message.subject).map_err(|error| PublishError::Refused {
            subject: message.subject.clone(),
            reason: error.to_string(),
        })?;
        let publish = PublishMessage::build()
            .payload(message.payload.clone())
            .headers(message.headers()?);
        self.send_raw(&message.subject, publish, message.payload.len()).await
    }

    async fn send_raw(&self, subject: &str, publish: PublishMessage, size: usize) -> Result<Pending, PublishError> {
        let unavailable = |reason: String| PublishError::Unavailable {
            subject: subject.to_owned(),
            reason,
        };
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| unavailable("the publisher is closed".to_owned()))?;
        let started = Instant::now();
        let deadline = started + self.ack_timeout;
        // While the broker is away the client would buffer the message and send it much later.
        tokio::time::timeout_at(deadline, self.link.connected())
            .await
            .map_err(|_| unavailable("there is no connection to the broker".to_owned()))?;
        let denied = self.link.denied();
        let ack = self
            .jetstream
            .send_publish(subject.to_owned(), publish)
            .await
            .map_err(|error| classify(subject, size, &error))?;
        Ok(Pending {
            subject: subject.to_owned(),
            size,
            ack,
            denied,
            metrics: self.metrics.clone(),
            started,
            deadline,
            _permit: permit,
        })
    }
}

impl Pending {
    /// Waits until the broker has stored the message.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub async fn confirmed(self) -> Result<(), PublishError> {
        let Self {
            subject,
            size,
            ack,
            mut denied,
            metrics,
            started,
            deadline,
            _permit,
        } = self;
        let refusal = async {
            loop {
                match denied.recv().await {
                    Ok(denied) if *denied == *subject => return,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        let outcome: Result<PublishAck, PublishError> = tokio::select! {
            biased;
            answer = ack => answer.map_err(|error| classify(&subject, size, &error)),
            () = refusal => Err(PublishError::Refused {
                subject: subject.clone(),
                reason: "this identity has no permission to publish there".to_owned(),
            }),
            () = tokio::time::sleep_until(deadline) => Err(PublishError::Unavailable {
                subject: subject.clone(),
                reason: "no acknowledgement in time".to_owned(),
            }),
        };
        match outcome {
            Ok(ack) => {
                let outcome = if ack.duplicate { "duplicate" } else { "stored" };
                metrics.published.add(1, &[KeyValue::new("outcome", outcome)]);
                metrics.publish_seconds.record(started.elapsed().as_secs_f64(), &[]);
                Ok(())
            }
            Err(error) => {
                count(&metrics, &error);
                Err(error)
            }
        }
    }
}

fn count(metrics: &Metrics, error: &PublishError) {
    let outcome = match error {
        PublishError::Unavailable { .. } => "unavailable",
        PublishError::Refused { .. } => "refused",
        PublishError::TooLarge { .. } => "too_large",
    };
    metrics.published.add(1, &[KeyValue::new("outcome", outcome)]);
}

/// Decides whether the same message may ever be taken.
fn classify(subject: &str, size: usize, error: &jetstream::context::PublishError) -> PublishError {
    use std::error::Error as _;

    let subject = subject.to_owned();
    let reason = error.to_string();
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => PublishError::TooLarge { subject, size, reason },
        // A topology that is not applied yet heals; the message must not be given up for it.
        PublishErrorKind::StreamNotFound => PublishError::Unavailable {
            subject,
            reason: "no stream takes this subject, or JetStream is not ready (GAR-BUS-0005)".to_owned(),
        },
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe | PublishErrorKind::MaxAckPending => {
            PublishError::Unavailable { subject, reason }
        }
        PublishErrorKind::WrongLastMessageId | PublishErrorKind::WrongLastSequence => {
            PublishError::Refused { subject, reason }
        }
        PublishErrorKind::Other => {
            let api = error
                .source()
                .and_then(|source| source.downcast_ref::<jetstream::Error>());
            match api {
                Some(api) if api.error_code() == ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => {
                    PublishError::TooLarge { subject, size, reason }
                }
                Some(api) if api.code() < 500 => PublishError::Refused { subject, reason },
                Some(_) => PublishError::Unavailable { subject, reason },
                // The subject is malformed, or the client is gone; only the first is the message's fault.
                None if !valid_subject(&subject) => PublishError::Refused { subject, reason },
                None => PublishError::Unavailable { subject, reason },
            }
        }
    }
}

fn valid_subject(subject: &str) -> bool {
    !subject.is_empty()
        && subject
            .split('.')
            .all(|token| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'*' | b'>')))
}
