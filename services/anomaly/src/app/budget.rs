//! The alarm budget: what is promised, what became of it, and what was held back.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use garrison_proto::{
    TenantId,
    alert::v1::{AlarmBudget, BudgetCount, HeldAlert, HeldReason},
    audit::v1::Actor,
    to_timestamp,
};
use uuid::Uuid;

use super::{Engine, recorded};
use crate::{
    domain::{
        budget::{Count, Group, Reason},
        detector::Detector,
        tenant::Tenant,
        window::{Nanos, SECOND, timestamp},
    },
    error::Error,
    store::{
        self,
        held::{Kept, Query},
    },
};

const HOUR: Nanos = 3_600 * SECOND;
// Less than this many promised alerts say nothing of how the promise is kept.
const TOO_FEW: f64 = 0.1;

impl Engine {
    /// Every group's budget of a tenant.
    ///
    /// # Errors
    /// When the tenant cannot be loaded.
    pub async fn alarm_budgets(&self, id: &TenantId) -> Result<Vec<AlarmBudget>, Error> {
        let seen = self.see(id).await?;
        let budgets = seen.tenant().into_iter().flat_map(|tenant| {
            let show = |group| self.show_budget(tenant, group);
            Group::ALL.map(show)
        });
        Ok(budgets.collect())
    }

    /// Promises another number of alerts a day of a group from now on; `None` for what is configured.
    ///
    /// # Errors
    /// When it cannot be saved, and then nothing has changed.
    pub async fn set_alarm_budget(
        &self,
        id: &TenantId,
        actor: Actor,
        group: Group,
        alerts_a_day: Option<f64>,
    ) -> Result<AlarmBudget, Error> {
        let cell = self.own(id).await?;
        let set = |tenant: &mut Tenant| {
            let before = tenant.budgets.promise(group, alerts_a_day, &self.settings.budget);
            let budget = self.show_budget(tenant, group);
            let details = BTreeMap::from([
                ("alerts_per_day".to_owned(), budget.alerts_per_day().to_string()),
                ("before".to_owned(), before.to_string()),
                ("configured".to_owned(), alerts_a_day.is_none().to_string()),
            ]);
            let resource = format!("budgets/{}", group.id());
            Ok((budget, vec![recorded(id, actor, "budget.set", &resource, details)]))
        };
        self.change(id, &cell, set, None).await
    }

