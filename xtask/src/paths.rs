//! Where things are in the checkout.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
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

/// The cargo that runs us.
pub fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

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
