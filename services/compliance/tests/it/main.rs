//! The service as a real process against a real PostgreSQL and a real broker.

#![allow(clippy::unwrap_used, missing_docs)]

mod log;
mod outages;
mod reports;
mod world;
