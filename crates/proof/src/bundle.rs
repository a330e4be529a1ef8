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

use std::{
    collections::HashSet,
    fmt::Write as _,
    io::{self, Read, Write},
};

use chrono::DateTime;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::{
    custody::{self, CustodyError},
    key::{KeyError, PublicKey, SigningKey},
    tar::{self, Reader, TarError, Writer},
};

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

const MAX_MANIFEST: u64 = 16 << 20;
const MAX_FILES: usize = 10_000;
const MAX_CUSTODY: u64 = 16 << 20;

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
    #[error(
        "the signature does not fit the manifest: the manifest, the signature or the key was changed"
    )]
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
    let mut text = format!(
        "{}  {MANIFEST}\n",
        hex::encode(crate::sha256(manifest_bytes))
    );
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
        (
            self.inner,
            hex::encode(self.context.finish().as_ref()),
            self.bytes,
        )
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
    let mut bytes =
        serde_json::to_vec_pretty(manifest).map_err(|e| BundleError::Manifest(e.to_string()))?;
    bytes.push(b'\n');
    let signature = key.sign(&bytes);
    let folder = folder(&manifest.bundle);
    let mut writer = Writer::new(Hashing::new(out), sealed_seconds(manifest)?);
    let pem = key.public().spki_pem();
    let sums = sums(&bytes, manifest);
    let mut put = |name: &str, content: &[u8]| {
        writer.file(
            &format!("{folder}/{name}"),
            content.len() as u64,
            &mut &content[..],
        )
    };
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

/// Reads a bundle's archive to its end and checks every byte of it.
///
/// `trusted_key_id` is the SHA-256 of the public key (DER) that the examiner trusts, from another source than the
/// bundle. Without it the bundle is shown to be whole and signed by the key inside, whose id is in the report.
///
/// # Errors
/// [`BundleError`] names the first thing that is wrong.
pub fn verify_bundle(
    archive: impl Read,
    trusted_key_id: Option<&str>,
) -> Result<BundleReport, BundleError> {
    let mut hashing = Hashing::new(archive);
    let mut reader = Reader::new(&mut hashing);

    let first = reader.next_entry()?.ok_or_else(|| BundleError::Missing {
        path: MANIFEST.into(),
    })?;
    let folder = first
        .path
        .strip_suffix(MANIFEST)
        .and_then(|p| p.strip_suffix('/'))
        .unwrap_or_default()
        .to_owned();
    if folder.is_empty() || folder.contains('/') {
        return Err(BundleError::Missing {
            path: MANIFEST.into(),
        });
    }
    let manifest_bytes = content(&mut reader, &first, MAX_MANIFEST)?;
    let signature = expect(&mut reader, &folder, SIGNATURE, first.mtime, 64)?;
    let pem = expect(&mut reader, &folder, SIGNING_KEY, first.mtime, 16 << 10)?;
    let pem_text = std::str::from_utf8(&pem).map_err(|_| KeyError::NoPem("PUBLIC KEY"))?;
    let key = PublicKey::from_spki_pem(pem_text)?;
    if key.spki_pem() != pem_text {
        return Err(BundleError::Changed {
            path: SIGNING_KEY.into(),
            reason: "it is not in its usual form",
        });
    }
    if !key.verify(&manifest_bytes, &signature) {
        return Err(BundleError::Signature);
    }

    let manifest: Manifest = serde_json::from_slice(&manifest_bytes)
        .map_err(|e| BundleError::Manifest(e.to_string()))?;
    check_manifest(&manifest, &folder, &key, trusted_key_id)?;
    if sealed_seconds(&manifest)? != first.mtime {
        return Err(BundleError::Changed {
            path: MANIFEST.into(),
            reason: "its time is not when it was sealed",
        });
    }
    let listed = expect(&mut reader, &folder, SUMS, first.mtime, 4 * MAX_MANIFEST)?;
    if listed != sums(&manifest_bytes, &manifest).as_bytes() {
        return Err(BundleError::Changed {
            path: SUMS.into(),
            reason: "it differs from the manifest",
        });
    }

    let signature = expect(&mut reader, &folder, SUMS_SIGNATURE, first.mtime, 64)?;
    if !key.verify(&listed, &signature) {
        return Err(BundleError::Changed {
            path: SUMS_SIGNATURE.into(),
            reason: "it is not the key's signature over the digests",
        });
    }

    let mut custody_entries = 0;
    let known: HashSet<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
    for file in &manifest.files {
        if file.path == SIGNING_KEY {
            check_digest(file, &pem)?;
            continue;
        }
        let entry =
            next_in(&mut reader, &folder, first.mtime)?.ok_or_else(|| BundleError::Missing {
                path: file.path.clone(),
            })?;
        if entry.path != file.path {
            return Err(if known.contains(entry.path.as_str()) {
                BundleError::Missing {
                    path: file.path.clone(),
                }
            } else {
                BundleError::Extra { path: entry.path }
            });
        }
        if entry.size != file.bytes {
            return Err(BundleError::Changed {
                path: file.path.clone(),
                reason: "its size differs",
            });
        }
        if file.path == CUSTODY {
            let lines = content(&mut reader, &entry, MAX_CUSTODY)?;
            check_digest(file, &lines)?;
            let entries = custody::parse_lines(&lines)?;
            let head = custody::verify_chain(&entries)?;
            custody_entries = entries.len() as u64;
            if head.as_deref() != Some(manifest.custody_head.as_str()) {
                return Err(BundleError::Changed {
                    path: CUSTODY.into(),
                    reason: "its head differs from the manifest",
                });
            }
            continue;
        }
        let mut context = Context::new(&SHA256);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = reader.read_body(&mut buffer)?;
            if n == 0 {
                break;
            }
            context.update(&buffer[..n]);
        }
        if hex::encode(context.finish().as_ref()) != file.sha256 {
            return Err(BundleError::Changed {
                path: file.path.clone(),
                reason: "its SHA-256 differs",
            });
        }
    }
    if let Some(extra) = next_in(&mut reader, &folder, first.mtime)? {
        return Err(BundleError::Extra { path: extra.path });
    }
    let (_, sha256, bytes) = hashing.finish();
    Ok(BundleReport {
        manifest,
        sha256,
        bytes,
        custody_entries,
        key_trusted: trusted_key_id.is_some(),
    })
}

