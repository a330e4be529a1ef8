//! The flow meter: packets from interfaces and capture files become flow records on the bus, with a ledger of every
//! packet and record, and a bounded ring of the packets themselves.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agreement;
pub mod app;
pub mod bus;
pub mod capture;
pub mod config;
pub mod domain;
pub mod export;
mod grpc;
pub mod import;
pub mod input;
mod metrics;
pub mod ring;
mod service;
pub mod standalone;

pub use config::Config;
pub use service::{INFO, run};
