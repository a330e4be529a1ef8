//! From a captured frame to the facts a flow table needs: link layer, VLAN tags, IP, transport header.
//!
//! Nothing is copied: the payload stays a slice of the frame. Every length a packet claims is checked against
//! the octets that were captured and against the length the frame had on the wire.

use super::{
    link::{self, ETH_IPV4, ETH_IPV6},
    network::Network,
    packet::{Decoded, Fragment, ICMP, ICMPV6, LinkType, Packet, SCTP, TCP, TcpHeader, UDP, Verdict},
    tunnel::{self, Tunnel, TunnelKind},
};

const IP_IN_IP: u8 = 4;
const DCCP: u8 = 33;
const IPV6_IN_IP: u8 = 41;
pub(super) const GRE: u8 = 47;
const UDP_LITE: u8 = 136;

// Every early end is the same verdict, so the decoders return `None` for it and stay readable.
pub(super) type Step<T> = Option<T>;

pub(super) fn be16(data: &[u8], at: usize) -> Step<u16> {
    data.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

pub(super) fn be32(data: &[u8], at: usize) -> Step<u32> {
    data.get(at..at + 4)
        .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

pub(super) fn array<const N: usize>(data: &[u8], at: usize) -> Step<[u8; N]> {
    data.get(at..at + N)?.try_into().ok()
}

/// The addresses of a frame's outermost IP packet, in the form of [`Decoded`]: the same for every part of a datagram and
/// for all a tunnel carries. `None` where there are none.
pub fn ends(packet: &Packet<'_>) -> Option<([u8; 16], [u8; 16])> {
    let link = link::layer(packet, 1)?;
    let data = packet.data.get(link.offset..)?;
    match link.ethertype {
        ETH_IPV4 => Some((mapped(array(data, 12)?), mapped(array(data, 16)?))),
        ETH_IPV6 => Some((array(data, 8)?, array(data, 24)?)),
        _ => None,
    }
}

/// How packets are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoder {
    /// How many tunnels inside each other are followed; 0 for none.
    pub tunnels: u8,
    /// Whether checksums of whole packets are verified. Where the sender's network card computes them, packets that
    /// are captured on the sender have wrong ones.
    pub checksums: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            tunnels: 4,
            checksums: false,
        }
    }
}

/// Decodes one frame, with the defaults of [`Decoder`].
pub fn decode<'a>(packet: &Packet<'a>) -> Verdict<Decoded<'a>> {
    Decoder::default().decode(packet)
}

