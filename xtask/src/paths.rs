//! Where things are in the checkout.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// The checkout.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Everything that a run leaves, ignored by git.
pub fn state() -> PathBuf {
    root().join(".garrison")
}

/// The cargo that runs us, in the environment that it was started in itself. What it told us of our own package would
/// look like a change to build scripts that read it (ring's does), and everything above them be built again, here and
/// the next time outside.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    if let Some(path) = with_administrators() {
        command.env("PATH", path);
    }
    for (name, _) in std::env::vars_os() {
        let told = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || OURS.contains(&name)
        });
        if told {
            command.env_remove(name);
        }
    }
    command
}

/// PATH with the folders for administrators, where a user's lacks them: tests run `nft` by its name.
fn with_administrators() -> Option<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if folders.iter().any(|folder| folder.join("nft").is_file()) {
        return None;
    }
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    std::env::join_paths(folders).ok()
}

const OURS: [&str; 4] = ["CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"];

/// Where a profile's binaries are.
pub fn binaries(profile: Profile) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join(match profile {
        Profile::Dev => "debug",
        Profile::Release => "release",
    })
}

/// How the fleet is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build.
    Dev,
    /// Quick to run.
    Release,
}
