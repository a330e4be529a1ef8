//! What others wrote, as ZeroTrustPolicy documents.

use std::path::PathBuf;

use clap::Args;
use garrison_ztp::{security_group, sets::AddressSet};
use ipnet::IpNet;
use serde_json::json;

use crate::{commands::read_text, error::CliError, output::Printer};

/// Security groups as documents.
#[derive(Args)]
pub struct Import {
    /// What `aws ec2 describe-security-groups`, Terraform JSON or `terraform show -json` says; - is standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Who has a group, where its file does not tell; may be given several times
    #[arg(long, value_name = "GROUP=CIDR")]
    addresses: Vec<String>,
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
        for file in &self.files {
            let groups = security_group::read(&read_text(file)?).map_err(|errors| {
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
}