impl Decoder {
    /// Decodes one frame. Tunnels directly over IP are followed; those over UDP are told apart by their flow.
    pub fn decode<'a>(&self, packet: &Packet<'a>) -> Verdict<Decoded<'a>> {
        let mut decoded = Decoded::EMPTY;
        match self.decode_into(packet, &mut decoded) {
            Verdict::Flow(()) => Verdict::Flow(decoded),
            Verdict::NoFlow => Verdict::NoFlow,
            Verdict::Malformed => Verdict::Malformed,
        }
    }

    /// As [`decode`](Self::decode), into a place that is there: what a packet says is more than is worth moving about.
    #[inline(always)]
    pub fn decode_into<'a>(&self, packet: &Packet<'a>, into: &mut Decoded<'a>) -> Verdict<()> {
        match self.plain(packet, self.tunnels, into) {
            Some(()) => Verdict::Flow(()),
            None => self.layers(packet, into),
        }
    }

    #[inline(never)]
    fn layers<'a>(&self, packet: &Packet<'a>, into: &mut Decoded<'a>) -> Verdict<()> {
        match self.frame(packet, self.tunnels, Network::default()) {
            Verdict::Flow(decoded) => {
                *into = decoded;
                Verdict::Flow(())
            }
            Verdict::NoFlow => Verdict::NoFlow,
            Verdict::Malformed => Verdict::Malformed,
        }
    }

    // What nearly every frame is, in one step: Ethernet without tags, IPv4 without options, a whole datagram of TCP or
    // UDP that is as long as it says. `None` for everything else, which is looked at layer by layer.
    #[inline(always)]
    pub(super) fn plain<'a>(&self, packet: &Packet<'a>, depth: u8, into: &mut Decoded<'a>) -> Step<()> {
        const IP_AT: usize = 14;
        const BODY: usize = IP_AT + 20;
        let data = packet.data;
        let head: &[u8; BODY + 8] = data.first_chunk()?;
        let half = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let protocol = head[IP_AT + 9];
        let plain = packet.link == LinkType::Ethernet
            && !self.checksums
            && half(12) == ETH_IPV4
            && head[IP_AT] == 0x45
            && half(IP_AT + 6) & 0x3fff == 0
            && (protocol == TCP || protocol == UDP);
        let total = usize::from(half(IP_AT + 2));
        let wire = (packet.wire_len as usize).max(data.len()) - IP_AT;
        if !plain || total < 28 || total > wire {
            return None;
        }
        let mut claimed = total - 20;
        let (header, tcp) = if protocol == TCP {
            let head: &[u8; BODY + 20] = data.first_chunk()?;
            let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let header = usize::from(head[BODY + 12] >> 4) * 4;
            if header < 20 || claimed < header {
                return None;
            }
            let tcp = TcpHeader {
                seq: word(BODY + 4),
                ack: word(BODY + 8),
                flags: head[BODY + 13],
                window: u16::from_be_bytes([head[BODY + 14], head[BODY + 15]]),
            };
            (header, tcp)
        } else {
            let length = usize::from(half(BODY + 4));
            if length < 8 {
                return None;
            }
            claimed = claimed.min(length);
            (8, TcpHeader::default())
        };
        let end = data.len().min(BODY + claimed);
        let macs = Some((array(head, 6)?, array(head, 0)?));
        *into = Decoded {
            time: packet.time,
            src: mapped([head[26], head[27], head[28], head[29]]),
            dst: mapped([head[30], head[31], head[32], head[33]]),
            src_port: half(BODY),
            dst_port: half(BODY + 2),
            protocol,
            ip_version: 4,
            ip_len: total as u32,
            payload_len: (claimed - header) as u32,
            payload: data.get(BODY + header..end).unwrap_or_default(),
            tcp,
            fragment: Fragment::Whole,
            vlan: packet.vlan_tci.map(|tci| tci & 0x0fff),
            tags: packet.vlan_tci.map_or(0, |tci| tagged(0, tci)),
            macs,
            tunnel: Tunnel::NONE,
            network: Network::NONE,
            depth,
        };
        Some(())
    }

    /// Decodes a frame of a network that may contain `depth` more tunnels.
    pub(super) fn frame<'a>(&self, packet: &Packet<'a>, depth: u8, network: Network) -> Verdict<Decoded<'a>> {
        let Some(link) = link::layer(packet, depth) else {
            return Verdict::Malformed;
        };
        let data = packet.data.get(link.offset..).unwrap_or_default();
        // What the frame had on the wire behind the link header bounds what IP may claim.
        let wire = (packet.wire_len as usize)
            .max(packet.data.len())
            .saturating_sub(link.offset);
        let decoded = match link.ethertype {
            ETH_IPV4 => self.ipv4(data, wire),
            ETH_IPV6 => self.ipv6(data, wire),
            _ => return Verdict::NoFlow,
        };
        let Some(mut decoded) = decoded else {
            return Verdict::Malformed;
        };
        decoded.time = packet.time;
        decoded.vlan = link.vlan;
        decoded.tags = link.tags;
        decoded.macs = link.macs;
        decoded.tunnel = link.tunnel;
        decoded.network = network.inside(link.tunnel);
        decoded.depth = depth.saturating_sub(u8::from(link.tunnel.kind != TunnelKind::None));
        // The outer packet is a flow of its own where what it carries cannot be read.
        if matches!(decoded.protocol, IP_IN_IP | IPV6_IN_IP | GRE)
            && let Some(inner) = tunnel::over_ip(self, &decoded)
        {
            return Verdict::Flow(inner);
        }
        Verdict::Flow(decoded)
    }

    /// Decodes an IP packet: `data` as captured, of at most `wire` octets.
    pub(super) fn ip<'a>(&self, data: &'a [u8], wire: usize) -> Option<Decoded<'a>> {
        match data.first()? >> 4 {
            4 => self.ipv4(data, wire),
            6 => self.ipv6(data, wire),
            _ => None,
        }
    }
}

/// VLAN ids of a frame, outermost first, with one more behind them. Of more than two only the innermost two are kept.
#[inline(always)]
pub fn tagged(tags: u32, tci: u16) -> u32 {
    tags << 13 | 0x1000 | u32::from(tci & 0x0fff)
}

