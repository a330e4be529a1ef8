//! Files and screens from afar: SMB, RDP, VNC, Telnet.

use super::{Guess, Look, be16, begins_with};

/// SMB (MS-SMB2 §2.2.1) behind its length; SMB1 too.
pub fn smb(look: &Look<'_>) -> Guess {
    let data = look.data;
    match data.first() {
        Some(0) => {}
        _ => return Guess::No,
    }
    match data.get(4..8) {
        Some(mark) => Guess::sure(matches!(mark[0], 0xfc..=0xff) && &mark[1..] == b"SMB"),
        None if look.on_port => Guess::Maybe,
        None => Guess::No,
    }
}

/// RDP (MS-RDPBCGR §2.2.1.1): a connection request or confirm that negotiates it, or names a cookie, or its port.
pub fn rdp(look: &Look<'_>) -> Guess {
    let data = look.data;
    let (Some([3, 0]), Some(length)) = (data.first_chunk::<2>(), be16(data, 2)) else {
        return Guess::No;
    };
    let length = usize::from(length);
    let Some(body) = data.get(4..length) else {
        return Guess::No;
    };
    let [indicator, kind, _, _, _, _, _, rest @ ..] = body else {
        return Guess::No;
    };
    if usize::from(*indicator) + 5 != length {
        return Guess::No;
    }
    let negotiates = |kinds: &[u8]| {
        rest.len() >= 8 && kinds.contains(&rest[rest.len() - 8]) && rest[rest.len() - 6..rest.len() - 4] == [8, 0]
    };
    Guess::sure(match kind {
        0xe0 => rest.starts_with(b"Cookie: ") || negotiates(&[1]) || (look.on_port && rest.is_empty()),
        0xd0 => negotiates(&[2, 3]) || (look.on_port && rest.is_empty()),
        _ => false,
    })
}

/// RDP over UDP (MS-RDPEUDP §2.2.2): a SYN, which acknowledges nothing.
pub fn rdp_over_udp(look: &Look<'_>) -> Guess {
    let data = look.data;
    let syn = be16(data, 6).is_some_and(|flags| flags & 1 != 0);
    Guess::sure(look.on_port && data.starts_with(&[0xff; 4]) && syn && look.claimed >= 1000)
}

/// VNC (RFC 6143 §7.1.1).
pub fn vnc(look: &Look<'_>) -> Guess {
    match look.data {
        [b'R', b'F', b'B', b' ', a, b, c, b'.', d, e, f, b'\n', ..] => {
            Guess::sure([a, b, c, d, e, f].iter().all(|digit| digit.is_ascii_digit()))
        }
        short if short.len() < 12 => begins_with(short, b"RFB 00").not_yet(),
        _ => Guess::No,
    }
}

impl Guess {
    fn not_yet(self) -> Self {
        if self == Self::No { Self::No } else { Self::Maybe }
    }
}

/// Telnet (RFC 854): option negotiations one after the other.
pub fn telnet(look: &Look<'_>) -> Guess {
    let mut rest = look.data;
    let mut commands = 0;
    while let [0xff, 0xfb..=0xfe, 0..=49 | 0xff, next @ ..] = rest {
        commands += 1;
        rest = next;
    }
    Guess::sure(commands >= 2 || (commands == 1 && look.on_port))
}
