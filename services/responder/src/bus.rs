//! From the bus: decode, run the use case, say what became of the message.

use std::time::Duration;

use chrono::Utc;
use garrison_bus::{Delivery, Disposition, Handler};
use garrison_proto::{alert::v1::Alert, response::v1::EnforcementReport};

use crate::{app::App, error::AppError};

/// Takes alerts in.
pub struct Alerts(pub App);

impl Handler for Alerts {
    async fn handle(&self, delivery: Delivery) -> Disposition {
        let alert: Alert = match delivery.decode() {
            Ok(alert) => alert,
            Err(disposition) => return disposition,
        };
        let taken = self
            .0
            .take_alert(delivery.id, &delivery.tenant, &alert, Utc::now())
            .await;
        match taken {
            Ok(_) => Disposition::Ack,
            Err(error) => disposition(&error),
        }
    }
}

/// Takes enforcers' reports in.
pub struct Reports(pub App);

impl Handler for Reports {
    async fn handle(&self, delivery: Delivery) -> Disposition {
        let report: EnforcementReport = match delivery.decode() {
            Ok(report) => report,
            Err(disposition) => return disposition,
        };
        let taken = self
            .0
            .take_report(delivery.id, &delivery.subject, &report, Utc::now())
            .await;
        match taken {
            Ok(_) => Disposition::Ack,
            Err(error) => disposition(&error),
        }
    }
}

fn disposition(error: &AppError) -> Disposition {
    match error {
        AppError::Transaction { source, .. } => source.disposition(),
        AppError::Statement { source, .. } => garrison_db::disposition(source),
        AppError::Alert(_) | AppError::Report(_) | AppError::Json(_) => Disposition::Reject {
            reason: error.to_string(),
        },
        // Nothing else comes out of these use cases; should it ever, another try does no harm.
        _ => Disposition::Retry {
            after: Duration::from_millis(100),
            reason: error.to_string(),
        },
    }
}