// Written as two words, because they are read as two words soon after, when they are hashed.
fn mapped(v4: [u8; 4]) -> [u8; 16] {
    let low = u64::from(u32::from_le_bytes(v4)) << 32 | 0xffff_0000;
    (u128::from(low) << 64).to_le_bytes()
}

impl Decoder {
    fn ipv4<'a>(&self, data: &'a [u8], wire: usize) -> Step<Decoded<'a>> {
        let first = *data.first()?;
        let header = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || header < 20 || data.len() < header {
            return None;
        }
        // Segmentation offload leaves the length 0 for what the card will cut; then the frame tells.
        let total = match be16(data, 2)? {
            0 => wire,
            claimed => usize::from(claimed),
        };
        if total < header || total > wire {
            return None;
        }
        let place = be16(data, 6)?;
        let identifier = u32::from(be16(data, 4)?);
        let fragment = Fragment::at(identifier, place & 0x1fff, place & 0x2000 != 0);
        if self.checksums && sum(&data[..header], 0) != 0xffff {
            return None;
        }
        let body = &data[header..data.len().min(total)];
        self.transport(
            Decoded {
                src: mapped(array(data, 12)?),
                dst: mapped(array(data, 16)?),
                ip_version: 4,
                ip_len: total as u32,
                fragment,
                protocol: data[9],
                ..Decoded::EMPTY
            },
            body,
            total - header,
        )
    }

    fn ipv6<'a>(&self, data: &'a [u8], wire: usize) -> Step<Decoded<'a>> {
        if data.len() < 40 || data[0] >> 4 != 6 {
            return None;
        }
        let claimed = usize::from(be16(data, 4)?);
        // 0 with a hop-by-hop header is a jumbogram (RFC 2675); the frame tells its length.
        let total = match (claimed, data[6]) {
            (0, 0) => wire,
            _ => 40 + claimed,
        };
        if total > wire {
            return None;
        }
        let end = data.len().min(total);
        let mut next = data[6];
        let mut at = 40;
        let mut fragment = Fragment::Whole;
        // RFC 8200 §4.1 lets each header occur once or twice; more than this many is an attack.
        for _ in 0..12 {
            let length = match next {
                // Hop-by-hop, routing, destination options, mobility, HIP, shim6.
                0 | 43 | 60 | 135 | 139 | 140 => (usize::from(*data.get(at + 1)?) + 1) * 8,
                // Authentication header counts in words (RFC 4302 §2.2).
                51 => (usize::from(*data.get(at + 1)?) + 2) * 4,
                44 => {
                    let place = be16(data, at + 2)?;
                    let identifier = be32(data, at + 4)?;
                    fragment = Fragment::at(identifier, place >> 3, place & 1 != 0);
                    8
                }
                _ => break,
            };
            next = *data.get(at)?;
            at += length;
            if at > total {
                return None;
            }
            // What follows in a later fragment is the middle of the datagram, not a header.
            if matches!(fragment, Fragment::Later { .. }) {
                break;
            }
        }
        self.transport(
            Decoded {
                src: array(data, 8)?,
                dst: array(data, 24)?,
                ip_version: 6,
                ip_len: total as u32,
                fragment,
                protocol: next,
                ..Decoded::EMPTY
            },
            data.get(at..end).unwrap_or_default(),
            total - at,
        )
    }
}

impl Decoder {
    fn transport<'a>(&self, packet: Decoded<'a>, body: &'a [u8], claimed: usize) -> Step<Decoded<'a>> {
        if self.checksums && packet.fragment == Fragment::Whole && body.len() >= claimed && !is_intact(&packet, body) {
            return None;
        }
        transport(packet, body, claimed)
    }
}

