//! What people do with responses.

use chrono::{DateTime, Duration, Utc};
use garrison_auth::Caller;
use garrison_db::Tx;
use garrison_proto::{
    TenantId, resource_name,
    response::v1::{self as proto, IncidentStatus},
};
use uuid::Uuid;

use super::{App, Rules, decide::Occasion, effects::Effects};
use crate::{
    domain::{
        guard::{self, Target},
        playbook::{MAX_TTL, Violation},
        response::{Action, Draft, Event, Response},
    },
    error::{AppError, During as _},
    store::{incidents, responses},
};

/// The longest reason, in bytes.
const MAX_REASON: usize = 500;

/// An action that a person asks for.
#[derive(Debug, Clone)]
pub struct NewResponse {
    /// What.
    pub action: Action,
    /// An address or block.
    pub target: String,
    /// How long; `None` until rolled back.
    pub ttl: Option<Duration>,
    /// For rate limits.
    pub packets_per_second: u32,
    /// The incident it belongs to, if any.
    pub incident: Option<Uuid>,
    /// Why.
    pub reason: String,
    /// The client's own id; a repeat answers with the first response.
    pub request: Option<Uuid>,
}

fn check_reason(reason: &str) -> Result<(), AppError> {
    if reason.len() > MAX_REASON {
        return Err(AppError::field(
            "reason",
            format!("{} bytes are more than {MAX_REASON}", reason.len()),
        ));
    }
    Ok(())
}

fn read_draft(wanted: &NewResponse) -> Result<Draft, AppError> {
    let mut wrong = Vec::new();
    let mut violation = |field: &str, message: String| {
        wrong.push(Violation {
            field: field.to_owned(),
            message,
        });
    };
    if wanted.action == Action::Unspecified {
        violation("action", "say what to do: block, rate-limit or isolate".to_owned());
    }
    let target = match wanted.target.parse::<Target>() {
        Ok(target) => Some(target),
        Err(error) => {
            violation("target", error.to_string());
            None
        }
    };
    if wanted
        .ttl
        .is_some_and(|ttl| ttl < Duration::seconds(1) || ttl > MAX_TTL)
    {
        violation("ttl", "not within 1 second to 30 days".to_owned());
    }
    if (wanted.action == Action::RateLimit) != (wanted.packets_per_second > 0) {
        violation(
            "packets_per_second",
            "a rate limit needs a number from 1 on, and nothing else has one".to_owned(),
        );
    }
    if wanted.reason.is_empty() || wanted.reason.len() > MAX_REASON {
        violation("reason", format!("give a reason of 1 to {MAX_REASON} bytes"));
    }
    match target {
        Some(target) if wrong.is_empty() => Ok(Draft {
            action: wanted.action,
            target,
            ttl: wanted.ttl,
            packets_per_second: wanted.packets_per_second,
            // A person's word is above every playbook's.
            priority: 1000,
            approval: false,
            playbook: String::new(),
            reason: wanted.reason.clone(),
        }),
        _ => Err(AppError::Invalid(wrong)),
    }
}

