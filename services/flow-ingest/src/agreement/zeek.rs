//! Against Zeek's `conn.log`.

use std::path::Path;

use super::{AgreementError, last_records, read};
use crate::domain::Limits;

/// Captures whose connections differ because Zeek was told to differ, or understands something this meter does not.
pub const ACCEPTED: [(&str, &str); 4] = [
    (
        "core.local-flip",
        "Zeek's script turns local connections round by address, not by what was seen",
    ),
    (
        "core.pcap.dynamic-filter",
        "Zeek's script changes the capture filter while the file is read",
    ),
    (
        "core.tunnels.ayiya",
        "AYIYA, a tunnel broker's protocol that ended in 2017, is not unwrapped",
    ),
    ("core.tunnels.ayiya-large-identity", "AYIYA is not unwrapped"),
];

/// A connection as both tell it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conn {
    /// Opener: address and port.
    pub src: String,
    /// Called side: address, port, transport.
    pub dst: String,
    /// Application protocol; empty where none was found.
    pub service: String,
    /// `conn_state`.
    pub state: String,
    /// `history`.
    pub history: String,
    /// Payload octets each way, packets each way, IP octets each way.
    pub numbers: [u64; 6],
}

/// One connection that differs.
#[derive(Debug)]
pub struct Difference {
    /// The capture.
    pub capture: String,
    /// What Zeek says; `None` for a connection that only this meter has.
    pub theirs: Option<Conn>,
    /// What this meter says; `None` for one that only Zeek has.
    pub ours: Option<Conn>,
    /// Why it may differ.
    pub accepted: Option<&'static str>,
}

/// The sums.
#[derive(Debug, Default)]
pub struct Agreement {
    /// Connections of Zeek.
    pub connections: usize,
    /// Of these with equal endpoints.
    pub endpoints: usize,
    /// Of these with equal packets and octets.
    pub counters: usize,
    /// Of these with an equal service, where Zeek names one.
    pub service: usize,
    /// Of these with an equal `conn_state`.
    pub conn_state: usize,
    /// Of these with an equal `history`.
    pub history: usize,
    /// Equal in everything.
    pub whole: usize,
    /// What differs.
    pub differences: Vec<Difference>,
}

impl Agreement {
    /// Connections that are equal in everything or differ for an accepted reason.
    pub fn accounted(&self) -> usize {
        let accepted = |d: &&Difference| d.theirs.is_some() && d.accepted.is_some();
        self.whole + self.differences.iter().filter(accepted).count()
    }
}

/// Compares every capture of the folder that `index.tsv` lists.
///
/// # Errors
/// [`AgreementError`] when the folder is not as it should be.
pub fn compare(folder: &Path) -> Result<Agreement, AgreementError> {
    let index = read(&folder.join("index.tsv"))?;
    let mut sum = Agreement::default();
    for line in index.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, capture, ignored, bare, ..] = fields[..] else {
            return Err(AgreementError::Content {
                path: folder.join("index.tsv"),
                problem: "has a line with fewer than four columns",
            });
        };
        let theirs = zeek_log(&folder.join(format!("{name}.conn.log")))?;
        let ours = our_log(&folder.join(capture), ignored == "no");
        one(name, bare == "yes", theirs, ours, &mut sum);
    }
    Ok(sum)
}

fn one(name: &str, bare: bool, theirs: Vec<Conn>, mut ours: Vec<Conn>, sum: &mut Agreement) {
    let reason = ACCEPTED.iter().find(|(n, _)| *n == name).map(|(_, reason)| *reason);
    sum.connections += theirs.len();
    // Those that are wholly equal first, so that a connection that comes twice meets its like.
    let mut left = Vec::new();
    for conn in theirs {
        let place = ours.iter().position(|c| same(c, &conn, bare)).or_else(|| {
            ours.iter()
                .position(|c| c.src == conn.src && c.dst == conn.dst && c.history == conn.history)
        });
        match place {
            Some(place) if same(&ours[place], &conn, bare) => {
                let found = ours.remove(place);
                count(&conn, &found, bare, sum);
            }
            _ => left.push(conn),
        }
    }
    for conn in left {
        let matching = |c: &Conn| c.src == conn.src && c.dst == conn.dst;
        let place = ours
            .iter()
            .position(|c| matching(c) && c.state == conn.state)
            .or_else(|| ours.iter().position(matching))
            .or_else(|| {
                // The ports that Zeek does not read tell these apart only by their counters.
                ours.iter()
                    .position(|c| alike(c, &conn) && c.numbers[2..] == conn.numbers[2..])
            })
            .or_else(|| ours.iter().position(|c| alike(c, &conn) && c.history.starts_with('^')));
        let found = place.map(|place| ours.remove(place));
        if let Some(found) = found.as_ref().filter(|found| matching(found)) {
            count(&conn, found, bare, sum);
        }
        sum.differences.push(Difference {
            capture: name.to_owned(),
            accepted: reason.or_else(|| explain(&conn, found.as_ref(), bare)),
            theirs: Some(conn),
            ours: found,
        });
    }
    for extra in ours {
        sum.differences.push(Difference {
            capture: name.to_owned(),
            theirs: None,
            ours: Some(extra),
            accepted: reason,
        });
    }
}

