//! The gRPC services: convert, call a use case, convert back. Who may call is decided before.

pub mod evidence;
pub mod search;
