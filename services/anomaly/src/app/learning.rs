//! Learning what is normal, and training on it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::DateTime;
use garrison_bus::{Message, subject};
use garrison_proto::{TenantId, alert::v1::Model, audit::v1::Actor, event::v1::ModelChanged};
use garrison_service::audit;
use tokio_util::sync::CancellationToken;

use super::{Engine, cell::Cell, recorded, registry::NewModel};
use crate::{
    INFO,
    domain::{
        detector::Detector,
        tenant::{Origin, Phase, Tenant, Trained, TrainingJob},
    },
    error::Error,
};

/// How often it is looked whether a learnt period is over.
const LOOK: Duration = Duration::from_millis(250);
/// Pause before a trained model is stored that could not be.
const PAUSE: Duration = Duration::from_millis(500);

impl Engine {
    /// The tenant's model, and how many alerts each detector has raised.
    ///
    /// # Errors
    /// When the tenant cannot be loaded.
    pub async fn model(&self, id: &TenantId) -> Result<(Model, [u64; Detector::ALL.len()]), Error> {
        let seen = self.see(id).await?;
        let tenant = seen.tenant().ok_or_else(|| missing(id))?;
        Ok((tenant.model(), tenant.alerts))
    }

    /// Starts a learnt period.
    ///
    /// # Errors
    /// [`Error::Phase`] while training; otherwise when it cannot be saved, and then nothing has changed.
    pub async fn start_learning(&self, id: &TenantId, actor: Actor, origin: Origin) -> Result<Model, Error> {
        let cell = self.own(id).await?;
        let now = (self.clock)();
        let start = |tenant: &mut Tenant| {
            tenant.start_learning_from(now, false, origin)?;
            let whole = (origin == Origin::WholePeriod).to_string();
            let details = BTreeMap::from([("include_unusual".to_owned(), whole)]);
            let record = changed(id, actor, "learning.started", tenant.version, details);
            Ok((tenant.model(), vec![record]))
        };
        self.change(id, &cell, start, None).await
    }

    /// Ends the learnt period and starts training.
    ///
    /// # Errors
    /// [`Error::Phase`] when it is not learning or has learnt too little; otherwise when it cannot be saved, and then
    /// nothing has changed.
    pub async fn finish_learning(self: &Arc<Self>, id: &TenantId, actor: Actor) -> Result<Model, Error> {
        let cell = self.own(id).await?;
        let least = self.options.min_flows;
        let finish = |tenant: &mut Tenant| {
            tenant.finish_learning(least)?;
            let model = tenant.model();
            let details = BTreeMap::from([("learnt_flows".to_owned(), model.learnt_flows.to_string())]);
            let record = changed(id, actor, "learning.finished", tenant.version, details);
            Ok((model, vec![record]))
        };
        let model = self.change(id, &cell, finish, None).await?;
        self.train(id);
        Ok(model)
    }

