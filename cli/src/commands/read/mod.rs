//! `garrison flows read`: the meter on its own, without a fleet.

mod write;

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use flow_ingest::{
    capture::Filter,
    domain::{Limits, Sink},
    import,
    input::{Input, Options, Progress, Summary},
};
use garrison_flow::{FlowRow, FlowState};
use indicatif::{ProgressBar, ProgressStyle};

use self::write::Writer;
use crate::{error::CliError, output::Format};

/// Read flows from a file.
#[derive(Args)]
pub struct Read {
    /// The file; `-` for standard input
    file: PathBuf,
    /// What the log is, where it should not be told by its content
    #[arg(long, value_enum)]
    format: Option<LogFormat>,
    /// Which packets of a capture are metered, in tcpdump's syntax, for example 'tcp port 80'; needs libpcap
    #[arg(long, value_name = "EXPRESSION")]
    filter: Option<String>,
    /// Print every record of a flow as it goes on, not only its last
    #[arg(long)]
    updates: bool,
    /// Name of the sensor in the records
    #[arg(long, default_value = "file")]
    sensor: String,
    /// Write to this file instead of standard output
    #[arg(long, short = 'w', value_name = "PATH")]
    write: Option<PathBuf>,
}

/// The formats of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Zeek's conn.log, tab-separated or JSON
    Zeek,
    /// Suricata's EVE
    Suricata,
    /// Amazon VPC flow logs
    AwsVpc,
    /// Azure virtual network or network security group flow logs
    Azure,
    /// Google Cloud VPC flow logs
    Gcp,
    /// Cilium Hubble flows
    Hubble,
}

impl From<LogFormat> for import::Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Zeek => Self::Zeek,
            LogFormat::Suricata => Self::Suricata,
            LogFormat::AwsVpc => Self::AwsVpc,
            LogFormat::Azure => Self::Azure,
            LogFormat::Gcp => Self::Gcp,
            LogFormat::Hubble => Self::Hubble,
        }
    }
}

// Only the last record of each flow, unless all are wanted. A failure to write ends the reading.
struct Selected<'w> {
    writer: &'w mut dyn Writer,
    updates: bool,
    flows: u64,
    failed: Option<std::io::Error>,
}

impl Sink for Selected<'_> {
    fn record(&mut self, row: &FlowRow<'_>) {
        let ended = row.state == FlowState::Ended as u8;
        self.flows += u64::from(ended);
        if (ended || self.updates) && self.failed.is_none() {
            self.failed = self.writer.row(row).err();
        }
    }
}

/// Reads a file and prints its flows.
pub fn run(read: &Read, format: Option<Format>) -> Result<(), CliError> {
    let terminal = std::io::stdout().is_terminal() && read.write.is_none();
    let format = format.unwrap_or(if terminal { Format::Table } else { Format::Tsv });
    if terminal && matches!(format, Format::Parquet | Format::Arrow) {
        return Err(CliError::Argument(
            "a terminal cannot show this format: redirect standard output, or name a file with --write".to_owned(),
        ));
    }
    let input = Input::open(&read.file, read.format.map(Into::into)).map_err(|error| CliError::Input(error.text()))?;
    let filter = read.filter.as_deref().map(Filter::new).transpose();
    let options = Options {
        sensor: read.sensor.clone(),
        limits: Limits::default(),
        random: uuid::Uuid::new_v4().as_u128(),
        format: read.format.map(Into::into),
        extra: true,
        filter: filter.map_err(|error| CliError::Input(error.to_string()))?,
    };
    let out: Box<dyn std::io::Write + Send> = match &read.write {
        Some(path) => Box::new(std::fs::File::create(path).map_err(|source| CliError::file("writing", path, source))?),
        None => Box::new(std::io::stdout()),
    };
    let writing = |source| CliError::Io {
        what: "writing flows".to_owned(),
        source,
    };
    let mut writer = write::writer(format, out).map_err(writing)?;
    let unit = input.kind().unit();
    // On one terminal with the flows a moving bar would only be in their way.
    let bar = (std::io::stderr().is_terminal() && !terminal).then(|| bar(input.kind().name()));
    let mut selected = Selected {
        writer: writer.as_mut(),
        updates: read.updates,
        flows: 0,
        failed: None,
    };
    let mut report = |progress: &Progress| {
        if let Some(bar) = &bar {
            bar.set_length(progress.length.unwrap_or(progress.taken));
            bar.set_position(progress.taken);
            bar.set_message(format!(
                "{} {unit}, {} flows",
                progress.counts.received, progress.counts.opened
            ));
        }
        true
    };
    let summary = input.read(&options, &mut selected, &mut report);
    let (flows, failed) = (selected.flows, selected.failed.take());
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    let finished = writer.finish();
    let summary = summary.map_err(|error| CliError::Input(error.text()))?;
    if let Some(error) = failed {
        return Err(writing(error));
    }
    finished.map_err(writing)?;
    tell(&summary, flows, &read.file.display().to_string());
    match summary.problem {
        None => Ok(()),
        Some(problem) => Err(CliError::Input(problem.text())),
    }
}

fn bar(kind: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix}: {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style);
    bar.set_prefix(kind.to_owned());
    bar
}

// What became of everything, on standard error.
fn tell(summary: &Summary, flows: u64, name: &str) {
    let counts = summary.counts;
    let mut err = std::io::stderr().lock();
    for fault in &summary.faults {
        // Nobody is left to be told when standard error is gone.
        let _ = writeln!(err, "{name}:{}: GAR-FLOW-0057: {}", fault.line, fault.problem);
    }
    let unit = summary.kind.unit();
    let left_out = match summary.left_out {
        0 => String::new(),
        packets => format!("; {packets} packets left out by the filter"),
    };
    let _ = writeln!(
        err,
        "{}: {} {unit} = {} parsed + {} malformed + {} shed; {} without a flow; {flows} flows{left_out}",
        summary.kind.name(),
        counts.received,
        counts.parsed,
        counts.malformed,
        counts.shed,
        counts.no_flow,
    );
}
