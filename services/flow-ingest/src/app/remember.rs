//! What a sensor has read already, across restarts: files of a folder, a place in a log. One bounded file each.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

/// Largest file of this kind, octets.
pub const MAX_BYTES: u64 = 32 << 20;

/// A note could not be kept or read back.
#[derive(Debug, thiserror::Error)]
#[error("GAR-FLOW-0060: what was read already cannot be {operation} {}", path.display())]
pub struct RememberError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Reads a note; the default when there is none yet.
///
/// # Errors
/// [`RememberError`] when it is there and cannot be used.
pub fn load<T: DeserializeOwned + Default>(path: &Path) -> Result<T, RememberError> {
    let failed = |source| RememberError {
        operation: "read back from",
        path: path.to_owned(),
        source,
    };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
        Err(error) => return Err(failed(error)),
        Ok(found) if found.len() > MAX_BYTES => return Err(failed(io::Error::other("it is longer than 32 MiB"))),
        Ok(_) => {}
    }
    let bytes = fs::read(path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

/// Writes a note, replacing the one before in one step.
///
/// # Errors
/// [`RememberError`] when it cannot be written.
pub fn save<T: Serialize>(path: &Path, note: &T) -> Result<(), RememberError> {
    let failed = |source| RememberError {
        operation: "written to",
        path: path.to_owned(),
        source,
    };
    let text = serde_json::to_vec(note).map_err(|error| failed(error.into()))?;
    crate::export::keep::replace(path, &text).map_err(failed)
}

/// What makes a file itself, whatever it is called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, Serialize)]
pub struct Identity {
    /// Its device.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

impl Identity {
    /// Of a file that was looked at.
    pub fn of(found: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self {
            device: found.dev(),
            inode: found.ino(),
        }
    }
}
