//! From a claimed bundle to a sealed archive.
//!
//! Two workers may be at the same bundle: one whose lease ran out, while the database was away or the process stood
//! still, and the one that took over. So an attempt gathers into a folder of its own; its archive is named by its content and
//! never replaces another; the archive becomes the bundle's only in a transaction that finds the attempt to be the
//! latest; and files are removed only under the lock of the bundle's row, which says whose they are.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, Utc};
use garrison_proof::{
    SigningKey,
    bundle::{self, Manifest, SCHEMA, Tool, write_bundle},
    custody::CustodyEntry,
};
use garrison_proto::{TenantId, forensics::v1::BundleState, resource_name};
use uuid::Uuid;

use super::{
    bundle::{Bundles, LOOK, OPERATION},
    gather::{Files, Gathered},
};
use crate::{
    error::Error,
    store::bundles::{self, Bundle, Sealed},
};

const CLEANING: &str = "removing what an attempt left";

/// An archive that is whole and durable on disk, and not yet the bundle's.
#[derive(Debug)]
pub struct Prepared {
    archive: bundle::Written,
    manifest: Manifest,
}

impl Bundles {
    /// Gathers everything and writes the archive. `None` when another worker has taken the bundle over meanwhile.
    ///
    /// # Errors
    /// [`Error`] of what failed; the bundle may be tried again.
    pub async fn prepare(&self, tenant: &TenantId, bundle: &Bundle) -> Result<Option<Prepared>, Error> {
        if let Err(error) = self.tidy(tenant, bundle.id, Some((bundle.attempts, None))).await {
            // An earlier attempt may still be writing where this one clears up. That is no reason to fail: what it leaves
            // goes when the bundle is sealed.
            tracing::debug!(%tenant, error = error.chain(), "files of an earlier attempt are left for now");
        }
        let lost = self.keep_lease(tenant, bundle);
        tokio::pin!(lost);
        let gathered = tokio::select! {
            gathered = self.gather(tenant, bundle) => gathered?,
            () = &mut lost => None,
        };
        let Some((manifest, work)) = gathered else {
            return Ok(None);
        };
        let target = self.folder(tenant, "bundles", bundle.id);
        let key = Arc::clone(&self.key);
        let packing = tokio::task::spawn_blocking(move || {
            let archive = write_archive(&manifest, &key, &work, &target)?;
            Ok::<_, Error>(Prepared { archive, manifest })
        });
        tokio::pin!(packing);
        // Writing is not broken off, as nobody would know of the file then: whether it counts is decided by `seal`.
        let packed = tokio::select! {
            packed = &mut packing => packed,
            () = &mut lost => packing.await,
        };
        packed.map_err(Error::gather("writing an archive"))?.map(Some)
    }

    /// Makes the archive the bundle's. False, and nothing changed, when the bundle is another worker's by now.
    ///
    /// # Errors
    /// [`Error::Database`]; it may have been sealed even so.
    pub async fn seal(&self, tenant: &TenantId, bundle: &Bundle, prepared: &Prepared) -> Result<bool, Error> {
        let Prepared { archive, manifest } = prepared;
        let sealed = Sealed {
            time: Utc::now(),
            sha256: archive.sha256.clone(),
            bytes: archive.bytes,
            counts: manifest.counts,
            key_id: manifest.key_id.clone(),
            omissions: manifest.omissions.clone(),
        };
        let mut tx = self.begin(tenant).await?;
        if !bundles::seal(&mut tx, bundle, &sealed).await? {
            return Ok(false);
        }
        // From here on the row is locked, so the file stays what it is.
        let path = self.archive(tenant, bundle.id, &archive.sha256);
        if !fs::metadata(&path).is_ok_and(|file| file.len() == archive.bytes) {
            let gone = io::Error::other(format!("{} is not there as it was written", path.display()));
            return Err(Error::gather("sealing a bundle")(gone));
        }
        let name = resource_name("bundles", bundle.id);
        let detail = format!("sha256 {}", archive.sha256);
        bundles::append_custody(&mut tx, bundle.id, sealed.time, &self.actor().name, "sealed", &detail).await?;
        let message = self.audit(tenant, self.actor(), "evidence.sealed", &name, &archive.sha256);
        tx.publish(&message).await.map_err(Error::database(OPERATION))?;
        tx.commit().await.map_err(Error::database(OPERATION))?;
        Ok(true)
    }

