//! What a sensor does: capture, meter, gather records, hand them on.

pub mod listen;
pub mod play;
pub mod recorder;
pub mod sensor;
pub mod watch;
