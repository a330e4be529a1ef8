//! The wiring: configuration to sensors, threads, queue and gRPC.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use garrison_proto::flow::v1::flow_service_server::FlowServiceServer;
use garrison_service::{BoxError, ConfigError, ReadinessFlag, Service, ServiceInfo};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::{
    app::{
        folder::{Watching, watch_folder},
        follow::{Following, follow},
        forward::{self, Forwarding},
        listen::{Listening, listen},
        play::{Playing, play},
        recorder::Recorder,
        sensor::Sensor,
        watch::{Watched, now, watch},
    },
    bus::{hub::Hub, outbound, publish::publish, queue::Queue, spool::Spool},
    capture::{Filter, afpacket::RingOptions},
    config::{Config, Direction, SensorConfig},
    domain::Meter,
    export::{Collector, CollectorLimits},
    grpc::FlowGrpc,
    import::LogReader,
    input::Options,
    metrics::Metrics,
    ring::{PacketRing, RingFeed},
};

/// What this service is.
pub const INFO: ServiceInfo = ServiceInfo {
    name: "flow-ingest",
    version: env!("CARGO_PKG_VERSION"),
    migrator: None,
};

/// How often sensors are looked at for readiness and for the end of their file.
const LOOK: Duration = Duration::from_millis(20);

struct Prepared {
    config: SensorConfig,
    sensor: Arc<Sensor>,
    filter: Option<Filter>,
    feed: Option<RingFeed>,
}

/// Runs the service until it is asked to stop.
///
/// # Errors
/// When the configuration cannot be used or a part of the service fails.
pub async fn run(config: Config, mut service: Service) -> Result<(), BoxError> {
    if config.sensors.is_empty() {
        tracing::warn!("no sensor is configured; add a [[sensors]] section");
    }
    if let Some(state) = &config.state {
        for sensor in &config.sensors {
            std::fs::create_dir_all(state.path.join(sensor.tenant.to_string()))
                .map_err(|error| unusable("state.path", &state.path, "GAR-FLOW-0053", &error))?;
        }
    }
    let (prepared, mut threads) = prepare(&config)?;
    let sensors: Vec<Arc<Sensor>> = prepared.iter().map(|p| Arc::clone(&p.sensor)).collect();
    let spool = match &config.spool.path {
        Some(path) => {
            let spool = Spool::open(path, config.spool.disk_bytes)
                .map_err(|error| unusable("spool.path", path, "GAR-FLOW-0030", &error))?;
            Some(spool)
        }
        None => None,
    };
    let queue = Arc::new(Queue::new(config.spool.memory_bytes, spool));
    let hub = Arc::new(Hub::new(sensors.iter().map(|sensor| sensor.tenant.clone())));
    let mut forwarders = Vec::new();
    for export in &config.export {
        let (forwarder, thread) = forward::start(Forwarding {
            to: export.to.clone(),
            sensors: export.sensors.iter().cloned().collect(),
            tenants: export.tenants.iter().cloned().collect(),
            domain: export.domain,
            max_bytes: export.max_bytes,
            templates: Duration::from_millis(export.template_ms),
        })?;
        forwarders.push(forwarder);
        threads.push(thread);
    }
    let metrics = Metrics::new(&sensors, &queue, &forwarders);
    let (outlet, outbound) = outbound::start(
        Arc::clone(&queue),
        Arc::clone(&hub),
        sensors.clone(),
        forwarders,
        config.batch.max_bytes,
    )?;
    threads.push(outbound);

    let stop = Arc::new(AtomicBool::new(false));
    let mut workers = Vec::new();
    for Prepared {
        config: sensor_config,
        sensor,
        filter,
        feed,
    } in prepared
    {
        let share: Vec<_> = (0..sensor_config.workers)
            .map(|number| {
                let feed = feed.as_ref().map(RingFeed::another);
                let recorder = Recorder::new(Arc::clone(&sensor), outlet.clone(), feed, &config.batch);
                let meter = Meter::new(&sensor.id, config.table.limits(), uuid::Uuid::new_v4().as_u128());
                (meter, recorder.of_worker(number))
            })
            .collect();
        let stop = Arc::clone(&stop);
        workers.push(start_worker(&config, sensor_config, sensor, filter, share, stop)?);
    }
    // The outbound thread ends when the last worker's outlet is gone.
    drop(outlet);

    let drain = Duration::from_millis(config.core.lifecycle.drain_timeout_ms);
    let hurry = CancellationToken::new();
    service.spawn("sensors", {
        let (shutdown, hurry, queue) = (service.shutdown(), hurry.clone(), Arc::clone(&queue));
        async move {
            shutdown.cancelled().await;
            stop.store(true, Ordering::Relaxed);
            queue.stop_waiting();
            // Most of the drain time belongs to the broker, the rest to the spool.
            tokio::spawn(async move {
                tokio::time::sleep(drain.mul_f32(0.6)).await;
                hurry.cancel();
            });
            tokio::task::spawn_blocking(move || join(workers.into_iter().chain(threads))).await?
        }
    });
    service.spawn(
        "flow publisher",
        publish(service.publisher.clone(), queue, metrics, hurry),
    );
    let flag = service.readiness("capture");
    let ring_flag = config.ring.is_some().then(|| service.readiness("packet-ring"));
    service.spawn("sensor states", {
        let (sensors, shutdown) = (sensors.clone(), service.shutdown());
        async move {
            shutdown
                .run_until_cancelled(look_after(&sensors, &flag, ring_flag.as_ref()))
                .await;
            Ok::<(), std::convert::Infallible>(())
        }
    });

    let max_slice = config.ring.as_ref().map_or(0, |ring| ring.max_slice_bytes);
    let grpc = FlowGrpc::new(sensors, hub, max_slice, service.key_ring(), service.shutdown());
    service.serve(Routes::new(FlowServiceServer::new(grpc))).await
}

