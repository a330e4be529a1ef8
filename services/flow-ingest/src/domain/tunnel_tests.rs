use proptest::prelude::*;

use super::decode::GRE;
use super::{Limits, Meter, Sink, packet::*, record::EndReason};
use crate::domain::craft;

struct Row {
    ends: String,
    protocol: u8,
    service: Option<String>,
    tunnel: Option<String>,
    id: Option<u32>,
    packets: u64,
}

struct Rows(Vec<Row>);

impl Sink for Rows {
    fn record(&mut self, row: &garrison_flow::FlowRow<'_>) {
        if row.end_reason.is_some() {
            self.0.push(Row {
                ends: format!("{} {}", row.src_ip, row.dst_ip),
                protocol: row.protocol,
                service: row.service.map(str::to_owned),
                tunnel: row.tunnel_kind.map(str::to_owned),
                id: row.tunnel_id,
                packets: row.src_packets.unwrap_or_default(),
            });
        }
    }
}

fn metered_with(limits: Limits, frames: &[Vec<u8>]) -> (Vec<Row>, super::Counts) {
    let mut meter = Meter::new("s", limits, 1);
    let mut rows = Rows(Vec::new());
    for (i, data) in frames.iter().enumerate() {
        let packet = Packet {
            time: 1_700_000_000_000_000_000 + i as i64,
            link: LinkType::Ethernet,
            data,
            wire_len: data.len() as u32,
            vlan_tci: None,
        };
        meter.process(&[packet], &mut rows);
    }
    meter.finish(EndReason::EndOfFile, &mut rows);
    (rows.0, meter.counts())
}

fn metered(frame: &[u8]) -> Vec<Row> {
    metered_with(Limits::default(), &[frame.to_vec()]).0
}

fn inner_frame() -> Vec<u8> {
    craft::udp4("172.16.0.1:4000", "172.16.0.2:4001", b"inside")
}

fn inner_ip() -> Vec<u8> {
    inner_frame()[14..].to_vec()
}

