//! Suricata's EVE log (docs.suricata.io, "Eve JSON Format"): flow events, with what `http`, `tls` and `dns` events of the
//! same flow said before.

use std::collections::{HashMap, VecDeque};

use garrison_flow::FlowRow;
use serde_json::Value;

use super::{
    Ends, Out, Read, Result,
    value::{Extra, address, moment, number, parse, port, protocol, text},
    zeek::mac,
};
use crate::domain::{Sink, packet::icmp_answer};

/// Flows whose application events are held until their flow event comes. The oldest go first.
const MAX_HELD: usize = 65_536;

#[derive(Default)]
pub(super) struct Eve {
    held: HashMap<u64, Facts>,
    order: VecDeque<u64>,
}

#[derive(Default)]
struct Facts {
    http: Option<Value>,
    tls: Option<Value>,
    dns: Option<Value>,
    requests: u32,
    refused: u32,
    queries: u32,
    alerts: u32,
}

impl Eve {
    pub(super) fn line(&mut self, line: &str, out: &mut Out<'_, impl Sink>) -> Result<Read> {
        let event = parse(line)?;
        let kind = text(&event, "event_type").ok_or("has no \"event_type\"")?.to_owned();
        let id = number(&event, "flow_id");
        match kind.as_str() {
            "flow" => {
                let facts = id.and_then(|id| self.held.remove(&id)).unwrap_or_default();
                flow(&event, &facts, out)
            }
            "http" | "tls" | "dns" | "alert" => {
                if let Some(id) = id {
                    self.hold(id, &kind, event);
                }
                Ok(Read::Nothing)
            }
            _ => Ok(Read::Nothing),
        }
    }

    fn hold(&mut self, id: u64, kind: &str, mut event: Value) {
        if !self.held.contains_key(&id) {
            // Flows that ended were taken out, and their places in the order are passed over.
            while self.held.len() >= MAX_HELD || self.order.len() >= 2 * MAX_HELD {
                let Some(oldest) = self.order.pop_front() else { break };
                self.held.remove(&oldest);
            }
            self.order.push_back(id);
        }
        let facts = self.held.entry(id).or_default();
        let part = event.get_mut(kind).map(Value::take);
        match kind {
            "http" => {
                facts.requests = facts.requests.saturating_add(1);
                let status = part.as_ref().and_then(|http| number(http, "status"));
                facts.refused += u32::from(matches!(status, Some(401 | 403)));
                facts.http = facts.http.take().or(part);
            }
            "tls" => facts.tls = facts.tls.take().or(part),
            "alert" => facts.alerts = facts.alerts.saturating_add(1),
            _ => {
                let question = part
                    .as_ref()
                    .is_some_and(|dns| matches!(text(dns, "type"), Some("query" | "request")));
                facts.queries = facts.queries.saturating_add(question.into());
                facts.dns = facts.dns.take().or(part);
            }
        }
    }
}

