//! The tenants in memory, each behind its own lock, and their checkpoints.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex as Flat, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use garrison_bus::{Bus, Message, subject::SHARDS};
use garrison_db::{Db, Lane, Tx};
use garrison_proto::TenantId;
use tokio_util::sync::CancellationToken;

use super::{
    Intel, Risks,
    cell::{Cell, Held},
    checkpoint::{Checkpoint, RECENT, SHARED},
    registry::NewModel,
    replicas::Replicas,
};
use crate::{
    config::Config,
    domain::{settings::Settings, tenant::Tenant, window::Nanos},
    error::Error,
    metrics::{Change, Metrics},
    store::{self, entries, models, roles, snapshot},
};

/// Tells the time, nanoseconds since the epoch.
pub type Clock = Arc<dyn Fn() -> Nanos + Send + Sync>;

/// What the use cases need of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Fewest records a model is trained on.
    pub min_flows: u64,
    /// How long a new tenant is learnt by itself; zero for never.
    pub auto_learning: Duration,
    /// Days for which alerts are kept.
    pub retention_days: u32,
    /// Days for which alerts that were held back are kept, and how many at most.
    pub held: (u32, u64),
    /// Most tenants in memory.
    pub tenants: usize,
    /// Between two checkpoints.
    pub checkpoint: Duration,
}

impl Options {
    /// From the configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            min_flows: config.learning.min_flows,
            auto_learning: Duration::from_secs(config.learning.auto_seconds),
            retention_days: config.alerts.retention_days,
            held: (config.budget.held_days, config.budget.held_alerts),
            tenants: config.limits.tenants,
            checkpoint: Duration::from_millis(config.checkpoint.interval_ms),
        }
    }
}

/// How often the way of an alert is rehearsed. A connection that was lost costs one alert this at most.
const REHEARSE_EVERY: Duration = Duration::from_secs(60);

/// The service's memory and what it works with. Shared by the consumer, gRPC and the upkeep.
pub struct Engine {
    pub(super) db: Db,
    /// For publishing alerts.
    pub(super) lane: Lane,
    pub(super) bus: Bus,
    pub(super) settings: Arc<Settings>,
    pub(super) options: Options,
    pub(super) metrics: Metrics,
    pub(super) clock: Clock,
    intel: Intel,
    risks: Risks,
    pub(super) replicas: Replicas,
    /// Those that this replica judges.
    pub(super) tenants: Flat<BTreeMap<TenantId, Arc<Cell>>>,
}

