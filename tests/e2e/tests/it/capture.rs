//! Small captures made by code: Ethernet, IPv4, TCP and UDP with right lengths and checksums, in pcap files.

use std::{net::Ipv4Addr, path::Path};

/// A packet with its time since the start of the capture.
#[derive(Clone, Debug)]
pub struct Packet {
    pub at_us: u64,
    pub frame: Vec<u8>,
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// One side of a conversation.
pub type End = (Ipv4Addr, u16);

/// A whole TCP connection with one request and one answer, beginning at a time. Ten packets.
pub fn connection(at_us: u64, client: End, server: End, request: &[u8], answer: &[u8]) -> Vec<Packet> {
    let (mut up, mut down) = (1_000_u32, 9_000_u32);
    let mut packets = Vec::new();
    let mut step = 0;
    let mut send = |from_client: bool, flags: u8, data: &[u8]| {
        let (from, to, seq, ack) = if from_client {
            (client, server, up, down)
        } else {
            (server, client, down, up)
        };
        let segment = tcp(from, to, seq, if flags & ACK != 0 { ack } else { 0 }, flags, data);
        packets.push(Packet {
            at_us: at_us + step * 1_000,
            frame: ethernet(from.0, to.0, 6, &segment),
        });
        step += 1;
        let advance = data.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
        if from_client {
            up = up.wrapping_add(advance);
        } else {
            down = down.wrapping_add(advance);
        }
    };
    send(true, SYN, &[]);
    send(false, SYN | ACK, &[]);
    send(true, ACK, &[]);
    send(true, PSH | ACK, request);
    send(false, ACK, &[]);
    send(false, PSH | ACK, answer);
    send(true, ACK, &[]);
    send(true, FIN | ACK, &[]);
    send(false, FIN | ACK, &[]);
    send(true, ACK, &[]);
    packets
}

/// A connection attempt that is refused. Two packets.
pub fn refusal(at_us: u64, client: End, server: End) -> Vec<Packet> {
    const RST: u8 = 4;
    let syn = tcp(client, server, 7, 0, SYN, &[]);
    let rst = tcp(server, client, 0, 8, RST | ACK, &[]);
    vec![
        Packet {
            at_us,
            frame: ethernet(client.0, server.0, 6, &syn),
        },
        Packet {
            at_us: at_us + 200,
            frame: ethernet(server.0, client.0, 6, &rst),
        },
    ]
}

/// A DNS question and its answer. Two packets.
pub fn lookup(at_us: u64, client: End, server: Ipv4Addr, name: &str) -> Vec<Packet> {
    let mut question = Vec::new();
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let message = |flags: [u8; 2], answers: u8| {
        let mut bytes = vec![0x12, 0x34, flags[0], flags[1], 0, 1, 0, answers, 0, 0, 0, 0];
        bytes.extend_from_slice(&question);
        if answers > 0 {
            bytes.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        }
        bytes
    };
    let server = (server, 53);
    let ask = udp(client, server, &message([1, 0], 0));
    let tell = udp(server, client, &message([0x81, 0x80], 1));
    vec![
        Packet {
            at_us,
            frame: ethernet(client.0, server.0, 17, &ask),
        },
        Packet {
            at_us: at_us + 3_000,
            frame: ethernet(server.0, client.0, 17, &tell),
        },
    ]
}

fn ethernet(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mac = |address: Ipv4Addr| {
        let [a, b, c, d] = address.octets();
        [2, 0, a, b, c, d]
    };
    let mut frame = Vec::new();
    frame.extend_from_slice(&mac(to));
    frame.extend_from_slice(&mac(from));
    frame.extend_from_slice(&[8, 0]);
    let total = (20 + payload.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend_from_slice(&total.to_be_bytes());
    header.extend_from_slice(&[0, 1, 0x40, 0, 64, protocol, 0, 0]);
    header.extend_from_slice(&from.octets());
    header.extend_from_slice(&to.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend_from_slice(&header);
    frame.extend_from_slice(payload);
    frame
}

fn tcp(from: End, to: End, seq: u32, ack: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend_from_slice(&from.1.to_be_bytes());
    segment.extend_from_slice(&to.1.to_be_bytes());
    segment.extend_from_slice(&seq.to_be_bytes());
    segment.extend_from_slice(&ack.to_be_bytes());
    segment.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend_from_slice(data);
    let sum = transport_checksum(from.0, to.0, 6, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

fn udp(from: End, to: End, data: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend_from_slice(&from.1.to_be_bytes());
    datagram.extend_from_slice(&to.1.to_be_bytes());
    datagram.extend_from_slice(&((8 + data.len()) as u16).to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(data);
    let sum = transport_checksum(from.0, to.0, 17, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

fn transport_checksum(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, segment: &[u8]) -> u16 {
    let length = (segment.len() as u16).to_be_bytes();
    checksum(&[&from.octets(), &to.octets(), &[0, protocol], &length, segment])
}

// RFC 1071. Every part but the last has an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Writes a pcap file (microseconds, Ethernet) whose first packet was captured at `start_s` seconds since 1970.
pub fn write(path: &Path, start_s: u32, mut packets: Vec<Packet>) {
    packets.sort_by_key(|packet| packet.at_us);
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for packet in packets {
        let seconds = start_s + (packet.at_us / 1_000_000) as u32;
        let length = packet.frame.len() as u32;
        for word in [seconds, (packet.at_us % 1_000_000) as u32, length, length] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(&packet.frame);
    }
    std::fs::write(path, file).unwrap();
}
