use chrono::Utc;
use garrison_proto::response::v1::{
    HeartbeatRequest, HeartbeatResponse, ListDesiredActionsRequest, ListDesiredActionsResponse,
    enforcer_service_server::EnforcerService,
};
use tonic::{Request, Response, Status};

use super::{Api, status};

#[tonic::async_trait]
impl EnforcerService for Api {
    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let asked = request.into_inner();
        let desired_digest = self
            .app
            .heartbeat(&caller, &asked.node, &asked.applied_digest, &asked.tenants, Utc::now())
            .await
            .map_err(status)?;
        Ok(Response::new(HeartbeatResponse { desired_digest }))
    }

    async fn list_desired_actions(
        &self,
        request: Request<ListDesiredActionsRequest>,
    ) -> Result<Response<ListDesiredActionsResponse>, Status> {
        let caller = garrison_auth::caller(&request)?;
        let asked = request.into_inner();
        let orders = self
            .app
            .desired_actions(&caller, &asked.node, &asked.tenants, Utc::now())
            .await
            .map_err(status)?;
        Ok(Response::new(ListDesiredActionsResponse { orders }))
    }
}
