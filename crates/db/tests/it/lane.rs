use garrison_db::{Lane, Migrator};
use garrison_testkit::Stack;
use sqlx::Row as _;

use crate::fixture::{NOTES, count, eventually, migrator, tenant};

const NOTE: &str = "
    CREATE FUNCTION take_note(tenant text, id integer) RETURNS integer LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM set_config('garrison.tenant', tenant, true);
        INSERT INTO note VALUES (tenant, id);
        RETURN pg_backend_pid();
    END
    $$;
";

fn with_function() -> Migrator {
    migrator(&[NOTES, NOTE])
}

async fn take(lane: &Lane, id: i32) -> Result<i32, garrison_db::DbError> {
    let acme = tenant("acme");
    let statement = sqlx::query("SELECT take_note($1, $2)").bind(acme.as_str()).bind(id);
    let rows = lane.run(&acme, "take a note", statement).await?;
    Ok(rows[0].get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_commit_and_rehearsals_leave_nothing() {
    let stack = Stack::shared().await;
    let config = stack.database("policy", &with_function()).await;
    let db = garrison_db::Db::connect(&config, "policy").unwrap();
    let lane = db.lane(2);
    // One after the other they use one connection.
    let first = take(&lane, 1).await.unwrap();
    assert_eq!(take(&lane, 2).await.unwrap(), first);

    // As many rehearsals as connections reach them all, and make those that are missing.
    let mut pids = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let mut rehearsal = lane.rehearsal().await.unwrap();
        let row = sqlx::query("SELECT take_note($1, 9)")
            .bind(rehearsal.tenant().as_str().to_owned())
            .fetch_one(&mut *rehearsal)
            .await
            .unwrap();
        pids.insert(row.get::<i32, _>(0));
        rehearsal.end().await.unwrap();
    }
    assert!(pids.contains(&first), "{pids:?}");
    assert_eq!(count(stack, &config, "note").await, 2);

    // What is cut off is undone, and does not take the place of what comes after it.
    for _ in 0..5 {
        let mut rehearsal = lane.rehearsal().await.unwrap();
        sqlx::query("INSERT INTO note VALUES ($1, 10)")
            .bind(rehearsal.tenant().as_str().to_owned())
            .execute(&mut *rehearsal)
            .await
            .unwrap();
    }
    take(&lane, 3).await.unwrap();
    assert_eq!(count(stack, &config, "note").await, 3);

    // A statement that is refused costs its connection and nothing else.
    assert!(take(&lane, 3).await.is_err());
    take(&lane, 4).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_died_are_not_used_again() {
    let stack = Stack::start().await;
    let config = stack.database("policy", &with_function()).await;
    let db = garrison_db::Db::connect(&config, "policy").unwrap();
    let lane = db.lane(2);
    for _ in 0..2 {
        lane.rehearsal().await.unwrap().end().await.unwrap();
    }
    take(&lane, 1).await.unwrap();
    stack.postgres().kill();
    let error = take(&lane, 2).await.unwrap_err();
    assert!(error.is_unavailable(), "{error:?}");
    stack.postgres().resume().unwrap();
    eventually("the database answers", async || db.ping().await.is_ok()).await;
    // The other connection is as dead, and a rehearsal passes it over.
    lane.rehearsal().await.unwrap().end().await.unwrap();
    take(&lane, 3).await.unwrap();
    assert_eq!(count(&stack, &config, "note").await, 2);
}
