use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use garrison_bus::{Bus, Dispatch, Disposition, topology};

use crate::broker::{Broker, Recorder, Running, event, eventually, options};

/// Kills the broker with SIGKILL in the middle, twice, while one side publishes and the other consumes.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_broker_is_killed() {
    const MESSAGES: usize = 400;
    let broker = Broker::start().await;
    let mut config = broker.config("svc/policy");
    config.ack_timeout_ms = 500;
    let sender = Bus::connect(&config, "policy").await.unwrap();
    let reader = broker.bus("svc/forensics").await;
    let recorder = Recorder::new(|_| Disposition::Ack);
    let running = Running::start(&reader, &topology::EVENTS_FORENSICS, Dispatch::Concurrent(8), &recorder);

    let (failures, kills) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (felt, killed) = (Arc::clone(&failures), Arc::clone(&kills));
    let publishing = tokio::spawn(async move {
        let publisher = sender.publisher();
        for number in 0..MESSAGES {
            // However fast it is, each outage comes before its last message.
            let due = usize::from(number >= MESSAGES * 3 / 8) + usize::from(number >= MESSAGES * 5 / 8);
            while killed.load(Ordering::SeqCst) < due {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let message = event(number);
            while let Err(error) = publisher.publish(&message).await {
                assert!(error.is_transient(), "{error}");
                felt.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    for threshold in [MESSAGES / 4, MESSAGES / 2] {
        eventually("the stream flows", async || recorder.seen().len() >= threshold).await;
        let before = failures.load(Ordering::SeqCst);
        broker.nats.kill();
        kills.fetch_add(1, Ordering::SeqCst);
        eventually("the outage is felt", async || failures.load(Ordering::SeqCst) > before).await;
        broker.nats.resume().unwrap();
    }
    publishing.await.unwrap();
    let all: BTreeSet<usize> = (0..MESSAGES).collect();
    eventually("every acknowledged message is handled", async || {
        recorder.numbers().into_iter().collect::<BTreeSet<_>>() == all
    })
    .await;
    running.stop().await;
    assert_eq!(
        broker.appended("EVENTS").await,
        MESSAGES as u64,
        "a repeat was stored twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_may_start_before_the_broker_and_before_the_topology() {
    let broker = Broker::bare();
    broker.nats.kill();
    let reader = broker.bus("svc/forensics").await;
    let sender = broker.bus("svc/policy").await;
    assert!(!reader.is_connected());
    let recorder = Recorder::new(|_| Disposition::Ack);
    let running = Running::start(&reader, &topology::EVENTS_FORENSICS, Dispatch::Ordered, &recorder);

    broker.nats.resume().unwrap();
    sender.connected().await;
    eventually("it says so", async || sender.is_connected()).await;
    topology::apply(&broker.bus("svc/bus-admin").await, &options())
        .await
        .unwrap();
    sender.publisher().publish(&event(1)).await.unwrap();
    eventually("the message arrives", async || recorder.numbers() == [1]).await;
    running.stop().await;
}

/// A consumer whose process died without a word: another takes over what it held.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_consumer_held_is_delivered_to_the_next() {
    let broker = Broker::start().await;
    let reader = broker.bus("svc/forensics").await;
    let first = Recorder::slow(Duration::from_secs(600), |_| Disposition::Ack);
    let running = Running::start(&reader, &topology::EVENTS_FORENSICS, Dispatch::Concurrent(4), &first);
    let publisher = broker.bus("svc/policy").await.publisher();
    for number in 0..4 {
        publisher.publish(&event(number)).await.unwrap();
    }
    eventually("all are held", async || first.seen().len() == 4).await;
    running.task.abort();
    assert!(running.task.await.unwrap_err().is_cancelled());

    let second = Recorder::new(|_| Disposition::Ack);
    let other = broker.bus("svc/forensics").await;
    let running = Running::start(&other, &topology::EVENTS_FORENSICS, Dispatch::Concurrent(4), &second);
    eventually("the next has them", async || second.seen().len() == 4).await;
    running.stop().await;
    assert!(
        second.seen().iter().all(|(_, attempt)| *attempt == 2),
        "{:?}",
        second.seen()
    );
}

/// Writes down the lines that name one service.
#[derive(Clone, Default)]
struct Lines(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

const WATCHED: &str = "watched";

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("garrison_bus") && *metadata.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        #[derive(Default)]
        struct Fields {
            message: String,
            service: String,
        }
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                match field.name() {
                    "message" => self.message = format!("{value:?}"),
                    "service" => self.service = format!("{value:?}").trim_matches('"').to_owned(),
                    _ => {}
                }
            }
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        if fields.service == WATCHED {
            let line = format!("{} {}", event.metadata().level(), fields.message);
            self.0.lock().unwrap().push(line);
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// The client tries several times a second; the log has one line at the loss and one at the end.
#[tokio::test(flavor = "multi_thread")]
async fn an_absence_is_two_lines_in_the_log() {
    let lines = Lines::default();
    // Of the whole test binary: this is the one test that listens, and it hears one connection.
    tracing::subscriber::set_global_default(lines.clone()).unwrap();
    let broker = Broker::start().await;
    let bus = Bus::connect(&broker.config("svc/policy"), WATCHED).await.unwrap();
    bus.connected().await;
    broker.nats.kill();
    // A dozen attempts.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!bus.is_connected());
    broker.nats.resume().unwrap();
    eventually("it is connected again", async || lines.0.lock().unwrap().len() >= 3).await;
    assert_eq!(
        *lines.0.lock().unwrap(),
        [
            "INFO connected to the broker",
            "WARN there is no connection to the broker; trying again until there is",
            "INFO connected to the broker again",
        ]
    );
}
