//! Alerts and logins as they come, and the risk that follows from them.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration as Pause, Instant},
};

use chrono::{DateTime, Duration, Utc};
use garrison_db::{Db, DbError, Tx};
use garrison_proto::{
    TenantId,
    alert::v1::{Alert, Entity, EntityKind, EntityRisk, RiskEntry},
    event::v1::{LoginEvent, login_event::Outcome},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    config::risk::RiskConfig,
    domain::risk::{Entry, host, of_address, of_alert, through, user},
    store::risk::{self, Reading},
};

/// The inbox name of alerts and of logins.
const ALERTS: &str = "risk.alerts";
const LOGINS: &str = "risk.logins";

/// Replicas share these messages: one of them at a time changes the risks of a tenant.
const ALONE: &str = "SELECT pg_advisory_xact_lock(hashtextextended('risk ' || current_setting('garrison.tenant'), 0))";

/// How often what is kept long enough is forgotten.
const FORGET_EVERY: Pause = Pause::from_secs(3_600);
/// How long own alerts wait before they count. What containment does with them must not share the processor with what will
/// be as true a moment later: see decision 0022.
const STAND_BACK: Pause = Pause::from_millis(100);
/// How often every tenant is looked at for alerts that a crash kept from counting.
const SWEEP_EVERY: Pause = Pause::from_secs(60);
/// Alerts that are counted in one transaction.
const AT_ONCE: i64 = 200;

/// What speaks against hosts, services and users. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Risks {
    db: Db,
    config: RiskConfig,
    news: Arc<News>,
}

/// Tenants with own alerts that do not count yet.
#[derive(Debug, Default)]
struct News {
    tenants: Mutex<BTreeSet<TenantId>>,
    wake: Notify,
}

impl Risks {
    /// With what is configured.
    pub fn new(db: Db, config: RiskConfig) -> Self {
        Self {
            db,
            config,
            news: Arc::default(),
        }
    }

    /// Says that alerts of a tenant were published that do not count yet.
    pub fn news(&self, tenant: &TenantId) {
        let mut tenants = self.news.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.insert(tenant.clone());
        drop(tenants);
        self.news.wake.notify_one();
    }

    /// Counts own alerts as they are published, until shutdown.
    pub async fn follow(&self, shutdown: CancellationToken) {
        let mut swept: Option<Instant> = None;
        loop {
            if swept.is_none_or(|at| at.elapsed() >= SWEEP_EVERY) {
                match self.db.known_tenants().await {
                    Ok(tenants) => {
                        swept = Some(Instant::now());
                        let mut news = self.news.tenants.lock().unwrap_or_else(PoisonError::into_inner);
                        news.extend(tenants);
                    }
                    Err(error) => tracing::debug!(%error, "alerts do not count for risks now"),
                }
            }
            let tenants = {
                let mut news = self.news.tenants.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *news)
            };
            for tenant in tenants {
                if let Err(error) = self.count(&tenant).await {
                    tracing::warn!(%error, %tenant, "alerts do not count for risks yet; they will");
                    swept = None;
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(SWEEP_EVERY) => {}
                () = self.news.wake.notified() => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(STAND_BACK) => {}
            }
        }
    }

    async fn count(&self, tenant: &TenantId) -> Result<(), DbError> {
        loop {
            let mut tx = self.db.begin_with(tenant, ALONE).await?;
            let alerts = risk::uncounted(&mut tx, AT_ONCE).await?;
            if alerts.is_empty() {
                return tx.rollback().await;
            }
            for alert in &alerts {
                self.put_alert(&mut tx, alert, Utc::now()).await?;
            }
            tx.commit().await?;
        }
    }

    /// Takes another's alert: it counts for who did it, for whom it hit, and for who logged in from there lately. An
    /// account of the same alert that comes later replaces the earlier.
    ///
    /// # Errors
    /// When the database is away or fails.
    pub async fn take_alert(
        &self,
        tenant: &TenantId,
        delivery: Uuid,
        alert: &Alert,
        received: DateTime<Utc>,
    ) -> Result<(), DbError> {
        let mut tx = self.db.begin_with(tenant, ALONE).await?;
        if !tx.first_delivery(ALERTS, delivery).await? {
            return tx.rollback().await;
        }
        self.put_alert(&mut tx, alert, received).await?;
        tx.commit().await
    }

