//! Name services: DNS and what uses its messages.

use super::{Guess, Look, be16};
use crate::domain::app::dns;

/// DNS over UDP (RFC 1035): any message on its port, elsewhere one that cannot be anything else.
pub fn dns(look: &Look<'_>) -> Guess {
    Guess::sure(match look.on_port {
        true => dns::is_plausible(look.data),
        false => dns::is_message(look.data),
    })
}

/// DNS over TCP: a length before each message (RFC 1035 §4.2.2).
pub fn dns_over_tcp(look: &Look<'_>) -> Guess {
    let Some(length) = be16(look.data, 0) else {
        return if look.on_port { Guess::Maybe } else { Guess::No };
    };
    let message = &look.data[2..];
    if !look.on_port {
        let whole = usize::from(length) == message.len();
        return Guess::sure(whole && dns::is_message(message));
    }
    match message.len() >= 12 || message.len() >= usize::from(length) {
        true => Guess::sure(length >= 12 && dns::has_header(message)),
        false => Guess::Maybe,
    }
}

/// Multicast DNS (RFC 6762).
pub fn mdns(look: &Look<'_>) -> Guess {
    Guess::sure(look.on_port && dns::is_plausible(look.data))
}

/// Link-local multicast name resolution (RFC 4795).
pub fn llmnr(look: &Look<'_>) -> Guess {
    Guess::sure(look.on_port && dns::is_plausible(look.data))
}

/// NetBIOS name service (RFC 1002 §4.2).
pub fn netbios_name(look: &Look<'_>) -> Guess {
    Guess::sure(look.on_port && look.data.len() >= 12 && dns::is_netbios(look.data))
}

/// NetBIOS datagram service (RFC 1002 §4.4): type, flags, and the source's address and port.
pub fn netbios_datagram(look: &Look<'_>) -> Guess {
    let data = look.data;
    let kind = data.first().is_some_and(|kind| (0x10..=0x16).contains(kind));
    Guess::sure(look.on_port && kind && data.len() >= 14 && matches!(be16(data, 8), Some(138 | 0)))
}
