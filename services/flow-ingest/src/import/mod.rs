//! Other sensors' logs and cloud flow logs: each line or object becomes a record of the one schema, and what a log does not
//! say is unknown, never zero. A bad line is counted and named, and the next one is read.

mod aws;
mod azure;
pub(crate) mod columns;
mod eve;
mod gcp;
mod hubble;
mod split;
mod value;
mod zeek;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use garrison_flow::{FlowRow, FlowState};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::split::{Piece, Splitter};
use crate::{
    domain::{Counts, Sink, key::FlowKey},
    export::Emitter,
};

/// Longest line, or object of a JSON document, octets.
pub const MAX_LINE: usize = 4 << 20;
/// Faults that are kept to be named; further ones are only counted.
const MAX_FAULTS: usize = 16;

/// The formats of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Zeek's `conn.log`: tab-separated with its header lines, or JSON lines.
    Zeek,
    /// Suricata's EVE: flow events, with the facts of `http`, `tls` and `dns` events of the same flow.
    Suricata,
    /// Amazon VPC flow logs, versions 2 to 5: text, or Parquet when a file is read at once.
    AwsVpc,
    /// Azure virtual network flow logs and network security group flow logs, versions 1 and 2.
    Azure,
    /// Google Cloud VPC flow logs as log entries, one a line or in an array.
    Gcp,
    /// Cilium Hubble flows as `hubble observe -o json` prints them.
    Hubble,
}

impl Format {
    /// The value of the `origin` column.
    pub fn origin(self) -> &'static str {
        match self {
            Self::Zeek => "zeek",
            Self::Suricata => "suricata",
            Self::AwsVpc => "aws-vpc",
            Self::Azure => "azure",
            Self::Gcp => "gcp",
            Self::Hubble => "hubble",
        }
    }

    /// Tells a log by how it begins.
    pub fn recognise(head: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(&head[..head.len().min(64 << 10)]);
        let text = text.trim_start_matches('\u{feff}').trim_start();
        let has = |key: &str| text.contains(key);
        match text.chars().next()? {
            '#' => (has("#separator") || has("#fields")).then_some(Self::Zeek),
            '{' | '[' if has("\"event_type\"") => Some(Self::Suricata),
            '{' | '[' if has("\"id.orig_h\"") => Some(Self::Zeek),
            '{' | '[' if has("\"flowTuples\"") || has("\"flowRecords\"") || has("FlowLogFlowEvent") => {
                Some(Self::Azure)
            }
            '{' | '[' if has("\"jsonPayload\"") || has("vpc_flows") => Some(Self::Gcp),
            '{' | '[' if has("\"verdict\"") || has("\"node_name\"") => Some(Self::Hubble),
            '{' | '[' => None,
            _ => aws::recognise(text.lines().next()?).then_some(Self::AwsVpc),
        }
    }
}

/// A line that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its number, from 1; of an object in a document, the line it begins on.
    pub line: u64,
    /// What is wrong with it.
    pub problem: String,
}

/// What a line came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// So many flow records.
    Records(u64),
    /// Understood, and no flow: a header, a comment, another kind of event.
    Nothing,
}

type Result<T, E = String> = std::result::Result<T, E>;

enum Parser {
    Zeek(Box<zeek::Zeek>),
    Suricata(Box<eve::Eve>),
    Aws(aws::Aws),
    Azure,
    Gcp,
    Hubble,
}

/// What parsers write to.
struct Out<'o, S> {
    emitter: &'o mut Emitter,
    sink: &'o mut S,
    origin: &'static str,
    keep_extra: bool,
}

/// Reads one log.
pub struct LogReader {
    origin: &'static str,
    parser: Parser,
    splitter: Splitter,
    emitter: Emitter,
    keep_extra: bool,
    counts: Counts,
    faults: Vec<Fault>,
}

impl LogReader {
    /// Makes a reader. `random` seeds the flow ids.
    pub fn new(format: Format, sensor: &str, random: u128) -> Self {
        Self {
            origin: format.origin(),
            parser: match format {
                Format::Zeek => Parser::Zeek(Box::default()),
                Format::Suricata => Parser::Suricata(Box::default()),
                Format::AwsVpc => Parser::Aws(aws::Aws::default()),
                Format::Azure => Parser::Azure,
                Format::Gcp => Parser::Gcp,
                Format::Hubble => Parser::Hubble,
            },
            splitter: match format {
                Format::Azure | Format::Gcp => Splitter::objects(),
                _ => Splitter::lines(),
            },
            emitter: Emitter::new(sensor, random),
            keep_extra: true,
            counts: Counts::default(),
            faults: Vec::new(),
        }
    }

    /// Whether what has no column is kept in the column `extra`.
    pub fn keep_extra(&mut self, keep: bool) {
        self.keep_extra = keep;
    }

    /// What became of lines: `received`, `parsed`, `malformed`; and of flow records.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Sets the counts, for lines that are read twice and counted once.
    pub(crate) fn set_counts(&mut self, counts: Counts) {
        self.counts = counts;
    }

