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
        CaptureError, Filter,
        afpacket::{Control, Interface, Ring, RingOptions, wait},
        filter::Program,
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

/// What is captured.
#[derive(Clone, Debug)]
pub struct Watched {
    /// On these interfaces.
    pub interfaces: Vec<String>,
    /// How.
    pub options: RingOptions,
    /// Of their packets only those that it wants.
    pub filter: Option<Filter>,
}

struct Capture {
    names: Vec<String>,
    filter: Option<Filter>,
    options: RingOptions,
    workers: usize,
    controls: Vec<Control>,
    listening: Vec<Interface>,
    looked: Option<Instant>,
    dropped: u64,
    problem: Option<String>,
}

/// Captures until `stop` is set, then ends every flow. Each worker has a ring, a flow table and a thread of its own; the
/// kernel gives both directions of a flow to the same.
pub fn watch(sensor: &Arc<Sensor>, watched: Watched, mut workers: Vec<(Meter, Recorder)>, stop: &AtomicBool) {
    let mut capture = Capture {
        names: watched.interfaces,
        filter: watched.filter,
        options: watched.options,
        workers: workers.len(),
        controls: Vec::new(),
        listening: Vec::new(),
        looked: None,
        dropped: 0,
        problem: None,
    };
    let Some((mut meter, mut recorder)) = workers.pop() else {
        return;
    };
    std::thread::scope(|scope| {
        let mut own: Option<Ring> = None;
        while !stop.load(Ordering::Relaxed) {
            for ring in capture.look(sensor) {
                match workers.pop() {
                    Some((meter, recorder)) => {
                        scope.spawn(move || work(ring, meter, recorder, stop));
                    }
                    None => own = Some(ring),
                }
            }
            turn(own.as_mut(), &mut meter, &mut recorder, capture.dropped);
        }
        capture.count_drops();
        meter.finish(EndReason::Shutdown, &mut recorder);
        recorder.note(&meter, capture.dropped);
        recorder.flush();
    });
}

// A worker that has nothing to do but its ring.
fn work(mut ring: Ring, mut meter: Meter, mut recorder: Recorder, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        turn(Some(&mut ring), &mut meter, &mut recorder, 0);
    }
    meter.finish(EndReason::Shutdown, &mut recorder);
    recorder.note(&meter, 0);
    recorder.flush();
}

// A few blocks, then timers and batches; then a nap unless there was work.
fn turn(mut ring: Option<&mut Ring>, meter: &mut Meter, recorder: &mut Recorder, dropped: u64) {
    let mut busy = false;
    if let Some(ring) = &mut ring {
        for _ in 0..TURN {
            let Some(block) = ring.block() else { break };
            busy = true;
            block.bursts(|packets| meter.process(packets, recorder));
        }
    }
    meter.tick(now(), recorder);
    recorder.note(meter, dropped);
    let due = recorder.flush_due(Instant::now());
    if !busy {
        let nap = if meter.active_flows() == 0 { SLEEP } else { NAP };
        let until_due = due.map_or(nap, |due| due.saturating_duration_since(Instant::now()));
        match &ring {
            Some(ring) => wait(ring, nap.min(until_due)),
            None => std::thread::sleep(nap.min(until_due)),
        }
    }
}

impl Capture {
    // Follows interfaces that come and go, and asks the kernel for its drops. Gives the rings, once they are there.
    fn look(&mut self, sensor: &Sensor) -> Vec<Ring> {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return Vec::new();
        }
        self.looked = Some(Instant::now());
        self.count_drops();
        let mut opened = Vec::new();
        let problem = self.follow(sensor, &mut opened).err().map(|error| {
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
        opened
    }

    fn follow(&mut self, sensor: &Sensor, opened: &mut Vec<Ring>) -> Result<(), CaptureError> {
        let mut missing = None;
        let (mut found, mut names) = (Vec::new(), Vec::new());
        for name in &self.names {
            match Interface::find(name) {
                Ok(interface) => {
                    found.push(interface);
                    names.push(name);
                }
                Err(error) => missing = Some(error),
            }
        }
        if self.controls.is_empty() {
            *opened = Ring::open_several(&sensor.id, &self.options, self.workers)?;
            self.controls = opened.iter().map(Ring::control).collect();
        }
        if found != self.listening {
            let refused = |operation| {
                let sensor = sensor.id.clone();
                move |source| CaptureError::Socket {
                    sensor,
                    operation,
                    source,
                }
            };
            // One expression is one program for each interface, because their frames begin differently.
            let mut programs: Vec<Option<Program>> = Vec::new();
            for name in names {
                let program = self
                    .filter
                    .as_ref()
                    .map(|filter| filter.for_interface(name, self.options.snaplen.max(64)));
                programs.push(program.transpose()?);
            }
            let indices = found.iter().map(|interface| interface.index);
            let interfaces: Vec<_> = indices.zip(programs.iter().map(Option::as_ref)).collect();
            for ring in &self.controls {
                ring.listen_on(&interfaces).map_err(refused("setting a filter"))?;
            }
            // One socket that asks for it is enough for all.
            if let Some(ring) = self.controls.first().filter(|_| self.options.promiscuous) {
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
        for drops in self.controls.iter().filter_map(|ring| ring.drops().ok()) {
            self.dropped += drops.dropped;
        }
    }
}
