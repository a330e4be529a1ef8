//! Flow exports: NetFlow version 5 and 9 (RFC 3954), IPFIX (RFC 7011) and sFlow version 5, told apart by how a datagram
//! begins.
//!
//! [`ipfix`] writes them: biflows for any collector.
//!
//! Templates are compiled into plans that say where each field is and where its value goes, so a record costs one pass
//! over a short list. What an exporter does not send is unknown, never zero.

pub mod field;
pub mod ipfix;
pub mod keep;
pub mod plan;
mod record;
mod sets;
pub mod sflow;
mod stream;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use self::{
    plan::{FieldSpec, Plan, Values},
    record::Header,
    stream::{Stream, StreamKey},
};
use crate::domain::{Counts, Sink};

pub use record::UNKNOWN_PROTOCOL;
pub(crate) use record::{Emitter, is_answer};
pub use sflow::InterfaceCounters;

/// What a collector holds at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectorLimits {
    /// Exporters, each with each of its observation domains.
    pub streams: usize,
    /// Templates of all exporters.
    pub templates: usize,
    /// Interfaces whose counters are kept.
    pub interfaces: usize,
}

impl Default for CollectorLimits {
    fn default() -> Self {
        Self {
            streams: 4096,
            templates: 65_536,
            interfaces: 4096,
        }
    }
}

/// Templates of one exporter's domain.
const TEMPLATES_EACH: usize = 4096;
/// After this long without a datagram an exporter may be forgotten for another, nanoseconds.
const SILENT: i64 = 600_000_000_000;

/// How a datagram contradicts its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} (at octet {offset})")]
pub struct Malformed {
    /// Where.
    pub offset: usize,
    /// What.
    pub problem: &'static str,
}

impl Malformed {
    pub(crate) fn new(offset: usize, problem: &'static str) -> Self {
        Self { offset, problem }
    }

    fn at(self, base: usize) -> Self {
        Self {
            offset: self.offset + base,
            ..self
        }
    }
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it was read.
    Parsed,
    /// It contradicts its format; the records before that place were taken.
    Malformed(Malformed),
    /// Records in it were not read, because their template has not come yet.
    NoTemplate,
    /// It was not read, because there are too many exporters.
    TooMany,
}

/// What became of what datagrams hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records of flows that were read.
    pub records: u64,
    /// Records that name no two hosts: events, statistics.
    pub without_flow: u64,
    /// Records of options templates.
    pub options: u64,
    /// Templates that were new or changed.
    pub templates: u64,
    /// Templates that were refused because there are too many.
    pub templates_refused: u64,
    /// Sets of records whose template has not come yet.
    pub sets_without_template: u64,
    /// What the exporters' sequence numbers say is missing: flows (NetFlow 5), datagrams (NetFlow 9, sFlow) or records
    /// (IPFIX).
    pub missing: u64,
    /// Times an exporter's sequence began anew.
    pub restarts: u64,
    /// Datagrams that came after later ones.
    pub late: u64,
    /// Samples of sFlow whose header is no packet that can be read.
    pub samples_unread: u64,
}

/// Reads datagrams of any number of exporters.
pub struct Collector {
    limits: CollectorLimits,
    streams: HashMap<StreamKey, Stream>,
    templates: usize,
    emitter: Emitter,
    keep_extra: bool,
    sampling: u32,
    scratch: Vec<u8>,
    netflow5: Plan,
    counts: Counts,
    tally: Tally,
    interfaces: BTreeMap<(IpAddr, u32), InterfaceCounters>,
    interfaces_changed: bool,
    changed: bool,
    swept: i64,
}

/// What a collector needs while it reads one datagram of a stream.
struct Reader<'c, S> {
    stream: &'c mut Stream,
    room: &'c mut usize,
    limit: usize,
    emitter: &'c mut Emitter,
    scratch: &'c mut Vec<u8>,
    keep_extra: bool,
    tally: &'c mut Tally,
    changed: &'c mut bool,
    sink: &'c mut S,
}

impl Collector {
    /// Makes a collector. `random` seeds the flow ids.
    pub fn new(sensor: &str, limits: CollectorLimits, random: u128) -> Self {
        Self {
            limits,
            streams: HashMap::new(),
            templates: 0,
            emitter: Emitter::new(sensor, random),
            keep_extra: true,
            sampling: 1,
            scratch: Vec::new(),
            netflow5: netflow5(),
            counts: Counts::default(),
            tally: Tally::default(),
            interfaces: BTreeMap::new(),
            interfaces_changed: false,
            changed: false,
            swept: i64::MIN,
        }
    }