fn flow(event: &Value, facts: &Facts, out: &mut Out<'_, impl Sink>) -> Result<Read> {
    let flow = event.get("flow").ok_or("has no \"flow\"")?;
    let (src, dst) = (address(event, "src_ip")?, address(event, "dest_ip")?);
    let protocol = text(event, "proto")
        .and_then(|name| protocol(name, src.is_ipv6()))
        .unwrap_or(crate::export::UNKNOWN_PROTOCOL);
    let icmp = matches!(protocol, 1 | 58);
    let kind = number(event, "icmp_type").unwrap_or(0) as u8;
    let code = number(event, "icmp_code").unwrap_or(0) as u16;
    let ends = Ends {
        src,
        dst,
        src_port: if icmp { kind.into() } else { port(event, "src_port")? },
        dst_port: match icmp {
            true => icmp_answer(protocol, kind).map_or(code, u16::from),
            false => port(event, "dest_port")?,
        },
        protocol,
    };
    let start = moment(flow, "start")
        .or(moment(event, "timestamp"))
        .ok_or("has no start")?;
    let vlans = event.get("vlan").and_then(Value::as_array);
    let packets = |name: &str| number(flow, name);
    // Suricata counts frames; without their link headers they are IP packets.
    let link = 14 + 4 * vlans.map_or(0, |tags| tags.len() as u64);
    let octets = |octets: &str, packets: &str| {
        let headers = number(flow, packets)?.checked_mul(link)?;
        number(flow, octets)?.checked_sub(headers)
    };
    let tcp = event.get("tcp").unwrap_or(&Value::Null);
    let flags = |name: &str| u8::from_str_radix(text(tcp, name)?, 16).ok();
    let macs = |name: &str| mac(event.pointer(name)?.as_str()?);
    let mut extra = Extra::default();
    extra.copy(event, "flow_id");
    extra.copy(event, "in_iface");
    extra.copy(flow, "state");
    extra.copy(flow, "alerted");
    if facts.alerts > 0 {
        extra.add("alerts", facts.alerts);
    }
    let extra = extra.json();
    let null = Value::Null;
    let (http, tls, dns) = (
        facts.http.as_ref().unwrap_or(&null),
        facts.tls.as_ref().unwrap_or(&null),
        facts.dns.as_ref().unwrap_or(&null),
    );
    // From version 3 the questions of a message are a list.
    let question = dns.pointer("/queries/0").unwrap_or(dns);
    let service = text(event, "app_proto").filter(|name| !matches!(*name, "failed" | "unknown"));
    let row = FlowRow {
        first_seen: start,
        last_seen: moment(flow, "end").unwrap_or(start),
        src_packets: packets("pkts_toserver"),
        dst_packets: packets("pkts_toclient"),
        src_ip_bytes: octets("bytes_toserver", "pkts_toserver"),
        dst_ip_bytes: octets("bytes_toclient", "pkts_toclient"),
        src_tcp_flags: flags("tcp_flags_ts"),
        dst_tcp_flags: flags("tcp_flags_tc"),
        src_mac: macs("/ether/src_macs/0").or(macs("/ether/src_mac")),
        dst_mac: macs("/ether/dest_macs/0").or(macs("/ether/dest_mac")),
        vlan: vlans.and_then(|tags| tags.first()?.as_u64()).map(|id| id as u16),
        service,
        end_reason: match text(flow, "reason") {
            Some("timeout") => Some("idle"),
            Some("forced") => Some("evicted"),
            Some("shutdown") => Some("shutdown"),
            _ => None,
        },
        verdict: match text(flow, "action") {
            Some("drop") => Some("drop"),
            Some("pass" | "accept") => Some("accept"),
            _ => None,
        },
        http_method: text(http, "http_method"),
        http_host: text(http, "hostname"),
        http_uri: text(http, "url"),
        http_user_agent: text(http, "http_user_agent"),
        http_referrer: text(http, "http_refer"),
        http_content_type: text(http, "http_content_type"),
        http_status: number(http, "status").map(|status| status as u16),
        http_requests: facts.http.is_some().then_some(facts.requests),
        http_auth_failures: facts.http.is_some().then_some(facts.refused),
        tls_version: text(tls, "version").and_then(tls_version),
        tls_sni: text(tls, "sni"),
        tls_subject: text(tls, "subject"),
        tls_issuer: text(tls, "issuerdn"),
        ja3: tls.pointer("/ja3/hash").and_then(Value::as_str),
        ja3s: tls.pointer("/ja3s/hash").and_then(Value::as_str),
        ja4: text(tls, "ja4"),
        dns_query: text(question, "rrname"),
        dns_qtype: text(question, "rrtype").and_then(query_type),
        dns_queries: facts.dns.is_some().then_some(facts.queries),
        extra: Some(&extra),
        ..FlowRow::default()
    };
    out.flow(&ends, row)?;
    Ok(Read::Records(1))
}

fn tls_version(name: &str) -> Option<u16> {
    match name {
        "SSLv3" => Some(0x0300),
        "TLSv1" | "TLS 1.0" => Some(0x0301),
        "TLS 1.1" => Some(0x0302),
        "TLS 1.2" => Some(0x0303),
        "TLS 1.3" => Some(0x0304),
        _ => None,
    }
}

fn query_type(name: &str) -> Option<u16> {
    match name {
        "A" => Some(1),
        "NS" => Some(2),
        "CNAME" => Some(5),
        "SOA" => Some(6),
        "PTR" => Some(12),
        "MX" => Some(15),
        "TXT" => Some(16),
        "AAAA" => Some(28),
        "SRV" => Some(33),
        "NAPTR" => Some(35),
        "DS" => Some(43),
        "DNSKEY" => Some(48),
        "SVCB" => Some(64),
        "HTTPS" => Some(65),
        "ANY" => Some(255),
        _ => None,
    }
}
