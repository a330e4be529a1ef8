//! The meter on its own: a capture file in, flow records out, with no broker, no configuration and no network.

use std::path::Path;

use garrison_flow::FlowRow;

use crate::{
    capture::{Burst, CaptureError, CaptureFile},
    domain::{Counts, Limits, Meter, Sink, record::EndReason},
};

/// What came of a capture file.
#[derive(Debug)]
pub struct Summary {
    /// What became of packets and flows.
    pub counts: Counts,
    /// What ended the file early. Everything before it was metered.
    pub problem: Option<CaptureError>,
}

struct Each<F>(F);

impl<F: FnMut(&FlowRow<'_>)> Sink for Each<F> {
    fn record(&mut self, row: &FlowRow<'_>) {
        (self.0)(row);
    }
}

/// Meters a capture file and gives every record to `each`, in order. `random` seeds the flow ids: one seed gives one
/// capture the same ids each time.
///
/// # Errors
/// [`CaptureError`] when the file is no capture this meter reads. A file that is cut short or damaged further on is
/// metered up to there; see [`Summary::problem`].
pub fn meter_file(
    path: &Path,
    sensor: &str,
    limits: Limits,
    random: u128,
    each: impl FnMut(&FlowRow<'_>),
) -> Result<Summary, CaptureError> {
    let mut file = CaptureFile::open(path)?;
    let mut meter = Meter::new(sensor, limits, random);
    let mut sink = Each(each);
    let problem = loop {
        let mut burst = Burst::default();
        match file.fill_burst(&mut burst) {
            Ok(true) => meter.process(burst.packets(), &mut sink),
            Ok(false) => break None,
            Err(error) => break Some(error),
        }
    };
    meter.finish(EndReason::EndOfFile, &mut sink);
    Ok(Summary {
        counts: meter.counts(),
        problem,
    })
}
