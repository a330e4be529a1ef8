use std::{
    io::{BufReader, Write as _},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use garrison_proof::{Checkpoint, ExportOptions, ExportReport, VerifierKey, export::ExportWriter, verify_export};
use garrison_proto::{
    Timestamp,
    compliance::v1::{
        CreateReportRequest, ExportLogRequest, GetCheckpointRequest, GetConsistencyProofRequest,
        GetInclusionProofRequest, GetReportRequest, ListControlsRequest, ListEntriesRequest, ListReportsRequest,
        Report, report_service_client::ReportServiceClient,
        transparency_log_service_client::TransparencyLogServiceClient,
    },
};
use serde_json::json;

use crate::{
    Context,
    commands::{create, named, pages, parse_time, read_text},
    error::CliError,
    output::{Printer, time, to_json},
    remote::Authorised,
};

/// Verify the log.
#[derive(Args)]
pub struct Verify {
    /// An export; fetched from the fleet when left out
    pub file: Option<PathBuf>,
    /// File with the verifier key that must have signed, from another source than the export
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// File with an earlier checkpoint that the log must extend
    #[arg(long, value_name = "FILE")]
    earlier: Option<PathBuf>,
}

/// Export, prove and verify the audit log.
#[derive(Subcommand)]
pub enum Audit {
    /// Print the latest signed checkpoint
    Checkpoint,
    /// List entries
    List {
        /// From this index on
        #[arg(long, default_value_t = 0)]
        start: u64,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: i32,
    },
    /// Write the whole log to a file that verifies offline
    Export {
        /// Where to; must not exist yet; - for standard output
        #[arg(long, short = 'f', value_name = "FILE")]
        file: PathBuf,
    },
    /// Verify the log: an exported file without a fleet, or the fleet's own
    ///
    /// For example: garrison audit verify log.jsonl --key-file key.txt
    Verify(Verify),
    /// Prove that an entry is in the log, or that one size extends another, and check the proof here
    Proof {
        /// Index of the entry
        #[arg(long, conflicts_with_all = ["record", "from_size"])]
        index: Option<u64>,
        /// Id of the audit record
        #[arg(long, conflicts_with = "from_size")]
        record: Option<String>,
        /// The earlier size
        #[arg(long)]
        from_size: Option<u64>,
    },
}

/// Verifies an exported file offline.
pub fn verify_file(verify: &Verify, printer: &Printer) -> Result<(), CliError> {
    let Some(path) = &verify.file else {
        return Err(CliError::Argument("name the export".to_owned()));
    };
    let file = std::fs::File::open(path).map_err(|source| CliError::file("opening", path, source))?;
    let report = verify_export(BufReader::new(file), &options(verify)?);
    report_verification(
        printer,
        &path.display().to_string(),
        report.map_err(|error| error.to_string()),
    )
}

fn options(verify: &Verify) -> Result<ExportOptions, CliError> {
    let wrong = |path: &Path, error: String| CliError::Argument(format!("{}: {error}", path.display()));
    let trusted_key = verify
        .key_file
        .as_ref()
        .map(|path| VerifierKey::parse(read_text(path)?.trim()).map_err(|error| wrong(path, error.to_string())));
    let trusted_key = trusted_key.transpose()?;
    let earlier = match (&verify.earlier, &trusted_key) {
        (None, _) => None,
        (Some(path), Some(key)) => {
            Some(Checkpoint::verify(&read_text(path)?, key).map_err(|error| wrong(path, error.to_string()))?)
        }
        (Some(_), None) => {
            return Err(CliError::Argument(
                "an earlier checkpoint is believed only with --key-file".to_owned(),
            ));
        }
    };
    Ok(ExportOptions { trusted_key, earlier })
}

fn report_verification(printer: &Printer, what: &str, report: Result<ExportReport, String>) -> Result<(), CliError> {
    let report = report.map_err(CliError::Invalid)?;
    let root: String = report
        .checkpoint
        .root
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if printer.is_json() {
        printer.json(&json!({
            "verified": true,
            "origin": report.checkpoint.origin,
            "entries": report.checkpoint.size,
            "rootHash": root,
            "key": report.key.to_string(),
            "keyTrusted": report.key_trusted,
            "extendsEarlier": report.extends_earlier,
        }));
    } else {
        println!(
            "{what}: holds\nlog {}\nentries {}\nroot {root}\nsigned by {}",
            report.checkpoint.origin, report.checkpoint.size, report.key
        );
    }
    if !report.key_trusted {
        eprintln!("the key is the export's own: compare it with one from another source, or give --key-file");
    }
    Ok(())
}

impl Audit {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let printer = &context.printer;
        let mut client = TransparencyLogServiceClient::new(context.remote.service("compliance").await?);
        match self {
            Self::Checkpoint => {
                let answer = client.get_checkpoint(GetCheckpointRequest {}).await?.into_inner();
                if printer.is_json() {
                    printer.record(&answer, &[]);
                } else {
                    print!("{}", answer.checkpoint);
                    eprintln!("verifier key: {}", answer.verifier_key);
                }
            }
            Self::List { start, limit } => {
                let answer = client
                    .list_entries(ListEntriesRequest {
                        start,
                        page_size: limit,
                    })
                    .await?
                    .into_inner();
                let headers = ["index", "time", "decision", "who", "action", "resource", "reason"];
                printer.list("entries", &headers, &answer.entries, |entry| {
                    let record: serde_json::Value = serde_json::from_slice(&entry.body).unwrap_or_default();
                    let text = |pointer: &str| {
                        record
                            .pointer(pointer)
                            .and_then(|value| value.as_str())
                            .unwrap_or_default()
                            .to_owned()
                    };
                    let mut row = vec![entry.index.to_string()];
                    row.extend(["/time", "/decision", "/actor/name", "/action", "/resource", "/reason"].map(text));
                    row
                });
            }
            Self::Export { file } => {
                let mut out = create(&file)?;
                let size = fetch(&mut client, &mut out).await?;
                out.flush().map_err(|source| CliError::file("writing", &file, source))?;
                eprintln!("{size} entries written to {}", file.display());
            }
            Self::Verify(verify) => {
                let mut text = Vec::new();
                fetch(&mut client, &mut text).await?;
                let report = verify_export(text.as_slice(), &options(&verify)?);
                report_verification(printer, "the fleet's log", report.map_err(|error| error.to_string()))?;
            }
            Self::Proof {
                index,
                record,
                from_size: None,
            } => inclusion(&mut client, printer, index, record).await?,
            Self::Proof {
                from_size: Some(size), ..
            } => consistency(&mut client, printer, size).await?,
        }
        Ok(())
    }
}

