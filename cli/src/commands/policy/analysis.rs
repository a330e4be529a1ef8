//! What manifests let through: no fleet and no cluster is asked.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use clap::Args;
use garrison_ztp::{
    ir::Direction,
    reach::{
        Assertion, Connection, Expectation, Expression, ExpressionError, Identity, Reach, Side, Violation, diff, dot,
        read_assertions, svg,
    },
    sets::{AddressSet, protocol_name},
};
use serde_json::json;

use super::files;
use crate::{commands::read_text, error::CliError, output::Printer};

/// Who can reach whom.
#[derive(Args)]
pub struct Connections {
    /// Manifests, or folders of them; - for standard input
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Print a graph in Graphviz's language
    #[arg(long)]
    dot: bool,
    /// Print a picture, as SVG
    #[arg(long, conflicts_with = "dot")]
    svg: bool,
    /// Also what pods of one workload may speak among themselves
    #[arg(long)]
    within: bool,
    /// Only connections from or to what this matches, for example namespace=shop
    #[arg(long, value_name = "WHO")]
    only: Option<String>,
}

impl Connections {
    /// Prints the connections.
    pub fn run(&self, printer: &Printer) -> Result<(), CliError> {
        let cluster = files::cluster(&self.paths)?;
        let only: Option<Expression> = match &self.only {
            Some(text) => Some(
                text.parse()
                    .map_err(|error: ExpressionError| CliError::Argument(error.to_string()))?,
            ),
            None => None,
        };
        let reach = Reach::of(&cluster.program);
        let mut connections = reach.connections(self.within);
        if let Some(only) = &only {
            let mut names = BTreeSet::new();
            let mut outside = AddressSet::empty();
            for endpoint in reach.endpoints().iter().filter(|e| only.matches(e)) {
                match &endpoint.identity {
                    Identity::Workload {
                        namespace, name, pod, ..
                    } => names.extend([(namespace.as_str(), name.as_str()), (namespace, pod)]),
                    Identity::External => outside = outside.union(&endpoint.range),
                    _ => {}
                }
            }
            let meant = |side: &Side| match side {
                Side::Workload { namespace, name, .. } => names.contains(&(namespace.as_str(), name.as_str())),
                side => side.addresses().is_some_and(|set| !set.intersect(&outside).is_empty()),
            };
            connections.retain(|c| meant(&c.source) || meant(&c.destination));
        }
        if self.dot {
            print!("{}", dot(&connections));
        } else if self.svg {
            let picture = svg(&connections).map_err(|error| {
                CliError::Argument(format!(
                    "{error}; take a part with --only, such as --only namespace=shop, or give --dot to Graphviz"
                ))
            })?;
            print!("{picture}");
        } else if printer.is_json() {
            printer.json(&json!({ "connections": connections, "findings": cluster.findings, "kinds": cluster.kinds }));
        } else {
            printer.rows(
                &["network", "from", "to", "services"],
                connections.iter().map(|c| row(&c.network, c)),
            );
        }
        Ok(())
    }
}

fn row(network: &str, connection: &Connection) -> Vec<String> {
    vec![
        network.to_owned(),
        connection.source.to_string(),
        connection.destination.to_string(),
        connection.services.to_string(),
    ]
}

