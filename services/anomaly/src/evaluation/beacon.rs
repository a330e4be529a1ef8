//! Beacons: a simulated network with everything on it that is regular and honest, and real logs of a host behind a proxy.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use garrison_flow::{FlowBatchBuilder, FlowRow, FlowState};
use garrison_models::rng::SplitMix64;

use super::{EvaluationError, Goal, Report, zeek::Log};
use crate::domain::{
    detector::Detector,
    settings::Settings,
    tenant::{Arrival, Phase, Tenant},
    wide::name_hash,
    window::{Host, Nanos, SECOND},
};

const DAY: f64 = 86_400.0;
const START: Nanos = 1_750_000_000 * SECOND;
const HOURS_LEARNT: f64 = 4.0;
const SHARDS: u32 = 16;

/// How large the simulated network is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Network {
    /// Hosts with honest traffic.
    pub hosts: u32,
    /// Hosts with a beacon besides.
    pub beacons: u32,
    /// Days that are judged; four hours before them are learnt.
    pub days: f64,
    /// Share of a beacon's contacts that do not happen.
    pub missed: f64,
    /// Seed.
    pub seed: u64,
}

/// What the simulation gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Flows.
    pub flows: u64,
    /// Beacons told within 12 contacts.
    pub within: u32,
    /// Beacons told at all.
    pub told: u32,
    /// Channels told that are no beacon: what each is.
    pub false_channels: BTreeMap<String, u32>,
    /// Timers that hosts took up after normal was learnt, which nothing tells from a beacon, and how many were told.
    pub new_timers: (u32, u32),
}

impl Outcome {
    /// Channels told that are no beacon.
    pub fn false_alarms(&self) -> u32 {
        self.false_channels.values().sum()
    }
}

#[derive(Clone, Copy)]
struct Event {
    at: f64,
    host: u32,
    name: u32,
    sent: u32,
    received: u32,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Named,
    Clock,
}

struct Simulation {
    rng: SplitMix64,
    names: Vec<String>,
    events: Vec<Event>,
    end: f64,
}

/// Simulates and judges. Flow times are in order; every host's contacts go through the service's own core with its
/// default settings and all detectors.
pub fn simulate(network: Network, settings: &Settings) -> Outcome {
    let mut simulation = Simulation::new(network);
    simulation.honest(network);
    let timers = simulation.new_timers(network);
    let first_beacon = simulation.names.len() as u32;
    let started = simulation.beacons(network);
    simulation.events.sort_by(|a, b| a.at.total_cmp(&b.at));

    let mut tenant = Tenant::new(tenant_id(), Arc::new(settings.without_budget()), 16);
    let mut outcome = Outcome {
        flows: simulation.events.len() as u64,
        ..Outcome::default()
    };
    outcome.new_timers.0 = timers.len() as u32;
    let mut contacts: BTreeMap<u32, u32> = BTreeMap::new();
    let mut told: BTreeMap<(String, u32), u32> = BTreeMap::new();
    let by_name: BTreeMap<&str, u32> = (0..)
        .zip(&simulation.names)
        .map(|(n, name)| (name.as_str(), n))
        .collect();
    let mut builders: Vec<(FlowBatchBuilder, u32)> = (0..SHARDS).map(|_| (FlowBatchBuilder::new(512), 0)).collect();
    let mut message = 0_u64;
    let _ = tenant.start_learning(0, false);
    for (n, event) in simulation.events.iter().enumerate() {
        if event.at > HOURS_LEARNT * 3_600.0 {
            // What the model says is not asked here.
            tenant.phase = Phase::Scoring;
        }
        let shard = event.host % SHARDS;
        let (builder, rows) = &mut builders[shard as usize];
        builder.push(&row(n as u64, event, &simulation.names));
        *rows += 1;
        if event.name >= first_beacon && event.kind == Kind::Named {
            *contacts.entry(event.name).or_default() += 1;
        }
        // A beacon's contact is judged by itself, to see at which it is told.
        if *rows < 512 && (event.name < first_beacon || event.kind == Kind::Clock) {
            continue;
        }
        *rows = 0;
        message += 1;
        let judged = tenant.judge(&Arrival {
            id: u128::from(message).to_be_bytes(),
            shard: shard as u16,
            position: message,
            published: i64::MAX / 2,
            now: 0,
            batch: &builder.finish(),
        });
        for alert in judged
            .alerts
            .iter()
            .filter(|a| a.detector == Detector::BeaconPeriodic.id())
        {
            let source = alert.entity.as_ref().map_or("", |e| e.value.as_str()).to_owned();
            let name = alert.title.split(" to ").nth(1).and_then(|t| t.split(": every").next());
            let name = name.and_then(|name| by_name.get(name)).copied().unwrap_or(u32::MAX);
            let at = contacts.get(&name).copied().unwrap_or(0);
            told.entry((source, name)).or_insert(at);
        }
    }
    for ((_, name), contact) in &told {
        if (first_beacon..first_beacon + started).contains(name) {
            outcome.told += 1;
            outcome.within += u32::from(*contact <= 12);
        } else if timers.contains(name) {
            outcome.new_timers.1 += 1;
        } else {
            let name = simulation
                .names
                .get(*name as usize)
                .map_or("an address", String::as_str);
            let kind = name.split('-').next().unwrap_or(name).to_owned();
            *outcome.false_channels.entry(kind).or_default() += 1;
        }
    }
    outcome
}

