//! A file of any kind this service reads, told by its content: captures, flow exports, logs, columns. From its beginning to
//! its end into a sink.

use std::{
    fs::File,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;

use crate::{
    capture::{Burst, CaptureError, CaptureFile, Filter, Source},
    domain::{Counts, Limits, Meter, Sink, record::EndReason},
    export::{Collector, CollectorLimits, Outcome, split_file},
    import::{Fault, Format, LogReader, columns},
};

/// Octets of a file that are looked at to tell its kind.
const HEAD: usize = 64 << 10;
/// Largest file of flow exports, and largest Parquet file that cannot be read from disk directly, octets.
pub const MAX_WHOLE: u64 = 256 << 20;
/// Octets of a log that are read at once.
const PART: usize = 256 << 10;

/// What is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Packets: pcap or pcapng.
    Capture,
    /// Datagrams of flow exports: IPFIX messages (RFC 5655), or one NetFlow or sFlow datagram.
    Exports,
    /// Lines or objects of a log.
    Log(Format),
    /// Columns: Amazon VPC flow logs, or this project's own flow records.
    Parquet,
}

impl Kind {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Capture => "packets",
            Self::Exports => "flow exports",
            Self::Log(Format::Zeek) => "Zeek's conn.log",
            Self::Log(Format::Suricata) => "Suricata's EVE log",
            Self::Log(Format::AwsVpc) => "Amazon VPC flow logs",
            Self::Log(Format::Azure) => "Azure flow logs",
            Self::Log(Format::Gcp) => "Google Cloud VPC flow logs",
            Self::Log(Format::Hubble) => "Hubble flows",
            Self::Parquet => "Parquet",
        }
    }

    /// What its ledger counts.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Capture => "packets",
            Self::Exports => "datagrams",
            Self::Log(Format::Azure | Format::Gcp) => "objects",
            Self::Log(_) => "lines",
            Self::Parquet => "rows",
        }
    }
}

/// A file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It is a capture, and something is wrong with it.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// It could not be opened.
    #[error("GAR-FLOW-0001: {} cannot be opened", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is empty.
    #[error("GAR-FLOW-0002: {} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It is of no known kind.
    #[error(
        "GAR-FLOW-0003: {} is nothing this meter reads: it begins with {start}",
        path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Its first octets, as text where they are.
        start: String,
    },
    /// Reading failed.
    #[error("GAR-FLOW-0007: reading {} failed after {offset} octets; everything before that was read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Octets read before.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It must be held whole and is too large for that.
    #[error("GAR-FLOW-0055: {} is larger than {MAX_WHOLE} octets, and its kind must be held in memory whole", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is damaged.
    #[error("GAR-FLOW-0056: {} is damaged: {problem}; everything before that was read", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl InputError {
    /// The error with what caused it.
    pub fn text(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }
}

/// How a file is read.
#[derive(Clone, Debug)]
pub struct Options {
    /// The value of the `sensor` column.
    pub sensor: String,
    /// The flow table, for packets.
    pub limits: Limits,
    /// Seeds the flow ids.
    pub random: u128,
    /// The format of a log, where it need not be told by its content.
    pub format: Option<Format>,
    /// Whether what has no column is kept in the column `extra`.
    pub extra: bool,
    /// Which packets of a capture are metered.
    pub filter: Option<Filter>,
}

/// How far a file was read.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Octets of the file, before decompression.
    pub taken: u64,
    /// Octets it has, where that is known.
    pub length: Option<u64>,
    /// What became of what is in it so far.
    pub counts: Counts,
}

/// What came of a file.
#[derive(Debug)]
pub struct Summary {
    /// What was in it.
    pub kind: Kind,
    /// What became of packets, datagrams or lines, and of flows.
    pub counts: Counts,
    /// Packets that the filter did not want; they are in none of the counts.
    pub left_out: u64,
    /// The first bad lines.
    pub faults: Vec<Fault>,
    /// What ended the file early. Everything before it was read.
    pub problem: Option<InputError>,
}

/// A file whose kind is known.
pub struct Input {
    path: PathBuf,
    source: Source,
    kind: Kind,
}

struct Meters<'p> {
    taken: Arc<AtomicU64>,
    length: Option<u64>,
    report: &'p mut dyn FnMut(&Progress) -> bool,
}

