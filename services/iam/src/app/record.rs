use chrono::{DateTime, TimeDelta, Utc};
use garrison_auth::Revoked;
use garrison_bus::{Message, subject};
use garrison_db::Tx;
use garrison_proto::{
    TenantId,
    audit::v1::{Actor, Decision},
    event::v1::{LoginEvent, SessionRevoked, login_event::Outcome},
    resource_name, to_timestamp,
};
use garrison_service::audit;
use uuid::Uuid;

use super::{Iam, Result};
use crate::{
    INFO,
    error::Error,
    store::{self, EndedSession, RefusedByLock},
};

/// The name under which iam publishes.
pub(super) const SOURCE: &str = INFO.name;

/// One thing that happened, for the audit log.
pub(super) struct Entry<'a> {
    pub(super) actor: Actor,
    /// A state change, such as `user.created`.
    pub(super) action: &'static str,
    pub(super) resource: String,
    pub(super) decision: Decision,
    pub(super) reason: &'a str,
    pub(super) details: Vec<(&'static str, String)>,
}

impl Entry<'_> {
    /// Something that was done.
    pub(super) fn done(actor: Actor, action: &'static str, resource: String) -> Self {
        Self {
            actor,
            action,
            resource,
            decision: Decision::Allow,
            reason: "",
            details: Vec::new(),
        }
    }
}

/// A login attempt and how it ended.
pub(super) struct Attempt<'a> {
    pub(super) outcome: Outcome,
    pub(super) user: Option<Uuid>,
    /// Empty when what was typed is no login name: it may be a password.
    pub(super) login: &'a str,
    pub(super) address: String,
    pub(super) second_factor: bool,
}

/// How long after an access token's expiry services may still take it, because clocks differ.
const REVOCATION_MARGIN: TimeDelta = TimeDelta::seconds(2 * garrison_auth::token::LEEWAY);

impl Iam {
    pub(super) async fn audit(&self, tx: &mut Tx<'_>, entry: Entry<'_>) -> Result<()> {
        let mut record = audit::record(
            &INFO,
            tx.tenant(),
            entry.actor,
            entry.action,
            &entry.resource,
            entry.decision,
            entry.reason,
            entry
                .details
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        );
        record.time = Some(to_timestamp(self.now()));
        let message = audit::message(&INFO, &record);
        tx.publish(&message)
            .await
            .map_err(Error::database("recording an audit entry"))
    }

    /// Publishes the login event and the audit record of an attempt.
    pub(super) async fn record_attempt(&self, tx: &mut Tx<'_>, attempt: Attempt<'_>) -> Result<()> {
        self.record_attempt_until(tx, attempt, None).await
    }

    /// The same, of a login that is locked until then.
    async fn record_attempt_until(
        &self,
        tx: &mut Tx<'_>,
        attempt: Attempt<'_>,
        until: Option<DateTime<Utc>>,
    ) -> Result<()> {
        self.metrics.login(attempt.outcome);
        let (id, now) = (Uuid::now_v7(), self.now());
        let user = attempt.user.map(|id| resource_name("users", id)).unwrap_or_default();
        let event = LoginEvent {
            event_id: id.to_string(),
            time: Some(to_timestamp(now)),
            user: user.clone(),
            login: attempt.login.to_owned(),
            outcome: attempt.outcome.into(),
            client_address: attempt.address.clone(),
            second_factor: attempt.second_factor,
            attempts: 1,
        };
        let subject = subject::events(tx.tenant(), "login");
        let message = Message::proto(subject, SOURCE, &event).with_id(id).with_time(now);
        tx.publish(&message)
            .await
            .map_err(Error::database("publishing a login event"))?;
        let succeeded = attempt.outcome == Outcome::Succeeded;
        let actor = Actor {
            name: if user.is_empty() {
                "anonymous".to_owned()
            } else {
                user.clone()
            },
            address: attempt.address,
            ..Actor::default()
        };
        self.audit(
            tx,
            Entry {
                actor,
                action: if succeeded { "login.succeeded" } else { "login.refused" },
                resource: user,
                decision: if succeeded { Decision::Allow } else { Decision::Deny },
                reason: outcome_text(attempt.outcome),
                details: std::iter::once(("login", attempt.login.to_owned()))
                    .chain(until.map(|until| ("locked_until", until.to_rfc3339())))
                    .collect(),
            },
        )
        .await
    }

