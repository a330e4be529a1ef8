//! From closed batches to the broker: encoding, waiting while the broker is away, publishing in order.

pub mod hub;
pub mod outbound;
pub(crate) mod publish;
pub mod queue;
pub mod spool;
