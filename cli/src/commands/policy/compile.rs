//! What policies are on an enforcement point.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use garrison_ztp::{
    Policy,
    compile::{
        AwsQuotas, Certificate, CompiledFile, Issuer, IstioOptions, Target, aws, aws_network_acl, certificates,
        istio_with,
    },
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
    /// Istio AuthorizationPolicy, PeerAuthentication and RequestAuthentication for sidecars
    Istio,
    /// Istio AuthorizationPolicy for the node's proxy of ambient mode
    IstioAmbient,
    /// Linkerd servers and authorisations
    Linkerd,
    /// Amazon Web Services security groups, and network ACLs beside them
    AwsNetworkAcl,
    /// Google Cloud firewall policies, for a network or for a folder or organisation
    GcpFirewallPolicy,
    /// Microsoft Azure application security groups, and the network security group that names them
    AzureApplicationGroups,
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
            Point::Istio => Self::Istio,
            Point::IstioAmbient => Self::IstioAmbient,
            Point::Linkerd => Self::Linkerd,
            Point::AwsNetworkAcl => Self::AwsNetworkAcl,
            Point::GcpFirewallPolicy => Self::GcpFirewallPolicy,
            Point::AzureApplicationGroups => Self::AzureApplicationGroups,
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
    /// Compile for this moment (RFC 3339), so that rules that count for a time are in or out; now when left out
    #[arg(long, value_name = "TIME")]
    at: Option<chrono::DateTime<chrono::Utc>>,
    /// The trust domain of service accounts, for Istio
    #[arg(long, default_value = "cluster.local")]
    trust_domain: String,
    /// Who signs people's tokens, for Istio; with --jwks-uri
    #[arg(long, requires = "jwks_uri")]
    issuer: Option<String>,
    /// Where the keys of people's tokens are, for Istio
    #[arg(long, requires = "issuer")]
    jwks_uri: Option<String>,
    /// Rules that a security group of the Amazon account can have, in one direction and address family
    #[arg(long, default_value_t = AwsQuotas::default().rules, value_name = "RULES")]
    aws_rules: usize,
    /// Security groups that an interface of the Amazon account can have; rules times groups are at most 1000
    #[arg(long, default_value_t = AwsQuotas::default().groups, value_name = "GROUPS")]
    aws_groups: usize,
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
            return Err(CliError::Argument(format!(
                "two documents are called {:?}, and what is compiled is called after them: compile one namespace at a time",
                twice[0]
            )));
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
        let moment = self.at.unwrap_or_else(chrono::Utc::now);
        let (policies, changes) = garrison_ztp::ir::at(policies, moment.timestamp_nanos_opt().unwrap_or_default());
        if let Some(next) = changes {
            let next = chrono::DateTime::from_timestamp_nanos(next);
            eprintln!("compile again at {}: a rule begins or ends then", next.to_rfc3339());
        }
        let compiled = if target == Target::Istio {
            let options = IstioOptions {
                trust_domain: self.trust_domain.clone(),
                issuer: self
                    .issuer
                    .clone()
                    .zip(self.jwks_uri.clone())
                    .map(|(issuer, jwks_uri)| Issuer { issuer, jwks_uri }),
                ..IstioOptions::default()
            };
            istio_with(&policies, sha256, &options)
        } else if target == Target::Aws {
            aws(&policies, &self.quotas()?)
        } else if target == Target::AwsNetworkAcl {
            aws_network_acl(&policies, &self.quotas()?)
        } else {
            target.compile(&policies, sha256)
        };
        let certificates = certificates(&policies, target, &compiled);
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

impl Compile {
    fn quotas(&self) -> Result<AwsQuotas, CliError> {
        let quotas = AwsQuotas {
            rules: self.aws_rules,
            groups: self.aws_groups,
        };
        let most = AwsQuotas::PRODUCT;
        if !(1..=AwsQuotas::GROUPS).contains(&quotas.groups) || !(1..=most / quotas.groups).contains(&quotas.rules) {
            return Err(CliError::Argument(format!(
                "Amazon does not give an account {} groups of {} rules: --aws-groups is from 1 to {}, and times --aws-rules at most {most}",
                quotas.groups,
                quotas.rules,
                AwsQuotas::GROUPS
            )));
        }
        Ok(quotas)
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