fn unusable(key: &str, path: &std::path::Path, code: &str, error: &std::io::Error) -> ConfigError {
    ConfigError::invalid(key, format!("{code}: {} cannot be used: {error}", path.display()))
}

type Started = (Vec<Prepared>, Vec<JoinHandle<()>>);

fn prepare(config: &Config) -> Result<Started, ConfigError> {
    let mut prepared = Vec::new();
    let mut threads = Vec::new();
    for (number, sensor) in config.sensors.iter().enumerate() {
        let filter = sensor.filter.as_deref().map(Filter::new).transpose();
        let filter =
            filter.map_err(|error| ConfigError::invalid(format!("sensors[{number}].filter"), error.to_string()))?;
        let mut ring = None;
        let mut feed = None;
        if let Some(options) = &config.ring {
            // Tenants do not share a folder, so that one's packets can be removed or moved without the others'.
            let folder: PathBuf = options.path.join(sensor.tenant.to_string()).join(&sensor.id);
            let (opened, fed, thread) = PacketRing::open(&folder, options)
                .map_err(|error| unusable("ring.path", &folder, "GAR-FLOW-0021", &error))?;
            ring = Some(opened);
            feed = Some(fed);
            threads.push(thread);
        }
        let path = sensor.file.as_ref().or(sensor.folder.as_ref()).or(sensor.log.as_ref());
        let source = match (path, sensor.listen) {
            (Some(path), _) => path.display().to_string(),
            (None, Some(address)) => format!("udp {address}"),
            (None, None) => sensor.all_interfaces().join(", "),
        };
        prepared.push(Prepared {
            sensor: Arc::new(Sensor::new(
                &sensor.id,
                sensor.tenant.clone(),
                source,
                path.is_none(),
                now(),
                ring,
            )),
            config: sensor.clone(),
            filter,
            feed,
        });
    }
    Ok((prepared, threads))
}

// Where a sensor remembers something.
fn kept(config: &Config, sensor: &SensorConfig, what: &str) -> Option<PathBuf> {
    let state = config.state.as_ref()?;
    Some(
        state
            .path
            .join(sensor.tenant.to_string())
            .join(format!("{}.{what}.json", sensor.id)),
    )
}

fn listening(config: &Config, sensor: &SensorConfig, address: SocketAddr) -> (Listening, Collector) {
    let mut collector = Collector::new(&sensor.id, CollectorLimits::default(), uuid::Uuid::new_v4().as_u128());
    collector.keep_extra(sensor.extra);
    collector.assume_sampling(sensor.sampling);
    let listening = Listening {
        address,
        exporters: sensor.exporters.clone(),
        receive_bytes: sensor.receive_bytes,
        keep: kept(config, sensor, "templates"),
    };
    (listening, collector)
}

