//! Orders from the bus.

use std::{sync::Arc, time::Duration};

use chrono::Utc;
use garrison_bus::{Delivery, Disposition, Handler, PublishError, Publisher};
use garrison_proto::response::v1::EnforcementOrder;
use tracing::Instrument as _;

use super::{
    agent::{Agent, Answer},
    ledger::{Order, Said},
    link::Link,
};

/// An order to apply that is older than this is not carried out as it stands: the responder may have thought
/// better of it long ago. What it wants now is asked for instead.
const STALE: chrono::Duration = chrono::Duration::seconds(60);

/// Carries orders out.
pub struct Orders {
    link: Arc<Link>,
    agent: Option<Agent>,
    publisher: Publisher,
}

impl Orders {
    /// `agent` is `None` in observe-only mode.
    pub fn new(link: Arc<Link>, agent: Option<Agent>, publisher: Publisher) -> Self {
        Self { link, agent, publisher }
    }
}

impl Handler for Orders {
    async fn handle(&self, delivery: Delivery) -> Disposition {
        let wire: EnforcementOrder = match delivery.decode() {
            Ok(wire) => wire,
            Err(disposition) => return disposition,
        };
        if !self.link.serves(&delivery.tenant) {
            return Disposition::Ack;
        }
        if !wire.nodes.is_empty() && !wire.nodes.iter().any(|n| n == self.link.node()) {
            return Disposition::Ack;
        }
        let order = match Order::read(&wire) {
            Ok(order) if order.tenant == delivery.tenant => order,
            Ok(order) => {
                return reject(format!(
                    "the order is of {} and came on a subject of {}",
                    order.tenant, delivery.tenant
                ));
            }
            Err(reason) => return reject(reason),
        };
        if !order.revert && Utc::now() - delivery.stored > STALE {
            tracing::info!(response = %order.id, "an old order is checked with the responder first");
            self.link.reconcile_soon();
            return Disposition::Ack;
        }
        let Some(agent) = &self.agent else {
            let answer = Answer {
                said: if order.revert { Said::Removed } else { Said::Failed },
                confirmed: None,
                error: if order.revert {
                    String::new()
                } else {
                    "observe only".to_owned()
                },
            };
            return match self.publish(&order, &answer).await {
                Ok(()) => Disposition::Ack,
                Err(error) => disposition(&error),
            };
        };
        let carried_out = agent
            .order(order.clone())
            .instrument(tracing::info_span!("carry out order", response = %order.id));
        let (answer, stored) = match carried_out.await {
            Ok(done) => done,
            Err(error) => {
                return Disposition::Retry {
                    after: Duration::from_millis(200),
                    reason: error.to_string(),
                };
            }
        };
        // What is in the kernel outlives a crash, so its report need not wait for the disk. What was taken out would come
        // back from the state file, after the responder had been told that it is gone.
        let waits = matches!(answer.said, Said::Removed | Said::Expired);
        if !waits && let Err(error) = self.publish(&order, &answer).await {
            return disposition(&error);
        }
        if !matches!(stored.await, Ok(true)) {
            return Disposition::Retry {
                after: Duration::from_secs(1),
                reason: "GAR-ENF-0004: the state file could not be written".to_owned(),
            };
        }
        if waits && let Err(error) = self.publish(&order, &answer).await {
            return disposition(&error);
        }
        Disposition::Ack
    }
}

impl Orders {
    async fn publish(&self, order: &Order, answer: &Answer) -> Result<(), PublishError> {
        let message = self.link.report(
            &order.tenant,
            order.id,
            order.action,
            answer.said,
            answer.confirmed.map(|c| c.kernel),
            answer.confirmed.map(|c| c.read_back),
            &answer.error,
        );
        self.publisher.publish(&message).await
    }
}

fn reject(reason: String) -> Disposition {
    Disposition::Reject {
        reason: format!("GAR-ENF-0009: {reason}"),
    }
}

fn disposition(error: &PublishError) -> Disposition {
    let reason = error.to_string();
    if error.is_transient() {
        Disposition::Hold {
            after: Duration::from_millis(250),
            reason,
        }
    } else {
        reject(reason)
    }
}
