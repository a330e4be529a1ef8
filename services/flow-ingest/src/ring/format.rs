//! Segments are pcapng files, so that any tool reads them; beside each closed one lies an index by flow and time.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::Path,
};

use crate::domain::{
    key::FlowKey,
    packet::{LinkType, Packet, Verdict},
    tunnel::innermost,
};

/// Appends a section header.
pub(super) fn section(out: &mut Vec<u8>) {
    block(out, 0x0a0d_0d0a, |out| {
        out.extend(0x1a2b_3c4d_u32.to_le_bytes());
        out.extend([1, 0, 0, 0]);
        out.extend([0xff; 8]);
    });
}

/// Appends an interface description with times in nanoseconds.
pub(super) fn interface(out: &mut Vec<u8>, link: LinkType) {
    block(out, 1, |out| {
        out.extend(link.number().to_le_bytes());
        out.extend([0; 2]);
        out.extend(0_u32.to_le_bytes());
        // if_tsresol = 9, then the end of options.
        out.extend([9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    });
}

/// Appends a packet.
pub(super) fn packet(out: &mut Vec<u8>, interface: u32, time: i64, wire_len: u32, data: &[&[u8]]) {
    let captured: usize = data.iter().map(|part| part.len()).sum();
    block(out, PACKET, |out| {
        out.extend(interface.to_le_bytes());
        out.extend(((time as u64 >> 32) as u32).to_le_bytes());
        out.extend((time as u32).to_le_bytes());
        out.extend((captured as u32).to_le_bytes());
        out.extend(wire_len.to_le_bytes());
        data.iter().for_each(|part| out.extend_from_slice(part));
        out.resize(out.len() + captured.next_multiple_of(4) - captured, 0);
    });
}

const PACKET: u32 = 6;

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let length = (out.len() + 4 - start) as u32;
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    out.extend(length.to_le_bytes());
}

/// Where a packet lies in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) time: i64,
    /// Number of its flow in the index, or `NO_FLOW`.
    pub(super) flow: u32,
    pub(super) offset: u32,
    pub(super) length: u32,
    pub(super) link: LinkType,
}

/// A packet without a flow.
pub(super) const NO_FLOW: u32 = u32::MAX;

/// The packets of a segment by flow and time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) flows: Vec<(FlowKey, u8)>,
    pub(super) entries: Vec<Entry>,
    numbers: HashMap<FlowKey, u32>,
}

const MAGIC: &[u8; 8] = b"GARIDX01";
const FLOW_LEN: usize = 38;
const ENTRY_LEN: usize = 22;

impl Index {
    pub(super) fn add(&mut self, key: Option<(FlowKey, u8)>, mut entry: Entry) {
        entry.flow = match key {
            None => NO_FLOW,
            Some((key, version)) => {
                // Both directions are one flow here.
                let key = match (key.src, key.src_port) <= (key.dst, key.dst_port) {
                    true => key,
                    false => key.reversed(),
                };
                *self.numbers.entry(key).or_insert_with(|| {
                    self.flows.push((key, version));
                    self.flows.len() as u32 - 1
                })
            }
        };
        self.entries.push(entry);
    }

    /// Oldest and newest packet.
    pub(super) fn range(&self) -> Option<(i64, i64)> {
        let times = self.entries.iter().map(|entry| entry.time);
        Some((times.clone().min()?, times.max()?))
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let mut out = Vec::with_capacity(24 + self.flows.len() * FLOW_LEN + self.entries.len() * ENTRY_LEN);
        out.extend(MAGIC);
        out.extend((self.flows.len() as u32).to_le_bytes());
        out.extend((self.entries.len() as u32).to_le_bytes());
        for (key, version) in &self.flows {
            out.extend(key.src);
            out.extend(key.dst);
            out.extend(key.src_port.to_le_bytes());
            out.extend(key.dst_port.to_le_bytes());
            out.extend([key.protocol, *version]);
        }
        for entry in &self.entries {
            out.extend(entry.time.to_le_bytes());
            out.extend(entry.flow.to_le_bytes());
            out.extend(entry.offset.to_le_bytes());
            out.extend(entry.length.to_le_bytes());
            out.extend(entry.link.number().to_le_bytes());
        }
        let unfinished = path.with_extension("tmp");
        File::create(&unfinished)?.write_all(&out)?;
        fs::rename(unfinished, path)
    }

