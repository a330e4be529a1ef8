//! From the streams to the use cases.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use garrison_bus::{Delivery, Disposition, Handler};
use garrison_db::DbError;
use garrison_proto::{alert::v1::Alert, event::v1::LoginEvent, from_timestamp};

use crate::app::{Engine, Risks};

/// Judges flow batches in the order of the stream.
pub struct Flows(pub Arc<Engine>);

impl Handler for Flows {
    async fn handle(&self, delivery: Delivery) -> Disposition {
        self.0.take(&delivery).await
    }
}

/// What policy found counts for the risk of its entities.
pub struct Alerts(pub Risks);

impl Handler for Alerts {
    async fn handle(&self, delivery: Delivery) -> Disposition {
        delivery.stand_back().await;
        match delivery.decode::<Alert>() {
            Ok(alert) => {
                let taken = self.0.take_alert(&delivery.tenant, delivery.id, &alert, delivery.time);
                settle(taken.await)
            }
            Err(disposition) => disposition,
        }
    }
}

/// Logins count for the risk of users and hosts.
pub struct Logins(pub Risks);

impl Handler for Logins {
    async fn handle(&self, delivery: Delivery) -> Disposition {
        match delivery.decode::<LoginEvent>() {
            Ok(event) => {
                // A sender whose clock runs ahead must not make a risk that stays high.
                let time = event.time.as_ref().and_then(from_timestamp).unwrap_or(delivery.time);
                let time: DateTime<Utc> = time.min(Utc::now());
                let taken = self.0.take_login(&delivery.tenant, delivery.id, &event, time);
                settle(taken.await)
            }
            Err(disposition) => disposition,
        }
    }
}

fn settle(taken: Result<(), DbError>) -> Disposition {
    match taken {
        Ok(()) => Disposition::Ack,
        Err(error) => error.disposition(),
    }
}
