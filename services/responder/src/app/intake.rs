//! An alert comes in: the path that containment waits for.

use chrono::{DateTime, Utc};
use garrison_bus::Message;
use garrison_db::Tx;
use garrison_proto::{
    TenantId,
    alert::v1::Alert,
    audit::v1::Decision,
    resource_name,
    response::v1::{IncidentStatus, ResponseState},
};
use prost::Message as _;
use uuid::Uuid;

use super::{App, Rules, decide::Occasion, effects::Effects};
use crate::{
    domain::{
        alert::AlertFacts,
        correlation::{facts, linked},
        incident::Incident,
        ocsf, playbook,
        response::SELF,
    },
    error::{AppError, During as _},
    store::{
        incidents::{self, Note},
        intake::{self, Moment, Surroundings},
        responses::Created,
    },
};

/// The inbox name of this use case.
const INBOX: &str = "alerts";

/// What became of an alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// The message was taken in before.
    Repeat,
    /// It is in this incident now, and led to these responses.
    In {
        /// The incident.
        incident: Uuid,
        /// Whether the alert opened it.
        opened: bool,
        /// Decided because of it.
        responses: Vec<Uuid>,
    },
}

impl App {
    /// Takes an alert in: incident, playbooks, responses and orders in one transaction.
    ///
    /// # Errors
    /// [`AppError::Alert`] for an alert that can never be taken in, database errors otherwise.
    #[tracing::instrument(name = "take alert", skip_all, fields(%tenant, alert = alert.alert_id))]
    pub async fn take_alert(
        &self,
        delivery: Uuid,
        tenant: &TenantId,
        alert: &Alert,
        now: DateTime<Utc>,
    ) -> Result<Taken, AppError> {
        let started = std::time::Instant::now();
        let facts_of_alert = AlertFacts::read(alert, now)?;
        // Every round trip to the database is time in which the attacker goes on. A repeat is found at the end.
        let mut tx = self.begin_locked(tenant).await?;
        let mut around = self.look_around(&mut tx, tenant, &facts_of_alert, now).await?;
        let generation = match around.generation {
            Some(generation) => generation,
            None => {
                tx.rollback().await.during("roll back")?;
                self.start_tenant(tenant, now).await?;
                tx = self.begin_locked(tenant).await?;
                around = self.look_around(&mut tx, tenant, &facts_of_alert, now).await?;
                around.generation.unwrap_or_default()
            }
        };
        let rules = self.rules(&mut tx, tenant, generation).await?;
        let taken = self
            .take_in(&mut tx, tenant, delivery, alert, &facts_of_alert, &rules, around, now)
            .await?;
        let Some((taken, orders)) = taken else {
            tx.rollback().await.during("roll back a repeat")?;
            return Ok(Taken::Repeat);
        };
        self.commit(tx, orders, "commit an alert").await?;
        self.metrics().alert(&facts_of_alert, started.elapsed());
        Ok(taken)
    }

    pub(super) async fn look_around(
        &self,
        tx: &mut Tx<'static>,
        tenant: &TenantId,
        alert: &AlertFacts,
        now: DateTime<Utc>,
    ) -> Result<Surroundings, AppError> {
        let policy = &self.settings().correlation;
        let targets: Vec<String> = playbook::targets(alert).map(|target| target.to_string()).collect();
        let moment = Moment {
            now,
            heard_since: self.alive_since(now),
            window_minutes: policy.window_minutes,
        };
        let mut around = intake::surroundings(tx, tenant.as_str(), alert, &facts(alert, policy), &targets, moment)
            .await
            .during("look up what surrounds an alert")?;
        self.keep_allowed(tenant, &mut around.situation);
        Ok(around)
    }

