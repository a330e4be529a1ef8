use std::net::{Ipv4Addr, SocketAddr};

use garrison_flow::FlowRow;

use super::{
    Counts, Limits, Meter, Sink, craft,
    packet::{LinkType, Packet, flag},
    record::EndReason,
};

#[derive(Default)]
struct Sums {
    records: u64,
    packets: u64,
    aggregated: Vec<(String, u16, u64)>,
    // Packets each way of flows that ended with a FIN.
    finished: Vec<(u64, u64)>,
    named: u64,
}

impl Sink for Sums {
    fn record(&mut self, row: &FlowRow<'_>) {
        self.records += 1;
        let Some(reason) = row.end_reason else { return };
        let (there, back) = (row.src_packets.unwrap(), row.dst_packets.unwrap());
        self.packets += there + back;
        match reason {
            "aggregated" => {
                assert!(row.extra.unwrap().starts_with("{\"aggregated_flows\":"));
                self.aggregated.push((row.dst_ip.to_string(), row.dst_port, there));
            }
            "fin" => self.finished.push((there, back)),
            _ => self.named += 1,
        }
    }
}

struct Flood {
    meter: Meter,
    sums: Sums,
    time: i64,
    sent: u64,
}

impl Flood {
    fn new(flows: usize) -> Self {
        let limits = Limits {
            flows,
            ..Limits::default()
        };
        Self {
            meter: Meter::new("lab", limits, 3),
            sums: Sums::default(),
            time: 1_700_000_000_000_000_000,
            sent: 0,
        }
    }

    // A million packets a second.
    fn frame(&mut self, data: &[u8]) {
        self.time += 1_000;
        self.sent += 1;
        let packet = Packet {
            time: self.time,
            link: LinkType::Ethernet,
            data,
            wire_len: data.len() as u32,
            vlan_tci: None,
        };
        self.meter.process(&[packet], &mut self.sums);
    }

    fn tcp(&mut self, from: SocketAddr, to: SocketAddr, flags: u8, seq: u32, ack: u32, payload: &[u8]) {
        self.frame(&craft::tcp(from, to, flags, seq, ack, payload));
    }

    fn finished(mut self) -> (Sums, Counts) {
        self.meter.finish(EndReason::EndOfFile, &mut self.sums);
        let counts = self.meter.counts();
        assert!(counts.ledger().balances(), "{counts:?}");
        assert_eq!(counts.opened, counts.ended);
        assert_eq!(counts.records, self.sums.records);
        assert_eq!((counts.received, counts.shed), (self.sent, 0));
        assert_eq!(self.sums.packets, self.sent, "every packet is in one record");
        (self.sums, counts)
    }
}

fn client(i: u32) -> SocketAddr {
    (Ipv4Addr::from(0x0a00_0000 + i), 40_000).into()
}

fn spoofed(i: u32) -> SocketAddr {
    let address = 0x2000_0000 | (i.wrapping_mul(2_654_435_761) >> 3);
    (Ipv4Addr::from(address), 1024 + (i % 60_000) as u16).into()
}

const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 443);
const FLOWS: usize = 4096;

// 500 conversations go on while spoofed SYNs come, which the server answers or not.
fn flooded(answered: bool) {
    let mut flood = Flood::new(FLOWS);
    for i in 0..500 {
        flood.tcp(client(i), SERVER, flag::SYN, 99, 0, b"");
        flood.tcp(SERVER, client(i), flag::SYN | flag::ACK, 499, 100, b"");
        flood.tcp(client(i), SERVER, flag::ACK, 100, 500, b"");
    }
    let mut next = 100;
    for i in 0..60_000 {
        flood.tcp(spoofed(i), SERVER, flag::SYN, 1, 0, b"");
        if answered {
            flood.tcp(SERVER, spoofed(i), flag::SYN | flag::ACK, 9, 2, b"");
        }
        if i % 12 == 0 {
            let who = i / 12 % 500;
            if who == 0 && i > 0 {
                next += 4;
            }
            flood.tcp(client(who), SERVER, flag::ACK, next, 500, b"data");
            // A conversation that begins in the middle of it.
            if i % 240 == 0 {
                let late = client(10_000 + i);
                flood.tcp(late, SERVER, flag::SYN, 99, 0, b"");
                flood.tcp(SERVER, late, flag::SYN | flag::ACK, 499, 100, b"");
                flood.tcp(late, SERVER, flag::ACK, 100, 500, b"");
                flood.tcp(late, SERVER, flag::ACK | flag::FIN, 100, 500, b"");
                flood.tcp(SERVER, late, flag::ACK | flag::FIN, 500, 101, b"");
            }
        }
        assert!(flood.meter.active_flows() <= FLOWS);
    }
    for i in 0..500 {
        flood.tcp(client(i), SERVER, flag::ACK | flag::FIN, next + 4, 500, b"");
        flood.tcp(SERVER, client(i), flag::ACK | flag::FIN, 500, next + 5, b"");
    }
    let (sums, counts) = flood.finished();
    let complete = sums
        .finished
        .iter()
        .filter(|&&(there, back)| (there, back) == (13, 2))
        .count();
    assert_eq!(
        complete,
        500,
        "those that were established are complete: {:?}",
        &sums.finished[..4]
    );
    let late = sums.finished.iter().filter(|&&ends| ends == (3, 2)).count();
    assert_eq!(late, 250, "and so are those that began meanwhile");
    // What was in the table when it became full had been told of; the rest is in sums.
    assert!(counts.aggregated > 50_000, "{counts:?}");
    let called: u64 = sums.aggregated.iter().map(|(_, _, packets)| packets).sum();
    assert!(
        sums.aggregated
            .iter()
            .all(|(dst, port, _)| dst == "192.0.2.1" && *port == 443)
    );
    assert!(called >= counts.aggregated);
    assert!(sums.records < 4 * FLOWS as u64, "{} records for a flood", sums.records);
}

#[test]
fn a_syn_flood_is_summed_and_conversations_survive() {
    flooded(false);
}

#[test]
fn a_syn_flood_that_is_answered_is_summed_too() {
    flooded(true);
}

#[test]
fn a_flood_from_and_to_everywhere_leaves_memory_flat() {
    let mut flood = Flood::new(FLOWS);
    for i in 0..50_000_u32 {
        let to = spoofed(i.wrapping_mul(7919));
        flood.frame(&craft::udp(spoofed(i), to, b"x"));
        assert!(flood.meter.active_flows() <= FLOWS);
    }
    let (sums, counts) = flood.finished();
    assert!(counts.aggregated > 40_000);
    // Destinations without number share a sum for the rest.
    assert!(sums.records < 4 * FLOWS as u64, "{}", sums.records);
}
