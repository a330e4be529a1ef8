//! Capture files as they are and as they should not be.

use std::path::Path;

use proptest::prelude::*;

use super::{CaptureError, CaptureFile, pcapng};

type Record = (i64, Vec<u8>, u32);

fn read(data: &[u8]) -> (Vec<Record>, Option<CaptureError>) {
    let mut packets = Vec::new();
    let mut file = match CaptureFile::new(data, Path::new("test")) {
        Ok(file) => file,
        Err(error) => return (packets, Some(error)),
    };
    loop {
        match file.burst() {
            Ok(Some(burst)) => packets.extend(burst.packets().iter().map(|p| (p.time, p.data.to_vec(), p.wire_len))),
            Ok(None) => return (packets, None),
            Err(error) => return (packets, Some(error)),
        }
    }
}

fn pcap(magic: u32, big: bool, link: u32, records: &[(u32, u32, &[u8])]) -> Vec<u8> {
    let put = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let mut data = Vec::new();
    data.extend(put(magic));
    for word in [0x0004_0002, 0, 0, 65_535, link] {
        data.extend(put(word));
    }
    for (seconds, fraction, body) in records {
        for word in [*seconds, *fraction, body.len() as u32, body.len() as u32 + 5] {
            data.extend(put(word));
        }
        if magic == 0xa1b2_cd34 {
            data.extend([0; 8]);
        }
        data.extend(*body);
    }
    data
}

fn block(big: bool, kind: u32, body: &[u8]) -> Vec<u8> {
    let put = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let length = 12 + body.len() as u32;
    [&put(kind)[..], &put(length), body, &put(length)].concat()
}

fn pcapng(big: bool, resolution: Option<u8>, offset: Option<i64>, ticks: u64) -> Vec<u8> {
    let put = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let half = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let mut section = put(0x1a2b_3c4d).to_vec();
    section.extend([half(1), half(0)].concat());
    section.extend([0xff; 8]);
    let mut interface = [&half(1)[..], &half(0), &put(0)].concat();
    if let Some(resolution) = resolution {
        interface.extend([&half(9)[..], &half(1), &[resolution, 0, 0, 0]].concat());
    }
    if let Some(offset) = offset {
        let bytes = if big {
            offset.to_be_bytes()
        } else {
            offset.to_le_bytes()
        };
        interface.extend([&half(14)[..], &half(8), &bytes].concat());
    }
    let mut packet = put(1).to_vec();
    packet.extend(put((ticks >> 32) as u32));
    packet.extend(put(ticks as u32));
    packet.extend([put(3), put(3)].concat());
    packet.extend(b"abc\0");
    let first = [&half(1)[..], &half(0), &put(0)].concat();
    [
        block(big, SECTION_KIND, &section),
        block(big, 1, &first),
        block(big, 0xbad, &[1, 2, 3, 4]),
        block(big, 1, &interface),
        block(big, 6, &packet),
    ]
    .concat()
}

const SECTION_KIND: u32 = pcapng::SECTION;

#[test]
fn every_magic_in_either_order() {
    for big in [false, true] {
        for (magic, time) in [
            (0xa1b2_c3d4, 3_000_004_000),
            (0xa1b2_3c4d, 3_000_000_004),
            (0xa1b2_cd34, 3_000_004_000),
        ] {
            let data = pcap(magic, big, 1, &[(3, 4, b"xyz"), (3, 4, b"")]);
            let (packets, error) = read(&data);
            assert!(error.is_none(), "{error:?}");
            assert_eq!(packets[0], (time, b"xyz".to_vec(), 8));
            assert_eq!(packets.len(), 2);
        }
    }
}

#[test]
fn pcapng_times_follow_each_interfaces_resolution() {
    for big in [false, true] {
        let time = |resolution, offset, ticks| {
            let (packets, error) = read(&pcapng(big, resolution, offset, ticks));
            assert!(error.is_none(), "{error:?}");
            assert_eq!(packets[0].1, b"abc");
            packets[0].0
        };
        assert_eq!(time(None, None, 5_000_001), 5_000_001_000);
        assert_eq!(time(Some(9), None, 5_000_001), 5_000_001);
        assert_eq!(time(Some(0), Some(-1), 7), 6_000_000_000);
        assert_eq!(time(Some(0x81), None, 3), 1_500_000_000);
        assert_eq!(time(Some(12), None, 5_000), 5);
        assert_eq!(time(None, Some(i64::MIN / 1_000_000_000), 0), 0);
        assert_eq!(time(None, Some(i64::MAX / 1_000_000_000), 0), 1 << 62);
    }
}

#[test]
fn what_is_wrong_is_said_precisely() {
    let said = |data: &[u8]| read(data).1.unwrap().to_string();
    assert!(said(b"").starts_with("GAR-FLOW-0002"));
    assert!(said(b"\xa1").starts_with("GAR-FLOW-0003"));
    assert!(said(b"this is no capture at all").contains("7468697320697320"));
    let unknown = said(&pcap(0xa1b2_c3d4, false, 147, &[]));
    assert!(unknown.contains("GAR-FLOW-0004") && unknown.contains("link type 147 at octet 20"));
    let good = pcap(0xa1b2_c3d4, false, 1, &[(0, 0, &[0; 60]), (0, 0, &[0; 60])]);
    let cut = said(&good[..good.len() - 1]);
    assert!(
        cut.contains("GAR-FLOW-0005") && cut.contains("octet 100, after 1 packets"),
        "{cut}"
    );
    assert!(said(&good[..10]).contains("GAR-FLOW-0005"));
    let mut damaged = good.clone();
    damaged[24 + 8 + 3] = 0x7f;
    assert!(said(&damaged).contains("GAR-FLOW-0006"));
    let mut lengths = pcapng(false, None, None, 0);
    let last = lengths.len() - 1;
    lengths[last] = 1;
    assert!(said(&lengths).contains("two lengths differ"));
}

#[test]
fn a_file_larger_than_the_buffer_is_read_whole() {
    let body = vec![7; 60_000];
    let records: Vec<_> = (0..200).map(|i| (i, 0, &body[..])).collect();
    let (packets, error) = read(&pcap(0xa1b2_c3d4, false, 1, &records));
    assert!(error.is_none());
    assert_eq!(packets.len(), 200);
    assert!(packets.iter().enumerate().all(|(i, p)| p.0 == i as i64 * 1_000_000_000));
}

proptest! {
    #[test]
    fn a_changed_octet_never_panics(
        at in any::<prop::sample::Index>(), value in any::<u8>(), ng in any::<bool>(), big in any::<bool>(),
    ) {
        let mut data = match ng {
            true => pcapng(big, Some(9), Some(3), 12),
            false => pcap(0xa1b2_c3d4, big, 1, &[(1, 2, &[0; 40]), (3, 4, &[1; 50])]),
        };
        let place = at.index(data.len());
        data[place] = value;
        read(&data);
    }

    #[test]
    fn garbage_never_panics(mut data in prop::collection::vec(any::<u8>(), 0..600), ng in any::<bool>()) {
        read(&data);
        let head = pcapng(false, None, None, 0);
        let head = if ng { &head[..28] } else { &pcap(0xa1b2_c3d4, false, 1, &[])[..] };
        data.splice(..0, head.iter().copied());
        read(&data);
    }
}
