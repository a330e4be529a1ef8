//! What makes room in a stream, on tiny streams: what was read, and nothing else where nothing may be lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::{consumer, stream};
use garrison_bus::{
    Bus, ConsumerSpec, Dispatch, Disposition, Message, Publisher, subject,
    topology::{self, ApplyOptions, ChangeKind, StreamLimits},
};
use garrison_proto::{alert::v1::Severity, response::v1::Action};

use crate::broker::{Broker, Recorder, Running, acme, event, eventually, nodes, options};

/// Room for about two hundred of the messages of these tests.
const TINY: i64 = 64 * 1024;
/// Ten times as many.
const MANY: usize = 2_000;
/// How far a sender may be ahead of readers that keep up.
const AHEAD: usize = 60;

type Make = fn(usize) -> Message;

fn tiny() -> ApplyOptions {
    let limits = StreamLimits {
        max_bytes: Some(TINY),
        max_age: None,
    };
    ApplyOptions {
        limits: ["ALERTS", "RESPONSES", "EVENTS", "AUDIT", "DLQ"]
            .map(|name| (name.to_owned(), limits))
            .into(),
        ..options()
    }
}

async fn with_tiny_streams() -> Broker {
    let broker = Broker::bare();
    let admin = broker.bus("svc/bus-admin").await;
    topology::apply(&admin, &tiny()).await.unwrap();
    broker
}

fn record(number: usize) -> Message {
    Message {
        subject: subject::audit(&acme(), "policy"),
        ..event(number)
    }
}

fn alert(number: usize) -> Message {
    Message {
        subject: subject::alerts(&acme(), Severity::High, "scan"),
        ..event(number)
    }
}

/// Publishes as an outbox does: what was not taken is published again until it is. Says how often it was not.
async fn publish_all(publisher: Publisher, messages: impl IntoIterator<Item = Message>) -> usize {
    let refusals = Arc::new(AtomicUsize::new(0));
    publish_counting(publisher, messages, Arc::clone(&refusals)).await;
    refusals.load(Ordering::SeqCst)
}

