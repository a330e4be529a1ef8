//! PostgreSQL and NATS away: at the start, and in the middle of traffic. And SIGTERM under load.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use garrison_bus::Publisher;
use garrison_proto::{flow::v1::FlowFilter, response::v1::AddProtectedHostRequest, to_timestamp};
use garrison_testkit::Fleet;
use sqlx::Row as _;

use crate::{
    calls::{Desk, Doors, log_in},
    place::{alone, folder, run, until},
    program::{Program, prepare, programs, wait_ready},
    seed::search,
    stimuli::{alert_message, batch, brute_force},
    tenancy::evidence::export,
    traces,
    world::{ACME, bus, options, sensors},
};

/// How long both servers are away in the middle.
const AWAY: Duration = Duration::from_secs(20);
/// What a program needs at the most to drain: `core.lifecycle.drain_timeout_ms`, which ends with another status what was
/// not done by then, and its telemetry's last words; and as much again on a slow machine.
const DRAIN: Duration = Duration::from_secs(30);
/// How long anything may take that is waited for.
const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn servers_away_at_the_start_and_in_the_middle_cost_nothing_that_was_acknowledged() {
    let _alone = alone();
    run(async {
        let dir = folder("outages");
        let mut options = options(&dir, true);
        options.extra.insert("flow-ingest".to_owned(), sensors(&dir));
        let fleet = prepare(options).await;
        fleet.postgres().stop();
        fleet.nats().stop();
        let mut services = starts_without_servers(&fleet);
        fleet.nats().resume().unwrap();
        fleet.postgres().resume().unwrap();
        wait_ready(&mut services, LIMIT);

        let doors = Doors::of(&fleet);
        let desk = log_in(&fleet, &doors, ACME, "admin").await;
        let load = Load::start(&fleet, &desk).await;
        until(LIMIT, "traffic before the outage", || {
            let now = load.counts();
            std::future::ready((now.0 > 40 && now.1 > 60 && now.2 > 10).then_some(()))
        })
        .await;
        let before = load.counts();
        fleet.postgres().kill();
        let killing = Instant::now();
        fleet.nats().kill();
        let (killed, killed_at) = (Instant::now(), chrono::Utc::now());
        while killed.elapsed() < AWAY {
            for service in &mut services {
                service.assert_running();
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        for service in &services {
            assert!(
                !service.is_ready(),
                "{} says that it is ready with nothing to work with",
                service.name()
            );
        }
        fleet.nats().resume().unwrap();
        fleet.postgres().resume().unwrap();
        wait_ready(&mut services, LIMIT);
        until(LIMIT, "traffic after the outage", || {
            let now = load.counts();
            let flowing = now.0 > before.0 + 20 && now.1 > before.1 + 20 && now.2 > before.2 + 3;
            std::future::ready(flowing.then_some(()))
        })
        .await;
        eprintln!(
            "acknowledged before the outage {before:?}, after it {:?}",
            load.counts()
        );

        // Under load, one after the other and all at once.
        terminates_under_load(&fleet, &mut services);
        let sent = load.stop().await;
        for service in &mut services {
            *service = Program::start(&fleet, service.name());
        }
        wait_ready(&mut services, LIMIT);
        nothing_is_lost(&fleet, &desk, &sent, killing..killed).await;
        spooled_flows_arrived(&desk, killed_at).await;
        traces::assert_no_secrets(&fleet, &[&desk]);
    });
}

/// Each is alive, not ready, and says what it lacks.
fn starts_without_servers(fleet: &Fleet) -> Vec<Program> {
    let mut services: Vec<Program> = programs().into_iter().map(|name| Program::start(fleet, name)).collect();
    let began = Instant::now();
    for service in &mut services {
        let lacking = loop {
            service.assert_running();
            assert!(began.elapsed() < LIMIT, "{} opens no admin port", service.name());
            let live = service.page("/livez").is_some_and(|(status, _)| status == 200);
            match service.page("/readyz") {
                Some((503, body)) if live && body.contains("\"lacking\"") => break body,
                Some((200, body)) => panic!("{} is ready without a broker: {body}", service.name()),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let report: serde_json::Value = serde_json::from_str(&lacking).unwrap();
        let lacks: BTreeSet<&str> = report["checks"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|check| check["ready"] == false && check["lacking"].as_str().is_some_and(|text| text.len() > 5))
            .map(|check| check["name"].as_str().unwrap())
            .collect();
        assert!(lacks.contains("bus"), "{}: {lacking}", service.name());
        if garrison_testkit::bootstrap::DATABASE_SERVICES.contains(&service.name()) {
            assert!(lacks.contains("database"), "{}: {lacking}", service.name());
        }
    }
    // None gives up after a while either.
    std::thread::sleep(Duration::from_secs(3));
    for service in &mut services {
        service.assert_running();
    }
    services
}

/// What was acknowledged: alert ids, ports of flows with the time of their acknowledgement, protected networks.
#[derive(Default)]
struct Sent {
    alerts: BTreeSet<String>,
    flows: Vec<(u16, Instant)>,
    networks: BTreeSet<String>,
}

/// Publishes alerts and flows and makes calls that are recorded, as fast as a few a tenth of a second, until stopped.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<Mutex<Sent>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

const FLOWS_FROM: Ipv4Addr = Ipv4Addr::new(10, 1, 40, 1);

impl Load {
    async fn start(fleet: &Fleet, desk: &Desk) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Sent::default())));
        let anomaly = bus(fleet, "svc/anomaly").await;
        let ingest = bus(fleet, "svc/flow-ingest").await;
        let tasks = vec![
            tokio::spawn(alerts(anomaly.publisher(), Arc::clone(&stop), Arc::clone(&sent))),
            tokio::spawn(flows(ingest.publisher(), Arc::clone(&stop), Arc::clone(&sent))),
            tokio::spawn(calls(desk.clone(), Arc::clone(&stop), Arc::clone(&sent))),
        ];
        Self { stop, sent, tasks }
    }

    fn counts(&self) -> (usize, usize, usize) {
        let sent = self.sent.lock().unwrap();
        (sent.alerts.len(), sent.flows.len(), sent.networks.len())
    }

    async fn stop(self) -> Sent {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        std::mem::take(&mut *self.sent.lock().unwrap())
    }
}

