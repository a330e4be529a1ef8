//! A checkpoint is the state of one moment, and a tenant may have a great deal of it. What is the tenant's own and what its
//! shards share is written at that moment; each shard is written later, between batches, or before the first batch that
//! would change it. So no batch waits for more than one shard, and what is saved is what the position stands for all the
//! same.

use garrison_bus::subject::SHARDS;

use super::cell::Slot;
use crate::{
    domain::{budget::HeldChange, tenant::Tenant},
    store::{entries, roles, snapshot},
};

/// Where the state that the shards share is kept among them.
pub(super) const SHARED: u16 = SHARDS;
/// Where the recent rows are kept that the next model is learnt from.
pub(super) const RECENT: u16 = SHARDS + 1;

/// A checkpoint on its way to the database.
pub(super) struct Checkpoint {
    pub(super) applied: u64,
    pub(super) tenant: Vec<u8>,
    pub(super) shards: Vec<(u16, Vec<u8>)>,
    pub(super) held_back: Vec<HeldChange>,
}

/// A checkpoint that lacks shards, which have not changed since.
pub(super) struct Cut {
    checkpoint: Checkpoint,
    left: Vec<u16>,
}

impl Slot {
    /// Something is to be saved, and no alert waits that the state includes already.
    pub(super) fn is_to_be_saved(&self) -> bool {
        (self.changed || self.cut.is_some()) && self.pending.is_empty()
    }

    /// Begins a checkpoint of this moment. From here on everything counts as saved. False without a tenant.
    pub(super) fn begin_checkpoint(&mut self) -> bool {
        // One that was given up before its end.
        if let Some(cut) = self.cut.take() {
            let left = cut.left;
            self.put_back(cut.checkpoint);
            if let Some(tenant) = self.tenant.as_mut() {
                left.into_iter().for_each(|shard| dirty(tenant, shard));
            }
        }
        let Some(tenant) = self.tenant.as_mut() else {
            return false;
        };
        let changed = std::mem::replace(&mut tenant.dirty, vec![false; tenant.shards.len()]);
        self.changed = false;
        let left = (0..)
            .zip(changed)
            .filter_map(|(shard, changed)| changed.then_some(shard));
        let left: Vec<u16> = left.collect();
        let mut shards = Vec::with_capacity(left.len() + 2);
        if std::mem::take(&mut tenant.wide.dirty) {
            shards.push((SHARED, entries::write_wide(&tenant.wide)));
        }
        if tenant.models.recent.to_be_saved() {
            shards.push((RECENT, roles::write_recent(&tenant.models.recent)));
        }
        self.cut = Some(Cut {
            checkpoint: Checkpoint {
                held_back: std::mem::take(&mut self.held_back),
                applied: tenant.applied,
                shards,
                tenant: snapshot::write_tenant(tenant),
            },
            left,
        });
        true
    }

    /// Writes one of the shards that the checkpoint lacks. False when it lacks none.
    pub(super) fn write_next_shard(&mut self) -> bool {
        let next = self.cut.as_ref().and_then(|cut| cut.left.last().copied());
        next.inspect(|shard| self.before_change(*shard)).is_some()
    }

    /// Has to be called before a shard is changed: a checkpoint may lack it still.
    pub(super) fn before_change(&mut self, shard: u16) {
        let Some(cut) = &mut self.cut else { return };
        let Some(at) = cut.left.iter().position(|left| *left == shard) else {
            return;
        };
        cut.left.swap_remove(at);
        let state = self.tenant.as_ref().and_then(|t| t.shards.get(usize::from(shard)));
        if let Some(state) = state.and_then(|state| state.as_deref()) {
            cut.checkpoint.shards.push((shard, snapshot::write_shard(state)));
        }
    }

    /// Has to be called before any shard may be changed.
    pub(super) fn before_any_change(&mut self) {
        while self.write_next_shard() {}
    }

    /// The checkpoint, whole.
    pub(super) fn end_checkpoint(&mut self) -> Option<Checkpoint> {
        self.before_any_change();
        self.cut.take().map(|cut| cut.checkpoint)
    }

    /// Everything that changed, as of now; from here on it counts as saved.
    pub(super) fn take_checkpoint(&mut self) -> Option<Checkpoint> {
        self.begin_checkpoint().then(|| self.end_checkpoint()).flatten()
    }

