//! The real parts start, answer, survive what tests do to them, and leave nothing behind.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::{Duration, Instant};

use garrison_bus::{Bus, Message, subject};
use garrison_testkit::Stack;
use sqlx::migrate::Migrator;

static EMPTY: Migrator = Migrator::DEFAULT;

#[tokio::test]
async fn a_stack_serves_queries_and_messages_before_and_after_a_crash() {
    let stack = Stack::start().await;
    let role = stack.database("kit", &EMPTY).await;
    let db = garrison_db::Db::connect(&role, "kit").unwrap();
    db.ping().await.unwrap();
    let tenant = "acme".parse().unwrap();
    let bus = Bus::connect(&stack.bus_config("svc/iam"), "iam").await.unwrap();
    let send = || async {
        let subject = subject::events(&tenant, "login");
        let message = Message::json(subject, "iam", "test.event", &serde_json::json!({ "a": 1 })).unwrap();
        bus.publisher().publish(&message).await
    };
    send().await.unwrap();

    stack.postgres().kill();
    stack.nats().kill();
    assert!(db.ping().await.is_err());
    stack.postgres().resume().unwrap();
    stack.nats().resume().unwrap();
    // Either may give up once before its connection is back: how soon that is depends on the machine.
    eventually(async || db.ping().await.is_ok()).await;
    eventually(async || send().await.is_ok()).await;
}

async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds().await {
        assert!(Instant::now() < deadline, "not back after two minutes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
