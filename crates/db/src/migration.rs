use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection,
    migrate::{MigrateError, Migrator},
};

use crate::{DbConfig, DbError, config::identifier};

/// The tables of every service.
static COMMON: Migrator = sqlx::migrate!();

/// Brings a service's schema up to date as its owner, and lets the service's role read and write in it, but own,
/// alter or truncate nothing. In a table whose comment is `append-only` it may not update or delete either. Safe to
/// run again and from several processes at once.
///
/// # Errors
/// [`DbError::Newer`] when the database was migrated by a newer program; [`DbError::Role`] when the role is missing
/// or could bypass row-level security; [`DbError::Unprotected`] when a table has no forced row-level security;
/// [`DbError::Migration`] when a migration fails.
pub async fn migrate(
    owner: &DbConfig,
    schema: &'static str,
    service_role: &str,
    migrator: &Migrator,
) -> Result<(), DbError> {
    identifier("schema", schema)?;
    identifier("user", service_role)?;
    let options = owner.options(schema)?;
    let operation = "connect for migrating";
    let mut connection = options.connect().await.map_err(DbError::during(operation))?;
    // Migrations may take long, and wait for each other.
    for statement in ["SET statement_timeout = 0", "SET lock_timeout = 0"] {
        run(&mut connection, operation, statement).await?;
    }
    let operation = "take the migration lock";
    sqlx::query("SELECT pg_advisory_lock(hashtextextended('garrison.migrate.' || $1, 0))")
        .bind(schema)
        .execute(&mut connection)
        .await
        .map_err(DbError::during(operation))?;
    let outcome = locked(&mut connection, owner, schema, service_role, migrator).await;
    // Closing ends the session and with it the lock.
    let _ = connection.close().await;
    outcome
}

async fn locked(
    connection: &mut PgConnection,
    owner: &DbConfig,
    schema: &'static str,
    role: &str,
    migrator: &Migrator,
) -> Result<(), DbError> {
    check_role(connection, owner, role).await?;
    run(
        connection,
        "make the schema",
        format!("CREATE SCHEMA IF NOT EXISTS {schema}"),
    )
    .await?;
    let mut common = Migrator::with_migrations(COMMON.iter().cloned().collect());
    common.dangerous_set_table_name("_garrison_migrations");
    for migrator in [&common, migrator] {
        migrator
            .run_direct(None, connection, false)
            .await
            .map_err(|error| explain(schema, error))?;
    }
    check_protection(connection, schema).await?;
    // Only now, and not by default privileges: a table that fails the check above stays out of the service's reach.
    let grants = format!(
        "REVOKE ALL ON SCHEMA {schema} FROM PUBLIC; \
         REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role}; \
         GRANT USAGE ON SCHEMA {schema} TO {role}; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}; \
         GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}; \
         REVOKE INSERT, UPDATE, DELETE ON _garrison_migrations, _sqlx_migrations FROM {role}; \
         DO $$ DECLARE name text; BEGIN \
             FOR name IN SELECT c.relname FROM pg_class c WHERE c.relnamespace = '{schema}'::regnamespace \
                         AND c.relkind IN ('r', 'p') AND obj_description(c.oid, 'pg_class') = 'append-only' LOOP \
                 EXECUTE format('REVOKE UPDATE, DELETE ON {schema}.%I FROM {role}', name); \
             END LOOP; END $$"
    );
    run(connection, "grant rights to the service's role", grants).await
}

async fn run(
    connection: &mut PgConnection,
    operation: &'static str,
    statement: impl Into<String>,
) -> Result<(), DbError> {
    sqlx::raw_sql(AssertSqlSafe(statement.into()))
        .execute(connection)
        .await
        .map_err(DbError::during(operation))?;
    Ok(())
}

/// The role that serves requests must not be able to switch row-level security off.
async fn check_role(connection: &mut PgConnection, owner: &DbConfig, role: &str) -> Result<(), DbError> {
    let refuse = |reason: &str| DbError::Role {
        role: role.to_owned(),
        reason: reason.to_owned(),
    };
    if role == owner.user {
        return Err(refuse("it is also the owner; the service needs a role of its own"));
    }
    let found: Option<(bool, bool, bool)> = sqlx::query_as(
        "SELECT rolsuper, rolbypassrls, pg_has_role(oid, current_user, 'MEMBER') FROM pg_roles WHERE rolname = $1",
    )
    .bind(role)
    .fetch_optional(connection)
    .await
    .map_err(DbError::during("look at the service's role"))?;
    match found {
        None => Err(refuse("it does not exist; create it with LOGIN and a password first")),
        Some((true, ..)) => Err(refuse("it is a superuser, for whom row-level security does not hold")),
        Some((_, true, _)) => Err(refuse("it has BYPASSRLS")),
        Some((_, _, true)) => Err(refuse("it is a member of the owner's role and so owns its tables")),
        Some(_) => Ok(()),
    }
}

async fn check_protection(connection: &mut PgConnection, schema: &'static str) -> Result<(), DbError> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') \
         AND c.relname NOT IN ('_garrison_migrations', '_sqlx_migrations') \
         AND NOT (c.relrowsecurity AND c.relforcerowsecurity AND EXISTS ( \
             SELECT 1 FROM pg_attribute a \
             WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND a.attnotnull AND NOT a.attisdropped)) \
         ORDER BY 1",
    )
    .bind(schema)
    .fetch_all(connection)
    .await
    .map_err(DbError::during("check row-level security"))?;
    if tables.is_empty() {
        Ok(())
    } else {
        Err(DbError::Unprotected { schema, tables })
    }
}

fn explain(schema: &'static str, error: MigrateError) -> DbError {
    match error {
        MigrateError::VersionMissing(version)
        | MigrateError::VersionNotPresent(version)
        | MigrateError::VersionTooNew(version, _) => DbError::Newer { schema, version },
        MigrateError::VersionMismatch(version) => DbError::Migration {
            schema,
            reason: format!("migration {version} was applied in another form; migrations must never be edited"),
        },
        MigrateError::Execute(source) => DbError::new("migrate", source),
        MigrateError::ExecuteMigration(source, version) => DbError::Migration {
            schema,
            reason: format!("migration {version}: {source}"),
        },
        other => DbError::Migration {
            schema,
            reason: other.to_string(),
        },
    }
}
