use garrison_db::{DbConfig, DbError, migrate};
use garrison_testkit::Stack;

use crate::fixture::{NOTES, count, migrator};

const MORE: &str = "ALTER TABLE note ADD COLUMN body text NOT NULL DEFAULT ''";

/// The owner's configuration beside the service's, as the stack made them.
fn owner_of(service: &DbConfig) -> DbConfig {
    let user = service.user.replace("_service", "_owner");
    let file = service.password_file.to_str().unwrap().replace("_service", "_owner");
    DbConfig {
        user,
        password_file: file.into(),
        ..service.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn migrating_again_changes_nothing_and_forward_adds() {
    let stack = Stack::shared().await;
    let service = stack.database("policy", &migrator(&[NOTES])).await;
    let owner = owner_of(&service);
    // Several at once, as when replicas start together.
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let owner = owner.clone();
        tasks.spawn(async move { migrate(&owner, "policy", "policy_service", &migrator(&[NOTES, MORE])).await });
    }
    for outcome in tasks.join_all().await {
        outcome.unwrap();
    }
    assert_eq!(count(stack, &service, "_sqlx_migrations").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_database_and_an_edited_migration_are_refused() {
    let stack = Stack::shared().await;
    let service = stack.database("policy", &migrator(&[NOTES, MORE])).await;
    let owner = owner_of(&service);
    let older = migrate(&owner, "policy", "policy_service", &migrator(&[NOTES]))
        .await
        .unwrap_err();
    assert!(matches!(older, DbError::Newer { version: 2, .. }), "{older}");
    let edited = migrator(&[NOTES, "SELECT 1"]);
    let edited = migrate(&owner, "policy", "policy_service", &edited).await.unwrap_err();
    assert!(
        matches!(&edited, DbError::Migration { reason, .. } if reason.contains("2")),
        "{edited}"
    );
    let broken = migrator(&[NOTES, MORE, "SELECT nonsense"]);
    let broken = migrate(&owner, "policy", "policy_service", &broken).await.unwrap_err();
    assert!(broken.to_string().contains("nonsense"), "{broken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_protection_is_named() {
    let stack = Stack::shared().await;
    let service = stack.database("policy", &migrator(&[NOTES])).await;
    let owner = owner_of(&service);
    let careless = migrator(&[
        NOTES,
        "CREATE TABLE open_to_all (id int);
         CREATE TABLE unforced (tenant_id text NOT NULL);
         ALTER TABLE unforced ENABLE ROW LEVEL SECURITY",
    ]);
    let error = migrate(&owner, "policy", "policy_service", &careless)
        .await
        .unwrap_err();
    let DbError::Unprotected { tables, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(tables, &["open_to_all", "unforced"]);
    let mut superuser = stack.postgres().superuser(&service.database).await.unwrap();
    let readable: bool =
        sqlx::query_scalar("SELECT has_table_privilege('policy_service', 'policy.open_to_all', 'SELECT')")
            .fetch_one(&mut superuser)
            .await
            .unwrap();
    assert!(!readable, "the service may read a table that failed the check");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_could_bypass_protection_is_refused() {
    let stack = Stack::shared().await;
    let service = stack.database("policy", &migrator(&[NOTES])).await;
    let owner = owner_of(&service);
    let try_role = async |role: &str| migrate(&owner, "policy", role, &migrator(&[NOTES])).await;
    for role in ["nobody_made_this", "policy_owner"] {
        let error = try_role(role).await.unwrap_err();
        assert!(matches!(&error, DbError::Role { .. }), "{role}: {error}");
    }
    let mut superuser = stack.postgres().superuser(&service.database).await.unwrap();
    for statement in [
        "CREATE ROLE bypasser BYPASSRLS",
        "CREATE ROLE chief SUPERUSER",
        "CREATE ROLE insider IN ROLE policy_owner",
    ] {
        sqlx::raw_sql(statement).execute(&mut superuser).await.unwrap();
    }
    for role in ["bypasser", "chief", "insider"] {
        let error = try_role(role).await.unwrap_err();
        assert!(matches!(&error, DbError::Role { .. }), "{role}: {error}");
    }
    let hostile = try_role("x; DROP SCHEMA policy").await.unwrap_err();
    assert!(matches!(hostile, DbError::Config { .. }), "{hostile}");
}
