//! Against libpcap itself, which setup installs.

use std::path::Path;

use super::*;
use crate::{
    capture::{CaptureFile, Source},
    domain::craft,
};

fn packet(link: LinkType, data: &[u8]) -> Packet<'_> {
    Packet {
        time: 0,
        link,
        data,
        wire_len: data.len() as u32,
        vlan_tci: None,
    }
}

fn wants(expression: &str, frame: &[u8]) -> bool {
    let mut filter = Filter::new(expression).unwrap();
    filter.wants(&packet(LinkType::Ethernet, frame)).unwrap()
}

fn tagged(frame: &[u8], id: u8) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, id], &frame[12..]].concat()
}

#[test]
fn expressions_mean_what_they_mean_to_tcpdump() {
    let web = craft::tcp4("10.0.0.1:40000", "10.0.0.2:80", 0x02, 1, 0, b"");
    let dns = craft::udp4("10.0.0.1:40000", "192.0.2.53:53", b"question");
    let six = craft::udp6("[2001:db8::1]:1000", "[2001:db8::2]:53", b"question");
    let table = [
        ("tcp port 80", [true, false, false]),
        ("udp port 53", [false, true, true]),
        ("ip6", [false, false, true]),
        ("net 10.0.0.0/24 and not tcp", [false, true, false]),
        ("src host 2001:db8::1", [false, false, true]),
        ("tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn", [true, false, false]),
        ("greater 60", [false, false, true]),
        (
            "ip[2:2] - ((ip[0] & 0xf) << 2) - ((tcp[12] >> 4) << 2) == 0",
            [true, false, false],
        ),
        ("portrange 50-60 or vlan 7", [false, true, true]),
        ("", [true, true, true]),
    ];
    for (expression, want) in table {
        let got = [&web, &dns, &six].map(|frame| wants(expression, frame));
        assert_eq!(got, want, "{expression}: {} {} {}", web.len(), dns.len(), six.len());
    }
    assert!(wants("vlan 7 and tcp port 80", &tagged(&web, 7)));
    assert!(!wants("vlan 8", &tagged(&web, 7)));
    // In a file the tag is in the frame, so what does not name it does not look behind it; tcpdump's manual says so too.
    assert!(!wants("tcp port 80", &tagged(&web, 7)));
}

#[test]
fn each_link_type_has_a_program_of_its_own() {
    let mut filter = Filter::new("udp port 53").unwrap();
    let frame = craft::udp4("10.0.0.1:40000", "192.0.2.53:53", b"question");
    let cooked = [&[0; 14][..], &[8, 0], &frame[14..]].concat();
    for (link, data) in [
        (LinkType::Ethernet, &frame[..]),
        (LinkType::Raw, &frame[14..]),
        (LinkType::LinuxCooked, &cooked),
    ] {
        assert!(filter.wants(&packet(link, data)).unwrap(), "{link:?}");
        assert!(
            !filter.wants(&packet(link, &data[..data.len() - 13])).unwrap(),
            "{link:?}, cut before its port"
        );
    }
    assert_eq!(filter.programs.len(), 3);
    // An expression for one kind of frames only.
    let mut filter = Filter::new("wlan type data").unwrap();
    let refused = filter.wants(&packet(LinkType::Ethernet, &frame));
    assert!(matches!(refused, Err(CaptureError::Filter { .. })), "{refused:?}");
}

#[test]
fn what_is_no_expression_is_refused_with_the_reason() {
    let problem = Filter::new("tcp prot 80").unwrap_err().to_string();
    assert!(
        problem.starts_with("GAR-FLOW-0015: the capture filter \"tcp prot 80\" cannot be used: "),
        "{problem}"
    );
    assert!(problem.contains("syntax error"), "{problem}");
    assert!(Filter::new("tcp\0").is_err());
}

#[test]
fn a_file_is_metered_as_far_as_it_is_wanted() {
    let mut data = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        data.extend(word.to_le_bytes());
    }
    for i in 0..300_u32 {
        let port = if i % 3 == 0 { 53 } else { 54 };
        let frame = craft::udp4("10.0.0.1:40000", &format!("192.0.2.53:{port}"), b"question");
        for word in [1_700_000_000, i, frame.len() as u32, frame.len() as u32] {
            data.extend(word.to_le_bytes());
        }
        data.extend(frame);
    }
    let open = || {
        let source = Source::new(std::io::Cursor::new(data.clone()), None).unwrap();
        let mut file = CaptureFile::new(source, Path::new("made")).unwrap();
        file.select(Filter::new("port 53").unwrap());
        file
    };
    let mut file = open();
    let mut wanted = 0;
    while let Some(burst) = file.burst().unwrap() {
        wanted += burst.packets().len();
    }
    assert_eq!((wanted, file.left_out(), file.packets()), (100, 200, 300));
    let mut file = open();
    let (mut part, mut places, mut wanted) = (Box::default(), Vec::new(), 0);
    while file.part(&mut part, &mut places).unwrap() {
        wanted += places.len();
    }
    assert_eq!((wanted, file.left_out()), (100, 200));
}