    /// Lines that could not be read since this was called last, the first sixteen of them.
    pub fn take_faults(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.faults)
    }

    /// Takes the next octets of the log.
    pub fn push(&mut self, octets: &[u8], sink: &mut impl Sink) {
        self.splitter.push(octets);
        while let Some(piece) = self.splitter.next_piece() {
            self.piece(&piece, sink);
            self.splitter.reuse(piece);
        }
    }

    /// The log ends here: what has no line end is a line too.
    pub fn finish(&mut self, sink: &mut impl Sink) {
        if let Some(piece) = self.splitter.finish() {
            self.piece(&piece, sink);
        }
    }

    /// The log begins anew in another file, as after a rotation.
    pub fn restart(&mut self, sink: &mut impl Sink) {
        self.finish(sink);
        self.splitter.restart();
        if let Parser::Zeek(zeek) = &mut self.parser {
            **zeek = zeek::Zeek::default();
        }
    }

    /// Reads one row whose values are named, as columnar files have them.
    pub(crate) fn named(&mut self, number: u64, row: &[(String, String)], sink: &mut impl Sink) {
        let mut out = Out {
            emitter: &mut self.emitter,
            sink,
            origin: self.origin,
            keep_extra: self.keep_extra,
        };
        let read = match &self.parser {
            Parser::Aws(_) => aws::named(row, &mut out),
            _ => Err("columns are read of AWS VPC flow logs only".to_owned()),
        };
        self.count(number, read);
    }

    /// Takes a record that is of the flow schema already.
    pub(crate) fn own(&mut self, row: &FlowRow<'_>, sink: &mut impl Sink) {
        sink.record(row);
        self.count(0, Ok(Read::Records(1)));
    }

    /// Octets that were taken and are no whole line yet.
    pub(crate) fn pending(&self) -> usize {
        self.splitter.pending()
    }

    fn piece(&mut self, piece: &Piece, sink: &mut impl Sink) {
        if piece.octets.is_empty() {
            return;
        }
        let read = match piece.problem {
            Some(problem) => Err(problem.to_owned()),
            None => self.parse(&piece.octets, sink),
        };
        self.count(piece.line, read);
    }

    fn count(&mut self, line: u64, read: Result<Read>) {
        self.counts.received += 1;
        match read {
            Ok(Read::Records(records)) => {
                self.counts.parsed += 1;
                self.counts.opened += records;
                self.counts.ended += records;
                self.counts.records += records;
            }
            Ok(Read::Nothing) => {
                self.counts.parsed += 1;
                self.counts.no_flow += 1;
            }
            Err(problem) => {
                self.counts.malformed += 1;
                if self.faults.len() < MAX_FAULTS {
                    self.faults.push(Fault { line, problem });
                }
            }
        }
    }

    fn parse(&mut self, octets: &[u8], sink: &mut impl Sink) -> Result<Read> {
        let text = std::str::from_utf8(octets).map_err(|_| "is no UTF-8".to_owned())?;
        let mut out = Out {
            emitter: &mut self.emitter,
            sink,
            origin: self.origin,
            keep_extra: self.keep_extra,
        };
        match &mut self.parser {
            Parser::Zeek(zeek) => zeek.line(text, &mut out),
            Parser::Suricata(eve) => eve.line(text, &mut out),
            Parser::Aws(aws) => aws.line(text, &mut out),
            Parser::Azure => azure::record(&value::parse(text)?, &mut out),
            Parser::Gcp => gcp::entry(&value::parse(text)?, &mut out),
            Parser::Hubble => hubble::flow(&value::parse(text)?, &mut out),
        }
    }
}

/// The two hosts of a record.
#[derive(Clone, Copy)]
struct Ends {
    src: IpAddr,
    dst: IpAddr,
    src_port: u16,
    dst_port: u16,
    protocol: u8,
}

impl Ends {
    fn key(&self) -> FlowKey {
        FlowKey {
            src: octets(self.src),
            dst: octets(self.dst),
            src_port: self.src_port,
            dst_port: self.dst_port,
            protocol: self.protocol,
        }
    }

    fn ip_version(&self) -> u8 {
        if self.src.is_ipv4() { 4 } else { 6 }
    }

    fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol: self.protocol,
        }
    }

    /// Whether a record of one direction is the called side's.
    fn is_answer(&self, flags: Option<u8>) -> bool {
        crate::export::is_answer(&self.key(), self.ip_version(), flags)
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

impl<S: Sink> Out<'_, S> {
    /// Hands over a record of these two hosts; `row` has everything else.
    fn flow(&mut self, ends: &Ends, row: FlowRow<'_>) -> Result<()> {
        if ends.src.is_ipv4() != ends.dst.is_ipv4() {
            return Err("its two addresses are of different families".to_owned());
        }
        let row = FlowRow {
            state: FlowState::Ended as u8,
            origin: self.origin,
            ip_version: ends.ip_version(),
            protocol: ends.protocol,
            src_ip: ends.src,
            dst_ip: ends.dst,
            src_port: ends.src_port,
            dst_port: ends.dst_port,
            last_seen: row.last_seen.max(row.first_seen),
            extra: row.extra.filter(|text| self.keep_extra && *text != "{}"),
            ..row
        };
        self.emitter.finish(&ends.key(), row, self.sink);
        Ok(())
    }
}
