//! Sealed evidence bundles.
//!
//! A bundle is one plain archive ([`crate::tar`]) with a folder in which the first files are
//!
//! | file | what |
//! |---|---|
//! | `manifest.json` | what the bundle is about, and every other file with its size and SHA-256 |
//! | `manifest.json.sig` | Ed25519 signature over the manifest's bytes: 64 raw bytes |
//! | `signing-key.pem` | the public key, SubjectPublicKeyInfo |
//! | `SHA256SUMS` | the manifest's digest and those in it, for `sha256sum -c` |
//! | `SHA256SUMS.sig` | Ed25519 signature over it, so that public tools alone suffice |
//!
//! followed by the manifest's files in the manifest's order. Nothing else may be in it, and every byte of the
//! archive is accounted for.

mod verify;

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
};

use chrono::DateTime;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::{
    custody::CustodyError,
    key::{KeyError, SigningKey},
    tar::{TarError, Writer},
};

pub use verify::verify_bundle;

/// The form of manifest that this code reads and writes.
pub const SCHEMA: &str = "garrison.dev/evidence-bundle/v1";
/// The manifest's name in the bundle.
pub const MANIFEST: &str = "manifest.json";
/// The signature's name in the bundle.
pub const SIGNATURE: &str = "manifest.json.sig";
/// The public key's name in the bundle.
pub const SIGNING_KEY: &str = "signing-key.pem";
/// The digest list's name in the bundle.
pub const SUMS: &str = "SHA256SUMS";
/// The digest list's signature's name in the bundle.
pub const SUMS_SIGNATURE: &str = "SHA256SUMS.sig";
/// The custody log's name in the bundle.
pub const CUSTODY: &str = "custody.jsonl";

/// What a bundle says about itself. Its bytes are what is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: String,
    /// `bundles/{id}`.
    pub bundle: String,
    /// Whose evidence it is.
    pub tenant: String,
    /// `incidents/{id}`.
    pub incident: String,
    /// When it was sealed, RFC 3339 UTC in whole seconds; also the time of every file in the archive.
    pub created: String,
    /// Who asked for it.
    pub author: String,
    /// The program that made it.
    pub tool: Tool,
    /// How much there is of each kind.
    pub counts: Counts,
    /// Every file but the manifest, `SHA256SUMS` and their signatures.
    pub files: Vec<ManifestFile>,
    /// What could not be gathered, in words.
    pub omissions: Vec<String>,
    /// SHA-256 of the public key in DER form, hexadecimal.
    pub key_id: String,
    /// Hash of the last entry of the custody log in the bundle.
    pub custody_head: String,
}

/// The program that made a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// How much of each kind is in a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Alerts.
    pub alerts: u64,
    /// Responses.
    pub responses: u64,
    /// Flows, each counted once.
    pub flows: u64,
    /// Packets.
    pub packets: u64,
}

/// A file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Path below the bundle's folder.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// Media type.
    pub media_type: String,
    /// What it is, in words.
    pub description: String,
}

/// Why a bundle is not what was sealed.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The archive itself.
    #[error("the archive is damaged: {0}")]
    Archive(#[from] TarError),
    /// The manifest cannot be read.
    #[error("the manifest cannot be read: {0}")]
    Manifest(String),
    /// The signature does not fit.
    #[error("the signature does not fit the manifest: the manifest, the signature or the key was changed")]
    Signature,
    /// The key in the bundle.
    #[error("the signing key cannot be read: {0}")]
    Key(#[from] KeyError),
    /// The key is not the one that the manifest names or that is trusted.
    #[error("the bundle is signed by key {found}, not by {expected}")]
    OtherKey {
        /// The key that was expected.
        expected: String,
        /// The key in the bundle.
        found: String,
    },
    /// A file's bytes are not those that were sealed.
    #[error("{path} was changed: {reason}")]
    Changed {
        /// The file.
        path: String,
        /// What differs.
        reason: &'static str,
    },
    /// A file is not where the manifest says.
    #[error("{path} is missing: it was removed, renamed or moved")]
    Missing {
        /// The file.
        path: String,
    },
    /// A file that the manifest does not list.
    #[error("{path} does not belong to the bundle: it was added or renamed")]
    Extra {
        /// The file.
        path: String,
    },
    /// The custody log.
    #[error("the custody log does not hold: {0}")]
    Custody(#[from] CustodyError),
}

impl BundleError {
    /// The stable code under `docs/errors/`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Key(source) => source.code(),
            Self::Archive(TarError::Io(_)) => "GAR-PROOF-0006",
            _ => "GAR-PROOF-0005",
        }
    }
}

