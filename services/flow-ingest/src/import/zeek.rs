//! Zeek's `conn.log`, as tab-separated values with header lines or as JSON lines
//! (docs.zeek.org, "conn.log", "Zeek log formats").

use garrison_flow::FlowRow;
use serde_json::Value;

use super::{
    Ends, Out, Read, Result,
    value::{Extra, address, moment, number, parse, parse_address, port, protocol, seconds, text, timestamp},
};
use crate::domain::Sink;

/// What the header lines said.
pub(super) struct Zeek {
    separator: String,
    unset: String,
    empty: String,
    fields: Vec<String>,
    places: Places,
}

impl Default for Zeek {
    fn default() -> Self {
        Self {
            separator: "\t".to_owned(),
            unset: "-".to_owned(),
            empty: "(empty)".to_owned(),
            fields: Vec::new(),
            places: Places::default(),
        }
    }
}

// Which column has what.
const NAMES: [&str; 24] = [
    "ts",
    "uid",
    "id.orig_h",
    "id.orig_p",
    "id.resp_h",
    "id.resp_p",
    "proto",
    "service",
    "duration",
    "orig_bytes",
    "resp_bytes",
    "conn_state",
    "missed_bytes",
    "history",
    "orig_pkts",
    "orig_ip_bytes",
    "resp_pkts",
    "resp_ip_bytes",
    "tunnel_parents",
    "vlan",
    "orig_l2_addr",
    "resp_l2_addr",
    "ip_proto",
    "inner_vlan",
];

type Places = [Option<usize>; NAMES.len()];

// The values of one connection, however they were written.
#[derive(Default)]
struct Conn<'a> {
    start: Option<i64>,
    duration: Option<i64>,
    uid: Option<&'a str>,
    proto: Option<&'a str>,
    ip_proto: Option<u64>,
    service: Option<&'a str>,
    bytes: [Option<u64>; 2],
    packets: [Option<u64>; 2],
    ip_bytes: [Option<u64>; 2],
    missed: Option<u64>,
    state: Option<&'a str>,
    history: Option<&'a str>,
    vlan: Option<u64>,
    macs: [Option<&'a str>; 2],
    parents: Option<&'a str>,
}

impl Zeek {
    pub(super) fn line(&mut self, line: &str, out: &mut Out<'_, impl Sink>) -> Result<Read> {
        if line.starts_with('{') {
            return json(&parse(line)?, out);
        }
        match line.strip_prefix('#') {
            Some(header) => self.header(header),
            None => self.values(line, out),
        }
    }

    fn header(&mut self, header: &str) -> Result<Read> {
        if let Some(separator) = header.strip_prefix("separator ") {
            // Written as `\x09`.
            let octet = separator
                .strip_prefix("\\x")
                .and_then(|hex| u8::from_str_radix(hex, 16).ok());
            self.separator = octet.map_or_else(|| separator.to_owned(), |octet| char::from(octet).to_string());
            return match self.separator.is_empty() {
                true => Err("its separator is empty".to_owned()),
                false => Ok(Read::Nothing),
            };
        }
        let mut parts = header.split(self.separator.as_str());
        match parts.next() {
            Some("unset_field") => parts.next().unwrap_or("-").clone_into(&mut self.unset),
            Some("empty_field") => parts.next().unwrap_or("(empty)").clone_into(&mut self.empty),
            Some("path") => {
                let path = parts.next().unwrap_or_default();
                if !path.is_empty() && !path.contains("conn") {
                    return Err(format!("is a log of {path:?}; only conn.log has flows"));
                }
            }
            Some("fields") => {
                self.fields = parts.map(str::to_owned).collect();
                self.places = NAMES.map(|name| self.fields.iter().position(|field| same(field, name)));
                if self.places[2].is_none() || self.places[4].is_none() || self.places[0].is_none() {
                    return Err("its fields lack ts, id.orig_h or id.resp_h, so it is no conn.log".to_owned());
                }
            }
            _ => {}
        }
        Ok(Read::Nothing)
    }

    fn values(&self, line: &str, out: &mut Out<'_, impl Sink>) -> Result<Read> {
        if self.fields.is_empty() {
            return Err("comes before the line #fields that names its columns".to_owned());
        }
        let values: Vec<&str> = line.split(self.separator.as_str()).collect();
        if values.len() != self.fields.len() {
            return Err(format!("has {} columns instead of {}", values.len(), self.fields.len()));
        }
        let get = |place: usize| {
            let value = *values.get(self.places[place]?)?;
            (value != self.unset && value != self.empty && !value.is_empty()).then_some(value)
        };
        let count = |place| get(place).and_then(|text| text.parse::<u64>().ok());
        let need = |place: usize| get(place).ok_or_else(|| format!("has no {}", NAMES[place]));
        let port = |place| -> Result<u16> {
            match get(place) {
                None => Ok(0),
                Some(text) => text.parse().map_err(|_| format!("{text:?} is no port")),
            }
        };
        let conn = Conn {
            start: get(0).and_then(|text| seconds(text).or_else(|| timestamp(text))),
            duration: get(8).and_then(seconds),
            uid: get(1),
            proto: get(6),
            ip_proto: count(22),
            service: get(7),
            bytes: [count(9), count(10)],
            packets: [count(14), count(16)],
            ip_bytes: [count(15), count(17)],
            missed: count(12),
            state: get(11),
            history: get(13),
            vlan: count(19),
            macs: [get(20), get(21)],
            parents: get(18),
        };
        let ends = Ends {
            src: parse_address(need(2)?)?,
            dst: parse_address(need(4)?)?,
            src_port: port(3)?,
            dst_port: port(5)?,
            protocol: 0,
        };
        conn.write(ends, out)
    }
}

