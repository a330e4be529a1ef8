use garrison_db::{DbConfig, DbError};
use garrison_testkit::Stack;
use sqlx::{ConnectOptions, PgConnection, Row, postgres::PgConnectOptions, postgres::PgSslMode};
use uuid::Uuid;

use crate::fixture::{database, event, tenant};

async fn numbers(connection: &mut PgConnection) -> Vec<i32> {
    let rows = sqlx::query("SELECT id FROM note ORDER BY id")
        .fetch_all(connection)
        .await
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_sees_and_writes_rows_of_its_tenant_only() {
    let stack = Stack::shared().await;
    let (db, _) = database(stack).await;
    let (acme, rival) = (tenant("acme"), tenant("rival"));
    for (owner, id) in [(&acme, 1), (&acme, 2), (&rival, 3)] {
        let mut tx = db.begin(owner).await.unwrap();
        sqlx::query("INSERT INTO note VALUES ($1, $2)")
            .bind(owner.as_str())
            .bind(id)
            .execute(&mut *tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
    let mut tx = db.begin(&acme).await.unwrap();
    assert_eq!(numbers(&mut tx).await, [1, 2]);
    let touched = sqlx::query("UPDATE note SET id = id + 10 WHERE id = 3")
        .execute(&mut *tx)
        .await
        .unwrap();
    assert_eq!(touched.rows_affected(), 0);
    let removed = sqlx::query("DELETE FROM note WHERE tenant_id = 'rival'")
        .execute(&mut *tx)
        .await
        .unwrap();
    assert_eq!(removed.rows_affected(), 0);
    let planted = sqlx::query("INSERT INTO note VALUES ('rival', 4)")
        .execute(&mut *tx)
        .await
        .unwrap_err();
    assert_eq!(
        planted.as_database_error().unwrap().code().as_deref(),
        Some("42501"),
        "{planted}"
    );
    drop(tx);
    let mut tx = db.begin(&acme).await.unwrap();
    let given = sqlx::query("UPDATE note SET tenant_id = 'rival'")
        .execute(&mut *tx)
        .await
        .unwrap_err();
    assert_eq!(
        given.as_database_error().unwrap().code().as_deref(),
        Some("42501"),
        "{given}"
    );
    drop(tx);
    let mut tx = db.begin(&rival).await.unwrap();
    assert_eq!(numbers(&mut tx).await, [3]);
    drop(tx);
    assert_eq!(db.known_tenants().await.unwrap(), [acme, rival]);
}

async fn as_service(config: &DbConfig) -> PgConnection {
    let password = std::fs::read_to_string(&config.password_file).unwrap();
    PgConnectOptions::new_without_pgpass()
        .host(&config.host)
        .port(config.port)
        .database(&config.database)
        .username(&config.user)
        .password(password.trim_end())
        .ssl_mode(PgSslMode::VerifyFull)
        .ssl_root_cert(&config.ca_file)
        .options([("search_path", "policy")])
        .connect()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_tenant_there_are_no_rows_and_a_used_connection_forgets_its_tenant() {
    let stack = Stack::shared().await;
    let (db, config) = database(stack).await;
    let acme = tenant("acme");
    let mut tx = db.begin(&acme).await.unwrap();
    sqlx::query("INSERT INTO note VALUES ('acme', 1)")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.publish(&event(&acme, 1)).await.unwrap();
    assert!(tx.first_delivery("events", Uuid::now_v7()).await.unwrap());
    tx.commit().await.unwrap();

    let mut bare = as_service(&config).await;
    sqlx::raw_sql("BEGIN; SET LOCAL garrison.tenant = 'acme'; COMMIT")
        .execute(&mut bare)
        .await
        .unwrap();
    for table in ["note", "tenant", "inbox", "outbox", "outbox_parked"] {
        let query = format!("SELECT count(*) FROM {table}");
        let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(query))
            .fetch_one(&mut bare)
            .await
            .unwrap();
        assert_eq!(rows, 0, "{table}");
    }
    // The relay's setting opens the tables of messages, and no table of the service.
    sqlx::raw_sql("BEGIN; SET LOCAL garrison.tenant = '*'")
        .execute(&mut bare)
        .await
        .unwrap();
    assert!(numbers(&mut bare).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_s_role_cannot_get_around_row_level_security() {
    let stack = Stack::shared().await;
    let (_, config) = database(stack).await;
    let mut service = as_service(&config).await;
    for statement in [
        "ALTER TABLE note DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE note NO FORCE ROW LEVEL SECURITY",
        "DROP POLICY tenant ON note",
        "CREATE POLICY all_of_it ON note USING (true)",
        "DROP TABLE note",
        "TRUNCATE note",
        "TRUNCATE outbox",
        "ALTER TABLE note ADD COLUMN more text",
        "CREATE TABLE mine (tenant_id text)",
        "CREATE TABLE public.mine (tenant_id text)",
        "SET ROLE policy_owner",
        "SET SESSION AUTHORIZATION policy_owner",
        "ALTER ROLE policy_service BYPASSRLS",
        "DELETE FROM _sqlx_migrations",
        "UPDATE _garrison_migrations SET success = false",
        "COPY note TO PROGRAM 'cat'",
    ] {
        let outcome = sqlx::raw_sql(statement).execute(&mut service).await;
        let error = outcome.expect_err(statement);
        let code = error.as_database_error().unwrap().code().unwrap().into_owned();
        assert!(code.starts_with("42"), "{statement}: {error}");
    }
    // With row_security off, a query that would be filtered fails instead of telling.
    sqlx::raw_sql("SET row_security = off")
        .execute(&mut service)
        .await
        .unwrap();
    assert!(sqlx::query("SELECT * FROM note").fetch_all(&mut service).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_another_tenant_is_not_taken() {
    let stack = Stack::shared().await;
    let (db, _) = database(stack).await;
    let mut tx = db.begin(&tenant("acme")).await.unwrap();
    let error = tx.publish(&event(&tenant("rival"), 1)).await.unwrap_err();
    assert!(matches!(error, DbError::Message { .. }), "{error}");
    let mut odd = event(&tenant("acme"), 1);
    odd.subject = "events.v1.acme.>".to_owned();
    assert!(matches!(tx.publish(&odd).await, Err(DbError::Message { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_another_authority_signed_is_not_trusted() {
    let stack = Stack::shared().await;
    let (_, mut config) = database(stack).await;
    let dir = stack.pki().ca_file().parent().unwrap().join("foreign");
    let foreign = garrison_testkit::Pki::open_or_create(&dir, garrison_testkit::TRUST_DOMAIN).unwrap();
    config.ca_file = foreign.ca_file();
    config.acquire_timeout_ms = 2_000;
    let db = garrison_db::Db::connect(&config, "policy").unwrap();
    assert!(db.ping().await.is_err());
}
