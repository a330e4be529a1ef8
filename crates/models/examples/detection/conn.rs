//! Zeek's labelled connection logs: each connection with what its source and its destination did in the minute before,
//! and apart from that what means the same in any network.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
};

use anyhow::{Context as _, Result, ensure};
use garrison_models::table::{Categories, Column, Table};

use crate::{
    data::{Data, lines},
    spec::{Source, Spec, plain},
};

const WINDOW: f64 = 60.0;
const WELL_KNOWN: u32 = 1_024;
const DYNAMIC: u32 = 49_152;

const NUMBERS: [&str; 16] = [
    "duration",
    "orig_bytes",
    "resp_bytes",
    "orig_pkts",
    "resp_pkts",
    "orig_mean",
    "resp_mean",
    "byte_balance",
    "packet_rate",
    "history_length",
    "source_flows",
    "source_failed_share",
    "source_hosts",
    "source_ports",
    "destination_flows",
    "destination_sources",
];
const CATEGORIES: [&str; 6] = ["proto", "service", "conn_state", "port", "direction", "history"];

// What means the same in any network: sizes, and whether an answer that was due came. Counts of a minute, ports, directions
// and spelt-out histories tell networks apart more than they tell attacks.
const PORTABLE: [&str; 15] = [
    "duration",
    "orig_bytes",
    "resp_bytes",
    "orig_pkts",
    "resp_pkts",
    "orig_mean",
    "resp_mean",
    "byte_balance",
    "packet_balance",
    "unanswered",
    "refused",
    "in_vain",
    "both_spoke",
    "service_in_vain",
    "pair_in_vain",
];
// Who sends there without an expectation of an answer: mDNS, LLMNR, SSDP and the like go to many at once.
const ECHO: [u32; 2] = [8, 128];

#[derive(Default)]
struct Connection {
    time: f64,
    portable: Vec<f32>,
    // Protocol, and how it went.
    manner: [String; 2],
    in_vain: bool,
    source: String,
    destination: String,
    port: u32,
    failed: bool,
    numbers: Vec<f32>,
    categories: Vec<String>,
    label: String,
}

/// Reads the logs; windows run within each of them.
pub fn load(spec: &Spec, sources: &[&Source]) -> Result<Data> {
    let (mut all, mut source) = (Vec::new(), Vec::new());
    for (k, from) in sources.iter().enumerate() {
        let mut connections = read(spec, from)?;
        connections.sort_by(|a, b| a.time.total_cmp(&b.time));
        add_windows(&mut connections);
        add_histories(&mut connections);
        source.extend(std::iter::repeat_n(k, connections.len()));
        all.extend(connections);
    }
    let mut table = Table::new(all.len());
    for (j, name) in NUMBERS.iter().enumerate() {
        if !spec.ignore.iter().any(|i| i == name) {
            table.push(name, Column::Numeric(all.iter().map(|c| c.numbers[j]).collect()));
        }
    }
    for (j, name) in CATEGORIES.iter().enumerate() {
        if !spec.ignore.iter().any(|i| i == name) {
            let mut categories = Categories::default();
            all.iter().for_each(|c| categories.push(&c.categories[j]));
            table.push(name, categories.finish());
        }
    }
    let mut portable = Table::new(all.len());
    for (j, name) in PORTABLE.iter().enumerate() {
        portable.push(name, Column::Numeric(all.iter().map(|c| c.portable[j]).collect()));
    }
    for (j, name) in ["proto", "manner"].iter().enumerate() {
        let mut categories = Categories::default();
        all.iter().for_each(|c| categories.push(&c.manner[j]));
        portable.push(name, categories.finish());
    }
    Ok(Data {
        table,
        labels: all.into_iter().map(|c| c.label).collect(),
        source,
        texts: Vec::new(),
        portable: Some(portable),
    })
}