impl Meters<'_> {
    // `false` when reading is to stop.
    fn report(&mut self, counts: Counts) -> bool {
        (self.report)(&Progress {
            taken: self.taken.load(Ordering::Relaxed),
            length: self.length,
            counts,
        })
    }
}

impl Input {
    /// Opens a file, compressed with gzip or zstd or not, and tells its kind; `-` is standard input.
    ///
    /// # Errors
    /// [`InputError`] when it cannot be opened, is empty or of no known kind.
    pub fn open(path: &Path, format: Option<Format>) -> Result<Self, InputError> {
        let mut source = Source::open(path).map_err(|source| InputError::Open {
            path: path.to_owned(),
            source,
        })?;
        let head = source.peek(HEAD).map_err(|source| InputError::Read {
            path: path.to_owned(),
            offset: 0,
            source,
        })?;
        if head.is_empty() {
            return Err(InputError::Empty { path: path.to_owned() });
        }
        let kind = recognise(head)
            .filter(|kind| format.is_none() || *kind == Kind::Parquet)
            .or(format.map(Kind::Log))
            .ok_or_else(|| InputError::Unknown {
                path: path.to_owned(),
                start: start(head),
            })?;
        Ok(Self {
            path: path.to_owned(),
            source,
            kind,
        })
    }

    /// What is in it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// It was compressed.
    pub fn is_compressed(&self) -> bool {
        self.source.is_compressed()
    }

    /// Its octets, from the first.
    pub fn into_source(self) -> Source {
        self.source
    }

    /// Reads it to its end, or until `report` answers `false`. Flows of packets that are still open end with
    /// `end_reason` `eof`.
    ///
    /// # Errors
    /// [`InputError`] when nothing of it could be read. What ends it early is in the summary.
    pub fn read(
        self,
        options: &Options,
        sink: &mut impl Sink,
        report: &mut dyn FnMut(&Progress) -> bool,
    ) -> Result<Summary, InputError> {
        let mut meters = Meters {
            taken: self.source.taken(),
            length: self.source.length(),
            report,
        };
        let (path, kind) = (self.path, self.kind);
        if let Some(filter) = options.filter.as_ref().filter(|_| kind != Kind::Capture) {
            return Err(InputError::Capture(CaptureError::Filter {
                expression: filter.expression().to_owned(),
                reason: format!("it selects packets, and {} holds {}", path.display(), kind.name()),
            }));
        }
        match kind {
            Kind::Capture => packets(self.source, &path, options, sink, &mut meters),
            Kind::Exports => exports(self.source, &path, options, sink, &mut meters),
            Kind::Log(format) => log(self.source, &path, format, options, sink, &mut meters),
            Kind::Parquet => parquet(self.source, &path, options, sink, &mut meters),
        }
    }
}

/// Tells what a file is by how it begins.
pub fn recognise(head: &[u8]) -> Option<Kind> {
    if CaptureFile::recognises(head) {
        return Some(Kind::Capture);
    }
    if head.starts_with(b"PAR1") {
        return Some(Kind::Parquet);
    }
    match head {
        [0, 5 | 9 | 10, ..] | [0, 0, 0, 5, 0, 0, 0, 1 | 2, ..] => Some(Kind::Exports),
        _ => Format::recognise(head).map(Kind::Log),
    }
}

fn start(head: &[u8]) -> String {
    let start = &head[..head.len().min(32)];
    match std::str::from_utf8(start) {
        Ok(text) if !text.chars().any(|c| c.is_control() && !c.is_whitespace()) => format!("{text:?}"),
        _ => hex::encode(&start[..start.len().min(8)]),
    }
}

fn packets(
    source: Source,
    path: &Path,
    options: &Options,
    sink: &mut impl Sink,
    meters: &mut Meters<'_>,
) -> Result<Summary, InputError> {
    let mut file = CaptureFile::new(source, path)?;
    if let Some(filter) = &options.filter {
        file.select(filter.clone());
    }
    let mut meter = Meter::new(&options.sensor, options.limits, options.random);
    let mut turns = 0u32;
    let mut end = EndReason::EndOfFile;
    let problem = loop {
        let mut burst = Burst::default();
        match file.fill_burst(&mut burst) {
            Ok(true) => meter.process(burst.packets(), sink),
            Ok(false) => break None,
            Err(error) => break Some(error.into()),
        }
        turns = turns.wrapping_add(1);
        if turns.is_multiple_of(256) && !meters.report(meter.counts()) {
            end = EndReason::Shutdown;
            break None;
        }
    };
    meter.finish(end, sink);
    meters.report(meter.counts());
    Ok(Summary {
        kind: Kind::Capture,
        counts: meter.counts(),
        left_out: file.left_out(),
        faults: Vec::new(),
        problem,
    })
}