/// Explains one connection from manifests.
pub fn explain(
    paths: &[PathBuf],
    src: &str,
    dst: &str,
    port: u16,
    protocol: u8,
    printer: &Printer,
) -> Result<(), CliError> {
    let cluster = files::cluster(paths)?;
    let single = |text: &str| text.parse::<IpAddr>().ok().map(ipnet);
    let cuts: Vec<_> = [src, dst].into_iter().filter_map(single).collect();
    let reach = Reach::with_cuts(&cluster.program, &cuts);
    let (source, destination) = (find(&reach, src)?, find(&reach, dst)?);
    let explained = reach
        .explain(0, source, destination, protocol, port)
        .ok_or_else(|| CliError::Argument("both ends must be on the cluster's network".to_owned()))?;
    let verdict = if explained.passes { "allowed" } else { "denied" };
    if printer.is_json() {
        let steps: Vec<_> = explained
            .steps
            .iter()
            .map(|step| {
                json!({
                    "direction": match step.direction { Direction::Egress => "egress", Direction::Ingress => "ingress" },
                    "plane": step.plane,
                    "verdict": if step.passes { "allowed" } else { "denied" },
                    "policy": step.rule.map(|(policy, _)| policy.to_string()),
                    "rule": step.rule.map(|(_, rule)| rule.field.clone()),
                    "file": step.rule.map(|(policy, _)| format!("{}:{}", policy.file, policy.line)),
                    "isolatedBy": step.isolated_by.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "because": step.to_string(),
                })
            })
            .collect();
        printer.json(&json!({ "verdict": verdict, "steps": steps }));
    } else {
        println!("{src} → {dst} {}/{port}: {verdict}", protocol_name(protocol));
        for step in &explained.steps {
            println!("  {step}");
        }
    }
    Ok(())
}

fn ipnet(address: IpAddr) -> ipnet::IpNet {
    address.into()
}

