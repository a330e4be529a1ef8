//! From the FLOWS, ALERTS and EVENTS streams into the lake and the tables.

use std::time::Duration;

use chrono::{DateTime, Utc};
use garrison_bus::{Delivery, Disposition, Handler, content_type};
use garrison_db::{Db, Tx};
use garrison_proto::{
    alert::v1::Alert,
    event::v1::{IncidentChanged, LoginEvent, PolicyChanged, ResponseChanged, SessionRevoked},
    from_timestamp, parse_name,
};
use prost::Name;
use uuid::Uuid;

use crate::{
    error::Error,
    lake::{Appended, Checked, Lake},
    metrics::Metrics,
    store::events::{self, Event},
};

/// How long to wait before storing is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// The largest event that is kept, in bytes.
const MAX_EVENT: usize = 1 << 20;

/// Stores flow batches.
pub struct FlowHandler {
    /// Where to.
    pub lake: Lake,
    /// Counts.
    pub metrics: Metrics,
}

impl Handler for FlowHandler {
    async fn handle(&self, delivery: Delivery) -> Disposition {
        delivery.stand_back().await;
        if delivery.content_type != content_type::ARROW_STREAM {
            self.metrics.batch("rejected", 0);
            let reason = format!(
                "GAR-FOR-0003: content type {:?} is no Arrow stream",
                delivery.content_type
            );
            return Disposition::Reject { reason };
        }
        let checked = match Checked::read(&delivery.payload, &delivery.tenant) {
            Ok(checked) => checked,
            Err(reason) => {
                self.metrics.batch("rejected", 0);
                return Disposition::Reject { reason };
            }
        };
        let rows = checked.rows();
        if rows == 0 {
            self.metrics.batch("stored", 0);
            return Disposition::Ack;
        }
        match self
            .lake
            .append(&delivery.tenant, delivery.id, &checked, delivery.payload)
            .await
        {
            Ok(Appended::New) => {
                self.metrics.batch("stored", rows);
                Disposition::Ack
            }
            Ok(Appended::Repeat) => {
                self.metrics.batch("repeated", 0);
                Disposition::Ack
            }
            // The batch has no part in it: it stays with the broker until there is room again.
            Err(error) => {
                self.metrics.batch("held", 0);
                Disposition::Hold {
                    after: PAUSE,
                    reason: error.to_string(),
                }
            }
        }
    }
}

/// Keeps alerts.
pub struct AlertHandler {
    /// Where to.
    pub db: Db,
    /// Counts.
    pub metrics: Metrics,
}

/// Keeps events.
pub struct EventHandler {
    /// Where to.
    pub db: Db,
    /// Counts.
    pub metrics: Metrics,
}

fn reject(reason: impl std::fmt::Display) -> Disposition {
    Disposition::Reject {
        reason: format!("GAR-FOR-0003: {reason}"),
    }
}

impl Handler for AlertHandler {
    async fn handle(&self, delivery: Delivery) -> Disposition {
        delivery.stand_back().await;
        let outcome = self.keep(&delivery).await;
        settle(outcome, &self.metrics)
    }
}

impl AlertHandler {
    async fn keep(&self, delivery: &Delivery) -> Result<bool, Failure> {
        let alert: Alert = delivery.decode().map_err(Failure::Said)?;
        let id = uuid("alert_id", &alert.alert_id)?;
        let last_seen = alert
            .last_seen
            .as_ref()
            .and_then(from_timestamp)
            .unwrap_or(delivery.time);
        let mut tx = begin(&self.db, delivery).await?;
        let first = first(&mut tx, "ALERTS/forensics", delivery).await?;
        if first {
            events::upsert_alert(&mut tx, id, &alert, last_seen).await?;
        }
        commit(tx).await?;
        Ok(first)
    }
}

impl Handler for EventHandler {
    async fn handle(&self, delivery: Delivery) -> Disposition {
        delivery.stand_back().await;
        let outcome = self.keep(&delivery).await;
        settle(outcome, &self.metrics)
    }
}

/// What an event is about.
enum About {
    Incident(Uuid, Box<IncidentChanged>, DateTime<Utc>),
    Response(Uuid, Box<ResponseChanged>),
    Other(String),
}