    /// Removes what is of no use any more. The row is locked meanwhile, so nobody seals. A sealed bundle keeps its archive;
    /// a failed one nothing; of one that is being gathered, its latest attempt may remove what earlier ones left, and an
    /// earlier one what it made itself. What no row speaks of is left alone: it may be evidence whose row was lost.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::Gather`]; then something is left, which does no harm.
    pub async fn tidy(&self, tenant: &TenantId, id: Uuid, mine: Option<(u32, Option<&Prepared>)>) -> Result<(), Error> {
        let mut tx = self.begin(tenant).await?;
        let Some(bundle) = bundles::lock(&mut tx, id).await? else {
            return Ok(());
        };
        let (work, archives) = (self.folder(tenant, "work", id), self.folder(tenant, "bundles", id));
        let gone = match (bundle.state, mine) {
            (BundleState::Sealed, _) => {
                remove_but(&work, None).and_then(|()| remove_but(&archives, Some(&format!("{}.tar", bundle.sha256))))
            }
            (BundleState::Failed, _) => remove_but(&work, None).and_then(|()| remove_but(&archives, None)),
            (BundleState::Gathering, Some((attempt, _))) if attempt == bundle.attempts => {
                remove_but(&work, None).and_then(|()| remove_but(&archives, None))
            }
            (BundleState::Gathering, Some((attempt, archive))) => {
                let own = archive.map(|own| self.archive(tenant, id, &own.archive.sha256));
                remove(&work.join(attempt.to_string())).and_then(|()| own.map_or(Ok(()), |own| remove(&own)))
            }
            _ => Ok(()),
        };
        gone.map_err(Error::gather(CLEANING))?;
        tx.commit().await.map_err(Error::database(OPERATION))
    }

    /// Tidies up after processes that died. False when it was not possible at present.
    pub(super) async fn tidy_all(&self, tenant: &TenantId) -> bool {
        let folder = self.gatherer.searcher.lake.tenant_folder(tenant);
        let names = |kind: &str| -> Vec<PathBuf> {
            let entries = fs::read_dir(folder.join(kind)).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect()
        };
        let mut left = names("work");
        let one = |path: &PathBuf| fs::read_dir(path).is_ok_and(|entries| entries.count() == 1);
        left.extend(names("bundles").into_iter().filter(|path| !one(path)));
        for path in left {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(id) = name.and_then(|name| Uuid::parse_str(name).ok()) else {
                continue;
            };
            if let Err(error) = self.tidy(tenant, id, None).await {
                tracing::debug!(%tenant, error = error.chain(), "files of earlier processes are left for now");
                return false;
            }
        }
        true
    }

    /// Returns when the bundle is another worker's.
    async fn keep_lease(&self, tenant: &TenantId, bundle: &Bundle) {
        let pause = self.lease().to_std().unwrap_or(LOOK) / 3;
        loop {
            tokio::time::sleep(pause.max(Duration::from_millis(10))).await;
            let renew = async {
                let mut tx = self.begin(tenant).await?;
                let held = bundles::renew(&mut tx, bundle, Utc::now() + self.lease()).await?;
                tx.commit().await.map_err(Error::database(OPERATION))?;
                Ok::<_, Error>(held)
            };
            match renew.await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => tracing::debug!(error = error.chain(), "a lease was not renewed; trying again"),
            }
        }
    }

    async fn gather(&self, tenant: &TenantId, bundle: &Bundle) -> Result<Option<(Manifest, PathBuf)>, Error> {
        let work = self.folder(tenant, "work", bundle.id).join(bundle.attempts.to_string());
        fs::create_dir_all(&work).map_err(Error::gather("preparing a bundle's folder"))?;
        let gathered = self.gatherer.gather(tenant, bundle.incident, &work).await?;
        let Some(chain) = self.record_gathered(tenant, bundle, &gathered).await? else {
            return Ok(None);
        };
        let manifest = self.write_rest(tenant, bundle, gathered, &chain, &work)?;
        Ok(Some((manifest, work)))
    }

    async fn record_gathered(
        &self,
        tenant: &TenantId,
        bundle: &Bundle,
        gathered: &Gathered,
    ) -> Result<Option<Vec<CustodyEntry>>, Error> {
        let counts = gathered.counts;
        let detail = format!(
            "{} alerts, {} responses, {} flows, {} packets, {} omissions",
            counts.alerts,
            counts.responses,
            counts.flows,
            counts.packets,
            gathered.omissions.len()
        );
        let mut tx = self.begin(tenant).await?;
        let row = bundles::lock(&mut tx, bundle.id).await?;
        if !row.is_some_and(|row| row.state == BundleState::Gathering && row.attempts == bundle.attempts) {
            return Ok(None);
        }
        bundles::append_custody(&mut tx, bundle.id, Utc::now(), &self.actor().name, "gathered", &detail).await?;
        let chain = bundles::custody_chain(&mut tx, bundle.id).await?;
        tx.commit().await.map_err(Error::database(OPERATION))?;
        Ok(Some(chain))
    }

    fn write_rest(
        &self,
        tenant: &TenantId,
        bundle: &Bundle,
        gathered: Gathered,
        chain: &[CustodyEntry],
        work: &Path,
    ) -> Result<Manifest, Error> {
        let mut files = Files::new(work);
        let pem = self.key.public().spki_pem();
        files.put(
            bundle::SIGNING_KEY,
            "application/x-pem-file",
            "The public key that verifies",
            pem.as_bytes(),
        )?;
        files.put(
            "README.txt",
            "text/plain",
            "What this is and how to check it",
            README.as_bytes(),
        )?;
        files.list.extend(gathered.files);
        let mut custody = Vec::new();
        for entry in chain {
            serde_json::to_writer(&mut custody, entry).map_err(Error::gather("writing the chain of custody"))?;
            custody.push(b'\n');
        }
        let description = "The chain of custody until sealing; each entry has the hash of the one before";
        files.put(bundle::CUSTODY, "application/jsonl", description, &custody)?;
        Ok(Manifest {
            schema: SCHEMA.to_owned(),
            bundle: resource_name("bundles", bundle.id),
            tenant: tenant.to_string(),
            incident: resource_name("incidents", bundle.incident),
            created: seconds(Utc::now()),
            author: bundle.author.clone(),
            tool: Tool {
                name: "garrison-forensics".to_owned(),
                version: self.info.version.to_owned(),
            },
            counts: gathered.counts,
            files: files.list,
            omissions: gathered.omissions,
            key_id: self.key.public().key_id(),
            custody_head: chain.last().map(|entry| entry.hash.clone()).unwrap_or_default(),
        })
    }
}

