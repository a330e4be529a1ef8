//! The forensics service.
//!
//! It keeps every flow batch (write-ahead segments, then Parquet with an index), alerts, incidents and responses;
//! finds flows by time, host, port, Community ID and flow id; and seals everything about an incident into a bundle that
//! anybody can verify with `sha256sum` and `openssl`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod app;
pub mod bus;
pub mod config;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod lake;
pub mod metrics;
pub mod store;

use std::{convert::Infallible, sync::Arc};

use garrison_bus::{Dispatch, topology};
use garrison_proof::SigningKey;
use garrison_proto::forensics::v1::{
    evidence_service_server::EvidenceServiceServer, flow_search_service_server::FlowSearchServiceServer,
};
use garrison_service::{BoxError, ConfigError, Service, ServiceInfo, read_secret};
use tokio::sync::Semaphore;
use tonic::service::Routes;

use crate::{
    app::{bundle::Bundles, gather::Gatherer, packets::Source, retention::Retention, search::Searcher},
    bus::{AlertHandler, EventHandler, FlowHandler},
    config::Config,
    grpc::{evidence::Evidence, search::FlowSearch},
    lake::{Lake, compact::Compactor},
    metrics::Metrics,
};

/// The tables of this service.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// What this binary is.
pub const INFO: ServiceInfo = ServiceInfo {
    name: "forensics",
    version: env!("CARGO_PKG_VERSION"),
    migrator: Some(&MIGRATOR),
};

/// Flow batches in hand at a time; they share syncs.
const FLOWS_AT_A_TIME: usize = 64;
/// Alerts or events in hand at a time.
const EVENTS_AT_A_TIME: usize = 16;

/// Wires the service and serves until it is told to stop.
///
/// # Errors
/// What [`Service::serve`] says, or a configuration error before anything is opened.
pub async fn run(config: Config, mut service: Service) -> Result<(), BoxError> {
    let key = signing_key(&config)?;
    let sources = packet_sources(&config, &service)?;
    let db = service.db().clone();
    let metrics = Metrics::new();
    let lake = Lake::open(&config.lake)?;

    let (flag, mut trouble, stop) = (service.readiness("lake"), lake.trouble(), service.shutdown());
    service.spawn("lake health", async move {
        loop {
            match trouble.borrow_and_update().as_deref() {
                None => flag.ready(),
                Some(reason) => flag.not_ready(reason),
            }
            tokio::select! {
                changed = trouble.changed() => if changed.is_err() { break },
                () = stop.cancelled() => break,
            }
        }
        Ok::<(), Infallible>(())
    });
    let compactor = Compactor {
        lake: lake.clone(),
        db: db.clone(),
        metrics: metrics.clone(),
    };
    let stop = service.shutdown();
    service.spawn("compaction", async move {
        compactor.run(stop).await;
        Ok::<(), Infallible>(())
    });

    let searcher = Searcher {
        lake: lake.clone(),
        db: db.clone(),
        permits: Arc::new(Semaphore::new(config.search.concurrency)),
        metrics: metrics.clone(),
    };
    let gatherer = Gatherer {
        db: db.clone(),
        searcher: searcher.clone(),
        sources,
        config: config.evidence.clone(),
        max_candidates: config.search.max_candidates,
    };
    let bundles = Arc::new(Bundles::new(db.clone(), gatherer, key, service.info, metrics.clone()));
    let (worker, stop) = (Arc::clone(&bundles), service.shutdown());
    service.spawn("evidence", async move {
        worker.run(stop).await;
        Ok::<(), Infallible>(())
    });

    let retention = Retention {
        db: db.clone(),
        days: config.events.retention_days,
        metrics: metrics.clone(),
    };
    let stop = service.shutdown();
    service.spawn("retention of events", async move {
        retention.run(stop).await;
        Ok::<(), Infallible>(())
    });

    let flows = FlowHandler {
        lake,
        metrics: metrics.clone(),
    };
    service.consume(&topology::FLOWS_FORENSICS, Dispatch::Concurrent(FLOWS_AT_A_TIME), flows);
    let alerts = AlertHandler {
        db: db.clone(),
        metrics: metrics.clone(),
    };
    service.consume(
        &topology::ALERTS_FORENSICS,
        Dispatch::Concurrent(EVENTS_AT_A_TIME),
        alerts,
    );
    let events = EventHandler {
        db: db.clone(),
        metrics,
    };
    service.consume(
        &topology::EVENTS_FORENSICS,
        Dispatch::Concurrent(EVENTS_AT_A_TIME),
        events,
    );

    let routes = Routes::new(FlowSearchServiceServer::new(FlowSearch {
        searcher,
        max_flows: config.search.max_flows,
        max_candidates: config.search.max_candidates,
    }))
    .add_service(EvidenceServiceServer::new(Evidence { bundles, db }));
    service.serve(routes).await
}

fn signing_key(config: &Config) -> Result<SigningKey, ConfigError> {
    let pem = read_secret("evidence.key_file", &config.evidence.key_file)?;
    SigningKey::from_pkcs8_pem(&pem).map_err(|error| {
        let path = config.evidence.key_file.display();
        let remedy = "make one with `openssl genpkey -algorithm ed25519`";
        ConfigError::invalid("evidence.key_file", format!("{path}: {error}; {remedy}"))
    })
}

fn packet_sources(config: &Config, service: &Service) -> Result<Vec<Source>, ConfigError> {
    let key = "evidence.flow_ingest_endpoints";
    let source = |endpoint: &String| {
        let channel = service.channel("flow-ingest", key, endpoint)?;
        Ok(Source {
            endpoint: endpoint.clone(),
            channel,
        })
    };
    config.evidence.flow_ingest_endpoints.iter().map(source).collect()
}