fn over_ip(protocol: u8, body: &[u8]) -> Vec<u8> {
    craft::ip("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), protocol, body)
}

fn gre(flags: u16, protocol: u16, rest: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = [flags.to_be_bytes(), protocol.to_be_bytes()].concat();
    over_ip(GRE, &[&header, rest, payload].concat())
}

// Exactly the inner flow, through this tunnel.
fn only_inner(frame: &[u8], kind: &str, id: Option<u32>) {
    let rows = metered(frame);
    assert_eq!(rows.len(), 1, "{kind}");
    assert_eq!(rows[0].ends, "172.16.0.1 172.16.0.2");
    assert_eq!((rows[0].tunnel.as_deref(), rows[0].id), (Some(kind), id));
}

#[test]
fn tunnels_over_ip_and_ethernet_give_the_inner_flow() {
    only_inner(&over_ip(4, &inner_ip()), "ipip", None);
    only_inner(&gre(0, 0x0800, b"", &inner_ip()), "gre", None);
    // Checksum and key (RFC 2890).
    let rest = [0, 0, 0, 0, 0, 0, 0x12, 0x34];
    only_inner(&gre(0xa000, 0x0800, &rest, &inner_ip()), "gre", Some(0x1234));
    only_inner(&gre(0, 0x6558, b"", &inner_frame()), "gre", None);
    // PPTP: key of length and call, sequence number; PPP with address and control.
    let rest = [0, 50, 0, 77, 0, 0, 0, 1];
    let ppp = [&[0xff, 3, 0, 0x21][..], &inner_ip()].concat();
    only_inner(&gre(0x3001, 0x880b, &rest, &ppp), "pptp", Some(77));
    // ERSPAN I, II (session 5 behind version and VLAN), III with its optional platform header.
    only_inner(&gre(0, 0x88be, b"", &inner_frame()), "erspan", None);
    let rest = [0, 0, 0, 1, 0x10, 0, 0, 5, 0, 0, 0, 0];
    only_inner(&gre(0x1000, 0x88be, &rest, &inner_frame()), "erspan", Some(5));
    let rest = [&[0, 0, 0, 1, 0x20, 0, 0, 9][..], &[0; 7], &[1], &[0; 8]].concat();
    only_inner(&gre(0x1000, 0x22eb, &rest, &inner_frame()), "erspan", Some(9));

    let macs = [0x22; 12];
    let pbb = [&macs[..], &[0x88, 0xe7, 0, 1, 2, 3], &inner_frame()].concat();
    only_inner(&pbb, "pbb", Some(0x1_0203));
    let fabric = [&macs[..], &[0x89, 0x03, 0x00, 0x60], &inner_frame()].concat();
    only_inner(&fabric, "fabricpath", Some(1));
}

#[test]
fn six_in_four_gives_the_inner_flow() {
    let inner = craft::udp6("[2001:db8::1]:1", "[2001:db8::2]:2", b"x");
    let rows = metered(&over_ip(41, &inner[14..]));
    assert_eq!(rows[0].ends, "2001:db8::1 2001:db8::2");
    assert_eq!(rows[0].tunnel.as_deref(), Some("6in4"));
}

fn over_udp(port: u16, header: &[u8], inner: &[u8]) -> Vec<u8> {
    let payload = [header, inner].concat();
    craft::udp4("10.0.0.1:33000", &format!("10.0.0.2:{port}"), &payload)
}

#[test]
fn tunnels_over_udp_give_the_outer_flow_and_the_inner_one() {
    let vxlan = [8, 0, 0, 0, 0, 0, 42, 0];
    // Geneve with one option of a word.
    let geneve = [1, 0, 0x65, 0x58, 0, 0, 43, 0, 1, 2, 3, 4];
    let length = (inner_ip().len() as u16).to_be_bytes();
    let gtpu = [0x30, 0xff, length[0], length[1], 0, 0, 0, 44];
    for (kind, id, frame) in [
        ("vxlan", 42, over_udp(4789, &vxlan, &inner_frame())),
        ("geneve", 43, over_udp(6081, &geneve, &inner_frame())),
        ("gtpu", 44, over_udp(2152, &gtpu, &inner_ip())),
    ] {
        let (rows, counts) = metered_with(Limits::default(), &[frame.clone(), frame.clone()]);
        assert_eq!(rows.len(), 2, "{kind}");
        let inner = rows.iter().find(|row| row.ends.starts_with("172")).unwrap();
        let outer = rows.iter().find(|row| row.ends.starts_with("10.")).unwrap();
        assert_eq!((inner.tunnel.as_deref(), inner.id), (Some(kind), Some(id)));
        assert_eq!((outer.tunnel.as_deref(), outer.service.as_deref()), (None, Some(kind)));
        assert_eq!((inner.packets, outer.packets), (2, 2));
        assert_eq!((counts.received, counts.parsed), (2, 2), "a packet counts once");

        let packet = Packet {
            time: 0,
            link: LinkType::Ethernet,
            data: &frame,
            wire_len: frame.len() as u32,
            vlan_tci: None,
        };
        let Verdict::Flow(decoded) = super::tunnel::innermost(&packet) else {
            panic!("{kind}");
        };
        assert_eq!(address(&decoded.src).to_string(), "172.16.0.1", "told without its flow");

        let mut limits = Limits::default();
        limits.decoder.tunnels = 0;
        assert_eq!(metered_with(limits, &[frame]).0.len(), 1, "not followed");
    }
}

#[test]
fn teredo_is_told_by_its_content() {
    let inner = craft::udp6("[2001:0:4137:9e50::1]:1", "[2001:db8::2]:2", b"x");
    // Authentication with nothing in it, origin, packet; on a port that is not Teredo's.
    let header = [&[0, 1, 0, 0][..], &[7; 9], &[0, 0, 1, 2, 3, 4, 5, 6]].concat();
    let rows = metered(&over_udp(40_000, &header, &inner[14..]));
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().any(|row| row.tunnel.as_deref() == Some("teredo")));
    assert!(rows.iter().any(|row| row.service.as_deref() == Some("teredo")));
}

