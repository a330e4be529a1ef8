use std::{fmt, time::Duration};

use async_nats::jetstream::{
    Error as ApiError, ErrorCode,
    consumer::{self, AckPolicy, DeliverPolicy},
    context::GetStreamErrorKind,
    stream::{self, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType},
};
use futures::TryStreamExt;

use super::{ConsumerSpec, STREAMS, StreamSpec, WhenFull, consumers};
use crate::{Bus, BusError};

/// How long [`apply`] waits for the broker.
const CONNECT_WAIT: Duration = Duration::from_secs(15);

/// What [`apply`] should provision besides the fixed part.
#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// Nodes with an enforcer; each gets its own consumer.
    pub enforcer_nodes: Vec<String>,
    /// Copies of each stream in a broker cluster, 1 to 5.
    pub replicas: usize,
    /// Most bytes of the FLOWS stream, when not the default.
    pub flows_max_bytes: Option<i64>,
}

impl Default for ApplyOptions {
    fn default() -> Self {
        Self {
            enforcer_nodes: Vec::new(),
            replicas: 1,
            flows_max_bytes: None,
        }
    }
}

/// What happened to one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It did not exist.
    Created,
    /// It was brought to the wanted state.
    Updated,
    /// It was already in the wanted state.
    Unchanged,
    /// It exists but is not part of the topology, and was left alone.
    Foreign,
}

/// One line of [`apply`]'s report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// `stream FLOWS` or `consumer FLOWS/anomaly`.
    pub object: String,
    /// What happened.
    pub kind: ChangeKind,
    /// For an update, what was changed.
    pub detail: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ChangeKind::Created => "created",
            ChangeKind::Updated => "updated",
            ChangeKind::Unchanged => "unchanged",
            ChangeKind::Foreign => "left alone (not part of the topology)",
        };
        write!(f, "{}: {kind}", self.object)?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        Ok(())
    }
}

/// Brings the broker's streams and consumers to the wanted state. Idempotent. Looks at everything first and
/// changes nothing when any change would lose messages or cannot be made in place.
///
/// # Errors
/// [`BusError::Destructive`] with every reason; [`BusError::Unavailable`] when the broker does not answer within
/// 15 seconds; [`BusError::Refused`] when it does not permit or take a change.
pub async fn apply(bus: &Bus, options: &ApplyOptions) -> Result<Vec<Change>, BusError> {
    tokio::time::timeout(CONNECT_WAIT, bus.connected())
        .await
        .map_err(|_| BusError::Unavailable {
            operation: "apply the topology".to_owned(),
            reason: format!("no connection within {} s", CONNECT_WAIT.as_secs()),
        })?;

    let mut refused = Vec::new();
    let mut streams = Vec::new();
    let mut readers = Vec::new();
    let wanted_consumers = consumers(&options.enforcer_nodes);
    for spec in STREAMS {
        let wanted = stream_config(spec, options);
        let existing = existing_stream(bus, spec.name).await?;
        let plan = match &existing {
            None => Plan::Create,
            Some(stream) => compare_streams(stream.cached_info(), &wanted, &mut refused),
        };
        let mut known = Vec::new();
        if let Some(stream) = &existing {
            known = stream
                .consumers()
                .try_collect::<Vec<_>>()
                .await
                .map_err(|error| BusError::Refused {
                    operation: format!("list the consumers of {}", spec.name),
                    reason: error.to_string(),
                })?;
        }
        for spec in wanted_consumers.iter().filter(|c| c.stream == spec.name) {
            let wanted = consumer_config(spec);
            let plan = match known.iter().find(|info| info.name == spec.name) {
                None => Plan::Create,
                Some(info) => compare_consumers(spec, &info.config, &wanted, &mut refused),
            };
            readers.push((spec, wanted, plan));
        }
        let foreign = known
            .into_iter()
            .filter(|info| {
                !wanted_consumers
                    .iter()
                    .any(|c| c.stream == spec.name && c.name == info.name)
            })
            .map(|info| info.name)
            .collect::<Vec<_>>();
        streams.push((spec, wanted, plan, foreign));
    }
    if !refused.is_empty() {
        return Err(BusError::Destructive(refused));
    }

    let mut report = Vec::new();
    for (spec, wanted, plan, foreign) in streams {
        let object = format!("stream {}", spec.name);
        let failed = |error: &dyn fmt::Display| BusError::Refused {
            operation: format!("provision {object}"),
            reason: error.to_string(),
        };
        match &plan {
            Plan::Create => {
                bus.jetstream()
                    .create_stream(wanted)
                    .await
                    .map_err(|error| failed(&error))?;
            }
            Plan::Update(_) => {
                bus.jetstream()
                    .update_stream(wanted)
                    .await
                    .map_err(|error| failed(&error))?;
            }
            Plan::Keep => {}
        }
        report.push(plan.into_change(object));
        report.extend(foreign.into_iter().map(|name| Change {
            object: format!("consumer {}/{name}", spec.name),
            kind: ChangeKind::Foreign,
            detail: String::new(),
        }));
    }
    for (spec, wanted, plan) in readers {
        let object = format!("consumer {}/{}", spec.stream, spec.name);
        if !matches!(plan, Plan::Keep) {
            bus.jetstream()
                .create_consumer_on_stream(wanted, spec.stream)
                .await
                .map_err(|error| BusError::Refused {
                    operation: format!("provision {object}"),
                    reason: error.to_string(),
                })?;
        }
        report.push(plan.into_change(object));
    }
    Ok(report)
}