/// The archive is named by its content, read-only, and durable before anybody hears of it. It replaces nothing.
fn write_archive(manifest: &Manifest, key: &SigningKey, work: &Path, target: &Path) -> Result<bundle::Written, Error> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = "writing an archive";
    let temporary = work.join("archive.tmp");
    let file = fs::File::create_new(&temporary).map_err(Error::gather(failed))?;
    let out = io::BufWriter::with_capacity(1 << 18, file);
    let open = |listed: &bundle::ManifestFile| fs::File::open(work.join(&listed.path));
    let (out, written) = write_bundle(out, manifest, key, open)?;
    let finish = || -> io::Result<()> {
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.set_permissions(fs::Permissions::from_mode(0o400))?;
        file.sync_all()?;
        fs::create_dir_all(target)?;
        match fs::hard_link(&temporary, target.join(format!("{}.tar", written.sha256))) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        fs::File::open(target)?.sync_all()?;
        target
            .parent()
            .map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
    };
    finish().map_err(Error::gather(failed))?;
    Ok(written)
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Empties a folder but for one file. An empty folder goes too.
fn remove_but(folder: &Path, kept: Option<&str>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if kept.is_none_or(|kept| entry.file_name() != kept) {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Err(error),
        _ => Ok(()),
    }
}

fn seconds(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// In every bundle.
const README: &str = "\
Sealed evidence
===============

Everything here was gathered by Garrison about one incident and sealed. manifest.json says which incident,
when, by whom, and lists every file with its size and SHA-256. What could not be gathered is under \"omissions\".

Check it with tools that do not come from Garrison:

    openssl pkeyutl -verify -pubin -inkey signing-key.pem -rawin \\
        -in SHA256SUMS -sigfile SHA256SUMS.sig
    sha256sum --strict -c SHA256SUMS

The first command shows that the list of digests is the one that was signed, the second that no file was changed,
manifest.json among them. The manifest alone can be checked in the same way:

    openssl pkeyutl -verify -pubin -inkey signing-key.pem -rawin \\
        -in manifest.json -sigfile manifest.json.sig

Whether the key is the right one, only its owner can say: compare the digest that this prints with the one that you
were given by another way.

    openssl pkey -pubin -in signing-key.pem -outform DER | sha256sum

`garrison evidence verify` checks all of this in one step, and that no file is missing or was added.

    incident.json, incident-history.jsonl    the incident, and everything that happened to it
    alerts.jsonl                             what detectors found
    responses.jsonl                          what was done, who decided it, and what became of it
    policies.jsonl                           versions of policies that alerts refer to, if any
    flows.parquet, flows.jsonl               the flows involved
    packets.pcapng                           their packets, for Wireshark and the like, if any were left
    custody.jsonl                            who did what with this bundle; every entry holds the hash of the one before
";
