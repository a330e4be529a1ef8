//! Parts of fragmented datagrams: their later parts count in the flow of their first, and their content is put together
//! within fixed bounds, so that what spans parts is read.

use super::{
    network::Network,
    packet::{Decoded, Fragment},
};

const SLOTS: usize = 1024;
// RFC 8200 §4.5 gives a datagram 60 s to arrive; half of it is what systems use.
const LIFETIME: i64 = 30_000_000_000;
// Datagrams that are put together at once, and pieces of one. A newer datagram takes the place of the oldest.
const DATAGRAMS: usize = 64;
const PIECES: usize = 64;
// An IP packet is at most this long.
const LONGEST: usize = 65_535;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Name {
    network: Network,
    src: [u8; 16],
    dst: [u8; 16],
    identifier: u32,
    protocol: u8,
}

#[derive(Clone, Copy)]
struct Entry {
    name: Name,
    ports: (u16, u16),
    seen: i64,
}

struct Datagram {
    name: Name,
    since: i64,
    body: Vec<u8>,
    // Sorted and apart.
    pieces: Vec<(u16, u16)>,
    length: Option<u16>,
    // Parts that contradict each other are nobody's honest datagram (RFC 5722): it is not looked at.
    spoilt: bool,
}

/// A cache of fixed size: a newer datagram takes the place of an older one with the same slot. What it forgets
/// costs exactness only: a later part then counts in a flow without ports, and content that spans parts is not read.
pub struct Fragments {
    entries: Box<[Option<Entry>]>,
    datagrams: Vec<Datagram>,
    /// Datagrams that were put together.
    pub assembled: u64,
    /// Datagrams whose parts overlap with different content or claim different ends.
    pub contradictory: u64,
}

impl Default for Fragments {
    fn default() -> Self {
        Self {
            entries: vec![None; SLOTS].into_boxed_slice(),
            datagrams: Vec::new(),
            assembled: 0,
            contradictory: 0,
        }
    }
}

impl Fragments {
    /// Learns from a first fragment; gives a later one the ports of its first.
    pub fn resolve(&mut self, packet: &mut Decoded<'_>) {
        let Some(name) = name(packet) else { return };
        let entry = &mut self.entries[slot(&name)];
        match packet.fragment {
            Fragment::Whole => {}
            Fragment::First(_) => {
                *entry = Some(Entry {
                    name,
                    ports: (packet.src_port, packet.dst_port),
                    seen: packet.time,
                });
            }
            Fragment::Later { .. } => {
                if let Some(entry) = entry
                    && entry.name == name
                    && packet.time.saturating_sub(entry.seen) < LIFETIME
                {
                    (packet.src_port, packet.dst_port) = entry.ports;
                }
            }
        }
    }

    /// Takes a part's content. Gives the datagram's body when this was the last part that was missing.
    pub fn add(&mut self, packet: &Decoded<'_>) -> Option<Vec<u8>> {
        let (start, more) = match packet.fragment {
            Fragment::Whole => return None,
            Fragment::First(_) => (0, true),
            Fragment::Later { offset, more, .. } => (usize::from(offset), more),
        };
        let name = name(packet)?;
        let place = self.place(name, packet.time);
        let datagram = &mut self.datagrams[place];
        if datagram.spoilt {
            return None;
        }
        let end = start + packet.payload.len();
        // Every part but the last is a multiple of eight octets (RFC 791 §3.2).
        let odd = more && !packet.payload.len().is_multiple_of(8);
        let fits = datagram.length.is_none_or(|length| end <= usize::from(length));
        if end > LONGEST || odd || packet.payload.is_empty() || !fits || !datagram.put(start, packet.payload) {
            datagram.spoilt = true;
            datagram.body = Vec::new();
            self.contradictory += 1;
            return None;
        }
        if !more {
            let beyond = datagram.pieces.last().is_some_and(|&(_, last)| usize::from(last) > end);
            if beyond || datagram.length.is_some_and(|length| usize::from(length) != end) {
                datagram.spoilt = true;
                self.contradictory += 1;
                return None;
            }
            datagram.length = Some(end as u16);
        }
        let whole = datagram.length.is_some_and(|length| datagram.pieces == [(0, length)]);
        if !whole {
            return None;
        }
        let body = std::mem::take(&mut datagram.body);
        self.datagrams.swap_remove(place);
        self.assembled += 1;
        Some(body)
    }

    // Where a datagram is kept, made if need be.
    fn place(&mut self, name: Name, time: i64) -> usize {
        let current = |d: &Datagram| d.name == name && time.saturating_sub(d.since) < LIFETIME;
        if let Some(place) = self.datagrams.iter().position(current) {
            return place;
        }
        let fresh = Datagram {
            name,
            since: time,
            body: Vec::new(),
            pieces: Vec::new(),
            length: None,
            spoilt: false,
        };
        if self.datagrams.len() < DATAGRAMS {
            self.datagrams.push(fresh);
            return self.datagrams.len() - 1;
        }
        let oldest = (0..self.datagrams.len()).min_by_key(|&i| self.datagrams[i].since);
        let place = oldest.unwrap_or_default();
        let mut body = std::mem::replace(&mut self.datagrams[place], fresh).body;
        body.clear();
        self.datagrams[place].body = body;
        place
    }
}

