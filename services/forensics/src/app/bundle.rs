//! Evidence bundles: ask for one, gather and seal it in the background, hand it out.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, Utc};
use garrison_auth::Caller;
use garrison_bus::Message;
use garrison_db::{Db, Tx};
use garrison_proof::{
    SigningKey,
    bundle::{self, Manifest, SCHEMA, Tool, write_bundle},
};
use garrison_proto::{
    TenantId,
    audit::v1::{Actor, Decision},
    forensics::v1::BundleState,
    resource_name,
};
use garrison_service::{ServiceInfo, audit};
use tokio::{sync::Notify, task::JoinSet, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::gather::{Files, Gathered, Gatherer};
use crate::{
    error::Error,
    metrics::Metrics,
    store::{
        bundles::{self, Bundle, Sealed},
        events,
    },
};

/// Bundles that are made at a time.
const WORKERS: usize = 2;
/// How often bundles are looked for that nobody told of: after a restart, or of a worker that died.
const LOOK: Duration = Duration::from_secs(2);
const OPERATION: &str = "keeping a bundle";

/// Makes and keeps bundles.
pub struct Bundles {
    db: Db,
    gatherer: Gatherer,
    key: SigningKey,
    info: ServiceInfo,
    metrics: Metrics,
    /// Asked for and not yet looked at.
    asked: Mutex<HashSet<TenantId>>,
    wake: Notify,
}

impl Bundles {
    /// Makes bundles with this key.
    pub fn new(db: Db, gatherer: Gatherer, key: SigningKey, info: ServiceInfo, metrics: Metrics) -> Self {
        Self {
            db,
            gatherer,
            key,
            info,
            metrics,
            asked: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Asks for a bundle. A repeat of a request answers with the first one.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the incident is not known; [`Error::Field`] when the request id was used for another.
    pub async fn create(&self, caller: &Caller, incident: Uuid, request: Uuid) -> Result<Bundle, Error> {
        let tenant = &caller.tenant;
        let actor = caller.principal.to_string();
        let now = Utc::now();
        let mut tx = self.begin(tenant).await?;
        if events::incident(&mut tx, incident).await?.is_none() {
            return Err(Error::NotFound {
                what: resource_name("incidents", incident),
            });
        }
        let (bundle, new) = bundles::create(&mut tx, Uuid::now_v7(), incident, request, &actor, now).await?;
        if bundle.incident != incident {
            let message = format!("was used for {} before", resource_name("incidents", bundle.incident));
            return Err(Error::field("request_id", message));
        }
        if new {
            let detail = format!("asked for evidence of {}", resource_name("incidents", incident));
            bundles::append_custody(&mut tx, bundle.id, now, &actor, "created", &detail).await?;
        }
        tx.commit().await.map_err(Error::database(OPERATION))?;
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(tenant.clone());
        self.wake.notify_one();
        Ok(bundle)
    }

    /// Opens a sealed archive. The download is in the chain of custody and in the audit log before a byte is read.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotSealed`], [`Error::Damaged`] when the file is gone or of another size.
    pub async fn open(&self, caller: &Caller, id: Uuid) -> Result<(Bundle, tokio::fs::File), Error> {
        let name = resource_name("bundles", id);
        let mut tx = self.begin(&caller.tenant).await?;
        let bundle = bundles::get(&mut tx, id)
            .await?
            .ok_or_else(|| Error::NotFound { what: name.clone() })?;
        if bundle.state != BundleState::Sealed {
            let state = bundle
                .state
                .as_str_name()
                .trim_start_matches("BUNDLE_STATE_")
                .to_lowercase();
            return Err(Error::NotSealed { bundle: name, state });
        }
        let damaged = |reason: String| Error::Damaged {
            bundle: name.clone(),
            reason,
        };
        let path = self.archive(&caller.tenant, id, &bundle.sha256);
        let file = tokio::fs::File::open(&path)
            .await
            .map_err(|error| damaged(error.to_string()))?;
        let size = file.metadata().await.map_err(|error| damaged(error.to_string()))?.len();
        if size != bundle.bytes {
            return Err(damaged(format!(
                "it has {size} bytes, and {} were sealed",
                bundle.bytes
            )));
        }
        let actor = caller.principal.to_string();
        let detail = format!("sha256 {}", bundle.sha256);
        bundles::append_custody(&mut tx, id, Utc::now(), &actor, "downloaded", &detail).await?;
        let message = self.audit(
            &caller.tenant,
            caller.actor(),
            "evidence.downloaded",
            &name,
            &bundle.sha256,
        );
        tx.publish(&message).await.map_err(Error::database(OPERATION))?;
        tx.commit().await.map_err(Error::database(OPERATION))?;
        Ok((bundle, file))
    }

    /// Works on bundles until told to stop. What is not done then is taken up by the next start.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut working = JoinSet::new();
        loop {
            let everything = tokio::select! {
                _ = ticks.tick() => true,
                () = self.wake.notified() => false,
                Some(_) = working.join_next() => true,
                () = shutdown.cancelled() => break,
            };
            let mut tenants = std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner));
            if everything {
                tenants.extend(self.db.known_tenants().await.unwrap_or_default());
            }
            for tenant in tenants {
                if working.len() >= WORKERS {
                    break;
                }
                for bundle in self.claim(&tenant).await {
                    let (bundles, tenant) = (Arc::clone(&self), tenant.clone());
                    working.spawn(async move { bundles.work(&tenant, bundle).await });
                }
            }
        }
        working.shutdown().await;
    }

    async fn claim(&self, tenant: &TenantId) -> Vec<Bundle> {
        let claimed = async {
            let mut tx = self.begin(tenant).await?;
            let now = Utc::now();
            let claimed = bundles::claim(&mut tx, now, now + self.lease()).await?;
            tx.commit().await.map_err(Error::database(OPERATION))?;
            Ok::<_, Error>(claimed)
        };
        claimed.await.unwrap_or_else(|error| {
            tracing::debug!(%tenant, error = &error as &dyn std::error::Error, "no bundles claimed");
            Vec::new()
        })
    }

    async fn work(&self, tenant: &TenantId, bundle: Bundle) {
        let renewing = async {
            loop {
                tokio::time::sleep(self.lease().to_std().unwrap_or(LOOK) / 3).await;
                if let Ok(mut tx) = self.begin(tenant).await
                    && bundles::renew(&mut tx, bundle.id, Utc::now() + self.lease())
                        .await
                        .is_ok()
                {
                    let _ = tx.commit().await;
                }
            }
        };
        let outcome = tokio::select! {
            outcome = self.seal(tenant, &bundle) => outcome,
            () = renewing => return,
        };
        let name = resource_name("bundles", bundle.id);
        let Err(error) = outcome else {
            self.metrics.bundle("sealed");
            tracing::info!(%tenant, bundle = name, "evidence sealed");
            return;
        };
        let last = bundle.attempts >= self.gatherer.config.max_attempts || matches!(error, Error::NotFound { .. });
        self.metrics.bundle(if last { "failed" } else { "retried" });
        tracing::warn!(%tenant, bundle = name, last, error = error.chain(), "evidence was not sealed");
        if let Err(error) = self.settle(tenant, &bundle, &error.chain(), last).await {
            // The lease runs out, and the bundle is tried again.
            tracing::warn!(%tenant, bundle = name, error = error.chain(), "the failure was not recorded");
        }
    }

    async fn settle(&self, tenant: &TenantId, bundle: &Bundle, reason: &str, last: bool) -> Result<(), Error> {
        let mut tx = self.begin(tenant).await?;
        let now = Utc::now();
        if last {
            bundles::fail(&mut tx, bundle.id, reason).await?;
            bundles::append_custody(&mut tx, bundle.id, now, &self.actor().name, "failed", reason).await?;
            let name = resource_name("bundles", bundle.id);
            let message = self.audit(tenant, self.actor(), "evidence.failed", &name, reason);
            tx.publish(&message).await.map_err(Error::database(OPERATION))?;
        } else {
            let pause = chrono::Duration::seconds(1 << bundle.attempts.min(6));
            bundles::postpone(&mut tx, bundle.id, now + pause, reason).await?;
        }
        tx.commit().await.map_err(Error::database(OPERATION))
    }

    /// Gathers into a folder of its own, seals the archive and records it. Whatever an earlier attempt left is
    /// thrown away, so a process may die between any two steps.
    async fn seal(&self, tenant: &TenantId, bundle: &Bundle) -> Result<(), Error> {
        let failed = "preparing a bundle's folder";
        let work = self.folder(tenant, "work", bundle.id);
        let sealed_in = self.folder(tenant, "bundles", bundle.id);
        for folder in [&work, &sealed_in] {
            match fs::remove_dir_all(folder) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::gather(failed)(error)),
            }
            fs::create_dir_all(folder).map_err(Error::gather(failed))?;
        }
        let gathered = self.gatherer.gather(tenant, bundle.incident, &work).await?;
        let chain = self.record_gathered(tenant, bundle, &gathered).await?;
        let manifest = self.write_rest(tenant, bundle, gathered, &chain, &work)?;
        let archive = self.write_archive(&manifest, &work, &sealed_in)?;

        let mut tx = self.begin(tenant).await?;
        let name = resource_name("bundles", bundle.id);
        let sealed = Sealed {
            time: Utc::now(),
            sha256: archive.sha256.clone(),
            bytes: archive.bytes,
            counts: manifest.counts,
            key_id: manifest.key_id,
            omissions: manifest.omissions,
        };
        if bundles::seal(&mut tx, bundle.id, &sealed).await? {
            let detail = format!("sha256 {}", archive.sha256);
            bundles::append_custody(&mut tx, bundle.id, sealed.time, &self.actor().name, "sealed", &detail).await?;
            let message = self.audit(tenant, self.actor(), "evidence.sealed", &name, &archive.sha256);
            tx.publish(&message).await.map_err(Error::database(OPERATION))?;
            tx.commit().await.map_err(Error::database(OPERATION))?;
        }
        if let Err(error) = fs::remove_dir_all(&work) {
            tracing::debug!(error = &error as &dyn std::error::Error, "a work folder is left");
        }
        Ok(())
    }

    async fn record_gathered(
        &self,
        tenant: &TenantId,
        bundle: &Bundle,
        gathered: &Gathered,
    ) -> Result<Vec<garrison_proof::custody::CustodyEntry>, Error> {
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
        bundles::append_custody(&mut tx, bundle.id, Utc::now(), &self.actor().name, "gathered", &detail).await?;
        let chain = bundles::custody_chain(&mut tx, bundle.id).await?;
        tx.commit().await.map_err(Error::database(OPERATION))?;
        Ok(chain)
    }

    fn write_rest(
        &self,
        tenant: &TenantId,
        bundle: &Bundle,
        gathered: Gathered,
        chain: &[garrison_proof::custody::CustodyEntry],
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

    /// The archive is named by its content, read-only, and durable before anybody hears of it.
    fn write_archive(&self, manifest: &Manifest, work: &Path, target: &Path) -> Result<bundle::Written, Error> {
        use std::os::unix::fs::PermissionsExt as _;
        let failed = "writing an archive";
        let temporary = target.join("archive.tmp");
        let file = fs::File::create_new(&temporary).map_err(Error::gather(failed))?;
        let out = std::io::BufWriter::with_capacity(1 << 18, file);
        let open = |listed: &bundle::ManifestFile| fs::File::open(work.join(&listed.path));
        let (out, written) = write_bundle(out, manifest, &self.key, open)?;
        let finish = || -> std::io::Result<()> {
            let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            file.set_permissions(fs::Permissions::from_mode(0o400))?;
            file.sync_all()?;
            fs::rename(&temporary, target.join(format!("{}.tar", written.sha256)))?;
            fs::File::open(target)?.sync_all()
        };
        finish().map_err(Error::gather(failed))?;
        Ok(written)
    }

    fn folder(&self, tenant: &TenantId, kind: &str, id: Uuid) -> PathBuf {
        self.gatherer
            .searcher
            .lake
            .tenant_folder(tenant)
            .join(kind)
            .join(id.to_string())
    }

    fn archive(&self, tenant: &TenantId, id: Uuid, sha256: &str) -> PathBuf {
        self.folder(tenant, "bundles", id).join(format!("{sha256}.tar"))
    }

    async fn begin(&self, tenant: &TenantId) -> Result<Tx<'static>, Error> {
        self.db.begin(tenant).await.map_err(Error::database(OPERATION))
    }

    fn lease(&self) -> chrono::TimeDelta {
        chrono::TimeDelta::milliseconds(i64::try_from(self.gatherer.config.lease_ms).unwrap_or(30_000))
    }

    fn actor(&self) -> Actor {
        audit::service_actor(&self.info)
    }

    fn audit(&self, tenant: &TenantId, actor: Actor, action: &str, resource: &str, detail: &str) -> Message {
        let key = if action == "evidence.failed" { "error" } else { "sha256" };
        let details = BTreeMap::from([(key.to_owned(), detail.to_owned())]);
        let record = audit::record(
            &self.info,
            tenant,
            actor,
            action,
            resource,
            Decision::Allow,
            "",
            details,
        );
        audit::message(&self.info, &record)
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
