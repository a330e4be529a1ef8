//! Use cases.

mod counts;
mod judge;
mod policies;
mod review;
mod rules;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use garrison_db::Db;
use garrison_proto::TenantId;
use ipnet::IpNet;

pub use policies::Applied;
pub use review::{ReviewRule, Verdict};
pub use rules::RuleSet;

use crate::{
    domain::{Folder, Seen, Tally},
    metrics::Metrics,
};

/// What the use cases need of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Flows of a tenant that are remembered as judged.
    pub remembered: usize,
    /// Pause between looks for changes of other replicas.
    pub refresh_interval: Duration,
    /// Pause between writes of verdict counts.
    pub count_interval: Duration,
    /// The window within which equal violations are one alert.
    pub fold: Duration,
    /// Ports of a host and hosts of a source that get alerts of their own.
    pub spread: usize,
    /// How long raised alerts are kept.
    pub keep: Duration,
    /// What counts as inside.
    pub internal: Vec<IpNet>,
    /// Which tenants have their enforced policies approved.
    pub review: ReviewRule,
}

/// The use cases, and what they hold in memory.
pub struct App {
    db: Db,
    settings: Settings,
    metrics: Metrics,
    tenants: Mutex<HashMap<TenantId, Arc<Tenant>>>,
}

/// What is held for one tenant. Each lock is held for one batch's computing at most, never across a wait.
struct Tenant {
    id: TenantId,
    rules: Mutex<Option<Arc<RuleSet>>>,
    /// One look for changes at a time.
    refreshing: tokio::sync::Mutex<()>,
    seen: Mutex<Seen>,
    folder: Mutex<Folder>,
    tally: Mutex<Tally>,
    /// One writer of counts at a time, so that a reader that wrote them knows that all are there.
    counting: tokio::sync::Mutex<()>,
}

impl App {
    /// Makes the use cases. Reads nothing yet.
    pub fn new(db: Db, settings: Settings) -> Self {
        Self {
            db,
            settings,
            metrics: Metrics::new(),
            tenants: Mutex::default(),
        }
    }

    fn tenant(&self, id: &TenantId) -> Arc<Tenant> {
        let mut tenants = lock(&self.tenants);
        if let Some(tenant) = tenants.get(id) {
            return Arc::clone(tenant);
        }
        let tenant = Arc::new(Tenant {
            id: id.clone(),
            rules: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
            seen: Mutex::new(Seen::new(self.settings.remembered)),
            folder: Mutex::new(Folder::new(self.settings.fold, self.settings.spread)),
            tally: Mutex::default(),
            counting: tokio::sync::Mutex::default(),
        });
        tenants.insert(id.clone(), Arc::clone(&tenant));
        tenant
    }

    fn tenants(&self) -> Vec<Arc<Tenant>> {
        lock(&self.tenants).values().cloned().collect()
    }
}

/// What a lock guards is whole between statements, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