fn tenant_id() -> garrison_proto::TenantId {
    "simulation".parse().expect("the text is a tenant's name")
}

impl Simulation {
    fn new(network: Network) -> Self {
        Self {
            rng: SplitMix64::new(network.seed),
            names: Vec::new(),
            events: Vec::new(),
            end: HOURS_LEARNT * 3_600.0 + network.days * DAY,
        }
    }

    fn name(&mut self, kind: &str) -> u32 {
        self.names.push(format!("{kind}-{}.example", self.names.len()));
        (self.names.len() - 1) as u32
    }

    fn several(&mut self, kind: &str, n: u32) -> Vec<u32> {
        (0..n).map(|_| self.name(kind)).collect()
    }

    fn event(&mut self, at: f64, host: u32, name: u32, sent: f64, received: f64) {
        if at < self.end {
            self.events.push(Event {
                at,
                host,
                name,
                sent: sent as u32,
                received: received as u32,
                kind: Kind::Named,
            });
        }
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.rng.unit()).ln()
    }

    // Most to the first ones: Zipf's law with exponent one.
    fn zipf(&mut self, n: usize) -> usize {
        ((n as f64).powf(self.rng.unit()) as usize - 1).min(n - 1)
    }

    fn honest(&mut self, network: Network) {
        let sites = self.several("site", 20_000);
        let helpers = self.several("helper", 300);
        let mail = self.several("mail", 3);
        let chat = self.several("chat", 4);
        let updates = self.several("update", 12);
        let certificates = self.several("ocsp", 20);
        for host in 0..network.hosts {
            self.browsing(host, &sites, &helpers, &certificates);
            // Polling clients: mail every five minutes, a chat that says it is alive each minute, update checks.
            let provider = mail[self.rng.below(3) as usize];
            self.timer(host, provider, 300.0, 0.01, 0.0, 480.0);
            let provider = chat[self.rng.below(4) as usize];
            self.timer(host, provider, 60.0, 0.02, 0.0, 90.0);
            for _ in 0..3 {
                let vendor = updates[self.rng.below(12) as usize];
                let period = [1_800.0, 3_600.0, 14_400.0][self.rng.below(3) as usize];
                self.timer(host, vendor, period, 0.1, 0.0, 700.0);
            }
            self.clocks(host);
            // A feed reader, a home's heating, somebody's own server: hardly anybody else turns to it.
            if self.rng.unit() < 0.05 {
                let own = self.name("own");
                let period = 30.0 * 30.0_f64.powf(self.rng.unit());
                self.timer(host, own, period, 0.02, 0.0, 350.0);
            }
            // A tool with a request of always the same size, whenever it is used during the day.
            if self.rng.unit() < 0.05 {
                let tool = self.name("tool");
                let mean = 60.0 * 20.0_f64.powf(self.rng.unit());
                let mut at = self.exponential(mean);
                while at < self.end {
                    if (8.0..17.0).contains(&(at / 3_600.0 % 24.0)) {
                        self.event(at, host, tool, 420.0, 2_000.0);
                    }
                    at += self.exponential(mean);
                }
            }
        }
    }

    fn browsing(&mut self, host: u32, sites: &[u32], helpers: &[u32], certificates: &[u32]) {
        let mut day = 0.0;
        while day < self.end {
            let begin = day + 8.0 * 3_600.0 + self.rng.normal() * 3_600.0;
            let mut at = begin.max(0.0) + self.exponential(600.0);
            while at < begin + 9.0 * 3_600.0 {
                let site = sites[self.zipf(sites.len())];
                for _ in 0..1 + self.rng.below(12) {
                    for flow in 0..1 + self.rng.below(4) {
                        let sent = 600.0 * (0.8 * self.rng.normal()).exp();
                        let received = 20_000.0 * (1.5 * self.rng.normal()).exp();
                        self.event(at + 0.2 * flow as f64, host, site, sent, received);
                    }
                    let helper = helpers[self.zipf(helpers.len())];
                    let sent = 700.0 * (0.4 * self.rng.normal()).exp();
                    self.event(at + 0.3, host, helper, sent, 900.0);
                    if self.rng.unit() < 0.2 {
                        let authority = certificates[self.zipf(certificates.len())];
                        self.event(at + 0.1, host, authority, 493.0, 900.0);
                    }
                    at += 25.0 * (1.2 * self.rng.normal()).exp();
                }
                at += self.exponential(500.0);
            }
            day += DAY;
        }
    }

    // Every `period` seconds with a jitter of plus or minus a share.
    fn timer(&mut self, host: u32, name: u32, period: f64, jitter: f64, from: f64, sent: f64) {
        let mut at = from + period * self.rng.unit();
        while at < self.end {
            let sent = sent * (1.0 + 0.05 * self.rng.normal());
            self.event(at, host, name, sent.max(20.0), 600.0);
            at += period * (1.0 + jitter * (2.0 * self.rng.unit() - 1.0));
        }
    }

    fn clocks(&mut self, host: u32) {
        for _ in 0..4 {
            let server = self.rng.below(3_000) as u32;
            let period = [64.0, 256.0, 1_024.0][self.rng.below(3) as usize];
            let mut at = period * self.rng.unit();
            while at < self.end {
                self.events.push(Event {
                    at,
                    host,
                    name: server,
                    sent: 48,
                    received: 48,
                    kind: Kind::Clock,
                });
                at += period + 0.01 * self.rng.normal();
            }
        }
    }

    // One host in a hundred takes up a timer of its own after normal was learnt.
    fn new_timers(&mut self, network: Network) -> Vec<u32> {
        let mut names = Vec::new();
        for host in (0..network.hosts).filter(|host| host % 100 == 50) {
            let name = self.name("new");
            let from = HOURS_LEARNT * 3_600.0 + self.rng.unit() * network.days * DAY * 0.5;
            self.timer(host, name, 120.0, 0.05, from, 400.0);
            names.push(name);
        }
        names
    }

    // Periods of 10 s to 20 min; a jitter of 40 %, to both sides or, as some kits have it, only to the shorter one; one
    // contact in twenty carries a result.
    fn beacons(&mut self, network: Network) -> u32 {
        for beacon in 0..network.beacons {
            let name = self.name("beacon");
            let host = network.hosts + beacon;
            let period = 10.0 * 120.0_f64.powf(self.rng.unit());
            let mut at = HOURS_LEARNT * 3_600.0 + 1_000.0 * self.rng.unit();
            let size = 200.0 + 400.0 * self.rng.unit();
            let mut left = 30;
            while left > 0 {
                if self.rng.unit() >= network.missed {
                    let result = if self.rng.unit() < 0.05 {
                        5_000.0 * self.rng.unit()
                    } else {
                        0.0
                    };
                    let sent = size * (1.0 + 0.05 * self.rng.normal()) + result;
                    self.event(at, host, name, sent, 300.0);
                    left -= 1;
                }
                let jitter = if beacon % 2 == 0 {
                    0.4 * (2.0 * self.rng.unit() - 1.0)
                } else {
                    -0.4 * self.rng.unit()
                };
                at += period * (1.0 + jitter);
            }
        }
        network.beacons
    }
}

