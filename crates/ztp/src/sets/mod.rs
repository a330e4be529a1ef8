//! Exact sets: addresses, services (protocol and port), labels.
//!
//! Every set here is closed under union, intersection and difference, and membership is decided exactly.

mod address;
mod interval;
mod selector;
mod service;

pub use address::AddressSet;
pub use interval::{Bound, IntervalSet};
pub use selector::{LabelValues, Labels, Selector};
pub use service::{PORT_PROTOCOLS, ServiceSet, protocol_name};
