//! Everything that reads what a stranger wrote, behind one function for each parser.
//!
//! `cargo xtask test` replays `fuzz/corpus` through them and mutates it for a bounded time (`tests/it.rs`); the folder
//! `fuzz` runs the same functions under libFuzzer for as long as one likes.

use std::{net::IpAddr, path::Path};

use chrono::DateTime;
use flow_ingest::{
    capture::CaptureFile,
    domain::{
        Limits, Meter, Sink,
        packet::{LinkType, Packet},
        record::EndReason,
    },
    export::{Collector, CollectorLimits},
    import::{Format, LogReader},
};
use garrison_auth::{SpiffeId, token};
use garrison_flow::FlowRow;
use garrison_intel::{
    Builder, Value, Warnings,
    feed::{self as intel, Column, Columns, Csv, Format as FeedFormat, Limits as FeedLimits, List, Misp, Stix},
};
use garrison_proof::{Checkpoint, ExportOptions, SignedNote, verify_bundle, verify_export};
use responder::domain::playbook::{self, Playbook};

/// A parser. It must not panic; the answer is whether it accepted the input.
pub type Target = fn(&[u8]) -> bool;

/// Every parser by its name, which is that of its corpus and of its libFuzzer program.
pub const TARGETS: [(&str, Target); 18] = [
    ("packet", packet),
    ("stream", stream),
    ("http2", http2),
    ("capture", capture),
    ("exports", exports),
    ("flow_log", flow_log),
    ("flow_batch", flow_batch),
    ("feed", feed),
    ("policy", policy),
    ("cluster", cluster),
    ("security_group", security_group),
    ("assertions", assertions),
    ("playbook", playbook),
    ("bundle", bundle),
    ("log", log),
    ("token", token),
    ("certificate", certificate),
    ("subject", subject),
];

/// Runs the parser of this name.
///
/// # Panics
/// When there is none, or the parser panics: then it is wrong.
pub fn run(name: &str, data: &[u8]) -> bool {
    let (_, target) = TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("there is no target {name}"));
    target(data)
}

/// Counts records, and looks at each as a subscriber would.
#[derive(Default)]
struct Records(usize);

impl Sink for Records {
    fn record(&mut self, row: &FlowRow<'_>) {
        self.0 += 1;
        assert!(row.first_seen <= row.last_seen, "a flow ends before it begins: {row:?}");
        let _ = row.to_proto();
    }
}

/// Few flows and little room, so that evictions are met too.
fn meter() -> Meter {
    let limits = Limits {
        flows: 64,
        applications: 32,
        ..Limits::default()
    };
    Meter::new("fuzz", limits, 1)
}

fn finish(mut meter: Meter, mut records: Records) -> bool {
    meter.finish(EndReason::EndOfFile, &mut records);
    let ledger = meter.counts().ledger();
    assert_eq!(ledger.received, ledger.parsed + ledger.malformed, "{ledger:?}");
    records.0 > 0
}

const LINKS: [LinkType; 10] = [
    LinkType::Ethernet,
    LinkType::Raw,
    LinkType::LinuxCooked,
    LinkType::LinuxCooked2,
    LinkType::Null,
    LinkType::Loop,
    LinkType::Ppp,
    LinkType::CiscoHdlc,
    LinkType::Ieee80211,
    LinkType::Radiotap,
];

/// Frames: an octet for the link type, then for each frame two octets of its length, big-endian, and the frame.
fn packet(data: &[u8]) -> bool {
    let Some((&link, mut rest)) = data.split_first() else {
        return false;
    };
    let (mut meter, mut records) = (meter(), Records::default());
    let mut time = 1_700_000_000_000_000_000;
    while let Some((length, frames)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(frames.len());
        let (frame, next) = frames.split_at(length);
        rest = next;
        time += 1_000_000;
        let packet = Packet {
            time,
            link: LINKS[usize::from(link) % LINKS.len()],
            data: frame,
            wire_len: frame.len() as u32,
            vlan_tci: None,
        };
        meter.process(&[packet], &mut records);
    }
    finish(meter, records)
}

