use std::collections::HashSet;

use chrono::TimeDelta;
use garrison_proto::{
    audit::v1::{AuditRecord, Decision},
    event::v1::{LoginEvent, login_event::Outcome},
};
use iam::{
    app::{FactorProof, LoginStep},
    domain::SecretText,
    error::Error,
};

use crate::world::{ADDRESS, Options, PASSWORD, World};

#[tokio::test(flavor = "multi_thread")]
async fn password_and_code_open_a_session_and_say_so() {
    let world = World::new().await;
    let challenge = world.challenge("acme", "eva").await;
    assert!(matches!(world.prove(&challenge, "000000").await, Err(Error::Factor)));
    let tokens = world.prove(&challenge, &world.code(0)).await.unwrap();
    let caller = world.verified(&tokens);
    assert!(caller.second_factor);
    assert_eq!(
        (caller.tenant.as_str(), caller.roles.as_slice()),
        ("acme", ["analyst".to_owned()].as_slice())
    );
    assert_eq!(tokens.access_expires - world.time(), TimeDelta::minutes(5));
    let view = world.iam.caller_view(&caller).await.unwrap();
    assert_eq!(view.user.login.as_str(), "eva");
    assert_eq!(view.user.last_login, Some(world.time()));

    let events: Vec<LoginEvent> = world.published("acme").await;
    let outcomes: Vec<_> = events.iter().map(LoginEvent::outcome).collect();
    assert_eq!(outcomes, [Outcome::WrongFactor, Outcome::Succeeded]);
    assert_eq!(
        (events[1].client_address.as_str(), events[1].second_factor),
        (ADDRESS, true)
    );
    let records: Vec<AuditRecord> = world.published("acme").await;
    let refused: Vec<_> = records.iter().filter(|r| r.decision() == Decision::Deny).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].action, "login.refused");
    assert!(
        records
            .iter()
            .any(|r| r.action == "session.opened" && r.actor.as_ref().unwrap().name.starts_with("users/"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_code_and_a_used_challenge_are_refused() {
    let world = World::new().await;
    let code = world.code(0);
    let first = world.challenge("acme", "eva").await;
    world.prove(&first, &code).await.unwrap();
    assert!(matches!(
        world.prove(&first, &world.code(1)).await,
        Err(Error::Challenge)
    ));
    let second = world.challenge("acme", "eva").await;
    assert!(matches!(world.prove(&second, &code).await, Err(Error::Factor)));
    assert!(matches!(
        world.prove(&second, &world.code(-1)).await,
        Err(Error::Factor)
    ));
    world.prove(&second, &world.code(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_code_works_once_even_for_two_at_the_same_moment() {
    let world = World::new().await;
    let (one, two) = (
        world.challenge("acme", "eva").await,
        world.challenge("acme", "eva").await,
    );
    let code = world.code(0);
    let (a, b) = tokio::join!(world.prove(&one, &code), world.prove(&two, &code));
    assert_eq!([a.is_ok(), b.is_ok()].iter().filter(|ok| **ok).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_ends_by_time_and_by_wrong_codes() {
    let world = World::new().await;
    let challenge = world.challenge("acme", "eva").await;
    world.turn(TimeDelta::minutes(5));
    assert!(matches!(
        world.prove(&challenge, &world.code(0)).await,
        Err(Error::Challenge)
    ));
    assert!(matches!(
        world.prove("gch_acme_AAAA", &world.code(0)).await,
        Err(Error::Challenge)
    ));
    // A refresh token is no challenge.
    let tokens = world.login("acme", "ada").await;
    assert!(matches!(
        world.prove(tokens.refresh.expose(), "123456").await,
        Err(Error::Challenge)
    ));
    // The fifth wrong code locks the login as well.
    let challenge = world.challenge("acme", "eva").await;
    for _ in 0..5 {
        assert!(matches!(world.prove(&challenge, "000000").await, Err(Error::Factor)));
    }
    assert!(matches!(
        world.prove(&challenge, &world.code(0)).await,
        Err(Error::Challenge)
    ));
    assert!(matches!(
        world.password("acme", "eva", PASSWORD).await,
        Err(Error::Locked { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_do_not_exist_behave_like_those_that_do() {
    let world = World::new().await;
    let mut shown = HashSet::new();
    let mut locks = Vec::new();
    for login in ["ada", "nobody"] {
        for _ in 0..5 {
            let error = world.password("acme", login, "wrong password!").await.unwrap_err();
            assert!(matches!(error, Error::Credentials), "{error:?}");
            shown.insert(error.to_string());
        }
        match world.password("acme", login, PASSWORD).await {
            Err(Error::Locked { retry_after }) => locks.push(retry_after),
            other => panic!("{login}: {other:?}"),
        }
    }
    assert_eq!(locks, [TimeDelta::seconds(30); 2]);
    for (tenant, login) in [("nowhere", "ada"), ("acme", "not a login!")] {
        shown.insert(world.password(tenant, login, PASSWORD).await.unwrap_err().to_string());
    }
    assert_eq!(shown.len(), 1, "{shown:?}");
    let mut expected = vec![Outcome::WrongPassword; 5];
    expected.push(Outcome::Locked);
    expected.extend([Outcome::UnknownUser; 5]);
    expected.extend([Outcome::Locked, Outcome::UnknownUser]);
    assert_eq!(world.outcomes("acme").await, expected);
    // What is no login name may be a password typed into the wrong field.
    let events: Vec<LoginEvent> = world.published("acme").await;
    assert_eq!(events.last().unwrap().login, "");
    // An unknown tenant leaves no trace that would let strangers fill the database.
    let tenants = world.db.known_tenants().await.unwrap();
    assert!(
        !tenants.iter().any(|tenant| tenant.as_str() == "nowhere"),
        "{tenants:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_ends_doubles_and_is_forgotten_after_success() {
    let world = World::new().await;
    let fail = async || world.password("acme", "ada", "wrong password!").await.unwrap_err();
    for _ in 0..5 {
        fail().await;
    }
    assert!(matches!(fail().await, Error::Locked { .. }));
    world.turn(TimeDelta::seconds(31));
    assert!(matches!(fail().await, Error::Credentials));
    match fail().await {
        Error::Locked { retry_after } => assert_eq!(retry_after, TimeDelta::seconds(60)),
        other => panic!("{other:?}"),
    }
    let caller = world.caller("acme", "root").await;
    let ada = world.user_id("acme", "ada").await;
    let locked = world.iam.get_user(&caller, ada).await.unwrap().locked_until;
    assert_eq!(locked, Some(world.time() + TimeDelta::seconds(60)));
    world.turn(TimeDelta::seconds(61));
    world.login("acme", "ada").await;
    for _ in 0..4 {
        assert!(matches!(fail().await, Error::Credentials));
    }
    world.login("acme", "ada").await;
}

/// Attempts on a locked login are recorded twice for each lock: the first at once, the others together.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_goes_on_at_a_locked_login_fills_nobody_s_audit_log() {
    let world = World::new().await;
    let try_often = async |login: &str, attempts: usize| {
        for _ in 0..attempts {
            let result = world.password("acme", login, "wrong password!").await;
            assert!(matches!(result, Err(Error::Locked { .. })), "{result:?}");
        }
    };
    let lock = async |login: &str| {
        for _ in 0..5 {
            let result = world.password("acme", login, "wrong password!").await;
            assert!(matches!(result, Err(Error::Credentials)), "{result:?}");
        }
    };
    let locked = async || {
        let events: Vec<LoginEvent> = world.published("acme").await;
        events
            .into_iter()
            .filter(|event| event.outcome() == Outcome::Locked)
            .map(|event| (event.login, event.attempts))
            .collect::<Vec<_>>()
    };
    let mut expected = Vec::new();
    let expect = |expected: &mut Vec<(String, u32)>, login: &str, attempts| expected.push((login.to_owned(), attempts));

    // Recorded by upkeep, which knows no name any more.
    for login in ["ada", "nobody"] {
        lock(login).await;
        try_often(login, 20).await;
        expect(&mut expected, login, 1);
        assert_eq!(locked().await, expected);
    }
    world.iam.tidy().await.unwrap();
    assert_eq!(locked().await, expected, "the lock still holds");
    world.turn(TimeDelta::seconds(31));
    world.iam.tidy().await.unwrap();
    world.iam.tidy().await.unwrap();
    expect(&mut expected, "", 19);
    expect(&mut expected, "", 19);
    assert_eq!(locked().await, expected);
    let ada = format!("users/{}", world.user_id("acme", "ada").await);
    let records: Vec<AuditRecord> = world.published("acme").await;
    let told: Vec<_> = records.iter().filter(|r| r.details.contains_key("attempts")).collect();
    assert_eq!(told.len(), 2);
    assert!(told.iter().any(|r| r.resource == ada) && told.iter().any(|r| r.resource.is_empty()));
    for record in told {
        assert_eq!(
            (record.action.as_str(), record.details["attempts"].as_str()),
            ("login.refused", "19")
        );
        let same_lock = |r: &&AuditRecord| r.details.get("locked_until") == record.details.get("locked_until");
        assert!(
            records.iter().filter(same_lock).count() >= 2,
            "the lock's first refusal"
        );
    }

    // The next lock is another; recorded by the next attempt, by name.
    assert!(world.password("acme", "ada", "wrong password!").await.is_err());
    try_often("ada", 4).await;
    expect(&mut expected, "ada", 1);
    world.turn(TimeDelta::seconds(61));
    world.login("acme", "ada").await;
    expect(&mut expected, "ada", 3);
    assert_eq!(locked().await, expected);

    // By an administrator's reset.
    lock("ada").await;
    try_often("ada", 3).await;
    expect(&mut expected, "ada", 1);
    let root = world.caller("acme", "admin").await;
    let id = world.user_id("acme", "ada").await;
    let fresh = SecretText::new("eleven grey geese");
    world.iam.reset_password(&root, id, fresh, false).await.unwrap();
    expect(&mut expected, "ada", 2);
    assert_eq!(locked().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_in_parallel_cannot_outrun_the_lock() {
    let world = World::new().await;
    let guesses = (0..40).map(|_| world.password("acme", "ada", "wrong password!"));
    let results = futures::future::join_all(guesses).await;
    let judged = results.iter().filter(|r| matches!(r, Err(Error::Credentials))).count();
    assert_eq!(judged, 5, "the lock's threshold");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_password_does_not_buy_more_guesses_at_the_code() {
    let world = World::new().await;
    let mut wrong = 0;
    loop {
        let challenge = match world.password("acme", "eva", PASSWORD).await {
            Ok(LoginStep::Factor { challenge }) => challenge,
            Err(Error::Locked { .. }) => break,
            other => panic!("{other:?}"),
        };
        match world.prove(challenge.expose(), "000000").await {
            Err(Error::Factor) => wrong += 1,
            Err(Error::Locked { .. }) => break,
            other => panic!("{other:?}"),
        }
        assert!(wrong <= 5, "codes are guessed without end");
    }
    assert_eq!(wrong, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_is_slowed_down_and_reported_once() {
    let world = World::with(Options {
        per_minute: 4,
        ..Options::default()
    })
    .await;
    for login in ["a1", "a2", "a3", "a4"] {
        assert!(matches!(
            world.password("acme", login, "x").await,
            Err(Error::Credentials)
        ));
    }
    for _ in 0..10 {
        assert!(matches!(
            world.password("acme", "ada", PASSWORD).await,
            Err(Error::RateLimited { .. })
        ));
    }
    let outcomes = world.outcomes("acme").await;
    assert_eq!(outcomes.iter().filter(|o| **o == Outcome::RateLimited).count(), 1);
    world.password("other", "ada", PASSWORD).await.unwrap();
    world.turn(TimeDelta::seconds(60));
    world.login("acme", "ada").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_hash_parameters_are_taken_up_at_the_next_login() {
    let world = World::new().await;
    let stronger = world.another(Options {
        iterations: 2,
        ..Options::default()
    });
    stronger
        .prepare(&[], &tokio_util::sync::CancellationToken::new())
        .await
        .unwrap();
    let stored = async || {
        let mut tx = world.db.begin(&"acme".parse().unwrap()).await.unwrap();
        let account = iam::store::find_account_by_login(&mut tx, &"ada".parse().unwrap())
            .await
            .unwrap();
        account.unwrap().password_hash
    };
    assert!(stored().await.contains("t=1"));
    stronger
        .login("acme", "ada", SecretText::new(PASSWORD), None)
        .await
        .unwrap();
    assert!(stored().await.contains("t=2"));
    world.login("acme", "ada").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn enrolment_asks_for_a_code_ever_after_and_recovery_codes_work_once() {
    let world = World::new().await;
    let caller = world.caller("acme", "ada").await;
    let elsewhere = world.login("acme", "ada").await;
    assert!(matches!(
        world.iam.confirm_totp(&caller, &SecretText::new("123456")).await,
        Err(Error::Enrolment(_))
    ));
    let enrolment = world.iam.enroll_totp(&caller).await.unwrap();
    let secret = iam::crypto::TotpSecret::from_base32(enrolment.base32.expose()).unwrap();
    assert!(matches!(
        world.iam.confirm_totp(&caller, &SecretText::new("000000")).await,
        Err(Error::Factor)
    ));
    let code = SecretText::new(secret.code_at(world.time().timestamp() as u64));
    let codes = world.iam.confirm_totp(&caller, &code).await.unwrap();
    assert_eq!(codes.len(), 10);
    // The other session was opened without the factor.
    assert!(matches!(
        world.refresh(&elsewhere).await,
        Err(Error::SessionOver { .. })
    ));
    // Replacing it takes a session that proved it.
    assert!(matches!(world.iam.enroll_totp(&caller).await, Err(Error::Enrolment(_))));

    let recover = async |code: &SecretText| {
        let challenge = world.challenge("acme", "ada").await;
        let proof = FactorProof::RecoveryCode(code.clone());
        world.iam.verify_factor(&challenge, proof, None).await
    };
    let typed = SecretText::new(codes[3].expose().to_uppercase().replace('-', " "));
    let tokens = recover(&typed).await.unwrap();
    assert!(world.verified(&tokens).second_factor);
    assert!(matches!(recover(&codes[3]).await, Err(Error::Factor)));
    // Confirming used its step up.
    let challenge = world.challenge("acme", "ada").await;
    assert!(matches!(
        world.prove(&challenge, code.expose()).await,
        Err(Error::Factor)
    ));
    // Another person's code is of no use.
    let challenge = world.challenge("acme", "eva").await;
    let proof = FactorProof::RecoveryCode(codes[4].clone());
    assert!(matches!(
        world.iam.verify_factor(&challenge, proof, None).await,
        Err(Error::Factor)
    ));
}
