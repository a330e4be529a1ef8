//! An alert comes in: the path that containment waits for.

use chrono::{DateTime, Utc};
use garrison_bus::Message;
use garrison_db::Tx;
use garrison_proto::{
    TenantId,
    alert::v1::Alert,
    audit::v1::Decision as Verdict,
    resource_name,
    response::v1::{IncidentStatus, ResponseState},
};
use prost::Message as _;
use sqlx::PgConnection;
use tracing::{Instrument as _, info_span};
use uuid::Uuid;

use super::{App, Rules, decide::Occasion, effects::Effects};
use crate::{
    domain::{
        alert::AlertFacts,
        correlation::{Fact, facts, linked},
        incident::Incident,
        ocsf, playbook,
        response::SELF,
    },
    error::{AppError, During as _},
    store::{
        incidents::{self, Note},
        intake::{self, Entered, Entry, Look, Moment, Surroundings},
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

/// An alert on its way in.
pub(super) struct Case<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) delivery: Uuid,
    pub(super) body: &'a Alert,
    pub(super) alert: &'a AlertFacts,
    pub(super) facts: &'a [Fact],
    pub(super) targets: &'a [String],
    pub(super) now: DateTime<Utc>,
}

/// What an alert leads to: to be written, and the orders to be sent then.
struct Decision<'a> {
    entry: Entry<'a>,
    orders: Vec<Message>,
    taken: Taken,
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
        let targets: Vec<String> = playbook::targets(&facts_of_alert)
            .map(|target| target.to_string())
            .collect();
        let case = Case {
            tenant,
            delivery,
            body: alert,
            facts: &facts(&facts_of_alert, &self.settings().correlation),
            alert: &facts_of_alert,
            targets: &targets,
            now,
        };
        // Every round trip to the database is time in which the attacker goes on.
        let taken = match self.take_at_once(&case).await? {
            Some(taken) => taken,
            None => self.take_locked(&case).await?,
        };
        if taken != Taken::Repeat {
            self.metrics().alert(&facts_of_alert, started.elapsed());
        }
        Ok(taken)
    }

    /// Looks without a lock, decides, and writes if nothing has changed since. `None` when something has, or when there is
    /// more to write than that: a tenant's first alert, incidents that become one, an incident that was closed.
    async fn take_at_once(&self, case: &Case<'_>) -> Result<Option<Taken>, AppError> {
        let lane = &self.inner.lane;
        let look = self.look_at(case);
        let around = look.at_once(lane).instrument(info_span!("look around")).await;
        let mut around = around.during("look up what surrounds an alert")?;
        self.keep_allowed(case.tenant, &mut around.situation);
        let rules = around.generation.and_then(|g| self.cached_rules(case.tenant, g));
        let Some(rules) = rules else { return Ok(None) };
        let homes = self.homes(case, &around);
        let incident = match homes.as_slice() {
            [] => None,
            [home] => {
                let found = intake::incident_at_once(lane, case.tenant, *home).await;
                match found.during("load an incident")? {
                    Some(incident) if incident.status != IncidentStatus::Closed => Some(incident),
                    _ => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        let revision = around.revision;
        let effects = Effects::new(&self.inner.info, case.tenant);
        let decision = self.settle(case, &rules, around, &homes, incident, effects)?;
        let entering = decision.entry.at_once(lane, case.tenant, revision);
        let entered = entering.instrument(info_span!("enter")).await;
        match entered.during("store an alert")? {
            Entered::Changed => Ok(None),
            Entered::Repeat => Ok(Some(Taken::Repeat)),
            Entered::Taken => {
                if decision.orders.is_empty() {
                    lane.db().outbox_signal();
                } else {
                    lane.db().hurry(decision.orders);
                }
                self.opened(&decision.taken);
                Ok(Some(decision.taken))
            }
        }
    }

    /// Takes the tenant's lock before it looks. A repeat is found at the end.
    async fn take_locked(&self, case: &Case<'_>) -> Result<Taken, AppError> {
        let tenant = case.tenant;
        let mut tx = self.begin_locked(tenant).await?;
        let mut around = self.look_within(&mut tx, case).await?;
        let generation = match around.generation {
            Some(generation) => generation,
            None => {
                tx.rollback().await.during("roll back")?;
                self.start_tenant(tenant, case.now).await?;
                tx = self.begin_locked(tenant).await?;
                around = self.look_within(&mut tx, case).await?;
                around.generation.unwrap_or_default()
            }
        };
        let rules = self.rules(&mut tx, tenant, generation).await?;
        let mut effects = Effects::new(&self.inner.info, tenant);
        let homes = self.homes(case, &around);
        let mut incident = self.gather(&mut tx, tenant, &homes, &mut effects, case.now).await?;
        if let Some(incident) = &mut incident
            && incident.status == IncidentStatus::Closed
        {
            incident.status = IncidentStatus::Open;
            self.note(&mut tx, tenant, incident.id, "reopened: it goes on", case.now)
                .await?;
        }
        let decision = self.settle(case, &rules, around, &homes, incident, effects)?;
        let entered = decision.entry.within(&mut tx).await.during("store an alert")?;
        if entered != Entered::Taken {
            tx.rollback().await.during("roll back a repeat")?;
            return Ok(Taken::Repeat);
        }
        tx.appended(&decision.entry.outgoing);
        self.commit(tx, decision.orders, "commit an alert").await?;
        self.opened(&decision.taken);
        Ok(decision.taken)
    }

    fn opened(&self, taken: &Taken) {
        if matches!(taken, Taken::In { opened: true, .. }) {
            self.metrics().incident("opened");
        }
    }

    fn look_at<'a>(&self, case: &'a Case<'a>) -> Look<'a> {
        Look {
            tenant: case.tenant,
            alert: case.alert,
            facts: case.facts,
            targets: case.targets,
            moment: Moment {
                now: case.now,
                heard_since: self.alive_since(case.now),
                window_minutes: self.settings().correlation.window_minutes,
            },
        }
    }

    pub(super) async fn look_within(&self, tx: &mut PgConnection, case: &Case<'_>) -> Result<Surroundings, AppError> {
        let around = self.look_at(case).within(tx).await;
        let mut around = around.during("look up what surrounds an alert")?;
        self.keep_allowed(case.tenant, &mut around.situation);
        Ok(around)
    }

    /// The incidents that an alert belongs to.
    fn homes(&self, case: &Case<'_>, around: &Surroundings) -> Vec<Uuid> {
        let mut homes = linked(case.facts, &around.known, &self.settings().correlation);
        homes.extend(around.present.filter(|id| !homes.contains(id)));
        homes
    }

    /// What an alert leads to, given the one incident that it belongs to, if there is one, and which it is made of.
    fn settle<'a>(
        &self,
        case: &Case<'a>,
        rules: &Rules,
        around: Surroundings,
        homes: &[Uuid],
        incident: Option<Incident>,
        mut effects: Effects<'_>,
    ) -> Result<Decision<'a>, AppError> {
        let Case { tenant, alert, now, .. } = *case;
        let mut situation = around.situation;
        // Settled within this incident means: within those that it is made of.
        situation
            .in_play
            .retain(|known| known.settled.is_none_or(|incident| homes.contains(&incident)));
        let (mut incident, opened) = match incident {
            Some(mut incident) => {
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
                Verdict::Allow,
                &incident.title(),
                [("alert", alert.id.to_string()), ("detector", alert.detector.clone())],
            );
        }
        let finding = ocsf::detection_finding(case.body, alert, tenant.as_str(), &name, around.present.is_some());
        effects.siem("detection_finding", ocsf::EVENT_TYPE, &finding)?;
        let (outgoing, orders) = effects.outgoing_once(INBOX, case.delivery)?;
        let taken = Taken::In {
            incident: incident.id,
            opened,
            responses: decided.created.iter().map(|created| created.response.id).collect(),
        };
        let entry = Entry {
            alert,
            body: case.body.encode_to_vec(),
            facts: case.facts,
            incident,
            responses: decided.created,
            outgoing,
            now,
        };
        Ok(Decision { entry, orders, taken })
    }

    /// Loads the incidents that an alert belongs to and merges them into the oldest.
    async fn gather(
        &self,
        tx: &mut Tx<'static>,
        tenant: &TenantId,
        homes: &[Uuid],
        effects: &mut Effects<'_>,
        now: DateTime<Utc>,
    ) -> Result<Option<Incident>, AppError> {
        if homes.is_empty() {
            return Ok(None);
        }
        let mut found = incidents::load(tx, tenant.as_str(), homes)
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
                Verdict::Allow,
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
