use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use garrison_proto::TenantId;
use prost::Name;
use tracing::Span;
use uuid::Uuid;

use crate::{Disposition, content_type, message::header, subject, trace};

/// How old a message should be before it is taken up by whom containment does not wait for.
const STAND_BACK: Duration = Duration::from_millis(50);

/// Longest header value that is taken from a message, in bytes.
const MAX_HEADER: usize = 512;

/// A message from the bus whose subject and headers have been checked.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The event's id (`ce-id`): what an inbox table remembers.
    pub id: Uuid,
    /// Where it came from.
    pub subject: String,
    /// Whose it is, from the subject. The broker's permissions say who may publish there.
    pub tenant: TenantId,
    /// `ce-type`.
    pub kind: String,
    /// `ce-source`. A claim by the sender, not a verified identity.
    pub source: String,
    /// `ce-time`.
    pub time: DateTime<Utc>,
    /// Type of the payload.
    pub content_type: String,
    /// The data.
    pub payload: Bytes,
    /// W3C trace context of the sender.
    pub traceparent: Option<String>,
    /// 1 at the first delivery, also by the stream after a direct one. 0 for core subscriptions, which deliver at most
    /// once.
    pub attempt: u64,
    /// Position in the stream; 0 for core subscriptions and for what a consumer heard directly.
    pub stream_sequence: u64,
    /// How many deliveries its consumer has made up to this one, redeliveries and those to other replicas included; 0 where
    /// no consumer delivered it. Two that come one after the other have neighbouring numbers unless something was handed
    /// out elsewhere in between.
    pub consumer_sequence: u64,
    /// When the broker stored it; when it came for what was heard directly; `ce-time` for core subscriptions.
    pub stored: DateTime<Utc>,
}

/// Where a delivery stands in its stream.
pub(crate) struct Position {
    pub(crate) attempt: u64,
    pub(crate) stream_sequence: u64,
    pub(crate) consumer_sequence: u64,
    pub(crate) stored: Option<DateTime<Utc>>,
    /// The stream, for deliveries of a consumer.
    pub(crate) stream: Option<&'static str>,
}

impl Delivery {
    /// Checks subject and headers. The error is the reason for a rejection.
    ///
    /// The broker does not check the reply subject of a pull request against permissions, so an identity can have it
    /// copy a message of its own consumer to any subject. Such a copy is told by its headers: the broker refuses a
    /// message whose expected stream is another, so one that names this stream was published to it.
    pub(crate) fn read(
        subject: &str,
        headers: Option<&HeaderMap>,
        payload: Bytes,
        position: Position,
    ) -> Result<Self, String> {
        let tenant = subject::tenant_of(subject).map_err(|error| error.to_string())?;
        let headers = headers.ok_or("GAR-BUS-0007: the message has no CloudEvents headers")?;
        let text = |name: &'static str| -> Result<&str, String> {
            let value = headers
                .get(name)
                .ok_or_else(|| format!("GAR-BUS-0007: header {name} is missing"))?;
            let value = value.as_str();
            if value.is_empty() || value.len() > MAX_HEADER {
                return Err(format!(
                    "GAR-BUS-0007: header {name} is empty or longer than {MAX_HEADER} bytes"
                ));
            }
            Ok(value)
        };
        let version = text(header::SPEC_VERSION)?;
        if version != "1.0" {
            return Err(format!("GAR-BUS-0007: CloudEvents version {version:?} is not 1.0"));
        }
        if let Some(stream) = position.stream {
            let expected = text(header::EXPECTED_STREAM)?;
            if expected != stream {
                return Err(format!(
                    "GAR-BUS-0007: the message was published to stream {expected:?}"
                ));
            }
            if text(header::MESSAGE_ID)? != text(header::ID)? {
                return Err("GAR-BUS-0007: Nats-Msg-Id is not ce-id".to_owned());
            }
        }
        let id = text(header::ID)?;
        let id = Uuid::parse_str(id).map_err(|_| format!("GAR-BUS-0007: ce-id {id:?} is not a UUID"))?;
        let time = text(header::TIME)?;
        let time = DateTime::parse_from_rfc3339(time)
            .map_err(|_| format!("GAR-BUS-0007: ce-time {time:?} is not an RFC 3339 time"))?
            .with_timezone(&Utc);
        Ok(Self {
            id,
            subject: subject.to_owned(),
            tenant,
            kind: text(header::TYPE)?.to_owned(),
            source: text(header::SOURCE)?.to_owned(),
            time,
            content_type: text(header::CONTENT_TYPE)?.to_owned(),
            payload,
            traceparent: text(header::TRACEPARENT).ok().map(str::to_owned),
            attempt: position.attempt,
            stream_sequence: position.stream_sequence,
            consumer_sequence: position.consumer_sequence,
            stored: position.stored.unwrap_or(time),
        })
    }

    /// Decodes the payload, after checking that type and content type are those of `M`.
    ///
    /// # Errors
    /// A [`Disposition::Reject`] with the reason, ready to be returned by the handler.
    pub fn decode<M: prost::Message + Default + Name>(&self) -> Result<M, Disposition> {
        let reject = |reason: String| Disposition::Reject { reason };
        let expected = M::full_name();
        if self.kind != expected {
            return Err(reject(format!(
                "GAR-BUS-0007: the message is a {:?}, expected {expected}",
                self.kind
            )));
        }
        if self.content_type != content_type::PROTOBUF {
            return Err(reject(format!(
                "GAR-BUS-0007: content type {:?} is not protobuf",
                self.content_type
            )));
        }
        M::decode(self.payload.as_ref())
            .map_err(|error| reject(format!("GAR-BUS-0007: the payload is no {expected}: {error}")))
    }

    /// A span that continues the sender's trace. Handlers run by [`crate::run_consumer`] are already inside
    /// such a span and need this only for work that outlives the handler.
    pub fn span(&self, name: &'static str) -> Span {
        let span = tracing::info_span!(
            "delivery",
            otel.name = name,
            otel.kind = "consumer",
            subject = %self.subject,
            tenant = %self.tenant,
            id = %self.id,
            attempt = self.attempt,
        );
        trace::span_with_parent(span, self.traceparent.as_deref())
    }

    /// Waits until the message is 50 ms old, for handlers of what will be as true a moment later: what containment does
    /// with the same message must not share the processor with them (decision 0022). Clocks of two machines differ: no
    /// longer than that in any case.
    pub async fn stand_back(&self) {
        let age = (Utc::now() - self.time).to_std().unwrap_or_default();
        tokio::time::sleep(STAND_BACK.saturating_sub(age)).await;
    }
}

