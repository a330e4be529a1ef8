use garrison_proto::iam::v1::{
    ChangePasswordRequest, ConfirmTotpRequest, CreateUserRequest, EnrollTotpRequest, RefreshTokenRequest,
    RotateKeyRequest,
};
use garrison_testkit::Stack;
use iam::crypto::TotpSecret;
use sqlx::Row as _;

use crate::process::{PASSWORD, Program};

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_reaches_the_log_the_bus_or_the_database() {
    let stack = Stack::shared().await;
    let database = stack.database("iam", &iam::MIGRATOR).await;
    let mut program = Program::launch(stack, &database);
    program.ready().await;
    let mut secrets = vec![PASSWORD.to_owned(), program.totp.clone(), "3c".repeat(32)];

    program.password("acme", "ada", "mistyped by ada").await.unwrap_err();
    // The password typed where the login belongs.
    program.password("acme", "lost-my-password.77", "x").await.unwrap_err();
    program.password("acme", "oops, my password!", "x").await.unwrap_err();
    secrets.extend(["mistyped by ada".to_owned(), "oops, my password!".to_owned()]);
    let answer = program.password("acme", "admin", PASSWORD).await.unwrap();
    secrets.push(answer.challenge.clone());
    program.prove(&answer.challenge, "918273").await.unwrap_err();
    secrets.push("918273".into());
    let code = program.code(0);
    let admin_tokens = program.prove(&answer.challenge, &code).await.unwrap();
    let mut admin = program.as_person(&admin_tokens);
    let create = CreateUserRequest {
        login: "grace".into(),
        roles: vec!["viewer".into()],
        password: "seven small stones".into(),
        ..CreateUserRequest::default()
    };
    admin.users.create_user(create).await.unwrap();
    let tokens = program
        .password("acme", "grace", "seven small stones")
        .await
        .unwrap()
        .tokens
        .unwrap();
    let mut grace = program.as_person(&tokens);
    let enrolment = grace
        .authentication
        .enroll_totp(EnrollTotpRequest {})
        .await
        .unwrap()
        .into_inner();
    let secret = TotpSecret::from_base32(&enrolment.secret).unwrap();
    let confirm = ConfirmTotpRequest {
        code: secret.code_at(chrono::Utc::now().timestamp() as u64),
    };
    let recovery = grace
        .authentication
        .confirm_totp(confirm)
        .await
        .unwrap()
        .into_inner()
        .recovery_codes;
    let change = ChangePasswordRequest {
        old_password: "seven small stones".into(),
        new_password: "eleven grey geese".into(),
    };
    grace.authentication.change_password(change).await.unwrap();
    let refresh = RefreshTokenRequest {
        refresh_token: tokens.refresh_token.clone(),
    };
    let next = program
        .anonymous()
        .refresh_token(refresh)
        .await
        .unwrap()
        .into_inner()
        .tokens
        .unwrap();
    let mut root = program.as_person(&program.login("system", "admin").await);
    root.keys.rotate_key(RotateKeyRequest {}).await.unwrap();
    for set in [&admin_tokens, &tokens, &next] {
        // A token's first part says nothing; its signature is what must not leak.
        secrets.push(set.access_token.rsplit('.').next().unwrap().to_owned());
        secrets.push(set.refresh_token.clone());
    }
    secrets.extend(["seven small stones".to_owned(), "eleven grey geese".to_owned()]);
    secrets.extend(recovery);
    secrets.push(enrolment.secret.clone());

    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    program.process.end(rustix_term(), std::time::Duration::from_secs(60));
    let log = program.log();
    assert!(
        log.contains("garrison.iam.v1") || log.contains("serving gRPC"),
        "the log is empty"
    );
    assert!(log.lines().count() > 50, "the log is not that of debug level:\n{log}");

    // Everything the database holds, as text and bytes as hexadecimal.
    let mut dump = String::new();
    let mut postgres = stack.postgres().superuser(&database.database).await.unwrap();
    let tables: Vec<String> = sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = 'iam'")
        .fetch_all(&mut postgres)
        .await
        .unwrap();
    assert!(tables.iter().any(|table| table == "signing_keys"), "{tables:?}");
    for table in &tables {
        let sql = format!("SELECT t::text AS row FROM iam.{table} t");
        for row in sqlx::query(sqlx::AssertSqlSafe(sql))
            .fetch_all(&mut postgres)
            .await
            .unwrap()
        {
            dump.push_str(row.get::<&str, _>("row"));
            dump.push('\n');
        }
    }
    assert!(dump.contains("$argon2id$"), "the dump is empty");
    for secret in &secrets {
        assert!(!log.contains(secret.as_str()), "{secret:?} is in the log");
        assert!(!dump.contains(secret.as_str()), "{secret:?} is in the database");
        let hexadecimal: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(!dump.contains(&hexadecimal), "{secret:?} is in a column of bytes");
    }
    let raw = |base32: &str| -> String {
        let secret = TotpSecret::from_base32(base32).unwrap();
        secret.bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    for base32 in [&program.totp, &enrolment.secret] {
        assert!(!dump.contains(&raw(base32)), "an authenticator's secret is not sealed");
    }
    // PKCS #8 of an Ed25519 key begins with this.
    assert!(!dump.contains("300506032b6570"), "a signing key is not sealed");
}

fn rustix_term() -> rustix::process::Signal {
    rustix::process::Signal::TERM
}
