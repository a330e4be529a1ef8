//! Pure parts: what belongs to an incident, and how messages look as JSON.

pub mod json;
pub mod scope;
