use async_nats::{HeaderMap, Message, jetstream::message::PublishMessage};
use bytes::Bytes;

use crate::{Bus, ConsumerSpec, PublishError, message::header, subject};

/// Longest reason that travels in a header, in bytes.
const MAX_REASON: usize = 2_000;

/// A message that a consumer could not take.
pub(crate) struct Letter<'a> {
    pub(crate) spec: &'a ConsumerSpec,
    pub(crate) message: &'a Message,
    pub(crate) sequence: u64,
    pub(crate) attempts: u64,
    pub(crate) reason: &'a str,
}

/// Stores the message with the reason on `dlq.v1.<stream>.<consumer>` and waits for the acknowledgement. A message
/// that became too large through the added headers is stored without its payload; the original is in its stream.
pub(crate) async fn store(bus: &Bus, letter: &Letter<'_>) -> Result<(), PublishError> {
    let subject = subject::dlq(letter.spec.stream, &letter.spec.name);
    let publisher = bus.publisher();
    let headers = headers(letter);
    let whole = PublishMessage::build()
        .payload(letter.message.payload.clone())
        .headers(headers.clone());
    match publisher
        .publish_raw(&subject, whole, letter.message.payload.len())
        .await
    {
        Err(PublishError::TooLarge { .. }) => {
            let mut headers = headers;
            headers.insert("dlq-payload", "omitted: too large");
            let bare = PublishMessage::build().payload(Bytes::new()).headers(headers);
            publisher.publish_raw(&subject, bare, 0).await
        }
        outcome => outcome,
    }
}

fn headers(letter: &Letter<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, values) in letter.message.headers.iter().flat_map(HeaderMap::iter) {
        // The broker's own headers (message id, expectations, rollup, TTL) would act on the DLQ stream.
        if name.to_string().to_ascii_lowercase().starts_with("nats-") {
            continue;
        }
        for value in values {
            headers.append(name.clone(), value.clone());
        }
    }
    let spec = letter.spec;
    headers.insert("dlq-reason", clean(letter.reason).as_str());
    headers.insert("dlq-stream", spec.stream);
    headers.insert("dlq-consumer", spec.name.as_ref());
    headers.insert("dlq-subject", letter.message.subject.as_str());
    headers.insert("dlq-sequence", letter.sequence.to_string().as_str());
    headers.insert("dlq-attempts", letter.attempts.to_string().as_str());
    // The same message rejected again, because the process died in between, is one letter.
    let id = format!("dlq:{}:{}:{}", spec.stream, spec.name, letter.sequence);
    headers.insert(header::MESSAGE_ID, id.as_str());
    headers
}

/// A header value has no line breaks.
fn clean(reason: &str) -> String {
    let mut text: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut end = text.len().min(MAX_REASON);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::EVENTS_FORENSICS;

    #[test]
    fn the_letter_keeps_the_original_headers_but_none_that_act_on_the_broker() {
        let mut original = HeaderMap::new();
        original.insert("ce-id", "x");
        original.insert("Nats-Msg-Id", "x");
        original.insert("Nats-Rollup", "all");
        let message = Message {
            subject: "events.v1.acme.login".into(),
            reply: None,
            payload: Bytes::new(),
            headers: Some(original),
            status: None,
            description: None,
            length: 0,
        };
        let reason = format!("line\r\nbreak {}", "ä".repeat(3_000));
        let letter = Letter {
            spec: &EVENTS_FORENSICS,
            message: &message,
            sequence: 9,
            attempts: 2,
            reason: &reason,
        };
        let headers = headers(&letter);
        let get = |name: &str| headers.get(name).map(|v| v.as_str().to_owned());
        assert_eq!(get("ce-id").as_deref(), Some("x"));
        assert_eq!(get("Nats-Rollup"), None);
        assert_eq!(get("Nats-Msg-Id").as_deref(), Some("dlq:EVENTS:forensics:9"));
        assert_eq!(get("dlq-subject").as_deref(), Some("events.v1.acme.login"));
        let reason = get("dlq-reason").unwrap();
        assert!(reason.starts_with("line  break") && reason.len() <= MAX_REASON);
    }
}
