use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use garrison_bus::{Dispatch, Disposition, Message, PublishError, subject, topology};

use crate::broker::{Broker, Recorder, Running, acme, event, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_published_twice_is_stored_and_handled_once() {
    let broker = Broker::start().await;
    let publisher = broker.bus("svc/policy").await.publisher();
    let message = event(1);
    publisher.publish(&message).await.unwrap();
    publisher.publish(&message).await.unwrap();
    publisher.publish(&event(2)).await.unwrap();
    assert_eq!(broker.stored("EVENTS").await, 2);

    let reader = broker.bus("svc/forensics").await;
    let recorder = Recorder::new(|_| Disposition::Ack);
    let running = Running::start(&reader, &topology::EVENTS_FORENSICS, Dispatch::Ordered, &recorder);
    eventually("both are handled", async || recorder.seen().len() == 2).await;
    running.stop().await;
    assert_eq!(recorder.seen(), [(1, 1), (2, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_be_stored_is_told_from_what_cannot_be_stored_now() {
    let broker = Broker::start().await;
    let policy = broker.bus("svc/policy").await;
    let publisher = policy.publisher();

    let foreign = Message {
        subject: subject::audit(&acme(), "iam"),
        ..event(1)
    };
    let patience = Duration::from_millis(broker.config("svc/policy").ack_timeout_ms / 2);
    let error = tokio::time::timeout(patience, publisher.publish(&foreign))
        .await
        .expect("the refusal would only be noticed by its timeout")
        .unwrap_err();
    assert!(matches!(error, PublishError::Refused { .. }), "{error}");

    let huge = Message {
        payload: Bytes::from(vec![0; 2 * 1024 * 1024]),
        ..event(1)
    };
    let error = publisher.publish(&huge).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { .. }), "stream limit: {error}");
    let huge = Message {
        payload: Bytes::from(vec![0; topology::MAX_PAYLOAD + 1]),
        ..event(1)
    };
    let error = publisher.publish(&huge).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { .. }), "broker limit: {error}");

    for bad in ["events.v1.*.policy", "events.v1.acme.", "", "events v1"] {
        let error = publisher
            .publish(&Message {
                subject: bad.to_owned(),
                ..event(1)
            })
            .await
            .unwrap_err();
        assert!(!error.is_transient(), "{bad:?}: {error}");
    }

    broker.nats.kill();
    let mut config = broker.config("svc/policy");
    config.ack_timeout_ms = 300;
    let cut_off = garrison_bus::Bus::connect(&config, "policy").await.unwrap();
    let error = cut_off.publisher().publish(&event(1)).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_streams_a_message_waits_for_the_topology() {
    let broker = Broker::bare();
    let publisher = broker.bus("svc/policy").await.publisher();
    let error = publisher.publish(&event(1)).await.unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("GAR-BUS-0005"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn revocations_reach_every_listener_and_garbage_does_not() {
    let broker = Broker::start().await;
    let mut listeners = Vec::new();
    for (identity, consumer) in [
        ("svc/anomaly", "FLOWS.anomaly"),
        ("svc/forensics", "EVENTS.forensics"),
        ("enforcer/router", "RESPONSES.enforcer-router"),
    ] {
        let bus = broker.bus(identity).await;
        let subscription = bus.subscribe_core("events.v1.*.revocation").await.unwrap();
        // The broker works off a connection in order: once it has answered this, it has the subscription.
        let asked = format!("$JS.API.CONSUMER.INFO.{consumer}");
        bus.client().request(asked, "".into()).await.unwrap();
        listeners.push(subscription);
    }
    let iam = broker.bus("svc/iam").await;
    let subject = subject::events(&acme(), "revocation");
    iam.client().publish(subject.clone(), "garbage".into()).await.unwrap();
    let sent = Message { subject, ..event(7) };
    iam.publisher().publish(&sent).await.unwrap();
    for listener in &mut listeners {
        let got = tokio::time::timeout(Duration::from_secs(60), listener.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!((got.id, &got.tenant, got.attempt), (sent.id, &acme(), 0));
    }
}
