//! How far the meter agrees with other meters on captures whose answers are known: Zeek's connection logs and nDPI's
//! flow lists. `cargo xtask eval flows` prints it, the tests hold it to a floor.

pub mod ndpi;
pub mod zeek;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
};

use garrison_flow::FlowRow;

use crate::{
    capture::{CaptureError, CaptureFile},
    domain::{
        Limits, Meter, Sink,
        key::FlowKey,
        packet::{Fragment, Packet, Verdict, address, decode},
        record::EndReason,
    },
};

/// A comparison could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AgreementError {
    /// A file of the corpus could not be read.
    #[error("reading {path} failed")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the corpus is not what it should be.
    #[error("{path}: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
}

fn read(path: &Path) -> Result<String, AgreementError> {
    let bytes = std::fs::read(path).map_err(|source| AgreementError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What both meters name a flow by: transport, and the two endpoints as text.
type Endpoints = (u8, String, String);

fn endpoint(address: std::net::IpAddr, port: u16) -> String {
    match address {
        std::net::IpAddr::V4(v4) => format!("{v4}:{port}"),
        std::net::IpAddr::V6(v6) => format!("[{v6}]:{port}"),
    }
}

struct Collect<F> {
    each: F,
    frames: HashMap<FlowKey, Frames>,
}

/// Whole frames from one endpoint to another.
#[derive(Clone, Copy, Debug, Default)]
struct Frames {
    octets: u64,
    // Those that carry a later part of a datagram.
    parts: u64,
    part_octets: u64,
}

impl<F: FnMut(&FlowRow<'_>)> Sink for Collect<F> {
    fn record(&mut self, row: &FlowRow<'_>) {
        if row.end_reason.is_some() {
            (self.each)(row);
        }
    }

    fn packet(&mut self, packet: &Packet<'_>, key: Option<&FlowKey>) {
        let Some(key) = key else { return };
        let mut keys = vec![*key];
        let mut part = false;
        // The outer flow of a tunnel over UDP has the frame too.
        if let Verdict::Flow(outer) = decode(packet) {
            let later = matches!(outer.fragment, Fragment::Later { .. });
            let outer = FlowKey {
                src: outer.src,
                dst: outer.dst,
                src_port: outer.src_port,
                dst_port: outer.dst_port,
                protocol: outer.protocol,
            };
            // A later part has the ports of its first only in the flow's own key.
            part = later;
            if outer != *key && !later {
                keys.push(outer);
            }
        }
        let octets = u64::from(packet.wire_len);
        for key in keys {
            let frames = self.frames.entry(key).or_default();
            frames.octets += octets;
            if part {
                frames.parts += 1;
                frames.part_octets += octets;
            }
        }
    }
}

// Meters a capture as far as it can be read. Gives the octets of whole frames for each direction.
fn last_records(
    path: &Path,
    limits: Limits,
    each: impl FnMut(&FlowRow<'_>),
) -> Result<HashMap<Endpoints, Frames>, CaptureError> {
    let mut file = CaptureFile::open(path)?;
    let mut meter = Meter::new("agreement", limits, 1);
    let mut sink = Collect {
        each,
        frames: HashMap::new(),
    };
    // What was read before a damaged place counts.
    while let Ok(Some(burst)) = file.burst() {
        meter.process(burst.packets(), &mut sink);
    }
    meter.finish(EndReason::EndOfFile, &mut sink);
    let mut frames: HashMap<Endpoints, Frames> = HashMap::new();
    for (key, count) in sink.frames {
        let src = endpoint(address(&key.src), key.src_port);
        let dst = endpoint(address(&key.dst), key.dst_port);
        let sum = frames.entry((key.protocol, src, dst)).or_default();
        sum.octets += count.octets;
        sum.parts += count.parts;
        sum.part_octets += count.part_octets;
    }
    Ok(frames)
}
