//! Gathers records into batches, one batch a shard at a time, and hands closed ones on without waiting.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use garrison_bus::subject::{SHARDS, shard_of};
use garrison_flow::{FlowBatchBuilder, FlowRow, FlowState};

use super::sensor::{Sensor, Share};
use crate::{
    bus::outbound::{ClosedBatch, Outlet},
    config::BatchConfig,
    domain::{Counts, Meter, Sink, key::FlowKey, packet::Packet},
    ring::RingFeed,
};

/// How long records wait for a fuller batch while the broker is behind.
const CROWDED: Duration = Duration::from_millis(50);

/// The sink of a worker.
pub struct Recorder {
    sensor: Arc<Sensor>,
    outlet: Outlet,
    ring: Option<RingFeed>,
    shards: Vec<Shard>,
    rows: usize,
    age: Duration,
    worker: usize,
    // The sum over all workers of the sensor.
    share: Share,
    // Which shards have records, as bits.
    open: u32,
}

struct Shard {
    builder: FlowBatchBuilder,
    oldest: i64,
    sent: Option<Instant>,
    since: Option<Instant>,
}

// A shard's builder grows with its traffic; sixteen full-sized ones would hold 30 MB at rest.
const FIRST_ROWS: usize = 16;

const _: () = assert!(SHARDS <= 32);

impl Recorder {
    /// Makes the sink of a sensor.
    pub fn new(sensor: Arc<Sensor>, outlet: Outlet, ring: Option<RingFeed>, batch: &BatchConfig) -> Self {
        let live = sensor.live;
        Self {
            sensor,
            outlet,
            ring,
            shards: (0..SHARDS)
                .map(|_| Shard {
                    builder: FlowBatchBuilder::new(FIRST_ROWS),
                    oldest: i64::MAX,
                    sent: None,
                    since: None,
                })
                .collect(),
            rows: batch.rows,
            // A file played fast gains nothing from small batches.
            age: Duration::from_millis(if live { batch.age_ms } else { batch.age_ms.max(50) }),
            worker: 0,
            share: Share::default(),
            open: 0,
        }
    }

    /// The sink of one of several workers; the first has number 0.
    pub fn of_worker(self, worker: usize) -> Self {
        Self { worker, ..self }
    }

    /// Takes over the meter's counts for the ledger.
    pub fn note(&mut self, meter: &Meter, dropped_by_kernel: u64) {
        self.note_counts(meter.counts(), meter.active_flows() as u64, dropped_by_kernel);
    }

    /// Takes over counts for the ledger.
    pub fn note_counts(&mut self, counts: Counts, active: u64, dropped_by_kernel: u64) {
        let share = Share {
            counts,
            dropped_by_kernel,
            active_flows: active,
        };
        self.share = self.sensor.share(self.worker, share);
    }

    /// Hands over what is due. Gives when the next batch will be.
    pub fn flush_due(&mut self, now: Instant) -> Option<Instant> {
        if let Some(ring) = &mut self.ring {
            ring.flush_due(now);
        }
        let crowded = self.outlet.is_crowded();
        let mut next: Option<Instant> = None;
        for number in 0..SHARDS {
            if self.open & 1 << number == 0 {
                continue;
            }
            let shard = &mut self.shards[usize::from(number)];
            let since = *shard.since.get_or_insert(now);
            // After a pause the first record goes at once; those right behind it share a batch.
            let mut due = shard.sent.map_or(now, |sent| sent + self.age);
            if crowded {
                due = due.max(since + CROWDED);
            }
            if due <= now {
                self.close(number, Some(now));
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        next
    }

    /// Hands over everything.
    pub fn flush(&mut self) {
        for number in 0..SHARDS {
            if self.open & 1 << number != 0 {
                self.close(number, None);
            }
        }
        if let Some(ring) = &mut self.ring {
            ring.flush();
        }
    }

    fn close(&mut self, number: u16, now: Option<Instant>) {
        let shard = &mut self.shards[usize::from(number)];
        let rows = shard.builder.len() as u64;
        self.sensor.emitted(rows);
        let batch = shard.builder.finish();
        let oldest = (shard.oldest != i64::MAX).then_some(shard.oldest);
        shard.oldest = i64::MAX;
        shard.since = None;
        if now.is_some() {
            shard.sent = now;
        }
        self.open &= !(1 << number);
        self.sensor.in_sequence(|sequence| {
            let batch = ClosedBatch {
                sensor: Arc::clone(&self.sensor),
                shard: number,
                batch,
                sequence,
                ledger: self
                    .sensor
                    .ledger_with_batch(&self.share.counts, self.share.dropped_by_kernel),
                oldest,
            };
            if !self.sensor.live {
                self.outlet.push(batch);
            } else if !self.outlet.offer(batch) {
                self.sensor.lost(rows);
            }
        });
    }
}

impl Sink for Recorder {
    fn record(&mut self, row: &FlowRow<'_>) {
        let number = shard_of(row.src_ip);
        let shard = &mut self.shards[usize::from(number)];
        shard.builder.push(row);
        if row.state != FlowState::Ended as u8 {
            shard.oldest = shard.oldest.min(row.last_seen);
        }
        self.open |= 1 << number;
        if shard.builder.len() >= self.rows {
            self.close(number, None);
        }
    }

    fn packet(&mut self, packet: &Packet<'_>, key: Option<&FlowKey>) {
        if let Some(ring) = &mut self.ring {
            ring.packet(packet, key);
        }
    }
}