/// An endpoint by address, `namespace/workload`, or a workload's or pod's name.
fn find(reach: &Reach<'_>, text: &str) -> Result<usize, CliError> {
    let endpoints = reach.endpoints();
    if let Ok(address) = text.parse::<IpAddr>() {
        let known = endpoints
            .iter()
            .position(|e| e.identity != Identity::External && e.addresses.contains(&address));
        let outside = || endpoints.iter().position(|e| e.range.contains(address));
        return known
            .or_else(outside)
            .ok_or_else(|| CliError::Argument(format!("{text} is nowhere")));
    }
    let (in_namespace, wanted) = match text.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, text),
    };
    let mut found: Vec<(usize, String)> = Vec::new();
    for (i, endpoint) in endpoints.iter().enumerate() {
        let (matches, shown) = match &endpoint.identity {
            Identity::Workload {
                namespace, name, pod, ..
            } => (
                in_namespace.is_none_or(|n| n == namespace) && (name == wanted || pod == wanted),
                format!("{namespace}/{name}"),
            ),
            Identity::Node { name } | Identity::Domain { name } => (name == text, name.clone()),
            _ => continue,
        };
        if matches {
            found.push((i, shown));
        }
    }
    let mut names: Vec<&String> = found.iter().map(|(_, name)| name).collect();
    names.dedup();
    match (found.first(), names.len()) {
        (Some((i, _)), 1) => Ok(*i),
        (None, _) => Err(CliError::Argument(format!(
            "{text:?} is no workload, pod, node or address here: write namespace/name or an address"
        ))),
        (Some(_), _) => Err(CliError::Argument(format!(
            "{text:?} may be any of {}: write namespace/name",
            names.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// Prints what is gained and lost between two sets of manifests.
pub fn difference(before: &PathBuf, after: &PathBuf, within: bool, printer: &Printer) -> Result<(), CliError> {
    let before = files::cluster(std::slice::from_ref(before))?;
    let after = files::cluster(std::slice::from_ref(after))?;
    let changes = diff(&before.program, &after.program, within);
    if printer.is_json() {
        printer.json(&json!({ "changes": changes }));
        return Ok(());
    }
    let rows = changes.iter().flat_map(|change| {
        [("+", &change.gained), ("-", &change.lost)]
            .into_iter()
            .filter(|(_, set)| !set.is_empty())
            .map(|(sign, set)| {
                vec![
                    sign.to_owned(),
                    change.network.clone(),
                    change.source.to_string(),
                    change.destination.to_string(),
                    set.to_string(),
                ]
            })
    });
    printer.rows(&["", "network", "from", "to", "services"], rows);
    if changes.is_empty() {
        eprintln!("the same connections are possible");
    }
    Ok(())
}

/// What must hold.
#[derive(Args)]
pub struct Assert {
    /// Manifests, or folders of them; - for standard input
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// A file of assertions
    #[arg(long, value_name = "FILE")]
    assertions: Vec<PathBuf>,
    /// What must be impossible: 'WHO -> WHOM', or 'WHO -> WHOM : TCP/5432'
    #[arg(long, value_name = "CONNECTIONS")]
    forbid: Vec<String>,
    /// What must be possible, written the same way
    #[arg(long, value_name = "CONNECTIONS")]
    require: Vec<String>,
}

impl Assert {
    /// Checks everything and prints what does not hold, each with an example.
    pub fn run(&self, printer: &Printer) -> Result<(), CliError> {
        let mut assertions = Vec::new();
        for file in &self.assertions {
            let read = read_assertions(&read_text(file)?).map_err(|diagnostics| {
                for diagnostic in &diagnostics {
                    eprintln!("{}:{diagnostic}", file.display());
                }
                CliError::Invalid(format!("{} has {}", file.display(), super::count(diagnostics.len())))
            })?;
            assertions.extend(read);
        }
        for (expectation, texts) in [
            (Expectation::Forbid, &self.forbid),
            (Expectation::Require, &self.require),
        ] {
            for text in texts {
                let mut assertion: Assertion = text.parse().map_err(CliError::Argument)?;
                assertion.expectation = expectation;
                assertions.push(assertion);
            }
        }
        if assertions.is_empty() {
            return Err(CliError::Argument(
                "nothing is asserted: give --forbid, --require or --assertions".to_owned(),
            ));
        }
        let cluster = files::cluster(&self.paths)?;
        let (reach, outcomes) = Assertion::check(&cluster.program, &assertions);
        let failed = outcomes.iter().filter(|outcome| !outcome.holds()).count();
        let example = |violation: &Violation| {
            let (source, destination, protocol, port) = violation.example;
            let network = reach.networks().position(|n| n == violation.network)?;
            reach.explain(network, source, destination, protocol, port)
        };
        if printer.is_json() {
            let outcomes: Vec<_> = outcomes
                .iter()
                .map(|outcome| {
                    let violations: Vec<_> = outcome
                        .violations
                        .iter()
                        .map(|violation| {
                            let steps =
                                example(violation).map(|e| e.steps.iter().map(ToString::to_string).collect::<Vec<_>>());
                            json!({
                                "network": violation.network,
                                "source": violation.source,
                                "destination": violation.destination,
                                "services": violation.services.to_string(),
                                "protocol": protocol_name(violation.example.2),
                                "port": violation.example.3,
                                "because": steps,
                            })
                        })
                        .collect();
                    json!({
                        "name": outcome.name,
                        "expectation": outcome.expectation,
                        "holds": outcome.holds(),
                        "vacuous": outcome.vacuous,
                        "pairs": outcome.pairs,
                        "violations": violations,
                    })
                })
                .collect();
            printer.json(&json!({ "assertions": outcomes }));
        } else {
            for outcome in &outcomes {
                let word = if outcome.holds() { "holds" } else { "FAILS" };
                println!("{word}  {}", outcome.name);
                if outcome.vacuous {
                    println!("       nobody here is meant by it: is a name misspelt?");
                }
                let possible = match outcome.expectation {
                    Expectation::Forbid => "is possible",
                    Expectation::Require => "is not possible",
                };
                if let Some(violation) = outcome.violations.first() {
                    println!(
                        "       {} → {} {}/{} {possible}",
                        violation.source,
                        violation.destination,
                        protocol_name(violation.example.2),
                        violation.example.3
                    );
                    for step in example(violation).iter().flat_map(|e| &e.steps) {
                        println!("         {step}");
                    }
                    if outcome.violations.len() > 1 {
                        println!("       and {} further pairs", outcome.violations.len() - 1);
                    }
                }
            }
        }
        if failed > 0 {
            return Err(CliError::Violated(format!(
                "{failed} of {} assertions do not hold",
                outcomes.len()
            )));
        }
        Ok(())
    }
}
