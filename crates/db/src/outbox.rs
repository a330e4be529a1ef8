use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Timelike, Utc};
use futures::{StreamExt, stream::FuturesUnordered};
use garrison_bus::{Message, PublishError, Publisher};
use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Gauge, Histogram},
};
use sqlx::{PgConnection, Row, postgres::PgRow};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::{Db, DbError, database::Urgent};

/// Messages taken at a time.
const BATCH: i64 = 64;
/// Bytes of payload taken at a time; the first message is taken whatever its size.
const BATCH_BYTES: i64 = 4 * 1024 * 1024;
/// How often to look without being woken: for what a replica committed before it died.
const POLL: Duration = Duration::from_secs(1);
/// First and longest pause while the database or the broker does not take part.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How often old inbox rows are removed, and how old they must be. Repeats come within the broker's duplicate
/// window and the redelivery of unacknowledged messages, which are minutes; a week covers a long outage.
const PRUNE_EVERY: Duration = Duration::from_secs(600);
const PRUNE_BATCH: i64 = 10_000;
/// How long the relay's turn is put off after an urgent message.
const GIVE_WAY: Duration = Duration::from_millis(20);
/// Most ids of urgent messages that are remembered as published.
const MAX_SENT: usize = 4_096;

/// Publishes what was committed to the outbox until `shutdown`, and removes old inbox rows.
///
/// Woken by [`crate::Tx::commit`] of this process. Every replica of a service may run one: an advisory lock lets one
/// at a time work, so that messages of a tenant reach each stream in the order in which they were appended. A
/// message stays until the broker has stored it; one that the broker will never take is moved to `outbox_parked`
/// with the reason. After a crash a message may be published again, with the same id.
///
/// # Errors
/// Only for what cannot heal: today nothing; the type leaves room.
pub async fn run_outbox_relay(db: Db, publisher: Publisher, shutdown: CancellationToken) -> Result<(), DbError> {
    let sent = Sent::default();
    let express = db
        .urgent()
        .map(|urgent| express(db.clone(), publisher.clone(), urgent, sent.clone()));
    let mut relay = Relay {
        metrics: Metrics::new(),
        blocked: HashMap::new(),
        db,
        publisher,
        sent,
    };
    let turns = relay.run(shutdown);
    match express {
        None => turns.await,
        Some(express) => tokio::select! {
            outcome = turns => outcome,
            () = express => Ok(()),
        },
    }
}

/// Ids of messages that went out without waiting for the relay's turn: stored by the broker, and still in the outbox.
type Sent = Arc<Mutex<HashSet<Uuid>>>;

/// Publishes what must not wait, in the order of the commits. What fails is left to the relay.
async fn express(db: Db, publisher: Publisher, mut urgent: mpsc::Receiver<Urgent>, sent: Sent) {
    while let Some(Urgent { messages, span }) = urgent.recv().await {
        let publish = async {
            for message in &messages {
                match publisher.publish(message).await {
                    Ok(()) => {
                        let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
                        // Rows that another replica's relay removed are never asked about. Forgetting costs a repeat.
                        if sent.len() >= MAX_SENT {
                            sent.clear();
                        }
                        sent.insert(message.id);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "an urgent message is left to the outbox relay");
                        return;
                    }
                }
            }
        };
        publish
            .instrument(tracing::info_span!(parent: &span, "publish at once"))
            .await;
        // What else the commit left, and clearing up, must not share the processor with what it set off.
        let db = db.clone();
        tokio::spawn(async move {
            tokio::time::sleep(GIVE_WAY).await;
            db.outbox_signal();
        });
    }
    // The database handle, which holds the other end, outlives this.
    std::future::pending::<()>().await;
}

impl Relay {
    async fn run(&mut self, shutdown: CancellationToken) -> Result<(), DbError> {
        let mut pause = PAUSE.0;
        let mut pruned: Option<Instant> = None;
        loop {
            // Without a broker there is nothing to do, and a transaction would only hold locks.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                () = self.publisher.connected() => {}
            }
            // Not cut short by shutdown: what the broker has stored should also be removed.
            let outcome = self.drain().await;
            let wait = match outcome {
                Ok(Drained::Empty) => {
                    pause = PAUSE.0;
                    if pruned.is_none_or(|at| at.elapsed() >= PRUNE_EVERY) {
                        pruned = Some(Instant::now());
                        if let Err(error) = prune(&self.db).await {
                            tracing::warn!(error = &error as &dyn std::error::Error, "cannot prune the inbox");
                        }
                    }
                    POLL
                }
                Ok(Drained::More) => {
                    pause = PAUSE.0;
                    continue;
                }
                Ok(Drained::Blocked) => next(&mut pause),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        schema = self.db.schema(),
                        "the outbox relay cannot work; trying again"
                    );
                    next(&mut pause)
                }
            };
            tokio::select! {
                () = self.db.appended(), if wait == POLL => {}
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }
}

