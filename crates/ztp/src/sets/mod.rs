//! Exact sets: addresses, services (protocol and port), labels, texts, requests.
//!
//! Sets of addresses, services and labels are closed under union, intersection and difference. Texts and requests are
//! decided on a few of them that stand for all.

mod address;
mod interval;
mod request;
mod selector;
mod service;
mod text;

pub use address::AddressSet;
pub use interval::{Bound, IntervalSet};
pub use request::{HttpRequest, RequestBox, RequestSet, representatives};
pub use selector::{LabelValues, Labels, Selector};
pub use service::{NUMBERED, PORT_PROTOCOLS, ServiceSet, protocol_name};
pub use text::{TextPattern, TextSet, witnesses};
