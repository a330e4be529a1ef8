//! The row view as protobuf, for people and integrations.

use chrono::DateTime;
use garrison_proto::{alert, flow, to_timestamp};
use uuid::Uuid;

use crate::schema::FlowRow;

/// A flow id as text: the 16 bytes written as a UUID.
pub fn flow_id_text(id: &[u8; 16]) -> String {
    Uuid::from_bytes(*id).to_string()
}

impl FlowRow<'_> {
    /// The protobuf form. Unknown counters become zero there, as protobuf's scalars cannot be null.
    pub fn to_proto(&self) -> flow::v1::Flow {
        let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
        flow::v1::Flow {
            flow_id: flow_id_text(&self.flow_id),
            record_seq: self.record_seq,
            state: i32::from(self.state),
            sensor: self.sensor.to_owned(),
            first_seen: Some(timestamp(self.first_seen)),
            last_seen: Some(timestamp(self.last_seen)),
            protocol: u32::from(self.protocol),
            src_ip: self.src_ip.to_string(),
            dst_ip: self.dst_ip.to_string(),
            src_port: u32::from(self.src_port),
            dst_port: u32::from(self.dst_port),
            community_id: self.community_id.to_owned(),
            src_packets: self.src_packets.unwrap_or_default(),
            dst_packets: self.dst_packets.unwrap_or_default(),
            src_bytes: self.src_bytes.unwrap_or_default(),
            dst_bytes: self.dst_bytes.unwrap_or_default(),
            conn_state: text(self.conn_state),
            history: text(self.history),
            service: text(self.service),
            http_method: text(self.http_method),
            http_host: text(self.http_host),
            http_uri: text(self.http_uri),
            http_user_agent: text(self.http_user_agent),
            http_status: self.http_status.map(u32::from).unwrap_or_default(),
            http_requests: self.http_requests.unwrap_or_default(),
            http_auth_failures: self.http_auth_failures.unwrap_or_default(),
            tls_sni: text(self.tls_sni),
            tls_alpn: text(self.tls_alpn),
            tls_version: self.tls_version.map(tls_version_name).unwrap_or_default(),
            ja4: text(self.ja4),
            dns_query: text(self.dns_query),
            dns_qtype: self.dns_qtype.map(u32::from).unwrap_or_default(),
            dns_rcode: self.dns_rcode.map(u32::from),
            vlan: self.vlan.map(u32::from),
            src_ip_bytes: self.src_ip_bytes.unwrap_or_default(),
            dst_ip_bytes: self.dst_ip_bytes.unwrap_or_default(),
            end_reason: text(self.end_reason),
            ja3: text(self.ja3),
            ja3s: text(self.ja3s),
            ja4s: text(self.ja4s),
            tls_subject: text(self.tls_subject),
            tls_issuer: text(self.tls_issuer),
            tls_not_before: self.tls_not_before.map(timestamp),
            tls_not_after: self.tls_not_after.map(timestamp),
            tls_cert_sha256: text(self.tls_cert_sha256),
            tls_self_signed: self.tls_self_signed.map(|one| one == 1),
            dns_answers: text(self.dns_answers),
            dns_ttl: self.dns_ttl,
            ssh_client: text(self.ssh_client),
            ssh_server: text(self.ssh_server),
            hassh: text(self.hassh),
            hassh_server: text(self.hassh_server),
            tunnel_kind: text(self.tunnel_kind),
            tunnel_id: self.tunnel_id,
            http_request_bytes: self.http_request_bytes.unwrap_or_default(),
            http_response_bytes: self.http_response_bytes.unwrap_or_default(),
        }
    }

    /// What an alert says of this flow.
    pub fn reference(&self) -> alert::v1::FlowReference {
        alert::v1::FlowReference {
            flow_id: flow_id_text(&self.flow_id),
            community_id: self.community_id.to_owned(),
            src_ip: self.src_ip.to_string(),
            dst_ip: self.dst_ip.to_string(),
            src_port: u32::from(self.src_port),
            dst_port: u32::from(self.dst_port),
            protocol: u32::from(self.protocol),
            first_seen: Some(timestamp(self.first_seen)),
            last_seen: Some(timestamp(self.last_seen)),
        }
    }
}

fn timestamp(nanoseconds: i64) -> garrison_proto::Timestamp {
    to_timestamp(DateTime::from_timestamp_nanos(nanoseconds))
}

fn tls_version_name(version: u16) -> String {
    match version {
        0x0300 => "SSLv3".to_owned(),
        0x0301 => "TLSv1.0".to_owned(),
        0x0302 => "TLSv1.1".to_owned(),
        0x0303 => "TLSv1.2".to_owned(),
        0x0304 => "TLSv1.3".to_owned(),
        other => format!("0x{other:04x}"),
    }
}
