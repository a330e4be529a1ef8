//! Amazon VPC flow logs, versions 2 to 5 (docs.aws.amazon.com, "Flow log records"): text lines whose columns a header line
//! names, or the fourteen of the default format.

use garrison_flow::FlowRow;

use super::{
    Ends, Out, Read, Result,
    value::{Extra, parse_address},
};
use crate::domain::Sink;

const DEFAULT: [&str; 14] = [
    "version",
    "account-id",
    "interface-id",
    "srcaddr",
    "dstaddr",
    "srcport",
    "dstport",
    "protocol",
    "packets",
    "bytes",
    "start",
    "end",
    "action",
    "log-status",
];

/// Columns that have a place in the schema; the others go beside it.
const PLACED: [&str; 9] = [
    "srcaddr", "dstaddr", "srcport", "dstport", "protocol", "packets", "bytes", "start", "end",
];

/// What the header line said.
#[derive(Default)]
pub(super) struct Aws {
    columns: Vec<String>,
}

/// Whether a line is a header or a record of the default format.
pub(super) fn recognise(line: &str) -> bool {
    let values: Vec<&str> = line.split_ascii_whitespace().collect();
    if values.contains(&"srcaddr") && values.contains(&"dstaddr") {
        return true;
    }
    values.len() == DEFAULT.len()
        && matches!(values[0], "2" | "3" | "4" | "5")
        && matches!(values[13], "OK" | "NODATA" | "SKIPDATA")
}

impl Aws {
    pub(super) fn line(&mut self, line: &str, out: &mut Out<'_, impl Sink>) -> Result<Read> {
        let values: Vec<&str> = line.split_ascii_whitespace().collect();
        if values.contains(&"srcaddr") && values.contains(&"dstaddr") {
            self.columns = values.iter().map(|name| plain(name)).collect();
            return Ok(Read::Nothing);
        }
        let count = match self.columns.len() {
            0 => DEFAULT.len(),
            some => some,
        };
        if values.len() != count {
            return Err(format!("has {} columns instead of {count}", values.len()));
        }
        let columns = &self.columns;
        let name = |i: usize| match columns.is_empty() {
            true => DEFAULT[i],
            false => columns[i].as_str(),
        };
        record(values.iter().enumerate().map(|(i, value)| (name(i), *value)), out)
    }
}

// A custom format may be written as it was ordered: `${srcaddr}`.
fn plain(name: &str) -> String {
    name.trim_start_matches("${").trim_end_matches('}').replace('_', "-")
}

/// A row of a Parquet file.
pub(super) fn named(row: &[(String, String)], out: &mut Out<'_, impl Sink>) -> Result<Read> {
    let row: Vec<(String, &str)> = row.iter().map(|(name, value)| (plain(name), value.as_str())).collect();
    record(row.iter().map(|(name, value)| (name.as_str(), *value)), out)
}

fn record<'a>(columns: impl Iterator<Item = (&'a str, &'a str)> + Clone, out: &mut Out<'_, impl Sink>) -> Result<Read> {
    let get = |wanted: &str| {
        columns
            .clone()
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| value)
            .filter(|value| !value.is_empty() && *value != "-")
    };
    if matches!(get("log-status"), Some("NODATA" | "SKIPDATA")) {
        return Ok(Read::Nothing);
    }
    let number = |name: &str| -> Result<Option<u64>> {
        get(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| format!("{name} is {text:?}, which is no number"))
            })
            .transpose()
    };
    let address = |name: &str| parse_address(get(name).ok_or_else(|| format!("has no {name}"))?);
    let port = |name: &str| -> Result<u16> {
        let port = number(name)?.unwrap_or(0);
        u16::try_from(port).map_err(|_| format!("{name} is {port}, which is no port"))
    };
    let ends = Ends {
        src: address("srcaddr")?,
        dst: address("dstaddr")?,
        src_port: port("srcport")?,
        dst_port: port("dstport")?,
        protocol: number("protocol")?
            .and_then(|number| u8::try_from(number).ok())
            .unwrap_or(crate::export::UNKNOWN_PROTOCOL),
    };
    let time = |name: &str| -> Result<Option<i64>> {
        Ok(number(name)?.and_then(|seconds| i64::try_from(seconds).ok()?.checked_mul(1_000_000_000)))
    };
    let start = time("start")?.ok_or("has no start")?;
    let mut extra = Extra::default();
    for (name, value) in columns.clone() {
        let known = PLACED.contains(&name) || matches!(name, "version" | "action" | "log-status");
        // The packet's own addresses matter only where something in between exchanged them.
        let same = matches!(name, "pkt-srcaddr" | "pkt-dstaddr") && get(&name[4..]) == Some(value);
        if !known && !same && value != "-" {
            extra.add(name, value);
        }
    }
    let extra = extra.json();
    // Only SYN, SYN-ACK, FIN and RST are in it, so it is no column; it does tell who answers.
    let flags = number("tcp-flags")?.map(|bits| bits as u8);
    let answers = match flags {
        Some(bits) if bits & 0x12 == 0x12 => true,
        Some(bits) if bits & 0x02 != 0 => false,
        _ => ends.is_answer(None),
    };
    let (packets, octets) = (number("packets")?, number("bytes")?);
    let sides = |mine: bool, value: Option<u64>| value.filter(|_| mine);
    out.flow(
        &if answers { ends.reversed() } else { ends },
        FlowRow {
            first_seen: start,
            last_seen: time("end")?.unwrap_or(start),
            src_packets: sides(!answers, packets),
            dst_packets: sides(answers, packets),
            src_ip_bytes: sides(!answers, octets),
            dst_ip_bytes: sides(answers, octets),
            verdict: match get("action") {
                Some("ACCEPT") => Some("accept"),
                Some("REJECT") => Some("deny"),
                _ => None,
            },
            extra: Some(&extra),
            ..FlowRow::default()
        },
    )?;
    Ok(Read::Records(1))
}
