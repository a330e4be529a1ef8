//! From an audit record to the bytes that are hashed.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use garrison_proof::{Hash, json, merkle};
use garrison_proto::{TenantId, audit::v1::AuditRecord, from_timestamp};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use uuid::Uuid;

/// The largest record that is taken, in bytes of its protobuf form.
pub const MAX_RECORD: usize = 256 << 10;

static DESCRIPTOR: LazyLock<Option<MessageDescriptor>> = LazyLock::new(|| {
    DescriptorPool::decode(garrison_proto::FILE_DESCRIPTOR_SET)
        .ok()?
        .get_message_by_name("garrison.audit.v1.AuditRecord")
});

/// A record that may be logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The audit record's id.
    pub id: Uuid,
    /// When it says that it happened.
    pub occurred: DateTime<Utc>,
    /// Canonical JSON: protobuf's JSON mapping with sorted keys and no white space.
    pub body: Vec<u8>,
    /// `SHA-256(0x00 || body)`.
    pub leaf: Hash,
}

/// Why a message is no audit record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRecord {
    /// It is too large.
    #[error("GAR-COMP-0007: the audit record has {0} bytes; at most {MAX_RECORD} are taken")]
    TooLarge(usize),
    /// A field is missing or wrong.
    #[error("GAR-COMP-0007: the audit record's {field} {problem}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Record {
    /// Checks a record against the tenant and service of the subject that it came on.
    ///
    /// # Errors
    /// [`InvalidRecord`] names the field.
    pub fn read(record: &AuditRecord, tenant: &TenantId, service: &str) -> Result<Self, InvalidRecord> {
        let wrong = |field, problem| InvalidRecord::Field { field, problem };
        let size = record.encoded_len();
        if size > MAX_RECORD {
            return Err(InvalidRecord::TooLarge(size));
        }
        let id = Uuid::parse_str(&record.record_id).map_err(|_| wrong("record_id", "is no UUID"))?;
        if record.tenant != tenant.as_str() {
            return Err(wrong("tenant", "is not the tenant of the subject"));
        }
        if record.service != service {
            return Err(wrong("service", "is not the service of the subject"));
        }
        if record.action.is_empty() {
            return Err(wrong("action", "is empty"));
        }
        if record.actor.as_ref().is_none_or(|actor| actor.name.is_empty()) {
            return Err(wrong("actor", "is missing"));
        }
        let occurred = record
            .time
            .as_ref()
            .and_then(from_timestamp)
            .ok_or_else(|| wrong("time", "is missing or outside the calendar"))?;
        let body = body(record).ok_or_else(|| wrong("content", "cannot be written as JSON"))?;
        let leaf = merkle::leaf_hash(&body);
        Ok(Self {
            id,
            occurred,
            body,
            leaf,
        })
    }
}

/// Every field of the message is in the JSON, also those that a later version adds to the `.proto` file.
fn body(record: &AuditRecord) -> Option<Vec<u8>> {
    let descriptor = DESCRIPTOR.clone()?;
    let message = DynamicMessage::decode(descriptor, record.encode_to_vec().as_slice()).ok()?;
    let value = message
        .serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())
        .ok()?;
    Some(json::canonical(&value))
}

#[cfg(test)]
mod tests {
    use garrison_proto::{
        audit::v1::{Actor, Decision},
        to_timestamp,
    };
    use proptest::prelude::*;

    use super::*;

    fn record() -> AuditRecord {
        AuditRecord {
            record_id: "01890a5d-ac96-774b-bcce-b302099a8057".into(),
            time: DateTime::from_timestamp(1_767_225_600, 5_000_000)
                .as_ref()
                .copied()
                .map(to_timestamp),
            tenant: "acme".into(),
            service: "responder".into(),
            actor: Some(Actor {
                name: "users/1".into(),
                roles: vec!["responder".into()],
                ..Actor::default()
            }),
            action: "response.applied".into(),
            decision: Decision::Allow as i32,
            details: [("zone", "b"), ("action", "block")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            ..AuditRecord::default()
        }
    }

    fn acme() -> TenantId {
        "acme".parse().unwrap()
    }

    #[test]
    fn the_hashed_bytes_are_pinned() {
        // Changing these bytes would make every log written so far unverifiable.
        let read = Record::read(&record(), &acme(), "responder").unwrap();
        assert_eq!(
            String::from_utf8(read.body).unwrap(),
            "{\"action\":\"response.applied\",\"actor\":{\"name\":\"users/1\",\"roles\":[\"responder\"]},\
             \"decision\":\"DECISION_ALLOW\",\"details\":{\"action\":\"block\",\"zone\":\"b\"},\
             \"recordId\":\"01890a5d-ac96-774b-bcce-b302099a8057\",\"service\":\"responder\",\
             \"tenant\":\"acme\",\"time\":\"2026-01-01T00:00:00.005Z\"}"
        );
        assert_eq!(read.occurred.timestamp_millis(), 1_767_225_600_005);
    }

    #[test]
    fn what_is_missing_or_of_another_is_named() {
        type Break = fn(&mut AuditRecord);
        let cases: [(&str, Break); 7] = [
            ("record_id", |r| r.record_id = "1".into()),
            ("tenant", |r| r.tenant = "other".into()),
            ("service", |r| r.service = "iam".into()),
            ("action", |r| r.action.clear()),
            ("actor", |r| r.actor = None),
            ("time", |r| r.time = None),
            ("bytes", |r| r.reason = "x".repeat(MAX_RECORD)),
        ];
        for (name, change) in cases {
            let mut bad = record();
            change(&mut bad);
            let error = Record::read(&bad, &acme(), "responder").unwrap_err().to_string();
            assert!(error.contains(name), "{name}: {error}");
        }
    }

    proptest! {
        #[test]
        fn equal_records_have_equal_bytes_whatever_the_order_of_details(
            details in proptest::collection::hash_map("[a-z\\PC]{1,8}", ".{0,8}", 0..6), reason in ".{0,30}"
        ) {
            let mut one = record();
            one.reason = reason;
            one.details = details.clone();
            let mut other = one.clone();
            other.details = details.into_iter().collect::<Vec<_>>().into_iter().rev().collect();
            prop_assert_eq!(Record::read(&one, &acme(), "responder"), Record::read(&other, &acme(), "responder"));
        }
    }
}
