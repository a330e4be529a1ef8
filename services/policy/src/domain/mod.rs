//! Pure: which flows are new, how verdicts are counted, how violations become alerts.

mod seen;
mod tally;
mod violation;

pub use seen::{Seen, Sight};
pub use tally::{BatchTally, CountKey, Tally};
pub use violation::{DETECTOR, Findings, Folder, Violation, update};
