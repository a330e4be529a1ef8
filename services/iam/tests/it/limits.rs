use chrono::TimeDelta;
use garrison_proto::resource_name;
use iam::error::Error;

use crate::world::{PASSWORD, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_works_once_and_a_second_use_ends_the_session() {
    let world = World::new().await;
    let first = world.login("acme", "ada").await;
    let second = world.refresh(&first).await.unwrap();
    assert_ne!(first.refresh.expose(), second.refresh.expose());
    assert_eq!(world.verified(&first).session, world.verified(&second).session);
    let error = world.refresh(&first).await.unwrap_err();
    assert!(
        matches!(error, Error::SessionOver { reason } if reason.contains("used")),
        "{error}"
    );
    // Also for the thief's or owner's newer token.
    assert!(matches!(world.refresh(&second).await, Err(Error::SessionOver { .. })));
    let session = world.verified(&second).session.unwrap();
    let revoked = world.revocations("acme").await;
    assert_eq!(revoked.len(), 1);
    assert_eq!(revoked[0].session, resource_name("sessions", session));
    assert!(matches!(
        world.iam.caller_view(&world.verified(&second)).await,
        Err(Error::SessionOver { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_refreshes_at_the_same_moment_do_not_both_win() {
    let world = World::new().await;
    let tokens = world.login("acme", "ada").await;
    let (a, b) = tokio::join!(world.refresh(&tokens), world.refresh(&tokens));
    assert_eq!([a.is_ok(), b.is_ok()].iter().filter(|ok| **ok).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_ends_and_a_used_one_goes_on_until_the_absolute_limit() {
    let world = World::new().await;
    let idle = world.login("acme", "ada").await;
    let mut used = world.login("acme", "bob").await;
    for _ in 0..24 {
        world.turn(TimeDelta::minutes(29));
        used = world.refresh(&used).await.unwrap();
    }
    let error = world.refresh(&idle).await.unwrap_err();
    assert!(
        matches!(error, Error::SessionOver { reason } if reason.contains("not used")),
        "{error}"
    );
    // 696 of 720 minutes are over: the last token may not outlive the session.
    world.turn(TimeDelta::minutes(22));
    used = world.refresh(&used).await.unwrap();
    assert_eq!(used.access_expires, used.session_expires);
    world.turn(TimeDelta::minutes(2));
    let error = world.refresh(&used).await.unwrap_err();
    assert!(
        matches!(error, Error::SessionOver { reason } if reason.contains("limit")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_session_ends_beyond_the_cap() {
    let world = World::new().await;
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(world.login("acme", "ada").await);
        world.turn(TimeDelta::seconds(1));
    }
    assert!(matches!(
        world.refresh(&sessions[0]).await,
        Err(Error::SessionOver { .. })
    ));
    for session in &sessions[1..] {
        world.refresh(session).await.unwrap();
    }
    assert_eq!(world.revocations("acme").await.len(), 1);
    let listed = world
        .iam
        .list_sessions(&world.verified(&sessions[3]), None)
        .await
        .unwrap();
    assert_eq!(listed.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_at_the_same_moment_respect_the_cap() {
    let world = World::new().await;
    let logins = (0..8).map(|_| world.password("acme", "ada", PASSWORD));
    let opened = futures::future::join_all(logins).await;
    let caller = world.caller("acme", "ada").await;
    assert_eq!(world.iam.list_sessions(&caller, None).await.unwrap().len(), 3);
    // Beyond the lock's threshold parallel logins of one account are told to wait.
    assert!(opened.iter().filter(|r| r.is_ok()).count() >= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn logout_ends_the_session() {
    let world = World::new().await;
    let tokens = world.login("acme", "ada").await;
    let caller = world.verified(&tokens);
    world.iam.logout(&caller).await.unwrap();
    assert!(matches!(world.refresh(&tokens).await, Err(Error::SessionOver { .. })));
    assert!(world.iam.ring.is_revoked(caller.session.unwrap()));
    // Ending it again is no error and announces nothing more.
    world.iam.logout(&caller).await.unwrap();
    assert_eq!(world.revocations("acme").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_changes_with_age_and_overlaps() {
    let world = World::new().await;
    let tokens = world.login("acme", "ada").await;
    let first = world.iam.key_set().unwrap().keys;
    assert_eq!(first.len(), 1);
    world.turn(TimeDelta::days(30));
    world.iam.tidy().await.unwrap();
    // Another process picks the change up.
    let other = world.another(Default::default());
    other
        .prepare(&[], &tokio_util::sync::CancellationToken::new())
        .await
        .unwrap();
    let both = other.key_set().unwrap().keys;
    assert_eq!(both.len(), 2);
    assert_eq!(both[0].id, first[0].id);
    assert_eq!(other.signing.signing().unwrap().id(), both[1].id);
    drop(tokens);
    // Its last token has expired.
    world.turn(TimeDelta::minutes(7));
    other.tidy().await.unwrap();
    other
        .prepare(&[], &tokio_util::sync::CancellationToken::new())
        .await
        .unwrap();
    let left: Vec<_> = other.key_set().unwrap().keys;
    assert_eq!((left.len(), left[0].id.as_str()), (1, both[1].id.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_that_start_together_make_one_key() {
    let world = World::new().await;
    world.turn(TimeDelta::days(31));
    let (one, two) = (world.another(Default::default()), world.another(Default::default()));
    let (a, b) = tokio::join!(one.tidy(), two.tidy());
    a.unwrap();
    b.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    one.prepare(&[], &stop).await.unwrap();
    assert_eq!(one.key_set().unwrap().keys.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn tidying_keeps_what_is_needed() {
    let world = World::new().await;
    let tokens = world.login("acme", "ada").await;
    world.iam.logout(&world.verified(&tokens)).await.unwrap();
    world.password("acme", "nobody", "x").await.unwrap_err();
    world.challenge("acme", "eva").await;
    let count = async |table: &str| -> i64 {
        let mut tx = world.db.begin(&"acme".parse().unwrap()).await.unwrap();
        sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
            .fetch_one(&mut *tx)
            .await
            .unwrap()
    };
    world.iam.tidy().await.unwrap();
    for table in ["sessions", "revocations", "login_attempts", "challenges"] {
        assert!(count(table).await > 0, "{table} was emptied too early");
    }
    world.turn(TimeDelta::days(31));
    world.iam.tidy().await.unwrap();
    for table in ["sessions", "revocations", "login_attempts", "challenges"] {
        assert_eq!(count(table).await, 0, "{table} is never emptied");
    }
}