enum Plan {
    Create,
    Update(Vec<String>),
    Keep,
}

impl Plan {
    fn of(changes: Vec<String>) -> Self {
        if changes.is_empty() {
            Self::Keep
        } else {
            Self::Update(changes)
        }
    }

    fn into_change(self, object: String) -> Change {
        let (kind, detail) = match self {
            Self::Create => (ChangeKind::Created, String::new()),
            Self::Update(changes) => (ChangeKind::Updated, changes.join(", ")),
            Self::Keep => (ChangeKind::Unchanged, String::new()),
        };
        Change { object, kind, detail }
    }
}

async fn existing_stream(bus: &Bus, name: &str) -> Result<Option<stream::Stream>, BusError> {
    let operation = || format!("look at stream {name}");
    match bus.jetstream().get_stream(name).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(api) if is_not_found(&api) => Ok(None),
            GetStreamErrorKind::Request => Err(BusError::Unavailable {
                operation: operation(),
                reason: error.to_string(),
            }),
            _ => Err(BusError::Refused {
                operation: operation(),
                reason: error.to_string(),
            }),
        },
    }
}

fn is_not_found(error: &ApiError) -> bool {
    error.error_code() == ErrorCode::STREAM_NOT_FOUND
}

fn stream_config(spec: &StreamSpec, options: &ApplyOptions) -> stream::Config {
    let max_bytes = match options.flows_max_bytes {
        Some(bytes) if spec.name == "FLOWS" => bytes,
        _ => spec.max_bytes,
    };
    stream::Config {
        name: spec.name.to_owned(),
        description: Some(spec.description.to_owned()),
        subjects: spec.subjects.iter().map(|s| (*s).to_owned()).collect(),
        max_bytes,
        max_age: spec.max_age,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        max_message_size: spec.max_message_size,
        discard: match spec.when_full {
            WhenFull::DropOldest => DiscardPolicy::Old,
            WhenFull::Refuse => DiscardPolicy::New,
        },
        duplicate_window: spec.duplicate_window,
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: options.replicas.max(1),
        deny_delete: spec.append_only,
        deny_purge: spec.append_only,
        allow_direct: super::CONSUMERS.iter().any(|c| c.replays && c.stream == spec.name),
        // The broker does not offer asynchronous persistence for replicated streams.
        persist_mode: (spec.asynchronous && options.replicas <= 1).then_some(PersistenceMode::Async),
        ..Default::default()
    }
}

