//! The ledger on disk, replaced as a whole: after a crash there is the old one or the new one.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::ledger::Ledger;

/// The format's version.
const VERSION: u32 = 1;
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 256 * 1024 * 1024;

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    ledger: &'a Ledger,
}

#[derive(Deserialize)]
struct Read {
    version: u32,
    ledger: Ledger,
}

/// Where the ledger is kept.
#[derive(Debug, Clone)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// Keeps it in this file, whose folder must exist.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it; an empty ledger when there is no file.
    ///
    /// # Errors
    /// When the file cannot be read or is not a ledger of this version.
    pub fn load(&self) -> io::Result<Ledger> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ledger::default()),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text)?;
        let read: Read = serde_json::from_slice(&text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        if read.version != VERSION {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("version {} is not {VERSION}", read.version),
            ));
        }
        Ok(read.ledger)
    }

    /// Writes it: when this returns, it survives a power cut.
    ///
    /// # Errors
    /// When the disk refuses; then the file is as it was.
    pub fn store(&self, ledger: &Ledger) -> io::Result<()> {
        let mut temporary = self.path.clone().into_os_string();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        let text = serde_json::to_vec(&Written {
            version: VERSION,
            ledger,
        })?;
        let mut file = File::create(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, &self.path)?;
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder)?.sync_all()
    }

    /// Puts an unreadable file aside, so that the node can go on with what the responder says.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn put_aside(&self) -> io::Result<PathBuf> {
        let mut aside = self.path.clone().into_os_string();
        aside.push(".unreadable");
        let aside = PathBuf::from(aside);
        fs::rename(&self.path, &aside)?;
        Ok(aside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_replaced_as_a_whole_and_refuses_garbage() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::new(folder.path().join("state.json"));
        assert_eq!(file.load().unwrap(), Ledger::default());
        file.store(&Ledger::default()).unwrap();
        assert_eq!(file.load().unwrap(), Ledger::default());
        // A crash in the middle of writing leaves a part of the temporary file only.
        fs::write(folder.path().join("state.json.new"), b"{\"vers").unwrap();
        assert_eq!(file.load().unwrap(), Ledger::default());
        fs::write(file.path(), b"{\"vers").unwrap();
        assert!(file.load().is_err());
        fs::write(
            file.path(),
            b"{\"version\":9,\"ledger\":{\"entries\":{},\"gone\":{},\"outgoing\":[]}}",
        )
        .unwrap();
        assert!(file.load().unwrap_err().to_string().contains('9'));
        assert!(file.put_aside().unwrap().exists());
        assert_eq!(file.load().unwrap(), Ledger::default());
    }
}
