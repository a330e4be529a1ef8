use proptest::prelude::*;

use super::packet::*;
use crate::domain::craft;

fn frame(data: &[u8]) -> Packet<'_> {
    Packet {
        time: 7,
        link: LinkType::Ethernet,
        data,
        wire_len: data.len() as u32,
        vlan_tci: None,
    }
}

fn flow<'a>(packet: &Packet<'a>) -> Decoded<'a> {
    match decode(packet) {
        Verdict::Flow(decoded) => decoded,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tcp_segment_in_ipv4_is_read_whole() {
    let data = craft::tcp4("10.0.0.1:1234", "10.0.0.2:80", flag::SYN, 5, 0, b"abc");
    let decoded = flow(&frame(&data));
    assert_eq!(address(&decoded.src).to_string(), "10.0.0.1");
    assert_eq!((decoded.src_port, decoded.dst_port), (1234, 80));
    assert_eq!(decoded.tcp.seq, 5);
    assert_eq!(decoded.tcp.flags, flag::SYN);
    assert_eq!(decoded.payload, b"abc");
    assert_eq!((decoded.payload_len, decoded.ip_len), (3, 43));
}

#[test]
fn ethernet_padding_is_not_payload() {
    let mut data = craft::tcp4("10.0.0.1:1", "10.0.0.2:2", flag::ACK, 0, 0, b"");
    data.resize(60, 0xee);
    let decoded = flow(&frame(&data));
    assert_eq!(decoded.payload_len, 0);
    assert!(decoded.payload.is_empty());
}

#[test]
fn tags_are_unwrapped_and_the_outermost_is_kept() {
    let plain = craft::udp4("10.0.0.1:1", "10.0.0.2:2", b"x");
    let mut tagged = plain[..12].to_vec();
    tagged.extend([0x88, 0xa8, 0x20, 0x64, 0x81, 0x00, 0x00, 0x05]);
    tagged.extend(&plain[12..]);
    assert_eq!(flow(&frame(&tagged)).vlan, Some(100));
    let stripped = Packet {
        vlan_tci: Some(0x600a),
        ..frame(&plain)
    };
    assert_eq!(flow(&stripped).vlan, Some(10));
}

#[test]
fn every_link_type_leads_to_the_same_flow() {
    let ethernet = craft::udp4("10.0.0.1:1", "10.0.0.2:2", b"x");
    let ip = &ethernet[14..];
    let with = |link, head: &[u8]| {
        let data = [head, ip].concat();
        let packet = Packet { link, ..frame(&data) };
        let decoded = flow(&packet);
        assert_eq!(decoded.payload, b"x", "{link:?}");
        assert_eq!(decoded.dst_port, 2);
    };
    with(LinkType::Raw, &[]);
    with(LinkType::Null, &[2, 0, 0, 0]);
    with(LinkType::Null, &[0, 0, 0, 2]);
    with(LinkType::Loop, &[0, 0, 0, 2]);
    with(LinkType::LinuxCooked, &[0, 0, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0, 8, 0]);
    with(
        LinkType::LinuxCooked2,
        &[8, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0],
    );
}

#[test]
fn extension_headers_are_walked_and_fragments_kept_apart() {
    let plain = craft::udp6("[2001:db8::1]:1", "[2001:db8::2]:2", b"xyz");
    let mut walked = plain.clone();
    walked[20] = 0;
    let options = [17, 0, 1, 4, 0, 0, 0, 0];
    walked.splice(54..54, options);
    let length = (plain.len() - 54 + 8) as u16;
    walked[18..20].copy_from_slice(&length.to_be_bytes());
    assert_eq!(flow(&frame(&walked)).payload, b"xyz");

    let mut later = plain.clone();
    later[20] = 44;
    later.splice(54..54, [17, 0, 0, 8, 0, 0, 0, 9]);
    later[18..20].copy_from_slice(&length.to_be_bytes());
    let decoded = flow(&frame(&later));
    assert!(matches!(decoded.fragment, Fragment::Later { identifier: 9, .. }));
    assert_eq!(decoded.protocol, UDP);
    assert_eq!(decoded.src_port, 0);
}

#[test]
fn contradictions_are_malformed() {
    let good = craft::tcp4("10.0.0.1:1", "10.0.0.2:2", flag::ACK, 0, 0, b"abcd");
    let broken = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut data = good.clone();
        change(&mut data);
        assert!(matches!(decode(&frame(&data)), Verdict::Malformed), "{data:x?}");
    };
    broken(&|d| d.truncate(10));
    broken(&|d| d.truncate(30));
    broken(&|d| d[14] = 0x44);
    broken(&|d| d[14] = 0x65);
    broken(&|d| d[16..18].copy_from_slice(&2000_u16.to_be_bytes()));
    broken(&|d| d[16..18].copy_from_slice(&19_u16.to_be_bytes()));
    broken(&|d| d[46] = 0x40);
    broken(&|d| d[46] = 0xf0);
}

