//! PostgreSQL for services: a pool that survives outages, transactions bound to one tenant by forced row-level
//! security, an inbox that ignores repeated messages, an outbox that publishes what was committed, and migrations.
//!
//! A state change is: [`Db::begin`]; [`Tx::first_delivery`]; effect; [`Tx::publish`]; [`Tx::commit`]. The relay
//! ([`run_outbox_relay`]) publishes what was committed, in order, and removes it once the broker has stored it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod config;
mod database;
mod error;
mod lane;
mod migration;
mod outbox;
mod outgoing;
mod transaction;

pub use config::DbConfig;
pub use database::Db;
pub use error::{DbError, disposition, is_unavailable};
pub use lane::{Lane, Rehearsal};
pub use migration::migrate;
pub use outbox::run_outbox_relay;
pub use outgoing::Outgoing;
pub use sqlx::migrate::Migrator;
pub use transaction::Tx;
