use chrono::Utc;
use garrison_proto::response::v1::{
    AddProtectedHostRequest, AddProtectedHostResponse, ApplyPlaybookRequest, ApplyPlaybookResponse,
    ListPlaybooksRequest, ListPlaybooksResponse, ListProtectedHostsRequest, ListProtectedHostsResponse, Playbook,
    ProtectedHost, RemoveProtectedHostRequest, RemoveProtectedHostResponse, playbook_service_server::PlaybookService,
};
use tonic::{Request, Response, Status};

use super::{Api, status};
use crate::{app::PlaybookVersion, store::rules::StoredProtection};

fn playbook(stored: PlaybookVersion) -> Playbook {
    Playbook {
        name: format!("playbooks/{}", stored.name),
        document: stored.document,
        version: u64::try_from(stored.version).unwrap_or_default(),
        enabled: stored.enabled,
    }
}

fn protected(stored: StoredProtection) -> ProtectedHost {
    ProtectedHost {
        network: stored.network,
        reason: stored.reason,
        author: stored.author,
    }
}

#[tonic::async_trait]
impl PlaybookService for Api {
    async fn list_playbooks(
        &self,
        request: Request<ListPlaybooksRequest>,
    ) -> Result<Response<ListPlaybooksResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let found = self
            .app
            .list_playbooks(&caller.tenant, Utc::now())
            .await
            .map_err(status)?;
        Ok(Response::new(ListPlaybooksResponse {
            playbooks: found.into_iter().map(playbook).collect(),
        }))
    }

    async fn apply_playbook(
        &self,
        request: Request<ApplyPlaybookRequest>,
    ) -> Result<Response<ApplyPlaybookResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let stored = self
            .app
            .apply_playbook(&caller, &request.get_ref().document, Utc::now())
            .await
            .map_err(status)?;
        Ok(Response::new(ApplyPlaybookResponse {
            playbook: Some(playbook(stored)),
        }))
    }

    async fn list_protected_hosts(
        &self,
        request: Request<ListProtectedHostsRequest>,
    ) -> Result<Response<ListProtectedHostsResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let found = self.app.list_protections(&caller.tenant).await.map_err(status)?;
        Ok(Response::new(ListProtectedHostsResponse {
            hosts: found.into_iter().map(protected).collect(),
        }))
    }

    async fn add_protected_host(
        &self,
        request: Request<AddProtectedHostRequest>,
    ) -> Result<Response<AddProtectedHostResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let asked = request.into_inner();
        let stored = self
            .app
            .add_protection(&caller, &asked.network, &asked.reason, Utc::now())
            .await
            .map_err(status)?;
        Ok(Response::new(AddProtectedHostResponse {
            host: Some(protected(stored)),
        }))
    }

    async fn remove_protected_host(
        &self,
        request: Request<RemoveProtectedHostRequest>,
    ) -> Result<Response<RemoveProtectedHostResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        self.app
            .remove_protection(&caller, &request.get_ref().network, Utc::now())
            .await
            .map_err(status)?;
        Ok(Response::new(RemoveProtectedHostResponse {}))
    }
}
