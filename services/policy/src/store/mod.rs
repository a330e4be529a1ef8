//! The only SQL of this service.

mod alerts;
mod policies;
mod verdicts;

pub use alerts::{RaisedAlert, forget_alerts, grow, raise, raised};
pub use policies::{
    Change, StoredPolicy, changes, current, find_version, insert_version, list, list_versions, next_epoch, withdraw,
};
pub use verdicts::{CountRow, add_counts, list_counts};
