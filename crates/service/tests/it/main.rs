//! A small service as a real process, against real PostgreSQL and a real broker: how it starts, what it says it
//! lacks, how it stops, and what it refuses to start with.

#![allow(clippy::unwrap_used, missing_docs)]

mod child;
mod collector;
mod fleet;
mod iam;
mod refusals;
mod running;
