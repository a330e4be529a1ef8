use std::time::Duration;

use garrison_db::{Db, DbError};
use garrison_testkit::Stack;

use crate::fixture::{Relay, count, database, event, eventually, published, tenant};

/// Appends numbers in order; a commit whose outcome is unknown is settled through the inbox, as a handler would.
async fn append(db: &Db, numbers: std::ops::Range<usize>) -> usize {
    let acme = tenant("acme");
    let mut failures = 0;
    for number in numbers {
        let message = event(&acme, number);
        loop {
            let attempt = async {
                let mut tx = db.begin(&acme).await?;
                if tx.first_delivery("source", message.id).await? {
                    tx.publish(&message).await?;
                }
                tx.commit().await
            };
            match attempt.await {
                Ok(()) => break,
                Err(error) => {
                    assert!(error.is_unavailable(), "{error:?}");
                    failures += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
    failures
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_or_reordered_when_broker_and_database_are_killed() {
    let stack = Stack::start().await;
    let (db, config) = database(&stack).await;
    let relay = Relay::start(&stack, &db).await;
    let writer = tokio::spawn({
        let db = db.clone();
        async move { append(&db, 0..1_500).await }
    });
    let pause = || tokio::time::sleep(Duration::from_millis(400));
    pause().await;
    stack.nats().kill();
    pause().await;
    stack.nats().resume().unwrap();
    pause().await;
    stack.postgres().kill();
    pause().await;
    stack.postgres().resume().unwrap();
    pause().await;
    stack.nats().kill();
    stack.postgres().kill();
    stack.postgres().resume().unwrap();
    pause().await;
    stack.nats().resume().unwrap();

    let failures = writer.await.unwrap();
    assert!(failures > 0, "the outage was not felt");
    eventually("the outbox is empty", async || {
        count(&stack, &config, "outbox").await == 0
    })
    .await;
    relay.stop().await;
    assert_eq!(published(&stack).await[&tenant("acme")], (0..1_500).collect::<Vec<_>>());
}

/// The process dies between publishing and removing: the broker recognises the repeat.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_cut_off_repeats_without_doubling() {
    let stack = Stack::start().await;
    let (db, config) = database(&stack).await;
    append(&db, 0..300).await;
    for _ in 0..30 {
        let relay = Relay::start(&stack, &db).await;
        tokio::time::sleep(Duration::from_millis(25)).await;
        relay.task.abort();
        let _ = relay.task.await;
    }
    let relay = Relay::start(&stack, &db).await;
    eventually("the outbox is empty", async || {
        count(&stack, &config, "outbox").await == 0
    })
    .await;
    relay.stop().await;
    assert_eq!(published(&stack).await[&tenant("acme")], (0..300).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_died_while_idle_are_not_noticed() {
    let stack = Stack::start().await;
    let (db, _) = database(&stack).await;
    let acme = tenant("acme");
    // Several at a time, so that the pool holds more than one.
    let mut open = Vec::new();
    for _ in 0..6 {
        open.push(db.begin(&acme).await.unwrap());
    }
    for tx in open {
        tx.commit().await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    stack.postgres().stop();
    stack.postgres().resume().unwrap();
    for _ in 0..8 {
        db.begin(&acme).await.unwrap().commit().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_made_while_the_database_is_away_works_when_it_is_there() {
    let stack = Stack::start().await;
    let (_, mut config) = database(&stack).await;
    stack.postgres().stop();
    config.acquire_timeout_ms = 500;
    let db = Db::connect(&config, "policy").unwrap();
    let error = db.begin(&tenant("acme")).await.unwrap_err();
    assert!(matches!(error, DbError::Unavailable { .. }), "{error:?}");
    stack.postgres().resume().unwrap();
    eventually("it answers", async || db.ping().await.is_ok()).await;
    db.begin(&tenant("acme")).await.unwrap().commit().await.unwrap();
}
