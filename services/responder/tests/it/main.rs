//! The responder and the enforcer against a real PostgreSQL, a real nats-server and real kernels.
#![allow(clippy::unwrap_used, missing_docs)]

mod api;
mod fixture;
mod fleet;
mod intake;
mod kernel;
mod lab;
mod limits;
mod outages;
mod processes;
mod tenants;
