//! What a transaction tells the rest of the fleet, in the order in which it matters.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use garrison_bus::{Message, subject};
use garrison_db::{Outgoing, Tx};
use garrison_proto::{
    TenantId,
    audit::v1::{Actor, Decision},
    event::v1::{IncidentChanged, ResponseChanged},
    resource_name,
    response::v1 as proto,
    to_timestamp,
};
use garrison_service::{ServiceInfo, audit};
use uuid::Uuid;

use crate::{
    domain::{
        incident::Incident,
        response::{Outcome, Response, Transition, action_word, state_word},
    },
    error::{AppError, During as _},
};

/// Messages of one transaction. Orders to enforcers leave first.
pub(super) struct Effects<'a> {
    info: &'a ServiceInfo,
    tenant: TenantId,
    orders: Vec<Message>,
    rest: Vec<Message>,
}

impl<'a> Effects<'a> {
    pub(super) fn new(info: &'a ServiceInfo, tenant: &TenantId) -> Self {
        Self {
            info,
            tenant: tenant.clone(),
            orders: Vec::new(),
            rest: Vec::new(),
        }
    }

    /// The consequences of a step in a response's life.
    pub(super) fn response(
        &mut self,
        response: &Response,
        outcome: &Outcome,
        history: Vec<proto::Transition>,
        actor: Option<Actor>,
    ) {
        if let Some(revert) = outcome.order {
            let state = if revert { "reverting" } else { "dispatched" };
            self.orders.push(Message::proto(
                subject::responses(&self.tenant, response.action, state),
                self.info.name,
                &response.order(self.tenant.as_str(), revert),
            ));
        }
        let Some(transition) = &outcome.transition else {
            return;
        };
        self.rest.push(Message::proto(
            subject::events(&self.tenant, "response"),
            self.info.name,
            &ResponseChanged {
                response: Some(response.to_proto(history)),
            },
        ));
        self.audit(
            actor.unwrap_or_else(|| Actor {
                name: transition.actor.clone(),
                ..Actor::default()
            }),
            &format!("response.{}", state_word(transition.state).replace(' ', "_")),
            &resource_name("responses", response.id),
            if transition.state == proto::ResponseState::Refused {
                Decision::Deny
            } else {
                Decision::Allow
            },
            &transition.detail,
            [
                ("action", action_word(response.action).to_owned()),
                ("target", response.target.to_string()),
                (
                    "incident",
                    response
                        .incident
                        .map(|id| resource_name("incidents", id))
                        .unwrap_or_default(),
                ),
                ("alert", response.alert.map(|id| id.to_string()).unwrap_or_default()),
                ("playbook", response.playbook.clone()),
            ],
        );
    }

    /// An incident was opened or changed.
    pub(super) fn incident(&mut self, incident: &Incident) {
        self.rest.push(Message::proto(
            subject::events(&self.tenant, "incident"),
            self.info.name,
            &IncidentChanged {
                incident: Some(incident.to_proto()),
            },
        ));
    }

    /// An OCSF event for outside subscribers.
    pub(super) fn siem(&mut self, class: &str, kind: &str, event: &serde_json::Value) -> Result<(), AppError> {
        self.rest.push(Message::json(
            subject::siem(&self.tenant, class),
            self.info.name,
            kind,
            event,
        )?);
        Ok(())
    }

    /// A state change for the transparency log. Details without a value are left out.
    pub(super) fn audit<const N: usize>(
        &mut self,
        actor: Actor,
        action: &str,
        resource: &str,
        decision: Decision,
        reason: &str,
        details: [(&str, String); N],
    ) {
        let details: BTreeMap<String, String> = details
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let record = audit::record(
            self.info,
            &self.tenant,
            actor,
            action,
            resource,
            decision,
            reason,
            details,
        );
        self.rest.push(audit::message(self.info, &record));
    }

    /// The actor of what the responder does by itself.
    pub(super) fn own_actor(&self) -> Actor {
        audit::service_actor(self.info)
    }

    /// Appends everything to the outbox of the transaction, and gives the orders back.
    pub(super) async fn append(self, tx: &mut Tx<'static>) -> Result<Vec<Message>, AppError> {
        let (orders, all) = self.messages();
        tx.publish_all(&all).await.during("append to the outbox")?;
        Ok(orders)
    }

    /// Everything, to be appended when the delivery that it comes from is handled for the first time; and the orders.
    pub(super) fn outgoing_once(self, consumer: &str, delivery: Uuid) -> Result<(Outgoing, Vec<Message>), AppError> {
        let tenant = self.tenant.clone();
        let (orders, all) = self.messages();
        let outgoing = Outgoing::new(&tenant, &all).during("append to the outbox")?;
        Ok((outgoing.once(consumer, delivery), orders))
    }

    fn messages(self) -> (Vec<Message>, Vec<Message>) {
        let Self { orders, mut rest, .. } = self;
        let mut all = orders.clone();
        all.append(&mut rest);
        (orders, all)
    }
}

/// One step as it goes into an event, for a response whose history is not in the database yet.
pub(super) fn first_step(transition: &Transition, now: DateTime<Utc>) -> proto::Transition {
    proto::Transition {
        state: transition.state as i32,
        time: Some(to_timestamp(now)),
        actor: transition.actor.clone(),
        detail: transition.detail.clone(),
    }
}
