//! The service against a real PostgreSQL and a real broker: as a process that is killed, and embedded where people's
//! tokens are needed.

#![allow(clippy::unwrap_used, missing_docs)]

mod evidence;
mod flows;
mod ingest;
mod outages;
mod retention;
mod sealing;
mod world;
