//! Every stream and consumer as data. Provisioned by `garrison bus apply` ([`apply`]), never by a service, and
//! guarded by the broker's permissions ([`server_permissions`]).
//!
//! The broker must run with `sync_interval: always`, so that what it acknowledges survives `kill -9` and a power
//! cut. FLOWS is exempt (`persist_mode: async`): it carries megabytes a second and may lose its last moments.

mod apply;
mod compare;
mod nodes;
mod options;
mod permissions;

use std::{borrow::Cow, time::Duration};

pub use apply::{Change, ChangeKind, apply};
pub use nodes::{EnforcerNode, InvalidNode, MAX_TENANTS};
pub use options::{ApplyOptions, StreamLimits};
pub use permissions::server_permissions;

/// Largest message the broker must take (`max_payload` in its configuration), in bytes: a flow batch with room
/// to spare.
pub const MAX_PAYLOAD: usize = 8 * 1024 * 1024;

const MIB: i64 = 1024 * 1024;

/// What a full stream does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// Drops the oldest messages.
    DropOldest,
    /// Refuses new messages: the sender's outbox keeps them.
    Refuse,
}

/// What makes a message leave a stream besides age and room (`docs/decisions/0005-stream-retention.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Nothing: it can be read again.
    Limits,
    /// The last consumer that it concerns has acknowledged it. What concerns no consumer is not stored.
    Interest,
}

/// A stream. All are file storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSpec {
    /// Name on the broker.
    pub name: &'static str,
    /// What it is for.
    pub description: &'static str,
    /// The subjects it stores.
    pub subjects: &'static [&'static str],
    /// Most bytes it holds.
    pub max_bytes: i64,
    /// Longest time it holds a message; zero for ever.
    pub max_age: Duration,
    /// What makes a message leave besides.
    pub retention: Retention,
    /// What happens at `max_bytes`.
    pub when_full: WhenFull,
    /// Most messages on one subject, the oldest of which go first; -1 for no such bound.
    pub max_per_subject: i64,
    /// Time within which a repeated message id is dropped.
    pub duplicate_window: Duration,
    /// Largest message it takes, in bytes, headers included; -1 for the broker's limit.
    pub max_message_size: i32,
    /// Acknowledges before the message is synced to disk.
    pub asynchronous: bool,
    /// Forbids deleting and purging through the broker's API for ever.
    pub append_only: bool,
}

/// The subjects that a consumer reads; none for all of its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filters {
    /// The same in every installation.
    Fixed(&'static [&'static str]),
    /// As the installation has it.
    Own(Vec<String>),
}

impl Filters {
    /// The subjects, with wildcards.
    pub fn subjects(&self) -> Vec<&str> {
        match self {
            Self::Fixed(subjects) => subjects.to_vec(),
            Self::Own(subjects) => subjects.iter().map(String::as_str).collect(),
        }
    }
}

/// A consumer: who reads a stream, and how patiently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerSpec {
    /// The stream that it reads.
    pub stream: &'static str,
    /// Its durable name on the broker.
    pub name: Cow<'static, str>,
    /// SPIFFE path of the identity that may read it: `svc/anomaly`.
    pub identity: Cow<'static, str>,
    /// The subjects it reads; empty for all of the stream. Always named on a stream with interest retention: when a
    /// consumer loses its filters, nats-server 2.15 no longer counts it as interested and stores nothing for it.
    pub filters: Filters,
    /// The broker delivers again what was not acknowledged for this long. The runner renews it while a handler
    /// works, so it only bounds how long the messages of a killed process wait.
    pub ack_wait: Duration,
    /// Deliveries after which a message goes to the DLQ. Counted by the runner, not by the broker, which would
    /// merely stop delivering and tell nobody.
    pub max_deliver: u64,
    /// First and longest pause before a retry; doubles from one to the other.
    pub retry: (Duration, Duration),
    /// Most messages unacknowledged at a time over all replicas.
    pub max_ack_pending: i64,
    /// The reader may also fetch stored messages by their sequence ([`crate::Bus::stored`]), to rebuild state that
    /// it had not saved when it was killed.
    pub replays: bool,
    /// The reader also hears its subjects directly, before the broker has stored what is published there. For what
    /// waits for nothing; only in [`crate::Dispatch::Concurrent`], because the order is lost.
    pub direct: bool,
}

