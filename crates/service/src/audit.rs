//! Audit records: who did what, on `audit.v1.<tenant>.<service>`.
//!
//! The gRPC layer records every decision about a mutating method by itself. A service records its own state
//! changes with [`record`] and [`message`], in the transaction that makes them:
//! `tx.publish(&audit::message(&info, &audit::record(…))).await?`.

use std::collections::{BTreeMap, HashMap};

use chrono::Utc;
use futures::future::BoxFuture;
use garrison_auth::{AuditError, AuditSink, Caller};
use garrison_bus::{Message, Publisher, subject};
use garrison_db::Db;
use garrison_proto::{
    TenantId,
    audit::v1::{Actor, AuditRecord, Decision},
    from_timestamp, to_timestamp,
};
use opentelemetry::trace::TraceContextExt;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use crate::ServiceInfo;

/// The actor of what a service does by itself.
pub fn service_actor(info: &ServiceInfo) -> Actor {
    Actor {
        name: format!("services/{}", info.name),
        ..Actor::default()
    }
}

/// The actor of what a caller asked for.
pub fn caller_actor(caller: &Caller) -> Actor {
    caller.actor()
}

/// A record of a state change or decision, made now, in the current trace. `details` must hold no secrets.
#[allow(clippy::too_many_arguments)] // the fields of a record; a builder would only hide a forgotten one
pub fn record(
    info: &ServiceInfo,
    tenant: &TenantId,
    actor: Actor,
    action: &str,
    resource: &str,
    decision: Decision,
    reason: &str,
    details: BTreeMap<String, String>,
) -> AuditRecord {
    let context = tracing::Span::current().context();
    let span = context.span().span_context().clone();
    AuditRecord {
        record_id: Uuid::now_v7().to_string(),
        time: Some(to_timestamp(Utc::now())),
        tenant: tenant.to_string(),
        service: info.name.to_owned(),
        actor: Some(actor),
        action: action.to_owned(),
        resource: resource.to_owned(),
        decision: decision.into(),
        reason: reason.to_owned(),
        details: details.into_iter().collect::<HashMap<_, _>>(),
        trace_id: if span.is_valid() {
            span.trace_id().to_string()
        } else {
            String::new()
        },
        request_sha256: String::new(),
    }
}

/// The record as a message for the bus. Its id is the record's, so that a repeat is recognised.
///
/// A record whose tenant cannot be read goes to the tenant `system`: nothing that was decided is lost.
pub fn message(info: &ServiceInfo, record: &AuditRecord) -> Message {
    let tenant = record.tenant.parse().unwrap_or_else(|_| TenantId::system());
    let mut message = Message::proto(subject::audit(&tenant, info.name), info.name, record);
    if let Ok(id) = Uuid::parse_str(&record.record_id) {
        message = message.with_id(id);
    }
    if let Some(time) = record.time.as_ref().and_then(from_timestamp) {
        message = message.with_time(time);
    }
    message
}

/// Records through the outbox: the record is durable when its transaction is, whether or not the broker is there.
pub(crate) struct OutboxAudit {
    pub(crate) info: ServiceInfo,
    pub(crate) db: Db,
}

impl AuditSink for OutboxAudit {
    fn record(&self, record: AuditRecord) -> BoxFuture<'_, Result<(), AuditError>> {
        Box::pin(async move {
            let tenant = record.tenant.parse().unwrap_or_else(|_| TenantId::system());
            let failed = |e: garrison_db::DbError| AuditError(Box::new(e));
            let mut tx = self.db.begin(&tenant).await.map_err(failed)?;
            tx.publish(&message(&self.info, &record)).await.map_err(failed)?;
            tx.commit().await.map_err(failed)
        })
    }
}

/// Records by publishing and waiting for the broker's acknowledgement, for services without a database.
pub(crate) struct PublishAudit {
    pub(crate) info: ServiceInfo,
    pub(crate) publisher: Publisher,
}

impl AuditSink for PublishAudit {
    fn record(&self, record: AuditRecord) -> BoxFuture<'_, Result<(), AuditError>> {
        Box::pin(async move {
            let message = message(&self.info, &record);
            self.publisher
                .publish(&message)
                .await
                .map_err(|e| AuditError(Box::new(e)))
        })
    }
}
