//! Databases, queues, machines and peers: MySQL, PostgreSQL, Redis, MongoDB, Kafka, MQTT, Modbus, DNP3, BitTorrent.

use super::{Guess, Look, be16, be32, begins_with, printable};

/// MySQL: the server's greeting of protocol 10 (MySQL manual, "Protocol::HandshakeV10").
pub fn mysql(look: &Look<'_>) -> Guess {
    let data = look.data;
    let Some(&[a, b, c, 0, 10]) = data.first_chunk::<5>() else {
        return Guess::No;
    };
    let length = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
    let version = &data[5..data.len().min(5 + 64)];
    let Some(end) = version.iter().position(|&b| b == 0) else {
        return Guess::No;
    };
    let named = end >= 3 && version[0].is_ascii_digit() && printable(&version[..end]);
    Guess::sure(look.side == 1 && named && (40..512).contains(&length))
}

/// PostgreSQL: a start-up, a request for encryption, or a server's answer to them (PostgreSQL manual, "Message Formats").
pub fn postgresql(look: &Look<'_>) -> Guess {
    let data = look.data;
    let (Some(length), Some(code)) = (be32(data, 0), be32(data, 4)) else {
        return Guess::No;
    };
    if look.side == 0 {
        return Guess::sure(match code {
            // SSLRequest, GSSENCRequest, CancelRequest.
            80_877_103 | 80_877_104 => length == 8,
            80_877_102 => length == 16,
            // Version 3 and the first of its parameters.
            196_608 => {
                (9..10_000).contains(&length)
                    && data.get(8..).is_some_and(|rest| {
                        rest.starts_with(b"user\0")
                            || rest.starts_with(b"database\0")
                            || rest.starts_with(b"client_encoding\0")
                            || rest.starts_with(b"application_name\0")
                    })
            }
            _ => false,
        });
    }
    // Authentication request: a length from 8, and a kind.
    let authentication = data[0] == b'R' && be32(data, 1).is_some_and(|l| (8..200).contains(&l));
    let kind = be32(data, 5).is_some_and(|kind| kind <= 12);
    Guess::sure(authentication && kind && look.on_port)
}

/// Redis: an array of strings as clients send it (Redis manual, "RESP"), or on its port any reply.
pub fn redis(look: &Look<'_>) -> Guess {
    let data = look.data;
    let Some(end) = data.windows(2).take(40).position(|pair| pair == b"\r\n") else {
        return Guess::No;
    };
    let number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if data[0] == b'*' && number(&data[1..end]) && data[end + 2..].first() == Some(&b'$') {
        return Guess::Yes;
    }
    let reply = match data[0] {
        b'+' => &data[1..end] == b"PONG" || (look.on_port && &data[1..end] == b"OK"),
        b'-' => {
            data[1..].starts_with(b"NOAUTH ")
                || data[1..].starts_with(b"WRONGTYPE ")
                || data[1..].starts_with(b"DENIED Redis")
        }
        b':' | b'$' => look.on_port && number(&data[1..end]),
        _ => look.on_port && data[..end].eq_ignore_ascii_case(b"PING"),
    };
    Guess::sure(reply)
}

