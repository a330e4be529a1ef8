//! The form of checkpoints. Fields may be added; numbers are never used again.

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct TenantState {
    #[prost(uint32, tag = "1")]
    pub(super) version: u32,
    /// 1 idle, 2 learning, 3 training, 4 scoring.
    #[prost(uint32, tag = "2")]
    pub(super) phase: u32,
    #[prost(message, optional, tag = "3")]
    pub(super) learning: Option<LearningState>,
    /// Version of the last model trained.
    #[prost(uint64, tag = "4")]
    pub(super) model_version: u64,
    /// The threshold of the model at work; absent without one.
    #[prost(message, optional, tag = "5")]
    pub(super) threshold: Option<ThresholdState>,
    #[prost(uint64, repeated, tag = "6")]
    pub(super) alerts: Vec<u64>,
    #[prost(bytes = "vec", tag = "7")]
    pub(super) recent_messages: Vec<u8>,
    #[prost(uint64, tag = "8")]
    pub(super) applied: u64,
    #[prost(sfixed64, tag = "9")]
    pub(super) trained: i64,
    /// The alarm budgets; none in what was saved before there were any.
    #[prost(message, repeated, tag = "30")]
    pub(super) budgets: Vec<super::budget::GroupState>,
    /// Who is live, who is a candidate, what drifted, whom there are alerts about.
    #[prost(message, optional, tag = "20")]
    pub(super) roles: Option<super::roles::RolesState>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LearningState {
    #[prost(sfixed64, tag = "1")]
    pub(super) started: i64,
    #[prost(bool, tag = "2")]
    pub(super) automatic: bool,
    #[prost(sfixed64, tag = "3")]
    pub(super) first: i64,
    #[prost(sfixed64, tag = "4")]
    pub(super) last: i64,
    #[prost(float, repeated, tag = "5")]
    pub(super) rows: Vec<f32>,
    #[prost(uint64, tag = "6")]
    pub(super) offered: u64,
    #[prost(fixed64, tag = "7")]
    pub(super) chance: u64,
    /// Names of the features of a row: a sample of others is of no use.
    #[prost(string, repeated, tag = "8")]
    pub(super) features: Vec<String>,
    /// 0 a period, 1 a period with what the live model takes for unusual, 2 recent rows.
    #[prost(uint32, tag = "9")]
    pub(super) origin: u32,
    /// The source of each row; 0 where it is not known.
    #[prost(fixed32, repeated, tag = "10")]
    pub(super) tags: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ThresholdState {
    #[prost(double, tag = "1")]
    pub(super) base: f64,
    #[prost(double, tag = "2")]
    pub(super) threshold: f64,
    #[prost(double, repeated, tag = "3")]
    pub(super) tail: Vec<f64>,
    #[prost(double, repeated, tag = "4")]
    pub(super) peaks: Vec<f64>,
    #[prost(bool, repeated, tag = "5")]
    pub(super) alarms: Vec<bool>,
    #[prost(double, tag = "6")]
    pub(super) represented: f64,
    #[prost(uint32, tag = "7")]
    pub(super) peaks_until_fit: u32,
    #[prost(double, repeated, tag = "8")]
    pub(super) drift: Vec<f64>,
    #[prost(double, tag = "9")]
    pub(super) drift_sum: f64,
    #[prost(uint64, tag = "10")]
    pub(super) observed: u64,
    #[prost(uint64, tag = "11")]
    pub(super) exceeded: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ShardState {
    #[prost(uint32, tag = "1")]
    pub(super) version: u32,
    #[prost(message, repeated, tag = "2")]
    pub(super) flows: Vec<FlowState>,
    #[prost(message, repeated, tag = "3")]
    pub(super) sources: Vec<SourceState>,
    #[prost(message, repeated, tag = "4")]
    pub(super) vertical: Vec<WindowState>,
    #[prost(message, repeated, tag = "5")]
    pub(super) horizontal: Vec<WindowState>,
    #[prost(message, repeated, tag = "6")]
    pub(super) logins: Vec<WindowState>,
    #[prost(message, repeated, tag = "7")]
    pub(super) sessions: Vec<WindowState>,
    #[prost(message, repeated, tag = "8")]
    pub(super) contacts: Vec<ContactsState>,
    #[prost(message, repeated, tag = "9")]
    pub(super) folds: Vec<FoldState>,
    #[prost(message, repeated, tag = "10")]
    pub(super) channels: Vec<EntryState>,
    #[prost(message, repeated, tag = "11")]
    pub(super) zones: Vec<EntryState>,
    #[prost(message, repeated, tag = "12")]
    pub(super) asked: Vec<EntryState>,
    #[prost(message, repeated, tag = "13")]
    pub(super) volumes: Vec<EntryState>,
    #[prost(message, repeated, tag = "14")]
    pub(super) tried: Vec<EntryState>,
    #[prost(message, repeated, tag = "15")]
    pub(super) lateral: Vec<WindowState>,
}

/// What the shards of a tenant share.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WideState {
    #[prost(uint32, tag = "1")]
    pub(super) version: u32,
    #[prost(message, repeated, tag = "2")]
    pub(super) crowds: Vec<EntryState>,
    #[prost(message, repeated, tag = "3")]
    pub(super) proxied: Vec<EntryState>,
    #[prost(message, repeated, tag = "4")]
    pub(super) victims: Vec<EntryState>,
    #[prost(message, repeated, tag = "5")]
    pub(super) probed: Vec<EntryState>,
    #[prost(message, repeated, tag = "6")]
    pub(super) groups: Vec<EntryState>,
    #[prost(message, repeated, tag = "7")]
    pub(super) clients: Vec<EntryState>,
    #[prost(message, repeated, tag = "8")]
    pub(super) devices: Vec<EntryState>,
    #[prost(message, repeated, tag = "9")]
    pub(super) told: Vec<EntryState>,
}

/// An entry of a map whose values are messages themselves.
#[derive(Clone, PartialEq, Message)]
pub(super) struct EntryState {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct FlowState {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) id: Vec<u8>,
    #[prost(uint32, optional, tag = "2")]
    pub(super) record_seq: Option<u32>,
    #[prost(uint64, tag = "3")]
    pub(super) src_bytes: u64,
    #[prost(uint32, tag = "4")]
    pub(super) auth_failures: u32,
    #[prost(bool, tag = "5")]
    pub(super) failed: bool,
    #[prost(bool, tag = "6")]
    pub(super) contact: bool,
    #[prost(uint32, tag = "7")]
    pub(super) once: u32,
    #[prost(uint32, tag = "8")]
    pub(super) questions: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SourceState {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) source: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    pub(super) buckets: Vec<BucketState>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct BucketState {
    #[prost(int64, tag = "1")]
    pub(super) index: i64,
    #[prost(uint32, tag = "2")]
    pub(super) flows: u32,
    #[prost(uint32, tag = "3")]
    pub(super) failed: u32,
    #[prost(uint64, tag = "4")]
    pub(super) bytes: u64,
    #[prost(fixed64, repeated, tag = "5")]
    pub(super) hosts: Vec<u64>,
    #[prost(fixed64, repeated, tag = "6")]
    pub(super) ports: Vec<u64>,
}

/// A window of any behaviour. What the key is made of depends on the behaviour.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WindowState {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) source: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) destination: Vec<u8>,
    #[prost(uint32, tag = "3")]
    pub(super) protocol: u32,
    #[prost(uint32, tag = "4")]
    pub(super) port: u32,
    #[prost(sfixed64, tag = "5")]
    pub(super) latest: i64,
    #[prost(message, repeated, tag = "6")]
    pub(super) events: Vec<EventState>,
    #[prost(sfixed64, tag = "7")]
    pub(super) told: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EventState {
    #[prost(sfixed64, tag = "1")]
    pub(super) time: i64,
    #[prost(uint32, tag = "2")]
    pub(super) count: u32,
    #[prost(bool, tag = "3")]
    pub(super) failed: bool,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) host: Vec<u8>,
    #[prost(uint32, tag = "5")]
    pub(super) protocol: u32,
    #[prost(uint32, tag = "6")]
    pub(super) port: u32,
    #[prost(message, optional, tag = "7")]
    pub(super) flow: Option<FlowRefState>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct FlowRefState {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) flow_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) src: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) dst: Vec<u8>,
    #[prost(uint32, tag = "4")]
    pub(super) src_port: u32,
    #[prost(uint32, tag = "5")]
    pub(super) dst_port: u32,
    #[prost(uint32, tag = "6")]
    pub(super) protocol: u32,
    #[prost(sfixed64, tag = "7")]
    pub(super) first_seen: i64,
    #[prost(sfixed64, tag = "8")]
    pub(super) last_seen: i64,
    #[prost(string, tag = "9")]
    pub(super) community_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ContactsState {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) source: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    pub(super) known: Vec<EventState>,
    #[prost(bool, tag = "3")]
    pub(super) overflowed: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct FoldState {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) fingerprint: Vec<u8>,
    #[prost(sfixed64, tag = "2")]
    pub(super) opened: i64,
    #[prost(sfixed64, tag = "3")]
    pub(super) first_seen: i64,
    #[prost(uint64, tag = "4")]
    pub(super) count: u64,
    #[prost(uint64, tag = "5")]
    pub(super) next: u64,
    #[prost(sfixed64, tag = "6")]
    pub(super) period: i64,
    #[prost(double, tag = "7")]
    pub(super) period_score: f64,
    #[prost(bool, tag = "8")]
    pub(super) loud: bool,
    #[prost(bool, tag = "9")]
    pub(super) held: bool,
}
