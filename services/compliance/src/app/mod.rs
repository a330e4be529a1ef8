//! Use cases.

pub mod append;
pub mod checkpoints;
pub mod proofs;
pub mod reports;
