use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use crate::BootstrapError;

pub(crate) fn make_folder(path: &Path) -> Result<(), BootstrapError> {
    fs::create_dir_all(path).map_err(|source| BootstrapError::new(path, source))
}

pub(crate) fn read(path: &Path) -> Result<String, BootstrapError> {
    fs::read_to_string(path).map_err(|source| BootstrapError::new(path, source))
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), BootstrapError> {
    fs::write(path, text).map_err(|source| BootstrapError::new(path, source))
}

/// Writes a file that only its owner may read.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<(), BootstrapError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| BootstrapError::new(path, source))
}
