use std::{borrow::Cow, net::SocketAddr};

use crate::{BoxError, ConfigError};

/// A service cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A port cannot be opened.
    #[error("GAR-SVC-0001: listening on {address} (key `{key}`)")]
    Listen {
        /// The key with the address.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A supervised task ended with an error.
    #[error("GAR-SVC-0002: task {name} failed")]
    Task {
        /// Its name.
        name: Cow<'static, str>,
        /// Its error.
        source: BoxError,
    },
    /// A supervised task panicked.
    #[error("GAR-SVC-0003: task {name} panicked: {message}")]
    Panic {
        /// Its name.
        name: Cow<'static, str>,
        /// What it said.
        message: String,
    },
    /// Work did not finish in time after the signal to stop.
    #[error("GAR-SVC-0004: {} did not finish within the drain time and were cut off", tasks.join(", "))]
    Drain {
        /// The tasks that were still running.
        tasks: Vec<Cow<'static, str>>,
    },
    /// The gRPC server failed.
    #[error("GAR-SVC-0005: the gRPC server failed")]
    Grpc(#[source] BoxError),
    /// Telemetry cannot be set up.
    #[error("GAR-SVC-0006: setting up telemetry: {0}")]
    Telemetry(String),
    /// The process cannot start its runtime or handle signals.
    #[error("GAR-SVC-0007: {what}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}
