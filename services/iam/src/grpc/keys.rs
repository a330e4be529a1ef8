use garrison_auth::caller;
use garrison_proto::iam::v1::{RotateKeyRequest, RotateKeyResponse, key_service_server::KeyService};
use tonic::{Request, Response, Status};

use super::Api;

#[tonic::async_trait]
impl KeyService for Api {
    async fn rotate_key(&self, request: Request<RotateKeyRequest>) -> Result<Response<RotateKeyResponse>, Status> {
        let key_id = self.iam.rotate_key(&caller(&request)?).await?;
        Ok(Response::new(RotateKeyResponse { key_id }))
    }
}
