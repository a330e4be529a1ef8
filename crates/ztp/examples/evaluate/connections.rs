//! Every allowed connection, against the list of another analyser.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
};

use garrison_ztp::{
    reach::{Reach, Side},
    sets::{IntervalSet, PORT_PROTOCOLS, ServiceSet},
};

use crate::{Score, error, files, read};

/// (network, who, to whom, what), with `External` for addresses outside, and those addresses. Ranges with equal
/// meaning are one, however they are cut.
type Rows = BTreeMap<(String, String, String, String), IntervalSet<u32>>;

pub(crate) fn evaluate(folder: &Path, score: &mut Score) -> std::io::Result<()> {
    let mut cases: Vec<_> = std::fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect();
    cases.sort();
    for case in cases {
        let name = case.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let expected = folder.join(format!("{name}.connections.txt"));
        if !expected.is_file() {
            println!("  no answer for {name}");
            continue;
        }
        let expected = theirs(&std::fs::read_to_string(expected)?);
        let cluster = read(&files(&case)?, |text| text)?;
        let wrong = error(&cluster).or_else(|| {
            let ours = ours(&Reach::of(&cluster.program));
            let count = |rows: &Rows, other: &Rows| rows.iter().filter(|(k, v)| other.get(*k) != Some(v)).count();
            let (missing, extra) = (count(&expected, &ours), count(&ours, &expected));
            let example = |rows: &Rows, other: &Rows| {
                rows.iter()
                    .find(|(k, v)| other.get(*k) != Some(v))
                    .map(|(k, v)| format!("{k:?} {v:?}"))
            };
            (missing + extra > 0).then(|| {
                format!(
                    "{missing} missing (such as {:?}), {extra} too many (such as {:?})",
                    example(&expected, &ours),
                    example(&ours, &expected)
                )
            })
        });
        score.note(&format!("{name} ({} rows)", expected.len()), wrong);
    }
    Ok(())
}

fn theirs(text: &str) -> Rows {
    let mut network = String::new();
    let mut rows = Rows::new();
    let all = || IntervalSet::<u32>::full();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("Permitted connectivity analyzed in ") {
            let rest = rest.trim_end_matches(':');
            network = rest.strip_prefix("secondary NAD ").unwrap_or_default().to_owned();
            continue;
        }
        let Some((ends, what)) = line.rsplit_once(" : ") else {
            continue;
        };
        let Some((from, to)) = ends.split_once(" => ") else {
            continue;
        };
        let mut range = all();
        let mut side = |text: &str| match text.strip_suffix("[External]") {
            Some(addresses) => {
                let (from, to) = addresses.split_once('-').unwrap_or((addresses, addresses));
                if let (Ok(from), Ok(to)) = (from.parse::<Ipv4Addr>(), to.parse::<Ipv4Addr>()) {
                    range = IntervalSet::from_ranges([(u32::from(from), u32::from(to))]);
                }
                "External".to_owned()
            }
            None => text.to_owned(),
        };
        let key = (network.clone(), side(from), side(to), what.trim().to_owned());
        let row = rows.entry(key).or_default();
        *row = row.union(&range);
    }
    rows
}

fn ours(reach: &Reach<'_>) -> Rows {
    let mut rows = Rows::new();
    for connection in reach.connections(false) {
        let mut range = IntervalSet::full();
        let mut side = |side: &Side| match side.addresses() {
            Some(set) => {
                range = set.v4;
                "External".to_owned()
            }
            None => side.to_string(),
        };
        let (from, to) = (side(&connection.source), side(&connection.destination));
        let what = services(&connection.services);
        // The other list knows neither IPv6 nor protocols without ports.
        if range.is_empty() || what.is_empty() {
            continue;
        }
        let network = connection.network.rsplit('/').next().unwrap_or_default().to_owned();
        let row = rows.entry((network, from, to, what)).or_default();
        *row = row.union(&range);
    }
    rows
}

/// `All Connections`, or `TCP 80,443-450,UDP 53`.
fn services(set: &ServiceSet) -> String {
    let ported: BTreeSet<_> = PORT_PROTOCOLS
        .iter()
        .filter(|p| set.ports(**p).is_some_and(|ports| ports.is_full()))
        .collect();
    if ported.len() == PORT_PROTOCOLS.len() {
        return "All Connections".to_owned();
    }
    let mut parts = Vec::new();
    for (protocol, name) in [(132, "SCTP"), (6, "TCP"), (17, "UDP")] {
        let ranges = set.ports(protocol).map(|p| p.ranges()).unwrap_or_default();
        let ports: Vec<String> = ranges
            .iter()
            .map(|(from, to)| {
                let from = (*from).max(1);
                if from == *to {
                    from.to_string()
                } else {
                    format!("{from}-{to}")
                }
            })
            .collect();
        if !ports.is_empty() {
            parts.push(format!("{name} {}", ports.join(",")));
        }
    }
    parts.join(",")
}
