//! Against the flow lists that nDPI's reader prints.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::Path,
};

use super::{AgreementError, Endpoints, Frames, endpoint, last_records, read};
use crate::domain::Limits;

/// Protocols this meter names, by nDPI's name for them.
const NAMES: [(&str, &str); 62] = [
    ("HTTP", "http"),
    ("HTTP_Connect", "http"),
    ("HTTP_Proxy", "http"),
    ("WebSocket", "http"),
    ("HTTP2", "http2"),
    ("TLS", "tls"),
    ("DTLS", "dtls"),
    ("QUIC", "quic"),
    ("DNS", "dns"),
    ("MDNS", "mdns"),
    ("LLMNR", "llmnr"),
    ("NetBIOS", "netbios"),
    ("SSH", "ssh"),
    ("SMTP", "smtp"),
    // nDPI names these when TLS begins in the middle too; here that is the protocol with the facts of TLS.
    ("SMTPS", "tls"),
    ("SMTPS", "smtp"),
    ("IMAPS", "imap"),
    ("POPS", "pop3"),
    ("FTPS", "ftp"),
    ("RDP", "rdpeudp"),
    ("IMAP", "imap"),
    ("IMAPS", "tls"),
    ("POP3", "pop3"),
    ("POPS", "tls"),
    ("FTP_CONTROL", "ftp"),
    ("FTPS", "tls"),
    ("SMBv1", "smb"),
    ("SMBv23", "smb"),
    ("RDP", "rdp"),
    ("Kerberos", "kerberos"),
    ("LDAP", "ldap"),
    ("LDAPS", "tls"),
    ("DHCP", "dhcp"),
    ("DHCPV6", "dhcpv6"),
    ("NTP", "ntp"),
    ("SNMP", "snmp"),
    ("SIP", "sip"),
    ("MQTT", "mqtt"),
    ("Modbus", "modbus"),
    ("DNP3", "dnp3"),
    ("MySQL", "mysql"),
    ("PostgreSQL", "postgresql"),
    ("RESP", "redis"),
    ("Redis", "redis"),
    ("MongoDB", "mongodb"),
    ("Kafka", "kafka"),
    ("Radius", "radius"),
    ("RADIUS", "radius"),
    ("STUN", "stun"),
    ("WireGuard", "wireguard"),
    ("OpenVPN", "openvpn"),
    ("IPSec", "isakmp"),
    ("BitTorrent", "bittorrent"),
    ("RTP", "rtp"),
    ("SRTP", "rtp"),
    ("RTCP", "rtcp"),
    ("Syslog", "syslog"),
    ("Telnet", "telnet"),
    ("VNC", "vnc"),
    ("Teredo", "teredo"),
    ("GTP_U", "gtpu"),
    ("GTP", "gtp"),
];

/// A flow as nDPI lists it, or ours in the same terms.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// Packets each way.
    pub packets: (u64, u64),
    /// Octets of whole frames each way.
    pub octets: (u64, u64),
    /// nDPI's protocol path, such as `TLS.Google`; our service.
    pub label: String,
    /// How nDPI came to it: `DPI`, `Match by port`, ….
    pub confidence: String,
    /// JA4.
    pub ja4: Option<String>,
}

/// The sums.
#[derive(Debug, Default)]
pub struct Agreement {
    /// Captures compared, and those whose link layer this meter does not read.
    pub captures: (usize, usize),
    /// TCP and UDP flows of nDPI.
    pub flows: usize,
    /// Of these with equal endpoints.
    pub endpoints: usize,
    /// Of these with equal packets, later parts of datagrams left out, which nDPI's reader does not count.
    pub packets: usize,
    /// Flows with datagrams in parts.
    pub in_parts: usize,
    /// Of these with equal packets and octets.
    pub octets: usize,
    /// Flows that nDPI recognised by content as a protocol this meter names, and metered by both.
    pub labelled: usize,
    /// Of these with the same name here.
    pub agreed: usize,
    /// How often (nDPI's protocol, ours) occurred, for those and for what this meter named and nDPI did not.
    pub confusion: BTreeMap<(String, String), usize>,
    /// JA4 that nDPI printed for TLS over TCP or for QUIC.
    pub ja4: usize,
    /// Of these equal where both follow the specification.
    pub ja4_equal: usize,
    /// Lines about what differs.
    pub differences: Vec<String>,
}

