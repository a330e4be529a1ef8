use chrono::{DateTime, Utc};
use prost_types::Timestamp;

/// Converts to protobuf's timestamp, to the nanosecond.
pub fn to_timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp {
        seconds: time.timestamp(),
        nanos: time.timestamp_subsec_nanos() as i32,
    }
}

/// Converts from protobuf's timestamp. `None` when it is outside what a calendar can hold.
pub fn from_timestamp(time: &Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)
}
