//! Where packets come from: network interfaces and capture files.

pub mod afpacket;
pub mod file;
#[cfg(test)]
mod file_tests;
pub mod filter;
mod interface;
mod pcap;
mod pcapng;
mod socket;
pub mod source;
pub mod spread;

pub use file::CaptureFile;
pub use filter::Filter;
pub use source::Source;

use std::path::PathBuf;

use crate::domain::packet::{LinkType, Packet};

/// Most packets in a burst.
pub const BURST: usize = crate::domain::meter::BURST;

/// Packets that were captured one after the other.
pub struct Burst<'a> {
    packets: [Packet<'a>; BURST],
    len: usize,
}

impl Default for Burst<'_> {
    fn default() -> Self {
        const EMPTY: Packet<'_> = Packet {
            time: 0,
            link: LinkType::Raw,
            data: &[],
            wire_len: 0,
            vlan_tci: None,
        };
        Self {
            packets: [EMPTY; BURST],
            len: 0,
        }
    }
}

impl<'a> Burst<'a> {
    /// Adds a packet. There must be room.
    pub fn push(&mut self, packet: Packet<'a>) {
        self.packets[self.len] = packet;
        self.len += 1;
    }

    /// There is no room for another packet.
    pub fn is_full(&self) -> bool {
        self.len == BURST
    }

    /// Moves its packets in time, by nanoseconds.
    pub fn shift(&mut self, by: i64) {
        for packet in &mut self.packets[..self.len] {
            packet.time = packet.time.saturating_add(by);
        }
    }

    /// Forgets its packets.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// The packets.
    pub fn packets(&self) -> &[Packet<'a>] {
        &self.packets[..self.len]
    }
}

/// Packets could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The capture file could not be opened.
    #[error("GAR-FLOW-0001: capture file {} cannot be opened", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The capture file is empty.
    #[error("GAR-FLOW-0002: capture file {} is empty: not even a file header is there", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file is no capture file.
    #[error(
        "GAR-FLOW-0003: {} is neither pcap nor pcapng: it begins with {start}",
        path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Its first octets, hexadecimal.
        start: String,
    },
    /// The link type is not one this meter reads.
    #[error(
        "GAR-FLOW-0004: {} has link type {number} at octet {offset}; this meter reads NULL (0), ETHERNET (1), \
         RAW (101), LOOP (108), LINUX_SLL (113), IPV4 (228), IPV6 (229) and LINUX_SLL2 (276)",
        path.display()
    )]
    LinkType {
        /// The file.
        path: PathBuf,
        /// The link type.
        number: u32,
        /// Where it is said.
        offset: u64,
    },
    /// The file ends in the middle of a record.
    #[error(
        "GAR-FLOW-0005: {} ends in the middle of the record at octet {offset}, after {packets} packets; \
         everything before it was read",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where the record begins.
        offset: u64,
        /// Packets read before it.
        packets: u64,
    },
    /// A record contradicts the format.
    #[error(
        "GAR-FLOW-0006: {} is damaged at octet {offset}, after {packets} packets: {problem}; \
         everything before it was read",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// Packets read before it.
        packets: u64,
        /// What contradicts the format.
        problem: &'static str,
    },
    /// Reading failed.
    #[error("GAR-FLOW-0007: reading capture file {} failed at octet {offset}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no such interface.
    #[error("GAR-FLOW-0010: there is no network interface {interface:?}")]
    NoInterface {
        /// The interface.
        interface: String,
    },
    /// The process may not capture.
    #[error(
        "GAR-FLOW-0011: sensor {sensor:?} may not capture: it needs the capability CAP_NET_RAW (and CAP_NET_ADMIN for \
         promiscuous mode)"
    )]
    Forbidden {
        /// The sensor.
        sensor: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The interface's frames are not ones this meter reads.
    #[error("GAR-FLOW-0012: interface {interface:?} has hardware type {hardware}, which this meter does not read")]
    Hardware {
        /// The interface.
        interface: String,
        /// The kernel's `ARPHRD_` number.
        hardware: u16,
    },
    /// A filter is asked for, and there is nothing that compiles it.
    #[error(
        "GAR-FLOW-0014: a capture filter needs libpcap, which is not installed: install the package libpcap0.8 (Debian, \
         Ubuntu) or libpcap (others); the loader says: {reason}"
    )]
    NoLibpcap {
        /// What the loader says.
        reason: String,
    },
    /// A filter's expression was refused.
    #[error("GAR-FLOW-0015: the capture filter {expression:?} cannot be used: {reason}")]
    Filter {
        /// The expression.
        expression: String,
        /// What libpcap says, or what else is wrong.
        reason: String,
    },
    /// The kernel refused a capture socket.
    #[error("GAR-FLOW-0013: {operation} failed for sensor {sensor:?}")]
    Socket {
        /// The sensor.
        sensor: String,
        /// What was tried.
        operation: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
