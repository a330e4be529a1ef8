//! Link layers: everything before the IP header, with its tags and the link-level encapsulations.

use super::{
    decode::{Step, array, be16, be32, tagged},
    packet::{LinkType, Packet},
    tunnel::{Tunnel, TunnelKind},
};

pub(super) const ETH_IPV4: u16 = 0x0800;
pub(super) const ETH_IPV6: u16 = 0x86dd;
// No more tags than this are unwrapped; a frame with more is not a network's but an attacker's.
const MAX_TAGS: usize = 8;

/// What the link layer says.
pub(super) struct Link {
    /// What follows.
    pub(super) ethertype: u16,
    /// Where it follows.
    pub(super) offset: usize,
    /// Outermost VLAN id.
    pub(super) vlan: Option<u16>,
    /// All VLAN ids, see [`tagged`].
    pub(super) tags: u32,
    /// Link addresses: source, destination.
    pub(super) macs: Option<([u8; 6], [u8; 6])>,
    /// A frame in a frame.
    pub(super) tunnel: Tunnel,
}

/// Reads a frame's link layer; frames inside frames only where `depth` is not 0. `None` when it ends too early.
pub(super) fn layer(packet: &Packet<'_>, depth: u8) -> Step<Link> {
    let data = packet.data;
    let mut link = match packet.link {
        LinkType::Ethernet => Link {
            ethertype: be16(data, 12)?,
            offset: 14,
            vlan: None,
            tags: 0,
            macs: Some((array(data, 6)?, array(data, 0)?)),
            tunnel: Tunnel::default(),
        },
        LinkType::Raw => bare(by_version(data)?, 0),
        LinkType::LinuxCooked => cooked(be16(data, 14)?, 16, data, 6, be16(data, 4)?)?,
        LinkType::LinuxCooked2 => cooked(be16(data, 0)?, 20, data, 12, u16::from(*data.get(11)?))?,
        LinkType::Null => {
            let family: [u8; 4] = array(data, 0)?;
            // The host that captured may have had either byte order; families are small numbers.
            let family = u32::from_le_bytes(family).min(u32::from_be_bytes(family));
            bare(by_family(family), 4)
        }
        LinkType::Loop => bare(by_family(be32(data, 0)?), 4),
        LinkType::Ppp => ppp(data)?,
        LinkType::CiscoHdlc => bare(be16(data, 2)?, 4),
        LinkType::Ieee80211 => wireless(data, 0)?,
        LinkType::Radiotap => wireless(data, usize::from(u16::from_le_bytes(array(data, 2)?)))?,
    };
    if let Some(tci) = packet.vlan_tci {
        link.vlan = Some(tci & 0x0fff);
        link.tags = tagged(link.tags, tci);
    }
    unwrap_tags(data, &mut link, depth)?;
    Some(link)
}

fn bare(ethertype: u16, offset: usize) -> Link {
    Link {
        ethertype,
        offset,
        vlan: None,
        tags: 0,
        macs: None,
        tunnel: Tunnel::default(),
    }
}

// LINKTYPE_LINUX_SLL and SLL2 give only the sender's address, and only its length says whether it is a MAC.
fn cooked(ethertype: u16, offset: usize, data: &[u8], address_at: usize, address_len: u16) -> Step<Link> {
    data.get(..offset)?;
    let macs = (address_len == 6)
        .then(|| array(data, address_at).map(|sender| (sender, [0; 6])))
        .flatten();
    Some(Link {
        macs,
        ..bare(ethertype, offset)
    })
}

/// PPP with or without its address and control octets, and with its protocol in one octet or two (RFC 1661 §6.5).
pub(super) fn ppp(data: &[u8]) -> Step<Link> {
    let at = if data.starts_with(&[0xff, 0x03]) { 2 } else { 0 };
    let first = *data.get(at)?;
    let (protocol, length) = match first & 1 {
        1 => (u16::from(first), 1),
        _ => (be16(data, at)?, 2),
    };
    let ethertype = match protocol {
        0x0021 => ETH_IPV4,
        0x0057 => ETH_IPV6,
        _ => 0,
    };
    Some(bare(ethertype, at + length))
}

