//! What a sensor does: capture, meter, gather records, hand them on.

pub mod folder;
pub mod follow;
pub mod forward;
pub mod listen;
pub mod play;
pub mod recorder;
pub mod remember;
pub mod sensor;
pub mod watch;
