use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
};

use garrison_flow::{Filter, FilterError, FlowRow};
use garrison_proto::flow::v1::FlowFilter;

use super::{
    format::{self, Entry, Index, NO_FLOW},
    writer::PacketRing,
};
use crate::domain::{
    key::{COMMUNITY_ID_LEN, FlowKey, community_id},
    packet::{LinkType, address},
};

/// Octets of a piece of a slice.
const PIECE: usize = 256 << 10;

/// Which packets.
pub struct SliceFilter {
    flows: Filter,
    since: i64,
    until: i64,
    every: bool,
}

impl SliceFilter {
    /// Checks a filter.
    ///
    /// # Errors
    /// [`FilterError`] names a field that is wrong, or that packets cannot be selected by.
    pub fn compile(filter: &FlowFilter) -> Result<Self, FilterError> {
        let cannot = |field: &str| FilterError {
            field: field.to_owned(),
            message: "packets are not selected by this: use hosts, ports, protocols, community_ids and a time range"
                .to_owned(),
        };
        for (field, set) in [
            ("services", !filter.services.is_empty()),
            ("flow_ids", !filter.flow_ids.is_empty()),
            ("states", !filter.states.is_empty()),
        ] {
            if set {
                return Err(cannot(field));
            }
        }
        let mut flows = Filter::compile(filter)?;
        let since = flows.since.take().unwrap_or(i64::MIN);
        let until = flows.until.take().unwrap_or(i64::MAX);
        let every = flows.hosts.is_empty()
            && flows.src_hosts.is_empty()
            && flows.dst_hosts.is_empty()
            && flows.ports.is_empty()
            && flows.protocols.is_empty()
            && flows.community_ids.is_empty();
        Ok(Self {
            flows,
            since,
            until,
            every,
        })
    }

    fn wants_flow(&self, key: &FlowKey, ip_version: u8) -> bool {
        let mut id = [0; COMMUNITY_ID_LEN];
        if !self.flows.community_ids.is_empty() {
            community_id(key, ip_version, &mut id);
        }
        // Who opened the flow is not known here, so either side may be the source.
        [*key, key.reversed()].iter().any(|key| {
            self.flows.matches(&FlowRow {
                protocol: key.protocol,
                src_ip: address(&key.src),
                dst_ip: address(&key.dst),
                src_port: key.src_port,
                dst_port: key.dst_port,
                community_id: std::str::from_utf8(&id).unwrap_or_default(),
                ..FlowRow::default()
            })
        })
    }
}

/// What a slice held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Packets.
    pub packets: u64,
    /// The limit cut it short.
    pub truncated: bool,
}

/// A slice could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SliceError {
    /// The ring could not be read.
    #[error("GAR-FLOW-0023: reading the packet ring failed")]
    Read(#[from] io::Error),
    /// Nobody takes the slice any more.
    #[error("the receiver of the packet slice is gone")]
    Gone,
}

struct Output<F> {
    bytes: Vec<u8>,
    total: u64,
    limit: u64,
    links: Vec<LinkType>,
    take: F,
    slice: Slice,
}

impl<F: FnMut(Vec<u8>) -> bool> Output<F> {
    fn flush(&mut self) -> Result<(), SliceError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.bytes, Vec::with_capacity(PIECE));
        if (self.take)(piece) {
            Ok(())
        } else {
            Err(SliceError::Gone)
        }
    }

    // Appends a packet block of a segment. `false` when the limit is reached.
    fn block(&mut self, block: &[u8], link: LinkType) -> Result<bool, SliceError> {
        if self.total + block.len() as u64 > self.limit {
            self.slice.truncated = true;
            return Ok(false);
        }
        let interface = match self.links.iter().position(|l| *l == link) {
            Some(number) => number,
            None => {
                let before = self.bytes.len();
                format::interface(&mut self.bytes, link);
                self.total += (self.bytes.len() - before) as u64;
                self.links.push(link);
                self.links.len() - 1
            }
        };
        let start = self.bytes.len();
        self.bytes.extend_from_slice(block);
        if let Some(place) = self.bytes.get_mut(start + 8..start + 12) {
            place.copy_from_slice(&(interface as u32).to_le_bytes());
        }
        self.total += block.len() as u64;
        self.slice.packets += 1;
        if self.bytes.len() >= PIECE {
            self.flush()?;
        }
        Ok(true)
    }
}

impl PacketRing {
    /// Gives the packets a filter selects as the pieces of one pcapng file of at most `limit` octets. `take` says whether
    /// it wants more.
    ///
    /// # Errors
    /// [`SliceError`] when the ring cannot be read or `take` wants no more.
    pub fn slice(
        &self,
        filter: &SliceFilter,
        limit: u64,
        take: impl FnMut(Vec<u8>) -> bool,
    ) -> Result<Slice, SliceError> {
        let mut output = Output {
            bytes: Vec::with_capacity(PIECE),
            total: 0,
            limit,
            links: Vec::new(),
            take,
            slice: Slice::default(),
        };
        format::section(&mut output.bytes);
        output.total = output.bytes.len() as u64;
        let (closed, active) = {
            let state = self.lock();
            let active = state
                .active
                .as_ref()
                .map(|active| (active.path.clone(), select(&active.index, filter)));
            (state.closed.clone(), active)
        };
        for segment in closed {
            if segment.range.1 < filter.since || segment.range.0 >= filter.until {
                continue;
            }
            // It may have been removed to make room since.
            let index = match read_index(&segment.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                index => index?,
            };
            if !copy(&segment.path, &select(&index, filter), &mut output)? {
                output.flush()?;
                return Ok(output.slice);
            }
        }
        if let Some((path, entries)) = active {
            copy(&path, &entries, &mut output)?;
        }
        output.flush()?;
        Ok(output.slice)
    }
}

fn read_index(path: &Path) -> io::Result<Index> {
    match Index::read(&path.with_extension("idx")) {
        Ok(Some(index)) => return Ok(index),
        Ok(None) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(Index::rebuild(&fs::read(path)?).0)
}

fn select(index: &Index, filter: &SliceFilter) -> Vec<Entry> {
    let wanted: Vec<bool> = index
        .flows
        .iter()
        .map(|(key, version)| filter.every || filter.wants_flow(key, *version))
        .collect();
    let wants = |flow: u32| match flow {
        NO_FLOW => filter.every,
        flow => wanted[flow as usize],
    };
    let mut entries: Vec<Entry> = index
        .entries
        .iter()
        .filter(|entry| (filter.since..filter.until).contains(&entry.time) && wants(entry.flow))
        .copied()
        .collect();
    entries.sort_by_key(|entry| entry.time);
    entries
}

fn copy<F: FnMut(Vec<u8>) -> bool>(path: &Path, entries: &[Entry], output: &mut Output<F>) -> Result<bool, SliceError> {
    if entries.is_empty() {
        return Ok(true);
    }
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        file => file?,
    };
    let mut block = Vec::new();
    for entry in entries {
        block.resize(entry.length as usize, 0);
        file.read_exact_at(&mut block, u64::from(entry.offset))?;
        if !output.block(&block, entry.link)? {
            return Ok(false);
        }
    }
    Ok(true)
}
