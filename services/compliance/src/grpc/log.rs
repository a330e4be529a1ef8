//! `TransparencyLogService`.

use std::{pin::Pin, sync::Arc};

use garrison_auth::caller;
use garrison_db::Db;
use garrison_proof::merkle;
use garrison_proto::{
    TenantId,
    compliance::v1::{
        ExportLogRequest, ExportLogResponse, GetCheckpointRequest, GetCheckpointResponse, GetConsistencyProofRequest,
        GetConsistencyProofResponse, GetInclusionProofRequest, GetInclusionProofResponse, ListEntriesRequest,
        ListEntriesResponse, LogEntry, transparency_log_service_server::TransparencyLogService,
    },
    to_timestamp,
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use super::{page_size, uuid};
use crate::{
    app::{
        checkpoints::Checkpoints,
        proofs::{self, Which},
    },
    error::Error,
    store::{Entry, Signed},
};

/// The transparency log over gRPC.
pub struct LogService {
    /// The database.
    pub db: Db,
    /// Signs.
    pub checkpoints: Arc<Checkpoints>,
}

fn entry(entry: Entry) -> LogEntry {
    LogEntry {
        index: entry.index,
        leaf_hash: merkle::leaf_hash(&entry.body).to_vec(),
        body: entry.body,
        logged: Some(to_timestamp(entry.logged)),
    }
}

/// 0 stands for the latest.
fn given(size: u64) -> Option<u64> {
    (size != 0).then_some(size)
}

#[tonic::async_trait]
impl TransparencyLogService for LogService {
    async fn get_checkpoint(
        &self,
        request: Request<GetCheckpointRequest>,
    ) -> Result<Response<GetCheckpointResponse>, Status> {
        let tenant = caller(&request)?.tenant;
        let signed = self.checkpoints.latest(&tenant).await?;
        Ok(Response::new(GetCheckpointResponse {
            checkpoint: signed.note,
            tree_size: signed.size,
            root_hash: signed.root.to_vec(),
            verifier_key: self.checkpoints.verifier_key(&tenant)?.to_string(),
        }))
    }

    async fn list_entries(
        &self,
        request: Request<ListEntriesRequest>,
    ) -> Result<Response<ListEntriesResponse>, Status> {
        let tenant = caller(&request)?.tenant;
        let request = request.into_inner();
        let limit = page_size(request.page_size, 100, 1_000)?;
        let signed = self.checkpoints.latest(&tenant).await?;
        let entries = proofs::entries(&self.db, &tenant, request.start, signed.size, limit).await?;
        Ok(Response::new(ListEntriesResponse {
            entries: entries.into_iter().map(entry).collect(),
            tree_size: signed.size,
        }))
    }

    async fn get_inclusion_proof(
        &self,
        request: Request<GetInclusionProofRequest>,
    ) -> Result<Response<GetInclusionProofResponse>, Status> {
        let tenant = caller(&request)?.tenant;
        let request = request.into_inner();
        let which = if request.record_id.is_empty() {
            Which::Index(request.index)
        } else {
            Which::Record(uuid("record_id", &request.record_id)?)
        };
        let found = proofs::inclusion(&self.db, &self.checkpoints, &tenant, which, given(request.tree_size)).await?;
        Ok(Response::new(GetInclusionProofResponse {
            entry: Some(entry(found.entry)),
            tree_size: found.checkpoint.size,
            hashes: found.hashes.iter().map(|hash| hash.to_vec()).collect(),
            checkpoint: found.checkpoint.note,
        }))
    }

    async fn get_consistency_proof(
        &self,
        request: Request<GetConsistencyProofRequest>,
    ) -> Result<Response<GetConsistencyProofResponse>, Status> {
        let tenant = caller(&request)?.tenant;
        let request = request.into_inner();
        let (hashes, checkpoint) = proofs::consistency(
            &self.db,
            &self.checkpoints,
            &tenant,
            request.first_size,
            given(request.second_size),
        )
        .await?;
        Ok(Response::new(GetConsistencyProofResponse {
            first_size: request.first_size,
            second_size: checkpoint.size,
            hashes: hashes.iter().map(|hash| hash.to_vec()).collect(),
            checkpoint: checkpoint.note,
        }))
    }

    type ExportLogStream = Pin<Box<dyn Stream<Item = Result<ExportLogResponse, Status>> + Send>>;

    async fn export_log(&self, request: Request<ExportLogRequest>) -> Result<Response<Self::ExportLogStream>, Status> {
        let tenant = caller(&request)?.tenant;
        let signed = self.checkpoints.latest(&tenant).await?;
        let verifier_key = self.checkpoints.verifier_key(&tenant)?.to_string();
        let (sender, receiver) = mpsc::channel(2);
        let db = self.db.clone();
        tokio::spawn(async move {
            if let Err(error) = export(&db, &tenant, signed, verifier_key, &sender).await {
                let _ = sender.send(Err(error.into())).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Ends early when the client has gone.
async fn export(
    db: &Db,
    tenant: &TenantId,
    signed: Signed,
    verifier_key: String,
    sender: &mpsc::Sender<Result<ExportLogResponse, Status>>,
) -> Result<(), Error> {
    let first = ExportLogResponse {
        checkpoint: signed.note,
        verifier_key,
        entries: Vec::new(),
    };
    if sender.send(Ok(first)).await.is_err() {
        return Ok(());
    }
    let mut next = 0;
    while next < signed.size {
        let page = proofs::entries(db, tenant, next, signed.size, 1_000).await?;
        let Some(last) = page.last() else {
            let reason = format!("entry {next} is missing");
            return Err(Error::Damaged {
                tenant: tenant.to_string(),
                reason,
            });
        };
        next = last.index + 1;
        let message = ExportLogResponse {
            entries: page.into_iter().map(entry).collect(),
            ..ExportLogResponse::default()
        };
        if sender.send(Ok(message)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
