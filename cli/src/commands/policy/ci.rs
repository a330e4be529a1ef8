//! Everything about policy in a folder, for a pipeline: findings as SARIF, checks as JUnit, and an exit code.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use clap::Args;
use garrison_ztp::{
    Code, Level,
    cluster::{Source, import},
    compile::{Target, certificates},
    reach::{Assertion, read_assertions},
};
use serde_json::{Value, json};

use super::{
    compile::Point,
    files::{is_policy, sources},
    lint::{Found, examine},
};
use crate::{commands::read_text, error::CliError, output::Printer};

/// Check everything about policy in folders.
#[derive(Args)]
pub struct Ci {
    /// Folders with policies, manifests, rendered Helm charts and Terraform JSON
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Write the findings to this file as SARIF 2.1.0
    #[arg(long, value_name = "FILE")]
    sarif: Option<PathBuf>,
    /// Write the checks to this file as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Files of assertions that have to hold for the manifests
    #[arg(long = "assertions", value_name = "FILE")]
    assertions: Vec<PathBuf>,
    /// Targets that have to be able to say the policies; gaps count as warnings
    #[arg(long = "target", value_enum)]
    targets: Vec<Point>,
    /// End with 1 for a warning too
    #[arg(long)]
    deny_warnings: bool,
}

/// One check and what it found.
struct Check {
    name: &'static str,
    looked_at: String,
    found: Vec<Found>,
}

/// Helm's templates are no YAML before they are rendered.
fn is_template(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim_start();
        line.starts_with("{{") || line.contains(": {{") || line.contains("- {{")
    })
}

/// Files that say who may talk to whom, or what runs.
fn is_manifest(text: &str) -> bool {
    text.lines().any(|line| line.trim_start().starts_with("apiVersion:")) || text.contains("\"apiVersion\"")
}

fn warning(file: &str, code: Code, field: &str, message: String, remedy: &str) -> Found {
    Found {
        file: file.to_owned(),
        diagnostic: garrison_ztp::Diagnostic {
            level: Level::Warning,
            code,
            field: field.to_owned(),
            position: Default::default(),
            message,
            remedy: remedy.to_owned(),
        },
    }
}

impl Ci {
    /// Checks and reports.
    pub fn run(&self, printer: &Printer) -> Result<(), CliError> {
        let (mut policies, mut manifests, mut security, mut other) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for source in sources(&self.paths)? {
            if is_template(&source.text) {
                other += 1;
                eprintln!(
                    "{}: a Helm template; give what `helm template` makes of it",
                    source.file
                );
            } else if is_policy(&source.text) {
                policies.push(source);
            } else if is_manifest(&source.text) {
                manifests.push(source);
            } else if garrison_ztp::security_group::is_one(&source.text) {
                security.push(source);
            } else {
                other += 1;
            }
        }
        let (found, lowered) = examine(&policies);
        let mut checks = vec![Check {
            name: "policies are right",
            looked_at: format!("{} files, {} policies", policies.len(), lowered.len()),
            found,
        }];
        checks.push(formatted(&policies));
        checks.push(self.compiled(&lowered));
        checks.push(cluster(&manifests, &policies));
        checks.push(groups(&security));
        if !self.assertions.is_empty() {
            checks.push(self.asserted(&manifests, &policies)?);
        }
        if let Some(path) = &self.sarif {
            write(path, &format!("{:#}\n", sarif(&checks)))?;
        }
        if let Some(path) = &self.junit {
            write(path, &junit(&checks))?;
        }
        let count = |level: Level| {
            let all = checks.iter().flat_map(|check| &check.found);
            all.filter(|f| f.diagnostic.level == level).count()
        };
        let (errors, warnings) = (count(Level::Error), count(Level::Warning));
        if printer.is_json() {
            printer.json(&json!({ "errors": errors, "warnings": warnings, "passedOver": other, "checks": checks.iter().map(|check| json!({
                "name": check.name,
                "lookedAt": check.looked_at,
                "findings": check.found.iter().map(|f| {
                    let mut value = serde_json::to_value(&f.diagnostic).unwrap_or_default();
                    value["file"] = json!(f.file);
                    value
                }).collect::<Vec<_>>(),
            })).collect::<Vec<_>>() }));
        } else {
            for check in &checks {
                let state = if check.found.is_empty() { "right" } else { "look at" };
                println!("{state:<8} {} ({})", check.name, check.looked_at);
                for Found { file, diagnostic } in &check.found {
                    println!("  {file}:{diagnostic}");
                }
            }
        }
        if errors > 0 {
            return Err(CliError::Invalid(format!("{} found", super::count(errors))));
        }
        if self.deny_warnings && warnings > 0 {
            return Err(CliError::Violated(format!("{warnings} warnings")));
        }
        Ok(())
    }

