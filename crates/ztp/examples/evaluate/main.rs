//! Holds the policy analysis against answers that others gave: `cargo xtask eval policy`.
#![allow(missing_docs)]

mod conformance;
mod connections;
mod istio;
mod schema;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use garrison_ztp::cluster::{Cluster, Source, import};

/// How many of how many were right.
#[derive(Default)]
pub(crate) struct Score {
    right: usize,
    all: usize,
}

impl Score {
    /// Prints one result.
    pub(crate) fn note(&mut self, name: &str, wrong: Option<String>) {
        self.all += 1;
        match wrong {
            None => {
                self.right += 1;
                println!("  equal    {name}");
            }
            Some(reason) => println!("  DIFFERS  {name}: {reason}"),
        }
    }
}

/// YAML files of a folder and everything below, in order.
pub(crate) fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path
                .extension()
                .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
            {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) fn read(files: &[PathBuf], edit: impl Fn(String) -> String) -> std::io::Result<Cluster> {
    let sources = files
        .iter()
        .map(|path| {
            Ok(Source {
                file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                text: edit(std::fs::read_to_string(path)?),
            })
        })
        .collect::<std::io::Result<Vec<_>>>()?;
    Ok(import(&sources))
}

/// The first error, for a line of the report.
pub(crate) fn error(cluster: &Cluster) -> Option<String> {
    let errors = cluster
        .findings
        .iter()
        .find(|f| f.diagnostic.level == garrison_ztp::Level::Error);
    errors.map(ToString::to_string)
}

fn main() -> ExitCode {
    let Some(corpora) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: evaluate CORPORA");
        return ExitCode::from(2);
    };
    let policy = corpora.join("policy");
    type Part = (&'static str, &'static str, fn(&Path, &mut Score) -> std::io::Result<()>);
    let parts: [Part; 5] = [
        (
            "netpol-analyzer",
            "connections equal to netpol-analyzer's",
            connections::evaluate,
        ),
        ("cyclonus", "cyclonus examples read and analysed", conformance::cyclonus),
        (
            "network-policy-api",
            "network-policy-api conformance manifests read and analysed",
            conformance::network_policy_api,
        ),
        (
            "istio-authz",
            "AuthorizationPolicies decide as the Envoy RBAC that Istio builds",
            istio::evaluate,
        ),
        (
            "crd-schemas",
            "compiler output valid against the published schemas",
            schema::evaluate,
        ),
    ];
    let mut complete = true;
    for (folder, title, evaluate) in parts {
        let folder = policy.join(folder);
        if !folder.is_dir() {
            println!("{title}: skipped, {} is not there", folder.display());
            continue;
        }
        println!("{title}:");
        let mut score = Score::default();
        if let Err(error) = evaluate(&folder, &mut score) {
            println!("  stopped: {error}");
            complete = false;
        }
        complete &= score.right == score.all;
        println!("  {} of {}", score.right, score.all);
    }
    if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
