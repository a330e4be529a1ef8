//! What `deploy/` says must be what the programs take: the compose file against what `garrison dev init` writes and
//! what the Dockerfile builds, and the Kubernetes manifests against each other and their own promises.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod compose;
mod dockerfile;
mod initialised;
mod kubernetes;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// Every program that is a server.
pub const PROGRAMS: [&str; 8] = [
    "flow-ingest",
    "anomaly",
    "policy",
    "responder",
    "forensics",
    "compliance",
    "iam",
    "enforcer",
];

/// Those with a schema in PostgreSQL.
pub const WITH_DATABASE: [&str; 6] = ["anomaly", "policy", "responder", "forensics", "compliance", "iam"];

pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a YAML file, anchors and merge keys resolved.
pub fn yaml(path: &Path) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The texts of a list, or of one text.
pub fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(values) => values.iter().map(|value| value.as_str().unwrap().to_owned()).collect(),
        Value::String(text) => vec![text.clone()],
        _ => Vec::new(),
    }
}
