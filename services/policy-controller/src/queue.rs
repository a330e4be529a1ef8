//! What is to be looked at again: each thing once, by one worker at a time, now or later.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// The longest pause after failures.
const LONGEST: Duration = Duration::from_secs(60);
/// The pause after the first failure.
const FIRST: Duration = Duration::from_millis(250);

/// A queue of things that are named by `K`.
#[derive(Debug)]
pub(crate) struct Queue<K> {
    entries: Mutex<BTreeMap<K, Entry>>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Entry {
    /// When it is due; `None` while it only runs.
    due: Option<Instant>,
    running: bool,
    failures: u32,
}

impl<K: Ord + Clone> Default for Queue<K> {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            changed: Notify::new(),
        }
    }
}

impl<K: Ord + Clone> Queue<K> {
    /// It is due now, or again after what runs now.
    pub(crate) fn add(&self, key: K) {
        self.add_after(key, Duration::ZERO);
    }

    /// It is due after `pause`, if not earlier.
    pub(crate) fn add_after(&self, key: K, pause: Duration) {
        let due = Instant::now() + pause;
        {
            let mut entries = self.lock();
            let entry = entries.entry(key).or_default();
            entry.due = Some(entry.due.map_or(due, |earlier| earlier.min(due)));
        }
        self.changed.notify_waiters();
    }

    /// The next that is due and does not run. [`done`](Self::done) must follow.
    pub(crate) async fn next(&self) -> K {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let wait = match self.take() {
                Ok(key) => return key,
                Err(due) => due,
            };
            match wait {
                Some(due) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    fn take(&self) -> Result<K, Option<Instant>> {
        let now = Instant::now();
        let mut entries = self.lock();
        let next = entries
            .iter_mut()
            .filter(|(_, entry)| !entry.running)
            .filter_map(|(key, entry)| Some((entry.due?, key, entry)))
            .min_by_key(|(due, ..)| *due);
        match next {
            Some((due, key, entry)) if due <= now => {
                entry.due = None;
                entry.running = true;
                Ok(key.clone())
            }
            Some((due, ..)) => Err(Some(due)),
            None => Err(None),
        }
    }

    /// It was looked at. After a failure it is due again, later each time.
    pub(crate) fn done(&self, key: &K, succeeded: bool) {
        {
            let mut entries = self.lock();
            let Some(entry) = entries.get_mut(key) else { return };
            entry.running = false;
            if succeeded {
                entry.failures = 0;
                if entry.due.is_none() {
                    entries.remove(key);
                }
            } else {
                let pause = FIRST.saturating_mul(1 << entry.failures.min(10)).min(LONGEST);
                entry.failures += 1;
                let due = Instant::now() + pause;
                entry.due = Some(entry.due.map_or(due, |earlier| earlier.min(due)));
            }
        }
        self.changed.notify_waiters();
    }

    /// How many are waiting or run.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Forgets everything that does not run.
    pub(crate) fn clear(&self) {
        self.lock().retain(|_, entry| {
            entry.due = None;
            entry.running
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<K, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_once_and_again_after_it_ran() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        queue.add_after("b", Duration::from_secs(1));
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        // `a` runs, so the next is `b`, though it is due later.
        assert_eq!(queue.next().await, "b");
        queue.done(&"a", true);
        assert_eq!(queue.next().await, "a");
        queue.done(&"a", true);
        queue.done(&"b", true);
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time() {
        let queue = Queue::default();
        queue.add(1);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let before = Instant::now();
            let key = queue.next().await;
            pauses.push(before.elapsed());
            queue.done(&key, false);
        }
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]), "{pauses:?}");
        assert_eq!(pauses[1], FIRST);
        assert_eq!(pauses[9], LONGEST);
        // A change is a new reason to try.
        let before = Instant::now();
        queue.add(1);
        queue.next().await;
        assert_eq!(before.elapsed(), Duration::ZERO);
    }
}
