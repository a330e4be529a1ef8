//! The pcapng file format (draft-ietf-opsawg-pcapng): sections, interfaces with their time resolutions, packets.

use super::file::{Fault, MAX_PACKET, Order};
use crate::domain::packet::{LinkType, Packet};

/// Block type of a section header, the same in either byte order.
pub(super) const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OLD_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

// A block longer than this is not looked for in memory but called damaged.
const MAX_BLOCK: usize = 16 << 20;
const MAX_INTERFACES: usize = 4096;

/// What the blocks so far say.
#[derive(Debug)]
pub(super) struct Format {
    order: Order,
    interfaces: Vec<Interface>,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link: Result<LinkType, u32>,
    snaplen: u32,
    // A tick is `scale` nanoseconds, or the `1 / units`th part of a second where that is not whole.
    scale: i64,
    units: u64,
    offset: i64,
}

/// What a block was.
pub(super) enum Block<'a> {
    Packet(Packet<'a>),
    Other,
}

impl Format {
    pub(super) fn new() -> Self {
        Self {
            order: Order::Little,
            interfaces: Vec::new(),
        }
    }

    /// The link type of the first interface.
    pub(super) fn link(&self) -> Option<LinkType> {
        self.interfaces.first().and_then(|first| first.link.ok())
    }

