//! The least that recorded flows need, as policies to start from.

use std::path::PathBuf;

use clap::Args;
use garrison_ztp::{
    recommend::{Learner, Options, RiskLevel},
    sets::AddressSet,
    what_if::CONNECTIONS,
};
use ipnet::IpNet;
use serde_json::json;

use super::what_if::each_record;
use crate::{error::CliError, output::Printer};

/// The least that recorded flows need.
#[derive(Args)]
pub struct Recommend {
    /// Parquet files of flows, as the flow lake keeps them, or folders of them
    #[arg(long, value_name = "PATH", required = true)]
    flows: Vec<PathBuf>,
    /// Addresses that get policies; private ones when left out
    #[arg(long, value_name = "CIDR")]
    internal: Vec<IpNet>,
    /// What the names of policies begin with
    #[arg(long, default_value = "learnt")]
    prefix: String,
}

impl Recommend {
    /// Prints the policies; what is known about their risk goes to standard error.
    pub fn run(&self, printer: &Printer) -> Result<(), CliError> {
        if !garrison_ztp::is_name(&self.prefix) || self.prefix.len() > 40 {
            return Err(CliError::Argument(
                "--prefix takes up to 40 lower-case letters, digits and inner hyphens".to_owned(),
            ));
        }
        let mut options = Options {
            prefix: self.prefix.clone(),
            ..Options::default()
        };
        if !self.internal.is_empty() {
            options.internal = AddressSet::from_nets(self.internal.iter().map(IpNet::trunc));
        }
        let mut learner = Learner::new(options);
        each_record(&self.flows, |record| {
            if learner.record(record) {
                return Ok(());
            }
            Err(CliError::Argument(format!(
                "there are more than {CONNECTIONS} different connections; give fewer days, or name --internal"
            )))
        })?;
        let found = learner.recommend();
        if printer.is_json() {
            let suggestions: Vec<_> = found
                .suggestions
                .iter()
                .map(|s| json!({ "policy": s.policy, "risk": s.risk, "flows": s.flows }))
                .collect();
            let left_out: Vec<_> = found
                .left_out
                .iter()
                .map(|(host, why)| json!({ "host": host, "reason": why }))
                .collect();
            printer.json(&json!({ "suggestions": suggestions, "leftOut": left_out, "confidence": found.confidence }));
            return Ok(());
        }
        for (i, suggestion) in found.suggestions.iter().enumerate() {
            if i > 0 {
                println!("---");
            }
            for reason in &suggestion.risk.reasons {
                println!("# Risk: {reason}.");
            }
            print!("{}", suggestion.policy.text());
        }
        for (host, why) in &found.left_out {
            eprintln!("{host} gets no policy: {why}");
        }
        let risky = |level| found.suggestions.iter().filter(|s| s.risk.level == level).count();
        eprintln!(
            "{} policies: {} of low, {} of medium and {} of high risk; {} of the 168 hours of a week were seen. All of them observe.",
            found.suggestions.len(),
            risky(RiskLevel::Low),
            risky(RiskLevel::Medium),
            risky(RiskLevel::High),
            found.confidence.hours_of_week
        );
        Ok(())
    }
}
