//! Reading the messages of a tenant from the stream, in order, from the position that its state stands for: what was taken
//! since the last checkpoint of whoever judged it before, and what the broker handed to another replica. Alerts have ids that
//! come from their content, so those that were published are not published twice.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use garrison_bus::{Stored, topology::FLOWS_ANOMALY};
use garrison_proto::TenantId;
use tokio::sync::MutexGuard;

use super::{
    Engine,
    cell::{Cell, Known},
    judge::read,
};
use crate::error::Error;

/// Positions behind which a tenant's own reader judges its messages alone, and the consumer goes on without waiting.
const FAR: u64 = 256;
/// How far a stream that lost its end is read again: no further than the ids of messages are remembered, by which those that
/// were judged are told.
const REWIND: u64 = 2_048;
/// A server of a broker cluster may not have yet what another one has handed out: how often and how long it is waited for.
const LAG: (u32, Duration) = (100, Duration::from_millis(20));

impl Engine {
    /// Judges what there is of a tenant in the stream, up to its end.
    pub(super) async fn read_on(&self, id: &TenantId, cell: &Arc<Cell>) -> Result<(), Error> {
        let turn = cell.turn.lock().await;
        let read = self.read_to_the_end(id, cell, &turn).await;
        cell.is_behind.store(false, Ordering::Release);
        read
    }

    async fn read_to_the_end(&self, id: &TenantId, cell: &Arc<Cell>, turn: &MutexGuard<'_, ()>) -> Result<(), Error> {
        let (from, known) = self.find_position(id, cell, turn).await?;
        let (mut next, mut batches) = (from, 0);
        while !cell.is_asked_back()
            && let Some(stored) = self.next_of(id, next).await?
        {
            cell.is_behind
                .store(stored.sequence.saturating_add(FAR) < known, Ordering::Release);
            next = self.judge_stored(id, cell, stored).await?;
            batches += 1;
        }
        if batches > 0 && from <= known {
            tracing::info!(tenant = %id, from, to = next - 1, batches, "read a tenant's messages back");
        }
        Ok(())
    }

    /// Judges what there is of a tenant in the stream before a position that its consumer has handed out.
    pub(super) async fn read_until(
        &self,
        id: &TenantId,
        cell: &Arc<Cell>,
        turn: &MutexGuard<'_, ()>,
        position: u64,
    ) -> Result<(), Error> {
        let (mut next, _) = self.find_position(id, cell, turn).await?;
        let mut waited = 0;
        while next < position {
            if cell.is_asked_back() {
                return Err(Error::Elsewhere { tenant: id.clone() });
            }
            match self.next_of(id, next).await? {
                Some(stored) if stored.sequence < position => next = self.judge_stored(id, cell, stored).await?,
                // Whoever has this message has those before it, and there are none.
                Some(_) => break,
                None if self.bus.delivered(&FLOWS_ANOMALY).await? < position => break,
                None if waited < LAG.0 => {
                    waited += 1;
                    tokio::time::sleep(LAG.1).await;
                }
                None => {
                    tracing::error!(
                        code = "GAR-ANOM-0008",
                        tenant = %id,
                        position,
                        "a message has left the stream; whether there were others before it is not known"
                    );
                    break;
                }
            }
        }
        Ok(())
    }

    async fn next_of(&self, id: &TenantId, position: u64) -> Result<Option<Stored>, Error> {
        let subject = format!("flows.v1.{id}.*");
        Ok(self.bus.stored(&FLOWS_ANOMALY, &subject, position).await?)
    }

    // Answers the position behind it.
    async fn judge_stored(&self, id: &TenantId, cell: &Arc<Cell>, stored: Stored) -> Result<u64, Error> {
        let mut held = self.hold(id, cell).await?;
        self.commit_alerts(id, &mut held, false).await?;
        // What cannot be read went to the dead-letter queue, or goes there when it is delivered.
        let message = stored.delivery.ok().and_then(|delivery| {
            let (shard, batch) = read(&delivery).ok()?;
            Some((delivery, shard, batch))
        });
        match message {
            None => held.through = held.through.max(stored.sequence),
            Some((delivery, shard, batch)) => {
                if held.known.is_some_and(|known| stored.sequence <= known.until) {
                    self.metrics.replayed(1, 0);
                }
                self.judge(id, held, &delivery, shard, &batch).await?;
            }
        }
        Ok(stored.sequence + 1)
    }