fn whole(source: Source, path: &Path) -> Result<Vec<u8>, InputError> {
    let taken = source.taken();
    let mut data = Vec::new();
    let read = source.take(MAX_WHOLE + 1).read_to_end(&mut data);
    if data.len() as u64 > MAX_WHOLE {
        return Err(InputError::TooLarge { path: path.to_owned() });
    }
    read.map_err(|source| InputError::Read {
        path: path.to_owned(),
        offset: taken.load(Ordering::Relaxed),
        source,
    })?;
    Ok(data)
}

fn exports(
    source: Source,
    path: &Path,
    options: &Options,
    sink: &mut impl Sink,
    meters: &mut Meters<'_>,
) -> Result<Summary, InputError> {
    let data = whole(source, path)?;
    let mut collector = Collector::new(&options.sensor, CollectorLimits::default(), options.random);
    collector.keep_extra(options.extra);
    // A file does not say who sent what is in it.
    let exporter = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let mut faults = Vec::new();
    for (number, datagram) in split_file(&data).unwrap_or_else(|| vec![&data]).into_iter().enumerate() {
        let problem = match collector.datagram(exporter, 0, datagram, sink) {
            Outcome::Parsed => None,
            Outcome::Malformed(malformed) => Some(malformed.to_string()),
            Outcome::NoTemplate => Some("records whose template does not come before them".to_owned()),
            Outcome::TooMany => Some("too many exporters".to_owned()),
        };
        if let Some(problem) = problem.filter(|_| faults.len() < 16) {
            faults.push(Fault {
                line: number as u64 + 1,
                problem,
            });
        }
        if number % 1024 == 0 && !meters.report(collector.counts()) {
            break;
        }
    }
    meters.report(collector.counts());
    Ok(Summary {
        kind: Kind::Exports,
        counts: collector.counts(),
        left_out: 0,
        faults,
        problem: None,
    })
}

fn log(
    mut source: Source,
    path: &Path,
    format: Format,
    options: &Options,
    sink: &mut impl Sink,
    meters: &mut Meters<'_>,
) -> Result<Summary, InputError> {
    let mut reader = LogReader::new(format, &options.sensor, options.random);
    reader.keep_extra(options.extra);
    let mut part = vec![0; PART];
    let problem = loop {
        match source.read(&mut part) {
            Ok(0) => break None,
            Ok(read) => reader.push(&part[..read], sink),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                break Some(InputError::Read {
                    path: path.to_owned(),
                    offset: meters.taken.load(Ordering::Relaxed),
                    source,
                });
            }
        }
        if !meters.report(reader.counts()) {
            break None;
        }
    };
    reader.finish(sink);
    meters.report(reader.counts());
    Ok(Summary {
        kind: Kind::Log(format),
        counts: reader.counts(),
        left_out: 0,
        faults: reader.take_faults(),
        problem,
    })
}

fn parquet(
    source: Source,
    path: &Path,
    options: &Options,
    sink: &mut impl Sink,
    meters: &mut Meters<'_>,
) -> Result<Summary, InputError> {
    let mut reader = LogReader::new(Format::AwsVpc, &options.sensor, options.random);
    reader.keep_extra(options.extra);
    let read = if source.is_compressed() || source.length().is_none() {
        columns::read(&Bytes::from(whole(source, path)?), &mut reader, sink)
    } else {
        let file = File::open(path).map_err(|source| InputError::Open {
            path: path.to_owned(),
            source,
        })?;
        columns::read(&file, &mut reader, sink)
    };
    meters.report(reader.counts());
    Ok(Summary {
        kind: Kind::Parquet,
        counts: reader.counts(),
        left_out: 0,
        faults: reader.take_faults(),
        problem: read.err().map(|problem| InputError::Damaged {
            path: path.to_owned(),
            problem,
        }),
    })
}