/// A conversation, so that parsers of applications are reached whatever the headers: an octet for the transport and the
/// port, then for each segment an octet for its side and two for its length, and the payload.
fn stream(data: &[u8]) -> bool {
    const PORTS: [u16; 8] = [80, 443, 53, 22, 8080, 5353, 445, 25];
    let Some((&kind, mut rest)) = data.split_first() else {
        return false;
    };
    let (udp, port) = (kind & 0x80 != 0, PORTS[usize::from(kind) % PORTS.len()]);
    let (mut meter, mut records) = (meter(), Records::default());
    let mut time = 1_700_000_000_000_000_000;
    let mut sequence = [1_000_u32, 9_000];
    let mut send = |side: usize, flags: u8, payload: &[u8]| {
        let frame = if udp {
            datagram(side, port, payload)
        } else {
            let frame = segment(side, port, sequence, flags, payload);
            let control = u32::from(flags & 0x03 != 0);
            sequence[side] = sequence[side].wrapping_add(payload.len() as u32 + control);
            frame
        };
        time += 1_000_000;
        let packet = Packet {
            time,
            link: LinkType::Raw,
            data: &frame,
            wire_len: frame.len() as u32,
            vlan_tci: None,
        };
        meter.process(&[packet], &mut records);
    };
    if !udp {
        send(0, 0x02, &[]);
        send(1, 0x12, &[]);
    }
    while let Some((&[side, high, low], payloads)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low]) % 1_400).min(payloads.len());
        let (payload, next) = payloads.split_at(length);
        rest = next;
        send(usize::from(side & 1), 0x18, payload);
    }
    if !udp {
        send(0, 0x11, &[]);
    }
    finish(meter, records)
}

/// A conversation of HTTP/2: behind the client's preface the segments of [`stream`], without the octet before them.
fn http2(data: &[u8]) -> bool {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    stream(&[&[0, 0, 0, preface.len() as u8][..], preface, data].concat())
}

fn ip(side: usize, protocol: u8, above: usize) -> Vec<u8> {
    let total = (20 + above) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    let hosts = [[10, 0, 0, 7], [192, 0, 2, 80]];
    packet.extend(hosts[side]);
    packet.extend(hosts[1 - side]);
    packet
}

fn ports(side: usize, port: u16) -> [u8; 4] {
    let both = [40_000, port];
    let ([a, b], [c, d]) = (both[side].to_be_bytes(), both[1 - side].to_be_bytes());
    [a, b, c, d]
}

fn segment(side: usize, port: u16, sequence: [u32; 2], flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = ip(side, 6, 20 + payload.len());
    packet.extend(ports(side, port));
    packet.extend(sequence[side].to_be_bytes());
    packet.extend(sequence[1 - side].to_be_bytes());
    packet.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend(payload);
    packet
}

