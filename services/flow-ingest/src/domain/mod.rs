//! Packets to flows: no input or output, no clock, no randomness, and no allocation for a packet that belongs to a
//! flow already known.

pub mod aggregate;
pub mod app;
mod ascii;
mod counts;
#[cfg(test)]
pub(crate) mod craft;
mod decode;
#[cfg(test)]
mod flood_tests;
pub mod flow;
pub mod fragment;
pub mod index;
pub mod key;
mod link;
pub mod meter;
#[cfg(test)]
mod meter_tests;
pub mod network;
#[cfg(test)]
mod network_tests;
mod note;
pub mod packet;
#[cfg(test)]
mod packet_tests;
pub mod port;
mod prefetch;
pub mod record;
pub mod table;
pub mod tcp;
pub mod tunnel;
#[cfg(test)]
mod tunnel_tests;
pub mod wheel;

pub use counts::Counts;
pub use meter::{Meter, Sink};
pub use table::Limits;
