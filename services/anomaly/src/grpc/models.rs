//! The versions of a tenant's model.

use std::sync::Arc;

use garrison_auth::caller;
use garrison_proto::alert::v1::{
    GetModelVersionRequest, GetModelVersionResponse, ListModelVersionsRequest, ListModelVersionsResponse,
    PromoteModelRequest, PromoteModelResponse, RollBackModelRequest, RollBackModelResponse, UpdateModelRequest,
    UpdateModelResponse, model_service_server::ModelService,
};
use garrison_service::audit::caller_actor;
use tonic::{Request, Response, Status};

use crate::{app::Engine, error::Error};

/// Serves `garrison.alert.v1.ModelService`.
pub struct Models(pub Arc<Engine>);

#[tonic::async_trait]
impl ModelService for Models {
    async fn list_model_versions(
        &self,
        request: Request<ListModelVersionsRequest>,
    ) -> Result<Response<ListModelVersionsResponse>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(self.0.model_versions(&caller.tenant).await?))
    }

    async fn get_model_version(
        &self,
        request: Request<GetModelVersionRequest>,
    ) -> Result<Response<GetModelVersionResponse>, Status> {
        let caller = caller(&request)?;
        let version = named(request.get_ref().version)?;
        Ok(Response::new(self.0.model_version(&caller.tenant, version).await?))
    }

    async fn update_model(
        &self,
        request: Request<UpdateModelRequest>,
    ) -> Result<Response<UpdateModelResponse>, Status> {
        let caller = caller(&request)?;
        let model = self.0.update_model(&caller.tenant, caller_actor(&caller)).await?;
        Ok(Response::new(UpdateModelResponse { model: Some(model) }))
    }

    async fn promote_model(
        &self,
        request: Request<PromoteModelRequest>,
    ) -> Result<Response<PromoteModelResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.get_ref();
        let (version, despite) = (named(asked.version)?, asked.despite_objection);
        let actor = caller_actor(&caller);
        let model = self.0.promote_model(&caller.tenant, actor, version, despite).await?;
        Ok(Response::new(PromoteModelResponse { model: Some(model) }))
    }

    async fn roll_back_model(
        &self,
        request: Request<RollBackModelRequest>,
    ) -> Result<Response<RollBackModelResponse>, Status> {
        let caller = caller(&request)?;
        let version = Some(request.get_ref().version).filter(|version| *version != 0);
        let actor = caller_actor(&caller);
        let model = self.0.roll_back_model(&caller.tenant, actor, version).await?;
        Ok(Response::new(RollBackModelResponse { model: Some(model) }))
    }
}

fn named(version: u64) -> Result<u64, Error> {
    if version == 0 {
        let problem = "versions are counted from 1".to_owned();
        return Err(Error::argument("version", problem));
    }
    Ok(version)
}
