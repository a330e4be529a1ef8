//! Reading and closing incidents, and the alerts in them.

use chrono::{DateTime, Utc};
use garrison_auth::Caller;
use garrison_proto::{
    TenantId,
    alert::v1::Alert,
    audit::v1::Decision,
    from_timestamp, resource_name,
    response::v1::{self as proto, IncidentStatus, ResponseState},
};
use prost::Message as _;
use uuid::Uuid;

use super::{App, effects::Effects};
use crate::{
    domain::{
        incident::Incident,
        response::{action_word, is_active, state_word},
    },
    error::{AppError, During as _},
    store::{
        incidents::{self, Note},
        intake::{self, AlertQuery, StoredAlert},
        responses,
    },
};

/// Most alerts, notes and responses in one timeline.
const MAX_TIMELINE: i64 = 2000;

/// One thing that happened in an incident.
#[derive(Debug, Clone)]
pub struct TimelineEntry {
    /// When.
    pub time: DateTime<Utc>,
    /// `alert`, `incident` or `response`.
    pub kind: &'static str,
    /// In words.
    pub summary: String,
    /// Resource name or id.
    pub subject: String,
    /// Who.
    pub actor: String,
}

/// An alert as it was taken in.
#[derive(Debug)]
pub struct ListedAlert {
    /// When it was taken in.
    pub received: DateTime<Utc>,
    /// Its id.
    pub id: Uuid,
    /// Its incident.
    pub incident: Uuid,
    /// The alert.
    pub alert: Alert,
}

fn read_alert(stored: StoredAlert) -> Result<ListedAlert, AppError> {
    let alert = Alert::decode(stored.body.as_slice())
        .map_err(|e| sqlx::Error::Decode(e.into()))
        .during("read a stored alert")?;
    Ok(ListedAlert {
        received: stored.received,
        id: stored.id,
        incident: stored.incident,
        alert,
    })
}

impl App {
    /// A page of alerts, the youngest first.
    ///
    /// # Errors
    /// Database errors.
    pub async fn list_alerts(&self, tenant: &TenantId, query: &AlertQuery) -> Result<Vec<ListedAlert>, AppError> {
        let mut tx = self.begin(tenant).await?;
        let found = intake::list(&mut tx, tenant.as_str(), query)
            .await
            .during("list alerts")?;
        found.into_iter().map(read_alert).collect()
    }

    /// One alert.
    ///
    /// # Errors
    /// Database errors.
    pub async fn get_alert(&self, tenant: &TenantId, id: Uuid) -> Result<Option<ListedAlert>, AppError> {
        let mut tx = self.begin(tenant).await?;
        let found = intake::get(&mut tx, tenant.as_str(), id)
            .await
            .during("load an alert")?;
        found.map(read_alert).transpose()
    }

    /// A page of incidents, the youngest first.
    ///
    /// # Errors
    /// Database errors.
    pub async fn list_incidents(
        &self,
        tenant: &TenantId,
        statuses: &[i16],
        after: Option<(DateTime<Utc>, Uuid)>,
        limit: i64,
    ) -> Result<Vec<Incident>, AppError> {
        let mut tx = self.begin(tenant).await?;
        incidents::list(&mut tx, tenant.as_str(), statuses, after, limit)
            .await
            .during("list incidents")
    }

    /// One incident; of one that was merged, itself, with the name of the other.
    ///
    /// # Errors
    /// Database errors.
    pub async fn get_incident(&self, tenant: &TenantId, id: Uuid) -> Result<Option<Incident>, AppError> {
        let mut tx = self.begin(tenant).await?;
        incidents::get(&mut tx, tenant.as_str(), id)
            .await
            .during("load an incident")
    }

