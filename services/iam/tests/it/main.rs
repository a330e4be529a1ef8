//! iam against a real PostgreSQL and a real nats-server.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod admin;
mod limits;
mod login;
mod outages;
mod process;
mod secrets;
mod service;
mod tenancy;
mod world;
