//! Writing IPFIX messages (RFC 7011) of biflows (RFC 5103): what is unknown of a flow is not in its template.

use std::net::IpAddr;

use garrison_flow::FlowRow;

use super::{field::REVERSE, plan::VARIABLE};

/// Most templates that are in use at once. A record whose set of known columns would need one more is written with fewer.
const MAX_TEMPLATES: usize = 128;
const FIRST_TEMPLATE: u16 = 256;
const HEADER: usize = 16;
// RFC 5905 §6: NTP counts from 1900.
const NTP_EPOCH: i64 = 2_208_988_800;

/// Smallest and largest message that can be asked for, octets.
pub const MESSAGE_BYTES: std::ops::RangeInclusive<usize> = 512..=65_000;

// The fields a record can have, in the order they are written in.
const FIELDS: [(u16, u32, u16); 28] = [
    // Number, enterprise, octets. The first ten are in every template; addresses depend on the family.
    (8, 0, 4),
    (12, 0, 4),
    (7, 0, 2),
    (11, 0, 2),
    (4, 0, 1),
    (239, 0, 1),
    (156, 0, 8),
    (157, 0, 8),
    (148, 0, 8),
    (136, 0, 1),
    (2, 0, 8),
    (2, REVERSE, 8),
    (1, 0, 8),
    (1, REVERSE, 8),
    (231, 0, 8),
    (232, 0, 8),
    (6, 0, 1),
    (6, REVERSE, 1),
    (58, 0, 2),
    (56, 0, 6),
    (80, 0, 6),
    (305, 0, 4),
    (306, 0, 4),
    (89, 0, 1),
    (32, 0, 2),
    (96, 0, VARIABLE),
    (460, 0, VARIABLE),
    (461, 0, VARIABLE),
];
const REQUIRED: u64 = (1 << 10) - 1;
// Marks templates of IPv6.
const SIX: u64 = 1 << 63;

struct Template {
    mask: u64,
    // It was sent since templates were due last.
    known: bool,
}

/// Writes flow records as IPFIX messages of bounded size.
pub struct IpfixWriter {
    domain: u32,
    max_bytes: usize,
    templates: Vec<Template>,
    sequence: u32,
    message: Vec<u8>,
    // Where the open set begins, and of which template it is.
    set: Option<(usize, usize)>,
    records: u32,
    record: Vec<u8>,
    lean: u64,
}

impl IpfixWriter {
    /// Makes a writer. `max_bytes` is kept within [`MESSAGE_BYTES`].
    pub fn new(domain: u32, max_bytes: usize) -> Self {
        Self {
            domain,
            max_bytes: max_bytes.clamp(*MESSAGE_BYTES.start(), *MESSAGE_BYTES.end()),
            templates: Vec::new(),
            sequence: 0,
            message: Vec::new(),
            set: None,
            records: 0,
            record: Vec::new(),
            lean: 0,
        }
    }

    /// Records that were written without some of what is known of them, because there were too many templates.
    pub fn lean(&self) -> u64 {
        self.lean
    }

    /// Templates go out again before their next records: a collector may have begun since, and UDP loses.
    pub fn resend_templates(&mut self) {
        self.templates.iter_mut().for_each(|template| template.known = false);
    }

    /// Writes a record. Messages that are full go to `send`; `exported` is the time, nanoseconds since the epoch.
    pub fn write(&mut self, row: &FlowRow<'_>, exported: i64, send: &mut impl FnMut(&[u8])) {
        let template = self.encode(row);
        let needed = self.record.len()
            + 4
            + if self.templates[template].known {
                0
            } else {
                4 + 4 + FIELDS.len() * 8
            };
        if !self.message.is_empty() && self.message.len() + needed > self.max_bytes {
            self.flush(exported, send);
        }
        if self.message.is_empty() {
            self.message.resize(HEADER, 0);
        }
        if !self.templates[template].known {
            self.close_set();
            self.put_template(template);
        }
        if self.set.is_none_or(|(_, open)| open != template) {
            self.close_set();
            self.set = Some((self.message.len(), template));
            let id = FIRST_TEMPLATE + template as u16;
            self.message.extend_from_slice(&id.to_be_bytes());
            self.message.extend_from_slice(&[0, 0]);
        }
        self.message.extend_from_slice(&self.record);
        self.records += 1;
    }