#[cfg(test)]
mod tests {
    use garrison_proto::event::v1::KeySetChanged;
    use proptest::prelude::*;

    use super::*;
    use crate::Message;

    fn position() -> Position {
        Position {
            attempt: 1,
            stream_sequence: 7,
            consumer_sequence: 9,
            stored: None,
            stream: Some("EVENTS"),
        }
    }

    fn message() -> Message {
        Message::proto(
            "events.v1.acme.keys".to_owned(),
            "iam",
            &KeySetChanged {
                key_id: "k1".to_owned(),
            },
        )
    }

    #[test]
    fn what_was_sent_is_what_is_read() {
        let sent = message();
        let headers = sent.headers().unwrap();
        let got = Delivery::read(&sent.subject, Some(&headers), sent.payload.clone(), position()).unwrap();
        assert_eq!(
            (got.id, got.kind.as_str(), got.source.as_str()),
            (sent.id, sent.kind.as_str(), "iam")
        );
        assert_eq!(got.time, sent.time);
        assert_eq!((got.stream_sequence, got.consumer_sequence), (7, 9));
        assert_eq!(got.tenant.as_str(), "acme");
        assert_eq!(got.decode::<KeySetChanged>().unwrap().key_id, "k1");
        let wrong = got.decode::<garrison_proto::event::v1::PolicyChanged>().unwrap_err();
        assert!(matches!(wrong, Disposition::Reject { reason } if reason.contains("PolicyChanged")));
    }

    #[test]
    fn every_missing_or_broken_header_is_named() {
        let sent = message();
        let cases = [
            ("ce-id", "no-uuid"),
            ("ce-time", "yesterday"),
            ("ce-specversion", "0.3"),
            ("ce-type", ""),
            ("ce-source", ""),
            ("content-type", ""),
            ("Nats-Expected-Stream", "RESPONSES"),
            ("Nats-Msg-Id", "another"),
        ];
        for (name, broken) in cases {
            let mut headers = sent.headers().unwrap();
            headers.insert(name, broken);
            let reason = Delivery::read(&sent.subject, Some(&headers), Bytes::new(), position()).unwrap_err();
            assert!(reason.contains("GAR-BUS-0007"), "{reason}");
            let mut without = HeaderMap::new();
            for (other, values) in headers.iter() {
                if other.to_string() != name {
                    without.insert(other.clone(), values[0].clone());
                }
            }
            let reason = Delivery::read(&sent.subject, Some(&without), Bytes::new(), position()).unwrap_err();
            assert!(reason.contains(name), "{name}: {reason}");
        }
        assert!(
            Delivery::read(
                "events.v1.*.keys",
                Some(&sent.headers().unwrap()),
                Bytes::new(),
                position()
            )
            .is_err()
        );
        assert!(Delivery::read(&sent.subject, None, Bytes::new(), position()).is_err());
    }

    #[test]
    fn a_line_break_cannot_smuggle_a_header() {
        let mut sent = message();
        sent.source = "iam\r\nce-type: other".to_owned();
        assert!(matches!(sent.headers(), Err(crate::PublishError::Refused { .. })));
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(values in prop::collection::vec("[^\r\n]{0,600}", 7)) {
            let names = ["ce-id", "ce-type", "ce-source", "ce-time", "ce-specversion", "content-type", "traceparent"];
            let mut headers = HeaderMap::new();
            for (name, value) in names.iter().zip(&values) {
                headers.insert(*name, value.as_str());
            }
            prop_assert!(Delivery::read("events.v1.acme.keys", Some(&headers), Bytes::new(), position()).is_err());
        }
    }
}
