//! Exported records on one core.

use std::net::IpAddr;

use flow_ingest::{
    domain::Sink,
    export::{Collector, CollectorLimits, Outcome},
};
use serde_json::{Value, json};

use crate::{
    datagrams::{FLOWS, ipfix},
    meter::{Batches, Nothing, on_core},
};

fn read(datagrams: &[Vec<u8>], sink: &mut impl Sink) -> Result<u64, String> {
    let mut collector = Collector::new("bench", CollectorLimits::default(), 1);
    collector.keep_extra(false);
    let exporter = IpAddr::from([192, 0, 2, 1]);
    let core = on_core();
    for datagram in datagrams {
        if collector.datagram(exporter, 0, datagram, sink) != Outcome::Parsed {
            return Err("a datagram was not read".to_owned());
        }
    }
    match collector.tally().records == u64::from(FLOWS) {
        true => Ok((on_core() - core).as_nanos() as u64),
        false => Err("records are missing".to_owned()),
    }
}

/// Decodes IPFIX, and makes Arrow batches of it; the best of some runs.
pub fn measure(runs: u32) -> Result<Value, String> {
    let datagrams = ipfix();
    let (mut decoded, mut batches) = (u64::MAX, u64::MAX);
    for _ in 0..runs {
        decoded = decoded.min(read(&datagrams, &mut Nothing(0))?);
        batches = batches.min(read(&datagrams, &mut Batches::default())?);
    }
    Ok(json!({ "records": FLOWS, "decoded_ns": decoded, "batches_ns": batches }))
}