    /// The checkpoint was not written: what it held is to be saved still.
    pub(super) fn put_back(&mut self, checkpoint: Checkpoint) {
        self.changed = true;
        self.held_back.splice(..0, checkpoint.held_back);
        if let Some(tenant) = self.tenant.as_mut() {
            for (shard, _) in &checkpoint.shards {
                dirty(tenant, *shard);
            }
        }
    }
}

fn dirty(tenant: &mut Tenant, shard: u16) {
    match tenant.dirty.get_mut(usize::from(shard)) {
        Some(dirty) => *dirty = true,
        None if shard == RECENT => tenant.models.recent.not_saved(),
        None => tenant.wide.dirty = true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use garrison_flow::{FlowBatchBuilder, FlowRow, FlowState};

    use super::*;
    use crate::domain::{
        tenant::Arrival,
        window::{Nanos, SECOND},
    };

    const START: Nanos = 1_750_000_000 * SECOND;

    fn slot() -> Slot {
        let settings = Arc::new(crate::config::default_settings());
        Slot {
            tenant: Some(Tenant::new("acme".parse().unwrap(), settings, SHARDS)),
            ..Slot::default()
        }
    }

    // One more flow of a shard, as the consumer takes it.
    fn judge(slot: &mut Slot, shard: u16, n: u64) {
        let mut builder = FlowBatchBuilder::new(1);
        builder.push(&FlowRow {
            flow_id: u128::from(n).to_be_bytes(),
            state: FlowState::Ended as u8,
            first_seen: START + n as i64 * SECOND,
            last_seen: START + n as i64 * SECOND,
            protocol: 6,
            src_ip: [10, 0, shard as u8, n as u8].into(),
            dst_ip: [10, 1, 0, n as u8].into(),
            dst_port: 80,
            dst_packets: Some(3),
            ..FlowRow::default()
        });
        slot.before_change(shard);
        slot.changed = true;
        slot.tenant.as_mut().unwrap().judge(&Arrival {
            id: u128::from(n).to_le_bytes(),
            shard,
            position: n,
            published: START + 100 * SECOND,
            now: 0,
            batch: &builder.finish(),
        });
    }

    type Parts = (u64, Vec<u8>, Vec<(u16, Vec<u8>)>);

    fn sorted(mut checkpoint: Checkpoint) -> Parts {
        checkpoint.shards.sort();
        (checkpoint.applied, checkpoint.tenant, checkpoint.shards)
    }

    #[test]
    fn what_is_judged_while_shards_are_written_is_not_in_the_checkpoint_and_is_in_the_next() {
        let (mut whole, mut parts) = (slot(), slot());
        for n in 1..=9 {
            for slot in [&mut whole, &mut parts] {
                judge(slot, (n % 3) as u16, n);
            }
        }
        let want = sorted(whole.take_checkpoint().unwrap());
        assert_eq!((want.0, want.2.len()), (9, 4));

        assert!(parts.begin_checkpoint());
        judge(&mut parts, 1, 10);
        assert!(parts.write_next_shard());
        judge(&mut parts, 1, 11);
        judge(&mut parts, 0, 12);
        while parts.write_next_shard() {}
        assert_eq!(sorted(parts.end_checkpoint().unwrap()), want);

        for (shard, n) in [(1, 10), (1, 11), (0, 12)] {
            judge(&mut whole, shard, n);
        }
        assert!(parts.is_to_be_saved());
        let next = sorted(parts.take_checkpoint().unwrap());
        assert_eq!(next, sorted(whole.take_checkpoint().unwrap()));
        assert_eq!((next.0, next.2.len()), (12, 3));
        assert!(!parts.is_to_be_saved());
    }

    #[test]
    fn one_that_was_given_up_is_begun_anew_with_everything_that_it_had() {
        let mut slot = slot();
        for n in 1..=4 {
            judge(&mut slot, n as u16, n);
        }
        assert!(slot.begin_checkpoint());
        assert!(slot.write_next_shard());
        judge(&mut slot, 9, 9);
        assert!(slot.is_to_be_saved());
        let (applied, _, shards) = sorted(slot.take_checkpoint().unwrap());
        assert_eq!(applied, 9);
        let numbers: Vec<u16> = shards.iter().map(|(shard, _)| *shard).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 9, SHARED]);
    }
}
