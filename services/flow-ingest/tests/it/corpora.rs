//! Agreement with Zeek and nDPI on public captures. Runs where `GARRISON_CORPORA` names the folder that has them.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use flow_ingest::{domain::Limits, standalone::meter_file};

fn corpora() -> Option<PathBuf> {
    let folder = std::env::var_os("GARRISON_CORPORA");
    if folder.is_none() {
        eprintln!("GARRISON_CORPORA is not set: skipped");
    }
    folder.map(PathBuf::from)
}

// The captures whose connections are inside tunnels or link layers that the meter does not follow yet, or whose
// checksums are wrong, which it does not look at yet.
const NOT_YET: [&str; 19] = [
    "core.cisco-fabric-path",
    "core.erspanI",
    "core.pbb",
    "core.radiotap",
    "core.tunnels.analyzer-confirmation",
    "core.tunnels.ayiya",
    "core.tunnels.ayiya-large-identity",
    "core.tunnels.geneve",
    "core.tunnels.geneve-47101",
    "core.tunnels.geneve-ipv6",
    "core.tunnels.geneve-vxlan-truncated",
    "core.tunnels.gre-pptp",
    "core.tunnels.gtp.different_dl_and_ul",
    "core.tunnels.gtp.inner_teredo",
    "core.tunnels.teredo",
    "core.tunnels.teredo_bubble_with_payload",
    "core.tunnels.vxlan",
    "core.tunnels.vxlan-unknown-internal-packet",
    "core.vntag-in-vlan",
];

// Captures that test something else of Zeek's: a custom filter or flip in the script, column names, an inner tunnel.
const SPECIAL: [&str; 4] = [
    "core.local-flip",
    "core.pcap.dynamic-filter",
    "core.skip_analyzer",
    "scripts.base.frameworks.logging.field-name-map",
];

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Conn {
    src: String,
    dst: String,
    state: String,
    history: String,
    numbers: [u64; 6],
}

fn zeek_log(path: &Path) -> Vec<Conn> {
    let text = std::fs::read_to_string(path).unwrap();
    let names: Vec<&str> = text
        .lines()
        .find_map(|line| line.strip_prefix("#fields\t"))
        .unwrap()
        .split('\t')
        .collect();
    let column = |name: &str| {
        let bare = |n: &str| n.replace("id.", "").replace("id_", "").replace('-', "_");
        names.iter().position(|n| *n == name || bare(n) == bare(name))
    };
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let values: Vec<&str> = line.split('\t').collect();
            let get = |name: &str| column(name).map_or("", |i| values[i]).to_owned();
            let number = |name: &str| get(name).parse().unwrap_or(0);
            Conn {
                src: format!("{} {}", get("id.orig_h"), get("id.orig_p")),
                dst: format!("{} {} {}", get("id.resp_h"), get("id.resp_p"), get("proto")),
                state: get("conn_state"),
                history: get("history").replace('-', ""),
                numbers: [
                    number("orig_bytes"),
                    number("resp_bytes"),
                    number("orig_pkts"),
                    number("resp_pkts"),
                    number("orig_ip_bytes"),
                    number("resp_ip_bytes"),
                ],
            }
        })
        .collect()
}

fn our_log(path: &Path) -> Vec<Conn> {
    let mut conns = Vec::new();
    let limits = Limits::default();
    meter_file(path, "s", limits, 1, |row| {
        if row.end_reason.is_none() {
            return;
        }
        let protocol = match row.protocol {
            6 => "tcp",
            17 => "udp",
            1 | 58 => "icmp",
            _ => "unknown_transport",
        };
        conns.push(Conn {
            src: format!("{} {}", row.src_ip, row.src_port),
            dst: format!("{} {} {protocol}", row.dst_ip, row.dst_port),
            state: row.conn_state.unwrap_or_default().to_owned(),
            history: row.history.unwrap_or_default().to_owned(),
            numbers: [
                row.src_bytes.unwrap(),
                row.dst_bytes.unwrap(),
                row.src_packets.unwrap(),
                row.dst_packets.unwrap(),
                row.src_ip_bytes.unwrap(),
                row.dst_ip_bytes.unwrap(),
            ],
        });
    })
    .unwrap();
    conns
}

#[test]
fn connections_are_those_of_zeek() {
    let Some(corpora) = corpora() else { return };
    let folder = corpora.join("packets/zeek");
    let index = std::fs::read_to_string(folder.join("index.tsv")).unwrap();
    let (mut all, mut equal, mut report) = (0, [0_usize; 4], String::new());
    for line in index.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let (name, capture) = (fields[0], fields[1]);
        if NOT_YET.contains(&name) || SPECIAL.contains(&name) {
            continue;
        }
        let theirs = zeek_log(&folder.join(format!("{name}.conn.log")));
        let mut ours = our_log(&folder.join(capture));
        for conn in theirs {
            all += 1;
            // Zeek in bare mode knows no server ports, so it keeps the direction of the first packet.
            let same = |c: &Conn| c.src == conn.src && c.dst == conn.dst;
            let place = ours
                .iter()
                .position(|c| *c == conn)
                .or_else(|| ours.iter().position(same));
            let Some(place) = place else {
                writeln!(report, "{name}: missing {conn:?}").unwrap();
                continue;
            };
            let mut found = ours.remove(place);
            // Zeek leaves the octets of a connection without a duration unset.
            if conn.numbers[0] + conn.numbers[1] == 0 && conn.numbers[2] + conn.numbers[3] == 1 {
                (found.numbers[0], found.numbers[1]) = (0, 0);
            }
            equal[0] += 1;
            equal[1] += usize::from(found.numbers == conn.numbers);
            equal[2] += usize::from(found.state == conn.state);
            equal[3] += usize::from(found.history == conn.history);
            if found != conn {
                writeln!(report, "{name}:\n  zeek {conn:?}\n  ours {found:?}").unwrap();
            }
        }
        for extra in ours {
            writeln!(report, "{name}: only ours {extra:?}").unwrap();
        }
    }
    println!("{report}");
    let [endpoints, numbers, state, history] = equal;
    println!(
        "{all} connections; equal: endpoints {endpoints}, counters {numbers}, conn_state {state}, history {history}"
    );
    let least = all * 90 / 100;
    assert!(endpoints >= least && numbers >= least && state >= least && history >= least);
}