impl ConsumerSpec {
    const fn new(
        stream: &'static str,
        name: &'static str,
        identity: &'static str,
        filters: &'static [&'static str],
    ) -> Self {
        Self {
            stream,
            name: Cow::Borrowed(name),
            identity: Cow::Borrowed(identity),
            filters: Filters::Fixed(filters),
            ack_wait: Duration::from_secs(5),
            max_deliver: 20,
            retry: (Duration::from_millis(50), Duration::from_secs(15)),
            max_ack_pending: 1_000,
            replays: false,
            direct: false,
        }
    }

    const fn replays(mut self) -> Self {
        self.replays = true;
        self
    }

    const fn direct(mut self) -> Self {
        self.direct = true;
        self
    }

    const fn max_deliver(mut self, max_deliver: u64) -> Self {
        self.max_deliver = max_deliver;
        self
    }

    const fn ack_wait(mut self, ack_wait: Duration) -> Self {
        self.ack_wait = ack_wait;
        self
    }
}

/// Every stream, in the order they are created.
///
/// No stream both keeps what was read and refuses when it is full: it would fill up however well its consumers keep
/// up, and then stop everybody who publishes on it.
pub const STREAMS: &[StreamSpec] = &[
    StreamSpec {
        max_age: Duration::from_secs(24 * 3_600),
        duplicate_window: Duration::from_secs(120),
        max_message_size: -1,
        asynchronous: true,
        ..history("FLOWS", "Flow batches, Arrow IPC", &["flows.v1.*.*"], 2_048 * MIB)
    },
    handed_over("ALERTS", "What detectors found", &["alerts.v1.*.*.*"], 512 * MIB),
    // An enforcer that is away for days must not hold up those that are not. What it missed it is told by the
    // responder when it is back; an order or report that is lost is sent again when its time is over.
    history(
        "RESPONSES",
        "Orders to enforcers and their reports",
        &["responses.v1.*.*.*", "responses.v1.*.*.*.*"],
        256 * MIB,
    ),
    handed_over("EVENTS", "What happened besides flows", &["events.v1.*.*"], 512 * MIB),
    StreamSpec {
        append_only: true,
        // A record waits for compliance as long as it takes.
        max_age: Duration::ZERO,
        ..handed_over("AUDIT", "Who did what", &["audit.v1.*.*"], 1_024 * MIB)
    },
    StreamSpec {
        max_age: Duration::from_secs(7 * 24 * 3_600),
        ..history(
            "SIEM",
            "OCSF JSON mirror for outside subscribers",
            &["siem.v1.*.*"],
            256 * MIB,
        )
    },
    StreamSpec {
        max_message_size: -1,
        // One sender's flood of garbage pushes out its own letters before those of other consumers.
        max_per_subject: 5_000,
        ..history(
            "DLQ",
            "What a consumer could not take, with the reason",
            &["dlq.v1.*.*"],
            256 * MIB,
        )
    },
];

/// Messages that the broker takes over from an outbox and hands to consumers that keep what they need: they stay until
/// all have committed them, and when too many wait the outboxes do.
const fn handed_over(
    name: &'static str,
    description: &'static str,
    subjects: &'static [&'static str],
    max_bytes: i64,
) -> StreamSpec {
    StreamSpec {
        name,
        description,
        subjects,
        max_bytes,
        max_age: Duration::from_secs(30 * 24 * 3_600),
        retention: Retention::Interest,
        when_full: WhenFull::Refuse,
        max_per_subject: -1,
        // An outbox that was cut off from the broker for minutes may send again what was stored.
        duplicate_window: Duration::from_secs(15 * 60),
        max_message_size: 1024 * 1024,
        asynchronous: false,
        append_only: false,
    }
}

/// The latest messages, read or not: the oldest make room.
const fn history(
    name: &'static str,
    description: &'static str,
    subjects: &'static [&'static str],
    max_bytes: i64,
) -> StreamSpec {
    StreamSpec {
        retention: Retention::Limits,
        when_full: WhenFull::DropOldest,
        ..handed_over(name, description, subjects, max_bytes)
    }
}