    // What became of it and the orders, or nothing for a repeat, which must be rolled back.
    #[allow(clippy::too_many_arguments)] // an alert and what it is judged by
    async fn take_in(
        &self,
        tx: &mut Tx<'static>,
        tenant: &TenantId,
        delivery: Uuid,
        body: &Alert,
        alert: &AlertFacts,
        rules: &Rules,
        around: Surroundings,
        now: DateTime<Utc>,
    ) -> Result<Option<(Taken, Vec<Message>)>, AppError> {
        let mut effects = Effects::new(&self.inner.info, tenant);
        let policy = &self.settings().correlation;
        let new_facts = facts(alert, policy);
        let mut homes = linked(&new_facts, &around.known, policy);
        homes.extend(around.present.filter(|id| !homes.contains(id)));
        let mut situation = around.situation;
        // Settled within this incident means: within those that it is made of.
        situation
            .in_play
            .retain(|known| known.settled.is_none_or(|incident| homes.contains(&incident)));

        let (mut incident, opened) = match self.gather(tx, tenant, homes, &mut effects, now).await? {
            Some(mut incident) => {
                if incident.status == IncidentStatus::Closed {
                    incident.status = IncidentStatus::Open;
                    self.note(tx, tenant, incident.id, "reopened: it goes on", now).await?;
                }
                incident.absorb(alert, around.present.is_none(), now);
                (incident, false)
            }
            None => (Incident::open(Uuid::now_v7(), alert, now), true),
        };

        let internal = self.internal(tenant);
        let wanted = rules
            .playbooks
            .iter()
            .filter(|p| p.matches(alert, &incident, internal))
            .flat_map(|p| p.drafts(alert))
            .collect();
        let occasion = Occasion {
            incident: Some(incident.id),
            alert: Some((alert.id, alert.trigger_time)),
            person: None,
            request: None,
        };
        let drafts = playbook::strongest(wanted);
        let decided = self.decide(tenant, rules, situation, drafts, &occasion, &mut effects, now);
        for Created { response, .. } in &decided.created {
            incident.add_response(response.id);
            if response.state != ResponseState::Unspecified {
                incident.status = IncidentStatus::Open;
            }
        }
        for id in &decided.linked {
            incident.add_response(*id);
        }
        let name = resource_name("incidents", incident.id);
        effects.incident(&incident);
        if opened {
            effects.audit(
                effects.own_actor(),
                "incident.opened",
                &name,
                Decision::Allow,
                &incident.title(),
                [("alert", alert.id.to_string()), ("detector", alert.detector.clone())],
            );
        }
        let finding = ocsf::detection_finding(body, alert, tenant.as_str(), &name, around.present.is_some());
        effects.siem("detection_finding", ocsf::EVENT_TYPE, &finding)?;
        let (outgoing, orders) = effects.outgoing_once(INBOX, delivery)?;
        let first = intake::put(
            tx,
            tenant.as_str(),
            alert,
            &body.encode_to_vec(),
            &new_facts,
            &incident,
            &decided.created,
            &outgoing,
            now,
        )
        .await
        .during("store an alert")?;
        if !first {
            return Ok(None);
        }
        tx.appended(&outgoing);
        if opened {
            self.metrics().incident("opened");
        }
        let taken = Taken::In {
            incident: incident.id,
            opened,
            responses: decided.created.iter().map(|created| created.response.id).collect(),
        };
        Ok(Some((taken, orders)))
    }

    /// Loads the incidents that an alert belongs to and merges them into the oldest.
    async fn gather(
        &self,
        tx: &mut Tx<'static>,
        tenant: &TenantId,
        homes: Vec<Uuid>,
        effects: &mut Effects<'_>,
        now: DateTime<Utc>,
    ) -> Result<Option<Incident>, AppError> {
        if homes.is_empty() {
            return Ok(None);
        }
        let mut found = incidents::load(tx, tenant.as_str(), &homes)
            .await
            .during("load incidents")?;
        found.sort_by_key(|i| (i.created, i.id));
        let mut found = found.into_iter();
        let Some(mut kept) = found.next() else {
            return Ok(None);
        };
        for mut other in found {
            kept.merge(&mut other, now);
            incidents::update(tx, tenant.as_str(), &other)
                .await
                .during("close a merged incident")?;
            incidents::move_contents(tx, tenant.as_str(), other.id, kept.id)
                .await
                .during("merge incidents")?;
            let (from, into) = (
                resource_name("incidents", other.id),
                resource_name("incidents", kept.id),
            );
            self.note(tx, tenant, kept.id, &format!("took in {from}"), now).await?;
            effects.incident(&other);
            effects.audit(
                effects.own_actor(),
                "incident.merged",
                &from,
                Decision::Allow,
                "one alert belongs to both",
                [("into", into)],
            );
            self.metrics().incident("merged");
        }
        Ok(Some(kept))
    }

    /// Adds a remark by the responder itself to an incident.
    pub(super) async fn note(
        &self,
        tx: &mut Tx<'static>,
        tenant: &TenantId,
        incident: Uuid,
        summary: &str,
        now: DateTime<Utc>,
    ) -> Result<(), AppError> {
        let note = Note {
            time: now,
            summary: summary.to_owned(),
            subject: resource_name("incidents", incident),
            actor: SELF.to_owned(),
        };
        incidents::add_note(tx, tenant.as_str(), incident, &note)
            .await
            .during("add a note to an incident")
    }
}
