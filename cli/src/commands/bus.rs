use std::{collections::BTreeMap, time::Duration};

use clap::Subcommand;
use garrison_bus::{
    Bus, BusConfig,
    topology::{self, ApplyOptions, ChangeKind, EnforcerNode, StreamLimits},
};
use serde_json::json;

use crate::{Context, commands::parse_duration, error::CliError};

/// A stream has room for at least two of the largest messages.
const LEAST_BYTES: i64 = 16 << 20;

/// Streams, consumers and permissions of the broker.
#[derive(Subcommand)]
pub enum BusCommand {
    /// Create or update every stream and consumer
    ///
    /// Needs the certificate of svc/bus-admin in the profile's `bus` section.
    Apply {
        /// A node with an enforcer and the tenants whose orders it may read, or * for all; repeat for several
        #[arg(long, value_name = "NODE=TENANT,…")]
        enforcer: Vec<EnforcerNode>,
        /// Copies of each stream in a broker cluster
        #[arg(long, default_value_t = 1)]
        replicas: usize,
        /// Most bytes of a stream, such as FLOWS=20GiB; repeat for several. The rest have their defaults
        #[arg(long, value_name = "STREAM=SIZE", value_parser = max_bytes)]
        max_bytes: Vec<(String, i64)>,
        /// Longest time a stream keeps a message, such as FLOWS=2d; repeat for several
        #[arg(long, value_name = "STREAM=TIME", value_parser = max_age)]
        max_age: Vec<(String, Duration)>,
    },
    /// Print the authorization block of the broker's configuration
    Permissions {
        /// The SPIFFE trust domain
        #[arg(long)]
        trust_domain: String,
        /// A node with an enforcer and the tenants whose orders it may read, or * for all; repeat for several
        #[arg(long, value_name = "NODE=TENANT,…")]
        enforcer: Vec<EnforcerNode>,
    },
}

/// Prints the broker's permissions.
pub fn permissions(trust_domain: &str, enforcers: &[EnforcerNode]) {
    print!("{}", topology::server_permissions(trust_domain, enforcers));
}

fn limits(bytes: Vec<(String, i64)>, ages: Vec<(String, Duration)>) -> BTreeMap<String, StreamLimits> {
    let mut limits: BTreeMap<String, StreamLimits> = BTreeMap::new();
    for (stream, bytes) in bytes {
        limits.entry(stream).or_default().max_bytes = Some(bytes);
    }
    for (stream, age) in ages {
        limits.entry(stream).or_default().max_age = Some(age);
    }
    limits
}

/// A stream's name as on the broker, and what is behind the equals sign.
fn of_stream(text: &str) -> Result<(String, &str), String> {
    let (name, value) = text.split_once('=').ok_or("write STREAM=VALUE")?;
    let name = name.to_ascii_uppercase();
    if topology::STREAMS.iter().any(|stream| stream.name == name) {
        return Ok((name, value));
    }
    let names: Vec<&str> = topology::STREAMS.iter().map(|stream| stream.name).collect();
    Err(format!("{name:?} is none of {}", names.join(", ")))
}

fn max_bytes(text: &str) -> Result<(String, i64), String> {
    let (name, value) = of_stream(text)?;
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: i64 = match &value[digits.len()..] {
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(format!("{value:?} is no size: write 512MiB, 20GiB or 1TiB")),
    };
    let count: i64 = digits.parse().map_err(|_| format!("{digits:?} is no whole number"))?;
    let bytes = count.checked_mul(unit).ok_or("that is too much")?;
    if bytes < LEAST_BYTES {
        return Err(format!("{name} needs at least {} MiB", LEAST_BYTES >> 20));
    }
    Ok((name, bytes))
}

fn max_age(text: &str) -> Result<(String, Duration), String> {
    let (name, value) = of_stream(text)?;
    let age = parse_duration(value)?;
    let seconds = u64::try_from(age.seconds).map_err(|_| "a time is not negative")?;
    Ok((name, Duration::from_secs(seconds)))
}

impl BusCommand {
    pub async fn run(self, context: &Context) -> Result<(), CliError> {
        let options = match self {
            Self::Permissions { trust_domain, enforcer } => {
                permissions(&trust_domain, &enforcer);
                return Ok(());
            }
            Self::Apply {
                enforcer,
                replicas,
                max_bytes,
                max_age,
            } => ApplyOptions {
                enforcers: enforcer,
                replicas,
                limits: limits(max_bytes, max_age),
            },
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
        let changes = topology::apply(&bus, &options).await.map_err(failed)?;
        let kind = |kind| match kind {
            ChangeKind::Created => "created",
            ChangeKind::Updated => "updated",
            ChangeKind::Unchanged => "unchanged",
            ChangeKind::Removed => "removed",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_streams_are_read() {
        assert_eq!(max_bytes("FLOWS=20GiB").unwrap(), ("FLOWS".to_owned(), 20 << 30));
        assert_eq!(max_bytes("audit=16MiB").unwrap(), ("AUDIT".to_owned(), 16 << 20));
        let day = Duration::from_secs(86_400);
        assert_eq!(max_age("SIEM=1d").unwrap(), ("SIEM".to_owned(), day));
        for bad in [
            "FLOWS",
            "FLOWS=",
            "FLOWS=20",
            "FLOWS=GiB",
            "FLOWS=-1GiB",
            "FLOWS=1.5GiB",
            "FLOWS=1MiB",
            "FLOWS=9999999999TiB",
            "NOTHING=1GiB",
        ] {
            assert!(max_bytes(bad).is_err(), "{bad} was taken");
        }
        assert!(max_age("FLOWS=soon").is_err());
        let both = limits(vec![("FLOWS".to_owned(), 7)], vec![("FLOWS".to_owned(), day)]);
        let wanted = StreamLimits {
            max_bytes: Some(7),
            max_age: Some(day),
        };
        assert_eq!(both, BTreeMap::from([("FLOWS".to_owned(), wanted)]));
    }
}
