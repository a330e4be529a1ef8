//! Traffic that is made here.

#![allow(missing_docs, unreachable_pub)] // shared by a benchmark and an example

use crate::craft;

/// 1.5 million packets of 40,000 flows that overlap, 600 octets each on average: HTTP, DNS, bulk, single packets.
pub fn mixed() -> Vec<u8> {
    let mut flows: Vec<Vec<Vec<u8>>> = Vec::new();
    for i in 0..40_000_u32 {
        let client = format!("10.{}.{}.{}:{}", i >> 16, i >> 8 & 0xff, i & 0xff, 20_000 + i % 40_000);
        let (c, web) = (client.as_str(), format!("172.16.{}.{}:80", i % 7, i % 50));
        let s = web.as_str();
        let mut frames = Vec::new();
        match i % 10 {
            0..5 => {
                frames.push(craft::tcp4(c, s, 2, 99, 0, b""));
                frames.push(craft::tcp4(s, c, 0x12, 499, 100, b""));
                frames.push(craft::tcp4(c, s, 0x10, 100, 500, b""));
                let request = format!(
                    "GET /page/{i} HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n\r\n"
                );
                frames.push(craft::tcp4(c, s, 0x18, 100, 500, request.as_bytes()));
                let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 40000\r\n\r\n";
                frames.push(craft::tcp4(s, c, 0x18, 500, 200, head));
                let (start, ack) = (500 + head.len() as u32, 100 + request.len() as u32);
                for part in 0..32 {
                    frames.push(craft::tcp4(s, c, 0x10, start + part * 1250, ack, &[7; 1250]));
                    frames.push(craft::tcp4(c, s, 0x10, ack, start + (part + 1) * 1250, b""));
                }
                frames.push(craft::tcp4(c, s, 0x11, ack, start + 40_000, b""));
                frames.push(craft::tcp4(s, c, 0x11, start + 40_000, ack + 1, b""));
                frames.push(craft::tcp4(c, s, 0x10, ack + 1, start + 40_001, b""));
            }
            5..8 => {
                let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, b'w', b'w', b'w', 7];
                query.extend(b"example\x03com\0\0\x01\0\x01");
                let server = "172.16.0.53:53";
                frames.push(craft::udp4(c, server, &query));
                query[2] = 0x81;
                frames.push(craft::udp4(server, c, &query));
            }
            8 => {
                for _ in 0..20 {
                    frames.push(craft::udp4(c, "172.16.9.9:9999", &[0x80; 200]));
                }
            }
            _ => frames.push(craft::tcp4(c, s, 2, 1, 0, b"")),
        }
        flows.push(frames);
    }
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    // A thousand flows at a time take turns.
    let mut time = 0_u64;
    for group in flows.chunks(1000) {
        let longest = group.iter().map(Vec::len).max().unwrap_or(0);
        for turn in 0..longest {
            for frame in group.iter().filter_map(|frames| frames.get(turn)) {
                time += 2;
                let (seconds, micros) = (1_700_000_000 + time / 1_000_000, time % 1_000_000);
                for word in [seconds as u32, micros as u32, frame.len() as u32, frame.len() as u32] {
                    file.extend(word.to_le_bytes());
                }
                file.extend(frame);
            }
        }
    }
    file
}
