//! Who judges which tenant: replicas say that they are there, take what nobody holds, hand over what another is to have, and
//! go. What may be done is decided by the database; what is kept here only spares asking it.

mod following;
mod membership;

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use garrison_bus::topology::{FLOWS_ANOMALY, REPLICAS_ANOMALY};
use garrison_proto::TenantId;
use uuid::Uuid;

pub(super) use self::membership::Replicas;
use super::{
    Engine,
    cell::{Cell, Held},
};
use crate::{
    domain::{
        replicas::{Holding, plan},
        tenant::Tenant,
    },
    error::Error,
    metrics::Change,
    store::{
        self,
        replicas::{Lease, Taken},
    },
};

/// How long a call waits for another replica to hand a tenant over.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks whether it has.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Times that a replica that was taken for dead enters anew before a caller is told to try again.
const ENTRIES: usize = 3;

/// A tenant to be looked at: the one that is judged here, or a copy as it was saved last.
pub(super) enum Seen {
    Held(Held),
    Copy(Box<Tenant>),
}

impl Seen {
    pub(super) fn tenant(&self) -> Option<&Tenant> {
        match self {
            Self::Held(held) => held.tenant.as_ref(),
            Self::Copy(tenant) => Some(tenant),
        }
    }
}

impl Engine {
    /// A tenant that this replica judges.
    pub(super) fn find(&self, id: &TenantId) -> Option<Arc<Cell>> {
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.get(id).map(Arc::clone)
    }

    /// A tenant that this replica judges, or judges from now on because nobody ever did. `None` when another one does, or
    /// will: from then on its messages need not be remembered, as its owner reads them from the stream.
    pub(super) async fn owned(&self, id: &TenantId) -> Result<Option<Arc<Cell>>, Error> {
        if let Some(cell) = self.find(id) {
            return Ok(Some(cell));
        }
        if self.replicas.is_leased(id) {
            return Ok(None);
        }
        self.acquire(id).await
    }