    /// Ends learnt periods whose time is over, and takes up trainings that a restart cut off, until shutdown.
    pub async fn follow_learning(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            for (id, cell) in self.cells() {
                let due = match cell.slot.try_lock() {
                    Ok(slot) => slot.tenant.as_ref().map(|tenant| self.due(tenant)),
                    Err(_) => None,
                };
                match due {
                    Some(Due::Finish) => {
                        let actor = audit::service_actor(&INFO);
                        if let Err(error) = self.finish_learning(&id, actor).await {
                            tracing::warn!(%error, tenant = %id, "a learnt period could not be ended; trying again");
                        }
                    }
                    Some(Due::Train) => self.train(&id),
                    Some(Due::Update) => {
                        let actor = audit::service_actor(&INFO);
                        if let Err(error) = self.update_model(&id, actor).await {
                            tracing::warn!(%error, tenant = %id, "no candidate could be learnt; trying again");
                        }
                    }
                    Some(Due::Promote(version)) => {
                        let actor = audit::service_actor(&INFO);
                        if let Err(error) = self.promote_model(&id, actor, version, false).await {
                            tracing::warn!(%error, tenant = %id, version, "a candidate could not be promoted; trying again");
                        }
                    }
                    Some(Due::Nothing) | None => {}
                }
            }
        }
    }

    fn due(&self, tenant: &Tenant) -> Due {
        match &tenant.phase {
            Phase::Learning(learning) if learning.automatic && !self.options.auto_learning.is_zero() => {
                let passed = (self.clock)().saturating_sub(learning.started);
                let over = u128::try_from(passed).is_ok_and(|n| n >= self.options.auto_learning.as_nanos());
                let enough = learning.sample.len() as u64 >= self.options.min_flows;
                if over && enough { Due::Finish } else { Due::Nothing }
            }
            Phase::Training(_) => Due::Train,
            Phase::Scoring => self.due_candidate(tenant),
            _ => Due::Nothing,
        }
    }

    fn due_candidate(&self, tenant: &Tenant) -> Due {
        let (settings, roles) = (&tenant.settings.candidate, &tenant.models.roles);
        if let Some(candidate) = roles.candidate.as_ref().filter(|_| settings.automatic)
            && candidate.hindrance(settings, tenant.settings.spot.rate).is_empty()
        {
            return Due::Promote(candidate.version());
        }
        let Some(live) = tenant.live.as_ref().filter(|_| settings.update_every > 0) else {
            return Due::Nothing;
        };
        let since = (self.clock)().saturating_sub(roles.updated.max(live.trained));
        let enough = tenant.models.recent.len() as u64 >= self.options.min_flows;
        if since >= settings.update_every && enough {
            Due::Update
        } else {
            Due::Nothing
        }
    }

    // Trains beside the stream of messages. A tenant trains once at a time.
    pub(super) fn train(self: &Arc<Self>, id: &TenantId) {
        let Some(cell) = self.find(id) else { return };
        if !Self::begin_training(&cell) {
            return;
        }
        let (engine, id) = (Arc::clone(self), id.clone());
        tokio::spawn(async move {
            engine.train_now(&id, &cell).await;
            Self::end_training(&cell);
        });
    }

    async fn train_now(&self, id: &TenantId, cell: &Arc<Cell>) {
        let job = {
            let slot = cell.slot.lock().await;
            slot.tenant.as_ref().and_then(Tenant::training_job)
        };
        let Some(job) = job else { return };
        tracing::info!(tenant = %id, "training a model");
        let outcome = match tokio::task::spawn_blocking(move || TrainingJob::run(job)).await {
            Ok(Ok(trained)) => Ok(trained),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(format!("GAR-ANOM-0004: training died: {error}")),
        };
        let mut outcome = Some(outcome);
        // The database may be away; the result of minutes of work is kept until it is stored.
        while let Some(result) = outcome.take() {
            match self.conclude(id, cell, result).await {
                Ok(()) => {}
                // Whoever judges the tenant now trains it.
                Err((Error::Elsewhere { .. }, _)) => {}
                Err((error, result)) => {
                    tracing::warn!(%error, tenant = %id, "a trained model could not be stored; trying again");
                    outcome = Some(result);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn conclude(
        &self,
        id: &TenantId,
        cell: &Arc<Cell>,
        result: Result<Trained, String>,
    ) -> Result<(), (Error, Result<Trained, String>)> {
        let now = (self.clock)();
        match result {
            Ok(trained) => {
                let stored = trained.stored.clone();
                let profile = Arc::clone(&trained.profile);
                let manifest = &stored.manifest;
                let (version, loss) = (manifest.version(), manifest.validation_loss());
                let install = |tenant: &mut Tenant| {
                    let live = tenant.install(trained.clone(), now);
                    let details = BTreeMap::from([
                        ("weights_sha256".to_owned(), manifest.weights_sha256().to_owned()),
                        ("learnt_flows".to_owned(), manifest.learnt_flows().to_string()),
                        ("validation_loss".to_owned(), loss.to_string()),
                        ("seed".to_owned(), manifest.seed().to_string()),
                        ("role".to_owned(), if live { "live" } else { "candidate" }.to_owned()),
                        ("objection".to_owned(), profile.objection.clone()),
                    ]);
                    let actor = audit::service_actor(&INFO);
                    let mut messages = vec![changed(id, actor, "model.trained", version, details)];
                    if live {
                        messages.push(self.model_changed(tenant));
                    }
                    Ok((live, messages))
                };
                let new = NewModel {
                    stored: &stored,
                    profile: &profile,
                    trained: DateTime::from_timestamp_nanos(now),
                };
                let installed = self.change(id, cell, install, Some(new)).await;
                match installed {
                    Ok(live) => {
                        let (learnt, objection) = (manifest.learnt_flows(), &profile.objection);
                        if live {
                            tracing::info!(tenant = %id, version, learnt, validation_loss = loss, "a model is at work");
                        } else {
                            tracing::info!(tenant = %id, version, learnt, objection, "a candidate is tried");
                        }
                        Ok(())
                    }
                    Err(error) => Err((error, Ok(trained))),
                }
            }
            Err(problem) => {
                tracing::error!(tenant = %id, problem, "training failed; the model before it stays, if there was one");
                let abandon = |tenant: &mut Tenant| {
                    tenant.abandon_training();
                    let details = BTreeMap::from([("problem".to_owned(), problem.clone())]);
                    let actor = audit::service_actor(&INFO);
                    let record = changed(id, actor, "model.training_failed", tenant.version, details);
                    Ok(((), vec![record]))
                };
                let abandoned = self.change(id, cell, abandon, None).await;
                abandoned.map_err(|error| (error, Err(problem)))
            }
        }
    }
}

impl Engine {
    /// Tells of the model that is live.
    pub(super) fn model_changed(&self, tenant: &Tenant) -> Message {
        let model = tenant.model();
        let event = ModelChanged {
            version: model.version,
            weights_sha256: model.weights_sha256,
            learnt_flows: model.learnt_flows,
            trained: model.trained,
        };
        Message::proto(subject::events(&tenant.id, "model"), INFO.name, &event)
    }
}

enum Due {
    Nothing,
    Finish,
    Train,
    Update,
    Promote(u64),
}

pub(super) fn missing(id: &TenantId) -> Error {
    Error::State {
        tenant: id.clone(),
        problem: "it was not loaded".to_owned(),
    }
}

/// The audit's record of what somebody did with a version of the model.
pub(super) fn changed(
    id: &TenantId,
    actor: Actor,
    action: &str,
    version: u64,
    details: BTreeMap<String, String>,
) -> Message {
    recorded(id, actor, action, &format!("models/{version}"), details)
}