fn read(spec: &Spec, from: &Source) -> Result<Vec<Connection>> {
    let path = spec.folder.join(&from.file);
    let mut columns: HashMap<String, usize> = HashMap::new();
    let mut connections = Vec::new();
    for (number, line) in lines(&path)?.enumerate() {
        let line = line?;
        if let Some(named) = line.strip_prefix("#fields") {
            columns = split(named.trim_start_matches('\t'))
                .into_iter()
                .zip(0..)
                .map(|(n, j)| (n.to_owned(), j))
                .collect();
            continue;
        }
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        ensure!(!columns.is_empty(), "{} has rows before a line #fields", path.display());
        let fields = split(&line);
        let field = |name: &str| columns.get(name).and_then(|j| fields.get(*j)).copied().unwrap_or("-");
        let time = field("ts").parse();
        let time = time.with_context(|| format!("{} line {}: ts is no time", path.display(), number + 1))?;
        let said = match &from.label {
            Some(label) => label.as_str(),
            None => field(spec.label.as_deref().unwrap_or("label")),
        };
        // The detailed label names the kind of what is not benign.
        let detailed = match field("detailedlabel") {
            "-" => field("detailed-label"),
            detailed => detailed,
        };
        let benign = spec.is_normal(said) || matches!(said, "-" | "(empty)");
        let label = match (benign, detailed) {
            (true, _) => "benign".to_owned(),
            (false, "-" | "(empty)") => plain(said),
            (false, detailed) => plain(detailed),
        };
        connections.push(connection(&field, time, label));
    }
    ensure!(!connections.is_empty(), "{} has no connections", path.display());
    Ok(connections)
}

// Tabs between fields; in some published logs the last ones stand apart by blanks.
fn split(line: &str) -> Vec<&str> {
    let mut fields: Vec<&str> = line.split('\t').collect();
    if let Some(last) = fields.pop() {
        let parts = last.split("   ").map(str::trim).filter(|f| !f.is_empty());
        fields.extend(parts);
    }
    fields
}

fn connection<'a>(field: &impl Fn(&str) -> &'a str, time: f64, label: String) -> Connection {
    let number = |name: &str| field(name).parse::<f32>().unwrap_or(f32::NAN);
    let zero = |v: f32| if v.is_finite() { v } else { 0.0 };
    let duration = number("duration");
    let (orig, resp) = (zero(number("orig_bytes")), zero(number("resp_bytes")));
    let (sent, answered) = (zero(number("orig_pkts")), zero(number("resp_pkts")));
    let port: u32 = field("id.resp_p").parse().unwrap_or(0);
    let history = field("history");
    let state = field("conn_state");
    let balance = if orig + resp > 0.0 {
        (orig - resp) / (orig + resp)
    } else {
        0.0
    };
    let port_class = match port {
        p if p < WELL_KNOWN => p.to_string(),
        p if p < DYNAMIC => "registered".to_owned(),
        _ => "dynamic".to_owned(),
    };
    let numbers = vec![
        duration,
        orig,
        resp,
        sent,
        answered,
        orig / sent.max(1.0),
        resp / answered.max(1.0),
        balance,
        (sent + answered) / zero(duration).max(1e-3),
        history.len() as f32,
    ];
    let direction = format!("{}{}", field("local_orig"), field("local_resp"));
    let categories = [
        field("proto"),
        field("service"),
        state,
        &port_class,
        &direction,
        history,
    ];
    // To many at once, or a notice: nobody has to answer.
    let proto = field("proto");
    let echo = field("id.orig_p").parse().is_ok_and(|kind: u32| ECHO.contains(&kind));
    let due = !to_many(field("id.resp_h")) && (proto != "icmp" || echo);
    let unanswered = due && answered == 0.0;
    let refused = state == "REJ";
    let in_vain = unanswered || refused;
    let packets = sent + answered;
    let packet_balance = if due && packets > 0.0 {
        (sent - answered) / packets
    } else {
        0.0
    };
    let flag = |is: bool| f32::from(u8::from(is));
    let portable = [
        (zero(duration) * 1_000.0).ln_1p(),
        orig.ln_1p(),
        resp.ln_1p(),
        sent.ln_1p(),
        answered.ln_1p(),
        (orig / sent.max(1.0)).ln_1p(),
        (resp / answered.max(1.0)).ln_1p(),
        balance,
        packet_balance,
        flag(unanswered),
        flag(refused),
        flag(in_vain),
        flag(orig > 0.0 && resp > 0.0),
    ];
    let manner = if due { manner(state) } else { "one way" };
    Connection {
        time,
        portable: portable.to_vec(),
        manner: [proto.to_owned(), manner.to_owned()],
        in_vain,
        source: field("id.orig_h").to_owned(),
        destination: field("id.resp_h").to_owned(),
        port,
        failed: matches!(state, "S0" | "REJ" | "RSTOS0" | "SH" | "SHR" | "RSTRH"),
        numbers,
        categories: categories.map(str::to_owned).to_vec(),
        label,
    }
}