    /// A tenant to be changed: when another replica judges it, it is asked for.
    pub(super) async fn own(&self, id: &TenantId) -> Result<Arc<Cell>, Error> {
        let asked = Instant::now();
        loop {
            if let Some(cell) = self.acquire(id).await? {
                return Ok(cell);
            }
            if asked.elapsed() >= PATIENCE {
                return Err(Error::Elsewhere { tenant: id.clone() });
            }
            if let Some(me) = self.replicas.id() {
                store::replicas::want(&self.db, id, me).await?;
                self.ring(None).await;
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// A tenant to be looked at, wherever it is judged.
    pub(super) async fn see(&self, id: &TenantId) -> Result<Seen, Error> {
        if let Some(cell) = self.find(id) {
            match self.hold(id, &cell).await {
                Err(Error::Elsewhere { .. }) => {}
                other => return other.map(Seen::Held),
            }
        }
        let (tenant, _) = self.load(id, 0).await?;
        Ok(Seen::Copy(Box::new(tenant)))
    }

    /// Takes a tenant, if nobody else holds it.
    pub(super) async fn acquire(&self, id: &TenantId) -> Result<Option<Arc<Cell>>, Error> {
        let entering = self.replicas.entering().await;
        let mut since = None;
        for _ in 0..ENTRIES {
            if let Some(cell) = self.find(id) {
                return Ok(Some(cell));
            }
            let held = self.cells().len();
            if held >= self.options.tenants {
                return Err(Error::TooManyTenants { held });
            }
            let me = self.enter(&entering, id).await?;
            match store::replicas::take(&self.db, id, me, since).await? {
                Taken::Own(lease) => return Ok(Some(self.took(id, lease))),
                Taken::Elsewhere => {
                    self.replicas.note_leased([id]);
                    return Ok(None);
                }
                // Nobody acknowledges a message of it before there is a lease: all that was not acknowledged is to come.
                Taken::Unknown => since = Some(self.bus.acknowledged(&FLOWS_ANOMALY).await?),
                Taken::Buried => self.buried(me),
            }
        }
        Err(Error::Elsewhere { tenant: id.clone() })
    }

    fn took(&self, id: &TenantId, lease: Lease) -> Arc<Cell> {
        let cell = Arc::new(Cell::new(lease));
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.insert(id.clone(), Arc::clone(&cell));
        drop(tenants);
        self.replicas.note_leased([id]);
        self.replicas.metrics.changed(id, Change::Taken, lease.epoch);
        tracing::info!(tenant = %id, epoch = lease.epoch, "this replica judges the tenant from here on");
        self.replicas.announce(id, &cell);
        cell
    }

    /// Forgets a tenant that this replica does not judge any more.
    pub(super) fn lost(&self, id: &TenantId, cell: &Arc<Cell>, change: Change) {
        if cell.is_gone() {
            return;
        }
        cell.go();
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.get(id).is_some_and(|own| Arc::ptr_eq(own, cell)) {
            tenants.remove(id);
        }
        drop(tenants);
        self.replicas.metrics.changed(id, change, 0);
        let epoch = cell.lease().epoch;
        match change {
            Change::Lost => tracing::warn!(
                tenant = %id,
                epoch,
                "another replica has taken the tenant; what was not saved of it here is judged there"
            ),
            _ => tracing::info!(tenant = %id, epoch, "handed the tenant over"),
        }
        self.replicas.progress();
    }

    /// This replica was taken for dead: others have, or will have, what it held.
    pub(super) fn buried(&self, me: Uuid) {
        if !self.replicas.forget(me) {
            return;
        }
        tracing::warn!(replica = %me, "this replica was taken for dead; it starts anew");
        for (id, cell) in self.cells() {
            if cell.lease().owner == me {
                self.lost(&id, &cell, Change::Lost);
            }
        }
    }

    /// Saves a tenant and gives it up in one step, so that whoever has it next goes on from exactly here.
    async fn hand_over(&self, id: &TenantId, cell: &Arc<Cell>, to: Option<Uuid>) -> Result<(), Error> {
        cell.ask_back();
        let given = self.give_up(id, cell, to).await;
        if given.is_err() {
            cell.keep();
        }
        given
    }

    async fn give_up(&self, id: &TenantId, cell: &Arc<Cell>, to: Option<Uuid>) -> Result<(), Error> {
        let _turn = cell.turn.lock().await;
        let _saving = cell.saving.lock().await;
        let mut slot = self.lock(id, cell).await?;
        self.commit_alerts(id, &mut slot, false).await?;
        let checkpoint = if slot.is_to_be_saved() {
            slot.take_checkpoint()
        } else {
            None
        };
        let written = async {
            let mut tx = self.db.begin(id).await?;
            if let Some(checkpoint) = &checkpoint {
                self.put(&mut tx, checkpoint).await?;
            }
            let held = store::replicas::hand_over(&mut tx, &cell.lease(), to).await?;
            if held {
                tx.commit().await?;
            }
            Ok::<_, Error>(held)
        };
        match written.await {
            Ok(true) => self.lost(id, cell, Change::HandedOver),
            Ok(false) => self.lost(id, cell, Change::Lost),
            Err(error) => {
                if let Some(checkpoint) = checkpoint {
                    slot.put_back(checkpoint);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Looks at who is there and who holds what, and does what this replica should.
    async fn look(&self) -> Result<(), Error> {
        let entering = self.replicas.entering().await;
        if self.replicas.is_leaving() {
            return Ok(());
        }
        let me = self.enter_anyhow(&entering).await?;
        drop(entering);
        if self.replicas.may_bury() {
            for dead in store::replicas::bury(&self.db, me).await? {
                tracing::warn!(
                    replica = %dead.id,
                    name = dead.name,
                    "a replica has given no sign of life; what it held is shared out"
                );
            }
        }
        let (replicas, holdings, unknown) = store::replicas::look(&self.db).await?;
        if !replicas.iter().any(|replica| replica.id == me) {
            self.buried(me);
            return Ok(());
        }
        self.replicas.note_leased(holdings.iter().map(|h| &h.tenant));
        self.replicas.note_others(replicas.len() - 1);
        self.drop_what_is_others(&holdings);
        let live: Vec<Uuid> = replicas.iter().map(|replica| replica.id).collect();
        let plan = plan(me, &live, &holdings, |id| self.find(id).is_some());
        let mut given = 0;
        for (id, to) in &plan.give {
            if let Some(cell) = self.find(id) {
                match self.hand_over(id, &cell, Some(*to)).await {
                    Ok(()) => given += 1,
                    Err(error) => tracing::warn!(%error, tenant = %id, "a tenant cannot be handed over now"),
                }
            }
        }
        for id in plan.take.iter().chain(&unknown) {
            if let Err(error) = self.acquire(id).await {
                tracing::warn!(%error, tenant = %id, "a tenant that nobody judges cannot be taken");
            }
        }
        for id in &plan.want {
            store::replicas::want(&self.db, id, me).await?;
        }
        if given > 0 || !plan.want.is_empty() {
            self.ring(None).await;
        }
        self.show_shares();
        Ok(())
    }

    fn drop_what_is_others(&self, holdings: &[Holding]) {
        for holding in holdings {
            if let Some(cell) = self.find(&holding.tenant)
                // What was looked at may be older than what was taken since.
                && holding.epoch > cell.lease().epoch
            {
                self.lost(&holding.tenant, &cell, Change::Lost);
            }
        }
    }

    fn show_shares(&self) {
        let cells = self.cells();
        let shards = cells.iter().filter_map(|(_, cell)| {
            let slot = cell.slot.try_lock().ok()?;
            let tenant = slot.tenant.as_ref()?;
            Some(tenant.shards.iter().flatten().count())
        });
        let shards = shards.sum();
        self.replicas
            .metrics
            .shares(cells.len(), shards, self.replicas.others() + 1);
    }

    /// Tells the other replicas that a tenant has messages, or without one that tenants are to be moved. What they miss they
    /// find out by themselves, only later.
    pub(super) async fn ring(&self, tenant: Option<&TenantId>) {
        let word = tenant.map_or(Vec::new(), |id| id.as_str().as_bytes().to_vec());
        if let Err(error) = self.bus.say(REPLICAS_ANOMALY, word.into()).await {
            tracing::debug!(%error, "the other replicas were not told");
        }
    }

    /// Gives everything up in order, so that others go on at once. From here on nothing is taken any more.
    pub async fn leave(&self) {
        let entering = self.replicas.entering().await;
        self.replicas.stop_taking();
        drop(entering);
        for (id, cell) in self.cells() {
            match self.hand_over(&id, &cell, None).await {
                Ok(()) | Err(Error::Elsewhere { .. }) => {}
                Err(error) => {
                    tracing::warn!(%error, tenant = %id, "not handed over; what was not saved is read back from the stream");
                    if error.is_passing() {
                        break;
                    }
                }
            }
        }
        if let Some(me) = self.replicas.id()
            && let Err(error) = store::replicas::leave(&self.db, me).await
        {
            tracing::warn!(%error, "the other replicas will find out by themselves that this one is gone");
        }
        self.ring(None).await;
        self.replicas.left();
    }
}
