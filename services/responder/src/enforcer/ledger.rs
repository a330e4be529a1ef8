//! What this node was told, what it did, and what it still has to say. Pure: no kernel, no clock, no file.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use chrono::{DateTime, Duration, Utc};
use garrison_proto::{
    TenantId, from_timestamp,
    response::v1::{Action, EnforcementOrder},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ruleset::{Elements, SetKey};
use crate::domain::guard::Target;

/// Ended responses are remembered so that a stale order cannot bring them back. An order to apply that is
/// older than a minute is checked with the responder first, so an hour is more than enough.
const TOMBSTONE_AGE: Duration = Duration::hours(1);
/// Most ended responses that are remembered.
const MAX_TOMBSTONES: usize = 5_000;
/// Most reports and audit records that wait to be sent.
const MAX_OUTGOING: usize = 10_000;

/// An order, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The response.
    pub id: Uuid,
    /// Whose.
    pub tenant: TenantId,
    /// What.
    pub action: Action,
    /// On whom.
    pub target: Target,
    /// For rate limits.
    pub packets_per_second: u32,
    /// When it ends by itself.
    pub expires: Option<DateTime<Utc>>,
    /// To remove instead of to apply.
    pub revert: bool,
}

impl Order {
    /// Checks an order from the wire.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn read(order: &EnforcementOrder) -> Result<Self, String> {
        let action = order.action();
        if action == Action::Unspecified {
            return Err(format!("{} is no action", order.action));
        }
        Ok(Self {
            id: Uuid::parse_str(&order.response_id).map_err(|_| "response_id is not a UUID".to_owned())?,
            tenant: order.tenant.parse().map_err(|e| format!("{e}"))?,
            action,
            target: order.target.parse().map_err(|e| format!("{e}"))?,
            packets_per_second: order.packets_per_second,
            expires: match &order.expires {
                None => None,
                Some(time) => {
                    Some(from_timestamp(time).ok_or_else(|| "expires is outside what a calendar can hold".to_owned())?)
                }
            },
            revert: order.revert,
        })
    }
}

/// A response on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    tenant: TenantId,
    /// `garrison.response.v1.Action`.
    action: i32,
    network: IpNet,
    packets_per_second: u32,
    expires: Option<DateTime<Utc>>,
    /// When it was applied.
    since: DateTime<Utc>,
}

impl Entry {
    fn of(order: &Order, now: DateTime<Utc>) -> Self {
        Self {
            tenant: order.tenant.clone(),
            action: order.action as i32,
            network: order.target.network(),
            packets_per_second: order.packets_per_second,
            expires: order.expires,
            since: now,
        }
    }

    /// Whose.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// What.
    pub fn action(&self) -> Action {
        Action::try_from(self.action).unwrap_or_default()
    }

    /// Its place in the ruleset; `None` for an entry that a newer version wrote.
    pub fn place(&self) -> Option<(SetKey, IpAddr)> {
        let set = SetKey::of(&self.tenant, self.action(), self.packets_per_second, self.network)?;
        Some((set, self.network.network()))
    }
}

/// What a report says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// It is in the kernel.
    Applied,
    /// It is not, because of an order.
    Removed,
    /// It is not, because its time ran out.
    Expired,
    /// It could not be done.
    Failed,
}

/// Something to publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outgoing {
    /// The message's id: a repeat is recognised.
    pub id: Uuid,
    /// Whose.
    pub tenant: TenantId,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// What.
    pub what: What,
}

/// What is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// `garrison.response.v1.EnforcementReport`
    Report {
        /// The response.
        response: Uuid,
        /// `garrison.response.v1.Action`.
        action: i32,
        /// The news.
        said: Said,
        /// When the kernel acknowledged.
        kernel: Option<DateTime<Utc>>,
        /// When reading back agreed.
        confirmed: Option<DateTime<Utc>>,
        /// For a failure.
        error: String,
    },
    /// `garrison.audit.v1.AuditRecord`
    Audit {
        /// For example `enforcement.applied`.
        action: String,
        /// Resource name.
        resource: String,
        /// Why or how.
        reason: String,
    },
}

/// What must be done about an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Make sure that it is in the kernel.
    Ensure,
    /// Make sure that it is not in the kernel, unless another response wants it there.
    Clear,
    /// It is over already by its own clock.
    Over,
    /// It was removed here; it does not come back.
    Gone,
}

/// What this node knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// In force.
    entries: BTreeMap<Uuid, Entry>,
    /// Ended here, and when.
    gone: BTreeMap<Uuid, DateTime<Utc>>,
    /// To be published, the oldest first.
    outgoing: Vec<Outgoing>,
}

/// How an order found a response; see [`Ledger::restore`].
#[derive(Debug, Clone)]
pub struct Before {
    id: Uuid,
    entry: Option<Entry>,
    gone: Option<DateTime<Utc>>,
}

