use std::{fmt, time::Duration};

use async_nats::jetstream::{
    Error as ApiError, ErrorCode, consumer,
    context::GetStreamErrorKind,
    stream::{self, RetentionPolicy},
};
use futures::TryStreamExt;

use super::{
    ApplyOptions, ConsumerSpec, RETIRED, StreamSpec,
    compare::{Plan, compare_consumers, compare_streams, consumer_config, stream_config},
    consumers,
};
use crate::{Bus, BusError};

/// How long [`apply`] waits for the broker.
const CONNECT_WAIT: Duration = Duration::from_secs(15);

/// What happened to one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It did not exist.
    Created,
    /// It was brought to the wanted state.
    Updated,
    /// It was already in the wanted state.
    Unchanged,
    /// It was part of an earlier version's topology, and was removed.
    Removed,
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
    /// For an update, what was changed; for what was left alone, what that means.
    pub detail: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ChangeKind::Created => "created",
            ChangeKind::Updated => "updated",
            ChangeKind::Unchanged => "unchanged",
            ChangeKind::Removed => "removed (no longer part of the topology)",
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
/// A stream gets interest retention only once all its consumers are there: until then what is published stays, read
/// or not. So it makes no difference whether services run already.
///
/// # Errors
/// [`BusError::Config`] for a limit that cannot be; [`BusError::Destructive`] with every reason;
/// [`BusError::Unavailable`] when the broker does not answer within 15 seconds; [`BusError::Refused`] when it does not
/// permit or take a change.
pub async fn apply(bus: &Bus, options: &ApplyOptions) -> Result<Vec<Change>, BusError> {
    let specs = options.streams()?;
    tokio::time::timeout(CONNECT_WAIT, bus.connected())
        .await
        .map_err(|_| BusError::Unavailable {
            operation: "apply the topology".to_owned(),
            reason: format!("no connection within {} s", CONNECT_WAIT.as_secs()),
        })?;

    let wanted_consumers = consumers(&options.enforcers);
    let mut refused = Vec::new();
    let mut streams = Vec::new();
    for spec in &specs {
        streams.push(StreamStep::look(bus, spec, &wanted_consumers, options, &mut refused).await?);
    }
    if !refused.is_empty() {
        return Err(BusError::Destructive(refused));
    }

    let mut report = Vec::new();
    let mut readers = Vec::new();
    for step in &streams {
        step.provision(bus).await?;
    }
    for step in &streams {
        for (spec, wanted, plan) in &step.readers {
            let object = format!("consumer {}/{}", spec.stream, spec.name);
            if !matches!(plan, Plan::Keep) {
                bus.jetstream()
                    .create_consumer_on_stream(wanted.clone(), spec.stream)
                    .await
                    .map_err(|error| refusal(&object, &error))?;
            }
            readers.push(plan.to_change(object));
        }
    }
    for step in &streams {
        let name = step.spec.name;
        report.push(step.plan.to_change(format!("stream {name}")));
        for consumer in &step.retired {
            let object = format!("consumer {name}/{consumer}");
            bus.jetstream()
                .delete_consumer_from_stream(consumer, name)
                .await
                .map_err(|error| refusal(&object, &error))?;
            report.push(Change {
                object,
                kind: ChangeKind::Removed,
                detail: String::new(),
            });
        }
        step.settle(bus).await?;
        report.extend(step.foreign.iter().map(|info| step.foreign(info)));
    }
    report.extend(readers);
    Ok(report)
}

fn refusal(object: &str, error: &dyn fmt::Display) -> BusError {
    BusError::Refused {
        operation: format!("provision {object}"),
        reason: error.to_string(),
    }
}

/// What is to be done about one stream and its consumers.
struct StreamStep<'a> {
    spec: &'a StreamSpec,
    wanted: stream::Config,
    /// What it has now.
    retention: Option<RetentionPolicy>,
    plan: Plan,
    readers: Vec<(&'a ConsumerSpec, consumer::pull::Config, Plan)>,
    retired: Vec<String>,
    foreign: Vec<consumer::Info>,
}

impl<'a> StreamStep<'a> {
    async fn look(
        bus: &Bus,
        spec: &'a StreamSpec,
        consumers: &'a [ConsumerSpec],
        options: &ApplyOptions,
        refused: &mut Vec<String>,
    ) -> Result<Self, BusError> {
        let wanted = stream_config(spec, options.replicas);
        let existing = existing_stream(bus, spec.name).await?;
        let plan = match &existing {
            None => Plan::Create,
            Some(stream) => compare_streams(stream.cached_info(), &wanted, refused),
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
        let mut readers = Vec::new();
        for reader in consumers.iter().filter(|c| c.stream == spec.name) {
            let wanted = consumer_config(reader);
            let plan = match known.iter().position(|info| info.name == reader.name) {
                None => Plan::Create,
                Some(index) => compare_consumers(reader, &known.swap_remove(index).config, &wanted, refused),
            };
            readers.push((reader, wanted, plan));
        }
        let (retired, mut foreign): (Vec<_>, Vec<_>) = known
            .into_iter()
            .partition(|info| RETIRED.contains(&(spec.name, info.name.as_str())));
        foreign.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            spec,
            wanted,
            retention: existing.map(|stream| stream.cached_info().config.retention),
            plan,
            readers,
            retired: retired.into_iter().map(|info| info.name).collect(),
            foreign,
        })
    }

    /// Whether it is to get interest retention that it does not have yet.
    fn is_handed_over(&self) -> bool {
        self.wanted.retention == RetentionPolicy::Interest && self.retention != Some(RetentionPolicy::Interest)
    }

    /// Brings the stream to the wanted state, except for interest retention, which needs its consumers.
    async fn provision(&self, bus: &Bus) -> Result<(), BusError> {
        let mut config = self.wanted.clone();
        if self.is_handed_over() {
            config.retention = RetentionPolicy::Limits;
        }
        let object = format!("stream {}", self.spec.name);
        match &self.plan {
            Plan::Create => bus
                .jetstream()
                .create_stream(config)
                .await
                .map(drop)
                .map_err(|error| refusal(&object, &error)),
            Plan::Update(_) => bus
                .jetstream()
                .update_stream(config)
                .await
                .map(drop)
                .map_err(|error| refusal(&object, &error)),
            Plan::Keep => Ok(()),
        }
    }

    async fn settle(&self, bus: &Bus) -> Result<(), BusError> {
        if !self.is_handed_over() {
            return Ok(());
        }
        bus.jetstream()
            .update_stream(self.wanted.clone())
            .await
            .map(drop)
            .map_err(|error| refusal(&format!("stream {}", self.spec.name), &error))
    }

    fn foreign(&self, info: &consumer::Info) -> Change {
        let waiting = info.num_pending + info.num_ack_pending as u64;
        let holds = self.wanted.retention == RetentionPolicy::Interest;
        Change {
            object: format!("consumer {}/{}", self.spec.name, info.name),
            kind: ChangeKind::Foreign,
            detail: if holds {
                format!("{waiting} messages stay in the stream until it acknowledges them")
            } else {
                String::new()
            },
        }
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
