//! The compliance service.
//!
//! It turns the AUDIT stream into one append-only Merkle log for each tenant (RFC 6962), signs checkpoints of it,
//! proves inclusion and consistency, and makes reports whose every finding links to log entries.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod app;
pub mod bus;
pub mod config;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod metrics;
pub mod store;

use std::{convert::Infallible, sync::Arc, time::Duration};

use garrison_bus::{Dispatch, topology};
use garrison_proof::SigningKey;
use garrison_proto::compliance::v1::{
    report_service_server::ReportServiceServer, transparency_log_service_server::TransparencyLogServiceServer,
};
use garrison_service::{BoxError, ConfigError, Service, ServiceInfo, read_secret};
use tonic::service::Routes;

use crate::{
    app::{append::appender, checkpoints::Checkpoints},
    bus::AuditHandler,
    config::Config,
    grpc::{log::LogService, report::Reports},
    metrics::Metrics,
};

/// The tables of this service.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// What this binary is.
pub const INFO: ServiceInfo = ServiceInfo {
    name: "compliance",
    version: env!("CARGO_PKG_VERSION"),
    migrator: Some(&MIGRATOR),
};

/// Records in hand at a time; they share transactions.
const CONCURRENCY: usize = 256;

/// Wires the service and serves until it is told to stop.
///
/// # Errors
/// What [`Service::serve`] says, or a configuration error before anything is opened.
pub async fn run(config: Config, mut service: Service) -> Result<(), BoxError> {
    let key = signing_key(&config)?;
    let db = service.db().clone();
    let trust_domain = &config.core.identity.trust_domain;
    let checkpoints = Arc::new(Checkpoints::new(db.clone(), key, trust_domain));

    let (appender, task) = appender(db.clone(), Arc::clone(&checkpoints), config.log.batch);
    service.spawn("log writer", async move {
        task.run().await;
        Ok::<(), Infallible>(())
    });
    let (signer, shutdown) = (Arc::clone(&checkpoints), service.shutdown());
    let interval = Duration::from_millis(config.log.checkpoint_interval_ms);
    service.spawn("checkpoints", async move {
        signer.run(interval, shutdown).await;
        Ok::<(), Infallible>(())
    });
    let handler = AuditHandler {
        appender,
        metrics: Metrics::new(),
    };
    service.consume(&topology::AUDIT_COMPLIANCE, Dispatch::Concurrent(CONCURRENCY), handler);

    let routes = Routes::new(TransparencyLogServiceServer::new(LogService {
        db: db.clone(),
        checkpoints: Arc::clone(&checkpoints),
    }))
    .add_service(ReportServiceServer::new(Reports {
        db,
        checkpoints,
        evidence_per_observation: config.reports.evidence_per_observation,
    }));
    service.serve(routes).await
}

fn signing_key(config: &Config) -> Result<SigningKey, ConfigError> {
    let pem = read_secret("log.key_file", &config.log.key_file)?;
    SigningKey::from_pkcs8_pem(&pem).map_err(|error| {
        let path = config.log.key_file.display();
        let remedy = "make one with `openssl genpkey -algorithm ed25519`";
        ConfigError::invalid("log.key_file", format!("GAR-COMP-0001: {path}: {error}; {remedy}"))
    })
}
