//! What a draft would have done to recorded flows.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use chrono::{DateTime, SecondsFormat};
use clap::Args;
use garrison_flow::FlowBatch;
use garrison_ztp::{
    Policy,
    sets::protocol_name,
    what_if::{FLOWS, Level, Record, Replay, Report},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::compile::lowered;
use crate::{commands::read_text, error::CliError, output::Printer};

/// Rows read at a time.
const BATCH: usize = 8_192;
/// Most files of one replay.
const FILES: usize = 100_000;

/// What a draft would have done to recorded flows.
#[derive(Args)]
pub struct WhatIf {
    /// Files of policies; all count as enforced, whatever their mode
    #[arg(required = true)]
    draft: Vec<PathBuf>,
    /// Parquet files of flows, as the flow lake keeps them, or folders of them
    #[arg(long, value_name = "PATH", required = true)]
    flows: Vec<PathBuf>,
    /// Files of what is enforced today, to tell what the draft changes
    #[arg(long, value_name = "FILE")]
    current: Vec<PathBuf>,
    /// End with 1 when something would be blocked that is not blocked today
    #[arg(long)]
    fail: bool,
    /// Show at most so many blocked connections
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

impl WhatIf {
    /// Replays the flows and prints what would have been.
    pub fn run(&self, printer: &Printer) -> Result<(), CliError> {
        let draft = policies(&self.draft)?;
        let current = policies(&self.current)?;
        let current = (!current.is_empty()).then_some(current.as_slice());
        let mut replay =
            Replay::new(&draft, current).map_err(|error| CliError::Invalid(format!("the draft: {error}")))?;
        each_record(&self.flows, |record| {
            if replay.record(record) {
                return Ok(());
            }
            Err(CliError::Argument(format!(
                "there are more than {FLOWS} flows; replay fewer days at a time"
            )))
        })?;
        let report = replay.report();
        if printer.is_json() {
            // Numbers and texts only: this cannot fail.
            printer.json(&serde_json::to_value(&report).unwrap_or_default());
        } else {
            self.print(&report, printer);
        }
        if self.fail && report.totals.newly_blocked > 0 {
            return Err(CliError::Violated(format!(
                "{} flows would be blocked that are not blocked today",
                report.totals.newly_blocked
            )));
        }
        Ok(())
    }

    fn print(&self, report: &Report, printer: &Printer) {
        let totals = &report.totals;
        let confidence = &report.confidence;
        eprintln!(
            "{} flows: {} allowed, {} blocked ({} of them not blocked today), {} that nothing governs",
            totals.flows, totals.allowed, totals.blocked, totals.newly_blocked, totals.ungoverned
        );
        if totals.newly_passing > 0 {
            eprintln!("{} flows would pass that are blocked today", totals.newly_passing);
        }
        let level = match confidence.level {
            Level::Low => "low: less than half of a week was seen",
            Level::Medium => "medium: not all of a week was seen",
            Level::High => "high: nearly every hour of a week was seen; jobs of the month may still be missing",
        };
        eprintln!(
            "confidence {level} ({} of 168 hours, {:.1} days)",
            confidence.hours_of_week, confidence.days
        );
        let time =
            |nanoseconds: i64| DateTime::from_timestamp_nanos(nanoseconds).to_rfc3339_opts(SecondsFormat::Secs, true);
        printer.rows(
            &[
                "blocked by",
                "from",
                "to",
                "service",
                "flows",
                "days",
                "last seen",
                "note",
            ],
            report.blocked.iter().take(self.limit).map(|c| {
                let mut notes = Vec::new();
                notes.extend(c.rare.then_some("runs rarely"));
                notes.extend((!c.newly).then_some("blocked today too"));
                vec![
                    format!("{} {}", c.policy, c.rule),
                    c.source.to_string(),
                    c.destination.to_string(),
                    format!("{}/{}", protocol_name(c.protocol), c.port),
                    c.flows.to_string(),
                    c.days.to_string(),
                    time(c.last_seen),
                    notes.join(", "),
                ]
            }),
        );
        if report.blocked.len() > self.limit {
            eprintln!(
                "and {} further connections; --limit shows more",
                report.blocked.len() - self.limit
            );
        }
        println!();
        printer.rows(
            &["rule", "direction", "action", "flows", "last seen"],
            report.rules.iter().map(|r| {
                vec![
                    format!("{} {}", r.policy, r.rule),
                    r.direction.to_owned(),
                    if r.allows { "allow" } else { "deny" }.to_owned(),
                    r.flows.to_string(),
                    r.last_seen.map(time).unwrap_or_default(),
                ]
            }),
        );
        let unused: Vec<String> = report.unused().map(|r| format!("{} {}", r.policy, r.rule)).collect();
        if !unused.is_empty() {
            eprintln!("unused: {}", unused.join(", "));
        }
    }
}

fn policies(files: &[PathBuf]) -> Result<Vec<Policy>, CliError> {
    let mut all = Vec::new();
    for file in files {
        all.extend(lowered(&read_text(file)?, &file.display().to_string(), 0)?);
    }
    Ok(all)
}

fn gather(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), CliError> {
    let failed = |source| CliError::file("reading", path, source);
    if !path.is_dir() {
        if depth == 0 || path.extension().is_some_and(|e| e == "parquet") {
            files.push(path.to_owned());
        }
        return Ok(());
    }
    if depth > 32 || files.len() > FILES {
        return Err(CliError::Argument(format!(
            "{} is too deep, or there are more than {FILES} files",
            path.display()
        )));
    }
    let mut entries = std::fs::read_dir(path)
        .map_err(failed)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    entries.sort();
    for entry in entries.iter().filter(|e| !(e.is_symlink() && e.is_dir())) {
        gather(entry, depth + 1, files)?;
    }
    Ok(())
}

/// Reads every record of Parquet files, or of folders of them.
pub fn each_record(paths: &[PathBuf], mut take: impl FnMut(&Record) -> Result<(), CliError>) -> Result<(), CliError> {
    let mut files = Vec::new();
    for path in paths {
        gather(path, 0, &mut files)?;
    }
    if files.is_empty() {
        return Err(CliError::Argument("there is no .parquet file to read".to_owned()));
    }
    files.iter().try_for_each(|file| read(file, &mut take))
}

fn read(path: &Path, take: &mut impl FnMut(&Record) -> Result<(), CliError>) -> Result<(), CliError> {
    let wrong = |problem: String| CliError::Argument(format!("{}: {problem}", path.display()));
    let file = File::open(path).map_err(|source| CliError::file("opening", path, source))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .and_then(|builder| builder.with_batch_size(BATCH).build())
        .map_err(|error| wrong(format!("this is no Parquet file: {error}")))?;
    for batch in reader {
        let batch = batch.map_err(|error| wrong(format!("reading flows failed: {error}")))?;
        let batch = FlowBatch::try_from_record_batch(batch).map_err(|error| wrong(error.to_string()))?;
        let columns = batch.columns();
        for i in 0..batch.len() {
            let row = columns.row(i);
            take(&Record {
                flow: row.flow_id,
                src: row.src_ip,
                dst: row.dst_ip,
                protocol: row.protocol,
                // Of ICMP, the type stands where others have the source port.
                port: if matches!(row.protocol, 1 | 58) {
                    row.src_port
                } else {
                    row.dst_port
                },
                first_seen: row.first_seen,
                last_seen: row.last_seen,
            })?;
        }
    }
    Ok(())
}