    /// Everything that happened in an incident, the oldest first.
    ///
    /// # Errors
    /// Database errors.
    pub async fn timeline(&self, tenant: &TenantId, id: Uuid) -> Result<Option<Vec<TimelineEntry>>, AppError> {
        let mut tx = self.begin(tenant).await?;
        let Some(incident) = incidents::get(&mut tx, tenant.as_str(), id)
            .await
            .during("load an incident")?
        else {
            return Ok(None);
        };
        let name = resource_name("incidents", id);
        let mut entries = vec![TimelineEntry {
            time: incident.created,
            kind: "incident",
            summary: format!("opened: {}", incident.headline),
            subject: name,
            actor: crate::domain::response::SELF.to_owned(),
        }];
        let notes = incidents::notes(&mut tx, tenant.as_str(), id, MAX_TIMELINE)
            .await
            .during("read an incident's notes")?;
        entries.extend(notes.into_iter().map(|note| TimelineEntry {
            time: note.time,
            kind: "incident",
            summary: note.summary,
            subject: note.subject,
            actor: note.actor,
        }));
        let alerts = intake::of_incident(&mut tx, tenant.as_str(), id, MAX_TIMELINE)
            .await
            .during("read an incident's alerts")?;
        for stored in alerts {
            let listed = read_alert(stored)?;
            entries.push(alert_entry(&listed));
        }
        let actions = responses::load(&mut tx, tenant.as_str(), &incident.responses)
            .await
            .during("read an incident's responses")?;
        let mut history = responses::history(&mut tx, tenant.as_str(), &incident.responses)
            .await
            .during("read histories")?;
        for response in actions {
            let what = format!("{} {}", action_word(response.action), response.target);
            for step in history.remove(&response.id).unwrap_or_default() {
                entries.push(step_entry(&what, response.id, &step, response.created));
            }
        }
        entries.sort_by_key(|e| e.time);
        Ok(Some(entries))
    }

    /// Closes an incident. Responses in force stay until they are rolled back or expire; what waits for
    /// approval must be decided first.
    ///
    /// # Errors
    /// [`AppError::NotFound`], [`AppError::IncidentState`], database errors.
    pub async fn close_incident(
        &self,
        caller: &Caller,
        id: Uuid,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<proto::Incident, AppError> {
        if reason.is_empty() || reason.len() > 500 {
            return Err(AppError::field("reason", "give a reason of 1 to 500 bytes"));
        }
        let tenant = &caller.tenant;
        let mut tx = self.begin(tenant).await?;
        self.lock_rules(&mut tx, tenant, now).await?;
        let name = resource_name("incidents", id);
        let mut incident = incidents::get(&mut tx, tenant.as_str(), id)
            .await
            .during("load an incident")?
            .ok_or_else(|| AppError::NotFound(name.clone()))?;
        if incident.status == IncidentStatus::Closed {
            return Ok(incident.to_proto());
        }
        let waiting = responses::load(&mut tx, tenant.as_str(), &incident.responses)
            .await
            .during("read an incident's responses")?
            .into_iter()
            .find(|r| is_active(r.state) && r.state == ResponseState::PendingApproval);
        if let Some(waiting) = waiting {
            return Err(AppError::IncidentState(format!(
                "{} waits for approval; approve or reject it before closing {name}",
                resource_name("responses", waiting.id)
            )));
        }
        incident.status = IncidentStatus::Closed;
        incident.updated = now;
        incidents::update(&mut tx, tenant.as_str(), &incident)
            .await
            .during("close an incident")?;
        incidents::forget_facts(&mut tx, tenant.as_str(), id)
            .await
            .during("close an incident")?;
        let note = Note {
            time: now,
            summary: format!("closed: {reason}"),
            subject: name.clone(),
            actor: caller.principal.to_string(),
        };
        incidents::add_note(&mut tx, tenant.as_str(), id, &note)
            .await
            .during("add a note to an incident")?;
        let mut effects = Effects::new(&self.inner.info, tenant);
        effects.incident(&incident);
        effects.audit(caller.actor(), "incident.closed", &name, Decision::Allow, reason, []);
        let orders = effects.append(&mut tx).await?;
        self.commit(tx, orders, "close an incident").await?;
        self.metrics().incident("closed");
        Ok(incident.to_proto())
    }
}

fn alert_entry(listed: &ListedAlert) -> TimelineEntry {
    let alert = &listed.alert;
    let who = alert.entity.as_ref().map_or("?", |e| e.value.as_str());
    let time = [&alert.detected_time, &alert.last_seen]
        .into_iter()
        .flatten()
        .find_map(from_timestamp)
        .unwrap_or(listed.received);
    TimelineEntry {
        time,
        kind: "alert",
        summary: alert.title.clone(),
        subject: listed.id.to_string(),
        actor: format!("{} ({who})", alert.detector),
    }
}

fn step_entry(what: &str, id: Uuid, step: &proto::Transition, created: DateTime<Utc>) -> TimelineEntry {
    let detail = if step.detail.is_empty() {
        String::new()
    } else {
        format!(" ({})", step.detail)
    };
    TimelineEntry {
        time: step.time.as_ref().and_then(from_timestamp).unwrap_or(created),
        kind: "response",
        summary: format!("{what}: {}{detail}", state_word(step.state())),
        subject: resource_name("responses", id),
        actor: step.actor.clone(),
    }
}
