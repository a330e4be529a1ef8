//! Pure parts: what an entry is, what a report says.

pub mod assessment;
pub mod controls;
pub mod html;
pub mod oscal;
pub mod record;
