//! The tokens of a login, kept in a file that only their owner may read.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use chrono::{DateTime, Duration, Utc};
use garrison_proto::{from_timestamp, iam::v1::TokenSet};
use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// What a login left. Not `Debug`: it is all secret.
#[derive(Clone, Serialize, Deserialize)]
pub struct Session {
    /// The tenant that was logged in to.
    pub tenant: String,
    /// The short-lived token.
    pub access_token: String,
    /// When it ends.
    pub access_expires: DateTime<Utc>,
    /// Buys the next one; works once.
    pub refresh_token: String,
}

impl Session {
    /// From iam's answer.
    ///
    /// # Errors
    /// When the answer lacks a time.
    pub fn new(tenant: &str, tokens: TokenSet) -> Result<Self, CliError> {
        let expires = tokens.access_expires.as_ref().and_then(from_timestamp);
        Ok(Self {
            tenant: tenant.to_owned(),
            access_expires: expires.ok_or(CliError::Answer("iam", "the token's end"))?,
            access_token: tokens.access_token,
            refresh_token: tokens.refresh_token,
        })
    }

    /// The access token still has time for a call.
    pub fn is_fresh(&self) -> bool {
        Utc::now() + Duration::seconds(20) < self.access_expires
    }
}

/// The file, held under a lock: a refresh token works once, so two commands must not both use it.
pub struct TokenFile {
    path: PathBuf,
    _lock: File,
}

impl TokenFile {
    /// Opens and locks.
    ///
    /// # Errors
    /// When the folder cannot be made or the lock not be taken.
    pub fn lock(path: &Path) -> Result<Self, CliError> {
        let failed = |source| CliError::file("locking", path, source);
        if let Some(folder) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(failed)?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.with_extension("lock"))
            .map_err(failed)?;
        lock.lock().map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// What is kept, if anything usable is.
    pub fn read(&self) -> Option<Session> {
        serde_json::from_slice(&fs::read(&self.path).ok()?).ok()
    }

    /// Keeps a session.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, session: &Session) -> Result<(), CliError> {
        let failed = |source| CliError::file("writing", &self.path, source);
        let partial = self.path.with_extension("partial");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&partial)
            .map_err(failed)?;
        let text = serde_json::to_vec(session).map_err(|error| failed(error.into()))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&partial, &self.path).map_err(failed)
    }

    /// Forgets the session.
    pub fn clear(&self) {
        // Nothing kept is what was wanted.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn tokens_are_kept_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens/lab.json");
        let session = Session {
            tenant: "acme".to_owned(),
            access_token: "a".to_owned(),
            access_expires: Utc::now() + Duration::seconds(300),
            refresh_token: "r".to_owned(),
        };
        let file = TokenFile::lock(&path).unwrap();
        assert!(file.read().is_none());
        file.write(&session).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let read = file.read().unwrap();
        assert_eq!(read.refresh_token, "r");
        assert!(read.is_fresh());
        let over_soon = Utc::now() + Duration::seconds(19);
        assert!(
            !(Session {
                access_expires: over_soon,
                ..read
            })
            .is_fresh()
        );
        file.clear();
        assert!(file.read().is_none());
    }
}
