//! The classifier of threats: trained on labelled connections of real networks, and judged on a network that it did not
//! see.

use std::path::Path;

use garrison_flow::{FlowBatchBuilder, FlowRow, FlowState};
use garrison_models::Matrix;

use super::{
    EvaluationError, Report,
    zeek::{Log, LogRow},
};
use crate::domain::{
    facts::Facts,
    features::{self, WIDTH},
    settings::Settings,
    shard::{Context, Shard},
    threat::{CLASSES, Threats},
    wide::Wide,
};

/// The labelled logs, and what each of them is.
const SCENARIOS: [(&str, &str); 3] = [
    (
        "001",
        "flows/zeek-labelled/001-zeek-scenario-malicious/labeled-conn.log.gz",
    ),
    ("008", "flows/zeek-labelled/008-zeek-mixed/conn.log.labeled.gz"),
    ("010", "flows/zeek-labelled/010-zeek-mixed/conn.log.labeled.gz"),
];

/// What a connection log says of a connection. The others of the service's features are left out: a classifier that has
/// never seen them set would take them for a sign.
const FEATURES: [&str; 22] = [
    "duration",
    "src_packets",
    "dst_packets",
    "src_bytes",
    "dst_bytes",
    "byte_balance",
    "src_mean_payload",
    "dst_mean_payload",
    "packet_rate",
    "tcp",
    "udp",
    "icmp",
    "well_known_port",
    "dynamic_port",
    "failed",
    "reset",
    "service_known",
    "source_flows",
    "source_failed_share",
    "source_hosts",
    "source_ports",
    "source_bytes",
];

/// Least probability of a class that is named.
const LEAST: f64 = 0.9;
const SEED: u64 = 1;

/// Labelled rows of one network.
pub struct Scenario {
    name: &'static str,
    rows: Matrix,
    labels: Vec<usize>,
}

impl Scenario {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Every feature of its connections.
    pub fn rows(&self) -> &Matrix {
        &self.rows
    }

    /// The connections whose class is so.
    pub fn of_class(&self, is: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..self.labels.len()).filter(|i| is(self.labels[*i])).collect()
    }
}

/// Reads the labelled logs through the service's own features.
///
/// # Errors
/// When a log cannot be read.
pub fn scenarios(corpora: &Path, settings: &Settings) -> Result<Vec<Scenario>, EvaluationError> {
    let read = |(name, file): &(&'static str, &str)| {
        let log = Log::read(&corpora.join(file))?;
        let mut connections: Vec<(FlowRow<'_>, usize)> = log.rows().filter_map(connection).collect();
        connections.sort_by_key(|(flow, _)| flow.last_seen);
        let (mut shard, mut wide) = (Shard::new(settings.bounds), Wide::new(settings.wide));
        let context = Context {
            settings,
            learning: false,
            learnt: false,
            usual: &|_| 0.0,
            intel: None,
        };
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        for part in connections.chunks_mut(1_000) {
            let mut builder = FlowBatchBuilder::new(part.len());
            for (n, (flow, _)) in part.iter_mut().enumerate() {
                flow.flow_id = ((labels.len() + n + 1) as u128).to_be_bytes();
                builder.push(flow);
            }
            let batch = builder.finish();
            let columns = batch.columns();
            let mut facts = Facts::read(&batch, i64::MAX);
            facts.place(settings);
            let pass = shard.pass(&mut wide, &columns, &mut facts, &context);
            let own = features::compute(columns, &facts);
            for i in pass.scorable {
                rows.push(own.row(i).collect::<Vec<f32>>());
                labels.push(part[i].1);
            }
        }
        Ok(Scenario {
            name,
            rows: Matrix::from_rows(WIDTH, rows.iter().map(Vec::as_slice)),
            labels,
        })
    };
    SCENARIOS.iter().map(read).collect()
}

// A connection and its class. `None` for one without an address or a time.
fn connection<'a>(row: LogRow<'a>) -> Option<(FlowRow<'a>, usize)> {
    let number = |name: &str| row.number(name);
    let first_seen = row.nanos("ts")?;
    let malicious = row
        .get("label")
        .is_some_and(|label| label.eq_ignore_ascii_case("malicious"));
    let class = match (malicious, row.get("detailedlabel").or(row.get("detailed-label"))) {
        (true, Some(kind)) if kind.starts_with("CC") => 2,
        (true, _) => 1,
        _ => 0,
    };
    let flow = FlowRow {
        state: FlowState::Ended as u8,
        first_seen,
        last_seen: first_seen.saturating_add(row.nanos("duration").unwrap_or(0)),
        protocol: match row.get("proto")? {
            "tcp" => 6,
            "udp" => 17,
            _ => 1,
        },
        src_ip: row.get("id.orig_h")?.parse().ok()?,
        dst_ip: row.get("id.resp_h")?.parse().ok()?,
        src_port: u16::try_from(number("id.orig_p").unwrap_or(0)).ok()?,
        dst_port: u16::try_from(number("id.resp_p").unwrap_or(0)).ok()?,
        src_packets: number("orig_pkts"),
        dst_packets: number("resp_pkts"),
        src_bytes: number("orig_bytes").or(Some(0)),
        dst_bytes: number("resp_bytes").or(Some(0)),
        conn_state: row.get("conn_state"),
        service: row.get("service"),
        ..FlowRow::default()
    };
    Some((flow, class))
}

