//! A flow as a row of the flow schema.

use garrison_flow::{FlowRow, FlowState};

use super::{
    app::{App, Facts, Service},
    ascii::text,
    flow::{Endpoint::SynSent, Extra, Flow, mark},
    key::{COMMUNITY_ID_LEN, HashSeed, flow_id},
    packet::{TCP, UDP, address},
    tcp,
};

/// Why a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Both sides closed it, or one did and the other never answered.
    Fin,
    /// One side reset it.
    Reset,
    /// Nothing came for its idle timeout.
    Idle,
    /// The table was full and this was the flow least worth keeping.
    Evicted,
    /// The capture file ended.
    EndOfFile,
    /// The meter was stopped.
    Shutdown,
    /// A new connection began on its addresses and ports.
    Reused,
    /// A sum of flows that had to make room before anything was told of them.
    Aggregated,
}

impl EndReason {
    /// The value of the `end_reason` column.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fin => "fin",
            Self::Reset => "rst",
            Self::Idle => "idle",
            Self::Evicted => "evicted",
            Self::EndOfFile => "eof",
            Self::Shutdown => "shutdown",
            Self::Reused => "reused",
            Self::Aggregated => "aggregated",
        }
    }
}

/// What a record is about.
pub struct Subject<'a> {
    /// The flow.
    pub flow: &'a Flow,
    /// Its Community ID.
    pub community_id: &'a [u8; COMMUNITY_ID_LEN],
    /// Its rarer facts.
    pub extra: Option<&'a Extra>,
    /// Its application state.
    pub app: Option<&'a App>,
    /// Link addresses of opener and called side, where `extra` has none.
    pub macs: Option<[[u8; 6]; 2]>,
}

