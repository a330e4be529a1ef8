//! Evidence bundles: ask for one, gather and seal it in the background, hand it out.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::Utc;
use garrison_auth::Caller;
use garrison_bus::Message;
use garrison_db::{Db, Tx};
use garrison_proof::SigningKey;
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

use super::gather::Gatherer;
use crate::{
    error::Error,
    metrics::Metrics,
    store::{
        bundles::{self, Bundle},
        events,
    },
};

/// Bundles that are made at a time.
const WORKERS: usize = 2;
/// How often bundles are looked for that nobody told of: after a restart, or of a worker that died.
pub(super) const LOOK: Duration = Duration::from_secs(2);
pub(super) const OPERATION: &str = "keeping a bundle";

/// Makes and keeps bundles.
pub struct Bundles {
    db: Db,
    pub(super) gatherer: Gatherer,
    pub(super) key: Arc<SigningKey>,
    pub(super) info: ServiceInfo,
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
            key: Arc::new(key),
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
        let mut tidied = HashSet::new();
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
            for tenant in &tenants {
                // What processes left that died.
                if !tidied.contains(tenant) && self.tidy_all(tenant).await {
                    tidied.insert(tenant.clone());
                }
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

    /// Takes bundles of a tenant that nobody works on. The number of the attempt, which every claim raises, is what a
    /// worker proves its claim with later.
    pub async fn claim(&self, tenant: &TenantId) -> Vec<Bundle> {
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

    /// Makes a bundle, and leaves on disk what is of use to somebody.
    pub async fn work(&self, tenant: &TenantId, bundle: Bundle) {
        let name = resource_name("bundles", bundle.id);
        let mut archive = None;
        let outcome = match self.prepare(tenant, &bundle).await {
            Ok(Some(prepared)) => {
                let sealed = self.seal(tenant, &bundle, &prepared).await;
                archive = Some(prepared);
                sealed
            }
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(true) => {
                self.metrics.bundle("sealed");
                tracing::info!(%tenant, bundle = name, "evidence sealed");
            }
            Ok(false) => {
                self.metrics.bundle("lost");
                tracing::info!(%tenant, bundle = name, attempt = bundle.attempts, "another worker has taken the bundle over");
            }
            Err(error) => {
                let last =
                    bundle.attempts >= self.gatherer.config.max_attempts || matches!(error, Error::NotFound { .. });
                self.metrics.bundle(if last { "failed" } else { "retried" });
                tracing::warn!(%tenant, bundle = name, last, error = error.chain(), "evidence was not sealed");
                if let Err(error) = self.settle(tenant, &bundle, &error.chain(), last).await {
                    // The lease runs out, and the bundle is tried again.
                    tracing::warn!(%tenant, bundle = name, error = error.chain(), "the failure was not recorded");
                }
            }
        }
        if let Err(error) = self
            .tidy(tenant, bundle.id, Some((bundle.attempts, archive.as_ref())))
            .await
        {
            // The next attempt, or the next start, does it.
            tracing::debug!(%tenant, bundle = name, error = error.chain(), "files are left behind");
        }
    }

    async fn settle(&self, tenant: &TenantId, bundle: &Bundle, reason: &str, last: bool) -> Result<(), Error> {
        let mut tx = self.begin(tenant).await?;
        let now = Utc::now();
        if last {
            if bundles::fail(&mut tx, bundle, reason).await? {
                bundles::append_custody(&mut tx, bundle.id, now, &self.actor().name, "failed", reason).await?;
                let name = resource_name("bundles", bundle.id);
                let message = self.audit(tenant, self.actor(), "evidence.failed", &name, reason);
                tx.publish(&message).await.map_err(Error::database(OPERATION))?;
            }
        } else {
            let pause = chrono::Duration::seconds(1 << bundle.attempts.min(6));
            bundles::postpone(&mut tx, bundle, now + pause, reason).await?;
        }
        tx.commit().await.map_err(Error::database(OPERATION))
    }

    pub(super) fn folder(&self, tenant: &TenantId, kind: &str, id: Uuid) -> PathBuf {
        self.gatherer
            .searcher
            .lake
            .tenant_folder(tenant)
            .join(kind)
            .join(id.to_string())
    }

    pub(super) fn archive(&self, tenant: &TenantId, id: Uuid, sha256: &str) -> PathBuf {
        self.folder(tenant, "bundles", id).join(format!("{sha256}.tar"))
    }

    pub(super) async fn begin(&self, tenant: &TenantId) -> Result<Tx<'static>, Error> {
        self.db.begin(tenant).await.map_err(Error::database(OPERATION))
    }

    pub(super) fn lease(&self) -> chrono::TimeDelta {
        chrono::TimeDelta::milliseconds(i64::try_from(self.gatherer.config.lease_ms).unwrap_or(30_000))
    }

    pub(super) fn actor(&self) -> Actor {
        audit::service_actor(&self.info)
    }

    pub(super) fn audit(&self, tenant: &TenantId, actor: Actor, action: &str, resource: &str, detail: &str) -> Message {
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