impl EventHandler {
    async fn keep(&self, delivery: &Delivery) -> Result<bool, Failure> {
        if delivery.payload.len() > MAX_EVENT {
            return Err(Failure::Said(reject(format!(
                "the event is larger than {MAX_EVENT} bytes"
            ))));
        }
        let about = about(delivery)?;
        let mut event = Event {
            id: delivery.id,
            kind: delivery.kind.clone(),
            subject: String::new(),
            time: delivery.time,
            message: delivery.payload.to_vec(),
        };
        let mut tx = begin(&self.db, delivery).await?;
        let first = first(&mut tx, "EVENTS/forensics", delivery).await?;
        if !first {
            commit(tx).await?;
            return Ok(false);
        }
        match about {
            About::Incident(id, changed, updated) => {
                event.subject = garrison_proto::resource_name("incidents", id);
                if let Some(incident) = &changed.incident {
                    events::upsert_incident(&mut tx, id, incident, updated).await?;
                }
            }
            About::Response(id, changed) => {
                event.subject = garrison_proto::resource_name("responses", id);
                if let Some(response) = &changed.response {
                    events::upsert_response(&mut tx, id, response).await?;
                }
            }
            About::Other(subject) => event.subject = subject,
        }
        events::insert(&mut tx, &event).await?;
        commit(tx).await?;
        Ok(true)
    }
}

fn about(delivery: &Delivery) -> Result<About, Failure> {
    let said = Failure::Said;
    let kind = delivery.kind.as_str();
    Ok(if kind == IncidentChanged::full_name() {
        let changed: IncidentChanged = delivery.decode().map_err(said)?;
        let incident = changed
            .incident
            .as_ref()
            .ok_or_else(|| said(reject("the event has no incident")))?;
        let id = parse_name("incidents", &incident.name).map_err(|error| said(reject(error)))?;
        let updated = incident
            .updated
            .as_ref()
            .and_then(from_timestamp)
            .unwrap_or(delivery.time);
        About::Incident(id, Box::new(changed), updated)
    } else if kind == ResponseChanged::full_name() {
        let changed: ResponseChanged = delivery.decode().map_err(said)?;
        let response = changed
            .response
            .as_ref()
            .ok_or_else(|| said(reject("the event has no response")))?;
        let id = parse_name("responses", &response.name).map_err(|error| said(reject(error)))?;
        About::Response(id, Box::new(changed))
    } else if kind == PolicyChanged::full_name() {
        About::Other(printable(delivery.decode::<PolicyChanged>().map_err(said)?.policy))
    } else if kind == LoginEvent::full_name() {
        About::Other(printable(delivery.decode::<LoginEvent>().map_err(said)?.user))
    } else if kind == SessionRevoked::full_name() {
        About::Other(printable(delivery.decode::<SessionRevoked>().map_err(said)?.session))
    } else {
        // A kind that this version does not know is evidence all the same.
        About::Other(String::new())
    })
}

/// PostgreSQL's text cannot hold NUL.
fn printable(text: String) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

enum Failure {
    Said(Disposition),
    Database(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Database(error)
    }
}

fn uuid(field: &'static str, text: &str) -> Result<Uuid, Failure> {
    Uuid::parse_str(text).map_err(|_| Failure::Said(reject(format!("{field} is no UUID"))))
}

async fn begin(db: &Db, delivery: &Delivery) -> Result<Tx<'static>, Failure> {
    Ok(db
        .begin(&delivery.tenant)
        .await
        .map_err(Error::database("keeping an event"))?)
}

async fn first(tx: &mut Tx<'_>, consumer: &str, delivery: &Delivery) -> Result<bool, Failure> {
    Ok(tx
        .first_delivery(consumer, delivery.id)
        .await
        .map_err(Error::database("keeping an event"))?)
}

async fn commit(tx: Tx<'_>) -> Result<(), Failure> {
    Ok(tx.commit().await.map_err(Error::database("keeping an event"))?)
}

fn settle(outcome: Result<bool, Failure>, metrics: &Metrics) -> Disposition {
    match outcome {
        Ok(first) => {
            metrics.event(if first { "stored" } else { "repeated" });
            Disposition::Ack
        }
        Err(Failure::Said(disposition)) => {
            metrics.event("rejected");
            disposition
        }
        Err(Failure::Database(Error::Database { source, .. })) => {
            metrics.event("held");
            source.disposition()
        }
        Err(Failure::Database(error)) => {
            metrics.event("held");
            Disposition::Retry {
                after: PAUSE,
                reason: error.chain(),
            }
        }
    }
}