fn to_many(address: &str) -> bool {
    match address.parse() {
        Ok(IpAddr::V4(a)) => a.is_multicast() || a.is_broadcast() || a.octets()[3] == 255,
        Ok(IpAddr::V6(a)) => a.is_multicast(),
        Err(_) => false,
    }
}

// Zeek's states by what they have in common.
fn manner(state: &str) -> &'static str {
    match state {
        "SF" | "S1" | "S2" | "S3" => "done",
        "S0" | "SH" | "SHR" | "RSTOS0" | "RSTRH" => "silent",
        "REJ" => "refused",
        "RSTO" | "RSTR" => "reset",
        _ => "seen in part",
    }
}

// How much of what went to a service, and between two hosts, was in vain until now.
fn add_histories(connections: &mut [Connection]) {
    let mut services: HashMap<(String, u32, String), (f32, f32)> = HashMap::new();
    let mut pairs: HashMap<(String, String), (f32, f32)> = HashMap::new();
    for c in connections {
        let service = services
            .entry((c.destination.clone(), c.port, c.manner[0].clone()))
            .or_default();
        let pair = pairs.entry((c.source.clone(), c.destination.clone())).or_default();
        for (vain, all) in [service, pair] {
            *vain += f32::from(u8::from(c.in_vain));
            *all += 1.0;
            c.portable.push((*vain + 0.5) / (*all + 1.0));
        }
    }
}

// The last minute of one host, with counts of what differs in it.
#[derive(Default)]
struct Recent {
    events: VecDeque<(f64, u64, u32, bool)>,
    others: HashMap<u64, u32>,
    ports: HashMap<u32, u32>,
    failed: u32,
}

impl Recent {
    fn add(&mut self, time: f64, other: u64, port: u32, failed: bool) {
        while let Some((then, other, port, failed)) = self.events.front().copied() {
            if then > time - WINDOW {
                break;
            }
            self.events.pop_front();
            decrease(&mut self.others, other);
            decrease(&mut self.ports, port);
            self.failed -= u32::from(failed);
        }
        self.events.push_back((time, other, port, failed));
        *self.others.entry(other).or_default() += 1;
        *self.ports.entry(port).or_default() += 1;
        self.failed += u32::from(failed);
    }
}

fn decrease<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: K) {
    if let std::collections::hash_map::Entry::Occupied(mut entry) = counts.entry(key) {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

fn add_windows(connections: &mut [Connection]) {
    let (mut sources, mut destinations): (HashMap<String, Recent>, HashMap<String, Recent>) = Default::default();
    let mut ids: HashMap<String, u64> = HashMap::new();
    for c in connections {
        let mut id = |host: &str| {
            let next = ids.len() as u64;
            *ids.entry(host.to_owned()).or_insert(next)
        };
        let (from, to) = (id(&c.source), id(&c.destination));
        let source = sources.entry(c.source.clone()).or_default();
        source.add(c.time, to, c.port, c.failed);
        let flows = source.events.len() as f32;
        let hosts = source.others.len() as f32;
        c.numbers
            .extend([flows, source.failed as f32 / flows, hosts, source.ports.len() as f32]);
        let destination = destinations.entry(c.destination.clone()).or_default();
        destination.add(c.time, from, c.port, c.failed);
        c.numbers
            .extend([destination.events.len() as f32, destination.others.len() as f32]);
    }
}
