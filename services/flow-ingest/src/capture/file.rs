//! Capture files, read through one buffer: pcap and pcapng, told apart by how they begin.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use super::{Burst, CaptureError, Filter, pcap, pcapng, source::Source};
use crate::domain::packet::{LinkType, Packet};

/// Longest packet that is believed, octets: what the format's own tools allow.
pub(super) const MAX_PACKET: usize = 262_144;

// A part of the second-level cache: what was read is still near when it is metered.
const BUFFER: usize = 1 << 18;

/// Byte order of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Little,
    Big,
}

impl Order {
    pub(super) fn u16(self, b: [u8; 2]) -> u16 {
        match self {
            Self::Little => u16::from_le_bytes(b),
            Self::Big => u16::from_be_bytes(b),
        }
    }

    pub(super) fn u32(self, b: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(b),
            Self::Big => u32::from_be_bytes(b),
        }
    }

    pub(super) fn u64(self, b: [u8; 8]) -> u64 {
        match self {
            Self::Little => u64::from_le_bytes(b),
            Self::Big => u64::from_be_bytes(b),
        }
    }
}

/// What is wrong with a record; the reader adds where.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Damaged(&'static str),
    LinkType(u32),
}

/// Where a packet lies in a part of a file, and what the file says of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) time: i64,
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) wire_len: u32,
    pub(super) link: LinkType,
}

enum Format {
    Pcap(pcap::Format),
    Pcapng(pcapng::Format),
}

impl Format {
    // The record at the front, with the packet in it where it has one, and its length. `None` where it is not all here, or
    // damaged.
    #[inline(always)]
    fn record<'a>(&mut self, data: &'a [u8]) -> Option<(Option<Packet<'a>>, usize)> {
        match self {
            Self::Pcap(format) => match format.packet(data) {
                Ok(Some((packet, used))) => Some((Some(packet), used)),
                _ => None,
            },
            Self::Pcapng(format) => match format.block(data) {
                Ok(Some((pcapng::Block::Packet(packet), used))) => Some((Some(packet), used)),
                Ok(Some((pcapng::Block::Other, used))) => Some((None, used)),
                _ => None,
            },
        }
    }
}

/// A capture file being read from its beginning.
pub struct CaptureFile<R = Source> {
    path: PathBuf,
    source: R,
    format: Format,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    // Octets of the file before `start`.
    offset: u64,
    packets: u64,
    ended: bool,
    filter: Option<Filter>,
    left_out: u64,
}

impl CaptureFile<Source> {
    /// Opens a file, compressed with gzip or zstd or not; `-` is standard input.
    ///
    /// # Errors
    /// [`CaptureError`] says which file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let source = Source::open(path).map_err(|source| CaptureError::Open {
            path: path.to_owned(),
            source,
        })?;
        Self::new(source, path)
    }
}

impl CaptureFile {
    /// Whether a file that begins like this is a capture.
    pub fn recognises(head: &[u8]) -> bool {
        let Some(&magic) = head.first_chunk::<4>() else {
            return false;
        };
        pcap::magic(magic).is_some() || magic == pcapng::SECTION.to_be_bytes()
    }
}

impl<R: Read> CaptureFile<R> {
    /// Reads a capture from any source; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`CaptureFile::open`].
    pub fn new(source: R, name: &Path) -> Result<Self, CaptureError> {
        let mut file = Self {
            path: name.to_owned(),
            source,
            format: Format::Pcapng(pcapng::Format::new()),
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            offset: 0,
            packets: 0,
            ended: false,
            filter: None,
            left_out: 0,
        };
        while file.end < pcap::HEADER && file.fill()? {}
        let start = &file.buffer[..file.end];
        let Some(&magic) = start.first_chunk::<4>() else {
            return Err(match start.is_empty() {
                true => CaptureError::Empty { path: file.path },
                false => file.unknown(),
            });
        };
        if pcap::magic(magic).is_some() {
            let Some(header) = start.first_chunk() else {
                return Err(file.truncated());
            };
            let format = pcap::header(header).map_err(|fault| file.fault(fault, 20))?;
            file.format = Format::Pcap(format);
            file.start = pcap::HEADER;
            file.offset = pcap::HEADER as u64;
        } else if magic != pcapng::SECTION.to_be_bytes() {
            return Err(file.unknown());
        }
        Ok(file)
    }

    /// The link type, if it is known yet.
    pub fn link(&self) -> Option<LinkType> {
        match &self.format {
            Format::Pcap(format) => Some(format.link()),
            Format::Pcapng(format) => format.link(),
        }
    }

    /// Gives from now on only the packets that a filter wants.
    pub fn select(&mut self, filter: Filter) {
        self.filter = Some(filter);
    }

    /// Packets that the filter did not want.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Packets read so far.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Octets read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Looks for more behind the end that was met, as a file that is still written has it.
    pub fn resume(&mut self) {
        self.ended = false;
    }

