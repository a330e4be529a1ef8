//! Cilium Hubble flows as `hubble observe -o json` prints them (docs.cilium.io, `flow.proto`): each tells of one packet or
//! one application message, not of a connection.

use garrison_flow::FlowRow;
use serde_json::Value;

use super::{
    Ends, Out, Read, Result,
    value::{Extra, address, moment, number, port, text},
    zeek::mac,
};
use crate::domain::Sink;

pub(super) fn flow(line: &Value, out: &mut Out<'_, impl Sink>) -> Result<Read> {
    // With `-o jsonpb` the flow is inside; with `-o json` of older releases it is the line itself.
    let flow = line.get("flow").unwrap_or(line);
    let Some(ip) = flow.get("IP").or_else(|| flow.get("ip")) else {
        return match flow
            .get("verdict")
            .or_else(|| line.get("node_status"))
            .or_else(|| line.get("lost_events"))
        {
            Some(_) => Ok(Read::Nothing),
            None => Err("has neither \"IP\" nor a verdict, so it is no Hubble flow".to_owned()),
        };
    };
    let (src, dst) = (address(ip, "source")?, address(ip, "destination")?);
    let l4 = flow.get("l4").unwrap_or(&Value::Null);
    let (protocol, transport) = ["TCP", "UDP", "SCTP", "ICMPv4", "ICMPv6"]
        .iter()
        .zip([6, 17, 132, 1, 58])
        .find_map(|(name, number)| Some((number, l4.get(name)?)))
        .unwrap_or((crate::export::UNKNOWN_PROTOCOL, &Value::Null));
    let icmp = matches!(protocol, 1 | 58);
    let kind = number(transport, "type").unwrap_or(0) as u8;
    let code = number(transport, "code").unwrap_or(0) as u16;
    let ends = Ends {
        src,
        dst,
        src_port: if icmp {
            kind.into()
        } else {
            port(transport, "source_port")?
        },
        dst_port: match icmp {
            true => crate::domain::packet::icmp_answer(protocol, kind).map_or(code, u16::from),
            false => port(transport, "destination_port")?,
        },
        protocol,
    };
    let reply = match flow.get("is_reply") {
        Some(Value::Bool(reply)) => *reply,
        _ => ends.is_answer(None),
    };
    let time = moment(flow, "time").or(moment(line, "time")).ok_or("has no time")?;
    let flags = transport.get("flags").map(tcp_flags);
    let mut extra = Extra::default();
    extra.copy(line, "node_name");
    for name in ["Type", "drop_reason_desc", "traffic_direction", "uuid", "Summary"] {
        extra.copy(flow, name);
    }
    for side in ["source", "destination"] {
        let mut workload = Extra::default();
        let found = flow.get(side).unwrap_or(&Value::Null);
        for name in ["identity", "namespace", "pod_name", "labels"] {
            workload.copy(found, name);
        }
        extra.add(
            side,
            serde_json::from_str::<Value>(&workload.json()).unwrap_or_default(),
        );
    }
    let extra = extra.json();
    let l7 = flow.get("l7").unwrap_or(&Value::Null);
    let http = l7.get("http");
    let dns = l7.get("dns");
    let header = |wanted: &str| {
        let headers = http?.get("headers")?.as_array()?;
        let found = headers
            .iter()
            .find(|header| text(header, "key").is_some_and(|key| key.eq_ignore_ascii_case(wanted)))?;
        text(found, "value")
    };
    let query = dns
        .and_then(|dns| text(dns, "query"))
        .map(|name| name.trim_end_matches('.'));
    let macs = flow
        .get("ethernet")
        .map(|ethernet| ["source", "destination"].map(|side| text(ethernet, side).and_then(mac)));
    let [src_mac, dst_mac] = macs.unwrap_or_default();
    // An application message is no packet; how many there were is not told.
    let packets = l7.is_null().then_some(1);
    let row = FlowRow {
        first_seen: time,
        last_seen: time,
        src_mac: if reply { dst_mac } else { src_mac },
        dst_mac: if reply { src_mac } else { dst_mac },
        src_packets: packets.filter(|_| !reply),
        dst_packets: packets.filter(|_| reply),
        src_tcp_flags: flags.filter(|_| !reply),
        dst_tcp_flags: flags.filter(|_| reply),
        service: match (http, dns) {
            (Some(_), _) => Some("http"),
            (_, Some(_)) => Some("dns"),
            _ => None,
        },
        http_method: http.and_then(|http| text(http, "method")),
        http_uri: http.and_then(|http| text(http, "url")),
        http_host: header("host").or(header(":authority")),
        http_user_agent: header("user-agent"),
        http_status: http
            .and_then(|http| number(http, "code"))
            .map(|code| code as u16)
            .filter(|c| *c != 0),
        dns_query: query,
        dns_rcode: dns.and_then(|dns| number(dns, "rcode")).map(|code| code as u8),
        verdict: match text(flow, "verdict") {
            Some("FORWARDED" | "REDIRECTED" | "TRACED" | "TRANSLATED") => Some("accept"),
            Some("DROPPED") => Some("drop"),
            _ => None,
        },
        extra: Some(&extra),
        ..FlowRow::default()
    };
    out.flow(&if reply { ends.reversed() } else { ends }, row)?;
    Ok(Read::Records(1))
}

fn tcp_flags(flags: &Value) -> u8 {
    ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"]
        .iter()
        .enumerate()
        .filter(|(_, name)| flags.get(**name).and_then(Value::as_bool) == Some(true))
        .fold(0, |bits, (i, _)| bits | 1 << i)
}