    /// Whether fields without a column are kept in the column `extra`.
    pub fn keep_extra(&mut self, keep: bool) {
        self.keep_extra = keep;
    }

    /// One in how many packets exporters look at that do not tell it.
    pub fn assume_sampling(&mut self, rate: u32) {
        self.sampling = rate.max(1);
    }

    /// What became of datagrams: `received`, `parsed`, `malformed`, `shed`; and of flow records.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What became of what is in them.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Exporters, each with each of its observation domains.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Latest interface counters that sFlow agents sent, by agent and interface index.
    pub fn interfaces(&self) -> &BTreeMap<(IpAddr, u32), InterfaceCounters> {
        &self.interfaces
    }

    /// The same when they changed since this was called last.
    pub fn take_new_interfaces(&mut self) -> Option<Arc<BTreeMap<(IpAddr, u32), InterfaceCounters>>> {
        std::mem::take(&mut self.interfaces_changed).then(|| Arc::new(self.interfaces.clone()))
    }

    /// Counts a datagram that is not read, because its sender is not one of those to be heard.
    pub fn refuse(&mut self) {
        self.counts.received += 1;
        self.counts.shed += 1;
    }

    /// Reads a datagram that came from `exporter` at `received` (nanoseconds since the epoch).
    pub fn datagram(&mut self, exporter: IpAddr, received: i64, data: &[u8], sink: &mut impl Sink) -> Outcome {
        let before = self.tally.records;
        let outcome = self.read(exporter.to_canonical(), received, data, sink);
        self.counts.received += 1;
        match outcome {
            Outcome::Parsed => self.counts.parsed += 1,
            Outcome::Malformed(_) => self.counts.malformed += 1,
            Outcome::NoTemplate | Outcome::TooMany => self.counts.shed += 1,
        }
        let records = self.tally.records - before;
        self.counts.no_flow += u64::from(records == 0 && outcome == Outcome::Parsed);
        self.counts.opened += records;
        self.counts.ended += records;
        self.counts.records += records;
        outcome
    }

    fn read(&mut self, exporter: IpAddr, received: i64, data: &[u8], sink: &mut impl Sink) -> Outcome {
        let outcome = match data {
            [0, 5, ..] => self.netflow5(exporter, received, data, sink),
            [0, 9, ..] => self.netflow9(exporter, received, data, sink),
            [0, 10, ..] => self.ipfix(exporter, received, data, sink),
            [0, 0, 0, 5, ..] => self.sflow(exporter, received, data, sink),
            [] => Err(Malformed::new(0, "the datagram is empty")),
            _ => Err(Malformed::new(
                0,
                "it begins as none of NetFlow 5, NetFlow 9, IPFIX and sFlow 5 does",
            )),
        };
        outcome.unwrap_or_else(Outcome::Malformed)
    }

