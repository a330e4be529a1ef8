//! Deadlines: confirmations that do not come, approvals that nobody gives, time that runs out.
//!
//! Deadlines are columns, so they outlive the process. Memory only holds when to look: the earliest known
//! deadline of each tenant, filled from the database at the start and again every few seconds, because another
//! replica may have set one.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration as Pause,
};

use chrono::{DateTime, Duration, Utc};
use garrison_proto::TenantId;
use tokio_util::sync::CancellationToken;

use super::{App, effects::Effects};
use crate::{
    domain::response::Event,
    error::{AppError, During as _},
    store::{self, incidents, responses},
};

/// How often memory is looked at.
const TICK: Pause = Pause::from_millis(100);
/// How often the database is asked for deadlines that memory does not know.
const SWEEP: Pause = Pause::from_secs(10);
/// How often correlation facts that are too old are removed.
const PRUNE: Pause = Pause::from_secs(600);
/// Most responses that one transaction takes on.
const BATCH: i64 = 100;

/// When to look at which tenant.
#[derive(Debug, Default)]
pub struct Due {
    next: Mutex<HashMap<TenantId, DateTime<Utc>>>,
}

impl Due {
    /// Something of the tenant is due at this time.
    pub fn expect(&self, tenant: &TenantId, at: DateTime<Utc>) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        next.entry(tenant.clone())
            .and_modify(|known| *known = (*known).min(at))
            .or_insert(at);
    }

    /// Takes out the tenants for which something is due.
    pub fn take(&self, now: DateTime<Utc>) -> Vec<TenantId> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let due: Vec<TenantId> = next
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(tenant, _)| tenant.clone())
            .collect();
        for tenant in &due {
            next.remove(tenant);
        }
        due
    }
}

impl App {
    /// Looks after deadlines until shutdown. Survives the absence of the database.
    ///
    /// # Errors
    /// Never; the signature is that of a supervised task.
    pub async fn keep_deadlines(self, shutdown: CancellationToken) -> Result<(), AppError> {
        let mut last_sweep: Option<tokio::time::Instant> = None;
        let mut last_prune = tokio::time::Instant::now();
        let mut failing = false;
        while !shutdown.is_cancelled() {
            let sweep = last_sweep.is_none_or(|at| at.elapsed() >= SWEEP);
            let prune = last_prune.elapsed() >= PRUNE;
            let result = self.look(sweep, prune).await;
            match result {
                Ok(()) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("deadlines are looked after again");
                    }
                    if sweep {
                        last_sweep = Some(tokio::time::Instant::now());
                    }
                    if prune {
                        last_prune = tokio::time::Instant::now();
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, source = ?std::error::Error::source(&error), "deadlines cannot be looked after");
                    }
                    // What was taken out of memory is found again by the next sweep.
                    last_sweep = None;
                    let _ = shutdown
                        .run_until_cancelled(tokio::time::sleep(Pause::from_millis(500)))
                        .await;
                }
            }
            let _ = shutdown.run_until_cancelled(tokio::time::sleep(TICK)).await;
        }
        Ok(())
    }

    async fn look(&self, sweep: bool, prune: bool) -> Result<(), AppError> {
        if sweep || prune {
            let tenants = self.db().known_tenants().await.during("list tenants")?;
            for tenant in tenants {
                let mut tx = self.begin(&tenant).await?;
                if prune {
                    let window = self.settings().correlation.window_minutes;
                    let oldest = Utc::now() - Duration::minutes(2 * window + 60);
                    incidents::prune_facts(&mut tx, tenant.as_str(), oldest.timestamp().div_euclid(60))
                        .await
                        .during("remove old correlation facts")?;
                }
                if let Some(at) = responses::next_deadline(&mut tx, tenant.as_str())
                    .await
                    .during("look up deadlines")?
                {
                    self.due().expect(&tenant, at);
                }
                tx.commit().await.during("look up deadlines")?;
            }
        }
        for tenant in self.due().take(Utc::now()) {
            self.meet_deadlines(&tenant, Utc::now()).await?;
        }
        Ok(())
    }

    /// Acts on every deadline of a tenant that has passed. Answers with how many responses were looked at.
    ///
    /// # Errors
    /// Database errors.
    pub async fn meet_deadlines(&self, tenant: &TenantId, now: DateTime<Utc>) -> Result<usize, AppError> {
        let mut tx = self.begin(tenant).await?;
        store::lock_tenant(&mut tx, tenant.as_str())
            .await
            .during("lock a tenant")?;
        let due = responses::due(&mut tx, tenant.as_str(), now, BATCH)
            .await
            .during("look up deadlines")?;
        let count = due.len();
        let mut effects = Effects::new(&self.inner.info, tenant);
        for mut response in due {
            let outcome = response.step(Event::Deadline, now, &self.settings().timing)?;
            self.save(&mut tx, tenant, &response, &outcome, None, &mut effects, now)
                .await?;
        }
        if let Some(at) = responses::next_deadline(&mut tx, tenant.as_str())
            .await
            .during("look up deadlines")?
        {
            self.due().expect(tenant, at);
        }
        let orders = effects.append(&mut tx).await?;
        self.commit(tx, orders, "commit deadlines").await?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_deadline_of_a_tenant_counts() {
        let due = Due::default();
        let tenant: TenantId = "acme".parse().unwrap();
        let now = Utc::now();
        due.expect(&tenant, now + Duration::seconds(5));
        due.expect(&tenant, now + Duration::seconds(1));
        due.expect(&tenant, now + Duration::seconds(9));
        assert!(due.take(now).is_empty());
        assert_eq!(due.take(now + Duration::seconds(1)), [tenant]);
        assert!(due.take(now + Duration::seconds(99)).is_empty());
    }
}