#[test]
fn tunnels_inside_tunnels_end_at_the_depth() {
    let mut packet = inner_ip();
    for _ in 0..6 {
        packet = over_ip(4, &packet)[14..].to_vec();
    }
    let frame = [&craft::udp4("1.1.1.1:1", "2.2.2.2:2", b"")[..14], &packet].concat();
    let rows = metered(&frame);
    assert_eq!((rows.len(), rows[0].protocol), (1, 4), "four are followed");
    let mut limits = Limits::default();
    limits.decoder.tunnels = 6;
    assert_eq!(metered_with(limits, &[frame]).0[0].protocol, 17);
}

// Cuts an IPv4 frame's body into parts of `size` octets.
fn parts(frame: &[u8], size: usize) -> Vec<Vec<u8>> {
    let body = &frame[34..];
    let count = body.len().div_ceil(size);
    body.chunks(size)
        .enumerate()
        .map(|(i, part)| {
            let mut out = [&frame[..34], part].concat();
            let more = if i + 1 < count { 0x2000 } else { 0 };
            let place = (more | (i * size / 8) as u16).to_be_bytes();
            out[16..18].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
            out[20..22].copy_from_slice(&place);
            out
        })
        .collect()
}

#[test]
fn content_that_spans_parts_is_read() {
    let frame = over_udp(4789, &[8, 0, 0, 0, 0, 0, 42, 0], &inner_frame());
    let mut parts = parts(&frame, 16);
    let count = parts.len() as u64;
    for order in 0..2 {
        if order == 1 {
            parts.swap(1, 2);
        }
        let (rows, counts) = metered_with(Limits::default(), &parts);
        assert_eq!(counts.parsed, count);
        let inner = rows.iter().find(|row| row.ends.starts_with("172")).unwrap();
        let outer = rows.iter().find(|row| row.ends.starts_with("10.")).unwrap();
        assert_eq!((inner.packets, outer.packets), (1, count), "parts are packets");
        assert_eq!(outer.service.as_deref(), Some("vxlan"));
    }
}

#[test]
fn wrong_checksums_are_malformed_where_they_are_verified() {
    let right = craft::tcp4("10.0.0.1:1", "10.0.0.2:2", flag::SYN, 5, 0, b"abc");
    let mut limits = Limits::default();
    limits.decoder.checksums = true;
    for at in [24, 50, right.len() - 1] {
        let mut wrong = right.clone();
        wrong[at] ^= 1;
        let (_, counts) = metered_with(limits, &[right.clone(), wrong.clone()]);
        assert_eq!((counts.parsed, counts.malformed), (1, 1), "{at}");
        assert_eq!(metered_with(Limits::default(), &[wrong]).1.malformed, 0);
    }
    let six = craft::udp6("[::1]:1", "[::2]:2", b"abcd");
    assert_eq!(metered_with(limits, &[six]).1.parsed, 1);
}

proptest! {
    #[test]
    fn any_octets_inside_any_tunnel_are_taken(
        port in prop::sample::select(vec![4789_u16, 6081, 2152, 3544]),
        header in prop::collection::vec(any::<u8>(), 0..24),
        flags in any::<u16>(),
        protocol in prop::sample::select(vec![0x0800_u16, 0x86dd, 0x6558, 0x88be, 0x22eb, 0x880b]),
        at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut frames = vec![
            over_udp(port, &header, &inner_frame()),
            over_udp(4789, &[8, 0, 0, 0, 0, 0, 42, 0], &inner_frame()),
            gre(flags, protocol, &header, &inner_frame()),
            gre(0x3001, 0x880b, &[0, 50, 0, 77, 0, 0, 0, 1], &[&[0xff, 3, 0, 0x21][..], &inner_ip()].concat()),
        ];
        for frame in &mut frames {
            let place = at.index(frame.len());
            frame[place] = value;
            let kept = cut.index(frame.len());
            frame.truncate(kept);
        }
        let (_, counts) = metered_with(Limits::default(), &frames);
        prop_assert_eq!(counts.received, counts.parsed + counts.malformed + counts.shed);
    }
}
