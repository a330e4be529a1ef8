//! The policies that hold now, as flows are held against them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use garrison_db::Tx;
use garrison_proto::TenantId;
use garrison_ztp::{Engine, Policy, ir::Direction};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{App, Tenant, lock};
use crate::{
    error::Error,
    store::{self, Review, StoredPolicy},
};

/// Most policies of a tenant.
pub(super) const MAX_POLICIES: usize = 5_000;
/// Most rules of a tenant, all policies together.
pub(super) const MAX_RULES: usize = 50_000;
/// How often tenants are looked for that only other replicas have met.
const TENANTS_INTERVAL: Duration = Duration::from_secs(10);

/// A tenant's policies at one epoch, with their verdicts prepared.
#[derive(Debug)]
pub struct RuleSet {
    /// The epoch of the last change it knows.
    pub epoch: u64,
    /// The policies in force, by name.
    pub policies: BTreeMap<String, Arc<Known>>,
    /// Their verdicts, as of when they were prepared.
    pub engine: Engine,
    /// When a rule that counts for a time next begins or ends, nanoseconds since the epoch.
    pub changes: Option<i64>,
}

/// A policy in force.
#[derive(Debug)]
pub struct Known {
    /// Its meaning.
    pub policy: Policy,
    /// SHA-256 of its document.
    pub sha256: String,
}

impl RuleSet {
    fn empty() -> Self {
        Self {
            epoch: 0,
            policies: BTreeMap::new(),
            engine: Engine::default(),
            changes: None,
        }
    }

    /// The policies as compilers take them.
    pub fn lowered(&self) -> Vec<&Policy> {
        self.policies.values().map(|known| &known.policy).collect()
    }
}

/// Reads a stored document. It was checked when it was stored, but perhaps by another version of the language.
pub(super) fn read_stored(stored: &StoredPolicy) -> Result<Known, Error> {
    let failed = |reason: String| Error::Stored {
        policy: format!("{}@{}", stored.name, stored.version),
        reason,
    };
    // What was approved is a document, not a row: neither another text nor another version takes its place.
    let approved = match stored.review {
        Review::NotNeeded => true,
        Review::Approved => stored.decision.as_ref().is_some_and(|d| d.sha256 == stored.sha256),
        Review::Pending | Review::Rejected | Review::Superseded => stored.withdrawn,
    };
    if !approved {
        return Err(failed("nobody approved this version".to_owned()));
    }
    if hex::encode(Sha256::digest(&stored.document)) != stored.sha256 {
        return Err(failed("its text is not what was applied".to_owned()));
    }
    let mut checked = garrison_ztp::check(&stored.document);
    match (checked.documents.pop(), checked.documents.is_empty()) {
        (Some(document), true)
            if checked
                .diagnostics
                .iter()
                .all(|d| d.level != garrison_ztp::Level::Error) =>
        {
            Ok(Known {
                policy: document.lower(stored.version),
                sha256: stored.sha256.clone(),
            })
        }
        _ => Err(failed(checked.errors().next().map_or_else(
            || "it is not exactly one document".to_owned(),
            ToString::to_string,
        ))),
    }
}

fn now() -> i64 {
    chrono::Utc::now().timestamp_nanos_opt().unwrap_or(i64::MAX)
}

/// Prepares verdicts on a thread of its own: thousands of rules take a while.
pub(super) async fn build(epoch: u64, policies: BTreeMap<String, Arc<Known>>) -> Result<RuleSet, Error> {
    let rules = |known: &Arc<Known>| -> usize {
        Direction::BOTH
            .iter()
            .map(|d| known.policy.rules(*d).map_or(0, <[_]>::len))
            .sum()
    };
    if policies.len() > MAX_POLICIES {
        return Err(Error::TooMany {
            what: "policies of the tenant",
            most: MAX_POLICIES,
        });
    }
    if policies.values().map(rules).sum::<usize>() > MAX_RULES {
        return Err(Error::TooMany {
            what: "rules of the tenant's policies",
            most: MAX_RULES,
        });
    }
    tokio::task::spawn_blocking(move || {
        let all: Vec<Policy> = policies.values().map(|known| known.policy.clone()).collect();
        let (counting, changes) = garrison_ztp::ir::at(&all, now());
        let engine = Engine::build(&counting)?;
        Ok(RuleSet {
            epoch,
            policies,
            engine,
            changes,
        })
    })
    .await
    .unwrap_or(Err(Error::Interrupted("preparing verdicts")))
}

