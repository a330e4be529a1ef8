//! Two networks with the same addresses are two.

use garrison_flow::FlowRow;

use super::decode::GRE;
use super::{Limits, Meter, Sink, craft, packet::*, record::EndReason};

#[derive(Default)]
struct Rows(Vec<Row>);

// Tunnel and its identifier, ends, packets there and back.
type Row = (Option<String>, Option<u32>, String, u64, u64);

impl Sink for Rows {
    fn record(&mut self, row: &FlowRow<'_>) {
        if row.end_reason.is_some() && row.src_ip.to_string().starts_with("172.16.") {
            self.0.push((
                row.tunnel_kind.map(str::to_owned),
                row.tunnel_id,
                format!("{} {}", row.src_ip, row.dst_ip),
                row.src_packets.unwrap_or_default(),
                row.dst_packets.unwrap_or_default(),
            ));
        }
    }
}

fn metered(frames: &[Vec<u8>], limits: Limits) -> Vec<Row> {
    let mut meter = Meter::new("s", limits, 1);
    let mut rows = Rows::default();
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
    rows.0.sort();
    rows.0
}

const A: &str = "172.16.0.1:4000";
const B: &str = "172.16.0.2:53";

fn inner(back: bool) -> Vec<u8> {
    match back {
        false => craft::udp4(A, B, b"inside"),
        true => craft::udp4(B, A, b"answer"),
    }
}

fn outer_udp(back: bool, port: u16, header: &[u8], inner: &[u8]) -> Vec<u8> {
    let (near, far) = (format!("10.0.0.1:{port}"), format!("10.0.0.2:{port}"));
    let (from, to) = if back { (far, near) } else { (near, far) };
    craft::udp4(&from, &to, &[header, inner].concat())
}

fn outer_ip(back: bool, protocol: u8, body: &[u8]) -> Vec<u8> {
    let (near, far) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    let (from, to) = if back { (far, near) } else { (near, far) };
    craft::ip(from, to, protocol, body)
}

fn vxlan(back: bool, id: u8) -> Vec<u8> {
    outer_udp(back, 4789, &[8, 0, 0, 0, 0, 0, id, 0], &inner(back))
}

fn geneve(back: bool, id: u8) -> Vec<u8> {
    outer_udp(back, 6081, &[0, 0, 0x65, 0x58, 0, 0, id, 0], &inner(back))
}

fn gre(back: bool, id: u8) -> Vec<u8> {
    let header = [0x20, 0, 8, 0, 0, 0, 0, id];
    outer_ip(back, GRE, &[&header, &inner(back)[14..]].concat())
}

fn erspan(back: bool, id: u8) -> Vec<u8> {
    let header = [0x10, 0, 0x88, 0xbe, 0, 0, 0, 1, 0x10, 0, 0, id, 0, 0, 0, 0];
    outer_ip(back, GRE, &[&header[..], &inner(back)].concat())
}

#[test]
fn the_same_addresses_in_two_tunnels_are_two_flows_and_directions_meet() {
    for (kind, made) in [
        ("vxlan", vxlan as fn(bool, u8) -> Vec<u8>),
        ("geneve", geneve),
        ("gre", gre),
        ("erspan", erspan),
    ] {
        let order = [(false, 1), (false, 2), (true, 2), (true, 1), (false, 2)];
        let frames: Vec<_> = order.map(|(back, id)| made(back, id)).into();
        let row = |id, there| {
            (
                Some(kind.to_owned()),
                Some(id),
                "172.16.0.1 172.16.0.2".to_owned(),
                there,
                1,
            )
        };
        assert_eq!(metered(&frames, Limits::default()), [row(1, 1), row(2, 2)]);
    }
}

#[test]
fn tunnels_inside_tunnels_count_all_their_identifiers() {
    let nested = |network: u8, id: u8| {
        let inside = gre(false, id);
        outer_udp(false, 4789, &[8, 0, 0, 0, 0, 0, network, 0], &inside)
    };
    let rows = metered(
        &[nested(1, 7), nested(2, 7), nested(1, 8), nested(1, 7)],
        Limits::default(),
    );
    let packets: Vec<_> = rows.iter().map(|row| (row.1, row.3)).collect();
    assert_eq!(packets, [(Some(7), 1), (Some(7), 2), (Some(8), 1)]);
}

#[test]
fn a_tunnel_without_an_identifier_keeps_nothing_apart() {
    // As a server that answers around the balancer: the question comes through a tunnel, the answer does not.
    let question = outer_ip(false, 4, &inner(false)[14..]);
    let rows = metered(&[question, inner(true)], Limits::default());
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].3, rows[0].4), (1, 1));
}