impl Ledger {
    /// Decides what an order asks for.
    pub fn plan(&self, order: &Order, now: DateTime<Utc>) -> Plan {
        if order.revert {
            return Plan::Clear;
        }
        if self.gone.contains_key(&order.id) {
            return Plan::Gone;
        }
        if order.expires.is_some_and(|expires| expires <= now) {
            return Plan::Over;
        }
        Plan::Ensure
    }

    /// Remembers how a response stands, to take a step back when the kernel refuses.
    pub fn before(&self, id: Uuid) -> Before {
        Before {
            id,
            entry: self.entries.get(&id).cloned(),
            gone: self.gone.get(&id).copied(),
        }
    }

    /// Takes a step back.
    pub fn restore(&mut self, before: Before) {
        match before.entry {
            Some(entry) => self.entries.insert(before.id, entry),
            None => self.entries.remove(&before.id),
        };
        match before.gone {
            Some(time) => self.gone.insert(before.id, time),
            None => self.gone.remove(&before.id),
        };
    }

    /// It is in the kernel.
    pub fn applied(&mut self, order: &Order, now: DateTime<Utc>) {
        if self.gone.contains_key(&order.id) {
            return;
        }
        // A repeat keeps the time of the first; the end may have been moved.
        self.entries
            .entry(order.id)
            .or_insert_with(|| Entry::of(order, now))
            .expires = order.expires;
    }

    /// It is not in the kernel and will not be again.
    pub fn end(&mut self, id: Uuid, now: DateTime<Utc>) {
        self.entries.remove(&id);
        self.gone.insert(id, now);
        if self.gone.len() > MAX_TOMBSTONES {
            let mut times: Vec<(DateTime<Utc>, Uuid)> = self.gone.iter().map(|(id, time)| (*time, *id)).collect();
            times.sort_unstable();
            // A tenth at a time, so that this is rare.
            for (_, id) in times.into_iter().take(MAX_TOMBSTONES / 10) {
                self.gone.remove(&id);
            }
        }
    }

    /// Forgets ended responses that no order can bring back any more.
    pub fn forget(&mut self, now: DateTime<Utc>) {
        self.gone.retain(|_, time| now - *time < TOMBSTONE_AGE);
    }

    /// Forgets everything about tenants that this node does not serve any more.
    pub fn keep_tenants(&mut self, tenants: &BTreeSet<TenantId>) {
        self.entries.retain(|_, entry| tenants.contains(&entry.tenant));
    }

    /// Ids of what is in force.
    pub fn active(&self) -> impl Iterator<Item = (Uuid, &Entry)> {
        self.entries.iter().map(|(id, e)| (*id, e))
    }

    /// Everything that should be in the kernel. Where several responses want one element, it stays as long as
    /// the last of them.
    pub fn elements(&self) -> Elements {
        let mut elements = Elements::new();
        for (_, entry) in self.active() {
            let Some(place) = entry.place() else { continue };
            elements
                .entry(place)
                .and_modify(|ends| {
                    *ends = match (*ends, entry.expires) {
                        (Some(a), Some(b)) => Some(a.max(b)),
                        _ => None,
                    };
                })
                .or_insert(entry.expires);
        }
        elements
    }

    /// What has run out by now.
    pub fn overdue(&self, now: DateTime<Utc>) -> Vec<(Uuid, Entry)> {
        self.active()
            .filter(|(_, e)| e.expires.is_some_and(|expires| expires <= now))
            .map(|(id, e)| (id, e.clone()))
            .collect()
    }

    /// What the responder does not want any more: in force here, not among `desired`, and not applied since the
    /// question was asked.
    pub fn unwanted(&self, desired: &BTreeSet<Uuid>, asked: DateTime<Utc>) -> Vec<(Uuid, Entry)> {
        // Clocks of one machine may step back a little; an order that came just now is not to be taken back.
        let before = asked - Duration::milliseconds(100);
        self.active()
            .filter(|(id, e)| !desired.contains(id) && e.since < before)
            .map(|(id, e)| (id, e.clone()))
            .collect()
    }

    /// Queues something to publish. The oldest are dropped when nobody takes them: answers with how many.
    pub fn say(&mut self, outgoing: Outgoing) -> usize {
        self.outgoing.push(outgoing);
        let excess = self.outgoing.len().saturating_sub(MAX_OUTGOING);
        self.outgoing.drain(..excess);
        excess
    }

    /// What waits to be published, at most `limit`.
    pub fn to_say(&self, limit: usize) -> Vec<Outgoing> {
        self.outgoing.iter().take(limit).cloned().collect()
    }

    /// These were published.
    pub fn said(&mut self, ids: &BTreeSet<Uuid>) {
        self.outgoing.retain(|o| !ids.contains(&o.id));
    }

    /// Whether something waits to be published.
    pub fn has_news(&self) -> bool {
        !self.outgoing.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap()
    }

    fn order(id: u128, target: &str, expires: Option<i64>, revert: bool) -> Order {
        Order {
            id: Uuid::from_u128(id),
            tenant: "acme".parse().unwrap(),
            action: Action::Block,
            target: target.parse().unwrap(),
            packets_per_second: 0,
            expires: expires.map(at),
            revert,
        }
    }

