//! What others wrote, as ZeroTrustPolicy documents.

use std::path::{Path, PathBuf};

use clap::Args;
use garrison_ztp::{ZeroTrustPolicy, cluster, security_group, sets::AddressSet};
use ipnet::IpNet;
use serde_json::json;

use crate::{commands::read_text, error::CliError, output::Printer};

/// Policies of others as documents.
#[derive(Args)]
pub struct Import {
    /// Manifests of policies, or what `aws ec2 describe-security-groups`, Terraform JSON or `terraform show -json` says;
    /// - is standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Who has a security group, where its file does not tell; may be given several times
    #[arg(long, value_name = "GROUP=CIDR")]
    addresses: Vec<String>,
    /// Istio's root namespace, whose policies are for every namespace
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system")]
    root_namespace: String,
}

impl Import {
    /// Prints the documents; what they leave out goes to standard error.
    pub fn run(&self, printer: &Printer) -> Result<(), CliError> {
        let mut told: Vec<(&str, IpNet)> = Vec::new();
        for text in &self.addresses {
            let pair = text
                .rsplit_once('=')
                .and_then(|(name, net)| Some((name, net.parse().ok()?)));
            told.push(pair.ok_or_else(|| {
                CliError::Argument(format!(
                    "--addresses takes GROUP=CIDR, such as web=10.0.1.0/24, and not {text:?}"
                ))
            })?);
        }
        let mut documents = Vec::new();
        let mut manifests = Vec::new();
        for file in &self.files {
            let text = read_text(file)?;
            if security_group::is_one(&text) {
                groups(file, &text, &told, &mut documents)?;
            } else {
                manifests.push(cluster::Source {
                    file: file.display().to_string(),
                    text,
                });
            }
        }
        if !manifests.is_empty() {
            documents.extend(self.manifests(&manifests)?);
        }
        if printer.is_json() {
            printer.json(&json!({ "policies": documents }));
            return Ok(());
        }
        for (i, document) in documents.iter().enumerate() {
            if i > 0 {
                println!("---");
            }
            print!("{}", document.text());
        }
        Ok(())
    }

    /// Manifests together: tiers and namespaces of one stand in others, and packets and meshes both have to let something pass.
    fn manifests(&self, sources: &[cluster::Source]) -> Result<Vec<ZeroTrustPolicy>, CliError> {
        let read = cluster::import(sources);
        for finding in &read.findings {
            eprintln!("{finding}");
        }
        if !read.is_valid() {
            let errors = read
                .findings
                .iter()
                .filter(|f| f.diagnostic.level == garrison_ztp::Level::Error)
                .count();
            return Err(CliError::Invalid(format!(
                "the manifests have {}",
                super::count(errors)
            )));
        }
        let imported = cluster::documents(&read, &self.root_namespace).map_err(CliError::Invalid)?;
        for reason in &imported.left_out {
            eprintln!("{reason}");
        }
        if let Some(count) = read.kinds.get("RequestAuthentication") {
            eprintln!(
                "{count} of kind RequestAuthentication are left out: say iamGroups in the documents, from which they are compiled"
            );
        }
        let documents = imported.documents;
        if documents.is_empty() {
            return Err(CliError::Invalid(
                "there is nothing to import: give NetworkPolicy, ClusterNetworkPolicy, Cilium, Calico, Istio or Linkerd \
                 policies, or security groups"
                    .to_owned(),
            ));
        }
        Ok(documents)
    }
}

fn groups(
    file: &Path,
    text: &str,
    told: &[(&str, IpNet)],
    documents: &mut Vec<ZeroTrustPolicy>,
) -> Result<(), CliError> {
    let groups = security_group::read(text).map_err(|errors| {
        for error in &errors {
            eprintln!("{}:{error}", file.display());
        }
        CliError::Invalid(format!("{} has {}", file.display(), super::count(errors.len())))
    })?;
    for group in groups {
        let nets = told
            .iter()
            .filter(|(name, _)| *name == group.name)
            .map(|(_, net)| net.trunc());
        let addresses = group.addresses.union(&AddressSet::from_nets(nets));
        if addresses.is_empty() {
            eprintln!(
                "group {} is left out: who has it is not told; add --addresses {}=CIDR",
                group.name, group.name
            );
            continue;
        }
        let (document, left_out) = group.document(&addresses);
        for reason in left_out {
            eprintln!("{}:{reason}; it is not allowed", file.display());
        }
        documents.push(document);
    }
    Ok(())
}
