//! Packets inside packets: tunnels over IP and over UDP. Each function reads one layer, allocates nothing, and says
//! `None` where what is inside cannot be read; then the outer packet is all there is.

use super::{
    app::Service,
    decode::{Decoder, GRE, be16, be32},
    link::{self, ETH_IPV4, ETH_IPV6},
    packet::{Decoded, Fragment, LinkType, Packet, UDP, Verdict},
};

/// Kinds of tunnels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum TunnelKind {
    /// It came through none.
    #[default]
    None,
    /// Provider backbone bridging (IEEE 802.1ah).
    Pbb,
    /// Cisco FabricPath.
    FabricPath,
    /// IP in IP (RFC 2003, RFC 2473).
    IpIp,
    /// IPv6 in IPv4 (RFC 4213).
    SixInFour,
    /// GRE (RFC 2784, RFC 2890).
    Gre,
    /// GRE version 1 with PPP (RFC 2637).
    Pptp,
    /// ERSPAN, types I to III.
    Erspan,
    /// Teredo (RFC 4380).
    Teredo,
    /// VXLAN (RFC 7348).
    Vxlan,
    /// Geneve (RFC 8926).
    Geneve,
    /// GTP-U (3GPP TS 29.281).
    Gtpu,
}

impl TunnelKind {
    /// The value of the `tunnel_kind` column.
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::None => return None,
            Self::Pbb => "pbb",
            Self::FabricPath => "fabricpath",
            Self::IpIp => "ipip",
            Self::SixInFour => "6in4",
            Self::Gre => "gre",
            Self::Pptp => "pptp",
            Self::Erspan => "erspan",
            Self::Teredo => "teredo",
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
            Self::Gtpu => "gtpu",
        })
    }
}

/// The innermost tunnel a packet came through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// Its kind.
    pub kind: TunnelKind,
    /// Its key, network, session or endpoint identifier, where it has one.
    pub id: Option<u32>,
}

impl Tunnel {
    /// It came through none.
    pub const NONE: Self = Self {
        kind: TunnelKind::None,
        id: None,
    };
}

const NO_NEXT_HEADER: u8 = 59;

// What the payload of a tunnel begins with.
#[derive(Clone, Copy)]
enum Inside {
    Ip,
    Ethernet,
    Ppp,
}

/// What a packet of IP in IP or GRE carries.
pub(super) fn over_ip<'a>(decoder: &Decoder, outer: &Decoded<'a>) -> Option<Decoded<'a>> {
    if outer.depth == 0 || outer.fragment != Fragment::Whole {
        return None;
    }
    if outer.protocol == GRE {
        let (tunnel, inside, skip) = gre(outer.payload)?;
        return open(decoder, outer, tunnel, inside, skip);
    }
    let kind = match (outer.ip_version, outer.protocol) {
        (4, 41) => TunnelKind::SixInFour,
        _ => TunnelKind::IpIp,
    };
    open(decoder, outer, Tunnel { kind, id: None }, Inside::Ip, 0)
}

/// What a datagram of a flow that was recognised as a tunnel carries.
pub(super) fn over_udp<'a>(decoder: &Decoder, outer: &Decoded<'a>, service: Service) -> Option<Decoded<'a>> {
    if outer.depth == 0 || outer.fragment != Fragment::Whole {
        return None;
    }
    let (tunnel, inside, skip) = match service {
        Service::Vxlan => vxlan(outer.payload)?,
        Service::Geneve => geneve(outer.payload)?,
        Service::Gtpu => gtpu(outer.payload)?,
        Service::Teredo => teredo(outer.payload)?,
        _ => return None,
    };
    open(decoder, outer, tunnel, inside, skip)
}

/// Decodes a frame to the innermost flow, as far as the frame alone shows it: tunnels over UDP by their ports and
/// Teredo by its content.
pub fn innermost<'a>(packet: &Packet<'a>) -> Verdict<Decoded<'a>> {
    let decoder = Decoder::default();
    let mut verdict = decoder.decode(packet);
    while let Verdict::Flow(outer) = &verdict
        && outer.protocol == UDP
        && outer.fragment == Fragment::Whole
    {
        let on = |port| outer.src_port == port || outer.dst_port == port;
        let (data, claimed) = (outer.payload, outer.payload_len);
        let service = match () {
            () if on(4789) && is_vxlan(data) => Service::Vxlan,
            () if on(6081) && is_geneve(data) => Service::Geneve,
            () if on(2152) && is_gtpu(data, claimed) => Service::Gtpu,
            () if is_teredo(data, claimed) => Service::Teredo,
            () => break,
        };
        // Each is one less deep, so this ends.
        match over_udp(&decoder, outer, service) {
            Some(inner) => verdict = Verdict::Flow(inner),
            None => break,
        }
    }
    verdict
}

