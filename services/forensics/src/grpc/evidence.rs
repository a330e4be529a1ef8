//! `EvidenceService`.

use std::{pin::Pin, sync::Arc};

use chrono::DateTime;
use garrison_auth::caller;
use garrison_db::Db;
use garrison_proto::{
    forensics::v1::{
        Bundle, CreateBundleRequest, CreateBundleResponse, CustodyEvent, DownloadBundleRequest, DownloadBundleResponse,
        GetBundleRequest, GetBundleResponse, ListBundlesRequest, ListBundlesResponse, ListCustodyEventsRequest,
        ListCustodyEventsResponse, evidence_service_server::EvidenceService,
    },
    parse_name, resource_name, to_timestamp,
};
use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncReadExt as _, sync::mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::{app::bundle::Bundles, error::Error, store::bundles};

/// Bytes in one message of a download.
const CHUNK: usize = 256 << 10;

/// Evidence over gRPC.
pub struct Evidence {
    /// Makes and keeps bundles.
    pub bundles: Arc<Bundles>,
    /// The database.
    pub db: Db,
}

fn id(collection: &'static str, field: &'static str, name: &str) -> Result<Uuid, Error> {
    parse_name(collection, name).map_err(|error| Error::field(field, error.to_string()))
}

fn bundle(bundle: bundles::Bundle) -> Bundle {
    Bundle {
        name: resource_name("bundles", bundle.id),
        incident: resource_name("incidents", bundle.incident),
        state: bundle.state.into(),
        created: Some(to_timestamp(bundle.created)),
        sealed: bundle.sealed.map(to_timestamp),
        sha256: bundle.sha256,
        bytes: bundle.bytes,
        flows: bundle.counts.flows,
        packets: bundle.counts.packets,
        alerts: bundle.counts.alerts,
        responses: bundle.counts.responses,
        key_id: bundle.key_id,
        error: bundle.error,
        author: bundle.author,
        omissions: bundle.omissions,
    }
}

#[tonic::async_trait]
impl EvidenceService for Evidence {
    async fn create_bundle(
        &self,
        request: Request<CreateBundleRequest>,
    ) -> Result<Response<CreateBundleResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let incident = id("incidents", "incident", &request.incident)?;
        let request_id = Uuid::parse_str(&request.request_id)
            .map_err(|_| Error::field("request_id", "is not a UUID; choose one, and use it again for a repeat"))?;
        let made = self.bundles.create(&caller, incident, request_id).await?;
        Ok(Response::new(CreateBundleResponse {
            bundle: Some(bundle(made)),
        }))
    }

    async fn get_bundle(&self, request: Request<GetBundleRequest>) -> Result<Response<GetBundleResponse>, Status> {
        let tenant = caller(&request)?.tenant;
        let id = id("bundles", "name", &request.into_inner().name)?;
        let mut tx = self
            .db
            .begin(&tenant)
            .await
            .map_err(Error::database("reading a bundle"))?;
        let found = bundles::get(&mut tx, id).await?;
        let found = found.ok_or_else(|| Error::NotFound {
            what: resource_name("bundles", id),
        })?;
        Ok(Response::new(GetBundleResponse {
            bundle: Some(bundle(found)),
        }))
    }

    async fn list_bundles(
        &self,
        request: Request<ListBundlesRequest>,
    ) -> Result<Response<ListBundlesResponse>, Status> {
        let tenant = caller(&request)?.tenant;
        let request = request.into_inner();
        let limit = match usize::try_from(request.page_size) {
            Ok(0) => 50,
            Ok(size) => size.min(500),
            Err(_) => return Err(Error::field("page_size", "is negative; use 0 for the default").into()),
        };
        let incident = match request.incident.as_str() {
            "" => None,
            name => Some(id("incidents", "incident", name)?),
        };
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(
                Uuid::parse_str(token)
                    .map_err(|_| Error::field("page_token", "is not one that this method gave out"))?,
            ),
        };
        let mut tx = self
            .db
            .begin(&tenant)
            .await
            .map_err(Error::database("reading bundles"))?;
        let mut found = bundles::list(&mut tx, incident, after, limit + 1).await?;
        let more = found.len() > limit;
        found.truncate(limit);
        let next_page_token = found
            .last()
            .filter(|_| more)
            .map(|last| last.id.to_string())
            .unwrap_or_default();
        Ok(Response::new(ListBundlesResponse {
            bundles: found.into_iter().map(bundle).collect(),
            next_page_token,
        }))
    }

    type DownloadBundleStream = Pin<Box<dyn Stream<Item = Result<DownloadBundleResponse, Status>> + Send>>;

    async fn download_bundle(
        &self,
        request: Request<DownloadBundleRequest>,
    ) -> Result<Response<Self::DownloadBundleStream>, Status> {
        let caller = caller(&request)?;
        let id = id("bundles", "name", &request.into_inner().name)?;
        let (bundle, file) = self.bundles.open(&caller, id).await?;
        let (sender, receiver) = mpsc::channel(2);
        tokio::spawn(async move {
            if let Err(error) = send(&bundle, file, &sender).await {
                let _ = sender.send(Err(error.into())).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn list_custody_events(
        &self,
        request: Request<ListCustodyEventsRequest>,
    ) -> Result<Response<ListCustodyEventsResponse>, Status> {
        let tenant = caller(&request)?.tenant;
        let id = id("bundles", "name", &request.into_inner().name)?;
        let mut tx = self
            .db
            .begin(&tenant)
            .await
            .map_err(Error::database("reading a chain of custody"))?;
        if bundles::get(&mut tx, id).await?.is_none() {
            return Err(Error::NotFound {
                what: resource_name("bundles", id),
            }
            .into());
        }
        let chain = bundles::custody_chain(&mut tx, id).await?;
        garrison_proof::custody::verify_chain(&chain).map_err(|error| Error::Damaged {
            bundle: resource_name("bundles", id),
            reason: error.to_string(),
        })?;
        let events = chain.into_iter().map(|entry| CustodyEvent {
            time: DateTime::parse_from_rfc3339(&entry.time)
                .ok()
                .map(|time| to_timestamp(time.to_utc())),
            actor: entry.actor,
            action: entry.action,
            detail: entry.detail,
        });
        Ok(Response::new(ListCustodyEventsResponse {
            events: events.collect(),
        }))
    }
}

/// Sends an archive, and says at its end when it was not what was sealed.
async fn send(
    bundle: &bundles::Bundle,
    mut file: tokio::fs::File,
    sender: &mpsc::Sender<Result<DownloadBundleResponse, Status>>,
) -> Result<(), Error> {
    let damaged = |reason: String| Error::Damaged {
        bundle: resource_name("bundles", bundle.id),
        reason,
    };
    let mut hash = Sha256::new();
    loop {
        let mut buffer = bytes::BytesMut::with_capacity(CHUNK);
        let n = file
            .read_buf(&mut buffer)
            .await
            .map_err(|error| damaged(error.to_string()))?;
        if n == 0 {
            break;
        }
        hash.update(&buffer);
        if sender
            .send(Ok(DownloadBundleResponse { chunk: buffer.freeze() }))
            .await
            .is_err()
        {
            return Ok(());
        }
    }
    let found = hex::encode(hash.finalize());
    if found != bundle.sha256 {
        return Err(damaged(format!(
            "its SHA-256 is {found}, and {} was sealed",
            bundle.sha256
        )));
    }
    Ok(())
}
