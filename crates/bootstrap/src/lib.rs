//! Makes what a fleet needs before its first start, in a folder: a development certificate authority with every
//! identity, secrets, and the configuration of each service, the broker and the database.
//!
//! One source for `cargo xtask`, the tests and the compose stack. Production brings its own certificates and
//! secrets; the configuration has the same form.

mod broker;
mod file;
mod pki;
mod plan;
mod secrets;

use std::path::{Path, PathBuf};

pub use broker::broker_config;
pub use pki::{IdentityFiles, Pki, TRUST_DOMAIN};
pub use plan::{
    DATABASE_SERVICES, Enforcer, Person, Place, Plan, SERVICES, Sensor, Source, Tenant, Written, owner, role,
};
pub use secrets::Secrets;

/// A file or folder could not be prepared.
#[derive(Debug, thiserror::Error)]
#[error("preparing {} failed", path.display())]
pub struct BootstrapError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

impl BootstrapError {
    fn new(path: &Path, source: std::io::Error) -> Self {
        Self {
            path: path.to_owned(),
            source,
        }
    }
}
