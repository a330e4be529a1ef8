//! From the AUDIT stream into the log.

use std::time::Duration;

use garrison_bus::{Delivery, Disposition, Handler, subject};
use garrison_proto::audit::v1::AuditRecord;

use crate::{app::append::Appender, domain::record::Record, error::Error, metrics::Metrics, store::Appended};

/// How long to leave a record with the broker when it could not be written.
const RETRY: Duration = Duration::from_secs(2);

/// Takes audit records.
pub struct AuditHandler {
    /// Writes them.
    pub appender: Appender,
    /// Counts them.
    pub metrics: Metrics,
}

impl Handler for AuditHandler {
    async fn handle(&self, delivery: Delivery) -> Disposition {
        let record = match self.read(&delivery) {
            Ok(record) => record,
            Err(disposition) => {
                self.metrics.record("rejected");
                return disposition;
            }
        };
        let id = record.id;
        match self
            .appender
            .append(delivery.tenant.clone(), delivery.stream_sequence, record)
            .await
        {
            Some(Ok(Appended::New)) => {
                self.metrics.record("appended");
                Disposition::Ack
            }
            Some(Ok(Appended::Repeat)) => {
                self.metrics.record("repeated");
                Disposition::Ack
            }
            Some(Ok(Appended::Conflict)) => {
                self.metrics.record("rejected");
                Disposition::Reject {
                    reason: format!("GAR-COMP-0007: audit record {id} is in the log with another content"),
                }
            }
            Some(Err(error)) => {
                self.metrics.record("retried");
                match &*error {
                    Error::Database { source, .. } => source.disposition(),
                    _ => Disposition::Retry {
                        after: RETRY,
                        reason: error.to_string(),
                    },
                }
            }
            None => Disposition::Retry {
                after: RETRY,
                reason: "the service is stopping".to_owned(),
            },
        }
    }
}

impl AuditHandler {
    fn read(&self, delivery: &Delivery) -> Result<Record, Disposition> {
        let record: AuditRecord = delivery.decode()?;
        let reject = |reason: String| Disposition::Reject { reason };
        let parsed = subject::parse(&delivery.subject).map_err(|error| reject(error.to_string()))?;
        let service = parsed.rest.first().copied().unwrap_or_default();
        Record::read(&record, &delivery.tenant, service).map_err(|error| reject(error.to_string()))
    }
}