    /// Reads an index. `None` when it is damaged; then the segment itself is read.
    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        let mut data = Vec::new();
        File::open(path)?.read_to_end(&mut data)?;
        Ok(Self::parse(&data))
    }

    fn parse(data: &[u8]) -> Option<Self> {
        let rest = data.strip_prefix(MAGIC)?;
        let (counts, rest) = rest.split_at_checked(8)?;
        let count = |at: usize| u32::from_le_bytes([counts[at], counts[at + 1], counts[at + 2], counts[at + 3]]);
        let (flows, entries) = (count(0) as usize, count(4) as usize);
        let (flow_bytes, entry_bytes) = rest.split_at_checked(flows.checked_mul(FLOW_LEN)?)?;
        if entry_bytes.len() != entries.checked_mul(ENTRY_LEN)? {
            return None;
        }
        let mut index = Self::default();
        for flow in flow_bytes.chunks_exact(FLOW_LEN) {
            let key = FlowKey {
                src: flow[..16].try_into().ok()?,
                dst: flow[16..32].try_into().ok()?,
                src_port: u16::from_le_bytes([flow[32], flow[33]]),
                dst_port: u16::from_le_bytes([flow[34], flow[35]]),
                protocol: flow[36],
            };
            index.flows.push((key, flow[37]));
        }
        for entry in entry_bytes.chunks_exact(ENTRY_LEN) {
            let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
            let flow = word(8);
            if flow != NO_FLOW && flow as usize >= flows {
                return None;
            }
            index.entries.push(Entry {
                time: i64::from_le_bytes(entry[..8].try_into().ok()?),
                flow,
                offset: word(12),
                length: word(16),
                link: LinkType::from_number(u32::from(u16::from_le_bytes([entry[20], entry[21]])))?,
            });
        }
        Some(index)
    }

    /// Makes the index of a segment from the segment, as far as it is whole. Gives how many octets are.
    pub(super) fn rebuild(data: &[u8]) -> (Self, usize) {
        let mut index = Self::default();
        let mut links: Vec<LinkType> = Vec::new();
        let mut at = 0;
        let word = |at: usize| -> Option<u32> {
            let b = data.get(at..at + 4)?;
            Some(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        };
        while let (Some(kind), Some(length)) = (word(at), word(at + 4)) {
            let size = length as usize;
            if size < 12 || !size.is_multiple_of(4) || word(at + size - 4) != Some(length) {
                break;
            }
            let body = &data[at + 8..at + size - 4];
            match (kind, body.len()) {
                (1, 8..) => {
                    let number = u32::from(u16::from_le_bytes([body[0], body[1]]));
                    match LinkType::from_number(number) {
                        Some(link) => links.push(link),
                        None => break,
                    }
                }
                (PACKET, 20..) => {
                    let Some((time, link, packet)) = read_packet(body, &links) else {
                        break;
                    };
                    let key = match innermost(&packet) {
                        Verdict::Flow(d) => Some((
                            FlowKey {
                                src: d.src,
                                dst: d.dst,
                                src_port: d.src_port,
                                dst_port: d.dst_port,
                                protocol: d.protocol,
                            },
                            d.ip_version,
                        )),
                        _ => None,
                    };
                    let entry = Entry {
                        time,
                        flow: NO_FLOW,
                        offset: at as u32,
                        length,
                        link,
                    };
                    index.add(key, entry);
                }
                _ => {}
            }
            at += size;
        }
        (index, at)
    }
}

fn read_packet<'a>(body: &'a [u8], links: &[LinkType]) -> Option<(i64, LinkType, Packet<'a>)> {
    let word = |at: usize| u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
    let link = *links.get(word(0) as usize)?;
    let time = (u64::from(word(4)) << 32 | u64::from(word(8))) as i64;
    let data = body.get(20..20 + word(12) as usize)?;
    let packet = Packet {
        time,
        link,
        data,
        wire_len: word(16).max(data.len() as u32),
        vlan_tci: None,
    };
    Some((time, link, packet))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::craft;

    fn segment() -> Vec<u8> {
        let mut data = Vec::new();
        section(&mut data);
        interface(&mut data, LinkType::Ethernet);
        for i in 0..5 {
            let frame = craft::udp4("10.0.0.1:1000", "10.0.0.2:53", &[i; 3]);
            packet(&mut data, 0, 1_700_000_000_000_000_000 + i64::from(i), 100, &[&frame]);
        }
        data
    }

    #[test]
    fn an_index_is_made_again_from_its_segment_and_survives_the_disk() {
        let data = segment();
        let (index, whole) = Index::rebuild(&data);
        assert_eq!(whole, data.len());
        assert_eq!((index.flows.len(), index.entries.len()), (1, 5));
        assert_eq!(
            index.range(),
            Some((1_700_000_000_000_000_000, 1_700_000_000_000_000_004))
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.idx");
        index.write(&path).unwrap();
        let read = Index::read(&path).unwrap().unwrap();
        assert_eq!((read.flows, read.entries), (index.flows, index.entries));
    }

    #[test]
    fn a_segment_that_was_cut_is_used_up_to_there() {
        let data = segment();
        let (index, whole) = Index::rebuild(&data[..data.len() - 7]);
        assert_eq!(index.entries.len(), 4);
        assert_eq!(Index::rebuild(&data[..whole]).1, whole);
    }

    #[test]
    fn a_damaged_index_is_refused() {
        let (index, _) = Index::rebuild(&segment());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.idx");
        index.write(&path).unwrap();
        let good = fs::read(&path).unwrap();
        for cut in [0, 7, 15, 30, good.len() - 1] {
            assert_eq!(Index::parse(&good[..cut]), None);
        }
        let mut wrong = good.clone();
        wrong[8] = 0xff;
        assert_eq!(Index::parse(&wrong), None);
    }
}