fn row<'a>(n: u64, event: &Event, names: &'a [String]) -> FlowRow<'a> {
    let first_seen = START + (event.at * SECOND as f64) as Nanos;
    let clock = event.kind == Kind::Clock;
    let host = 0x0A00_0000 + event.host + 1;
    // Names share addresses, as they do behind a content network.
    let address = if clock { 0xC633_6400 } else { 0xCB00_7100 } + event.name % 251;
    FlowRow {
        flow_id: u128::from(n + 1).to_be_bytes(),
        state: FlowState::Ended as u8,
        first_seen,
        last_seen: first_seen + SECOND / 10,
        protocol: if clock { 17 } else { 6 },
        src_ip: std::net::Ipv4Addr::from(host).into(),
        dst_ip: std::net::Ipv4Addr::from(address).into(),
        src_port: 40_000 + (n % 20_000) as u16,
        dst_port: if clock { 123 } else { 443 },
        src_packets: Some(if clock { 1 } else { 8 }),
        dst_packets: Some(8),
        src_bytes: Some(event.sent.into()),
        dst_bytes: Some(event.received.into()),
        conn_state: Some("SF"),
        service: Some(if clock { "ntp" } else { "tls" }),
        tls_sni: (!clock).then(|| names[event.name as usize].as_str()),
        ..FlowRow::default()
    }
}

