use std::{
    collections::VecDeque,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use garrison_proto::TenantId;
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, Postgres,
    postgres::{PgArguments, PgConnectOptions, PgRow},
    query::Query,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Db, DbError};

/// Nobody's name: what is written under it is rolled back.
const REHEARSAL: &str = "rehearsal";

/// A few connections of their own for a path that must not wait: neither for a connection behind other work, nor for one to
/// be made, nor for the planner, as statements are planned once. Each statement is one round trip; a pool would make two of
/// it, because it asks a connection that comes back whether it still lives. Making a connection and its plans takes longer
/// than the path itself, so use [`Lane::rehearsal`] now and then. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct Lane {
    db: Db,
    inner: Arc<Inner>,
}

struct Inner {
    options: PgConnectOptions,
    /// For a connection: to be free, and to be made.
    timeout: Duration,
    connections: u32,
    free: Arc<Semaphore>,
    /// The one that was used last is at the back.
    idle: Mutex<VecDeque<PgConnection>>,
}

impl Lane {
    pub(crate) fn new(db: Db, options: PgConnectOptions, timeout: Duration, connections: u32) -> Self {
        let inner = Inner {
            options: options.options([("plan_cache_mode", "force_generic_plan")]),
            timeout,
            connections,
            free: Arc::new(Semaphore::new(connections as usize)),
            idle: Mutex::default(),
        };
        Self {
            db,
            inner: Arc::new(inner),
        }
    }

    /// The same database through its pool.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// How many connections there are at most.
    pub fn connections(&self) -> u32 {
        self.inner.connections
    }

    /// Runs one statement that is a transaction of its own, in one round trip. It calls a function of the service's
    /// schema that sets `garrison.tenant` before it touches a table: without that, row-level security shows and takes
    /// nothing. A connection that died while it was idle is an error here, because the statement may have been run; it is
    /// not used again.
    ///
    /// # Errors
    /// When the database is away or refuses; whether the statement was committed is then unknown.
    pub async fn run(
        &self,
        tenant: &TenantId,
        operation: &'static str,
        statement: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, DbError> {
        self.db.remember(tenant).await?;
        let mut held = self
            .hold(VecDeque::pop_back)
            .await
            .map_err(DbError::during(operation))?;
        let rows = statement.fetch_all(&mut held.connection).await;
        let rows = rows.map_err(DbError::during(operation))?;
        held.give_back();
        Ok(rows)
    }

    /// A transaction for a tenant that does not exist, in which the statements of a path are run and then rolled back, on the
    /// connection that was idle for longest: as many rehearsals as there are connections reach them all.
    ///
    /// # Errors
    /// [`DbError::Unavailable`] when no connection can be had in time.
    pub async fn rehearsal(&self) -> Result<Rehearsal, DbError> {
        let operation = "begin a rehearsal";
        let tenant = REHEARSAL.parse().map_err(|_| DbError::Config {
            key: operation,
            reason: "it is no tenant id".to_owned(),
        })?;
        // One that died while it was idle fails here, and is not used again.
        for _ in 0..self.inner.connections {
            if let Ok(rehearsal) = self.begin_rehearsal(&tenant, VecDeque::pop_front).await {
                return Ok(rehearsal);
            }
        }
        let begun = self.begin_rehearsal(&tenant, |_| None).await;
        begun.map_err(DbError::during(operation))
    }

    async fn begin_rehearsal(&self, tenant: &TenantId, which: Which) -> Result<Rehearsal, sqlx::Error> {
        let mut held = self.hold(which).await?;
        let begin = format!("BEGIN; SET LOCAL garrison.tenant = '{REHEARSAL}'");
        held.connection.execute(AssertSqlSafe(begin)).await?;
        Ok(Rehearsal {
            held,
            tenant: tenant.clone(),
        })
    }

    async fn hold(&self, which: Which) -> Result<Held, sqlx::Error> {
        let inner = Arc::clone(&self.inner);
        let hold = async {
            let permit = Arc::clone(&inner.free).acquire_owned().await;
            let permit = permit.map_err(|_| sqlx::Error::PoolClosed)?;
            let idle = which(&mut inner.idle.lock().unwrap_or_else(PoisonError::into_inner));
            let connection = match idle {
                Some(connection) => connection,
                None => PgConnection::connect_with(&inner.options).await?,
            };
            Ok(Held {
                connection,
                inner: Arc::clone(&inner),
                permit,
            })
        };
        let held = tokio::time::timeout(inner.timeout, hold).await;
        held.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }
}

/// Takes an idle connection, if there is one.
type Which = fn(&mut VecDeque<PgConnection>) -> Option<PgConnection>;

/// A connection in use. It is closed unless it is given back.
struct Held {
    connection: PgConnection,
    inner: Arc<Inner>,
    permit: OwnedSemaphorePermit,
}

impl Held {
    fn give_back(self) {
        let mut idle = self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push_back(self.connection);
        drop(idle);
        drop(self.permit);
    }
}

/// A transaction of nobody, on a connection of a [`Lane`].
pub struct Rehearsal {
    held: Held,
    tenant: TenantId,
}

impl Rehearsal {
    /// The tenant that does not exist.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Undoes everything, and gives the connection back. Without it the connection is closed, which undoes everything too.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn end(mut self) -> Result<(), DbError> {
        let end = self.held.connection.execute("ROLLBACK").await;
        end.map_err(DbError::during("end a rehearsal"))?;
        self.held.give_back();
        Ok(())
    }
}

impl Deref for Rehearsal {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.held.connection
    }
}

impl DerefMut for Rehearsal {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.held.connection
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("schema", &self.db.schema())
            .field("connections", &self.inner.connections)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Rehearsal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rehearsal").finish_non_exhaustive()
    }
}