async fn alerts(publisher: Publisher, stop: Arc<AtomicBool>, sent: Arc<Mutex<Sent>>) {
    let mut n = 0_u32;
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        let [_, _, a, b] = n.to_be_bytes();
        let alert = brute_force(Ipv4Addr::new(198, 18, a, b), Ipv4Addr::new(10, 1, 41, 1));
        let message = alert_message(ACME, &alert);
        // As an outbox does: the same message until the broker has it.
        while !stop.load(Ordering::SeqCst) {
            if publisher.publish(&message).await.is_ok() {
                sent.lock().unwrap().alerts.insert(alert.alert_id.clone());
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
}

async fn flows(publisher: Publisher, stop: Arc<AtomicBool>, sent: Arc<Mutex<Sent>>) {
    for port in 1..u16::MAX {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let message = batch(ACME, "load", FLOWS_FROM, Ipv4Addr::new(10, 1, 42, 1), port, 1);
        if publisher.publish(&message).await.is_ok() {
            sent.lock().unwrap().flows.push((port, Instant::now()));
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

async fn calls(desk: Desk, stop: Arc<AtomicBool>, sent: Arc<Mutex<Sent>>) {
    let mut playbooks = desk.playbooks;
    for n in 0..60_000_u32 {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let [_, _, a, b] = n.to_be_bytes();
        let network = format!("172.20.{a}.{b}/32");
        let mut request = tonic::Request::new(AddProtectedHostRequest {
            network: network.clone(),
            reason: "load".to_owned(),
        });
        request.set_timeout(Duration::from_secs(3));
        if playbooks.add_protected_host(request).await.is_ok() {
            sent.lock().unwrap().networks.insert(network);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn terminates_under_load(fleet: &Fleet, services: &mut [Program]) {
    let mut slow = Vec::new();
    let mut ended = |service: &mut Program, began: Instant| match service.wait(DRAIN.saturating_sub(began.elapsed())) {
        Some(0) => eprintln!("{} drained in {:?}", service.name(), began.elapsed()),
        Some(code) => slow.push(format!(
            "{} ended with {code}:\n{}",
            service.name(),
            service.last_words()
        )),
        None => slow.push(format!(
            "{} did not end within {DRAIN:?}:\n{}",
            service.name(),
            service.last_words()
        )),
    };
    for service in services.iter_mut().filter(|service| service.name() != "iam") {
        let began = Instant::now();
        service.terminate();
        ended(service, began);
        *service = Program::start(fleet, service.name());
        wait_ready(std::slice::from_mut(service), LIMIT);
    }
    let began = Instant::now();
    for service in services.iter() {
        service.terminate();
    }
    for service in services.iter_mut() {
        ended(service, began);
    }
    assert!(slow.is_empty(), "{}", slow.join("\n"));
}

async fn nothing_is_lost(fleet: &Fleet, desk: &Desk, sent: &Sent, kill: std::ops::Range<Instant>) {
    let sums = (sent.alerts.len(), sent.flows.len(), sent.networks.len());
    eprintln!("acknowledged: {} alerts, {} flows, {} calls", sums.0, sums.1, sums.2);
    assert!(
        sums.0 > 50 && sums.1 > 50 && sums.2 > 8,
        "too little for a test: {sums:?}"
    );
    let limit = LIMIT;
    for schema in ["responder", "forensics"] {
        until(limit, &format!("every alert in {schema}"), || async {
            let stored = column(fleet, &format!("select alert_id::text from {schema}.alert")).await;
            let stored: BTreeSet<String> = stored.into_iter().collect();
            sent.alerts.difference(&stored).next().is_none().then_some(())
        })
        .await;
    }
    // Each led to one decision, once.
    let blocked = column(fleet, "select target from responder.response where tenant_id = 'acme'").await;
    let distinct: BTreeSet<&String> = blocked.iter().collect();
    assert_eq!(blocked.len(), distinct.len(), "a source was blocked twice");
    // One more than was acknowledged may have been stored: the last, whose acknowledgement was cut off.
    assert!(
        blocked.len() >= sent.alerts.len(),
        "{} of {} sources",
        blocked.len(),
        sent.alerts.len()
    );

    until(limit, "every call in the audit log", || async {
        let (_, _, entries) = export(desk).await;
        let text: Vec<String> = entries
            .iter()
            .map(|entry| String::from_utf8_lossy(&entry.body).into_owned())
            .filter(|body| body.contains("protection.added"))
            .collect();
        let missing = sent
            .networks
            .iter()
            .filter(|network| !text.iter().any(|body| body.contains(network.as_str())));
        (missing.count() == 0).then_some(())
    })
    .await;
    let kept = column(fleet, "select network from responder.protected_host").await;
    let lost: Vec<&String> = sent.networks.iter().filter(|network| !kept.contains(network)).collect();
    assert!(lost.is_empty(), "calls that were answered and are gone: {lost:?}");

    // FLOWS acknowledges before it syncs, by contract: a broker killed with -9 may lose its last moments.
    let ports = |flows: Vec<garrison_proto::flow::v1::Flow>| -> BTreeSet<u16> {
        flows.into_iter().map(|flow| flow.dst_port as u16).collect()
    };
    let excused = |at: Instant| at < kill.end && at + Duration::from_secs(1) > kill.start;
    until(limit, "every flow in the lake", || async {
        let mut found = BTreeSet::new();
        // Searches answer at most so many flows at a time.
        let filter = FlowFilter {
            hosts: vec![FLOWS_FROM.to_string()],
            ..FlowFilter::default()
        };
        found.extend(ports(search(desk, filter).await));
        let missing: Vec<u16> = sent
            .flows
            .iter()
            .filter(|(port, at)| !excused(*at) && !found.contains(port))
            .map(|(port, _)| *port)
            .collect();
        let gone = sent.flows.iter().filter(|(port, _)| !found.contains(port)).count();
        if missing.is_empty() {
            eprintln!(
                "{gone} of {} flows were lost in the broker's last moment",
                sent.flows.len()
            );
        }
        missing.is_empty().then_some(())
    })
    .await;
    // flow-ingest's own sensor, whose records waited in its spool meanwhile.
    let sensors = desk
        .flows
        .clone()
        .list_sensors(garrison_proto::flow::v1::ListSensorsRequest {})
        .await;
    for sensor in sensors.unwrap().into_inner().sensors {
        let ledger = sensor.ledger.unwrap();
        assert_eq!(
            ledger.received,
            ledger.parsed + ledger.malformed + ledger.shed,
            "{ledger:?}"
        );
        assert_eq!(ledger.records_lost, 0, "{ledger:?}");
    }
    // Something is always on its way while a fleet works; nothing of what was there may stay.
    let waiting = "select id::text from responder.outbox union all select id::text from iam.outbox";
    let stuck = column(fleet, waiting).await;
    until(limit, "every outbox to let go of what it had", || async {
        let left = column(fleet, waiting).await;
        (!stuck.iter().any(|id| left.contains(id))).then_some(())
    })
    .await;
}

/// What flow-ingest saw on the wire while both servers were away waited in its spool and arrived.
async fn spooled_flows_arrived(desk: &Desk, killed_at: chrono::DateTime<chrono::Utc>) {
    let after = |seconds| Some(to_timestamp(killed_at + chrono::TimeDelta::seconds(seconds)));
    let filter = FlowFilter {
        since: after(2),
        until: after(AWAY.as_secs() as i64 - 2),
        ..FlowFilter::default()
    };
    // Two a second.
    until(LIMIT, "25 flows of the sixteen seconds in the lake", || async {
        let found = search(desk, filter.clone()).await;
        let seen = found.iter().filter(|flow| flow.sensor == "wire-acme").count();
        (seen >= 25).then_some(())
    })
    .await;
}

/// The one text column of a query.
pub async fn column(fleet: &Fleet, query: &str) -> Vec<String> {
    let mut connection = fleet.postgres().superuser(fleet.database()).await.unwrap();
    let rows = sqlx::query(sqlx::AssertSqlSafe(query.to_owned()))
        .fetch_all(&mut connection)
        .await
        .unwrap_or_else(|error| panic!("{query}: {error}"));
    rows.iter().map(|row| row.get(0)).collect()
}