/// A channel of the real logs.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    /// Source.
    pub source: String,
    /// Name or address.
    pub destination: String,
    /// How much it stands out, 0 to 1.
    pub standing: f64,
    /// Its evidence for a beacon, nats; an alert needs the threshold.
    pub evidence: f64,
}

/// Judges the connections of a folder of Zeek logs in order of their end, and ranks the channels.
///
/// # Errors
/// When a log cannot be read.
pub fn rank(folder: &Path, settings: &Settings) -> Result<(Vec<Ranked>, u64), EvaluationError> {
    let logs = |kind: &str| -> Result<Vec<Log>, EvaluationError> {
        let mut paths: Vec<_> = std::fs::read_dir(folder)
            .map_err(|source| EvaluationError::Read {
                path: folder.to_owned(),
                source,
            })?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(kind)))
            .collect();
        paths.sort();
        paths.iter().map(|path| Log::read(path)).collect()
    };
    let (conn, http, ssl) = (logs("conn.")?, logs("http.")?, logs("ssl.")?);
    let mut requests: BTreeMap<&str, super::zeek::LogRow<'_>> = BTreeMap::new();
    for row in http.iter().flat_map(Log::rows) {
        if let Some(uid) = row.get("uid") {
            requests.entry(uid).or_insert(row);
        }
    }
    let names: BTreeMap<&str, &str> = ssl
        .iter()
        .flat_map(Log::rows)
        .filter_map(|row| Some((row.get("uid")?, row.get("server_name")?)))
        .collect();
    let mut rows: Vec<FlowRow<'_>> = Vec::new();
    for row in conn.iter().flat_map(Log::rows) {
        let (Some(src), Some(dst), Some(first_seen)) = (
            row.get("id.orig_h").and_then(|a| a.parse().ok()),
            row.get("id.resp_h").and_then(|a| a.parse().ok()),
            row.nanos("ts"),
        ) else {
            continue;
        };
        let uid = row.get("uid").unwrap_or_default();
        let request = requests.get(uid);
        rows.push(FlowRow {
            flow_id: u128::from(name_hash(uid)).to_be_bytes(),
            state: FlowState::Ended as u8,
            first_seen,
            last_seen: first_seen + row.nanos("duration").unwrap_or(0),
            protocol: match row.get("proto") {
                Some("tcp") => 6,
                Some("udp") => 17,
                _ => 1,
            },
            src_ip: src,
            dst_ip: dst,
            dst_port: row.number("id.resp_p").unwrap_or(0) as u16,
            src_packets: row.number("orig_pkts"),
            dst_packets: row.number("resp_pkts"),
            src_bytes: row.number("orig_bytes"),
            dst_bytes: row.number("resp_bytes"),
            conn_state: row.get("conn_state"),
            service: row.get("service"),
            tls_sni: names.get(uid).copied(),
            http_host: request.and_then(|r| r.get("host")),
            http_method: request.and_then(|r| r.get("method")),
            http_uri: request.and_then(|r| r.get("uri")),
            ..FlowRow::default()
        });
    }
    rows.sort_by_key(|r| r.last_seen);
    let mut tenant = Tenant::new(tenant_id(), Arc::new(settings.without_budget()), 16);
    let mut alerts = 0;
    for (n, rows) in rows.chunks(500).enumerate() {
        let mut builder = FlowBatchBuilder::new(rows.len());
        rows.iter().for_each(|r| builder.push(r));
        let judged = tenant.judge(&Arrival {
            id: (n as u128 + 1).to_be_bytes(),
            shard: 0,
            position: n as u64,
            published: i64::MAX / 2,
            now: 0,
            batch: &builder.finish(),
        });
        let beacons = judged
            .alerts
            .iter()
            .filter(|a| a.detector == Detector::BeaconPeriodic.id());
        alerts += beacons.count() as u64;
    }
    Ok((ranked(&tenant, &rows, settings), alerts))
}

