//! Incidents, and what is done about them: alerts are correlated, playbooks decide, actions are ordered,
//! confirmed and undone. The second binary, `enforcer`, is the node agent that carries the orders out.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod app;
pub mod bus;
pub mod config;
pub mod digest;
pub mod domain;
pub mod enforcer;
pub mod error;
pub mod grpc;
pub mod metrics;
pub mod store;

use chrono::Utc;
use garrison_bus::{Dispatch, topology};
use garrison_service::{BoxError, ConfigError, Service, ServiceInfo};

use crate::{app::App, config::Config};

/// The tables of this service.
pub static MIGRATOR: garrison_db::Migrator = sqlx::migrate!();

/// What this binary is.
pub const INFO: ServiceInfo = ServiceInfo {
    name: "responder",
    version: env!("CARGO_PKG_VERSION"),
    migrator: Some(&MIGRATOR),
};

/// Messages handled at a time, of all tenants together; those of one tenant are decided one after the other.
const CONCURRENCY: usize = 8;

/// Wires the service and runs it until it is told to stop.
///
/// # Errors
/// Whatever ended the service.
pub async fn run(config: Config, mut service: Service) -> Result<(), BoxError> {
    let app = wire(&config, &mut service)?;
    service.serve(grpc::routes(app)).await
}

/// Starts everything but the gRPC server.
///
/// # Errors
/// When the configuration makes no sense.
pub fn wire(config: &Config, service: &mut Service) -> Result<App, ConfigError> {
    let app = App::new(service.info, service.db().clone(), config.settings()?, Utc::now());
    service.consume(
        &topology::ALERTS_RESPONDER,
        Dispatch::Concurrent(CONCURRENCY),
        bus::Alerts(app.clone()),
    );
    service.consume(
        &topology::RESPONSES_RESPONDER,
        Dispatch::Concurrent(CONCURRENCY),
        bus::Reports(app.clone()),
    );
    service.relay_outbox();
    let deadlines = app.clone().keep_deadlines(service.shutdown());
    service.spawn("deadlines", deadlines);
    let rehearsals = app.clone().keep_rehearsed(service.shutdown());
    service.spawn("rehearsals", rehearsals);
    Ok(app)
}