    /// What the agent does with a kernel that always obeys.
    fn obey(ledger: &mut Ledger, order: &Order, now: DateTime<Utc>) {
        match ledger.plan(order, now) {
            Plan::Ensure => ledger.applied(order, now),
            Plan::Clear | Plan::Over => ledger.end(order.id, now),
            Plan::Gone => {}
        }
    }

    #[test]
    fn a_revert_that_comes_first_wins() {
        let mut ledger = Ledger::default();
        obey(&mut ledger, &order(1, "10.0.0.1", None, true), at(0));
        obey(&mut ledger, &order(1, "10.0.0.1", None, false), at(1));
        assert_eq!(ledger.active().count(), 0);
        assert_eq!(ledger.plan(&order(1, "10.0.0.1", None, false), at(2)), Plan::Gone);
    }

    #[test]
    fn an_element_stays_as_long_as_somebody_wants_it() {
        let mut ledger = Ledger::default();
        obey(&mut ledger, &order(1, "10.0.0.1", Some(10), false), at(0));
        obey(&mut ledger, &order(2, "10.0.0.1", Some(20), false), at(0));
        assert_eq!(ledger.elements().into_values().collect::<Vec<_>>(), [Some(at(20))]);
        obey(&mut ledger, &order(3, "10.0.0.1", None, false), at(0));
        assert_eq!(ledger.elements().into_values().collect::<Vec<_>>(), [None]);
        for id in [2, 3] {
            obey(&mut ledger, &order(id, "10.0.0.1", None, true), at(1));
        }
        assert_eq!(ledger.elements().into_values().collect::<Vec<_>>(), [Some(at(10))]);
        obey(&mut ledger, &order(1, "10.0.0.1", None, true), at(1));
        assert!(ledger.elements().is_empty());
    }

    #[test]
    fn what_came_since_the_question_is_not_unwanted() {
        let mut ledger = Ledger::default();
        obey(&mut ledger, &order(1, "10.0.0.1", None, false), at(0));
        obey(&mut ledger, &order(2, "10.0.0.2", None, false), at(10));
        let unwanted = ledger.unwanted(&BTreeSet::new(), at(10));
        assert_eq!(unwanted.iter().map(|(id, _)| id.as_u128()).collect::<Vec<_>>(), [1]);
        assert!(
            ledger
                .unwanted(&BTreeSet::from([Uuid::from_u128(1)]), at(10))
                .is_empty()
        );
    }

    #[test]
    fn news_is_kept_until_it_is_said_and_bounded() {
        let mut ledger = Ledger::default();
        let news = |id| Outgoing {
            id: Uuid::from_u128(id),
            tenant: "acme".parse().unwrap(),
            time: at(0),
            what: What::Audit {
                action: "a".into(),
                resource: "r".into(),
                reason: String::new(),
            },
        };
        assert_eq!(
            (0..MAX_OUTGOING as u128 + 5)
                .map(|i| ledger.say(news(i)))
                .sum::<usize>(),
            5
        );
        assert_eq!(ledger.to_say(1)[0].id, Uuid::from_u128(5));
        ledger.said(&ledger.to_say(usize::MAX).iter().map(|o| o.id).collect());
        assert!(!ledger.has_news());
    }

    fn any_order() -> impl Strategy<Value = (Order, i64)> {
        (0..4u128, 0..3u8, prop::option::of(0..30i64), any::<bool>(), 0..30i64).prop_map(
            |(id, host, expires, revert, time)| {
                // One response has one target and one end, whatever the order of its messages.
                let _ = host;
                (
                    order(id, &format!("10.0.0.{}", id % 3 + 1), expires.map(|_| 20), revert),
                    time,
                )
            },
        )
    }

    proptest! {
        #[test]
        fn reverted_never_returns_and_nothing_else_is_lost(orders in prop::collection::vec(any_order(), 0..40)) {
            let mut ledger = Ledger::default();
            let mut reverted = BTreeSet::new();
            let mut wanted = BTreeSet::new();
            for (order, time) in &orders {
                obey(&mut ledger, order, at(*time));
                if order.revert {
                    reverted.insert(order.id);
                    wanted.remove(&order.id);
                } else if !reverted.contains(&order.id) {
                    let over = order.expires.is_some_and(|e| e <= at(*time));
                    if over {
                        reverted.insert(order.id);
                        wanted.remove(&order.id);
                    } else {
                        wanted.insert(order.id);
                    }
                }
                let text = serde_json::to_string(&ledger).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Ledger>(&text).unwrap(), &ledger, "state was lost by a restart");
            }
            let active: BTreeSet<Uuid> = ledger.active().map(|(id, _)| id).collect();
            prop_assert_eq!(&active, &wanted);
            prop_assert!(active.is_disjoint(&reverted));
            prop_assert_eq!(ledger.elements().is_empty(), active.is_empty());
        }
    }
}
