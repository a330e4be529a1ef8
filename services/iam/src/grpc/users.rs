use garrison_auth::caller;
use garrison_proto::iam::v1::{
    CreateUserRequest, CreateUserResponse, GetUserRequest, GetUserResponse, ListRolesRequest, ListRolesResponse,
    ListUsersRequest, ListUsersResponse, ResetPasswordRequest, ResetPasswordResponse, UpdateUserRequest,
    UpdateUserResponse, user_service_server::UserService,
};
use tonic::{Request, Response, Status};

use super::{Api, convert};
use crate::{
    app::UserChange,
    domain::{Role, SecretText},
};

#[tonic::async_trait]
impl UserService for Api {
    async fn create_user(&self, request: Request<CreateUserRequest>) -> Result<Response<CreateUserResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let password = SecretText::from(request.password);
        let login = convert::login("login", &request.login)?;
        let roles = convert::roles(&request.roles)?;
        let user = self
            .iam
            .create_user(&caller, &login, &request.display_name, &roles, password)
            .await?;
        Ok(Response::new(CreateUserResponse {
            user: Some(convert::user(user)),
        }))
    }

    async fn get_user(&self, request: Request<GetUserRequest>) -> Result<Response<GetUserResponse>, Status> {
        let caller = caller(&request)?;
        let id = convert::user_id("name", &request.into_inner().name)?;
        let user = self.iam.get_user(&caller, id).await?;
        Ok(Response::new(GetUserResponse {
            user: Some(convert::user(user)),
        }))
    }

    async fn list_users(&self, request: Request<ListUsersRequest>) -> Result<Response<ListUsersResponse>, Status> {
        let caller = caller(&request)?;
        let ListUsersRequest { page_size, page_token } = request.into_inner();
        let page = self.iam.list_users(&caller, page_size, &page_token).await?;
        Ok(Response::new(ListUsersResponse {
            users: page.items.into_iter().map(convert::user).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn update_user(&self, request: Request<UpdateUserRequest>) -> Result<Response<UpdateUserResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let id = convert::user_id("name", &request.name)?;
        let change = UserChange {
            roles: request.set_roles.then(|| convert::roles(&request.roles)).transpose()?,
            disabled: request.disabled,
        };
        let user = self.iam.update_user(&caller, id, change).await?;
        Ok(Response::new(UpdateUserResponse {
            user: Some(convert::user(user)),
        }))
    }

    async fn reset_password(
        &self,
        request: Request<ResetPasswordRequest>,
    ) -> Result<Response<ResetPasswordResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let password = SecretText::from(request.password);
        let id = convert::user_id("name", &request.name)?;
        self.iam
            .reset_password(&caller, id, password, request.reset_totp)
            .await?;
        Ok(Response::new(ResetPasswordResponse {}))
    }

    async fn list_roles(&self, request: Request<ListRolesRequest>) -> Result<Response<ListRolesResponse>, Status> {
        caller(&request)?;
        let roles = Role::ALL
            .into_iter()
            .map(|role| garrison_proto::iam::v1::Role {
                name: role.name().to_owned(),
                description: role.description(),
            })
            .collect();
        Ok(Response::new(ListRolesResponse { roles }))
    }
}
