//! From the values of an exported record to a row of the flow schema.

use std::net::IpAddr;

use garrison_flow::{FlowRow, FlowState};

use super::{
    field::{Slot, Text},
    plan::Values,
};
use crate::domain::{
    Sink,
    key::{COMMUNITY_ID_LEN, FlowKey, HashSeed, community_id, flow_id},
    packet::{ICMP, ICMPV6, SCTP, TCP, UDP, address, icmp_answer},
    port::is_server_port,
};

/// IP protocol number of a record that does not tell it: "reserved" in IANA's registry, so no packet has it.
pub const UNKNOWN_PROTOCOL: u8 = 255;

const MILLISECOND: i64 = 1_000_000;
const SECOND: i64 = 1_000_000_000;
// NTP counts seconds from 1900 (RFC 5905 §6).
const NTP_EPOCH: u64 = 2_208_988_800;

/// What holds for every record of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// The value of the `origin` column.
    pub(super) origin: &'static str,
    /// The device that sent it.
    pub(super) exporter: IpAddr,
    /// When it was sent by the exporter's clock, nanoseconds since the epoch.
    pub(super) exported: i64,
    /// Milliseconds since the exporter's start when it was sent.
    pub(super) uptime: Option<u32>,
    /// One in how many packets the exporter looks at, where the record itself does not say.
    pub(super) sampling: u32,
}

/// Makes rows whole and hands them over.
pub(crate) struct Emitter {
    sensor: String,
    seed: HashSeed,
    serial: u16,
    json: String,
}

impl Emitter {
    pub(crate) fn new(sensor: &str, random: u128) -> Self {
        Self {
            sensor: sensor.to_owned(),
            seed: HashSeed::new(random),
            serial: 0,
            json: String::new(),
        }
    }

    /// Hands over a finished row after its sensor, id and Community ID were filled in.
    pub(crate) fn finish(&mut self, key: &FlowKey, row: FlowRow<'_>, sink: &mut impl Sink) {
        // Changed where it lies: a row is large.
        let mut row = row;
        let mut community = [0; COMMUNITY_ID_LEN];
        community_id(key, row.ip_version, &mut community);
        // Two records of one flow with one start, as active timeouts make them, are told apart by the serial number.
        self.serial = self.serial.wrapping_add(1);
        row.flow_id = flow_id(&self.seed, key, row.first_seen, self.serial);
        row.community_id = std::str::from_utf8(&community).unwrap_or_default();
        row.sensor = &self.sensor;
        sink.record(&row);
    }

