use garrison_auth::caller;
use garrison_proto::{
    iam::v1::{
        ChangePasswordRequest, ChangePasswordResponse, ConfirmTotpRequest, ConfirmTotpResponse, EnrollTotpRequest,
        EnrollTotpResponse, FactorKind, GetCallerRequest, GetCallerResponse, GetKeySetRequest, GetKeySetResponse,
        ListRevocationsRequest, ListRevocationsResponse, LoginRequest, LoginResponse, LogoutRequest, LogoutResponse,
        RefreshTokenRequest, RefreshTokenResponse, Revocation, VerifyFactorRequest, VerifyFactorResponse,
        authentication_service_server::AuthenticationService,
    },
    resource_name, to_timestamp,
};
use tonic::{Request, Response, Status};

use super::{Api, convert};
use crate::{
    app::{FactorProof, LoginStep},
    domain::SecretText,
    error::Error,
};

#[tonic::async_trait]
impl AuthenticationService for Api {
    async fn login(&self, request: Request<LoginRequest>) -> Result<Response<LoginResponse>, Status> {
        let address = caller(&request)?.address;
        let LoginRequest {
            tenant,
            login,
            password,
        } = request.into_inner();
        let step = self
            .iam
            .login(&tenant, &login, SecretText::from(password), address)
            .await?;
        let response = match step {
            LoginStep::Done(tokens) => LoginResponse {
                tokens: Some(convert::tokens(&tokens)),
                ..LoginResponse::default()
            },
            LoginStep::Factor { challenge } => LoginResponse {
                tokens: None,
                challenge: challenge.expose().to_owned(),
                factors: vec![FactorKind::Totp.into(), FactorKind::RecoveryCode.into()],
            },
        };
        Ok(Response::new(response))
    }

    async fn verify_factor(
        &self,
        request: Request<VerifyFactorRequest>,
    ) -> Result<Response<VerifyFactorResponse>, Status> {
        let address = caller(&request)?.address;
        let request = request.into_inner();
        let kind = request.kind();
        let code = SecretText::from(request.code);
        let proof = match kind {
            FactorKind::Totp => FactorProof::Totp(code),
            FactorKind::RecoveryCode => FactorProof::RecoveryCode(code),
            FactorKind::Unspecified => {
                return Err(Error::field("kind", "name the factor: TOTP or a recovery code").into());
            }
        };
        let tokens = self.iam.verify_factor(&request.challenge, proof, address).await?;
        Ok(Response::new(VerifyFactorResponse {
            tokens: Some(convert::tokens(&tokens)),
        }))
    }

    async fn refresh_token(
        &self,
        request: Request<RefreshTokenRequest>,
    ) -> Result<Response<RefreshTokenResponse>, Status> {
        let address = caller(&request)?.address;
        let refresh = SecretText::from(request.into_inner().refresh_token);
        let tokens = self.iam.refresh(refresh.expose(), address).await?;
        Ok(Response::new(RefreshTokenResponse {
            tokens: Some(convert::tokens(&tokens)),
        }))
    }

    async fn logout(&self, request: Request<LogoutRequest>) -> Result<Response<LogoutResponse>, Status> {
        self.iam.logout(&caller(&request)?).await?;
        Ok(Response::new(LogoutResponse {}))
    }

    async fn get_caller(&self, request: Request<GetCallerRequest>) -> Result<Response<GetCallerResponse>, Status> {
        let caller = caller(&request)?;
        let view = self.iam.caller_view(&caller).await?;
        Ok(Response::new(GetCallerResponse {
            user: Some(convert::user(view.user)),
            tenant: format!("tenants/{}", caller.tenant),
            session: resource_name("sessions", view.session),
            second_factor: view.second_factor,
        }))
    }

    async fn get_key_set(&self, request: Request<GetKeySetRequest>) -> Result<Response<GetKeySetResponse>, Status> {
        caller(&request)?;
        Ok(Response::new(GetKeySetResponse {
            jwks_json: self.iam.key_set()?.to_json(),
        }))
    }

    async fn list_revocations(
        &self,
        request: Request<ListRevocationsRequest>,
    ) -> Result<Response<ListRevocationsResponse>, Status> {
        let rows = self.iam.list_revocations(&caller(&request)?).await?;
        let revocations = rows
            .into_iter()
            .map(|(tenant, session, time, until)| Revocation {
                tenant: format!("tenants/{tenant}"),
                session: resource_name("sessions", session),
                time: Some(to_timestamp(time)),
                until: Some(to_timestamp(until)),
            })
            .collect();
        Ok(Response::new(ListRevocationsResponse { revocations }))
    }

    async fn enroll_totp(&self, request: Request<EnrollTotpRequest>) -> Result<Response<EnrollTotpResponse>, Status> {
        let enrolment = self.iam.enroll_totp(&caller(&request)?).await?;
        Ok(Response::new(EnrollTotpResponse {
            uri: enrolment.uri.expose().to_owned(),
            secret: enrolment.base32.expose().to_owned(),
        }))
    }

    async fn confirm_totp(
        &self,
        request: Request<ConfirmTotpRequest>,
    ) -> Result<Response<ConfirmTotpResponse>, Status> {
        let caller = caller(&request)?;
        let code = SecretText::from(request.into_inner().code);
        let codes = self.iam.confirm_totp(&caller, &code).await?;
        Ok(Response::new(ConfirmTotpResponse {
            recovery_codes: codes.iter().map(|code| code.expose().to_owned()).collect(),
        }))
    }

    async fn change_password(
        &self,
        request: Request<ChangePasswordRequest>,
    ) -> Result<Response<ChangePasswordResponse>, Status> {
        let caller = caller(&request)?;
        let ChangePasswordRequest {
            old_password,
            new_password,
        } = request.into_inner();
        self.iam
            .change_password(&caller, old_password.into(), new_password.into())
            .await?;
        Ok(Response::new(ChangePasswordResponse {}))
    }
}
