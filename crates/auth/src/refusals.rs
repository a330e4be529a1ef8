//! Refusals of callers who are known. The first of its kind is recorded at once; repeats are counted, and the count is
//! recorded at most once a minute. So a caller without rights can write a bounded part of the audit log, and nothing
//! that happened is missing in it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, Utc};
use garrison_proto::{TenantId, audit::v1::Actor, audit::v1::AuditRecord, to_timestamp};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{AuditSink, Caller, Principal};

/// Least time between two records of one kind.
const EVERY: Duration = Duration::from_secs(60);
/// After a count could not be recorded.
const AGAIN: Duration = Duration::from_secs(5);
/// Kinds that are told apart at a time. Only services can come by so many, by naming tenants.
const MOST: usize = 4_096;

/// Who was refused what, and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    tenant: TenantId,
    principal: Principal,
    method: String,
    code: &'static str,
}

#[derive(Debug)]
struct Entry {
    /// From then on there may be another record.
    due: Instant,
    repeats: Option<Repeats>,
}

/// Refusals that are not in a record yet.
#[derive(Debug, Clone, PartialEq)]
struct Repeats {
    count: u64,
    first: DateTime<Utc>,
    last: DateTime<Utc>,
    /// The latest of them, as it would have been recorded.
    record: AuditRecord,
}

#[derive(Debug, Default)]
struct Table {
    /// `None` stands for all kinds that there was no room for.
    entries: HashMap<Option<Kind>, Entry>,
    /// A task is there that records what was counted.
    watched: bool,
}

/// What is to be done with a refusal.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Record,
    Counted,
}

impl Table {
    fn take(&mut self, kind: Kind, record: &AuditRecord, now: Instant) -> (Option<Kind>, Step) {
        let mut key = Some(kind);
        if !self.entries.contains_key(&key) && self.entries.len() >= MOST {
            self.entries
                .retain(|_, entry| entry.repeats.is_some() || entry.due > now);
            if self.entries.len() >= MOST {
                key = None;
            }
        }
        let entry = self.entries.entry(key.clone()).or_insert(Entry {
            due: now,
            repeats: None,
        });
        if entry.repeats.is_none() && entry.due <= now && key.is_some() {
            entry.due = now + EVERY;
            return (key, Step::Record);
        }
        entry.count(1, Utc::now(), record);
        (key, Step::Counted)
    }

    /// Takes out what may be recorded now, or everything.
    fn due(&mut self, now: Instant, everything: bool) -> Vec<(Option<Kind>, Repeats)> {
        let mut due = Vec::new();
        for (kind, entry) in &mut self.entries {
            if (everything || entry.due <= now)
                && let Some(repeats) = entry.repeats.take()
            {
                entry.due = now + EVERY;
                due.push((kind.clone(), repeats));
            }
        }
        self.entries.retain(|_, entry| entry.due > now);
        due
    }

    /// When the next count may be recorded; `None` when there is none, and then nobody watches any more.
    fn next(&mut self) -> Option<Instant> {
        let waiting = self.entries.values().filter(|entry| entry.repeats.is_some());
        let next = waiting.map(|entry| entry.due).min();
        self.watched = next.is_some();
        next
    }

    /// What could not be recorded is counted again.
    fn put_back(&mut self, kind: Option<Kind>, repeats: Repeats, now: Instant) {
        let entry = self.entries.entry(kind).or_insert(Entry {
            due: now,
            repeats: None,
        });
        entry.due = now + AGAIN;
        entry.count(repeats.count, repeats.first, &repeats.record);
    }
}

impl Entry {
    fn count(&mut self, count: u64, at: DateTime<Utc>, record: &AuditRecord) {
        match &mut self.repeats {
            Some(repeats) => {
                repeats.count += count;
                repeats.first = repeats.first.min(at);
                if at >= repeats.last {
                    repeats.last = at;
                    repeats.record = record.clone();
                }
            }
            None => {
                self.repeats = Some(Repeats {
                    count,
                    first: at,
                    last: at,
                    record: record.clone(),
                });
            }
        }
    }
}

