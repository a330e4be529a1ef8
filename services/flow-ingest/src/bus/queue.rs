//! Encoded batches waiting for the broker: first in memory, then on disk, in order and within bounds.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use garrison_bus::Message;
use tokio::sync::Notify;
use uuid::Uuid;

use super::spool::{SegmentGuard, Spool};
use crate::app::sensor::Sensor;

/// A message that waits.
pub struct Item {
    /// The message.
    pub message: Message,
    /// Records in it.
    pub rows: u64,
    /// Who made it. `None` for one left by an earlier run, which has its own ledger.
    pub sensor: Option<Arc<Sensor>>,
    /// Time of the oldest packet that made a record in it, nanoseconds since the epoch.
    pub oldest: Option<i64>,
    /// The span of its publication.
    pub span: tracing::Span,
    pub(super) run: Uuid,
    pub(super) guard: Option<Arc<SegmentGuard>>,
    pub(super) order: u64,
}

impl Item {
    fn bytes(&self) -> usize {
        self.message.payload.len() + 512
    }

    /// The broker has it.
    pub fn stored(self) {
        if let Some(sensor) = &self.sensor {
            sensor.published(self.rows);
        }
        if let Some(guard) = self.guard {
            guard.settled();
        }
    }

    /// It is given up.
    pub fn lost(self) {
        if let Some(sensor) = &self.sensor {
            sensor.lost(self.rows);
        }
        if let Some(guard) = self.guard {
            guard.settled();
        }
    }
}

struct State {
    items: VecDeque<Item>,
    bytes: usize,
    spool: Option<Spool>,
    order: u64,
}

/// The queue.
pub struct Queue {
    state: Mutex<State>,
    arrived: Notify,
    memory: usize,
    closed: AtomicBool,
    stopping: AtomicBool,
    run: Uuid,
}

impl Queue {
    /// Makes a queue of at most `memory` octets and what the spool takes. What an earlier run left in the spool comes
    /// first.
    pub fn new(memory: usize, spool: Option<Spool>) -> Self {
        Self {
            state: Mutex::new(State {
                items: VecDeque::new(),
                bytes: 0,
                spool,
                order: 0,
            }),
            arrived: Notify::new(),
            memory,
            closed: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            run: Uuid::new_v4(),
        }
    }