fn count(theirs: &Conn, ours: &Conn, bare: bool, sum: &mut Agreement) {
    sum.endpoints += 1;
    sum.counters += usize::from(counters(ours, theirs));
    sum.service += usize::from(service(ours, theirs, bare));
    sum.conn_state += usize::from(ours.state == theirs.state);
    sum.history += usize::from(ours.history == theirs.history);
    sum.whole += usize::from(same(ours, theirs, bare));
}

fn same(ours: &Conn, theirs: &Conn, bare: bool) -> bool {
    ours.src == theirs.src
        && ours.dst == theirs.dst
        && counters(ours, theirs)
        && service(ours, theirs, bare)
        && ours.state == theirs.state
        && ours.history == theirs.history
}

// Zeek leaves the octets of a connection without a duration unset.
fn counters(ours: &Conn, theirs: &Conn) -> bool {
    let single = theirs.numbers[0] + theirs.numbers[1] == 0 && theirs.numbers[2] + theirs.numbers[3] <= 1;
    match single {
        true => ours.numbers[2..] == theirs.numbers[2..],
        false => ours.numbers == theirs.numbers,
    }
}

// Zeek names every protocol that one of its analysers confirmed; ours is the one that carries the others. In bare mode
// and for protocols without an analyser Zeek names none, which says nothing about the protocol.
fn service(ours: &Conn, theirs: &Conn, bare: bool) -> bool {
    if theirs.service.is_empty() {
        return bare || ours.service.is_empty() || !zeek_has_analyser(&ours.service);
    }
    let also: &[&str] = match ours.service.as_str() {
        "tls" => &["ssl"],
        "ldap" => &["ldap_tcp", "ldap_udp"],
        "kerberos" => &["krb", "krb_tcp", "krb_udp"],
        "gtpu" => &["gtpv1"],
        "mdns" | "llmnr" | "netbios-ns" => &["dns"],
        "smb" => &["smb", "gssapi", "ntlm"],
        _ => &[],
    };
    theirs
        .service
        .split(',')
        .any(|name| name == ours.service || also.contains(&name))
}

fn zeek_has_analyser(service: &str) -> bool {
    matches!(
        service,
        "http" | "tls" | "dns" | "ssh" | "ftp" | "smtp" | "dhcp" | "ntp" | "snmp" | "sip" | "rdp"
    )
}

// Reasons that hold wherever they occur.
fn explain(theirs: &Conn, ours: Option<&Conn>, bare: bool) -> Option<&'static str> {
    let wrong_checksum = theirs.history.eq_ignore_ascii_case("c") && theirs.numbers == [0; 6];
    if wrong_checksum {
        return Some("Zeek keeps an empty connection for a packet with a wrong checksum; here it is malformed");
    }
    let ours = ours?;
    let numbers = counters(ours, theirs);
    let rest = numbers && ours.state == theirs.state && ours.history == theirs.history;
    if rest && theirs.service == "ftp-data" {
        return Some(
            "Zeek expects the data connection that the FTP control connection names; this meter reads content",
        );
    }
    let turned = ours.history.starts_with('^') && !theirs.history.starts_with('^');
    if bare && turned {
        return Some(
            "Zeek's bare mode knows no server ports, so it does not turn round what a server's port sent first",
        );
    }
    if rest && theirs.service.is_empty() && ours.service == "tls" && !theirs.history.contains(['S', 's']) {
        return Some("Zeek tells TLS by its hello, which this capture does not have; this meter by the records too");
    }
    if rest && theirs.service.contains('-') {
        return Some("Zeek's script renames or removes services");
    }
    if rest && theirs.dst.ends_with(" 0 unknown_transport") {
        return Some("Zeek does not read the ports of SCTP");
    }
    let marked = theirs.history.replace(['X', 'x'], "") == ours.history.replace(['d', 'D'], "")
        || theirs.history.replace('X', "d") == ours.history
        || theirs.history.replace(['X', 'x'], "") == ours.history;
    if numbers && marked && theirs.history.contains('X') {
        return Some(
            "Zeek marks where it stopped looking at a tunnel's packets, and from there on their letters are missing",
        );
    }
    let headers = theirs.numbers[4] + 20 * ours.numbers[2].saturating_sub(theirs.numbers[2]) == ours.numbers[4];
    if theirs.numbers[..2] == ours.numbers[..2] && ours.numbers[2] > theirs.numbers[2] && headers {
        return Some("Zeek counts a datagram in parts as one packet; here each part is one, as on the wire");
    }
    if theirs.service == "dns" && ours.numbers[2] > theirs.numbers[2] && theirs.dst.ends_with("udp") {
        return Some("Zeek ends a DNS conversation after ten seconds without a packet; here it is UDP's idle time");
    }
    None
}