async fn publish_counting(
    publisher: Publisher,
    messages: impl IntoIterator<Item = Message>,
    refusals: Arc<AtomicUsize>,
) {
    for message in messages {
        while let Err(error) = publisher.publish(&message).await {
            assert!(error.is_transient(), "given up: {error}");
            refusals.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The same for readers that keep up, however slow the machine is: never far ahead of the slowest.
async fn publish_beside(
    publisher: Publisher,
    messages: impl IntoIterator<Item = Message>,
    readers: Vec<Arc<Recorder>>,
) -> usize {
    let mut refusals = 0;
    for (sent, message) in messages.into_iter().enumerate() {
        let limit = tokio::time::Instant::now() + Duration::from_secs(120);
        while readers.iter().any(|reader| reader.seen().len() + AHEAD < sent) {
            assert!(tokio::time::Instant::now() < limit, "a reader stands still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        refusals += publish_all(publisher.clone(), [message]).await;
    }
    refusals
}

fn all(numbers: Vec<usize>) -> BTreeSet<usize> {
    numbers.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_times_a_stream_s_room_passes_through_while_its_consumers_keep_up() {
    let broker = with_tiny_streams().await;
    let responder = broker.bus("svc/responder").await;
    let forensics = broker.bus("svc/forensics").await;
    let compliance = broker.bus("svc/compliance").await;
    // What is handled directly says nothing about the stream's room.
    let alerts = ConsumerSpec {
        direct: false,
        ..topology::ALERTS_RESPONDER
    };
    let readers: [(&Bus, &ConsumerSpec); 4] = [
        (&responder, &alerts),
        (&forensics, &topology::ALERTS_FORENSICS),
        (&forensics, &topology::EVENTS_FORENSICS),
        (&compliance, &topology::AUDIT_COMPLIANCE),
    ];
    let mut running = Vec::new();
    for (bus, spec) in readers {
        let recorder = Recorder::new(|_| Disposition::Ack);
        let consumer = Running::start(bus, spec, Dispatch::Concurrent(8), &recorder);
        running.push((spec, recorder, consumer));
    }
    let policy = broker.bus("svc/policy").await;
    let senders: Vec<_> = [("ALERTS", alert as Make), ("EVENTS", event), ("AUDIT", record)]
        .into_iter()
        .map(|(stream, make)| {
            let readers = running.iter().filter(|(spec, ..)| spec.stream == stream);
            let readers = readers.map(|(_, recorder, _)| Arc::clone(recorder)).collect();
            tokio::spawn(publish_beside(policy.publisher(), (0..MANY).map(make), readers))
        })
        .collect();
    for sender in senders {
        let refusals = sender.await.unwrap();
        assert!(
            refusals < MANY / 10,
            "{refusals} refusals although the consumers keep up"
        );
    }
    for (spec, recorder, consumer) in running {
        eventually("everything is handled", async || all(recorder.numbers()).len() == MANY).await;
        consumer.stop().await;
        assert_eq!(all(recorder.numbers()), (0..MANY).collect(), "{}", spec.name);
    }
    for stream in ["ALERTS", "EVENTS", "AUDIT"] {
        assert_eq!(broker.appended(stream).await, MANY as u64, "{stream}");
        eventually("what was read is gone", async || broker.stored(stream).await == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_audit_stream_refuses_until_compliance_is_back_and_then_nothing_is_missing() {
    let broker = with_tiny_streams().await;
    let policy = broker.bus("svc/policy").await;
    let refusals = Arc::new(AtomicUsize::new(0));
    let records = (0..MANY).map(record);
    let publishing = tokio::spawn(publish_counting(policy.publisher(), records, Arc::clone(&refusals)));
    // It fills up and stays full: what is refused once is refused again.
    eventually("the stream is full", async || refusals.load(Ordering::SeqCst) >= 3).await;
    let before = broker.appended("AUDIT").await;
    assert!(before < MANY as u64 / 2, "{before} messages had room");
    assert_eq!(broker.stored("AUDIT").await, before, "an unread record was dropped");
    assert!(!publishing.is_finished());
    // Other streams go on.
    assert_eq!(publish_all(policy.publisher(), [event(1)]).await, 0);

    let compliance = broker.bus("svc/compliance").await;
    let recorder = Recorder::new(|_| Disposition::Ack);
    let running = Running::start(
        &compliance,
        &topology::AUDIT_COMPLIANCE,
        Dispatch::Concurrent(8),
        &recorder,
    );
    publishing.await.unwrap();
    eventually("every record arrives", async || all(recorder.numbers()).len() == MANY).await;
    running.stop().await;
    assert_eq!(all(recorder.numbers()), (0..MANY).collect());
    eventually("the log has them all", async || broker.stored("AUDIT").await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enforcer_that_is_away_holds_nobody_up() {
    let broker = with_tiny_streams().await;
    let router = broker.bus("enforcer/router").await;
    let recorder = Recorder::new(|_| Disposition::Ack);
    let running = Running::start(
        &router,
        &topology::enforcer_consumer(&nodes()[0]),
        Dispatch::Concurrent(8),
        &recorder,
    );
    // `edge` is away.
    let orders = (0..MANY).map(|number| Message {
        subject: subject::responses(&acme(), Action::Block, "dispatched"),
        ..event(number)
    });
    let responder = broker.bus("svc/responder").await;
    // The node that is there reads them before the oldest make room.
    assert_eq!(
        publish_beside(responder.publisher(), orders, vec![Arc::clone(&recorder)]).await,
        0,
        "an order was refused"
    );
    eventually("the node that is there gets every order", async || {
        all(recorder.numbers()).len() == MANY
    })
    .await;
    running.stop().await;
    assert!(broker.stored("RESPONSES").await < MANY as u64 / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_make_room_for_letters() {
    let broker = with_tiny_streams().await;
    let forensics = broker.bus("svc/forensics").await;
    let recorder = Recorder::new(|_| Disposition::Reject {
        reason: "no".to_owned(),
    });
    let running = Running::start(
        &forensics,
        &topology::EVENTS_FORENSICS,
        Dispatch::Concurrent(8),
        &recorder,
    );
    let policy = broker.bus("svc/policy").await;
    publish_all(policy.publisher(), (0..600).map(event)).await;
    eventually("all are rejected", async || broker.appended("DLQ").await == 600).await;
    eventually("none is left in the stream", async || {
        broker.stored("EVENTS").await == 0
    })
    .await;
    running.stop().await;
    assert!(broker.stored("DLQ").await < 300);
}

/// The topology as it was before: limits everywhere, full streams refuse, and a consumer that nobody read.
async fn as_it_was(admin: &Bus) {
    for spec in topology::STREAMS {
        let append_only = spec.name == "AUDIT";
        let config = stream::Config {
            name: spec.name.to_owned(),
            subjects: spec.subjects.iter().map(|s| (*s).to_owned()).collect(),
            max_bytes: spec.max_bytes,
            max_age: Duration::from_secs(if append_only { 90 } else { 30 } * 24 * 3_600),
            max_message_size: spec.max_message_size,
            discard: stream::DiscardPolicy::New,
            duplicate_window: spec.duplicate_window,
            storage: stream::StorageType::File,
            deny_delete: append_only,
            deny_purge: append_only,
            persist_mode: (spec.name == "FLOWS").then_some(stream::PersistenceMode::Async),
            ..Default::default()
        };
        admin.jetstream().create_stream(config).await.unwrap();
    }
    for (stream, name, filters) in [
        ("ALERTS", "responder", &[][..]),
        ("ALERTS", "forensics", &[]),
        ("EVENTS", "forensics", &["events.v1.*.policy"]),
        ("EVENTS", "anomaly", &["events.v1.*.policy"]),
        ("AUDIT", "compliance", &[]),
    ] {
        let config = consumer::pull::Config {
            durable_name: Some(name.to_owned()),
            filter_subjects: filters.iter().map(|s| (*s).to_owned()).collect(),
            max_deliver: -1,
            ..Default::default()
        };
        admin
            .jetstream()
            .create_consumer_on_stream(config, stream)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_an_earlier_version_are_taken_over_with_what_was_not_read() {
    const READ: usize = 20;
    const UNREAD: usize = 30;
    let broker = Broker::bare();
    let admin = broker.bus("svc/bus-admin").await;
    as_it_was(&admin).await;
    let policy = broker.bus("svc/policy").await;
    let forensics = broker.bus("svc/forensics").await;
    let compliance = broker.bus("svc/compliance").await;
    let readers: [(&Bus, &ConsumerSpec, Make); 3] = [
        (&forensics, &topology::EVENTS_FORENSICS, event),
        (&compliance, &topology::AUDIT_COMPLIANCE, record),
        (&forensics, &topology::ALERTS_FORENSICS, alert),
    ];
    for (bus, spec, make) in readers {
        publish_all(policy.publisher(), (0..READ).map(make)).await;
        let recorder = Recorder::new(|_| Disposition::Ack);
        let running = Running::start(bus, spec, Dispatch::Ordered, &recorder);
        eventually("some are read", async || recorder.seen().len() == READ).await;
        running.stop().await;
        publish_all(policy.publisher(), (READ..READ + UNREAD).map(make)).await;
    }

    // Services publish all the while.
    let late = tokio::spawn(publish_all(
        policy.publisher(),
        (READ + UNREAD..READ + UNREAD + 200).map(record),
    ));
    let report = topology::apply(&admin, &options()).await.unwrap();
    late.await.unwrap();
    let kinds: BTreeMap<&str, (ChangeKind, &str)> = report
        .iter()
        .map(|change| (change.object.as_str(), (change.kind, change.detail.as_str())))
        .collect();
    assert_eq!(kinds["consumer EVENTS/anomaly"].0, ChangeKind::Removed, "{report:#?}");
    for stream in ["stream ALERTS", "stream EVENTS", "stream AUDIT"] {
        let (kind, detail) = kinds[stream];
        assert_eq!(kind, ChangeKind::Updated);
        assert!(detail.contains("retention limits → interest"), "{stream}: {detail}");
    }
    let again = topology::apply(&admin, &options()).await.unwrap();
    assert!(
        again.iter().all(|change| change.kind == ChangeKind::Unchanged),
        "{again:#?}"
    );

    // What was read is gone, unless another consumer has not read it; what was not is there.
    eventually("read events are gone", async || {
        broker.stored("EVENTS").await == UNREAD as u64
    })
    .await;
    eventually("read records are gone", async || {
        broker.stored("AUDIT").await == UNREAD as u64 + 200
    })
    .await;
    assert_eq!(broker.stored("ALERTS").await, (READ + UNREAD) as u64);
    let responder = broker.bus("svc/responder").await;
    let unread: BTreeSet<usize> = (READ..READ + UNREAD).collect();
    for (bus, spec, expected) in [
        (&forensics, &topology::EVENTS_FORENSICS, unread.clone()),
        (
            &compliance,
            &topology::AUDIT_COMPLIANCE,
            (READ..READ + UNREAD + 200).collect(),
        ),
        (&forensics, &topology::ALERTS_FORENSICS, unread),
        (&responder, &topology::ALERTS_RESPONDER, (0..READ + UNREAD).collect()),
    ] {
        let recorder = Recorder::new(|_| Disposition::Ack);
        let running = Running::start(bus, spec, Dispatch::Ordered, &recorder);
        eventually("the rest is read", async || {
            all(recorder.numbers()).len() >= expected.len()
        })
        .await;
        running.stop().await;
        assert_eq!(all(recorder.numbers()), expected, "{}/{}", spec.stream, spec.name);
    }
}

/// Outside readers belong on SIEM. One that was given a consumer elsewhere holds messages back, and `apply` says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_s_consumer_that_holds_messages_back_is_named() {
    let broker = Broker::start().await;
    let admin = broker.bus("svc/bus-admin").await;
    let config = consumer::pull::Config {
        durable_name: Some("forwarder".to_owned()),
        ..Default::default()
    };
    admin
        .jetstream()
        .create_consumer_on_stream(config, "EVENTS")
        .await
        .unwrap();
    let policy = broker.bus("svc/policy").await;
    publish_all(policy.publisher(), (0..3).map(event)).await;
    let report = topology::apply(&admin, &options()).await.unwrap();
    let change = report
        .iter()
        .find(|change| change.object == "consumer EVENTS/forwarder")
        .unwrap();
    assert_eq!(change.kind, ChangeKind::Foreign);
    assert!(change.detail.starts_with("3 messages stay"), "{change}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_applied_and_too_tight_ones_refused() {
    let broker = Broker::start().await;
    let admin = broker.bus("svc/bus-admin").await;
    let policy = broker.bus("svc/policy").await;
    publish_all(policy.publisher(), (0..3).map(event)).await;
    let with = |stream: &str, max_bytes, max_age| {
        let limits = StreamLimits { max_bytes, max_age };
        ApplyOptions {
            limits: BTreeMap::from([(stream.to_owned(), limits)]),
            ..options()
        }
    };
    let week = Duration::from_secs(7 * 24 * 3_600);
    topology::apply(&admin, &with("EVENTS", Some(1 << 30), Some(week)))
        .await
        .unwrap();
    let stream = admin.jetstream().get_stream("EVENTS").await.unwrap();
    let config = &stream.cached_info().config;
    assert_eq!((config.max_bytes, config.max_age), (1 << 30, week));

    let error = topology::apply(&admin, &with("EVENTS", Some(100), None))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("more than the wanted limit of 100"),
        "{error}"
    );
    assert_eq!(broker.stored("EVENTS").await, 3);
}