async fn fetch(
    client: &mut TransparencyLogServiceClient<Authorised>,
    out: &mut impl std::io::Write,
) -> Result<u64, CliError> {
    let invalid = |error: garrison_proof::ExportError| CliError::Invalid(error.to_string());
    let mut stream = client.export_log(ExportLogRequest {}).await?.into_inner();
    let first = stream
        .message()
        .await?
        .ok_or(CliError::Answer("compliance", "a checkpoint"))?;
    let mut writer = ExportWriter::new(out, &first.checkpoint, &first.verifier_key).map_err(invalid)?;
    let mut batch = Some(first);
    while let Some(answer) = batch {
        for entry in &answer.entries {
            writer.entry(entry.index, &entry.body).map_err(invalid)?;
        }
        batch = stream.message().await?;
    }
    let (_, checkpoint) = writer.finish().map_err(invalid)?;
    Ok(checkpoint.size)
}

// A proof is worth what its checkpoint's signature is worth; the key comes from the same service here, so a
// careful examiner compares it with one kept elsewhere.
async fn signed(
    client: &mut TransparencyLogServiceClient<Authorised>,
    checkpoint: &str,
) -> Result<Checkpoint, CliError> {
    let invalid = |error: String| CliError::Invalid(error);
    let answer = client.get_checkpoint(GetCheckpointRequest {}).await?.into_inner();
    let key = VerifierKey::parse(&answer.verifier_key).map_err(|error| invalid(error.to_string()))?;
    Checkpoint::verify(checkpoint, &key).map_err(|error| invalid(error.to_string()))
}

fn hashes(hashes: &[Vec<u8>]) -> Result<Vec<garrison_proof::Hash>, CliError> {
    let short = |_| CliError::Answer("compliance", "whole hashes");
    hashes
        .iter()
        .map(|hash| hash.as_slice().try_into().map_err(short))
        .collect()
}

async fn inclusion(
    client: &mut TransparencyLogServiceClient<Authorised>,
    printer: &Printer,
    index: Option<u64>,
    record: Option<String>,
) -> Result<(), CliError> {
    if index.is_none() && record.is_none() {
        return Err(CliError::Argument(
            "name the entry with --index or --record, or a size with --from-size".to_owned(),
        ));
    }
    let request = GetInclusionProofRequest {
        index: index.unwrap_or_default(),
        record_id: record.unwrap_or_default(),
        tree_size: 0,
    };
    let answer = client.get_inclusion_proof(request).await?.into_inner();
    let entry = answer
        .entry
        .clone()
        .ok_or(CliError::Answer("compliance", "the entry"))?;
    let checkpoint = signed(client, &answer.checkpoint).await?;
    checkpoint
        .verify_entry(entry.index, &entry.body, &hashes(&answer.hashes)?)
        .map_err(|error| CliError::Invalid(error.to_string()))?;
    let fields = [
        ("entry", entry.index.to_string()),
        ("is in the log of size", checkpoint.size.to_string()),
        ("body", String::from_utf8_lossy(&entry.body).into_owned()),
        ("checkpoint", answer.checkpoint.clone()),
    ];
    printer.record(&answer, &fields);
    Ok(())
}

