use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::HeaderMap;
use garrison_bus::{ConsumerSpec, Dispatch, Disposition, subject, topology};
use tokio::sync::Semaphore;

use crate::broker::{Broker, Recorder, Running, acme, event, eventually, number};

fn retry() -> Disposition {
    Disposition::Retry {
        after: Duration::from_millis(30),
        reason: "not yet".to_owned(),
    }
}

fn hold() -> Disposition {
    Disposition::Hold {
        after: Duration::from_millis(30),
        reason: "the database is away".to_owned(),
    }
}

fn impatient() -> ConsumerSpec {
    ConsumerSpec {
        max_deliver: 3,
        ..topology::EVENTS_FORENSICS
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_comes_back_after_a_pause_and_counts() {
    let broker = Broker::start().await;
    let reader = broker.bus("svc/forensics").await;
    let recorder = Recorder::script([retry(), retry()]);
    let running = Running::start(&reader, &topology::EVENTS_FORENSICS, Dispatch::Concurrent(4), &recorder);
    let started = Instant::now();
    broker
        .bus("svc/policy")
        .await
        .publisher()
        .publish(&event(1))
        .await
        .unwrap();
    eventually("three attempts", async || recorder.seen().len() == 3).await;
    assert!(
        started.elapsed() >= Duration::from_millis(60),
        "the broker redelivered without a pause"
    );
    running.stop().await;
    assert_eq!(recorder.seen(), [(1, 1), (1, 2), (1, 3)]);
    assert!(broker.dead_letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_order_a_retry_blocks_what_comes_behind_it() {
    let broker = Broker::start().await;
    let publisher = broker.bus("svc/policy").await.publisher();
    for number in 0..30 {
        publisher.publish(&event(number)).await.unwrap();
    }
    let reader = broker.bus("svc/forensics").await;
    let recorder = Recorder::script([Disposition::Ack, retry(), hold(), retry()]);
    let running = Running::start(&reader, &topology::EVENTS_FORENSICS, Dispatch::Ordered, &recorder);
    eventually("all are handled", async || recorder.seen().len() == 33).await;
    running.stop().await;
    let mut expected = vec![(0, 1), (1, 1), (1, 2), (1, 2), (1, 3)];
    expected.extend((2..30).map(|number| (number, 1)));
    assert_eq!(recorder.seen(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_message_is_in_the_dlq_with_everything_and_never_comes_back() {
    let broker = Broker::start().await;
    let reader = broker.bus("svc/forensics").await;
    let recorder = Recorder::new(|delivery| match number(delivery) {
        1 => Disposition::Reject {
            reason: "no such\nentity".to_owned(),
        },
        _ => Disposition::Ack,
    });
    let running = Running::start(&reader, &topology::EVENTS_FORENSICS, Dispatch::Concurrent(4), &recorder);
    let publisher = broker.bus("svc/policy").await.publisher();
    let bad = event(1);
    publisher.publish(&bad).await.unwrap();
    publisher.publish(&event(2)).await.unwrap();
    eventually("the letter is stored", async || broker.dead_letters().await.len() == 1).await;
    eventually("the other is handled", async || recorder.seen().len() == 2).await;
    running.stop().await;

    let letter = broker.dead_letters().await.remove(0);
    assert_eq!(letter.subject.as_str(), subject::dlq("EVENTS", "forensics"));
    assert_eq!(letter.payload, bad.payload);
    let header = |name: &str| letter.headers.get(name).map(|value| value.as_str().to_owned());
    assert_eq!(header("dlq-reason").as_deref(), Some("no such entity"));
    assert_eq!(header("dlq-subject"), Some(bad.subject));
    assert_eq!(header("ce-id"), Some(bad.id.to_string()));
    let info: serde_json::Value = consumer_info(&broker).await;
    assert_eq!(
        (&info["num_ack_pending"], &info["num_pending"]),
        (&0.into(), &0.into()),
        "{info}"
    );
}

async fn consumer_info(broker: &Broker) -> serde_json::Value {
    let bus = broker.bus("svc/forensics").await;
    let answer = bus
        .client()
        .request("$JS.API.CONSUMER.INFO.EVENTS.forensics", "".into())
        .await
        .unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panicking_or_failing_handler_ends_in_the_dlq_and_does_not_stop_the_rest() {
    for dispatch in [Dispatch::Ordered, Dispatch::Concurrent(2)] {
        let broker = Broker::start().await;
        let reader = broker.bus("svc/forensics").await;
        let recorder = Recorder::new(|delivery| match number(delivery) {
            1 => panic!("cannot take number {}", 1),
            2 => retry(),
            _ => Disposition::Ack,
        });
        let running = Running::start(&reader, &impatient(), dispatch, &recorder);
        let publisher = broker.bus("svc/policy").await.publisher();
        for number in 1..=3 {
            publisher.publish(&event(number)).await.unwrap();
        }
        eventually("two letters", async || broker.dead_letters().await.len() == 2).await;
        eventually("the third is handled", async || recorder.numbers().contains(&3)).await;
        running.stop().await;
        let attempts = |wanted| recorder.numbers().iter().filter(|n| **n == wanted).count();
        assert_eq!((attempts(1), attempts(2), attempts(3)), (3, 3, 1), "{dispatch:?}");
        let reasons: Vec<String> = broker
            .dead_letters()
            .await
            .iter()
            .map(|letter| letter.headers.get("dlq-reason").unwrap().as_str().to_owned())
            .collect();
        assert!(
            reasons.iter().any(|r| r.contains("cannot take number 1")),
            "{reasons:?}"
        );
        assert!(reasons.iter().any(|r| r.contains("not yet")), "{reasons:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_go_to_the_dlq_unseen() {
    let broker = Broker::start().await;
    let policy = broker.bus("svc/policy").await;
    let on = |kind: &str| subject::events(&acme(), kind);
    let mut headers = HeaderMap::new();
    headers.insert("ce-id", "not a uuid");
    headers.insert("ce-specversion", "1.0");
    policy
        .client()
        .publish(on("policy"), "no headers".into())
        .await
        .unwrap();
    policy
        .client()
        .publish_with_headers(on("policy"), headers, "bad id".into())
        .await
        .unwrap();
    // The broker takes any token; a tenant that is none must not reach a handler.
    policy
        .client()
        .publish("events.v1.NO_TENANT.policy", "bad tenant".into())
        .await
        .unwrap();
    policy.publisher().publish(&event(4)).await.unwrap();

    let reader = broker.bus("svc/forensics").await;
    let recorder = Recorder::new(|_| Disposition::Ack);
    let running = Running::start(&reader, &topology::EVENTS_FORENSICS, Dispatch::Ordered, &recorder);
    eventually("three letters", async || broker.dead_letters().await.len() == 3).await;
    eventually("the good one is handled", async || recorder.numbers() == [4]).await;
    running.stop().await;
    for letter in broker.dead_letters().await {
        let reason = letter.headers.get("dlq-reason").unwrap().as_str();
        assert!(reason.contains("GAR-BUS-0007"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_outlasts_the_acknowledgement_time_is_not_run_twice() {
    let broker = Broker::start().await;
    // Renewed every second: a machine may stand still for three.
    let spec = with_ack_wait(&broker, Duration::from_secs(4)).await;
    let reader = broker.bus("svc/forensics").await;
    let gate = Arc::new(Semaphore::new(0));
    let recorder = Recorder::gated(&gate);
    let running = Running::start(&reader, &spec, Dispatch::Ordered, &recorder);
    let publisher = broker.bus("svc/policy").await.publisher();
    publisher.publish(&event(1)).await.unwrap();
    publisher.publish(&event(2)).await.unwrap();
    eventually("the first is begun", async || recorder.seen().len() == 1).await;
    tokio::time::sleep(spec.ack_wait * 3 / 2).await;
    gate.add_permits(2);
    eventually("both are handled", async || recorder.seen().len() == 2).await;
    running.stop().await;
    assert_eq!(recorder.seen(), [(1, 1), (2, 1)]);
    assert_eq!(consumer_info(&broker).await["num_redelivered"], 0);
}

/// The consumer of these tests with another acknowledgement time, on the broker too.
async fn with_ack_wait(broker: &Broker, ack_wait: Duration) -> ConsumerSpec {
    let admin = broker.bus("svc/bus-admin").await;
    let config = async_nats::jetstream::consumer::pull::Config {
        durable_name: Some("forensics".to_owned()),
        filter_subjects: vec!["events.v1.*.policy".to_owned()],
        ack_wait,
        max_deliver: -1,
        ..Default::default()
    };
    admin
        .jetstream()
        .update_consumer_on_stream(config, "EVENTS")
        .await
        .unwrap();
    ConsumerSpec {
        ack_wait,
        ..topology::EVENTS_FORENSICS
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_finishes_what_runs_and_hands_the_rest_back_at_once() {
    let broker = Broker::start().await;
    let publisher = broker.bus("svc/policy").await.publisher();
    for number in 0..20 {
        publisher.publish(&event(number)).await.unwrap();
    }
    // Without handing back, the prefetched ones would come after the acknowledgement time, which no test awaits.
    let spec = with_ack_wait(&broker, Duration::from_secs(3_600)).await;
    let reader = broker.bus("svc/forensics").await;
    let gate = Arc::new(Semaphore::new(0));
    let first = Recorder::gated(&gate);
    let running = Running::start(&reader, &spec, Dispatch::Ordered, &first);
    eventually("one runs", async || first.seen().len() == 1).await;
    running.stop.cancel();
    gate.add_permits(20);
    running.stop().await;
    assert_eq!(first.numbers(), [0], "work was begun after the request to stop");

    let second = Recorder::new(|_| Disposition::Ack);
    let running = Running::start(&reader, &spec, Dispatch::Ordered, &second);
    eventually("the rest is handled", async || second.seen().len() >= 19).await;
    running.stop().await;
    let mut numbers = second.numbers();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_pulled_than_there_is_room_for() {
    let broker = Broker::start().await;
    let publisher = broker.bus("svc/policy").await.publisher();
    for number in 0..10 {
        publisher.publish(&event(number)).await.unwrap();
    }
    let reader = broker.bus("svc/forensics").await;
    let recorder = Recorder::new(|_| hold());
    let running = Running::start(&reader, &topology::EVENTS_FORENSICS, Dispatch::Concurrent(3), &recorder);
    eventually("the place is full", async || recorder.seen().len() >= 12).await;
    let info = consumer_info(&broker).await;
    assert_eq!(
        (&info["num_ack_pending"], &info["num_pending"]),
        (&3.into(), &7.into()),
        "{info}"
    );
    assert!(
        recorder
            .seen()
            .iter()
            .all(|(number, attempt)| *number < 3 && *attempt == 1)
    );
    running.stop().await;
    assert!(broker.dead_letters().await.is_empty());
}