    /// Hands over a record. `false` when it names no two hosts, and so is no flow.
    #[inline]
    pub(super) fn flow(&mut self, header: &Header, values: &Values<'_>, extra: &[u8], sink: &mut impl Sink) -> bool {
        if values.src_len == 0 || values.src_len != values.dst_len {
            return false;
        }
        let get = |slot| values.get(slot);
        let protocol = get(Slot::Protocol).map_or(UNKNOWN_PROTOCOL, |number| number as u8);
        let ip_version = if values.src_len == 4 { 4 } else { 6 };
        let (src_port, dst_port) = ports(values, protocol);
        let mut key = FlowKey {
            src: values.src,
            dst: values.dst,
            src_port,
            dst_port,
            protocol,
        };
        let sampling = header.sampling.max(1);
        let scaled = |count: Option<u64>| count.map(|count| count.saturating_mul(sampling.into()));
        // A firewall's total counts both directions, so it belongs to neither.
        let total = |slot| get(slot).filter(|_| get(Slot::FirewallEvent).is_none());
        let mut src = Side {
            packets: scaled(
                get(Slot::SrcPackets)
                    .or(total(Slot::TotalPackets))
                    .or(get(Slot::OutPackets)),
            ),
            bytes: scaled(get(Slot::SrcBytes)),
            ip_bytes: scaled(
                get(Slot::SrcIpBytes)
                    .or(total(Slot::TotalIpBytes))
                    .or(get(Slot::OutIpBytes)),
            ),
            flags: get(Slot::SrcTcpFlags)
                .filter(|_| protocol == TCP)
                .map(|bits| bits as u8),
            mac: values.src_mac.filter(|mac| *mac != [0; 6]),
        };
        let mut dst = Side {
            packets: scaled(get(Slot::DstPackets)),
            bytes: scaled(get(Slot::DstBytes)),
            ip_bytes: scaled(get(Slot::DstIpBytes)),
            flags: get(Slot::DstTcpFlags)
                .filter(|_| protocol == TCP)
                .map(|bits| bits as u8),
            mac: values.dst_mac.filter(|mac| *mac != [0; 6]),
        };
        let turned = match get(Slot::BiflowDirection) {
            // RFC 5103 §6.3: 1 the source began it, 2 the destination did.
            Some(1) => false,
            Some(2) => true,
            _ => dst.is_unknown() && get(Slot::FirewallEvent).is_none() && is_answer(&key, ip_version, src.flags),
        };
        if turned {
            key = key.reversed();
            std::mem::swap(&mut src, &mut dst);
        }
        let (first_seen, last_seen) = times(header, values);
        let (tunnel_kind, tunnel_id) = match get(Slot::Segment) {
            // RFC 7133 §4: the first octet tells the kind, the last three the identifier.
            Some(segment) if segment & 0xff_ffff != 0 => {
                let kind = match segment >> 56 {
                    1 => "vxlan",
                    2 => "nvgre",
                    _ => "layer2",
                };
                (Some(kind), Some((segment & 0xff_ffff) as u32))
            }
            _ => (None, None),
        };
        let http = values.text(Text::HttpMethod).or(values.text(Text::HttpHost)).is_some();
        let mut json = std::mem::take(&mut self.json);
        let row = FlowRow {
            state: FlowState::Ended as u8,
            origin: header.origin,
            first_seen,
            last_seen,
            ip_version,
            protocol,
            src_ip: address(&key.src),
            dst_ip: address(&key.dst),
            src_port: key.src_port,
            dst_port: key.dst_port,
            src_mac: src.mac,
            dst_mac: dst.mac,
            vlan: get(Slot::Vlan).map(|tag| tag as u16 & 0x0fff).filter(|id| *id != 0),
            tunnel_kind,
            tunnel_id,
            src_packets: src.packets,
            dst_packets: dst.packets,
            src_bytes: src.bytes,
            dst_bytes: dst.bytes,
            src_ip_bytes: src.ip_bytes,
            dst_ip_bytes: dst.ip_bytes,
            src_tcp_flags: src.flags,
            dst_tcp_flags: dst.flags,
            sampling,
            end_reason: end_reason(get(Slot::EndReason)),
            service: http.then_some("http"),
            http_method: values.text(Text::HttpMethod),
            http_host: values.text(Text::HttpHost),
            http_uri: values.text(Text::HttpTarget),
            http_user_agent: values.text(Text::HttpUserAgent),
            http_status: get(Slot::HttpStatus).map(|status| status as u16).filter(|s| *s != 0),
            // Files of datagrams do not say who sent them.
            exporter: Some(header.exporter).filter(|address| !address.is_unspecified()),
            verdict: verdict(values),
            extra: object(extra, &mut json),
            ..FlowRow::default()
        };
        self.finish(&key, row, sink);
        self.json = json;
        true
    }
}

struct Side {
    packets: Option<u64>,
    bytes: Option<u64>,
    ip_bytes: Option<u64>,
    flags: Option<u8>,
    mac: Option<[u8; 6]>,
}

impl Side {
    fn is_unknown(&self) -> bool {
        self.packets.is_none() && self.bytes.is_none() && self.ip_bytes.is_none()
    }
}

// The inside of a JSON object as the object.
fn object<'a>(inside: &[u8], json: &'a mut String) -> Option<&'a str> {
    let inside = std::str::from_utf8(inside).ok().filter(|text| !text.is_empty())?;
    json.clear();
    json.push('{');
    json.push_str(inside);
    json.push('}');
    Some(json)
}