/// The stream that stores a subject, by its domain.
pub fn stream_of(subject: &str) -> Option<&'static str> {
    let domain = subject.split('.').next()?;
    STREAMS
        .iter()
        .find(|stream| stream.subjects.iter().any(|s| s.split('.').next() == Some(domain)))
        .map(|stream| stream.name)
}

/// Who may publish which kind of event.
pub const EVENT_KINDS: &[(&str, &[&str])] = &[
    ("svc/iam", &["login", "revocation", "keys"]),
    ("svc/anomaly", &["model"]),
    ("svc/policy", &["policy"]),
    ("svc/responder", &["incident", "response"]),
    ("svc/forensics", &["evidence"]),
    ("svc/compliance", &["report"]),
    ("svc/flow-ingest", &["sensor"]),
];

/// What the replicas of anomaly tell each other, with nothing in between: it is stored nowhere, and nothing hangs on it but
/// time.
pub const REPLICAS_ANOMALY: &str = "replicas.v1.anomaly";

/// anomaly reads flows.
pub const FLOWS_ANOMALY: ConsumerSpec = flows_consumer("anomaly", "svc/anomaly").replays();
/// policy reads flows.
pub const FLOWS_POLICY: ConsumerSpec = flows_consumer("policy", "svc/policy");
/// forensics reads flows.
pub const FLOWS_FORENSICS: ConsumerSpec = flows_consumer("forensics", "svc/forensics");
/// responder reads alerts.
pub const ALERTS_RESPONDER: ConsumerSpec =
    ConsumerSpec::new("ALERTS", "responder", "svc/responder", &["alerts.v1.*.*.*"]).direct();
/// forensics reads alerts.
pub const ALERTS_FORENSICS: ConsumerSpec =
    ConsumerSpec::new("ALERTS", "forensics", "svc/forensics", &["alerts.v1.*.*.*"]);
/// responder reads what enforcers report. The last token is the node, which the broker holds to its certificate.
pub const RESPONSES_RESPONDER: ConsumerSpec = ConsumerSpec::new(
    "RESPONSES",
    "responder",
    "svc/responder",
    &[
        "responses.v1.*.*.applied.*",
        "responses.v1.*.*.removed.*",
        "responses.v1.*.*.failed.*",
    ],
);
/// anomaly reads what policy found, for the risk of entities. What it found itself it knows.
pub const ALERTS_ANOMALY: ConsumerSpec =
    ConsumerSpec::new("ALERTS", "risk", "svc/anomaly", &["alerts.v1.*.*.policy-violation"]);
/// anomaly reads logins, for the risk of entities.
pub const EVENTS_ANOMALY: ConsumerSpec = ConsumerSpec::new("EVENTS", "risk", "svc/anomaly", &["events.v1.*.login"]);
/// forensics reads events, except its own.
pub const EVENTS_FORENSICS: ConsumerSpec = ConsumerSpec::new(
    "EVENTS",
    "forensics",
    "svc/forensics",
    &[
        "events.v1.*.login",
        "events.v1.*.revocation",
        "events.v1.*.keys",
        "events.v1.*.model",
        "events.v1.*.policy",
        "events.v1.*.incident",
        "events.v1.*.response",
        "events.v1.*.report",
        "events.v1.*.sensor",
    ],
);
/// compliance reads the audit trail. It never gives up on a record: the log must be complete.
pub const AUDIT_COMPLIANCE: ConsumerSpec =
    ConsumerSpec::new("AUDIT", "compliance", "svc/compliance", &["audit.v1.*.*"]).max_deliver(1_000_000);

const fn flows_consumer(name: &'static str, identity: &'static str) -> ConsumerSpec {
    // A batch of a killed process may wait; a large write that takes long must not be delivered twice.
    ConsumerSpec::new("FLOWS", name, identity, &[]).ack_wait(Duration::from_secs(15))
}

/// The consumers of services; those of enforcers come from [`enforcer_consumer`].
pub const CONSUMERS: &[ConsumerSpec] = &[
    FLOWS_ANOMALY,
    FLOWS_POLICY,
    FLOWS_FORENSICS,
    ALERTS_RESPONDER,
    ALERTS_FORENSICS,
    ALERTS_ANOMALY,
    RESPONSES_RESPONDER,
    EVENTS_FORENSICS,
    EVENTS_ANOMALY,
    AUDIT_COMPLIANCE,
];

