use std::borrow::Cow;

use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use prost::Name;
use serde::Serialize;
use uuid::Uuid;

use crate::{PublishError, topology, trace};

/// Content types on the bus.
pub mod content_type {
    /// Protocol Buffers.
    pub const PROTOBUF: &str = "application/protobuf";
    /// Arrow IPC stream format: flow batches.
    pub const ARROW_STREAM: &str = "application/vnd.apache.arrow.stream";
    /// JSON.
    pub const JSON: &str = "application/json";
}

pub(crate) mod header {
    pub(crate) const ID: &str = "ce-id";
    pub(crate) const TYPE: &str = "ce-type";
    pub(crate) const SOURCE: &str = "ce-source";
    pub(crate) const TIME: &str = "ce-time";
    pub(crate) const SPEC_VERSION: &str = "ce-specversion";
    pub(crate) const CONTENT_TYPE: &str = "content-type";
    pub(crate) const TRACEPARENT: &str = "traceparent";
    pub(crate) const MESSAGE_ID: &str = "Nats-Msg-Id";
    pub(crate) const EXPECTED_STREAM: &str = "Nats-Expected-Stream";
}

/// A CloudEvent 1.0 on its way to the bus, in NATS binary mode: attributes in headers, data in the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Unique id (`ce-id`, and `Nats-Msg-Id` for the broker's deduplication). The same event must keep its id
    /// when it is published again.
    pub id: Uuid,
    /// Where it goes; see [`crate::subject`].
    pub subject: String,
    /// `ce-type`: for protobuf the full message name, such as `garrison.alert.v1.Alert`.
    pub kind: String,
    /// `ce-source`: the service that made it.
    pub source: String,
    /// `ce-time`: when the event happened.
    pub time: DateTime<Utc>,
    /// Type of the payload.
    pub content_type: Cow<'static, str>,
    /// The data.
    pub payload: Bytes,
    /// W3C trace context of the sender, captured when the message was made.
    pub traceparent: Option<String>,
}

impl Message {
    /// A message with any payload, a new UUIDv7 as its id, now as its time, and the current trace.
    pub fn new(
        subject: String,
        source: &str,
        kind: impl Into<String>,
        content_type: impl Into<Cow<'static, str>>,
        payload: Bytes,
    ) -> Self {
        Self {
            id: Uuid::now_v7(),
            subject,
            kind: kind.into(),
            source: source.to_owned(),
            time: Utc::now(),
            content_type: content_type.into(),
            payload,
            traceparent: trace::current_traceparent(),
        }
    }

    /// A protobuf message; `ce-type` is its full name.
    pub fn proto<M: prost::Message + Name>(subject: String, source: &str, message: &M) -> Self {
        Self::new(
            subject,
            source,
            M::full_name(),
            content_type::PROTOBUF,
            message.encode_to_vec().into(),
        )
    }

    /// A flow batch in Arrow IPC stream format.
    pub fn flows(subject: String, source: &str, payload: Bytes) -> Self {
        Self::new(
            subject,
            source,
            "garrison.flow.v1.FlowBatch",
            content_type::ARROW_STREAM,
            payload,
        )
    }

    /// A JSON document, such as an OCSF event.
    ///
    /// # Errors
    /// When `data` cannot be written as JSON (a map with keys that are no text, for example).
    pub fn json(subject: String, source: &str, kind: &str, data: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(Self::new(
            subject,
            source,
            kind,
            content_type::JSON,
            serde_json::to_vec(data)?.into(),
        ))
    }

    /// Replaces the id, for events whose id is known from elsewhere.
    #[must_use]
    pub fn with_id(mut self, id: Uuid) -> Self {
        self.id = id;
        self
    }

    /// Replaces the time.
    #[must_use]
    pub fn with_time(mut self, time: DateTime<Utc>) -> Self {
        self.time = time;
        self
    }

    pub(crate) fn headers(&self) -> Result<HeaderMap, PublishError> {
        let mut headers = HeaderMap::new();
        let mut put = |name: &'static str, text: &str| match text.parse::<HeaderValue>() {
            Ok(value) => {
                headers.insert(name, value);
                Ok(())
            }
            Err(_) => Err(PublishError::Refused {
                subject: self.subject.clone(),
                reason: format!("the value of {name} has a line break"),
            }),
        };
        let id = self.id.to_string();
        put(header::MESSAGE_ID, &id)?;
        put(header::ID, &id)?;
        put(header::TYPE, &self.kind)?;
        put(header::SOURCE, &self.source)?;
        put(header::TIME, &self.time.to_rfc3339_opts(SecondsFormat::Nanos, true))?;
        put(header::SPEC_VERSION, "1.0")?;
        put(header::CONTENT_TYPE, &self.content_type)?;
        // The broker refuses the message in any other stream; see `Delivery::read`.
        if let Some(stream) = topology::stream_of(&self.subject) {
            put(header::EXPECTED_STREAM, stream)?;
        }
        if let Some(traceparent) = &self.traceparent {
            put(header::TRACEPARENT, traceparent)?;
        }
        Ok(headers)
    }
}
