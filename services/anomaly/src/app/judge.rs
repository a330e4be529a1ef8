//! One message of flows: decode, judge, commit what is found.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use garrison_bus::{
    Delivery, Disposition, content_type,
    subject::{self, SHARDS},
};
use garrison_flow::FlowBatch;
use garrison_proto::TenantId;
use tracing::Instrument as _;

use super::{
    Engine,
    cell::{Held, Slot},
};
use crate::{
    domain::{
        detector::Detector,
        finding::message_id,
        replicas::Run,
        tenant::{Arrival, Judged, Phase},
    },
    error::Error,
    metrics::Change,
    store,
};

/// Pause before a message is tried again that waits for the database or the broker.
const PAUSE: Duration = Duration::from_millis(250);

impl Engine {
    /// Judges one message of flows and commits its alerts, where this replica judges its tenant; otherwise the one that does
    /// is told. Answers what becomes of the message.
    ///
    /// State changes once: a message that comes again only commits the alerts that its first coming could not.
    pub async fn take(&self, delivery: &Delivery) -> Disposition {
        let run = self.replicas.follow(delivery.consumer_sequence, self.bus.connection());
        let (shard, batch) = match read(delivery) {
            Ok(read) => read,
            Err(reason) => {
                self.metrics.rejected();
                return Disposition::Reject { reason };
            }
        };
        match self.take_in_turn(delivery, run, shard, &batch).await {
            Ok(()) => Disposition::Ack,
            // Its owner, now or to come, reads it from the stream.
            Err(Error::Elsewhere { tenant }) if self.replicas.is_leased(&tenant) => {
                self.pass_on(&tenant).await;
                Disposition::Ack
            }
            // Trying again changes nothing, and would hold up every other tenant.
            Err(error @ (Error::TooManyTenants { .. } | Error::State { .. })) => {
                self.metrics.rejected();
                Disposition::Reject {
                    reason: error.to_string(),
                }
            }
            Err(error) if error.is_passing() => Disposition::Hold {
                after: PAUSE,
                reason: error.to_string(),
            },
            Err(error) => Disposition::Retry {
                after: PAUSE,
                reason: error.to_string(),
            },
        }
    }

    async fn take_in_turn(&self, delivery: &Delivery, run: Run, shard: u16, batch: &FlowBatch) -> Result<(), Error> {
        let id = &delivery.tenant;
        let Some(cell) = self.owned(id).await? else {
            self.pass_on(id).await;
            return Ok(());
        };
        if cell.is_behind.load(Ordering::Acquire) {
            // It comes when what is before it has been read from the stream. Other tenants do not wait for that.
            self.lock(id, &cell).await?.run = None;
            cell.ring();
            return Ok(());
        }
        let turn = cell.turn.lock().await;
        let mut held = self.hold(id, &cell).await?;
        self.commit_alerts(id, &mut held, false).await?;
        if held.run.is_some_and(|known| known.era != run.era) {
            held.known = None;
        }
        if held.run != Some(run) || delivery.attempt > 1 {
            drop(held);
            self.read_until(id, &cell, &turn, delivery.stream_sequence).await?;
            held = self.hold(id, &cell).await?;
            if delivery.attempt == 1 {
                held.run = Some(run);
            }
        }
        if delivery.stream_sequence <= held.through {
            return Ok(());
        }
        self.judge(id, held, delivery, shard, batch).await
    }

    async fn pass_on(&self, id: &TenantId) {
        self.replicas.passed_on();
        self.ring(Some(id)).await;
    }

    /// Judges the message that comes next of a tenant.
    pub(super) async fn judge(
        &self,
        id: &TenantId,
        mut held: Held,
        delivery: &Delivery,
        shard: u16,
        batch: &FlowBatch,
    ) -> Result<(), Error> {
        let message = *delivery.id.as_bytes();
        if held.tenant.as_ref().is_some_and(|t| t.recent.contains(&message)) {
            held.judged(delivery.stream_sequence, message);
            return Ok(());
        }
        let span = tracing::info_span!(
            "judge",
            tenant = %id,
            shard,
            rows = batch.len(),
            scored = tracing::field::Empty,
            alerts = tracing::field::Empty,
        );
        let judged = span.in_scope(|| self.apply(&mut held, delivery, shard, batch));
        span.record("scored", judged.scored);
        span.record("alerts", judged.alerts.len());
        held.pending = judged.alerts;
        held.held_back.extend(judged.held);
        // One that comes again, or that was there before this replica judged the tenant, may have been judged before, and its
        // alerts be known.
        let new = delivery.attempt == 1 && held.known.is_some_and(|known| delivery.stream_sequence > known.until);
        self.commit_alerts(id, &mut held, new).instrument(span).await
    }