    fn compiled(&self, policies: &[garrison_ztp::Policy]) -> Check {
        let mut found = Vec::new();
        for point in &self.targets {
            let target = Target::from(*point);
            let compiled = target.compile(policies, |_| None);
            for certificate in certificates(policies, target, &compiled) {
                let closed = certificate
                    .closed_by
                    .map_or(String::new(), |t| format!("; target {} can say it", t.name()));
                found.push(warning(
                    &certificate.gap.rule,
                    Code::Undecidable,
                    "",
                    format!("target {}: {}{closed}", target.name(), certificate.gap.reason),
                    "Compile for another target beside it, or write the rule in words that the target has",
                ));
            }
        }
        Check {
            name: "targets can say the policies",
            looked_at: format!("{} targets", self.targets.len()),
            found,
        }
    }

    fn asserted(&self, manifests: &[Source], policies: &[Source]) -> Result<Check, CliError> {
        let mut assertions: Vec<Assertion> = Vec::new();
        let mut found = Vec::new();
        for file in &self.assertions {
            match read_assertions(&read_text(file)?) {
                Ok(read) => assertions.extend(read),
                Err(diagnostics) => found.extend(diagnostics.into_iter().map(|diagnostic| Found {
                    file: file.display().to_string(),
                    diagnostic,
                })),
            }
        }
        let all: Vec<Source> = manifests.iter().chain(policies).cloned().collect();
        let cluster = import(&all);
        if cluster.is_valid() {
            let (reach, outcomes) = Assertion::check(&cluster.program, &assertions);
            for outcome in outcomes.iter().filter(|o| !o.holds()) {
                let example = outcome.violations.first().and_then(|violation| {
                    let (source, destination, protocol, port) = violation.example;
                    let network = reach.networks().position(|n| n == violation.network)?;
                    let explained = reach.explain(network, source, destination, protocol, port)?;
                    let steps: Vec<String> = explained.steps.iter().map(ToString::to_string).collect();
                    Some(steps.join("; "))
                });
                let mut one = warning(
                    "assertions",
                    Code::Contradiction,
                    "",
                    format!(
                        "{} does not hold{}",
                        outcome.name,
                        example.map_or(String::new(), |e| format!(": {e}"))
                    ),
                    "Change the policies, or the assertion",
                );
                one.diagnostic.level = Level::Error;
                found.push(one);
            }
        }
        Ok(Check {
            name: "assertions hold",
            looked_at: format!("{} assertions", assertions.len()),
            found,
        })
    }
}

fn formatted(policies: &[Source]) -> Check {
    let found = policies
        .iter()
        .filter(|source| garrison_ztp::format(&source.text).is_ok_and(|text| text != source.text))
        .map(|source| {
            warning(
                &source.file,
                Code::Unformatted,
                "",
                "the file is not in the one form".to_owned(),
                "Run `garrison policy fmt` on it",
            )
        })
        .collect();
    Check {
        name: "policies are formatted",
        looked_at: format!("{} files", policies.len()),
        found,
    }
}

