//! The layer behind a real TLS server, asked by real clients: every way in that must be shut is tried.

#![allow(clippy::unwrap_used, missing_docs)]

mod certificates;
mod people;
mod server;
mod services;
