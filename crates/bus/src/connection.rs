use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_nats::{ConnectOptions, Event, ServerAddr, ServerError, connection::State, jetstream};
use futures::{Stream, StreamExt};
use tokio::sync::{broadcast, watch};

use crate::{
    BusConfig, BusError, Delivery, Publisher,
    absence::{Absence, Notice},
    delivery::Position,
    identity,
    metrics::Metrics,
};

/// Longest pause between two attempts to connect.
const MAX_RECONNECT_DELAY: Duration = Duration::from_millis(500);

/// A connection to the broker that reconnects for ever. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) client: async_nats::Client,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) publisher: Publisher,
    pub(crate) link: Link,
    pub(crate) metrics: Metrics,
    pub(crate) service: String,
}

/// What the connection's events say, shared with publishers and consumers.
#[derive(Clone)]
pub(crate) struct Link {
    /// Counts connections; odd while connected, so that a waiter can tell a new connection from the old one.
    epoch: watch::Sender<u64>,
    /// Subjects that the broker refused to let this identity publish on.
    denied: broadcast::Sender<Arc<str>>,
    absence: Arc<Mutex<Absence>>,
}

impl Link {
    fn new() -> Self {
        Self {
            epoch: watch::Sender::new(0),
            denied: broadcast::Sender::new(64),
            absence: Arc::default(),
        }
    }

    fn on_event(&self, event: &Event, service: &str) {
        match event {
            Event::Connected => {
                self.epoch.send_modify(|epoch| *epoch = (*epoch + 1) | 1);
                self.note(event, service, |absence, now| Some(absence.connected(now)));
            }
            Event::Disconnected => {
                self.epoch.send_modify(|epoch| *epoch += *epoch & 1);
                self.note(event, service, Absence::lost);
            }
            // Nobody holds the client any more.
            Event::Closed => {
                self.epoch.send_modify(|epoch| *epoch += *epoch & 1);
                tracing::debug!(service, "the connection to the broker is closed");
            }
            // The client sends the first for each attempt to connect that fails, and for nothing else; the second
            // comes besides while the broker does not know the certificate.
            Event::ClientError(_) => self.note(event, service, Absence::failed),
            Event::ServerError(ServerError::AuthorizationViolation) if *self.epoch.borrow() & 1 == 0 => {
                self.note(event, service, Absence::failed);
            }
            Event::ServerError(ServerError::Other(text)) => {
                tracing::error!(service, error = %text, "the broker refused an operation");
                if let Some(subject) = denied_publish(text) {
                    // No receiver means nobody is waiting for an acknowledgement.
                    let _ = self.denied.send(subject.into());
                }
            }
            other => tracing::warn!(service, event = %other, "broker event"),
        }
    }

    fn note(&self, event: &Event, service: &str, step: impl FnOnce(&mut Absence, Instant) -> Option<Notice>) {
        let notice = {
            let mut absence = self.absence.lock().unwrap_or_else(PoisonError::into_inner);
            step(&mut absence, Instant::now())
        };
        if let Some(notice) = notice {
            say(&notice, event, service);
        }
    }