    /// The next packets; none of them where the filter wants none. `None` at the end of the file.
    ///
    /// # Errors
    /// [`CaptureError`] when the file is cut short or damaged, or the filter does not hold for its link type; the packets
    /// before it have been given.
    pub fn burst(&mut self) -> Result<Option<Burst<'_>>, CaptureError> {
        let mut burst = Burst::default();
        Ok(self.fill_burst(&mut burst)?.then_some(burst))
    }

    /// As [`burst`](Self::burst), into an empty one that is there, for those who read millions. `false` at the end of the
    /// file.
    ///
    /// # Errors
    /// As [`burst`](Self::burst).
    pub fn fill_burst<'a>(&'a mut self, burst: &mut Burst<'a>) -> Result<bool, CaptureError> {
        if !self.reach()? {
            return Ok(false);
        }
        let data: &[u8] = &self.buffer[..self.end];
        let (mut at, mut packets) = (self.start, 0);
        // A fault behind the first packet is found again, and reported, by the next call.
        while !burst.is_full()
            && let Some((packet, used)) = self.format.record(&data[at..])
        {
            at += used;
            let Some(packet) = packet else { continue };
            packets += 1;
            match &mut self.filter {
                None => burst.push(packet),
                Some(filter) => match filter.wants(&packet)? {
                    true => burst.push(packet),
                    false => self.left_out += 1,
                },
            }
        }
        self.packets += packets;
        self.offset += (at - self.start) as u64;
        self.start = at;
        Ok(true)
    }

    /// The next part of the file, with the places of the packets in it. `data` and `places` are used again; what they held
    /// is gone. `false` at the end of the file.
    ///
    /// # Errors
    /// As [`burst`](Self::burst).
    pub(super) fn part(&mut self, data: &mut Box<[u8]>, places: &mut Vec<Place>) -> Result<bool, CaptureError> {
        places.clear();
        if !self.reach()? {
            return Ok(false);
        }
        let whole: &[u8] = &self.buffer[..self.end];
        let base = whole.as_ptr().addr();
        let mut at = self.start;
        while let Some((packet, used)) = self.format.record(&whole[at..]) {
            at += used;
            let Some(packet) = packet else { continue };
            self.packets += 1;
            match self.filter.as_mut().map_or(Ok(true), |filter| filter.wants(&packet))? {
                true => places.push(Place {
                    time: packet.time,
                    start: packet.data.as_ptr().addr() - base,
                    len: packet.data.len(),
                    wire_len: packet.wire_len,
                    link: packet.link,
                }),
                false => self.left_out += 1,
            }
        }
        self.offset += (at - self.start) as u64;
        // The beginning of the next record goes to the buffer that is filled next.
        let rest = &self.buffer[at..self.end];
        if data.len() < self.buffer.len() {
            *data = vec![0; self.buffer.len()].into_boxed_slice();
        }
        data[..rest.len()].copy_from_slice(rest);
        (self.start, self.end) = (0, rest.len());
        std::mem::swap(data, &mut self.buffer);
        Ok(true)
    }

    // Sees to it that a whole packet is at the front. `false` at the end of the file.
    fn reach(&mut self) -> Result<bool, CaptureError> {
        loop {
            // Whether a whole record is here is asked first, because a borrowed one cannot be given up again.
            match self.ready() {
                Ok(true) => return Ok(true),
                Ok(false) => {
                    if !self.fill()? {
                        return match self.start == self.end {
                            true => Ok(false),
                            false => Err(self.truncated()),
                        };
                    }
                }
                Err(fault) => return Err(self.fault(fault, 0)),
            }
        }
    }

    fn ready(&mut self) -> Result<bool, Fault> {
        let data = &self.buffer[self.start..self.end];
        match &mut self.format {
            Format::Pcap(format) => Ok(format.packet(data)?.is_some()),
            // Section headers are read again afterwards, which changes nothing.
            Format::Pcapng(format) => match format.block(data)? {
                Some((pcapng::Block::Packet(_), _)) => Ok(true),
                Some((pcapng::Block::Other, used)) => {
                    self.start += used;
                    self.offset += used as u64;
                    self.ready_next()
                }
                None => Ok(false),
            },
        }
    }

    // Blocks without packets are passed one by one without recursion.
    fn ready_next(&mut self) -> Result<bool, Fault> {
        loop {
            let Format::Pcapng(format) = &mut self.format else {
                return Ok(false);
            };
            match format.block(&self.buffer[self.start..self.end])? {
                Some((pcapng::Block::Packet(_), _)) => return Ok(true),
                Some((pcapng::Block::Other, used)) => {
                    self.start += used;
                    self.offset += used as u64;
                }
                None => return Ok(false),
            }
        }
    }

    // Reads more into the buffer. `false` at the end of the file.
    fn fill(&mut self) -> Result<bool, CaptureError> {
        if self.ended {
            return Ok(false);
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.buffer.len() {
            // Only a large pcapng block needs more; its length was checked.
            let mut larger = vec![0; self.buffer.len() * 2].into_boxed_slice();
            larger[..self.end].copy_from_slice(&self.buffer);
            self.buffer = larger;
        }
        loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(false);
                }
                Ok(n) => {
                    self.end += n;
                    return Ok(true);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(CaptureError::Read {
                        path: self.path.clone(),
                        offset: self.offset + (self.end - self.start) as u64,
                        source,
                    });
                }
            }
        }
    }

    fn unknown(&self) -> CaptureError {
        let start = &self.buffer[..self.end.min(8)];
        CaptureError::Unknown {
            path: self.path.clone(),
            start: start.iter().map(|b| format!("{b:02x}")).collect(),
        }
    }

    fn truncated(&self) -> CaptureError {
        CaptureError::Truncated {
            path: self.path.clone(),
            offset: self.offset,
            packets: self.packets,
        }
    }

    fn fault(&self, fault: Fault, within: u64) -> CaptureError {
        let (path, offset) = (self.path.clone(), self.offset + within);
        match fault {
            Fault::LinkType(number) => CaptureError::LinkType { path, number, offset },
            Fault::Damaged(problem) => CaptureError::Damaged {
                path,
                offset,
                packets: self.packets,
                problem,
            },
        }
    }
}
