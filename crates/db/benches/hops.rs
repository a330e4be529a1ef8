//! How long a message takes from commit to the handler that consumes it, and where the time goes, with limits of the
//! same machine beside it: one synced write, one broker round trip, one synced publish. Prints; asserts nothing.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use garrison_bus::{Bus, Delivery, Dispatch, Disposition, Handler, Message, run_consumer, subject, topology};
use garrison_db::{Db, Migrator, run_outbox_relay};
use garrison_proto::{TenantId, event::v1::KeySetChanged};
use garrison_testkit::Stack;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const TRIALS: usize = 500;

struct Arrivals(mpsc::UnboundedSender<Instant>);

impl Handler for Arrivals {
    async fn handle(&self, _: Delivery) -> Disposition {
        let _ = self.0.send(Instant::now());
        Disposition::Ack
    }
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!(
        "{what:<44} p50 {:>7.3} ms   p90 {:>7.3} ms   p99 {:>7.3} ms",
        at(50),
        at(90),
        at(99)
    );
}

fn event(tenant: &TenantId) -> Message {
    Message::proto(
        subject::events(tenant, "policy"),
        "policy",
        &KeySetChanged {
            key_id: "k".repeat(300),
        },
    )
}

fn main() {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(run());
}

async fn run() {
    let stack = Stack::start().await;
    let migrator = Migrator::with_migrations(Vec::new());
    let db = Db::connect(&stack.database("policy", &migrator).await, "policy").unwrap();
    let sender = Bus::connect(&stack.bus_config("svc/policy"), "policy").await.unwrap();
    let reader = Bus::connect(&stack.bus_config("svc/forensics"), "forensics")
        .await
        .unwrap();
    sender.connected().await;
    let tenant: TenantId = "acme".parse().unwrap();

    let mut file = std::fs::File::create(stack.nats().dir().join("probe")).unwrap();
    let mut synced = Vec::new();
    for _ in 0..TRIALS {
        let started = Instant::now();
        file.write_all(&[0; 512]).unwrap();
        file.sync_data().unwrap();
        synced.push(started.elapsed());
    }
    report("limit: one synced write of 512 bytes", synced);

    let mut round_trips = Vec::new();
    for _ in 0..TRIALS {
        let started = Instant::now();
        sender.client().request("$JS.API.INFO", "".into()).await.unwrap();
        round_trips.push(started.elapsed());
    }
    report("limit: one broker round trip", round_trips);

    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    let consumer = tokio::spawn(async move {
        run_consumer(
            &reader,
            &topology::EVENTS_FORENSICS,
            Dispatch::Ordered,
            Arc::new(Arrivals(arrived)),
            token,
        )
        .await
    });
    let publisher = sender.publisher();
    let (mut stored, mut delivered) = (Vec::new(), Vec::new());
    for _ in 0..TRIALS {
        let message = event(&tenant);
        let started = Instant::now();
        publisher.publish(&message).await.unwrap();
        stored.push(started.elapsed());
        delivered.push(arrivals.recv().await.unwrap() - started);
    }
    report("publish → stored and synced", stored);
    report("publish → handler runs", delivered);

    let relay = tokio::spawn(run_outbox_relay(db.clone(), publisher, shutdown.clone()));
    let (mut committed, mut relayed) = (Vec::new(), Vec::new());
    for _ in 0..TRIALS {
        let message = event(&tenant);
        let started = Instant::now();
        let mut tx = db.begin(&tenant).await.unwrap();
        tx.first_delivery("bench", message.id).await.unwrap();
        tx.publish(&message).await.unwrap();
        tx.commit().await.unwrap();
        let done = Instant::now();
        committed.push(done - started);
        relayed.push(arrivals.recv().await.unwrap().saturating_duration_since(done));
    }
    report("begin, inbox, outbox, commit", committed);
    report("commit → handler runs", relayed);

    let started = Instant::now();
    for _ in 0..4 {
        let mut tx = db.begin(&tenant).await.unwrap();
        for _ in 0..TRIALS {
            tx.publish(&event(&tenant)).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
    for _ in 0..4 * TRIALS {
        arrivals.recv().await.unwrap();
    }
    println!(
        "{:<44} {:.0} messages/s",
        "outbox to handler, one tenant and stream",
        4.0 * TRIALS as f64 / started.elapsed().as_secs_f64()
    );

    shutdown.cancel();
    relay.await.unwrap().unwrap();
    consumer.await.unwrap().unwrap();
}