    /// Reads the block at the front and gives its length. `None` when it is not all here.
    pub(super) fn block<'a>(&mut self, data: &'a [u8]) -> Result<Option<(Block<'a>, usize)>, Fault> {
        let Some(head) = data.first_chunk::<12>() else {
            return Ok(None);
        };
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *head;
        let kind = self.order.u32([a, b, c, d]);
        if kind == SECTION {
            // Each section says its own byte order, with a number that reads differently backwards.
            self.order = match [i, j, k, l] {
                [0x1a, 0x2b, 0x3c, 0x4d] => Order::Big,
                [0x4d, 0x3c, 0x2b, 0x1a] => Order::Little,
                _ => return Err(Fault::Damaged("a section's byte-order magic is wrong")),
            };
            self.interfaces.clear();
        }
        let length = self.order.u32([e, f, g, h]) as usize;
        if length < 12 || !length.is_multiple_of(4) || length > MAX_BLOCK {
            return Err(Fault::Damaged("a block's length is impossible"));
        }
        let Some(block) = data.get(..length) else {
            return Ok(None);
        };
        let trailer = [
            block[length - 4],
            block[length - 3],
            block[length - 2],
            block[length - 1],
        ];
        if self.order.u32(trailer) as usize != length {
            return Err(Fault::Damaged("a block's two lengths differ"));
        }
        let body = &block[8..length - 4];
        let read = match kind {
            INTERFACE => self.interface(body)?,
            ENHANCED_PACKET => self.enhanced(body)?,
            OLD_PACKET => self.old(body)?,
            SIMPLE_PACKET => self.simple(body)?,
            _ => Block::Other,
        };
        Ok(Some((read, length)))
    }

    fn word(&self, body: &[u8], at: usize) -> Result<u32, Fault> {
        body.get(at..at + 4)
            .map(|b| self.order.u32([b[0], b[1], b[2], b[3]]))
            .ok_or(Fault::Damaged("a block is shorter than its fields"))
    }

    fn half(&self, body: &[u8], at: usize) -> Result<u16, Fault> {
        body.get(at..at + 2)
            .map(|b| self.order.u16([b[0], b[1]]))
            .ok_or(Fault::Damaged("a block is shorter than its fields"))
    }

    fn interface<'a>(&mut self, body: &[u8]) -> Result<Block<'a>, Fault> {
        if self.interfaces.len() >= MAX_INTERFACES {
            return Err(Fault::Damaged("a section has more than 4,096 interfaces"));
        }
        let number = u32::from(self.half(body, 0)?);
        let mut interface = Interface {
            link: LinkType::from_number(number).ok_or(number),
            snaplen: self.word(body, 4)?,
            scale: 1_000,
            units: 0,
            offset: 0,
        };
        let mut at = 8;
        while at + 4 <= body.len() {
            let (code, length) = (self.half(body, at)?, usize::from(self.half(body, at + 2)?));
            let Some(value) = body.get(at + 4..at + 4 + length) else {
                return Err(Fault::Damaged("an option is longer than its block"));
            };
            match (code, value) {
                (0, _) => break,
                (9, [resolution, ..]) => interface.resolve(*resolution)?,
                (14, [a, b, c, d, e, f, g, h, ..]) => {
                    interface.offset = self.order.u64([*a, *b, *c, *d, *e, *f, *g, *h]) as i64;
                }
                _ => {}
            }
            at += 4 + length.next_multiple_of(4);
        }
        self.interfaces.push(interface);
        Ok(Block::Other)
    }

    fn enhanced<'a>(&self, body: &'a [u8]) -> Result<Block<'a>, Fault> {
        let interface = self.word(body, 0)? as usize;
        let ticks = u64::from(self.word(body, 4)?) << 32 | u64::from(self.word(body, 8)?);
        let (captured, wire) = (self.word(body, 12)?, self.word(body, 16)?);
        self.packet(interface, ticks, captured, wire, body.get(20..))
    }

    fn old<'a>(&self, body: &'a [u8]) -> Result<Block<'a>, Fault> {
        let interface = usize::from(self.half(body, 0)?);
        let ticks = u64::from(self.word(body, 4)?) << 32 | u64::from(self.word(body, 8)?);
        let (captured, wire) = (self.word(body, 12)?, self.word(body, 16)?);
        self.packet(interface, ticks, captured, wire, body.get(20..))
    }

    fn simple<'a>(&self, body: &'a [u8]) -> Result<Block<'a>, Fault> {
        let wire = self.word(body, 0)?;
        let rest = body.get(4..).unwrap_or_default();
        let snaplen = match self.interfaces.first() {
            Some(Interface { snaplen: 1.., .. }) => self.interfaces[0].snaplen,
            _ => u32::MAX,
        };
        let captured = wire.min(snaplen).min(rest.len() as u32);
        // A simple packet has no time of its own.
        self.packet(0, 0, captured, wire, Some(rest))
    }

    fn packet<'a>(
        &self,
        interface: usize,
        ticks: u64,
        captured: u32,
        wire: u32,
        data: Option<&'a [u8]>,
    ) -> Result<Block<'a>, Fault> {
        let Some(interface) = self.interfaces.get(interface) else {
            return Err(Fault::Damaged("a packet names an interface that was not described"));
        };
        let link = interface.link.map_err(Fault::LinkType)?;
        if captured as usize > MAX_PACKET {
            return Err(Fault::Damaged("a packet is longer than 262,144 octets"));
        }
        let data = data
            .and_then(|data| data.get(..captured as usize))
            .ok_or(Fault::Damaged("a packet is longer than its block"))?;
        Ok(Block::Packet(Packet {
            time: interface.time(ticks),
            link,
            data,
            wire_len: wire.max(captured),
            vlan_tci: None,
        }))
    }
}

impl Interface {
    // if_tsresol: a negative power of 10, or of 2 where the top bit is set.
    fn resolve(&mut self, resolution: u8) -> Result<(), Fault> {
        let exponent = u32::from(resolution & 0x7f);
        let wrong = Fault::Damaged("an interface's time resolution is finer than can be counted");
        let units = match resolution & 0x80 {
            0 => 10_u64.checked_pow(exponent).ok_or(wrong)?,
            _ => 1_u64.checked_shl(exponent).filter(|u| *u > 0).ok_or(wrong)?,
        };
        if 1_000_000_000 % units == 0 {
            self.scale = (1_000_000_000 / units) as i64;
            self.units = 0;
        } else {
            self.units = units;
        }
        Ok(())
    }

    fn time(&self, ticks: u64) -> i64 {
        let nanoseconds = match self.units {
            0 => (ticks as i64).wrapping_mul(self.scale),
            units => (u128::from(ticks) * 1_000_000_000 / u128::from(units)) as i64,
        };
        // A file may say any time. From 1970 to 2116 there is room to add to it and to subtract any other.
        nanoseconds
            .wrapping_add(self.offset.wrapping_mul(1_000_000_000))
            .clamp(0, 1 << 62)
    }
}