// IEEE 802.11 data frames with an LLC/SNAP header. Others carry no flow.
fn wireless(data: &[u8], at: usize) -> Step<Link> {
    let [kind, flags]: [u8; 2] = array(data, at)?;
    let protected = flags & 0x40 != 0;
    if kind & 0x0c != 0x08 || kind & 0x40 != 0 || protected {
        return Some(bare(0, at));
    }
    let mut header = 24;
    if flags & 0x03 == 0x03 {
        header += 6;
    }
    if kind & 0x80 != 0 {
        header += 2;
        if flags & 0x80 != 0 {
            header += 4;
        }
    }
    // To and from the distribution system: which of the addresses are the ends'.
    let (to, from) = match flags & 0x03 {
        0 => (4, 10),
        1 => (16, 10),
        2 => (4, 16),
        _ => (16, 24),
    };
    let macs = Some((array(data, at + from)?, array(data, at + to)?));
    let llc: [u8; 8] = array(data, at + header)?;
    let ethertype = match llc {
        [0xaa, 0xaa, 3, 0, 0, 0, high, low] => u16::from_be_bytes([high, low]),
        _ => 0,
    };
    Some(Link {
        macs,
        ..bare(ethertype, at + header + 8)
    })
}

fn by_version(data: &[u8]) -> Step<u16> {
    match data.first()? >> 4 {
        4 => Some(ETH_IPV4),
        6 => Some(ETH_IPV6),
        _ => None,
    }
}

// AF_INET is 2 everywhere; AF_INET6 is 10 on Linux, 24 on NetBSD and OpenBSD, 28 on FreeBSD, 30 on macOS.
fn by_family(family: u32) -> u16 {
    match family {
        2 => ETH_IPV4,
        10 | 24 | 28 | 30 => ETH_IPV6,
        _ => 0,
    }
}

fn unwrap_tags(data: &[u8], link: &mut Link, depth: u8) -> Step<()> {
    for _ in 0..MAX_TAGS {
        match link.ethertype {
            ETH_IPV4 | ETH_IPV6 => return Some(()),
            // IEEE 802.1Q, 802.1ad, and the two values used before 802.1ad was.
            0x8100 | 0x88a8 | 0x9100 | 0x9200 => {
                let tci = be16(data, link.offset)?;
                link.vlan.get_or_insert(tci & 0x0fff);
                link.tags = tagged(link.tags, tci);
                link.ethertype = be16(data, link.offset + 2)?;
                link.offset += 4;
            }
            // VN-Tag (IEEE 802.1Qbh).
            0x8926 => {
                link.ethertype = be16(data, link.offset + 4)?;
                link.offset += 6;
            }
            // MPLS (RFC 3032): the bottom label is followed by IP, told by its version.
            0x8847 | 0x8848 => {
                let label = be32(data, link.offset)?;
                link.offset += 4;
                if label & 0x100 != 0 {
                    let next = data.get(link.offset..).unwrap_or_default();
                    link.ethertype = by_version(next).unwrap_or(0);
                    // A pseudowire (RFC 4448): a control word of zeros and a frame.
                    if link.ethertype == 0 && depth > 0 && next.starts_with(&[0, 0, 0, 0]) {
                        link.offset += 4;
                        inner_frame(data, link)?;
                        continue;
                    }
                    return Some(());
                }
            }
            // PPPoE session (RFC 2516) with PPP's protocol number behind it.
            0x8864 => {
                link.ethertype = match be16(data, link.offset + 6)? {
                    0x0021 => ETH_IPV4,
                    0x0057 => ETH_IPV6,
                    _ => 0,
                };
                link.offset += 8;
            }
            // Provider backbone bridging (IEEE 802.1ah): the service's tag and the customer's frame.
            0x88e7 if depth > 0 => {
                link.tunnel = Tunnel {
                    kind: TunnelKind::Pbb,
                    id: Some(be32(data, link.offset)? & 0x00ff_ffff),
                };
                link.offset += 4;
                inner_frame(data, link)?;
            }
            // Cisco FabricPath: forwarding tag and hops, and the frame that came into the fabric.
            0x8903 if depth > 0 => {
                link.tunnel = Tunnel {
                    kind: TunnelKind::FabricPath,
                    id: Some(u32::from(be16(data, link.offset)? >> 6)),
                };
                link.offset += 2;
                inner_frame(data, link)?;
            }
            _ => return Some(()),
        }
    }
    // Deeper than any real frame: understood, but not followed.
    link.ethertype = 0;
    Some(())
}

fn inner_frame(data: &[u8], link: &mut Link) -> Step<()> {
    let at = link.offset;
    link.macs = Some((array(data, at + 6)?, array(data, at)?));
    link.ethertype = be16(data, at + 12)?;
    link.offset = at + 14;
    Some(())
}
