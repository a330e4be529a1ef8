//! Identity and access management: who may log in, how they prove it, and the tokens that say so.
//!
//! What a token permits is decided in every service by the shared authorisation layer; iam issues the tokens, publishes
//! the keys that verify them and tells everybody within a second when a session is over.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod app;
pub mod config;
pub mod crypto;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod metrics;
pub mod store;

use std::sync::{Arc, Mutex};

use chrono::Utc;
use garrison_service::{BoxError, ConfigError, Service, ServiceInfo};

use crate::{
    app::{Clock, Iam},
    config::Config,
    crypto::{PasswordHasher, SigningKeys, Vault},
    domain::AttemptLimiter,
    metrics::Metrics,
};

/// The database migrations.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// What this binary is.
pub const INFO: ServiceInfo = ServiceInfo {
    name: "iam",
    version: env!("CARGO_PKG_VERSION"),
    migrator: Some(&MIGRATOR),
};

/// Runs the service until it is asked to stop.
///
/// # Errors
/// Configuration that cannot be used, or a failure of a task.
pub async fn run(config: Config, service: Service) -> Result<(), BoxError> {
    run_with_clock(config, service, Arc::new(Utc::now)).await
}

/// [`run`] with another clock, for tests of time limits.
///
/// # Errors
/// See [`run`].
pub async fn run_with_clock(config: Config, mut service: Service, clock: Clock) -> Result<(), BoxError> {
    let tenants = config.prepared_tenants()?;
    let secrets = &config.secrets;
    let vault = Vault::load(&secrets.key_file, &secrets.previous_key_files)
        .map_err(|error| ConfigError::invalid("secrets", error.to_string()))?;
    let hasher =
        PasswordHasher::new(config.hasher()).map_err(|error| ConfigError::invalid("passwords", error.to_string()))?;
    let iam = Arc::new(Iam {
        db: service.db().clone(),
        clock,
        vault,
        hasher,
        signing: SigningKeys::default(),
        ring: service.key_ring(),
        limiter: Mutex::new(AttemptLimiter::new(config.limiter())),
        settings: config.settings(),
        metrics: Metrics::default(),
    });
    let (ready, shutdown) = (service.readiness("signing key"), service.shutdown());
    ready.not_ready("the signing keys were not loaded yet");
    let upkeep = Arc::clone(&iam);
    service.spawn("upkeep", async move {
        upkeep.prepare(&tenants, &shutdown).await?;
        ready.ready();
        upkeep.keep_up(shutdown).await;
        Ok::<_, error::Error>(())
    });
    service.serve(grpc::routes(iam)).await
}
