//! Pull requests against one durable consumer.
//!
//! The client library's own pull stream keeps a fixed number of messages buffered whether or not anybody has room
//! for them. Here the caller says how many it has room for, and a request for exactly that many stays with the
//! broker, so that a message is delivered the moment it is stored and none is pulled that would have to wait.

use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use futures::StreamExt;
use serde::Serialize;
use tokio::time::Instant;

use crate::{Bus, BusError};

/// How long the broker keeps a request.
const EXPIRES: Duration = Duration::from_secs(30);
/// How often the broker says that it still has the request.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Silence after which the request is taken for lost.
const SILENCE: Duration = Duration::from_secs(8);

/// A subscription with its requests. Valid for one connection.
pub(crate) struct Pull {
    bus: Bus,
    subject: String,
    inbox: String,
    subscriber: Subscriber,
    outstanding: usize,
    last_heard: Instant,
}

/// What came out of a [`Pull`].
pub(crate) enum Pulled {
    Message(Message),
    /// Ask for more, if there is room.
    Again,
    /// The consumer or stream is missing, or JetStream is not up.
    Missing(String),
    /// The requests are lost; make a new [`Pull`].
    Lost(&'static str),
}

#[derive(Serialize)]
struct Request {
    batch: usize,
    expires: u128,
    idle_heartbeat: u128,
}

impl Pull {
    pub(crate) async fn open(bus: &Bus, stream: &str, consumer: &str) -> Result<Self, BusError> {
        let inbox = bus.client().new_inbox();
        let subscriber = bus
            .client()
            .subscribe(inbox.clone())
            .await
            .map_err(|error| BusError::Unavailable {
                operation: format!("subscribe for {stream}/{consumer}"),
                reason: error.to_string(),
            })?;
        Ok(Self {
            bus: bus.clone(),
            subject: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
            inbox,
            subscriber,
            outstanding: 0,
            last_heard: Instant::now(),
        })
    }

    /// Messages that were asked for and did not come yet.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Asks for `batch` more messages.
    pub(crate) async fn request(&mut self, batch: usize) -> Result<(), BusError> {
        let request = Request {
            batch,
            expires: EXPIRES.as_nanos(),
            idle_heartbeat: HEARTBEAT.as_nanos(),
        };
        let unavailable = |reason: String| BusError::Unavailable {
            operation: "pull messages".to_owned(),
            reason,
        };
        let payload = serde_json::to_vec(&request).map_err(|error| unavailable(error.to_string()))?;
        self.bus
            .client()
            .publish_with_reply(self.subject.clone(), self.inbox.clone(), payload.into())
            .await
            .map_err(|error| unavailable(error.to_string()))?;
        if self.outstanding == 0 {
            self.last_heard = Instant::now();
        }
        self.outstanding += batch;
        Ok(())
    }

    /// Waits for what comes next. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Pulled {
        let silence = async {
            if self.outstanding > 0 {
                tokio::time::sleep_until(self.last_heard + SILENCE).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        let message = tokio::select! {
            message = self.subscriber.next() => message,
            () = silence => return Pulled::Lost("the broker fell silent"),
        };
        let Some(message) = message else {
            return Pulled::Lost("the subscription ended");
        };
        self.last_heard = Instant::now();
        match message.status {
            None | Some(StatusCode::OK) => {
                self.outstanding = self.outstanding.saturating_sub(1);
                Pulled::Message(message)
            }
            Some(StatusCode::IDLE_HEARTBEAT) => Pulled::Again,
            Some(StatusCode::NO_RESPONDERS) => Pulled::Missing("no such stream or consumer".to_owned()),
            // The request ended; the header says how many of its messages did not come.
            Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => {
                self.ended(&message);
                Pulled::Again
            }
            Some(StatusCode::REQUEST_TERMINATED) => {
                let description = message.description.clone().unwrap_or_default();
                if description.eq_ignore_ascii_case("Consumer Deleted")
                    || description.eq_ignore_ascii_case("Consumer is push based")
                {
                    return Pulled::Missing(description);
                }
                Pulled::Lost("the broker ended the request")
            }
            Some(_) => Pulled::Lost("the broker answered with an unknown status"),
        }
    }

    fn ended(&mut self, message: &Message) {
        let left = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get("Nats-Pending-Messages"))
            .and_then(|value| value.as_str().parse::<usize>().ok());
        self.outstanding = left.map_or(0, |left| self.outstanding.saturating_sub(left));
    }

    /// Ends the requests and returns the messages that were already on their way.
    pub(crate) async fn close(mut self) -> Vec<Message> {
        let mut rest = Vec::new();
        if self.subscriber.drain().await.is_err() {
            return rest;
        }
        let collect = async {
            while let Some(message) = self.subscriber.next().await {
                if matches!(message.status, None | Some(StatusCode::OK)) {
                    rest.push(message);
                }
            }
        };
        // The broker answers a drain within a round trip, unless it is away.
        let _ = tokio::time::timeout(Duration::from_millis(500), collect).await;
        rest
    }
}
