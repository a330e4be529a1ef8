//! The pcap file format (draft-ietf-opsawg-pcap): every magic number in either byte order.

use super::file::{Fault, MAX_PACKET, Order};
use crate::domain::packet::{LinkType, Packet};

/// Length of the file header, octets.
pub(super) const HEADER: usize = 24;

/// What the file header says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    order: Order,
    // Nanoseconds in a unit of the fraction.
    unit: i64,
    // Octets of a record's header.
    record: usize,
    link: LinkType,
}

/// Whether a file begins with one of pcap's magic numbers, and what the number says.
pub(super) fn magic(start: [u8; 4]) -> Option<(Order, i64, usize)> {
    for order in [Order::Little, Order::Big] {
        match order.u32(start) {
            0xa1b2_c3d4 => return Some((order, 1_000, 16)),
            0xa1b2_3c4d => return Some((order, 1, 16)),
            // Written by a patched libpcap of the 1990s, with 8 more octets in each record's header.
            0xa1b2_cd34 => return Some((order, 1_000, 24)),
            _ => {}
        }
    }
    None
}

/// Reads the file header.
pub(super) fn header(data: &[u8; HEADER]) -> Result<Format, Fault> {
    let [a, b, c, d, ..] = *data;
    let Some((order, unit, record)) = magic([a, b, c, d]) else {
        return Err(Fault::Damaged("the magic number is not pcap's"));
    };
    // The upper bits tell of a frame check sequence; IP's own lengths keep it out of payloads.
    let number = order.u32([data[20], data[21], data[22], data[23]]) & 0x03ff_ffff;
    match LinkType::from_number(number) {
        Some(link) => Ok(Format {
            order,
            unit,
            record,
            link,
        }),
        None => Err(Fault::LinkType(number)),
    }
}

impl Format {
    /// The link type.
    pub(super) fn link(&self) -> LinkType {
        self.link
    }

    /// Reads the record at the front: the packet and the record's length. `None` when it is not all here.
    #[inline(always)]
    pub(super) fn packet<'a>(&self, data: &'a [u8]) -> Result<Option<(Packet<'a>, usize)>, Fault> {
        let Some(header) = data.first_chunk::<16>() else {
            return Ok(None);
        };
        let word = |at: usize| {
            self.order
                .u32([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (seconds, fraction, captured, wire_len) = (word(0), word(4), word(8), word(12));
        if captured as usize > MAX_PACKET {
            return Err(Fault::Damaged("a packet is longer than 262,144 octets"));
        }
        let end = self.record + captured as usize;
        let Some(body) = data.get(self.record..end) else {
            return Ok(None);
        };
        let packet = Packet {
            time: i64::from(seconds) * 1_000_000_000 + i64::from(fraction) * self.unit,
            link: self.link,
            data: body,
            wire_len: wire_len.max(captured),
            vlan_tci: None,
        };
        Ok(Some((packet, end)))
    }
}