    async fn put_alert(&self, tx: &mut Tx<'static>, alert: &Alert, received: DateTime<Utc>) -> Result<(), DbError> {
        for entry in of_alert(alert, received).unwrap_or_default() {
            risk::put(tx, &entry).await?;
            if entry.entity.kind() == EntityKind::Host {
                self.tell_users(tx, &entry).await?;
            }
        }
        Ok(())
    }

    async fn tell_users(&self, tx: &mut Tx<'static>, entry: &Entry) -> Result<(), DbError> {
        let since = entry.time - Duration::seconds(self.config.presence_seconds.into());
        for login in risk::users_of(tx, &entry.entity.value, since).await? {
            if let Some(told) = through(entry, user(&login)) {
                risk::put(tx, &told).await?;
            }
        }
        Ok(())
    }

    /// Takes a login: learns how the user logs in, and keeps what is odd about it, for the user and for the host that it
    /// came from.
    ///
    /// # Errors
    /// When the database is away or fails.
    pub async fn take_login(
        &self,
        tenant: &TenantId,
        delivery: Uuid,
        event: &LoginEvent,
        time: DateTime<Utc>,
    ) -> Result<(), DbError> {
        let mut tx = self.db.begin_with(tenant, ALONE).await?;
        if !tx.first_delivery(LOGINS, delivery).await? {
            return tx.rollback().await;
        }
        if let Some(entry) = of_address(event, time) {
            risk::put(&mut tx, &entry).await?;
        }
        // Nobody's logins teach nothing: whoever tries names at random must not fill a table.
        if !event.user.is_empty() && !event.login.is_empty() {
            let mut profile = risk::profile(&mut tx, &event.login).await?;
            for entry in profile.observe(event, time) {
                risk::put(&mut tx, &entry).await?;
                let from = (!event.client_address.is_empty()).then(|| host(&event.client_address));
                if let Some(told) = from.and_then(|from| through(&entry, from)) {
                    risk::put(&mut tx, &told).await?;
                }
            }
            risk::put_profile(&mut tx, &event.login, &profile, time).await?;
            if event.outcome() == Outcome::Succeeded && !event.client_address.is_empty() {
                risk::present(&mut tx, &event.login, &event.client_address, time).await?;
            }
        }
        tx.commit().await
    }

    /// Entities with the highest risk first.
    ///
    /// # Errors
    /// When the database is away or fails.
    pub async fn highest(
        &self,
        tenant: &TenantId,
        kinds: &[i16],
        least: f64,
        most: u32,
    ) -> Result<Vec<EntityRisk>, DbError> {
        risk::highest(&self.db, tenant, self.reading(), (kinds, least, most.into())).await
    }

    /// The risk of one entity, and what adds to it, latest first.
    ///
    /// # Errors
    /// When the database is away or fails.
    pub async fn of(
        &self,
        tenant: &TenantId,
        entity: &Entity,
        most: u32,
    ) -> Result<(EntityRisk, Vec<RiskEntry>), DbError> {
        risk::of(&self.db, tenant, entity, self.reading(), most.into()).await
    }

    /// Forgets what was kept long enough, from time to time until shutdown.
    pub async fn keep_up(&self, shutdown: CancellationToken) {
        loop {
            let before = Utc::now() - Duration::days(self.config.keep_days.into());
            match self.db.known_tenants().await {
                Ok(tenants) => {
                    for tenant in tenants {
                        if let Err(error) = risk::forget(&self.db, &tenant, before).await {
                            tracing::warn!(%error, %tenant, "old risks could not be forgotten; they will be");
                        }
                    }
                }
                Err(error) => tracing::debug!(%error, "old risks are not forgotten now"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(FORGET_EVERY) => {}
            }
        }
    }

    fn reading(&self) -> Reading {
        Reading {
            now: Utc::now(),
            half_life: Duration::seconds(self.config.half_life_seconds.into()),
        }
    }
}
