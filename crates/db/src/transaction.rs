use std::ops::{Deref, DerefMut};

use garrison_bus::Message;
use garrison_proto::TenantId;
use sqlx::{PgConnection, Postgres, Row as _, Transaction};
use uuid::Uuid;

use crate::{Db, DbError, Outgoing};

/// A transaction bound to one tenant. Rolls back when dropped. Use `&mut *tx` to run queries.
pub struct Tx<'c> {
    inner: Transaction<'c, Postgres>,
    tenant: TenantId,
    db: Db,
    appended: bool,
}

impl<'c> Tx<'c> {
    pub(crate) fn new(inner: Transaction<'c, Postgres>, tenant: TenantId, db: Db) -> Self {
        Self {
            inner,
            tenant,
            db,
            appended: false,
        }
    }

    /// Whose rows this transaction sees.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Commits, and wakes the outbox relay when a message was appended.
    ///
    /// # Errors
    /// When the database could not confirm the commit. It is then unknown whether it happened: handle the same
    /// message again and let the inbox tell.
    pub async fn commit(self) -> Result<(), DbError> {
        self.inner.commit().await.map_err(DbError::during("commit"))?;
        if self.appended {
            self.db.outbox_signal();
        }
        Ok(())
    }

    /// Commits, and has the relay of this process publish `urgent`, which are messages of this transaction's outbox,
    /// at once, and only then the rest: they overtake what waits in the outbox, in their streams too. Nothing hangs
    /// on this but milliseconds; without a relay here they take their turn.
    ///
    /// # Errors
    /// As [`Tx::commit`].
    pub async fn commit_urgent(mut self, urgent: Vec<Message>) -> Result<(), DbError> {
        if urgent.is_empty() {
            return self.commit().await;
        }
        let db = self.db.clone();
        // The relay's turn comes when these are out.
        self.appended = false;
        self.commit().await?;
        db.hurry(urgent);
        Ok(())
    }

    /// Undoes everything. Dropping does the same, only later.
    ///
    /// # Errors
    /// When the database is away, which undoes everything too.
    pub async fn rollback(self) -> Result<(), DbError> {
        self.inner.rollback().await.map_err(DbError::during("roll back"))
    }

    /// Notes in the inbox that `consumer` handles this message. False when it was handled before: then change
    /// nothing and acknowledge. Of two transactions that handle the same message at once, the second waits for the
    /// first to end.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn first_delivery(&mut self, consumer: &str, id: Uuid) -> Result<bool, DbError> {
        let done = sqlx::query(
            "INSERT INTO inbox (tenant_id, consumer, message_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        )
        .bind(self.tenant.as_str())
        .bind(consumer)
        .bind(id)
        .execute(&mut *self.inner)
        .await
        .map_err(DbError::during("note a message in the inbox"))?;
        Ok(done.rows_affected() == 1)
    }

    /// Appends a message to the outbox: it is published if and only if this transaction commits, after those that
    /// were appended before.
    ///
    /// # Errors
    /// [`DbError::Message`] when its subject is not one of this tenant's, or it is larger than the broker takes.
    pub async fn publish(&mut self, message: &Message) -> Result<(), DbError> {
        self.append(&Outgoing::new(&self.tenant, std::slice::from_ref(message))?)
            .await?;
        Ok(())
    }

    /// Appends several messages in one round trip, in their order; see [`Tx::publish`].
    ///
    /// # Errors
    /// As [`Tx::publish`]; then none of them is appended.
    pub async fn publish_all(&mut self, messages: &[Message]) -> Result<(), DbError> {
        if messages.is_empty() {
            return Ok(());
        }
        self.append(&Outgoing::new(&self.tenant, messages)?).await?;
        Ok(())
    }

    /// [`Tx::publish_all`] for messages that are ready. False when they were to be appended only [`Outgoing::once`] and
    /// their delivery was handled before: nothing was appended then, and everything else must be rolled back.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn append(&mut self, outgoing: &Outgoing) -> Result<bool, DbError> {
        let operation = "append messages to the outbox";
        let query = sqlx::query("SELECT append_messages($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)");
        let row = outgoing
            .bind(query)
            .fetch_one(&mut *self.inner)
            .await
            .map_err(DbError::during(operation))?;
        let first = row.try_get(0).map_err(DbError::during(operation))?;
        if first {
            self.appended(outgoing);
        }
        Ok(first)
    }

    /// Says that a statement of this transaction appended these messages, so that the commit wakes the relay.
    pub fn appended(&mut self, outgoing: &Outgoing) {
        self.appended |= !outgoing.is_empty();
    }
}

impl Deref for Tx<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.inner
    }
}

impl DerefMut for Tx<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.inner
    }
}

impl std::fmt::Debug for Tx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tx")
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}
