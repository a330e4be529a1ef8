//! Directory, configuration, time and management: LDAP, Kerberos, DHCP, NTP, SNMP, RADIUS.

use super::{Guess, Look, be16, be32, ber};

/// LDAP (RFC 4511 §4.2): a message id and an operation whose first field is the right one.
pub fn ldap(look: &Look<'_>) -> Guess {
    Guess::sure(is_ldap(look.data).unwrap_or(false))
}

fn is_ldap(data: &[u8]) -> Option<bool> {
    let (tag, at, length) = ber(data, 0)?;
    if tag != 0x30 || length < 5 {
        return Some(false);
    }
    let (tag, at, length) = ber(data, at)?;
    if tag != 2 || !(1..=4).contains(&length) {
        return Some(false);
    }
    let (operation, at, length) = ber(data, at + length)?;
    let field = |at: usize| data.get(at).copied().unwrap_or_default();
    Some(match operation {
        // Bind: version 1 to 3.
        0x60 => data.get(at..at + 2)? == [2, 1] && matches!(field(at + 2), 1..=3),
        // Results begin with a code, requests with a name.
        0x61 | 0x65 | 0x67 | 0x69 | 0x6b | 0x6d | 0x6f | 0x78 => data.get(at..at + 2)? == [0x0a, 1],
        0x63 | 0x64 | 0x66 | 0x68 | 0x6c => field(at) == 4,
        // Extended request: the name of the extension.
        0x77 => field(at) == 0x80,
        // Unbind and abandon.
        0x42 => length == 0,
        _ => false,
    })
}

/// Kerberos over UDP (RFC 4120 §5): the message's application tag, and its protocol version and type.
pub fn kerberos(look: &Look<'_>) -> Guess {
    Guess::sure(is_kerberos(look.data).unwrap_or(false))
}

/// Kerberos over TCP: a length before each message (RFC 4120 §7.2.2).
pub fn kerberos_over_tcp(look: &Look<'_>) -> Guess {
    let fits = be32(look.data, 0).is_some_and(|length| (10..1 << 20).contains(&length));
    Guess::sure(fits && is_kerberos(&look.data[4..]).unwrap_or(false))
}

fn is_kerberos(data: &[u8]) -> Option<bool> {
    let (tag, at, _) = ber(data, 0)?;
    // AS and TGS requests and replies, AP request and reply, SAFE, PRIV, CRED, ERROR.
    let request = matches!(tag, 0x6a | 0x6c);
    if !request && !matches!(tag, 0x6b | 0x6d | 0x6e | 0x6f | 0x74..=0x76 | 0x7e) {
        return Some(false);
    }
    let (sequence, at, _) = ber(data, at)?;
    let (field, at, _) = ber(data, at)?;
    let want = if request { 0xa1 } else { 0xa0 };
    Some(sequence == 0x30 && field == want && data.get(at..at + 3)? == [2, 1, 5])
}

/// DHCP and BOOTP (RFC 2131 §2): the operation and the cookie.
pub fn dhcp(look: &Look<'_>) -> Guess {
    let data = look.data;
    let head = matches!(data, [1 | 2, _, 0..=16, ..]);
    let cookie = data.get(236..240) == Some(&[0x63, 0x82, 0x53, 0x63]);
    // BOOTP without options, or a capture that was cut before them, is told by its port.
    Guess::sure(head && (cookie || (look.on_port && look.claimed >= 236 && data.len() < 240)))
}

/// DHCPv6 (RFC 8415 §8): a message type and options that fill the datagram.
pub fn dhcpv6(look: &Look<'_>) -> Guess {
    let data = look.data;
    let relay = matches!(data.first(), Some(12 | 13));
    let known = matches!(data.first(), Some(1..=13));
    let mut at = if relay { 34 } else { 4 };
    if !look.on_port || !known {
        return Guess::No;
    }
    for _ in 0..32 {
        match be16(data, at + 2) {
            Some(length) => at += 4 + usize::from(length),
            None => break,
        }
    }
    Guess::sure(at <= look.claimed as usize)
}

/// NTP on its port: version and mode, and a length that mode has (RFC 5905 §7.3; RFC 1305 appendix B for control).
pub fn ntp(look: &Look<'_>) -> Guess {
    let Some(&first) = look.data.first() else {
        return Guess::No;
    };
    let (version, mode) = (first >> 3 & 7, first & 7);
    let length = match mode {
        6 => look.claimed >= 12,
        7 => look.claimed >= 8,
        _ => look.claimed >= 48,
    };
    Guess::sure(look.on_port && (1..=4).contains(&version) && (mode != 0 || version == 1) && length)
}

/// SNMP, versions 1, 2c and 3 (RFC 1157, RFC 3416, RFC 3412).
pub fn snmp(look: &Look<'_>) -> Guess {
    Guess::sure(is_snmp(look.data).unwrap_or(false))
}

fn is_snmp(data: &[u8]) -> Option<bool> {
    let (tag, at, _) = ber(data, 0)?;
    let (version_tag, from, length) = ber(data, at)?;
    if tag != 0x30 || version_tag != 2 || length != 1 {
        return Some(false);
    }
    let version = *data.get(from)?;
    let (next, from, length) = ber(data, from + 1)?;
    match version {
        // A community, then one of the operations.
        0 | 1 => {
            let (operation, _, _) = ber(data, from + length)?;
            Some(next == 4 && matches!(operation, 0xa0..=0xa8))
        }
        // The global header: message id first.
        3 => Some(next == 0x30 && *data.get(from)? == 2),
        _ => Some(false),
    }
}

/// RADIUS (RFC 2865 §3): a code, a length that is the datagram's, and attributes that fill it.
pub fn radius(look: &Look<'_>) -> Guess {
    let data = look.data;
    let code = matches!(data.first(), Some(1..=5 | 11..=13 | 40..=45));
    let Some(length) = be16(data, 2).map(usize::from) else {
        return Guess::No;
    };
    if !code || !(20..=4096).contains(&length) || length > look.claimed as usize {
        return Guess::No;
    }
    let mut at = 20;
    let mut attributes = 0;
    while let Some(&[kind, size]) = data.get(at..at + 2).and_then(|b| b.first_chunk()) {
        if at >= length {
            break;
        }
        if size < 2 || kind == 0 || at + usize::from(size) > length {
            return Guess::No;
        }
        attributes += 1;
        at += usize::from(size);
    }
    Guess::sure(look.on_port || (attributes >= 3 && at == length && length == look.claimed as usize))
}
