//! The only SQL of this service.

mod alerts;
mod policies;
mod verdicts;

pub use alerts::{RaisedAlert, forget_alerts, grow, raise, raised};
pub use policies::{
    Change, Decision, Review, Standing, StoredPolicy, Which, changes, decide, find, insert_version, list,
    list_versions, list_waiting, next_epoch, standing, withdraw,
};
pub use verdicts::{CountRow, add_counts, list_counts};
