//! Threat intelligence: what others have found to be bad, in a form that every flow can be asked about.
//!
//! * [`Index`] holds indicators, a few dozen octets each, and answers what is known of an address, a domain, a URL or a
//!   fingerprint. It never changes once built; [`Live`] swaps it for the next one while readers go on.
//! * [`Builder`] makes an index out of indicators and out of an earlier index.
//! * [`feed`] reads the formats in which indicators are exchanged: plain lists, CSV, STIX 2.1, TAXII 2.1, MISP.
//! * [`Warnings`] holds back what would match everything or everybody.
//!
//! Nothing here reads files, sockets or clocks.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod build;
mod canonical;
pub mod feed;
mod filter;
mod hash;
mod index;
mod indicator;
mod live;
mod ranges;
mod value;
mod warning;

pub use build::{Builder, Full};
pub use index::{Claim, Entry, Index};
pub use indicator::{Indicator, Span};
pub use live::Live;
pub use value::{Kind, Value, ValueError};
pub use warning::{Held, Warnings};
