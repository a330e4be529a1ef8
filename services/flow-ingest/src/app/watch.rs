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
    capture::afpacket::{Ring, RingOptions, wait},
    domain::{Meter, record::EndReason},
};

/// How often a missing interface is looked for, and a present one checked.
const LOOK: Duration = Duration::from_millis(500);
/// How long the worker sleeps at most, with flows in the table and without.
const NAP: Duration = Duration::from_millis(20);
const SLEEP: Duration = Duration::from_millis(200);
/// Blocks taken from one ring before the next one has its turn.
const TURN: usize = 8;

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as i64)
}

struct Interfaces {
    rings: Vec<Ring>,
    missing: Vec<String>,
    options: RingOptions,
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
    let mut interfaces = Interfaces {
        rings: Vec::new(),
        missing: interfaces,
        options,
        looked: None,
        dropped: 0,
        problem: None,
    };
    while !stop.load(Ordering::Relaxed) {
        interfaces.look(sensor);
        let mut busy = false;
        for ring in &mut interfaces.rings {
            for _ in 0..TURN {
                let Some(block) = ring.block() else { break };
                busy = true;
                block.bursts(|packets| meter.process(packets, &mut recorder));
            }
        }
        meter.tick(now(), &mut recorder);
        recorder.note(&meter, interfaces.dropped);
        let due = recorder.flush_due(Instant::now());
        if !busy {
            let nap = if meter.active_flows() == 0 { SLEEP } else { NAP };
            let until_due = due.map_or(nap, |due| due.saturating_duration_since(Instant::now()));
            wait(&interfaces.rings, nap.min(until_due));
        }
    }
    interfaces.count_drops();
    meter.finish(EndReason::Shutdown, &mut recorder);
    recorder.note(&meter, interfaces.dropped);
    recorder.flush();
}

impl Interfaces {
    // Opens what is missing, closes what is gone, asks the kernel for its drops.
    fn look(&mut self, sensor: &Sensor) {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return;
        }
        self.looked = Some(Instant::now());
        self.count_drops();
        let mut problem = None;
        for i in (0..self.rings.len()).rev() {
            if let Some(error) = self.rings[i].take_error() {
                tracing::warn!(sensor = sensor.id, interface = self.rings[i].interface(), %error, "the interface is down");
            }
            if self.rings[i].is_orphaned() {
                let ring = self.rings.swap_remove(i);
                tracing::warn!(
                    sensor = sensor.id,
                    interface = ring.interface(),
                    "the interface is gone; waiting for it"
                );
                self.missing.push(ring.interface().to_owned());
            }
        }
        for i in (0..self.missing.len()).rev() {
            match Ring::open(&self.missing[i], &self.options) {
                Ok(ring) => {
                    tracing::info!(
                        sensor = sensor.id,
                        interface = ring.interface(),
                        link = ring.link().name(),
                        "capturing"
                    );
                    let link = ring.link();
                    sensor.update(|status| status.link = Some(link));
                    self.rings.push(ring);
                    self.missing.swap_remove(i);
                }
                Err(error) => {
                    let mut text = error.to_string();
                    if let Some(cause) = std::error::Error::source(&error) {
                        text.push_str(&format!(": {cause}"));
                    }
                    problem = Some(text);
                }
            }
        }
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

    fn count_drops(&mut self) {
        for ring in &self.rings {
            // A ring whose interface is gone has no more to say.
            if let Ok(drops) = ring.drops() {
                self.dropped += drops.dropped;
            }
        }
    }
}
