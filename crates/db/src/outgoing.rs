use chrono::{DateTime, Utc};
use garrison_bus::{Message, subject, topology};
use garrison_proto::TenantId;
use sqlx::{Postgres, postgres::PgArguments, query::Query};
use uuid::Uuid;

use crate::DbError;

/// Messages on their way into the outbox, as arguments of the database's own `append_messages`, for a statement that
/// does more than append.
#[derive(Debug)]
pub struct Outgoing {
    tenant: TenantId,
    ids: Vec<Uuid>,
    subjects: Vec<String>,
    kinds: Vec<String>,
    sources: Vec<String>,
    times: Vec<DateTime<Utc>>,
    nanos: Vec<i32>,
    content_types: Vec<String>,
    traceparents: Vec<Option<String>>,
    payloads: Vec<Vec<u8>>,
    delivery: Option<(String, Uuid)>,
}

impl Outgoing {
    /// Messages of one tenant, in their order.
    ///
    /// # Errors
    /// [`DbError::Message`] when the subject of one is not of this tenant, or it is larger than the broker takes.
    pub fn new(tenant: &TenantId, messages: &[Message]) -> Result<Self, DbError> {
        for message in messages {
            check(tenant, message)?;
        }
        let column = |text: fn(&Message) -> &str| messages.iter().map(|m| text(m).to_owned()).collect();
        let nanos = |m: &Message| i32::try_from(m.time.timestamp_subsec_nanos() % 1_000_000_000).unwrap_or_default();
        Ok(Self {
            tenant: tenant.clone(),
            ids: messages.iter().map(|m| m.id).collect(),
            subjects: column(|m| &m.subject),
            kinds: column(|m| &m.kind),
            sources: column(|m| &m.source),
            times: messages.iter().map(|m| m.time).collect(),
            nanos: messages.iter().map(nanos).collect(),
            content_types: column(|m| m.content_type.as_ref()),
            traceparents: messages.iter().map(|m| m.traceparent.clone()).collect(),
            payloads: messages.iter().map(|m| m.payload.to_vec()).collect(),
            delivery: None,
        })
    }

    /// Appends only when `consumer` did not note the delivery `id` before.
    #[must_use]
    pub fn once(mut self, consumer: &str, id: Uuid) -> Self {
        self.delivery = Some((consumer.to_owned(), id));
        self
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Binds the arguments of `append_messages` in their order: tenant, nine arrays, consumer and delivery.
    pub fn bind<'q>(&'q self, query: Query<'q, Postgres, PgArguments>) -> Query<'q, Postgres, PgArguments> {
        query
            .bind(self.tenant.as_str())
            .bind(&self.ids)
            .bind(&self.subjects)
            .bind(&self.kinds)
            .bind(&self.sources)
            .bind(&self.times)
            .bind(&self.nanos)
            .bind(&self.content_types)
            .bind(&self.traceparents)
            .bind(&self.payloads)
            .bind(self.delivery.as_ref().map(|(consumer, _)| consumer.as_str()))
            .bind(self.delivery.as_ref().map(|(_, id)| *id))
    }
}

/// Whether a message may be appended: its subject is of this tenant, and the broker takes its size.
fn check(tenant: &TenantId, message: &Message) -> Result<(), DbError> {
    let refuse = |reason: String| DbError::Message {
        subject: message.subject.clone(),
        reason,
    };
    let named = subject::tenant_of(&message.subject).map_err(|error| refuse(error.to_string()))?;
    if named != *tenant {
        return Err(refuse(format!("the transaction belongs to tenant {tenant}")));
    }
    let size = message.payload.len();
    if size > topology::MAX_PAYLOAD {
        return Err(refuse(format!(
            "{size} bytes are more than the broker's {}",
            topology::MAX_PAYLOAD
        )));
    }
    Ok(())
}