/// Consumers of earlier versions, stream and name. [`apply`] removes them: what nobody reads would fill a stream with
/// interest retention.
pub const RETIRED: &[(&str, &str)] = &[("EVENTS", "anomaly")];

/// The consumer of the enforcer on one node: orders only, and only those of the tenants that it serves.
pub fn enforcer_consumer(node: &EnforcerNode) -> ConsumerSpec {
    let filters = node
        .tenants()
        .flat_map(|tenant| ["dispatched", "reverting"].map(|state| format!("responses.v1.{tenant}.*.{state}")));
    ConsumerSpec {
        name: format!("enforcer-{}", node.name()).into(),
        identity: format!("enforcer/{}", node.name()).into(),
        filters: Filters::Own(filters.collect()),
        ..ConsumerSpec::new("RESPONSES", "", "", &[]).direct()
    }
}

/// Every consumer of an installation with these enforcers.
pub fn consumers(enforcers: &[EnforcerNode]) -> Vec<ConsumerSpec> {
    CONSUMERS
        .iter()
        .cloned()
        .chain(enforcers.iter().map(enforcer_consumer))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_consumer_reads_an_existing_stream_within_its_subjects() {
        let tokens = |subject: &str| subject.split('.').count();
        for consumer in consumers(&["router=acme,globex".parse().unwrap()]) {
            let stream = STREAMS.iter().find(|s| s.name == consumer.stream).unwrap();
            let domain = stream.subjects[0].split('.').next().unwrap();
            for filter in consumer.filters.subjects() {
                assert!(filter.starts_with(domain), "{filter}");
                assert!(stream.subjects.iter().any(|s| tokens(s) == tokens(filter)), "{filter}");
            }
        }
    }

    #[test]
    fn an_enforcer_reads_the_orders_of_its_tenants() {
        let filters = |node: &str| match enforcer_consumer(&node.parse().unwrap()).filters {
            Filters::Own(filters) => filters,
            Filters::Fixed(_) => Vec::new(),
        };
        assert_eq!(
            filters("edge=acme,globex"),
            [
                "responses.v1.acme.*.dispatched",
                "responses.v1.acme.*.reverting",
                "responses.v1.globex.*.dispatched",
                "responses.v1.globex.*.reverting",
            ]
        );
        assert_eq!(
            filters("edge=*"),
            ["responses.v1.*.*.dispatched", "responses.v1.*.*.reverting"]
        );
    }

    #[test]
    fn what_was_read_makes_room_and_what_was_not_is_kept_where_it_must_be() {
        for stream in STREAMS {
            let name = stream.name;
            assert!(stream.max_bytes > 0, "{name} is unbounded");
            let handed_over = matches!(name, "ALERTS" | "EVENTS" | "AUDIT");
            assert_eq!(stream.retention == Retention::Interest, handed_over, "{name}");
            // The two that would be wrong: to drop what was not read, and to keep what was read and refuse the rest.
            assert_eq!(stream.when_full == WhenFull::Refuse, handed_over, "{name}");
            assert_eq!(stream.asynchronous, name == "FLOWS");
            assert_eq!(stream.max_age.is_zero(), name == "AUDIT", "{name}");
            assert!(stream.max_age.is_zero() || stream.duplicate_window <= stream.max_age);
            if handed_over {
                let readers: Vec<_> = CONSUMERS.iter().filter(|consumer| consumer.stream == name).collect();
                // A message that no consumer takes is gone at once.
                assert!(!readers.is_empty(), "{name} has no reader");
                assert!(
                    readers.iter().all(|reader| !reader.filters.subjects().is_empty()),
                    "{name}"
                );
            }
        }
        assert!(STREAMS.iter().any(|s| s.name == "AUDIT" && s.append_only));
        let audit = STREAMS.iter().find(|s| s.name == "AUDIT").unwrap();
        assert_eq!(
            AUDIT_COMPLIANCE.filters.subjects(),
            audit.subjects,
            "some records would not be stored"
        );
    }

    #[test]
    fn what_is_retired_is_not_in_use() {
        for (stream, name) in RETIRED {
            assert!(STREAMS.iter().any(|s| s.name == *stream));
            assert!(!CONSUMERS.iter().any(|c| c.stream == *stream && c.name == *name));
        }
    }
}