// Ports; for ICMP the type, and the answer's type or the code, as packets have them.
fn ports(values: &Values<'_>, protocol: u8) -> (u16, u16) {
    let port = |slot| values.get(slot).unwrap_or_default() as u16;
    if !matches!(protocol, ICMP | ICMPV6) {
        return (port(Slot::SrcPort), port(Slot::DstPort));
    }
    let (kind, code) = match (values.get(Slot::IcmpType), values.get(Slot::IcmpTypeCode)) {
        (Some(kind), _) => (kind as u16 & 0xff, port(Slot::IcmpCode) & 0xff),
        (None, Some(both)) => (both as u16 >> 8, both as u16 & 0xff),
        // Cisco's custom: type and code in place of the destination port.
        (None, None) => (port(Slot::DstPort) >> 8, port(Slot::DstPort) & 0xff),
    };
    (kind, icmp_answer(protocol, kind as u8).map_or(code, u16::from))
}

/// Whether a record of one direction is the server's, told by the ports as the meter tells it of packets.
pub(crate) fn is_answer(key: &FlowKey, ip_version: u8, flags: Option<u8>) -> bool {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    if !matches!(key.protocol, TCP | UDP | SCTP) || flags.is_some_and(|bits| bits & (SYN | ACK) == SYN) {
        return false;
    }
    let group = match ip_version {
        4 => key.dst[12] >= 0xe0,
        _ => key.dst[0] == 0xff,
    };
    !group && is_server_port(key.src_port) && !is_server_port(key.dst_port)
}

fn end_reason(number: Option<u64>) -> Option<&'static str> {
    match number? {
        1 => Some("idle"),
        2 => Some("active"),
        3 => Some("fin"),
        4 => Some("shutdown"),
        5 => Some("evicted"),
        _ => None,
    }
}

