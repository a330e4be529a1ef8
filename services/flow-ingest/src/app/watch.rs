//! Live capture: rings in, records out, through interfaces that come and go.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{recorder::Recorder, sensor::Sensor};
use crate::{
    capture::{
        CaptureError,
        afpacket::{Interface, Ring, RingOptions, wait},
    },
    domain::{Meter, record::EndReason},
};

/// How often a missing interface is looked for, and a present one checked.
const LOOK: Duration = Duration::from_millis(500);
/// How long the worker sleeps at most, with flows in the table and without.
const NAP: Duration = Duration::from_millis(20);
const SLEEP: Duration = Duration::from_millis(200);
/// Blocks taken before timers and batches have their turn.
const TURN: usize = 8;

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as i64)
}

struct Capture {
    names: Vec<String>,
    options: RingOptions,
    ring: Option<Ring>,
    listening: Vec<Interface>,
    looked: Option<Instant>,
    dropped: u64,
    problem: Option<String>,
}

/// Captures until `stop` is set, then ends every flow.
pub fn watch(
    sensor: &Arc<Sensor>,
    interfaces: Vec<String>,
    options: RingOptions,
    mut meter: Meter,
    mut recorder: Recorder,
    stop: &AtomicBool,
) {
    let mut capture = Capture {
        names: interfaces,
        options,
        ring: None,
        listening: Vec::new(),
        looked: None,
        dropped: 0,
        problem: None,
    };
    while !stop.load(Ordering::Relaxed) {
        capture.look(sensor);
        let mut busy = false;
        if let Some(ring) = &mut capture.ring {
            for _ in 0..TURN {
                let Some(block) = ring.block() else { break };
                busy = true;
                block.bursts(|packets| meter.process(packets, &mut recorder));
            }
        }
        meter.tick(now(), &mut recorder);
        recorder.note(&meter, capture.dropped);
        let due = recorder.flush_due(Instant::now());
        if !busy {
            let nap = if meter.active_flows() == 0 { SLEEP } else { NAP };
            let until_due = due.map_or(nap, |due| due.saturating_duration_since(Instant::now()));
            match &capture.ring {
                Some(ring) => wait(ring, nap.min(until_due)),
                None => std::thread::sleep(nap.min(until_due)),
            }
        }
    }
    capture.count_drops();
    meter.finish(EndReason::Shutdown, &mut recorder);
    recorder.note(&meter, capture.dropped);
    recorder.flush();
}

impl Capture {
    // Follows interfaces that come and go, and asks the kernel for its drops.
    fn look(&mut self, sensor: &Sensor) {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return;
        }
        self.looked = Some(Instant::now());
        self.count_drops();
        let problem = self.follow(sensor).err().map(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            format!("{error}{}", cause.unwrap_or_default())
        });
        if problem != self.problem {
            if let Some(problem) = &problem {
                tracing::warn!(
                    sensor = sensor.id,
                    problem,
                    "not capturing on every interface; trying again"
                );
            }
            self.problem.clone_from(&problem);
            sensor.update(|status| status.problem = problem);
        }
    }

    fn follow(&mut self, sensor: &Sensor) -> Result<(), CaptureError> {
        let mut missing = None;
        let mut found = Vec::new();
        for name in &self.names {
            match Interface::find(name) {
                Ok(interface) => found.push(interface),
                Err(error) => missing = Some(error),
            }
        }
        if self.ring.is_none() {
            self.ring = Some(Ring::open(&sensor.id, &self.options)?);
        }
        if let Some(ring) = self.ring.as_ref().filter(|_| found != self.listening) {
            let refused = |operation| {
                let sensor = sensor.id.clone();
                move |source| CaptureError::Socket {
                    sensor,
                    operation,
                    source,
                }
            };
            let indices: Vec<u32> = found.iter().map(|interface| interface.index).collect();
            ring.listen_on(&indices).map_err(refused("setting a filter"))?;
            if self.options.promiscuous {
                for new in found.iter().filter(|interface| !self.listening.contains(interface)) {
                    ring.promiscuous(new.index).map_err(refused("promiscuous mode"))?;
                }
            }
            let (of, present) = (self.names.len(), found.len());
            tracing::info!(sensor = sensor.id, source = sensor.source, present, of, "capturing");
            let link = found.first().map(|interface| interface.link);
            sensor.update(|status| status.link = link);
            self.listening = found;
        }
        match missing {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    fn count_drops(&mut self) {
        if let Some(Ok(drops)) = self.ring.as_ref().map(Ring::drops) {
            self.dropped += drops.dropped;
        }
    }
}