impl Repeats {
    fn into_record(self, kind: Option<&Kind>) -> AuditRecord {
        let Self {
            count,
            first,
            last,
            mut record,
        } = self;
        let text = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Millis, true);
        record.record_id = Uuid::now_v7().to_string();
        record.time = Some(to_timestamp(Utc::now()));
        record.trace_id = String::new();
        if kind.is_none() {
            record.tenant = TenantId::SYSTEM.to_owned();
            record.actor = Some(Actor {
                name: "various".to_owned(),
                ..Actor::default()
            });
            record.reason = format!(
                "more than {MOST} kinds of refusals at once; the last was: {}",
                record.reason
            );
        }
        record.reason = format!("{} ({count} times)", record.reason);
        record.details.insert("repeats".to_owned(), count.to_string());
        record.details.insert("first".to_owned(), text(first));
        record.details.insert("last".to_owned(), text(last));
        record
    }
}

/// See the module.
pub(crate) struct Refusals {
    table: Mutex<Table>,
    audit: Arc<dyn AuditSink>,
}

impl Refusals {
    pub(crate) fn new(audit: Arc<dyn AuditSink>) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::default(),
            audit,
        })
    }

    /// Records a refusal, or counts it.
    pub(crate) async fn take(self: &Arc<Self>, caller: &Caller, code: &'static str, record: AuditRecord) {
        let kind = Kind {
            tenant: caller.tenant.clone(),
            principal: caller.principal.clone(),
            method: record.action.clone(),
            code,
        };
        let (key, step) = self.table().take(kind, &record, Instant::now());
        if step == Step::Record
            && let Err(error) = self.audit.record(record.clone()).await
        {
            tracing::error!(
                error = &error as &dyn std::error::Error, method = %record.action,
                "the audit record of a refusal was not stored; it is counted and tried again"
            );
            let at = Utc::now();
            let repeats = Repeats {
                count: 1,
                first: at,
                last: at,
                record,
            };
            self.table().put_back(key, repeats, Instant::now());
        }
        self.watch();
    }

    /// Records what was counted so far, without waiting for its minute.
    pub(crate) async fn settle(&self) {
        let due = self.table().due(Instant::now(), true);
        self.record(due).await;
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that counts are recorded although nobody calls any more.
    fn watch(self: &Arc<Self>) {
        {
            let mut table = self.table();
            if table.watched || table.next().is_none() {
                return;
            }
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                let next = this.table().next();
                let Some(next) = next else { return };
                tokio::time::sleep_until(next).await;
                let due = this.table().due(Instant::now(), false);
                this.record(due).await;
            }
        });
    }

    async fn record(&self, due: Vec<(Option<Kind>, Repeats)>) {
        for (kind, repeats) in due {
            let record = repeats.clone().into_record(kind.as_ref());
            if let Err(error) = self.audit.record(record).await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    refusals = repeats.count,
                    "the audit record of repeated refusals was not stored; it is tried again"
                );
                self.table().put_back(kind, repeats, Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures::future::BoxFuture;
    use garrison_proto::audit::v1::Decision;

    use super::*;
    use crate::AuditError;

    #[derive(Default)]
    struct Sink {
        records: Mutex<Vec<AuditRecord>>,
        broken: AtomicBool,
    }

    impl AuditSink for Sink {
        fn record(&self, record: AuditRecord) -> BoxFuture<'_, Result<(), AuditError>> {
            Box::pin(async move {
                if self.broken.load(Ordering::SeqCst) {
                    return Err(AuditError("the disk is full".into()));
                }
                self.records.lock().unwrap().push(record);
                Ok(())
            })
        }
    }

    impl Sink {
        /// How many refusals each record stands for.
        fn counts(&self) -> Vec<u64> {
            let count = |record: &AuditRecord| record.details.get("repeats").map_or(1, |n| n.parse().unwrap());
            self.records.lock().unwrap().iter().map(count).collect()
        }
    }

    fn caller(tenant: &str, name: &str) -> Caller {
        Caller {
            tenant: tenant.parse().unwrap(),
            principal: Principal::Service { name: name.to_owned() },
            ..Caller::anonymous(None)
        }
    }

    fn record(caller: &Caller, method: &str) -> AuditRecord {
        AuditRecord {
            record_id: Uuid::now_v7().to_string(),
            tenant: caller.tenant.to_string(),
            actor: Some(caller.actor()),
            action: method.to_owned(),
            decision: Decision::Deny.into(),
            reason: "GAR-AUTH-0006: no".to_owned(),
            ..AuditRecord::default()
        }
    }

    async fn refuse(refusals: &Arc<Refusals>, caller: &Caller, method: &str, times: usize) {
        for _ in 0..times {
            refusals.take(caller, "GAR-AUTH-0006", record(caller, method)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_one_record_and_then_one_a_minute_with_its_count() {
        let sink = Arc::new(Sink::default());
        let refusals = Refusals::new(Arc::clone(&sink) as _);
        let mallory = caller("acme", "mallory");
        refuse(&refusals, &mallory, "a/B", 1).await;
        assert_eq!(sink.counts(), [1]);
        // Ten minutes at ten a second.
        for _ in 0..600 {
            refuse(&refusals, &mallory, "a/B", 10).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(EVERY * 2).await;
        let counts = sink.counts();
        assert!(counts.len() <= 12, "{counts:?}");
        assert_eq!(counts.iter().sum::<u64>(), 6_001, "{counts:?}");
        let last = sink.records.lock().unwrap().last().unwrap().clone();
        assert_eq!((last.action.as_str(), last.tenant.as_str()), ("a/B", "acme"));
        assert!(last.reason.starts_with("GAR-AUTH-0006: no (") && last.details.contains_key("first"));
        // Long after, it is the first of its kind again.
        refuse(&refusals, &mallory, "a/B", 1).await;
        assert_eq!(sink.counts().len(), counts.len() + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn kinds_are_told_apart() {
        let sink = Arc::new(Sink::default());
        let refusals = Refusals::new(Arc::clone(&sink) as _);
        refuse(&refusals, &caller("acme", "mallory"), "a/B", 2).await;
        refuse(&refusals, &caller("acme", "mallory"), "a/C", 2).await;
        refuse(&refusals, &caller("globex", "mallory"), "a/B", 2).await;
        refuse(&refusals, &caller("acme", "trudy"), "a/B", 2).await;
        let mallory = caller("acme", "mallory");
        refusals.take(&mallory, "GAR-AUTH-0010", record(&mallory, "a/B")).await;
        assert_eq!(sink.counts(), [1; 5]);
        refusals.settle().await;
        assert_eq!(sink.counts(), [1; 9]);
        let tenants: Vec<String> = sink.records.lock().unwrap().iter().map(|r| r.tenant.clone()).collect();
        assert_eq!(tenants.iter().filter(|tenant| *tenant == "globex").count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_recorded_is_recorded_later() {
        let sink = Arc::new(Sink::default());
        let refusals = Refusals::new(Arc::clone(&sink) as _);
        sink.broken.store(true, Ordering::SeqCst);
        refuse(&refusals, &caller("acme", "mallory"), "a/B", 7).await;
        tokio::time::sleep(EVERY * 3).await;
        assert!(sink.counts().is_empty());
        sink.broken.store(false, Ordering::SeqCst);
        tokio::time::sleep(AGAIN * 2).await;
        assert_eq!(sink.counts(), [7]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_names_tenants_at_will_fills_a_bounded_part() {
        let sink = Arc::new(Sink::default());
        let refusals = Refusals::new(Arc::clone(&sink) as _);
        for number in 0..MOST + 500 {
            refuse(&refusals, &caller(&format!("t{number}"), "mallory"), "a/B", 1).await;
        }
        assert_eq!(sink.counts().len(), MOST);
        refusals.settle().await;
        let counts = sink.counts();
        assert_eq!(counts.len(), MOST + 1);
        assert_eq!(counts[MOST], 500);
        let last = sink.records.lock().unwrap()[MOST].clone();
        assert_eq!(
            (last.tenant.as_str(), last.actor.unwrap().name.as_str()),
            ("system", "various")
        );
        // A minute later there is room again.
        tokio::time::sleep(EVERY).await;
        refuse(&refusals, &caller("acme", "mallory"), "a/B", 1).await;
        assert_eq!(sink.counts().len(), MOST + 2);
    }
}