    // The stream of a datagram; a new one where there is room.
    fn admit(&mut self, key: StreamKey, received: i64) -> bool {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.heard = received;
            return true;
        }
        if self.streams.len() >= self.limits.streams {
            // Looking for silent ones costs a pass over all, so a flood of new exporters gets it once a second.
            if received.saturating_sub(self.swept) < 1_000_000_000 {
                return false;
            }
            self.swept = received;
            let templates = &mut self.templates;
            self.streams.retain(|_, stream| {
                let stays = received.saturating_sub(stream.heard) < SILENT;
                *templates -= if stays { 0 } else { stream.templates.len() };
                stays
            });
            self.changed = true;
            if self.streams.len() >= self.limits.streams {
                return false;
            }
        }
        self.streams.insert(key, Stream::new(received));
        true
    }

    fn reader<'c, S>(&'c mut self, key: &StreamKey, sink: &'c mut S) -> Option<Reader<'c, S>> {
        Some(Reader {
            stream: self.streams.get_mut(key)?,
            room: &mut self.templates,
            limit: self.limits.templates,
            emitter: &mut self.emitter,
            scratch: &mut self.scratch,
            keep_extra: self.keep_extra,
            tally: &mut self.tally,
            changed: &mut self.changed,
            sink,
        })
    }

    fn netflow5(
        &mut self,
        exporter: IpAddr,
        received: i64,
        data: &[u8],
        sink: &mut impl Sink,
    ) -> Result<Outcome, Malformed> {
        const HEADER: usize = 24;
        const RECORD: usize = 48;
        let Some(head) = data.get(..HEADER) else {
            return Err(Malformed::new(data.len(), "a NetFlow 5 header is cut short"));
        };
        let count = usize::from(be16(head, 2));
        if count == 0 || HEADER + count * RECORD != data.len() {
            return Err(Malformed::new(2, "the number of records contradicts the length"));
        }
        let key = StreamKey {
            exporter,
            version: 5,
            domain: be16(head, 20).into(),
        };
        if !self.admit(key, received) {
            return Ok(Outcome::TooMany);
        }
        let Some(stream) = self.streams.get_mut(&key) else {
            return Ok(Outcome::TooMany);
        };
        stream.count(be32(head, 16), count as u32, &mut self.tally);
        let seconds = i64::from(be32(head, 8)) * 1_000_000_000;
        let header = Header {
            origin: "netflow5",
            exporter,
            exported: if seconds == 0 {
                received
            } else {
                seconds + i64::from(be32(head, 12).min(999_999_999))
            },
            uptime: Some(be32(head, 4)),
            // The upper two bits are the mode, and often left 0 by exporters that do sample.
            sampling: match be16(head, 22) & 0x3fff {
                0 => self.sampling,
                interval => interval.into(),
            },
        };
        let mut values = Values::new();
        for record in data[HEADER..].chunks_exact(RECORD) {
            self.netflow5
                .read(record, &mut values, &mut self.scratch, self.keep_extra)?;
            match self.emitter.flow(&header, &values, &self.scratch, sink) {
                true => self.tally.records += 1,
                false => self.tally.without_flow += 1,
            }
        }
        Ok(Outcome::Parsed)
    }

    fn netflow9(
        &mut self,
        exporter: IpAddr,
        received: i64,
        data: &[u8],
        sink: &mut impl Sink,
    ) -> Result<Outcome, Malformed> {
        let Some(head) = data.get(..20) else {
            return Err(Malformed::new(data.len(), "a NetFlow 9 header is cut short"));
        };
        let key = StreamKey {
            exporter,
            version: 9,
            domain: be32(head, 16),
        };
        let seconds = i64::from(be32(head, 8)) * 1_000_000_000;
        let header = Header {
            origin: "netflow9",
            exporter,
            exported: if seconds == 0 { received } else { seconds },
            uptime: Some(be32(head, 4)),
            sampling: self.sampling,
        };
        if !self.admit(key, received) {
            return Ok(Outcome::TooMany);
        }
        let Some(mut reader) = self.reader(&key, sink) else {
            return Ok(Outcome::TooMany);
        };
        reader.stream.count(be32(head, 12), 1, reader.tally);
        reader
            .sets(&header, &data[20..], 20, be16(head, 2).into())
            .map(Into::into)
    }

    fn ipfix(
        &mut self,
        exporter: IpAddr,
        received: i64,
        data: &[u8],
        sink: &mut impl Sink,
    ) -> Result<Outcome, Malformed> {
        let Some(head) = data.get(..16) else {
            return Err(Malformed::new(data.len(), "an IPFIX header is cut short"));
        };
        let length = usize::from(be16(head, 2));
        // Some exporters pad the datagram behind the message.
        if length < 16 || length > data.len() {
            return Err(Malformed::new(2, "the message's length contradicts the datagram's"));
        }
        let key = StreamKey {
            exporter,
            version: 10,
            domain: be32(head, 12),
        };
        let seconds = i64::from(be32(head, 4)) * 1_000_000_000;
        let header = Header {
            origin: "ipfix",
            exporter,
            exported: if seconds == 0 { received } else { seconds },
            uptime: None,
            sampling: self.sampling,
        };
        if !self.admit(key, received) {
            return Ok(Outcome::TooMany);
        }
        let Some(mut reader) = self.reader(&key, sink) else {
            return Ok(Outcome::TooMany);
        };
        let read = reader.sets(&header, &data[16..length], 16, usize::MAX)?;
        // The sequence counts data records, so a set that was not read leaves the next number unknown.
        match read.unread {
            0 => reader.stream.count(be32(head, 8), read.data_records, reader.tally),
            _ => reader.stream.forget_sequence(),
        }
        Ok(read.into())
    }
}

