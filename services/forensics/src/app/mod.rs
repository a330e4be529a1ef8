//! Use cases.

pub mod bundle;
pub mod gather;
pub mod packets;
pub mod search;
