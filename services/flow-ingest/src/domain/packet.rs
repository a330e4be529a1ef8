//! Captured frames, and the facts of one that a flow table needs.

use std::net::{IpAddr, Ipv6Addr};

use super::{key::FlowKey, network::Network, tunnel::Tunnel};

pub use super::decode::{Decoder, decode, ends, icmp_answer, tagged};

/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// IP protocol number of SCTP.
pub const SCTP: u8 = 132;

/// TCP flag bits (RFC 9293 §3.1).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgment field is significant.
    pub const ACK: u8 = 0x10;
}

/// How a frame begins: the `LINKTYPE_` values of the pcap registry this meter reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkType {
    /// IEEE 802.3 Ethernet.
    Ethernet,
    /// IPv4 or IPv6 without a link header.
    Raw,
    /// Linux "cooked" capture version 1.
    LinuxCooked,
    /// Linux "cooked" capture version 2.
    LinuxCooked2,
    /// BSD loopback, address family in the byte order of the capturing host.
    Null,
    /// OpenBSD loopback, address family in network byte order.
    Loop,
    /// PPP, with or without HDLC framing.
    Ppp,
    /// Cisco HDLC.
    CiscoHdlc,
    /// IEEE 802.11 without a radio header.
    Ieee80211,
    /// IEEE 802.11 behind a radiotap header.
    Radiotap,
}

impl LinkType {
    /// The link type of a `LINKTYPE_` number. `None` for one that this meter cannot read.
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Null),
            1 => Some(Self::Ethernet),
            9 | 50 => Some(Self::Ppp),
            104 => Some(Self::CiscoHdlc),
            105 => Some(Self::Ieee80211),
            127 => Some(Self::Radiotap),
            // 12 and 14 are DLT_RAW on some systems and appear in files written there.
            12 | 14 | 101 | 228 | 229 => Some(Self::Raw),
            108 => Some(Self::Loop),
            113 => Some(Self::LinuxCooked),
            276 => Some(Self::LinuxCooked2),
            _ => None,
        }
    }

    /// Its `LINKTYPE_` number.
    pub fn number(self) -> u16 {
        match self {
            Self::Null => 0,
            Self::Ethernet => 1,
            Self::Ppp => 9,
            Self::CiscoHdlc => 104,
            Self::Ieee80211 => 105,
            Self::Radiotap => 127,
            Self::Raw => 101,
            Self::Loop => 108,
            Self::LinuxCooked => 113,
            Self::LinuxCooked2 => 276,
        }
    }

    /// Its name in the pcap registry, without the prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "NULL",
            Self::Ethernet => "ETHERNET",
            Self::Ppp => "PPP",
            Self::CiscoHdlc => "C_HDLC",
            Self::Ieee80211 => "IEEE802_11",
            Self::Radiotap => "IEEE802_11_RADIOTAP",
            Self::Raw => "RAW",
            Self::Loop => "LOOP",
            Self::LinuxCooked => "LINUX_SLL",
            Self::LinuxCooked2 => "LINUX_SLL2",
        }
    }
}

/// One captured frame.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// When it was captured, nanoseconds since the epoch, UTC.
    pub time: i64,
    /// How `data` begins.
    pub link: LinkType,
    /// The captured octets.
    pub data: &'a [u8],
    /// Length on the wire; at least `data.len()`.
    pub wire_len: u32,
    /// VLAN tag control information that the network card took out of the frame.
    pub vlan_tci: Option<u16>,
}

/// What a segment of a stream says in its header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpHeader {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Flag bits, see [`flag`].
    pub flags: u8,
    /// Window, not scaled.
    pub window: u16,
}

/// A packet's place in a fragmented datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragment {
    /// A whole datagram.
    #[default]
    Whole,
    /// The first part: it has the transport header.
    First(u32),
    /// A later part: it has none.
    Later {
        /// What its parts have in common.
        identifier: u32,
        /// Where it lies in the datagram's body, octets.
        offset: u16,
        /// Others come behind it.
        more: bool,
    },
}

impl Fragment {
    /// By what both versions of IP say: the place in units of eight octets, and whether others come behind.
    pub(super) fn at(identifier: u32, place: u16, more: bool) -> Self {
        match (place, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First(identifier),
            _ => Self::Later {
                identifier,
                offset: place * 8,
                more,
            },
        }
    }
}

/// The facts of one packet.
#[derive(Clone, Copy, Debug)]
pub struct Decoded<'a> {
    /// When it was captured, nanoseconds since the epoch, UTC.
    pub time: i64,
    /// Source address; IPv4 mapped into IPv6 (RFC 4291 §2.5.5.2).
    pub src: [u8; 16],
    /// Destination address, in the same form.
    pub dst: [u8; 16],
    /// Source port; for ICMP the type.
    pub src_port: u16,
    /// Destination port; for ICMP the type of the answer, or the code where none is expected.
    pub dst_port: u16,
    /// IP protocol number of the transport.
    pub protocol: u8,
    /// 4 or 6.
    pub ip_version: u8,
    /// Length of the IP packet, header included, octets.
    pub ip_len: u32,
    /// Octets above the transport header as the headers claim them.
    pub payload_len: u32,
    /// The payload as far as it was captured; of a part of a datagram, everything above the IP header.
    pub payload: &'a [u8],
    /// For TCP.
    pub tcp: TcpHeader,
    /// Whether it is part of a fragmented datagram.
    pub fragment: Fragment,
    /// Outermost VLAN id.
    pub vlan: Option<u16>,
    /// All VLAN ids, see [`tagged`].
    pub tags: u32,
    /// Link addresses: source, destination.
    pub macs: Option<([u8; 6], [u8; 6])>,
    /// The tunnel it came through.
    pub tunnel: Tunnel,
    /// All tunnels it came through, as far as they keep networks apart.
    pub network: Network,
    /// How many more tunnels may be inside.
    pub depth: u8,
}

impl Decoded<'_> {
    /// Who talks to whom, from the sender's side.
    #[inline(always)]
    pub fn key(&self) -> FlowKey {
        FlowKey {
            src: self.src,
            dst: self.dst,
            src_port: self.src_port,
            dst_port: self.dst_port,
            protocol: self.protocol,
        }
    }

    /// Nothing.
    pub const EMPTY: Self = Self {
        time: 0,
        src: [0; 16],
        dst: [0; 16],
        src_port: 0,
        dst_port: 0,
        protocol: 0,
        ip_version: 0,
        ip_len: 0,
        payload_len: 0,
        payload: &[],
        tcp: TcpHeader {
            seq: 0,
            ack: 0,
            flags: 0,
            window: 0,
        },
        fragment: Fragment::Whole,
        vlan: None,
        tags: 0,
        macs: None,
        tunnel: Tunnel::NONE,
        network: Network::NONE,
        depth: 0,
    };
}

/// What became of a packet.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<T> {
    /// It belongs to a flow.
    Flow(T),
    /// It is understood and carries none: ARP, LLDP, spanning tree, ….
    NoFlow,
    /// Its headers contradict themselves or end too early.
    Malformed,
}

/// An address as the standard library has it.
pub fn address(bytes: &[u8; 16]) -> IpAddr {
    Ipv6Addr::from(*bytes).to_canonical()
}
