use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use garrison_bus::Message;
use garrison_proto::TenantId;
use sqlx::{
    AssertSqlSafe, PgPool, Postgres, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::{Notify, mpsc};

use crate::{DbConfig, DbError, Lane, Tx, error::is_unavailable};

/// Tenants remembered as known, so that most transactions need not say so again.
const MAX_KNOWN: usize = 10_000;
/// Urgent commits that may wait for this process's relay; more are left to its ordinary turn.
const MAX_URGENT: usize = 256;

/// Stands for all tenants, where row-level security lets it.
const ALL: &str = "*";

/// A service's own schema in PostgreSQL. Cheap to clone; clones share the pool.
#[derive(Clone)]
pub struct Db {
    pool: PgPool,
    inner: Arc<Inner>,
}

struct Inner {
    schema: &'static str,
    options: PgConnectOptions,
    acquire_timeout: Duration,
    known: RwLock<HashSet<TenantId>>,
    appended: Notify,
    urgent: (mpsc::Sender<Urgent>, Mutex<Option<mpsc::Receiver<Urgent>>>),
}

/// Messages of one commit that should not wait for the relay's turn, and the trace that they belong to.
pub(crate) struct Urgent {
    pub(crate) messages: Vec<Message>,
    pub(crate) span: tracing::Span,
}

impl Db {
    /// Prepares a pool and returns at once, also when the database is away: connections are made when needed, and
    /// made again after an outage. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`DbError::Config`] and [`DbError::File`] when values or files cannot be used.
    pub fn connect(config: &DbConfig, schema: &'static str) -> Result<Self, DbError> {
        let options = config.options(schema)?;
        let acquire_timeout = Duration::from_millis(config.acquire_timeout_ms.max(1));
        let pool = PgPoolOptions::new()
            .max_connections(config.max_connections)
            .acquire_timeout(acquire_timeout)
            // A ping costs every transaction a round trip. What it would find, `open` finds and mends.
            .test_before_acquire(false)
            .idle_timeout(Duration::from_secs(300))
            .max_lifetime(Duration::from_secs(3_600))
            .connect_lazy_with(options.clone());
        let (sender, receiver) = mpsc::channel(MAX_URGENT);
        let inner = Inner {
            schema,
            options,
            acquire_timeout,
            known: RwLock::default(),
            appended: Notify::new(),
            urgent: (sender, Mutex::new(Some(receiver))),
        };
        Ok(Self {
            pool,
            inner: Arc::new(inner),
        })
    }

    /// A path of its own to the same database, for what must not wait.
    #[must_use]
    pub fn lane(&self, connections: u32) -> Lane {
        let options = self.inner.options.clone();
        Lane::new(self.clone(), options, self.inner.acquire_timeout, connections)
    }

    /// Begins a transaction that sees and writes rows of this tenant only. Isolation is READ COMMITTED.
    ///
    /// # Errors
    /// [`DbError::Unavailable`] when no connection can be had in time.
    pub async fn begin(&self, tenant: &TenantId) -> Result<Tx<'static>, DbError> {
        self.begin_with(tenant, "").await
    }

    /// As [`Db::begin`], with a statement that runs in the same round trip and whose rows nobody reads: a lock.
    ///
    /// # Errors
    /// As [`Db::begin`], and what the statement may fail with.
    pub async fn begin_with(&self, tenant: &TenantId, statement: &'static str) -> Result<Tx<'static>, DbError> {
        self.remember(tenant).await?;
        let inner = self
            .open(tenant.as_str(), statement)
            .await
            .map_err(DbError::during("begin a transaction"))?;
        Ok(Tx::new(inner, tenant.clone(), self.clone()))
    }

    /// Begins a transaction that sees the rows of all tenants in tables whose policy lets it: for what the replicas of a
    /// service agree on among themselves. Never for what somebody asked: it is bound to no tenant.
    ///
    /// # Errors
    /// As [`Db::begin`].
    pub async fn begin_across_tenants(&self) -> Result<Transaction<'static, Postgres>, DbError> {
        self.begin_for_all("")
            .await
            .map_err(DbError::during("begin a transaction across tenants"))
    }

    /// Every tenant that ever had a transaction here, in order.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn known_tenants(&self) -> Result<Vec<TenantId>, DbError> {
        let operation = "list the tenants";
        let mut tx = self.begin_for_all("").await.map_err(DbError::during(operation))?;
        let ids: Vec<String> = sqlx::query_scalar("SELECT tenant_id FROM tenant ORDER BY tenant_id")
            .fetch_all(&mut *tx)
            .await
            .map_err(DbError::during(operation))?;
        tx.commit().await.map_err(DbError::during(operation))?;
        // Only parsed ids are ever written.
        Ok(ids.into_iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Asks the database for an answer.
    ///
    /// # Errors
    /// [`DbError::Unavailable`] when there is none.
    pub async fn ping(&self) -> Result<(), DbError> {
        let tx = self.open(ALL, "").await.map_err(DbError::during("ping"))?;
        tx.rollback().await.map_err(DbError::during("ping"))?;
        Ok(())
    }

    /// Wakes the outbox relay of this process. [`Tx::commit`] does so by itself.
    pub fn outbox_signal(&self) {
        self.inner.appended.notify_one();
    }

    /// The schema of this service.
    pub fn schema(&self) -> &'static str {
        self.inner.schema
    }

    /// Closes the pool: waits for transactions in progress, refuses new ones.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Has the relay of this process publish messages that were committed to the outbox at once, before its turn; see
    /// [`Tx::commit_urgent`], which does so by itself.
    pub fn hurry(&self, messages: Vec<Message>) {
        if messages.is_empty() {
            return;
        }
        let urgent = Urgent {
            messages,
            span: tracing::Span::current(),
        };
        if self.inner.urgent.0.try_send(urgent).is_err() {
            self.outbox_signal();
        }
    }

    /// What [`Db::hurry`] hands over; for the first who asks.
    pub(crate) fn urgent(&self) -> Option<mpsc::Receiver<Urgent>> {
        let mut receiver = self.inner.urgent.1.lock().unwrap_or_else(PoisonError::into_inner);
        receiver.take()
    }

    pub(crate) async fn appended(&self) {
        self.inner.appended.notified().await;
    }

    /// A transaction over all tenants, for the relay and for pruning, with more statements at its beginning.
    pub(crate) async fn begin_for_all(
        &self,
        more: &'static str,
    ) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.open(ALL, more).await
    }

    /// Begins and sets the tenant in one round trip. A tenant id cannot hold a quote.
    async fn open(&self, tenant: &str, more: &str) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        debug_assert!(!tenant.contains('\''));
        let begin = format!("BEGIN; SET LOCAL garrison.tenant = '{tenant}'; {more}");
        // A connection that died while it was idle fails here, before anything was done; the next may be as dead.
        let mut dead = 0;
        loop {
            let began = self.pool.begin_with(AssertSqlSafe(begin.clone())).await;
            match began {
                Err(error) if dead < self.pool.options().get_max_connections() && lost(&error) => dead += 1,
                other => return other,
            }
        }
    }

    pub(crate) async fn remember(&self, tenant: &TenantId) -> Result<(), DbError> {
        let known = self
            .inner
            .known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(tenant);
        if known {
            return Ok(());
        }
        // A transaction of its own: the caller's may roll back.
        let operation = "remember a tenant";
        let mut tx = self
            .open(tenant.as_str(), "")
            .await
            .map_err(DbError::during(operation))?;
        sqlx::query("INSERT INTO tenant (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING")
            .bind(tenant.as_str())
            .execute(&mut *tx)
            .await
            .map_err(DbError::during(operation))?;
        tx.commit().await.map_err(DbError::during(operation))?;
        let mut known = self.inner.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(tenant.clone());
        Ok(())
    }
}

/// Whether a connection that was made is gone. That none can be had or made is another matter.
fn lost(error: &sqlx::Error) -> bool {
    !matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed) && is_unavailable(error)
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db")
            .field("schema", &self.inner.schema)
            .field("connections", &self.pool.size())
            .finish()
    }
}
