//! The one owner of kernel and ledger: a thread that takes orders one at a time.
//!
//! For every order: kernel, read back, answer; then the ledger is written to disk and only then may the order
//! be acknowledged. Whatever step a crash comes between, the order comes again, and a repeat finds the element
//! there already. Elements that are in the kernel and in no ledger, because the crash came between the two, are
//! kept until the responder has said what should be there.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
};

use chrono::{DateTime, Utc};
use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use super::{
    kernel::Confirmed,
    ledger::{Order, Outgoing, Said},
    ruleset::Layout,
    state::StateFile,
    worker::Worker,
};

/// Commands that may wait.
pub(super) const QUEUE: usize = 1024;

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The outcome.
    pub said: Said,
    /// When the kernel did it and reading back agreed.
    pub confirmed: Option<Confirmed>,
    /// For a failure.
    pub error: String,
}

/// What a reconciliation did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Put in force.
    pub applied: usize,
    /// Taken out of force.
    pub removed: usize,
    /// Could not be done.
    pub failed: usize,
}

pub(super) enum Command {
    Order {
        order: Order,
        span: tracing::Span,
        answer: oneshot::Sender<Answer>,
        stored: oneshot::Sender<bool>,
    },
    Reconcile {
        desired: Vec<Order>,
        asked: DateTime<Utc>,
        done: oneshot::Sender<Reconciled>,
    },
    Digest(oneshot::Sender<String>),
    News {
        limit: usize,
        reply: oneshot::Sender<Vec<Outgoing>>,
    },
    Said(BTreeSet<Uuid>),
}

/// Speaks to the agent's thread.
#[derive(Debug, Clone)]
pub struct Agent {
    commands: SyncSender<Command>,
    news: Arc<Notify>,
}

/// The agent cannot take a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// Too many commands wait.
    #[error("the enforcer is busy")]
    Busy,
    /// Its thread has ended.
    #[error("the enforcer's kernel thread has ended")]
    Ended,
}

/// What the agent works on.
#[derive(Debug)]
pub struct Setup {
    /// This node.
    pub node: String,
    /// The fixed part of the ruleset.
    pub layout: Layout,
    /// The `nft` program.
    pub program: String,
    /// Where the ledger is kept.
    pub state: StateFile,
}

impl Agent {
    /// Brings the kernel to what the ledger on disk says and starts the thread. `ended` is told the reason
    /// when the thread ends by itself.
    ///
    /// # Errors
    /// When the kernel or the disk refuses.
    pub fn start(setup: Setup) -> Result<(Self, oneshot::Receiver<String>), super::EnforcerError> {
        let (commands, inbox) = sync_channel(QUEUE);
        let news = Arc::new(Notify::new());
        let (ended, end) = oneshot::channel();
        let (ready, start) = std::sync::mpsc::channel();
        let wake = Arc::clone(&news);
        std::thread::Builder::new()
            .name("kernel".to_owned())
            .spawn(move || {
                let mut worker = match Worker::start(setup, wake) {
                    Ok(worker) => {
                        let _ = ready.send(Ok(()));
                        worker
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                worker.run(&inbox);
                let _ = ended.send("the command channel was closed".to_owned());
            })
            .map_err(super::EnforcerError::Thread)?;
        match start.recv() {
            Ok(Ok(())) => Ok((Self { commands, news }, end)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(super::EnforcerError::Ended),
        }
    }

    fn send(&self, command: Command) -> Result<(), AgentError> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => AgentError::Busy,
            TrySendError::Disconnected(_) => AgentError::Ended,
        })
    }

    /// Carries an order out. The second receiver tells whether it is on disk.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn order(&self, order: Order) -> Result<(Answer, oneshot::Receiver<bool>), AgentError> {
        let (answer, answered) = oneshot::channel();
        let (stored, on_disk) = oneshot::channel();
        self.send(Command::Order {
            order,
            span: tracing::Span::current(),
            answer,
            stored,
        })?;
        let answer = answered.await.map_err(|_| AgentError::Ended)?;
        Ok((answer, on_disk))
    }

    /// Brings the node to what the responder wants; `asked` is when it was asked.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn reconcile(&self, desired: Vec<Order>, asked: DateTime<Utc>) -> Result<Reconciled, AgentError> {
        let (done, finished) = oneshot::channel();
        self.send(Command::Reconcile { desired, asked, done })?;
        finished.await.map_err(|_| AgentError::Ended)
    }

    /// The digest of what is in force.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn digest(&self) -> Result<String, AgentError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Digest(reply))?;
        answer.await.map_err(|_| AgentError::Ended)
    }

    /// What waits to be published.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn news(&self, limit: usize) -> Result<Vec<Outgoing>, AgentError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::News { limit, reply })?;
        answer.await.map_err(|_| AgentError::Ended)
    }

    /// These were published.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn said(&self, ids: BTreeSet<Uuid>) -> Result<(), AgentError> {
        self.send(Command::Said(ids))
    }

    /// Returns when there may be news.
    pub async fn wait_for_news(&self) {
        self.news.notified().await;
    }
}