    pub(crate) fn epoch(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    fn number(&self) -> u64 {
        *self.epoch.borrow()
    }

    pub(crate) fn denied(&self) -> broadcast::Receiver<Arc<str>> {
        self.denied.subscribe()
    }

    /// Waits until connected and returns the connection's number.
    pub(crate) async fn connected(&self) -> u64 {
        let mut epoch = self.epoch.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        epoch.wait_for(|epoch| epoch & 1 == 1).await.map_or(0, |epoch| *epoch)
    }
}

fn say(notice: &Notice, event: &Event, service: &str) {
    match notice {
        Notice::Connected => tracing::info!(service, "connected to the broker"),
        Notice::Lost => tracing::warn!(
            service, code = "GAR-BUS-0002", reason = %event,
            "there is no connection to the broker; trying again until there is"
        ),
        Notice::StillAway { away, attempts } => tracing::warn!(
            service, code = "GAR-BUS-0002", reason = %event, away_s = away.as_secs(), attempts,
            "there is still no connection to the broker"
        ),
        Notice::Back { away, attempts } => tracing::info!(
            service,
            away_s = away.as_secs_f64(),
            attempts,
            "connected to the broker again"
        ),
    }
}

/// Reads the subject out of `Permissions Violation for Publish to "subject"`.
fn denied_publish(text: &str) -> Option<&str> {
    let rest = text.split_once("for Publish to \"")?.1;
    rest.split_once('"').map(|(subject, _)| subject)
}

impl Bus {
    /// Prepares a connection and returns at once, also when the broker is away; it connects in the background
    /// and reconnects for ever. `service` names the connection on the broker and in metrics.
    ///
    /// # Errors
    /// [`BusError::Config`] and [`BusError::Identity`] when addresses or files cannot be used.
    pub async fn connect(config: &BusConfig, service: &str) -> Result<Self, BusError> {
        if config.urls.is_empty() {
            return Err(BusError::Config {
                key: "urls",
                reason: "it is empty".to_owned(),
            });
        }
        let addresses = config
            .urls
            .iter()
            .map(|url| address(url))
            .collect::<Result<Vec<_>, _>>()?;
        if config.max_in_flight == 0 {
            return Err(BusError::Config {
                key: "max_in_flight",
                reason: "it must be at least 1".to_owned(),
            });
        }
        let path = identity::load(config)?;
        // Another TLS user of the process may have chosen first; any choice will do.
        let _ = rustls::crypto::ring::default_provider().install_default();

        let link = Link::new();
        let events = link.clone();
        let name: Arc<str> = service.into();
        let client = ConnectOptions::new()
            .name(service)
            .require_tls(true)
            .add_root_certificates(config.ca_file.clone())
            .add_client_certificate(config.cert_file.clone(), config.key_file.clone())
            // The broker lets each identity read only its own inboxes.
            .custom_inbox_prefix(format!("_INBOX.{}", identity::inbox_token(&path)))
            .retry_on_initial_connect()
            .max_reconnects(None)
            .connection_timeout(Duration::from_secs(5))
            .ping_interval(Duration::from_secs(10))
            .reconnect_delay_callback(|attempt| {
                let exponent = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
                Duration::from_millis(5 << exponent).min(MAX_RECONNECT_DELAY)
            })
            .event_callback(move |event| {
                events.on_event(&event, &name);
                std::future::ready(())
            })
            .connect(addresses)
            .await
            .map_err(|error| BusError::Unavailable {
                operation: "prepare the connection".to_owned(),
                reason: error.to_string(),
            })?;

        let ack_timeout = Duration::from_millis(config.ack_timeout_ms.max(1));
        let jetstream = jetstream::context::ContextBuilder::new()
            .timeout(ack_timeout)
            .ack_timeout(ack_timeout)
            .max_ack_inflight(config.max_in_flight * 2)
            .build(client.clone());
        let metrics = Metrics::new();
        let publisher = Publisher::new(
            jetstream.clone(),
            link.clone(),
            metrics.clone(),
            config.max_in_flight,
            ack_timeout,
        );
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                jetstream,
                publisher,
                link,
                metrics,
                service: service.to_owned(),
            }),
        })
    }

    /// The publisher of this connection; all clones share one limit of messages in flight.
    pub fn publisher(&self) -> Publisher {
        self.inner.publisher.clone()
    }

    /// True while the connection stands.
    pub fn is_connected(&self) -> bool {
        self.inner.client.connection_state() == State::Connected
    }

    /// Waits until the connection stands, which may be for ever.
    pub async fn connected(&self) {
        self.inner.link.connected().await;
    }

    /// The number of the connection, which grows whenever one is made or lost: a broker that was away may have lost what it
    /// had not written.
    pub fn connection(&self) -> u64 {
        self.inner.link.number()
    }

    /// The name given to [`Bus::connect`].
    pub fn service(&self) -> &str {
        &self.inner.service
    }

    /// The NATS client, for what this crate does not cover.
    pub fn client(&self) -> &async_nats::Client {
        &self.inner.client
    }

    /// The JetStream context of the client.
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.inner.jetstream
    }

    /// Whether a plain subscriber was sent a copy by way of somebody's pull request, which carries that consumer's reply
    /// subject, whatever its headers say; see `Delivery::read`. Counts and logs it.
    pub(crate) fn refuses_copy(&self, message: &async_nats::Message) -> bool {
        let copied = message.reply.as_deref().is_some_and(|reply| reply.starts_with("$JS."));
        if copied {
            self.inner.metrics.core_malformed.add(1, &[]);
            tracing::error!(subject = %message.subject, "left out a message that was not published here");
        }
        copied
    }

    /// Listens to a subject without a consumer: at most once, to every process that listens, in well under a
    /// millisecond. For news that must reach everybody at once and whose truth is elsewhere, such as revocations.
    /// Survives reconnects; what is published meanwhile is missed. Malformed messages are logged and left out.
    ///
    /// # Errors
    /// [`BusError::Refused`] when the subject is malformed. A missing permission is only logged, because the
    /// broker reports it later.
    pub async fn subscribe_core(&self, subject: impl Into<String>) -> Result<CoreSubscription, BusError> {
        let subject = subject.into();
        let subscriber = self
            .inner
            .client
            .subscribe(subject.clone())
            .await
            .map_err(|error| BusError::Refused {
                operation: format!("subscribe to {subject}"),
                reason: error.to_string(),
            })?;
        Ok(CoreSubscription {
            subscriber,
            bus: self.clone(),
        })
    }
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus")
            .field("service", &self.inner.service)
            .field("connected", &self.is_connected())
            .finish()
    }
}

