//! The wire contracts of the fleet: every message and gRPC service of every domain, and the few types
//! that all of them share.
//!
//! The `.proto` files under `garrison/<domain>/v1/` are the source; the code is generated at build time
//! without `protoc`.

mod resource;
mod tenant;
mod time;

pub use prost_types::{Duration, Timestamp};
pub use resource::{InvalidName, parse_name, resource_name};
pub use tenant::{InvalidTenant, TenantId};
pub use time::{from_timestamp, to_timestamp};

/// The compiled descriptors of every file, for gRPC reflection and for JSON transcoding.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

macro_rules! domains {
    ($($(#[$doc:meta])* $domain:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[allow(missing_docs, clippy::all, unreachable_pub)] // generated; the .proto files carry the documentation
        pub mod $domain {
            /// Version 1.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/garrison.", stringify!($domain), ".v1.rs"));
            }
        }
    )*};
}

domains! {
    /// What sensors see.
    flow,
    /// What detectors find.
    alert,
    /// Who may talk to whom.
    policy,
    /// Incidents, and what is done about them.
    response,
    /// The flow lake and sealed evidence.
    forensics,
    /// The transparency log and reports.
    compliance,
    /// People, tenants, sessions and tokens.
    iam,
    /// Who did what.
    audit,
    /// What happened besides flows.
    event,
}
