//! What is doubtful about policies, and one way to write them.

use std::path::PathBuf;

use clap::Args;
use garrison_ztp::{Diagnostic, Policy, Position, cluster::Source};
use serde_json::json;

use super::files::{is_policy, sources};
use crate::{error::CliError, output::Printer};

/// Find doubtful rules.
#[derive(Args)]
pub struct Lint {
    /// Files, or folders of them; what is no policy document is passed over
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// End with 1 for a warning too
    #[arg(long)]
    deny_warnings: bool,
}

/// One thing found, at its place.
#[derive(Clone, Debug)]
pub struct Found {
    /// The file.
    pub file: String,
    /// What it is.
    pub diagnostic: Diagnostic,
}

/// Checks files of policies, each alone and all together. Answers with the policies too.
pub fn examine(sources: &[Source]) -> (Vec<Found>, Vec<Policy>) {
    let mut found = Vec::new();
    let (mut policies, mut full): (Vec<Policy>, Vec<Policy>) = Default::default();
    let mut places = std::collections::BTreeMap::new();
    for source in sources {
        let checked = garrison_ztp::check(&source.text);
        found.extend(checked.diagnostics.into_iter().map(|diagnostic| Found {
            file: source.file.clone(),
            diagnostic,
        }));
        for document in checked.documents {
            let policy = document.lower(0);
            // What clusters have of one name is told apart by its namespace.
            let name = document.policy.metadata.full_name();
            let first = places.insert(name.clone(), (source.file.clone(), document.spans.clone()));
            if let Some((file, _)) = first.filter(|(file, _)| *file != source.file) {
                found.push(Found {
                    file: source.file.clone(),
                    diagnostic: Diagnostic {
                        level: garrison_ztp::Level::Error,
                        code: garrison_ztp::Code::Duplicate,
                        field: "metadata.name".to_owned(),
                        position: document.spans.get("metadata.name").copied().unwrap_or_default(),
                        message: format!("two policies are called {name:?}; the other is in {file}"),
                        remedy: "Give each policy its own name".to_owned(),
                    },
                });
            }
            full.push(Policy { name, ..policy.clone() });
            policies.push(policy);
        }
    }
    let all = garrison_ztp::overlaps(&full);
    for overlap in all.found {
        let Some((file, spans)) = places.get(&overlap.policy) else {
            continue;
        };
        let position: Position = spans.get(&overlap.field).copied().unwrap_or_default();
        let known = found
            .iter()
            .any(|f| f.file == *file && f.diagnostic.field == overlap.field && f.diagnostic.code == overlap.code);
        if !known {
            found.push(Found {
                file: file.clone(),
                diagnostic: Diagnostic {
                    level: garrison_ztp::Level::Warning,
                    code: overlap.code,
                    field: overlap.field,
                    position,
                    message: overlap.message,
                    remedy: overlap.remedy.to_owned(),
                },
            });
        }
    }
    if all.unsearched > 0 {
        eprintln!(
            "{} rules were not compared with all others, as there are too many in one place",
            all.unsearched
        );
    }
    found.sort_by(|a, b| {
        (&a.file, a.diagnostic.position, a.diagnostic.code).cmp(&(&b.file, b.diagnostic.position, b.diagnostic.code))
    });
    (found, policies)
}

/// The policy files among these.
pub fn policy_files(paths: &[PathBuf]) -> Result<Vec<Source>, CliError> {
    let mut files = sources(paths)?;
    files.retain(|source| is_policy(&source.text));
    if files.is_empty() {
        return Err(CliError::Argument(
            "there is no policy document in these files".to_owned(),
        ));
    }
    Ok(files)
}

impl Lint {
    /// Prints what is found.
    pub fn run(&self, printer: &Printer) -> Result<(), CliError> {
        let sources = policy_files(&self.paths)?;
        let (found, policies) = examine(&sources);
        if printer.is_json() {
            let list: Vec<_> = found
                .iter()
                .map(|f| {
                    let mut value = serde_json::to_value(&f.diagnostic).unwrap_or_default();
                    value["file"] = json!(f.file);
                    value
                })
                .collect();
            printer.json(&json!({ "policies": policies.len(), "findings": list }));
        } else {
            for Found { file, diagnostic } in &found {
                println!("{file}:{diagnostic}");
            }
        }
        let errors = found
            .iter()
            .filter(|f| f.diagnostic.level == garrison_ztp::Level::Error)
            .count();
        if errors > 0 {
            return Err(CliError::Invalid(format!("the policies have {}", super::count(errors))));
        }
        eprintln!("{} policies, {} warnings", policies.len(), found.len());
        if self.deny_warnings && !found.is_empty() {
            return Err(CliError::Violated(format!("{} warnings", found.len())));
        }
        Ok(())
    }
}

/// Write policy files in the one form.
#[derive(Args)]
pub struct Fmt {
    /// Files, or folders of them; what is no policy document is passed over; - is standard input, to standard output
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Write nothing; end with 1 and the names of the files that would change
    #[arg(long)]
    check: bool,
}

impl Fmt {
    /// Writes, or says what would be written.
    pub fn run(&self, printer: &Printer) -> Result<(), CliError> {
        let mut different = Vec::new();
        for source in policy_files(&self.paths)? {
            let formatted = garrison_ztp::format(&source.text).map_err(|errors| {
                for error in &errors {
                    eprintln!("{}:{error}", source.file);
                }
                CliError::Invalid(format!("{} has {}", source.file, super::count(errors.len())))
            })?;
            if source.file == "-" && !self.check {
                print!("{formatted}");
                continue;
            }
            if formatted == source.text {
                continue;
            }
            if !self.check {
                std::fs::write(&source.file, &formatted)
                    .map_err(|e| CliError::file("writing", std::path::Path::new(&source.file), e))?;
            }
            different.push(source.file);
        }
        if printer.is_json() {
            printer.json(&json!({ "changed": different }));
        } else {
            for file in &different {
                println!("{file}");
            }
        }
        if self.check && !different.is_empty() {
            return Err(CliError::Violated(format!(
                "{} files are not formatted (GAR-POLICY-0110)",
                different.len()
            )));
        }
        Ok(())
    }
}