// A connection with the same ends, this way or the other way round.
fn alike(ours: &Conn, theirs: &Conn) -> bool {
    let ends = |conn: &Conn| -> Option<(String, String)> {
        let (dst, _) = conn.dst.rsplit_once(' ')?;
        Some((conn.src.clone(), dst.to_owned()))
    };
    let bare = |text: &str| {
        text.rsplit_once(' ')
            .map_or(String::new(), |(address, _)| address.to_owned())
    };
    match (ends(ours), ends(theirs)) {
        (Some((a, b)), Some((c, d))) => {
            let portless = theirs.dst.ends_with(" 0 unknown_transport")
                && theirs.dst.rsplit(' ').next() == ours.dst.rsplit(' ').next();
            (a == d && b == c) || (portless && bare(&a) == bare(&c) && bare(&b) == bare(&d))
        }
        _ => false,
    }
}

fn zeek_log(path: &Path) -> Result<Vec<Conn>, AgreementError> {
    let text = read(path)?;
    let content = |problem| AgreementError::Content {
        path: path.to_owned(),
        problem,
    };
    let names: Vec<&str> = text
        .lines()
        .find_map(|line| line.strip_prefix("#fields\t"))
        .ok_or_else(|| content("has no line of field names"))?
        .split('\t')
        .collect();
    // Some of the captures test other names for the columns.
    let bare = |n: &str| n.replace("id.", "").replace("id_", "").replace(['-', '_'], "");
    let alias = |name: &str| {
        match name {
            "id.orig_h" => "src",
            "id.orig_p" => "srcport",
            "id.resp_h" => "dst",
            "id.resp_p" => "dstport",
            _ => "",
        }
        .to_owned()
    };
    let column = |name: &str| {
        names
            .iter()
            .position(|n| *n == name || bare(n) == bare(name) || (!alias(name).is_empty() && bare(n) == alias(name)))
    };
    let mut conns = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let values: Vec<&str> = line.split('\t').collect();
        let get = |name: &str| {
            let value = column(name).and_then(|i| values.get(i)).copied().unwrap_or_default();
            if value == "-" { String::new() } else { value.to_owned() }
        };
        let number = |name: &str| get(name).parse().unwrap_or(0);
        conns.push(Conn {
            src: format!("{} {}", get("id.orig_h"), get("id.orig_p")),
            dst: format!("{} {} {}", get("id.resp_h"), get("id.resp_p"), get("proto")),
            service: get("service"),
            state: get("conn_state"),
            history: get("history"),
            numbers: [
                number("orig_bytes"),
                number("resp_bytes"),
                number("orig_pkts"),
                number("resp_pkts"),
                number("orig_ip_bytes"),
                number("resp_ip_bytes"),
            ],
        });
    }
    Ok(conns)
}

fn our_log(path: &Path, checksums: bool) -> Vec<Conn> {
    let mut conns = Vec::new();
    let mut limits = Limits::default();
    limits.decoder.checksums = checksums;
    // A capture with a link layer that cannot be read has no connections here.
    let _ = last_records(path, limits, |row| {
        let protocol = match row.protocol {
            6 => "tcp",
            17 => "udp",
            1 | 58 => "icmp",
            _ => "unknown_transport",
        };
        conns.push(Conn {
            src: format!("{} {}", row.src_ip, row.src_port),
            dst: format!("{} {} {protocol}", row.dst_ip, row.dst_port),
            service: row.service.unwrap_or_default().to_owned(),
            state: row.conn_state.unwrap_or_default().to_owned(),
            history: row.history.unwrap_or_default().to_owned(),
            numbers: [
                row.src_bytes.unwrap_or_default(),
                row.dst_bytes.unwrap_or_default(),
                row.src_packets.unwrap_or_default(),
                row.dst_packets.unwrap_or_default(),
                row.src_ip_bytes.unwrap_or_default(),
                row.dst_ip_bytes.unwrap_or_default(),
            ],
        });
    });
    conns
}
