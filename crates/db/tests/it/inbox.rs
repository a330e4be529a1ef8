use std::time::Duration;

use garrison_db::Outgoing;
use garrison_testkit::Stack;
use uuid::Uuid;

use crate::fixture::{Relay, count, database, event, eventually, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_first_once_per_consumer_and_tenant() {
    let stack = Stack::shared().await;
    let (db, _) = database(stack).await;
    let (acme, id) = (tenant("acme"), Uuid::now_v7());

    let mut abandoned = db.begin(&acme).await.unwrap();
    assert!(abandoned.first_delivery("alerts", id).await.unwrap());
    drop(abandoned);
    let mut tx = db.begin(&acme).await.unwrap();
    assert!(
        tx.first_delivery("alerts", id).await.unwrap(),
        "a rolled back delivery counted"
    );
    assert!(!tx.first_delivery("alerts", id).await.unwrap());
    assert!(tx.first_delivery("events", id).await.unwrap());
    tx.commit().await.unwrap();
    let mut tx = db.begin(&acme).await.unwrap();
    assert!(!tx.first_delivery("alerts", id).await.unwrap());
    drop(tx);
    // Another tenant cannot use an id up, nor learn that it was used.
    let mut tx = db.begin(&tenant("rival")).await.unwrap();
    assert!(tx.first_delivery("alerts", id).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_at_once_only_one_is_first() {
    let stack = Stack::shared().await;
    let (db, _) = database(stack).await;
    let (acme, id) = (tenant("acme"), Uuid::now_v7());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (db, acme) = (db.clone(), acme.clone());
        tasks.spawn(async move {
            let mut tx = db.begin(&acme).await.unwrap();
            let first = tx.first_delivery("alerts", id).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            tx.commit().await.unwrap();
            first
        });
    }
    let firsts = tasks.join_all().await.into_iter().filter(|first| *first).count();
    assert_eq!(firsts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_delivery_leads_to_is_appended_once() {
    let stack = Stack::shared().await;
    let (db, config) = database(stack).await;
    let (acme, id) = (tenant("acme"), Uuid::now_v7());
    for (round, consumer) in ["alerts", "alerts", "reports"].into_iter().enumerate() {
        let mut tx = db.begin(&acme).await.unwrap();
        let messages = [event(&acme, 2 * round), event(&acme, 2 * round + 1)];
        let outgoing = Outgoing::new(&acme, &messages).unwrap().once(consumer, id);
        let first = tx.append(&outgoing).await.unwrap();
        assert_eq!(first, round != 1, "round {round}");
        tx.commit().await.unwrap();
    }
    assert_eq!(count(stack, &config, "outbox").await, 4);
    // A delivery that leads to nothing counts too.
    let mut tx = db.begin(&acme).await.unwrap();
    let nothing = Outgoing::new(&acme, &[]).unwrap().once("quiet", id);
    assert!(tx.append(&nothing).await.unwrap());
    assert!(!tx.first_delivery("quiet", id).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn old_rows_are_pruned_and_young_ones_kept() {
    let stack = Stack::shared().await;
    let (db, config) = database(stack).await;
    let mut tx = db.begin(&tenant("acme")).await.unwrap();
    for _ in 0..3 {
        tx.first_delivery("alerts", Uuid::now_v7()).await.unwrap();
    }
    sqlx::query("UPDATE inbox SET received = now() - interval '8 days' WHERE ctid = (SELECT min(ctid) FROM inbox)")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let relay = Relay::start(stack, &db).await;
    eventually("the old one is gone", async || {
        count(stack, &config, "inbox").await == 2
    })
    .await;
    relay.stop().await;
}
