//! Capture files made by code.

use crate::craft;

/// A frame with its time in nanoseconds since the epoch.
pub type Timed = (i64, Vec<u8>);

pub const START: i64 = 1_700_000_000_000_000_000;

/// HTTP conversations between hosts `10.<net>.0.<i>` and `10.<net>.1.1`, one after the other, `gap` nanoseconds between
/// packets. Nine packets each.
pub fn conversations(net: u8, count: usize, gap: i64) -> Vec<Timed> {
    let mut frames = Vec::new();
    for i in 0..count {
        let client = format!("10.{net}.0.{}:{}", i % 200 + 1, 20_000 + i);
        let server = format!("10.{net}.1.1:80");
        let request = format!("GET /{i} HTTP/1.1\r\nHost: shop\r\n\r\n");
        let response = b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n";
        let (q, r) = (request.len() as u32, response.len() as u32);
        let (c, s) = (client.as_str(), server.as_str());
        frames.extend([
            craft::tcp4(c, s, 0x02, 99, 0, b""),
            craft::tcp4(s, c, 0x12, 499, 100, b""),
            craft::tcp4(c, s, 0x10, 100, 500, b""),
            craft::tcp4(c, s, 0x18, 100, 500, request.as_bytes()),
            craft::tcp4(s, c, 0x10, 500, 100 + q, b""),
            craft::tcp4(s, c, 0x18, 500, 100 + q, response),
            craft::tcp4(c, s, 0x11, 100 + q, 500 + r, b""),
            craft::tcp4(s, c, 0x11, 500 + r, 101 + q, b""),
            craft::tcp4(c, s, 0x10, 101 + q, 501 + r, b""),
        ]);
    }
    let times = (0..).map(|i| START + i * gap);
    times.zip(frames).collect()
}

/// A pcap file with times in nanoseconds.
pub fn pcap(frames: &[Timed]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_3c4d_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    for (time, frame) in frames {
        let (seconds, nanos) = (time / 1_000_000_000, time % 1_000_000_000);
        for word in [seconds as u32, nanos as u32, frame.len() as u32, frame.len() as u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    file
}