impl Engine {
    /// Makes an engine without tenants.
    pub fn new(db: Db, bus: Bus, config: &Config, clock: Clock) -> Self {
        Self {
            lane: db.lane(1),
            bus,
            settings: Arc::new(config.settings()),
            options: Options::new(config),
            metrics: Metrics::default(),
            clock,
            intel: Intel::new(&config.intel),
            risks: Risks::new(db.clone(), config.risk.clone()),
            replicas: Replicas::new(&config.replicas),
            db,
            tenants: Flat::default(),
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What speaks against hosts, services and users.
    pub fn risks(&self) -> &Risks {
        &self.risks
    }

    /// Threat intelligence.
    pub fn intel(&self) -> &Intel {
        &self.intel
    }

    pub(super) fn cells(&self) -> Vec<(TenantId, Arc<Cell>)> {
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants
            .iter()
            .map(|(id, cell)| (id.clone(), Arc::clone(cell)))
            .collect()
    }

    /// Locks a tenant, and loads it first when it is not in memory.
    pub(super) async fn hold(&self, id: &TenantId, cell: &Arc<Cell>) -> Result<Held, Error> {
        let mut held = self.lock(id, cell).await?;
        if held.tenant.is_none() {
            let (tenant, saved) = self.load(id, cell.lease().since).await?;
            held.through = tenant.applied;
            held.last = tenant.recent.iter().last().map(|id| (tenant.applied, *id));
            held.tenant = Some(tenant);
            held.saved = saved;
        }
        Ok(held)
    }

    /// Locks a tenant as it is.
    pub(super) async fn lock(&self, id: &TenantId, cell: &Arc<Cell>) -> Result<Held, Error> {
        let guard = Arc::clone(&cell.slot).lock_owned().await;
        if cell.is_gone() {
            return Err(Error::Elsewhere { tenant: id.clone() });
        }
        Ok(Held::new(guard, cell))
    }

    /// What was saved of a tenant, and whether anything was; without that it is judged from `since` on.
    pub(super) async fn load(&self, id: &TenantId, since: u64) -> Result<(Tenant, bool), Error> {
        let stored = store::load(&self.db, id).await?;
        let settings = Arc::clone(&self.settings);
        let Some(bytes) = stored.tenant else {
            let mut tenant = Tenant::new(id.clone(), settings, SHARDS);
            tenant.applied = since;
            return Ok((tenant, false));
        };
        let (mut tenant, threshold) = snapshot::read_tenant(id, settings, &bytes)?;
        for (shard, bytes) in stored.shards {
            if shard == SHARED {
                tenant.wide = entries::read_wide(id, &self.settings, &bytes)?;
                continue;
            }
            if shard == RECENT {
                let (sample, seed) = (self.settings.candidate.sample, self.settings.seed);
                tenant.models.recent = roles::read_recent(id, sample, seed, &bytes)?;
                continue;
            }
            let state = snapshot::read_shard(id, &self.settings, &bytes)?;
            if let Some(slot) = tenant.shards.get_mut(usize::from(shard)) {
                *slot = Some(Box::new(state));
            }
        }
        self.attach_models(id, &mut tenant, threshold, roles::pending(&bytes))
            .await?;
        tracing::info!(tenant = %id, applied = tenant.applied, phase = ?tenant.phase.to_proto(), "loaded a tenant");
        Ok((tenant, true))
    }

    /// Saves what changed of every tenant. Tenants whose alerts are not committed yet wait for the next time.
    ///
    /// # Errors
    /// The last failure; what could not be saved is saved the next time.
    pub async fn checkpoint(&self) -> Result<(), Error> {
        let mut outcome = Ok(());
        for (id, cell) in self.cells() {
            if let Err(error) = self.checkpoint_one(&id, &cell).await {
                outcome = Err(error);
            }
        }
        outcome
    }

    pub(super) async fn checkpoint_one(&self, id: &TenantId, cell: &Arc<Cell>) -> Result<(), Error> {
        let started = Instant::now();
        let saving = cell.saving.lock().await;
        let checkpoint = {
            let mut slot = cell.slot.lock().await;
            if cell.is_gone() || !slot.is_to_be_saved() || !slot.begin_checkpoint() {
                return Ok(());
            }
            // Batches are judged between two shards.
            while slot.write_next_shard() {
                drop(slot);
                slot = cell.slot.lock().await;
            }
            match slot.end_checkpoint() {
                Some(checkpoint) => checkpoint,
                None => return Ok(()),
            }
        };
        let bytes = checkpoint.tenant.len() + checkpoint.shards.iter().map(|(_, s)| s.len()).sum::<usize>();
        let written = self.write(id, cell, &checkpoint).await;
        if written.is_err() {
            cell.slot.lock().await.put_back(checkpoint);
        }
        drop(saving);
        match written {
            // Whoever has it now saves it.
            Err(Error::Elsewhere { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                self.metrics.saved(started.elapsed(), bytes);
                Ok(())
            }
        }
    }

    /// Changes a tenant and saves it together with messages, or leaves it as it was.
    pub(super) async fn change<R>(
        &self,
        id: &TenantId,
        cell: &Arc<Cell>,
        change: impl FnOnce(&mut Tenant) -> Result<(R, Vec<Message>), Error>,
        model: Option<NewModel<'_>>,
    ) -> Result<R, Error> {
        let _saving = cell.saving.lock().await;
        let mut held = self.hold(id, cell).await?;
        self.commit_alerts(id, &mut held, false).await?;
        let Some(tenant) = held.tenant.as_mut() else {
            return Err(Error::State {
                tenant: id.clone(),
                problem: "it was not loaded".to_owned(),
            });
        };
        let (before, budgets) = (tenant.memento(), tenant.budgets.clone());
        let (answer, messages) = change(tenant)?;
        let model = model.map(|new| (new, tenant.models.roles.in_use()));
        let checkpoint = held.take_checkpoint();
        let written = match &checkpoint {
            Some(checkpoint) => self.write_with(id, cell, checkpoint, &messages, model).await,
            None => Ok(()),
        };
        match written {
            Ok(()) => Ok(answer),
            Err(error) => {
                if let Some(checkpoint) = checkpoint {
                    held.put_back(checkpoint);
                }
                if let Some(tenant) = held.tenant.as_mut() {
                    tenant.restore(before);
                    tenant.budgets = budgets;
                }
                Err(error)
            }
        }
    }

    async fn write(&self, id: &TenantId, cell: &Arc<Cell>, checkpoint: &Checkpoint) -> Result<(), Error> {
        self.write_with(id, cell, checkpoint, &[], None).await
    }

    async fn write_with(
        &self,
        id: &TenantId,
        cell: &Arc<Cell>,
        checkpoint: &Checkpoint,
        messages: &[Message],
        model: Option<(NewModel<'_>, Vec<u64>)>,
    ) -> Result<(), Error> {
        let mut tx = self.db.begin(id).await?;
        self.confirm(&mut tx, cell).await?;
        if let Some((new, in_use)) = model {
            models::insert(&mut tx, new.stored, new.profile, new.trained, &in_use).await?;
        }
        self.put(&mut tx, checkpoint).await?;
        tx.publish_all(messages).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Makes sure that this replica still holds the tenant of a transaction, and will until it ends.
    pub(super) async fn confirm(&self, tx: &mut Tx<'_>, cell: &Arc<Cell>) -> Result<(), Error> {
        if store::replicas::confirm(tx, &cell.lease()).await? {
            return Ok(());
        }
        let tenant = tx.tenant().clone();
        self.lost(&tenant, cell, Change::Lost);
        Err(Error::Elsewhere { tenant })
    }

    pub(super) async fn put(&self, tx: &mut Tx<'_>, checkpoint: &Checkpoint) -> Result<(), Error> {
        store::save(tx, checkpoint.applied, &checkpoint.tenant, &checkpoint.shards).await?;
        store::held::keep(tx, &checkpoint.held_back).await?;
        Ok(())
    }

    /// Saves and shows the tenants from time to time until shutdown.
    pub async fn keep_up(&self, shutdown: CancellationToken) {
        let mut last_retention: Option<Instant> = None;
        let mut last_rehearsal: Option<Instant> = None;
        loop {
            if last_rehearsal.is_none_or(|at| at.elapsed() > REHEARSE_EVERY) {
                last_rehearsal = Some(Instant::now());
                if let Err(error) = store::rehearse(&self.lane).await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "no rehearsal");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(self.options.checkpoint) => {}
            }
            if let Err(error) = self.checkpoint().await {
                tracing::warn!(%error, "state could not be saved; it will be");
            }
            for (id, cell) in self.cells() {
                if let Ok(slot) = cell.slot.try_lock()
                    && let Some(tenant) = &slot.tenant
                {
                    self.metrics.stand(&id, tenant);
                }
            }
            if last_retention.is_none_or(|at| at.elapsed() > Duration::from_secs(3_600)) {
                last_retention = Some(Instant::now());
                self.forget_alerts().await;
            }
        }
    }

    async fn forget_alerts(&self) {
        for (id, _) in self.cells() {
            self.forget_held_alerts(&id).await;
            match store::forget_alerts(&self.db, &id, self.options.retention_days).await {
                Ok(0) => {}
                Ok(n) => tracing::info!(tenant = %id, alerts = n, "forgot alerts that were kept long enough"),
                Err(error) => tracing::warn!(%error, tenant = %id, "old alerts could not be forgotten"),
            }
        }
    }

    pub(super) fn begin_training(cell: &Cell) -> bool {
        !cell.training.swap(true, Ordering::AcqRel)
    }

    pub(super) fn end_training(cell: &Cell) {
        cell.training.store(false, Ordering::Release);
    }
}
