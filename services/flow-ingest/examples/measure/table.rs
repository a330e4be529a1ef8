//! The flow table under pressure: ten million flows at once, and a flood of new ones beside real conversations.

use flow_ingest::domain::{
    Limits, Meter, Sink,
    packet::{LinkType, Packet, flag},
    record::EndReason,
};
use garrison_flow::FlowRow;
use serde_json::{Value, json};

use crate::{
    craft,
    meter::{Nothing, on_core, peak, resident},
};

const START: i64 = 1_700_000_000_000_000_000;
const BURST: usize = 32;

// Frames of one shape whose addresses and ports change.
struct Frames {
    frames: Vec<Vec<u8>>,
    times: Vec<i64>,
}

impl Frames {
    fn new(shape: &[u8]) -> Self {
        Self {
            frames: vec![shape.to_vec(); BURST],
            times: vec![0; BURST],
        }
    }

    // Fills a burst, in which frame `i` comes from the `n + i`th source, and gives it to the meter.
    fn feed(&mut self, n: u64, step: i64, time: &mut i64, meter: &mut Meter, sink: &mut impl Sink) {
        for (place, frame) in self.frames.iter_mut().enumerate() {
            let source = n + place as u64;
            // Scattered as the sources of a flood are, each one once.
            let scattered = (source as u32).wrapping_mul(0x9e37_79b1);
            frame[26..30].copy_from_slice(&scattered.to_be_bytes());
            frame[34..36].copy_from_slice(&((source >> 32) as u16 | 1024).to_be_bytes());
            *time += step;
            self.times[place] = *time;
        }
        let packets: [Packet<'_>; BURST] = std::array::from_fn(|i| packet(&self.frames[i], self.times[i]));
        meter.process(&packets, sink);
    }
}

fn packet(data: &[u8], time: i64) -> Packet<'_> {
    Packet {
        time,
        link: LinkType::Ethernet,
        data,
        wire_len: data.len() as u32,
        vlan_tci: None,
    }
}

/// Puts so many flows into a table that holds as many.
pub fn full(flows: u64) -> Value {
    let shape = craft::tcp4("10.0.0.1:1024", "192.0.2.1:80", flag::SYN, 1, 0, b"");
    let mut frames = Frames::new(&shape);
    let before = resident();
    let limits = Limits {
        flows: flows as usize,
        ..Limits::default()
    };
    let (mut meter, mut sink, mut time) = (Meter::new("table", limits, 7), Nothing(0), START);
    let core = on_core();
    for n in (0..flows).step_by(BURST) {
        frames.feed(n, 100, &mut time, &mut meter, &mut sink);
    }
    let core = on_core() - core;
    let grown = resident().saturating_sub(before);
    json!({
        "flows": meter.active_flows(), "core_ns": core.as_nanos() as u64,
        "octets_a_flow": grown as f64 * 1024.0 / meter.active_flows() as f64,
    })
}

// Counts what conversations with this server ended as.
struct Conversations {
    whole: u64,
    broken: u64,
}

const TURNS: u64 = 20;
const SERVER: [u8; 4] = [198, 51, 100, 1];

impl Sink for Conversations {
    fn record(&mut self, row: &FlowRow<'_>) {
        if row.state == 3 && row.dst_ip == std::net::IpAddr::from(SERVER) {
            // The handshake's three, two each turn, two FINs and the last acknowledgment.
            let counted = (row.src_packets, row.dst_packets) == (Some(2 + TURNS + 2), Some(1 + TURNS + 1));
            match counted && row.end_reason == Some("fin") {
                true => self.whole += 1,
                false => self.broken += 1,
            }
        }
    }
}

/// Floods a table of the usual size with new flows, a million a second of the packets' time, while conversations go on.
pub fn flood(seconds: u64, conversations: u32) -> Value {
    const EACH_SECOND: u64 = 1_000_000;
    let shape = craft::tcp4("10.0.0.1:1024", "203.0.113.9:443", flag::SYN, 1, 0, b"");
    let mut frames = Frames::new(&shape);
    let mut sink = Conversations { whole: 0, broken: 0 };
    let (mut meter, mut time) = (Meter::new("flood", Limits::default(), 7), START);
    let client = |n: u32| format!("100.64.{}.{}:{}", n >> 8, n & 0xff, 30_000);
    let server = "198.51.100.1:8080";
    let say = |n: u32, turn: u64, meter: &mut Meter, sink: &mut Conversations, time: i64| {
        let (c, s) = (client(n), server);
        let (seq, ack) = (100 + 10 * turn as u32, 500 + 20 * turn as u32);
        let frames = match turn {
            u64::MAX => {
                let (seq, ack) = (100 + 10 * TURNS as u32, 500 + 20 * TURNS as u32);
                vec![
                    craft::tcp4(&c, s, 0x11, seq, ack, b""),
                    craft::tcp4(s, &c, 0x11, ack, seq + 1, b""),
                    craft::tcp4(&c, s, 0x10, seq + 1, ack + 1, b""),
                ]
            }
            turn => {
                let mut frames = Vec::new();
                if turn == 0 {
                    frames.push(craft::tcp4(&c, s, 2, 99, 0, b""));
                    frames.push(craft::tcp4(s, &c, 0x12, 499, 100, b""));
                    frames.push(craft::tcp4(&c, s, 0x10, 100, 500, b""));
                }
                frames.push(craft::tcp4(&c, s, 0x18, seq, ack, b"0123456789"));
                frames.push(craft::tcp4(s, &c, 0x18, ack, seq + 10, b"01234567890123456789"));
                frames
            }
        };
        for frame in &frames {
            meter.process(&[packet(frame, time)], sink);
        }
    };
    for n in 0..conversations {
        say(n, 0, &mut meter, &mut sink, time);
    }
    let (mut sizes, mut sent, mut flood_ns) = (Vec::new(), 0, 0);
    for second in 0..seconds {
        // The conversations' turns are spread over the flood's first nine tenths.
        let turn = (second + 1) * (TURNS - 1) / seconds;
        let from = second * (TURNS - 1) / seconds;
        for turn in from..turn {
            for n in 0..conversations {
                say(n, turn + 1, &mut meter, &mut sink, time);
            }
        }
        let core = on_core();
        for _ in (0..EACH_SECOND).step_by(BURST) {
            frames.feed(sent, 1_000, &mut time, &mut meter, &mut sink);
            sent += BURST as u64;
        }
        flood_ns += (on_core() - core).as_nanos() as u64;
        sizes.push(resident());
    }
    for n in 0..conversations {
        say(n, u64::MAX, &mut meter, &mut sink, time);
    }
    meter.finish(EndReason::EndOfFile, &mut sink);
    let counts = meter.counts();
    json!({
        "sent": sent, "core_ns": flood_ns, "whole": sink.whole, "broken": sink.broken, "balances": counts.ledger().balances(),
        "evicted": counts.evicted, "aggregated": counts.aggregated, "records": counts.records, "shed": counts.shed,
        "resident_kib_each_second": sizes, "peak_kib": peak(),
    })
}