// GTP-U between gateways 10.0.0.1 and 10.0.0.2, or another that the terminal moved to.
fn gtpu_from(gateway: &str, back: bool, teid: u8) -> Vec<u8> {
    let inner = &inner(back)[14..];
    let length = (inner.len() as u16).to_be_bytes();
    let payload = [&[0x30, 0xff, length[0], length[1], 0, 0, 0, teid], inner].concat();
    let (near, far) = (format!("{gateway}:2152"), "10.0.0.2:2152".to_owned());
    let (from, to) = if back { (far, near) } else { (near, far) };
    craft::udp4(&from, &to, &payload)
}

fn gtpu(back: bool, teid: u8) -> Vec<u8> {
    gtpu_from("10.0.0.1", back, teid)
}

fn counts(frames: &[Vec<u8>]) -> Vec<(u64, u64)> {
    metered(frames, Limits::default())
        .iter()
        .map(|row| (row.3, row.4))
        .collect()
}

#[test]
fn the_two_identifiers_of_a_bearer_are_one_network() {
    // Up through 1, down through 9: one flow.
    assert_eq!(
        counts(&[gtpu(false, 1), gtpu(true, 9), gtpu(false, 1), gtpu(true, 9)]),
        [(2, 2)]
    );
    // Also where the answer is seen first: then the ports tell who asked.
    assert_eq!(counts(&[gtpu(true, 9), gtpu(false, 1)]), [(1, 1)]);
}

#[test]
fn two_terminals_with_the_same_address_are_two() {
    // One after the other, and both before either is answered.
    let apart = [
        gtpu(false, 1),
        gtpu(true, 9),
        gtpu(false, 2),
        gtpu(true, 8),
        gtpu(false, 2),
    ];
    assert_eq!(counts(&apart), [(1, 1), (2, 1)]);
    let together = [
        gtpu(false, 1),
        gtpu(false, 2),
        gtpu(true, 9),
        gtpu(true, 8),
        gtpu(false, 2),
        gtpu(true, 8),
    ];
    assert_eq!(counts(&together), [(1, 1), (2, 2)]);
}

#[test]
fn a_terminal_that_moves_to_another_gateway_keeps_its_flow() {
    let frames = [
        gtpu(false, 1),
        gtpu(true, 9),
        gtpu_from("10.0.0.7", true, 5),
        gtpu_from("10.0.0.7", false, 1),
        gtpu_from("10.0.0.7", true, 5),
    ];
    assert_eq!(counts(&frames), [(2, 3)]);
}

#[test]
fn vlans_are_networks_where_they_are_said_to_be() {
    let tagged = |back: bool, tags: &[u16]| {
        let mut frame = inner(back);
        for (place, id) in tags.iter().enumerate() {
            let at = 12 + 4 * place;
            frame.splice(at..at, [0x81, 0, (id >> 8) as u8, *id as u8]);
        }
        frame
    };
    let frames = [
        tagged(false, &[10]),
        tagged(true, &[10]),
        tagged(false, &[20]),
        tagged(false, &[10, 20]),
        inner(false),
    ];
    let count = |limits| -> Vec<_> { metered(&frames, limits).iter().map(|row| (row.3, row.4)).collect() };
    assert_eq!(count(Limits::default()), [(4, 1)]);
    let apart = Limits {
        vlans_apart: true,
        ..Limits::default()
    };
    assert_eq!(count(apart), [(1, 0), (1, 0), (1, 0), (1, 1)]);
}

#[test]
fn parts_of_datagrams_in_two_networks_are_not_mixed() {
    // The first part in one network, a later one with the same number in another.
    let part = |id: u8, place: [u8; 2]| {
        let mut frame = inner(false);
        (frame[20], frame[21]) = (place[0], place[1]);
        outer_udp(false, 4789, &[8, 0, 0, 0, 0, 0, id, 0], &frame)
    };
    let mut meter = Meter::new("s", Limits::default(), 1);
    let mut ports = Ports(Vec::new());
    for data in [part(1, [0x20, 0]), part(2, [0, 1]), part(1, [0, 1])] {
        let packet = Packet {
            time: 1_700_000_000_000_000_000,
            link: LinkType::Ethernet,
            data: &data,
            wire_len: data.len() as u32,
            vlan_tci: None,
        };
        meter.process(&[packet], &mut ports);
    }
    meter.finish(EndReason::EndOfFile, &mut ports);
    ports.0.sort();
    assert_eq!(ports.0, [(1, 53, 2), (2, 0, 1)]);
}

// Network, called port, packets.
struct Ports(Vec<(u32, u16, u64)>);

impl Sink for Ports {
    fn record(&mut self, row: &FlowRow<'_>) {
        if let (Some(id), true) = (row.tunnel_id, row.end_reason.is_some()) {
            self.0.push((id, row.dst_port, row.src_packets.unwrap_or_default()));
        }
    }
}