fn datagram(side: usize, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = ip(side, 17, 8 + payload.len());
    packet.extend(ports(side, port));
    packet.extend(((8 + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// A capture file, pcap or pcapng.
fn capture(data: &[u8]) -> bool {
    let Ok(mut file) = CaptureFile::new(data, Path::new("fuzz")) else {
        return false;
    };
    let (mut meter, mut records) = (meter(), Records::default());
    while let Ok(Some(burst)) = file.burst() {
        meter.process(burst.packets(), &mut records);
    }
    finish(meter, records)
}

/// Flow exports of one device: for each datagram two octets of its length, big-endian, and the datagram.
fn exports(data: &[u8]) -> bool {
    let limits = CollectorLimits {
        streams: 8,
        templates: 16,
        interfaces: 4,
    };
    let (mut collector, mut records) = (Collector::new("fuzz", limits, 1), Records::default());
    let exporter = IpAddr::from([192, 0, 2, 1]);
    let mut rest = data;
    while let Some((length, datagrams)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(datagrams.len());
        let (datagram, next) = datagrams.split_at(length);
        rest = next;
        collector.datagram(exporter, 1_700_000_000_000_000_000, datagram, &mut records);
    }
    let counts = collector.counts();
    assert!(counts.ledger().balances(), "{counts:?}");
    assert_eq!(counts.records, records.0 as u64);
    records.0 > 0
}

/// A log of another sensor or a cloud: an octet for the format, then the log.
fn flow_log(data: &[u8]) -> bool {
    const FORMATS: [Format; 6] = [
        Format::Zeek,
        Format::Suricata,
        Format::AwsVpc,
        Format::Azure,
        Format::Gcp,
        Format::Hubble,
    ];
    let Some((&format, log)) = data.split_first() else {
        return false;
    };
    let _ = Format::recognise(log);
    let (mut reader, mut records) = (
        LogReader::new(FORMATS[usize::from(format) % FORMATS.len()], "fuzz", 1),
        Records::default(),
    );
    for part in log.chunks(97) {
        reader.push(part, &mut records);
    }
    reader.finish(&mut records);
    let counts = reader.counts();
    assert!(counts.ledger().balances(), "{counts:?}");
    assert_eq!(counts.records, records.0 as u64);
    records.0 > 0
}

/// A message of the bus with flows. What is read is written again and reads back the same.
fn flow_batch(data: &[u8]) -> bool {
    let Ok((batch, meta)) = garrison_flow::decode(data) else {
        return false;
    };
    for row in batch.rows() {
        let _ = (row.to_proto(), row.reference());
    }
    if let Ok(again) = garrison_flow::encode(&batch, &meta) {
        let (read, _) = garrison_flow::decode(&again).unwrap_or_else(|error| panic!("written and not read: {error}"));
        assert_eq!(read.len(), batch.len());
    }
    true
}

/// A feed of indicators: an octet for the format, then the feed. What is taken is found again, and reads back as itself.
fn feed(data: &[u8]) -> bool {
    let Some((&format, feed)) = data.split_first() else {
        return false;
    };
    let subdomains = format & 0x80 != 0;
    let numbered = |number: usize| Some(Column::Numbered(number));
    let format = match format % 4 {
        0 => FeedFormat::List(List { kind: None, subdomains }),
        1 => FeedFormat::Csv(Box::new(Csv {
            delimiter: b',',
            header: subdomains,
            columns: Columns {
                value: Column::Numbered(1),
                kind: numbered(2),
                confidence: numbered(3),
                from: numbered(4),
                until: numbered(5),
                labels: numbered(6),
                techniques: numbered(6),
                reference: numbered(7),
                context: numbered(8),
            },
            kind: String::new(),
            subdomains,
        })),
        2 => FeedFormat::Stix(Stix { subdomains }),
        _ => FeedFormat::Misp(Misp {
            all_attributes: subdomains,
            subdomains,
        }),
    };
    let limits = FeedLimits {
        octets: 1 << 20,
        indicators: 200,
        problems: 5,
    };
    let (mut builder, mut values) = (Builder::new(200, 0), Vec::new());
    let report = intel::read(&format, feed, &limits, &mut |indicator| {
        assert_eq!(builder.add("fuzz", &indicator, 50, false), Ok(true));
        values.push(indicator.value);
    });
    let _ = intel::taxii::page(feed);
    let Ok(report) = report else {
        return false;
    };
    assert_eq!(report.taken, values.len() as u64);
    assert!(report.problems.len() <= 5 && report.problems.len() as u64 <= report.bad + report.not_understood);
    let (index, warnings) = (builder.build(), Warnings::default());
    for value in &values {
        assert_eq!(Value::parse(value.kind(), &value.to_string()).as_ref(), Ok(value));
        let _ = warnings.held(value);
        let mut found = false;
        index.about(value, |entry| found |= entry.to_value() == *value);
        assert!(found, "{value} was taken and is not found");
    }
    !values.is_empty()
}

/// Zero-trust policies. Every finding lies within the text.
fn policy(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let checked = garrison_ztp::check(text);
    if !checked.is_valid() {
        return false;
    }
    let formatted = garrison_ztp::format(text).unwrap_or_default();
    let again = garrison_ztp::check(&formatted);
    assert!(again.is_valid(), "formatting broke it: {formatted}");
    for (before, after) in checked.documents.iter().zip(&again.documents) {
        assert_eq!(before.policy, after.policy, "formatting changed what it means");
    }
    let policies: Vec<_> = checked.documents.iter().map(|document| document.lower(1)).collect();
    let _ = garrison_ztp::overlaps(&policies);
    for target in garrison_ztp::compile::Target::ALL {
        let _ = target.compile(&policies, |_| None);
    }
    true
}

/// Manifests of every kind that the analysis knows.
fn cluster(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let _ = garrison_ztp::istio::read(text);
    let source = garrison_ztp::cluster::Source {
        file: "fuzz".to_owned(),
        text: text.to_owned(),
    };
    let cluster = garrison_ztp::cluster::import(&[source]);
    // What was made up may have too many endpoints to compare them all here.
    if cluster.is_valid() && cluster.program.endpoints.len() <= 32 && cluster.program.policies().count() <= 32 {
        let reach = garrison_ztp::reach::Reach::of(&cluster.program);
        let matrix = garrison_ztp::reach::Matrix::of(&cluster.program);
        for i in 0..reach.endpoints().len().min(16) {
            for j in 0..reach.endpoints().len().min(16) {
                assert_eq!(matrix.allowed(i, j), reach.allowed(0, i, j));
            }
        }
    }
    cluster.is_valid()
}

fn security_group(data: &[u8]) -> bool {
    let Ok(groups) = std::str::from_utf8(data).map(garrison_ztp::security_group::read) else {
        return false;
    };
    for group in groups.iter().flatten() {
        let _ = group.document(&group.addresses);
    }
    groups.is_ok()
}

fn assertions(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(|text| garrison_ztp::reach::read_assertions(text).is_ok())
}

/// Playbooks.
fn playbook(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let documents = playbook::split(text);
    !documents.is_empty() && documents.iter().all(|document| Playbook::parse(document).is_ok())
}

/// An evidence bundle.
fn bundle(data: &[u8]) -> bool {
    verify_bundle(data, None).is_ok()
}

/// An export of the transparency log, and a signed note.
fn log(data: &[u8]) -> bool {
    let options = ExportOptions {
        trusted_key: None,
        earlier: None,
    };
    let export = verify_export(data, &options).is_ok();
    let note = std::str::from_utf8(data).is_ok_and(|text| {
        let _ = Checkpoint::parse_body(text);
        SignedNote::parse(text).is_ok()
    });
    export || note
}

/// An access token. Nothing that is not signed by the key passes, and the key signs nothing here; what is accepted is
/// the form.
fn token(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let rules = token::Rules::for_trust_domain("garrison.local");
    let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
    match token::verify(text, &rules, now, |_| Some([7; 32])) {
        Ok(claims) => panic!("a token of nobody was accepted: {claims:?}"),
        Err(token::TokenError::Signature) => true,
        Err(_) => false,
    }
}

/// A certificate, DER.
fn certificate(data: &[u8]) -> bool {
    SpiffeId::from_certificate(data).is_ok()
}

/// A subject.
fn subject(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let tenant = garrison_bus::subject::tenant_of(text);
    let parsed = garrison_bus::subject::parse(text);
    if let (Ok(tenant), Ok(parsed)) = (&tenant, &parsed) {
        assert_eq!(*tenant, parsed.tenant, "{text:?}");
        assert_eq!(text.split('.').nth(2), Some(tenant.as_str()));
    }
    tenant.is_ok()
}
