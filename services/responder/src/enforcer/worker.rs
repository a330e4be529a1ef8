//! The thread behind [`super::agent::Agent`].

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use garrison_proto::{TenantId, resource_name, response::v1::Action};
use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use super::{
    agent::{Answer, Command, QUEUE, Reconciled, Setup},
    kernel::{Confirmed, Kernel, KernelError},
    ledger::{Ledger, Order, Outgoing, Plan, Said, What},
    metrics::Metrics,
    ruleset::{Elements, SetKey},
    state::StateFile,
};
use crate::{
    digest::digest,
    domain::{guard::overlaps, response::action_word},
};

/// How often the clock and the ruleset are looked at.
const TICK: Duration = Duration::from_millis(200);
/// How often the ruleset is compared in full even when its generation says that nobody touched it.
const FULL_LOOK: Duration = Duration::from_secs(60);

pub(super) struct Worker {
    node: String,
    kernel: Kernel,
    ledger: Ledger,
    state: StateFile,
    /// In the kernel, but in no ledger; kept until the responder has spoken.
    orphans: Elements,
    dirty: bool,
    news: Arc<Notify>,
    metrics: Metrics,
    last_look: Instant,
    last_forgot: Instant,
}

impl Worker {
    pub(super) fn start(setup: Setup, news: Arc<Notify>) -> Result<Self, super::EnforcerError> {
        let now = Utc::now();
        let mut ledger = match setup.state.load() {
            Ok(ledger) => ledger,
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                let aside = setup.state.put_aside().map_err(|source| super::EnforcerError::State {
                    path: setup.state.path().to_owned(),
                    source,
                })?;
                tracing::error!(%error, aside = %aside.display(), "GAR-ENF-0004: the state file cannot be read and was put aside; what the kernel holds stays until the responder has spoken");
                Ledger::default()
            }
            Err(source) => {
                return Err(super::EnforcerError::State {
                    path: setup.state.path().to_owned(),
                    source,
                });
            }
        };
        let served: BTreeSet<TenantId> = setup.layout.tenants.iter().map(|t| t.id.clone()).collect();
        ledger.keep_tenants(&served);
        ledger.forget(now);
        let mut kernel = Kernel::open(setup.layout, &setup.program)?;
        let orphans = adopt(&mut kernel, &ledger, &served, now)?;
        let mut worker = Self {
            node: setup.node,
            kernel,
            ledger,
            state: setup.state,
            orphans,
            dirty: true,
            news,
            metrics: Metrics::new(),
            last_look: Instant::now(),
            last_forgot: Instant::now(),
        };
        worker.kernel.install(&worker.wanted(), now)?;
        worker.store().map_err(|source| super::EnforcerError::State {
            path: worker.state.path().to_owned(),
            source,
        })?;
        tracing::info!(
            in_force = worker.ledger.active().count(),
            left_over = worker.orphans.len(),
            "the ruleset is installed"
        );
        Ok(worker)
    }

    /// Everything that should be in the kernel now.
    fn wanted(&self) -> Elements {
        let mut wanted = self.orphans.clone();
        wanted.extend(self.ledger.elements());
        wanted
    }

    pub(super) fn run(&mut self, inbox: &Receiver<Command>) {
        let mut next_tick = Instant::now();
        loop {
            let mut written = Vec::new();
            match inbox.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(command) => {
                    self.take(command, &mut written);
                    // Whatever came meanwhile shares the one write to disk.
                    for command in inbox.try_iter().take(QUEUE) {
                        self.take(command, &mut written);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.tick(Utc::now());
                    next_tick = Instant::now() + TICK;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let stored = match self.store() {
                Ok(()) => true,
                Err(error) => {
                    tracing::error!(%error, path = %self.state.path().display(), "GAR-ENF-0004: the state file cannot be written");
                    self.metrics.failed("store");
                    false
                }
            };
            for waiting in written {
                let _: Result<(), bool> = waiting.send(stored);
            }
            if self.ledger.has_news() {
                self.news.notify_one();
            }
        }
    }

    fn store(&mut self) -> std::io::Result<()> {
        if self.dirty {
            self.state.store(&self.ledger)?;
            self.dirty = false;
            self.metrics.in_force(self.ledger.active().count());
        }
        Ok(())
    }

    fn take(&mut self, command: Command, written: &mut Vec<oneshot::Sender<bool>>) {
        match command {
            Command::Order {
                order,
                span,
                answer,
                stored,
            } => {
                let _entered = span.enter();
                let reply = self.obey(&order, Utc::now());
                let _ = answer.send(reply);
                written.push(stored);
            }
            Command::Reconcile { desired, asked, done } => {
                let summary = self.reconcile(&desired, asked);
                let _ = done.send(summary);
            }
            Command::Digest(reply) => {
                let _ = reply.send(digest(self.ledger.active().map(|(id, _)| id)));
            }
            Command::News { limit, reply } => {
                let _ = reply.send(self.ledger.to_say(limit));
            }
            Command::Said(ids) => {
                self.ledger.said(&ids);
                self.dirty = true;
            }
        }
    }

    /// Carries an order out and records it.
    fn obey(&mut self, order: &Order, now: DateTime<Utc>) -> Answer {
        let started = Instant::now();
        let result = self.carry_out(order, now);
        self.dirty = true;
        let (answer, action) = match result {
            Ok((said, confirmed)) => (
                Answer {
                    said,
                    confirmed,
                    error: String::new(),
                },
                match said {
                    Said::Applied => "enforcement.applied",
                    Said::Expired => "enforcement.expired",
                    _ => "enforcement.removed",
                },
            ),
            Err(error) => {
                let error = causes(&error);
                tracing::warn!(response = %order.id, target = %order.target, error, "an order could not be carried out");
                (
                    Answer {
                        said: Said::Failed,
                        confirmed: None,
                        error,
                    },
                    "enforcement.failed",
                )
            }
        };
        self.metrics.order(answer.said, started.elapsed());
        let reason = if answer.error.is_empty() {
            format!("{} {}", action_word(order.action), order.target)
        } else {
            format!("{} {}: {}", action_word(order.action), order.target, answer.error)
        };
        self.audit(&order.tenant, action, order.id, reason, now);
        answer
    }

    fn carry_out(
        &mut self,
        order: &Order,
        now: DateTime<Utc>,
    ) -> Result<(Said, Option<Confirmed>), super::EnforcerError> {
        let place = SetKey::of(
            &order.tenant,
            order.action,
            order.packets_per_second,
            order.target.network(),
        )
        .map(|set| (set, order.target.network().network()))
        .ok_or(super::EnforcerError::NoAction)?;
        match self.ledger.plan(order, now) {
            Plan::Gone => Ok((Said::Removed, None)),
            Plan::Over => {
                self.ledger.end(order.id, now);
                let confirmed = self.release(&place, now)?;
                Ok((Said::Expired, confirmed))
            }
            Plan::Clear => {
                // Also when this node never heard of it: a crash may have left the element behind.
                self.orphans.remove(&place);
                let before = self.ledger.before(order.id);
                self.ledger.end(order.id, now);
                match self.release(&place, now) {
                    Ok(confirmed) => Ok((Said::Removed, confirmed)),
                    Err(error) => {
                        self.ledger.restore(before);
                        Err(error)
                    }
                }
            }
            Plan::Ensure => {
                if let Some(net) = self
                    .kernel
                    .layout()
                    .management
                    .iter()
                    .find(|net| overlaps(**net, order.target.network()))
                {
                    return Err(super::EnforcerError::Management {
                        target: order.target,
                        network: *net,
                    });
                }
                let before = self.ledger.before(order.id);
                self.ledger.applied(order, now);
                match self.hold(&place, now) {
                    Ok(confirmed) => Ok((Said::Applied, Some(confirmed))),
                    Err(error) => {
                        self.ledger.restore(before);
                        Err(error.into())
                    }
                }
            }
        }
    }

    /// Makes sure that an element that the ledger wants is in the kernel.
    fn hold(&mut self, place: &(SetKey, IpAddr), now: DateTime<Utc>) -> Result<Confirmed, KernelError> {
        let _span = tracing::info_span!("kernel add").entered();
        let ends = self.ledger.elements().get(place).copied().flatten();
        if self.kernel.has_set(&place.0) {
            match self.kernel.ensure(&place.0, place.1, ends, now) {
                Err(error) if error.is_missing() => self.noticed(&["the table is gone".to_owned()], now),
                other => return other,
            }
        }
        self.kernel.install(&self.wanted(), now)?;
        self.kernel.ensure(&place.0, place.1, ends, now)
    }

    /// Takes an element out of the kernel unless another response wants it; then sets its new end.
    fn release(
        &mut self,
        place: &(SetKey, IpAddr),
        now: DateTime<Utc>,
    ) -> Result<Option<Confirmed>, super::EnforcerError> {
        let _span = tracing::info_span!("kernel delete").entered();
        if self.ledger.elements().contains_key(place) {
            return Ok(Some(self.hold(place, now)?));
        }
        Ok(Some(self.kernel.clear(&place.0, place.1)?))
    }

    fn reconcile(&mut self, desired: &[Order], asked: DateTime<Utc>) -> Reconciled {
        let now = Utc::now();
        let mut summary = Reconciled::default();
        let ids: BTreeSet<Uuid> = desired.iter().map(|o| o.id).collect();
        let active: BTreeSet<Uuid> = self.ledger.active().map(|(id, _)| id).collect();
        for order in desired {
            let known = active.contains(&order.id);
            if known && self.in_kernel(order, now) {
                continue;
            }
            let answer = self.obey(order, now);
            match answer.said {
                Said::Applied => summary.applied += 1,
                Said::Failed => summary.failed += 1,
                Said::Removed | Said::Expired => summary.removed += 1,
            }
            self.report(order.id, &order.tenant, order.action, &answer, now);
        }
        for (id, entry) in self.ledger.unwanted(&ids, asked) {
            let before = self.ledger.before(id);
            self.ledger.end(id, now);
            let released = match entry.place() {
                Some(place) => self.release(&place, now),
                None => Ok(None),
            };
            self.dirty = true;
            let answer = match released {
                Ok(confirmed) => {
                    summary.removed += 1;
                    Answer {
                        said: Said::Removed,
                        confirmed,
                        error: String::new(),
                    }
                }
                Err(error) => {
                    self.ledger.restore(before);
                    summary.failed += 1;
                    Answer {
                        said: Said::Failed,
                        confirmed: None,
                        error: causes(&error),
                    }
                }
            };
            let reason = "the responder does not want it any more".to_owned();
            self.audit(entry.tenant(), "enforcement.removed", id, reason, now);
            self.report(id, entry.tenant(), entry.action(), &answer, now);
        }
        // The responder has spoken: what nobody claimed goes.
        let orphans = std::mem::take(&mut self.orphans);
        let wanted = self.ledger.elements();
        for ((set, address), ends) in orphans {
            if wanted.contains_key(&(set.clone(), address)) {
                continue;
            }
            match self.kernel.clear(&set, address) {
                Ok(_) => summary.removed += 1,
                Err(error) => {
                    tracing::warn!(%error, %address, "a left-over element could not be removed");
                    self.orphans.insert((set, address), ends);
                    summary.failed += 1;
                }
            }
        }
        if summary != Reconciled::default() {
            tracing::info!(?summary, "reconciled with the responder");
        }
        self.metrics.reconciled();
        summary
    }

    /// Whether a known response is in the ledger as ordered and in the kernel as well.
    fn in_kernel(&mut self, order: &Order, now: DateTime<Utc>) -> bool {
        self.ledger.applied(order, now);
        let Some((set, address)) = SetKey::of(
            &order.tenant,
            order.action,
            order.packets_per_second,
            order.target.network(),
        )
        .map(|set| (set, order.target.network().network())) else {
            return false;
        };
        let ends = self.ledger.elements().get(&(set.clone(), address)).copied().flatten();
        self.kernel.has_set(&set) && self.kernel.ensure(&set, address, ends, now).is_ok()
    }

    fn tick(&mut self, now: DateTime<Utc>) {
        for (id, entry) in self.ledger.overdue(now) {
            self.ledger.end(id, now);
            self.dirty = true;
            let released = match entry.place() {
                Some(place) => self.release(&place, now),
                None => Ok(None),
            };
            match released {
                Ok(confirmed) => {
                    let answer = Answer {
                        said: Said::Expired,
                        confirmed,
                        error: String::new(),
                    };
                    self.audit(entry.tenant(), "enforcement.expired", id, String::new(), now);
                    self.report(id, entry.tenant(), entry.action(), &answer, now);
                }
                // The kernel's own timeout ends it; the full look will say if it does not.
                Err(error) => {
                    tracing::warn!(response = %id, error = causes(&error), "an expired element could not be removed")
                }
            }
        }
        if self.last_forgot.elapsed() >= FULL_LOOK {
            self.ledger.forget(now);
            self.last_forgot = Instant::now();
        }
        self.orphans.retain(|_, ends| ends.is_none_or(|ends| ends > now));
        if let Err(error) = self.look(now) {
            tracing::error!(error = causes(&error), "the ruleset cannot be looked after");
            self.metrics.failed("look");
        }
    }

    /// Notices foreign changes of the table and mends them.
    fn look(&mut self, now: DateTime<Utc>) -> Result<(), KernelError> {
        let due = self.last_look.elapsed() >= FULL_LOOK;
        if !due && !self.kernel.was_touched()? {
            return Ok(());
        }
        let wanted = self.wanted();
        let different = self.kernel.differences(&wanted, now)?;
        self.last_look = Instant::now();
        if different.is_empty() {
            return Ok(());
        }
        self.noticed(&different, now);
        self.kernel.install(&wanted, now)
    }

    fn noticed(&mut self, different: &[String], now: DateTime<Utc>) {
        let shown: Vec<&str> = different.iter().take(10).map(String::as_str).collect();
        let shown = shown.join("; ");
        tracing::error!(
            count = different.len(),
            differences = shown,
            "GAR-ENF-0008: somebody changed the ruleset; it is restored"
        );
        self.metrics.tampered();
        let tenants: Vec<TenantId> = self.kernel.layout().tenants.iter().map(|t| t.id.clone()).collect();
        for tenant in tenants {
            let excess = self.ledger.say(Outgoing {
                id: Uuid::now_v7(),
                tenant,
                time: now,
                what: What::Audit {
                    action: "enforcement.tampering_repaired".to_owned(),
                    resource: format!("enforcers/{}", self.node),
                    reason: shown.clone(),
                },
            });
            self.metrics.lost(excess);
        }
        self.dirty = true;
    }

    fn audit(&mut self, tenant: &TenantId, action: &str, response: Uuid, reason: String, now: DateTime<Utc>) {
        let excess = self.ledger.say(Outgoing {
            id: Uuid::now_v7(),
            tenant: tenant.clone(),
            time: now,
            what: What::Audit {
                action: action.to_owned(),
                resource: resource_name("responses", response),
                reason,
            },
        });
        self.metrics.lost(excess);
        self.dirty = true;
    }

    fn report(&mut self, response: Uuid, tenant: &TenantId, action: Action, answer: &Answer, now: DateTime<Utc>) {
        let excess = self.ledger.say(Outgoing {
            id: Uuid::now_v7(),
            tenant: tenant.clone(),
            time: now,
            what: What::Report {
                response,
                action: action as i32,
                said: answer.said,
                kernel: answer.confirmed.map(|c| c.kernel),
                confirmed: answer.confirmed.map(|c| c.read_back),
                error: answer.error.clone(),
            },
        });
        self.metrics.lost(excess);
        self.dirty = true;
    }
}

/// Finds what is in the kernel and in no ledger: sets of tenants that this node serves only.
fn adopt(
    kernel: &mut Kernel,
    ledger: &Ledger,
    served: &BTreeSet<TenantId>,
    now: DateTime<Utc>,
) -> Result<Elements, KernelError> {
    let wanted = ledger.elements();
    let mut orphans = Elements::new();
    for leftover in kernel.leftovers(now)? {
        let Some(set) = SetKey::parse(&leftover.set) else {
            continue;
        };
        let place = (set, leftover.address);
        if served.contains(&place.0.tenant) && !wanted.contains_key(&place) {
            orphans.insert(place, leftover.ends);
        }
    }
    Ok(orphans)
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}