fn open<'a>(
    decoder: &Decoder,
    outer: &Decoded<'a>,
    tunnel: Tunnel,
    inside: Inside,
    skip: usize,
) -> Option<Decoded<'a>> {
    let data = outer.payload.get(skip..)?;
    let wire = (outer.payload_len as usize).checked_sub(skip)?;
    let depth = outer.depth - 1;
    let mut inner = match inside {
        Inside::Ip => decoder.ip(data, wire)?,
        Inside::Ethernet => {
            let frame = Packet {
                time: outer.time,
                link: LinkType::Ethernet,
                data,
                wire_len: wire as u32,
                vlan_tci: None,
            };
            let Verdict::Flow(inner) = decoder.frame(&frame, depth, outer.network.inside(tunnel)) else {
                return None;
            };
            inner
        }
        Inside::Ppp => {
            let link = link::ppp(data)?;
            if !matches!(link.ethertype, ETH_IPV4 | ETH_IPV6) {
                return None;
            }
            decoder.ip(data.get(link.offset..)?, wire.checked_sub(link.offset)?)?
        }
    };
    inner.time = outer.time;
    if let Inside::Ethernet = inside {
        // A tunnel inside the frame is further in than this one.
        if inner.tunnel.kind == TunnelKind::None {
            inner.tunnel = tunnel;
        }
        inner.vlan = inner.vlan.or(outer.vlan);
        inner.tags = if inner.tags == 0 { outer.tags } else { inner.tags };
        return Some(inner);
    }
    // A bubble only keeps a path open (RFC 4380 §2.8).
    if tunnel.kind == TunnelKind::Teredo && inner.protocol == NO_NEXT_HEADER {
        return None;
    }
    inner.tunnel = tunnel;
    inner.vlan = outer.vlan;
    inner.tags = outer.tags;
    inner.network = outer.network.inside(tunnel);
    inner.macs = outer.macs;
    inner.depth = depth;
    if matches!(inner.protocol, 4 | 41 | GRE)
        && let Some(deeper) = over_ip(decoder, &inner)
    {
        return Some(deeper);
    }
    Some(inner)
}

fn gre(data: &[u8]) -> Option<(Tunnel, Inside, usize)> {
    let flags = be16(data, 0)?;
    let protocol = be16(data, 2)?;
    let has = |bit: u16| usize::from(flags & bit != 0);
    let (checksum, key, sequence) = (has(0x8000), has(0x2000), has(0x1000));
    if flags & 7 == 1 {
        // PPTP: the key is payload length and call; bit 8 says that an acknowledgment follows.
        let call = u32::from(be16(data, 6)?);
        if protocol != 0x880b || key == 0 || sequence == 0 {
            return None;
        }
        let tunnel = Tunnel {
            kind: TunnelKind::Pptp,
            id: Some(call),
        };
        return Some((tunnel, Inside::Ppp, 8 + 4 * (sequence + has(0x0080))));
    }
    // Routing (RFC 1701) is not used any more, and other versions do not exist.
    if flags & 0x4007 != 0 {
        return None;
    }
    let length = 4 + 4 * (checksum + key + sequence);
    let id = match key {
        1 => Some(be32(data, 4 + 4 * checksum)?),
        _ => None,
    };
    let tunnel = Tunnel {
        kind: TunnelKind::Gre,
        id,
    };
    let erspan = |session: Option<u32>| Tunnel {
        kind: TunnelKind::Erspan,
        id: session,
    };
    let session = |at: usize| be16(data, at + 2).map(|word| u32::from(word & 0x3ff));
    match protocol {
        ETH_IPV4 | ETH_IPV6 => Some((tunnel, Inside::Ip, length)),
        0x6558 => Some((tunnel, Inside::Ethernet, length)),
        // Type I has no sequence number and no header of its own.
        0x88be if sequence == 0 => Some((erspan(None), Inside::Ethernet, length)),
        0x88be => Some((erspan(session(length)), Inside::Ethernet, length + 8)),
        0x22eb => {
            let platform = usize::from(be16(data, length + 10)? & 1);
            Some((erspan(session(length)), Inside::Ethernet, length + 12 + 8 * platform))
        }
        _ => None,
    }
}