impl App {
    /// Does what a person asks for, within the same limits as a playbook. When the action is in force on the
    /// target already, answers with that response.
    ///
    /// # Errors
    /// [`AppError::Invalid`], [`AppError::NotFound`] for the incident, database errors. A refusal by the
    /// allow-list or a limit is no error: the response is in state REFUSED.
    pub async fn create_response(
        &self,
        caller: &Caller,
        wanted: &NewResponse,
        now: DateTime<Utc>,
    ) -> Result<proto::Response, AppError> {
        let draft = read_draft(wanted)?;
        let tenant = &caller.tenant;
        let mut tx = self.begin(tenant).await?;
        let rules = self.lock_rules(&mut tx, tenant, now).await?;
        if let Some(request) = wanted.request
            && let Some(known) = responses::by_request(&mut tx, tenant.as_str(), request)
                .await
                .during("look up a request")?
        {
            return self.describe(&mut tx, tenant, &known).await;
        }
        let mut incident = match wanted.incident {
            None => None,
            Some(id) => Some(self.open_incident(&mut tx, tenant, id).await?),
        };
        let mut effects = Effects::new(&self.inner.info, tenant);
        let occasion = Occasion {
            incident: incident.as_ref().map(|i| i.id),
            alert: None,
            person: Some(caller.actor()),
            request: wanted.request,
        };
        let drafts = vec![draft];
        let situation = self.situation(&mut tx, tenant, &drafts, occasion.incident, now).await?;
        let decided = self.decide(tenant, &rules, situation, drafts, &occasion, &mut effects, now);
        responses::insert(&mut tx, tenant.as_str(), &decided.created, now)
            .await
            .during("store a response")?;
        let id = decided
            .created
            .first()
            .map(|created| created.response.id)
            .or_else(|| decided.linked.first().copied());
        if let (Some(incident), Some(id)) = (&mut incident, id) {
            incident.add_response(id);
            if !decided.created.is_empty() {
                incident.status = IncidentStatus::Open;
            }
            incident.updated = now;
            incidents::update(&mut tx, tenant.as_str(), incident)
                .await
                .during("store an incident")?;
            effects.incident(incident);
        }
        let orders = effects.append(&mut tx).await?;
        let response = match id {
            Some(id) => responses::get(&mut tx, tenant.as_str(), id)
                .await
                .during("load a response")?,
            None => None,
        };
        let response = response.ok_or_else(|| AppError::NotFound("the response".to_owned()))?;
        let answer = self.describe(&mut tx, tenant, &response).await?;
        self.commit(tx, orders, "commit a response").await?;
        Ok(answer)
    }

    async fn open_incident(
        &self,
        tx: &mut Tx<'static>,
        tenant: &TenantId,
        id: Uuid,
    ) -> Result<crate::domain::incident::Incident, AppError> {
        let name = resource_name("incidents", id);
        let found = incidents::get(tx, tenant.as_str(), id)
            .await
            .during("load an incident")?
            .ok_or_else(|| AppError::NotFound(name.clone()))?;
        let found = match found.merged_into {
            Some(into) => incidents::get(tx, tenant.as_str(), into)
                .await
                .during("load an incident")?
                .ok_or_else(|| AppError::NotFound(name.clone()))?,
            None => found,
        };
        if found.status == IncidentStatus::Closed {
            return Err(AppError::IncidentState(format!("{name} is closed")));
        }
        Ok(found)
    }

