use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use garrison_bus::{Bus, ConsumerSpec, Dispatch, Disposition, subject, topology};
use garrison_proto::response::v1::Action;

use crate::broker::{Broker, Recorder, Running, acme, event, eventually, nodes, options};

fn order(number: usize) -> garrison_bus::Message {
    garrison_bus::Message {
        subject: subject::responses(&acme(), Action::Block, "dispatched"),
        ..event(number)
    }
}

/// A broker whose stream of orders delivers nothing to the router until the topology is applied again, the administrator's
/// connection, and the router's consumer.
async fn undelivered() -> (Broker, Bus, ConsumerSpec) {
    let broker = Broker::start().await;
    let consumer = topology::enforcer_consumer(&nodes()[0]);
    let admin = broker.bus("svc/bus-admin").await;
    let stream = admin.jetstream().get_stream("RESPONSES").await.unwrap();
    stream.delete_consumer(&consumer.name).await.unwrap();
    (broker, admin, consumer)
}

/// Publishes until a message has been handled; gives back how many there are. What is published before the consumer
/// listens is only in the stream.
async fn publish_until_handled(responder: &Bus, recorder: &Arc<Recorder>) -> usize {
    let mut published = 0;
    eventually("a message is handled", async || {
        if recorder.seen().is_empty() {
            responder.publisher().publish(&order(published)).await.unwrap();
            published += 1;
        }
        !recorder.seen().is_empty()
    })
    .await;
    published
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_heard_directly_needs_no_stream_and_its_copy_is_not_handled_again() {
    let (broker, admin, consumer) = undelivered().await;

    let recorder = Recorder::new(|_| Disposition::Ack);
    let router = broker.bus("enforcer/router").await;
    let running = Running::start(&router, &consumer, Dispatch::Concurrent(4), &recorder);
    let responder = broker.bus("svc/responder").await;
    let published = publish_until_handled(&responder, &recorder).await;

    // Now the stream delivers everything from its beginning.
    topology::apply(&admin, &options()).await.unwrap();
    let stream = admin.jetstream().get_stream("RESPONSES").await.unwrap();
    eventually("the stream's copies are acknowledged", async || {
        let info = stream.consumer_info(&consumer.name).await.unwrap();
        info.ack_floor.stream_sequence == published as u64
    })
    .await;
    running.stop().await;
    let mut handled = recorder.numbers();
    handled.sort_unstable();
    assert_eq!(handled, (0..published).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_directly_is_handled_from_the_stream() {
    let (broker, admin, consumer) = undelivered().await;

    let recorder = Recorder::script([Disposition::Reject {
        reason: "not today".to_owned(),
    }]);
    let router = broker.bus("enforcer/router").await;
    let running = Running::start(&router, &consumer, Dispatch::Concurrent(4), &recorder);
    let responder = broker.bus("svc/responder").await;
    let published = publish_until_handled(&responder, &recorder).await;
    let failed = recorder.numbers()[0];

    topology::apply(&admin, &options()).await.unwrap();
    eventually("all are handled and one of them twice", async || {
        recorder.seen().len() == published + 1
    })
    .await;
    running.stop().await;
    let twice = recorder.numbers().iter().filter(|number| **number == failed).count();
    assert_eq!(twice, 2);
    // The direct copy's refusal is not the last word.
    assert!(broker.dead_letters().await.is_empty());
}

/// Each message goes to one replica directly; the stream's copy may go to the other, whose inbox would know it.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_what_they_hear() {
    const MESSAGES: usize = 200;
    let (broker, _, consumer) = undelivered().await;

    let recorders = [(); 2].map(|()| Recorder::new(|_| Disposition::Ack));
    let mut running = Vec::new();
    for recorder in &recorders {
        let bus = broker.bus("enforcer/router").await;
        running.push(Running::start(
            &bus,
            &consumer,
            Dispatch::Concurrent(MESSAGES),
            recorder,
        ));
    }
    let responder = broker.bus("svc/responder").await;
    let mut published = 0;
    eventually("both listen", async || {
        responder.publisher().publish(&order(published)).await.unwrap();
        published += 1;
        recorders.iter().all(|recorder| !recorder.seen().is_empty())
    })
    .await;
    for _ in 0..MESSAGES {
        responder.publisher().publish(&order(published)).await.unwrap();
        published += 1;
    }
    let handled = || {
        let mut all: Vec<usize> = recorders.iter().flat_map(|recorder| recorder.numbers()).collect();
        all.sort_unstable();
        all
    };
    // Without the stream, nothing comes twice.
    eventually("all since then are handled", async || {
        handled()
            .iter()
            .filter(|number| **number >= published - MESSAGES)
            .count()
            == MESSAGES
    })
    .await;
    let once = handled();
    assert!(once.windows(2).all(|pair| pair[0] < pair[1]), "{once:?}");
    for running in running {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enforcer_hears_the_orders_of_its_tenants_only() {
    let broker = Broker::start().await;
    let edge = broker.bus("enforcer/edge").await;
    let mut ears = Vec::new();
    for tenant in ["globex", "*"] {
        let subject = format!("responses.v1.{tenant}.*.dispatched");
        ears.push(edge.client().subscribe(subject).await.unwrap());
    }
    let mut own = edge.client().subscribe("responses.v1.acme.*.dispatched").await.unwrap();
    edge.client().flush().await.unwrap();
    let publisher = broker.bus("svc/responder").await.publisher();
    let globex = subject::responses(&"globex".parse().unwrap(), Action::Block, "dispatched");
    let other = garrison_bus::Message {
        subject: globex,
        ..event(1)
    };
    publisher.publish(&other).await.unwrap();
    publisher.publish(&order(2)).await.unwrap();
    let heard = tokio::time::timeout(Duration::from_secs(30), own.next()).await.unwrap();
    assert_eq!(heard.unwrap().subject.as_str(), "responses.v1.acme.block.dispatched");
    // The broker delivers to one connection in order, so what was for the others would have come.
    edge.client().flush().await.unwrap();
    for mut ear in ears {
        let heard = tokio::time::timeout(Duration::from_millis(50), ear.next()).await;
        assert!(!matches!(heard, Ok(Some(_))), "{heard:?}");
    }
}
