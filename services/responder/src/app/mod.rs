//! The use cases. Each runs in one transaction: read, decide in `domain`, write, append to the outbox.

mod decide;
mod effects;
mod incidents;
mod intake;
mod nodes;
mod rehearsal;
mod reports;
mod responses;
mod rules;
mod schedule;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use chrono::{DateTime, Duration, Utc};
use garrison_bus::Message;
use garrison_db::{Db, Lane, Tx};
use garrison_proto::TenantId;
use garrison_service::ServiceInfo;
use ipnet::IpNet;
use tracing::Instrument as _;

pub use incidents::TimelineEntry;
pub use intake::Taken;
pub use responses::NewResponse;
pub use rules::PlaybookVersion;
pub use schedule::Due;

use crate::{
    domain::{
        correlation::CorrelationPolicy,
        guard::{Limits, Protected},
        playbook::Playbook,
        response::Timing,
    },
    error::{AppError, During as _},
    metrics::Metrics,
    store::LOCK_TENANT,
};

/// Connections of the lane for alerts. Those of one tenant are decided one after the other.
const LANE: u32 = 2;

/// What the configuration fixes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How alerts become incidents.
    pub correlation: CorrelationPolicy,
    /// How long things may take.
    pub timing: Timing,
    /// Limits of tenants without their own.
    pub limits: Limits,
    /// Networks of tenants without their own.
    pub internal: Vec<IpNet>,
    /// What single tenants have for themselves.
    pub tenants: BTreeMap<TenantId, TenantSettings>,
    /// Which node may serve which tenants; `*` for all.
    pub nodes: BTreeMap<String, Vec<String>>,
    /// A node that was silent for this long is stale.
    pub stale_after: Duration,
    /// YAML documents that a new tenant starts with.
    pub default_playbooks: Vec<String>,
}

/// A tenant's own settings.
#[derive(Debug, Clone)]
pub struct TenantSettings {
    /// Its limits.
    pub limits: Limits,
    /// Its networks.
    pub internal: Vec<IpNet>,
}

/// A tenant's rules, as they were at a generation.
#[derive(Debug)]
pub(crate) struct Rules {
    generation: i64,
    playbooks: Vec<Playbook>,
    protected: Vec<Protected>,
}

/// The use cases and what they share. Cheap to clone.
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
}

struct Inner {
    info: ServiceInfo,
    db: Db,
    /// For taking alerts in.
    lane: Lane,
    settings: Settings,
    started: DateTime<Utc>,
    rules: Mutex<HashMap<TenantId, Arc<Rules>>>,
    due: Due,
    metrics: Metrics,
}

impl App {
    /// Puts the use cases together. `started` is when the service did: a node is given time to be heard of again.
    pub fn new(info: ServiceInfo, db: Db, settings: Settings, started: DateTime<Utc>) -> Self {
        Self {
            inner: Arc::new(Inner {
                info,
                lane: db.lane(LANE),
                db,
                settings,
                started,
                rules: Mutex::default(),
                due: Due::default(),
                metrics: Metrics::new(),
            }),
        }
    }

    pub(crate) fn db(&self) -> &Db {
        &self.inner.db
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    pub(crate) fn due(&self) -> &Due {
        &self.inner.due
    }

    async fn begin(&self, tenant: &TenantId) -> Result<Tx<'static>, AppError> {
        self.db().begin(tenant).await.during("begin a transaction")
    }

    /// Begins with the tenant's lock taken, if the responder has ever worked for the tenant.
    async fn begin_locked(&self, tenant: &TenantId) -> Result<Tx<'static>, AppError> {
        let begun = self.db().begin_with(tenant, LOCK_TENANT).await;
        begun.during("begin a transaction")
    }

    /// Commits; orders to enforcers leave before everything else.
    async fn commit(&self, tx: Tx<'static>, orders: Vec<Message>, operation: &'static str) -> Result<(), AppError> {
        tx.commit_urgent(orders)
            .instrument(tracing::info_span!("commit"))
            .await
            .during(operation)
    }

    fn limits(&self, tenant: &TenantId) -> &Limits {
        let settings = self.settings();
        settings.tenants.get(tenant).map_or(&settings.limits, |own| &own.limits)
    }

    fn internal(&self, tenant: &TenantId) -> &[IpNet] {
        let settings = self.settings();
        settings
            .tenants
            .get(tenant)
            .map_or(&settings.internal, |own| &own.internal)
    }

    /// Whether the configuration lets a node serve a tenant.
    fn may_serve(&self, node: &str, tenant: &str) -> bool {
        self.settings()
            .nodes
            .get(node)
            .is_some_and(|tenants| tenants.iter().any(|t| t == "*" || t == tenant))
    }

    /// A node heard of since then is alive. Shortly after the start nobody can have been heard of, so that who
    /// was alive before counts; an order to a dead one will time out and fail.
    fn alive_since(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        let stale = self.settings().stale_after;
        if now - self.inner.started < stale {
            now - stale - Duration::minutes(10)
        } else {
            now - stale
        }
    }

    fn cached_rules(&self, tenant: &TenantId, generation: i64) -> Option<Arc<Rules>> {
        let cache = self.inner.rules.lock().unwrap_or_else(PoisonError::into_inner);
        cache
            .get(tenant)
            .filter(|rules| rules.generation == generation)
            .cloned()
    }

    fn cache_rules(&self, tenant: &TenantId, rules: &Arc<Rules>) {
        let mut cache = self.inner.rules.lock().unwrap_or_else(PoisonError::into_inner);
        cache.insert(tenant.clone(), Arc::clone(rules));
    }
}
