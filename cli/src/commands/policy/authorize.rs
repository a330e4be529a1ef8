//! What Istio's AuthorizationPolicies decide about a request.

use std::{net::IpAddr, path::PathBuf};

use clap::Args;
use garrison_ztp::{
    istio::{AuthorizationPolicy, Decision, Http, Request, decide, read},
    sets::Labels,
};
use serde_json::json;

use crate::{commands::read_text, error::CliError, output::Printer};

/// Decide a request by AuthorizationPolicies.
#[derive(Args)]
pub struct Authorize {
    /// Files of AuthorizationPolicies; - for standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Namespace of the workload that is asked
    #[arg(long, default_value = "default")]
    namespace: String,
    /// The mesh's root namespace, whose policies count for every workload
    #[arg(long, default_value = "istio-system")]
    root: String,
    /// A label of the workload, as key=value
    #[arg(long, value_name = "LABEL", value_parser = pair)]
    label: Vec<(String, String)>,
    /// The peer's SPIFFE id; none without mutual TLS
    #[arg(long)]
    principal: Option<String>,
    /// The address that the connection comes from
    #[arg(long)]
    source: Option<IpAddr>,
    /// The port that it goes to
    #[arg(long, default_value_t = 80)]
    port: u16,
    /// The HTTP method; none when the connection is not HTTP
    #[arg(long)]
    method: Option<String>,
    /// The HTTP host
    #[arg(long, default_value = "")]
    host: String,
    /// The HTTP path
    #[arg(long, default_value = "/")]
    path: String,
    /// An HTTP header, as name=value
    #[arg(long, value_parser = pair)]
    header: Vec<(String, String)>,
    /// A claim of the request's token, as name=value; repeat for several values
    #[arg(long, value_parser = pair)]
    claim: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("{text:?} has no ="))
}

impl Authorize {
    /// Prints the decision and the rule behind it.
    pub fn run(&self, printer: &Printer) -> Result<(), CliError> {
        let mut policies = Vec::new();
        for file in &self.files {
            let found = read(&read_text(file)?).map_err(|diagnostics| {
                for diagnostic in &diagnostics {
                    eprintln!("{}:{diagnostic}", file.display());
                }
                CliError::Invalid(format!("{} has {}", file.display(), super::count(diagnostics.len())))
            })?;
            policies.extend(found);
        }
        let http = self.method.as_ref().map(|method| {
            let mut http = Http {
                method: method.clone(),
                host: self.host.clone(),
                path: self.path.split('?').next().unwrap_or_default().to_owned(),
                headers: self.header.iter().cloned().collect(),
                ..Http::default()
            };
            for (name, value) in &self.claim {
                http.claims.entry(vec![name.clone()]).or_default().push(value.clone());
            }
            http
        });
        let request = Request {
            principal: self.principal.clone(),
            source_ip: self.source,
            remote_ip: self.source,
            port: self.port,
            http,
            ..Request::default()
        };
        let labels: Labels = self.label.iter().cloned().collect();
        let named = |found: &Option<(&AuthorizationPolicy, usize)>| {
            found.as_ref().map(|(policy, rule)| {
                format!(
                    "rule {rule} of AuthorizationPolicy {}/{}",
                    policy.namespace, policy.name
                )
            })
        };
        let (verdict, because) = match decide(&policies, &self.root, &self.namespace, &labels, &request) {
            Decision::Allowed(by) => (
                "allowed",
                named(&by).unwrap_or_else(|| "no allowing policy is for the workload".to_owned()),
            ),
            Decision::Denied(by) => (
                "denied",
                named(&by).unwrap_or_else(|| "no rule of the allowing policies matches".to_owned()),
            ),
            Decision::Asked(provider) => ("asked", format!("the external authoriser {provider} decides")),
        };
        if printer.is_json() {
            printer.json(&json!({ "verdict": verdict, "because": because }));
        } else {
            println!("{verdict}: {because}");
        }
        Ok(())
    }
}