// The ones' complement sum of RFC 1071, folded to 16 bits.
fn sum(data: &[u8], start: u64) -> u16 {
    let mut sum = start;
    let mut words = data.chunks_exact(2);
    for word in &mut words {
        sum += u64::from(u16::from_be_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        sum += u64::from(*last) << 8;
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

// Whether the checksum of a whole transport packet holds. A UDP checksum of zero says that there is none.
fn is_intact(packet: &Decoded<'_>, body: &[u8]) -> bool {
    let pseudo = || {
        let skip = if packet.ip_version == 4 { 12 } else { 0 };
        let length = body.len() as u64;
        let addresses = u64::from(sum(&packet.src[skip..], 0)) + u64::from(sum(&packet.dst[skip..], 0));
        addresses + u64::from(packet.protocol) + (length >> 16) + (length & 0xffff)
    };
    match packet.protocol {
        UDP if be16(body, 6) == Some(0) => true,
        TCP | UDP | ICMPV6 => sum(body, pseudo()) == 0xffff,
        ICMP => sum(body, 0) == 0xffff,
        _ => true,
    }
}

/// A datagram that was put together again: `packet` is one of its parts, `body` what is above its IP header.
pub(super) fn assembled<'a>(packet: &Decoded<'_>, body: &'a [u8]) -> Option<Decoded<'a>> {
    let whole = Decoded {
        time: packet.time,
        src: packet.src,
        dst: packet.dst,
        ip_version: packet.ip_version,
        ip_len: packet.ip_len,
        tunnel: packet.tunnel,
        network: packet.network,
        depth: packet.depth,
        vlan: packet.vlan,
        tags: packet.tags,
        macs: packet.macs,
        protocol: packet.protocol,
        ..Decoded::EMPTY
    };
    transport(whole, body, body.len())
}

// `body` is what was captured behind the IP header, `claimed` how much there is by the IP header.
fn transport<'a>(mut packet: Decoded<'a>, body: &'a [u8], claimed: usize) -> Step<Decoded<'a>> {
    if let Fragment::Later { .. } = packet.fragment {
        packet.payload_len = claimed as u32;
        packet.payload = body;
        return Some(packet);
    }
    let header = match packet.protocol {
        TCP => {
            packet.src_port = be16(body, 0)?;
            packet.dst_port = be16(body, 2)?;
            packet.tcp = TcpHeader {
                seq: be32(body, 4)?,
                ack: be32(body, 8)?,
                flags: *body.get(13)?,
                window: be16(body, 14)?,
            };
            let header = usize::from(body[12] >> 4) * 4;
            if header < 20 || claimed < header {
                return None;
            }
            header
        }
        UDP | UDP_LITE => {
            packet.src_port = be16(body, 0)?;
            packet.dst_port = be16(body, 2)?;
            let length = usize::from(be16(body, 4)?);
            if claimed < 8 || (packet.protocol == UDP && (1..8).contains(&length)) {
                return None;
            }
            // Octets behind the datagram's own length belong to nobody.
            if packet.protocol == UDP && packet.fragment == Fragment::Whole && length >= 8 {
                let inside = length.min(claimed);
                packet.payload_len = (inside - 8) as u32;
                packet.payload = body.get(8..body.len().min(inside)).unwrap_or_default();
                return Some(packet);
            }
            8
        }
        SCTP | DCCP => {
            packet.src_port = be16(body, 0)?;
            packet.dst_port = be16(body, 2)?;
            let header = 12;
            if claimed < header {
                return None;
            }
            header
        }
        ICMP | ICMPV6 => {
            let (kind, code) = (*body.first()?, *body.get(1)?);
            let answer = icmp_answer(packet.protocol, kind);
            packet.src_port = u16::from(kind);
            packet.dst_port = u16::from(answer.unwrap_or(code));
            8.min(claimed)
        }
        _ => 0,
    };
    packet.payload_len = (claimed - header) as u32;
    // A first part is kept with its transport header, because the datagram is put together with it.
    let from = if packet.fragment == Fragment::Whole { header } else { 0 };
    packet.payload = body.get(from..).unwrap_or_default();
    Some(packet)
}

/// The ICMP type that answers a type and the other way round, so that both make one flow (Community ID
/// specification, "ICMP"). `None` where no answer is expected.
pub fn icmp_answer(protocol: u8, kind: u8) -> Option<u8> {
    let pairs: &[(u8, u8)] = match protocol {
        ICMP => &[(8, 0), (13, 14), (15, 16), (17, 18), (10, 9)],
        _ => &[(128, 129), (133, 134), (135, 136), (130, 131), (139, 140), (144, 145)],
    };
    pairs.iter().find_map(|&(ask, answer)| match kind {
        _ if kind == ask => Some(answer),
        _ if kind == answer => Some(ask),
        _ => None,
    })
}
