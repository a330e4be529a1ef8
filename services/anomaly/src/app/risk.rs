//! Alerts and logins as they come, and the risk that follows from them.

use chrono::{DateTime, Duration, Utc};
use garrison_db::{Db, DbError, Tx};
use garrison_proto::{
    TenantId,
    alert::v1::{Alert, Entity, EntityKind, EntityRisk, RiskEntry},
    event::v1::{LoginEvent, login_event::Outcome},
};
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

/// How often what is kept long enough is forgotten.
const FORGET_EVERY: std::time::Duration = std::time::Duration::from_secs(3_600);

/// What speaks against hosts, services and users.
#[derive(Clone, Debug)]
pub struct Risks {
    db: Db,
    config: RiskConfig,
}

impl Risks {
    /// With what is configured.
    pub fn new(db: Db, config: RiskConfig) -> Self {
        Self { db, config }
    }

    /// Takes an alert: it counts for who did it, for whom it hit, and for who logged in from there lately. An account of
    /// the same alert that comes later replaces the earlier.
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
        let Some(entries) = of_alert(alert, received) else {
            return Ok(());
        };
        let mut tx = self.db.begin(tenant).await?;
        if !tx.first_delivery(ALERTS, delivery).await? {
            return tx.rollback().await;
        }
        for entry in &entries {
            risk::put(&mut tx, entry).await?;
            if entry.entity.kind() == EntityKind::Host {
                self.tell_users(&mut tx, entry).await?;
            }
        }
        tx.commit().await
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
        let mut tx = self.db.begin(tenant).await?;
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
