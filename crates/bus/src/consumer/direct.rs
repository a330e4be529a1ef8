//! What a consumer hears directly, besides its stream.
//!
//! The broker passes a message on to plain subscribers before it has stored and synced it. A consumer marked
//! [`direct`](crate::ConsumerSpec::direct) listens to its subjects in a queue group of its name, so that one of its
//! replicas handles the message that much earlier. The stream stays what makes sure: its copy ends at once when the
//! direct one was handled, and is handled as ever when that was lost, left out for want of room, or failed.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use async_nats::{Message, Subscriber};
use futures::{StreamExt, stream::SelectAll};
use tokio::{
    sync::{OwnedMutexGuard, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{DRAIN, Handler, work::Worker};
use crate::message::header;

/// Messages that are remembered, so that the copy that comes second costs nothing. It comes within milliseconds.
const REMEMBERED: usize = 4_096;

/// One handler at a time for the copies of a message, and what became of the first.
#[derive(Default)]
pub(crate) struct Turns {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    turns: HashMap<Uuid, Arc<tokio::sync::Mutex<bool>>>,
    oldest: VecDeque<Uuid>,
}

/// The right to handle a message. Holds whether a copy of it has been handled to the end.
pub(crate) type Turn = OwnedMutexGuard<bool>;

impl Turns {
    /// The turn of a copy that comes from the stream, after that of another copy.
    pub(crate) async fn wait(&self, message: &Message) -> Option<Turn> {
        let turn = self.find(id(message)?).0;
        Some(turn.lock_owned().await)
    }

    /// The turn of a copy that was heard directly; none when another copy came before.
    fn first(&self, message: &Message) -> Option<Turn> {
        match self.find(id(message)?) {
            // Nobody else can have seen it: whoever finds it later waits or leaves.
            (turn, true) => turn.try_lock_owned().ok(),
            (_, false) => None,
        }
    }

    fn find(&self, id: Uuid) -> (Arc<tokio::sync::Mutex<bool>>, bool) {
        // The maps agree after every statement that can panic.
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = inner.turns.get(&id) {
            return (Arc::clone(turn), false);
        }
        if inner.oldest.len() >= REMEMBERED
            && let Some(oldest) = inner.oldest.pop_front()
        {
            inner.turns.remove(&oldest);
        }
        let turn = Arc::<tokio::sync::Mutex<bool>>::default();
        inner.turns.insert(id, Arc::clone(&turn));
        inner.oldest.push_back(id);
        (turn, true)
    }
}

fn id(message: &Message) -> Option<Uuid> {
    let id = message.headers.as_ref()?.get(header::ID)?;
    Uuid::parse_str(id.as_str()).ok()
}

/// Hears and handles until `shutdown`, then finishes what is running.
///
/// There are places for as many messages as the stream's side has; what comes when all are taken is left to it.
pub(crate) async fn listen<H: Handler>(worker: Arc<Worker<H>>, places: usize, shutdown: CancellationToken) {
    let mut subscribers: SelectAll<Subscriber> = SelectAll::new();
    for subject in worker.spec.filters.subjects() {
        let group = worker.spec.name.to_string();
        match worker.bus.client().queue_subscribe(subject.to_owned(), group).await {
            Ok(subscriber) => subscribers.push(subscriber),
            Err(error) => tracing::warn!(%error, subject, "cannot listen directly; the stream will deliver"),
        }
    }
    let free = Arc::new(Semaphore::new(places));
    let mut running = JoinSet::new();
    loop {
        let message = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = running.join_next() => continue,
            message = subscribers.next() => message,
        };
        let Some(message) = message else { break };
        if worker.bus.refuses_copy(&message) {
            continue;
        }
        let Ok(place) = Arc::clone(&free).try_acquire_owned() else {
            continue;
        };
        let worker = Arc::clone(&worker);
        let Some(turn) = worker.turns.first(&message) else {
            continue;
        };
        running.spawn(async move {
            worker.directly(message, turn).await;
            drop(place);
        });
    }
    drop(subscribers);
    let finish = async { while running.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, finish).await;
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;

    use super::*;

    fn message(number: u128) -> Message {
        let mut headers = HeaderMap::new();
        headers.insert(header::ID, Uuid::from_u128(number).to_string().as_str());
        Message {
            subject: "alerts.v1.acme.high.scan".into(),
            reply: None,
            payload: bytes::Bytes::new(),
            headers: Some(headers),
            status: None,
            description: None,
            length: 0,
        }
    }

    #[tokio::test]
    async fn the_stream_s_copy_waits_for_the_direct_one_and_learns_what_became_of_it() {
        let turns = Arc::new(Turns::default());
        for handled in [true, false] {
            let message = message(u128::from(handled));
            let mut first = turns.first(&message).unwrap();
            assert!(turns.first(&message).is_none(), "two at once");
            let second = tokio::spawn({
                let (turns, message) = (Arc::clone(&turns), message.clone());
                async move { *turns.wait(&message).await.unwrap() }
            });
            tokio::task::yield_now().await;
            assert!(!second.is_finished());
            *first = handled;
            drop(first);
            assert_eq!(second.await.unwrap(), handled);
        }
    }

    #[tokio::test]
    async fn a_direct_copy_that_comes_second_is_left_out() {
        let turns = Turns::default();
        drop(turns.wait(&message(1)).await);
        assert!(turns.first(&message(1)).is_none());
        assert!(turns.first(&message(2)).is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_goes() {
        let turns = Turns::default();
        for number in 0..=REMEMBERED as u128 {
            assert!(turns.first(&message(number)).is_some());
        }
        assert!(turns.first(&message(1)).is_none());
        assert!(turns.first(&message(0)).is_some(), "it was forgotten");
        let inner = turns.inner.lock().unwrap();
        assert_eq!((inner.turns.len(), inner.oldest.len()), (REMEMBERED, REMEMBERED));
    }

    #[test]
    fn what_has_no_id_is_left_to_the_stream() {
        let bare = Message {
            headers: None,
            ..message(1)
        };
        assert!(Turns::default().first(&bare).is_none());
    }
}
