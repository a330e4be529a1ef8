//! Builds frames and messages for tests, so that no capture has to be kept.

#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)] // test support, shared by two test binaries

use std::net::{IpAddr, SocketAddr};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SRC_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const DST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

pub fn ip(src: IpAddr, dst: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = [DST_MAC, SRC_MAC].concat();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + body.len() as u16).to_be_bytes());
            frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
            let sum = checksum(&frame[14..34], 0);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((body.len() as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
        }
        _ => panic!("both addresses must be of one family"),
    }
    frame.extend(body);
    frame
}

// RFC 1071.
fn checksum(data: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in data.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> u32 {
    let mut bytes = Vec::new();
    for address in [src, dst] {
        match address {
            IpAddr::V4(v4) => bytes.extend(v4.octets()),
            IpAddr::V6(v6) => bytes.extend(v6.octets()),
        }
    }
    bytes.extend([0, protocol]);
    bytes.extend((len as u16).to_be_bytes());
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum()
}

pub fn tcp(src: SocketAddr, dst: SocketAddr, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(src.port().to_be_bytes());
    body.extend(dst.port().to_be_bytes());
    body.extend(seq.to_be_bytes());
    body.extend(ack.to_be_bytes());
    body.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    body.extend(payload);
    let sum = checksum(&body, pseudo(src.ip(), dst.ip(), TCP, body.len()));
    body[16..18].copy_from_slice(&sum.to_be_bytes());
    ip(src.ip(), dst.ip(), TCP, &body)
}

pub fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(src.port().to_be_bytes());
    body.extend(dst.port().to_be_bytes());
    body.extend((8 + payload.len() as u16).to_be_bytes());
    body.extend([0, 0]);
    body.extend(payload);
    let sum = checksum(&body, pseudo(src.ip(), dst.ip(), UDP, body.len()));
    body[6..8].copy_from_slice(&sum.to_be_bytes());
    ip(src.ip(), dst.ip(), UDP, &body)
}

pub fn icmp(src: IpAddr, dst: IpAddr, kind: u8, code: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![kind, code, 0, 0, 0, 1, 0, 1];
    body.extend(payload);
    let protocol = if src.is_ipv4() { ICMP } else { ICMPV6 };
    ip(src, dst, protocol, &body)
}

pub fn tcp4(src: &str, dst: &str, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    tcp(src.parse().unwrap(), dst.parse().unwrap(), flags, seq, ack, payload)
}

pub fn udp4(src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
    udp(src.parse().unwrap(), dst.parse().unwrap(), payload)
}

pub fn udp6(src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
    udp4(src, dst, payload)
}