impl Datagram {
    // Whether the octets agree with those that are there.
    fn put(&mut self, start: usize, data: &[u8]) -> bool {
        let end = start + data.len();
        let overlaps = |&&(s, e): &&(u16, u16)| usize::from(s) < end && usize::from(e) > start;
        for &(s, e) in self.pieces.iter().filter(overlaps) {
            let (from, to) = (start.max(usize::from(s)), end.min(usize::from(e)));
            if self.body[from..to] != data[from - start..to - start] {
                return false;
            }
        }
        if self.body.len() < end {
            self.body.resize(end, 0);
        }
        self.body[start..end].copy_from_slice(data);
        let (mut low, mut high) = (start as u16, end as u16);
        self.pieces.retain(|&(s, e)| {
            let apart = e < low || s > high;
            if !apart {
                (low, high) = (low.min(s), high.max(e));
            }
            apart
        });
        let at = self.pieces.partition_point(|&(s, _)| s < low);
        self.pieces.insert(at, (low, high));
        self.pieces.len() <= PIECES
    }
}

fn name(packet: &Decoded<'_>) -> Option<Name> {
    let identifier = match packet.fragment {
        Fragment::Whole => return None,
        Fragment::First(identifier) | Fragment::Later { identifier, .. } => identifier,
    };
    Some(Name {
        network: packet.network,
        src: packet.src,
        dst: packet.dst,
        identifier,
        protocol: packet.protocol,
    })
}

fn slot(name: &Name) -> usize {
    let word = |b: &[u8; 16]| u32::from_be_bytes([b[12], b[13], b[14], b[15]]);
    let mixed =
        (name.identifier ^ word(&name.src).rotate_left(7) ^ word(&name.dst).rotate_left(19)).wrapping_mul(0x9e37_79b1);
    (mixed >> 22) as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{
        craft,
        packet::{LinkType, Packet, Verdict, decode},
    };

    fn decoded(data: &[u8], time: i64) -> Decoded<'_> {
        let packet = Packet {
            time,
            link: LinkType::Ethernet,
            data,
            wire_len: data.len() as u32,
            vlan_tci: None,
        };
        match decode(&packet) {
            Verdict::Flow(decoded) => decoded,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_later_part_gets_the_ports_of_its_first_and_only_of_its_own() {
        let mut first = craft::udp4("10.0.0.1:1000", "10.0.0.2:53", &[0; 64]);
        first[20] = 0x20;
        let mut later = first.clone();
        (later[20], later[21]) = (0, 9);
        let mut foreign = later.clone();
        foreign[19] = 77;

        let mut cache = Fragments::default();
        cache.resolve(&mut decoded(&first, 0));
        let mut packet = decoded(&later, 1);
        cache.resolve(&mut packet);
        assert_eq!((packet.src_port, packet.dst_port), (1000, 53));
        let mut packet = decoded(&foreign, 1);
        cache.resolve(&mut packet);
        assert_eq!(packet.src_port, 0);
        let mut packet = decoded(&later, LIFETIME + 1);
        cache.resolve(&mut packet);
        assert_eq!(packet.src_port, 0, "too old");
    }

    fn part(identifier: u32, offset: u16, more: bool, payload: &[u8]) -> Decoded<'_> {
        let fragment = match offset {
            0 => Fragment::First(identifier),
            _ => Fragment::Later {
                identifier,
                offset,
                more,
            },
        };
        let frame = craft::udp4("10.0.0.1:1000", "10.0.0.2:53", &[0; 64]);
        let base = decoded(&frame, 0);
        Decoded {
            time: 0,
            src: base.src,
            dst: base.dst,
            src_port: 0,
            dst_port: 0,
            protocol: 17,
            ip_version: 4,
            ip_len: payload.len() as u32 + 20,
            payload_len: payload.len() as u32,
            payload,
            tcp: base.tcp,
            fragment,
            vlan: None,
            tags: 0,
            macs: None,
            tunnel: base.tunnel,
            network: base.network,
            depth: 0,
        }
    }

    #[test]
    fn parts_in_any_order_make_the_datagram_and_a_lie_spoils_it() {
        let body: Vec<u8> = (0..80).collect();
        let mut fragments = Fragments::default();
        assert!(fragments.add(&part(1, 64, false, &body[64..])).is_none());
        assert!(fragments.add(&part(1, 0, true, &body[..32])).is_none());
        // The same part again does no harm.
        assert!(fragments.add(&part(1, 0, true, &body[..32])).is_none());
        assert_eq!(
            fragments.add(&part(1, 32, true, &body[32..64])).as_deref(),
            Some(&body[..])
        );

        assert!(fragments.add(&part(2, 0, true, &body[..32])).is_none());
        assert!(fragments.add(&part(2, 16, true, &[0xff; 32])).is_none());
        assert!(fragments.add(&part(2, 32, false, &body[32..])).is_none(), "spoilt");
        assert_eq!((fragments.assembled, fragments.contradictory), (1, 1));
    }

    proptest! {
        #[test]
        fn any_parts_stay_within_bounds(
            parts in prop::collection::vec((0_u32..100, 0_u16..8191, any::<bool>(), 0_usize..300), 0..400),
        ) {
            let mut fragments = Fragments::default();
            let body = [7; 300];
            for (identifier, offset, more, length) in parts {
                let whole = fragments.add(&part(identifier, offset * 8, more, &body[..length]));
                prop_assert!(whole.is_none_or(|whole| whole.len() <= LONGEST));
                prop_assert!(fragments.datagrams.len() <= DATAGRAMS);
                prop_assert!(fragments.datagrams.iter().all(|d| d.pieces.len() <= PIECES + 1));
            }
        }
    }
}
