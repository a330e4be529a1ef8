//! Enforcers report what their kernels say.

use chrono::{DateTime, Utc};
use garrison_bus::subject;
use garrison_db::Tx;
use garrison_proto::{
    TenantId,
    audit::v1::Actor,
    from_timestamp,
    response::v1::{EnforcementReport, IncidentStatus, enforcement_report},
};
use uuid::Uuid;

use super::{App, effects::Effects};
use crate::{
    domain::{
        alert::shorten,
        incident::contained,
        response::{Event, NodeState, Outcome, Response},
    },
    error::{AppError, During as _},
    store::{self, incidents, responses},
};

/// The inbox name of this use case.
const INBOX: &str = "reports";

/// The subject's token for an outcome.
fn outcome_word(outcome: NodeState) -> &'static str {
    match outcome {
        NodeState::Applied => "applied",
        NodeState::Removed => "removed",
        _ => "failed",
    }
}

impl App {
    /// Takes a report in that came on `subject`, whose last token is the node: the broker lets a certificate publish
    /// under its own node's name alone. False for a repeat.
    ///
    /// # Errors
    /// [`AppError::Report`] for a report that can never be taken in, database errors otherwise.
    #[tracing::instrument(name = "take report", skip_all, fields(subject, response = report.response_id, node = report.node))]
    pub async fn take_report(
        &self,
        delivery: Uuid,
        subject: &str,
        report: &EnforcementReport,
        now: DateTime<Utc>,
    ) -> Result<bool, AppError> {
        let parsed = subject::parse(subject).map_err(|error| AppError::Report(error.to_string()))?;
        let tenant = &parsed.tenant;
        let [_, state, node] = parsed.rest[..] else {
            self.metrics().report_refused("subject");
            return Err(AppError::Report(format!("{subject} names no node")));
        };
        if report.node != node {
            self.metrics().report_refused("node");
            return Err(AppError::Report(format!(
                "it is of the node {node:?}, and claims to be of {:?}",
                shorten(&report.node)
            )));
        }
        let id = Uuid::parse_str(&report.response_id)
            .map_err(|_| AppError::Report("response_id is not a UUID".to_owned()))?;
        let outcome = match report.outcome() {
            enforcement_report::Outcome::Applied => NodeState::Applied,
            enforcement_report::Outcome::Removed => NodeState::Removed,
            enforcement_report::Outcome::Failed => NodeState::Failed,
            enforcement_report::Outcome::Unspecified => {
                return Err(AppError::Report(format!("{} is no outcome", report.outcome)));
            }
        };
        if outcome_word(outcome) != state {
            self.metrics().report_refused("outcome");
            return Err(AppError::Report(format!(
                "it says {:?} on a subject for {state:?}",
                outcome_word(outcome)
            )));
        }
        if !self.may_serve(&report.node, tenant.as_str()) {
            self.metrics().report_refused("tenant");
            return Err(AppError::Report(format!(
                "the node {:?} may not serve the tenant {tenant}",
                shorten(&report.node)
            )));
        }
        let mut tx = self.begin(tenant).await?;
        if !tx.first_delivery(INBOX, delivery).await.during("look into the inbox")? {
            return Ok(false);
        }
        store::lock_tenant(&mut tx, tenant.as_str())
            .await
            .during("lock a tenant")?;
        let Some(mut response) = responses::get(&mut tx, tenant.as_str(), id)
            .await
            .during("load a response")?
        else {
            return Err(AppError::Report(format!("response {id} does not exist in {tenant}")));
        };
        let event = Event::Report {
            node: report.node.clone(),
            outcome,
            expired: report.expired,
            error: shorten(&report.error),
            confirmed: report.confirmed_time.as_ref().and_then(from_timestamp).unwrap_or(now),
        };
        let outcome = response.step(event, now, &self.settings().timing)?;
        let mut effects = Effects::new(&self.inner.info, tenant);
        self.save(&mut tx, tenant, &response, &outcome, None, &mut effects, now)
            .await?;
        let orders = effects.append(&mut tx).await?;
        self.commit(tx, orders, "commit a report").await?;
        if outcome
            .transition
            .as_ref()
            .is_some_and(|t| t.state == garrison_proto::response::v1::ResponseState::Applied)
        {
            self.metrics().contained(&response);
        }
        Ok(true)
    }

    /// Stores a step in a response's life, and what it means for its incidents.
    #[allow(clippy::too_many_arguments)] // one row and its consequences
    pub(super) async fn save(
        &self,
        tx: &mut Tx<'static>,
        tenant: &TenantId,
        response: &Response,
        outcome: &Outcome,
        person: Option<Actor>,
        effects: &mut Effects<'_>,
        now: DateTime<Utc>,
    ) -> Result<(), AppError> {
        responses::update(tx, tenant.as_str(), response, outcome.transition.as_ref(), now)
            .await
            .during("store a response")?;
        if let Some(deadline) = response.deadline {
            self.due().expect(tenant, deadline);
        }
        let history = match outcome.transition {
            Some(_) => responses::history(tx, tenant.as_str(), &[response.id])
                .await
                .during("read a response's history")?
                .remove(&response.id)
                .unwrap_or_default(),
            None => Vec::new(),
        };
        effects.response(response, outcome, history, person);
        if outcome.transition.is_some() {
            self.metrics().response(response.action, response.state);
            self.refresh_incidents(tx, tenant, response, effects, now).await?;
        }
        Ok(())
    }

    /// Sets the incidents of a response to contained or open, as its new state asks for.
    async fn refresh_incidents(
        &self,
        tx: &mut Tx<'static>,
        tenant: &TenantId,
        response: &Response,
        effects: &mut Effects<'_>,
        now: DateTime<Utc>,
    ) -> Result<(), AppError> {
        let ids = responses::incidents_of(tx, tenant.as_str(), response)
            .await
            .during("look up a response's incidents")?;
        let affected = incidents::load(tx, tenant.as_str(), &ids)
            .await
            .during("load incidents")?;
        for mut incident in affected {
            if incident.status == IncidentStatus::Closed {
                continue;
            }
            let states: Vec<_> = responses::load(tx, tenant.as_str(), &incident.responses)
                .await
                .during("load an incident's responses")?
                .into_iter()
                .map(|r| (r.action, r.target.to_string(), r.state))
                .collect();
            let status = if contained(&states) {
                IncidentStatus::Contained
            } else {
                IncidentStatus::Open
            };
            if status != incident.status {
                incident.status = status;
                incident.updated = now;
                incidents::update(tx, tenant.as_str(), &incident)
                    .await
                    .during("store an incident")?;
                let word = match status {
                    IncidentStatus::Contained => "contained",
                    _ => "not contained any more",
                };
                self.note(tx, tenant, incident.id, word, now).await?;
                effects.incident(&incident);
            }
        }
        Ok(())
    }
}
