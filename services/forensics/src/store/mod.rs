//! The only SQL of this service.

pub mod bundles;
pub mod catalogue;
pub mod events;

/// Constraints and code keep every stored number at or above zero.
fn number(value: i64) -> u64 {
    value.unsigned_abs()
}

fn bound(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