fn compare_streams(info: &stream::Info, wanted: &stream::Config, refused: &mut Vec<String>) -> Plan {
    let (have, state, name) = (&info.config, &info.state, &wanted.name);
    let mut changes = Vec::new();
    for subject in &wanted.subjects {
        if !have.subjects.contains(subject) {
            changes.push(format!("subject {subject} added"));
        }
    }
    for subject in &have.subjects {
        if !wanted.subjects.contains(subject) {
            refused.push(format!("stream {name} would stop storing {subject}"));
        }
    }
    if have.storage != wanted.storage {
        refused.push(format!(
            "stream {name} is not file storage, and storage cannot be changed in place"
        ));
    }
    if have.retention != wanted.retention {
        refused.push(format!(
            "stream {name} does not have limits retention; its messages go when they are read"
        ));
    }
    let is_async = |config: &stream::Config| config.persist_mode == Some(PersistenceMode::Async);
    if is_async(have) != is_async(wanted) {
        refused.push(format!(
            "the persistence mode of stream {name} cannot be changed in place"
        ));
    }
    if (have.deny_delete && !wanted.deny_delete) || (have.deny_purge && !wanted.deny_purge) {
        refused.push(format!("stream {name} is append-only, which cannot be taken back"));
    } else if have.deny_delete != wanted.deny_delete || have.deny_purge != wanted.deny_purge {
        changes.push("append-only".to_owned());
    }
    if have.allow_direct != wanted.allow_direct {
        changes.push("reading by sequence".to_owned());
    }
    if have.max_bytes != wanted.max_bytes {
        if u64::try_from(wanted.max_bytes).is_ok_and(|limit| state.bytes > limit) {
            refused.push(format!(
                "stream {name} holds {} bytes, more than the wanted limit of {}",
                state.bytes, wanted.max_bytes
            ));
        }
        changes.push(format!("max_bytes {} → {}", have.max_bytes, wanted.max_bytes));
    }
    if have.max_age != wanted.max_age {
        let shorter = have.max_age.is_zero() || wanted.max_age < have.max_age;
        let oldest = std::time::SystemTime::from(state.first_timestamp)
            .elapsed()
            .unwrap_or_default();
        if shorter && state.messages > 0 && oldest > wanted.max_age {
            refused.push(format!(
                "stream {name} holds messages older than the wanted max_age of {} s",
                wanted.max_age.as_secs()
            ));
        }
        changes.push(format!(
            "max_age {} s → {} s",
            have.max_age.as_secs(),
            wanted.max_age.as_secs()
        ));
    }
    if limit(have.max_messages) != limit(wanted.max_messages) {
        changes.push("max_messages lifted".to_owned());
    }
    if have.max_message_size != wanted.max_message_size {
        changes.push(format!(
            "max_message_size {} → {}",
            have.max_message_size, wanted.max_message_size
        ));
    }
    if have.duplicate_window != wanted.duplicate_window {
        changes.push(format!("duplicate_window → {} s", wanted.duplicate_window.as_secs()));
    }
    if have.discard != wanted.discard {
        changes.push(format!("discard → {:?}", wanted.discard));
    }
    if have.num_replicas != wanted.num_replicas {
        changes.push(format!("replicas {} → {}", have.num_replicas, wanted.num_replicas));
    }
    if have.description != wanted.description {
        changes.push("description".to_owned());
    }
    Plan::of(changes)
}

/// The broker writes "no limit" as 0 or -1.
fn limit(value: i64) -> Option<i64> {
    (value > 0).then_some(value)
}

fn consumer_config(spec: &ConsumerSpec) -> consumer::pull::Config {
    consumer::pull::Config {
        durable_name: Some(spec.name.to_string()),
        description: Some(format!("Read by {}", spec.identity)),
        filter_subjects: spec.filters.iter().map(|f| (*f).to_owned()).collect(),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: spec.ack_wait,
        // The runner counts deliveries, so that the last one ends in the DLQ and not in silence.
        max_deliver: -1,
        max_ack_pending: spec.max_ack_pending,
        ..Default::default()
    }
}

fn compare_consumers(
    spec: &ConsumerSpec,
    have: &consumer::Config,
    wanted: &consumer::pull::Config,
    refused: &mut Vec<String>,
) -> Plan {
    let mut changes = Vec::new();
    let mut filters = have.filter_subjects.clone();
    if !have.filter_subject.is_empty() {
        filters.push(have.filter_subject.clone());
    }
    let name = format!("{}/{}", spec.stream, spec.name);
    if have.deliver_subject.is_some() {
        refused.push(format!(
            "consumer {name} is a push consumer, which cannot be changed in place"
        ));
    }
    if have.ack_policy != wanted.ack_policy {
        refused.push(format!(
            "consumer {name} does not acknowledge explicitly, which cannot be changed in place"
        ));
    }
    for filter in &wanted.filter_subjects {
        if !filters.contains(filter) {
            changes.push(format!("filter {filter} added"));
        }
    }
    for filter in &filters {
        if !wanted.filter_subjects.contains(filter) {
            changes.push(format!("filter {filter} removed"));
        }
    }
    if have.ack_wait != wanted.ack_wait {
        changes.push(format!("ack_wait → {} s", wanted.ack_wait.as_secs()));
    }
    if have.max_deliver != wanted.max_deliver {
        changes.push(format!("max_deliver {} → {}", have.max_deliver, wanted.max_deliver));
    }
    if have.max_ack_pending != wanted.max_ack_pending {
        changes.push(format!(
            "max_ack_pending {} → {}",
            have.max_ack_pending, wanted.max_ack_pending
        ));
    }
    Plan::of(changes)
}
