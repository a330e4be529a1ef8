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

fn wanted(filter: &mut Option<Filter>, packet: &Packet<'_>) -> Result<bool, CaptureError> {
    filter.as_mut().map_or(Ok(true), |filter| filter.wants(packet))
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
        if !self.reach()? {
            return Ok(None);
        }
        let mut burst = Burst::default();
        let Self {
            buffer,
            start,
            end,
            offset,
            packets,
            format,
            filter,
            left_out,
            ..
        } = self;
        let buffer: &[u8] = &buffer[..*end];
        // A fault behind the first packet is found again, and reported, by the next call.
        while !burst.is_full() && *start < *end {
            let read = match format {
                Format::Pcap(format) => match format.packet(&buffer[*start..]) {
                    Ok(Some((packet, used))) => (Some(packet), used),
                    _ => break,
                },
                Format::Pcapng(format) => match format.block(&buffer[*start..]) {
                    Ok(Some((pcapng::Block::Packet(packet), used))) => (Some(packet), used),
                    Ok(Some((pcapng::Block::Other, used))) => (None, used),
                    _ => break,
                },
            };
            if let (Some(packet), _) = read {
                *packets += 1;
                match wanted(filter, &packet)? {
                    true => burst.push(packet),
                    false => *left_out += 1,
                }
            }
            let used = read.1;
            *start += used;
            *offset += used as u64;
        }
        Ok(Some(burst))
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
        let Self {
            buffer,
            start,
            end,
            offset,
            packets,
            format,
            filter,
            left_out,
            ..
        } = self;
        let whole: &[u8] = &buffer[..*end];
        let base = whole.as_ptr().addr();
        while *start < *end {
            let read = match format {
                Format::Pcap(format) => match format.packet(&whole[*start..]) {
                    Ok(Some((packet, used))) => (Some(packet), used),
                    _ => break,
                },
                Format::Pcapng(format) => match format.block(&whole[*start..]) {
                    Ok(Some((pcapng::Block::Packet(packet), used))) => (Some(packet), used),
                    Ok(Some((pcapng::Block::Other, used))) => (None, used),
                    _ => break,
                },
            };
            if let Some(packet) = read.0 {
                *packets += 1;
                match wanted(filter, &packet)? {
                    true => places.push(Place {
                        time: packet.time,
                        start: packet.data.as_ptr().addr() - base,
                        len: packet.data.len(),
                        wire_len: packet.wire_len,
                        link: packet.link,
                    }),
                    false => *left_out += 1,
                }
            }
            *start += read.1;
            *offset += read.1 as u64;
        }
        // The beginning of the next record goes to the buffer that is filled next.
        let rest = *start..*end;
        if data.len() < buffer.len() {
            *data = vec![0; buffer.len()].into_boxed_slice();
        }
        data[..rest.len()].copy_from_slice(&buffer[rest.clone()]);
        std::mem::swap(data, buffer);
        (*start, *end) = (0, rest.len());
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Record = (i64, Vec<u8>, u32);

    fn read(data: &[u8]) -> (Vec<Record>, Option<CaptureError>) {
        let mut packets = Vec::new();
        let mut file = match CaptureFile::new(data, Path::new("test")) {
            Ok(file) => file,
            Err(error) => return (packets, Some(error)),
        };
        loop {
            match file.burst() {
                Ok(Some(burst)) => {
                    packets.extend(burst.packets().iter().map(|p| (p.time, p.data.to_vec(), p.wire_len)))
                }
                Ok(None) => return (packets, None),
                Err(error) => return (packets, Some(error)),
            }
        }
    }

    fn pcap(magic: u32, big: bool, link: u32, records: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let put = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut data = Vec::new();
        data.extend(put(magic));
        for word in [0x0004_0002, 0, 0, 65_535, link] {
            data.extend(put(word));
        }
        for (seconds, fraction, body) in records {
            for word in [*seconds, *fraction, body.len() as u32, body.len() as u32 + 5] {
                data.extend(put(word));
            }
            if magic == 0xa1b2_cd34 {
                data.extend([0; 8]);
            }
            data.extend(*body);
        }
        data
    }

    fn block(big: bool, kind: u32, body: &[u8]) -> Vec<u8> {
        let put = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let length = 12 + body.len() as u32;
        [&put(kind)[..], &put(length), body, &put(length)].concat()
    }

    fn pcapng(big: bool, resolution: Option<u8>, offset: Option<i64>, ticks: u64) -> Vec<u8> {
        let put = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let half = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut section = put(0x1a2b_3c4d).to_vec();
        section.extend([half(1), half(0)].concat());
        section.extend([0xff; 8]);
        let mut interface = [&half(1)[..], &half(0), &put(0)].concat();
        if let Some(resolution) = resolution {
            interface.extend([&half(9)[..], &half(1), &[resolution, 0, 0, 0]].concat());
        }
        if let Some(offset) = offset {
            let bytes = if big {
                offset.to_be_bytes()
            } else {
                offset.to_le_bytes()
            };
            interface.extend([&half(14)[..], &half(8), &bytes].concat());
        }
        let mut packet = put(1).to_vec();
        packet.extend(put((ticks >> 32) as u32));
        packet.extend(put(ticks as u32));
        packet.extend([put(3), put(3)].concat());
        packet.extend(b"abc\0");
        let first = [&half(1)[..], &half(0), &put(0)].concat();
        [
            block(big, SECTION_KIND, &section),
            block(big, 1, &first),
            block(big, 0xbad, &[1, 2, 3, 4]),
            block(big, 1, &interface),
            block(big, 6, &packet),
        ]
        .concat()
    }

    const SECTION_KIND: u32 = pcapng::SECTION;

    #[test]
    fn every_magic_in_either_order() {
        for big in [false, true] {
            for (magic, time) in [
                (0xa1b2_c3d4, 3_000_004_000),
                (0xa1b2_3c4d, 3_000_000_004),
                (0xa1b2_cd34, 3_000_004_000),
            ] {
                let data = pcap(magic, big, 1, &[(3, 4, b"xyz"), (3, 4, b"")]);
                let (packets, error) = read(&data);
                assert!(error.is_none(), "{error:?}");
                assert_eq!(packets[0], (time, b"xyz".to_vec(), 8));
                assert_eq!(packets.len(), 2);
            }
        }
    }

    #[test]
    fn pcapng_times_follow_each_interfaces_resolution() {
        for big in [false, true] {
            let time = |resolution, offset, ticks| {
                let (packets, error) = read(&pcapng(big, resolution, offset, ticks));
                assert!(error.is_none(), "{error:?}");
                assert_eq!(packets[0].1, b"abc");
                packets[0].0
            };
            assert_eq!(time(None, None, 5_000_001), 5_000_001_000);
            assert_eq!(time(Some(9), None, 5_000_001), 5_000_001);
            assert_eq!(time(Some(0), Some(-1), 7), 6_000_000_000);
            assert_eq!(time(Some(0x81), None, 3), 1_500_000_000);
            assert_eq!(time(Some(12), None, 5_000), 5);
            assert_eq!(time(None, Some(i64::MIN / 1_000_000_000), 0), 0);
            assert_eq!(time(None, Some(i64::MAX / 1_000_000_000), 0), 1 << 62);
        }
    }

    #[test]
    fn what_is_wrong_is_said_precisely() {
        let said = |data: &[u8]| read(data).1.unwrap().to_string();
        assert!(said(b"").starts_with("GAR-FLOW-0002"));
        assert!(said(b"\xa1").starts_with("GAR-FLOW-0003"));
        assert!(said(b"this is no capture at all").contains("7468697320697320"));
        let unknown = said(&pcap(0xa1b2_c3d4, false, 147, &[]));
        assert!(unknown.contains("GAR-FLOW-0004") && unknown.contains("link type 147 at octet 20"));
        let good = pcap(0xa1b2_c3d4, false, 1, &[(0, 0, &[0; 60]), (0, 0, &[0; 60])]);
        let cut = said(&good[..good.len() - 1]);
        assert!(
            cut.contains("GAR-FLOW-0005") && cut.contains("octet 100, after 1 packets"),
            "{cut}"
        );
        assert!(said(&good[..10]).contains("GAR-FLOW-0005"));
        let mut damaged = good.clone();
        damaged[24 + 8 + 3] = 0x7f;
        assert!(said(&damaged).contains("GAR-FLOW-0006"));
        let mut lengths = pcapng(false, None, None, 0);
        let last = lengths.len() - 1;
        lengths[last] = 1;
        assert!(said(&lengths).contains("two lengths differ"));
    }

    #[test]
    fn a_file_larger_than_the_buffer_is_read_whole() {
        let body = vec![7; 60_000];
        let records: Vec<_> = (0..200).map(|i| (i, 0, &body[..])).collect();
        let (packets, error) = read(&pcap(0xa1b2_c3d4, false, 1, &records));
        assert!(error.is_none());
        assert_eq!(packets.len(), 200);
        assert!(packets.iter().enumerate().all(|(i, p)| p.0 == i as i64 * 1_000_000_000));
    }

    proptest! {
        #[test]
        fn a_changed_octet_never_panics(
            at in any::<prop::sample::Index>(), value in any::<u8>(), ng in any::<bool>(), big in any::<bool>(),
        ) {
            let mut data = match ng {
                true => pcapng(big, Some(9), Some(3), 12),
                false => pcap(0xa1b2_c3d4, big, 1, &[(1, 2, &[0; 40]), (3, 4, &[1; 50])]),
            };
            let place = at.index(data.len());
            data[place] = value;
            read(&data);
        }

        #[test]
        fn garbage_never_panics(mut data in prop::collection::vec(any::<u8>(), 0..600), ng in any::<bool>()) {
            read(&data);
            let head = pcapng(false, None, None, 0);
            let head = if ng { &head[..28] } else { &pcap(0xa1b2_c3d4, false, 1, &[])[..] };
            data.splice(..0, head.iter().copied());
            read(&data);
        }
    }
}
