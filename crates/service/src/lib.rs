//! What every service of the fleet has in common: configuration, telemetry, a life cycle in two stages, health,
//! and a gRPC server that authenticates, authorises and records.
//!
//! A binary is `fn main() -> ExitCode { garrison_service::main(INFO, my_service::run) }`; its `run` receives
//! the configuration and a [`Service`], wires its handlers and ends with [`Service::serve`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod audit;
pub mod client;
mod config;
mod error;
mod grpc;
mod health;
mod lifecycle;
mod program;
mod readiness;
mod reference;
mod service;
mod standalone;
mod telemetry;
mod trace;

pub use config::{
    AdminConfig, AuthConfig, ConfigError, Core, GrpcConfig, IdentityConfig, LifecycleConfig, LogFormat, ServiceConfig,
    TelemetryConfig, read_config, read_secret,
};
pub use error::ServiceError;
pub use program::{ExtraCommand, ServiceInfo, execute, main, main_with};
pub use readiness::{Readiness, ReadinessFlag};
pub use reference::reference;
pub use service::Service;
pub use standalone::{Standalone, StandaloneConfig, StandaloneCore, execute_standalone, identity, standalone};

/// What a service's `run` may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
