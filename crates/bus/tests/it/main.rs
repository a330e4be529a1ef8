//! The bus against a real nats-server with TLS, permissions and file-backed streams.
#![allow(clippy::unwrap_used, missing_docs)]

mod broker;
mod delivery;
mod direct;
mod outage;
mod permissions;
mod provisioning;
mod publishing;
mod replicas;
mod retention;