fn next(pause: &mut Duration) -> Duration {
    let now = *pause;
    *pause = (now * 2).min(PAUSE.1);
    now
}

enum Drained {
    /// Nothing is left.
    Empty,
    /// There may be more.
    More,
    /// The broker did not take everything.
    Blocked,
}

struct Relay {
    db: Db,
    publisher: Publisher,
    metrics: Metrics,
    /// Domains whose stream takes nothing now, so that they do not hold the others up.
    blocked: HashMap<String, Instant>,
    sent: Sent,
}

struct Entry {
    id: i64,
    tenant: String,
    appended: DateTime<Utc>,
    message: Message,
}

enum Fate {
    Stored(i64, DateTime<Utc>),
    Parked(i64, String),
}

impl Relay {
    async fn drain(&mut self) -> Result<Drained, DbError> {
        let operation = "read the outbox";
        let now = Instant::now();
        self.blocked.retain(|_, until| *until > now);
        let blocked: Vec<String> = self.blocked.keys().cloned().collect();
        // Losing the deletion in a crash is harmless (the message is published again, with the same id), and not
        // waiting for the disk keeps the next message from waiting too.
        let mut tx = self
            .db
            .begin_for_all(
                "SET LOCAL synchronous_commit = off; \
                 SELECT pg_advisory_xact_lock(hashtextextended('garrison.outbox.' || current_schema(), 0))",
            )
            .await
            .map_err(DbError::during(operation))?;
        let rows = sqlx::query(
            "SELECT * FROM (SELECT *, sum(octet_length(payload)) OVER (ORDER BY id) - octet_length(payload) AS before \
             FROM (SELECT * FROM outbox WHERE split_part(subject, '.', 1) <> ALL ($1) ORDER BY id LIMIT $2) AS oldest) \
             AS sized WHERE before <= $3 ORDER BY id",
        )
        .bind(&blocked)
        .bind(BATCH)
        .bind(BATCH_BYTES)
        .fetch_all(&mut *tx)
        .await
        .map_err(DbError::during(operation))?;
        let entries = rows
            .iter()
            .map(entry)
            .collect::<Result<Vec<_>, _>>()
            .map_err(DbError::during(operation))?;
        self.metrics.waiting(self.db.schema(), entries.len());
        if entries.is_empty() {
            let blocked = !blocked.is_empty();
            tx.rollback().await.map_err(DbError::during(operation))?;
            return Ok(if blocked { Drained::Blocked } else { Drained::Empty });
        }

        // What went out already only has to leave the outbox.
        let (done, entries): (Vec<_>, Vec<_>) = {
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            entries.into_iter().partition(|entry| sent.remove(&entry.message.id))
        };
        let (mut fates, failed) = publish(&self.publisher, entries).await;
        fates.extend(done.into_iter().map(|entry| Fate::Stored(entry.id, entry.appended)));
        let settled = settle(&mut tx, &fates, &self.metrics, self.db.schema()).await;
        settled.map_err(DbError::during("clear the outbox"))?;
        tx.commit().await.map_err(DbError::during("clear the outbox"))?;
        if failed.is_empty() {
            return Ok(Drained::More);
        }
        let until = Instant::now() + PAUSE.1;
        for (domain, error) in failed {
            tracing::warn!(%error, schema = self.db.schema(), "a message stays in the outbox");
            self.blocked.insert(domain, until);
        }
        Ok(if fates.is_empty() {
            Drained::Blocked
        } else {
            Drained::More
        })
    }
}

/// Publishes in order within a tenant's stream, and at the same time across them: one message of a group is under
/// way at a time, because after a lost connection a later one could otherwise be stored before an earlier one.
async fn publish(publisher: &Publisher, entries: Vec<Entry>) -> (Vec<Fate>, Vec<(String, PublishError)>) {
    let mut groups: HashMap<(String, String), Vec<Entry>> = HashMap::new();
    for entry in entries {
        let domain = entry.message.subject.split('.').next().unwrap_or_default().to_owned();
        groups.entry((entry.tenant.clone(), domain)).or_default().push(entry);
    }
    let mut running: FuturesUnordered<_> = groups
        .into_iter()
        .map(|((_, domain), entries)| async move {
            let mut fates = Vec::with_capacity(entries.len());
            for entry in entries {
                match publisher.publish(&entry.message).await {
                    Ok(()) => fates.push(Fate::Stored(entry.id, entry.appended)),
                    Err(error) if error.is_transient() => return (fates, Some((domain, error))),
                    Err(error) => fates.push(Fate::Parked(entry.id, error.to_string())),
                }
            }
            (fates, None)
        })
        .collect();
    let (mut fates, mut failed) = (Vec::new(), Vec::new());
    while let Some((done, failure)) = running.next().await {
        fates.extend(done);
        failed.extend(failure);
    }
    (fates, failed)
}