/// Writes a record and hands it over.
pub fn with_row(
    subject: &Subject<'_>,
    sensor: &str,
    seed: &HashSeed,
    state: FlowState,
    end: Option<EndReason>,
    take: impl FnOnce(&FlowRow<'_>),
) {
    let flow = subject.flow;
    let tcp_flow = flow.key.protocol == TCP;
    let history = &flow.history[..usize::from(flow.history_len)];
    let macs = subject.extra.map(|extra| extra.macs).or(subject.macs);
    let tunnel = subject.extra.map(|extra| extra.tunnel).unwrap_or_default();
    let mac = |side: usize| macs.map(|m| m[side]).filter(|mac| *mac != [0; 6]);
    let [src, dst] = &flow.sides;
    let heard = |side: usize| flow.sides[side].packets() > 0;
    let lengths = [src.lengths(), dst.lengths()];
    let intervals = [src.intervals(flow.first_of(0)), dst.intervals(flow.first_of(1))];
    let entropy = |side: usize| {
        let extra = subject.extra?;
        let bits = extra.entropy[side];
        (bits != u16::MAX).then(|| f32::from(bits) / 8192.0)
    };
    let mut row = FlowRow {
        flow_id: flow_id(seed, &flow.key, flow.first_seen, flow.serial),
        record_seq: flow.records,
        state: state as u8,
        sensor,
        origin: "packet",
        first_seen: flow.first_seen,
        last_seen: flow.last_seen(),
        ip_version: flow.ip_version,
        protocol: flow.key.protocol,
        src_ip: address(&flow.key.src),
        dst_ip: address(&flow.key.dst),
        src_port: flow.key.src_port,
        dst_port: flow.key.dst_port,
        src_mac: mac(0),
        dst_mac: mac(1),
        vlan: (flow.vlan != u16::MAX).then_some(flow.vlan),
        tunnel_kind: tunnel.kind.name(),
        tunnel_id: tunnel.id,
        community_id: text(subject.community_id),
        src_packets: Some(src.packets()),
        dst_packets: Some(dst.packets()),
        src_bytes: Some(flow.bytes(0)),
        dst_bytes: Some(flow.bytes(1)),
        src_ip_bytes: Some(src.ip_bytes),
        dst_ip_bytes: Some(dst.ip_bytes),
        conn_state: Some(conn_state(flow)),
        history: (!history.is_empty()).then(|| text(history)),
        src_tcp_flags: tcp_flow.then_some(src.tcp_flags),
        dst_tcp_flags: tcp_flow.then_some(dst.tcp_flags),
        src_retransmits: tcp_flow.then_some(src.retransmits),
        dst_retransmits: tcp_flow.then_some(dst.retransmits),
        missed_bytes: tcp_flow.then(|| subject.extra.map_or(0, |extra| extra.missed)),
        tcp_rtt_ns: (flow.rtt >= 0.0).then_some(flow.rtt as u64),
        src_len_min: heard(0).then_some(src.len_min),
        src_len_max: heard(0).then_some(src.len_max),
        src_len_mean: lengths[0].map(|(mean, _)| mean),
        src_len_std: lengths[0].map(|(_, deviation)| deviation),
        dst_len_min: heard(1).then_some(dst.len_min),
        dst_len_max: heard(1).then_some(dst.len_max),
        dst_len_mean: lengths[1].map(|(mean, _)| mean),
        dst_len_std: lengths[1].map(|(_, deviation)| deviation),
        src_iat_mean_us: intervals[0].map(|(mean, _)| mean),
        src_iat_std_us: intervals[0].map(|(_, deviation)| deviation),
        dst_iat_mean_us: intervals[1].map(|(mean, _)| mean),
        dst_iat_std_us: intervals[1].map(|(_, deviation)| deviation),
        first_lengths: Some(subject.extra.map_or([0; 8], |extra| extra.first_lengths)),
        src_entropy: entropy(0),
        dst_entropy: entropy(1),
        end_reason: end.map(EndReason::name),
        service: Service::from_number(flow.service).name(),
        ..FlowRow::default()
    };
    let facts = subject.app.map(|app| &app.facts);
    if let Some(http) = facts.and_then(Facts::http) {
        row.http_method = http.method.as_deref();
        row.http_host = http.host.as_deref();
        row.http_uri = http.uri.as_deref();
        row.http_user_agent = http.user_agent.as_deref();
        row.http_referrer = http.referrer.as_deref();
        row.http_content_type = http.content_type.as_deref();
        row.http_status = http.status;
        row.http_requests = Some(http.requests);
        row.http_auth_failures = Some(http.auth_failures);
        row.http_request_bytes = Some(http.body_bytes[0]);
        row.http_response_bytes = Some(http.body_bytes[1]);
    }
    match facts {
        Some(Facts::Dns(dns)) => {
            row.dns_query = dns.query.as_deref();
            row.dns_qtype = dns.qtype;
            row.dns_rcode = dns.rcode;
            row.dns_queries = Some(dns.queries);
            row.dns_answers = dns.answers.as_deref();
            row.dns_ttl = dns.ttl;
        }
        Some(Facts::Ssh(ssh)) => {
            row.ssh_client = ssh.banners[0].as_deref();
            row.ssh_server = ssh.banners[1].as_deref();
            row.hassh = ssh.hassh[0].as_deref();
            row.hassh_server = ssh.hassh[1].as_deref();
        }
        _ => {}
    }
    if let Some(tls) = subject.app.and_then(|app| app.facts.tls()) {
        row.tls_version = tls.version;
        row.tls_cipher = tls.cipher;
        row.tls_sni = tls.sni.as_deref();
        row.tls_alpn = tls.alpn.as_deref();
        row.ja3 = tls.ja3.as_deref();
        row.ja3s = tls.ja3s.as_deref();
        row.ja4 = tls.ja4.as_deref();
        row.ja4s = tls.ja4s.as_deref();
        if let Some(certificate) = &tls.certificate {
            row.tls_subject = certificate.subject.as_deref();
            row.tls_issuer = certificate.issuer.as_deref();
            row.tls_not_before = certificate.not_before;
            row.tls_not_after = certificate.not_after;
            row.tls_self_signed = Some(u8::from(certificate.self_signed));
            row.tls_cert_sha256 = Some(&certificate.sha256);
        }
    }
    take(&row);
}

fn conn_state(flow: &Flow) -> &'static str {
    let heard = |side: usize| flow.sides[side].packets() > 0;
    match flow.key.protocol {
        TCP => tcp::conn_state(flow),
        UDP => match (heard(0), heard(1)) {
            (true, true) => "SF",
            (true, false) => "S0",
            (false, true) => "SHR",
            (false, false) => "OTH",
        },
        _ => "OTH",
    }
}

/// Why a connection that lingered ended.
pub fn lingered(flow: &Flow) -> EndReason {
    use super::flow::Endpoint::Reset;
    match flow.sides.iter().any(|side| side.state == Reset) {
        true => EndReason::Reset,
        false => EndReason::Fin,
    }
}

/// What a flow is worth when room is needed: the smaller, the sooner it goes. 3 is a conversation: both sides have sent,
/// and of a TCP connection the handshake is over.
pub fn worth(flow: &Flow) -> u8 {
    if flow.is(mark::LINGER) {
        return 0;
    }
    match (flow.sides[0].packets(), flow.sides[1].packets()) {
        (0 | 1, 0) | (0, 1) => 1,
        (_, 0) | (0, _) => 2,
        // A server that answers a flood does not make it one.
        _ if flow.key.protocol == TCP && flow.sides[0].state == SynSent => 2,
        (1, 1) if flow.key.protocol == TCP && flow.is(mark::SRC_SYN) && flow.is(mark::DST_SYN) => 2,
        _ => 3,
    }
}
