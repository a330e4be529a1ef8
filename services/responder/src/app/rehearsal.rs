//! The path of an alert, walked without one: connections, plans and code are warm when an attack comes.

use std::time::Duration;

use chrono::Utc;
use garrison_db::Rehearsal;
use garrison_proto::{
    alert::v1::{Alert, Entity, EntityKind, Severity},
    response::v1::ResponseState,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{App, LANE, effects::Effects, intake::Case};
use crate::{
    domain::{
        alert::AlertFacts,
        correlation::facts,
        incident::Incident,
        response::{Action, Draft, Response, Transition},
    },
    error::{AppError, During as _},
    store::{
        intake::{self, Entry},
        responses::Created,
    },
};

/// How often. A connection that was lost, or plans that new statistics made stale, cost one alert this at most.
const EVERY: Duration = Duration::from_secs(60);

impl App {
    /// Rehearses at once and then every minute until `shutdown`.
    ///
    /// # Errors
    /// None; the type is what a supervised task has.
    pub async fn keep_rehearsed(self, shutdown: CancellationToken) -> Result<(), AppError> {
        loop {
            if let Err(error) = self.rehearse().await {
                tracing::debug!(error = &error as &dyn std::error::Error, "no rehearsal");
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    /// Walks through once on each connection of the lane. Nothing of it stays.
    ///
    /// # Errors
    /// Database errors.
    pub async fn rehearse(&self) -> Result<(), AppError> {
        for _ in 0..LANE {
            let mut rehearsal = self.inner.lane.rehearsal().await.during("begin a rehearsal")?;
            self.walk_through(&mut rehearsal).await?;
            rehearsal.end().await.during("end a rehearsal")?;
        }
        Ok(())
    }

    // Everything that `take_alert` asks of the database, with an alert that blocks its source.
    async fn walk_through(&self, tx: &mut Rehearsal) -> Result<(), AppError> {
        let now = Utc::now();
        let tenant = tx.tenant().clone();
        let body = Alert {
            alert_id: Uuid::now_v7().to_string(),
            detector: "rehearsal".to_owned(),
            title: "rehearsal".to_owned(),
            entity: Some(Entity {
                kind: EntityKind::Host as i32,
                value: "192.0.2.1".to_owned(),
            }),
            severity: Severity::High as i32,
            ..Alert::default()
        };
        let alert = AlertFacts::read(&body, now)?;
        let delivery = Uuid::now_v7();
        let case = Case {
            tenant: &tenant,
            delivery,
            body: &body,
            alert: &alert,
            facts: &facts(&alert, &self.settings().correlation),
            targets: &[],
            now,
        };
        self.look_within(tx, &case).await?;
        let incident = Incident::open(Uuid::now_v7(), &alert, now);
        let nothing = intake::incident_within(tx, &tenant, incident.id).await;
        nothing.during("load an incident")?;
        let Some(address) = alert.source.address else {
            return Ok(());
        };
        let Ok(target) = address.try_into() else {
            return Ok(());
        };
        let draft = Draft {
            action: Action::Block,
            target,
            ttl: None,
            packets_per_second: 0,
            priority: 0,
            approval: false,
            playbook: "rehearsal".to_owned(),
            reason: String::new(),
        };
        let created = Created {
            response: Response::new(Uuid::now_v7(), draft, Some(incident.id), None, now),
            step: Transition {
                state: ResponseState::Refused,
                actor: "rehearsal".to_owned(),
                detail: String::new(),
            },
            request: None,
        };
        let mut effects = Effects::new(&self.inner.info, &tenant);
        effects.incident(&incident);
        let (outgoing, _) = effects.outgoing_once("rehearsal", delivery)?;
        let entry = Entry {
            alert: &alert,
            body: Vec::new(),
            facts: case.facts,
            incident,
            responses: vec![created],
            outgoing,
            now,
        };
        entry.within(tx).await.during("store an alert")?;
        Ok(())
    }
}