fn cluster(manifests: &[Source], policies: &[Source]) -> Check {
    let all: Vec<Source> = manifests.iter().chain(policies).cloned().collect();
    let cluster = import(&all);
    let ours: std::collections::BTreeSet<&str> = policies.iter().map(|p| p.file.as_str()).collect();
    let found = cluster
        .findings
        .into_iter()
        // What is wrong with policies was told.
        .filter(|finding| !ours.contains(finding.file.as_str()))
        .map(|finding| Found {
            file: finding.file,
            diagnostic: finding.diagnostic,
        });
    Check {
        name: "manifests are understood",
        looked_at: format!("{} files", manifests.len()),
        found: found.collect(),
    }
}

fn groups(files: &[Source]) -> Check {
    let mut found = Vec::new();
    for source in files {
        match garrison_ztp::security_group::read(&source.text) {
            Ok(groups) => {
                for group in groups {
                    for field in group.open_to_the_world() {
                        found.push(warning(
                            &source.file,
                            Code::OverWide,
                            &field,
                            format!("group {} lets everyone in on every port", group.name),
                            "Name the ports, the peers, or both",
                        ));
                    }
                }
            }
            Err(diagnostics) => found.extend(diagnostics.into_iter().map(|diagnostic| Found {
                file: source.file.clone(),
                diagnostic,
            })),
        }
    }
    Check {
        name: "security groups are narrow",
        looked_at: format!("{} files", files.len()),
        found,
    }
}

fn write(path: &Path, text: &str) -> Result<(), CliError> {
    std::fs::write(path, text).map_err(|source| CliError::file("writing", path, source))
}

/// Findings in the Static Analysis Results Interchange Format, version 2.1.0 (OASIS).
fn sarif(checks: &[Check]) -> Value {
    let mut codes: Vec<Code> = checks
        .iter()
        .flat_map(|c| &c.found)
        .map(|f| f.diagnostic.code)
        .collect();
    codes.sort_unstable();
    codes.dedup();
    let results: Vec<Value> = checks
        .iter()
        .flat_map(|check| &check.found)
        .map(|Found { file, diagnostic: d }| {
            json!({
                "ruleId": d.code.to_string(),
                "level": if d.level == Level::Error { "error" } else { "warning" },
                "message": { "text": format!("{}{}{}. {}", d.field, if d.field.is_empty() { "" } else { ": " }, d.message, d.remedy) },
                "locations": [{ "physicalLocation": {
                    "artifactLocation": { "uri": file },
                    "region": { "startLine": d.position.line.max(1), "startColumn": d.position.column.max(1) },
                }}],
            })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "garrison policy ci",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": codes.iter().map(|code| json!({ "id": code.to_string() })).collect::<Vec<_>>(),
            }},
            "results": results,
        }],
    })
}

/// Checks as JUnit XML: one test case a check, failed when something was found.
fn junit(checks: &[Check]) -> String {
    let quote = |text: &str| {
        text.chars()
            // Control characters are not taken by XML 1.0, however they are written.
            .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
            .collect::<String>()
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
            .replace('"', "&quot;")
    };
    let failed = checks.iter().filter(|check| !check.found.is_empty()).count();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n  <testsuite name=\"garrison policy ci\" tests=\"{}\" failures=\"{failed}\">\n",
        checks.len()
    );
    for check in checks {
        let _ = write!(
            text,
            "    <testcase classname=\"policy\" name=\"{}\"",
            quote(check.name)
        );
        if check.found.is_empty() {
            text.push_str("/>\n");
            continue;
        }
        let _ = writeln!(text, ">\n      <failure message=\"{} findings\">", check.found.len());
        for Found { file, diagnostic } in &check.found {
            let _ = writeln!(text, "{}", quote(&format!("{file}:{diagnostic}")));
        }
        text.push_str("      </failure>\n    </testcase>\n");
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}
