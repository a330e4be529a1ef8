//! The policy service against a real PostgreSQL and a real nats-server.

#![allow(clippy::unwrap_used, missing_docs)]

mod documents;
mod flows;
mod outages;
mod program;
mod review;
mod tenancy;
mod world;