fn verdict(values: &Values<'_>) -> Option<&'static str> {
    // IANA "Firewall Event": 3 denied. "Forwarding Status" (RFC 7270 §4.12): the upper two bits of an octet.
    match values.get(Slot::FirewallEvent) {
        Some(3) => return Some("deny"),
        Some(1 | 2 | 5) => return Some("accept"),
        _ => {}
    }
    match values.get(Slot::ForwardingStatus)? as u8 >> 6 {
        1 | 3 => Some("accept"),
        2 => Some("drop"),
        _ => None,
    }
}

fn times(header: &Header, values: &Values<'_>) -> (i64, i64) {
    let observed = moment(values, Slot::ObservedMs, Slot::ObservedNtp, Slot::ObservedSeconds);
    let start = moment(values, Slot::StartMs, Slot::StartNtp, Slot::StartSeconds)
        .or_else(|| before(header, values.get(Slot::StartDeltaUs)))
        .or_else(|| since_boot(header, values, Slot::StartUptime))
        .or(observed);
    let end = moment(values, Slot::EndMs, Slot::EndNtp, Slot::EndSeconds)
        .or_else(|| before(header, values.get(Slot::EndDeltaUs)))
        .or_else(|| since_boot(header, values, Slot::EndUptime))
        .or(observed);
    let lasted = values
        .get(Slot::DurationMs)
        .and_then(|ms| nanoseconds(ms, MILLISECOND))
        .or_else(|| values.get(Slot::DurationUs).and_then(|us| nanoseconds(us, 1_000)));
    match (start, end, lasted) {
        (Some(start), Some(end), _) => (start.min(end), end.max(start)),
        (Some(start), None, lasted) => (start, start.saturating_add(lasted.unwrap_or(0))),
        (None, Some(end), lasted) => (end.saturating_sub(lasted.unwrap_or(0)).max(0), end),
        (None, None, lasted) => (
            header.exported.saturating_sub(lasted.unwrap_or(0)).max(0),
            header.exported,
        ),
    }
}

fn moment(values: &Values<'_>, ms: Slot, ntp: Slot, seconds: Slot) -> Option<i64> {
    let some = |slot| values.get(slot).filter(|value| *value != 0);
    some(ms)
        .and_then(|value| nanoseconds(value, MILLISECOND))
        .or_else(|| some(ntp).map(from_ntp))
        .or_else(|| some(seconds).and_then(|value| nanoseconds(value, SECOND)))
}

fn nanoseconds(value: u64, unit: i64) -> Option<i64> {
    i64::try_from(value).ok()?.checked_mul(unit)
}

fn from_ntp(value: u64) -> i64 {
    let seconds = value >> 32;
    // Below the epoch's number it is of the era that begins in 2036.
    let seconds = if seconds < NTP_EPOCH {
        seconds + (1 << 32)
    } else {
        seconds
    } - NTP_EPOCH;
    let fraction = ((value & 0xffff_ffff) * 1_000_000_000) >> 32;
    seconds as i64 * SECOND + fraction as i64
}

fn before(header: &Header, microseconds: Option<u64>) -> Option<i64> {
    let ago = nanoseconds(microseconds?, 1_000)?;
    header.exported.checked_sub(ago).filter(|time| *time >= 0)
}

fn since_boot(header: &Header, values: &Values<'_>, slot: Slot) -> Option<i64> {
    let uptime = values.get(slot)?;
    if let Some(boot) = values.get(Slot::BootMs).filter(|boot| *boot != 0) {
        return nanoseconds(boot.checked_add(uptime)?, MILLISECOND);
    }
    // Both counters wrap every 49.7 days, so only their difference counts; it may be slightly negative.
    let ago = header.uptime?.wrapping_sub(uptime as u32) as i32;
    header
        .exported
        .checked_sub(i64::from(ago) * MILLISECOND)
        .filter(|time| *time >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            origin: "netflow9",
            exporter: IpAddr::from([192, 0, 2, 1]),
            exported: 1_000_000 * SECOND,
            uptime: Some(5_000),
            sampling: 1,
        }
    }

    fn with(slots: &[(Slot, u64)]) -> Values<'static> {
        let mut values = Values::new();
        slots.iter().for_each(|&(slot, value)| values.set(slot, value));
        values
    }

    #[test]
    fn times_come_from_whatever_the_record_has() {
        let at = |slots: &[(Slot, u64)]| times(&header(), &with(slots));
        let now = header().exported;
        assert_eq!(at(&[]), (now, now));
        assert_eq!(
            at(&[(Slot::StartUptime, 1_000), (Slot::EndUptime, 4_000)]),
            (now - 4 * SECOND, now - SECOND)
        );
        // The uptime wrapped between the flow's start and the export.
        assert_eq!(
            at(&[(Slot::StartUptime, 0xffff_ffff), (Slot::EndUptime, 0)]).0,
            now - 5_001 * MILLISECOND
        );
        assert_eq!(
            at(&[(Slot::StartMs, 7), (Slot::DurationMs, 3)]),
            (7_000_000, 10_000_000)
        );
        assert_eq!(at(&[(Slot::EndSeconds, 7)]), (7 * SECOND, 7 * SECOND));
        assert_eq!(at(&[(Slot::StartDeltaUs, 2)]).0, now - 2_000);
        let half = (NTP_EPOCH + 1) << 32 | 0x8000_0000;
        assert_eq!(at(&[(Slot::StartNtp, half)]).0, 1_500_000_000);
        assert_eq!(
            at(&[(Slot::BootMs, 1_000), (Slot::StartUptime, 5)]).0,
            1_005 * MILLISECOND
        );
        // Nonsense is not believed.
        assert_eq!(at(&[(Slot::StartMs, u64::MAX)]), (now, now));
    }

    #[test]
    fn icmp_ports_are_type_and_answer_however_they_are_told() {
        for slots in [
            vec![(Slot::IcmpTypeCode, 0x0800)],
            vec![(Slot::IcmpType, 8), (Slot::IcmpCode, 0)],
            vec![(Slot::DstPort, 0x0800)],
        ] {
            assert_eq!(ports(&with(&slots), ICMP), (8, 0));
        }
        assert_eq!(ports(&with(&[(Slot::IcmpTypeCode, 0x0303)]), ICMP), (3, 3));
    }

    #[test]
    fn only_a_servers_direction_is_turned_round() {
        let key = |src_port, dst_port| FlowKey {
            src: [1; 16],
            dst: [2; 16],
            src_port,
            dst_port,
            protocol: TCP,
        };
        assert!(is_answer(&key(443, 50_000), 4, None));
        assert!(is_answer(&key(443, 50_000), 4, Some(0x12)));
        assert!(!is_answer(&key(443, 50_000), 4, Some(0x02)));
        assert!(!is_answer(&key(50_000, 443), 4, None));
        assert!(!is_answer(&key(53, 53), 4, None));
        let mut group = key(53, 50_000);
        group.dst[12] = 224;
        assert!(!is_answer(&group, 4, None));
    }
}
