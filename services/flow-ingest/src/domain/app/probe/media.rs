//! Calls: STUN, RTP, RTCP.

use super::{Guess, Look, be16, be32};

const COOKIE: u32 = 0x2112_a442;

/// STUN (RFC 8489 §5); without the cookie (RFC 3489) where its attributes fill the message.
pub fn stun(look: &Look<'_>) -> Guess {
    Guess::sure(is_stun(look.data, look.claimed as usize))
}

/// STUN over TCP, and behind the length of RFC 4571.
pub fn stun_over_tcp(look: &Look<'_>) -> Guess {
    let data = look.data;
    let framed = be16(data, 0).is_some_and(|length| usize::from(length) + 2 == data.len());
    let cookie = |at: usize| be32(data, at + 4) == Some(COOKIE);
    let length = |at: usize| be16(data, at + 2).is_some_and(|l| l % 4 == 0 && usize::from(l) + 20 + at <= data.len());
    let kind = |at: usize| data.get(at).is_some_and(|b| b & 0xc0 == 0);
    let at = |at: usize| kind(at) && cookie(at) && length(at);
    Guess::sure(at(0) || (framed && at(2)))
}

fn is_stun(data: &[u8], claimed: usize) -> bool {
    let (Some(kind), Some(length)) = (be16(data, 0), be16(data, 2).map(usize::from)) else {
        return false;
    };
    if kind & 0xc000 != 0 || length % 4 != 0 || length + 20 > claimed {
        return false;
    }
    if be32(data, 4) == Some(COOKIE) {
        return true;
    }
    // Binding and shared secret: request, response, error.
    if !matches!(kind, 0x0001 | 0x0002 | 0x0101 | 0x0102 | 0x0111 | 0x0112) || length + 20 != claimed || length == 0 {
        return false;
    }
    let mut at = 20;
    while at < claimed {
        let (Some(attribute), Some(size)) = (be16(data, at), be16(data, at + 2)) else {
            return false;
        };
        if !matches!(attribute, 0x0001..=0x0025 | 0x8000..=0x80ff) {
            return false;
        }
        at += 4 + usize::from(size).next_multiple_of(4);
    }
    at == claimed
}

/// RTCP (RFC 3550 §6): packets of a known type whose lengths fill the datagram, a report first.
pub fn rtcp(look: &Look<'_>) -> Guess {
    let data = look.data;
    if data.len() != look.claimed as usize || !matches!(data.get(1), Some(200..=201)) {
        return Guess::No;
    }
    let mut at = 0;
    let mut packets = 0;
    while at < data.len() {
        let (Some(&[first, kind]), Some(words)) =
            (data.get(at..).and_then(|b| b.first_chunk::<2>()), be16(data, at + 2))
        else {
            return Guess::No;
        };
        if first >> 6 != 2 || !(200..=207).contains(&kind) {
            return Guess::No;
        }
        at += 4 + 4 * usize::from(words);
        packets += 1;
    }
    Guess::sure(at == data.len() && packets >= 1 && at >= 8)
}

/// Whether a datagram has a plausible RTP header (RFC 3550 §5.1): its payload type, sequence number and source. One is
/// not enough to be sure; two that follow each other are.
pub fn rtp_header(data: &[u8]) -> Option<(u8, u16, u32)> {
    let [first, second, ..] = data else { return None };
    let kind = second & 0x7f;
    let header = 12 + 4 * usize::from(first & 0x0f);
    // Static and dynamic types of RFC 3551; 72 to 76 would be RTCP.
    let known = matches!(kind, 0..=34 | 96..=127);
    let source = be32(data, 8)?;
    (first >> 6 == 2 && known && data.len() > header && source != 0).then_some((kind, be16(data, 2)?, source))
}

/// RTP: could be, until a second one follows.
pub fn rtp(look: &Look<'_>) -> Guess {
    let high = look.ports.0 >= 1024 && look.ports.1 >= 1024;
    match rtp_header(look.data) {
        Some(_) if high => Guess::Maybe,
        _ => Guess::No,
    }
}
