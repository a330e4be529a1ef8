//! `garrison dev init`, run for real with the arguments of the compose file.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::compose::Compose;

/// A folder that was made.
pub struct Made {
    dir: TempDir,
    /// Owner by folder.
    pub folders: BTreeMap<String, u64>,
}

impl Made {
    /// Runs the command, with interfaces for a sensor in the host's network or without.
    pub fn new(node_interfaces: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folders = run(dir.path(), node_interfaces);
        Self { dir, folders }
    }

    pub fn again(&mut self, node_interfaces: &str) {
        self.folders = run(self.dir.path(), node_interfaces);
    }

    pub fn path(&self, inner: &str) -> PathBuf {
        self.dir.path().join(inner)
    }

    pub fn config(&self, folder: &str, file: &str) -> toml::Table {
        crate::read(&self.path(folder).join(file)).parse().unwrap()
    }

    /// Every file by its path inside.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        visit(self.dir.path(), &mut |path| {
            if path.is_file() {
                let inner = path.strip_prefix(self.dir.path()).unwrap().display().to_string();
                files.insert(inner, fs::read(path).unwrap());
            }
        });
        files
    }
}

fn visit(path: &Path, seen: &mut impl FnMut(&Path)) {
    seen(path);
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            visit(&entry.unwrap().path(), seen);
        }
    }
}

fn run(dir: &Path, node_interfaces: &str) -> BTreeMap<String, u64> {
    let compose = Compose::read();
    let arguments = compose
        .command("init")
        .into_iter()
        .filter(|argument| argument != "--chown")
        .map(|argument| match argument.strip_prefix("--dir=") {
            Some(_) => format!("--dir={}", dir.display()),
            None => argument,
        });
    let output = Command::new(env!("CARGO_BIN_EXE_garrison"))
        .args(["--output", "json"])
        .args(arguments)
        .env("GARRISON_NODE_INTERFACES", node_interfaces)
        .env("GARRISON_NODE_ENFORCE", "false")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let folders = answer["folders"].as_array().unwrap().iter();
    folders
        .map(|folder| {
            (
                folder["folder"].as_str().unwrap().to_owned(),
                folder["uid"].as_u64().unwrap(),
            )
        })
        .collect()
}

#[test]
fn nobody_but_the_owner_may_read_anything() {
    let made = Made::new("eth7");
    let mut seen = 0;
    for folder in made.folders.keys().filter(|folder| *folder != "authority") {
        visit(&made.path(folder), &mut |path| {
            seen += 1;
            let mode = path.metadata().unwrap().permissions().mode() & 0o7777;
            let wanted: &[u32] = match (path.is_dir(), path.extension().is_some_and(|end| end == "sh")) {
                (true, _) | (_, true) => &[0o700],
                _ => &[0o600, 0o640],
            };
            assert!(wanted.contains(&mode), "{} has mode {mode:o}", path.display());
        });
    }
    assert!(seen > 100, "{seen} files and folders");
    // The authority has files of all kinds, but nobody gets to them.
    let mode = made.path("authority").metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o700);
    for secret in made
        .files()
        .keys()
        .filter(|name| name.starts_with("authority/secrets/") || name.ends_with(".key"))
    {
        let mode = made.path(secret).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{secret}");
    }
}

#[test]
fn no_program_gets_what_is_another_s() {
    let made = Made::new("");
    let files = made.files();
    let keys: Vec<(&String, &Vec<u8>)> = files
        .iter()
        .filter(|(name, _)| !name.starts_with("authority/"))
        .filter(|(name, _)| name.ends_with(".key") && name.contains("/pki/"))
        .collect();
    for (name, key) in &keys {
        let others: Vec<_> = keys
            .iter()
            .filter(|(other, bytes)| other != name && bytes == key)
            .collect();
        assert!(others.is_empty(), "{name} is also {others:?}");
    }
    assert_eq!(
        keys.len(),
        11,
        "eight programs, nats, postgres and the bus administrator"
    );
    let authority = &files["authority/pki/ca.key"];
    let copies: Vec<_> = files
        .iter()
        .filter(|(_, bytes)| *bytes == authority)
        .map(|(name, _)| name)
        .collect();
    assert_eq!(copies, ["authority/pki/ca.key"]);
    for service in crate::WITH_DATABASE {
        let password = &files[&format!("authority/secrets/{service}_owner.password")];
        for (name, _) in files.iter().filter(|(_, bytes)| *bytes == password) {
            let folder = name.split('/').next().unwrap();
            assert!(["authority", "migrate", "postgres"].contains(&folder), "{name}");
        }
    }
}

#[test]
fn a_second_run_keeps_every_key_and_password() {
    let mut made = Made::new("");
    let before = made.files();
    made.again("");
    assert_eq!(made.files(), before);
    made.again("eth7");
    let after = made.files();
    for (name, bytes) in before.iter().filter(|(name, _)| !name.ends_with(".toml")) {
        assert_eq!(&after[name], bytes, "{name}");
    }
}

#[test]
fn a_node_is_there_only_when_it_was_asked_for() {
    let mut made = Made::new("");
    assert!(!made.path("flow-ingest-node").exists() && !made.path("enforcer-node").exists());
    let endpoints =
        |made: &Made| made.config("forensics", "forensics.toml")["evidence"]["flow_ingest_endpoints"].clone();
    assert_eq!(endpoints(&made).as_array().unwrap().len(), 1);
    made.again("eth7,eth8");
    let sensor = made.config("flow-ingest-node", "flow-ingest.toml")["sensors"][0].clone();
    assert_eq!(sensor["interfaces"].as_array().unwrap().len(), 2);
    assert_eq!(sensor["id"].as_str(), Some("host"));
    assert_eq!(
        endpoints(&made).as_array().unwrap()[1].as_str(),
        Some("https://10.213.0.1:7111")
    );
    let enforcer = made.config("enforcer-node", "enforcer.toml");
    assert_eq!(enforcer["enforcer"]["observe_only"].as_bool(), Some(true));
    let nodes = made.config("responder", "responder.toml")["enforcement"]["nodes"].clone();
    assert_eq!(nodes.as_table().unwrap().keys().collect::<Vec<_>>(), ["bridge", "host"]);
    // The fleet's own configuration is not that of the node, though both were written.
    let own = made.config("flow-ingest", "flow-ingest.toml");
    assert_eq!(own["sensors"][0]["id"].as_str(), Some("bridge"));
}

#[test]
fn people_find_the_fleet_from_outside() {
    let made = Made::new("");
    let outside = made.config("cli", "host/config.toml");
    let profile = &outside["profiles"]["acme-analyst"];
    assert!(
        made.path("cli/host")
            .join(profile["ca_file"].as_str().unwrap())
            .exists()
    );
    for program in crate::PROGRAMS.iter().filter(|program| **program != "enforcer") {
        let listen = made.config(program, &format!("{program}.toml"))["core"]["grpc"]["listen"].clone();
        let port = listen.as_str().unwrap().rsplit(':').next().unwrap().to_owned();
        assert_eq!(
            profile["endpoints"][*program].as_str().unwrap(),
            format!("https://localhost:{port}")
        );
    }
    for config in [&outside, &made.config("cli", "config.toml")] {
        for (name, profile) in config["profiles"].as_table().unwrap() {
            assert!(profile.get("bus").is_none(), "{name} may change the broker's streams");
        }
    }
}