fn start_worker(
    config: &Config,
    sensor_config: SensorConfig,
    sensor: Arc<Sensor>,
    filter: Option<Filter>,
    share: Vec<(Meter, Recorder)>,
    stop: Arc<AtomicBool>,
) -> std::io::Result<JoinHandle<()>> {
    let options = RingOptions {
        promiscuous: sensor_config.promiscuous,
        ingress_only: sensor_config.direction == Direction::In,
        snaplen: sensor_config.snaplen,
        bytes: config.capture.ring_bytes,
        retire_ms: config.capture.retire_ms,
    };
    let thread = std::thread::Builder::new().name(format!("sensor-{}", sensor.id));
    // Sensors of other kinds have one worker.
    let only = |share: Vec<(Meter, Recorder)>| {
        let missing = || std::io::Error::other("a sensor has at least one worker");
        share.into_iter().next().ok_or_else(missing)
    };
    if let Some(address) = sensor_config.listen {
        let (how, collector) = listening(config, &sensor_config, address);
        let (_, recorder) = only(share)?;
        return thread.spawn(move || listen(&sensor, &how, collector, recorder, &stop));
    }
    let random = uuid::Uuid::new_v4().as_u128();
    let reading = Options {
        sensor: sensor_config.id.clone(),
        limits: config.table.limits(),
        random,
        format: sensor_config.format,
        extra: sensor_config.extra,
        filter: filter.clone(),
    };
    if let Some(path) = sensor_config.folder.clone() {
        let watching = Watching {
            path,
            settle: Duration::from_millis(sensor_config.settle_ms),
            options: reading,
            keep: kept(config, &sensor_config, "files"),
        };
        let (meter, recorder) = only(share)?;
        return thread.spawn(move || watch_folder(&sensor, &watching, meter, recorder, &stop));
    }
    if let (Some(path), Some(format)) = (sensor_config.log.clone(), sensor_config.format) {
        let following = Following {
            path,
            format,
            extra: sensor_config.extra,
            keep: kept(config, &sensor_config, "place"),
        };
        let reader = LogReader::new(format, &sensor_config.id, random);
        let (_, recorder) = only(share)?;
        return thread.spawn(move || follow(&sensor, &following, reader, recorder, &stop));
    }
    thread.spawn(move || match &sensor_config.file {
        Some(file) => {
            let playing = Playing {
                pace: sensor_config.pace,
                timestamps: sensor_config.timestamps,
                options: reading,
            };
            play(&sensor, file, playing, share, &stop);
            settle(&sensor, &stop);
        }
        None => {
            let watched = Watched {
                interfaces: sensor_config.all_interfaces(),
                options,
                filter,
            };
            watch(&sensor, watched, share, &stop);
        }
    })
}

// Waits until each record of a played file is with the broker or given up, and says so.
fn settle(sensor: &Sensor, stop: &AtomicBool) {
    while sensor.waiting() > 0 {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    sensor.finish(now());
    let ledger = sensor.ledger();
    tracing::info!(
        sensor = sensor.id,
        published = ledger.records_published,
        lost = ledger.records_lost,
        "file finished"
    );
}

fn join(threads: impl Iterator<Item = JoinHandle<()>>) -> Result<(), BoxError> {
    let mut failed = false;
    for thread in threads {
        failed |= thread.join().is_err();
    }
    match failed {
        true => Err("a capture, ring or outbound thread panicked".into()),
        false => Ok(()),
    }
}

async fn look_after(sensors: &[Arc<Sensor>], capture: &ReadinessFlag, ring: Option<&ReadinessFlag>) {
    loop {
        let problem = sensors.iter().find_map(|sensor| {
            let problem = sensor.status().problem?;
            Some(format!("sensor {}: {problem}", sensor.id))
        });
        match problem {
            None => capture.ready(),
            Some(problem) => capture.not_ready(problem),
        }
        if let Some(flag) = ring {
            let problem = sensors.iter().find_map(|sensor| {
                let problem = sensor.ring.as_ref()?.problem()?;
                Some(format!("degraded: sensor {}: {problem}", sensor.id))
            });
            match problem {
                None => flag.ready(),
                Some(problem) => flag.not_ready(problem),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}
