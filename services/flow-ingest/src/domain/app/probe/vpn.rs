//! Tunnels and encrypted transports over UDP: WireGuard, OpenVPN, IKE, QUIC, DTLS, and the tunnels that are unwrapped.

use super::{Guess, Look, be16, be32};
use crate::domain::{
    app::{quic, tls},
    tunnel,
};

/// VXLAN (RFC 7348).
pub fn vxlan(look: &Look<'_>) -> Guess {
    Guess::sure(look.on_port && tunnel::is_vxlan(look.data))
}

/// Geneve (RFC 8926).
pub fn geneve(look: &Look<'_>) -> Guess {
    Guess::sure(look.on_port && tunnel::is_geneve(look.data))
}

/// GTP-U (3GPP TS 29.281).
pub fn gtpu(look: &Look<'_>) -> Guess {
    Guess::sure(look.on_port && tunnel::is_gtpu(look.data, look.claimed))
}

/// Teredo (RFC 4380), on any port.
pub fn teredo(look: &Look<'_>) -> Guess {
    Guess::sure(tunnel::is_teredo(look.data, look.claimed))
}

/// QUIC (RFC 9000, RFC 9369) and the versions before it.
pub fn quic(look: &Look<'_>) -> Guess {
    Guess::sure(quic::is_quic(look.data))
}

/// DTLS (RFC 6347, RFC 9147 §4): a record whose length fits.
pub fn dtls(look: &Look<'_>) -> Guess {
    Guess::sure(tls::is_dtls(look.data, look.claimed as usize))
}

/// WireGuard (wireguard.com/protocol): a handshake, or on its port data.
pub fn wireguard(look: &Look<'_>) -> Guess {
    let Some(&[kind, 0, 0, 0]) = look.data.first_chunk::<4>() else {
        return Guess::No;
    };
    Guess::sure(match kind {
        1 => look.claimed == 148,
        2 => look.claimed == 92,
        3 => look.claimed == 64 && look.on_port,
        4 => look.on_port && look.claimed >= 32 && look.claimed.is_multiple_of(16),
        _ => false,
    })
}

/// ISAKMP (RFC 2408 §3.1, RFC 7296 §3.1), behind the marker of RFC 3948 on port 4500; there ESP and keep-alives too.
pub fn isakmp(look: &Look<'_>) -> Guess {
    let data = look.data;
    let on = |port| look.ports.0 == port || look.ports.1 == port;
    if on(4500) {
        let keepalive = look.claimed == 1 && data == [0xff];
        // A security association's number is 256 or more; the sequence starts at 1.
        let esp =
            look.claimed >= 24 && be32(data, 0).is_some_and(|spi| spi >= 256) && be32(data, 4).is_some_and(|n| n != 0);
        if keepalive || esp {
            return Guess::Yes;
        }
    }
    let marked = data.starts_with(&[0; 4]) && on(4500);
    let skip = if marked { 4 } else { 0 };
    let header = data.get(skip..).unwrap_or_default();
    let Some(head) = header.first_chunk::<28>() else {
        return Guess::No;
    };
    let length = u32::from_be_bytes([head[24], head[25], head[26], head[27]]) as usize;
    let version = matches!(head[17], 0x10 | 0x20);
    let exchange = matches!(head[18], 1..=5 | 32..=44 | 240..=243);
    let initiator = head[..8] != [0; 8];
    // A proposal of both is behind; it may end before padding that others append.
    let fits = length >= 28 && length + skip <= look.claimed as usize;
    let exact = length + skip == look.claimed as usize;
    Guess::sure(version && exchange && initiator && fits && (look.on_port || exact))
}

/// OpenVPN over UDP.
pub fn openvpn(look: &Look<'_>) -> Guess {
    Guess::sure(is_openvpn(look.data, look.claimed as usize, look.on_port))
}

/// OpenVPN over TCP: a length before each packet.
pub fn openvpn_over_tcp(look: &Look<'_>) -> Guess {
    let Some(length) = be16(look.data, 0).map(usize::from) else {
        return Guess::No;
    };
    let fits = length + 2 <= look.data.len();
    Guess::sure(fits && is_openvpn(&look.data[2..2 + length.min(look.data.len() - 2)], length, look.on_port))
}

// A hard reset (OpenVPN protocol, "Packet types"): opcode and key, session, then with each kind of protection the first
// packet id where it must be.
fn is_openvpn(data: &[u8], claimed: usize, on_port: bool) -> bool {
    let Some(&first) = data.first() else { return false };
    let (opcode, key) = (first >> 3, first & 7);
    if !matches!(opcode, 1 | 2 | 7 | 8 | 10) || key != 0 || data.len() < 14 || data[1..9] == [0; 8] {
        return false;
    }
    // Plain: no acknowledgments and message 0, or for a server's answer one acknowledgment and the client's session.
    let plain = |at: usize| match data.get(at) {
        Some(0) => claimed == at + 5 && be32(data, at + 1) == Some(0),
        Some(1) => claimed == at + 5 + 12 && be32(data, at + 13) == Some(0),
        _ => false,
    };
    // HMAC of SHA-1, SHA-256 or SHA-512; then packet id 1 and the time.
    let signed = [20, 32, 64]
        .iter()
        .any(|hmac| be32(data, 9 + hmac) == Some(1) && plain(9 + hmac + 8));
    // tls-crypt: packet id 1 (or the one early negotiation uses), the time, HMAC, ciphertext.
    let dated = be32(data, 13).is_some_and(|time| (0x3a00_0000..0x8000_0000).contains(&time));
    let crypted = matches!(be32(data, 9), Some(1 | 0x0f00_0001)) && claimed >= 54 && (on_port || dated);
    if matches!(opcode, 1 | 2) && !on_port {
        return false;
    }
    plain(9) || signed || crypted || (on_port && matches!(opcode, 7 | 8 | 10))
}
