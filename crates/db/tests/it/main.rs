//! The database crate against a real PostgreSQL and a real nats-server.
#![allow(clippy::unwrap_used, missing_docs)]

mod fixture;
mod inbox;
mod isolation;
mod lane;
mod migrations;
mod outage;
mod outbox;
