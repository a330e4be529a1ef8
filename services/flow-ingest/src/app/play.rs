//! Playing a capture file: as fast as it can be read, or with the pauses it was captured with.

use std::{
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{recorder::Recorder, sensor::Sensor, watch::now};
use crate::{
    capture::{Burst, CaptureError, CaptureFile, spread::spread},
    config::{Pace, Timestamps},
    domain::{Counts, Meter, packet::Packet, record::EndReason},
    input::{Input, InputError, Kind, Options},
};

/// Longest sleep between looks at the stop flag and at due batches.
const NAP: Duration = Duration::from_millis(5);

/// How a file is played.
#[derive(Clone, Debug)]
pub struct Playing {
    /// How fast.
    pub pace: Pace,
    /// With which times.
    pub timestamps: Timestamps,
    /// How files other than captures are read.
    pub options: Options,
}

/// Plays a file to its end, or until `stop` is set. What is wrong with the file is noted in the sensor's status. Several
/// workers share the packets of a capture that is played fast; anything else is the first one's.
pub fn play(
    sensor: &Arc<Sensor>,
    path: &Path,
    playing: Playing,
    mut workers: Vec<(Meter, Recorder)>,
    stop: &AtomicBool,
) {
    let mut end = EndReason::EndOfFile;
    let counts = match feed(sensor, path, &playing, &mut workers, stop, &mut end) {
        Ok(counts) => counts,
        Err(error) => {
            let text = error.text();
            tracing::error!(sensor = sensor.id, problem = text, "the file was not read to its end");
            sensor.update(|status| status.problem = Some(text));
            None
        }
    };
    for (meter, recorder) in &mut workers {
        meter.finish(end, recorder);
        recorder.note_counts(counts.unwrap_or_else(|| meter.counts()), 0, 0);
        recorder.flush();
    }
    let counts = sensor.status().counts;
    tracing::info!(
        sensor = sensor.id,
        received = counts.received,
        flows = counts.opened,
        records = counts.records,
        malformed = counts.malformed,
        "file read"
    );
}

// Gives the counts of what was no capture.
fn feed(
    sensor: &Sensor,
    path: &Path,
    playing: &Playing,
    workers: &mut Vec<(Meter, Recorder)>,
    stop: &AtomicBool,
    end: &mut EndReason,
) -> Result<Option<Counts>, InputError> {
    let input = Input::open(path, playing.options.format)?;
    if input.kind() != Kind::Capture {
        workers.truncate(1);
        let Some((_, recorder)) = workers.first_mut() else {
            return Ok(None);
        };
        return other(sensor, input, playing, recorder, stop).map(Some);
    }
    let fast = playing.pace == Pace::Fast;
    let mut shift = match (playing.timestamps, fast) {
        (Timestamps::Capture, _) => Some(0),
        // Played fast, everything has just happened.
        // Standard input can be read only once, so there the first packet is now.
        (Timestamps::Now, true) if path.as_os_str() != "-" => Some(latest(path)?.map_or(0, |latest| now() - latest)),
        (Timestamps::Now, true) => None,
        (Timestamps::Now, false) => None,
    };
    let mut file = CaptureFile::new(input.into_source(), path)?;
    if let Some(filter) = &playing.options.filter {
        file.select(filter.clone());
    }
    sensor.update(|status| status.link = file.link());
    if workers.len() > 1 && fast {
        share(file, workers, shift, stop)?;
        if stop.load(Ordering::Relaxed) {
            *end = EndReason::Shutdown;
        }
        return Ok(None);
    }
    let Some((meter, recorder)) = workers.first_mut() else {
        return Ok(None);
    };
    let started = Instant::now();
    let mut first = None;
    let mut looked = Instant::now();
    loop {
        let mut burst = Burst::default();
        if !file.fill_burst(&mut burst)? {
            return Ok(None);
        }
        let Some(head) = burst.packets().first().map(|packet| packet.time) else {
            continue;
        };
        let origin = *first.get_or_insert(head);
        let shift = *shift.get_or_insert_with(|| now() - head);
        burst.shift(shift);
        if fast {
            meter.process(burst.packets(), recorder);
        } else {
            for packet in burst.packets() {
                let due = Duration::from_nanos((packet.time - shift - origin).max(0) as u64);
                pause(started + due, shift + origin, started, meter, recorder, stop);
                meter.process(std::slice::from_ref(packet), recorder);
                recorder.note(meter, 0);
                recorder.flush_due(Instant::now());
            }
        }
        if looked.elapsed() >= NAP {
            looked = Instant::now();
            sensor.update(|status| status.link = status.link.or(file.link()));
            recorder.note(meter, 0);
            recorder.flush_due(looked);
            if stop.load(Ordering::Relaxed) {
                *end = EndReason::Shutdown;
                return Ok(None);
            }
        }
    }
}

// Plays a capture fast with several workers.
fn share(
    file: CaptureFile,
    workers: &mut [(Meter, Recorder)],
    shift: Option<i64>,
    stop: &AtomicBool,
) -> Result<(), CaptureError> {
    let began = OnceLock::new();
    let mut sharing: Vec<_> = workers
        .iter_mut()
        .map(|(meter, recorder)| (meter, recorder, Instant::now()))
        .collect();
    let each = |(meter, recorder, looked): &mut (&mut Meter, &mut Recorder, Instant), packets: &[Packet<'_>]| {
        let shift =
            shift.unwrap_or_else(|| *began.get_or_init(|| now() - packets.first().map_or(0, |packet| packet.time)));
        let mut burst = Burst::default();
        packets.iter().for_each(|packet| burst.push(*packet));
        burst.shift(shift);
        meter.process(burst.packets(), *recorder);
        if looked.elapsed() >= NAP {
            *looked = Instant::now();
            recorder.note(meter, 0);
            recorder.flush_due(*looked);
        }
    };
    let last = |(meter, recorder, _): &mut (&mut Meter, &mut Recorder, Instant)| {
        let end = match stop.load(Ordering::Relaxed) {
            true => EndReason::Shutdown,
            false => EndReason::EndOfFile,
        };
        meter.finish(end, *recorder);
    };
    spread(file, &mut sharing, stop, each, last)
}

// Logs and flow exports are read as they are: their times are those of what they tell of.
fn other(
    sensor: &Sensor,
    input: Input,
    playing: &Playing,
    recorder: &mut Recorder,
    stop: &AtomicBool,
) -> Result<Counts, InputError> {
    let summary = input.read(&playing.options, recorder, &mut |progress| {
        sensor.update(|status| status.counts = progress.counts);
        !stop.load(Ordering::Relaxed)
    })?;
    for fault in &summary.faults {
        tracing::warn!(
            sensor = sensor.id,
            line = fault.line,
            "GAR-FLOW-0057: a line was passed over: {}",
            fault.problem
        );
    }
    match summary.problem {
        None => Ok(summary.counts),
        Some(problem) => {
            // What was read before counts all the same.
            let text = problem.text();
            tracing::error!(sensor = sensor.id, problem = text, "the file was not read to its end");
            sensor.update(|status| status.problem = Some(text));
            Ok(summary.counts)
        }
    }
}

// Waits for a packet's turn; meanwhile time passes for flows and batches.
fn pause(due: Instant, origin: i64, started: Instant, meter: &mut Meter, recorder: &mut Recorder, stop: &AtomicBool) {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() || stop.load(Ordering::Relaxed) {
            return;
        }
        std::thread::sleep(left.min(NAP));
        meter.tick(origin + started.elapsed().as_nanos() as i64, recorder);
        recorder.note(meter, 0);
        recorder.flush_due(Instant::now());
    }
}

// The latest time in a file, as far as it can be read.
fn latest(path: &Path) -> Result<Option<i64>, CaptureError> {
    let mut file = CaptureFile::open(path)?;
    let mut latest = None;
    while let Ok(Some(burst)) = file.burst() {
        latest = burst.packets().iter().map(|p| p.time).chain(latest).max();
    }
    Ok(latest)
}
