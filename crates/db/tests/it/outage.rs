use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use garrison_db::{Db, DbError};
use garrison_testkit::Stack;

use crate::fixture::{Relay, count, database, event, eventually, published, tenant};

/// Appends numbers in order while `more` wants the next; a commit whose outcome is unknown is settled through the
/// inbox, as a handler would. Counts in `failures` what an outage broke; gives back how many numbers there are.
async fn append(db: &Db, failures: &AtomicUsize, more: impl Fn(usize) -> bool) -> usize {
    let acme = tenant("acme");
    let mut number = 0;
    while more(number) {
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
                    failures.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        number += 1;
    }
    number
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_or_reordered_when_broker_and_database_are_killed() {
    let stack = Stack::start().await;
    let (db, config) = database(&stack).await;
    let relay = Relay::start(&stack, &db).await;
    let failures = Arc::new(AtomicUsize::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (failures, over) = (failures.clone(), over.clone());
        async move { append(&db, &failures, |_| !over.load(Ordering::Relaxed)).await }
    });
    let pause = || tokio::time::sleep(Duration::from_millis(400));
    pause().await;
    stack.nats().kill();
    pause().await;
    stack.nats().resume().unwrap();
    // A kill between two transactions goes unnoticed, because the pool waits for the database: kill until one is felt.
    for _ in 0..20 {
        pause().await;
        stack.postgres().kill();
        pause().await;
        stack.postgres().resume().unwrap();
        if failures.load(Ordering::Relaxed) > 0 {
            break;
        }
    }
    pause().await;
    stack.nats().kill();
    stack.postgres().kill();
    stack.postgres().resume().unwrap();
    pause().await;
    stack.nats().resume().unwrap();

    over.store(true, Ordering::Relaxed);
    let appended = writer.await.unwrap();
    assert!(
        failures.load(Ordering::Relaxed) > 0,
        "no outage was felt in {appended} transactions"
    );
    eventually("the outbox is empty", async || {
        count(&stack, &config, "outbox").await == 0
    })
    .await;
    relay.stop().await;
    assert_eq!(
        published(&stack).await[&tenant("acme")],
        (0..appended).collect::<Vec<_>>()
    );
}

/// The process dies between publishing and removing: the broker recognises the repeat.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_cut_off_repeats_without_doubling() {
    let stack = Stack::start().await;
    let (db, config) = database(&stack).await;
    append(&db, &AtomicUsize::new(0), |number| number < 300).await;
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
    eventually("it works", async || match db.begin(&tenant("acme")).await {
        Ok(tx) => tx.commit().await.is_ok(),
        Err(_) => false,
    })
    .await;
}