/// The policies of `base` with everything that changed since, and the epoch of the last change.
pub(super) async fn catch_up(tx: &mut Tx<'_>, base: &RuleSet) -> Result<(u64, BTreeMap<String, Arc<Known>>), Error> {
    let changes = store::changes(tx, base.epoch)
        .await
        .map_err(Error::database("looking for changed policies"))?;
    let mut policies = base.policies.clone();
    let mut epoch = base.epoch;
    for change in changes {
        epoch = epoch.max(change.epoch);
        if change.policy.withdrawn {
            policies.remove(&change.policy.name);
        } else {
            let known = read_stored(&change.policy)?;
            policies.insert(change.policy.name, Arc::new(known));
        }
    }
    Ok((epoch, policies))
}

impl Tenant {
    pub(super) fn rules(&self) -> Option<Arc<RuleSet>> {
        lock(&self.rules).clone()
    }

    /// What is known, or nothing as of epoch 0.
    pub(super) fn base(&self) -> Arc<RuleSet> {
        self.rules().unwrap_or_else(|| Arc::new(RuleSet::empty()))
    }
}

impl App {
    /// The rules of a tenant; read from the database the first time.
    ///
    /// # Errors
    /// When they were never read and the database fails.
    pub async fn rules(&self, tenant: &TenantId) -> Result<Arc<RuleSet>, Error> {
        let tenant = self.tenant(tenant);
        match tenant.rules() {
            Some(rules) => Ok(rules),
            None => self.refresh(&tenant).await,
        }
    }

    /// Puts rules into force in this process, unless newer ones already are.
    pub(super) fn install(&self, tenant: &Tenant, rules: RuleSet) -> Arc<RuleSet> {
        let mut held = lock(&tenant.rules);
        // Of one epoch, those that were prepared later know which rules have begun or ended.
        let newer = |known: &RuleSet| {
            known.epoch > rules.epoch || (known.epoch == rules.epoch && known.changes == rules.changes)
        };
        if let Some(known) = held.as_ref().filter(|known| newer(known)) {
            return Arc::clone(known);
        }
        self.metrics.rules(tenant.id.as_str(), rules.engine.entries().len());
        tracing::info!(tenant = %tenant.id, epoch = rules.epoch, policies = rules.policies.len(), "policies in force");
        let rules = Arc::new(rules);
        *held = Some(Arc::clone(&rules));
        rules
    }

    async fn refresh(&self, tenant: &Tenant) -> Result<Arc<RuleSet>, Error> {
        let _turn = tenant.refreshing.lock().await;
        let failed = Error::database::<garrison_db::DbError>;
        let base = tenant.base();
        let mut tx = self
            .db
            .begin(&tenant.id)
            .await
            .map_err(failed("looking for changed policies"))?;
        let (epoch, policies) = catch_up(&mut tx, &base).await?;
        tx.commit().await.map_err(failed("looking for changed policies"))?;
        let current = |known: &Arc<RuleSet>| known.epoch >= epoch && known.changes.is_none_or(|at| now() < at);
        if let Some(known) = tenant.rules().filter(current) {
            self.metrics.refreshed("unchanged");
            return Ok(known);
        }
        let rules = build(epoch, policies).await?;
        self.metrics.refreshed("changed");
        Ok(self.install(tenant, rules))
    }

    /// Takes over what other replicas change, until stopped. `report` hears what is lacking, or `None` when
    /// nothing is. While the database is away, flows are held against the policies last read.
    pub async fn follow_changes(&self, stop: CancellationToken, report: impl Fn(Option<String>)) {
        report(Some("policies were not read yet".to_owned()));
        let mut failing = false;
        let mut tenants_read: Option<Instant> = None;
        while !stop.is_cancelled() {
            let outcome = self.follow_once(&mut tenants_read).await;
            match outcome {
                Ok(()) => {
                    report(None);
                    if std::mem::take(&mut failing) {
                        tracing::info!("policies are read again");
                    }
                }
                Err(error) => {
                    self.metrics.refreshed("failed");
                    report(Some(format!("{}: {error}", error.code())));
                    if !std::mem::replace(&mut failing, true) {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, "policies cannot be read; those last read stay in force");
                    }
                }
            }
            let pause = tokio::time::sleep(self.settings.refresh_interval);
            stop.run_until_cancelled(pause).await;
        }
    }

    async fn follow_once(&self, tenants_read: &mut Option<Instant>) -> Result<(), Error> {
        if tenants_read.is_none_or(|at| at.elapsed() >= TENANTS_INTERVAL) {
            let known = self
                .db
                .known_tenants()
                .await
                .map_err(Error::database("listing tenants"))?;
            for id in known {
                self.tenant(&id);
            }
            *tenants_read = Some(Instant::now());
        }
        // One tenant's failure must not keep the others from their changes.
        let mut first = Ok(());
        for tenant in self.tenants() {
            if let Err(error) = self.refresh(&tenant).await
                && first.is_ok()
            {
                first = Err(error);
            }
        }
        first
    }
}
