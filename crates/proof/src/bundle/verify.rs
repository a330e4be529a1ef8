//! Checking a bundle.

use std::{collections::HashSet, io::Read};

use ring::digest::{Context, SHA256};

use super::{
    BundleError, BundleReport, CUSTODY, Hashing, MANIFEST, Manifest, ManifestFile, SCHEMA, SIGNATURE, SIGNING_KEY,
    SUMS, SUMS_SIGNATURE, folder, sealed_seconds, sums,
};
use crate::{
    custody,
    key::{KeyError, PublicKey},
    tar::{self, Reader},
};

const MAX_MANIFEST: u64 = 16 << 20;
const MAX_FILES: usize = 10_000;
const MAX_CUSTODY: u64 = 16 << 20;

/// Reads a bundle's archive to its end and checks every byte of it.
///
/// `trusted_key_id` is the SHA-256 of the public key (DER) that the examiner trusts, from another source than the
/// bundle. Without it the bundle is shown to be whole and signed by the key inside, whose id is in the report.
///
/// # Errors
/// [`BundleError`] names the first thing that is wrong.
pub fn verify_bundle(archive: impl Read, trusted_key_id: Option<&str>) -> Result<BundleReport, BundleError> {
    let mut hashing = Hashing::new(archive);
    let mut reader = Reader::new(&mut hashing);

    let first = reader
        .next_entry()?
        .ok_or_else(|| BundleError::Missing { path: MANIFEST.into() })?;
    let folder = first
        .path
        .strip_suffix(MANIFEST)
        .and_then(|p| p.strip_suffix('/'))
        .unwrap_or_default()
        .to_owned();
    if folder.is_empty() || folder.contains('/') {
        return Err(BundleError::Missing { path: MANIFEST.into() });
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

    let manifest: Manifest =
        serde_json::from_slice(&manifest_bytes).map_err(|e| BundleError::Manifest(e.to_string()))?;
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
        let entry = next_in(&mut reader, &folder, first.mtime)?.ok_or_else(|| BundleError::Missing {
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
        return Err(BundleError::Manifest(format!("it lists more than {MAX_FILES} files")));
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
    for expected in [Some(manifest.key_id.as_str()), trusted_key_id].into_iter().flatten() {
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
fn next_in<R: Read>(reader: &mut Reader<R>, folder: &str, mtime: u64) -> Result<Option<tar::Entry>, BundleError> {
    let Some(entry) = reader.next_entry()? else {
        return Ok(None);
    };
    let path = entry.path.strip_prefix(folder).and_then(|p| p.strip_prefix('/'));
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
        _ => Err(BundleError::Missing { path: name.to_owned() }),
    }
}

pub(super) fn content<R: Read>(reader: &mut Reader<R>, entry: &tar::Entry, limit: u64) -> Result<Vec<u8>, BundleError> {
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