fn address(url: &str) -> Result<ServerAddr, BusError> {
    let bad = |reason: String| BusError::Config {
        key: "urls",
        reason: format!("{url:?}: {reason}"),
    };
    let address: ServerAddr = url.parse().map_err(|error: std::io::Error| bad(error.to_string()))?;
    match address.scheme() {
        "tls" | "nats" => Ok(address),
        other => Err(bad(format!("scheme {other:?} is not supported; use tls://host:port"))),
    }
}

/// Messages of a core subscription; see [`Bus::subscribe_core`]. Ends when the client is closed.
pub struct CoreSubscription {
    subscriber: async_nats::Subscriber,
    bus: Bus,
}

impl Stream for CoreSubscription {
    type Item = Delivery;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        loop {
            let Some(message) = ready!(self.subscriber.poll_next_unpin(cx)) else {
                return Poll::Ready(None);
            };
            if self.bus.refuses_copy(&message) {
                continue;
            }
            let position = Position {
                attempt: 0,
                stream_sequence: 0,
                consumer_sequence: 0,
                stored: None,
                stream: None,
            };
            match Delivery::read(&message.subject, message.headers.as_ref(), message.payload, position) {
                Ok(delivery) => return Poll::Ready(Some(delivery)),
                Err(reason) => {
                    self.bus.inner.metrics.core_malformed.add(1, &[]);
                    tracing::warn!(subject = %message.subject, reason, "left out a malformed message");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_s_refusal_names_the_subject() {
        let text = "Permissions Violation for Publish to \"alerts.v1.acme.high.x\"";
        assert_eq!(denied_publish(text), Some("alerts.v1.acme.high.x"));
        assert_eq!(denied_publish("Permissions Violation for Subscription to \"a\""), None);
    }

    #[test]
    fn plaintext_and_other_schemes_are_refused() {
        assert!(address("tls://localhost:4222").is_ok());
        for bad in ["ws://localhost:1", "http://x", "::::"] {
            assert!(address(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn connection_numbers_are_odd_while_connected() {
        let link = Link::new();
        let epoch = link.epoch();
        let mut seen = Vec::new();
        for event in [
            Event::Connected,
            Event::Disconnected,
            Event::Disconnected,
            Event::Connected,
        ] {
            link.on_event(&event, "test");
            seen.push(*epoch.borrow());
        }
        assert_eq!(seen, [1, 2, 2, 3]);
    }
}
