//! Use cases.

pub mod bundle;
pub mod gather;
pub mod packets;
pub mod retention;
pub mod sealing;
pub mod search;