// Names and addresses of the keys are taken from the rows, because the state has their hashes only.
fn ranked(tenant: &Tenant, rows: &[FlowRow<'_>], settings: &Settings) -> Vec<Ranked> {
    let mut known: BTreeMap<u64, String> = BTreeMap::new();
    for row in rows {
        for name in [row.tls_sni, row.http_host.map(|h| h.split(':').next().unwrap_or(h))]
            .into_iter()
            .flatten()
        {
            known.entry(name_hash(name)).or_insert_with(|| name.to_owned());
        }
        let key = crate::domain::behaviour::beacon::address_key(Host::from(row.dst_ip), row.dst_port);
        known.entry(key).or_insert_with(|| row.dst_ip.to_string());
    }
    let now = rows.last().map_or(0, |r| r.last_seen);
    let least = settings.beacon.contacts;
    let shards = tenant.shards.iter().flatten();
    let mut ranked: Vec<Ranked> = shards
        .flat_map(|shard| shard.channels.iter())
        // What a proxy does for its clients is theirs.
        .filter(|((_, key), channel)| channel.proxied || tenant.wide.proxied.peek(key).is_none())
        .filter_map(|((source, key), channel)| {
            Some(Ranked {
                source: source.to_string(),
                destination: known.get(key)?.clone(),
                standing: channel.standing(least, now)?,
                evidence: channel.evidence(least)?.total,
            })
        })
        .collect();
    ranked.sort_by(|a, b| b.standing.total_cmp(&a.standing));
    ranked
}

/// The evaluation: a simulated day of a thousand hosts, and the real logs under `beacon/proxy_rolling`.
///
/// # Errors
/// When the logs cannot be read.
pub fn run(corpora: &Path, settings: &Settings) -> Result<Report, EvaluationError> {
    let mut report = Report::new("beacons");
    let network = Network {
        hosts: 1_000,
        beacons: 1_000,
        days: 1.0,
        missed: 0.0,
        seed: 1,
    };
    let outcome = simulate(network, settings);
    let share = |n: u32| f64::from(n) / f64::from(network.beacons);
    report.goal(
        "simulated, jitter 40 %: told within 12 contacts",
        share(outcome.within),
        Goal::AtLeast(0.99),
    );
    report.figure("simulated, jitter 40 %: told at all", share(outcome.told));
    report.goal(
        "simulated: false alarms per 1,000 hosts a day",
        f64::from(outcome.false_alarms()),
        Goal::AtMost(1.0),
    );
    let lossy = Network {
        hosts: 20,
        missed: 0.01,
        seed: 2,
        ..network
    };
    let within = simulate(lossy, settings).within;
    report.figure(
        "the same with one contact in a hundred missing: told within 12",
        share(within),
    );
    report.figure("simulated: flows", outcome.flows as f64);
    report
        .notes
        .push(format!("false alarms by kind: {:?}", outcome.false_channels));
    report.notes.push(format!(
        "of {} honest timers to destinations of their own that began after the learnt period, {} were told; nothing \
         tells them from a beacon, and they are not among the false alarms",
        outcome.new_timers.0, outcome.new_timers.1
    ));
    let folder = corpora.join("beacon/proxy_rolling");
    if !folder.is_dir() {
        report.notes.push(format!("skipped: {} is not there", folder.display()));
        return Ok(report);
    }
    let (ranked, alerts) = rank(&folder, settings)?;
    let place = |source: &str, destination: &str| {
        let at = ranked
            .iter()
            .position(|r| r.source == source && r.destination == destination);
        at.map_or(f64::INFINITY, |at| at as f64 + 1.0)
    };
    report.goal(
        "proxy_rolling: rank of safebrowsing.googleapis.com behind the proxy",
        place("10.0.0.111", "safebrowsing.googleapis.com"),
        Goal::AtMost(2.0),
    );
    report.goal(
        "proxy_rolling: rank of 75.75.75.75",
        place("10.0.0.238", "75.75.75.75"),
        Goal::AtMost(2.0),
    );
    report.figure("proxy_rolling: beacon alerts", alerts as f64);
    for r in ranked.iter().take(6) {
        report.notes.push(format!(
            "{:.3} {} -> {}: evidence {:.1} of {}",
            r.standing, r.source, r.destination, r.evidence, settings.beacon.evidence
        ));
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_network_keeps_what_the_large_one_promises() {
        let network = Network {
            hosts: 60,
            beacons: 60,
            days: 0.3,
            missed: 0.0,
            seed: 3,
        };
        let settings = crate::config::tests::config("").unwrap().settings();
        let outcome = simulate(network, &settings);
        assert!(outcome.within >= 58, "{outcome:?}");
        assert_eq!(outcome.false_alarms(), 0, "{outcome:?}");
    }
}
