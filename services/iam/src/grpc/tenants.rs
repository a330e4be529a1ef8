use garrison_auth::caller;
use garrison_proto::iam::v1::{
    CreateTenantRequest, CreateTenantResponse, ListTenantsRequest, ListTenantsResponse, UpdateTenantRequest,
    UpdateTenantResponse, tenant_service_server::TenantService,
};
use tonic::{Request, Response, Status};

use super::{Api, convert};
use crate::domain::SecretText;

#[tonic::async_trait]
impl TenantService for Api {
    async fn create_tenant(
        &self,
        request: Request<CreateTenantRequest>,
    ) -> Result<Response<CreateTenantResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let password = SecretText::from(request.admin_password);
        let id = convert::tenant_id("tenant_id", &request.tenant_id)?;
        let admin = convert::login("admin_login", &request.admin_login)?;
        let tenant = self
            .iam
            .create_tenant(&caller, &id, &request.display_name, &admin, password)
            .await?;
        Ok(Response::new(CreateTenantResponse {
            tenant: Some(convert::tenant(tenant)),
        }))
    }

    async fn list_tenants(
        &self,
        request: Request<ListTenantsRequest>,
    ) -> Result<Response<ListTenantsResponse>, Status> {
        let caller = caller(&request)?;
        let ListTenantsRequest { page_size, page_token } = request.into_inner();
        let page = self.iam.list_tenants(&caller, page_size, &page_token).await?;
        Ok(Response::new(ListTenantsResponse {
            tenants: page.items.into_iter().map(convert::tenant).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn update_tenant(
        &self,
        request: Request<UpdateTenantRequest>,
    ) -> Result<Response<UpdateTenantResponse>, Status> {
        let caller = caller(&request)?;
        let UpdateTenantRequest { name, disabled } = request.into_inner();
        let id = convert::tenant_id("name", &name)?;
        let tenant = self.iam.update_tenant(&caller, &id, disabled).await?;
        Ok(Response::new(UpdateTenantResponse {
            tenant: Some(convert::tenant(tenant)),
        }))
    }
}
