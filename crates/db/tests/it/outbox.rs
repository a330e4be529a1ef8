use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::StreamExt;
use garrison_bus::{Bus, Message, subject};
use garrison_proto::alert::v1::Severity;
use garrison_testkit::Stack;

use crate::fixture::{Relay, count, database, event, eventually, published, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_published_in_order_and_what_is_not_is_not() {
    let stack = Stack::start().await;
    let (db, config) = database(&stack).await;
    let relay = Relay::start(&stack, &db).await;
    let tenants = [tenant("acme"), tenant("rival")];
    for round in 0..60 {
        for tenant in &tenants {
            let mut tx = db.begin(tenant).await.unwrap();
            tx.publish(&event(tenant, 2 * round)).await.unwrap();
            tx.publish(&event(tenant, 2 * round + 1)).await.unwrap();
            tx.commit().await.unwrap();
            let mut abandoned = db.begin(tenant).await.unwrap();
            abandoned.publish(&event(tenant, 9_999)).await.unwrap();
            drop(abandoned);
        }
    }
    eventually("the outbox is empty", async || {
        count(&stack, &config, "outbox").await == 0
    })
    .await;
    relay.stop().await;
    let published = published(&stack).await;
    for tenant in &tenants {
        assert_eq!(published[tenant], (0..120).collect::<Vec<_>>(), "{tenant}");
    }
    assert_eq!(count(&stack, &config, "outbox_parked").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_urgent_overtakes_and_is_stored_once() {
    let stack = Stack::start().await;
    let (db, config) = database(&stack).await;
    let acme = tenant("acme");
    // Without a relay in this process, urgent messages wait like the others.
    let (waiting, urgent) = (event(&acme, 0), event(&acme, 1));
    let mut tx = db.begin(&acme).await.unwrap();
    tx.publish_all(&[waiting, urgent.clone()]).await.unwrap();
    tx.commit_urgent(vec![urgent]).await.unwrap();
    assert_eq!(count(&stack, &config, "outbox").await, 2);

    let relay = Relay::start(&stack, &db).await;
    eventually("the outbox is empty", async || {
        count(&stack, &config, "outbox").await == 0
    })
    .await;
    for round in 1..20 {
        let (waiting, urgent) = (event(&acme, 2 * round), event(&acme, 2 * round + 1));
        let mut tx = db.begin(&acme).await.unwrap();
        tx.publish_all(&[waiting, urgent.clone()]).await.unwrap();
        tx.commit_urgent(vec![urgent]).await.unwrap();
        eventually("the outbox is empty", async || {
            count(&stack, &config, "outbox").await == 0
        })
        .await;
    }
    relay.stop().await;
    let published = published(&stack).await;
    let mut sorted = published[&acme].clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..40).collect::<Vec<_>>(), "each is stored once");
    let overtaken = (1..20).filter(|round| {
        let place = |number| published[&acme].iter().position(|n| *n == number);
        place(2 * round + 1) < place(2 * round)
    });
    assert_eq!(overtaken.count(), 19, "{published:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_arrives_as_it_was_appended() {
    let stack = Stack::start().await;
    let (db, _) = database(&stack).await;
    let acme = tenant("acme");
    let listener = Bus::connect(&stack.bus_config("svc/anomaly"), "anomaly").await.unwrap();
    let mut keys = listener.subscribe_core("events.v1.*.keys").await.unwrap();
    // The broker works off a connection in order: once it has answered this, it has the subscription.
    let asked = "$JS.API.CONSUMER.INFO.FLOWS.anomaly";
    listener.client().request(asked, "".into()).await.unwrap();
    // iam, because everybody may listen to its keys.
    let bus = Bus::connect(&stack.bus_config("svc/iam"), "iam").await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    tokio::spawn(garrison_db::run_outbox_relay(db.clone(), bus.publisher(), stop.clone()));

    let time: DateTime<Utc> = "2026-05-06T07:08:09.123456789Z".parse().unwrap();
    let mut sent = event(&acme, 5).with_time(time);
    sent.subject = subject::events(&acme, "keys");
    sent.traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
    let mut tx = db.begin(&acme).await.unwrap();
    tx.publish(&sent).await.unwrap();
    tx.commit().await.unwrap();
    let got = tokio::time::timeout(Duration::from_secs(60), keys.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((got.id, got.time, got.tenant), (sent.id, time, acme));
    assert_eq!(
        (got.kind, got.source, got.payload),
        (sent.kind, sent.source, sent.payload)
    );
    assert_eq!(
        (got.content_type.as_str(), got.traceparent),
        ("application/protobuf", sent.traceparent)
    );
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_is_parked_with_its_reason_and_holds_nothing_up() {
    let stack = Stack::start().await;
    let (db, config) = database(&stack).await;
    let acme = tenant("acme");
    let mut tx = db.begin(&acme).await.unwrap();
    let forbidden = Message {
        subject: subject::audit(&acme, "iam"),
        ..event(&acme, 1)
    };
    let too_large = Message {
        payload: Bytes::from(vec![7; 3 * 1024 * 1024]),
        ..event(&acme, 2)
    };
    let broken = Message {
        source: "line\nbreak".to_owned(),
        ..event(&acme, 3)
    };
    for message in [&forbidden, &too_large, &broken, &event(&acme, 4)] {
        tx.publish(message).await.unwrap();
    }
    tx.commit().await.unwrap();
    let relay = Relay::start(&stack, &db).await;
    eventually("the outbox is empty", async || {
        count(&stack, &config, "outbox").await == 0
    })
    .await;
    relay.stop().await;
    assert_eq!(published(&stack).await[&acme], [4]);
    let mut superuser = stack.postgres().superuser(&config.database).await.unwrap();
    let parked: Vec<(uuid::Uuid, String)> =
        sqlx::query_as("SELECT message_id, reason FROM policy.outbox_parked ORDER BY id")
            .fetch_all(&mut superuser)
            .await
            .unwrap();
    let ids: Vec<_> = parked.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [forbidden.id, too_large.id, broken.id]);
    for ((_, reason), code) in parked.iter().zip(["GAR-BUS-0003", "GAR-BUS-0004", "GAR-BUS-0003"]) {
        assert!(reason.contains(code), "{reason}");
    }
}

/// A stream that is full refuses for now; the others go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_blocks_only_its_own_messages() {
    let stack = Stack::start().await;
    let (db, config) = database(&stack).await;
    let admin = Bus::connect(&stack.bus_config("svc/bus-admin"), "bus-admin")
        .await
        .unwrap();
    let alerts = admin.jetstream().get_stream("ALERTS").await.unwrap();
    let open = alerts.cached_info().config.clone();
    let full = async_nats::jetstream::stream::Config {
        max_bytes: 1,
        ..open.clone()
    };
    admin.jetstream().update_stream(full).await.unwrap();

    let acme = tenant("acme");
    let mut tx = db.begin(&acme).await.unwrap();
    for number in 0..100 {
        let subject = subject::alerts(&acme, Severity::High, "policy.violation");
        tx.publish(&Message {
            subject,
            ..event(&acme, number)
        })
        .await
        .unwrap();
    }
    tx.publish(&event(&acme, 1)).await.unwrap();
    tx.commit().await.unwrap();
    let relay = Relay::start(&stack, &db).await;
    eventually("the event got through", async || {
        count(&stack, &config, "outbox").await == 100
    })
    .await;
    assert_eq!(published(&stack).await[&acme], [1]);
    admin.jetstream().update_stream(open).await.unwrap();
    eventually("the alerts follow", async || {
        count(&stack, &config, "outbox").await == 0
    })
    .await;
    relay.stop().await;
    let stored = admin
        .jetstream()
        .get_stream("ALERTS")
        .await
        .unwrap()
        .cached_info()
        .state
        .messages;
    assert_eq!((stored, count(&stack, &config, "outbox_parked").await), (100, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_relays_publish_each_message_once_and_in_order() {
    let stack = Stack::start().await;
    let (db, config) = database(&stack).await;
    let replica = garrison_db::Db::connect(&config, "policy").unwrap();
    let relays = [Relay::start(&stack, &db).await, Relay::start(&stack, &replica).await];
    let acme = tenant("acme");
    for number in 0..200 {
        let db = if number % 2 == 0 { &db } else { &replica };
        let mut tx = db.begin(&acme).await.unwrap();
        tx.publish(&event(&acme, number)).await.unwrap();
        tx.commit().await.unwrap();
    }
    eventually("the outbox is empty", async || {
        count(&stack, &config, "outbox").await == 0
    })
    .await;
    for relay in relays {
        relay.stop().await;
    }
    assert_eq!(published(&stack).await[&acme], (0..200).collect::<Vec<_>>());
}