    /// Identifies this run in spooled messages.
    pub fn run(&self) -> Uuid {
        self.run
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a message. What there is no room for is counted as lost.
    pub fn push(&self, mut item: Item) {
        let mut state = self.lock();
        state.order += 1;
        item.order = state.order;
        let spooled = state.spool.as_ref().is_some_and(|spool| !spool.is_empty());
        if !spooled && state.bytes + item.bytes() <= self.memory {
            state.bytes += item.bytes();
            state.items.push_back(item);
            drop(state);
            self.arrived.notify_one();
            return;
        }
        match &mut state.spool {
            Some(spool) => {
                let gone = spool.append(item);
                drop(state);
                give_up(gone, "the spool on disk is full");
            }
            None => {
                drop(state);
                give_up(vec![item], "memory is full and there is no spool on disk");
            }
        }
    }

    /// Moves messages from disk to memory as far as there is room. Gives whether more are on disk.
    pub fn refill(&self, sensors: &[Arc<Sensor>]) -> bool {
        let mut state = self.lock();
        let room = self.memory / 2;
        while state.bytes < room {
            let State {
                items,
                bytes,
                spool,
                order,
            } = &mut *state;
            let Some(spool) = spool else { return false };
            let Some(read) = spool.take_segment(sensors, self.run) else {
                return false;
            };
            for mut item in read {
                *order += 1;
                item.order = *order;
                *bytes += item.bytes();
                items.push_back(item);
            }
            self.arrived.notify_one();
        }
        state.spool.as_ref().is_some_and(|spool| !spool.is_empty())
    }

    /// The next message. `None` once the queue is closed and empty.
    pub async fn next(&self) -> Option<Item> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut state = self.lock();
                if let Some(item) = state.items.pop_front() {
                    state.bytes -= item.bytes();
                    return Some(item);
                }
                let spooled = state.spool.as_ref().is_some_and(|spool| !spool.is_empty());
                if self.closed.load(Ordering::Acquire) && !spooled {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// Puts messages back in front, in the order they once had.
    pub fn put_back(&self, mut items: Vec<Item>) {
        items.sort_by_key(|item| item.order);
        let mut state = self.lock();
        for item in items.into_iter().rev() {
            state.bytes += item.bytes();
            state.items.push_front(item);
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// No message will be appended any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.arrived.notify_waiters();
        self.arrived.notify_one();
    }

    /// Octets in memory are few enough that a file may go on. While the service stops nobody is to wait.
    pub fn has_room(&self) -> bool {
        self.stopping.load(Ordering::Acquire) || self.lock().bytes < self.memory / 2
    }

    /// The service stops: files no longer wait for room.
    pub fn stop_waiting(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Messages wait in numbers, because the broker is behind.
    pub fn is_crowded(&self) -> bool {
        self.lock().items.len() > 256
    }

    /// Octets that wait in memory and on disk.
    pub fn waiting(&self) -> (u64, u64) {
        let state = self.lock();
        let disk = state.spool.as_ref().map_or(0, Spool::bytes);
        (state.bytes as u64, disk)
    }

    /// Leaves what still waits to the spool for the next run, or counts it as lost.
    pub fn abandon(&self) {
        let mut state = self.lock();
        let items: Vec<Item> = state.items.drain(..).collect();
        state.bytes = 0;
        let gone = match &mut state.spool {
            Some(spool) => spool.keep_for_next_run(items),
            None => items,
        };
        drop(state);
        give_up(gone, "the service stops and there is no spool on disk");
    }
}

fn give_up(items: Vec<Item>, reason: &str) {
    if items.is_empty() {
        return;
    }
    let rows: u64 = items.iter().map(|item| item.rows).sum();
    tracing::error!(records = rows, reason, "GAR-FLOW-0031: records are lost");
    items.into_iter().for_each(Item::lost);
}

#[cfg(test)]
pub(super) mod tests {
    use garrison_bus::Message;

    use super::*;

    pub(crate) fn sensor() -> Arc<Sensor> {
        let tenant = "acme".parse().unwrap();
        Arc::new(Sensor::new("edge", tenant, "eth0".into(), true, 0, None))
    }

    pub(crate) fn item(sensor: &Arc<Sensor>, number: u8, bytes: usize, run: Uuid) -> Item {
        sensor.emitted(10);
        Item {
            message: Message::flows(
                format!("flows.v1.acme.{number}"),
                "flow-ingest",
                vec![number; bytes].into(),
            ),
            rows: 10,
            sensor: Some(Arc::clone(sensor)),
            oldest: None,
            span: tracing::Span::none(),
            run,
            guard: None,
            order: 0,
        }
    }

    async fn numbers(queue: &Queue, sensors: &[Arc<Sensor>]) -> Vec<u8> {
        let mut numbers = Vec::new();
        loop {
            queue.refill(sensors);
            let next = tokio::time::timeout(std::time::Duration::from_millis(20), queue.next());
            let Ok(Some(item)) = next.await else { return numbers };
            numbers.push(item.message.payload[0]);
            item.stored();
        }
    }

    #[tokio::test]
    async fn what_memory_has_no_room_for_waits_on_disk_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path(), 1 << 20).unwrap();
        let queue = Queue::new(10_000, Some(spool));
        let sensor = sensor();
        for number in 0..50 {
            queue.push(item(&sensor, number, 1000, queue.run()));
        }
        assert!(queue.waiting().0 <= 10_000 && queue.waiting().1 > 0);
        let sensors = [Arc::clone(&sensor)];
        assert_eq!(numbers(&queue, &sensors).await, (0..50).collect::<Vec<u8>>());
        assert_eq!((sensor.waiting(), sensor.ledger().records_published), (0, 500));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn without_a_disk_the_bound_costs_records_that_are_counted() {
        let queue = Queue::new(10_000, None);
        let sensor = sensor();
        for number in 0..50 {
            queue.push(item(&sensor, number, 1000, queue.run()));
        }
        let kept = numbers(&queue, &[]).await;
        assert_eq!(kept, [0, 1, 2, 3, 4, 5], "the oldest stay");
        let ledger = sensor.ledger();
        assert_eq!(
            (ledger.records_published, ledger.records_lost, sensor.waiting()),
            (60, 440, 0)
        );
    }

    #[tokio::test]
    async fn a_disk_that_is_full_gives_up_the_oldest_and_counts_them() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path(), 10 << 20).unwrap();
        let queue = Queue::new(1 << 20, Some(spool));
        let sensor = sensor();
        for number in 0..40 {
            queue.push(item(&sensor, number, 1 << 19, queue.run()));
        }
        assert!(queue.waiting().1 <= 10 << 20);
        let lost = sensor.ledger().records_lost;
        assert!(lost > 0);
        let sensors = [Arc::clone(&sensor)];
        let kept = numbers(&queue, &sensors).await;
        assert_eq!(kept.last(), Some(&39), "the newest stay");
        assert!(kept.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(kept.len() as u64 * 10 + lost, 400);
        assert_eq!(sensor.waiting(), 0);
    }

    #[tokio::test]
    async fn messages_put_back_come_first_and_in_order() {
        let queue = Queue::new(1 << 20, None);
        let sensor = sensor();
        for number in 0..5 {
            queue.push(item(&sensor, number, 10, queue.run()));
        }
        let mut failed = Vec::new();
        for _ in 0..3 {
            failed.push(queue.next().await.unwrap());
        }
        failed.reverse();
        queue.put_back(failed);
        assert_eq!(numbers(&queue, &[]).await, [0, 1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn the_next_run_finds_what_was_left_and_skips_what_a_crash_cut() {
        let folder = tempfile::tempdir().unwrap();
        let queue = Queue::new(1 << 20, Some(Spool::open(folder.path(), 1 << 20).unwrap()));
        let first = sensor();
        for number in 0..5 {
            queue.push(item(&first, number, 100, queue.run()));
        }
        let id = queue.next().await.unwrap().message.id;
        queue.abandon();
        let file = std::fs::read_dir(folder.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();

        let queue = Queue::new(1 << 20, Some(Spool::open(folder.path(), 1 << 20).unwrap()));
        let second = sensor();
        let sensors = [Arc::clone(&second)];
        queue.refill(&sensors);
        let next = queue.next().await.unwrap();
        assert_ne!(next.message.id, id);
        assert_eq!(
            (next.message.payload[0], next.message.subject.as_str()),
            (1, "flows.v1.acme.1")
        );
        next.stored();
        assert_eq!(numbers(&queue, &sensors).await, [2, 3]);
        // They were the first run's records, not this one's.
        assert_eq!(second.ledger().records_published, 0);
    }
}
