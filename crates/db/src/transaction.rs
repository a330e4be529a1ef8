use std::ops::{Deref, DerefMut};

use garrison_bus::{Message, subject, topology};
use garrison_proto::TenantId;
use sqlx::{PgConnection, Postgres, Transaction};
use uuid::Uuid;

use crate::{Db, DbError, database::Urgent};

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
        db.hurry(Urgent {
            messages: urgent,
            span: tracing::Span::current(),
        });
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
        self.check(message)?;
        sqlx::query(
            "INSERT INTO outbox (tenant_id, message_id, subject, kind, source, time, time_nanos, content_type, \
             traceparent, payload) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(self.tenant.as_str())
        .bind(message.id)
        .bind(&message.subject)
        .bind(&message.kind)
        .bind(&message.source)
        .bind(message.time)
        .bind(i32::try_from(message.time.timestamp_subsec_nanos() % 1_000_000_000).unwrap_or_default())
        .bind(message.content_type.as_ref())
        .bind(&message.traceparent)
        .bind(message.payload.as_ref())
        .execute(&mut *self.inner)
        .await
        .map_err(DbError::during("append a message to the outbox"))?;
        self.appended = true;
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
        self.append(None, messages).await?;
        Ok(())
    }

    /// [`Tx::first_delivery`] and [`Tx::publish_all`] in one round trip, for the end of a transaction. False when the
    /// message was handled before: nothing was appended then, and everything else must be rolled back.
    ///
    /// # Errors
    /// As both.
    pub async fn publish_once(&mut self, consumer: &str, id: Uuid, messages: &[Message]) -> Result<bool, DbError> {
        self.append(Some((consumer, id)), messages).await
    }

    async fn append(&mut self, delivery: Option<(&str, Uuid)>, messages: &[Message]) -> Result<bool, DbError> {
        for message in messages {
            self.check(message)?;
        }
        let column = |text: fn(&Message) -> &str| -> Vec<&str> { messages.iter().map(text).collect() };
        let nanos = |m: &Message| i32::try_from(m.time.timestamp_subsec_nanos() % 1_000_000_000).unwrap_or_default();
        let (consumer, id) = delivery.unzip();
        let first = sqlx::query_scalar(
            "WITH first AS ( \
             INSERT INTO inbox (tenant_id, consumer, message_id) SELECT $1, $11, $12 WHERE $12::uuid IS NOT NULL \
             ON CONFLICT DO NOTHING RETURNING message_id), \
             appended AS ( \
             INSERT INTO outbox (tenant_id, message_id, subject, kind, source, time, time_nanos, content_type, \
             traceparent, payload) \
             SELECT $1, m.message_id, m.subject, m.kind, m.source, m.time, m.time_nanos, m.content_type, \
             m.traceparent, m.payload \
             FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::integer[], \
             $8::text[], $9::text[], $10::bytea[]) WITH ORDINALITY \
             AS m (message_id, subject, kind, source, time, time_nanos, content_type, traceparent, payload, position) \
             WHERE $12::uuid IS NULL OR EXISTS (SELECT FROM first) ORDER BY m.position) \
             SELECT $12::uuid IS NULL OR EXISTS (SELECT FROM first)",
        )
        .bind(self.tenant.as_str())
        .bind(messages.iter().map(|m| m.id).collect::<Vec<_>>())
        .bind(column(|m| &m.subject))
        .bind(column(|m| &m.kind))
        .bind(column(|m| &m.source))
        .bind(messages.iter().map(|m| m.time).collect::<Vec<_>>())
        .bind(messages.iter().map(nanos).collect::<Vec<_>>())
        .bind(column(|m| m.content_type.as_ref()))
        .bind(messages.iter().map(|m| m.traceparent.as_deref()).collect::<Vec<_>>())
        .bind(messages.iter().map(|m| m.payload.as_ref()).collect::<Vec<&[u8]>>())
        .bind(consumer)
        .bind(id)
        .fetch_one(&mut *self.inner)
        .await
        .map_err(DbError::during("append messages to the outbox"))?;
        self.appended |= first && !messages.is_empty();
        Ok(first)
    }

    /// Whether a message may be appended: its subject is of this tenant, and the broker takes its size.
    fn check(&self, message: &Message) -> Result<(), DbError> {
        let refuse = |reason: String| DbError::Message {
            subject: message.subject.clone(),
            reason,
        };
        let tenant = subject::tenant_of(&message.subject).map_err(|error| refuse(error.to_string()))?;
        if tenant != self.tenant {
            return Err(refuse(format!("the transaction belongs to tenant {}", self.tenant)));
        }
        if message.payload.len() > topology::MAX_PAYLOAD {
            let size = message.payload.len();
            return Err(refuse(format!(
                "{size} bytes are more than the broker's {}",
                topology::MAX_PAYLOAD
            )));
        }
        Ok(())
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