    /// Sends what is written and not sent yet.
    pub fn flush(&mut self, exported: i64, send: &mut impl FnMut(&[u8])) {
        if self.message.is_empty() {
            return;
        }
        self.close_set();
        let length = self.message.len() as u16;
        self.message[..2].copy_from_slice(&10u16.to_be_bytes());
        self.message[2..4].copy_from_slice(&length.to_be_bytes());
        let seconds = (exported / 1_000_000_000) as u32;
        self.message[4..8].copy_from_slice(&seconds.to_be_bytes());
        self.message[8..12].copy_from_slice(&self.sequence.to_be_bytes());
        self.message[12..16].copy_from_slice(&self.domain.to_be_bytes());
        // RFC 7011 §3.1: the number counts the records before this message.
        self.sequence = self.sequence.wrapping_add(self.records);
        self.records = 0;
        send(&self.message);
        self.message.clear();
    }

    fn close_set(&mut self) {
        if let Some((start, _)) = self.set.take() {
            let length = (self.message.len() - start) as u16;
            self.message[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
        }
    }

    fn put_template(&mut self, template: usize) {
        let mask = self.templates[template].mask;
        let mut body = Vec::new();
        let mut count = 0u16;
        for (i, (id, enterprise, length)) in FIELDS.iter().enumerate() {
            if mask & 1 << i == 0 {
                continue;
            }
            count += 1;
            let (id, length) = match (i, mask & SIX != 0) {
                (0, true) => (27, 16),
                (1, true) => (28, 16),
                _ => (*id, *length),
            };
            let marked = if *enterprise == 0 { id } else { id | 0x8000 };
            body.extend_from_slice(&marked.to_be_bytes());
            body.extend_from_slice(&length.to_be_bytes());
            if *enterprise != 0 {
                body.extend_from_slice(&enterprise.to_be_bytes());
            }
        }
        let id = FIRST_TEMPLATE + template as u16;
        self.message.extend_from_slice(&2u16.to_be_bytes());
        self.message.extend_from_slice(&(body.len() as u16 + 8).to_be_bytes());
        self.message.extend_from_slice(&id.to_be_bytes());
        self.message.extend_from_slice(&count.to_be_bytes());
        self.message.extend_from_slice(&body);
        self.templates[template].known = true;
    }

    // The record of a row, and which template it has.
    fn encode(&mut self, row: &FlowRow<'_>) -> usize {
        let mut mask = known(row);
        let template = match self.templates.iter().position(|template| template.mask == mask) {
            Some(place) => place,
            None if self.templates.len() < MAX_TEMPLATES - 2 => self.add(mask),
            None => {
                self.lean += 1;
                mask &= REQUIRED | SIX;
                match self.templates.iter().position(|template| template.mask == mask) {
                    Some(place) => place,
                    None => self.add(mask),
                }
            }
        };
        self.record.clear();
        put(&mut self.record, row, mask);
        template
    }

    fn add(&mut self, mask: u64) -> usize {
        self.templates.push(Template { mask, known: false });
        self.templates.len() - 1
    }
}

fn is_icmp(row: &FlowRow<'_>) -> bool {
    matches!(row.protocol, 1 | 58)
}

// Which fields a row has, as bits in the order of `FIELDS`.
fn known(row: &FlowRow<'_>) -> u64 {
    let sampled = row.sampling > 1;
    let optional = [
        row.src_packets.is_some(),
        row.dst_packets.is_some(),
        row.src_ip_bytes.is_some(),
        row.dst_ip_bytes.is_some(),
        row.src_bytes.is_some(),
        row.dst_bytes.is_some(),
        row.src_tcp_flags.is_some(),
        row.dst_tcp_flags.is_some(),
        row.vlan.is_some(),
        row.src_mac.is_some(),
        row.dst_mac.is_some(),
        sampled,
        sampled,
        row.verdict.is_some(),
        is_icmp(row),
        row.service.is_some(),
        row.http_host.is_some(),
        row.http_uri.is_some(),
    ];
    let mask = optional
        .iter()
        .enumerate()
        .filter(|(_, known)| **known)
        .fold(REQUIRED, |mask, (i, _)| mask | 1 << (i + 10));
    if row.src_ip.is_ipv6() { mask | SIX } else { mask }
}

fn put(out: &mut Vec<u8>, row: &FlowRow<'_>, mask: u64) {
    let icmp = is_icmp(row);
    for address in [row.src_ip, row.dst_ip] {
        match address {
            IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
            IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
        }
    }
    for port in [row.src_port, row.dst_port] {
        out.extend_from_slice(&if icmp { 0 } else { port }.to_be_bytes());
    }
    // The source of ours is always the one that opened the flow (RFC 5103 §6.3).
    out.extend_from_slice(&[row.protocol, 1]);
    for time in [row.first_seen, row.last_seen] {
        out.extend_from_slice(&to_ntp(time).to_be_bytes());
    }
    out.extend_from_slice(&row.flow_id[8..]);
    out.push(match row.end_reason {
        Some("idle") => 1,
        Some("active") => 2,
        Some("fin" | "rst") => 3,
        Some("eof" | "shutdown" | "reused") => 4,
        Some("evicted") => 5,
        _ => 0,
    });
    let has = |field: usize| mask & 1 << field != 0;
    // Collectors multiply by the rate themselves.
    let rate = u64::from(row.sampling.max(1));
    let counters = [
        row.src_packets,
        row.dst_packets,
        row.src_ip_bytes,
        row.dst_ip_bytes,
        row.src_bytes,
        row.dst_bytes,
    ];
    for (i, counter) in counters.iter().enumerate() {
        if let Some(count) = counter.filter(|_| has(10 + i)) {
            out.extend_from_slice(&(count / rate).to_be_bytes());
        }
    }
    for (i, flags) in [row.src_tcp_flags, row.dst_tcp_flags].iter().enumerate() {
        out.extend(flags.filter(|_| has(16 + i)));
    }
    if let Some(vlan) = row.vlan.filter(|_| has(18)) {
        out.extend_from_slice(&vlan.to_be_bytes());
    }
    for (i, mac) in [row.src_mac, row.dst_mac].iter().enumerate() {
        if let Some(mac) = mac.filter(|_| has(19 + i)) {
            out.extend_from_slice(&mac);
        }
    }
    if has(21) {
        out.extend_from_slice(&1u32.to_be_bytes());
        out.extend_from_slice(&(row.sampling - 1).to_be_bytes());
    }
    if has(23) {
        // RFC 7270 §4.12: forwarded, or dropped by an access list.
        out.push(if row.verdict == Some("accept") { 64 } else { 128 });
    }
    if has(24) {
        let answered = crate::domain::packet::icmp_answer(row.protocol, row.src_port as u8).is_some();
        let code = if answered { 0 } else { row.dst_port & 0xff };
        out.extend_from_slice(&(row.src_port << 8 | code).to_be_bytes());
    }
    for (i, text) in [row.service, row.http_host, row.http_uri].iter().enumerate() {
        if let Some(text) = text.filter(|_| has(25 + i)) {
            put_text(out, text);
        }
    }
}

// RFC 7011 §7. Names in packets have no bound of their own.
fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(512);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    match end {
        0..=254 => out.push(end as u8),
        _ => {
            out.push(255);
            out.extend_from_slice(&(end as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(&text.as_bytes()[..end]);
}

fn to_ntp(nanoseconds: i64) -> u64 {
    let seconds = nanoseconds.div_euclid(1_000_000_000) + NTP_EPOCH;
    let rest = nanoseconds.rem_euclid(1_000_000_000) as u64;
    // Rounded up, so that reading it rounds down to the same nanosecond.
    let fraction = (rest << 32).div_ceil(1_000_000_000);
    (seconds as u64 & 0xffff_ffff) << 32 | fraction
}

#[cfg(test)]
mod tests {
    use garrison_flow::{FlowBatch, FlowBatchBuilder, FlowState};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        domain::Sink,
        export::{Collector, CollectorLimits, Outcome},
    };

    struct Keep(FlowBatchBuilder);

    impl Sink for Keep {
        fn record(&mut self, row: &FlowRow<'_>) {
            self.0.push(row);
        }
    }

    fn through(rows: &[FlowRow<'_>], max_bytes: usize) -> (FlowBatch, Vec<usize>) {
        let mut writer = IpfixWriter::new(1, max_bytes);
        let mut collector = Collector::new("back", CollectorLimits::default(), 1);
        let mut keep = Keep(FlowBatchBuilder::new(4));
        let mut sizes = Vec::new();
        let mut take = |message: &[u8]| {
            sizes.push(message.len());
            let exporter = IpAddr::from([127, 0, 0, 1]);
            assert_eq!(collector.datagram(exporter, 0, message, &mut keep), Outcome::Parsed);
        };
        for row in rows {
            writer.write(row, 1_700_000_000_000_000_000, &mut take);
        }
        writer.flush(1_700_000_000_000_000_000, &mut take);
        assert_eq!(collector.tally().missing, 0);
        assert_eq!(collector.tally().without_flow, 0);
        (keep.0.finish(), sizes)
    }

    // What IPFIX carries of a row.
    fn carried<'a>(row: &FlowRow<'a>) -> FlowRow<'a> {
        FlowRow {
            flow_id: [0; 16],
            sensor: "",
            origin: "",
            community_id: "",
            exporter: None,
            extra: None,
            // Named as a label of the exporter's, not as our own finding.
            service: None,
            ..row.clone()
        }
    }

    fn flow(number: u32) -> FlowRow<'static> {
        let six = number.is_multiple_of(3);
        let text = ["http", "dns", "tls"][number as usize % 3];
        FlowRow {
            state: FlowState::Ended as u8,
            first_seen: 1_700_000_000_123_456_789 + i64::from(number),
            last_seen: 1_700_000_001_987_654_321 + i64::from(number),
            ip_version: if six { 6 } else { 4 },
            protocol: if number.is_multiple_of(4) { 6 } else { 17 },
            src_ip: if six {
                "2001:db8::1".parse().unwrap()
            } else {
                "10.0.0.1".parse().unwrap()
            },
            dst_ip: if six {
                "2001:db8::2".parse().unwrap()
            } else {
                "10.0.0.2".parse().unwrap()
            },
            src_port: 443,
            dst_port: 50_000 + (number % 1000) as u16,
            src_packets: Some(30),
            dst_packets: (number.is_multiple_of(2)).then_some(20),
            src_bytes: (number.is_multiple_of(5)).then_some(900),
            dst_bytes: (number % 5 == 1).then_some(0),
            src_ip_bytes: Some(2_000),
            dst_ip_bytes: (number.is_multiple_of(2)).then_some(3_000),
            src_tcp_flags: (number.is_multiple_of(4)).then_some(0x1b),
            vlan: (number.is_multiple_of(7)).then_some(12),
            src_mac: (number % 7 == 1).then_some([2, 0, 0, 0, 0, 1]),
            sampling: if number.is_multiple_of(6) { 10 } else { 1 },
            end_reason: Some("idle"),
            service: Some(text),
            verdict: (number.is_multiple_of(8)).then_some("accept"),
            ..FlowRow::default()
        }
    }

    #[test]
    fn our_own_decoder_reads_it_back_equal() {
        let rows: Vec<FlowRow<'_>> = (0..500).map(flow).collect();
        for max_bytes in [512, 1400, 9000] {
            let (back, sizes) = through(&rows, max_bytes);
            assert!(sizes.iter().all(|size| *size <= max_bytes), "{sizes:?}");
            assert_eq!(back.len(), rows.len());
            for (row, back) in rows.iter().zip(back.rows()) {
                assert_eq!(carried(&back), carried(row));
            }
        }
    }

    #[test]
    fn icmp_and_application_names() {
        let ping = FlowRow {
            protocol: 1,
            src_port: 8,
            dst_port: 0,
            state: 3,
            service: Some("http"),
            http_host: Some("a.example"),
            http_uri: Some("/x"),
            ..FlowRow::default()
        };
        let unreachable = FlowRow {
            src_port: 3,
            dst_port: 1,
            ..ping.clone()
        };
        let (back, _) = through(&[ping, unreachable], 1400);
        assert_eq!((back.row(0).src_port, back.row(0).dst_port), (8, 0));
        assert_eq!((back.row(1).src_port, back.row(1).dst_port), (3, 1));
        assert_eq!(
            (back.row(0).http_host, back.row(0).http_uri),
            (Some("a.example"), Some("/x"))
        );
        assert!(back.row(0).extra.unwrap().contains("\"applicationName\":\"http\""));
    }

    #[test]
    fn templates_go_out_again_when_asked_for() {
        let mut writer = IpfixWriter::new(1, 1400);
        let mut messages: Vec<Vec<u8>> = Vec::new();
        let mut keep = |message: &[u8]| messages.push(message.to_vec());
        for _ in 0..2 {
            writer.write(&flow(1), 0, &mut keep);
            writer.flush(0, &mut keep);
        }
        writer.resend_templates();
        writer.write(&flow(1), 0, &mut keep);
        writer.flush(0, &mut keep);
        let first_set = |message: &Vec<u8>| u16::from_be_bytes([message[16], message[17]]);
        assert_eq!(messages.iter().map(first_set).collect::<Vec<_>>(), [2, 256, 2]);
    }

    proptest! {
        #[test]
        fn whatever_is_known_of_a_flow_comes_back(
            times in (0i64..4_000_000_000_000_000_000, 0i64..1_000_000_000_000_000),
            counters in prop::array::uniform6(prop::option::of(any::<u64>())),
            flags in prop::option::of(any::<u8>()), vlan in prop::option::of(1u16..4096),
            host in prop::option::of("[a-z.]{1,300}"), ports in any::<(u16, u16)>(),
        ) {
            let row = FlowRow {
                state: 3,
                protocol: 6,
                src_port: ports.0,
                dst_port: ports.1,
                first_seen: times.0,
                last_seen: times.0 + times.1,
                src_packets: counters[0],
                dst_packets: counters[1],
                src_bytes: counters[2],
                dst_bytes: counters[3],
                src_ip_bytes: counters[4],
                dst_ip_bytes: counters[5],
                dst_tcp_flags: flags,
                vlan,
                http_host: host.as_deref(),
                ..FlowRow::default()
            };
            let (back, _) = through(std::slice::from_ref(&row), 1400);
            let mut back = carried(&back.row(0));
            back.service = None;
            prop_assert_eq!(back, carried(&row));
        }
    }
}