    /// Refuses an attempt on a locked login. The first that a lock refuses is recorded, the others are counted until
    /// [`Iam::record_refused`].
    pub(super) async fn refuse_by_lock(
        &self,
        tx: &mut Tx<'_>,
        login_mac: &[u8],
        attempt: Attempt<'_>,
        (until, recorded): (DateTime<Utc>, bool),
    ) -> Result<()> {
        if recorded {
            self.metrics.login(attempt.outcome);
            return store::count_refused(tx, login_mac, attempt.user).await;
        }
        store::note_lock_recorded(tx, login_mac).await?;
        self.record_attempt_until(tx, attempt, Some(until)).await
    }

    /// Records together what a lock refused after its first refusal. `login` is empty when it is not known any more.
    pub(super) async fn record_refused(&self, tx: &mut Tx<'_>, lock: &RefusedByLock, login: &str) -> Result<()> {
        let (id, now) = (Uuid::now_v7(), self.now());
        let user = lock
            .refused_user
            .map(|id| resource_name("users", id))
            .unwrap_or_default();
        let attempts = u32::try_from(lock.refused).unwrap_or_default();
        let event = LoginEvent {
            event_id: id.to_string(),
            time: Some(to_timestamp(now)),
            user: user.clone(),
            login: login.to_owned(),
            outcome: Outcome::Locked.into(),
            attempts,
            ..LoginEvent::default()
        };
        let subject = subject::events(tx.tenant(), "login");
        let message = Message::proto(subject, SOURCE, &event).with_id(id).with_time(now);
        tx.publish(&message)
            .await
            .map_err(Error::database("publishing a login event"))?;
        let until = lock.locked_until.map(|until| until.to_rfc3339()).unwrap_or_default();
        self.audit(
            tx,
            Entry {
                actor: itself(),
                action: "login.refused",
                resource: user,
                decision: Decision::Deny,
                reason: "further attempts while it was locked",
                details: vec![
                    ("login", login.to_owned()),
                    ("attempts", attempts.to_string()),
                    ("locked_until", until),
                ],
            },
        )
        .await
    }

    /// Makes the end of sessions known to every service. The answer is for [`Iam::commit`].
    pub(super) async fn announce_ends(
        &self,
        tx: &mut Tx<'_>,
        ended: &[EndedSession],
        actor: &Actor,
        reason: &'static str,
        now: DateTime<Utc>,
    ) -> Result<Vec<Revoked>> {
        let mut revoked = Vec::with_capacity(ended.len());
        for session in ended {
            self.metrics.session_ended(reason);
            let until = session.access_until.max(now) + REVOCATION_MARGIN;
            store::record_revocation(tx, session.id, now, until).await?;
            let event = SessionRevoked {
                session: resource_name("sessions", session.id),
                time: Some(to_timestamp(now)),
                until: Some(to_timestamp(until)),
                reason: reason.to_owned(),
            };
            let subject = subject::events(tx.tenant(), "revocation");
            tx.publish(&Message::proto(subject, SOURCE, &event).with_time(now))
                .await
                .map_err(Error::database("publishing a revocation"))?;
            self.audit(
                tx,
                Entry {
                    reason,
                    ..Entry::done(actor.clone(), "session.ended", event.session)
                },
            )
            .await?;
            revoked.push(Revoked {
                session: session.id,
                until,
            });
        }
        Ok(revoked)
    }
}

/// iam itself, where nobody asked.
pub(super) fn itself() -> Actor {
    audit::service_actor(&INFO)
}

/// A person, where there is no verified token yet.
pub(super) fn user_actor(user: Uuid, session: Option<Uuid>, address: String) -> Actor {
    Actor {
        name: resource_name("users", user),
        session: session.map(|id| resource_name("sessions", id)).unwrap_or_default(),
        roles: Vec::new(),
        address,
    }
}

pub(super) fn tenant_name(tenant: &TenantId) -> String {
    format!("tenants/{tenant}")
}

fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unspecified | Outcome::Succeeded => "",
        Outcome::WrongPassword => "wrong password",
        Outcome::WrongFactor => "wrong or used code",
        Outcome::Locked => "locked after repeated failures",
        Outcome::Disabled => "the account or tenant is disabled",
        Outcome::UnknownUser => "no such login",
        Outcome::RateLimited => "too many attempts from one address",
    }
}
