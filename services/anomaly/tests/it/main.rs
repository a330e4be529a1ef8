//! anomaly against a real PostgreSQL and a real nats-server.
#![allow(clippy::unwrap_used, missing_docs)]

mod api;
mod budget;
mod intel;
mod models;
mod process;
mod replicas;
mod risk;
mod traffic;
mod world;