/// Compares every capture of `packets/ndpi` with its list in `packets/ndpi-expected`.
///
/// # Errors
/// [`AgreementError`] when the folder is not as it should be.
pub fn compare(packets: &Path) -> Result<Agreement, AgreementError> {
    let folder = packets.join("ndpi");
    let entries = std::fs::read_dir(&folder).map_err(|source| AgreementError::Read {
        path: folder.clone(),
        source,
    })?;
    let mut captures: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    captures.sort();
    let mut sum = Agreement::default();
    for capture in captures {
        let name = capture.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let list = packets.join("ndpi-expected").join(format!("{name}.out"));
        if list.is_file() {
            one(&name, &capture, &expected(&read(&list)?), &mut sum);
        }
    }
    Ok(sum)
}

fn one(name: &str, capture: &Path, theirs: &BTreeMap<Endpoints, Listed>, sum: &mut Agreement) {
    let mut ours: HashMap<Endpoints, Listed> = HashMap::new();
    let metered = last_records(capture, Limits::default(), |row| {
        let src = endpoint(row.src_ip, row.src_port);
        let dst = endpoint(row.dst_ip, row.dst_port);
        let (there, back) = (row.src_packets.unwrap_or_default(), row.dst_packets.unwrap_or_default());
        // A host that speaks to itself on one port has only one direction.
        let directions = if src == dst { 1 } else { 2 };
        for (key, there, back) in [
            ((row.protocol, src.clone(), dst.clone()), there, back),
            ((row.protocol, dst, src), back, there),
        ]
        .into_iter()
        .take(directions)
        {
            // By their five facts, since nDPI's reader does not end flows as we do.
            let flow = ours.entry(key).or_default();
            flow.packets.0 += there;
            flow.packets.1 += back;
            if flow.label.is_empty() {
                flow.label = row.service.unwrap_or_default().to_owned();
            }
            if flow.ja4.is_none() {
                flow.ja4 = row.ja4.map(str::to_owned);
            }
        }
    });
    let frames = match metered {
        Ok(frames) => frames,
        Err(error) => {
            sum.captures.1 += 1;
            sum.differences.push(format!("{name}: {error}"));
            return;
        }
    };
    sum.captures.0 += 1;
    for (key, theirs) in theirs {
        sum.flows += 1;
        let Some(found) = ours.get(key) else {
            sum.differences
                .push(format!("{name}: {key:?} {}: missing", theirs.label));
            continue;
        };
        sum.endpoints += 1;
        let back = (key.0, key.2.clone(), key.1.clone());
        let frames = |key: &Endpoints| frames.get(key).copied().unwrap_or_default();
        let there = frames(key);
        let back = if back == *key { Frames::default() } else { frames(&back) };
        let mut octets = (there.octets, back.octets);
        let mut counted = found.packets;
        // nDPI's reader looks at the first part of a datagram only.
        if there.parts + back.parts > 0 {
            sum.in_parts += 1;
            counted = (
                counted.0.saturating_sub(there.parts),
                counted.1.saturating_sub(back.parts),
            );
            octets = (octets.0 - there.part_octets, octets.1 - back.part_octets);
        }
        let packets = counted == theirs.packets;
        sum.packets += usize::from(packets);
        sum.octets += usize::from(packets && octets == theirs.octets);
        if !packets || octets != theirs.octets {
            sum.differences.push(format!(
                "{name}: {key:?} {}: packets {:?} octets {:?} of nDPI, ours {counted:?} {octets:?}",
                theirs.label, theirs.packets, theirs.octets
            ));
        }
        label(name, key, theirs, found, sum);
        fingerprint(name, key, theirs, found, sum);
    }
}

fn label(name: &str, key: &Endpoints, theirs: &Listed, ours: &Listed, sum: &mut Agreement) {
    let master = theirs.label.split('.').next().unwrap_or_default();
    let known = NAMES.iter().find(|(name, _)| *name == master).map(|(_, ours)| *ours);
    let by_content = theirs.confidence.starts_with("DPI");
    let shown = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.to_owned()
        }
    };
    let Some(want) = known.filter(|_| by_content) else {
        if !ours.label.is_empty() {
            let guess = if by_content || master == "Unknown" {
                ""
            } else {
                " (guessed)"
            };
            *sum.confusion
                .entry((format!("{master}{guess}"), ours.label.clone()))
                .or_default() += 1;
        }
        return;
    };
    sum.labelled += 1;
    let agreed = ours.label == want || (want == "netbios" && ours.label.starts_with("netbios"))
        // nDPI calls what a protocol's extension carries by the extension's name.
        || theirs.label.split('.').any(|part| NAMES.iter().any(|(n, o)| *n == part && *o == ours.label));
    sum.agreed += usize::from(agreed);
    *sum.confusion
        .entry((master.to_owned(), shown(&ours.label)))
        .or_default() += 1;
    if !agreed {
        sum.differences.push(format!(
            "{name}: {key:?}: label {} of nDPI, ours {}",
            theirs.label,
            shown(&ours.label)
        ));
    }
}