// Per flow: packets each way and the JA4 that nDPI printed.
type NdpiFlows = BTreeMap<String, (u64, u64, Option<String>)>;

fn ndpi_expected(text: &str) -> NdpiFlows {
    let mut flows = NdpiFlows::new();
    for line in text.lines() {
        let Some((head, tail)) = line.split_once("][IP: ").or_else(|| line.split_once("[proto: ")) else {
            continue;
        };
        let words: Vec<&str> = head.split_whitespace().collect();
        let Some(arrow) = words.iter().position(|w| matches!(*w, "<->" | "->")) else {
            continue;
        };
        if arrow < 2 || !matches!(words[arrow - 2], "TCP" | "UDP") {
            continue;
        }
        let side = |text: &str| text.replace(['[', ']'], "");
        let key = format!(
            "{} {} {}",
            words[arrow - 2],
            side(words[arrow - 1]),
            side(words[arrow + 1])
        );
        let Some(counts) = line.split("][").find(|p| p.contains(" pkts/") || p.contains(" bytes ")) else {
            continue;
        };
        let numbers: Vec<u64> = counts
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .collect();
        let ja4 = tail
            .split("[JA4: ")
            .nth(1)
            .and_then(|rest| rest.split(']').next())
            .map(str::to_owned);
        if let [there, _, back, _] = numbers[..] {
            flows.insert(key, (there, back, ja4));
        }
    }
    flows
}

#[test]
fn flows_are_those_of_ndpi() {
    let Some(corpora) = corpora() else { return };
    let folder = corpora.join("packets/ndpi");
    let (mut flows, mut same, mut ja4s, mut same_ja4) = (0, 0, 0, 0);
    let mut report = String::new();
    let mut captures: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    captures.sort();
    for capture in captures {
        let name = capture.file_name().unwrap().to_string_lossy().into_owned();
        let expected = folder.join(format!("../ndpi-expected/{name}.out"));
        let Ok(expected) = std::fs::read(expected) else {
            continue;
        };
        let expected = ndpi_expected(&String::from_utf8_lossy(&expected));
        // Flows by their five facts, since nDPI's reader does not end them as we do.
        let mut ours: HashMap<String, (u64, u64, Option<String>)> = HashMap::new();
        let metered = meter_file(&capture, "s", Limits::default(), 1, |row| {
            if row.end_reason.is_none() || !matches!(row.protocol, 6 | 17) {
                return;
            }
            let protocol = if row.protocol == 6 { "TCP" } else { "UDP" };
            let (src, dst) = (
                format!("{}:{}", row.src_ip, row.src_port),
                format!("{}:{}", row.dst_ip, row.dst_port),
            );
            let (there, back) = (row.src_packets.unwrap(), row.dst_packets.unwrap());
            for (key, there, back) in [
                (format!("{protocol} {src} {dst}"), there, back),
                (format!("{protocol} {dst} {src}"), back, there),
            ] {
                let flow = ours.entry(key).or_default();
                flow.0 += there;
                flow.1 += back;
                if flow.2.is_none() {
                    flow.2 = row.ja4.map(str::to_owned);
                }
            }
        });
        if let Err(error) = metered {
            writeln!(report, "{name}: {error}").unwrap();
            continue;
        }
        for (key, (there, back, ja4)) in expected {
            flows += 1;
            let found = ours.get(&key);
            let equal = found.is_some_and(|f| (f.0, f.1) == (there, back));
            same += usize::from(equal);
            if !equal && found.is_some() {
                writeln!(report, "{name}: {key}: nDPI {there}/{back}, ours {found:?}").unwrap();
            }
            let Some(theirs) = ja4 else { continue };
            if !theirs.starts_with('t') {
                continue;
            }
            ja4s += 1;
            // nDPI of that time printed the first two letters of the ALPN where the specification has the first and
            // the last, "d" for a client without a server name, and the hash of nothing where it has zeros.
            let mask = |ja4: &str| {
                let tail = ja4[10..].replace("e3b0c44298fc", "000000000000");
                format!("{}{}{tail}", &ja4[..3], &ja4[4..8])
            };
            let got = found.and_then(|f| f.2.as_deref());
            let equal = got.is_some_and(|got| mask(got) == mask(&theirs));
            same_ja4 += usize::from(equal);
            if !equal {
                writeln!(report, "{name}: {key}: JA4 of nDPI {theirs}, ours {got:?}").unwrap();
            }
        }
    }
    println!("{report}");
    println!("{flows} flows, {same} with equal packet counts; {ja4s} JA4, {same_ja4} equal");
    assert!(same * 100 >= flows * 85);
    assert!(same_ja4 * 100 >= ja4s * 95);
}
