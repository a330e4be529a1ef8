//! What no single service can show: tests of the whole fleet, as real processes with a real database and broker.
//!
//! `cargo build --workspace --bins && cargo test -p garrison-e2e` runs them; there is nothing else here.
