//! What is on the broker against what should be: which changes can be made, and which would lose messages.

use async_nats::jetstream::{
    consumer::{self, AckPolicy, DeliverPolicy},
    stream::{self, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType},
};

use super::{
    ConsumerSpec, Retention, StreamSpec, WhenFull,
    apply::{Change, ChangeKind},
};

pub(super) enum Plan {
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

    pub(super) fn to_change(&self, object: String) -> Change {
        let (kind, detail) = match self {
            Self::Create => (ChangeKind::Created, String::new()),
            Self::Update(changes) => (ChangeKind::Updated, changes.join(", ")),
            Self::Keep => (ChangeKind::Unchanged, String::new()),
        };
        Change { object, kind, detail }
    }
}

pub(super) fn stream_config(spec: &StreamSpec, replicas: usize) -> stream::Config {
    stream::Config {
        name: spec.name.to_owned(),
        description: Some(spec.description.to_owned()),
        subjects: spec.subjects.iter().map(|s| (*s).to_owned()).collect(),
        max_bytes: spec.max_bytes,
        max_age: spec.max_age,
        max_messages: -1,
        max_messages_per_subject: spec.max_per_subject,
        max_consumers: -1,
        max_message_size: spec.max_message_size,
        discard: match spec.when_full {
            WhenFull::DropOldest => DiscardPolicy::Old,
            WhenFull::Refuse => DiscardPolicy::New,
        },
        duplicate_window: spec.duplicate_window,
        retention: match spec.retention {
            Retention::Limits => RetentionPolicy::Limits,
            Retention::Interest => RetentionPolicy::Interest,
        },
        storage: StorageType::File,
        num_replicas: replicas,
        deny_delete: spec.append_only,
        deny_purge: spec.append_only,
        allow_direct: super::CONSUMERS.iter().any(|c| c.replays && c.stream == spec.name),
        // The broker does not offer asynchronous persistence for replicated streams.
        persist_mode: (spec.asynchronous && replicas <= 1).then_some(PersistenceMode::Async),
        ..Default::default()
    }
}

pub(super) fn compare_streams(info: &stream::Info, wanted: &stream::Config, refused: &mut Vec<String>) -> Plan {
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
    if have.retention == RetentionPolicy::WorkQueue {
        refused.push(format!(
            "stream {name} has work queue retention, which cannot be changed in place"
        ));
    } else if have.retention != wanted.retention {
        changes.push(format!(
            "retention {} → {}",
            retention_word(have.retention),
            retention_word(wanted.retention)
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
        let shorter = !wanted.max_age.is_zero() && (have.max_age.is_zero() || wanted.max_age < have.max_age);
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
            "max_age {} → {}",
            age_word(have.max_age),
            age_word(wanted.max_age)
        ));
    }
    if limit(have.max_messages_per_subject) != limit(wanted.max_messages_per_subject) {
        if limit(wanted.max_messages_per_subject).is_some_and(|cap| state.messages > cap.unsigned_abs()) {
            refused.push(format!(
                "stream {name} holds {} messages, maybe more on one subject than the wanted limit of {}",
                state.messages, wanted.max_messages_per_subject
            ));
        }
        changes.push("max_per_subject".to_owned());
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

fn retention_word(policy: RetentionPolicy) -> &'static str {
    match policy {
        RetentionPolicy::Limits => "limits",
        RetentionPolicy::Interest => "interest",
        RetentionPolicy::WorkQueue => "work queue",
    }
}

fn age_word(age: std::time::Duration) -> String {
    if age.is_zero() {
        "none".to_owned()
    } else {
        format!("{} s", age.as_secs())
    }
}

/// The broker writes "no limit" as 0 or -1.
fn limit(value: i64) -> Option<i64> {
    (value > 0).then_some(value)
}

pub(super) fn consumer_config(spec: &ConsumerSpec) -> consumer::pull::Config {
    consumer::pull::Config {
        durable_name: Some(spec.name.to_string()),
        description: Some(format!("Read by {}", spec.identity)),
        filter_subjects: spec.filters.subjects().into_iter().map(str::to_owned).collect(),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: spec.ack_wait,
        // The runner counts deliveries, so that the last one ends in the DLQ and not in silence.
        max_deliver: -1,
        max_ack_pending: spec.max_ack_pending,
        ..Default::default()
    }
}

pub(super) fn compare_consumers(
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