/// What a bundle that holds is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BundleReport {
    /// What was signed.
    pub manifest: Manifest,
    /// SHA-256 of the archive, hexadecimal.
    pub sha256: String,
    /// Bytes of the archive.
    pub bytes: u64,
    /// Entries of the custody log inside.
    pub custody_entries: u64,
    /// Whether the signing key was compared with one that the caller trusts.
    pub key_trusted: bool,
}

/// The folder in a bundle's archive, from the bundle's name.
pub fn folder(bundle: &str) -> String {
    format!("evidence-{}", bundle.rsplit('/').next().unwrap_or(bundle))
}

fn sums(manifest_bytes: &[u8], manifest: &Manifest) -> String {
    let mut text = format!("{}  {MANIFEST}\n", hex::encode(crate::sha256(manifest_bytes)));
    for file in &manifest.files {
        let _ = writeln!(text, "{}  {}", file.sha256, file.path);
    }
    text
}

/// Hashes everything that passes through.
struct Hashing<T> {
    inner: T,
    context: Context,
    bytes: u64,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            context: Context::new(&SHA256),
            bytes: 0,
        }
    }

    fn finish(self) -> (T, String, u64) {
        (self.inner, hex::encode(self.context.finish().as_ref()), self.bytes)
    }

    fn saw(&mut self, data: &[u8]) {
        self.context.update(data);
        self.bytes += data.len() as u64;
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.saw(&buffer[..n]);
        Ok(n)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.saw(&buffer[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// What [`write_bundle`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// SHA-256 of the archive, hexadecimal.
    pub sha256: String,
    /// Bytes of the archive.
    pub bytes: u64,
}

/// Signs the manifest and writes the archive. `open` gives the content of each of the manifest's files but the key.
///
/// # Errors
/// [`BundleError`] when writing fails or a file is shorter than the manifest says.
pub fn write_bundle<W: Write, R: Read>(
    out: W,
    manifest: &Manifest,
    key: &SigningKey,
    mut open: impl FnMut(&ManifestFile) -> io::Result<R>,
) -> Result<(W, Written), BundleError> {
    let mut bytes = serde_json::to_vec_pretty(manifest).map_err(|e| BundleError::Manifest(e.to_string()))?;
    bytes.push(b'\n');
    let signature = key.sign(&bytes);
    let folder = folder(&manifest.bundle);
    let mut writer = Writer::new(Hashing::new(out), sealed_seconds(manifest)?);
    let pem = key.public().spki_pem();
    let sums = sums(&bytes, manifest);
    let mut put =
        |name: &str, content: &[u8]| writer.file(&format!("{folder}/{name}"), content.len() as u64, &mut &content[..]);
    put(MANIFEST, &bytes)?;
    put(SIGNATURE, &signature)?;
    put(SIGNING_KEY, pem.as_bytes())?;
    put(SUMS, sums.as_bytes())?;
    put(SUMS_SIGNATURE, &key.sign(sums.as_bytes()))?;
    for file in manifest.files.iter().filter(|f| f.path != SIGNING_KEY) {
        let mut content = open(file).map_err(TarError::Io)?;
        writer.file(&format!("{folder}/{}", file.path), file.bytes, &mut content)?;
    }
    let (out, sha256, bytes) = writer.finish()?.finish();
    Ok((out, Written { sha256, bytes }))
}

fn sealed_seconds(manifest: &Manifest) -> Result<u64, BundleError> {
    DateTime::parse_from_rfc3339(&manifest.created)
        .ok()
        .and_then(|time| u64::try_from(time.timestamp()).ok())
        .ok_or_else(|| BundleError::Manifest("`created` is no time".into()))
}

#[cfg(test)]
mod tests;