// Logs written with other field-name rules have `id_orig_h` or `orig-bytes`.
fn same(field: &str, name: &str) -> bool {
    field.len() == name.len()
        && field
            .bytes()
            .zip(name.bytes())
            .all(|(a, b)| a == b || (matches!(a, b'_' | b'-' | b'.') && matches!(b, b'_' | b'.')))
}

fn json(value: &Value, out: &mut Out<'_, impl Sink>) -> Result<Read> {
    if value.get("id.orig_h").is_none() {
        return Err("has no \"id.orig_h\", so it is no connection".to_owned());
    }
    let conn = Conn {
        start: moment(value, "ts"),
        duration: value
            .get("duration")
            .and_then(|duration| seconds(&duration.to_string())),
        uid: text(value, "uid"),
        proto: text(value, "proto"),
        ip_proto: number(value, "ip_proto"),
        service: text(value, "service"),
        bytes: [number(value, "orig_bytes"), number(value, "resp_bytes")],
        packets: [number(value, "orig_pkts"), number(value, "resp_pkts")],
        ip_bytes: [number(value, "orig_ip_bytes"), number(value, "resp_ip_bytes")],
        missed: number(value, "missed_bytes"),
        state: text(value, "conn_state"),
        history: text(value, "history"),
        vlan: number(value, "vlan"),
        macs: [text(value, "orig_l2_addr"), text(value, "resp_l2_addr")],
        parents: None,
    };
    let ends = Ends {
        src: address(value, "id.orig_h")?,
        dst: address(value, "id.resp_h")?,
        src_port: port(value, "id.orig_p")?,
        dst_port: port(value, "id.resp_p")?,
        protocol: 0,
    };
    conn.write(ends, out)
}

impl Conn<'_> {
    fn write(&self, mut ends: Ends, out: &mut Out<'_, impl Sink>) -> Result<Read> {
        let start = self.start.ok_or("has no ts that is a time")?;
        let proto = self.proto.unwrap_or_default();
        ends.protocol = self
            .ip_proto
            .and_then(|number| u8::try_from(number).ok())
            .or_else(|| protocol(proto, ends.src.is_ipv6()))
            .unwrap_or(crate::export::UNKNOWN_PROTOCOL);
        let tcp = ends.protocol == 6;
        let mut extra = Extra::default();
        extra.add("uid", self.uid.unwrap_or_default());
        extra.add("tunnel_parents", self.parents.unwrap_or_default());
        let extra = extra.json();
        let service = self.service.map(service);
        out.flow(
            &ends,
            FlowRow {
                first_seen: start,
                last_seen: start.saturating_add(self.duration.unwrap_or(0).max(0)),
                src_packets: self.packets[0],
                dst_packets: self.packets[1],
                src_bytes: self.bytes[0],
                dst_bytes: self.bytes[1],
                src_ip_bytes: self.ip_bytes[0],
                dst_ip_bytes: self.ip_bytes[1],
                conn_state: self.state,
                history: self.history,
                missed_bytes: self.missed.filter(|_| tcp),
                vlan: self.vlan.and_then(|id| u16::try_from(id).ok()),
                src_mac: self.macs[0].and_then(mac),
                dst_mac: self.macs[1].and_then(mac),
                service: service.as_deref(),
                end_reason: match self.state {
                    Some("SF") if tcp => Some("fin"),
                    Some("RSTO" | "RSTR" | "RSTOS0" | "RSTRH" | "REJ") => Some("rst"),
                    _ => None,
                },
                extra: Some(&extra),
                ..FlowRow::default()
            },
        )?;
        Ok(Read::Records(1))
    }
}

// Zeek names the first of several with commas between, and calls TLS by its old name.
fn service(names: &str) -> String {
    match names
        .split(',')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase()
        .as_str()
    {
        "ssl" => "tls".to_owned(),
        name => name.to_owned(),
    }
}

pub(super) fn mac(text: &str) -> Option<[u8; 6]> {
    let digits: String = text.chars().filter(|c| !matches!(c, ':' | '-')).collect();
    let mut octets = [0; 6];
    hex::decode_to_slice(digits, &mut octets).ok()?;
    Some(octets)
}
