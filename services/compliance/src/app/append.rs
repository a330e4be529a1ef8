//! Writes audit records into the logs, many in one transaction.
//!
//! One task owns the writing. While it commits, further records gather, so the batch grows with the load and a single
//! record is written at once. Each caller hears of its own record only after the commit.

use std::{collections::BTreeMap, sync::Arc};

use chrono::Utc;
use garrison_db::Db;
use garrison_proto::TenantId;
use tokio::sync::{mpsc, oneshot};

use super::checkpoints::Checkpoints;
use crate::{
    domain::record::Record,
    error::Error,
    store::{self, Appended},
};

/// Records that may wait to be written.
const QUEUE: usize = 4_096;

struct Pending {
    tenant: TenantId,
    /// Position in the stream, for order within a batch.
    sequence: u64,
    record: Record,
    done: oneshot::Sender<Result<Appended, Arc<Error>>>,
}

/// Hands records to the writing task.
#[derive(Clone)]
pub struct Appender(mpsc::Sender<Pending>);

/// The writing task.
pub struct AppendTask {
    queue: mpsc::Receiver<Pending>,
    db: Db,
    checkpoints: Arc<Checkpoints>,
    batch: usize,
}

/// Makes both ends. `batch` bounds the records of one transaction.
pub fn appender(db: Db, checkpoints: Arc<Checkpoints>, batch: usize) -> (Appender, AppendTask) {
    let (sender, queue) = mpsc::channel(QUEUE);
    (
        Appender(sender),
        AppendTask {
            queue,
            db,
            checkpoints,
            batch,
        },
    )
}

impl Appender {
    /// Appends a record and waits until it is committed. `None` when the service is stopping.
    pub async fn append(
        &self,
        tenant: TenantId,
        sequence: u64,
        record: Record,
    ) -> Option<Result<Appended, Arc<Error>>> {
        let (done, outcome) = oneshot::channel();
        self.0
            .send(Pending {
                tenant,
                sequence,
                record,
                done,
            })
            .await
            .ok()?;
        outcome.await.ok()
    }
}

impl AppendTask {
    /// Runs until every [`Appender`] is gone.
    pub async fn run(mut self) {
        let mut waiting = Vec::with_capacity(self.batch);
        while self.queue.recv_many(&mut waiting, self.batch).await > 0 {
            let mut tenants: BTreeMap<TenantId, Vec<Pending>> = BTreeMap::new();
            for pending in waiting.drain(..) {
                tenants.entry(pending.tenant.clone()).or_default().push(pending);
            }
            for (tenant, mut batch) in tenants {
                batch.sort_by_key(|pending| pending.sequence);
                let (records, answers): (Vec<Record>, Vec<_>) =
                    batch.into_iter().map(|pending| (pending.record, pending.done)).unzip();
                match self.write(&tenant, &records).await {
                    Ok(outcomes) => {
                        for (answer, outcome) in answers.into_iter().zip(outcomes) {
                            let _ = answer.send(Ok(outcome));
                        }
                    }
                    Err(error) => {
                        let error = Arc::new(error);
                        for answer in answers {
                            let _ = answer.send(Err(error.clone()));
                        }
                    }
                }
            }
        }
    }

    async fn write(&self, tenant: &TenantId, records: &[Record]) -> Result<Vec<Appended>, Error> {
        let mut tx = self
            .db
            .begin(tenant)
            .await
            .map_err(Error::database("opening the log"))?;
        let outcomes = store::append(&mut tx, records, Utc::now()).await?;
        tx.commit().await.map_err(Error::database("committing to the log"))?;
        if outcomes.contains(&Appended::New) {
            self.checkpoints.grown(tenant);
        }
        Ok(outcomes)
    }
}
