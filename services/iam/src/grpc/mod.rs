//! gRPC: convert, ask the use case, convert. The layer in front has authenticated and authorised the caller.

mod authentication;
mod convert;
mod keys;
mod sessions;
mod tenants;
mod users;

use std::sync::Arc;

use garrison_proto::iam::v1::{
    authentication_service_server::AuthenticationServiceServer, key_service_server::KeyServiceServer,
    session_service_server::SessionServiceServer, tenant_service_server::TenantServiceServer,
    user_service_server::UserServiceServer,
};
use tonic::service::Routes;

use crate::app::Iam;

/// Serves the use cases.
#[derive(Clone)]
pub struct Api {
    iam: Arc<Iam>,
}

/// Every service of iam.
pub fn routes(iam: Arc<Iam>) -> Routes {
    let api = Api { iam };
    Routes::new(AuthenticationServiceServer::new(api.clone()))
        .add_service(UserServiceServer::new(api.clone()))
        .add_service(SessionServiceServer::new(api.clone()))
        .add_service(TenantServiceServer::new(api.clone()))
        .add_service(KeyServiceServer::new(api))
}