    // Commits what waits, and answers the position behind what was judged, and how far the stream went when it was made sure
    // that it is the one that the state is of.
    async fn find_position(
        &self,
        id: &TenantId,
        cell: &Arc<Cell>,
        _turn: &MutexGuard<'_, ()>,
    ) -> Result<(u64, u64), Error> {
        let connection = self.bus.connection();
        let (first, applied, last) = {
            let mut held = self.hold(id, cell).await?;
            self.commit_alerts(id, &mut held, false).await?;
            if let Some(known) = held.known.filter(|known| known.connection == connection) {
                return Ok((held.through + 1, known.until));
            }
            (
                held.saved && held.known.is_none(),
                held.tenant.as_ref().map_or(0, |t| t.applied),
                held.last,
            )
        };
        let delivered = self.bus.delivered(&FLOWS_ANOMALY).await?;
        let end = self.bus.last_stored(&FLOWS_ANOMALY, "flows.v1.*.*").await?;
        let end = end.map_or(delivered, |end| end.sequence);
        let until = end.max(delivered);
        if first && applied < end {
            self.tell_what_is_lost(id, applied, end).await?;
        }
        let back_to = if applied > end || !self.is_still_there(id, last).await? {
            Some(self.common_position(id, cell, applied.min(end)).await?)
        } else {
            None
        };
        let mut held = self.hold(id, cell).await?;
        if let Some(position) = back_to {
            tracing::warn!(tenant = %id, applied, position, "the stream was made anew, or lost its end; reading it again");
            held.through = position;
            if let Some(tenant) = held.tenant.as_mut() {
                tenant.applied = position;
            }
        }
        held.known = Some(Known { until, connection });
        Ok((held.through + 1, until))
    }

    // A position of a stream that lost its end, or was made anew, up to which every message was judged.
    async fn common_position(&self, id: &TenantId, cell: &Arc<Cell>, position: u64) -> Result<u64, Error> {
        let position = position.saturating_sub(REWIND);
        let next = self.next_of(id, position + 1).await?;
        let Some(next) = next.and_then(|stored| stored.delivery.ok()) else {
            return Ok(0);
        };
        let held = self.hold(id, cell).await?;
        let judged = held
            .tenant
            .as_ref()
            .is_some_and(|t| t.recent.contains(next.id.as_bytes()));
        Ok(if judged { position } else { 0 })
    }

    // Whether the stream still has the last message that was judged, or has dropped it for its age. A broker that was killed
    // may have lost its last moments, and gives their positions to other messages.
    async fn is_still_there(&self, id: &TenantId, last: Option<(u64, [u8; 16])>) -> Result<bool, Error> {
        let Some((position, message)) = last else {
            return Ok(true);
        };
        if let Some(stored) = self.next_of(id, position).await?
            && stored.sequence == position
        {
            return Ok(stored.delivery.is_ok_and(|delivery| *delivery.id.as_bytes() == message));
        }
        let any = self.bus.stored(&FLOWS_ANOMALY, "flows.v1.*.*", position).await?;
        Ok(any.is_none_or(|any| any.sequence != position))
    }

    async fn tell_what_is_lost(&self, id: &TenantId, applied: u64, known: u64) -> Result<(), Error> {
        let oldest = self.bus.stored(&FLOWS_ANOMALY, "flows.v1.*.*", applied + 1).await?;
        let oldest = oldest.map_or(known + 1, |stored| stored.sequence);
        let lost = oldest.min(known + 1) - (applied + 1);
        if lost > 0 {
            tracing::error!(
                code = "GAR-ANOM-0008",
                tenant = %id,
                lost,
                "messages of up to so many batches left the stream before they were read back"
            );
            self.metrics.replayed(0, lost);
        }
        Ok(())
    }
}