fn netflow5() -> Plan {
    let layout: [(u16, u16); 20] = [
        (8, 4),
        (12, 4),
        (15, 4),
        (10, 2),
        (14, 2),
        (2, 4),
        (1, 4),
        (22, 4),
        (21, 4),
        (7, 2),
        (11, 2),
        (210, 1),
        (6, 1),
        (4, 1),
        (5, 1),
        (16, 2),
        (17, 2),
        (9, 1),
        (13, 1),
        (210, 2),
    ];
    let fields = layout.map(|(id, length)| FieldSpec {
        enterprise: 0,
        id,
        length,
    });
    Plan::compile(fields.to_vec(), 0).expect("the layout has fields and octets")
}

fn be16(data: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([data[at], data[at + 1]])
}

fn be32(data: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
}

/// Splits a file of datagrams: IPFIX messages one after the other (RFC 5655), or a single NetFlow or sFlow datagram.
/// `None` when it is neither.
pub fn split_file(data: &[u8]) -> Option<Vec<&[u8]>> {
    let mut rest = data;
    let mut datagrams = Vec::new();
    while !rest.is_empty() {
        let length = match rest {
            [0, 10, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
            [0, 5, high, low, ..] => 24 + 48 * usize::from(u16::from_be_bytes([*high, *low])),
            [0, 9, ..] | [0, 0, 0, 5, ..] => rest.len(),
            _ => return None,
        };
        if length < 16 {
            return None;
        }
        let (datagram, behind) = rest.split_at(length.min(rest.len()));
        datagrams.push(datagram);
        rest = behind;
    }
    (!datagrams.is_empty()).then_some(datagrams)
}

/// What came of a folder of single datagrams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FolderReport {
    /// Datagrams read.
    pub datagrams: usize,
    /// Flow records in them.
    pub records: u64,
    /// Options records in them.
    pub options: u64,
    /// Records without two hosts.
    pub without_flow: u64,
    /// Files of datagrams that contradict their format, each with what and where.
    pub malformed: Vec<(String, Malformed)>,
    /// Files of datagrams whose template is in no other file.
    pub without_template: Vec<String>,
}

/// Reads a folder of `.dat` files with one datagram or more each, as public collections of exporters' datagrams have them:
/// `<exporter>_tpl*.dat` before `<exporter>_data*.dat`. Each group of files is its own exporter.
///
/// # Errors
/// When the folder cannot be read.
pub fn read_folder(folder: &std::path::Path, sink: &mut impl Sink) -> std::io::Result<FolderReport> {
    let mut names: Vec<_> = std::fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.ends_with(".dat"))
        .collect();
    // Within a group: templates, options templates, then data.
    let place = |name: &str| (group(name).to_owned(), u8::from(!name.contains("tpl")), name.to_owned());
    names.sort_by_key(|name| place(name));
    let mut report = FolderReport::default();
    let mut number = 0u32;
    let mut last = None;
    let mut collector = Collector::new("folder", CollectorLimits::default(), 1);
    for name in names {
        if last.as_deref() != Some(group(&name)) {
            last = Some(group(&name).to_owned());
            number += 1;
        }
        let exporter = IpAddr::from(Ipv4Addr::from(0x0a00_0000 + number));
        let data = std::fs::read(folder.join(&name))?;
        for datagram in split_file(&data).unwrap_or_else(|| vec![&data]) {
            report.datagrams += 1;
            match collector.datagram(exporter, 0, datagram, sink) {
                Outcome::Parsed => {}
                Outcome::Malformed(malformed) => report.malformed.push((name.clone(), malformed)),
                Outcome::NoTemplate | Outcome::TooMany => report.without_template.push(name.clone()),
            }
        }
    }
    let tally = collector.tally();
    report.records = tally.records;
    report.options = tally.options;
    report.without_flow = tally.without_flow;
    Ok(report)
}

// `netflow9_test_cisco_asa_1_tpl.dat` and `netflow9_test_cisco_asa_1_data.dat` are of one exporter.
fn group(name: &str) -> &str {
    let stem = name.trim_end_matches(".dat");
    let end = ["_tpl", "_opttpl", "_data", "_option", "_dpi"]
        .iter()
        .filter_map(|mark| stem.find(mark))
        .min()
        .unwrap_or(stem.len());
    &stem[..end]
}