    /// Approves a response. The limits are checked again: what has changed since it was asked for counts.
    ///
    /// # Errors
    /// [`AppError::NotFound`], [`AppError::WrongState`], database errors.
    pub async fn approve_response(
        &self,
        caller: &Caller,
        id: Uuid,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<proto::Response, AppError> {
        check_reason(reason)?;
        let tenant = &caller.tenant;
        let mut tx = self.begin(tenant).await?;
        let rules = self.lock_rules(&mut tx, tenant, now).await?;
        let response = self.existing(&mut tx, tenant, id).await?;
        let event = self
            .approval(&mut tx, tenant, &rules, &response, caller, reason, now)
            .await?;
        self.apply_event(tx, caller, response, event, now).await
    }

    #[allow(clippy::too_many_arguments)] // what an approval is judged by
    async fn approval(
        &self,
        tx: &mut Tx<'static>,
        tenant: &TenantId,
        rules: &Rules,
        response: &Response,
        caller: &Caller,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<Event, AppError> {
        let actor = caller.principal.to_string();
        let draft = Draft {
            action: response.action,
            target: response.target,
            ttl: response.ttl,
            packets_per_second: response.packets_per_second,
            priority: response.priority,
            approval: false,
            playbook: String::new(),
            reason: String::new(),
        };
        let situation = self.situation(tx, tenant, &[draft], response.incident, now).await?;
        if let Err(refusal) = guard::check(response.target, &rules.protected, self.limits(tenant), &situation.usage) {
            return Ok(Event::Reject {
                actor,
                detail: format!("approved, but {refusal}"),
            });
        }
        Ok(Event::Approve {
            actor,
            detail: reason.to_owned(),
            nodes: situation.nodes,
        })
    }

    /// Turns a response down.
    ///
    /// # Errors
    /// [`AppError::NotFound`], [`AppError::WrongState`], database errors.
    pub async fn reject_response(
        &self,
        caller: &Caller,
        id: Uuid,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<proto::Response, AppError> {
        check_reason(reason)?;
        let mut tx = self.begin(&caller.tenant).await?;
        self.lock_rules(&mut tx, &caller.tenant, now).await?;
        let response = self.existing(&mut tx, &caller.tenant, id).await?;
        let event = Event::Reject {
            actor: caller.principal.to_string(),
            detail: reason.to_owned(),
        };
        self.apply_event(tx, caller, response, event, now).await
    }

    /// Undoes a response.
    ///
    /// # Errors
    /// [`AppError::NotFound`], [`AppError::WrongState`], database errors.
    pub async fn roll_back_response(
        &self,
        caller: &Caller,
        id: Uuid,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<proto::Response, AppError> {
        check_reason(reason)?;
        let tenant = &caller.tenant;
        let mut tx = self.begin(tenant).await?;
        self.lock_rules(&mut tx, tenant, now).await?;
        let response = self.existing(&mut tx, tenant, id).await?;
        let situation = self.situation(&mut tx, tenant, &[], None, now).await?;
        let event = Event::Rollback {
            actor: caller.principal.to_string(),
            detail: reason.to_owned(),
            nodes: situation.nodes,
        };
        self.apply_event(tx, caller, response, event, now).await
    }

    async fn existing(&self, tx: &mut Tx<'static>, tenant: &TenantId, id: Uuid) -> Result<Response, AppError> {
        responses::get(tx, tenant.as_str(), id)
            .await
            .during("load a response")?
            .ok_or_else(|| AppError::NotFound(resource_name("responses", id)))
    }

    async fn apply_event(
        &self,
        mut tx: Tx<'static>,
        caller: &Caller,
        mut response: Response,
        event: Event,
        now: DateTime<Utc>,
    ) -> Result<proto::Response, AppError> {
        let tenant = &caller.tenant;
        let outcome = response.step(event, now, &self.settings().timing)?;
        let mut effects = Effects::new(&self.inner.info, tenant);
        self.save(
            &mut tx,
            tenant,
            &response,
            &outcome,
            Some(caller.actor()),
            &mut effects,
            now,
        )
        .await?;
        let orders = effects.append(&mut tx).await?;
        let answer = self.describe(&mut tx, tenant, &response).await?;
        self.commit(tx, orders, "commit a response").await?;
        Ok(answer)
    }

    async fn describe(
        &self,
        tx: &mut Tx<'static>,
        tenant: &TenantId,
        response: &Response,
    ) -> Result<proto::Response, AppError> {
        let history = responses::history(tx, tenant.as_str(), &[response.id])
            .await
            .during("read a response's history")?
            .remove(&response.id)
            .unwrap_or_default();
        Ok(response.to_proto(history))
    }

    /// One response with its history.
    ///
    /// # Errors
    /// Database errors.
    pub async fn get_response(&self, tenant: &TenantId, id: Uuid) -> Result<Option<proto::Response>, AppError> {
        let mut tx = self.begin(tenant).await?;
        let found = responses::get(&mut tx, tenant.as_str(), id)
            .await
            .during("load a response")?;
        match found {
            Some(response) => Ok(Some(self.describe(&mut tx, tenant, &response).await?)),
            None => Ok(None),
        }
    }

    /// A page of responses, the youngest first, each with its history.
    ///
    /// # Errors
    /// Database errors.
    pub async fn list_responses(
        &self,
        tenant: &TenantId,
        states: &[i16],
        incident: Option<Uuid>,
        after: Option<(DateTime<Utc>, Uuid)>,
        limit: i64,
    ) -> Result<Vec<(DateTime<Utc>, Uuid, proto::Response)>, AppError> {
        let mut tx = self.begin(tenant).await?;
        let found = responses::list(&mut tx, tenant.as_str(), states, incident, after, limit)
            .await
            .during("list responses")?;
        let ids: Vec<Uuid> = found.iter().map(|r| r.id).collect();
        let mut history = responses::history(&mut tx, tenant.as_str(), &ids)
            .await
            .during("read histories")?;
        Ok(found
            .into_iter()
            .map(|r| {
                let steps = history.remove(&r.id).unwrap_or_default();
                (r.created, r.id, r.to_proto(steps))
            })
            .collect())
    }
}
