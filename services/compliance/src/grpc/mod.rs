//! The gRPC services: convert, call a use case, convert back. Who may call is decided before.

pub mod log;
pub mod report;

use uuid::Uuid;

use crate::error::Error;

/// Reads a page size: 0 is the default, more than the maximum is the maximum.
fn page_size(asked: i32, default: usize, maximum: usize) -> Result<usize, Error> {
    match usize::try_from(asked) {
        Ok(0) => Ok(default),
        Ok(size) => Ok(size.min(maximum)),
        Err(_) => Err(Error::Field {
            field: "page_size",
            message: format!("{asked} is negative; use 0 for the default"),
        }),
    }
}

/// Reads a UUID field.
fn uuid(field: &'static str, text: &str) -> Result<Uuid, Error> {
    Uuid::parse_str(text).map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        Error::Field {
            field,
            message: format!("{shown:?} is not a UUID"),
        }
    })
}