fn train(scenarios: &[&Scenario]) -> Result<Threats, EvaluationError> {
    let rows: Vec<Vec<f32>> = scenarios
        .iter()
        .flat_map(|s| (0..s.rows.rows()).map(|i| s.rows.row(i).collect()))
        .collect();
    let labels: Vec<usize> = scenarios.iter().flat_map(|s| s.labels.iter().copied()).collect();
    let matrix = Matrix::from_rows(WIDTH, rows.iter().map(Vec::as_slice));
    let data = scenarios.iter().map(|s| format!("zeek-labelled/{}", s.name)).collect();
    Threats::train(&matrix, &labels, &[], &FEATURES, (LEAST, data, SEED)).map_err(failed)
}

fn failed(error: garrison_models::error::ModelError) -> EvaluationError {
    EvaluationError::Format {
        path: "zeek-labelled".into(),
        problem: error.to_string(),
    }
}

/// The classifier that comes with the service.
///
/// # Errors
/// When the logs cannot be read or training fails.
pub fn shipped(scenarios: &[Scenario]) -> Result<Threats, EvaluationError> {
    train(&scenarios.iter().collect::<Vec<_>>())
}

/// Trains without one network after the other and judges on it. A class that only one network has cannot be judged.
///
/// # Errors
/// When training fails.
pub fn left_out(scenarios: &[Scenario]) -> Result<Report, EvaluationError> {
    let mut report = Report::new("Classes of threats, a network left out");
    for (k, test) in scenarios.iter().enumerate() {
        let others: Vec<&Scenario> = (0..scenarios.len())
            .filter(|j| *j != k)
            .map(|j| &scenarios[j])
            .collect();
        let threats = train(&others)?;
        let said = threats.classify(&test.rows).map_err(failed)?;
        for (class, name) in CLASSES.iter().enumerate() {
            let own: Vec<_> = said.iter().zip(&test.labels).filter(|(_, l)| **l == class).collect();
            let named: Vec<_> = said
                .iter()
                .zip(&test.labels)
                .filter(|(s, _)| s.name.as_deref() == Some(name))
                .collect();
            let right = named.iter().filter(|(_, l)| **l == class).count();
            let trained = others.iter().any(|s| s.labels.contains(&class));
            let what = |figure: &str| {
                let seen = if trained { "" } else { " (not in training)" };
                format!("{}: {name}{seen}, {figure}", test.name)
            };
            if !own.is_empty() {
                report.figure(what("connections"), own.len() as f64);
                report.figure(what("share named so"), right as f64 / own.len() as f64);
                let silent = own.iter().filter(|(s, _)| s.name.is_none()).count();
                report.figure(what("share without a name"), silent as f64 / own.len() as f64);
            }
            if !named.is_empty() {
                report.figure(what("right where named so"), right as f64 / named.len() as f64);
            }
        }
        let error = threats.manifest().classifier.held_calibration_error;
        report.figure(format!("{}: calibration error on rows of the others", test.name), error);
        report.figure(
            format!("{}: calibration error here", test.name),
            calibration_error(&said, &test.labels),
        );
    }
    report.notes.push(format!(
        "A class is named from a probability of {LEAST} on. Command and control is in one network only: how it carries over is not known."
    ));
    Ok(report)
}

// Expected calibration error of what was named, in ten bins.
fn calibration_error(said: &[crate::domain::threat::ThreatClass], labels: &[usize]) -> f64 {
    let mut bins = [(0.0, 0.0, 0.0); 10];
    for (class, label) in said.iter().zip(labels) {
        let Some(name) = &class.name else { continue };
        let bin = &mut bins[((class.probability * 10.0) as usize).min(9)];
        bin.0 += 1.0;
        bin.1 += class.probability;
        bin.2 += f64::from(u8::from(CLASSES[*label] == name));
    }
    let count: f64 = bins.iter().map(|b| b.0).sum();
    bins.iter().map(|b| (b.1 - b.2).abs()).sum::<f64>() / count.max(1.0)
}