/// MongoDB: a message header with one of its operations (MongoDB manual, "Wire Protocol").
pub fn mongodb(look: &Look<'_>) -> Guess {
    let data = look.data;
    let le = |at: usize| {
        data.get(at..at + 4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    };
    let (Some(length), Some(request), Some(response), Some(operation)) = (le(0), le(4), le(8), le(12)) else {
        return Guess::No;
    };
    let size = (16..=48_000_000).contains(&length) && (length as usize >= data.len() || look.on_port);
    let ids = match look.side {
        0 => response == 0,
        _ => request != 0 || response != 0,
    };
    Guess::sure(
        size && ids
            && match operation {
                // Flags that must be known, then a section.
                2013 => le(16).is_some_and(|flags| flags & 0xfffe_fffc == 0) && matches!(data.get(20), Some(0 | 1)),
                // The original operation, not itself compressed.
                2012 => matches!(le(16), Some(1 | 2001..=2013)),
                // A collection's name.
                2004 => data.get(20..).is_some_and(|name| {
                    let end = name.iter().take(128).position(|&b| b == 0).unwrap_or(0);
                    end > 0 && name[..end].contains(&b'.') && printable(&name[..end])
                }),
                1 => look.side == 1 && length >= 36,
                2001 | 2002 | 2005..=2007 | 2010 | 2011 => look.on_port,
                _ => false,
            },
    )
}

/// Kafka: a request whose length is right, with a key, a version and a client's name (Kafka manual, "Protocol").
pub fn kafka(look: &Look<'_>) -> Guess {
    let data = look.data;
    let (Some(length), Some(key), Some(version), Some(name)) =
        (be32(data, 0), be16(data, 4), be16(data, 6), be16(data, 12))
    else {
        return Guess::No;
    };
    let size = (10..=100 << 20).contains(&length)
        && (length as usize + 4 == data.len() || (look.on_port && length as usize + 4 > data.len()));
    let name = usize::from(name);
    let named = match data.get(14..14 + name) {
        Some(client) => name >= 1 && client.iter().all(|b| b.is_ascii_graphic()),
        None => look.on_port && name == 0xffff,
    };
    Guess::sure(look.side == 0 && size && key <= 90 && version <= 20 && named)
}

/// MQTT: CONNECT with the protocol's name, or on its port a CONNACK (MQTT 3.1.1 and 5.0 §3.1, §3.2).
pub fn mqtt(look: &Look<'_>) -> Guess {
    let data = look.data;
    match data.first() {
        Some(0x10) => {
            // The remaining length is in one to four octets.
            let Some(at) = data.iter().skip(1).take(4).position(|b| b & 0x80 == 0) else {
                return Guess::No;
            };
            let name = data.get(at + 2..).unwrap_or_default();
            Guess::sure(name.starts_with(b"\x00\x04MQTT") || name.starts_with(b"\x00\x06MQIsdp"))
        }
        Some(0x20) => Guess::sure(look.on_port && matches!(data, [0x20, 2, 0 | 1, 0..=5])),
        _ => Guess::No,
    }
}

/// Modbus/TCP on its port: protocol 0, a length that is right, a function code (Modbus messaging guide §3.1.3).
pub fn modbus(look: &Look<'_>) -> Guess {
    let data = look.data;
    let Some(length) = be16(data, 4).map(usize::from) else {
        return Guess::No;
    };
    let fits = (2..=254).contains(&length) && length + 6 <= data.len();
    let function = data.get(7).is_some_and(|code| (1..=127).contains(&(code & 0x7f)));
    Guess::sure(look.on_port && be16(data, 2) == Some(0) && fits && function)
}

/// DNP3 (IEEE 1815 §9.2): start octets and a link header whose checksum holds.
pub fn dnp3(look: &Look<'_>) -> Guess {
    let Some(header) = look.data.first_chunk::<10>() else {
        return Guess::No;
    };
    let crc = u16::from_le_bytes([header[8], header[9]]);
    Guess::sure(header[..2] == [0x05, 0x64] && header[2] >= 5 && crc == dnp3_crc(&header[..8]))
}

// CRC-16/DNP: polynomial 0x3d65, reflected.
pub(super) fn dnp3_crc(data: &[u8]) -> u16 {
    let mut crc = 0_u16;
    for &octet in data {
        crc ^= u16::from(octet);
        for _ in 0..8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ 0xa6bc } else { crc >> 1 };
        }
    }
    !crc
}

/// BitTorrent between peers (BEP 3).
pub fn bittorrent_over_tcp(look: &Look<'_>) -> Guess {
    begins_with(look.data, b"\x13BitTorrent protocol")
}

/// BitTorrent over UDP: the distributed table (BEP 5), trackers (BEP 15), peers over uTP (BEP 29), local search (BEP 14).
pub fn bittorrent_over_udp(look: &Look<'_>) -> Guess {
    let data = look.data;
    let table = data.starts_with(b"d1:ad2:id20:")
        || data.starts_with(b"d1:rd2:id20:")
        || data.starts_with(b"d2:ip6:")
        || data.starts_with(b"d1:eli20");
    let tracker = look.claimed == 16 && data.starts_with(&[0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80]);
    let search = data.starts_with(b"BT-SEARCH * HTTP/1.1");
    // Version 1; a SYN has no payload and its octets are told by what they must be.
    let utp = match data {
        [0x41, 0 | 2, _, _, _, _, _, _, 0, 0, 0, 0, _, _, _, _, _, _, 0, 0, ..] => look.claimed <= 30,
        [0x01, 0..=2, ..] => data
            .get(20..48)
            .is_some_and(|rest| rest.windows(20).any(|w| w == b"\x13BitTorrent protocol")),
        _ => false,
    };
    Guess::sure(table || tracker || search || utp)
}