async fn settle(
    tx: &mut PgConnection,
    fates: &[Fate],
    metrics: &Metrics,
    schema: &'static str,
) -> Result<(), sqlx::Error> {
    let now = Utc::now();
    let mut done = Vec::with_capacity(fates.len());
    for fate in fates {
        match fate {
            Fate::Stored(id, appended) => {
                done.push(*id);
                metrics.stored(schema, now - *appended);
            }
            Fate::Parked(id, reason) => {
                done.push(*id);
                metrics.parked(schema);
                tracing::error!(
                    code = "GAR-DB-0007",
                    reason,
                    id,
                    schema,
                    "a message was parked: it cannot be published"
                );
                sqlx::query(
                    "INSERT INTO outbox_parked (id, tenant_id, message_id, subject, kind, source, time, time_nanos, \
                     content_type, traceparent, payload, appended, reason) \
                     SELECT id, tenant_id, message_id, subject, kind, source, time, time_nanos, \
                     content_type, traceparent, payload, appended, $2 FROM outbox WHERE id = $1 \
                     ON CONFLICT (id) DO NOTHING",
                )
                .bind(id)
                .bind(reason)
                .execute(&mut *tx)
                .await?;
            }
        }
    }
    sqlx::query("DELETE FROM outbox WHERE id = ANY ($1)")
        .bind(&done)
        .execute(&mut *tx)
        .await?;
    Ok(())
}

fn entry(row: &PgRow) -> Result<Entry, sqlx::Error> {
    let time: DateTime<Utc> = row.try_get("time")?;
    let nanos: i32 = row.try_get("time_nanos")?;
    let nanos = u32::try_from(nanos).unwrap_or_default();
    Ok(Entry {
        id: row.try_get("id")?,
        tenant: row.try_get("tenant_id")?,
        appended: row.try_get("appended")?,
        message: Message {
            id: row.try_get::<Uuid, _>("message_id")?,
            subject: row.try_get("subject")?,
            kind: row.try_get("kind")?,
            source: row.try_get("source")?,
            time: exact(time, nanos),
            content_type: row.try_get::<String, _>("content_type")?.into(),
            payload: row.try_get::<Vec<u8>, _>("payload")?.into(),
            traceparent: row.try_get("traceparent")?,
        },
    })
}

/// Puts the nanoseconds back, if the database's microseconds are those of the same moment.
fn exact(time: DateTime<Utc>, nanos: u32) -> DateTime<Utc> {
    if time.timestamp_subsec_micros() != nanos / 1_000 {
        return time;
    }
    time.with_nanosecond(nanos).unwrap_or(time)
}

async fn prune(db: &Db) -> Result<(), DbError> {
    let operation = "prune the inbox";
    loop {
        let mut tx = db.begin_for_all("").await.map_err(DbError::during(operation))?;
        let removed = sqlx::query(
            "DELETE FROM inbox WHERE ctid = ANY (ARRAY( \
             SELECT ctid FROM inbox WHERE received < now() - interval '7 days' LIMIT $1))",
        )
        .bind(PRUNE_BATCH)
        .execute(&mut *tx)
        .await
        .map_err(DbError::during(operation))?
        .rows_affected();
        tx.commit().await.map_err(DbError::during(operation))?;
        if i64::try_from(removed).unwrap_or(0) < PRUNE_BATCH {
            return Ok(());
        }
    }
}

struct Metrics {
    delay: Histogram<f64>,
    parked: Counter<u64>,
    waiting: Gauge<u64>,
}

impl Metrics {
    fn new() -> Self {
        let meter = global::meter("garrison.db");
        Self {
            delay: meter
                .f64_histogram("garrison_db_outbox_delay_seconds")
                .with_description("Time from appending a message to the broker having stored it.")
                .with_boundaries(vec![
                    0.000_5, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0,
                ])
                .build(),
            parked: meter
                .u64_counter("garrison_db_outbox_parked_messages")
                .with_description("Messages that the broker will never take.")
                .build(),
            waiting: meter
                .u64_gauge("garrison_db_outbox_batch_messages")
                .with_description("Messages in the relay's last batch; 64 for long means it falls behind.")
                .build(),
        }
    }

    fn stored(&self, schema: &'static str, delay: chrono::TimeDelta) {
        let seconds = delay.as_seconds_f64().max(0.0);
        self.delay.record(seconds, &[KeyValue::new("schema", schema)]);
    }

    fn parked(&self, schema: &'static str) {
        self.parked.add(1, &[KeyValue::new("schema", schema)]);
    }

    fn waiting(&self, schema: &'static str, messages: usize) {
        self.waiting.record(messages as u64, &[KeyValue::new("schema", schema)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_survive_the_database() {
        let sent = DateTime::from_timestamp(1_790_230_470, 123_456_789).unwrap();
        let stored = sent.with_nanosecond(123_456_000).unwrap();
        assert_eq!(exact(stored, 123_456_789), sent);
        // PostgreSQL's rounding, or a foreign hand: the database's time wins.
        let rounded = sent.with_nanosecond(123_457_000).unwrap();
        assert_eq!(exact(rounded, 123_456_789), rounded);
    }
}