/// Whether a datagram is VXLAN: the flag that its network is valid, and no reserved bit.
pub(super) fn is_vxlan(data: &[u8]) -> bool {
    data.len() >= 8 + 14 && data[0] == 0x08 && data[1..4] == [0; 3] && data[7] == 0
}

fn vxlan(data: &[u8]) -> Option<(Tunnel, Inside, usize)> {
    if *data.first()? & 0x08 == 0 {
        return None;
    }
    let tunnel = Tunnel {
        kind: TunnelKind::Vxlan,
        id: Some(be32(data, 4)? >> 8),
    };
    Some((tunnel, Inside::Ethernet, 8))
}

/// Whether a datagram is Geneve: version 0, no reserved bit, and a payload that is a frame or IP.
pub(super) fn is_geneve(data: &[u8]) -> bool {
    geneve(data).is_some() && data[1] & 0x3f == 0 && data[7] == 0
}

fn geneve(data: &[u8]) -> Option<(Tunnel, Inside, usize)> {
    let first = *data.first()?;
    if first >> 6 != 0 {
        return None;
    }
    let inside = match be16(data, 2)? {
        0x6558 => Inside::Ethernet,
        ETH_IPV4 | ETH_IPV6 => Inside::Ip,
        _ => return None,
    };
    let tunnel = Tunnel {
        kind: TunnelKind::Geneve,
        id: Some(be32(data, 4)? >> 8),
    };
    Some((tunnel, inside, 8 + 4 * usize::from(first & 0x3f)))
}

/// Whether a datagram is GTP-U: a user packet whose length is the datagram's.
pub(super) fn is_gtpu(data: &[u8], claimed: u32) -> bool {
    let Some((_, _, at)) = gtpu(data) else { return false };
    let length = be16(data, 2).map_or(0, u32::from);
    length + 8 == claimed && data.get(at).is_some_and(|&b| matches!(b >> 4, 4 | 6))
}

/// The endpoint identifier of a packet of GTP-U.
pub(super) fn teid(data: &[u8]) -> Option<u32> {
    be32(data, 4)
}

fn gtpu(data: &[u8]) -> Option<(Tunnel, Inside, usize)> {
    let flags = *data.first()?;
    // Version 1, GTP rather than GTP', a user packet.
    if flags >> 5 != 1 || flags & 0x10 == 0 || *data.get(1)? != 0xff {
        return None;
    }
    let tunnel = Tunnel {
        kind: TunnelKind::Gtpu,
        id: Some(be32(data, 4)?),
    };
    let mut at = 8;
    if flags & 7 != 0 {
        at += 4;
        if flags & 4 != 0 {
            let mut next = *data.get(11)?;
            // Extension headers, each of a length in words. Real ones are one or two.
            for _ in 0..4 {
                if next == 0 {
                    break;
                }
                let length = usize::from(*data.get(at)?) * 4;
                next = *data.get(at + length.checked_sub(1)?)?;
                at += length;
            }
            if next != 0 {
                return None;
            }
        }
    }
    Some((tunnel, Inside::Ip, at))
}

/// Whether a datagram is Teredo: behind its indicators an IPv6 packet of exactly the datagram's length, from or to a
/// Teredo or a link-local address. A bubble, which has no next header, may be followed by a trailer.
pub(super) fn is_teredo(data: &[u8], claimed: u32) -> bool {
    let Some((_, _, at)) = teredo(data) else { return false };
    let (Some(length), Some(addresses)) = (be16(data, at + 4), data.get(at + 8..at + 40)) else {
        return false;
    };
    let known = |address: &[u8]| address.starts_with(&[0x20, 1, 0, 0]) || address.starts_with(&[0xfe, 0x80]);
    let end = at + 40 + usize::from(length);
    let bubble = data.get(at + 6) == Some(&NO_NEXT_HEADER);
    (end == claimed as usize || (bubble && end <= claimed as usize))
        && (known(&addresses[..16]) || known(&addresses[16..]))
}

fn teredo(data: &[u8]) -> Option<(Tunnel, Inside, usize)> {
    let mut at = 0;
    // Authentication (RFC 4380 §5.1.1): type, client and value lengths, nonce, confirmation.
    if data.starts_with(&[0, 1]) {
        at = 13 + usize::from(*data.get(2)?) + usize::from(*data.get(3)?);
    }
    // Origin: type, port and address.
    if data.get(at..)?.starts_with(&[0, 0]) {
        at += 8;
    }
    if *data.get(at)? >> 4 != 6 {
        return None;
    }
    let tunnel = Tunnel {
        kind: TunnelKind::Teredo,
        id: None,
    };
    Some((tunnel, Inside::Ip, at))
}