    /// What was held back, latest first.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn held_alerts(&self, id: &TenantId, query: &Query) -> Result<Vec<Kept>, Error> {
        // What was held back since the last checkpoint is with it. Another replica saves it with its next.
        if let Some(cell) = self.find(id) {
            self.checkpoint_one(id, &cell).await?;
        }
        Ok(store::held::list(&self.db, id, query).await?)
    }

    /// Publishes an alert that was held back, and its repeats from then on. One that was told already is not told again.
    ///
    /// # Errors
    /// [`Error::NoHeldAlert`]; otherwise when it cannot be published.
    pub async fn release_held_alert(
        &self,
        id: &TenantId,
        actor: Actor,
        alert: Uuid,
        comment: &str,
    ) -> Result<Kept, Error> {
        let cell = self.own(id).await?;
        self.checkpoint_one(id, &cell).await?;
        let mut tx = self.db.begin(id).await?;
        self.confirm(&mut tx, &cell).await?;
        let Some(mut kept) = store::held::find(&mut tx, alert).await? else {
            return Err(Error::NoHeldAlert { alert });
        };
        if kept.told.is_some() {
            tx.rollback().await?;
            return Ok(kept);
        }
        // As exact as the database keeps it.
        let told: DateTime<Utc> = DateTime::from_timestamp_micros((self.clock)() / 1_000).unwrap_or_default();
        kept.alert.detected_time = Some(to_timestamp(told));
        // Its id comes from what it is about: published twice it is one alert.
        let lease = cell.lease();
        let published = store::publish_alerts(&self.lane, id, &lease, std::slice::from_ref(&kept.alert), false).await?;
        if published.is_none() {
            return Err(Error::Elsewhere { tenant: id.clone() });
        }
        self.risks().news(id);
        let who = actor.name.clone();
        store::held::mark(&mut tx, alert, &kept.alert, (told, &who)).await?;
        let details = BTreeMap::from([
            ("detector".to_owned(), kept.alert.detector.clone()),
            ("comment".to_owned(), comment.to_owned()),
        ]);
        let resource = format!("alerts/{alert}");
        let record = recorded(id, actor, "alert.released", &resource, details);
        tx.publish_all(&[record]).await?;
        tx.commit().await?;
        let mut held = self.hold(id, &cell).await?;
        held.before_any_change();
        if let Some(tenant) = held.tenant.as_mut() {
            tenant.released(&kept.alert);
            held.changed = true;
        }
        kept.told = Some((told, who));
        Ok(kept)
    }

    pub(super) async fn forget_held_alerts(&self, id: &TenantId) {
        let (days, most) = self.options.held;
        match store::held::forget(&self.db, id, days, most).await {
            Ok(0) => {}
            Ok(n) => tracing::info!(tenant = %id, alerts = n, "forgot alerts held back that were kept long enough"),
            Err(error) => tracing::warn!(%error, tenant = %id, "alerts held back could not be forgotten"),
        }
    }

    fn show_budget(&self, tenant: &Tenant, group: Group) -> AlarmBudget {
        let own = tenant.budgets.group(group);
        let settings = &self.settings.budget;
        let configured = settings.promised(group);
        let hour = (self.clock)() / HOUR;
        let never = |d: &Detector| settings.never_held[d.index()] || configured.is_none();
        AlarmBudget {
            group: group.id().to_owned(),
            detectors: group.detectors().map(|d| d.id().to_owned()).collect(),
            alerts_per_day: configured.map(|_| own.budget.alerts_a_day()),
            configured_alerts_per_day: configured,
            set: own.set.is_some(),
            never_held_severity: settings.grave(group).into(),
            never_held: group.detectors().filter(never).map(|d| d.id().to_owned()).collect(),
            last_day: Some(count(own.ledger.last(hour, 24))),
            last_week: Some(count(own.ledger.last(hour, 7 * 24))),
            total: Some(count(own.ledger.total())),
            since: (own.ledger.since() != 0).then(|| timestamp(own.ledger.since().saturating_mul(HOUR))),
            bound: if configured.is_some() { own.budget.bound() } else { 0.0 },
            ahead: if configured.is_some() {
                own.budget.state().ahead
            } else {
                0.0
            },
        }
    }
}

fn count(count: Count) -> BudgetCount {
    BudgetCount {
        promised: count.promised,
        issued: count.issued,
        exempt: count.exempt,
        held: count.held,
        released: count.released,
        not_kept: count.not_kept,
        realised: (count.promised >= TOO_FEW).then(|| count.issued as f64 / count.promised),
    }
}

/// As the API shows it.
pub fn held_message(kept: Kept) -> HeldAlert {
    let reason = match kept.reason {
        Reason::AheadOfPromise => HeldReason::AheadOfPromise,
        Reason::Outranked => HeldReason::Outranked,
        Reason::BelowFloor => HeldReason::BelowFloor,
    };
    let explanation = explain(&kept);
    let (told, told_by) = kept.told.unzip();
    HeldAlert {
        alert: Some(kept.alert),
        group: kept.group,
        reason: reason.into(),
        explanation,
        rarity: kept.rarity.0,
        bound: kept.rarity.1,
        ahead: kept.ahead,
        held_time: Some(to_timestamp(kept.held)),
        told_time: told.map(to_timestamp),
        told_by: told_by.unwrap_or_default(),
    }
}

fn explain(kept: &Kept) -> String {
    let (rarity, bound) = kept.rarity;
    let model = kept.group == Group::Model.id();
    let one_in = |share: f64| match 1.0 / share.max(1e-12) {
        n if n < 10.0 => format!("{:.0} in 100", 100.0 * share),
        n => format!("1 in {n:.0}"),
    };
    let of = if model {
        "scores are as high"
    } else {
        "findings weigh as much"
    };
    match kept.reason {
        Reason::AheadOfPromise => format!(
            "{} {of}; {} may be told, because {:.1} more alerts were told than promised",
            one_in(rarity),
            one_in(bound),
            kept.ahead.max(0.0)
        ),
        Reason::Outranked => format!(
            "{} {of}; more come than are promised, and only {} may be told",
            one_in(rarity),
            one_in(bound)
        ),
        Reason::BelowFloor => format!(
            "{} {of}, which is rare enough, but the score {:.3} is below model.least_score",
            one_in(rarity),
            kept.alert.score
        ),
    }
}
