//! What policies are on an enforcement point.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use garrison_ztp::{
    Policy,
    compile::{Certificate, CompiledFile, Target, certificates},
};
use serde_json::json;

use crate::{commands::read_text, error::CliError, output::Printer};

/// An enforcement point as an argument.
#[derive(Clone, Copy, ValueEnum)]
pub enum Point {
    /// Kubernetes NetworkPolicy manifests
    Kubernetes,
    /// Kubernetes ClusterNetworkPolicy manifests, with NetworkPolicies for what comes from outside
    ClusterNetworkPolicy,
    /// CiliumNetworkPolicy manifests
    Cilium,
    /// Calico tiers and NetworkPolicies; policies in mode observe become staged ones
    Calico,
    /// An nftables ruleset
    Nftables,
    /// Amazon Web Services security groups, as Terraform JSON and API bodies
    Aws,
    /// A Microsoft Azure network security group, as Terraform JSON and API body
    Azure,
    /// Google Cloud VPC firewall rules, as Terraform JSON and API bodies
    Gcp,
}

impl From<Point> for Target {
    fn from(point: Point) -> Self {
        match point {
            Point::Kubernetes => Self::Kubernetes,
            Point::ClusterNetworkPolicy => Self::ClusterNetworkPolicy,
            Point::Cilium => Self::Cilium,
            Point::Calico => Self::Calico,
            Point::Nftables => Self::Nftables,
            Point::Aws => Self::Aws,
            Point::Azure => Self::Azure,
            Point::Gcp => Self::Gcp,
        }
    }
}

/// Print what the policies are on an enforcement point.
#[derive(Args)]
pub struct Compile {
    /// The enforcement point
    #[arg(long, value_enum)]
    target: Point,
    /// Compile these files, without a fleet, instead of what is stored
    pub(super) files: Vec<PathBuf>,
    /// Write the output into this folder, over what an earlier run wrote
    #[arg(long, value_name = "FOLDER")]
    into: Option<PathBuf>,
}

impl Compile {
    /// Compiles the named files.
    pub fn offline(&self, printer: &Printer) -> Result<(), CliError> {
        let mut policies = Vec::new();
        for file in &self.files {
            policies.extend(lowered(&read_text(file)?, &file.display().to_string(), 0)?);
        }
        let mut names: Vec<&str> = policies.iter().map(|p| p.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(CliError::Argument(format!("two documents are called {:?}", twice[0])));
        }
        self.print(&policies, |_| None, printer)
    }

    /// Compiles policies and says what the target leaves out.
    pub fn print(
        &self,
        policies: &[Policy],
        sha256: impl Fn(&str) -> Option<String>,
        printer: &Printer,
    ) -> Result<(), CliError> {
        let target = Target::from(self.target);
        let compiled = target.compile(policies, sha256);
        let certificates = certificates(policies, target, &compiled);
        for Certificate { gap, closed_by } in &certificates {
            let remedy = closed_by.map_or(String::new(), |t| format!(" (target {} can say it)", t.name()));
            eprintln!("gap: {}: {}{remedy}", gap.rule, gap.reason);
        }
        if let Some(folder) = &self.into {
            compiled.files.iter().try_for_each(|file| save(folder, file))?;
        } else if printer.is_json() {
            let files: Vec<_> = compiled
                .files
                .iter()
                .map(|file| json!({ "path": file.path, "content": file.content }))
                .collect();
            let gaps: Vec<_> = certificates
                .iter()
                .map(|c| json!({ "rule": c.gap.rule, "reason": c.gap.reason, "closedBy": c.closed_by }))
                .collect();
            printer.json(&json!({ "files": files, "gaps": gaps }));
        } else {
            for (i, file) in compiled.files.iter().enumerate() {
                if i > 0 && file.path.ends_with(".yaml") {
                    println!("---");
                }
                print!("{}", file.content);
            }
        }
        if compiled.files.is_empty() && certificates.iter().any(|c| c.gap.rule == "*") {
            return Err(CliError::Violated(
                "the policies do not fit the target; nothing was written".to_owned(),
            ));
        }
        Ok(())
    }
}

/// The policies of a text, which must have no error.
pub fn lowered(text: &str, file: &str, version: u64) -> Result<Vec<Policy>, CliError> {
    let checked = garrison_ztp::check(text);
    for diagnostic in checked.errors() {
        eprintln!("{file}:{diagnostic}");
    }
    if !checked.is_valid() {
        return Err(CliError::Invalid(format!(
            "{file} has {}",
            super::count(checked.errors().count())
        )));
    }
    Ok(checked.documents.iter().map(|d| d.lower(version)).collect())
}

fn save(folder: &Path, file: &CompiledFile) -> Result<(), CliError> {
    let path = folder.join(&file.path);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|source| CliError::file("creating", parent, source))?;
    }
    std::fs::write(&path, &file.content).map_err(|source| CliError::file("writing", &path, source))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}