    // From here on the state includes the message.
    fn apply(&self, slot: &mut Slot, delivery: &Delivery, shard: u16, batch: &FlowBatch) -> Judged {
        let started = Instant::now();
        let now = (self.clock)();
        slot.before_change(shard);
        let Some(tenant) = slot.tenant.as_mut() else {
            return Judged::default();
        };
        let fresh = matches!(tenant.phase, Phase::Idle) && tenant.version == 0;
        if fresh && !self.options.auto_learning.is_zero() {
            match tenant.start_learning(now, true) {
                Ok(()) => tracing::info!(tenant = %tenant.id, "a new tenant: learning what is normal"),
                Err(error) => tracing::error!(%error, "a new tenant cannot be learnt"),
            }
        }
        let published = delivery.time.timestamp_nanos_opt().unwrap_or(now);
        tenant.intel = self.intel().view(&tenant.id);
        let stored = delivery.stored.timestamp_nanos_opt().unwrap_or(published);
        let scoring = tenant.live.is_some() && self.settings.runs(Detector::ModelAutoencoder);
        tenant.budgets.begin(stored, scoring, &self.settings.budget);
        let judged = tenant.judge(&Arrival {
            id: *delivery.id.as_bytes(),
            shard,
            position: delivery.stream_sequence,
            published,
            now,
            batch,
        });
        slot.changed = true;
        slot.judged(delivery.stream_sequence, *delivery.id.as_bytes());
        if let Some(error) = &judged.model_error {
            tracing::error!(%error, tenant = %delivery.tenant, "a batch could not be scored");
        }
        let latency = Duration::from_nanos(u64::try_from((self.clock)().saturating_sub(published)).unwrap_or(0));
        self.metrics.judged(&judged, latency, started.elapsed());
        judged
    }

    /// Commits the alerts that wait, if any. `new` ones were never published; see [`store::publish_alerts`].
    pub(super) async fn commit_alerts(&self, id: &TenantId, held: &mut Held, new: bool) -> Result<(), Error> {
        if held.pending.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let ids: Vec<&str> = held.pending.iter().map(|a| a.alert_id.as_str()).collect();
        let span = tracing::info_span!("publish alerts", alert_ids = ids.join(","));
        let cell = Arc::clone(held.cell());
        // What leaves before it is kept is not asked for by the database: it must not come from one that others take for dead.
        let early = new && self.replicas.is_sure();
        let kept = store::publish_alerts(&self.lane, id, &cell.lease(), &held.pending, early)
            .instrument(span)
            .await?;
        let Some(new) = kept else {
            self.lost(id, &cell, Change::Lost);
            return Err(Error::Elsewhere { tenant: id.clone() });
        };
        let alerts = std::mem::take(&mut held.pending);
        self.risks().news(id);
        for alert in &alerts {
            tracing::info!(
                tenant = %id,
                alert = alert.alert_id,
                detector = alert.detector,
                entity = alert.entity.as_ref().map_or("", |e| e.value.as_str()),
                count = alert.count,
                title = alert.title,
                "alert"
            );
        }
        let detectors = alerts
            .iter()
            .filter(|a| new.iter().any(|message| Some(message.id) == message_id(a)));
        self.metrics
            .alerted(detectors.map(|a| a.detector.as_str()), started.elapsed());
        Ok(())
    }
}

// The error is the reason for a rejection.
pub(super) fn read(delivery: &Delivery) -> Result<(u16, FlowBatch), String> {
    let wrong = |what: String| format!("GAR-ANOM-0001: {what}");
    let parsed = subject::parse(&delivery.subject).map_err(|e| wrong(e.to_string()))?;
    let shard = match parsed.rest[..] {
        [shard] if parsed.domain == "flows" => shard.parse::<u16>().ok(),
        _ => None,
    };
    let shard = shard
        .filter(|shard| *shard < SHARDS)
        .ok_or_else(|| wrong(format!("subject {} names no shard below {SHARDS}", delivery.subject)))?;
    if delivery.content_type != content_type::ARROW_STREAM {
        return Err(wrong(format!(
            "content type {:?} is not {}",
            delivery.content_type,
            content_type::ARROW_STREAM
        )));
    }
    let (batch, meta) = garrison_flow::decode_message(delivery.payload.clone()).map_err(|e| wrong(e.to_string()))?;
    if meta.tenant != delivery.tenant {
        return Err(wrong(format!(
            "the batch says tenant {} and its subject {}",
            meta.tenant, delivery.tenant
        )));
    }
    Ok((shard, batch))
}
