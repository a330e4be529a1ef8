//! How many flow records a second go through the broker to the service, scored and alerted, and how long each takes; for
//! `cargo xtask bench stream`, which builds what it needs. Everything is real: nats-server with the fleet's streams,
//! consumers, permissions and files, PostgreSQL, the meter that makes the batches out of a capture, and the service.
//!
//! A publisher keeps so many batches under way, and is as fast as the slowest lets it be. The time of a batch begins
//! before it is handed to the publisher's connection, and ends when the broker counts it as acknowledged, which the service
//! does after it has judged it and committed its alerts. That is looked at every four milliseconds, so that a time is that
//! much too long at most. The time of an alert begins when its message is made, and ends in the handler of the
//! responder's own consumer.

#![allow(missing_docs, unreachable_pub)] // a program

mod pool;
mod world;

use std::{
    path::Path,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::Utc;
use garrison_bus::{
    Bus, Delivery, Dispatch, Disposition, Handler, Message, run_consumer,
    topology::{ALERTS_RESPONDER, FLOWS_ANOMALY},
};
use garrison_proto::TenantId;
use pool::{Order, Prepared};
use tokio_util::sync::CancellationToken;
use world::{Fault, Running, World};

const USAGE: &str = "\
usage: stream CAPTURE FLOW-INGEST ANOMALY [name=number ...]
  rows=2000000      records of each run
  hosts=50000       hosts at most, about
  tenants=1         tenants
  longest=3         the last run has so many times the records
  windows=4,8,16,32   batches under way at once, one run each";

const GOALS: (f64, f64, f64, f64) = (2e6, 1e6, 100.0, 20.0);
const LOOK: Duration = Duration::from_millis(4);

struct Options {
    rows: usize,
    hosts: usize,
    tenants: usize,
    longest: usize,
    windows: Vec<usize>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [capture, meter, service, rest @ ..] = arguments.as_slice() else {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    };
    let outcome = options(rest).and_then(|options| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(run(Path::new(capture), Path::new(meter), Path::new(service), &options))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(arguments: &[String]) -> Result<Options, Fault> {
    let mut options = Options {
        rows: 2_000_000,
        hosts: 50_000,
        tenants: 1,
        longest: 3,
        windows: vec![4, 8, 16, 32],
    };
    for argument in arguments {
        let (name, value) = argument.split_once('=').ok_or(USAGE)?;
        let numbers = value.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
        let number = numbers.first().copied().filter(|n| *n > 0);
        let number = number.ok_or_else(|| format!("{argument}: not above 0"))?;
        match name {
            "rows" => options.rows = number,
            "hosts" => options.hosts = number,
            "tenants" => options.tenants = number.min(200),
            "longest" => options.longest = number,
            "windows" => options.windows = numbers,
            _ => return Err(USAGE.into()),
        }
    }
    Ok(options)
}

async fn run(capture: &Path, meter: &Path, service: &Path, options: &Options) -> Result<(), Fault> {
    let world = World::start().await?;
    let templates = world.metered(meter, capture).await?;
    let records: usize = templates.iter().map(garrison_flow::FlowBatch::len).sum();
    let hosts: std::collections::HashSet<_> = templates.iter().flat_map(|b| b.rows().map(|r| r.src_ip)).collect();
    let networks = (options.hosts / hosts.len().max(1)).max(1);
    println!(
        "the meter made {records} records of {} hosts of {}; {networks} networks of them with other addresses",
        hosts.len(),
        capture.display()
    );
    let tenants = (0..options.tenants)
        .map(|n| format!("tenant-{n}").parse())
        .collect::<Result<Vec<TenantId>, _>>()?;
    let order = |rows: usize, seed: u64, start: i64| Order {
        templates: &templates,
        rows,
        networks,
        tenants: &tenants,
        start,
        seed,
    };
    let anomaly = world
        .anomaly(service, "[learning]\nauto_seconds = 5\nmin_flows = 2000\n")
        .await?;
    let bench = Bench {
        publisher: world.bus("svc/flow-ingest").await?,
        watcher: world.bus("svc/anomaly").await?,
        responder: world.bus("svc/responder").await?,
        anomaly,
        alerts: Arc::default(),
    };
    let done = CancellationToken::new();
    let listening = tokio::spawn(bench.listen(done.clone()));

    let now = || Utc::now().timestamp_nanos_opt().unwrap_or_default();
    let warm = pool::make(&order(records.max(200_000), 1, now()));
    bench.learn(&warm, &tenants).await?;
    drop(warm);

    println!("\n{HEAD}");
    let mut best: Option<(f64, usize)> = None;
    for (n, window) in options.windows.iter().enumerate() {
        let pool = pool::make(&order(options.rows, 2 + n as u64, now()));
        let seen = bench.drive(&pool, *window).await?;
        seen.print(&window.to_string());
        if seen.p99() < GOALS.2 && best.is_none_or(|(rate, _)| seen.rate() > rate) {
            best = Some((seen.rate(), *window));
        }
    }
    let window = best.map_or(options.windows.first().copied().unwrap_or(8), |(_, window)| window);
    let pool = pool::make(&order(options.rows * options.longest, 1_000, now()));
    let octets: usize = pool.iter().map(|p| p.payload.len()).sum();
    let rows: u64 = pool.iter().map(|p| p.rows).sum();
    println!(
        "\n{:.1} M records in {} messages, {:.0} octets a record; {window} under way",
        rows as f64 / 1e6,
        pool.len(),
        octets as f64 / rows as f64
    );
    let seen = bench.drive(&pool, window).await?;
    println!("{HEAD}");
    seen.print(&window.to_string());
    seen.judge();
    bench.told().await;
    done.cancel();
    listening.await?;
    Ok(())
}

struct Bench {
    publisher: Bus,
    watcher: Bus,
    responder: Bus,
    anomaly: Running,
    // Milliseconds that alerts took.
    alerts: Arc<Mutex<Vec<f64>>>,
}

struct Listener(Arc<Mutex<Vec<f64>>>);

impl Handler for Listener {
    async fn handle(&self, delivery: Delivery) -> Disposition {
        let took = (Utc::now() - delivery.time).num_microseconds().unwrap_or_default();
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(took as f64 / 1e3);
        Disposition::Ack
    }
}

// Processes whose time on a core is shown.
const WHO: [&str; 4] = ["publisher", "broker", "anomaly", "postgres"];

struct Seen {
    rows: f64,
    seconds: f64,
    // Milliseconds of each batch, in order.
    batches: Vec<f64>,
    alerts: Vec<f64>,
    on_core: [f64; 4],
}

const HEAD: &str = "under way  M flows/s   p50 ms   p99 ms   max ms    alerts   p50 ms   p99 ms   \
                    µs on a core a flow: publisher   broker  anomaly postgres";

fn at(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((share * last as f64).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

impl Seen {
    fn rate(&self) -> f64 {
        self.rows / self.seconds
    }

    fn p99(&self) -> f64 {
        at(&self.batches, 0.99)
    }

    fn print(&self, window: &str) {
        print!(
            "{window:>9} {:>10.3} {:>8.1} {:>8.1} {:>8.1} {:>9} {:>8.1} {:>8.1} {:>31}",
            self.rate() / 1e6,
            at(&self.batches, 0.5),
            self.p99(),
            at(&self.batches, 1.0),
            self.alerts.len(),
            at(&self.alerts, 0.5),
            at(&self.alerts, 0.99),
            ""
        );
        for seconds in self.on_core {
            print!(" {:>8.3}", seconds * 1e6 / self.rows);
        }
        println!();
    }

    fn judge(&self) {
        let verdict = |kept: bool| if kept { "kept" } else { "MISSED" };
        let (goal, least, p99, lane) = GOALS;
        println!(
            "flows/s {:.3} M, goal {:.0} M: {}; least {:.0} M: {}",
            self.rate() / 1e6,
            goal / 1e6,
            verdict(self.rate() >= goal),
            least / 1e6,
            verdict(self.rate() >= least)
        );
        println!(
            "publication to score p99 {:.1} ms, goal below {p99}: {}",
            self.p99(),
            verdict(self.p99() < p99)
        );
        let alerts = at(&self.alerts, 0.99);
        println!(
            "alert to subscriber p99 {alerts:.1} ms at saturation, {} alerts, goal {lane}: {}",
            self.alerts.len(),
            verdict(alerts <= lane)
        );
    }
}

impl Bench {
    fn listen(&self, done: CancellationToken) -> impl Future<Output = ()> + use<> {
        let (bus, alerts) = (self.responder.clone(), Arc::clone(&self.alerts));
        async move {
            let handler = Arc::new(Listener(alerts));
            let _ = run_consumer(&bus, &ALERTS_RESPONDER, Dispatch::Ordered, handler, done).await;
        }
    }

    // Slowly enough that what is normal is learnt for as long as the service wants.
    async fn learn(&self, warm: &[Prepared], tenants: &[TenantId]) -> Result<(), Fault> {
        let pause = Duration::from_secs(8) / u32::try_from(warm.len())?.max(1);
        for prepared in warm {
            self.publisher.publisher().publish(&message(prepared)).await?;
            tokio::time::sleep(pause).await;
        }
        self.anomaly
            .until("scoring", async || {
                let page = self.anomaly.page("/metrics").await;
                let scoring = |tenant: &TenantId| {
                    let label = format!("tenant=\"{tenant}\"");
                    world::sum(&page, "garrison_anomaly_model_phase", &label) == 4.0
                };
                tenants.iter().all(scoring)
            })
            .await
    }

    fn on_core(&self) -> [f64; 4] {
        let of = |name: &str| world::named(name).map_or(0.0, world::on_core);
        let own = world::alone(std::process::id());
        [
            own,
            of("nats-server"),
            world::on_core(self.anomaly.id()),
            of("postgres"),
        ]
    }

    async fn drive(&self, pool: &[Prepared], window: usize) -> Result<Seen, Fault> {
        // Nothing of before is on its way.
        let base = self.settled().await?;
        self.alerts.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let floor = Arc::new(AtomicU64::new(base));
        let begun: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let batches: Arc<Mutex<Vec<f64>>> = Arc::default();
        let freed = Arc::new(tokio::sync::Notify::new());
        let stop = Arc::new(AtomicBool::new(false));
        let watching = {
            let (bus, floor, begun, batches) = (
                self.watcher.clone(),
                Arc::clone(&floor),
                Arc::clone(&begun),
                Arc::clone(&batches),
            );
            let (freed, stop) = (Arc::clone(&freed), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::Acquire) {
                    let now_at = match acknowledged(&bus).await {
                        Ok(at) => at,
                        Err(_) => continue,
                    };
                    let now = Instant::now();
                    let before = floor.swap(now_at, Ordering::AcqRel);
                    if now_at > before {
                        let begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
                        let mut batches = batches.lock().unwrap_or_else(PoisonError::into_inner);
                        for sequence in before..now_at {
                            if let Some(at) = begun.get((sequence - base) as usize) {
                                batches.push(now.duration_since(*at).as_secs_f64() * 1e3);
                            }
                        }
                        freed.notify_one();
                    }
                    tokio::time::sleep(LOOK).await;
                }
            })
        };
        let before = self.on_core();
        let started = Instant::now();
        let publisher = self.publisher.publisher();
        let (pending, mut confirm) = tokio::sync::mpsc::channel::<garrison_bus::Pending>(256);
        let confirming = tokio::spawn(async move {
            while let Some(pending) = confirm.recv().await {
                pending.confirmed().await?;
            }
            Ok::<_, Fault>(())
        });
        for (n, prepared) in pool.iter().enumerate() {
            while base + n as u64 >= floor.load(Ordering::Acquire) + window as u64 {
                freed.notified().await;
            }
            begun
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Instant::now());
            let started = publisher.start(&message(prepared)).await?;
            pending.send(started).await.map_err(|_| "the publisher failed")?;
        }
        drop(pending);
        confirming.await??;
        let end = base + pool.len() as u64;
        while floor.load(Ordering::Acquire) < end {
            freed.notified().await;
        }
        let seconds = started.elapsed().as_secs_f64();
        let after = self.on_core();
        stop.store(true, Ordering::Release);
        watching.await?;
        // The last alerts are on their way.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let sorted = |values: &Mutex<Vec<f64>>| {
            let mut values = std::mem::take(&mut *values.lock().unwrap_or_else(PoisonError::into_inner));
            values.sort_by(f64::total_cmp);
            values
        };
        let mut on_core = [0.0; WHO.len()];
        for ((spent, after), before) in on_core.iter_mut().zip(after).zip(before) {
            *spent = after - before;
        }
        Ok(Seen {
            rows: pool.iter().map(|p| p.rows as f64).sum(),
            seconds,
            batches: sorted(&batches),
            alerts: sorted(&self.alerts),
            on_core,
        })
    }

    // Waits until every message is acknowledged; the stream's last one.
    async fn settled(&self) -> Result<u64, Fault> {
        loop {
            let info = info(&self.watcher).await?;
            let number = |at: &str| info.pointer(at).and_then(serde_json::Value::as_u64);
            if (number("/num_pending"), number("/num_ack_pending")) == (Some(0), Some(0)) {
                return number("/delivered/stream_seq").ok_or_else(|| "no position".into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    // What the service says of itself.
    async fn told(&self) {
        let page = self.anomaly.page("/metrics").await;
        let all = |name: &str| world::sum(&page, name, "");
        let records = all("garrison_anomaly_records_total");
        println!(
            "\nthe service's own count since its start: {records:.0} records, {:.0} scored, {:.0} entities with state, \
             {:.0} evicted, {:.0} MiB resident",
            all("garrison_anomaly_scored_records_total"),
            all("garrison_anomaly_entities"),
            all("garrison_anomaly_evicted_entities"),
            world::resident(self.anomaly.id()) / f64::from(1 << 20),
        );
        for (what, name) in [
            ("judging a batch", "garrison_anomaly_judging_seconds"),
            ("publication to judgement", "garrison_anomaly_batch_latency_seconds"),
            ("committing alerts", "garrison_anomaly_alert_commit_seconds"),
            ("a checkpoint", "garrison_anomaly_checkpoint_seconds"),
        ] {
            let (n, s) = (all(&format!("{name}_count")), all(&format!("{name}_sum")));
            println!("  {what:<26} n {n:>7.0}  mean {:>8.2} ms", 1e3 * s / n);
        }
        for line in page
            .lines()
            .filter(|l| l.starts_with("garrison_anomaly_findings_total"))
        {
            println!("  {line}");
        }
    }
}

fn message(prepared: &Prepared) -> Message {
    Message::flows(prepared.subject.clone(), "bench", prepared.payload.clone())
}

async fn info(bus: &Bus) -> Result<serde_json::Value, Fault> {
    let subject = format!("$JS.API.CONSUMER.INFO.{}.{}", FLOWS_ANOMALY.stream, FLOWS_ANOMALY.name);
    let answer = bus.client().request(subject, bytes::Bytes::new()).await?;
    Ok(serde_json::from_slice(&answer.payload)?)
}

// Everything up to this position of the stream is acknowledged.
async fn acknowledged(bus: &Bus) -> Result<u64, Fault> {
    let info = info(bus).await?;
    let at = info
        .pointer("/ack_floor/stream_seq")
        .and_then(serde_json::Value::as_u64);
    at.ok_or_else(|| "no position".into())
}