// nDPI of that time printed the first two letters of the ALPN where the specification has the first and the last, "d"
// for a client without a server name, and the hash of nothing where it has zeros.
fn masked(ja4: &str) -> Option<String> {
    let tail = ja4.get(10..)?.replace("e3b0c44298fc", "000000000000");
    Some(format!("{}{}{tail}", ja4.get(..3)?, ja4.get(4..8)?))
}

fn fingerprint(name: &str, key: &Endpoints, theirs: &Listed, ours: &Listed, sum: &mut Agreement) {
    let Some(want) = &theirs.ja4 else { return };
    if !want.starts_with(['t', 'q', 'd']) {
        return;
    }
    sum.ja4 += 1;
    let equal = ours.ja4.as_deref().is_some_and(|got| masked(got) == masked(want));
    sum.ja4_equal += usize::from(equal);
    if !equal {
        sum.differences
            .push(format!("{name}: {key:?}: JA4 {want} of nDPI, ours {:?}", ours.ja4));
    }
}

// nDPI shortens IPv6 addresses in its own way.
fn plain(text: &str) -> String {
    match text.parse::<SocketAddr>() {
        Ok(parsed) => endpoint(parsed.ip(), parsed.port()),
        Err(_) => text.to_owned(),
    }
}

// A line is `number PROTOCOL src -> dst [..][proto: 91.126/TLS.Google]..[n pkts/m bytes -> n pkts/m bytes]..`.
fn expected(text: &str) -> BTreeMap<Endpoints, Listed> {
    let mut flows: BTreeMap<Endpoints, Listed> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next().is_none_or(|word| word.parse::<u32>().is_err()) {
            continue;
        }
        let protocol = match words.next() {
            Some("TCP") => 6,
            Some("UDP") => 17,
            _ => continue,
        };
        let (Some(src), Some("->" | "<->"), Some(dst)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let field = |name: &str| {
            let rest = line.split_once(name)?.1;
            rest.split(']').next()
        };
        let Some(counts) = line.split('[').find(|part| part.contains(" pkts/")) else {
            continue;
        };
        let numbers: Vec<u64> = counts
            .split(']')
            .next()
            .unwrap_or_default()
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .collect();
        let [there, there_octets, back, back_octets] = numbers[..] else {
            continue;
        };
        let proto = field("[proto: ").unwrap_or_default();
        let flow = flows.entry((protocol, plain(src), plain(dst))).or_default();
        flow.packets.0 += there;
        flow.packets.1 += back;
        flow.octets.0 += there_octets;
        flow.octets.1 += back_octets;
        if flow.label.is_empty() {
            flow.label = proto.rsplit('/').next().unwrap_or_default().to_owned();
            flow.confidence = field("[Confidence: ").unwrap_or_default().to_owned();
        }
        if flow.ja4.is_none() {
            flow.ja4 = field("[JA4: ").map(str::to_owned);
        }
    }
    flows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_ndpi_is_read() {
        let text = "\t1\tTCP 10.0.0.1:5 <-> [::1]:443 [VLAN: 3][proto: VXLAN:91.126/TLS.Google][Confidence: DPI]\
                    [3 pkts/200 bytes <-> 1 pkts/66 bytes][JA4: t13d_x]\nJA4: 3\n";
        let flows = expected(text);
        let flow = &flows[&(6, "10.0.0.1:5".to_owned(), "[::1]:443".to_owned())];
        assert_eq!((flow.packets, flow.octets), ((3, 1), (200, 66)));
        assert_eq!((flow.label.as_str(), flow.confidence.as_str()), ("TLS.Google", "DPI"));
        assert_eq!(flow.ja4.as_deref(), Some("t13d_x"));
    }
}