#[test]
fn echo_and_its_answer_name_each_other() {
    assert_eq!(icmp_answer(ICMP, 8), Some(0));
    assert_eq!(icmp_answer(ICMP, 0), Some(8));
    assert_eq!(icmp_answer(ICMP, 3), None);
    assert_eq!(icmp_answer(ICMPV6, 129), Some(128));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_frame_panics_and_claims_stay_bounded(
        mut data in prop::collection::vec(any::<u8>(), 0..200),
        link in 0_u32..300,
        beyond in 0_u32..2000,
        ethertype in prop::sample::select(vec![0x0800_u16, 0x86dd, 0x8100, 0x8847, 0x8864]),
        steer in any::<bool>(),
    ) {
        let link = LinkType::from_number(link).unwrap_or(LinkType::Ethernet);
        if steer && data.len() > 24 && link == LinkType::Ethernet {
            data[12..14].copy_from_slice(&ethertype.to_be_bytes());
            data[14] = if ethertype == 0x86dd { 0x60 } else { 0x45 };
        }
        let wire_len = data.len() as u32 + beyond;
        let packet = Packet { time: 0, link, data: &data, wire_len, vlan_tci: None };
        if let Verdict::Flow(decoded) = decode(&packet) {
            prop_assert!(decoded.ip_len <= wire_len);
            prop_assert!(decoded.payload_len <= decoded.ip_len);
            prop_assert!(decoded.payload.len() <= decoded.payload_len as usize);
        }
    }

    #[test]
    fn a_changed_octet_in_a_real_frame_never_panics(
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
        kept in any::<prop::sample::Index>(),
        six in any::<bool>(),
    ) {
        let mut data = match six {
            true => craft::udp6("[2001:db8::1]:5", "[2001:db8::2]:53", b"0123456789"),
            false => craft::tcp4("10.0.0.1:1", "10.0.0.2:2", flag::ACK, 1, 2, b"0123456789"),
        };
        let place = at.index(data.len());
        data[place] = value;
        decode(&frame(&data));
        decode(&frame(&data[..kept.index(data.len())]));
    }
}

proptest! {
    #[test]
    fn the_short_way_reads_what_the_long_way_reads(
        udp in any::<bool>(), payload in prop::collection::vec(any::<u8>(), 0..40),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in 0_usize..30, padding in 0_usize..20, wire in 0_u32..80, tci in any::<Option<u16>>(),
    ) {
        let mut data = match udp {
            true => craft::udp4("10.0.0.1:1234", "10.0.0.2:53", &payload),
            false => craft::tcp4("10.0.0.1:1234", "10.0.0.2:80", flag::ACK, 5, 6, &payload),
        };
        for (at, value) in changes {
            let at = at.index(data.len());
            data[at] = value;
        }
        data.truncate(data.len() - cut.min(data.len()));
        data.resize(data.len() + padding, 0);
        let packet = Packet { wire_len: (data.len() as u32).max(wire), vlan_tci: tci, ..frame(&data) };
        let decoder = Decoder::default();
        let mut short = Decoded::EMPTY;
        if decoder.plain(&packet, 4, &mut short).is_some() {
            prop_assert_eq!(format!("{:?}", Verdict::Flow(short)), format!("{:?}", decoder.frame(&packet, 4, Default::default())));
        }
    }
}
