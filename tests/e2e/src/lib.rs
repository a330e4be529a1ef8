//! What no single service can show: tests of the whole fleet, as real processes with a real database and broker.
//!
//! `cargo build --workspace --bins && cargo test -p garrison-e2e` runs them; there is nothing else here. They need
//! what `cargo xtask setup` installs, and user namespaces.
//!
//! | variable | meaning |
//! |---|---|
//! | `GARRISON_SEED` | repeats the kills of an earlier run, which printed it |
//! | `GARRISON_CORPORA` | folder with public captures, three of which are then played too |
