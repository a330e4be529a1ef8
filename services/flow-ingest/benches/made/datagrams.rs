//! Datagrams that are made here: IPFIX with the eighteen fields that routers commonly send, and NetFlow 5; a million
//! different flows.

#![allow(missing_docs, unreachable_pub)] // shared by a benchmark and an example

/// Different flows.
pub const FLOWS: u32 = 1_000_000;

// Number and octets of each field.
const FIELDS: [(u16, u16); 18] = [
    (8, 4),
    (12, 4),
    (7, 2),
    (11, 2),
    (4, 1),
    (5, 1),
    (6, 2),
    (10, 4),
    (14, 4),
    (1, 8),
    (2, 8),
    (152, 8),
    (153, 8),
    (16, 4),
    (17, 4),
    (9, 1),
    (13, 1),
    (136, 1),
];

fn value(flow: u32, id: u16) -> u64 {
    match id {
        8 => 0x0a00_0000 + u64::from(flow % 65_536),
        12 => 0xc0a8_0000 + u64::from(flow / 16 % 65_536),
        7 => u64::from(20_000 + flow % 40_000),
        11 => 443,
        4 => 6,
        6 => 0x1b,
        10 | 14 => 3,
        1 => 1_500 * u64::from(flow % 100 + 1),
        2 => u64::from(flow % 100 + 1),
        152 => 1_700_000_000_000 + u64::from(flow),
        153 => 1_700_000_001_000 + u64::from(flow),
        16 => 64_512,
        136 => 3,
        _ => 24,
    }
}

fn halves(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

pub fn ipfix() -> Vec<Vec<u8>> {
    const EACH: u32 = 20;
    let mut datagrams = Vec::new();
    let mut template = halves(&[2, 8 + 4 * 18, 256, 18]);
    FIELDS
        .iter()
        .for_each(|(id, length)| template.extend(halves(&[*id, *length])));
    for first in (0..FLOWS).step_by(EACH as usize) {
        let mut data = Vec::<u8>::new();
        for flow in first..first + EACH {
            for (id, length) in FIELDS {
                data.extend(&value(flow, id).to_be_bytes()[8 - usize::from(length)..]);
            }
        }
        let mut body = if first == 0 { template.clone() } else { Vec::new() };
        body.extend(halves(&[256, data.len() as u16 + 4]));
        body.extend(data);
        let mut datagram = halves(&[10, body.len() as u16 + 16]);
        datagram.extend(words(&[1_700_000_002, first, 1]));
        datagram.extend(body);
        datagrams.push(datagram);
    }
    datagrams
}

#[allow(dead_code)] // one of the two programs needs it
pub fn netflow5() -> Vec<Vec<u8>> {
    const EACH: u32 = 30;
    let mut datagrams = Vec::new();
    for first in (0..FLOWS - EACH).step_by(EACH as usize) {
        let mut datagram = halves(&[5, EACH as u16]);
        datagram.extend(words(&[100_000, 1_700_000_000, 0, first, 0]));
        for flow in first..first + EACH {
            datagram.extend(words(&[
                value(flow, 8) as u32,
                value(flow, 12) as u32,
                0x0a00_00fe,
                0x0003_0003,
            ]));
            datagram.extend(words(&[value(flow, 2) as u32, value(flow, 1) as u32, 90_000, 95_000]));
            datagram.extend(halves(&[
                value(flow, 7) as u16,
                443,
                0x001b,
                0x0600,
                64_512,
                0,
                0x1818,
                0,
            ]));
        }
        datagrams.push(datagram);
    }
    datagrams
}
