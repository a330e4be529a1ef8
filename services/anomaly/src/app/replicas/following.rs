//! The tasks of a replica among others: signs of life, looking at the others, and one for each tenant that reads what was
//! handed to other replicas.

use std::{sync::Arc, time::Duration};

use garrison_bus::{Words, topology::REPLICAS_ANOMALY};
use garrison_proto::TenantId;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Engine, membership::Newcomer};
use crate::{app::cell::Cell, error::Error};

/// Pause before messages are read again that could not be.
const PAUSE: Duration = Duration::from_millis(250);

impl Engine {
    /// Shares the tenants with the other replicas until this one has left. Does nothing when somebody does already.
    pub async fn follow_replicas(self: Arc<Self>) {
        let Some(newcomers) = self.replicas.newcomers() else {
            return;
        };
        tokio::join!(self.stay(), self.share(newcomers));
    }

    /// Waits until this replica has its share, and has judged what was there of it before. False when shutdown came first.
    pub async fn join(&self, shutdown: &CancellationToken) -> bool {
        tokio::select! {
            () = shutdown.cancelled() => false,
            () = self.replicas.joined() => true,
        }
    }

    async fn stay(&self) {
        loop {
            tokio::select! {
                () = self.replicas.until_left() => return,
                () = tokio::time::sleep(self.replicas.interval()) => {}
            }
            self.renew().await;
        }
    }

    async fn share(self: &Arc<Self>, mut newcomers: mpsc::UnboundedReceiver<Newcomer>) {
        let mut attending = JoinSet::new();
        let mut words = None;
        let mut looked = false;
        loop {
            if words.is_none() {
                words = self.bus.hear(REPLICAS_ANOMALY).await.ok();
            }
            match self.look().await {
                Ok(()) => looked = true,
                Err(error) => tracing::warn!(%error, "tenants cannot be shared now"),
            }
            if self.replicas.is_among_others() {
                // For a word that was not heard.
                self.cells().iter().for_each(|(_, cell)| cell.ring());
            }
            let again = tokio::time::sleep(if looked { self.replicas.interval() } else { PAUSE });
            tokio::pin!(again);
            loop {
                // What was taken when it was looked first has been judged.
                if looked && newcomers.is_empty() && self.cells().iter().all(|(_, cell)| cell.is_caught_up()) {
                    self.replicas.join();
                }
                tokio::select! {
                    () = self.replicas.until_left() => return,
                    () = &mut again => break,
                    Some((id, cell)) = newcomers.recv() => {
                        let engine = Arc::clone(self);
                        attending.spawn(async move { engine.attend(&id, &cell).await });
                    }
                    Some(_) = attending.join_next() => {}
                    () = self.replicas.progressed() => {}
                    word = next(&mut words) => match word {
                        Some(word) => if self.heed(&word) { break },
                        None => words = None,
                    },
                }
            }
        }
    }

    // True when tenants are to be moved.
    fn heed(&self, word: &[u8]) -> bool {
        if word.is_empty() {
            return true;
        }
        let id = std::str::from_utf8(word)
            .ok()
            .and_then(|text| text.parse::<TenantId>().ok());
        if let Some(cell) = id.and_then(|id| self.find(&id)) {
            cell.ring();
        }
        false
    }

    // Reads and judges what there is of a tenant whenever there may be something.
    async fn attend(&self, id: &TenantId, cell: &Arc<Cell>) {
        loop {
            match self.read_on(id, cell).await {
                Ok(()) => {}
                Err(Error::Elsewhere { .. }) => return,
                Err(error) if error.is_passing() => {
                    tracing::warn!(%error, tenant = %id, "messages cannot be read now");
                    tokio::select! {
                        () = cell.gone() => return,
                        () = tokio::time::sleep(PAUSE) => {}
                    }
                    continue;
                }
                // One tenant's damaged state is no reason to leave the others unwatched.
                Err(error) => tracing::error!(%error, tenant = %id, "a tenant cannot be judged"),
            }
            cell.set_caught_up();
            self.replicas.progress();
            tokio::select! {
                () = cell.gone() => return,
                () = cell.rung() => {}
            }
        }
    }
}

async fn next(words: &mut Option<Words>) -> Option<bytes::Bytes> {
    match words {
        Some(words) => words.next().await,
        None => std::future::pending().await,
    }
}
