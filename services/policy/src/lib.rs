//! The policy service.
//!
//! It stores ZeroTrustPolicy documents with their versions, gives every flow a verdict, raises alerts for flows
//! that enforced policies forbid, and compiles policies for enforcement points. The language itself is in
//! `garrison-ztp`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod app;
pub mod bus;
pub mod config;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod metrics;
pub mod store;

use std::{convert::Infallible, sync::Arc};

use garrison_bus::{Dispatch, topology};
use garrison_proto::policy::v1::policy_service_server::PolicyServiceServer;
use garrison_service::{BoxError, Service, ServiceInfo};
use tonic::service::Routes;

use crate::{app::App, bus::FlowHandler, config::Config, grpc::PolicyApi};

/// The tables of this service.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// What this binary is.
pub const INFO: ServiceInfo = ServiceInfo {
    name: "policy",
    version: env!("CARGO_PKG_VERSION"),
    migrator: Some(&MIGRATOR),
};

/// Wires the service and serves until it is told to stop.
///
/// # Errors
/// What [`Service::serve`] says.
pub async fn run(config: Config, mut service: Service) -> Result<(), BoxError> {
    let app = Arc::new(App::new(service.db().clone(), config.settings()));
    let (follower, ready, stop) = (Arc::clone(&app), service.readiness("policies"), service.shutdown());
    service.spawn("policy follower", async move {
        follower
            .follow_changes(stop, |lacking| match lacking {
                None => ready.ready(),
                Some(reason) => ready.not_ready(reason),
            })
            .await;
        Ok::<(), Infallible>(())
    });
    let (counter, stop) = (Arc::clone(&app), service.shutdown());
    service.spawn("verdict counts", async move {
        counter.keep_counts(stop).await;
        Ok::<(), Infallible>(())
    });
    let handler = FlowHandler { app: Arc::clone(&app) };
    let dispatch = Dispatch::Concurrent(config.flows.concurrency);
    service.consume(&topology::FLOWS_POLICY, dispatch, handler);
    let routes = Routes::new(PolicyServiceServer::new(PolicyApi { app }));
    service.serve(routes).await
}
