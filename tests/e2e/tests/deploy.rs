//! The configurations that `deploy/` gives the programs are judged by the programs themselves.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use garrison_testkit::bootstrap::SERVICES;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

fn binary(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir));
    let path = target.join("debug").join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --workspace --bins` first",
        path.display()
    );
    path
}

fn programs() -> impl Iterator<Item = &'static str> {
    SERVICES.into_iter().chain(["enforcer"])
}

/// The exit status and what was said when a program judges a configuration.
fn check(program: &str, config: &Path) -> (Option<i32>, String) {
    let output = Command::new(binary(program))
        .arg("--config")
        .arg(config)
        .arg("check")
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// Puts a configuration where the program can see its files on this machine: `from` becomes `to`.
fn moved(config: &Path, moves: &[(&str, &Path)], folder: &Path) -> PathBuf {
    let mut text = fs::read_to_string(config).unwrap();
    for (from, to) in moves {
        text = text.replace(from, &to.display().to_string());
    }
    let path = folder.join(config.file_name().unwrap());
    fs::write(&path, text).unwrap();
    path
}

fn data_folders(folder: &Path) -> PathBuf {
    let data = folder.join("data");
    for program in ["flow-ingest", "forensics", "enforcer"] {
        fs::create_dir_all(data.join(program)).unwrap();
    }
    data
}

#[test]
fn every_program_takes_the_configuration_of_the_compose_stack() {
    let folder = tempfile::tempdir().unwrap();
    let fleet = folder.path().join("fleet");
    let data = data_folders(folder.path());
    let output = Command::new(binary("garrison"))
        .args([
            "dev",
            "init",
            "--node-interface",
            "eth7",
            "--node-address",
            "10.213.0.1",
        ])
        .args(["--management-network", "10.213.0.0/25", "--dir"])
        .arg(&fleet)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let nodes = [("flow-ingest", "flow-ingest-node"), ("enforcer", "enforcer-node")];
    for (program, inner) in programs().map(|program| (program, program)).chain(nodes) {
        let own = fleet.join(inner);
        let moves = [("/etc/garrison", own.as_path()), ("/var/lib/garrison", &data)];
        let config = moved(&own.join(format!("{program}.toml")), &moves, folder.path());
        let (status, said) = check(program, &config);
        assert_eq!(status, Some(0), "{inner}: {said}");
    }
}

#[test]
fn every_program_takes_its_configuration_for_kubernetes() {
    let folder = tempfile::tempdir().unwrap();
    let data = data_folders(folder.path());
    for program in programs() {
        let config = root().join(format!("deploy/k8s/base/config/{program}.toml"));
        // As the init container does.
        let moves = [("/var/lib/garrison", data.as_path()), ("@NODE@", Path::new("worker-1"))];
        let (status, said) = check(program, &moved(&config, &moves, folder.path()));
        assert_eq!(status, Some(0), "{program}: {said}");
    }
}

#[test]
fn a_configuration_with_a_wrong_key_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let data = data_folders(folder.path());
    for program in programs() {
        let config = root().join(format!("deploy/k8s/base/config/{program}.toml"));
        let moves = [("/var/lib/garrison", data.as_path()), ("@NODE@", Path::new("worker-1"))];
        let path = moved(&config, &moves, folder.path());
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("[core.admin]", "[core.admni]")).unwrap();
        let (status, said) = check(program, &path);
        assert_eq!(status, Some(64), "{program}: {said}");
        assert!(said.contains("core.admni"), "{program}: {said}");
    }
}
