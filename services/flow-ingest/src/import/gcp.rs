//! Google Cloud VPC flow logs as entries of Cloud Logging (cloud.google.com, "VPC Flow Logs records").

use garrison_flow::FlowRow;
use serde_json::Value;

use super::{
    Ends, Out, Read, Result,
    value::{Extra, address, moment, number, port, text},
};
use crate::domain::Sink;

pub(super) fn entry(entry: &Value, out: &mut Out<'_, impl Sink>) -> Result<Read> {
    // Exports to BigQuery and by some tools have the payload alone.
    let payload = entry.get("jsonPayload").unwrap_or(entry);
    let Some(connection) = payload.get("connection") else {
        return match entry.get("jsonPayload") {
            // Another log's entry: audit, firewall, ….
            Some(_) => Ok(Read::Nothing),
            None => Err("has neither \"jsonPayload\" nor \"connection\"".to_owned()),
        };
    };
    let ends = Ends {
        src: address(connection, "src_ip")?,
        dst: address(connection, "dest_ip")?,
        src_port: port(connection, "src_port")?,
        dst_port: port(connection, "dest_port")?,
        protocol: number(connection, "protocol")
            .and_then(|number| u8::try_from(number).ok())
            .unwrap_or(crate::export::UNKNOWN_PROTOCOL),
    };
    let end = moment(payload, "end_time").or(moment(entry, "timestamp"));
    let start = moment(payload, "start_time").or(end).ok_or("has no start_time")?;
    let mut extra = Extra::default();
    for name in [
        "reporter",
        "src_instance",
        "dest_instance",
        "src_vpc",
        "dest_vpc",
        "src_gke_details",
        "dest_gke_details",
        "src_location",
        "dest_location",
    ] {
        extra.copy(payload, name);
    }
    let extra = extra.json();
    let answers = ends.is_answer(None);
    let side = |mine: bool, name: &str| number(payload, name).filter(|_| mine);
    out.flow(
        &if answers { ends.reversed() } else { ends },
        FlowRow {
            first_seen: start,
            last_seen: end.unwrap_or(start),
            src_packets: side(!answers, "packets_sent"),
            dst_packets: side(answers, "packets_sent"),
            src_ip_bytes: side(!answers, "bytes_sent"),
            dst_ip_bytes: side(answers, "bytes_sent"),
            tcp_rtt_ns: number(payload, "rtt_msec")
                .filter(|ms| *ms > 0)
                .map(|ms| ms.saturating_mul(1_000_000)),
            verdict: match text(payload, "disposition") {
                Some("ALLOWED") => Some("accept"),
                Some("DENIED") => Some("deny"),
                _ => None,
            },
            extra: Some(&extra),
            ..FlowRow::default()
        },
    )?;
    Ok(Read::Records(1))
}
