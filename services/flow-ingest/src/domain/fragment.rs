//! Remembers the ports of fragmented datagrams, so that their later parts count in the right flow.

use super::packet::{Decoded, Fragment};

const SLOTS: usize = 1024;
// RFC 8200 §4.5 gives a datagram 60 s to arrive; half of it is what systems use.
const LIFETIME: i64 = 30_000_000_000;

#[derive(Clone, Copy)]
struct Entry {
    src: [u8; 16],
    dst: [u8; 16],
    identifier: u32,
    protocol: u8,
    ports: (u16, u16),
    seen: i64,
}

/// A cache of fixed size: a newer datagram takes the place of an older one with the same slot. What it forgets
/// costs exactness only: a later part then counts in a flow without ports.
pub struct FragmentCache {
    entries: Box<[Option<Entry>]>,
}

impl Default for FragmentCache {
    fn default() -> Self {
        Self {
            entries: vec![None; SLOTS].into_boxed_slice(),
        }
    }
}

impl FragmentCache {
    /// Learns from a first fragment; gives a later one the ports of its first.
    pub fn resolve(&mut self, packet: &mut Decoded<'_>) {
        match packet.fragment {
            Fragment::Whole => {}
            Fragment::First(identifier) => {
                self.entries[slot(packet, identifier)] = Some(Entry {
                    src: packet.src,
                    dst: packet.dst,
                    identifier,
                    protocol: packet.protocol,
                    ports: (packet.src_port, packet.dst_port),
                    seen: packet.time,
                });
            }
            Fragment::Later(identifier) => {
                if let Some(entry) = &self.entries[slot(packet, identifier)]
                    && entry.src == packet.src
                    && entry.dst == packet.dst
                    && entry.identifier == identifier
                    && entry.protocol == packet.protocol
                    && packet.time.saturating_sub(entry.seen) < LIFETIME
                {
                    (packet.src_port, packet.dst_port) = entry.ports;
                }
            }
        }
    }
}

fn slot(packet: &Decoded<'_>, identifier: u32) -> usize {
    let word = |b: &[u8; 16]| u32::from_be_bytes([b[12], b[13], b[14], b[15]]);
    let mixed =
        (identifier ^ word(&packet.src).rotate_left(7) ^ word(&packet.dst).rotate_left(19)).wrapping_mul(0x9e37_79b1);
    (mixed >> 22) as usize % SLOTS
}

#[cfg(test)]
mod tests {
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

        let mut cache = FragmentCache::default();
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
}