async fn consistency(
    client: &mut TransparencyLogServiceClient<Authorised>,
    printer: &Printer,
    first_size: u64,
) -> Result<(), CliError> {
    let request = GetConsistencyProofRequest {
        first_size,
        second_size: 0,
    };
    let answer = client.get_consistency_proof(request).await?.into_inner();
    let checkpoint = signed(client, &answer.checkpoint).await?;
    if printer.is_json() {
        printer.json(&to_json(&answer));
    } else {
        println!(
            "from {} to {}: {} hashes",
            answer.first_size,
            checkpoint.size,
            answer.hashes.len()
        );
    }
    eprintln!("the proof is checked against a checkpoint of that size by `audit verify --earlier`");
    Ok(())
}

/// Reports on controls.
#[derive(Subcommand)]
pub enum Reports {
    /// List the controls that reports speak about
    Controls,
    /// Make a report
    ///
    /// For example: garrison reports create --since 7d --html report.html --oscal report.json
    Create {
        /// The framework
        #[arg(long, default_value = "soc2")]
        framework: String,
        /// From this time, or this long ago
        #[arg(long, value_parser = parse_time)]
        since: Timestamp,
        /// Until this time; until now when left out
        #[arg(long, value_parser = parse_time)]
        until: Option<Timestamp>,
        /// Write the page here
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        /// Write OSCAL assessment results here
        #[arg(long, value_name = "FILE")]
        oscal: Option<PathBuf>,
    },
    /// List reports, newest first
    List {
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Fetch a report
    Show {
        /// Its name or id
        report: String,
        /// Write the page here
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        /// Write OSCAL assessment results here
        #[arg(long, value_name = "FILE")]
        oscal: Option<PathBuf>,
    },
}

impl Reports {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut client = ReportServiceClient::new(context.remote.service("compliance").await?);
        let printer = &context.printer;
        match self {
            Self::Controls => {
                let controls = client
                    .list_controls(ListControlsRequest {})
                    .await?
                    .into_inner()
                    .controls;
                printer.list("controls", &["control", "framework", "title"], &controls, |control| {
                    vec![control.id.clone(), control.framework.clone(), control.title.clone()]
                });
            }
            Self::Create {
                framework,
                since,
                until,
                html,
                oscal,
            } => {
                let request = CreateReportRequest {
                    framework,
                    since: Some(since),
                    until,
                };
                let report = client.create_report(request).await?.into_inner().report;
                deliver(printer, report, html, oscal)?;
            }
            Self::List { limit } => {
                let reports = pages!(limit, |page_size, page_token| {
                    let answer = client
                        .list_reports(ListReportsRequest { page_size, page_token })
                        .await?
                        .into_inner();
                    (answer.reports, answer.next_page_token)
                });
                printer.list(
                    "reports",
                    &["report", "framework", "since", "until", "findings"],
                    &reports,
                    |report| {
                        vec![
                            report.name.clone(),
                            report.framework.clone(),
                            time(report.since.as_ref()),
                            time(report.until.as_ref()),
                            report.findings.to_string(),
                        ]
                    },
                );
            }
            Self::Show { report, html, oscal } => {
                let name = named("reports", &report);
                let report = client.get_report(GetReportRequest { name }).await?.into_inner().report;
                deliver(printer, report, html, oscal)?;
            }
        }
        Ok(())
    }
}

fn deliver(
    printer: &Printer,
    report: Option<Report>,
    html: Option<PathBuf>,
    oscal: Option<PathBuf>,
) -> Result<(), CliError> {
    let report = report.ok_or(CliError::Answer("compliance", "the report"))?;
    for (path, text) in [(&html, &report.html), (&oscal, &report.oscal_json)] {
        if let Some(path) = path {
            let mut out = create(path)?;
            out.write_all(text.as_bytes())
                .and_then(|()| out.flush())
                .map_err(|source| CliError::file("writing", path, source))?;
            eprintln!("wrote {}", path.display());
        }
    }
    let fields = [
        ("report", report.name.clone()),
        ("framework", report.framework.clone()),
        ("since", time(report.since.as_ref())),
        ("until", time(report.until.as_ref())),
        ("findings", report.findings.to_string()),
        ("checkpoint", report.checkpoint.clone()),
    ];
    printer.record(&report, &fields);
    Ok(())
}
