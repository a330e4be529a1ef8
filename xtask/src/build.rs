//! Building the fleet, and the reference pages that come from its binaries.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};

use crate::paths::{self, Profile};

/// Every program of the fleet.
pub const PROGRAMS: [&str; 9] = [
    "flow-ingest",
    "anomaly",
    "policy",
    "responder",
    "enforcer",
    "forensics",
    "compliance",
    "iam",
    "garrison",
];

/// Builds every program, with cargo's own progress.
pub fn fleet(profile: Profile) -> Result<()> {
    let mut command = Command::new(paths::cargo());
    command.args(["build", "--locked", "--bins"]).current_dir(paths::root());
    for package in [
        "flow-ingest",
        "anomaly",
        "policy",
        "responder",
        "forensics",
        "compliance",
        "iam",
        "garrison",
    ] {
        command.args(["--package", package]);
    }
    if profile == Profile::Release {
        command.arg("--release");
    }
    let status = command.status().context("starting cargo failed")?;
    ensure!(status.success(), "building the fleet failed");
    Ok(())
}

/// Writes the configuration reference of every service and the command line's, from the programs themselves.
/// With `check`, fails where a page differs instead.
pub fn reference(check: bool) -> Result<()> {
    fleet(Profile::Dev)?;
    let binaries = paths::binaries(Profile::Dev);
    let mut stale = Vec::new();
    for program in PROGRAMS {
        let (arguments, page): (&[&str], _) = match program {
            "garrison" => (&["reference"], "docs/reference/cli.md".to_owned()),
            _ => (&["config"], format!("docs/reference/config/{program}.md")),
        };
        let output = Command::new(binaries.join(program)).args(arguments).output()?;
        ensure!(
            output.status.success(),
            "{program} {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        let path = paths::root().join(&page);
        if fs::read(&path).is_ok_and(|current| current == output.stdout) {
            continue;
        }
        stale.push(page);
        if !check {
            fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            fs::write(&path, &output.stdout)?;
        }
    }
    match (check, stale.is_empty()) {
        (true, false) => bail!(
            "run `cargo xtask docs`: these pages are out of date: {}",
            stale.join(", ")
        ),
        (false, false) => println!("wrote {}", stale.join(", ")),
        _ => println!("every reference page is up to date"),
    }
    Ok(())
}
