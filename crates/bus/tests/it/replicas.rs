//! What replicas of one service build on: words among themselves, and numbers that tell what was handed to another.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use garrison_bus::{
    Dispatch, Disposition,
    topology::{EVENTS_FORENSICS, REPLICAS_ANOMALY},
};

use crate::broker::{Broker, Recorder, Running, event, eventually, number};

#[tokio::test(flavor = "multi_thread")]
async fn a_word_reaches_every_replica_and_nobody_else_says_or_hears_it() {
    let broker = Broker::start().await;
    let (one, two) = (broker.bus("svc/anomaly").await, broker.bus("svc/anomaly").await);
    let stranger = broker.bus("svc/policy").await;
    for bus in [&one, &two, &stranger] {
        bus.connected().await;
    }
    let (mut hears, mut hears_too) = (
        one.hear(REPLICAS_ANOMALY).await.unwrap(),
        two.hear(REPLICAS_ANOMALY).await.unwrap(),
    );
    let mut overhears = stranger.hear(REPLICAS_ANOMALY).await.unwrap();
    // Subscriptions and what is refused are with the broker when it answers.
    for bus in [&one, &two, &stranger] {
        bus.client().flush().await.unwrap();
    }
    let _ = stranger.say(REPLICAS_ANOMALY, "forged".into()).await;
    stranger.client().flush().await.unwrap();
    one.say(REPLICAS_ANOMALY, "acme".into()).await.unwrap();
    assert_eq!(hears.next().await.unwrap(), "acme");
    assert_eq!(hears_too.next().await.unwrap(), "acme");
    let heard = tokio::time::timeout(Duration::from_millis(300), overhears.next()).await;
    assert!(!matches!(heard, Ok(Some(_))), "another service heard it");
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_without_a_gap_are_all_there_were() {
    let broker = Broker::start().await;
    let reader = broker.bus("svc/forensics").await;
    let seen: Arc<Mutex<Vec<(usize, u64, u64)>>> = Arc::default();
    let notes = Arc::clone(&seen);
    let recorder = Recorder::new(move |delivery| {
        let note = (number(delivery), delivery.attempt, delivery.consumer_sequence);
        notes.lock().unwrap().push(note);
        match note {
            (2, 1, _) => Disposition::Retry {
                after: Duration::from_millis(20),
                reason: "not yet".to_owned(),
            },
            _ => Disposition::Ack,
        }
    });
    let publisher = broker.bus("svc/policy").await.publisher();
    for number in 1..=3 {
        publisher.publish(&event(number)).await.unwrap();
    }
    let running = Running::start(&reader, &EVENTS_FORENSICS, Dispatch::Concurrent(1), &recorder);
    eventually("all, one of them twice", async || seen.lock().unwrap().len() == 4).await;
    running.stop().await;
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_by_key(|(_, _, sequence)| *sequence);
    let sequences: Vec<u64> = seen.iter().map(|(_, _, sequence)| *sequence).collect();
    assert_eq!(sequences, [1, 2, 3, 4], "{seen:?}");
    let first: Vec<usize> = seen
        .iter()
        .filter(|(_, attempt, _)| *attempt == 1)
        .map(|(n, _, _)| *n)
        .collect();
    assert_eq!(first, [1, 2, 3], "{seen:?}");
}
