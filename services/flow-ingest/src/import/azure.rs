//! Azure virtual network flow logs, and network security group flow logs of versions 1 and 2 (learn.microsoft.com,
//! "Virtual network flow logs", "NSG flow logs"): each record of the document `{"records": [...]}` holds tuples.

use std::collections::VecDeque;

use garrison_flow::FlowRow;
use serde_json::Value;

use super::{
    Ends, Out, Read, Result,
    value::{Extra, parse_address, protocol, text},
    zeek::mac,
};
use crate::domain::Sink;

pub(super) fn record(record: &Value, out: &mut Out<'_, impl Sink>) -> Result<Read> {
    let virtual_network = record.pointer("/flowRecords/flows");
    let security_group = record.pointer("/properties/flows");
    let flows = virtual_network
        .or(security_group)
        .and_then(Value::as_array)
        .ok_or("has neither flowRecords nor properties with flows")?;
    let mut records = 0;
    let mut wrong = VecDeque::new();
    for flow in flows {
        // Tuples are two levels down: flowGroups of a rule, or flows of a network card.
        let groups = flow
            .get("flowGroups")
            .or_else(|| flow.get("flows"))
            .and_then(Value::as_array);
        for group in groups.into_iter().flatten() {
            let mut extra = Extra::default();
            extra.copy(record, "targetResourceID");
            extra.copy(record, "resourceId");
            extra.copy(flow, "aclID");
            extra.copy(flow, "rule");
            extra.copy(group, "rule");
            let extra = extra.json();
            let own = text(group, "mac").or(text(record, "macAddress")).and_then(mac);
            let tuples = group.get("flowTuples").and_then(Value::as_array);
            for tuple in tuples.into_iter().flatten().filter_map(Value::as_str) {
                match one(tuple, virtual_network.is_some(), own, &extra, out) {
                    Ok(written) => records += u64::from(written),
                    Err(problem) => wrong.push_back(format!("tuple {tuple:?}: {problem}")),
                }
            }
        }
    }
    match (records, wrong.pop_front()) {
        (0, None) => Ok(Read::Nothing),
        (0, Some(problem)) => Err(problem),
        (records, None) => Ok(Read::Records(records)),
        (records, Some(problem)) => {
            tracing::debug!(problem, "one of several tuples cannot be read");
            Ok(Read::Records(records))
        }
    }
}

fn one(
    tuple: &str,
    virtual_network: bool,
    own: Option<[u8; 6]>,
    extra: &str,
    out: &mut Out<'_, impl Sink>,
) -> Result<bool> {
    let values: Vec<&str> = tuple.split(',').collect();
    let get = |place: usize| values.get(place).copied().unwrap_or_default();
    if values.len() < 8 {
        return Err(format!("has {} values instead of at least 8", values.len()));
    }
    let time: i64 = get(0).parse().map_err(|_| "does not begin with a time".to_owned())?;
    // Milliseconds in virtual network logs, seconds in those of security groups.
    let unit = if virtual_network { 1_000_000 } else { 1_000_000_000 };
    let time = time.checked_mul(unit).ok_or("has a time beyond what can be told")?;
    let port = |place| {
        get(place)
            .parse::<u16>()
            .map_err(|_| format!("{:?} is no port", get(place)))
    };
    let (src, dst) = (parse_address(get(1))?, parse_address(get(2))?);
    let name = match get(5) {
        "T" => "tcp",
        "U" => "udp",
        other => other,
    };
    let ends = Ends {
        src,
        dst,
        src_port: port(3)?,
        dst_port: port(4)?,
        protocol: protocol(name, src.is_ipv6()).unwrap_or(crate::export::UNKNOWN_PROTOCOL),
    };
    // Virtual network: state, encryption, counters. Security group: decision, and from version 2 state and counters.
    let (state, denied, counters) = match virtual_network {
        true => (get(7), get(7) == "D", 9),
        false => (get(8), get(7) == "D", 9),
    };
    // A flow that has just begun has no counters yet; it is told again, with them, when it goes on or ends.
    if state == "B" && !denied {
        return Ok(false);
    }
    let count = |place: usize| get(counters + place).parse::<u64>().ok().filter(|_| !denied);
    let inbound = get(6) == "I";
    out.flow(
        &ends,
        FlowRow {
            first_seen: time,
            last_seen: time,
            src_mac: own.filter(|_| !inbound),
            dst_mac: own.filter(|_| inbound),
            src_packets: count(0),
            src_ip_bytes: count(1),
            dst_packets: count(2),
            dst_ip_bytes: count(3),
            verdict: Some(if denied { "deny" } else { "accept" }),
            extra: Some(extra),
            ..FlowRow::default()
        },
    )?;
    Ok(true)
}