fn check_manifest(
    manifest: &Manifest,
    in_folder: &str,
    key: &PublicKey,
    trusted_key_id: Option<&str>,
) -> Result<(), BundleError> {
    if manifest.schema != SCHEMA {
        return Err(BundleError::Manifest(format!(
            "its schema is {:?}, and this program reads {SCHEMA}",
            manifest.schema.chars().take(80).collect::<String>()
        )));
    }
    if manifest.files.len() > MAX_FILES {
        return Err(BundleError::Manifest(format!(
            "it lists more than {MAX_FILES} files"
        )));
    }
    if folder(&manifest.bundle) != in_folder {
        return Err(BundleError::Missing {
            path: folder(&manifest.bundle),
        });
    }
    let mut seen = HashSet::from([MANIFEST, SIGNATURE, SUMS, SUMS_SIGNATURE]);
    for file in &manifest.files {
        if !tar::safe_path(&file.path) || !seen.insert(&file.path) {
            return Err(BundleError::Manifest(format!(
                "it lists {:?} twice or where it may not be",
                file.path
            )));
        }
    }
    let found = key.key_id();
    for expected in [Some(manifest.key_id.as_str()), trusted_key_id]
        .into_iter()
        .flatten()
    {
        if !expected.eq_ignore_ascii_case(&found) {
            return Err(BundleError::OtherKey {
                expected: expected.to_owned(),
                found,
            });
        }
    }
    Ok(())
}

fn check_digest(file: &ManifestFile, content: &[u8]) -> Result<(), BundleError> {
    if file.bytes != content.len() as u64 || file.sha256 != hex::encode(crate::sha256(content)) {
        return Err(BundleError::Changed {
            path: file.path.clone(),
            reason: "its SHA-256 differs",
        });
    }
    Ok(())
}

/// The next file, its path below the folder.
fn next_in<R: Read>(
    reader: &mut Reader<R>,
    folder: &str,
    mtime: u64,
) -> Result<Option<tar::Entry>, BundleError> {
    let Some(entry) = reader.next_entry()? else {
        return Ok(None);
    };
    let path = entry
        .path
        .strip_prefix(folder)
        .and_then(|p| p.strip_prefix('/'));
    let Some(path) = path.map(str::to_owned) else {
        return Err(BundleError::Extra { path: entry.path });
    };
    if entry.mtime != mtime {
        return Err(BundleError::Changed {
            path,
            reason: "its time differs",
        });
    }
    Ok(Some(tar::Entry { path, ..entry }))
}

fn expect<R: Read>(
    reader: &mut Reader<R>,
    folder: &str,
    name: &str,
    mtime: u64,
    limit: u64,
) -> Result<Vec<u8>, BundleError> {
    match next_in(reader, folder, mtime)? {
        Some(entry) if entry.path == name => content(reader, &entry, limit),
        _ => Err(BundleError::Missing {
            path: name.to_owned(),
        }),
    }
}

fn content<R: Read>(
    reader: &mut Reader<R>,
    entry: &tar::Entry,
    limit: u64,
) -> Result<Vec<u8>, BundleError> {
    if entry.size > limit {
        return Err(BundleError::Changed {
            path: entry.path.clone(),
            reason: "it is too large to be what it should",
        });
    }
    // Grown as bytes arrive: a header alone must not reserve memory.
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let n = reader.read_body(&mut buffer)?;
        if n == 0 {
            return Ok(bytes);
        }
        bytes.extend_from_slice(&buffer[..n]);
    }
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
