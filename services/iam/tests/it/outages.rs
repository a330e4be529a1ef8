use std::{process::Command, time::Duration};

use garrison_bus::Bus;
use garrison_proto::iam::v1::{GetCallerRequest, GetKeySetRequest, LogoutRequest, RefreshTokenRequest};
use garrison_testkit::{Stack, free_port};
use tonic::Code;

use crate::process::{PASSWORD, Program, code_of, write_config};

/// Waits until the stream holds a revocation, 60 seconds at most. The stream is asked, because a listener's own
/// connection may come back later than iam's and then misses what was published meanwhile.
async fn revocation_is_stored(stack: &Stack) -> bool {
    let admin = Bus::connect(&stack.bus_config("svc/bus-admin"), "bus-admin")
        .await
        .unwrap();
    for _ in 0..600 {
        let stream = admin.jetstream().get_stream("EVENTS").await;
        let stored = match stream {
            Ok(stream) => stream
                .get_last_raw_message_by_subject("events.v1.acme.revocation")
                .await
                .is_ok(),
            Err(_) => false,
        };
        if stored {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}

/// A stack of one's own, for tests that stop its servers.
async fn own_stack() -> &'static Stack {
    Box::leak(Box::new(Stack::start().await))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_database_nothing_is_half_done_and_tokens_still_verify() {
    let stack = own_stack().await;
    let program = Program::start_on(stack).await;
    let tokens = program.login("acme", "ada").await;
    stack.postgres().stop();
    let refused = program.password("acme", "ada", PASSWORD).await;
    assert_eq!(refused.as_ref().unwrap_err().code(), Code::Unavailable);
    let mut ada = program.as_person(&tokens);
    assert_eq!(
        code_of(ada.authentication.get_caller(GetCallerRequest {}).await),
        "GAR-IAM-0017"
    );
    let refresh = RefreshTokenRequest {
        refresh_token: tokens.refresh_token.clone(),
    };
    let refused = program.anonymous().refresh_token(refresh.clone()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    // What other services need to verify tokens does not depend on it.
    program.anonymous().get_key_set(GetKeySetRequest {}).await.unwrap();

    stack.postgres().resume().unwrap();
    program.ready().await;
    // The refresh that failed did not use the token up.
    let tokens = program
        .anonymous()
        .refresh_token(refresh)
        .await
        .unwrap()
        .into_inner()
        .tokens
        .unwrap();
    program
        .as_person(&tokens)
        .authentication
        .get_caller(GetCallerRequest {})
        .await
        .unwrap();
    program.login("acme", "ada").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_broker_logins_go_on_and_events_follow_later() {
    let stack = own_stack().await;
    let program = Program::start_on(stack).await;
    stack.nats().stop();
    let tokens = program.login("acme", "ada").await;
    let mut ada = program.as_person(&tokens);
    ada.authentication.logout(LogoutRequest {}).await.unwrap();
    assert_eq!(
        code_of(ada.authentication.get_caller(GetCallerRequest {}).await),
        "GAR-AUTH-0004"
    );
    stack.nats().resume().unwrap();
    // The outbox keeps it until the broker has stored it.
    assert!(
        revocation_is_stored(stack).await,
        "the revocation never came:\n{}",
        program.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_it_could_publish_it_publishes_after_the_restart() {
    let stack = own_stack().await;
    let database = stack.database("iam", &iam::MIGRATOR).await;
    let mut first = Program::launch(stack, &database);
    first.ready().await;
    let tokens = first.login("acme", "ada").await;
    stack.nats().stop();
    first
        .as_person(&tokens)
        .authentication
        .logout(LogoutRequest {})
        .await
        .unwrap();
    first.process.kill();
    stack.nats().resume().unwrap();
    let second = Program::launch(stack, &database);
    second.ready().await;
    let refused = second
        .as_person(&tokens)
        .authentication
        .get_caller(GetCallerRequest {})
        .await;
    assert_eq!(code_of(refused), "GAR-AUTH-0004");
    assert!(
        revocation_is_stored(stack).await,
        "the revocation was lost:\n{}",
        second.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn it_starts_without_the_database_and_serves_when_it_comes() {
    let stack = own_stack().await;
    let database = stack.database("iam", &iam::MIGRATOR).await;
    stack.postgres().stop();
    let mut program = Program::launch(stack, &database);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(program.process.is_running(), "{}", program.log());
    assert!(!program.is_ready().await);
    let refused = program.anonymous().get_key_set(GetKeySetRequest {}).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    stack.postgres().resume().unwrap();
    program.ready().await;
    program.login("acme", "eva").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_started_again_it_keeps_sessions_and_keys() {
    let stack = Stack::shared().await;
    let database = stack.database("iam", &iam::MIGRATOR).await;
    let mut first = Program::launch(stack, &database);
    first.ready().await;
    let tokens = first.login("acme", "ada").await;
    first.process.kill();
    let second = Program::launch(stack, &database);
    second.ready().await;
    second
        .as_person(&tokens)
        .authentication
        .get_caller(GetCallerRequest {})
        .await
        .unwrap();
    let refresh = RefreshTokenRequest {
        refresh_token: tokens.refresh_token,
    };
    second.anonymous().refresh_token(refresh).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_ends_with_64_and_names_the_key() {
    let stack = Stack::shared().await;
    let database = stack.database("iam", &iam::MIGRATOR).await;
    let dir = tempfile::tempdir().unwrap();
    let totp = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP";
    let path = write_config(
        stack,
        &database,
        dir.path(),
        free_port().unwrap(),
        free_port().unwrap(),
        totp,
    );
    let good = std::fs::read_to_string(&path).unwrap();
    let run = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_iam"))
            .arg("run")
            .arg("--config")
            .arg(&path)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    std::fs::write(dir.path().join("weak"), "password1234").unwrap();
    let weak = good.replacen("/password\"", "/weak\"", 1);
    std::fs::write(dir.path().join("short.key"), "abc").unwrap();
    for (text, key) in [
        (good.replace("id = \"acme\"", "id = \"Acme\""), "bootstrap[1].id"),
        (
            good.replacen("[\"analyst\"]", "[\"analist\"]", 1),
            "bootstrap[0].users[1].roles",
        ),
        (good.replacen("[\"admin\"]", "[\"viewer\"]", 1), "bootstrap[0].users"),
        (
            good.replace("[secrets]", "[lockout]\nthreshold = 0\n[secrets]"),
            "lockout.threshold",
        ),
        (
            good.replace("[secrets]", "[passwords]\nmemory_kib = 64\n[secrets]"),
            "passwords.memory_kib",
        ),
        (good.replace("[secrets]", "[secrets]\nkey_fil = \"x\""), "key_fil"),
        (good.replace("/iam.key\"", "/short.key\""), "GAR-IAM-0015"),
        (good.replace("/iam.key\"", "/absent.key\""), "GAR-IAM-0015"),
        (weak, "bootstrap[0].users[0].password_file"),
    ] {
        let (status, said) = run(&text);
        assert_eq!(status, Some(64), "{key}: {said}");
        assert!(said.contains(key), "{key} is not named: {said}");
        assert!(!said.contains("password1234"), "{said}");
    }
}
