//! Reading back what a consumer was given before: for services that keep state in memory, save it from time to time,
//! and after a crash must take again what came since.

use std::time::Duration;

use async_nats::{Request, StatusCode};
use chrono::DateTime;
use serde_json::{Value, json};

use crate::{Bus, BusError, ConsumerSpec, Delivery, delivery::Position};

const PATIENCE: Duration = Duration::from_secs(5);

/// A message read back from its stream.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its position in the stream.
    pub sequence: u64,
    /// The message, or why it cannot be read; the consumer has put that one into the DLQ, or will.
    pub delivery: Result<Delivery, String>,
}

impl Bus {
    /// The stream position of the last message that the consumer was given, acknowledged or not; 0 before the first.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] while the broker is away or the consumer is not provisioned.
    pub async fn delivered(&self, consumer: &ConsumerSpec) -> Result<u64, BusError> {
        self.position_of(consumer, "/delivered/stream_seq").await
    }

    /// The stream position up to which every message of the consumer is acknowledged; 0 before the first.
    ///
    /// # Errors
    /// As [`Bus::delivered`].
    pub async fn acknowledged(&self, consumer: &ConsumerSpec) -> Result<u64, BusError> {
        self.position_of(consumer, "/ack_floor/stream_seq").await
    }

    async fn position_of(&self, consumer: &ConsumerSpec, which: &str) -> Result<u64, BusError> {
        let subject = format!("$JS.API.CONSUMER.INFO.{}.{}", consumer.stream, consumer.name);
        let operation = || format!("ask for consumer {}/{}", consumer.stream, consumer.name);
        let answer = self.ask(subject, Vec::new(), &operation).await?;
        let info: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
        info.pointer(which).and_then(Value::as_u64).ok_or_else(|| {
            let said = info.pointer("/error/description").and_then(Value::as_str);
            BusError::Unavailable {
                operation: operation(),
                reason: said.unwrap_or("the answer names no position").to_owned(),
            }
        })
    }

    /// The last message on `subject` (wildcards allowed) that the consumer's stream stores. `None` when there is none. The
    /// consumer must be one that replays.
    ///
    /// # Errors
    /// As [`Bus::stored`].
    pub async fn last_stored(&self, consumer: &ConsumerSpec, subject: &str) -> Result<Option<Stored>, BusError> {
        self.read_stored(consumer, json!({ "last_by_subj": subject })).await
    }

    /// The first message on `subject` (wildcards allowed) that the consumer's stream stores at `sequence` or behind
    /// it. `None` when there is none. The consumer must be one that replays.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] while the broker is away, [`BusError::Refused`] when it will not serve the read.
    pub async fn stored(
        &self,
        consumer: &ConsumerSpec,
        subject: &str,
        sequence: u64,
    ) -> Result<Option<Stored>, BusError> {
        let request = json!({ "seq": sequence.max(1), "next_by_subj": subject });
        self.read_stored(consumer, request).await
    }

    async fn read_stored(&self, consumer: &ConsumerSpec, request: Value) -> Result<Option<Stored>, BusError> {
        let operation = || format!("read {} back: {request}", consumer.stream);
        let api = format!("$JS.API.DIRECT.GET.{}", consumer.stream);
        let answer = self.ask(api, request.to_string().into_bytes(), &operation).await?;
        let refused = |reason: String| BusError::Refused {
            operation: operation(),
            reason,
        };
        match answer.status {
            None | Some(StatusCode::OK) => {}
            Some(StatusCode::NOT_FOUND) => return Ok(None),
            Some(status) => {
                let description = answer.description.unwrap_or_default();
                return Err(refused(format!("{status} {description}")));
            }
        }
        let headers = answer.headers.as_ref();
        let header = |name: &str| headers.and_then(|h| h.get(name)).map(|v| v.as_str());
        let sequence: u64 = header("Nats-Sequence")
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| refused("the answer names no sequence".to_owned()))?;
        let subject = header("Nats-Subject").unwrap_or_default().to_owned();
        let time = header("Nats-Time-Stamp").and_then(|text| DateTime::parse_from_rfc3339(text).ok());
        let position = Position {
            attempt: 1,
            stream_sequence: sequence,
            consumer_sequence: 0,
            stored: time.map(|time| time.to_utc()),
            stream: Some(consumer.stream),
        };
        let delivery = Delivery::read(&subject, headers, answer.payload.clone(), position);
        Ok(Some(Stored { sequence, delivery }))
    }

    async fn ask(
        &self,
        subject: String,
        payload: Vec<u8>,
        operation: &(impl Fn() -> String + Sync),
    ) -> Result<async_nats::Message, BusError> {
        let request = Request::new().payload(payload.into()).timeout(Some(PATIENCE));
        let answer = self.client().send_request(subject, request).await;
        answer.map_err(|error| BusError::Unavailable {
            operation: operation(),
            reason: error.to_string(),
        })
    }
}
