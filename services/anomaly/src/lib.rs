//! Detects what does not belong: learns what is normal, scores flows, watches for known behaviours, and publishes what
//! it finds as alerts.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod app;
pub mod bus;
pub mod config;
pub mod domain;
pub mod error;
pub mod evaluation;
pub mod grpc;
pub mod metrics;
pub mod store;

use std::{convert::Infallible, sync::Arc};

use chrono::Utc;
use garrison_bus::{
    Dispatch, run_consumer,
    topology::{ALERTS_ANOMALY, EVENTS_ANOMALY, FLOWS_ANOMALY},
};
use garrison_service::{BoxError, Service, ServiceInfo};
use tokio_util::sync::CancellationToken;

use crate::{app::Engine, config::Config};

/// The database migrations.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// What this binary is.
pub const INFO: ServiceInfo = ServiceInfo {
    name: "anomaly",
    version: env!("CARGO_PKG_VERSION"),
    migrator: Some(&MIGRATOR),
};

/// Runs the service until it is asked to stop.
///
/// # Errors
/// Configuration that cannot be used, or a failure of a task.
pub async fn run(config: Config, mut service: Service) -> Result<(), BoxError> {
    let clock = Arc::new(|| Utc::now().timestamp_nanos_opt().unwrap_or(i64::MAX));
    let engine = Arc::new(Engine::new(service.db().clone(), service.bus.clone(), &config, clock));
    let ready = service.readiness("state");
    ready.not_ready("the state of before was not recovered yet");

    let (flows, bus, shutdown) = (Arc::clone(&engine), service.bus.clone(), service.shutdown());
    let (prepared, recovered) = (CancellationToken::new(), CancellationToken::new());
    let (known, share) = (recovered.clone(), prepared.clone());
    service.spawn("flows", async move {
        flows.intel().prepare().await;
        share.cancel();
        let mut consumed = Ok(());
        if flows.join(&shutdown).await {
            ready.ready();
            known.cancel();
            let handler = Arc::new(bus::Flows(Arc::clone(&flows)));
            consumed = run_consumer(&bus, &FLOWS_ANOMALY, Dispatch::Ordered, handler, shutdown).await;
        }
        // A clean stop leaves nothing to be read back, and others need not wait for a lease to run out.
        flows.leave().await;
        consumed
    });
    let sharing = Arc::clone(&engine);
    service.spawn("replicas", async move {
        prepared.cancelled().await;
        sharing.follow_replicas().await;
        Ok::<_, Infallible>(())
    });
    let (upkeep, shutdown) = (Arc::clone(&engine), service.shutdown());
    service.spawn("checkpoints", async move {
        upkeep.keep_up(shutdown).await;
        Ok::<_, Infallible>(())
    });
    let (learning, shutdown) = (Arc::clone(&engine), service.shutdown());
    service.spawn("learning", async move {
        learning.follow_learning(shutdown).await;
        Ok::<_, Infallible>(())
    });
    let (following, shutdown) = (Arc::clone(&engine), service.shutdown());
    service.spawn("feeds", async move {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = recovered.cancelled() => {}
        }
        following.intel().follow(&following, shutdown).await;
        Ok::<_, Infallible>(())
    });
    let risks = engine.risks().clone();
    service.consume(&ALERTS_ANOMALY, Dispatch::Ordered, bus::Alerts(risks.clone()));
    service.consume(&EVENTS_ANOMALY, Dispatch::Ordered, bus::Logins(risks.clone()));
    let (following, shutdown) = (risks.clone(), service.shutdown());
    service.spawn("alerts that count for risks", async move {
        following.follow(shutdown).await;
        Ok::<_, Infallible>(())
    });
    let (keeping, shutdown) = (risks.clone(), service.shutdown());
    service.spawn("risks", async move {
        keeping.keep_up(shutdown).await;
        Ok::<_, Infallible>(())
    });
    service.serve(grpc::routes(engine, risks)).await
}
