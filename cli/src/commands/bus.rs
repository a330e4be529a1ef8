use clap::Subcommand;
use garrison_bus::{
    Bus, BusConfig,
    topology::{self, ApplyOptions, ChangeKind},
};
use serde_json::json;

use crate::{Context, error::CliError};

/// Streams, consumers and permissions of the broker.
#[derive(Subcommand)]
pub enum BusCommand {
    /// Create or update every stream and consumer
    ///
    /// Needs the certificate of svc/bus-admin in the profile's `bus` section.
    Apply {
        /// A node with an enforcer; repeat for several
        #[arg(long, value_name = "NODE")]
        enforcer: Vec<String>,
        /// Copies of each stream in a broker cluster
        #[arg(long, default_value_t = 1)]
        replicas: usize,
    },
    /// Print the authorization block of the broker's configuration
    Permissions {
        /// The SPIFFE trust domain
        #[arg(long)]
        trust_domain: String,
        /// A node with an enforcer; repeat for several
        #[arg(long, value_name = "NODE")]
        enforcer: Vec<String>,
    },
}

/// Prints the broker's permissions.
pub fn permissions(trust_domain: &str, nodes: &[String]) -> Result<(), CliError> {
    let text =
        topology::server_permissions(trust_domain, nodes).map_err(|error| CliError::Argument(error.to_string()))?;
    print!("{text}");
    Ok(())
}

impl BusCommand {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let (enforcer_nodes, replicas) = match self {
            Self::Permissions { trust_domain, enforcer } => return permissions(&trust_domain, &enforcer),
            Self::Apply { enforcer, replicas } => (enforcer, replicas),
        };
        let section = context.profile.bus.clone().ok_or_else(|| CliError::Configuration {
            path: context.profile.path.clone(),
            problem: format!(
                "profile {:?} has no `bus` section with url, cert_file and key_file",
                context.profile.name
            ),
        })?;
        let config = BusConfig::new(
            vec![section.url],
            &context.profile.ca_file,
            section.cert_file,
            section.key_file,
        );
        let failed = |error: garrison_bus::BusError| CliError::Bus(chain(&error));
        let bus = Bus::connect(&config, "bus-admin").await.map_err(failed)?;
        let options = ApplyOptions {
            enforcer_nodes,
            replicas,
            ..ApplyOptions::default()
        };
        let changes = topology::apply(&bus, &options).await.map_err(failed)?;
        let kind = |kind| match kind {
            ChangeKind::Created => "created",
            ChangeKind::Updated => "updated",
            ChangeKind::Unchanged => "unchanged",
            ChangeKind::Foreign => "left alone",
        };
        if context.printer.is_json() {
            let changes: Vec<_> = changes
                .iter()
                .map(|change| json!({ "object": change.object, "change": kind(change.kind), "detail": change.detail }))
                .collect();
            context.printer.json(&json!({ "changes": changes }));
        } else {
            let rows = changes.iter().map(|change| {
                vec![
                    change.object.clone(),
                    kind(change.kind).to_owned(),
                    change.detail.clone(),
                ]
            });
            context.printer.rows(&["object", "change", "detail"], rows);
        }
        Ok(())
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text
}
